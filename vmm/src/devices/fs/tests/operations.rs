//! What a guest may do, compared with what the host sees.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink},
};

use fuse_backend_rs::abi::fuse_abi::{
    CopyFileRangeIn, CreateIn, EntryOut, FallocateIn, FsOptions, GetxattrIn, LinkIn, LseekIn,
    LseekOut, MkdirIn, MknodIn, Opcode, OpenIn, OpenOut, ROOT_ID, ReadIn, Rename2In, SetattrIn,
    SetxattrIn, WriteIn, WriteOut,
};
use vm_memory::ByteValued;

use super::client::{Client, assert_root, decode, dirent};

#[test]
fn init_negotiates_what_the_share_can_do() {
    let mut client = Client::fresh(0);
    let out = client.init(FsOptions::all()).unwrap();
    let flags = FsOptions::from_bits_truncate(u64::from(out.flags));
    assert_eq!((out.major, out.max_pages, out.max_write), (7, 256, 1 << 20));
    for wanted in [
        FsOptions::POSIX_ACL,
        FsOptions::SUBMOUNTS,
        FsOptions::HANDLE_KILLPRIV_V2,
        FsOptions::DONT_MASK,
        FsOptions::ATOMIC_O_TRUNC,
        FsOptions::DO_READDIRPLUS,
        FsOptions::PARALLEL_DIROPS,
    ] {
        assert!(flags.contains(wanted), "{wanted:?}");
    }
    for unwanted in [
        FsOptions::WRITEBACK_CACHE,
        FsOptions::POSIX_LOCKS,
        FsOptions::FLOCK_LOCKS,
        FsOptions::ZERO_MESSAGE_OPEN,
        FsOptions::ZERO_MESSAGE_OPENDIR,
        FsOptions::EXPORT_SUPPORT,
        FsOptions::MAP_ALIGNMENT,
    ] {
        assert!(!flags.contains(unwanted), "{unwanted:?}");
    }
    let none = client.init(FsOptions::empty()).unwrap();
    assert_eq!((none.flags, none.flags2), (0, 0));
}

#[test]
fn files_are_written_and_read() {
    let mut client = Client::new();
    let (entry, open) = client
        .create(ROOT_ID, "file", libc::O_RDWR, 0o640, 0o022)
        .unwrap();
    let data: Vec<u8> = (0..300_000_u32).map(|index| (index % 251) as u8).collect();
    let file = (entry.nodeid, open.fh);
    assert_eq!(client.write(file, 0, &data, libc::O_RDWR), Ok(300_000));
    assert_eq!(fs::read(client.dir.path().join("file")).unwrap(), data);
    assert_eq!(
        client.read(entry.nodeid, open.fh, 1000, 200_000).unwrap(),
        data[1000..201_000]
    );
    assert_eq!(
        client.read(entry.nodeid, open.fh, 299_990, 4096).unwrap(),
        data[299_990..]
    );
    assert!(
        client
            .read(entry.nodeid, open.fh, 1 << 40, 10)
            .unwrap()
            .is_empty()
    );
    let attr = client.getattr(entry.nodeid).unwrap().attr;
    let host = fs::metadata(client.dir.path().join("file")).unwrap();
    assert_eq!(attr.mode, libc::S_IFREG | 0o640);
    assert_eq!((attr.ino, attr.size), (host.ino(), 300_000));
    client.release(entry.nodeid, open.fh).unwrap();
    assert_eq!(client.read(entry.nodeid, open.fh, 0, 1), Err(libc::EBADF));
    assert_eq!(client.counter("handles"), 0);
}

#[test]
fn handles_belong_to_their_file() {
    let mut client = Client::new();
    let (_, first) = client.create(ROOT_ID, "a", libc::O_RDWR, 0o600, 0).unwrap();
    let (other, _) = client.create(ROOT_ID, "b", libc::O_RDWR, 0o600, 0).unwrap();
    assert_eq!(client.read(other.nodeid, first.fh, 0, 1), Err(libc::EBADF));
    assert_eq!(client.release(other.nodeid, first.fh), Err(libc::EBADF));
}

