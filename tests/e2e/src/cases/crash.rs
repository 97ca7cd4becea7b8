//! Processes of lazaret and machines that die: the state afterwards is right, and `delete`
//! converges. For lazaret only.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use super::{
    errors::check,
    vm::{LAZARET, REASON},
};
use crate::{
    bundle::Bundle,
    case::{Case, Probe, Test, Topic, case},
    dialogue::Dialogue,
    host,
    invocation::{Running, ends_within},
};

pub(crate) const TOPIC: Topic = Topic {
    name: "crash",
    cases: CASES,
    probes: PROBES,
};

const CASES: &[Case] = &[
    case!(guest_resets_itself).only(LAZARET, REASON),
    case!(vmm_is_killed).only(LAZARET, REASON),
    case!(vmm_is_killed_before_start).only(LAZARET, REASON),
    case!(vmm_is_stopped).only(LAZARET, REASON),
    case!(monitor_is_killed).only(LAZARET, REASON),
    case!(monitor_and_vmm_are_killed).only(LAZARET, REASON),
    case!(run_is_killed).only(LAZARET, REASON),
    case!(create_is_killed_at_any_moment)
        .only(LAZARET, REASON)
        .timeout_s(400),
];

const PROBES: &[(&str, Probe)] = &[("reset", reset)];

/// Restarts the machine, as a process of the guest's first pid namespace can, once its input ends.
fn reset(_: &[String]) -> Result<u8> {
    println!("ready");
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    nix::sys::reboot::reboot(nix::sys::reboot::RebootMode::RB_AUTOBOOT)?;
    Ok(0)
}

/// A container without a pid namespace of its own may restart its machine, which ends it.
fn guest_resets_itself(test: &Test) -> Result<()> {
    let mut bundle = test.bundle("reset", &[])?;
    let set = json!(["CAP_SYS_BOOT"]);
    bundle.set(
        "/process/capabilities",
        json!({ "bounding": set, "permitted": set, "effective": set }),
    );
    if let Some(namespaces) = bundle.config["linux"]["namespaces"].as_array_mut() {
        namespaces.retain(|namespace| namespace["type"] != "pid");
    }
    let (stdin, end) = std::io::pipe()?;
    let (output, stdout) = std::io::pipe()?;
    let running = test.runtime.run(&bundle)?.stdin(stdin).stdout(stdout);
    let running = running.spawn()?;
    let _told = Dialogue::after("ready\n", output)?;
    drop(end);
    let output = running.wait()?;
    ensure!(!output.status.success(), "run succeeded");
    ensure!(!output.stderr.is_empty(), "run said nothing");
    Ok(())
}

/// The VMM processes of this case.
fn vmms() -> Result<Vec<Pid>> {
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let all = host::descendants(own)?;
    Ok(all
        .iter()
        // The kernel keeps 15 characters of a name.
        .filter(|process| process.name.starts_with("lazaret-vmm") && process.state != 'Z')
        .filter_map(|process| Pid::from_raw(process.pid))
        .collect())
}

/// The one VMM process of this case.
fn vmm() -> Result<Pid> {
    let all = vmms()?;
    ensure!(all.len() == 1, "there are {} VMM processes", all.len());
    Ok(all[0])
}

/// A running container's `run`, once its process has said that it runs, and what else it says.
fn running(test: &Test, bundle: &Bundle) -> Result<(Running, Dialogue)> {
    let (reader, writer) = std::io::pipe()?;
    let running = test.runtime.run(bundle)?.stdout(writer).spawn()?;
    Ok((running, Dialogue::after("ready\n", reader)?))
}

fn vmm_is_killed(test: &Test) -> Result<()> {
    let bundle = test.bundle("tell", &[])?;
    let (running, _told) = running(test, &bundle)?;
    kill_process(vmm()?, Signal::KILL)?;
    let output = running.wait()?;
    ensure!(!output.status.success(), "run succeeded");
    ensure!(
        output.stderr.trim_end().lines().count() == 1,
        "not one line: {:?}",
        output.stderr
    );
    // `run` deletes what it made.
    test.runtime.has_no(&bundle.id)?;

    let bundle = test.idle_bundle()?;
    test.runtime.launch(&bundle)?;
    kill_process(vmm()?, Signal::KILL)?;
    test.runtime.wait_for_end(&bundle.id)?;
    test.runtime.status_is(&bundle.id, "stopped")?;
    test.runtime
        .exec_probe(&bundle.id, "exit", &["0"])
        .output()?
        .fails(255, &[])?;
    test.runtime.kill(&bundle.id, "KILL").output()?.code(1)?;
    test.runtime.delete(&bundle.id).succeed()?;
    Ok(())
}

