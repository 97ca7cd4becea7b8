//! The client: what the guest's kernel would send, and worse.

use std::{
    fs::File,
    os::{fd::OwnedFd, unix::fs::OpenOptionsExt},
    path::Path,
};

use fuse_backend_rs::abi::fuse_abi::{
    AttrOut, CreateIn, EntryOut, FsOptions, GetattrIn, InHeader, InitIn, InitOut, Opcode, OpenIn,
    OpenOut, OutHeader, ROOT_ID, ReadIn, ReleaseIn, WriteIn, WriteOut,
};
use tempfile::TempDir;
use vm_memory::{ByteValued, Bytes, GuestAddress};

use crate::{
    devices::fs::Fs,
    virtio::{
        device::VirtioDevice,
        mock::{Buffer, MockDriver},
    },
};

/// First request queue.
pub(super) const REQUESTS: usize = 1;
/// Bytes of each scratch buffer.
const BUFFER_BYTES: u32 = 2 << 20;

pub(super) fn open_path(path: &Path) -> OwnedFd {
    File::options()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_CLOEXEC)
        .open(path)
        .unwrap()
        .into()
}

/// Fails a test that needs root where it cannot run, instead of letting it pass.
pub(super) fn assert_root() {
    assert!(rustix::process::geteuid().is_root(), "this test needs root");
}

pub(super) struct Client {
    pub(super) dir: TempDir,
    pub(super) device: Fs,
    pub(super) driver: MockDriver,
    pub(super) uid: u32,
    pub(super) gid: u32,
    unique: u64,
    request: u64,
    reply: u64,
}

/// An answer: an error number, or what follows the header.
pub(super) type Answer = Result<Vec<u8>, i32>;

impl Client {
    /// A client of an empty directory, before `INIT`.
    pub(super) fn fresh(features: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut device = Fs::new("lazaret", open_path(dir.path()), 2).unwrap();
        let mut driver = MockDriver::new(&device, 512);
        driver.activate(&mut device, features).unwrap();
        let request = driver.alloc(BUFFER_BYTES);
        let reply = driver.alloc(BUFFER_BYTES);
        Self {
            dir,
            device,
            driver,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            unique: 100,
            request,
            reply,
        }
    }

    /// A client of an empty directory, mounted.
    pub(super) fn new() -> Self {
        let mut client = Self::fresh(0);
        client.init(FsOptions::all()).unwrap();
        client
    }

    /// Serves another directory from now on.
    pub(super) fn serve(&mut self, path: &Path) {
        self.device = Fs::new("lazaret", open_path(path), 2).unwrap();
        self.driver = MockDriver::new(&self.device, 512);
        // Where this client's buffers lie.
        self.driver.alloc(2 * BUFFER_BYTES);
        self.driver.activate(&mut self.device, 0).unwrap();
    }

    pub(super) fn init(&mut self, flags: FsOptions) -> Result<InitOut, i32> {
        let init = InitIn {
            major: 7,
            minor: 41,
            max_readahead: 128 << 10,
            flags: flags.bits() as u32 & !(1 << 30),
        };
        self.call(Opcode::Init as u32, 0, &[init.as_slice()])
            .map(|body| decode(&body))
    }

    pub(super) fn header(&mut self, opcode: u32, node: u64, bytes: usize) -> InHeader {
        self.unique += 1;
        InHeader {
            len: (size_of::<InHeader>() + bytes) as u32,
            opcode,
            unique: self.unique,
            nodeid: node,
            uid: self.uid,
            gid: self.gid,
            pid: 1,
            padding: 0,
        }
    }

    pub(super) fn call(&mut self, opcode: u32, node: u64, parts: &[&[u8]]) -> Answer {
        let body = parts.concat();
        let header = self.header(opcode, node, body.len());
        self.send(&header, &body, 1 << 20)
    }

    /// Sends any header with any body, and room for `room` bytes of answer.
    pub(super) fn send(&mut self, header: &InHeader, body: &[u8], room: u32) -> Answer {
        let memory = self.driver.memory.clone();
        memory
            .write_slice(header.as_slice(), GuestAddress(self.request))
            .unwrap();
        memory
            .write_slice(body, GuestAddress(self.request + 40))
            .unwrap();
        // As Linux does: header and arguments apart, on both ways.
        let mut chain = vec![Buffer::readable(self.request, 40)];
        if !body.is_empty() {
            chain.push(Buffer::readable(self.request + 40, body.len() as u32));
        }
        chain.push(Buffer::writable(self.reply, 16));
        if room > 0 {
            chain.push(Buffer::writable(self.reply + 16, room));
        }
        self.driver.rings[REQUESTS].add(&chain);
        self.driver.notify(REQUESTS);
        let used = self.driver.wait_used(REQUESTS, 1);
        assert_eq!(used.len(), 1);
        self.answer(header.unique, used[0].1)
    }

    fn answer(&self, unique: u64, used: u32) -> Answer {
        let mut raw = vec![0; used as usize];
        self.driver
            .memory
            .read_slice(&mut raw, GuestAddress(self.reply))
            .unwrap();
        assert!(raw.len() >= 16, "answer of {used} bytes");
        let header: OutHeader = decode(&raw);
        assert_eq!(header.len, used);
        assert_eq!(header.unique, unique);
        match header.error {
            0 => Ok(raw.split_off(16)),
            error => {
                assert_eq!(used, 16);
                Err(-error)
            }
        }
    }

