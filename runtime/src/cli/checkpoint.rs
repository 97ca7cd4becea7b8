//! Options of `checkpoint` and `restore`: known, so that a command line that is right for runc is
//! answered by what is missing and not by its first option.

use std::path::PathBuf;

use clap::Args;

// What both verbs take.
#[derive(Debug, Args)]
pub(crate) struct Image {
    /// Name of the container
    container_id: String,
    /// Directory of the image files
    #[arg(long, value_name = "DIR")]
    image_path: Option<PathBuf>,
    /// Directory of work files and logs
    #[arg(long, value_name = "DIR")]
    work_path: Option<PathBuf>,
    /// Allow open TCP connections
    #[arg(long)]
    tcp_established: bool,
    /// Allow external Unix sockets
    #[arg(long)]
    ext_unix_sk: bool,
    /// Allow shell jobs
    #[arg(long)]
    shell_job: bool,
    /// Handle file locks
    #[arg(long)]
    file_locks: bool,
    /// Restore memory pages lazily
    #[arg(long)]
    lazy_pages: bool,
    /// Mode of cgroups: soft, full, strict or ignore
    #[arg(long, value_name = "MODE")]
    manage_cgroups_mode: Option<String>,
    /// Make a namespace, but do not restore its properties
    #[arg(long, value_name = "NAMESPACE")]
    empty_ns: Vec<String>,
    /// Deduplicate memory images
    #[arg(long)]
    auto_dedup: bool,
    /// Profile of a security module to restore with
    #[arg(long, value_name = "TYPE:NAME", hide = true)]
    lsm_profile: Option<String>,
    /// Mount context of a security module to restore with
    #[arg(long, value_name = "CONTEXT", hide = true)]
    lsm_mount_context: Option<String>,
}

// Options of `checkpoint`.
#[derive(Debug, Args)]
pub(crate) struct Checkpoint {
    #[command(flatten)]
    image: Image,
    /// Directory of earlier image files
    #[arg(long, value_name = "DIR")]
    parent_path: Option<PathBuf>,
    /// Leave the process running
    #[arg(long)]
    leave_running: bool,
    /// Descriptor that gets a NUL byte once lazy pages are ready
    #[arg(long, value_name = "FD", allow_negative_numbers = true)]
    status_fd: Option<i32>,
    /// Address and port of the page server
    #[arg(long, value_name = "ADDRESS:PORT")]
    page_server: Option<String>,
    /// Dump memory only, and leave the container running
    #[arg(long)]
    pre_dump: bool,
}

// Options of `restore`.
#[derive(Debug, Args)]
pub(crate) struct Restore {
    #[command(flatten)]
    image: Image,
    /// Unix socket that receives the master end of the console's pseudoterminal
    #[arg(long, value_name = "SOCKET")]
    console_socket: Option<PathBuf>,
    /// Path of the bundle
    #[arg(long, short, value_name = "DIR")]
    bundle: Option<PathBuf>,
    /// Detach from the container's process
    #[arg(long, short)]
    detach: bool,
    /// File to write the process id to
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Do not reap reparented processes
    #[arg(long)]
    no_subreaper: bool,
    /// Do not use pivot_root
    #[arg(long)]
    no_pivot: bool,
}
