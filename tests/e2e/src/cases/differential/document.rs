//! Documents: which edits there are, and what values they take. An edit is about one thing that a
//! container's author decides; each is there or not, whatever the others are.

use std::{fmt, path::Path};

use anyhow::{Context as _, Result};
use proptest::{
    collection::vec,
    option::weighted,
    prelude::{BoxedStrategy, Just, Strategy, any as arbitrary},
    prop_oneof,
    sample::{select, subsequence},
};
use serde_json::{Value, json};

use crate::bundle::Bundle;

pub(super) mod hooks;
mod limits;
mod newer;
mod seccomp;

/// The mask of a process's new files.
pub(super) const UMASK: &str = "/process/user/umask";

/// Processes that are started in a container.
const PROCESSES: usize = 3;

/// A change at one place of `config.json`.
#[derive(Debug, Clone)]
enum Edit {
    /// The value at this JSON pointer becomes this one.
    Set(&'static str, Value),
    /// The array at this JSON pointer, which need not exist, gets one more element.
    Append(&'static str, Value),
    /// The namespace of this type is no longer the container's own.
    ShareNamespace(&'static str),
    /// A mount of the directory `source` of the bundle, which is made with a file in it.
    Bind(&'static str, Vec<&'static str>),
    /// Hooks of these lists note in files of the bundle that they ran and with what.
    Hooks(Vec<&'static str>),
    /// A hook of this list fails.
    FailingHook(&'static str),
    /// Fields that the reference runtime is too old for. It gets none of them, and what it shows at
    /// a place changes as they demand.
    Newer(Vec<Edit>, Vec<Shown>),
}

/// What a field changes in a report.
#[derive(Debug, Clone)]
struct Shown {
    /// Where, as a JSON pointer.
    place: &'static str,
    /// What is there without it, if that is certain.
    without: Option<Value>,
    /// What is there with it.
    with: Value,
}

/// A bundle's configuration, as the edits that make it.
#[derive(Debug, Clone)]
pub(super) struct Document(Vec<Option<Vec<Edit>>>);

impl fmt::Display for Document {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.edits().try_for_each(|edit| edit.fmt(formatter))
    }
}

impl fmt::Display for Edit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Set(pointer, value) => write!(formatter, "\n  {pointer} = {value}"),
            Self::Append(pointer, value) => write!(formatter, "\n  {pointer} += {value}"),
            Self::ShareNamespace(kind) => write!(formatter, "\n  no {kind} namespace"),
            Self::Bind(target, options) => write!(formatter, "\n  bind {target} {options:?}"),
            Self::Hooks(lists) => write!(formatter, "\n  hooks {lists:?}"),
            Self::FailingHook(list) => write!(formatter, "\n  failing hook {list}"),
            Self::Newer(edits, _) => edits.iter().try_for_each(|edit| edit.fmt(formatter)),
        }
    }
}

impl Document {
    fn edits(&self) -> impl Iterator<Item = &Edit> {
        self.0.iter().flatten().flatten()
    }

    /// Makes the edits; the newer ones only if the runtime knows them. `probe` is the suite's binary.
    pub(super) fn apply(&self, bundle: &mut Bundle, probe: &Path, newer: bool) -> Result<()> {
        self.edits()
            .try_for_each(|edit| edit.apply(bundle, probe, newer))
    }

