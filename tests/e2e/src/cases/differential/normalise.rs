//! What two reports may differ in. Each rule says why; everything else must be equal.

use serde_json::{Map, Value, json};

/// Signal 32, which the C library keeps for itself, as a bit of a signal mask: a runtime written in
/// Go leaves it ignored.
const LIBRARY_SIGNAL: u64 = 1 << 31;

/// Takes out of a report what a virtual machine, or another build of Linux, makes different.
pub(super) fn normalise(report: &mut Value) {
    if let Some(descriptors) = report["descriptors"].as_object_mut() {
        streams(descriptors);
    }
    if let Some(mounts) = report["mounts"].as_object_mut() {
        mounts.values_mut().for_each(mount);
    }
    if let Some(paths) = report["paths"].as_object_mut() {
        kernel_directories(paths);
    }
    if let Some(root) = report["mounts"].get_mut("/") {
        // runc gives the propagation to the host's root before it leaves it.
        root["propagation"] = Value::Null;
    }
    if let Some(owner) = report["devices"]["/dev/mqueue"].get_mut("owner") {
        // Whoever makes the ipc namespace; in a user namespace runc does before it has root's group.
        owner[1] = Value::Null;
    }
    ignored_signals(&mut report["status"]["SigIgn"]);
    if report["files"]["/proc/self/cgroup"] != "0::/\n" {
        cgroups_of_the_machine(report);
    }
}

/// The same for a process that was started in a running container.
pub(super) fn normalise_exec(report: &mut Value) {
    // Which numbers are free depends on how many processes a runtime has started there.
    report["process"] = Value::Null;
    for field in ["NStgid", "NSpgid", "NSsid"] {
        report["status"][field] = Value::Null;
    }
    report["calls"]["getpgid"] = Value::Null;
    // Go raises the soft limit in runc's own process that then becomes this one.
    report["limits"]["nofile"][0] = Value::Null;
    normalise(report);
}

/// Whether runc's container was refused for what is a mount of the host's. In a user namespace the
/// kernel holds on to the flags of such a mount (mount_namespaces(7)); in a guest they are mounts of
/// the guest's, whose flags are the container's affair. Nor can runc make a device there: it binds
/// the host's of that path, if there is one.
pub(super) fn is_the_hosts_refusal(refusal: &str) -> bool {
    let mount = refusal.contains("error mounting") && refusal.contains("operation not permitted");
    let device = refusal.contains("error creating device nodes")
        && refusal.contains("no such file or directory");
    mount || device
}

/// Either runtime carries a standard stream in its own way: as it is, or through a pipe.
fn streams(descriptors: &mut Map<String, Value>) {
    for name in ["0", "1", "2"] {
        if let Some(kind) = descriptors.get_mut(name) {
            *kind = json!("open");
        }
    }
}

fn mount(mount: &mut Value) {
    if mount["root"] == "/null" {
        // A masked file is the null device, from whichever /dev the runtime has it.
        *mount = json!("the null device");
    } else if mount["type"] == "devtmpfs" {
        // In a user namespace a device is bound: from the host's /dev, or from the guest's.
        *mount = json!("a device of the machine");
    } else if masks_directory(mount) {
        *mount = json!("a masked directory");
    } else {
        file_system(mount);
    }
}

/// Whether it is an empty read-only tmpfs, which hides a directory. Lazaret's is also nodev, noexec,
/// nosuid and small, which nobody can tell on a directory where there is nothing.
fn masks_directory(mount: &Value) -> bool {
    let small = mount["super"].as_array();
    let small = small.is_some_and(|options| options.contains(&json!("nr_inodes=2")));
    // In a user namespace the kernel says whose it is.
    let owned = |option: &Value| {
        let option = option.as_str().unwrap_or_default();
        option == "ro" || option.starts_with("uid=") || option.starts_with("gid=")
    };
    let plain = mount["super"].as_array();
    let plain = plain.is_some_and(|options| options.iter().all(owned))
        && mount["options"] == json!(["ro", "relatime"]);
    mount["type"] == "tmpfs" && mount["source"] == "tmpfs" && (small || plain)
}

fn file_system(mount: &mut Value) {
    let root = mount["root"].as_str().unwrap_or_default();
    if mount["type"] == "virtiofs" || root.contains("/bundle-") {
        // A bundle's files lie on a file system of the host, which is a virtio-fs one in a guest:
        // its name, its root and its own options are the host's affair.
        mount["type"] = json!("the bundle's");
        for field in ["root", "source", "super"] {
            mount[field] = Value::Null;
        }
    } else if mount["type"] == "sysfs" || mount["type"] == "cgroup2" {
        // Read-only is the mount; the file system behind it may be another's as well.
        mount["super"] = Value::Null;
    } else if let Some(options) = mount["super"].as_array_mut() {
        // runc mounts a tmpfs and then changes its mode, and makes the mount read-only and not the
        // file system. The mode, and whether one can write, are reported by themselves.
        options.retain(|option| {
            let option = option.as_str().unwrap_or_default();
            !matches!(option, "ro" | "rw") && !option.starts_with("mode=")
        });
    }
    if let Some(propagation) = mount["propagation"].as_array_mut() {
        // What is mounted on the host does not come into a guest: it has no master to follow.
        propagation.retain(|word| word != "master" && word != "propagate_from");
    }
}

/// How many entries a directory of the kernel's has depends on its configuration.
fn kernel_directories(paths: &mut Map<String, Value>) {
    for (path, attributes) in paths {
        if (path.starts_with("/proc") || path.starts_with("/sys"))
            && let Some(entries) = attributes.get_mut("entries")
        {
            *entries = Value::Null;
        }
    }
}

fn ignored_signals(mask: &mut Value) {
    let bits = mask
        .as_str()
        .and_then(|hex| u64::from_str_radix(hex, 16).ok());
    if let Some(bits) = bits {
        *mask = json!(format!("{:016x}", bits & !LIBRARY_SIGNAL));
    }
}

/// Without a cgroup namespace of its own, a container of runc's sees the cgroups of the machine, and
/// one of lazaret's its own: those of the guest are not its business.
fn cgroups_of_the_machine(report: &mut Value) {
    const MOUNT: &str = "/sys/fs/cgroup";
    if let Some(files) = report["files"].as_object_mut() {
        files.retain(|path, _| !path.starts_with(MOUNT) && path != "/proc/self/cgroup");
    }
    if let Some(mount) = report["mounts"].get_mut(MOUNT) {
        mount["root"] = Value::Null;
        mount["source"] = Value::Null;
    }
}
