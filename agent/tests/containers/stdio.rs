//! Streams: nothing lost, nothing held back, ends where they belong.

use std::io::{Read, Write};
use std::thread;

use lazaret_protocol::agent::{ExitStatus, FailureKind, StdStream};
use lazaret_protocol::container::{PRESERVED_MAX, Stdio};

use crate::harness::{Agent, container, exec, init, send_all, shell};

const MIB: usize = 1 << 20;

#[test]
fn a_flood_arrives_whole() {
    let agent = Agent::start();
    let script = "dd if=/dev/zero bs=64k count=1024 2>/dev/null | tr '\\0' x; echo end";
    agent.create(&container("c", shell(script))).unwrap();
    agent.start_container("c").unwrap();
    let mut output = agent.stream(&init("c"), StdStream::Stdout).unwrap();
    let mut total = 0;
    let mut buffer = vec![0; MIB];
    let mut last = Vec::new();
    loop {
        let bytes = output.read(&mut buffer).unwrap();
        if bytes == 0 {
            break;
        }
        total += bytes;
        last.extend_from_slice(&buffer[bytes.saturating_sub(8)..bytes]);
        last.drain(..last.len().saturating_sub(8));
    }
    assert_eq!(total, 64 * MIB + 4);
    assert_eq!(last, b"xxxxend\n");
    assert_eq!(agent.wait(&init("c")), ExitStatus::Exited(0));
    agent.remove("c");
}

#[test]
fn input_reaches_the_process_and_ends() {
    let agent = Agent::start();
    let mut wanted = container("c", shell("md5sum; echo done"));
    wanted.process.stdio[0] = Stdio::Input;
    agent.create(&wanted).unwrap();
    let input = agent.stream(&init("c"), StdStream::Stdin).unwrap();
    agent.start_container("c").unwrap();
    let bytes: Vec<u8> = (0..8 * MIB).map(|at| (at * 7 + at / 251) as u8).collect();
    let output = thread::scope(|scope| {
        scope.spawn(|| send_all(&input, &bytes));
        agent.read_all(&init("c"), StdStream::Stdout)
    });
    let mut md5 = std::process::Command::new("md5sum")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    md5.stdin.take().unwrap().write_all(&bytes).unwrap();
    let expected = String::from_utf8(md5.wait_with_output().unwrap().stdout).unwrap();
    assert_eq!(output, format!("{expected}done\n"));
    agent.remove("c");
}

#[test]
fn a_process_that_ends_lets_go_of_its_input() {
    let agent = Agent::start();
    let mut wanted = container("c", shell("exit 0"));
    wanted.process.stdio[0] = Stdio::Input;
    agent.create(&wanted).unwrap();
    let mut input = agent.stream(&init("c"), StdStream::Stdin).unwrap();
    agent.start_container("c").unwrap();
    let mut rest = Vec::new();
    input.read_to_end(&mut rest).unwrap();
    agent.remove("c");
}

#[test]
fn output_waits_for_whoever_comes_late() {
    let agent = Agent::start();
    agent
        .create(&container("c", shell("echo early; echo error >&2")))
        .unwrap();
    agent.start_container("c").unwrap();
    assert_eq!(agent.wait(&init("c")), ExitStatus::Exited(0));
    assert_eq!(agent.read_all(&init("c"), StdStream::Stdout), "early\n");
    assert_eq!(agent.read_all(&init("c"), StdStream::Stderr), "error\n");
    let failure = agent.stream(&init("c"), StdStream::Stdout).unwrap_err();
    assert_eq!(failure.kind, FailureKind::Exists);
    for absent in [StdStream::Stdin, StdStream::Terminal] {
        let failure = agent.stream(&init("c"), absent).unwrap_err();
        assert_eq!(failure.kind, FailureKind::NotFound);
    }
    agent.remove("c");
}

