//! One kernel's build, with a progress bar.
//!
//! The object folder survives an interruption, so that the next build goes on where this one
//! stopped, and is removed after success.

use std::collections::VecDeque;
use std::fs;
use std::io::{BufRead, BufReader, IsTerminal};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

use super::config;
use super::patches::Patch;
use super::source::Source;
use crate::{cache, process};

/// Lines of make's output that an error shows.
const LINES_SHOWN: usize = 30;

/// How often progress is told where there is no terminal for a bar.
const TELL_INTERVAL: Duration = Duration::from_secs(60);

/// A kernel to build.
pub(super) struct Build<'a> {
    /// Its name, for messages.
    pub name: &'a str,
    /// Its cache key.
    pub key: &'a str,
    /// About how many steps make will report.
    pub steps: u64,
    /// The options to set.
    pub fragments: &'a str,
    /// The sources.
    pub source: &'a Source,
    /// What is changed in them.
    pub patches: &'a [Patch],
}

impl Build<'_> {
    /// Builds; `vmlinux` (stripped), `System.map` and `config` go to `product`.
    ///
    /// # Errors
    /// If an option cannot be set, or compiling fails.
    pub(super) fn run(&self, product: &Path) -> Result<()> {
        let tree = self.source.unpacked(self.patches)?;
        let objects = cache::root()?
            .join("kernel-objects")
            .join(format!("{}-{}", self.name, self.key));
        fs::create_dir_all(&objects).with_context(|| format!("creating {}", objects.display()))?;
        let requested = objects.join("requested.config");
        fs::write(&requested, self.fragments)?;
        process::output(
            make(&tree, &objects)
                .arg("allnoconfig")
                .env("KCONFIG_ALLCONFIG", &requested),
        )?;
        config::check(
            self.fragments,
            &fs::read_to_string(objects.join(".config"))?,
        )?;
        self.compile(&mut make(&tree, &objects))?;
        process::output(
            Command::new("strip")
                .arg("--strip-all")
                .arg("-o")
                .arg(product.join("vmlinux"))
                .arg(objects.join("vmlinux")),
        )?;
        fs::copy(objects.join("System.map"), product.join("System.map"))?;
        fs::copy(objects.join(".config"), product.join("config"))?;
        cache::remove(&objects)
    }

    /// Runs make and shows how far it is.
    fn compile(&self, make: &mut Command) -> Result<()> {
        let jobs = std::thread::available_parallelism()?;
        let (reader, writer) = std::io::pipe()?;
        let mut child = make
            .arg(format!("--jobs={jobs}"))
            .arg("vmlinux")
            .stdin(Stdio::null())
            .stdout(writer.try_clone()?)
            .stderr(writer)
            .spawn()
            .context("starting make")?;
        // The command holds the pipe's writing end; make's is the one that counts.
        make.stdout(Stdio::null()).stderr(Stdio::null());

        let mut progress = Progress::new(self.name, self.steps);
        let mut last_lines = VecDeque::new();
        for line in BufReader::new(reader).lines() {
            let line = line.context("reading make's output")?;
            progress.step();
            if last_lines.len() == LINES_SHOWN {
                last_lines.pop_front();
            }
            last_lines.push_back(line);
        }
        let status = child.wait().context("waiting for make")?;
        if !status.success() {
            let lines: Vec<String> = last_lines.into();
            bail!("make: {status}; its last lines:\n  {}", lines.join("\n  "));
        }
        progress.finish();
        Ok(())
    }
}

/// `make` for a tree with its objects elsewhere, with nothing in the result that changes from
/// build to build.
fn make(tree: &Path, objects: &Path) -> Command {
    let mut output = std::ffi::OsString::from("O=");
    output.push(objects);
    let mut command = Command::new("make");
    command
        .arg("-C")
        .arg(tree)
        .arg(output)
        .env("KBUILD_BUILD_TIMESTAMP", "1970-01-01")
        .env("KBUILD_BUILD_USER", "lazaret")
        .env("KBUILD_BUILD_HOST", "lazaret")
        .env_remove("MAKEFLAGS");
    command
}

/// A bar on a terminal, a line a minute elsewhere.
struct Progress<'a> {
    name: &'a str,
    bar: Option<ProgressBar>,
    steps: u64,
    done: u64,
    started: Instant,
    told: Instant,
}

impl<'a> Progress<'a> {
    fn new(name: &'a str, steps: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template(
                "building the {msg} kernel {bar:40} {percent}% {elapsed} (about {eta} left)",
            )
            .expect("the template is a constant that is right");
            ProgressBar::new(steps)
                .with_style(style)
                .with_message(name.to_owned())
        });
        if bar.is_none() {
            eprintln!("building the {name} kernel: minutes");
        }
        let now = Instant::now();
        Self {
            name,
            bar,
            steps,
            done: 0,
            started: now,
            told: now,
        }
    }

    fn step(&mut self) {
        // The number of steps is an estimate: the last ones wait at the end of the bar.
        self.done = (self.done + 1).min(self.steps);
        if let Some(bar) = &self.bar {
            bar.set_position(self.done);
        } else if self.told.elapsed() >= TELL_INTERVAL {
            self.told = Instant::now();
            eprintln!(
                "building the {} kernel: {}%",
                self.name,
                self.done * 100 / self.steps
            );
        }
    }

    fn finish(self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let seconds = self.started.elapsed().as_secs();
        eprintln!("built the {} kernel in {seconds} s", self.name);
    }
}
