//! Container engines drive the runtime: Debian's own Podman and Docker, as an operator has them.
//!
//! Their command lines are nearly one, and so are most cases: [`basics`], [`life`] and [`options`]
//! hold what either must do, [`podman`] and [`docker`] what only one has and how it is started,
//! [`images`] the programs that people have in containers.

use anyhow::{Result, ensure};

use crate::{
    case::{Case, Test},
    invocation::{Invocation, Output},
    room::{ASSETS, Room},
    runtime::Kind,
};

mod basics;
pub(super) mod docker;
pub(super) mod images;
mod life;
mod options;
pub(super) mod podman;

/// A case with an engine: it needs the userland, and takes its time.
const fn engine(case: Case) -> Case {
    case.userland().timeout_s(300).only(
        &[Kind::Runc, Kind::Lazaret],
        "runc is proof enough, and engines take long",
    )
}

/// An engine's topic: what either must do, each case in a room with the engine, which `$with` makes,
/// and the function `own_options`.
macro_rules! topic {
    ($name:literal, $with:ident) => {
        $crate::cases::engines::topic! {
            $name, $with:
            basics::streams_and_exit_codes, basics::terminals,
            life::service, life::signals_and_attach, life::copies,
            options::process, options::files, options::privileged
        }
    };
    ($name:literal, $with:ident: $($file:ident::$case:ident),*) => {
        pub(crate) const TOPIC: $crate::case::Topic = $crate::case::Topic {
            name: $name,
            cases: &[
                $(super::engine($crate::case::case!($case)),)*
                super::engine($crate::case::case!(own_options)),
            ],
            probes: &[],
        };

        $(fn $case(test: &Test) -> Result<()> {
            $with(test, super::$file::$case)
        })*
    };
}
use topic;

/// A container that says `started`, and on SIGTERM `bye`, and then exits with 3.
const SERVICE: &str = "trap 'echo bye; exit 3' TERM; echo started; sleep 1000 & wait";

/// Name of the container in cases that have one.
const NAME: &str = "box";

/// An engine in a room of its own, with the image `busybox`.
struct Engine<'a> {
    test: &'a Test,
    room: &'a Room,
    program: &'static str,
}

impl<'a> Engine<'a> {
    /// The engine with that command line, which must work in the room.
    fn new(test: &'a Test, room: &'a Room, program: &'static str) -> Result<Self> {
        let engine = Self {
            test,
            room,
            program,
        };
        let archive = format!("{ASSETS}/busybox.tar");
        engine.call(&["load", "-q", "-i", &archive]).succeed()?;
        Ok(engine)
    }

    /// Any command of the engine.
    fn call(&self, words: &[&str]) -> Invocation {
        self.room.command(&[&[self.program], words].concat())
    }

    /// `run` with options, and the command in a container.
    fn run(&self, options: &[&str], command: &[&str]) -> Invocation {
        let parent = self.room.cgroup_parent();
        let common = ["run", "--network=none", "--cgroup-parent", &parent];
        self.call(&[&common, options, &["busybox"], command].concat())
    }

    /// What `run --rm` of a shell script prints.
    fn script(&self, options: &[&str], script: &str) -> Result<String> {
        let options = [&["--rm"], options].concat();
        let output = self.run(&options, &["sh", "-c", script]).succeed()?;
        Ok(output.stdout)
    }

    /// A running container named [`NAME`] with a shell script.
    fn launch(&self, options: &[&str], script: &str) -> Result<()> {
        let name = format!("--name={NAME}");
        let options = [&["--detach", &name], options].concat();
        self.run(&options, &["sh", "-c", script]).succeed()?;
        Ok(())
    }

    /// `exec` of a command in that container.
    fn exec(&self, command: &[&str]) -> Result<Output> {
        self.call(&[&["exec", NAME], command].concat()).succeed()
    }

    /// A field of what `inspect` shows of that container.
    fn inspect(&self, field: &str) -> Result<String> {
        let format = format!("--format={{{{{field}}}}}");
        let output = self.call(&["inspect", &format, NAME]).succeed()?;
        Ok(output.stdout.trim_end().to_owned())
    }

    /// Demands that `inspect` shows this value.
    fn shows(&self, field: &str, expected: &str) -> Result<()> {
        let value = self.inspect(field)?;
        ensure!(value == expected, "{field} is {value:?}, not {expected:?}");
        Ok(())
    }

    /// Removes the container by force.
    fn remove(&self) -> Result<()> {
        self.call(&["rm", "--force", NAME]).succeed()?;
        Ok(())
    }

    /// Demands that the engine knows no container any more.
    fn has_no_containers(&self) -> Result<()> {
        let listed = self.call(&["ps", "--all", "--quiet"]).succeed()?;
        is(&listed.stdout, "")
    }
}

/// Demands that a text has a part.
fn has(text: &str, part: &str) -> Result<()> {
    ensure!(text.contains(part), "no {part:?} in {text:?}");
    Ok(())
}

/// Demands that a text is another.
fn is(text: &str, expected: &str) -> Result<()> {
    ensure!(text == expected, "{text:?} instead of {expected:?}");
    Ok(())
}
