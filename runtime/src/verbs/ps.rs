//! `ps`: the processes of a container. As a table they are described by the guest's kernel; as
//! JSON they are the process ids of this host that stand for them, because who reads JSON takes
//! the numbers for what runc prints there: processes it can look at, and signal.

mod columns;
mod options;

use lazaret_protocol::agent::{Answer, ProcessEntry, ProcessList, Request};

use super::{VerbError, check_live, open, option_error, print};
use crate::{
    agent::{Agent, AgentError},
    cli::{Global, Ps},
    state::{StateDir, Status},
};

/// What a container that has stopped has.
const NO_PROCESSES: ProcessList = ProcessList {
    processes: Vec::new(),
    uptime_ms: 0,
};

/// # Errors
/// [`VerbError`].
pub(super) fn run(global: &Global, options: &Ps) -> Result<u8, VerbError> {
    let dir = open(global, &options.container_id)?;
    // As runc: it has no processes, which is no failure.
    let is_stopped = dir.status()?.0 == Status::Stopped;
    if !is_stopped {
        check_live(&dir)?;
    }
    let text = match options.format.as_str() {
        // Go's way to write a list that nothing was added to.
        "json" if is_stopped => "null\n".to_owned(),
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
            let processes = if is_stopped {
                NO_PROCESSES
            } else {
                processes(&dir)?
            };
            columns::table(&columns, &processes, memory_mib)
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
