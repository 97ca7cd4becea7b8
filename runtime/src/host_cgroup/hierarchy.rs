//! Which cgroup hierarchies this machine has, and where in each a sandbox's cgroup belongs: one
//! hierarchy with cgroup v2, one for each controller or pair of them with v1, and all of v1's with
//! v2's besides on a hybrid machine. Paths are found as runc finds them.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{CgroupError, io_error};
use crate::plan::Place;

/// Where every machine has its cgroups.
const TOP: &str = "/sys/fs/cgroup";

/// `f_type` of a cgroup v2 file system (`statfs(2)`).
const CGROUP2_SUPER_MAGIC: u64 = 0x6367_7270;

/// The sandbox's directory in one hierarchy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Group {
    /// Controllers of the hierarchy; none with cgroup v2, whose controllers come and go.
    pub(super) controllers: Vec<String>,
    /// Where the hierarchy is mounted.
    pub(super) top: PathBuf,
    /// The directory.
    pub(super) path: PathBuf,
    /// Whether v2 is but the hybrid machine's second hierarchy, without controllers.
    pub(super) is_secondary: bool,
}

impl Group {
    /// Whether it is one of cgroup v2.
    pub(super) fn is_v2(&self) -> bool {
        self.controllers.is_empty()
    }

    /// Whether limits of `controller` are set in it.
    pub(super) fn has(&self, controller: &str) -> bool {
        let named = self.controllers.iter().any(|name| name == controller);
        named || (self.is_v2() && !self.is_secondary)
    }
}

/// Whether this machine's controllers belong to cgroup v1.
pub(crate) fn is_v1() -> bool {
    rustix::fs::statfs(TOP)
        .is_ok_and(|stat| u64::from_ne_bytes(stat.f_type.to_ne_bytes()) != CGROUP2_SUPER_MAGIC)
}

/// Where a sandbox's cgroup belongs.
///
/// # Errors
/// [`CgroupError`] when that cannot be found out.
pub(super) fn locate(place: &Place) -> Result<Vec<Group>, CgroupError> {
    let path = match place {
        Place::Path(path) => path.clone(),
        Place::Unit {
            slice_path, unit, ..
        } => format!("{}/{unit}", slice_path.trim_end_matches('/')),
    };
    if is_v1() {
        let mounts = read(Path::new("/proc/self/mountinfo"))?;
        let own = match path.starts_with('/') {
            true => String::new(),
            false => read(Path::new("/proc/self/cgroup"))?,
        };
        let groups = locate_v1(&path, &mounts, &own);
        return match groups.is_empty() {
            true => Err(CgroupError::Unmounted),
            false => Ok(groups),
        };
    }
    let parent = match path.starts_with('/') {
        true => String::new(),
        false => parent_of_own(&read(Path::new("/proc/self/cgroup"))?).to_owned(),
    };
    Ok(vec![Group {
        controllers: Vec::new(),
        top: TOP.into(),
        path: below(Path::new(TOP), &[&parent, &path]),
        is_secondary: false,
    }])
}

fn read(path: &Path) -> Result<String, CgroupError> {
    std::fs::read_to_string(path).map_err(io_error("read", path))
}

/// The cgroup above the one of this process: its own most likely has processes in it, and then
/// none below it can have controllers.
fn parent_of_own(own: &str) -> &str {
    let path = own.lines().find_map(|line| line.strip_prefix("0::"));
    let (parent, _) = path.unwrap_or("/").rsplit_once('/').unwrap_or_default();
    parent
}

fn below(top: &Path, parts: &[&str]) -> PathBuf {
    let mut path = top.to_owned();
    path.extend(parts.iter().map(|part| part.trim_start_matches('/')));
    path
}

/// The directories in each hierarchy of a machine whose `/proc/self/mountinfo` and, for a relative
/// path, `/proc/self/cgroup` are given.
fn locate_v1(path: &str, mounts: &str, own: &str) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for mount in mounts.lines().filter_map(Mount::parse) {
        // The same hierarchy can be mounted twice.
        if groups
            .iter()
            .any(|group| group.controllers == mount.controllers)
        {
            continue;
        }
        let own = if path.starts_with('/') {
            ""
        } else {
            match own.lines().find_map(|line| mount.own_path(line)) {
                Some(own) => own,
                None => continue,
            }
        };
        groups.push(Group {
            path: below(&mount.point, &[own, path]),
            is_secondary: mount.controllers.is_empty(),
            controllers: mount.controllers,
            top: mount.point,
        });
    }
    groups
}

/// A mounted hierarchy.
struct Mount {
    controllers: Vec<String>,
    /// Which of its directories is mounted.
    root: String,
    point: PathBuf,
}

