//! [`Share`] as the trait `fuse-backend-rs` calls. Only forwards: what an operation does stands
//! with its kind.

use std::{ffi::CStr, io, time::Duration};

use fuse_backend_rs::{
    abi::fuse_abi::{CreateIn, stat64, statvfs64},
    api::filesystem::{
        Context, DirEntry, Entry, FileSystem, FsOptions, GetxattrReply, ListxattrReply,
        OpenOptions, SetattrValid, ZeroCopyReader, ZeroCopyWriter,
    },
};
use rustix::fs::AtFlags;

use super::Share;

type Opened = (Option<u64>, OpenOptions, Option<u32>);

impl FileSystem for Share {
    type Inode = u64;
    type Handle = u64;

    fn init(&self, capable: FsOptions) -> io::Result<FsOptions> {
        Ok(self.start(capable))
    }

    fn destroy(&self) {
        self.end();
    }

    fn lookup(&self, _: &Context, parent: u64, name: &CStr) -> io::Result<Entry> {
        self.look_up(parent, name)
    }

    fn forget(&self, _: &Context, inode: u64, count: u64) {
        self.inodes.forget(&[(inode, count)]);
    }

    fn batch_forget(&self, _: &Context, requests: Vec<(u64, u64)>) {
        self.inodes.forget(&requests);
    }

    fn getattr(&self, _: &Context, inode: u64, _: Option<u64>) -> io::Result<(stat64, Duration)> {
        self.get_attributes(inode)
    }

    fn setattr(
        &self,
        _: &Context,
        inode: u64,
        attr: stat64,
        handle: Option<u64>,
        valid: SetattrValid,
    ) -> io::Result<(stat64, Duration)> {
        self.set_attributes(inode, &attr, handle, valid)
    }

    fn readlink(&self, _: &Context, inode: u64) -> io::Result<Vec<u8>> {
        self.read_symlink(inode)
    }

    fn symlink(
        &self,
        caller: &Context,
        target: &CStr,
        parent: u64,
        name: &CStr,
    ) -> io::Result<Entry> {
        self.make_symlink(caller, parent, name, target)
    }

    fn mknod(
        &self,
        caller: &Context,
        parent: u64,
        name: &CStr,
        mode: u32,
        rdev: u32,
        umask: u32,
    ) -> io::Result<Entry> {
        self.make_node(caller, parent, name, (mode, rdev), umask)
    }

    fn mkdir(
        &self,
        caller: &Context,
        parent: u64,
        name: &CStr,
        mode: u32,
        umask: u32,
    ) -> io::Result<Entry> {
        self.make_directory(caller, parent, name, mode, umask)
    }

    fn unlink(&self, _: &Context, parent: u64, name: &CStr) -> io::Result<()> {
        self.remove(parent, name, AtFlags::empty())
    }

    fn rmdir(&self, _: &Context, parent: u64, name: &CStr) -> io::Result<()> {
        self.remove(parent, name, AtFlags::REMOVEDIR)
    }

    fn rename(
        &self,
        _: &Context,
        from: u64,
        name: &CStr,
        to: u64,
        new_name: &CStr,
        flags: u32,
    ) -> io::Result<()> {
        self.move_entry((from, name), (to, new_name), flags)
    }

    fn link(&self, _: &Context, inode: u64, parent: u64, name: &CStr) -> io::Result<Entry> {
        self.make_link(inode, parent, name)
    }

    fn open(&self, _: &Context, inode: u64, flags: u32, fuse_flags: u32) -> io::Result<Opened> {
        let (handle, options) = self.open_file(inode, flags, fuse_flags)?;
        Ok((Some(handle), options, None))
    }

    fn create(
        &self,
        caller: &Context,
        parent: u64,
        name: &CStr,
        args: CreateIn,
    ) -> io::Result<(Entry, Option<u64>, OpenOptions, Option<u32>)> {
        let (entry, handle) = self.create_file(caller, parent, name, &args)?;
        Ok((entry, Some(handle), OpenOptions::empty(), None))
    }

