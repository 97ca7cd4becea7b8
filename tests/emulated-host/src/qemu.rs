//! Which QEMU plays the machine, and with which command line.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use rustix::io::FdFlags;
use rustix::process::Signal;

use crate::launch::{Host, Mode};
use crate::wire::{GUEST_ARGUMENT, Port, ROOT_TAG};

/// Oldest major version that works: 7.2's nested SVM corrupts the FPU's state and its guests
/// wedge under load.
pub(crate) const OLDEST_MAJOR_VERSION: u32 = 10;

/// Bytes of one 9p message: the most that virtio's scatter list of 128 pages carries.
pub(crate) const MESSAGE_BYTES: u32 = 512_000;

/// A `qemu-system-x86_64` with its firmware.
#[derive(Debug, Clone)]
pub struct Qemu {
    /// The program.
    pub program: PathBuf,
    /// Folders of firmware and option ROMs, where the built-in ones do not exist.
    pub firmware: Vec<PathBuf>,
}

impl Qemu {
    /// The installed QEMU, if there is one.
    pub fn installed() -> Self {
        Self {
            program: "qemu-system-x86_64".into(),
            firmware: Vec::new(),
        }
    }

    /// A QEMU whose Debian packages were unpacked below `root`.
    pub fn unpacked(root: &Path) -> Self {
        Self {
            program: root.join("usr/bin/qemu-system-x86_64"),
            firmware: ["usr/share/qemu", "usr/share/seabios"]
                .map(|folder| root.join(folder))
                .into(),
        }
    }

    /// Checks that it starts and is new enough.
    ///
    /// # Errors
    /// If it doesn't, or isn't.
    pub fn check(&self) -> Result<()> {
        let output = Command::new(&self.program)
            .arg("--version")
            .output()
            .with_context(|| format!("starting {}", self.program.display()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        match major_version(&text) {
            Some(major) if major >= OLDEST_MAJOR_VERSION => Ok(()),
            Some(major) => bail!("QEMU {major} is too old, {OLDEST_MAJOR_VERSION} is needed"),
            None => bail!(
                "{} does not work: {}",
                self.program.display(),
                String::from_utf8_lossy(&output.stderr).trim()
            ),
        }
    }
}

/// The major version in what `--version` prints.
fn major_version(text: &str) -> Option<u32> {
    let (_, rest) = text.split_once(" version ")?;
    rest.split('.').next()?.parse().ok()
}

/// A machine about to be switched on.
pub(crate) struct Machine<'a> {
    /// What it is like.
    pub host: &'a Host,
    /// QEMU's ends of the ports, in the order of [`Port::ALL`].
    pub ports: [OwnedFd; 4],
    /// Where the kernel's and QEMU's own messages go.
    pub log: OwnedFd,
}

impl Machine<'_> {
    /// 9p mount tag of the writable directory number `index`.
    pub(crate) fn writable_tag(index: usize) -> String {
        format!("writable{index}")
    }

