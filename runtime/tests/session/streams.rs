//! Standard streams: nothing lost, nothing mixed up, ends seen on both sides, memory flat.

use std::{
    io::{Read as _, Write as _},
    process::Stdio,
};

use crate::harness::{Place, ends, wait};

/// More than any buffer on the way holds.
const MUCH_BYTES: usize = 64 << 20;

#[test]
fn output_and_errors_arrive_apart() {
    let place = Place::new();
    place.bundle(&["sh", "-c", "echo out; echo err >&2; exit 5"], |_| {});
    let output = place.call(&["run", "c"]);
    assert_eq!(output.stdout, b"out\n");
    assert_eq!(output.stderr, b"err\n");
    assert_eq!(output.status.code(), Some(5));
}

#[test]
fn input_ends_when_it_ends() {
    let place = Place::new();
    let mut run = place.run_piped(&["cat"]);
    run.stdin.take().unwrap().write_all(b"to and fro").unwrap();
    let output = run.wait_with_output().unwrap();
    assert_eq!(output.stdout, b"to and fro");
    assert!(output.status.success());
}

#[test]
fn files_and_null_are_streams_too() {
    let place = Place::new();
    place.bundle(&["sh", "-c", "cat; echo done"], |_| {});
    let (input, output) = (place.path().join("in"), place.path().join("out"));
    std::fs::write(&input, vec![b'x'; 300_000]).unwrap();
    for stdin in [
        Stdio::from(std::fs::File::open(&input).unwrap()),
        Stdio::null(),
    ] {
        let mut run = place.command(&["run", "c"]);
        run.stdin(stdin)
            .stdout(std::fs::File::create(&output).unwrap());
        assert!(run.status().unwrap().success());
    }
    assert_eq!(std::fs::read(&output).unwrap(), b"done\n");
}

#[test]
fn sockets_are_streams_too() {
    let place = Place::new();
    place.bundle(&["cat"], |_| {});
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let theirs = std::os::fd::OwnedFd::from(theirs);
    let mut command = place.command(&["run", "c"]);
    command.stdin(theirs.try_clone().unwrap()).stdout(theirs);
    let mut run = command.spawn().unwrap();
    drop(command);
    (&ours).write_all(&[b'y'; 200_000]).unwrap();
    ours.shutdown(std::net::Shutdown::Write).unwrap();
    let mut back = Vec::new();
    (&ours).read_to_end(&mut back).unwrap();
    assert_eq!(back.len(), 200_000);
    assert_eq!(ends(&mut run), 0);
}

#[test]
fn much_passes_both_ways_and_memory_stays_flat() {
    let place = Place::new();
    let mut run = place.run_piped(&["cat"]);
    let mut stdin = run.stdin.take().unwrap();
    let writer = std::thread::spawn(move || {
        let chunk: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
        for _ in 0..MUCH_BYTES >> 20 {
            stdin.write_all(&chunk).unwrap();
        }
    });
    let mut stdout = run.stdout.take().unwrap();
    let mut buffer = vec![0; 1 << 20];
    let (mut total, mut next, mut peak_kib) = (0, 0_u8, 0);
    loop {
        let bytes = stdout.read(&mut buffer).unwrap();
        if bytes == 0 {
            break;
        }
        for &byte in &buffer[..bytes] {
            assert_eq!(byte, next);
            next = next.wrapping_add(1);
        }
        if total == 0 {
            peak_kib = private_kib(place.pid("c"));
        }
        if total < MUCH_BYTES / 2 && total + bytes >= MUCH_BYTES / 2 {
            let now_kib = private_kib(place.pid("c"));
            assert!(
                now_kib < peak_kib + 512,
                "grew from {peak_kib} to {now_kib} KiB"
            );
        }
        total += bytes;
    }
    writer.join().unwrap();
    assert_eq!(total, MUCH_BYTES);
    assert_eq!(ends(&mut run), 0);
}

