//! Frames: how one value travels on a stream.
//!
//! A frame is a 4-byte big-endian payload length followed by the postcard encoding of the value,
//! which is what `tokio_util::codec::LengthDelimitedCodec` speaks by default. The length is
//! checked against [`PAYLOAD_MAX_BYTES`] before anything is allocated.

use std::io::{Read, Write};

use serde::{Serialize, de::DeserializeOwned};

/// Bytes of the length that precedes each payload.
pub const HEADER_BYTES: usize = 4;

/// Largest payload that is sent or accepted: 1 MiB. The largest honest value is a container
/// description with thousands of mounts or environment variables, which stays well below; a
/// hostile peer can make us allocate no more than this per connection.
pub const PAYLOAD_MAX_BYTES: usize = 1 << 20;

/// Why a frame could not be sent or received.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The payload is longer than [`PAYLOAD_MAX_BYTES`].
    #[error("frame of {bytes} bytes exceeds the maximum of {PAYLOAD_MAX_BYTES}")]
    TooLong {
        /// Length of the refused payload.
        bytes: usize,
    },
    /// The payload is not the postcard encoding of the expected type.
    #[error("malformed frame")]
    Malformed(#[source] postcard::Error),
    /// The payload goes on after the value's end.
    #[error("frame has {bytes} bytes after its value")]
    TrailingBytes {
        /// Length of the surplus.
        bytes: usize,
    },
    /// The peer closed the stream before, or in the middle of, a frame.
    #[error("connection closed by the peer")]
    Closed,
    /// The stream failed.
    #[error("stream failed")]
    Io(#[source] std::io::Error),
}

/// Encodes `value` as one frame, header included.
///
/// # Errors
/// [`FrameError::TooLong`] when the payload exceeds [`PAYLOAD_MAX_BYTES`].
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, FrameError> {
    let mut bytes =
        postcard::to_extend(value, vec![0; HEADER_BYTES]).map_err(FrameError::Malformed)?;
    let payload = bytes.len() - HEADER_BYTES;
    if payload > PAYLOAD_MAX_BYTES {
        return Err(FrameError::TooLong { bytes: payload });
    }
    let length = u32::try_from(payload).expect("PAYLOAD_MAX_BYTES fits in 32 bits");
    bytes[..HEADER_BYTES].copy_from_slice(&length.to_be_bytes());
    Ok(bytes)
}

/// Length of the payload that follows `header`.
///
/// # Errors
/// [`FrameError::TooLong`] when the announced length exceeds [`PAYLOAD_MAX_BYTES`].
pub fn payload_bytes(header: [u8; HEADER_BYTES]) -> Result<usize, FrameError> {
    let bytes = u32::from_be_bytes(header) as usize;
    if bytes > PAYLOAD_MAX_BYTES {
        Err(FrameError::TooLong { bytes })
    } else {
        Ok(bytes)
    }
}

/// Decodes the payload of one frame; the value must fill it exactly.
///
/// # Errors
/// [`FrameError::Malformed`] or [`FrameError::TrailingBytes`].
pub fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, FrameError> {
    let (value, rest) = postcard::take_from_bytes(payload).map_err(FrameError::Malformed)?;
    if rest.is_empty() {
        Ok(value)
    } else {
        Err(FrameError::TrailingBytes { bytes: rest.len() })
    }
}

/// Writes one frame in a single `write_all`.
///
/// # Errors
/// [`FrameError::TooLong`] before anything is written, [`FrameError::Io`] when the stream fails.
pub fn write<T: Serialize>(stream: &mut impl Write, value: &T) -> Result<(), FrameError> {
    stream.write_all(&encode(value)?).map_err(FrameError::Io)
}

/// Reads one frame, and not one byte more.
///
/// # Errors
/// [`FrameError::Closed`] when the stream ends first; otherwise as [`payload_bytes`] and [`decode`].
pub fn read<T: DeserializeOwned>(stream: &mut impl Read) -> Result<T, FrameError> {
    decode(&read_payload(stream)?)
}

/// Reads the payload of one frame, and not one byte more.
///
/// # Errors
/// [`FrameError::Closed`] when the stream ends first; otherwise as [`payload_bytes`].
pub fn read_payload(stream: &mut impl Read) -> Result<Vec<u8>, FrameError> {
    let mut header = [0; HEADER_BYTES];
    read_exact(stream, &mut header)?;
    let mut payload = vec![0; payload_bytes(header)?];
    read_exact(stream, &mut payload)?;
    Ok(payload)
}

/// The version that a payload begins with, if it is another one than ours. Such a payload may not
/// decode; [`crate::vm::Launch`] and [`crate::agent::Ready`] have their version first for this.
pub fn other_version(payload: &[u8]) -> Option<u32> {
    postcard::take_from_bytes::<u32>(payload)
        .ok()
        .map(|(version, _)| version)
        .filter(|version| *version != crate::VERSION)
}

fn read_exact(stream: &mut impl Read, buffer: &mut [u8]) -> Result<(), FrameError> {
    stream
        .read_exact(buffer)
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => FrameError::Closed,
            _ => FrameError::Io(error),
        })
}