#[test]
fn the_last_bytes_come_although_others_hold_the_pipe() {
    let agent = Agent::start();
    agent.create(&container("c", shell("sleep 1000"))).unwrap();
    agent.start_container("c").unwrap();
    for round in 0..20 {
        let name = exec("c", &format!("e{round}"));
        let script = "dd if=/dev/zero bs=1k count=60 2>/dev/null; sleep 1000 & exit 4";
        agent.exec(&name, &shell(script)).unwrap();
        if round % 2 == 0 {
            let stream = agent.stream(&name, StdStream::Stdout).unwrap();
            let mut bytes = Vec::new();
            (&stream).read_to_end(&mut bytes).unwrap();
            assert_eq!(bytes.len(), 60 * 1024);
            assert_eq!(agent.wait(&name), ExitStatus::Exited(4));
        } else {
            // Nobody reads until it has ended.
            let mut stream = agent.stream(&name, StdStream::Stdout).unwrap();
            assert_eq!(agent.wait(&name), ExitStatus::Exited(4));
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).unwrap();
            assert_eq!(bytes.len(), 60 * 1024);
        }
    }
    agent.remove("c");
}

#[test]
fn a_silent_process_with_a_child_that_holds_the_pipe_ends() {
    let agent = Agent::start();
    agent.create(&container("c", shell("sleep 1000"))).unwrap();
    agent.start_container("c").unwrap();
    let name = exec("c", "e");
    agent.exec(&name, &shell("sleep 1000 & exit 0")).unwrap();
    assert_eq!(agent.read_all(&name, StdStream::Stdout), "");
    agent.remove("c");
}

#[test]
fn a_process_whose_reader_has_gone_gets_sigpipe() {
    let agent = Agent::start();
    let mut wanted = container("c", shell("yes; exit $?"));
    wanted.process.stdio[0] = Stdio::Input;
    agent.create(&wanted).unwrap();
    let mut output = agent.stream(&init("c"), StdStream::Stdout).unwrap();
    agent.start_container("c").unwrap();
    let mut some = [0; 4096];
    output.read_exact(&mut some).unwrap();
    drop(output);
    let broken_pipe = 128 + libc::SIGPIPE as u8;
    assert_eq!(agent.wait(&init("c")), ExitStatus::Exited(broken_pipe));
    agent.remove("c");
}

#[test]
fn a_silent_process_learns_of_its_reader_by_the_next_write() {
    let agent = Agent::start();
    let mut wanted = container("c", shell("read x; sleep 0.1; cat /dev/zero; exit 5"));
    wanted.process.stdio[0] = Stdio::Input;
    agent.create(&wanted).unwrap();
    let output = agent.stream(&init("c"), StdStream::Stdout).unwrap();
    let mut input = agent.stream(&init("c"), StdStream::Stdin).unwrap();
    agent.start_container("c").unwrap();
    drop(output);
    input.write_all(b"\n").unwrap();
    assert_eq!(agent.wait(&init("c")), ExitStatus::Exited(5));
    agent.remove("c");
}

#[test]
fn ending_the_unused_direction_of_an_output_hangs_up() {
    let agent = Agent::start();
    let mut wanted = container("c", shell("read x; yes; exit $?"));
    wanted.process.stdio[0] = Stdio::Input;
    agent.create(&wanted).unwrap();
    let mut output = agent.stream(&init("c"), StdStream::Stdout).unwrap();
    let mut input = agent.stream(&init("c"), StdStream::Stdin).unwrap();
    agent.start_container("c").unwrap();
    output.shutdown(std::net::Shutdown::Write).unwrap();
    let mut text = String::new();
    output.read_to_string(&mut text).unwrap();
    assert_eq!(text, "");
    input.write_all(b"\n").unwrap();
    let broken_pipe = 128 + libc::SIGPIPE as u8;
    assert_eq!(agent.wait(&init("c")), ExitStatus::Exited(broken_pipe));
    agent.remove("c");
}