    fn read(
        &self,
        _: &Context,
        inode: u64,
        handle: u64,
        to: &mut dyn ZeroCopyWriter,
        size: u32,
        offset: u64,
        _: Option<u64>,
        _: u32,
    ) -> io::Result<usize> {
        self.read_file((inode, handle), to, size, offset)
    }

    fn write(
        &self,
        _: &Context,
        inode: u64,
        handle: u64,
        from: &mut dyn ZeroCopyReader,
        size: u32,
        offset: u64,
        _: Option<u64>,
        _: bool,
        flags: u32,
        fuse_flags: u32,
    ) -> io::Result<usize> {
        self.write_file((inode, handle), from, (size, offset), flags, fuse_flags)
    }

    fn release(
        &self,
        _: &Context,
        inode: u64,
        _: u32,
        handle: u64,
        _: bool,
        _: bool,
        _: Option<u64>,
    ) -> io::Result<()> {
        self.handles.remove(handle, inode)
    }

    fn fsync(&self, _: &Context, inode: u64, data_only: bool, handle: u64) -> io::Result<()> {
        self.sync_file((inode, handle), data_only)
    }

    fn fallocate(
        &self,
        caller: &Context,
        inode: u64,
        handle: u64,
        mode: u32,
        offset: u64,
        length: u64,
    ) -> io::Result<()> {
        self.allocate(caller, (inode, handle), mode, (offset, length))
    }

    fn lseek(
        &self,
        _: &Context,
        inode: u64,
        handle: u64,
        offset: u64,
        whence: u32,
    ) -> io::Result<u64> {
        self.seek_file((inode, handle), offset, whence)
    }

    fn statfs(&self, _: &Context, inode: u64) -> io::Result<statvfs64> {
        self.statistics(inode)
    }

    fn setxattr(
        &self,
        _: &Context,
        inode: u64,
        name: &CStr,
        value: &[u8],
        flags: u32,
    ) -> io::Result<()> {
        self.set_xattr(inode, name, value, flags)
    }

    fn getxattr(
        &self,
        _: &Context,
        inode: u64,
        name: &CStr,
        size: u32,
    ) -> io::Result<GetxattrReply> {
        self.get_xattr(inode, name, size)
    }

    fn listxattr(&self, _: &Context, inode: u64, size: u32) -> io::Result<ListxattrReply> {
        self.list_xattr(inode, size)
    }

    fn removexattr(&self, _: &Context, inode: u64, name: &CStr) -> io::Result<()> {
        self.remove_xattr(inode, name)
    }

    fn opendir(&self, _: &Context, inode: u64, _: u32) -> io::Result<(Option<u64>, OpenOptions)> {
        Ok((Some(self.open_directory(inode)?), OpenOptions::empty()))
    }

    fn readdir(
        &self,
        _: &Context,
        inode: u64,
        handle: u64,
        _: u32,
        offset: u64,
        add: &mut dyn FnMut(DirEntry<'_>) -> io::Result<usize>,
    ) -> io::Result<()> {
        self.read_entries((inode, handle), offset, add)
    }

    fn readdirplus(
        &self,
        _: &Context,
        inode: u64,
        handle: u64,
        _: u32,
        offset: u64,
        add: &mut dyn FnMut(DirEntry<'_>, Entry) -> io::Result<usize>,
    ) -> io::Result<()> {
        self.read_entries_plus((inode, handle), offset, add)
    }

    fn fsyncdir(&self, _: &Context, inode: u64, data_only: bool, handle: u64) -> io::Result<()> {
        self.sync_file((inode, handle), data_only)
    }

    fn releasedir(&self, _: &Context, inode: u64, _: u32, handle: u64) -> io::Result<()> {
        self.handles.remove(handle, inode)
    }
}
