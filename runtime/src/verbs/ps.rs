//! `ps`: the processes of a container, by their pids in the guest.

use lazaret_protocol::agent::{Answer, Request};

use super::{VerbError, list, open_live, option_error, print};
use crate::{
    agent::{Agent, AgentError},
    cli::{Global, Ps},
};

/// # Errors
/// [`VerbError`].
pub(super) fn run(global: &Global, options: &Ps) -> Result<u8, VerbError> {
    let (dir, _) = open_live(global, &options.container_id)?;
    if !options.ps_options.is_empty() {
        return Err(option_error(
            "ps",
            "options for ps are not supported: it cannot see into a guest",
        ));
    }
    let request = Request::ListProcesses {
        container: dir.id().as_str().to_owned(),
    };
    let Answer::Processes(pids) = Agent::new(&dir).call(&request)? else {
        return Err(AgentError::Unexpected.into());
    };
    let text = match options.format.as_str() {
        "json" => serde_json::to_string(&pids).expect("numbers are valid JSON"),
        "table" => {
            let mut rows = vec![vec!["PID".to_owned()]];
            rows.extend(pids.iter().map(|pid| vec![pid.to_string()]));
            list::table(&rows)
        }
        _ => return Err(option_error("--format", "must be table or json")),
    };
    print(&text)?;
    Ok(0)
}
