//! Shows how an image is unpacked, on a terminal, and ends it when the user asks to.
//!
//! Called by the command line. A signal is taken by a thread of its own, so that the unpacker can
//! stop between two files and remove what it has made.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use nix::sys::signal::{SigSet, Signal};
use rootfs_builder::Observer;

const STYLE: &str = "{prefix:>12} {msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec}";
/// How much of a digest is shown, with its algorithm.
const NAME_CHARACTERS: usize = 19;
/// The signals that end the work.
const SIGNALS: [Signal; 3] = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM];

/// The observer of the command line.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
    cancelled: Arc<AtomicBool>,
}

impl Progress {
    /// Takes over the signals that would end the process. Must be called before there are threads.
    pub(crate) fn new(quiet: bool) -> anyhow::Result<Self> {
        // On anything but a terminal, the target hides itself.
        let target = if quiet {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr()
        };
        let bar = ProgressBar::with_draw_target(Some(0), target);
        bar.set_style(ProgressStyle::with_template(STYLE).context("progress bar")?);
        let signals: SigSet = SIGNALS.into_iter().collect();
        signals
            .thread_block()
            .context("signals cannot be blocked")?;
        let cancelled = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&cancelled);
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                if signals.wait().is_ok() {
                    seen.store(true, Ordering::Relaxed);
                }
            })
            .context("no thread for signals")?;
        Ok(Self { bar, cancelled })
    }
}

impl Observer for Progress {
    fn layer(&self, number: usize, count: usize, name: &str, bytes: u64) {
        self.bar.set_prefix(format!("layer {number}/{count}"));
        self.bar
            .set_message(name.chars().take(NAME_CHARACTERS).collect::<String>());
        self.bar.set_length(bytes);
        self.bar.set_position(0);
    }

    fn advance(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    fn warning(&self, text: &str) {
        self.bar
            .suspend(|| eprintln!("rootfs-builder: warning: {text}"));
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
