//! The uncompressed bytes of a layer: bounded, and hashed for the layer's diff_id.
//!
//! Called by `layers`. The compression is told from the first bytes, as every image tool does:
//! media types are wrong in practice, magic numbers are not.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;

use super::blob::Hasher;

/// How much compressed data is read at once.
const INPUT_BYTES: usize = 128 << 10;
/// The largest window a zstd layer may ask memory for (2^27 bytes, zstd's own default).
const MAX_WINDOW_LOG: u32 = 27;

/// Why a layer cannot be decompressed.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The compression is none that images use today.
    #[error("{0} compression is not supported (gzip, zstd and none are)")]
    Compression(&'static str),
    /// The layers are larger than they may be.
    #[error("layers are larger than the limit of {0} bytes when uncompressed")]
    TooLarge(u64),
    /// The first bytes cannot be read, or the decompressor not be set up.
    #[error("layer cannot be read")]
    Read(#[source] io::Error),
}

/// The uncompressed bytes of a layer.
pub(super) struct Decoded<'b> {
    decoder: Box<dyn Read + 'b>,
    hasher: Hasher,
    /// How much all layers together may still unpack to, and might in the beginning.
    left: &'b mut u64,
    limit: u64,
}

impl<'b> Decoded<'b> {
    /// Returns what `compressed` unpacks to. `left` of the `limit` of all layers is used up by it.
    pub(super) fn new(
        compressed: &'b mut dyn Read,
        hasher: Hasher,
        left: &'b mut u64,
        limit: u64,
    ) -> Result<Self, DecodeError> {
        let mut input = BufReader::with_capacity(INPUT_BYTES, compressed);
        let decoder: Box<dyn Read + 'b> = match input.fill_buf().map_err(DecodeError::Read)? {
            [0x1f, 0x8b, ..] => Box::new(MultiGzDecoder::new(input)),
            // A zstd frame, or a skippable one before it (`zstd:chunked`, `pzstd`).
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
                let mut decoder = zstd::Decoder::with_buffer(input).map_err(DecodeError::Read)?;
                decoder
                    .window_log_max(MAX_WINDOW_LOG)
                    .map_err(DecodeError::Read)?;
                Box::new(decoder)
            }
            [b'B', b'Z', b'h', ..] => return Err(DecodeError::Compression("bzip2")),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => return Err(DecodeError::Compression("xz")),
            _ => Box::new(input),
        };
        Ok(Self {
            decoder,
            hasher,
            left,
            limit,
        })
    }

    /// Reads what is left, and returns the hasher of the whole.
    pub(super) fn finish(mut self) -> io::Result<Hasher> {
        io::copy(&mut self, &mut io::sink())?;
        Ok(self.hasher)
    }
}

impl Read for Decoded<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.decoder.read(buffer)?;
        match self.left.checked_sub(count as u64) {
            Some(left) => *self.left = left,
            None => return Err(io::Error::other(DecodeError::TooLarge(self.limit))),
        }
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}