    /// Puts into a report what the newer edits demand.
    pub(super) fn show_newer(&self, report: &mut Value) {
        for edit in self.edits() {
            let Edit::Newer(_, shown) = edit else {
                continue;
            };
            for Shown {
                place,
                without,
                with,
            } in shown
            {
                if let Some(found) = report.pointer_mut(place)
                    && without.as_ref().is_none_or(|without| without == found)
                {
                    *found = with.clone();
                }
            }
        }
    }
}

impl Edit {
    fn apply(&self, bundle: &mut Bundle, probe: &Path, newer: bool) -> Result<()> {
        match self {
            Self::Set(pointer, value) => bundle.set(pointer, value.clone()),
            Self::Append(pointer, value) => append(bundle, pointer, value)?,
            Self::ShareNamespace(kind) => {
                let namespaces = bundle.config["linux"]["namespaces"].as_array_mut();
                let namespaces = namespaces.context("a bundle has namespaces")?;
                namespaces.retain(|namespace| namespace["type"] != *kind);
            }
            Self::Bind(target, options) => {
                let source = bundle.directory.join("source");
                std::fs::create_dir_all(&source)?;
                std::fs::write(source.join("file"), "content\n")?;
                bundle.bind(target, &source, options);
            }
            Self::Hooks(lists) => {
                for list in lists {
                    let hook = hooks::noting(list, bundle, probe);
                    append(bundle, &format!("/hooks/{list}"), &hook)?;
                }
            }
            Self::FailingHook(list) => {
                let hook = hooks::failing(list, probe);
                append(bundle, &format!("/hooks/{list}"), &hook)?;
            }
            Self::Newer(edits, _) => {
                for edit in edits.iter().filter(|_| newer) {
                    edit.apply(bundle, probe, newer)?;
                }
            }
        }
        Ok(())
    }
}

fn append(bundle: &mut Bundle, pointer: &str, value: &Value) -> Result<()> {
    if bundle.config.pointer(pointer).is_none() {
        bundle.set(pointer, json!([]));
    }
    let list = bundle.config.pointer_mut(pointer);
    let list = list.and_then(Value::as_array_mut);
    list.with_context(|| format!("{pointer} is no array"))?
        .push(value.clone());
    Ok(())
}

/// A document, and those of processes that are started in its container.
#[derive(Debug, Clone)]
pub(super) struct Documents {
    /// The container.
    pub(super) container: Document,
    /// `exec --process`, one after the other.
    pub(super) processes: Vec<Document>,
}

impl fmt::Display for Documents {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.container.fmt(formatter)?;
        self.processes
            .iter()
            .try_for_each(|process| write!(formatter, "\n exec:{process}"))
    }
}

/// Any documents: a container, and three processes in it.
pub(super) fn any() -> impl Strategy<Value = Documents> {
    let edits = process().into_iter().map(|edit| weighted(0.3, edit));
    let edits: Vec<_> = edits.collect();
    let processes = vec(edits.prop_map(Document), PROCESSES);
    (container(), processes).prop_map(|(container, processes)| Documents {
        container,
        processes,
    })
}

/// Any document of a container.
fn container() -> impl Strategy<Value = Document> {
    let host_name = set("/hostname", "[a-z][a-z0-9-]{0,40}".prop_map(Value::from));
    let edits = process()
        .into_iter()
        .chain(init())
        .chain([host_name])
        .chain(file_systems())
        .chain(isolation())
        .chain(limits::any());
    let often = edits.map(|edit| weighted(0.3, edit));
    // Each hook is a process, and most that fail end the container before it shows anything.
    let seldom = [
        (0.25, hooks::any_lists()),
        (0.02, hooks::any_failing()),
        (0.35, seccomp::any()),
    ];
    let seldom = seldom.map(|(probability, edit)| weighted(probability, edit));
    let newer = newer::any().into_iter().map(|edit| weighted(0.15, edit));
    let edits: Vec<_> = often.chain(seldom).chain(newer).collect();
    edits.prop_map(Document)
}

type Edits = BoxedStrategy<Vec<Edit>>;

/// One edit that sets `pointer`.
fn set(pointer: &'static str, values: impl Strategy<Value = Value> + 'static) -> Edits {
    values
        .prop_map(move |value| vec![Edit::Set(pointer, value)])
        .boxed()
}

/// One edit that sets `pointer` to one of `values`.
fn one_of(pointer: &'static str, values: impl IntoIterator<Item = Value>) -> Edits {
    set(pointer, select(values.into_iter().collect::<Vec<_>>()))
}

/// Edits that append some of `values`, in their order.
fn some_of(pointer: &'static str, values: Vec<Value>) -> Edits {
    let count = values.len();
    subsequence(values, 1..=count)
        .prop_map(move |values| {
            let append = |value| Edit::Append(pointer, value);
            values.into_iter().map(append).collect()
        })
        .boxed()
}

fn process() -> Vec<Edits> {
    let ids = || select(vec![0_u32, 5, 1000, 65534]);
    let user = (ids(), ids(), vec(0_u32..3000, 0..5))
        .prop_map(|(uid, gid, groups)| json!({ "uid": uid, "gid": gid, "additionalGids": groups }));
    let names = "[A-Z_][A-Z0-9_]{0,8}=[ -~äß]{0,20}";
    vec![
        set("/process/user", user),
        set("/process/capabilities", capabilities()),
        set(
            "/process/noNewPrivileges",
            arbitrary::<bool>().prop_map(Value::from),
        ),
        set("/process/rlimits", resource_limits()),
        set("/process/env", vec(names, 0..6).prop_map(|env| json!(env))),
        one_of(
            "/process/cwd",
            ["/tmp", "/data", "/work/new/folder", "/proc"].map(Value::from),
        ),
    ]
}