#[test]
fn appending_follows_the_flags_of_each_write() {
    let mut client = Client::new();
    let (entry, open) = client
        .create(ROOT_ID, "log", libc::O_WRONLY | libc::O_APPEND, 0o600, 0)
        .unwrap();
    let file = (entry.nodeid, open.fh);
    let path = client.dir.path().join("log");
    fs::write(&path, "host ").unwrap();
    client.write(file, 0, b"guest", libc::O_APPEND).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"host guest");
    client.write(file, 0, b"HOST", 0).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"HOST guest");
    client.write(file, 0, b"!", libc::O_APPEND).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"HOST guest!");
}

#[test]
fn names_that_lead_out_are_refused() {
    let mut client = Client::new();
    fs::create_dir(client.dir.path().join("sub")).unwrap();
    let sub = client.lookup(ROOT_ID, "sub").unwrap().nodeid;
    for name in ["", ".", "..", "/", "a/b", "../etc", "/etc"] {
        for parent in [ROOT_ID, sub] {
            assert_eq!(
                client.lookup(parent, name).err(),
                Some(libc::EINVAL),
                "{name:?}"
            );
            let created = client.create(parent, name, libc::O_RDWR, 0o600, 0);
            assert_eq!(created.err(), Some(libc::EINVAL), "{name:?}");
        }
        for opcode in [Opcode::Unlink, Opcode::Rmdir] {
            let parts = [name.as_bytes(), b"\0"];
            assert_eq!(client.call(opcode as u32, sub, &parts), Err(libc::EINVAL));
        }
        let target = [name.as_bytes(), b"\0", b"target\0"];
        assert_eq!(
            client.call(Opcode::Symlink as u32, sub, &target),
            Err(libc::EINVAL)
        );
        let mkdir = [MkdirIn::default().as_slice(), name.as_bytes(), b"\0"].concat();
        assert_eq!(
            client.call(Opcode::Mkdir as u32, sub, &[&mkdir]),
            Err(libc::EINVAL)
        );
        let mknod = [MknodIn::default().as_slice(), name.as_bytes(), b"\0"].concat();
        assert_eq!(
            client.call(Opcode::Mknod as u32, sub, &[&mknod]),
            Err(libc::EINVAL)
        );
        let link = LinkIn { oldnodeid: sub };
        let link = [link.as_slice(), name.as_bytes(), b"\0"].concat();
        assert_eq!(
            client.call(Opcode::Link as u32, sub, &[&link]),
            Err(libc::EINVAL)
        );
        let rename = Rename2In {
            newdir: ROOT_ID,
            flags: 0,
            padding: 0,
        };
        for (from, to) in [(name, "x"), ("x", name)] {
            let names = [from.as_bytes(), b"\0", to.as_bytes(), b"\0"].concat();
            let parts = [rename.as_slice(), &names];
            assert_eq!(
                client.call(Opcode::Rename2 as u32, sub, &parts),
                Err(libc::EINVAL)
            );
        }
    }
    // What follows a NUL is not part of the name.
    let entry = client.call(Opcode::Lookup as u32, ROOT_ID, &[b"sub\0/../..\0"]);
    assert_eq!(decode::<EntryOut>(&entry.unwrap()).nodeid, sub);
    assert_eq!(
        client.call(Opcode::Lookup as u32, ROOT_ID, &[b"sub"]),
        Err(libc::EINVAL)
    );
}

#[test]
fn symbolic_links_are_never_followed() {
    let mut client = Client::new();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "secret").unwrap();
    symlink(outside.path(), client.dir.path().join("dir")).unwrap();
    symlink(
        outside.path().join("secret"),
        client.dir.path().join("file"),
    )
    .unwrap();
    let dir = client.lookup(ROOT_ID, "dir").unwrap();
    assert_eq!(dir.attr.mode & libc::S_IFMT, libc::S_IFLNK);
    assert_eq!(
        client.lookup(dir.nodeid, "secret").err(),
        Some(libc::ENOTDIR)
    );
    let opened = client.call(Opcode::Opendir as u32, dir.nodeid, &[&[0; 8]]);
    assert_eq!(opened, Err(libc::ENOTDIR));
    let file = client.lookup(ROOT_ID, "file").unwrap().nodeid;
    assert_eq!(client.open(file, libc::O_RDONLY).err(), Some(libc::ENXIO));
    assert!(
        client
            .create(ROOT_ID, "file", libc::O_RDWR, 0o600, 0)
            .is_err()
    );
    let target = client.call(Opcode::Readlink as u32, file, &[]).unwrap();
    assert_eq!(
        target,
        outside.path().join("secret").as_os_str().as_encoded_bytes()
    );
    let truncate = SetattrIn {
        valid: 1 << 3,
        ..SetattrIn::default()
    };
    assert!(
        client
            .call(Opcode::Setattr as u32, file, &[truncate.as_slice()])
            .is_err()
    );
    assert_eq!(fs::read(outside.path().join("secret")).unwrap(), b"secret");
}

