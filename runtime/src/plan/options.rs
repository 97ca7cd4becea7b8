//! Mount options: the words of `mounts[].options` as the kernel's numbers. The table is runc's.

/// What a list of options comes to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Options {
    /// `MS_*` flags (`mount(2)`).
    pub(super) flags: u64,
    /// `MS_*` flags that a word says the mount shall not have.
    pub(super) cleared: u64,
    /// `MOUNT_ATTR_*` set recursively.
    pub(super) recursive_set: u64,
    /// `MOUNT_ATTR_*` cleared recursively.
    pub(super) recursive_clear: u64,
    /// Propagation changes, in order.
    pub(super) propagation: Vec<u64>,
    /// What the file system itself is told, comma-separated.
    pub(super) data: String,
    /// `tmpcopyup`.
    pub(super) copy_up: bool,
    /// `idmap` (of the top mount) or `ridmap` (of all of them).
    pub(super) id_mapped: Option<Depth>,
}

/// How much of a tree of mounts something is done to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Depth {
    Top,
    All,
}

/// What one word does.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Effect {
    /// `MS_*` of `mount(2)` to set.
    Set(u64),
    /// `MS_*` to clear.
    Clear(u64),
    /// `MOUNT_ATTR_*` of `mount_setattr(2)` to set on all mounts below.
    RecursiveSet(u64),
    /// `MOUNT_ATTR_*` to clear on all mounts below.
    RecursiveClear(u64),
    /// A propagation.
    Propagation(u64),
    /// The tmpfs starts with a copy of what it covers.
    CopyUp,
    /// The ids of the mount are mapped.
    IdMap(Depth),
    /// Nothing: what one gets without any option.
    Default,
}

/// Propagation called `name`: `MS_*` of `mount(2)`, with `MS_REC` for the recursive ones.
pub(super) fn propagation(name: &str) -> Option<u64> {
    match effect(name) {
        Some(Effect::Propagation(kind)) => Some(kind),
        _ => None,
    }
}

/// Reads a list of options, later words overriding earlier ones.
pub(super) fn parse<'a>(words: impl IntoIterator<Item = &'a str>) -> Options {
    let mut options = Options::default();
    for word in words {
        match effect(word) {
            Some(effect) => options.apply(effect),
            None => {
                if !options.data.is_empty() {
                    options.data.push(',');
                }
                options.data.push_str(word);
            }
        }
    }
    options
}

impl Options {
    fn apply(&mut self, effect: Effect) {
        match effect {
            Effect::Set(flag) => {
                self.flags |= flag;
                self.cleared &= !flag;
            }
            Effect::Clear(flag) => {
                self.flags &= !flag;
                self.cleared |= flag;
            }
            Effect::RecursiveSet(attribute) => {
                self.recursive_clear &= !attribute;
                self.clear_access_time(attribute);
                self.recursive_set |= attribute;
            }
            Effect::RecursiveClear(attribute) => {
                self.recursive_clear |= attribute;
                self.recursive_set &= !attribute;
                self.clear_access_time(attribute);
            }
            Effect::Propagation(kind) => self.propagation.push(kind),
            Effect::CopyUp => self.copy_up = true,
            Effect::IdMap(depth) => self.id_mapped = Some(depth),
            Effect::Default => {}
        }
    }

    /// The access-time modes are one field of several bits, which the kernel wants cleared as a
    /// whole whenever it is set (`mount_setattr(2)`). `MOUNT_ATTR_RELATIME` is the value 0.
    fn clear_access_time(&mut self, attribute: u64) {
        if attribute & libc::MOUNT_ATTR__ATIME == attribute {
            self.recursive_clear |= libc::MOUNT_ATTR__ATIME;
            self.recursive_set &= !libc::MOUNT_ATTR__ATIME;
        }
    }
}

/// `MS_NOSYMFOLLOW`, Linux 5.10 (`linux/mount.h`); libc has no name for it.
pub(crate) const MS_NOSYMFOLLOW: u64 = 0x100;

