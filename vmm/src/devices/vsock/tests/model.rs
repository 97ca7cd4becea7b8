//! The protocol of one connection against random packets of a hostile guest and random events of
//! the host: bounds hold, nothing panics, and every connection can be brought to its end.

use proptest::prelude::*;

use super::super::{
    connection::{Connection, Received, SHUTDOWN_BOTH},
    packet::{Header, op},
};

const WINDOW: u32 = 4096;

#[derive(Debug, Clone)]
enum Step {
    Packet {
        op: u16,
        len: u32,
        flags: u32,
        buf_alloc: u32,
        taken: Taken,
    },
    Forward(u32),
    HostBytes(u32),
    HostEnd,
    HostTakesNoMore,
    HostGone,
    Send,
}

/// What the guest claims to have taken.
#[derive(Debug, Clone, Copy)]
enum Taken {
    All,
    Some(u32),
    Lie(u32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let taken = prop_oneof![
        4 => Just(Taken::All),
        2 => (0_u32..5000).prop_map(Taken::Some),
        1 => any::<u32>().prop_map(Taken::Lie),
    ];
    let ops = prop_oneof![
        6 => Just(op::RW),
        2 => Just(op::CREDIT_UPDATE),
        2 => Just(op::RESPONSE),
        1 => Just(op::SHUTDOWN),
        1 => 0_u16..10,
    ];
    let len = prop_oneof![8 => 0_u32..1500, 1 => any::<u32>()];
    let flags = prop_oneof![4 => 0_u32..4, 1 => any::<u32>()];
    let window = prop_oneof![4 => 0_u32..10_000, 1 => any::<u32>()];
    let step = prop_oneof![
        8 => (ops, len, flags, window, taken).prop_map(|(op, len, flags, buf_alloc, taken)| {
            Step::Packet { op, len, flags, buf_alloc, taken }
        }),
        4 => (0_u32..3000).prop_map(Step::Forward),
        4 => (1_u32..5000).prop_map(Step::HostBytes),
        6 => Just(Step::Send),
        1 => Just(Step::HostEnd),
        1 => Just(Step::HostTakesNoMore),
        1 => Just(Step::HostGone),
    ];
    prop::collection::vec(step, 0..80)
}

/// What a bystander knows of the connection.
#[derive(Default)]
struct Observed {
    waiting: u64,
    sent: u32,
    believed: u32,
    ended: bool,
    shutdowns: u32,
}

fn apply(connection: &mut Connection, seen: &mut Observed, step: &Step) {
    match step {
        Step::Packet {
            op,
            len,
            flags,
            buf_alloc,
            taken,
        } => {
            let fwd_cnt = match taken {
                Taken::All => seen.sent,
                Taken::Some(bytes) => seen.sent.wrapping_sub(*bytes),
                Taken::Lie(count) => *count,
            };
            let header = Header {
                op: *op,
                len: *len,
                flags: *flags,
                buf_alloc: *buf_alloc,
                fwd_cnt,
                ..Header::default()
            };
            match connection.receive(&header) {
                Received::Payload => seen.waiting += u64::from(*len),
                Received::Ended => seen.ended = true,
                Received::Accepted => assert_eq!(*op, op::RESPONSE),
                Received::Violation | Received::Nothing => {}
            }
        }
        Step::Forward(bytes) => {
            let bytes = (*bytes).min(connection.buffered());
            connection.forwarded(bytes);
            seen.waiting -= u64::from(bytes);
        }
        Step::HostBytes(bytes) => {
            let room = connection.room();
            if room == 0 {
                if connection.reads_host() {
                    connection.stalled();
                }
            } else {
                connection.sent(room.min(*bytes));
                seen.sent = seen.sent.wrapping_add(room.min(*bytes));
            }
        }
        Step::HostEnd => connection.host_sends_no_more(),
        Step::HostTakesNoMore => connection.host_receives_no_more(),
        Step::HostGone => connection.host_gone(),
        Step::Send => {
            if let Some(control) = connection.due() {
                assert!(!seen.ended, "{control:?} after the end");
                connection.tell(control);
                match control.op {
                    op::RST => seen.ended = true,
                    op::SHUTDOWN => {
                        assert_ne!(control.flags, seen.shutdowns, "nothing new to tell");
                        assert_eq!(control.flags & seen.shutdowns, seen.shutdowns);
                        seen.shutdowns = control.flags;
                    }
                    _ => {}
                }
                let (window, taken) = connection.stamp();
                assert_eq!(window, WINDOW);
                seen.believed = taken;
            }
        }
    }
    assert_eq!(u64::from(connection.buffered()), seen.waiting);
    assert!(
        connection.buffered() <= WINDOW,
        "more buffered than promised"
    );
    assert_eq!(connection.ended(), seen.ended);
    if seen.ended {
        assert_eq!(connection.room(), 0);
        assert!(connection.due().is_none());
    }
}

/// Both sides leave: however they stand, the connection is over after a bounded exchange.
fn bring_to_end(connection: &mut Connection, seen: &mut Observed) {
    apply(connection, seen, &Step::Forward(u32::MAX));
    apply(connection, seen, &Step::HostGone);
    for _ in 0..4 {
        apply(connection, seen, &Step::Send);
    }
    if !connection.ended() {
        assert_eq!(seen.shutdowns, SHUTDOWN_BOTH, "the guest was told to leave");
        let reset = Step::Packet {
            op: op::RST,
            len: 0,
            flags: 0,
            buf_alloc: 0,
            taken: Taken::All,
        };
        apply(connection, seen, &reset);
    }
    assert!(connection.ended());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn connections_of_the_host_keep_their_bounds_and_end(steps in steps()) {
        let mut connection = Connection::from_host(WINDOW);
        let mut seen = Observed::default();
        // Most of the protocol is behind this.
        apply(&mut connection, &mut seen, &Step::Send);
        for step in &steps {
            apply(&mut connection, &mut seen, step);
        }
        bring_to_end(&mut connection, &mut seen);
    }

    #[test]
    fn connections_of_the_guest_keep_their_bounds_and_end(window in any::<u32>(), steps in steps()) {
        let request = Header { op: op::REQUEST, buf_alloc: window, ..Header::default() };
        let mut connection = Connection::from_guest(WINDOW, &request);
        let mut seen = Observed::default();
        for step in &steps {
            apply(&mut connection, &mut seen, step);
        }
        bring_to_end(&mut connection, &mut seen);
    }

    /// A guest that keeps to its credit is never reset and never starves, whatever its window.
    #[test]
    fn honest_senders_are_never_stuck(window in 1_u32..20_000, sizes in prop::collection::vec(1_u32..9000, 1..200)) {
        let mut connection = Connection::from_host(WINDOW);
        let control = connection.due().unwrap();
        connection.tell(control);
        let packet = |op, len| Header { op, len, buf_alloc: window, ..Header::default() };
        assert_eq!(connection.receive(&packet(op::RESPONSE, 0)), Received::Accepted);
        let (mut sent, mut believed) = (0_u32, 0_u32);
        for size in sizes {
            // As Linux does: the smaller one of both windows.
            let free = window.min(WINDOW) - (sent - believed);
            prop_assert!(free > 0, "stuck: sent {sent}, believed {believed}");
            let len = size.min(free);
            prop_assert_eq!(connection.receive(&packet(op::RW, len)), Received::Payload);
            sent += len;
            connection.forwarded(len);
            if let Some(control) = connection.due() {
                prop_assert_eq!(control.op, op::CREDIT_UPDATE);
                connection.tell(control);
                believed = connection.stamp().1;
            }
        }
    }
}
