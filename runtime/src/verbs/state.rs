//! `state`: what is true of a container now, as JSON (runtime-spec, runtime.md "State").

use std::{collections::BTreeMap, path::PathBuf};

use serde::Serialize;

use super::{VerbError, open, print};
use crate::{
    cli::{Container, Global},
    state::{Record, StateDir, Status},
};

/// The fields of runc, in its order.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct State {
    oci_version: String,
    pub(super) id: String,
    pub(super) pid: i32,
    pub(super) status: &'static str,
    pub(super) bundle: PathBuf,
    rootfs: PathBuf,
    pub(super) created: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
    pub(super) owner: String,
}

impl State {
    /// The state of the container in `dir`.
    ///
    /// # Errors
    /// [`VerbError::State`].
    pub(super) fn of(dir: &StateDir) -> Result<Self, VerbError> {
        let (status, record) = dir.status()?;
        let id = dir.id().as_str().to_owned();
        let status_name = status.as_str();
        // A container whose creation was cut short has no more than an id.
        let Some(record) = record else {
            return Ok(Self {
                oci_version: String::new(),
                id,
                pid: 0,
                status: status_name,
                bundle: PathBuf::new(),
                rootfs: PathBuf::new(),
                created: String::new(),
                annotations: BTreeMap::new(),
                owner: String::new(),
            });
        };
        let Record {
            oci_version,
            bundle,
            rootfs,
            created,
            annotations,
            monitor,
            ..
        } = record;
        Ok(Self {
            oci_version,
            id,
            pid: if status == Status::Stopped {
                0
            } else {
                monitor.pid
            },
            status: status_name,
            bundle,
            rootfs,
            created,
            annotations,
            owner: String::new(),
        })
    }
}

/// # Errors
/// [`VerbError`].
pub(super) fn run(global: &Global, options: &Container) -> Result<u8, VerbError> {
    let state = State::of(&open(global, &options.container_id)?)?;
    print(&serde_json::to_string_pretty(&state).expect("strings and numbers are valid JSON"))?;
    Ok(0)
}
