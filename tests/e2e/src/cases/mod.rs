//! The topics. Each file holds the host side and the guest side of its cases.

mod cleanup;
mod crash;
mod devices;
mod differential;
mod errors;
mod exec;
mod exit;
mod lifecycle;
mod mounts;
mod process;
mod pty;
mod rootfs;
mod scale;
mod shell;
mod signals;
mod stdio;
mod vm;

use crate::case::{Case, Probe, Topic};

const TOPICS: &[&Topic] = &[
    &exit::TOPIC,
    &signals::TOPIC,
    &stdio::TOPIC,
    &pty::TOPIC,
    &lifecycle::TOPIC,
    &exec::TOPIC,
    &process::TOPIC,
    &mounts::TOPIC,
    &devices::TOPIC,
    &errors::TOPIC,
    &cleanup::TOPIC,
    &vm::TOPIC,
    &crash::TOPIC,
    &scale::TOPIC,
    &rootfs::TOPIC,
    &differential::TOPIC,
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