/// The kernel holds the lock of the pipe while `sendfile(2)` waits for a socket to say something.
#[test]
fn a_locked_pipe_holds_up_its_own_stream_only() {
    let agent = Agent::start();
    let mut wanted = container("c", shell("echo early; exec cat <&3"));
    wanted.process.preserved = vec![Stdio::Both];
    agent.create(&wanted).unwrap();
    let silent = agent.stream(&init("c"), StdStream::Descriptor(3)).unwrap();
    agent.start_container("c").unwrap();
    let sendfile = format!("{} ", libc::SYS_sendfile);
    agent.wait_until(|| {
        let calls = agent
            .processes()
            .into_iter()
            .map(|pid| std::fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default());
        calls.into_iter().any(|call| call.starts_with(&sendfile))
    });
    let mut output = agent.stream(&init("c"), StdStream::Stdout).unwrap();
    agent.exec(&exec("c", "e"), &shell("exit 3")).unwrap();
    assert_eq!(agent.wait(&exec("c", "e")), ExitStatus::Exited(3));
    agent.kill(&init("c"));
    assert_eq!(agent.wait(&init("c")), ExitStatus::Signaled(9));
    let mut text = String::new();
    output.read_to_string(&mut text).unwrap();
    assert_eq!(text, "early\n");
    drop(silent);
    agent.remove("c");
}

#[test]
fn streams_without_a_pipe_are_null() {
    let agent = Agent::start();
    let mut wanted = container("c", shell("cat; echo x >&2; readlink /proc/self/fd/0"));
    wanted.process.stdio = [Stdio::Null, Stdio::Output, Stdio::Null];
    agent.create(&wanted).unwrap();
    agent.start_container("c").unwrap();
    let output = agent.read_all(&init("c"), StdStream::Stdout);
    assert_eq!(output, "/dev/null\n");
    agent.remove("c");
}

#[test]
fn the_program_inherits_nothing_else() {
    let agent = Agent::start();
    let finished = agent.run(&container("c", shell("ls /proc/self/fd | wc -l")));
    // The three streams and the directory `ls` reads.
    assert_eq!(finished.output(), "4");
}

#[test]
fn descriptors_beside_the_standard_streams_are_where_they_belong() {
    let agent = Agent::start();
    let script = "ls /proc/self/fd | wc -l; cat <&3; echo out >&4; read x <&6; echo $x >&6; \
                  readlink /proc/self/fd/5";
    let mut wanted = container("c", shell(script));
    wanted.process.preserved = vec![Stdio::Input, Stdio::Output, Stdio::Null, Stdio::Both];
    agent.create(&wanted).unwrap();
    let stream = |number| agent.stream(&init("c"), StdStream::Descriptor(number));
    let (mut input, mut output, mut both) =
        (stream(3).unwrap(), stream(4).unwrap(), stream(6).unwrap());
    for (number, kind) in [(5, FailureKind::NotFound), (4, FailureKind::Exists)] {
        assert_eq!(stream(number).unwrap_err().kind, kind);
    }
    for absent in [7, u32::MAX] {
        assert_eq!(stream(absent).unwrap_err().kind, FailureKind::NotFound);
    }
    agent.start_container("c").unwrap();
    input.write_all(b"in\n").unwrap();
    input.shutdown(std::net::Shutdown::Write).unwrap();
    both.write_all(b"to and fro\n").unwrap();
    let (mut text, mut answer) = (String::new(), String::new());
    output.read_to_string(&mut text).unwrap();
    both.read_to_string(&mut answer).unwrap();
    assert_eq!((text.as_str(), answer.as_str()), ("out\n", "to and fro\n"));
    // Three streams, four more, and the directory `ls` reads.
    let output = agent.read_all(&init("c"), StdStream::Stdout);
    assert_eq!(output, "8\nin\n/dev/null\n");
    agent.remove("c");
}