impl Mount {
    /// Reads a line of `/proc/self/mountinfo` (`proc(5)`), if it is about a hierarchy.
    fn parse(line: &str) -> Option<Self> {
        let (mount, kind) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(3);
        let (root, point) = (mount.next()?, mount.next()?);
        let mut kind = kind.split(' ');
        let controllers = match kind.next()? {
            "cgroup2" => Vec::new(),
            "cgroup" => {
                let options = kind.nth(1)?.split(',');
                // The kernel lists how it is mounted, then its controllers.
                let controllers = options.filter(|option| {
                    let how = [
                        "rw",
                        "ro",
                        "xattr",
                        "noprefix",
                        "clone_children",
                        "cpuset_v2_mode",
                        "favordynmods",
                    ];
                    !how.contains(option) && !option.starts_with("release_agent=")
                });
                controllers.map(str::to_owned).collect()
            }
            _ => return None,
        };
        Some(Self {
            controllers,
            root: root.to_owned(),
            point: point.into(),
        })
    }

    /// Reads a line of `/proc/self/cgroup`: this process's path below the mount, if it is about
    /// this hierarchy.
    fn own_path<'a>(&self, line: &'a str) -> Option<&'a str> {
        let (_, line) = line.split_once(':')?;
        let (controllers, path) = line.split_once(':')?;
        let named = match self.controllers.first() {
            None => controllers.is_empty(),
            Some(first) => controllers.split(',').any(|name| name == first),
        };
        let below = path.strip_prefix(self.root.trim_end_matches('/'));
        named.then(|| below.unwrap_or(path))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MOUNTS: &str = "\
25 30 0:23 / /sys rw,nosuid - sysfs sysfs rw
30 25 0:26 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw,nsdelegate
32 30 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
33 30 0:29 /pod /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct
34 30 0:29 /pod /mnt/cpu rw shared:9 - cgroup cgroup rw,cpu,cpuacct
35 30 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory,release_agent=/x
";
    const OWN: &str = "\
4:memory:/user
3:cpu,cpuacct:/pod/a
2:name=systemd:/user.slice
0::/user.slice
";

    fn found(path: &str) -> Vec<(String, String)> {
        let groups = locate_v1(path, MOUNTS, OWN);
        let text = |group: Group| {
            (
                group.controllers.join(","),
                group.path.display().to_string(),
            )
        };
        groups.into_iter().map(text).collect()
    }

    fn pairs<const N: usize>(pairs: [(&str, &str); N]) -> Vec<(String, String)> {
        pairs.map(|(a, b)| (a.to_owned(), b.to_owned())).into()
    }

    #[test]
    fn an_absolute_path_is_in_each_hierarchy() {
        let expected = pairs([
            ("", "/sys/fs/cgroup/unified/a/b"),
            ("name=systemd", "/sys/fs/cgroup/systemd/a/b"),
            ("cpu,cpuacct", "/sys/fs/cgroup/cpu,cpuacct/a/b"),
            ("memory", "/sys/fs/cgroup/memory/a/b"),
        ]);
        assert_eq!(found("/a/b"), expected);
    }

    #[test]
    fn a_relative_path_is_below_ones_own_in_each_hierarchy() {
        let expected = pairs([
            ("", "/sys/fs/cgroup/unified/user.slice/c"),
            ("name=systemd", "/sys/fs/cgroup/systemd/user.slice/c"),
            ("cpu,cpuacct", "/sys/fs/cgroup/cpu,cpuacct/a/c"),
            ("memory", "/sys/fs/cgroup/memory/user/c"),
        ]);
        assert_eq!(found("c"), expected);
    }

    #[test]
    fn a_hybrid_machine_sets_no_limits_in_its_second_hierarchy() {
        let groups = locate_v1("/a", MOUNTS, OWN);
        assert!(groups[0].is_v2() && !groups[0].has("memory"));
        assert!(groups[3].has("memory") && !groups[3].has("cpu"));
        assert!(groups[2].has("cpu") && groups[2].has("cpuacct"));
    }

    #[test]
    fn with_version_2_a_relative_path_is_beside_ones_own() {
        for (own, parent) in [
            ("0::/user.slice/session-1.scope\n", "/user.slice"),
            ("1:name=systemd:/x\n0::/a\n", ""),
            ("0::/\n", ""),
            ("", ""),
        ] {
            assert_eq!(parent_of_own(own), parent, "{own:?}");
        }
    }

    proptest! {
        /// Whatever the kernel says, no directory is outside the hierarchy it belongs to.
        #[test]
        fn directories_stay_in_their_hierarchy(
            path in "/?[a-z]{1,3}(/[a-z]{1,3}){0,2}",
            own in "([0-9]:(cpu,cpuacct|memory|name=systemd|):(/[a-z/]{0,6})?\n){0,5}",
        ) {
            for group in locate_v1(&path, MOUNTS, &own) {
                prop_assert!(group.path.starts_with(&group.top));
                prop_assert!(group.path.ends_with(path.trim_start_matches('/')));
            }
        }

        #[test]
        fn no_line_panics(mounts: String, own: String) {
            let _ = locate_v1("c", &mounts, &own);
            let _ = parent_of_own(&own);
        }
    }
}