    /// Starts QEMU. It dies with the calling thread.
    pub(crate) fn start(self) -> Result<Running> {
        let mut command = Command::new(&self.host.qemu.program);
        command
            .args(self.arguments())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::from(self.log.try_clone()?));
        let parent = rustix::process::getpid();
        let Self { ports, log, .. } = self;
        // SAFETY: between fork and exec the closure makes only system calls; it neither
        // allocates nor takes a lock, and its descriptors live until the exec.
        unsafe {
            command.pre_exec(move || {
                rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
                if rustix::process::getppid() != Some(parent) {
                    return Err(rustix::io::Errno::SRCH.into());
                }
                for port in ports.iter().chain([&log]) {
                    rustix::io::fcntl_setfd(port, FdFlags::empty())?;
                }
                Ok(())
            });
        }
        let child = command
            .spawn()
            .with_context(|| format!("starting {}", self.host.qemu.program.display()))?;
        // `command` owns QEMU's ends of the sockets; it must go for us to see them close.
        drop(command);
        Ok(Running(child))
    }

    fn arguments(&self) -> Vec<OsString> {
        let host = self.host;
        let mut arguments = Arguments(Vec::new());
        for folder in &host.qemu.firmware {
            arguments.add("-L", folder);
        }
        let (accelerator, cpus) = match host.mode {
            Mode::Functional => ("tcg,thread=multi", host.cpus),
            Mode::Counted => {
                arguments.add("-icount", "shift=1,sleep=on");
                ("tcg,thread=single", 1)
            }
        };
        arguments.add("-accel", accelerator);
        arguments.add("-machine", "q35");
        // A small, fixed set of features: with XSAVE, nested SVM goes wrong.
        arguments.add("-cpu", "max,-xsave");
        arguments.add("-smp", cpus.to_string());
        arguments.add("-m", format!("{}M", host.memory_mib));
        for option in ["-nodefaults", "-no-user-config", "-no-reboot"] {
            arguments.0.push(option.into());
        }
        arguments.add("-display", "none");
        arguments.add("-kernel", &host.kernel);
        arguments.add("-append", self.command_line());
        arguments.add("-chardev", socket("log", &self.log));
        arguments.add("-serial", "chardev:log");
        arguments.add("-device", "virtio-serial-pci,max_ports=5");
        for (port, end) in Port::ALL.into_iter().zip(&self.ports) {
            let name = format!("port{}", port as u32);
            arguments.add("-chardev", socket(&name, end));
            arguments.add(
                "-device",
                format!("virtserialport,nr={},chardev={name}", port as u32),
            );
        }
        arguments.share(ROOT_TAG, Path::new("/"), ",readonly=on");
        for (index, folder) in host.writable.iter().enumerate() {
            arguments.share(&Self::writable_tag(index), folder, "");
        }
        arguments.0
    }

    fn command_line(&self) -> OsString {
        let mut line = OsString::from(format!(
            "console=ttyS0 quiet panic=-1 root={ROOT_TAG} rootfstype=9p \
             rootflags=trans=virtio,version=9p2000.L,msize={MESSAGE_BYTES},cache=loose ro init=\""
        ));
        line.push(&self.host.first_process);
        line.push(format!("\" -- {GUEST_ARGUMENT}"));
        line
    }
}

/// QEMU's argument list under construction.
struct Arguments(Vec<OsString>);

impl Arguments {
    fn add(&mut self, option: &str, value: impl AsRef<OsStr>) {
        self.0.push(option.into());
        self.0.push(value.as_ref().into());
    }

    /// Exports a folder over 9p.
    fn share(&mut self, tag: &str, folder: &Path, more: &str) {
        let mut value = OsString::from(format!("local,id={tag},path="));
        value.push(escaped(folder.as_os_str()));
        value.push(",security_model=none,multidevs=remap");
        value.push(more);
        self.add("-fsdev", value);
        self.add(
            "-device",
            format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}"),
        );
    }
}

/// A character device on an inherited socket.
fn socket(name: &str, end: &OwnedFd) -> String {
    format!("socket,id={name},fd={}", end.as_raw_fd())
}

/// QEMU separates options by commas; two of them stand for one.
fn escaped(text: &OsStr) -> OsString {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let mut bytes = Vec::new();
    for byte in text.as_bytes() {
        bytes.push(*byte);
        if *byte == b',' {
            bytes.push(b',');
        }
    }
    OsString::from_vec(bytes)
}

/// A running QEMU; dropping it switches the machine off.
#[derive(Debug)]
pub(crate) struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        let debian = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright";
        assert_eq!(major_version(debian), Some(10));
        assert_eq!(major_version("QEMU emulator version 7.2.11"), Some(7));
        assert_eq!(major_version(""), None);
        assert_eq!(major_version("QEMU emulator version x"), None);
    }

    #[test]
    fn commas_in_paths_are_doubled() {
        assert_eq!(escaped(OsStr::new("/a,b/c")), OsStr::new("/a,,b/c"));
    }
}