#[test]
fn a_further_process_has_descriptors_of_its_own() {
    let agent = Agent::start();
    agent.create(&container("c", shell("sleep 1000"))).unwrap();
    agent.start_container("c").unwrap();
    // More than the agent's own descriptors, which must not get in the way.
    let mut wanted = shell("ls /proc/self/fd | wc -l; echo last >&66");
    wanted.preserved = vec![Stdio::Output; PRESERVED_MAX];
    let name = exec("c", "e");
    agent.exec(&name, &wanted).unwrap();
    assert_eq!(agent.read_all(&name, StdStream::Descriptor(66)), "last\n");
    assert_eq!(agent.read_all(&name, StdStream::Descriptor(3)), "");
    assert_eq!(agent.read_all(&name, StdStream::Stdout), "68\n");
    agent.remove("c");
}

#[test]
fn a_socket_is_closed_one_direction_at_a_time() {
    let agent = Agent::start();
    let script = "cat <&3; echo answer >&3; exec 3>&-; sleep 1000";
    let mut wanted = container("c", shell(script));
    wanted.process.preserved = vec![Stdio::Both];
    agent.create(&wanted).unwrap();
    let mut socket = agent.stream(&init("c"), StdStream::Descriptor(3)).unwrap();
    agent.start_container("c").unwrap();
    let bytes = vec![b'x'; MIB];
    let output = thread::scope(|scope| {
        scope.spawn(|| {
            send_all(&socket, &bytes);
        });
        let mut output = agent.stream(&init("c"), StdStream::Stdout).unwrap();
        let mut got = vec![0; MIB];
        output.read_exact(&mut got).unwrap();
        got
    });
    assert_eq!(output, bytes);
    socket.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "answer\n");
    agent.remove("c");
}

#[test]
fn whoever_is_left_on_one_side_learns_it_without_a_byte() {
    let agent = Agent::start();
    let mut wanted = container("c", shell("exec 3<&- 4>&-; echo closed; sleep 1000"));
    wanted.process.preserved = vec![Stdio::Input, Stdio::Both, Stdio::Both];
    agent.create(&wanted).unwrap();
    let stream = |number| agent.stream(&init("c"), StdStream::Descriptor(number));
    let (input, both) = (stream(3).unwrap(), stream(4).unwrap());
    agent.start_container("c").unwrap();
    // Nothing was sent, so this is the end and no reset.
    for end in [&input, &both] {
        assert_eq!({ end }.read(&mut [0]).unwrap(), 0);
        // It takes the agent a moment to close what it has shut down.
        agent.wait_until(|| { end }.write_all(b"x").is_err());
    }
    // And the other way round.
    let name = exec("c", "e");
    let mut wanted = shell("trap '' PIPE; cat <&3; while echo x >&3; do :; done; exit 5");
    wanted.preserved = vec![Stdio::Both];
    agent.exec(&name, &wanted).unwrap();
    drop(agent.stream(&name, StdStream::Descriptor(3)).unwrap());
    assert_eq!(agent.wait(&name), ExitStatus::Exited(5));
    agent.remove("c");
}

#[test]
fn the_last_bytes_come_although_others_hold_the_socket() {
    let agent = Agent::start();
    agent.create(&container("c", shell("sleep 1000"))).unwrap();
    agent.start_container("c").unwrap();
    for round in 0..10 {
        let name = exec("c", &format!("e{round}"));
        let mut wanted =
            shell("dd if=/dev/zero bs=1k count=60 2>/dev/null >&3; sleep 1000 & exit 4");
        wanted.preserved = vec![Stdio::Both];
        agent.exec(&name, &wanted).unwrap();
        let mut stream = agent.stream(&name, StdStream::Descriptor(3)).unwrap();
        if round % 2 == 0 {
            assert_eq!(agent.wait(&name), ExitStatus::Exited(4));
        }
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len(), 60 * 1024);
    }
    agent.remove("c");
}
