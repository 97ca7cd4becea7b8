//! The figures of `lazaret-bench` as tables for a person. Knows their JSON, not how they came to be.

use serde_json::Value;

/// Private memory of a sandbox's processes, in KiB, at most.
const PRIVATE_MAX_KIB: f64 = 12.0 * 1024.0;

/// Memory an idle guest may have touched, in KiB.
const GUEST_TOUCHED_MAX_KIB: f64 = 40.0 * 1024.0;

/// `run` as a multiple of the first runtime's, at most.
const RUN_RATIO_MAX: f64 = 3.0;

/// `exec` as a multiple of the first runtime's, at most.
const EXEC_RATIO_MAX: f64 = 1.0;

/// Verbs whose times are shown as multiples of the first runtime's too: those that a container
/// takes while it runs, over and over.
const REPEATED: [&str; 3] = ["exec", "events", "update"];

/// Everything.
pub(super) fn of(report: &Value) -> String {
    let mut lines = times(report);
    for sandbox in array(&report["sandbox"]) {
        lines.push(String::new());
        lines.extend(of_sandbox(sandbox));
    }
    for timeline in array(&report["phases"]) {
        lines.push(String::new());
        lines.extend(of_phases(timeline));
    }
    lines.join("\n")
}

/// The first runtime, and its median time for `verb` in milliseconds.
pub(super) fn yardstick_ms<'a>(report: &'a Value, verb: &str) -> Option<(&'a str, f64)> {
    let row = array(&report["start"]).first()?;
    let time = match verb {
        "run" => median_ms(&row["run"]),
        verb => median_of(row, verb)?,
    };
    Some((row["runtime"].as_str()?, time))
}

/// Medians in milliseconds, a row for each runtime; `run` and the verbs of a running container as
/// multiples of the first one's too.
fn times(report: &Value) -> Vec<String> {
    let rows = array(&report["start"]);
    let run = |row: &Value| median_ms(&row["run"]);
    let run_unit = rows.first().map_or(f64::NAN, run);
    let verbs = rows.first().map_or(&[][..], |row| array(&row["verbs"]));
    let mut head = format!("{:<10} {:>8} {:>6}", "ms", "run", "x");
    for verb in verbs {
        let verb = verb[0].as_str().unwrap_or("?");
        head += &format!(" {verb:>8}");
        if REPEATED.contains(&verb) {
            head += &format!(" {:>6}", "x");
        }
    }
    let mut lines = vec![head];
    for row in rows {
        let name = row["runtime"].as_str().unwrap_or("?");
        let mut line = format!("{name:<10} {:>8.1} {:>6.2}", run(row), run(row) / run_unit);
        for (verb, unit) in array(&row["verbs"]).iter().zip(verbs) {
            line += &format!(" {:>8}", shown(median_ms(&verb[1]), 1));
            if REPEATED.iter().any(|repeated| verb[0] == *repeated) {
                let ratio = median_ms(&verb[1]) / median_ms(&unit[1]);
                line += &format!(" {:>6}", shown(ratio, 2));
            }
        }
        lines.push(line);
    }
    if report["microvm_seconds"].is_object() {
        let time = median_ms(&report["microvm_seconds"]);
        lines.push(format!(
            "{:<10} {time:>8.1} {:>6.2}",
            "microvm",
            time / run_unit
        ));
    }
    if let Some(last) = rows.get(1..).and_then(<[Value]>::last) {
        lines.push(String::new());
        lines.push(bar("run", run(last) / run_unit, RUN_RATIO_MAX, "x"));
        let exec = |row: &Value| median_of(row, "exec");
        if let (Some(exec), Some(unit)) = (exec(last), rows.first().and_then(exec)) {
            lines.push(bar("exec", exec / unit, EXEC_RATIO_MAX, "x"));
        }
    }
    lines
}

/// A runtime's median time for `verb`.
fn median_of(row: &Value, verb: &str) -> Option<f64> {
    let named = array(&row["verbs"]).iter().find(|named| named[0] == verb)?;
    Some(median_ms(&named[1]))
}

/// A figure with so many decimals, or a dash if there is none.
fn shown(figure: f64, decimals: usize) -> String {
    match figure.is_nan() {
        true => "-".to_owned(),
        false => format!("{figure:.decimals$}"),
    }
}

/// Memory and rest of an idle sandbox.
fn of_sandbox(sandbox: &Value) -> Vec<String> {
    let (memory, idle) = (&sandbox["memory"], &sandbox["idle"]);
    let mut lines = vec![format!(
        "{:<16} {:>12} {:>16} {:>14}",
        "KiB, idle", "private", "clean file pages", "guest touched"
    )];
    for process in array(&memory["processes"]) {
        lines.push(format!(
            "{:<16} {:>12.0} {:>16.0} {:>14.0}",
            process["name"].as_str().unwrap_or("?"),
            number(&process["private_kib"]),
            number(&process["file_kib"]),
            number(&process["guest_touched_kib"])
        ));
    }
    let mib = |value: &Value| number(value) / 1024.0;
    lines.push(bar(
        "private memory",
        mib(&memory["private_kib"]),
        PRIVATE_MAX_KIB / 1024.0,
        "MiB",
    ));
    lines.push(bar(
        "guest touched",
        mib(&memory["guest_touched_kib"]),
        GUEST_TOUCHED_MAX_KIB / 1024.0,
        "MiB",
    ));
    let per = format!("in {} s", idle["seconds"]);
    lines.push(bar(
        &format!("wake-ups of ours {per}"),
        number(&idle["wakeups"]),
        0.0,
        "",
    ));
    lines.push(bar(
        &format!("vCPU exits to us {per}"),
        number(&idle["vcpu_exits"]),
        0.0,
        "",
    ));
    lines.push(format!(
        "our threads ran {:.1} ms {per}; the guest woke {} times by itself and ran {:.1} ms",
        number(&idle["cpu_us"]) / 1000.0,
        idle["vcpu_wakeups"],
        number(&idle["vcpu_cpu_us"]) / 1000.0
    ));
    lines
}

