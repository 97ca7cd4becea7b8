//! Programs that a bundle wants run at points of a container's life (runtime-spec, config.md
//! "POSIX-platform Hooks"). The runtime runs those of the host, the agent runs those of the
//! container's own namespaces, [`StartHooks`].

use serde::{Deserialize, Serialize};

/// One program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    /// Absolute path.
    pub path: String,
    /// Its arguments, the name of the program included; empty stands for the path alone.
    pub args: Vec<String>,
    /// Its whole environment, names and values.
    pub env: Vec<(String, String)>,
    /// Seconds after which it is killed and has failed, at least 1; `None` waits for ever.
    pub timeout_s: Option<u64>,
}

/// The hooks `startContainer`: run in the container, as its user, before its program.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StartHooks {
    /// In order; the first that fails ends the container.
    pub hooks: Vec<Hook>,
    /// The container's state as a JSON object (runtime.md "State") without `pid`, which only the
    /// container's process knows.
    pub state: String,
}
