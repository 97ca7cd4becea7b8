//! A state root, a configuration, a bundle, and calls of `lazaret` in them.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::fake;

/// How long anything may take before a test gives up; far more than it should ever need.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where the containers' cgroups are.
const CGROUPS: &str = "/lazaret-session/";

/// A place for the containers of one test; cleaned, and checked for leftovers, when dropped.
pub(crate) struct Place {
    pub(crate) directory: tempfile::TempDir,
    root: PathBuf,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self::with("", "")
    }

    /// A place whose VMM misbehaves as `mode` says, with more lines in the configuration.
    pub(crate) fn with(mode: &str, more: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let vmm = path.join("fake-vmm");
        let exe = std::env::current_exe().unwrap();
        let script = format!(
            "#!/bin/sh\n{}=$2 {}={mode} exec {} becomes_the_fake --exact --nocapture\n",
            fake::LAUNCH_FD,
            fake::MODE,
            exe.display()
        );
        fs::write(&vmm, script).unwrap();
        fs::set_permissions(&vmm, fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(path.join("kernel"), "").unwrap();
        let config = "vmm = \"fake-vmm\"\nkernel = \"kernel\"\ninitramfs = \"kernel\"\n";
        fs::write(path.join("config.toml"), format!("{config}{more}\n")).unwrap();
        fs::create_dir_all(path.join("bundle/rootfs")).unwrap();
        let root = path.join("state");
        let place = Self { directory, root };
        place.bundle(&["true"], |_| {});
        place
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Makes the state root a very long path.
    pub(crate) fn deep(mut self) -> Self {
        self.root = self.path().join("d".repeat(200)).join("e".repeat(100));
        self
    }

    /// Writes the bundle: `args`, no terminal, and what `change` does to it.
    pub(crate) fn bundle(&self, args: &[&str], change: impl FnOnce(&mut Value)) {
        let mut config: Value =
            serde_json::from_str(include_str!("../../src/verbs/spec.json")).unwrap();
        config["process"]["terminal"] = json!(false);
        config["process"]["args"] = json!(args);
        change(&mut config);
        fs::write(self.path().join("bundle/config.json"), config.to_string()).unwrap();
    }

    /// Gives the bundle a cgroup that no other test's container has, unless the test wants another.
    fn own_cgroup(&self, id: &str) {
        let path = self.path().join("bundle/config.json");
        let text = fs::read_to_string(&path).unwrap_or_default();
        let Ok(mut config) = serde_json::from_str::<Value>(&text) else {
            return;
        };
        let Some(linux) = config.get_mut("linux").and_then(Value::as_object_mut) else {
            return;
        };
        let ours = |path: &Value| path.as_str().is_some_and(|path| path.starts_with(CGROUPS));
        if linux.get("cgroupsPath").is_none_or(ours) {
            let name = self.path().file_name().unwrap().to_str().unwrap();
            linux.insert(
                "cgroupsPath".to_owned(),
                json!(format!("{CGROUPS}{name}-{id}")),
            );
            fs::write(&path, config.to_string()).unwrap();
        }
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        if let Some(id) = arguments.last()
            && ["create", "run"]
                .iter()
                .any(|verb| arguments.contains(verb))
        {
            self.own_cgroup(id);
        }
        let mut command = Command::new(env!("CARGO_BIN_EXE_lazaret"));
        command
            .arg("--root")
            .arg(&self.root)
            .arg("--config")
            .arg(self.path().join("config.toml"))
            .args(arguments)
            .current_dir(self.path().join("bundle"))
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        command
    }

    /// Calls `lazaret` to its end. Only for verbs that leave no monitor with our pipes behind.
    pub(crate) fn call(&self, arguments: &[&str]) -> Output {
        let mut command = self.command(arguments);
        command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .output()
            .unwrap()
    }

    /// Calls `lazaret`, which must succeed; returns its output.
    pub(crate) fn ok(&self, arguments: &[&str]) -> String {
        let output = self.call(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Calls `lazaret`, which must fail with `code`; returns the message of its one error line.
    pub(crate) fn fails(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.call(arguments);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
        message(&stderr)
    }

    /// Creates a container without leaving our pipes in its hands.
    pub(crate) fn create(&self, id: &str) {
        let status = self.command(&["create", id]).status().unwrap();
        assert!(status.success());
    }

    /// Runs the detached container `c`, whose process is `args`.
    pub(crate) fn run_detached(&self, args: &[&str]) {
        self.bundle(args, |_| {});
        let status = self.command(&["run", "-d", "c"]).status().unwrap();
        assert!(status.success());
    }

    /// Starts a `run` of the container `c`, whose process is `args`, with pipes for input and output.
    pub(crate) fn run_piped(&self, args: &[&str]) -> Child {
        self.bundle(args, |_| {});
        let mut command = self.command(&["run", "c"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command.spawn().unwrap()
    }

    /// Starts a `run` of the container `c`, which sleeps, with a pipe for its errors; and waits
    /// until it runs.
    pub(crate) fn run_sleeping(&self) -> Child {
        self.bundle(&["sleep", "1000"], |_| {});
        let mut command = self.command(&["run", "c"]);
        let run = command.stderr(Stdio::piped()).spawn().unwrap();
        wait("it runs", || {
            !self.leftovers().is_empty() && self.status("c") == "running"
        });
        run
    }

    pub(crate) fn state(&self, id: &str) -> Value {
        serde_json::from_str(&self.ok(&["state", id])).unwrap()
    }

    pub(crate) fn status(&self, id: &str) -> String {
        self.state(id)["status"].as_str().unwrap().to_owned()
    }

    pub(crate) fn pid(&self, id: &str) -> i32 {
        i32::try_from(self.state(id)["pid"].as_i64().unwrap()).unwrap()
    }

    /// The content of `state.json`.
    pub(crate) fn record(&self, id: &str) -> Value {
        let text = fs::read_to_string(self.root.join(id).join("state.json")).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    /// Pid of the fake VMM, from the record.
    pub(crate) fn vmm(&self, id: &str) -> i32 {
        i32::try_from(self.record(id)["vmm"]["pid"].as_i64().unwrap()).unwrap()
    }

    pub(crate) fn wait_status(&self, id: &str, status: &str) {
        wait(&format!("{id} is {status}"), || self.status(id) == status);
    }

    /// What is in the state root.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(&self.root) else {
            return Vec::new();
        };
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for id in self.leftovers() {
                self.call(&["delete", "--force", &id]);
            }
            return;
        }
        assert_eq!(self.leftovers(), [""; 0], "containers are left behind");
        // Every process of ours has the place's path among its arguments or in its directory.
        let needle = self.path().to_str().unwrap().to_owned();
        wait("no process is left", || !processes().contains(&needle));
    }
}

/// The command lines of all processes.
fn processes() -> String {
    let lines = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let path = entry.unwrap().path();
        path.file_name()?.to_str()?.parse::<i32>().ok()?;
        fs::read_to_string(path.join("cmdline")).ok()
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Waits until `is_true`; a test may look again and again, the product may not.
pub(crate) fn wait(what: &str, mut is_true: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_true() {
        assert!(start.elapsed() < PATIENCE, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The message of the one line on standard error.
pub(crate) fn message(stderr: &str) -> String {
    assert_eq!(stderr.lines().count(), 1, "not one line: {stderr:?}");
    let (_, quoted) = stderr.trim_end().split_once(" level=error msg=").unwrap();
    // Fields may follow the message.
    let mut values = serde_json::Deserializer::from_str(quoted).into_iter::<String>();
    match values.next() {
        Some(Ok(message)) => message,
        _ => quoted.split(' ').next().unwrap().to_owned(),
    }
}

pub(crate) fn signal(pid: i32, signal: nix::sys::signal::Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).unwrap();
}

pub(crate) fn ends(child: &mut Child) -> i32 {
    wait("it ends", || child.try_wait().unwrap().is_some());
    child.wait().unwrap().code().unwrap_or(-1)
}
