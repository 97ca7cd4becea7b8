//! The command line: verbs and options as runc has them. Called by the library's entry; says what
//! was asked for, does nothing of it.

use std::{ffi::OsString, path::PathBuf};

use clap::{
    Args, Command, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum,
};

use crate::{bundle, log, state};

mod checkpoint;
mod help;
mod limits;
mod values;

pub(crate) use checkpoint::{Checkpoint, Restore};
pub(crate) use limits::{Events, Update};

/// The sections of runc's help, filled by clap.
const TEMPLATE: &str = "\
NAME:
   {name} - {about}

USAGE:
   {usage}

{all-args}{after-help}
";

/// `lazaret`, parsed.
#[derive(Debug, Parser)]
#[command(
    name = "lazaret",
    about = "An OCI container runtime that puts every container in its own virtual machine",
    disable_version_flag = true,
    disable_help_subcommand = true,
    arg_required_else_help = true,
    args_override_self = true,
    max_term_width = 100,
    help_template = TEMPLATE,
    subcommand_help_heading = "COMMANDS",
    next_help_heading = "GLOBAL OPTIONS",
    after_help = help::LAZARET
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) verb: Option<Verb>,
}

impl Cli {
    /// Reads a command line, the program's name included.
    ///
    /// # Errors
    /// Help that was asked for, or what is wrong.
    pub(crate) fn read(arguments: impl Iterator<Item = OsString>) -> Result<Self, clap::Error> {
        let matches = described().try_get_matches_from(arguments)?;
        Self::from_arg_matches(&matches).map_err(|error| error.format(&mut described()))
    }
}

/// The command line, with a help like runc's for each verb as well.
pub(crate) fn described() -> Command {
    Cli::command().mut_subcommands(|verb| {
        let name = format!("lazaret {}", verb.get_name());
        verb.help_template(TEMPLATE).display_name(name)
    })
}

/// Options before the verb.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// Log debug messages as well
    #[arg(long)]
    pub(crate) debug: bool,
    /// File that the log is appended to, instead of standard error
    #[arg(long, value_name = "FILE")]
    pub(crate) log: Option<PathBuf>,
    /// Format of the log: text or json
    #[arg(long, value_name = "FORMAT", default_value = "text", value_parser = log_format)]
    pub(crate) log_format: log::Format,
    /// Directory for the state of containers; should be on a tmpfs
    #[arg(long, value_name = "DIR", default_value = state::DEFAULT_ROOT)]
    pub(crate) root: PathBuf,
    /// Configuration file, instead of /etc/lazaret/config.toml
    #[arg(long, value_name = "FILE", env = "LAZARET_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// Make cgroups through systemd; cgroupsPath is then "slice:prefix:name"
    #[arg(long)]
    pub(crate) systemd_cgroup: bool,
    /// As crun has it: cgroupfs, or systemd, which is --systemd-cgroup
    #[arg(long, value_name = "MANAGER", value_enum, hide = true)]
    pub(crate) cgroup_manager: Option<CgroupDriver>,
    /// Whether to run without root's rights: only false and auto, lazaret needs them
    #[arg(long, value_name = "VALUE", default_value = "auto")]
    pub(crate) rootless: String,
    /// Ignored: there are no checkpoints
    #[arg(long, value_name = "FILE", hide = true)]
    criu: Option<PathBuf>,
    /// Print the version
    #[arg(long, short = 'v')]
    pub(crate) version: bool,
}

/// Who makes control groups, by crun's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CgroupDriver {
    /// The runtime itself.
    Cgroupfs,
    /// The machine's systemd.
    Systemd,
}

fn log_format(name: &str) -> Result<log::Format, String> {
    match name {
        "text" => Ok(log::Format::Text),
        "json" => Ok(log::Format::Json),
        _ => Err("must be text or json".to_owned()),
    }
}

