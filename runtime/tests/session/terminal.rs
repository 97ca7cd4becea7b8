//! Ptys: the console socket, sizes, and the caller's own terminal.

use std::{
    fs::File,
    io::{IoSliceMut, Read as _, Write as _},
    mem::MaybeUninit,
    os::{
        fd::OwnedFd,
        unix::{net::UnixListener, process::CommandExt as _},
    },
};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use serde_json::json;

use crate::harness::{Place, ends, wait};

fn receive_master(listener: &UnixListener) -> File {
    let (connection, _) = listener.accept().unwrap();
    let mut name = [0; 64];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = rustix::net::recvmsg(
        &connection,
        &mut [IoSliceMut::new(&mut name)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )
    .unwrap();
    assert!(message.bytes > 0, "the descriptor has a name");
    let fd: OwnedFd = control
        .drain()
        .find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        })
        .unwrap();
    fd.into()
}

fn read_until(file: &mut File, wanted: &str) -> String {
    let mut text = String::new();
    let mut buffer = [0; 4096];
    while !text.contains(wanted) {
        let bytes = file.read(&mut buffer).unwrap();
        assert!(bytes > 0, "ended after {text:?}");
        text.push_str(&String::from_utf8_lossy(&buffer[..bytes]));
    }
    text
}

fn resize(file: &File, rows: u16, columns: u16) {
    let size = rustix::termios::Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    rustix::termios::tcsetwinsize(file, size).unwrap();
}

#[test]
fn the_console_socket_gets_a_terminal_that_obeys() {
    let place = Place::new();
    place.bundle(&["sh"], |config| {
        config["process"]["terminal"] = json!(true);
        config["process"]["consoleSize"] = json!({"height": 11, "width": 22});
    });
    let socket = place.path().join("console.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let socket = socket.to_str().unwrap();
    let mut create = place
        .command(&["create", "--console-socket", socket, "c"])
        .spawn()
        .unwrap();
    let mut master = receive_master(&listener);
    assert_eq!(ends(&mut create), 0);
    let size = rustix::termios::tcgetwinsize(&master).unwrap();
    assert_eq!((size.ws_row, size.ws_col), (11, 22));
    place.ok(&["start", "c"]);

    master.write_all(b"tty; echo $((40 + 2))\n").unwrap();
    read_until(&mut master, "42\r\n");
    resize(&master, 33, 44);
    // The size travels on its own way, so ask until it is there.
    wait("the size arrives", || {
        master.write_all(b"stty size; echo done\n").unwrap();
        // Once in the echo, once in the output.
        let text = read_until(&mut master, "\r\ndone\r\n");
        text.contains("33 44")
    });
    master.write_all(b"exit 6\n").unwrap();
    place.wait_status("c", "stopped");
    place.ok(&["delete", "c"]);
}

#[test]
fn exec_gets_a_terminal_as_well() {
    let place = Place::new();
    place.run_detached(&["sleep", "1000"]);
    let socket = place.path().join("console.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let socket = socket.to_str().unwrap();
    let mut exec = place
        .command(&["exec", "-t", "-d", "--console-socket", socket, "c", "sh"])
        .spawn()
        .unwrap();
    let mut master = receive_master(&listener);
    assert_eq!(ends(&mut exec), 0);
    master.write_all(b"echo $((1 + 1))3\n").unwrap();
    read_until(&mut master, "23\r\n");
    master.write_all(b"exit\n").unwrap();
    place.ok(&["delete", "-f", "c"]);
}

#[test]
fn the_callers_terminal_is_raw_meanwhile_and_as_before_afterwards() {
    let place = Place::new();
    place.bundle(&["sh"], |config| {
        config["process"]["terminal"] = json!(true)
    });
    let pty = nix::pty::openpty(None, None).unwrap();
    let before = rustix::termios::tcgetattr(&pty.slave).unwrap();
    let mut command = place.command(&["run", "c"]);
    command
        .stdin(pty.slave.try_clone().unwrap())
        .stdout(pty.slave.try_clone().unwrap())
        .stderr(pty.slave.try_clone().unwrap());
    // SAFETY: the closure makes two system calls and touches no memory of the parent.
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid()?;
            rustix::process::ioctl_tiocsctty(std::io::stdin())?;
            Ok(())
        });
    }
    let mut run = command.spawn().unwrap();
    let mut master = File::from(pty.master);
    master.write_all(b"echo $((40 + 2))\n").unwrap();
    read_until(&mut master, "42\r\n");
    let local = |termios: &rustix::termios::Termios| termios.local_modes;
    let during = rustix::termios::tcgetattr(&pty.slave).unwrap();
    assert!(local(&during) != local(&before), "it is not raw");
    resize(&master, 55, 66);
    wait("the size arrives", || {
        master.write_all(b"stty size; echo done\n").unwrap();
        read_until(&mut master, "\r\ndone\r\n").contains("55 66")
    });
    // A monitor that crashes must not leave the terminal raw.
    crate::harness::signal(place.pid("c"), nix::sys::signal::Signal::SIGKILL);
    assert_eq!(ends(&mut run), 255);
    let after = rustix::termios::tcgetattr(&pty.slave).unwrap();
    assert!(local(&after) == local(&before), "it is still raw");
}

#[test]
fn who_has_the_terminal_is_decided_first() {
    let place = Place::new();
    place.bundle(&["sh"], |config| {
        config["process"]["terminal"] = json!(true)
    });
    assert_eq!(
        place.fails(1, &["create", "c"]),
        "--console-socket: cannot allocate tty if lazaret will detach without setting console socket"
    );
    assert_eq!(
        place.fails(1, &["run", "--console-socket", "/x", "c"]),
        "--console-socket: cannot use console socket if lazaret will not detach or allocate tty"
    );
    assert_eq!(
        place.fails(1, &["create", "--console-socket", "/no/such/socket", "c"]),
        "cannot connect to console socket /no/such/socket: no such file or directory"
    );
}
