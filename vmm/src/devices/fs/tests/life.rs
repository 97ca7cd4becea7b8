//! Configuration, activation, pause, reset, save and restore, notifications.

use std::fs;

use fuse_backend_rs::abi::fuse_abi::{FsOptions, GetattrIn, Opcode, ROOT_ID};
use vm_memory::ByteValued;

use super::client::{Client, REQUESTS, open_path};
use crate::{
    devices::fs::{Fs, FsError},
    virtio::{
        device::{ActivateError, RestoreError, VirtioDevice},
        mock::{Buffer, MockDriver},
    },
};

const EVENT_IDX: u64 = 1 << 29;

#[test]
fn configuration_space_has_tag_and_queues() {
    let dir = tempfile::tempdir().unwrap();
    let device = Fs::new("lazaret", open_path(dir.path()), 3).unwrap();
    let mut space = [0xff; 44];
    device.read_config(0, &mut space);
    assert_eq!(&space[..8], b"lazaret\0");
    assert_eq!(space[36..], [3, 0, 0, 0, 0, 0, 0, 0]);
    device.read_config(u64::MAX, &mut space);
    assert_eq!(space, [0; 44]);
    assert_eq!(device.queue_sizes(), [128, 512, 512, 512]);
    assert_eq!((device.device_type(), device.kind()), (26, "fs"));
}

#[test]
fn bad_arguments_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = || open_path(dir.path());
    for tag in ["", "a\0b", &"x".repeat(37)] {
        assert!(matches!(Fs::new(tag, path(), 1), Err(FsError::Tag { .. })));
    }
    for queues in [0, 65] {
        assert!(matches!(
            Fs::new("t", path(), queues),
            Err(FsError::Queues { .. })
        ));
    }
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(matches!(
        Fs::new("t", open_path(&file), 1),
        Err(FsError::Root { .. })
    ));
}

#[test]
fn unused_queues_are_fine_but_not_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let mut device = Fs::new("lazaret", open_path(dir.path()), 4).unwrap();
    let driver = MockDriver::new(&device, 64);
    for missing in [0, 1] {
        let mut activation = driver.activation(0);
        activation.queues.remove(missing);
        let error = device.activate(activation).unwrap_err();
        let is_missing = |index| usize::from(index) == missing;
        assert!(matches!(error, ActivateError::MissingQueue { index } if is_missing(index)));
    }
    let mut activation = driver.activation(0);
    activation.queues.remove(3);
    device.activate(activation).unwrap();
    let indices: Vec<u16> = device.pause().iter().map(|queue| queue.index).collect();
    assert_eq!(indices, [0, 1, 2, 4]);
}

#[test]
fn a_session_survives_a_pause_but_not_a_reset() {
    let mut client = Client::new();
    let (entry, open) = client
        .create(ROOT_ID, "file", libc::O_RDWR, 0o600, 0)
        .unwrap();
    let queues = client.device.pause();
    assert_eq!(queues.len(), 3);
    assert!(client.device.pause().is_empty());
    client.driver.resume(&mut client.device, queues, 0).unwrap();
    client.write((entry.nodeid, open.fh), 0, b"x", 0).unwrap();
    client.device.reset();
    assert_eq!(
        (client.counter("inodes"), client.counter("handles")),
        (1, 0)
    );
}

#[test]
fn requests_made_during_a_pause_are_served_after_it() {
    let mut client = Client::new();
    let queues = client.device.pause();
    let args = GetattrIn::default();
    let header = client.header(Opcode::Getattr as u32, ROOT_ID, size_of::<GetattrIn>());
    let request = client
        .driver
        .readable(&[header.as_slice(), args.as_slice()].concat());
    let reply = client.driver.writable(4096);
    client.driver.rings[REQUESTS].add(&[request, reply]);
    client.driver.resume(&mut client.device, queues, 0).unwrap();
    assert_eq!(client.driver.wait_used(REQUESTS, 1)[0].1, 16 + 104);
}

