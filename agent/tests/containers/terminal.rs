//! Ptys: size, names, ownership, end and hang-up.

use std::io::{Read, Write};

use lazaret_protocol::agent::{Answer, ExitStatus, FailureKind, Request, StdStream, TerminalSize};
use lazaret_protocol::container::Process;

use crate::harness::{Agent, SIZE, container, exec, init, shell};

fn interactive(script: &str) -> Process {
    let mut process = shell(script);
    process.terminal = Some(SIZE);
    process
}

#[test]
fn a_terminal_has_its_name_size_and_owner() {
    let agent = Agent::start();
    let script = "tty; stty size; test -t 0 && test -t 1 && test -t 2 && echo all; \
                  stat -c %u:%t /dev/pts/0; test /dev/console -ef /dev/pts/0; \
                  stat -c %t:%T /dev/console; ps -o pid,sid,tty | grep '^ *1 '";
    let mut wanted = container("c", interactive(script));
    wanted.process.user.uid = 1000;
    agent.create(&wanted).unwrap();
    let mut terminal = agent.stream(&init("c"), StdStream::Terminal).unwrap();
    agent.start_container("c").unwrap();
    let mut text = String::new();
    terminal.read_to_string(&mut text).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines[..5],
        ["/dev/pts/0", "33 77", "all", "1000:88", "88:0"],
        "{text}"
    );
    assert!(lines[5].contains("136,0"), "{text}");
    assert_eq!(agent.wait(&init("c")), ExitStatus::Exited(0));
    for absent in [StdStream::Stdin, StdStream::Stdout] {
        let failure = agent.stream(&init("c"), absent).unwrap_err();
        assert_eq!(failure.kind, FailureKind::NotFound);
    }
    agent.remove("c");
}

#[test]
fn input_is_echoed_and_the_size_changes() {
    let agent = Agent::start();
    // The signal must not come into a `read`, which it might end.
    let script = "trap 'stty size; sized=1' WINCH; echo ready; read x; echo got $x; \
        until [ $sized ]; do sleep 0.01; done; cat; echo eof";
    agent.create(&container("c", interactive(script))).unwrap();
    agent.start_container("c").unwrap();
    let mut terminal = agent.stream(&init("c"), StdStream::Terminal).unwrap();
    let expect = |text: &str, terminal: &mut std::os::unix::net::UnixStream| {
        let mut read = vec![0; text.len()];
        terminal.read_exact(&mut read).unwrap();
        assert_eq!(String::from_utf8(read).unwrap(), text);
    };
    expect("ready\r\n", &mut terminal);
    terminal.write_all(b"one\n").unwrap();
    expect("one\r\ngot one\r\n", &mut terminal);
    let resize = Request::Resize {
        process: init("c"),
        size: TerminalSize {
            rows: 5,
            columns: 6,
        },
    };
    assert_eq!(agent.call(&resize), Ok(Answer::Done));
    expect("5 6\r\n", &mut terminal);
    terminal.write_all(&[4]).unwrap();
    expect("eof\r\n", &mut terminal);
    let mut rest = Vec::new();
    terminal.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty());
    agent.remove("c");
}

#[test]
fn a_flood_on_a_terminal_arrives_whole() {
    let agent = Agent::start();
    let script = "stty -opost; seq 1 200000; echo end";
    agent.create(&container("c", interactive(script))).unwrap();
    agent.start_container("c").unwrap();
    let mut terminal = agent.stream(&init("c"), StdStream::Terminal).unwrap();
    let mut text = String::new();
    terminal.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("1\n2\n3\n"));
    assert!(text.ends_with("199999\n200000\nend\n"));
    assert_eq!(text.lines().count(), 200_001);
    agent.remove("c");
}

#[test]
fn closing_the_terminal_hangs_up() {
    let agent = Agent::start();
    let script = "trap 'exit 8' HUP; echo ready; while :; do sleep 0.01; done";
    agent.create(&container("c", interactive(script))).unwrap();
    agent.start_container("c").unwrap();
    let mut terminal = agent.stream(&init("c"), StdStream::Terminal).unwrap();
    let mut read = [0; 7];
    terminal.read_exact(&mut read).unwrap();
    drop(terminal);
    assert_eq!(agent.wait(&init("c")), ExitStatus::Exited(8));
    let resize = Request::Resize {
        process: init("c"),
        size: SIZE,
    };
    assert_eq!(agent.fails(&resize).kind, FailureKind::NotFound);
    agent.remove("c");
}

#[test]
fn a_further_process_has_a_terminal_of_its_own() {
    let agent = Agent::start();
    agent.create(&container("c", shell("sleep 1000"))).unwrap();
    agent.start_container("c").unwrap();
    let name = exec("c", "e");
    let script = "tty; stty size; sleep 1000 & exit 6";
    agent.exec(&name, &interactive(script)).unwrap();
    let mut terminal = agent.stream(&name, StdStream::Terminal).unwrap();
    let mut text = String::new();
    terminal.read_to_string(&mut text).unwrap();
    assert_eq!(text, "/dev/pts/0\r\n33 77\r\n");
    assert_eq!(agent.wait(&name), ExitStatus::Exited(6));
    agent.remove("c");
}

#[test]
fn a_terminal_needs_a_devpts() {
    let agent = Agent::start();
    let mut wanted = container("c", interactive("exit"));
    wanted
        .mounts
        .retain(|mount| mount.destination != "/dev/pts");
    let failure = agent.create(&wanted).unwrap_err();
    assert_eq!(
        failure.message,
        "/dev/pts/ptmx in the container's root: no such file or directory"
    );
    agent.assert_nothing_left();
}
