//! Runs files of crun's `tests` with Python, each case in a process of its own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::{
    Setting,
    tap::{self, Seen},
};
use crate::invocation::captured_within;

/// How long a case may take on a machine that is not loaded.
const CASE: Duration = Duration::from_secs(40);

/// Where the files are.
pub(super) fn folder(setting: &Setting) -> PathBuf {
    setting.assets.join("crun/tests")
}

/// Runs a case.
pub(super) fn run(setting: &Setting, file: &str, name: &str) -> Result<Seen> {
    // The suite makes its directories where it is called.
    let directory = setting.scratch.join("crun");
    if !directory.exists() {
        fs::create_dir(&directory)?;
        copy(&folder(setting), &directory.join("tests"))?;
    }
    let mut command: Command = setting.command("python3");
    command
        .arg(format!("tests/test_{file}.py"))
        .current_dir(directory)
        .env("OCI_RUNTIME", &setting.runtime)
        .env("RUN_TESTS", name)
        // Its results must come in order with what its cases say.
        .env("PYTHONUNBUFFERED", "1")
        .stdin(Stdio::null());
    let started = Instant::now();
    let (output, errors) = captured_within(command, CASE)?;
    let seen = tap::only(&output, true, name, &errors);
    Ok(Seen {
        took: Some(started.elapsed()),
        ..seen
    })
}

/// The names of a file's cases, which only the file itself knows.
pub(super) fn list(setting: &Setting, file: &str) -> Result<Vec<String>> {
    let script = format!("import test_{file} as t; print(*t.all_tests, sep='\\n')");
    let output = setting
        .command("python3")
        .args(["-B", "-c", &script])
        .current_dir(folder(setting))
        .output()
        .context("cannot start python3")?;
    ensure!(
        output.status.success(),
        "cannot read test_{file}.py: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).context("names that are no text")?;
    Ok(text.lines().map(str::to_owned).collect())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let status = Command::new("cp")
        .arg("--recursive")
        .args([from, to])
        .status()
        .context("cannot start cp")?;
    ensure!(status.success(), "cp ended with {status}");
    Ok(())
}
