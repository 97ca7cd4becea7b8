//! `update`: new limits for a container that lives. They are translated as those of `config.json`
//! are and written to the container's cgroup in the guest, all or none, and to the sandbox's cgroup
//! on the host; the state keeps them.

use std::{io::Read, path::Path};

use lazaret_protocol::agent::{Answer, Request};
use oci_spec::runtime::LinuxResources;
use serde_json::{Map, Value, json};

use super::{VerbError, launch, open, option_error};
use crate::{
    agent::{Agent, AgentError},
    caller::Caller,
    cli::{Global, Update},
    host_cgroup,
    plan::{self, Circumstances},
    sandbox,
    state::{Record, StateDir, Status},
};

/// Most bytes of a file with limits.
const FILE_MAX_BYTES: u64 = 1 << 20;

/// # Errors
/// [`VerbError`]; nothing has changed then.
pub(super) fn run(global: &Global, options: &Update) -> Result<u8, VerbError> {
    let dir = open(global, &options.container_id)?;
    check_rdt(options)?;
    let wanted = wanted(options)?;
    dir.lock()?;
    let (status, record) = dir.status()?;
    let (false, Some(mut record)) = (matches!(status, Status::Stopped | Status::Creating), record)
    else {
        return Err(VerbError::WrongStatus("container not running".to_owned()));
    };
    let change = Change::new(&record.resources, wanted);
    change.apply(&dir, &record)?;
    record.resources = change.merged;
    dir.write(&record)?;
    Ok(0)
}

/// As runc on a machine without it, which a guest is.
fn check_rdt(options: &Update) -> Result<(), VerbError> {
    for (given, what) in [
        (
            options.l3_cache_schema.as_ref(),
            "Intel RDT/CAT: l3 cache schema is not enabled",
        ),
        (
            options.mem_bw_schema.as_ref(),
            "Intel RDT/MBA: memory bandwidth schema is not enabled",
        ),
    ] {
        if given.is_some_and(|schema| !schema.is_empty()) {
            return Err(VerbError::WrongStatus(what.to_owned()));
        }
    }
    Ok(())
}

/// What is asked for, as the spec writes it, without what is not.
fn wanted(options: &Update) -> Result<Value, VerbError> {
    let mut wanted = match &options.resources {
        Some(path) => from_file(path)?,
        None => from_options(options),
    };
    leave_out_unset(&mut wanted);
    // As runc: who lifts the limit of memory means that of swap, too.
    let memory = &mut wanted["memory"];
    if memory["limit"] == -1 && memory["swap"].is_null() {
        memory["swap"] = json!(-1);
    }
    if memory.is_null()
        && let Value::Object(fields) = &mut wanted
    {
        fields.remove("memory");
    }
    Ok(wanted)
}

fn from_options(options: &Update) -> Value {
    for (name, given) in [
        ("kernel-memory", &options.kernel_memory),
        ("kernel-memory-tcp", &options.kernel_memory_tcp),
    ] {
        if given.is_some() {
            tracing::warn!("Setting --{name} is ignored and will be removed");
        }
    }
    json!({
        "memory": {
            "limit": options.memory,
            "reservation": options.memory_reservation,
            "swap": options.memory_swap,
        },
        "cpu": {
            "shares": options.cpu_share,
            "quota": options.cpu_quota,
            "burst": options.cpu_burst,
            "period": options.cpu_period,
            "realtimeRuntime": options.cpu_rt_runtime,
            "realtimePeriod": options.cpu_rt_period,
            "cpus": options.cpuset_cpus,
            "mems": options.cpuset_mems,
            "idle": options.cpu_idle,
        },
        "blockIO": { "weight": options.blkio_weight },
        "pids": { "limit": options.pids_limit },
    })
}

