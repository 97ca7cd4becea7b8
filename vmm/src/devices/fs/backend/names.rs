//! What looks up, makes, moves and removes directory entries.

use std::{ffi::CStr, io};

use fuse_backend_rs::api::filesystem::{Context, Entry};
use rustix::{
    fs::{
        AtFlags, FileType, Mode, RenameFlags, linkat, mkdirat, mknodat, renameat_with, symlinkat,
        unlinkat,
    },
    path::DecInt,
};

use super::{Share, check_name, errno, identity::Creator};

impl Share {
    pub(super) fn look_up(&self, parent: u64, name: &CStr) -> io::Result<Entry> {
        check_name(name)?;
        self.find(&self.inodes.get(parent)?, name)
    }

    pub(super) fn make_directory(
        &self,
        caller: &Context,
        parent: u64,
        name: &CStr,
        mode: u32,
        umask: u32,
    ) -> io::Result<Entry> {
        check_name(name)?;
        let parent = self.inodes.get(parent)?;
        {
            let _creator = Creator::new(self.proc_fds(), caller.uid, caller.gid, umask)?;
            mkdirat(&parent, name, Mode::from_raw_mode(mode))?;
        }
        self.find(&parent, name)
    }

    /// Makes a file, device, pipe or socket. Device numbers mean devices of the guest; the host
    /// never opens them.
    pub(super) fn make_node(
        &self,
        caller: &Context,
        parent: u64,
        name: &CStr,
        (mode, device): (u32, u32),
        umask: u32,
    ) -> io::Result<Entry> {
        check_name(name)?;
        let file_type = match FileType::from_raw_mode(mode) {
            FileType::Directory | FileType::Symlink | FileType::Unknown => {
                return Err(errno(libc::EINVAL));
            }
            file_type => file_type,
        };
        let parent = self.inodes.get(parent)?;
        {
            let _creator = Creator::new(self.proc_fds(), caller.uid, caller.gid, umask)?;
            let mode = Mode::from_raw_mode(mode);
            mknodat(&parent, name, file_type, mode, u64::from(device))?;
        }
        self.find(&parent, name)
    }

    pub(super) fn make_symlink(
        &self,
        caller: &Context,
        parent: u64,
        name: &CStr,
        target: &CStr,
    ) -> io::Result<Entry> {
        check_name(name)?;
        let parent = self.inodes.get(parent)?;
        {
            let _creator = Creator::new(self.proc_fds(), caller.uid, caller.gid, 0)?;
            symlinkat(target, &parent, name)?;
        }
        self.find(&parent, name)
    }

    pub(super) fn make_link(&self, inode: u64, parent: u64, name: &CStr) -> io::Result<Entry> {
        check_name(name)?;
        let inode = self.inodes.get(inode)?;
        let parent = self.inodes.get(parent)?;
        // By way of /proc, which needs no CAP_DAC_READ_SEARCH as AT_EMPTY_PATH would. What is
        // followed is the entry of /proc; a symbolic link behind it is linked itself.
        linkat(
            &self.proc_fds,
            DecInt::from_fd(&inode),
            &parent,
            name,
            AtFlags::SYMLINK_FOLLOW,
        )?;
        self.find(&parent, name)
    }

    pub(super) fn remove(&self, parent: u64, name: &CStr, flags: AtFlags) -> io::Result<()> {
        check_name(name)?;
        Ok(unlinkat(&self.inodes.get(parent)?, name, flags)?)
    }

    pub(super) fn move_entry(
        &self,
        (from, name): (u64, &CStr),
        (to, new_name): (u64, &CStr),
        flags: u32,
    ) -> io::Result<()> {
        check_name(name)?;
        check_name(new_name)?;
        let from = self.inodes.get(from)?;
        let to = self.inodes.get(to)?;
        let flags = RenameFlags::from_bits_retain(flags);
        Ok(renameat_with(&from, name, &to, new_name, flags)?)
    }
}