/// The phases of a verb.
fn of_phases(timeline: &Value) -> Vec<String> {
    let total_us = number(&timeline["total_us"]);
    let mut lines = vec![format!(
        "{}: {:.1} ms with a log of its phases",
        timeline["title"].as_str().unwrap_or("?"),
        total_us / 1000.0
    )];
    for phase in array(&timeline["phases"]) {
        let length_us = number(&phase["length_us"]);
        lines.push(format!(
            "{:>8.2} ms {:>5.1} %  {:<12} {}",
            length_us / 1000.0,
            100.0 * length_us / total_us,
            phase["process"].as_str().unwrap_or("?"),
            phase["done"].as_str().unwrap_or("?")
        ));
    }
    lines
}

/// A figure beside what it may be.
fn bar(name: &str, value: f64, most: f64, unit: &str) -> String {
    let verdict = if value <= most { "met" } else { "NOT met" };
    format!("{name}: {value:.2} {unit} (<= {most} {unit}): {verdict}")
        .replace(" )", ")")
        .replace("  ", " ")
}

fn median_ms(spread: &Value) -> f64 {
    number(&spread["median"]) * 1000.0
}

pub(super) fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(f64::NAN)
}

pub(super) fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn words(line: &str) -> Vec<&str> {
        line.split_whitespace().collect()
    }

    #[test]
    fn times_have_ratios_to_the_first_runtime() {
        let report = json!({
            "start": [
                {"runtime": "runc", "run": {"median": 0.1}, "verbs": [
                    ["create", {"median": 0.05}], ["exec", {"median": 0.02}],
                    ["events", {"median": 0.04}], ["kill", {"median": 0.01}]]},
                {"runtime": "crun", "run": {"median": 0.05}, "verbs": [
                    ["create", {"median": 0.05}], ["exec", {"median": 0.01}],
                    ["events", null], ["kill", {"median": 0.01}]]},
                {"runtime": "lazaret", "run": {"median": 0.25}, "verbs": [
                    ["create", {"median": 0.2}], ["exec", {"median": 0.03}],
                    ["events", {"median": 0.03}], ["kill", {"median": 0.04}]]},
            ],
            "microvm_seconds": {"median": 0.4},
        });
        let lines = times(&report);
        assert_eq!(
            words(&lines[0]),
            [
                "ms", "run", "x", "create", "exec", "x", "events", "x", "kill"
            ]
        );
        assert_eq!(
            words(&lines[1]),
            [
                "runc", "100.0", "1.00", "50.0", "20.0", "1.00", "40.0", "1.00", "10.0"
            ]
        );
        assert_eq!(
            words(&lines[2]),
            [
                "crun", "50.0", "0.50", "50.0", "10.0", "0.50", "-", "-", "10.0"
            ]
        );
        assert_eq!(
            words(&lines[3]),
            [
                "lazaret", "250.0", "2.50", "200.0", "30.0", "1.50", "30.0", "0.75", "40.0"
            ]
        );
        assert_eq!(words(&lines[4]), ["microvm", "400.0", "4.00"]);
        assert_eq!(lines[6], "run: 2.50 x (<= 3 x): met");
        assert_eq!(lines[7], "exec: 1.50 x (<= 1 x): NOT met");
    }

    #[test]
    fn memory_is_held_against_its_bars() {
        let sandbox = json!({
            "memory": {
                "processes": [{"name": "lazaret-vmm", "private_kib": 100, "file_kib": 7, "guest_touched_kib": 20}],
                "private_kib": 13 << 10,
                "guest_touched_kib": 20 << 10,
            },
            "idle": {"seconds": 60, "wakeups": 0, "cpu_us": 0, "vcpu_exits": 2, "vcpu_wakeups": 9, "vcpu_cpu_us": 1500},
        });
        let lines = of_sandbox(&sandbox);
        assert_eq!(words(&lines[1]), ["lazaret-vmm", "100", "7", "20"]);
        assert_eq!(lines[2], "private memory: 13.00 MiB (<= 12 MiB): NOT met");
        assert_eq!(lines[3], "guest touched: 20.00 MiB (<= 40 MiB): met");
        assert_eq!(lines[4], "wake-ups of ours in 60 s: 0.00 (<= 0): met");
        assert_eq!(lines[5], "vCPU exits to us in 60 s: 2.00 (<= 0): NOT met");
    }

    #[test]
    fn phases_have_their_share() {
        let timeline = json!({"title": "lazaret run /bin/true", "total_us": 2000, "phases": [
            {"done": "plan made", "process": "lazaret", "start_us": 0, "length_us": 500}]});
        assert_eq!(
            words(&of_phases(&timeline)[1]),
            ["0.50", "ms", "25.0", "%", "lazaret", "plan", "made"]
        );
    }
}
