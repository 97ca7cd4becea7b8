//! The kernel of this machine as the client: what it sends to `/dev/fuse` goes through the
//! device's queues, and the answers back. Needs root, `/dev/fuse`, and POSIX ACLs in the directory
//! for temporary files.
//!
//! `LAZARET_FUSE_HOLD=COMMAND cargo test -p lazaret-vmm by_hand -- --ignored` runs a shell command
//! with the mounted directory in `$MOUNT` and the directory behind it in `$SHARE`.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use rustix::{
    mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount},
    thread::{UnshareFlags, unshare_unsafe},
};
use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress};

use super::client::open_path;
use crate::{
    devices::fs::Fs,
    virtio::mock::{BUFFERS_START, Buffer, MockDriver, Ring},
};

const QUEUES: u16 = 2;
const MESSAGE_BYTES: u32 = (1 << 20) + 4096;

/// A mounted share. Unmounts when dropped.
struct Mounted {
    at: TempDir,
    share: TempDir,
    threads: Vec<JoinHandle<()>>,
    _device: Fs,
}

/// Carries messages between `/dev/fuse` and queue `index`, until the file system is unmounted.
fn carry(fuse: &File, driver: &MockDriver, ring: &mut Ring, index: usize) {
    // Queue 1 is the first.
    let request = BUFFERS_START + (index as u64 - 1) * 2 * u64::from(MESSAGE_BYTES);
    let reply = request + u64::from(MESSAGE_BYTES);
    let mut message = vec![0; MESSAGE_BYTES as usize];
    loop {
        let bytes = match (&*fuse).read(&mut message) {
            Ok(bytes) => bytes,
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // A request that was interrupted before anybody read it.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => continue,
            Err(error) => panic!("/dev/fuse: {error}"),
        };
        let memory = &driver.memory;
        memory
            .write_slice(&message[..bytes], GuestAddress(request))
            .unwrap();
        ring.add(&[
            Buffer::readable(request, bytes as u32),
            Buffer::writable(reply, MESSAGE_BYTES),
        ]);
        driver.notify(index);
        let used = loop {
            if let Some((_, used)) = ring.take_used().pop() {
                break used as usize;
            }
            assert!(!driver.interrupt.needs_reset(), "device gave up");
            thread::yield_now();
        };
        if used > 0 {
            memory
                .read_slice(&mut message[..used], GuestAddress(reply))
                .unwrap();
            match (&*fuse).write(&message[..used]) {
                // The caller was killed meanwhile.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return,
                result => assert_eq!(result.unwrap(), used),
            }
        }
    }
}

/// Gives the calling thread mounts of its own: another process that copied its mounts at the
/// wrong moment would keep the file system alive, and this test waiting for its end.
fn own_mounts() -> rustix::io::Result<()> {
    // SAFETY: no code relies on this thread sharing mounts or working directory with others.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }?;
    let private = MountPropagationFlags::REC | MountPropagationFlags::PRIVATE;
    mount_change("/", private)
}

