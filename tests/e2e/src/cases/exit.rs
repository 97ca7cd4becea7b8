//! Exit codes: the process's code is the runtime's code.

use anyhow::{Context as _, Result};

use crate::case::{Case, Probe, Test, Topic, case};

pub(crate) const TOPIC: Topic = Topic {
    name: "exit",
    cases: CASES,
    probes: PROBES,
};

const CASES: &[Case] = &[
    case!(run_returns_the_code),
    case!(exec_returns_every_code).timeout_s(400),
    case!(exec_does_not_end_the_container),
];

const PROBES: &[(&str, Probe)] = &[("exit", exit_with)];

/// Exits with the given code.
fn exit_with(arguments: &[String]) -> Result<u8> {
    let code = arguments.first().context("no exit code given")?;
    code.parse()
        .with_context(|| format!("{code} is no exit code"))
}

fn run_returns_the_code(test: &Test) -> Result<()> {
    for code in [0, 1, 2, 127, 128, 255] {
        let bundle = test.bundle("exit", &[&code.to_string()])?;
        test.runtime.run(&bundle)?.output()?.code(code)?;
    }
    Ok(())
}

/// All 256 through `exec`, four at a time: a container costs more than a process.
fn exec_returns_every_code(test: &Test) -> Result<()> {
    let bundle = test.idle_bundle()?;
    test.runtime.launch(&bundle)?;
    let codes: Vec<i32> = (0..=255).collect();
    for group in codes.chunks(4) {
        let running = group
            .iter()
            .map(|code| {
                let word = code.to_string();
                Ok((
                    code,
                    test.runtime
                        .exec_probe(&bundle.id, "exit", &[&word])
                        .spawn()?,
                ))
            })
            .collect::<Result<Vec<_>>>()?;
        for (&code, call) in running {
            call.wait()?.code(code)?;
        }
    }
    test.runtime.destroy(&bundle.id)
}

fn exec_does_not_end_the_container(test: &Test) -> Result<()> {
    let bundle = test.idle_bundle()?;
    test.runtime.launch(&bundle)?;
    test.runtime
        .exec_probe(&bundle.id, "exit", &["3"])
        .output()?
        .code(3)?;
    test.runtime.status_is(&bundle.id, "running")?;
    test.runtime.destroy(&bundle.id)
}