/// What to do. The options of a verb are put together only if it is the one that is called; doc
/// comments of their structs would then become the verb's help, so these have plain ones.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub(crate) enum Verb {
    /// Checkpoint a running container (not supported yet)
    #[command(after_help = help::CHECKPOINT)]
    Checkpoint(Box<Checkpoint>),
    /// Create a container
    #[command(after_help = help::CREATE)]
    Create(Create),
    /// Delete any resources held by the container
    #[command(after_help = help::DELETE)]
    Delete(Delete),
    /// Display container events such as OOM notifications, cpu, memory, and IO usage statistics
    #[command(after_help = help::EVENTS)]
    Events(Events),
    /// Execute a new process inside the container
    #[command(after_help = help::EXEC)]
    Exec(Box<Exec>),
    /// Send a signal (default: SIGTERM) to the container's init process
    #[command(after_help = help::KILL)]
    Kill(Kill),
    /// List containers started with the given root
    #[command(after_help = help::LIST)]
    List(List),
    /// Suspend all processes inside the container
    #[command(after_help = help::PAUSE)]
    Pause(Container),
    /// Display the processes running inside a container
    #[command(after_help = help::PS)]
    Ps(Ps),
    /// Restore a container from a previous checkpoint (not supported yet)
    #[command(after_help = help::RESTORE)]
    Restore(Box<Restore>),
    /// Resume all processes that have been paused
    #[command(after_help = help::RESUME)]
    Resume(Container),
    /// Create and run a container
    #[command(after_help = help::RUN)]
    Run(Run),
    /// Create a new specification file
    #[command(after_help = help::SPEC)]
    Spec(Spec),
    /// Execute the user-defined process in a created container
    #[command(after_help = help::START)]
    Start(Container),
    /// Output the state of a container
    #[command(after_help = help::STATE)]
    State(Container),
    /// Update container resource constraints
    #[command(after_help = help::UPDATE)]
    Update(Box<Update>),
    /// Show the enabled features
    #[command(after_help = help::FEATURES)]
    Features,
    /// Say what this machine lacks to run containers
    #[command(after_help = help::CHECK)]
    Check(Check),
    /// Print the version
    #[command(after_help = help::VERSION)]
    Version,
}

// A verb about one container.
#[derive(Debug, Args)]
pub(crate) struct Container {
    /// Name of the container
    pub(crate) container_id: String,
}

// Options of `create`, and of `run`.
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Name for the container, unique on this host
    pub(crate) container_id: String,
    /// Path of the bundle
    #[arg(long, short, value_name = "DIR", default_value = ".")]
    pub(crate) bundle: PathBuf,
    /// The specification's file, instead of the bundle's, as crun has it
    #[arg(long, short = 'f', value_name = "FILE", hide = true, default_value = bundle::CONFIG)]
    pub(crate) config: PathBuf,
    /// Unix socket that receives the master end of the console's pseudoterminal
    #[arg(long, value_name = "SOCKET")]
    pub(crate) console_socket: Option<PathBuf>,
    /// File to write the process id to
    #[arg(long, value_name = "FILE")]
    pub(crate) pid_file: Option<PathBuf>,
    /// Unix socket that receives a descriptor of the process that stands for the container
    #[arg(long, value_name = "SOCKET")]
    pub(crate) pidfd_socket: Option<PathBuf>,
    /// Number of additional descriptors to pass, from 3 on: pipes, connected stream sockets, files
    /// opened for reading or for writing, /dev/null
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) preserve_fds: u32,
    /// Accepted: a guest's root file system is never on the ramdisk that this option is about
    #[arg(long)]
    no_pivot: bool,
    /// Accepted: no keyring of the host is in reach of a guest
    #[arg(long)]
    no_new_keyring: bool,
}

// Options of `run`.
#[derive(Debug, Args)]
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) create: Create,
    /// Detach from the container's process
    #[arg(long, short)]
    pub(crate) detach: bool,
    /// Do not delete the container after it exits
    #[arg(long)]
    pub(crate) keep: bool,
    /// Accepted: processes of the container are reaped in the guest
    #[arg(long)]
    no_subreaper: bool,
}