#[test]
fn directories_list_what_stat_shows() {
    let mut client = Client::new();
    for index in 0..100 {
        fs::write(client.dir.path().join(format!("file-{index:03}")), "").unwrap();
    }
    let names = client.list(ROOT_ID);
    assert_eq!(names.len(), 102);
    for (name, ino) in &names {
        if name != ".." {
            let host = fs::metadata(client.dir.path().join(name)).unwrap();
            assert_eq!(host.ino(), *ino, "{name}");
        }
    }
    assert_eq!(
        client.counter("inodes"),
        1,
        "READDIR leaves look-ups behind"
    );
}

#[test]
fn readdirplus_counts_one_lookup_for_each_entry_sent() {
    let mut client = Client::new();
    for index in 0..40 {
        fs::write(client.dir.path().join(format!("file-{index:03}")), "").unwrap();
    }
    let args = OpenIn::default();
    let opened = client.call(Opcode::Opendir as u32, ROOT_ID, &[args.as_slice()]);
    let open: OpenOut = decode(&opened.unwrap());
    let args = ReadIn {
        fh: open.fh,
        size: 2048,
        ..ReadIn::default()
    };
    let body = client
        .call(Opcode::Readdirplus as u32, ROOT_ID, &[args.as_slice()])
        .unwrap();
    let mut rest = &body[..];
    let mut nodes = Vec::new();
    while !rest.is_empty() {
        let entry: EntryOut = decode(rest);
        let (ino, _, name, bytes) = dirent(&rest[size_of::<EntryOut>()..]);
        if name == "." || name == ".." {
            assert_eq!(entry.nodeid, 0);
        } else {
            assert_eq!(entry.attr.ino, ino);
            nodes.push(entry.nodeid);
        }
        rest = &rest[size_of::<EntryOut>() + bytes..];
    }
    assert!(nodes.len() > 5);
    assert_eq!(client.counter("inodes"), 1 + nodes.len() as u64);
    for node in nodes {
        client.forget(node, 1);
    }
    assert_eq!(client.counter("inodes"), 1);
}

#[test]
fn forgotten_nodes_are_gone_and_numbers_never_used_again() {
    let mut client = Client::new();
    fs::write(client.dir.path().join("file"), "").unwrap();
    let first = client.lookup(ROOT_ID, "file").unwrap().nodeid;
    assert_eq!(client.lookup(ROOT_ID, "file").unwrap().nodeid, first);
    client.forget(first, 1);
    client.getattr(first).unwrap();
    client.forget(first, u64::MAX);
    assert_eq!(client.getattr(first).err(), Some(libc::ENOENT));
    assert_ne!(client.lookup(ROOT_ID, "file").unwrap().nodeid, first);
    client.forget(ROOT_ID, u64::MAX);
    client.getattr(ROOT_ID).unwrap();
}

#[test]
fn unlinked_files_live_while_they_are_known() {
    let mut client = Client::new();
    let (entry, open) = client
        .create(ROOT_ID, "gone", libc::O_RDWR, 0o600, 0)
        .unwrap();
    let file = (entry.nodeid, open.fh);
    client.write(file, 0, b"still here", 0).unwrap();
    client
        .call(Opcode::Unlink as u32, ROOT_ID, &[b"gone\0"])
        .unwrap();
    assert_eq!(client.read(file.0, file.1, 0, 100).unwrap(), b"still here");
    let attr = client.getattr(entry.nodeid).unwrap().attr;
    assert_eq!((attr.nlink, attr.size), (0, 10));
    let again = client.open(entry.nodeid, libc::O_RDONLY).unwrap();
    assert_eq!(client.read(file.0, again.fh, 6, 4).unwrap(), b"here");
}

