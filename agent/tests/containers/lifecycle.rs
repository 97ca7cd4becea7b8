//! From create to remove.

use lazaret_protocol::agent::{ExitStatus, FailureKind};

use crate::harness::{Agent, container, init, process, shell};

#[test]
fn a_container_runs_and_is_gone() {
    let agent = Agent::start();
    let finished = agent.run(&container(
        "c",
        shell("echo $$; hostname; echo oops >&2; exit 7"),
    ));
    assert_eq!(finished.output, "1\ninside\n");
    assert_eq!(finished.errors, "oops\n");
    assert_eq!(finished.status, ExitStatus::Exited(7));
    assert!(agent.cgroups().is_empty());
    assert!(agent.processes().is_empty());
}

#[test]
fn a_missing_program_is_told_at_create() {
    let agent = Agent::start();
    let failure = agent
        .create(&container("c", process(&["foo"])))
        .unwrap_err();
    assert_eq!(
        failure.message,
        "exec: \"foo\": executable file not found in $PATH"
    );
    assert_eq!(failure.kind, FailureKind::NotFound);
    assert!(agent.cgroups().is_empty());
    assert!(agent.processes().is_empty());
    let _ = init("c");
}