/// Every word that is not left to the file system, with what it does, in the order of the
/// alphabet; `lazaret features` lists them.
pub(crate) const WORDS: &[(&str, Effect)] = &{
    use Effect::{Clear, CopyUp, Default, IdMap, Propagation, RecursiveClear, RecursiveSet, Set};
    [
        ("acl", Set(libc::MS_POSIXACL)),
        ("async", Clear(libc::MS_SYNCHRONOUS)),
        ("atime", Clear(libc::MS_NOATIME)),
        ("bind", Set(libc::MS_BIND)),
        ("defaults", Default),
        ("dev", Clear(libc::MS_NODEV)),
        ("diratime", Clear(libc::MS_NODIRATIME)),
        ("dirsync", Set(libc::MS_DIRSYNC)),
        ("exec", Clear(libc::MS_NOEXEC)),
        ("idmap", IdMap(Depth::Top)),
        ("iversion", Set(libc::MS_I_VERSION)),
        ("lazytime", Set(libc::MS_LAZYTIME)),
        ("loud", Clear(libc::MS_SILENT)),
        ("mand", Set(libc::MS_MANDLOCK)),
        ("noacl", Clear(libc::MS_POSIXACL)),
        ("noatime", Set(libc::MS_NOATIME)),
        ("nodev", Set(libc::MS_NODEV)),
        ("nodiratime", Set(libc::MS_NODIRATIME)),
        ("noexec", Set(libc::MS_NOEXEC)),
        ("noiversion", Clear(libc::MS_I_VERSION)),
        ("nolazytime", Clear(libc::MS_LAZYTIME)),
        ("nomand", Clear(libc::MS_MANDLOCK)),
        ("norelatime", Clear(libc::MS_RELATIME)),
        ("nostrictatime", Clear(libc::MS_STRICTATIME)),
        ("nosuid", Set(libc::MS_NOSUID)),
        ("nosymfollow", Set(MS_NOSYMFOLLOW)),
        ("private", Propagation(libc::MS_PRIVATE)),
        ("ratime", RecursiveClear(libc::MOUNT_ATTR_NOATIME)),
        ("rbind", Set(libc::MS_BIND | libc::MS_REC)),
        ("rdev", RecursiveClear(libc::MOUNT_ATTR_NODEV)),
        ("rdiratime", RecursiveClear(libc::MOUNT_ATTR_NODIRATIME)),
        ("relatime", Set(libc::MS_RELATIME)),
        ("remount", Set(libc::MS_REMOUNT)),
        ("rexec", RecursiveClear(libc::MOUNT_ATTR_NOEXEC)),
        ("ridmap", IdMap(Depth::All)),
        ("rnoatime", RecursiveSet(libc::MOUNT_ATTR_NOATIME)),
        ("rnodev", RecursiveSet(libc::MOUNT_ATTR_NODEV)),
        ("rnodiratime", RecursiveSet(libc::MOUNT_ATTR_NODIRATIME)),
        ("rnoexec", RecursiveSet(libc::MOUNT_ATTR_NOEXEC)),
        ("rnorelatime", RecursiveClear(libc::MOUNT_ATTR_RELATIME)),
        (
            "rnostrictatime",
            RecursiveClear(libc::MOUNT_ATTR_STRICTATIME),
        ),
        ("rnosuid", RecursiveSet(libc::MOUNT_ATTR_NOSUID)),
        ("rnosymfollow", RecursiveSet(libc::MOUNT_ATTR_NOSYMFOLLOW)),
        ("ro", Set(libc::MS_RDONLY)),
        ("rprivate", Propagation(libc::MS_PRIVATE | libc::MS_REC)),
        ("rrelatime", RecursiveSet(libc::MOUNT_ATTR_RELATIME)),
        ("rro", RecursiveSet(libc::MOUNT_ATTR_RDONLY)),
        ("rrw", RecursiveClear(libc::MOUNT_ATTR_RDONLY)),
        ("rshared", Propagation(libc::MS_SHARED | libc::MS_REC)),
        ("rslave", Propagation(libc::MS_SLAVE | libc::MS_REC)),
        ("rstrictatime", RecursiveSet(libc::MOUNT_ATTR_STRICTATIME)),
        ("rsuid", RecursiveClear(libc::MOUNT_ATTR_NOSUID)),
        ("rsymfollow", RecursiveClear(libc::MOUNT_ATTR_NOSYMFOLLOW)),
        (
            "runbindable",
            Propagation(libc::MS_UNBINDABLE | libc::MS_REC),
        ),
        ("rw", Clear(libc::MS_RDONLY)),
        ("shared", Propagation(libc::MS_SHARED)),
        ("silent", Set(libc::MS_SILENT)),
        ("slave", Propagation(libc::MS_SLAVE)),
        ("strictatime", Set(libc::MS_STRICTATIME)),
        ("suid", Clear(libc::MS_NOSUID)),
        ("symfollow", Clear(MS_NOSYMFOLLOW)),
        ("sync", Set(libc::MS_SYNCHRONOUS)),
        ("tmpcopyup", CopyUp),
        ("unbindable", Propagation(libc::MS_UNBINDABLE)),
    ]
};

