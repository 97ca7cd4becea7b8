//! Flags of the mounts that binds come from: what is `nosuid` on the host must be `nosuid` in the
//! guest, whose own mounts know nothing of the host's. Called by `share`; changes no mount.

use std::{
    ffi::OsString,
    fs, io,
    os::{fd::OwnedFd, unix::ffi::OsStringExt as _},
    path::{Path, PathBuf},
};

use lazaret_protocol::container::{Mount, Root, Submount};
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, StatVfsMountFlags, StatxAttributes, StatxFlags,
};

use crate::plan::{self, MS_NOSYMFOLLOW};

/// `ST_NOSYMFOLLOW` (`linux/statfs.h`).
const ST_NOSYMFOLLOW: StatVfsMountFlags = StatVfsMountFlags::from_bits_retain(0x2000);

/// The mounts of this mount namespace, read when they are first asked for.
#[derive(Debug, Default)]
pub(super) struct MountTable(Option<Vec<(PathBuf, u64)>>);

impl MountTable {
    /// Mount points and flags.
    fn entries(&mut self) -> io::Result<&[(PathBuf, u64)]> {
        if self.0.is_none() {
            self.0 = Some(parse(&fs::read("/proc/self/mountinfo")?));
        }
        Ok(self.0.as_deref().unwrap_or_default())
    }
}

/// Has `bind` show the flags that the mounts of its source have, whose clone is `clone`.
///
/// # Errors
/// When the mounts cannot be examined.
pub(super) fn hand_on(
    share: &plan::Share,
    clone: &OwnedFd,
    kind: FileType,
    bind: &mut Mount,
    table: &mut MountTable,
) -> io::Result<()> {
    bind.flags |= of_mount(share, clone)?;
    if share.recursive && kind == FileType::Directory {
        let top = fs::canonicalize(&share.source)?;
        let is_mount = |path: &Path| is_mount(clone, path);
        bind.below = below(&top, bind.flags, table.entries()?, is_mount);
    }
    Ok(())
}

/// Has the container's root show the flags that the mount has that its clone is made of. What is
/// mounted below the root on the host has the flags of the root.
///
/// # Errors
/// When the mount cannot be examined.
pub(super) fn hand_on_to_root(
    share: &plan::Share,
    clone: &OwnedFd,
    root: &mut Root,
) -> io::Result<()> {
    let found = of_mount(share, clone)?;
    root.readonly |= found & libc::MS_RDONLY != 0;
    root.flags |= found & !libc::MS_RDONLY;
    Ok(())
}

/// The flags of the mount behind `clone` that are kept.
fn of_mount(share: &plan::Share, clone: &OwnedFd) -> io::Result<u64> {
    Ok(to_mount_flags(rustix::fs::fstatvfs(clone)?.f_flag) & share.kept_flags)
}

/// The mounts below `top` whose flags are not those of the mount they are on, parents first.
fn below(
    top: &Path,
    top_flags: u64,
    table: &[(PathBuf, u64)],
    is_mount: impl Fn(&Path) -> bool,
) -> Vec<Submount> {
    let mut found: Vec<(&Path, u64)> = table
        .iter()
        .filter_map(|(path, flags)| Some((path.strip_prefix(top).ok()?, *flags)))
        .filter(|(path, _)| !path.as_os_str().is_empty())
        .collect();
    // Of several mounts at one place the last is seen.
    found.reverse();
    found.sort_by_key(|(path, _)| *path);
    found.dedup_by_key(|(path, _)| *path);
    found.retain(|(path, _)| is_mount(path));
    let differs = |at: usize| {
        let (path, flags) = found[at];
        let mut above = found[..at].iter().rev();
        let parent = above.find(|(parent, _)| path.starts_with(parent));
        flags != parent.map_or(top_flags & plan::KEPT_FLAGS, |(_, flags)| *flags)
    };
    let different = (0..found.len()).filter(|&at| differs(at));
    different
        .filter_map(|at| {
            Some(Submount {
                path: found[at].0.to_str()?.to_owned(),
                flags: found[at].1,
            })
        })
        .collect()
}

/// Whether a mount at `path` below the source has come along with the clone.
fn is_mount(clone: &OwnedFd, path: &Path) -> bool {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let attributes = rustix::fs::openat2(clone, path, flags, Mode::empty(), resolve)
        .and_then(|fd| {
            let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
            rustix::fs::statx(fd, "", flags, StatxFlags::empty())
        })
        .map(|statx| statx.stx_attributes);
    attributes.is_ok_and(|attributes| attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// Reads `/proc/pid/mountinfo` (`proc_pid_mountinfo(5)`).
fn parse(text: &[u8]) -> Vec<(PathBuf, u64)> {
    text.split(|byte| *byte == b'\n')
        .filter_map(|line| {
            let mut fields = line.split(|byte| *byte == b' ').skip(4);
            let path = PathBuf::from(OsString::from_vec(unescape(fields.next()?)));
            Some((path, word_flags(fields.next()?)))
        })
        .collect()
}

/// Undoes `\\040` and the like.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let number = after.get(..3).filter(|_| byte == b'\\');
        let number = number.and_then(|digits| std::str::from_utf8(digits).ok());
        match number.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                plain.push(byte);
                rest = &after[3..];
            }
            None => {
                plain.push(byte);
                rest = after;
            }
        }
    }
    plain
}

/// `MS_*` flags for the words of a mount; `relatime` is what a mount has that says nothing.
fn word_flags(words: &[u8]) -> u64 {
    let mut flags = libc::MS_STRICTATIME;
    for word in words.split(|byte| *byte == b',') {
        match word {
            b"ro" => flags |= libc::MS_RDONLY,
            b"nosuid" => flags |= libc::MS_NOSUID,
            b"nodev" => flags |= libc::MS_NODEV,
            b"noexec" => flags |= libc::MS_NOEXEC,
            b"nodiratime" => flags |= libc::MS_NODIRATIME,
            b"nosymfollow" => flags |= MS_NOSYMFOLLOW,
            b"noatime" => flags = flags & !libc::MS_STRICTATIME | libc::MS_NOATIME,
            b"relatime" => flags &= !libc::MS_STRICTATIME,
            _ => {}
        }
    }
    flags
}

/// The same for what `statvfs(3)` says.
fn to_mount_flags(found: StatVfsMountFlags) -> u64 {
    let access_time = if found.contains(StatVfsMountFlags::NOATIME) {
        libc::MS_NOATIME
    } else if found.contains(StatVfsMountFlags::RELATIME) {
        0
    } else {
        libc::MS_STRICTATIME
    };
    [
        (StatVfsMountFlags::RDONLY, libc::MS_RDONLY),
        (StatVfsMountFlags::NOSUID, libc::MS_NOSUID),
        (StatVfsMountFlags::NODEV, libc::MS_NODEV),
        (StatVfsMountFlags::NOEXEC, libc::MS_NOEXEC),
        (StatVfsMountFlags::NODIRATIME, libc::MS_NODIRATIME),
        (ST_NOSYMFOLLOW, MS_NOSYMFOLLOW),
    ]
    .iter()
    .filter(|(flag, _)| found.contains(*flag))
    .fold(access_time, |flags, (_, flag)| flags | flag)
}

#[cfg(test)]
mod tests;