#[test]
fn special_files_are_made_but_never_opened() {
    let mut client = Client::new();
    assert_root();
    let kinds = [libc::S_IFIFO, libc::S_IFSOCK, libc::S_IFCHR, libc::S_IFBLK];
    for kind in kinds {
        let args = MknodIn {
            mode: kind | 0o644,
            rdev: 0x103,
            umask: 0,
            padding: 0,
        };
        let name = format!("node-{kind}");
        let parts = [args.as_slice(), name.as_bytes(), b"\0"];
        let entry: EntryOut = decode(&client.call(Opcode::Mknod as u32, ROOT_ID, &parts).unwrap());
        assert_eq!(entry.attr.mode, kind | 0o644);
        assert_eq!(
            client.open(entry.nodeid, libc::O_RDWR).err(),
            Some(libc::ENXIO)
        );
        let host = fs::symlink_metadata(client.dir.path().join(&name)).unwrap();
        if kind == libc::S_IFCHR {
            assert_eq!((entry.attr.rdev, host.rdev()), (0x103, libc::makedev(1, 3)));
            assert!(host.file_type().is_char_device());
        }
    }
    let directory = MknodIn {
        mode: libc::S_IFDIR,
        ..MknodIn::default()
    };
    let parts = [directory.as_slice(), b"x\0"];
    assert_eq!(
        client.call(Opcode::Mknod as u32, ROOT_ID, &parts),
        Err(libc::EINVAL)
    );
}

#[test]
fn new_files_belong_to_the_caller() {
    assert_root();
    let mut client = Client::new();
    // Nobody but root may write here: whether this caller may is decided in the guest.
    fs::set_permissions(client.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    (client.uid, client.gid) = (1234, 5678);
    let (entry, open) = client
        .create(ROOT_ID, "file", libc::O_RDWR, 0o6777, 0o027)
        .unwrap();
    assert_eq!((entry.attr.uid, entry.attr.gid), (1234, 5678));
    assert_eq!(entry.attr.mode & 0o7777, 0o6750);
    client.write((entry.nodeid, open.fh), 0, b"x", 0).unwrap();
    let mkdir = MkdirIn {
        mode: 0o777,
        umask: 0o077,
    };
    let parts = [mkdir.as_slice(), b"dir\0"];
    client.call(Opcode::Mkdir as u32, ROOT_ID, &parts).unwrap();
    client
        .call(Opcode::Symlink as u32, ROOT_ID, &[b"link\0target\0"])
        .unwrap();
    for (name, mode) in [("dir", 0o700), ("link", 0o777)] {
        let host = fs::symlink_metadata(client.dir.path().join(name)).unwrap();
        assert_eq!(
            (host.uid(), host.gid(), host.mode() & 0o777),
            (1234, 5678, mode)
        );
    }
    // The next request of another caller is not done as this one.
    (client.uid, client.gid) = (0, 0);
    let (entry, _) = client
        .create(ROOT_ID, "roots", libc::O_RDWR, 0o666, 0o022)
        .unwrap();
    assert_eq!(
        (entry.attr.uid, entry.attr.gid, entry.attr.mode & 0o777),
        (0, 0, 0o644)
    );
    (client.uid, client.gid) = (u32::MAX, 0);
    let refused = client.create(ROOT_ID, "nobodys", libc::O_RDWR, 0o600, 0);
    assert_eq!(refused.err(), Some(libc::EINVAL));
    assert!(!client.dir.path().join("nobodys").exists());
}

#[test]
fn set_group_id_directories_hand_on_their_group() {
    assert_root();
    let mut client = Client::new();
    let dir = client.dir.path().join("shared");
    fs::create_dir(&dir).unwrap();
    std::os::unix::fs::chown(&dir, Some(7), Some(8)).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o2775)).unwrap();
    let parent = client.lookup(ROOT_ID, "shared").unwrap().nodeid;
    (client.uid, client.gid) = (1234, 5678);
    let (entry, _) = client
        .create(parent, "file", libc::O_RDWR, 0o644, 0)
        .unwrap();
    assert_eq!((entry.attr.uid, entry.attr.gid), (1234, 8));
    let mkdir = MkdirIn {
        mode: 0o755,
        umask: 0,
    };
    let parts = [mkdir.as_slice(), b"dir\0"];
    let entry: EntryOut = decode(&client.call(Opcode::Mkdir as u32, parent, &parts).unwrap());
    assert_eq!((entry.attr.gid, entry.attr.mode & 0o7777), (8, 0o2755));
}

