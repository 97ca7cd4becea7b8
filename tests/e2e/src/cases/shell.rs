//! A few commands on files in the place of a shell, for cases that look at a container's file
//! system: the guest side, and what the host side says and expects.

use std::{
    fs,
    io::Read as _,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
    path::Path,
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::{Value, json};

use crate::{bundle::Bundle, case::Test};

/// A few commands on files, one argument each, in the place of a shell: `verb path [text]`. Prints
/// a JSON array with what each said: its result, or the error's number as `errno N`.
pub(super) fn shell(arguments: &[String]) -> Result<u8> {
    let mut said = Vec::new();
    for line in arguments {
        let mut words = line.splitn(3, ' ');
        let verb = words.next().context("an empty command")?;
        let path = words.next().context("a command without a path")?;
        said.push(
            match perform(verb, Path::new(path), words.next().unwrap_or_default()) {
                Ok(value) => value,
                Err(error) => match error
                    .downcast_ref::<std::io::Error>()
                    .and_then(std::io::Error::raw_os_error)
                {
                    Some(number) => json!(format!("errno {number}")),
                    None => bail!(error),
                },
            },
        );
    }
    println!("{}", Value::from(said));
    Ok(0)
}

fn perform(verb: &str, path: &Path, text: &str) -> Result<Value> {
    Ok(match verb {
        "read" => json!(fs::read_to_string(path)?),
        "write" => {
            fs::write(path, text)?;
            json!("done")
        }
        "fill" => {
            fs::write(path, vec![b'x'; text.parse::<usize>()? << 10])?;
            json!("done")
        }
        "take" => {
            let mut bytes = vec![0; text.parse()?];
            fs::File::open(path)?.read_exact(&mut bytes)?;
            json!(bytes.iter().filter(|&&byte| byte != 0).count())
        }
        "list" => {
            let mut names = Vec::new();
            for entry in fs::read_dir(path)? {
                names.push(entry?.file_name().to_string_lossy().into_owned());
            }
            names.sort_unstable();
            json!(names)
        }
        "remove" => {
            fs::remove_file(path)?;
            json!("done")
        }
        "link" => json!(fs::read_link(path)?),
        "mount" => json!(mount_at(path)?),
        "device" => json!(device(path)?),
        "run" => json!(
            std::process::Command::new(path)
                .arg("probe")
                .status()?
                .code()
        ),
        "mknod" => {
            let device = rustix::fs::makedev(8, 0);
            mknodat(CWD, path, FileType::BlockDevice, Mode::RUSR, device)
                .map_err(std::io::Error::from)?;
            json!("done")
        }
        _ => bail!("there is no verb {verb}"),
    })
}

/// Type and options of the topmost mount at `path`; the mount's own and the file system's.
fn mount_at(path: &Path) -> Result<String> {
    let text = fs::read_to_string("/proc/self/mountinfo")?;
    let line = text.lines().rev().find(|line| {
        line.split(' ')
            .nth(4)
            .is_some_and(|point| Path::new(point) == path)
    });
    let Some((left, right)) = line.and_then(|line| line.split_once(" - ")) else {
        return Ok("none".to_owned());
    };
    let kind = right.split(' ').next().unwrap_or_default();
    let options = left.split(' ').nth(5).unwrap_or_default();
    let own = right.rsplit(' ').next().unwrap_or_default();
    Ok(format!("{kind} {options},{own}"))
}

/// Kind, numbers, mode and owner of a device node.
fn device(path: &Path) -> Result<String> {
    let data = fs::symlink_metadata(path)?;
    let kind = match data.file_type() {
        kind if kind.is_char_device() => 'c',
        kind if kind.is_block_device() => 'b',
        kind if kind.is_fifo() => 'p',
        _ => '-',
    };
    let (major, minor) = (
        rustix::fs::major(data.rdev()),
        rustix::fs::minor(data.rdev()),
    );
    let mode = data.permissions().mode() & 0o7777;
    Ok(format!(
        "{kind} {major}:{minor} {mode:o} {}:{}",
        data.uid(),
        data.gid()
    ))
}

/// A bundle that performs these commands.
pub(super) fn commands(test: &Test, lines: &[&str]) -> Result<Bundle> {
    test.bundle("sh", lines)
}

/// Runs the commands and demands what each says; `expected` lists pairs of line and result.
pub(super) fn perform_in(
    test: &Test,
    bundle: &mut Bundle,
    expected: &[(&str, Value)],
) -> Result<()> {
    let lines: Vec<&str> = expected.iter().map(|(line, _)| *line).collect();
    bundle.probe("sh", &lines);
    let said = test.runtime.run(bundle)?.succeed()?.json()?;
    for (at, (line, value)) in expected.iter().enumerate() {
        ensure!(
            said[at] == *value,
            "`{line}` said {}, expected {value}",
            said[at]
        );
    }
    Ok(())
}

pub(super) const EPERM: &str = "errno 1";
pub(super) const ENOENT: &str = "errno 2";
pub(super) const EACCES: &str = "errno 13";
pub(super) const ENOSPC: &str = "errno 28";
pub(super) const EROFS: &str = "errno 30";
