//! What either engine must do with a container in the background, from its start to its end.

use std::{fs, io::Write as _};

use anyhow::{Result, ensure};

use super::{Engine, NAME, SERVICE, has, is};
use crate::dialogue::Dialogue;

/// A service from `run --detach` to `stop` and `restart`, with all that can be asked of it.
pub(super) fn service(engine: &Engine<'_>) -> Result<()> {
    engine.launch(&["--memory=64m"], SERVICE)?;
    let (reader, writer) = std::io::pipe()?;
    let following = engine.call(&["logs", "-f", NAME]).stdout(writer).spawn()?;
    let mut log = Dialogue::after("started\n", reader)?;
    let listed = engine
        .call(&["ps", "--format={{.Names}} {{.Status}}"])
        .succeed()?;
    has(&listed.stdout, "box Up")?;
    exec(engine)?;
    let stats = ["stats", "--no-stream", "--format={{.Name}} {{.MemUsage}}"];
    let stats = engine.call(&stats).succeed()?;
    ensure!(
        stats.stdout.starts_with("box ") && !stats.stdout.starts_with("box 0B"),
        "{:?}",
        stats.stdout
    );
    engine.call(&["update", "--memory=48m", NAME]).succeed()?;
    is(
        &engine.exec(&["cat", "/sys/fs/cgroup/memory.max"])?.stdout,
        "50331648\n",
    )?;
    engine.call(&["pause", NAME]).succeed()?;
    engine.shows(".State.Status", "paused")?;
    let refused = engine.call(&["exec", NAME, "true"]).output()?;
    ensure!(!refused.status.success(), "exec in a paused container");
    engine.call(&["unpause", NAME]).succeed()?;
    engine.call(&["restart", "--time=60", NAME]).succeed()?;
    log.expect("bye\n")?;
    following.wait()?.code(0)?;
    engine.exec(&["true"])?;
    engine.call(&["stop", "--time=60", NAME]).succeed()?;
    engine.shows(".State.ExitCode", "3")?;
    let logs = engine.call(&["logs", NAME]).succeed()?;
    is(&logs.stdout, "started\nbye\nstarted\nbye\n")?;
    engine.call(&["rm", NAME]).succeed()?;
    Ok(())
}

/// Further processes: who they are, and the exit codes.
fn exec(engine: &Engine<'_>) -> Result<()> {
    let as_user = ["exec", "--user=1000", "-e", "A=b", "-w", "/tmp", NAME];
    let script = ["sh", "-c", "id -u; echo $A; pwd; exit 7"];
    let output = engine.call(&[&as_user[..], &script].concat()).output()?;
    is(&output.code(7)?.stdout, "1000\nb\n/tmp\n")?;
    let unknown = engine.call(&["exec", NAME, "nonsuch"]).output()?;
    let told = format!("{}{}", unknown.stdout, unknown.stderr);
    has(&told, "executable file not found")?;
    // Docker 20 says the same of both, to `exec` only.
    unknown.code(if engine.program == "docker" { 126 } else { 127 })?;
    let no_program = engine.call(&["exec", NAME, "/etc/passwd"]).output()?;
    no_program.code(126)?;
    Ok(())
}

/// `stop` waits for the grace time and then kills; `kill` does at once; `wait` tells; `attach` brings
/// standard streams.
pub(super) fn signals_and_attach(engine: &Engine<'_>) -> Result<()> {
    engine.launch(&[], "trap '' TERM; echo started; sleep 1000 & wait")?;
    engine.call(&["stop", "--time=1", NAME]).succeed()?;
    engine.shows(".State.ExitCode", "137")?;
    engine.call(&["start", NAME]).succeed()?;
    let waiting = engine.call(&["wait", NAME]).spawn()?;
    engine.call(&["kill", NAME]).succeed()?;
    is(&waiting.wait()?.code(0)?.stdout, "137\n")?;
    engine.call(&["rm", NAME]).succeed()?;
    let options = ["--detach", "-i", "--name=box"];
    let script = "read word; echo got $word; exit 6";
    engine.run(&options, &["sh", "-c", script]).succeed()?;
    let (reader, mut writer) = std::io::pipe()?;
    let attached = engine.call(&["attach", NAME]).stdin(reader).spawn()?;
    writer.write_all(b"it\n")?;
    // Docker ends with the container's exit code, Podman 4 with 0.
    let output = attached.wait()?;
    drop(writer);
    has(&output.stdout, "got it\n")?;
    let waited = engine.call(&["wait", NAME]).succeed()?;
    is(&waited.stdout, "6\n")?;
    engine.call(&["rm", NAME]).succeed()?;
    Ok(())
}

/// Files go into and out of a running container, and never to or from the host's own.
pub(super) fn copies(engine: &Engine<'_>) -> Result<()> {
    let outside = |path: &str| engine.room.path(path);
    fs::create_dir(outside("/tmp/volume"))?;
    fs::write(outside("/tmp/file"), "content\n")?;
    fs::write(outside("/etc/only-outside"), "outside\n")?;
    let script = format!("mkdir /data; echo inside | tee /data/made > /volume/made; {SERVICE}");
    let options = ["-v", "/tmp/volume:/volume"];
    engine.launch(&options, &script)?;
    let (reader, writer) = std::io::pipe()?;
    let following = engine.call(&["logs", "-f", NAME]).stdout(writer).spawn()?;
    let log = Dialogue::after("started\n", reader)?;
    for folder in ["/data", "/volume"] {
        let (copied, made) = (format!("box:{folder}/copied"), format!("box:{folder}/made"));
        engine.call(&["cp", "/tmp/file", &copied]).succeed()?;
        engine.call(&["cp", &made, "/tmp/back"]).succeed()?;
        is(&fs::read_to_string(outside("/tmp/back"))?, "inside\n")?;
    }
    let both = engine.exec(&["cat", "/data/copied", "/volume/copied"])?;
    is(&both.stdout, "content\ncontent\n")?;
    ensure!(!outside("/data").exists(), "it was copied to the host");
    is(
        &fs::read_to_string(outside("/tmp/volume/copied"))?,
        "content\n",
    )?;
    let missing = ["cp", "box:/etc/only-outside", "/tmp/back"];
    let missing = engine.call(&missing).output()?;
    ensure!(!missing.status.success(), "a file of the host was copied");
    engine.remove()?;
    log.rest()?;
    following.wait()?;
    Ok(())
}
