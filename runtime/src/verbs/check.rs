//! `check`: what this machine lacks to run containers, each line with its remedy.

use std::{
    io::Read as _,
    os::{fd::AsFd as _, unix::fs::PermissionsExt as _},
    path::Path,
};

use serde::Serialize;

use super::{VerbError, option_error, print};
use crate::{
    cli::{Check, Global},
    config::Config,
    sys,
};

/// The KVM API has had this version since 2007 (KVM API §4.1).
const KVM_API_VERSION: i32 = 12;

/// `CAP_SYS_ADMIN`: mounts and namespaces.
const CAP_SYS_ADMIN: u32 = 21;

/// Memory that our processes need beside the guest's, in MiB.
const OVERHEAD_MIB: u64 = 16;

/// Oldest kernel with all calls that are used: `mount_setattr(2)`.
const KERNEL_LEAST: (u32, u32) = (5, 12);

/// The result of one look.
#[derive(Debug, Serialize)]
struct Finding {
    /// What was looked at.
    name: &'static str,
    /// Whether it is as it should be.
    ok: bool,
    /// What was found.
    found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

impl Finding {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self {
            name,
            ok: true,
            found: found.into(),
            remedy: None,
        }
    }

    fn missing(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            name,
            ok: false,
            found: found.into(),
            remedy: Some(remedy.into()),
        }
    }
}

/// # Errors
/// [`VerbError`]; something that is missing is no error but exit code 1.
pub(super) fn run(global: &Global, options: &Check) -> Result<u8, VerbError> {
    let config = Config::load(global.config.as_deref())?;
    let findings = [
        kvm(),
        cpu(),
        root(),
        host_kernel(),
        binary(&config.vmm),
        guest_kernel(&config.kernel),
        initramfs(&config.initramfs),
        memory(config.memory_mib),
    ];
    let text = match options.format.as_str() {
        "table" => findings.iter().map(line).collect(),
        "json" => serde_json::to_string_pretty(&findings).expect("strings are valid JSON") + "\n",
        _ => return Err(option_error("--format", "must be table or json")),
    };
    print(&text)?;
    Ok(u8::from(!findings.iter().all(|finding| finding.ok)))
}

fn line(finding: &Finding) -> String {
    let mark = if finding.ok { "ok     " } else { "MISSING" };
    let mut line = format!("{mark}  {:<13} {}", finding.name, finding.found);
    if let Some(remedy) = &finding.remedy {
        line.push_str(": ");
        line.push_str(remedy);
    }
    line.push('\n');
    line
}

fn kvm() -> Finding {
    const NAME: &str = "/dev/kvm";
    let file = match std::fs::File::options().read(true).write(true).open(NAME) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            return Finding::missing(NAME, "no permission", "run as root or join the group kvm");
        }
        Err(error) => {
            return Finding::missing(
                NAME,
                crate::log::chain(&error),
                "load kvm_intel or kvm_amd (modprobe), or enable nested virtualisation if this \
                 is a VM",
            );
        }
    };
    match sys::kvm_api_version(file.as_fd()) {
        Ok(KVM_API_VERSION) => Finding::ok(NAME, format!("API version {KVM_API_VERSION}")),
        Ok(version) => Finding::missing(
            NAME,
            format!("API version {version}"),
            format!("a kernel with KVM API version {KVM_API_VERSION} is needed"),
        ),
        Err(error) => Finding::missing(
            NAME,
            crate::log::chain(&error),
            "remove whatever took the place of the KVM device",
        ),
    }
}

fn cpu() -> Finding {
    const NAME: &str = "CPU";
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = text.lines().find(|line| line.starts_with("flags"));
    let words = flags.unwrap_or_default().split_ascii_whitespace();
    match words
        .into_iter()
        .find(|word| matches!(*word, "vmx" | "svm"))
    {
        Some(flag) => Finding::ok(NAME, format!("hardware virtualisation ({flag})")),
        None => Finding::missing(
            NAME,
            "neither vmx nor svm",
            "enable VT-x or AMD-V in the firmware, or nested virtualisation if this is a VM",
        ),
    }
}

fn root() -> Finding {
    const NAME: &str = "privileges";
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = text
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok())
        .unwrap_or(0);
    if effective >> CAP_SYS_ADMIN & 1 == 1 {
        Finding::ok(NAME, "CAP_SYS_ADMIN")
    } else {
        Finding::missing(NAME, "no CAP_SYS_ADMIN", "run as root")
    }
}

fn host_kernel() -> Finding {
    const NAME: &str = "host kernel";
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().into_owned();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|number| number.parse().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let (major, minor) = KERNEL_LEAST;
    if version >= KERNEL_LEAST {
        Finding::ok(NAME, release)
    } else {
        Finding::missing(
            NAME,
            release,
            format!("Linux {major}.{minor} or newer is needed"),
        )
    }
}

fn binary(path: &Path) -> Finding {
    const NAME: &str = "lazaret-vmm";
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_file() && metadata.permissions().mode() & 0o111 != 0 => {
            Finding::ok(NAME, path.display().to_string())
        }
        Ok(_) => Finding::missing(
            NAME,
            format!("{} is not an executable file", path.display()),
            "set `vmm` in the configuration",
        ),
        Err(error) => not_found(NAME, path, &error, "set `vmm` in the configuration"),
    }
}

fn guest_kernel(path: &Path) -> Finding {
    const NAME: &str = "guest kernel";
    let remedy = "build it with `cargo xtask kernel` and set `kernel` in the configuration";
    with_magic(NAME, path, b"\x7fELF", "an ELF image (vmlinux)", remedy)
}

fn initramfs(path: &Path) -> Finding {
    const NAME: &str = "initramfs";
    let remedy = "build it with `cargo xtask rootfs` and set `initramfs` in the configuration";
    with_magic(
        NAME,
        path,
        b"070701",
        "an uncompressed newc archive",
        remedy,
    )
}

fn with_magic(name: &'static str, path: &Path, magic: &[u8], kind: &str, remedy: &str) -> Finding {
    let mut start = vec![0; magic.len()];
    let read = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut start));
    match read {
        Ok(()) if start == magic => Finding::ok(name, path.display().to_string()),
        Err(error) if error.kind() != std::io::ErrorKind::UnexpectedEof => {
            not_found(name, path, &error, remedy)
        }
        _ => Finding::missing(name, format!("{} is not {kind}", path.display()), remedy),
    }
}

fn not_found(name: &'static str, path: &Path, error: &std::io::Error, remedy: &str) -> Finding {
    let found = format!("{}: {}", path.display(), crate::log::chain(error));
    Finding::missing(name, found, remedy)
}

fn memory(memory_mib: u64) -> Finding {
    const NAME: &str = "memory";
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available_mib = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.trim().strip_suffix(" kB"))
        .and_then(|kib| kib.parse::<u64>().ok())
        .map_or(0, |kib| kib >> 10);
    let needed_mib = memory_mib + OVERHEAD_MIB;
    let found = format!("{available_mib} MiB available, one container needs {needed_mib} MiB");
    if available_mib >= needed_mib {
        Finding::ok(NAME, found)
    } else {
        Finding::missing(
            NAME,
            found,
            "free some, or lower `memory_mib` in the configuration",
        )
    }
}
