//! How many of the guest's CPUs are on line, so that a container sees as many as its limit can keep
//! busy. Called by [`crate::server`].
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};

use crate::errno::Os;

/// The CPUs are not as they should be.
#[derive(Debug, thiserror::Error)]
pub enum CpuError {
    /// The guest would have none.
    #[error("a guest needs at least one CPU on line")]
    None,
    /// A file of the kernel's could not be read or written.
    #[error("{action} {}", path.display())]
    File {
        /// What was being done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: Os,
    },
}

/// Brings the first `count` CPUs of those in `directory` (`/sys/devices/system/cpu`) on line, or all
/// if there are fewer, and takes the others off line. A CPU that the kernel never takes off line
/// stays.
///
/// # Errors
/// [`CpuError`]; what was changed before stays.
pub fn set_online(directory: &Path, count: u32) -> Result<(), CpuError> {
    if count == 0 {
        return Err(CpuError::None);
    }
    let present = read(&directory.join("present"))?;
    let wanted = usize::try_from(count).unwrap_or(usize::MAX);
    for (position, cpu) in numbers(&present).enumerate() {
        let path = directory.join(format!("cpu{cpu}/online"));
        if !path.exists() {
            continue;
        }
        let value = if position < wanted { "1" } else { "0" };
        if read(&path)?.trim() != value {
            fs::write(&path, value).map_err(|error| CpuError::File {
                action: "write",
                path,
                source: error.into(),
            })?;
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<String, CpuError> {
    fs::read_to_string(path).map_err(|error| CpuError::File {
        action: "read",
        path: path.to_owned(),
        source: error.into(),
    })
}

/// The numbers in a list like `0-3,8`, as the kernel writes it.
fn numbers(list: &str) -> impl Iterator<Item = u32> + '_ {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse().ok()?..=last.parse().ok()?)
    };
    list.trim().split(',').filter_map(range).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CPUs 0 to 3 and 6, the first without a switch and the others on line.
    fn cpus() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("present"), "0-3,6\n").unwrap();
        for cpu in [0, 1, 2, 3, 6] {
            let cpu = directory.path().join(format!("cpu{cpu}"));
            fs::create_dir(&cpu).unwrap();
            fs::write(cpu.join("online"), "1\n").unwrap();
        }
        fs::remove_file(directory.path().join("cpu0/online")).unwrap();
        directory
    }

    fn online(directory: &Path) -> Vec<u32> {
        let is_online = |cpu: &u32| {
            let file = directory.join(format!("cpu{cpu}/online"));
            fs::read_to_string(file).is_ok_and(|text| text.trim() == "1")
        };
        [1, 2, 3, 6].into_iter().filter(is_online).collect()
    }

    #[test]
    fn as_many_are_on_line_as_wanted() {
        let directory = cpus();
        let directory = directory.path();
        for (count, expected) in [
            (3, &[1, 2][..]),
            (1, &[]),
            (4, &[1, 2, 3]),
            (100, &[1, 2, 3, 6]),
        ] {
            set_online(directory, count).unwrap();
            assert_eq!(online(directory), expected, "{count}");
        }
        let error = set_online(directory, 0).unwrap_err();
        assert_eq!(error.to_string(), "a guest needs at least one CPU on line");
        assert_eq!(online(directory), [1, 2, 3, 6]);
    }

    #[test]
    fn a_missing_file_is_named() {
        let empty = tempfile::tempdir().unwrap();
        let error = set_online(empty.path(), 1).unwrap_err();
        assert!(error.to_string().ends_with("present"), "{error}");
    }
}