// Options of `kill`.
#[derive(Debug, Args)]
pub(crate) struct Kill {
    /// Name of the container
    pub(crate) container_id: String,
    /// Signal by name or number
    #[arg(default_value = "SIGTERM")]
    pub(crate) signal: String,
    /// Send the signal to all processes inside the container
    #[arg(long, short)]
    pub(crate) all: bool,
}

// Options of `delete`.
#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// Name of the container
    pub(crate) container_id: String,
    /// Kill the container if it still runs (SIGKILL)
    #[arg(long, short)]
    pub(crate) force: bool,
}

// Options of `exec`.
#[derive(Debug, Args)]
pub(crate) struct Exec {
    /// Name of the container
    pub(crate) container_id: String,
    /// Command and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<String>,
    /// Unix socket that receives the master end of the console's pseudoterminal
    #[arg(long, value_name = "SOCKET")]
    pub(crate) console_socket: Option<PathBuf>,
    /// Current working directory in the container
    #[arg(long, value_name = "DIR")]
    pub(crate) cwd: Option<PathBuf>,
    /// Set an environment variable
    #[arg(long, short, value_name = "NAME=VALUE")]
    pub(crate) env: Vec<String>,
    /// Allocate a pseudoterminal
    #[arg(long, short)]
    pub(crate) tty: bool,
    /// User and group
    #[arg(long, short, value_name = "UID[:GID]")]
    pub(crate) user: Option<String>,
    /// Additional group
    #[arg(long, short = 'g', value_name = "GID")]
    pub(crate) additional_gids: Vec<u32>,
    /// File with the process as JSON
    #[arg(long, short, value_name = "FILE")]
    pub(crate) process: Option<PathBuf>,
    /// Detach from the process
    #[arg(long, short)]
    pub(crate) detach: bool,
    /// File to write the process id to
    #[arg(long, value_name = "FILE")]
    pub(crate) pid_file: Option<PathBuf>,
    /// Unix socket that receives a descriptor of the process that stands for the new one
    #[arg(long, value_name = "SOCKET")]
    pub(crate) pidfd_socket: Option<PathBuf>,
    /// SELinux label; warned of, the guest kernel has none
    #[arg(long, value_name = "LABEL")]
    pub(crate) process_label: Option<String>,
    /// AppArmor profile; warned of, the guest kernel has none
    #[arg(long, value_name = "PROFILE")]
    pub(crate) apparmor: Option<String>,
    /// Never let the process gain privileges
    #[arg(long)]
    pub(crate) no_new_privs: bool,
    /// Add a capability
    #[arg(long, short, value_name = "CAP")]
    pub(crate) cap: Vec<String>,
    /// Number of additional descriptors to pass, from 3 on: pipes, connected stream sockets, files
    /// opened for reading or for writing, /dev/null
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) preserve_fds: u32,
    /// Existing cgroup below the container's to run in
    #[arg(long, value_name = "PATH")]
    pub(crate) cgroup: Vec<String>,
    /// Allow exec in a paused container; the process goes on when the container does
    #[arg(long)]
    pub(crate) ignore_paused: bool,
}

// Options of `list`.
#[derive(Debug, Args)]
pub(crate) struct List {
    /// table or json
    #[arg(long, short, default_value = "table")]
    pub(crate) format: String,
    /// Display only container IDs
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

// Options of `spec`.
#[derive(Debug, Args)]
pub(crate) struct Spec {
    /// Path of the bundle
    #[arg(long, short, value_name = "DIR")]
    pub(crate) bundle: Option<PathBuf>,
    /// Write a specification for a user who is not root
    #[arg(long)]
    pub(crate) rootless: bool,
}

// Options of `ps`.
#[derive(Debug, Args)]
pub(crate) struct Ps {
    /// Name of the container
    pub(crate) container_id: String,
    /// table or json
    #[arg(long, short, default_value = "table")]
    pub(crate) format: String,
    /// Options of ps (default: -ef)
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) ps_options: Vec<String>,
}

// Options of `check`.
#[derive(Debug, Args)]
pub(crate) struct Check {
    /// table or json
    #[arg(long, short, default_value = "table")]
    pub(crate) format: String,
}

#[cfg(test)]
mod tests;