/// What Debian's runc passes over in the document of an `exec`.
fn init() -> Vec<Edits> {
    vec![
        set(UMASK, (0..0o1000_u32).prop_map(Value::from)),
        set(
            "/process/oomScoreAdj",
            (-1000..=1000_i32).prop_map(Value::from),
        ),
    ]
}

/// Five sets that the kernel takes: what is effective is permitted, what is ambient is permitted and
/// inheritable.
fn capabilities() -> impl Strategy<Value = Value> {
    const NAMES: &[&str] = &[
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FOWNER",
        "CAP_KILL",
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_SETPCAP",
        "CAP_NET_BIND_SERVICE",
        "CAP_NET_RAW",
        "CAP_SYS_CHROOT",
        "CAP_SYS_ADMIN",
        "CAP_SYS_NICE",
        "CAP_MKNOD",
        "CAP_AUDIT_WRITE",
        "CAP_SETFCAP",
        "CAP_BPF",
    ];
    // Each capability is in none, some or all of the sets: one number of five bits for each.
    vec(0..32_u8, NAMES.len()).prop_map(|places| {
        let with = |mask: u8| -> Vec<&str> {
            let named = NAMES.iter().zip(&places);
            let chosen = named.filter(|(_, place)| *place & mask == mask);
            chosen.map(|(name, _)| *name).collect()
        };
        json!({
            "bounding": with(1),
            "permitted": with(1 | 2),
            "effective": with(1 | 2 | 4),
            "inheritable": with(1 | 8),
            "ambient": with(1 | 2 | 8 | 16),
        })
    })
}

fn resource_limits() -> impl Strategy<Value = Value> {
    // Without those that would keep either runtime from starting the program.
    let names = [
        "RLIMIT_CORE",
        "RLIMIT_CPU",
        "RLIMIT_FSIZE",
        "RLIMIT_LOCKS",
        "RLIMIT_MEMLOCK",
        "RLIMIT_MSGQUEUE",
        "RLIMIT_NICE",
        "RLIMIT_NOFILE",
        "RLIMIT_NPROC",
        "RLIMIT_RSS",
        "RLIMIT_RTPRIO",
        "RLIMIT_RTTIME",
        "RLIMIT_SIGPENDING",
    ];
    let chosen = subsequence(names.to_vec(), 1..=names.len());
    let values = vec((0..60_000_u32, 0..5_000_u32), names.len());
    (chosen, values).prop_map(|(names, values)| {
        let limit = |(name, (soft, more)): (&str, (u32, u32))| {
            let soft = u64::from(soft) + 5_000_000 * u64::from(name == "RLIMIT_FSIZE") + 100;
            json!({ "type": name, "soft": soft, "hard": soft + u64::from(more) })
        };
        names.into_iter().zip(values).map(limit).collect()
    })
}

/// Options that any mount can have, at most one of each kind.
fn mount_options() -> impl Strategy<Value = Vec<&'static str>> {
    let kinds = [
        select(vec!["ro", "rw"]),
        select(vec!["nosuid", "suid"]),
        select(vec!["nodev", "dev"]),
        select(vec!["noexec", "exec"]),
        select(vec!["noatime", "relatime", "strictatime"]),
        select(vec!["nodiratime", "diratime"]),
        select(vec![
            "rprivate", "private", "rslave", "slave", "rshared", "shared",
        ]),
    ];
    kinds
        .map(|kind| weighted(0.3, kind))
        .to_vec()
        .prop_map(|options| options.into_iter().flatten().collect())
}

