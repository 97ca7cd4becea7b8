//! Resolves `USER[:GROUP]` in the root file system's own `/etc/passwd` and `/etc/group`.
//!
//! Called by `convert`. Both files are an image's, so they are hostile: they are opened within
//! the root file system, must be regular files, and are bounded. (passwd(5), group(5))

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;

use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;

use crate::unpack::Tree;

/// The longest file that is read; thousands of users fit.
const MAX_FILE_BYTES: u64 = 4 << 20;
/// The most supplementary groups Linux takes (`NGROUPS_MAX`).
const MAX_GROUPS: usize = 65536;

/// Why a user cannot be resolved.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// The user's name is not in `/etc/passwd`.
    #[error("user {0:?} is not in the image's /etc/passwd")]
    UnknownUser(String),
    /// The group's name is not in `/etc/group`.
    #[error("group {0:?} is not in the image's /etc/group")]
    UnknownGroup(String),
    /// The user is in more groups than Linux takes.
    #[error("user {0:?} is in more than {MAX_GROUPS} groups")]
    TooManyGroups(String),
    /// The file cannot be read.
    #[error("the image's /{file} cannot be read")]
    Read {
        /// Which file.
        file: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The file is longer than any sensible one.
    #[error("the image's /{0} is longer than {MAX_FILE_BYTES} bytes")]
    TooLong(&'static str),
}

/// A resolved user.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// The groups that list the user, unless it was given by number or with a group.
    pub(super) additional_gids: Vec<u32>,
}

/// Resolves `text` as the image specification's conversion document says.
pub(super) fn resolve(tree: &Tree, text: &str) -> Result<User, UserError> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (text, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let passwd = read(tree, "etc/passwd")?;
    let number = id(user);
    // name:password:uid:gid:comment:home:shell
    let known = passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let (uid, gid) = (id(fields.get(2)?)?, id(fields.get(3)?)?);
        (number.map_or(fields[0] == user, |number| number == uid)).then_some((uid, gid))
    });
    let (uid, default_gid) = match (number, known) {
        (Some(uid), known) => (uid, known.map_or(0, |(_, gid)| gid)),
        (None, Some(known)) => known,
        (None, None) => return Err(UserError::UnknownUser(user.to_owned())),
    };
    let groups = read(tree, "etc/group")?;
    if let Some(group) = group {
        let gid = id(group).or_else(|| {
            groups_of(&groups).find_map(|(name, gid, _)| (name == group).then_some(gid))
        });
        let gid = gid.ok_or_else(|| UserError::UnknownGroup(group.to_owned()))?;
        return Ok(User {
            uid,
            gid,
            additional_gids: Vec::new(),
        });
    }
    let mut additional_gids = Vec::new();
    if number.is_none() {
        additional_gids.extend(groups_of(&groups).filter_map(|(_, gid, members)| {
            members
                .split(',')
                .any(|member| member == user)
                .then_some(gid)
        }));
        additional_gids.sort_unstable();
        additional_gids.dedup();
    }
    if additional_gids.len() > MAX_GROUPS {
        return Err(UserError::TooManyGroups(user.to_owned()));
    }
    Ok(User {
        uid,
        gid: default_gid,
        additional_gids,
    })
}

/// The groups of a group file: name, number and members (`name:password:gid:members`).
fn groups_of(file: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    file.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        Some((
            fields[0],
            id(fields.get(2)?)?,
            fields.get(3).copied().unwrap_or(""),
        ))
    })
}

/// A user or group number; the highest is none.
fn id(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits
        .then(|| text.parse().ok())
        .flatten()
        .filter(|id| *id != u32::MAX)
}

/// Reads a file of the root file system; one that is not there is empty.
fn read(tree: &Tree, file: &'static str) -> Result<String, UserError> {
    let failed = |source| UserError::Read { file, source };
    // Opening a device has effects of its own, so what it is comes first.
    let found = match tree.open(file.as_bytes(), OFlags::PATH) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(String::new()),
        result => result.map_err(|error| failed(error.into()))?,
    };
    let status = rustix::fs::fstat(&found).map_err(|error| failed(error.into()))?;
    if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
        return Err(failed(io::Error::other("not a regular file")));
    }
    let opened = File::open(format!("/proc/self/fd/{}", found.as_raw_fd())).map_err(failed)?;
    let mut bytes = Vec::new();
    opened
        .take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(UserError::TooLong(file));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