fn private_kib(pid: i32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    text.lines()
        .filter(|line| line.starts_with("Private_"))
        .map(|line| {
            line.split_whitespace()
                .nth(1)
                .unwrap()
                .parse::<u64>()
                .unwrap()
        })
        .sum()
}

#[test]
fn a_reader_that_goes_away_ends_the_writer() {
    let place = Place::new();
    place.bundle(&["yes"], |_| {});
    let mut run = place
        .command(&["run", "c"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut some = [0; 1000];
    run.stdout.take().unwrap().read_exact(&mut some).unwrap();
    // SIGPIPE.
    assert_eq!(ends(&mut run), 128 + 13);
}

#[test]
fn a_slow_reader_gets_everything() {
    let place = Place::new();
    // More than the pipes hold, so that the process has ended long before it is read.
    place.bundle(&["sh", "-c", "head -c 100000 /dev/zero"], |_| {});
    let mut run = place
        .command(&["run", "c"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    wait("it runs", || !place.leftovers().is_empty());
    std::thread::sleep(std::time::Duration::from_millis(700));
    let mut all = Vec::new();
    run.stdout.take().unwrap().read_to_end(&mut all).unwrap();
    assert_eq!(all.len(), 100_000);
    assert_eq!(ends(&mut run), 0);
}

#[test]
fn a_child_that_keeps_the_streams_does_not_keep_us() {
    let place = Place::new();
    place.bundle(&["sh", "-c", "sleep 5 & echo $!"], |_| {});
    let start = std::time::Instant::now();
    let output = place.call(&["run", "c"]);
    assert!(start.elapsed() < std::time::Duration::from_secs(4));
    let pid = String::from_utf8(output.stdout).unwrap().trim().parse();
    crate::harness::signal(pid.unwrap(), nix::sys::signal::Signal::SIGKILL);
}

#[test]
fn a_detached_container_lets_go_of_closed_streams() {
    let place = Place::new();
    place.bundle(&["sh", "-c", "exec >&- 2>&- <&-; exec sleep 1000"], |_| {});
    let (mut reader, writer) = std::io::pipe().unwrap();
    let status = place
        .command(&["run", "-d", "c"])
        .stdout(writer)
        .status()
        .unwrap();
    assert!(status.success());
    let mut rest = Vec::new();
    reader.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty());
    place.ok(&["delete", "-f", "c"]);
}

#[test]
fn one_pipe_for_output_and_errors_ends_when_the_process_closes_both() {
    let place = Place::new();
    let script = "echo out; echo err >&2; exec >&- 2>&-; exec sleep 60";
    place.bundle(&["sh", "-c", script], |_| {});
    for arguments in [
        &["run", "-d", "c"][..],
        &["exec", "-d", "c", "sh", "-c", script],
    ] {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let mut command = place.command(arguments);
        command.stdout(writer.try_clone().unwrap()).stderr(writer);
        assert!(command.status().unwrap().success());
        drop(command);
        let mut lines = String::new();
        reader.read_to_string(&mut lines).unwrap();
        let mut lines: Vec<&str> = lines.lines().collect();
        // Two streams have no order between them.
        lines.sort_unstable();
        assert_eq!(lines, ["err", "out"], "{arguments:?}");
    }
    assert_eq!(place.status("c"), "running");
    place.ok(&["delete", "-f", "c"]);
}

#[test]
fn one_pipe_ends_with_the_streams_of_a_container_that_was_created_first() {
    let place = Place::new();
    place.bundle(&["sh", "-c", "exec >&- 2>&-; exec sleep 60"], |_| {});
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut command = place.command(&["create", "c"]);
    command.stdout(writer.try_clone().unwrap()).stderr(writer);
    assert!(command.status().unwrap().success());
    drop(command);
    place.ok(&["start", "c"]);
    assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    assert_eq!(place.status("c"), "running");
    place.ok(&["delete", "-f", "c"]);
}