#[test]
fn writes_of_ordinary_users_clear_set_id_bits() {
    assert_root();
    const WRITE_KILL_PRIV: u32 = 4;
    let mut client = Client::new();
    let (entry, open) = client
        .create(ROOT_ID, "tool", libc::O_RDWR, 0o6755, 0)
        .unwrap();
    let file = (entry.nodeid, open.fh);
    let mode = |client: &mut Client| client.getattr(file.0).unwrap().attr.mode & 0o7777;
    client.write(file, 0, b"by root", 0).unwrap();
    assert_eq!(mode(&mut client), 0o6755);
    let args = WriteIn {
        fh: open.fh,
        size: 1,
        fuse_flags: WRITE_KILL_PRIV,
        ..WriteIn::default()
    };
    client
        .call(Opcode::Write as u32, file.0, &[args.as_slice(), b"x"])
        .unwrap();
    assert_eq!(mode(&mut client), 0o755);
    let set_mode = |client: &mut Client| {
        let args = SetattrIn {
            valid: 1,
            mode: 0o6755,
            ..SetattrIn::default()
        };
        client
            .call(Opcode::Setattr as u32, file.0, &[args.as_slice()])
            .unwrap();
    };
    for (valid, after) in [
        (1 << 3, 0o6755),
        (1 << 3 | 1 << 11, 0o755),
        (1 << 1, 0o755),
        // chown(2) with nothing to change.
        (0, 0o755),
    ] {
        set_mode(&mut client);
        assert_eq!(mode(&mut client), 0o6755);
        let args = SetattrIn {
            valid,
            uid: 0,
            size: 3,
            ..SetattrIn::default()
        };
        client
            .call(Opcode::Setattr as u32, file.0, &[args.as_slice()])
            .unwrap();
        assert_eq!(mode(&mut client), after, "{valid:#x}");
    }
    set_mode(&mut client);
    client.uid = 1234;
    let args = FallocateIn {
        fh: open.fh,
        length: 4096,
        ..FallocateIn::default()
    };
    client
        .call(Opcode::Fallocate as u32, file.0, &[args.as_slice()])
        .unwrap();
    assert_eq!(mode(&mut client), 0o755);
}

#[test]
fn attributes_are_set() {
    let mut client = Client::new();
    let (entry, open) = client
        .create(ROOT_ID, "file", libc::O_RDWR, 0o600, 0)
        .unwrap();
    client
        .write((entry.nodeid, open.fh), 0, &[7; 100], 0)
        .unwrap();
    let args = SetattrIn {
        valid: 1 | 1 << 3 | 1 << 4 | 1 << 5,
        mode: libc::S_IFREG | 0o4711,
        size: 40,
        atime: (-5_i64).cast_unsigned(),
        atimensec: 7,
        mtime: 1_000_000_000,
        mtimensec: 999_999_999,
        ..SetattrIn::default()
    };
    client
        .call(Opcode::Setattr as u32, entry.nodeid, &[args.as_slice()])
        .unwrap();
    let host = fs::metadata(client.dir.path().join("file")).unwrap();
    assert_eq!((host.mode() & 0o7777, host.len()), (0o4711, 40));
    assert_eq!((host.atime(), host.atime_nsec()), (-5, 7));
    assert_eq!(
        (host.mtime(), host.mtime_nsec()),
        (1_000_000_000, 999_999_999)
    );
    let attr = client.getattr(entry.nodeid).unwrap().attr;
    assert_eq!(attr.atime.cast_signed(), -5);
    for (valid, bad) in [
        (
            1 << 4,
            SetattrIn {
                atimensec: 1_000_000_000,
                ..args
            },
        ),
        (
            1 << 3,
            SetattrIn {
                size: u64::MAX,
                ..args
            },
        ),
        (
            1 << 1,
            SetattrIn {
                uid: u32::MAX,
                ..args
            },
        ),
    ] {
        let bad = SetattrIn { valid, ..bad };
        let result = client.call(Opcode::Setattr as u32, entry.nodeid, &[bad.as_slice()]);
        assert_eq!(result, Err(libc::EINVAL), "{valid:#x}");
    }
}