fn from_file(path: &Path) -> Result<Value, VerbError> {
    let failed = |source| VerbError::Io {
        action: "read",
        path: path.to_owned(),
        source,
    };
    let mut text = Vec::new();
    if path == Path::new("-") {
        let stdin = std::io::stdin().lock();
        stdin.take(FILE_MAX_BYTES + 1).read_to_end(&mut text)
    } else {
        let file = std::fs::File::open(path).map_err(failed)?;
        file.take(FILE_MAX_BYTES + 1).read_to_end(&mut text)
    }
    .map_err(failed)?;
    if text.len() as u64 > FILE_MAX_BYTES {
        return Err(option_error(
            "--resources",
            format!("{} exceeds {FILE_MAX_BYTES} bytes", path.display()),
        ));
    }
    // Go's decoder, too, takes the first value and leaves what follows.
    let mut first = serde_json::Deserializer::from_slice(&text);
    let resources: LinuxResources = serde_path_to_error::deserialize(&mut first)
        .map_err(|error| option_error("--resources", error.to_string()))?;
    let mut value = serde_json::to_value(resources).expect("limits are valid JSON");
    if let Value::Object(fields) = &mut value {
        // As runc: rules about devices are for the container's whole life.
        fields.remove("devices");
    }
    Ok(value)
}

/// Takes out what says nothing: null, and the zeros and empty texts that stand for it.
fn leave_out_unset(value: &mut Value) {
    /// Fields whose zero is a value.
    const MEANT: [&str; 2] = ["idle", "burst"];
    let Value::Object(fields) = value else {
        return;
    };
    for (_, value) in fields.iter_mut() {
        leave_out_unset(value);
    }
    fields.retain(|name, value| match value {
        Value::Null => false,
        Value::Number(number) => MEANT.contains(&name.as_str()) || number.as_i64() != Some(0),
        Value::String(text) => !text.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Bool(_) => true,
    });
}

/// A change of limits.
#[derive(Debug)]
struct Change {
    /// What changes, with what the kernel takes together with it.
    partial: LinuxResources,
    /// All limits, afterwards.
    merged: LinuxResources,
}

/// Fields of the spec that become one file of the cgroup, or are checked against each other.
const COUPLED: [(&str, &[&str]); 2] = [
    ("cpu", &["quota", "period"]),
    ("memory", &["limit", "swap"]),
];

impl Change {
    fn new(before: &LinuxResources, wanted: Value) -> Self {
        let mut merged = serde_json::to_value(before).expect("limits are valid JSON");
        merge(&mut merged, &wanted);
        let mut partial = wanted;
        for (group, names) in COUPLED {
            let Some(Value::Object(fields)) = partial.get_mut(group) else {
                continue;
            };
            if names.iter().any(|&name| fields.contains_key(name)) {
                for &name in names {
                    if let Some(value) = merged[group].get(name) {
                        fields.insert(name.to_owned(), value.clone());
                    }
                }
            }
        }
        let typed = |value| serde_json::from_value(value).expect("both were limits before");
        Self {
            partial: typed(partial),
            merged: typed(merged),
        }
    }

    /// Writes the change to the guest's cgroup.
    fn apply(&self, dir: &StateDir, record: &Record) -> Result<(), VerbError> {
        let id = dir.id().as_str();
        let mut warnings = Vec::new();
        let caller = Caller::observe();
        let circumstances = Circumstances {
            host_cgroup_v1: host_cgroup::is_v1(),
            ..launch::circumstances(id, &caller)
        };
        let vm_memory_mib = record.vm.map_or(0, |size| size.memory_mib);
        let limits = plan::limits(&self.partial, vm_memory_mib, circumstances, &mut warnings)?;
        let agent = Agent::new(dir);
        self.check_usage(&agent, id)?;
        agent.done(&Request::UpdateCgroup {
            container: id.to_owned(),
            files: limits.files,
        })?;
        host_cgroup::update(dir, &limits.host)?;
        if let (Some(wanted), Some(size)) = (limits.vm_memory_mib, record.vm)
            && wanted > size.memory_mib
        {
            warnings.push(format!(
                "linux.resources.memory.limit: the VM has {} MiB, beyond which the limit has no \
                 effect",
                size.memory_mib
            ));
        }
        if let (Some(_), Some(size)) = (self.partial.cpu(), record.vm) {
            let wanted = plan::vcpus(&self.merged, circumstances)?;
            let wanted = wanted.unwrap_or(size.vcpus);
            if wanted > size.vcpus {
                warnings.push(format!(
                    "linux.resources.cpu.quota: the VM has {} CPU{}, beyond which the quota has \
                     no effect",
                    size.vcpus,
                    if size.vcpus == 1 { "" } else { "s" }
                ));
            }
            // Those of a sandbox with several containers are no single one's.
            if size.vcpus > 1 && !sandbox::is_shared(dir) {
                agent.done(&Request::SetCpus {
                    count: wanted.into(),
                })?;
            }
        }
        for warning in warnings {
            tracing::warn!(id, "{warning}");
        }
        Ok(())
    }

