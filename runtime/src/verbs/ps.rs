//! `ps`: the processes of a container. As a table they are described by the guest's kernel; as
//! JSON they are the process ids of this host that stand for them, because who reads JSON takes
//! the numbers for what runc prints there: processes it can look at, and signal.

mod columns;
mod options;

use lazaret_protocol::agent::{Answer, ProcessEntry, ProcessList, Request};

use super::{VerbError, open_live, option_error, print};
use crate::{
    agent::{Agent, AgentError},
    cli::{Global, Ps},
    state::StateDir,
};

/// # Errors
/// [`VerbError`].
pub(super) fn run(global: &Global, options: &Ps) -> Result<u8, VerbError> {
    let (dir, _) = open_live(global, &options.container_id)?;
    let text = match options.format.as_str() {
        "json" => {
            let pid = dir.read()?.map(|record| record.monitor.pid);
            let pids: Vec<i32> = pid.into_iter().collect();
            serde_json::to_string(&pids).expect("numbers are valid JSON") + "\n"
        }
        "table" => {
            let columns = options::columns(&options.ps_options)
                .map_err(|problem| option_error("ps", problem))?;
            let memory_mib = dir.read()?.and_then(|record| record.vm);
            let memory_mib = memory_mib.map_or(0, |size| size.memory_mib);
            columns::table(&columns, &processes(&dir)?, memory_mib)
        }
        _ => return Err(option_error("--format", "must be table or json")),
    };
    print(&text)?;
    Ok(0)
}

/// Asks for all processes, in as many calls as it takes.
fn processes(dir: &StateDir) -> Result<ProcessList, AgentError> {
    let mut all: Vec<ProcessEntry> = Vec::new();
    loop {
        let after = all.last().map_or(0, |entry| entry.pid);
        let request = Request::ListProcesses {
            container: dir.id().as_str().to_owned(),
            after,
        };
        let Answer::Processes(list) = Agent::new(dir).call(&request)? else {
            return Err(AgentError::Unexpected);
        };
        if list.processes.is_empty() {
            return Ok(ProcessList {
                processes: all,
                uptime_ms: list.uptime_ms,
            });
        }
        // A guest whose pids do not ascend could go on for ever.
        let mut last = after;
        for entry in &list.processes {
            if entry.pid <= last {
                return Err(AgentError::Unexpected);
            }
            last = entry.pid;
        }
        all.extend(list.processes);
    }
}
