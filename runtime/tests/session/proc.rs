//! What a process finds in `/proc` that joins the mount namespace of the container's pid.

use std::{fs, os::fd::AsFd as _, thread};

use nix::sched::CloneFlags;

use crate::harness::Place;

/// Calls `look` in the mount namespace of process `pid`.
fn joined<T: Send>(pid: i32, look: impl FnOnce() -> T + Send) -> T {
    let namespace = fs::File::open(format!("/proc/{pid}/ns/mnt")).unwrap();
    let join = move || {
        nix::sched::unshare(CloneFlags::CLONE_FS).unwrap();
        nix::sched::setns(namespace.as_fd(), CloneFlags::CLONE_NEWNS).unwrap();
        look()
    };
    thread::scope(|scope| scope.spawn(join).join().unwrap())
}

#[test]
fn it_is_what_the_guest_says() {
    let place = Place::new();
    fs::create_dir(place.path().join("bundle/rootfs/proc")).unwrap();
    place.run_detached(&["sleep", "1000"]);
    joined(place.pid("c"), || {
        let mut names: Vec<_> = fs::read_dir("/proc")
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        let expected = "1 70000 loadavg meminfo stat uptime version";
        assert_eq!(names.join(" "), expected);
        for (file, content) in [
            ("uptime", "1.00 1.00\n"),
            ("70000/cmdline", "program-70000\n"),
            ("1/comm", "program-1\n"),
        ] {
            assert_eq!(
                fs::read_to_string(format!("/proc/{file}")).unwrap(),
                content
            );
        }
        assert_eq!(fs::read("/proc/1/status").unwrap().len(), 100_000);
        assert_eq!(fs::read_dir("/proc/1/ns").unwrap().count(), 6);
        let namespace = fs::read_link("/proc/1/ns/pid").unwrap();
        assert_eq!(namespace.to_str(), Some("pid:[1]"));
        let elsewhere = fs::read_link("/proc/1/ns/mnt").unwrap_err();
        assert_eq!(elsewhere.raw_os_error(), Some(libc::EIO));
        for nothing in ["2", "01", "0", "nope", "1/nope", "1/ns/nope", "70000/stat"] {
            let error = fs::read(format!("/proc/{nothing}")).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{nothing}");
        }
        for change in [
            fs::write("/proc/uptime", "x"),
            fs::write("/proc/new", "x"),
            fs::remove_dir("/proc/1"),
        ] {
            let error = change.unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        }
    });
    place.ok(&["delete", "--force", "c"]);
}

#[test]
fn it_does_not_outlive_the_container() {
    let place = Place::new();
    fs::create_dir(place.path().join("bundle/rootfs/proc")).unwrap();
    place.run_detached(&["sleep", "1000"]);
    let file = joined(place.pid("c"), || fs::File::open("/proc/uptime").unwrap());
    place.ok(&["delete", "--force", "c"]);
    let error = std::io::read_to_string(file).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOTCONN));
}
