//! Messages of FUSE that `fuse-backend-rs` does not decode: `COPY_FILE_RANGE` (copies and shares
//! extents without a way through the guest) and `TMPFILE` (`O_TMPFILE` of open(2)).

use std::{
    ffi::CStr,
    io::{self, Read},
};

use fuse_backend_rs::{
    abi::fuse_abi::{CopyFileRangeIn, CreateIn, EntryOut, InHeader, OpenOut, WriteOut},
    api::filesystem::Context,
    transport::Reader,
};
use rustix::fs::{OFlags, copy_file_range};
use vm_memory::{ByteValued, bitmap::BitmapSlice};

use super::{Share, errno};

/// `FUSE_COPY_FILE_RANGE`.
pub(super) const COPY_FILE_RANGE: u32 = 47;
/// `FUSE_TMPFILE`.
pub(super) const TMPFILE: u32 = 51;

/// Most bytes one request copies: a worker must be able to stop soon. The caller sees a short
/// copy and goes on.
const COPY_MAX_BYTES: usize = 16 << 20;
/// Longest name a `TMPFILE` message carries (it is not used), with its end.
const NAME_MAX_BYTES: usize = 256;
/// Bytes of the longest answer.
const ANSWER_BYTES: usize = size_of::<EntryOut>() + size_of::<OpenOut>();

/// What follows the header of an answer.
pub(super) struct Answer {
    buffer: [u8; ANSWER_BYTES],
    bytes: usize,
}

impl Answer {
    fn new(parts: &[&[u8]]) -> Self {
        let mut answer = Self {
            buffer: [0; ANSWER_BYTES],
            bytes: 0,
        };
        for part in parts {
            answer.buffer[answer.bytes..answer.bytes + part.len()].copy_from_slice(part);
            answer.bytes += part.len();
        }
        answer
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        &self.buffer[..self.bytes]
    }
}

impl Share {
    /// Does what the message asks if it is one of these; `reader` is behind the header.
    pub(super) fn extra<S: BitmapSlice>(
        &self,
        header: &InHeader,
        reader: &mut Reader<'_, S>,
    ) -> Option<io::Result<Answer>> {
        match header.opcode {
            COPY_FILE_RANGE => Some(self.copy_range(header, reader)),
            TMPFILE => Some(self.create_unnamed(header, reader)),
            _ => None,
        }
    }

    fn copy_range<S: BitmapSlice>(
        &self,
        header: &InHeader,
        reader: &mut Reader<'_, S>,
    ) -> io::Result<Answer> {
        let copy: CopyFileRangeIn = reader.read_obj()?;
        if copy.flags != 0 {
            return Err(errno(libc::EINVAL));
        }
        let from = self.handles.get(copy.fh_in, header.nodeid)?;
        let to = self.handles.get(copy.fh_out, copy.nodeid_out)?;
        let _ordinary = self.without_fsetid_if(header.uid != 0, &to)?;
        let (mut offset_in, mut offset_out) = (copy.offset_in, copy.offset_out);
        let wanted = usize::try_from(copy.len).unwrap_or(usize::MAX);
        let copied = copy_file_range(
            &*from,
            Some(&mut offset_in),
            &*to,
            Some(&mut offset_out),
            wanted.min(COPY_MAX_BYTES),
        )?;
        let answer = WriteOut {
            // At most COPY_MAX_BYTES.
            size: u32::try_from(copied).unwrap_or(u32::MAX),
            ..WriteOut::default()
        };
        Ok(Answer::new(&[answer.as_slice()]))
    }

    fn create_unnamed<S: BitmapSlice>(
        &self,
        header: &InHeader,
        reader: &mut Reader<'_, S>,
    ) -> io::Result<Answer> {
        let args: CreateIn = reader.read_obj()?;
        let mut name = [0; NAME_MAX_BYTES];
        let bytes = reader.read(&mut name)?;
        if CStr::from_bytes_until_nul(&name[..bytes]).is_err() {
            return Err(errno(libc::EINVAL));
        }
        let parent = self.inodes.get(header.nodeid)?;
        let caller = Context::from(header);
        let exclusive = OFlags::from_bits_retain(args.flags) & OFlags::EXCL;
        let how = OFlags::TMPFILE | exclusive;
        let (entry, handle) = self.create_in(&caller, &parent, c".", how, &args)?;
        let open = OpenOut {
            fh: handle,
            ..OpenOut::default()
        };
        Ok(Answer::new(&[
            EntryOut::from(entry).as_slice(),
            open.as_slice(),
        ]))
    }
}