#[test]
fn links_and_renames() {
    let mut client = Client::new();
    let (entry, _) = client.create(ROOT_ID, "a", libc::O_RDWR, 0o600, 0).unwrap();
    let link = LinkIn {
        oldnodeid: entry.nodeid,
    };
    let parts = [link.as_slice(), b"b\0"];
    let linked: EntryOut = decode(&client.call(Opcode::Link as u32, ROOT_ID, &parts).unwrap());
    assert_eq!((linked.nodeid, linked.attr.nlink), (entry.nodeid, 2));
    client.create(ROOT_ID, "c", libc::O_RDWR, 0o600, 0).unwrap();
    let rename = |client: &mut Client, names: &[u8], flags| {
        let args = Rename2In {
            newdir: ROOT_ID,
            flags,
            padding: 0,
        };
        client.call(Opcode::Rename2 as u32, ROOT_ID, &[args.as_slice(), names])
    };
    assert_eq!(
        rename(&mut client, b"a\0c\0", libc::RENAME_NOREPLACE),
        Err(libc::EEXIST)
    );
    rename(&mut client, b"a\0c\0", libc::RENAME_EXCHANGE).unwrap();
    assert_eq!(client.lookup(ROOT_ID, "c").unwrap().nodeid, entry.nodeid);
    rename(&mut client, b"c\0a\0", 0).unwrap();
    assert_eq!(client.root_names(), ["a", "b"]);
    symlink("a", client.dir.path().join("s")).unwrap();
    let oldnodeid = client.lookup(ROOT_ID, "s").unwrap().nodeid;
    let link = LinkIn { oldnodeid };
    client
        .call(Opcode::Link as u32, ROOT_ID, &[link.as_slice(), b"t\0"])
        .unwrap();
    assert!(
        fs::symlink_metadata(client.dir.path().join("t"))
            .unwrap()
            .is_symlink()
    );
}

#[test]
fn holes_are_found_and_ranges_copied() {
    let mut client = Client::new();
    let (from, open) = client
        .create(ROOT_ID, "from", libc::O_RDWR, 0o600, 0)
        .unwrap();
    client
        .write((from.nodeid, open.fh), 1 << 20, b"data", 0)
        .unwrap();
    let seek = |client: &mut Client, offset, whence| {
        let args = LseekIn {
            fh: open.fh,
            offset,
            whence,
            padding: 0,
        };
        client
            .call(Opcode::Lseek as u32, from.nodeid, &[args.as_slice()])
            .map(|body| decode::<LseekOut>(&body).offset)
    };
    assert_eq!(seek(&mut client, 0, 4), Ok(0));
    assert!(matches!(seek(&mut client, 0, 3), Ok(0 | 0x10_0000)));
    assert_eq!(seek(&mut client, 0, 2), Err(libc::EINVAL));
    assert_eq!(seek(&mut client, u64::MAX, 3), Err(libc::ENXIO));
    let (to, target) = client
        .create(ROOT_ID, "to", libc::O_RDWR, 0o600, 0)
        .unwrap();
    let args = CopyFileRangeIn {
        fh_in: open.fh,
        offset_in: 1 << 20,
        nodeid_out: to.nodeid,
        fh_out: target.fh,
        offset_out: 3,
        len: u64::MAX >> 1,
        flags: 0,
    };
    let body = client.call(47, from.nodeid, &[args.as_slice()]).unwrap();
    assert_eq!(decode::<WriteOut>(&body).size, 4);
    assert_eq!(
        fs::read(client.dir.path().join("to")).unwrap(),
        b"\0\0\0data"
    );
    let stray = CopyFileRangeIn {
        fh_out: open.fh,
        ..args
    };
    assert_eq!(
        client.call(47, from.nodeid, &[stray.as_slice()]),
        Err(libc::EBADF)
    );
}

#[test]
fn unnamed_files_get_a_name_by_a_link() {
    let mut client = Client::new();
    let args = CreateIn {
        flags: (libc::O_TMPFILE | libc::O_RDWR) as u32,
        mode: libc::S_IFREG | 0o666,
        umask: 0o022,
        fuse_flags: 0,
    };
    let body = match client.call(51, ROOT_ID, &[args.as_slice(), b"/\0"]) {
        // Not every file system can.
        Err(libc::EOPNOTSUPP) => return,
        body => body.unwrap(),
    };
    let entry: EntryOut = decode(&body);
    let open: OpenOut = decode(&body[size_of::<EntryOut>()..]);
    assert_eq!((entry.attr.nlink, entry.attr.mode & 0o777), (0, 0o644));
    client.write((entry.nodeid, open.fh), 0, b"now", 0).unwrap();
    assert!(client.root_names().is_empty());
    let link = LinkIn {
        oldnodeid: entry.nodeid,
    };
    client
        .call(Opcode::Link as u32, ROOT_ID, &[link.as_slice(), b"named\0"])
        .unwrap();
    assert_eq!(fs::read(client.dir.path().join("named")).unwrap(), b"now");
}

