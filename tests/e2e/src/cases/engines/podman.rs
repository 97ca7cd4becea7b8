//! Podman: no daemon, but `conmon` beside each container.

use std::fs;

use anyhow::{Result, ensure};

use super::{Engine, NAME, SERVICE, has, is, topic};
use crate::{case::Test, room::Room};

topic!("podman", with_podman);

/// Makes a room with Podman for a case, and demands afterwards that nothing is left.
fn with_podman(test: &Test, case: fn(&Engine<'_>) -> Result<()>) -> Result<()> {
    let room = Room::new(test)?;
    let podman = Engine::new(test, &room, "podman")?;
    case(&podman)?;
    podman.has_no_containers()?;
    room.is_clean(test.runtime.kind, &state_root(test))
}

/// Where a runtime keeps its state if nobody says where.
pub(super) fn state_root(test: &Test) -> String {
    format!("/run/{}", test.runtime.kind.name())
}

/// What Docker has not, or not so: user namespaces of each container's own, secrets, health checks
/// on demand, `top` with the container's `ps`, descriptors.
fn own_options(test: &Test) -> Result<()> {
    with_podman(test, |podman| {
        fs::write(podman.room.path("/tmp/secret"), "secret\n")?;
        podman
            .call(&["secret", "create", "word", "/tmp/secret"])
            .succeed()?;
        let said = podman.script(
            &["--userns=auto", "--secret=word"],
            "cat /run/secrets/word; touch /x; stat -c %u /x; cat /proc/self/uid_map",
        )?;
        let words: Vec<&str> = said.split_whitespace().collect();
        ensure!(
            matches!(words[..], ["secret", "0", "0", outside, _] if outside != "0"),
            "{said:?}"
        );
        let check = ["--health-cmd=test -e /ok", "--health-interval=disable"];
        podman.launch(&check, SERVICE)?;
        podman.shows(".OCIRuntime", podman.test.runtime.kind.name())?;
        let unhealthy = podman.call(&["healthcheck", "run", NAME]).output()?;
        has(&unhealthy.code(1)?.stdout, "unhealthy")?;
        podman.exec(&["touch", "/ok"])?;
        podman.call(&["healthcheck", "run", NAME]).succeed()?;
        top(podman)?;
        descriptors(podman)?;
        podman.remove()?;
        users_of_another(podman)
    })
}

/// A container in the user namespace of a running one.
fn users_of_another(podman: &Engine<'_>) -> Result<()> {
    podman.launch(&["--userns=auto"], SERVICE)?;
    let show = "readlink /proc/self/ns/user; cat /proc/self/uid_map /proc/self/gid_map";
    let theirs = podman.exec(&["sh", "-c", show])?.stdout;
    let options = [
        format!("--userns=container:{NAME}"),
        format!("--ipc=container:{NAME}"),
    ];
    let script = format!("{show}; touch /x; stat -c %u /x /bin /dev/mqueue");
    let said = podman.script(&options.each_ref().map(String::as_str), &script)?;
    is(&said, &format!("{theirs}0\n0\n0\n"))?;
    podman.remove()
}

/// Descriptors beside the standard streams, of the first process and of a further one.
fn descriptors(podman: &Engine<'_>) -> Result<()> {
    let file = podman.test.directory.join("beside");
    let redirection = format!("3>>{}", file.display());
    let say = |word: &str| format!("echo {word} >&3");
    podman
        .run(&["--rm", "--preserve-fds=1"], &["sh", "-c", &say("first")])
        .redirected(&redirection)
        .succeed()?;
    podman
        .call(&["exec", "--preserve-fds=1", NAME, "sh", "-c", &say("second")])
        .redirected(&redirection)
        .succeed()?;
    is(&fs::read_to_string(&file)?, "first\nsecond\n")
}

fn top(podman: &Engine<'_>) -> Result<()> {
    // Not a descriptor of Podman's: it has the container's own `ps` answer.
    let inside = podman.call(&["top", NAME, "-o", "pid,args"]).succeed()?;
    has(&inside.stdout, "sleep 1000")?;
    let output = podman
        .call(&["top", NAME, "user", "pid", "args"])
        .succeed()?;
    let process = output
        .stdout
        .lines()
        .find(|line| line.contains("sleep 1000"));
    let fields: Vec<_> = process
        .unwrap_or_default()
        .split_whitespace()
        .take(3)
        .collect();
    is(&fields.join(" "), "root 1 sh")?;
    // Podman's own choice.
    let output = podman.call(&["top", NAME]).succeed()?;
    has(&output.stdout, "sleep 1000")
}
