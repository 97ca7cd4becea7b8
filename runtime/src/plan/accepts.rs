//! What a plan accepts, found out by making one: so that what `features` says and what `create`
//! does are the same. Called by `features`.

use lazaret_protocol::{agent::TerminalSize, container::Stdio};
use oci_spec::runtime::Spec;
use serde_json::{Value, json};

use super::{Circumstances, options, plan};
use crate::{bundle::Bundle, caller::Caller, config::Config};

/// What the plan says of a `config.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is done.
    Done,
    /// The container runs without it, and a warning says so.
    Warned,
    /// The container is refused.
    Refused,
}

/// Makes a plan for a minimal `config.json`, with the value at each JSON pointer of `fields` set.
pub(crate) fn verdict(fields: &[(&str, Value)]) -> Verdict {
    let before = warnings(&[]);
    match (before, warnings(fields)) {
        (Some(before), Some(after)) if after == before => Verdict::Done,
        (_, Some(_)) => Verdict::Warned,
        (_, None) => Verdict::Refused,
    }
}

/// Words of `mounts[].options` that mean something to the runtime itself, of those a plan accepts.
pub(crate) fn mount_options() -> Vec<&'static str> {
    let words = options::WORDS.iter().map(|(word, _)| *word);
    words.filter(|word| accepts_option(word)).collect()
}

fn accepts_option(word: &str) -> bool {
    let mut mount = json!({
        "destination": "/mnt", "type": "bind", "source": "/mnt", "options": ["rbind", word],
    });
    if word.ends_with("idmap") {
        let mapping = json!([{ "containerID": 0, "hostID": 1000, "size": 1 }]);
        mount["uidMappings"] = mapping.clone();
        mount["gidMappings"] = mapping;
    } else if word == "tmpcopyup" {
        mount = json!({
            "destination": "/mnt", "type": "tmpfs", "source": "tmpfs", "options": [word],
        });
    }
    verdict(&[("/mounts", json!([mount]))]) != Verdict::Refused
}

/// The warnings of the plan, if there is one.
fn warnings(fields: &[(&str, Value)]) -> Option<Vec<String>> {
    let mut config = json!({
        "ociVersion": "1.0.0",
        "root": { "path": "rootfs" },
        "process": { "user": { "uid": 0, "gid": 0 }, "args": ["true"], "cwd": "/" },
        "linux": { "namespaces": [
            { "type": "pid" }, { "type": "ipc" }, { "type": "mount" }, { "type": "network" },
            { "type": "uts" },
        ] },
    });
    for (pointer, value) in fields {
        let mut place = &mut config;
        for key in pointer.split('/').skip(1) {
            place = &mut place[key];
        }
        *place = value.clone();
    }
    let bundle = Bundle {
        path: "/bundle".into(),
        file: "/bundle/config.json".into(),
        spec: serde_json::from_value::<Spec>(config).ok()?,
        warnings: Vec::new(),
    };
    let caller = Caller::default();
    let circumstances = Circumstances {
        id: "features",
        stdio: [Stdio::Null; 3],
        preserved: &[],
        terminal_size: TerminalSize::default(),
        host_memory_mib: 1024,
        host_cpus: 1,
        host_cgroup_v1: false,
        host_has_block_device: |_, _| false,
        systemd_cgroup: false,
        caller: &caller,
        joins: &[],
    };
    let plan = plan(&bundle, &Config::default(), circumstances).ok()?;
    Some(plan.warnings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_are_those_of_a_plan() {
        assert_eq!(verdict(&[]), Verdict::Done);
        assert_eq!(verdict(&[("/hostname", json!("x"))]), Verdict::Done);
        assert_eq!(verdict(&[("/solaris", json!({}))]), Verdict::Warned);
        assert_eq!(
            verdict(&[("/ociVersion", json!("2.0.0"))]),
            Verdict::Refused
        );
        assert_eq!(verdict(&[("/process", json!(1))]), Verdict::Refused);
    }
}