fn file_systems() -> Vec<Edits> {
    let sizes = select(vec![
        "size=64k",
        "size=1m,mode=1777",
        "mode=700,uid=5,gid=6",
        "nr_inodes=50",
    ]);
    let tmpfs = (mount_options(), weighted(0.5, sizes)).prop_map(|(mut options, size)| {
        options.extend(size.iter().flat_map(|size| size.split(',')));
        let mount = json!({
            "destination": "/mnt/new", "type": "tmpfs", "source": "tmpfs", "options": options,
        });
        vec![Edit::Append("/mounts", mount)]
    });
    let copied = json!({
        "destination": "/etc", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"],
    });
    let bind = |target: &'static str, kind: &'static str| {
        mount_options()
            .prop_map(move |options| vec![Edit::Bind(target, [vec![kind], options].concat())])
    };
    let masked = [
        "/proc/tty",
        "/proc/version",
        "/sys/class",
        "/etc/passwd",
        "/data",
        "/none",
    ];
    let readonly = [
        "/proc/driver",
        "/etc",
        "/home",
        "/tmp",
        "/proc/uptime",
        "/none",
    ];
    vec![
        tmpfs.boxed(),
        Just(vec![Edit::Append("/mounts", copied)]).boxed(),
        bind("/data", "bind").boxed(),
        bind("/new/folder", "rbind").boxed(),
        one_of("/root/readonly", [true, false].map(Value::from)),
        one_of(
            "/linux/rootfsPropagation",
            ["private", "rslave", "shared", "unbindable"].map(Value::from),
        ),
        some_of("/linux/maskedPaths", masked.map(Value::from).to_vec()),
        some_of("/linux/readonlyPaths", readonly.map(Value::from).to_vec()),
        some_of("/linux/devices", devices()),
        some_of("/linux/resources/devices", device_rules()),
    ]
}

fn devices() -> Vec<Value> {
    vec![
        json!({ "path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o666 }),
        json!({ "path": "/dev/net/tun", "type": "c", "major": 10, "minor": 200, "fileMode": 0o600 }),
        json!({ "path": "/dev/nothing", "type": "c", "major": 1, "minor": 3, "fileMode": 0o640, "uid": 7, "gid": 8 }),
        json!({ "path": "/dev/queue", "type": "p", "fileMode": 0o622 }),
        json!({ "path": "/data/zeroes", "type": "u", "major": 1, "minor": 5, "fileMode": 0o444 }),
    ]
}

fn device_rules() -> Vec<Value> {
    vec![
        json!({ "allow": true, "type": "c", "major": 10, "minor": 229, "access": "rwm" }),
        json!({ "allow": true, "type": "c", "major": 10, "access": "r" }),
        json!({ "allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm" }),
        json!({ "allow": true, "type": "c", "major": 1, "minor": 1, "access": "rw" }),
        json!({ "allow": false, "type": "c", "major": 10, "minor": 229, "access": "w" }),
    ]
}

fn isolation() -> Vec<Edits> {
    let parameters = subsequence(
        vec![
            ("kernel.shmmax", "67108864"),
            ("kernel.msgmax", "4096"),
            ("kernel.sem", "250 32000 100 128"),
            ("fs.mqueue.msg_max", "20"),
            ("net.ipv4.ip_forward", "1"),
            ("net.ipv4.ping_group_range", "0 1000"),
            ("net.core.somaxconn", "256"),
            ("net/ipv4/ip_default_ttl", "70"),
            ("kernel.msgmnb", "32768"),
            ("kernel.msgmni", "100"),
            ("kernel.shmall", "65536"),
            ("kernel.shmmni", "200"),
            ("kernel.shm_rmid_forced", "1"),
            ("fs.mqueue.queues_max", "30"),
            ("fs.mqueue.msgsize_max", "4096"),
            ("net.ipv4.ip_unprivileged_port_start", "80"),
            ("net.ipv4.ip_local_port_range", "40000 50000"),
        ],
        1..=6,
    )
    .prop_map(|pairs| -> Value {
        pairs
            .into_iter()
            .map(|(name, value)| (name.to_owned(), json!(value)))
            .collect()
    });
    let mapping = select(vec![(0, 65_536), (100_000, 65_536), (200_000, 100_000)]);
    let user_namespace = mapping.prop_map(|(start, size)| {
        let mappings = json!([{ "containerID": 0, "hostID": start, "size": size }]);
        vec![
            Edit::Append("/linux/namespaces", json!({ "type": "user" })),
            Edit::Set("/linux/uidMappings", mappings.clone()),
            Edit::Set("/linux/gidMappings", mappings),
        ]
    });
    // Neither is of any namespace.
    let refused = ["vm.swappiness", "kernel.panic"];
    let refused = select(refused.to_vec()).prop_map(|name| json!({ name: "10" }));
    vec![
        set("/linux/sysctl", prop_oneof![20 => parameters, 1 => refused]),
        Just(vec![Edit::ShareNamespace("ipc")]).boxed(),
        Just(vec![
            Edit::ShareNamespace("uts"),
            Edit::Set("/hostname", Value::Null),
        ])
        .boxed(),
        Just(vec![Edit::ShareNamespace("cgroup")]).boxed(),
        user_namespace.boxed(),
    ]
}
