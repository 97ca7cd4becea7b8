//! The hooks of `startContainer`: where they run, as whom, and what their failure does.

use lazaret_protocol::agent::{ExitStatus, StdStream};
use lazaret_protocol::hook::{Hook, StartHooks};

use crate::harness::{Agent, container, init, shell};

fn hook(script: &str) -> Hook {
    Hook {
        path: "/bin/sh".to_owned(),
        args: ["sh", "-c", script].map(str::to_owned).into(),
        env: Some(vec![
            ("PATH".to_owned(), "/bin".to_owned()),
            ("NAME".to_owned(), "a=b".to_owned()),
        ]),
        timeout_s: None,
    }
}

fn hooks(hooks: &[Hook]) -> StartHooks {
    StartHooks {
        hooks: hooks.to_vec(),
        state: r#"{"id":"c","status":"created"}"#.to_owned(),
    }
}

#[test]
fn hooks_run_in_the_container_before_its_program() {
    let agent = Agent::start();
    let mut wanted = container("c", shell("cat /tmp/said; echo program"));
    wanted.start_hooks = hooks(&[
        hook("{ echo $NAME $(id -u) $(hostname) $(pwd) $PPID; cat; echo; } > /tmp/said"),
        hook("echo second >> /tmp/said; ls /proc/self/fd | wc -l >> /tmp/said"),
    ]);
    wanted.process.user.uid = 1000;
    wanted.process.cwd = "/home".to_owned();
    let rootfs = agent.rootfs("c");
    std::os::unix::fs::chown(rootfs.join("tmp"), Some(1000), None).unwrap();
    agent.create(&wanted).unwrap();
    assert!(!rootfs.join("tmp/said").exists(), "a hook ran too early");
    agent.start_container("c").unwrap();
    let output = agent.read_all(&init("c"), StdStream::Stdout);
    // Standard streams and the directory that is being listed: no descriptor of the agent's.
    let expected = "a=b 1000 inside /home 1\n{\"pid\":1,\"id\":\"c\",\"status\":\"created\"}\nsecond\n4\nprogram\n";
    assert_eq!(output, expected);
    assert_eq!(agent.wait(&init("c")), ExitStatus::Exited(0));
    agent.remove("c");
}

#[test]
fn a_failing_hook_ends_the_container() {
    let agent = Agent::start();
    for (script, timeout_s, message) in [
        (
            "echo out; echo bad >&2; exit 5",
            None,
            "hooks.startContainer: error running hook #1: exit status 5, stdout: out, stderr: bad",
        ),
        (
            "kill -9 $$",
            None,
            "hooks.startContainer: error running hook #1: signal: killed, stdout: , stderr: ",
        ),
        (
            "sleep 1000",
            Some(1),
            "hooks.startContainer: error running hook #1: hook ran past specified timeout of 1.0s",
        ),
    ] {
        let mut wanted = container("c", shell("echo program"));
        let mut failing = hook(script);
        failing.timeout_s = timeout_s;
        wanted.start_hooks = hooks(&[hook("true"), failing, hook("touch /tmp/third")]);
        agent.create(&wanted).unwrap();
        let failure = agent.start_container("c").unwrap_err();
        assert_eq!(failure.message, message);
        assert_eq!(agent.read_all(&init("c"), StdStream::Stdout), "");
        assert_eq!(agent.wait(&init("c")), ExitStatus::Exited(1));
        assert!(!agent.rootfs("c").join("tmp/third").exists());
        agent.remove("c");
    }
}

#[test]
fn a_hook_that_is_missing_is_named() {
    let agent = Agent::start();
    let mut wanted = container("c", shell("true"));
    let mut missing = hook("");
    missing.path = "/no/such".to_owned();
    wanted.start_hooks = hooks(&[missing]);
    agent.create(&wanted).unwrap();
    let failure = agent.start_container("c").unwrap_err();
    assert_eq!(
        failure.message,
        "hooks.startContainer: error running hook #0: cannot execute /no/such: no such file or directory"
    );
    agent.remove("c");
}
