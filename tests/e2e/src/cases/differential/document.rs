//! Documents: which edits there are, and what values they take. An edit is about one thing that a
//! container's author decides; each is there or not, whatever the others are.

use std::fmt;

use anyhow::{Context as _, Result};
use proptest::{
    collection::vec,
    option::weighted,
    prelude::{BoxedStrategy, Just, Strategy, any as arbitrary},
    sample::{select, subsequence},
};
use serde_json::{Value, json};

use crate::bundle::Bundle;

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
}

/// A bundle's configuration, as the edits that make it.
#[derive(Debug, Clone)]
pub(super) struct Document(Vec<Option<Vec<Edit>>>);

impl fmt::Display for Document {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for edit in self.edits() {
            match edit {
                Edit::Set(pointer, value) => write!(formatter, "\n  {pointer} = {value}")?,
                Edit::Append(pointer, value) => write!(formatter, "\n  {pointer} += {value}")?,
                Edit::ShareNamespace(kind) => write!(formatter, "\n  no {kind} namespace")?,
                Edit::Bind(target, options) => write!(formatter, "\n  bind {target} {options:?}")?,
            }
        }
        Ok(())
    }
}

impl Document {
    fn edits(&self) -> impl Iterator<Item = &Edit> {
        self.0.iter().flatten().flatten()
    }

    /// Makes the edits.
    pub(super) fn apply(&self, bundle: &mut Bundle) -> Result<()> {
        for edit in self.edits() {
            match edit {
                Edit::Set(pointer, value) => bundle.set(pointer, value.clone()),
                Edit::Append(pointer, value) => append(bundle, pointer, value)?,
                Edit::ShareNamespace(kind) => {
                    let namespaces = bundle.config["linux"]["namespaces"].as_array_mut();
                    let namespaces = namespaces.context("a bundle has namespaces")?;
                    namespaces.retain(|namespace| namespace["type"] != *kind);
                }
                Edit::Bind(target, options) => {
                    let source = bundle.directory.join("source");
                    std::fs::create_dir_all(&source)?;
                    std::fs::write(source.join("file"), "content\n")?;
                    bundle.bind(target, &source, options);
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

/// Any document.
pub(super) fn any() -> impl Strategy<Value = Document> {
    let edits = process()
        .into_iter()
        .chain(file_systems())
        .chain(isolation())
        .chain(limits());
    let edits: Vec<_> = edits.map(|edit| weighted(0.3, edit)).collect();
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
        set("/process/user/umask", (0..0o1000_u32).prop_map(Value::from)),
        set("/process/capabilities", capabilities()),
        set(
            "/process/noNewPrivileges",
            arbitrary::<bool>().prop_map(Value::from),
        ),
        set("/process/rlimits", resource_limits()),
        set(
            "/process/oomScoreAdj",
            (-1000..=1000_i32).prop_map(Value::from),
        ),
        set("/process/env", vec(names, 0..6).prop_map(|env| json!(env))),
        one_of(
            "/process/cwd",
            ["/tmp", "/data", "/work/new/folder", "/proc"].map(Value::from),
        ),
        set("/hostname", "[a-z][a-z0-9-]{0,40}".prop_map(Value::from)),
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
        ],
        1..=8,
    )
    .prop_map(|pairs| {
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
    vec![
        set("/linux/sysctl", parameters),
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

fn limits() -> Vec<Edits> {
    let mib = |range: std::ops::Range<u64>| range.prop_map(|mib| Value::from(mib << 20));
    vec![
        set("/linux/resources/memory/limit", mib(48..400)),
        set("/linux/resources/memory/reservation", mib(16..48)),
        set(
            "/linux/resources/pids/limit",
            (20..500).prop_map(Value::from),
        ),
        set(
            "/linux/resources/cpu/shares",
            (2..=262_144).prop_map(Value::from),
        ),
        set(
            "/linux/resources/cpu/quota",
            (5_000..90_000).prop_map(Value::from),
        ),
        set(
            "/linux/resources/cpu/period",
            (10_000..200_000).prop_map(Value::from),
        ),
        set(
            "/linux/resources/unified",
            mib(40..400).prop_map(|high| json!({ "memory.high": high.to_string() })),
        ),
    ]
}
