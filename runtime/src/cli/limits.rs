//! Options of `events` and `update`: figures and limits of a container.

use std::{path::PathBuf, time::Duration};

use clap::Args;

use super::{help, values};

// Options of `events`.
#[derive(Debug, Args)]
pub(crate) struct Events {
    /// Name of the container
    pub(crate) container_id: String,
    /// Time between two lines of figures
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = values::duration,
        allow_hyphen_values = true)]
    pub(crate) interval: Duration,
    /// Display the container's figures once, then exit
    #[arg(long)]
    pub(crate) stats: bool,
}

// Options of `update`.
#[derive(Debug, Args)]
pub(crate) struct Update {
    /// Name of the container
    pub(crate) container_id: String,
    /// JSON file with the limits, or - for standard input; all other options are ignored then
    #[arg(long, short, value_name = "FILE", long_help = help::RESOURCES)]
    pub(crate) resources: Option<PathBuf>,
    /// Weight of I/O, from 10 to 1000
    #[arg(long, value_name = "WEIGHT", allow_negative_numbers = true)]
    pub(crate) blkio_weight: Option<u16>,
    /// Period of the CPU quota in microseconds; 0 is the system's default
    #[arg(long, value_name = "MICROSECONDS", allow_negative_numbers = true)]
    pub(crate) cpu_period: Option<u64>,
    /// CPU time in each period in microseconds; -1 is no limit
    #[arg(long, value_name = "MICROSECONDS", allow_negative_numbers = true)]
    pub(crate) cpu_quota: Option<i64>,
    /// CPU time saved up for a burst beyond the quota, in microseconds
    #[arg(long, value_name = "MICROSECONDS", allow_negative_numbers = true)]
    pub(crate) cpu_burst: Option<u64>,
    /// CPU shares, relative to other containers
    #[arg(long, value_name = "SHARES", allow_negative_numbers = true)]
    pub(crate) cpu_share: Option<u64>,
    /// Period of the realtime quota in microseconds; cgroup v2 has none, warned of
    #[arg(long, value_name = "MICROSECONDS", allow_negative_numbers = true)]
    pub(crate) cpu_rt_period: Option<u64>,
    /// Realtime CPU time in each period in microseconds; cgroup v2 has none, warned of
    #[arg(long, value_name = "MICROSECONDS", allow_negative_numbers = true)]
    pub(crate) cpu_rt_runtime: Option<i64>,
    /// CPUs to use
    #[arg(long, value_name = "LIST")]
    pub(crate) cpuset_cpus: Option<String>,
    /// Memory nodes to use
    #[arg(long, value_name = "LIST")]
    pub(crate) cpuset_mems: Option<String>,
    /// Whether to run only when the CPU is idle: 0 or 1
    #[arg(long, value_name = "IDLE", allow_negative_numbers = true)]
    pub(crate) cpu_idle: Option<i64>,
    /// Obsolete; ignored
    #[arg(long, value_name = "BYTES", hide = true, allow_hyphen_values = true)]
    pub(crate) kernel_memory: Option<String>,
    /// Obsolete; ignored
    #[arg(long, value_name = "BYTES", hide = true, allow_hyphen_values = true)]
    pub(crate) kernel_memory_tcp: Option<String>,
    /// Memory limit, such as 64M; -1 is no limit
    #[arg(long, value_name = "BYTES", value_parser = values::size, allow_negative_numbers = true)]
    pub(crate) memory: Option<i64>,
    /// Memory that is kept as long as possible (soft limit)
    #[arg(long, value_name = "BYTES", value_parser = values::size, allow_negative_numbers = true)]
    pub(crate) memory_reservation: Option<i64>,
    /// Limit of memory and swap together; -1 is no limit
    #[arg(long, value_name = "BYTES", value_parser = values::size, allow_negative_numbers = true)]
    pub(crate) memory_swap: Option<i64>,
    /// Most processes; -1 is no limit
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    pub(crate) pids_limit: Option<i64>,
    /// Schema of Intel RDT's L3 cache; a guest has none, refused
    #[arg(long, value_name = "SCHEMA")]
    pub(crate) l3_cache_schema: Option<String>,
    /// Schema of Intel RDT's memory bandwidth; a guest has none, refused
    #[arg(long, value_name = "SCHEMA")]
    pub(crate) mem_bw_schema: Option<String>,
}
