//! What holds for every process of a container: its filter of system calls, its execution domain,
//! its clocks; and how one process is scheduled.

use lazaret_protocol::agent::StdStream;
use lazaret_protocol::container::{
    Capabilities, CpuAffinity, Namespace, NamespaceKind, Scheduler, Seccomp, SockFilter, TimeOffset,
};

use crate::harness::{Agent, container, exec, process, shell};

/// A filter under which `mkdir(2)` fails with `EOPNOTSUPP`.
fn no_mkdir() -> Seccomp {
    let step = |code: u32, jump_false: u8, operand: u32| SockFilter {
        code: code as u16,
        jump_true: 0,
        jump_false,
        operand,
    };
    let (load, equal, result) = (
        libc::BPF_LD | libc::BPF_W | libc::BPF_ABS,
        libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
        libc::BPF_RET | libc::BPF_K,
    );
    Seccomp {
        flags: 0,
        program: vec![
            step(load, 0, 0),
            step(equal, 1, libc::SYS_mkdir as u32),
            step(result, 0, libc::SECCOMP_RET_ERRNO | libc::EOPNOTSUPP as u32),
            step(result, 0, libc::SECCOMP_RET_ALLOW),
        ],
    }
}

const SCRIPT: &str = "grep -E '^(Seccomp|CapEff):' /proc/self/status; mkdir /tmp/made 2>&1";

#[test]
fn a_filter_holds_with_and_without_new_privileges() {
    let agent = Agent::start();
    for no_new_privileges in [false, true] {
        for uid in [0, 1000] {
            let name = format!("c{uid}{no_new_privileges}");
            let mut wanted = container(&name, shell(SCRIPT));
            wanted.seccomp = Some(no_mkdir());
            wanted.process.no_new_privileges = no_new_privileges;
            wanted.process.user.uid = uid;
            let kill = 1 << 5;
            wanted.process.capabilities = Capabilities {
                bounding: kill,
                effective: kill,
                permitted: kill,
                inheritable: kill,
                ambient: kill,
            };
            let finished = agent.run(&wanted);
            let words: Vec<&str> = finished.output.split_whitespace().collect();
            assert_eq!(words[..4], ["CapEff:", "0000000000000020", "Seccomp:", "2"]);
            assert!(finished.output.contains("not supported"), "{finished:?}");
        }
    }
}

#[test]
fn what_the_kernel_does_not_take_is_refused() {
    let agent = Agent::start();
    let mut wanted = container("c", process(&["true"]));
    let return_nothing = SockFilter {
        code: 0,
        jump_true: 0,
        jump_false: 0,
        operand: 0,
    };
    for (filter, message) in [
        (
            Seccomp {
                flags: 1 << 30,
                ..no_mkdir()
            },
            "load the seccomp filter of 4 instructions: invalid argument",
        ),
        (
            Seccomp {
                flags: 0,
                program: vec![return_nothing],
            },
            "load the seccomp filter of 1 instructions: invalid argument",
        ),
        (
            Seccomp {
                flags: 0,
                program: vec![return_nothing; 4097],
            },
            "load the seccomp filter of 4097 instructions: argument list too long",
        ),
    ] {
        wanted.seccomp = Some(filter);
        wanted.process.no_new_privileges = false;
        assert_eq!(agent.create(&wanted).unwrap_err().message, message);
    }
}

#[test]
fn scheduling_is_set_or_refused() {
    let agent = Agent::start();
    // Fields 19 and 41: nice value and policy.
    let script = "cut -d' ' -f19,41 /proc/self/stat";
    let mut wanted = container("c", shell(script));
    let batch = Scheduler {
        policy: libc::SCHED_BATCH as u32,
        nice: 5,
        ..Scheduler::default()
    };
    wanted.process.scheduler = Some(batch);
    wanted.process.io_priority = Some(2 << 13 | 7);
    assert_eq!(agent.run(&wanted).output(), "5 3");
    wanted.process.scheduler = Some(Scheduler {
        policy: 77,
        ..batch
    });
    assert_eq!(
        agent.create(&wanted).unwrap_err().message,
        "set the scheduling policy 77: invalid argument"
    );
    wanted.process.scheduler = None;
    wanted.process.io_priority = Some(7 << 13 | 1);
    assert_eq!(
        agent.create(&wanted).unwrap_err().message,
        "set the I/O priority to class 7, level 1: invalid argument"
    );
    wanted.process.io_priority = None;
    wanted.process.cpu_affinity = CpuAffinity {
        initial: vec![],
        last: vec![1023],
    };
    assert_eq!(
        agent.create(&wanted).unwrap_err().message,
        "run on CPUs [1023]: invalid argument"
    );
}

#[test]
fn further_processes_are_bound_too() {
    let agent = Agent::start();
    let mut wanted = container("c", process(&["sleep", "1000"]));
    wanted.seccomp = Some(no_mkdir());
    wanted.personality = Some(8);
    wanted.namespaces.push(Namespace {
        kind: NamespaceKind::Time,
        of: None,
    });
    wanted.time_offsets = vec![TimeOffset {
        clock: libc::CLOCK_BOOTTIME,
        seconds: 1_000_000_000,
        nanoseconds: 0,
    }];
    agent.create(&wanted).unwrap();
    agent.start_container("c").unwrap();
    let script = "uname -m; cut -c1-2 /proc/uptime; mkdir /tmp/made 2>&1";
    let name = exec("c", "e");
    agent.exec(&name, &shell(script)).unwrap();
    let output = agent.read_all(&name, StdStream::Stdout);
    assert!(output.starts_with("i686\n10\n"), "{output}");
    assert!(output.contains("not supported"), "{output}");
}

#[test]
fn a_clock_that_would_be_negative_is_refused() {
    let agent = Agent::start();
    let mut wanted = container("c", process(&["true"]));
    wanted.namespaces.push(Namespace {
        kind: NamespaceKind::Time,
        of: None,
    });
    wanted.time_offsets = vec![TimeOffset {
        clock: libc::CLOCK_MONOTONIC,
        seconds: -1_000_000_000,
        nanoseconds: 0,
    }];
    assert_eq!(
        agent.create(&wanted).unwrap_err().message,
        "set the clocks of the time namespace to the offsets of linux.timeOffsets"
    );
}