#[test]
fn a_new_mount_starts_afresh() {
    let mut client = Client::new();
    let (entry, open) = client
        .create(ROOT_ID, "file", libc::O_RDWR, 0o600, 0)
        .unwrap();
    assert_eq!(client.call(Opcode::Destroy as u32, 0, &[]), Ok(vec![]));
    assert_eq!(client.getattr(entry.nodeid).err(), Some(libc::ENOENT));
    client.init(FsOptions::all()).unwrap();
    assert_eq!(client.read(entry.nodeid, open.fh, 0, 1), Err(libc::EBADF));
    client.lookup(ROOT_ID, "file").unwrap();
}

#[test]
fn only_an_unmounted_share_is_restored() {
    let dir = tempfile::tempdir().unwrap();
    let other = |tag: &str, queues| Fs::new(tag, open_path(dir.path()), queues).unwrap();
    let mut client = Client::fresh(0);
    let saved = client.device.save();
    other("lazaret", 2).restore(&saved).unwrap();
    for mut different in [other("lazaret", 1), other("other", 2)] {
        let result = different.restore(&saved);
        assert!(matches!(result, Err(RestoreError::Mismatch { .. })));
    }
    let cut = other("lazaret", 2).restore(&saved[..3]);
    assert!(matches!(cut, Err(RestoreError::Malformed(_))));
    client.init(FsOptions::all()).unwrap();
    let mounted = other("lazaret", 2).restore(&client.device.save());
    assert!(matches!(mounted, Err(RestoreError::Mismatch { .. })));
    client.call(Opcode::Destroy as u32, 0, &[]).unwrap();
    other("lazaret", 2).restore(&client.device.save()).unwrap();
}

#[test]
fn a_batch_is_one_interrupt() {
    let mut client = Client::fresh(EVENT_IDX);
    client.init(FsOptions::all()).unwrap();
    while client.driver.irq.read().is_ok() {}
    let queues = client.device.pause();
    let mut expected = 0;
    for _ in 0..20 {
        let header = client.header(Opcode::Statfs as u32, ROOT_ID, 0);
        let request = client.driver.readable(header.as_slice());
        let reply = client.driver.writable(256);
        client.driver.rings[REQUESTS].add(&[request, reply]);
        expected += 1;
    }
    let used_event = client.driver.rings[REQUESTS].used_index();
    client.driver.rings[REQUESTS].set_used_event(used_event);
    client
        .driver
        .resume(&mut client.device, queues, EVENT_IDX)
        .unwrap();
    client.driver.wait_used(REQUESTS, expected);
    drop(client.device.pause());
    // wait_used may have taken it already; another one would be too many.
    assert!(client.driver.irq.read().unwrap_or(0) <= 1);
}

#[test]
fn messages_may_be_cut_anywhere() {
    let mut client = Client::new();
    fs::write(client.dir.path().join("a-file-with-a-name"), "x").unwrap();
    let name = b"a-file-with-a-name\0";
    let header = client.header(Opcode::Lookup as u32, ROOT_ID, name.len());
    let message = [header.as_slice(), name].concat();
    let request = client.driver.readable(&message);
    let reply = client.driver.writable(200);
    let table = client.driver.alloc(16 * 300);
    let bytes = |buffer: Buffer| {
        (0..u64::from(buffer.bytes)).map(move |at| Buffer {
            address: buffer.address + at,
            bytes: 1,
            ..buffer
        })
    };
    let chain: Vec<Buffer> = bytes(request).chain(bytes(reply)).collect();
    client.driver.rings[REQUESTS].add_indirect(table, &chain);
    client.driver.notify(REQUESTS);
    let used = client.driver.wait_used(REQUESTS, 1);
    assert_eq!(used[0].1, 16 + 128);
    let raw = client.driver.content(reply);
    assert_eq!(raw[4..8], [0; 4], "error");
}