fn vmm_is_killed_before_start(test: &Test) -> Result<()> {
    let bundle = test.idle_bundle()?;
    test.runtime.create(&bundle)?.succeed()?;
    kill_process(vmm()?, Signal::KILL)?;
    test.runtime.wait_for_end(&bundle.id)?;
    test.runtime.status_is(&bundle.id, "stopped")?;
    check(test, test.runtime.start(&bundle.id).output()?, &[])?;
    test.runtime.delete(&bundle.id).succeed()?;
    Ok(())
}

/// Neither the guest nor the VMM answers, nor does either end by itself.
fn vmm_is_stopped(test: &Test) -> Result<()> {
    let bundle = test.idle_bundle()?;
    test.runtime.launch(&bundle)?;
    let monitor = test.runtime.pid(&bundle.id)?.as_raw_nonzero();
    let vmm = vmm()?;
    kill_process(vmm, Signal::STOP)?;
    let delete = test.runtime.delete_force(&bundle.id);
    let told = delete.timeout(Duration::from_secs(120)).succeed()?.stderr;
    for warning in [
        "cannot kill the container: the guest agent did not answer within 30 s".to_owned(),
        format!("the container's monitor, process {monitor}, does not end: killing it"),
        format!(
            "the container's VMM, process {}, does not end: killing it",
            vmm.as_raw_nonzero()
        ),
    ] {
        ensure!(told.contains(&warning), "no {warning:?} in {told:?}");
    }
    test.runtime.has_no(&bundle.id)
}

fn monitor_is_killed(test: &Test) -> Result<()> {
    let bundle = test.idle_bundle()?;
    test.runtime.launch(&bundle)?;
    let (monitor, vmm) = (test.runtime.pid(&bundle.id)?, vmm()?);
    kill_process(monitor, Signal::KILL)?;
    let ended = ends_within(vmm, Duration::from_secs(10)).unwrap_or(true);
    ensure!(ended, "the VMM outlives the monitor");
    test.runtime.status_is(&bundle.id, "stopped")?;
    test.runtime.delete(&bundle.id).succeed()?;
    Ok(())
}

fn monitor_and_vmm_are_killed(test: &Test) -> Result<()> {
    let bundle = test.idle_bundle()?;
    test.runtime.create(&bundle)?.succeed()?;
    for pid in [vmm()?, test.runtime.pid(&bundle.id)?] {
        kill_process(pid, Signal::KILL)?;
    }
    test.runtime.delete_force(&bundle.id).succeed()?;
    test.runtime.delete_force(&bundle.id).succeed()?;
    // The id is free.
    let bundle = Bundle {
        id: bundle.id.clone(),
        ..test.idle_bundle()?
    };
    test.runtime.launch(&bundle)?;
    test.runtime.destroy(&bundle.id)
}

fn run_is_killed(test: &Test) -> Result<()> {
    let bundle = test.bundle("tell", &[])?;
    let (running, _told) = running(test, &bundle)?;
    running.signal(Signal::KILL)?;
    running.wait()?;
    test.runtime.delete_force(&bundle.id).succeed()?;
    ensure!(vmms()?.is_empty(), "a VMM is left");
    Ok(())
}

/// Whatever `create` had done by then, `delete --force` undoes it.
fn create_is_killed_at_any_moment(test: &Test) -> Result<()> {
    let started = Instant::now();
    let bundle = test.idle_bundle()?;
    test.runtime.create(&bundle)?.succeed()?;
    let whole = started.elapsed();
    test.runtime.delete_force(&bundle.id).succeed()?;
    for part in 0..12 {
        let bundle = test.idle_bundle()?;
        let call = test.runtime.create(&bundle)?.spawn()?;
        ends_within(call.pid(), whole * part / 10)?;
        call.signal(Signal::KILL).ok();
        call.wait()?;
        test.runtime
            .delete_force(&bundle.id)
            .succeed()
            .with_context(|| format!("after {part}/10"))?;
        test.runtime.has_no(&bundle.id)?;
    }
    Ok(())
}
