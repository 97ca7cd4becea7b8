//! The command line: verbs and options as runc has them. Called by the library's entry; says what
//! was asked for, does nothing of it.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::{log, state};

/// `lazaret`, parsed.
#[derive(Debug, Parser)]
#[command(
    name = "lazaret",
    about = "An OCI container runtime that puts every container in its own virtual machine",
    disable_version_flag = true,
    disable_help_subcommand = true,
    arg_required_else_help = true,
    args_override_self = true,
    max_term_width = 100
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) verb: Option<Verb>,
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
    /// Only false and auto: lazaret needs root
    #[arg(long, value_name = "VALUE", default_value = "auto")]
    pub(crate) rootless: String,
    /// Not supported: there are no checkpoints
    #[arg(long, value_name = "FILE")]
    pub(crate) criu: Option<PathBuf>,
    /// Print the version
    #[arg(long, short = 'v')]
    pub(crate) version: bool,
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
    /// Create a container
    Create(Create),
    /// Execute the user-defined process in a created container
    Start(Container),
    /// Output the state of a container
    State(Container),
    /// Send a signal (default: SIGTERM) to the container's init process
    Kill(Kill),
    /// Delete any resources held by the container
    Delete(Delete),
    /// Create and run a container
    Run(Run),
    /// Execute a new process inside the container
    Exec(Box<Exec>),
    /// List containers started with the given root
    List(List),
    /// Create a new specification file
    Spec(Spec),
    /// Display the processes running inside a container
    Ps(Ps),
    /// Suspend all processes inside the container
    Pause(Container),
    /// Resume all processes that have been paused
    Resume(Container),
    /// Say what this machine lacks to run containers
    Check(Check),
    /// Print the version
    Version,
    /// Not supported yet: display container events
    Events(Anything),
    /// Not supported yet: update container resource constraints
    Update(Anything),
    /// Not supported yet: show the enabled features
    Features(Anything),
    /// Not supported yet: checkpoint a running container
    Checkpoint(Anything),
    /// Not supported yet: restore a container from a checkpoint
    Restore(Anything),
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
    /// Unix socket that receives the master end of the console's pseudoterminal
    #[arg(long, value_name = "SOCKET")]
    pub(crate) console_socket: Option<PathBuf>,
    /// File to write the process id to
    #[arg(long, value_name = "FILE")]
    pub(crate) pid_file: Option<PathBuf>,
    /// Number of additional descriptors to pass: only 0, they cannot cross into a VM
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
    /// Number of additional descriptors to pass: only 0, they cannot cross into a VM
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) preserve_fds: u32,
    /// Not supported: sub-cgroup to run in
    #[arg(long, value_name = "CGROUP")]
    pub(crate) cgroup: Vec<String>,
    /// Allow exec in a paused container
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
    /// Not supported: lazaret needs root
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
    /// Not supported: options for ps, which cannot see into a guest
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

// Whatever follows a verb that is not supported.
#[derive(Debug, Args)]
pub(crate) struct Anything {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    arguments: Vec<String>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::Cli;

    #[test]
    fn the_options_of_a_verb_do_not_take_its_help_away() {
        let abouts = |command: &clap::Command| -> Vec<String> {
            let verbs = command.get_subcommands();
            verbs
                .map(|verb| {
                    verb.get_about()
                        .map(ToString::to_string)
                        .unwrap_or_default()
                })
                .collect()
        };
        let before = abouts(&Cli::command());
        let mut complete = Cli::command();
        complete.build();
        assert_eq!(abouts(&complete), before);
        assert!(before.iter().all(|about| !about.is_empty()));
        complete.debug_assert();
    }
}