fn effect(word: &str) -> Option<Effect> {
    let found = WORDS.binary_search_by_key(&word, |(name, _)| name);
    found.ok().map(|index| WORDS[index].1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn words_become_flags_and_the_rest_data() {
        let options = parse(["nosuid", "strictatime", "mode=755", "size=65536k"]);
        assert_eq!(options.flags, libc::MS_NOSUID | libc::MS_STRICTATIME);
        assert_eq!(options.data, "mode=755,size=65536k");
    }

    #[test]
    fn words_are_in_order_so_that_each_is_found() {
        assert!(WORDS.is_sorted_by_key(|(name, _)| name));
        for (name, _) in WORDS {
            assert!(effect(name).is_some(), "{name}");
        }
    }

    #[test]
    fn later_words_win() {
        assert_eq!(parse(["ro", "rw"]).flags, 0);
        assert_eq!(parse(["rw", "ro"]).flags, libc::MS_RDONLY);
        assert_eq!(
            parse(["ro", "suid", "rw"]).cleared,
            libc::MS_NOSUID | libc::MS_RDONLY
        );
        assert_eq!(parse(["suid", "nosuid"]).cleared, 0);
        let options = parse(["rro", "rrw"]);
        assert_eq!(options.recursive_set, 0);
        assert_eq!(options.recursive_clear, libc::MOUNT_ATTR_RDONLY);
    }

    #[test]
    fn access_time_is_cleared_as_a_whole() {
        let options = parse(["rrelatime"]);
        assert_eq!(options.recursive_set, 0);
        assert_eq!(options.recursive_clear, libc::MOUNT_ATTR__ATIME);
        assert_eq!(parse(["rnosuid"]).recursive_clear, 0);
    }

    #[test]
    fn id_mappings_reach_as_far_as_the_last_word_says() {
        assert_eq!(parse(["bind"]).id_mapped, None);
        assert_eq!(parse(["idmap"]).id_mapped, Some(Depth::Top));
        assert_eq!(parse(["idmap", "ridmap"]).id_mapped, Some(Depth::All));
    }

    #[test]
    fn propagation_keeps_its_order() {
        assert_eq!(
            parse(["rshared", "slave"]).propagation,
            [libc::MS_SHARED | libc::MS_REC, libc::MS_SLAVE]
        );
        assert_eq!(
            propagation("runbindable"),
            Some(libc::MS_UNBINDABLE | libc::MS_REC)
        );
        assert_eq!(propagation("r"), None);
    }

    proptest! {
        #[test]
        fn unknown_words_reach_the_file_system(words in prop::collection::vec("[a-z]{3,8}=[0-9]{1,3}", 0..6)) {
            let options = parse(words.iter().map(String::as_str));
            prop_assert_eq!(options.data, words.join(","));
            prop_assert_eq!(options.flags, 0);
        }

        #[test]
        fn set_and_cleared_never_overlap_but_for_access_times(
            words in prop::collection::vec(
                prop::sample::select(vec![
                    "rro", "rrw", "rnosuid", "rsuid", "rnodev", "rdev", "rnoexec", "rexec",
                    "rnoatime", "rstrictatime", "rrelatime", "rnosymfollow", "rsymfollow",
                ]),
                0..8,
            )
        ) {
            let options = parse(words);
            let both = options.recursive_set & options.recursive_clear;
            prop_assert_eq!(both & !libc::MOUNT_ATTR__ATIME, 0);
        }
    }
}