impl Mounted {
    fn new() -> Self {
        own_mounts().expect("mounting needs root");
        let (at, share) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let fuse = File::options()
            .read(true)
            .write(true)
            .open("/dev/fuse")
            .expect("/dev/fuse opens");
        let data = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other",
            fuse.as_raw_fd()
        );
        let data = std::ffi::CString::new(data).unwrap();
        mount("lazaret", at.path(), "fuse", MountFlags::empty(), &*data).expect("FUSE mounts");
        let mut device = Fs::new("lazaret", open_path(share.path()), QUEUES).unwrap();
        let mut driver = MockDriver::new(&device, 256);
        driver.activate(&mut device, 0).unwrap();
        let rings = std::mem::take(&mut driver.rings);
        let (fuse, driver) = (Arc::new(fuse), Arc::new(driver));
        let threads = rings
            .into_iter()
            .enumerate()
            .skip(1)
            .map(|(index, mut ring)| {
                let (fuse, driver) = (Arc::clone(&fuse), Arc::clone(&driver));
                thread::spawn(move || carry(&fuse, &driver, &mut ring, index))
            })
            .collect();
        fs::set_permissions(share.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Self {
            at,
            share,
            threads,
            _device: device,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.at.path().join(name)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = unmount(self.at.path(), UnmountFlags::DETACH);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn with_mount(test: impl FnOnce(&Mounted)) {
    test(&Mounted::new());
}

/// All there is to know of the files below `path`.
fn snapshot(path: &Path) -> Vec<(PathBuf, u64, u32, u64, u64)> {
    let mut found = Vec::new();
    let mut directories = vec![path.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let entry = entry.unwrap();
            let meta = entry.metadata().unwrap();
            if meta.is_dir() {
                directories.push(entry.path());
            }
            let name = entry.path().strip_prefix(path).unwrap().to_owned();
            found.push((
                name,
                meta.ino(),
                meta.mode(),
                meta.nlink(),
                meta.mtime() as u64,
            ));
        }
    }
    found.sort();
    found
}

#[test]
#[ignore = "a tool to try things by hand"]
fn a_command_by_hand() {
    let command = std::env::var_os("LAZARET_FUSE_HOLD").expect("LAZARET_FUSE_HOLD has a command");
    with_mount(|mounted| {
        let status = Command::new("sh")
            .arg("-c")
            .arg(command)
            .env("MOUNT", mounted.at.path())
            .env("SHARE", mounted.share.path())
            .status()
            .unwrap();
        assert!(status.success(), "{status}");
    });
}

#[test]
fn a_tree_through_the_kernel_is_the_tree_on_the_host() {
    with_mount(|mounted| {
        for index in 0..30 {
            let directory = mounted.path(&format!("dir-{}", index % 5));
            fs::create_dir_all(&directory).unwrap();
            let file = directory.join(format!("file-{index}"));
            fs::write(&file, vec![index as u8; index * 1000]).unwrap();
            fs::hard_link(&file, directory.join(format!("link-{index}"))).unwrap();
            std::os::unix::fs::symlink("nowhere", directory.join(format!("sym-{index}"))).unwrap();
        }
        fs::rename(mounted.path("dir-0"), mounted.path("renamed")).unwrap();
        fs::remove_dir_all(mounted.path("dir-1")).unwrap();
        assert_eq!(snapshot(mounted.at.path()), snapshot(mounted.share.path()));
        let file = File::create(mounted.path("sparse")).unwrap();
        file.write_at(b"end", 5 << 20).unwrap();
        assert_eq!(file.metadata().unwrap().len(), (5 << 20) + 3);
        let host = fs::read(mounted.share.path().join("sparse")).unwrap();
        assert_eq!(&host[5 << 20..], b"end");
    });
}

#[test]
fn changes_of_the_host_show_after_the_timeout() {
    with_mount(|mounted| {
        let host = mounted.share.path().join("file");
        fs::write(&host, "first").unwrap();
        let open = File::open(mounted.path("file")).unwrap();
        assert_eq!(fs::read(mounted.path("file")).unwrap(), b"first");
        assert!(!mounted.path("later").exists());
        fs::write(&host, "other").unwrap();
        fs::write(mounted.share.path().join("later"), "").unwrap();
        // A name that was not there is looked up again at once.
        assert!(mounted.path("later").exists());
        thread::sleep(Duration::from_millis(1100));
        let mut content = [0; 5];
        open.read_at(&mut content, 0).unwrap();
        assert_eq!(&content, b"other");
        assert_eq!(fs::read(mounted.path("file")).unwrap(), b"other");
    });
}

#[test]
fn several_threads_at_once() {
    with_mount(|mounted| {
        thread::scope(|scope| {
            for thread in 0..4_u8 {
                scope.spawn(move || {
                    let directory = mounted.path(&format!("t{thread}"));
                    fs::create_dir(&directory).unwrap();
                    for round in 0..40_u8 {
                        let path = directory.join(format!("f{}", round % 7));
                        let data = vec![thread ^ round; 10_000 * usize::from(round % 5)];
                        fs::write(&path, &data).unwrap();
                        assert_eq!(fs::read(&path).unwrap(), data);
                        if round % 3 == 0 {
                            fs::remove_file(&path).unwrap();
                        }
                    }
                });
            }
        });
        assert_eq!(snapshot(mounted.at.path()), snapshot(mounted.share.path()));
    });
}

/// A default ACL, as the kernel stores it: version, then tag, permissions and id of each entry.
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

#[test]
fn default_acls_take_the_place_of_the_umask() {
    const DEFAULT: &str = "system.posix_acl_default";
    with_mount(|mounted| {
        let none = u32::MAX;
        let entries = [
            (1, 7, none),
            (2, 6, 1),
            (4, 4, none),
            (16, 6, none),
            (32, 0, none),
        ];
        for root in [mounted.at.path(), mounted.share.path()] {
            let dir = root.join(if root == mounted.at.path() { "a" } else { "b" });
            fs::create_dir(&dir).unwrap();
            let flags = rustix::fs::XattrFlags::empty();
            rustix::fs::setxattr(&dir, DEFAULT, &acl(&entries), flags).expect("ACLs are supported");
            let status = Command::new("sh")
                .args([
                    "-c",
                    "umask 077; touch $0/file; mkdir $0/dir; umask 000; touch $0/open",
                ])
                .arg(&dir)
                .status();
            assert!(status.unwrap().success());
        }
        let modes = |name: &str| {
            let directory = mounted.share.path().join(name);
            ["file", "dir", "open"].map(|name| {
                let meta = fs::metadata(directory.join(name)).unwrap();
                meta.mode()
            })
        };
        assert_eq!(modes("a"), modes("b"));
        assert_eq!(modes("a")[0] & 0o777, 0o660);
    });
}
