//! What no driver and no FUSE client should send.

use fuse_backend_rs::abi::fuse_abi::{
    BatchForgetIn, FsOptions, InHeader, InitIn, Opcode, ROOT_ID, ReadIn, SetxattrIn,
};
use vm_memory::ByteValued;

use super::client::{Client, REQUESTS};
use crate::virtio::{device::VirtioDevice, mock::Malformed};

#[test]
fn broken_chains_need_a_reset() {
    for how in Malformed::ALL {
        let mut client = Client::new();
        let scratch = client.driver.alloc(64 << 10);
        client.driver.rings[REQUESTS].add_malformed(how, scratch);
        client.driver.notify(REQUESTS);
        client.driver.wait_needs_reset();
        // It can still be stopped, and used again.
        assert_eq!(client.device.pause().len(), 3, "{how:?}");
        client.device.reset();
    }
}

#[test]
fn the_other_queues_go_on_when_one_is_broken() {
    let mut client = Client::new();
    let scratch = client.driver.alloc(64 << 10);
    client.driver.rings[2].add_malformed(Malformed::Loop, scratch);
    client.driver.notify(2);
    client.driver.wait_needs_reset();
    client.getattr(ROOT_ID).unwrap();
}

#[test]
fn every_opcode_with_every_length_is_answered() {
    let mut client = Client::new();
    let silent = [2, 36, 42];
    for opcode in (0..60)
        .chain([4096, u32::MAX])
        .filter(|opcode| !silent.contains(opcode))
    {
        for bytes in [0, 1, 7, 8, 16, 40, 64, 4096] {
            for fill in [0, 1, 0xff] {
                for node in [0, ROOT_ID, 2, u64::MAX] {
                    let header = client.header(opcode, node, bytes);
                    let _ = client.send(&header, &vec![fill; bytes], 4096);
                }
            }
        }
    }
    assert!(!client.driver.interrupt.needs_reset());
    client.init(FsOptions::all()).unwrap();
    client.getattr(ROOT_ID).unwrap();
}

#[test]
fn lengths_in_the_header_are_not_believed() {
    let mut client = Client::new();
    for len in [0, 1, 39, 45, 4096, 1 << 20, u32::MAX] {
        let header = InHeader {
            len,
            ..client.header(Opcode::Lookup as u32, ROOT_ID, 0)
        };
        assert_eq!(
            client.send(&header, b"file\0"[..4].as_ref(), 4096),
            Err(libc::EINVAL),
            "{len}"
        );
    }
    let body = SetxattrIn {
        size: u32::MAX,
        flags: 0,
    };
    let parts = [body.as_slice(), b"user.key\0value"];
    assert_eq!(
        client.call(Opcode::Setxattr as u32, ROOT_ID, &parts),
        Err(libc::EINVAL)
    );
}

#[test]
fn answers_that_do_not_fit_are_errors() {
    let mut client = Client::new();
    for opcode in [Opcode::Getattr, Opcode::Statfs] {
        let header = client.header(opcode as u32, ROOT_ID, 16);
        assert_eq!(client.send(&header, &[0; 16], 8), Err(libc::EINVAL));
    }
    let (entry, open) = client.create(ROOT_ID, "f", libc::O_RDWR, 0o600, 0).unwrap();
    client
        .write((entry.nodeid, open.fh), 0, &[1; 64], 0)
        .unwrap();
    let read = ReadIn {
        fh: open.fh,
        size: u32::MAX,
        ..ReadIn::default()
    };
    let header = client.header(Opcode::Read as u32, entry.nodeid, size_of::<ReadIn>());
    assert!(client.send(&header, read.as_slice(), 32).is_err());
    assert!(
        client
            .call(Opcode::Read as u32, entry.nodeid, &[read.as_slice()])
            .is_err()
    );
    for opcode in [Opcode::Readdir, Opcode::Readdirplus] {
        let dir = client
            .call(Opcode::Opendir as u32, ROOT_ID, &[&[0; 8]])
            .unwrap();
        let fh = u64::from_le_bytes(dir[..8].try_into().unwrap());
        let args = ReadIn {
            fh,
            size: u32::MAX,
            ..ReadIn::default()
        };
        assert!(
            client
                .call(opcode as u32, ROOT_ID, &[args.as_slice()])
                .is_err()
        );
    }
}

#[test]
fn too_large_requests_are_refused() {
    let mut client = Client::new();
    let header = client.header(Opcode::Write as u32, ROOT_ID, (1 << 20) + 8192);
    let body = vec![0; (1 << 20) + 8192];
    assert_eq!(client.send(&header, &body, 4096), Err(libc::E2BIG));
    let header = client.header(Opcode::Getattr as u32, ROOT_ID, 16);
    assert_eq!(
        client.send(&header, &[0; 16], (1 << 20) + 8192),
        Err(libc::E2BIG)
    );
}

#[test]
fn batches_of_forgets_are_not_counted_by_the_guest() {
    let mut client = Client::new();
    for count in [1, 1000, u32::MAX] {
        let batch = BatchForgetIn { count, dummy: 0 };
        let header = client.header(Opcode::BatchForget as u32, 0, 8);
        let message = [header.as_slice(), batch.as_slice()].concat();
        let buffer = client.driver.readable(&message);
        client.driver.rings[0].add(&[buffer]);
        client.driver.notify(0);
        assert_eq!(client.driver.wait_used(0, 1)[0].1, 0);
    }
    assert_eq!(client.counter("malformed"), 3);
}

#[test]
fn foreign_versions_are_refused() {
    let mut client = Client::fresh(0);
    let init = |client: &mut Client, major| {
        let args = InitIn {
            major,
            minor: 1,
            ..InitIn::default()
        };
        client.call(Opcode::Init as u32, 0, &[args.as_slice()])
    };
    assert_eq!(init(&mut client, 6), Err(libc::EPROTO));
    // A newer one is told the version to come back with.
    assert_eq!(init(&mut client, 8).unwrap()[..4], 7_u32.to_le_bytes());
}