    /// A message without an answer, on the priority queue.
    pub(super) fn forget(&mut self, node: u64, count: u64) {
        let header = self.header(Opcode::Forget as u32, node, 8);
        let message = [header.as_slice(), &count.to_le_bytes()].concat();
        let buffer = self.driver.readable(&message);
        self.driver.rings[0].add(&[buffer]);
        self.driver.notify(0);
        assert_eq!(self.driver.wait_used(0, 1)[0].1, 0);
    }

    pub(super) fn counter(&self, name: &str) -> u64 {
        let mut found = None;
        self.device.counters(&mut |counter, value| {
            if counter == name {
                found = Some(value);
            }
        });
        found.unwrap()
    }

    pub(super) fn lookup(&mut self, parent: u64, name: &str) -> Result<EntryOut, i32> {
        self.call(Opcode::Lookup as u32, parent, &[name.as_bytes(), b"\0"])
            .map(|body| decode(&body))
    }

    pub(super) fn getattr(&mut self, node: u64) -> Result<AttrOut, i32> {
        let args = GetattrIn::default();
        self.call(Opcode::Getattr as u32, node, &[args.as_slice()])
            .map(|body| decode(&body))
    }

    pub(super) fn open(&mut self, node: u64, flags: i32) -> Result<OpenOut, i32> {
        let args = OpenIn {
            flags: flags as u32,
            fuse_flags: 0,
        };
        self.call(Opcode::Open as u32, node, &[args.as_slice()])
            .map(|body| decode(&body))
    }

    pub(super) fn create(
        &mut self,
        parent: u64,
        name: &str,
        flags: i32,
        mode: u32,
        umask: u32,
    ) -> Result<(EntryOut, OpenOut), i32> {
        let args = CreateIn {
            flags: (flags | libc::O_CREAT) as u32,
            mode: libc::S_IFREG | mode,
            umask,
            fuse_flags: 0,
        };
        let parts = [args.as_slice(), name.as_bytes(), b"\0"];
        self.call(Opcode::Create as u32, parent, &parts)
            .map(|body| (decode(&body), decode(&body[size_of::<EntryOut>()..])))
    }

    pub(super) fn read(&mut self, node: u64, fh: u64, offset: u64, size: u32) -> Answer {
        let args = ReadIn {
            fh,
            offset,
            size,
            ..ReadIn::default()
        };
        self.call(Opcode::Read as u32, node, &[args.as_slice()])
    }

    pub(super) fn write(
        &mut self,
        (node, fh): (u64, u64),
        offset: u64,
        data: &[u8],
        flags: i32,
    ) -> Result<u32, i32> {
        let args = WriteIn {
            fh,
            offset,
            size: data.len() as u32,
            flags: flags as u32,
            ..WriteIn::default()
        };
        self.call(Opcode::Write as u32, node, &[args.as_slice(), data])
            .map(|body| decode::<WriteOut>(&body).size)
    }

    pub(super) fn release(&mut self, node: u64, fh: u64) -> Answer {
        let args = ReleaseIn {
            fh,
            ..ReleaseIn::default()
        };
        self.call(Opcode::Release as u32, node, &[args.as_slice()])
    }

    /// Names and inode numbers of a directory, as READDIR returns them.
    pub(super) fn list(&mut self, node: u64) -> Vec<(String, u64)> {
        let open: OpenOut = decode(
            &self
                .call(
                    Opcode::Opendir as u32,
                    node,
                    &[OpenIn::default().as_slice()],
                )
                .unwrap(),
        );
        let mut names = Vec::new();
        let mut offset = 0;
        loop {
            let args = ReadIn {
                fh: open.fh,
                offset,
                size: 512,
                ..ReadIn::default()
            };
            let body = self
                .call(Opcode::Readdir as u32, node, &[args.as_slice()])
                .unwrap();
            if body.is_empty() {
                break;
            }
            let mut rest = &body[..];
            while !rest.is_empty() {
                let (ino, next, name, bytes) = dirent(rest);
                names.push((name, ino));
                offset = next;
                rest = &rest[bytes..];
            }
        }
        let args = ReleaseIn {
            fh: open.fh,
            ..ReleaseIn::default()
        };
        self.call(Opcode::Releasedir as u32, node, &[args.as_slice()])
            .unwrap();
        names.sort();
        names
    }

    pub(super) fn root_names(&mut self) -> Vec<String> {
        self.list(ROOT_ID)
            .into_iter()
            .map(|(name, _)| name)
            .filter(|name| name != "." && name != "..")
            .collect()
    }
}

/// Inode number, next offset, name and length of the `fuse_dirent` at the start of `bytes`.
pub(super) fn dirent(bytes: &[u8]) -> (u64, u64, String, usize) {
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let length = (word(16) & 0xffff_ffff) as usize;
    let name = String::from_utf8(bytes[24..24 + length].to_vec()).unwrap();
    (word(0), word(8), name, (24 + length).next_multiple_of(8))
}

pub(super) fn decode<T: ByteValued + Default>(bytes: &[u8]) -> T {
    let mut value = T::default();
    value
        .as_mut_slice()
        .copy_from_slice(&bytes[..size_of::<T>()]);
    value
}
