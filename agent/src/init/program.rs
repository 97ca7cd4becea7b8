//! The last steps before `exec`: scheduling, user, groups, capabilities, working directory,
//! environment, finding the program, and the filter of system calls. Called by [`super::run`], inside the finished container.
//!
//! Order and messages are runc's (`finalizeNamespace`, Go's `exec.LookPath`): Docker and Podman
//! derive the exit codes 126 and 127 from the messages.
#![forbid(unsafe_code)]

use std::ffi::CString;
use std::io::{BufRead, BufReader};

use lazaret_protocol::container::{Process, User};
use rustix::fs::{Access, AtFlags, CWD, FileType, Gid, Mode, Uid, accessat, stat};
use rustix::io::Errno;
use rustix::thread::{
    set_keep_capabilities, set_no_new_privs, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};

use super::InitError;
use crate::attributes;
use crate::capabilities;
use crate::errno::Os;
use crate::instructions::Rules;
use crate::seccomp::Filter;
use crate::sys::{self, StringArray};

/// Permission bits taken from new files if the process does not say.
const UMASK_DEFAULT: u32 = 0o022;

/// Longest line of `/etc/passwd` that is looked at; the file is the container's.
const PASSWD_LINE_BYTES_MAX: usize = 4096;

/// The program cannot be run.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProgramError {
    /// No directory of `PATH` has it.
    #[error("exec: {0:?}: executable file not found in $PATH")]
    NotInPath(String),
    /// A relative directory of `PATH` has it.
    #[error("exec: {0:?}: cannot run executable found relative to current directory")]
    Relative(String),
    /// The path given does not exist.
    #[error("exec: {path:?}: stat {path}")]
    Stat {
        /// As given.
        path: String,
        /// The kernel's answer.
        #[source]
        source: Os,
    },
    /// The path given is no program for this user.
    #[error("exec: {path:?}")]
    Access {
        /// As given.
        path: String,
        /// The kernel's answer.
        #[source]
        source: Os,
    },
    /// `execve(2)`.
    #[error("exec {path}")]
    Exec {
        /// The program found.
        path: String,
        /// The kernel's answer.
        #[source]
        source: Os,
    },
    /// The working directory.
    #[error("chdir to cwd ({cwd:?}) set in config.json failed")]
    WorkingDirectory {
        /// As given.
        cwd: String,
        /// The kernel's answer.
        #[source]
        source: Os,
    },
    /// An argument or variable is not a C string, or a variable has no name.
    #[error("{what} {text:?} {reason}")]
    Text {
        /// Argument or environment variable.
        what: &'static str,
        /// The string.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// There is no program in `args`.
    #[error("args is empty")]
    NoArguments,
}

impl ProgramError {
    /// Whether the program does not exist, as opposed to being of no use.
    pub(super) fn is_not_found(&self) -> bool {
        match self {
            Self::NotInPath(_) => true,
            Self::Stat { source, .. } | Self::Exec { source, .. } => source.0 == Errno::NOENT,
            _ => false,
        }
    }
}

/// Everything `execve(2)` needs.
pub(super) struct Program {
    /// Path found.
    pub path: CString,
    /// Its arguments.
    pub arguments: StringArray,
    /// Its environment.
    pub environment: StringArray,
    /// The filter to load right before it.
    pub filter: Option<Filter>,
}

/// Becomes the process's user and finds its program.
///
/// Loading a filter takes `CAP_SYS_ADMIN` or `no_new_privs`. With the latter it is left to the very
/// last moment; without, it is loaded here, and of the capabilities this one is kept for it. What
/// is done after that the filter must allow: setting the capabilities, telling the agent, waiting
/// for it, and `execve`.
pub(super) fn prepare(process: Process, rules: &Rules) -> Result<Program, InitError> {
    attributes::apply(&process)?;
    if process.no_new_privileges {
        set_no_new_privs(true).map_err(InitError::step("set no_new_privs"))?;
    }
    let filter = rules.seccomp.as_ref().map(Filter::new);
    let (early, late) = match process.no_new_privileges {
        true => (None, filter),
        false => (filter, None),
    };
    capabilities::limit_bounding(&process.capabilities)?;
    // As root, who may enter every directory; else once more as the user, who may be the only one
    // to be let in.
    let entered = rustix::process::chdir(process.cwd.as_str());
    become_user(&process, early.is_some())?;
    if entered.is_err() {
        rustix::process::chdir(process.cwd.as_str()).map_err(|errno| {
            ProgramError::WorkingDirectory {
                cwd: process.cwd.clone(),
                source: Os(errno),
            }
        })?;
    }
    if let Some(domain) = rules.personality {
        sys::attributes::set_personality(domain).map_err(InitError::step("set the personality"))?;
    }
    let environment = environment(process.env, process.user.uid)?;
    let name = process.args.first().ok_or(ProgramError::NoArguments)?;
    let path = find(name, variable(&environment, "PATH").unwrap_or_default())?;
    rustix::process::umask(Mode::from_raw_mode(
        process.user.umask.unwrap_or(UMASK_DEFAULT) & 0o777,
    ));
    attributes::run_on(&process.cpu_affinity.last)?;
    let program = Program {
        path: c_string("argument", path)?,
        arguments: c_strings("argument", process.args)?,
        environment: c_strings("environment variable", environment)?,
        filter: late,
    };
    if let Some(filter) = early {
        filter.load()?;
        capabilities::apply(&process.capabilities)?;
    }
    Ok(program)
}