    /// `checkBeforeUpdate`: refuses a limit that the container exceeds already.
    fn check_usage(&self, agent: &Agent, id: &str) -> Result<(), VerbError> {
        let memory = self.partial.memory().as_ref();
        let checked = self
            .merged
            .memory()
            .as_ref()
            .and_then(|memory| memory.check_before_update());
        let limit = memory.and_then(|memory| memory.limit()).unwrap_or(0);
        if checked != Some(true) || limit <= 0 {
            return Ok(());
        }
        let request = Request::ReadCgroup {
            container: id.to_owned(),
            files: vec!["memory.current".to_owned()],
        };
        let Answer::Files(files) = agent.call(&request)? else {
            return Err(AgentError::Unexpected.into());
        };
        let usage = files.first().and_then(Option::as_deref).map(str::trim);
        match usage.and_then(|usage| usage.parse::<i64>().ok()) {
            Some(usage) if usage > limit => Err(VerbError::WrongStatus(format!(
                "linux.resources.memory.limit: unable to set memory limit to {limit} (current \
                 usage: {usage})"
            ))),
            _ => Ok(()),
        }
    }
}

/// Lays `new` over `old`, group by group.
fn merge(old: &mut Value, new: &Value) {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            for (name, new) in new {
                merge(old.entry(name).or_insert(Value::Null), new);
            }
        }
        (old @ Value::Null, Value::Object(new)) => {
            *old = Value::Object(Map::new());
            merge(old, &Value::Object(new.clone()));
        }
        (old, new) => *old = new.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(before: Value, wanted: Value) -> (Value, Value) {
        let before = serde_json::from_value(before).unwrap();
        let change = Change::new(&before, wanted);
        (
            serde_json::to_value(change.partial).unwrap(),
            serde_json::to_value(change.merged).unwrap(),
        )
    }

    #[test]
    fn quota_and_period_go_together() {
        let before = json!({"cpu": {"quota": 5, "period": 10, "shares": 7}, "pids": {"limit": 3}});
        let (partial, merged) = change(before, json!({"cpu": {"quota": 6}}));
        assert_eq!(partial, json!({"cpu": {"quota": 6, "period": 10}}));
        assert_eq!(
            merged,
            json!({"cpu": {"quota": 6, "period": 10, "shares": 7}, "pids": {"limit": 3}})
        );
    }

    #[test]
    fn what_is_not_given_is_not_written() {
        let before = json!({"memory": {"limit": 5, "swap": 9, "reservation": 2}});
        let (partial, merged) = change(before.clone(), json!({"pids": {"limit": 1}}));
        assert_eq!(partial, json!({"pids": {"limit": 1}}));
        assert_eq!(merged["memory"], before["memory"]);
    }

    #[test]
    fn zeros_and_empty_texts_are_not_given() {
        let mut value = json!({
            "memory": {"limit": 0, "swap": -1, "checkBeforeUpdate": false},
            "cpu": {"idle": 0, "burst": 0, "shares": 0, "cpus": "", "mems": null},
            "blockIO": {"weight": 0},
            "hugepageLimits": [],
        });
        leave_out_unset(&mut value);
        assert_eq!(
            value,
            json!({
                "memory": {"swap": -1, "checkBeforeUpdate": false},
                "cpu": {"idle": 0, "burst": 0},
            })
        );
    }
}
