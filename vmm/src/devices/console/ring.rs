//! The newest output, bounded.

use std::collections::VecDeque;

/// Keeps the last bytes written to it. Its memory grows with what is written, up to its bound.
#[derive(Debug)]
pub(super) struct Ring {
    bytes: VecDeque<u8>,
    bound: usize,
}

impl Ring {
    pub(super) fn new(bound: usize) -> Self {
        Self {
            bytes: VecDeque::new(),
            bound,
        }
    }

    pub(super) fn write(&mut self, output: &[u8]) {
        let newest = &output[output.len().saturating_sub(self.bound)..];
        let surplus = (self.bytes.len() + newest.len()).saturating_sub(self.bound);
        self.bytes.drain(..surplus);
        self.bytes.extend(newest);
    }

    /// Oldest byte first.
    pub(super) fn content(&self) -> Vec<u8> {
        self.bytes.iter().copied().collect()
    }
}