#[test]
fn extended_attributes_of_everything() {
    let mut client = Client::new();
    let (entry, _) = client
        .create(ROOT_ID, "file", libc::O_RDWR, 0o600, 0)
        .unwrap();
    let set = SetxattrIn { size: 5, flags: 0 };
    let parts = [set.as_slice(), b"user.key\0value"];
    match client.call(Opcode::Setxattr as u32, entry.nodeid, &parts) {
        Err(libc::EOPNOTSUPP) => return,
        set => set.unwrap(),
    };
    let get = |client: &mut Client, opcode: Opcode, size, name: &[u8]| {
        let args = GetxattrIn { size, padding: 0 };
        client.call(opcode as u32, entry.nodeid, &[args.as_slice(), name])
    };
    let value = get(&mut client, Opcode::Getxattr, 100, b"user.key\0");
    assert_eq!(value.unwrap(), b"value");
    // However large a buffer the guest says it has.
    let value = get(&mut client, Opcode::Getxattr, u32::MAX, b"user.key\0");
    assert_eq!(value.unwrap(), b"value");
    let length = get(&mut client, Opcode::Getxattr, 0, b"user.key\0").unwrap();
    assert_eq!(length[..4], 5_u32.to_le_bytes());
    assert_eq!(
        get(&mut client, Opcode::Getxattr, 2, b"user.key\0"),
        Err(libc::ERANGE)
    );
    let names = get(&mut client, Opcode::Listxattr, u32::MAX, b"").unwrap();
    assert!(
        names
            .split(|byte| *byte == 0)
            .any(|name| name == b"user.key")
    );
    let acl = get(
        &mut client,
        Opcode::Getxattr,
        100,
        b"system.posix_acl_access\0",
    );
    assert_eq!(acl, Err(libc::ENODATA));
    client
        .call(Opcode::Removexattr as u32, entry.nodeid, &[b"user.key\0"])
        .unwrap();
    let gone = get(&mut client, Opcode::Getxattr, 100, b"user.key\0");
    assert_eq!(gone, Err(libc::ENODATA));
}

#[test]
fn the_guest_keeps_its_cache_of_old_files_only() {
    const KEEP_CACHE: u32 = 2;
    let mut client = Client::new();
    let path = client.dir.path().join("file");
    fs::File::create(&path).unwrap().write_all(b"new").unwrap();
    let node = client.lookup(ROOT_ID, "file").unwrap().nodeid;
    assert_eq!(
        client.open(node, libc::O_RDONLY).unwrap().open_flags & KEEP_CACHE,
        0
    );
    // ctime cannot be set back, so take a file of the system for the other case.
    client.serve(std::path::Path::new("/usr/bin"));
    client.init(FsOptions::all()).unwrap();
    let node = client.lookup(ROOT_ID, "env").unwrap().nodeid;
    let flags = client.open(node, libc::O_RDONLY).unwrap().open_flags;
    assert_eq!(flags & KEEP_CACHE, KEEP_CACHE);
}

#[test]
fn statfs_shows_the_file_system_below() {
    let mut client = Client::new();
    let body = client.call(Opcode::Statfs as u32, ROOT_ID, &[]).unwrap();
    let blocks = u64::from_le_bytes(body[..8].try_into().unwrap());
    let host = rustix::fs::statvfs(client.dir.path()).unwrap();
    assert_eq!(blocks, host.f_blocks);
}

#[test]
fn other_file_systems_are_announced() {
    assert_root();
    // The machine's /dev/shm or /proc is another file system below /.
    let mut client = Client::new();
    client.serve(std::path::Path::new("/"));
    for (flags, announced) in [(FsOptions::all(), 1), (FsOptions::empty(), 0)] {
        client.init(flags).unwrap();
        let proc = client.lookup(ROOT_ID, "proc").unwrap();
        assert_eq!(proc.attr.flags & 1, announced);
        let etc = client.lookup(ROOT_ID, "etc").unwrap();
        assert_eq!(etc.attr.flags & 1, 0);
        let version = client.lookup(proc.nodeid, "version").unwrap();
        assert_eq!(version.attr.flags & 1, 0);
        let host = fs::metadata("/proc/version").unwrap().ino();
        assert_eq!(version.attr.ino == host, announced == 1);
        let attr = client.getattr(version.nodeid).unwrap().attr;
        assert_eq!(attr.ino, version.attr.ino);
    }
}
