//! The topics. Each file holds the host side and the guest side of its cases.

mod call;
mod cgroup;
mod cleanup;
mod crash;
mod devices;
mod differential;
mod engines;
mod errors;
mod exec;
mod exit;
mod features;
mod hooks;
mod joined;
mod kernel_parameters;
mod lifecycle;
mod limits;
mod linux;
mod mount_flags;
mod mount_options;
mod mounts;
mod preserved;
mod process;
mod pty;
mod rootfs;
mod sandbox;
mod scale;
mod scheduling;
mod seccomp;
mod shell;
mod signals;
mod specification;
mod stdio;
mod systemd;
mod userns;
mod verbs;
mod vm;

use crate::case::{Case, Probe, Topic};

const TOPICS: &[&Topic] = &[
    &exit::TOPIC,
    &hooks::TOPIC,
    &signals::TOPIC,
    &stdio::TOPIC,
    &preserved::TOPIC,
    &pty::TOPIC,
    &lifecycle::TOPIC,
    &exec::TOPIC,
    &limits::TOPIC,
    &verbs::TOPIC,
    &process::TOPIC,
    &kernel_parameters::TOPIC,
    &mount_options::TOPIC,
    &scheduling::TOPIC,
    &seccomp::TOPIC,
    &mounts::TOPIC,
    &mount_flags::TOPIC,
    &devices::TOPIC,
    &errors::TOPIC,
    &specification::TOPIC,
    &linux::TOPIC,
    &features::TOPIC,
    &cleanup::TOPIC,
    &vm::TOPIC,
    &cgroup::TOPIC,
    &systemd::TOPIC,
    &crash::TOPIC,
    &scale::TOPIC,
    &rootfs::TOPIC,
    &differential::TOPIC,
    &joined::TOPIC,
    &sandbox::TOPIC,
    &userns::TOPIC,
    &engines::podman::TOPIC,
    &engines::docker::TOPIC,
    &engines::images::TOPIC,
];

/// Every case with its full name.
pub(crate) fn all() -> impl Iterator<Item = (String, &'static Case)> {
    TOPICS.iter().flat_map(|topic| {
        topic
            .cases
            .iter()
            .map(|case| (format!("{}::{}", topic.name, case.name), case))
    })
}

/// The case with this full name.
pub(crate) fn find(name: &str) -> Option<&'static Case> {
    all().find(|(full, _)| full == name).map(|(_, case)| case)
}

/// The guest side with this name.
pub(crate) fn probe(name: &str) -> Option<Probe> {
    TOPICS
        .iter()
        .flat_map(|topic| topic.probes)
        .find(|(known, _)| *known == name)
        .map(|&(_, probe)| probe)
}