/// Becomes the user, with its capabilities; with `filter` also with the one that loading a filter
/// takes, and none of the sets final.
fn become_user(process: &Process, filter: bool) -> Result<(), InitError> {
    let User {
        uid,
        gid,
        additional_gids,
        ..
    } = &process.user;
    let keep = *uid != 0;
    if keep {
        set_keep_capabilities(true).map_err(InitError::step("keep capabilities"))?;
    }
    let groups: Vec<Gid> = additional_gids
        .iter()
        .map(|gid| Gid::from_raw(*gid))
        .collect();
    set_thread_groups(&groups).map_err(InitError::step("set supplementary groups"))?;
    let gid = Gid::from_raw(*gid);
    set_thread_res_gid(gid, gid, gid).map_err(InitError::step("set the group id"))?;
    let uid = Uid::from_raw(*uid);
    set_thread_res_uid(uid, uid, uid).map_err(InitError::step("set the user id"))?;
    if keep {
        set_keep_capabilities(false).map_err(InitError::step("keep capabilities no more"))?;
    }
    match filter {
        true => capabilities::hold_admin(&process.capabilities)?,
        false => capabilities::apply(&process.capabilities)?,
    }
    Ok(())
}

/// Finds `name` as Go's `exec.LookPath` does.
fn find(name: &str, path: &str) -> Result<String, ProgramError> {
    if name.contains('/') {
        return match executable(name) {
            Ok(()) => Ok(name.to_owned()),
            Err(Unfit::Stat(errno)) => Err(ProgramError::Stat {
                path: name.to_owned(),
                source: Os(errno),
            }),
            Err(Unfit::Access(errno)) => Err(ProgramError::Access {
                path: name.to_owned(),
                source: Os(errno),
            }),
        };
    }
    for directory in path.split(':').filter(|_| !path.is_empty()) {
        let relative = !directory.starts_with('/');
        // In the shell's tradition an empty entry is the working directory.
        let directory = if directory.is_empty() { "." } else { directory };
        let candidate = format!("{}/{name}", directory.trim_end_matches('/'));
        if executable(&candidate).is_ok() {
            return if relative {
                Err(ProgramError::Relative(name.to_owned()))
            } else {
                Ok(candidate)
            };
        }
    }
    Err(ProgramError::NotInPath(name.to_owned()))
}

/// Why a file is no program.
enum Unfit {
    Stat(Errno),
    Access(Errno),
}

fn executable(path: &str) -> Result<(), Unfit> {
    let found = stat(path).map_err(Unfit::Stat)?;
    if FileType::from_raw_mode(found.st_mode) == FileType::Directory {
        return Err(Unfit::Access(Errno::ISDIR));
    }
    accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS).map_err(Unfit::Access)
}

/// The environment with one value for each name (the last given) and `HOME` set.
fn environment(given: Vec<String>, uid: u32) -> Result<Vec<String>, ProgramError> {
    let mut environment: Vec<String> = Vec::with_capacity(given.len() + 1);
    for entry in given {
        let invalid = |reason| ProgramError::Text {
            what: "environment variable",
            text: entry.clone(),
            reason,
        };
        let Some((name, _)) = entry.split_once('=') else {
            return Err(invalid("has no '='"));
        };
        if name.is_empty() {
            return Err(invalid("has no name"));
        }
        let same = |other: &&mut String| {
            let rest = other.strip_prefix(name);
            rest.is_some_and(|rest| rest.starts_with('='))
        };
        match environment.iter_mut().find(same) {
            Some(earlier) => *earlier = entry,
            None => environment.push(entry),
        }
    }
    if variable(&environment, "HOME")
        .unwrap_or_default()
        .is_empty()
    {
        environment.retain(|entry| !entry.starts_with("HOME="));
        environment.push(format!("HOME={}", home(uid)));
    }
    Ok(environment)
}

fn variable<'a>(environment: &'a [String], name: &str) -> Option<&'a str> {
    environment
        .iter()
        .find_map(|entry| entry.strip_prefix(name)?.strip_prefix('='))
}

/// Home directory of `uid` by the container's `/etc/passwd`, `/` if that does not say.
fn home(uid: u32) -> String {
    let found = std::fs::File::open("/etc/passwd")
        .ok()
        .and_then(|file| home_in(&mut BufReader::new(file), uid));
    found.unwrap_or_else(|| "/".to_owned())
}

fn home_in(passwd: &mut impl BufRead, uid: u32) -> Option<String> {
    let mut line = Vec::new();
    loop {
        line.clear();
        let limit = PASSWD_LINE_BYTES_MAX as u64;
        let read = std::io::Read::take(&mut *passwd, limit).read_until(b'\n', &mut line);
        if read.ok()? == 0 {
            return None;
        }
        let Ok(text) = std::str::from_utf8(&line) else {
            continue;
        };
        let fields: Vec<&str> = text.trim_end_matches('\n').split(':').collect();
        if let [_, _, id, _, _, home, ..] = fields[..]
            && id.parse() == Ok(uid)
        {
            return (!home.is_empty()).then(|| home.to_owned());
        }
    }
}

fn c_strings(what: &'static str, texts: Vec<String>) -> Result<StringArray, ProgramError> {
    let strings: Result<Vec<CString>, ProgramError> =
        texts.into_iter().map(|text| c_string(what, text)).collect();
    Ok(StringArray::new(strings?))
}

fn c_string(what: &'static str, text: String) -> Result<CString, ProgramError> {
    CString::new(text).map_err(|error| ProgramError::Text {
        what,
        text: String::from_utf8_lossy(&error.into_vec()).into_owned(),
        reason: "holds a NUL character",
    })
}

#[cfg(test)]
mod tests;
