//! The compiled program, run by a small interpreter, against the rules read directly; and what
//! the kernel's verifier thinks of it.

use lazaret_protocol::container::{DeviceKind, DeviceRule};
use proptest::prelude::*;

use super::{ACCESS_MKNOD, ACCESS_READ, ACCESS_WRITE, RULES_MAX, compile};

/// One access to a device, as the kernel describes it to the program.
#[derive(Debug, Clone, Copy)]
struct Access {
    block: bool,
    access: i32,
    major: u32,
    minor: u32,
}

/// Runs `program`; panics on whatever the verifier would refuse.
fn interpret(program: &[u64], access: Access) -> u32 {
    let kind = if access.block { 1 } else { 2 };
    let context = [
        (access.access.cast_unsigned() << 16) | kind,
        access.major,
        access.minor,
    ];
    let mut registers = [0_u32; 10];
    let mut at = 0;
    loop {
        let word = program[at];
        at += 1;
        let opcode = word as u8;
        let destination = (word >> 8 & 15) as usize;
        let source = (word >> 12 & 15) as usize;
        let offset = (word >> 16) as u16 as i16;
        let immediate = (word >> 32) as u32;
        let jump = match opcode {
            0x61 => {
                assert_eq!(source, 1);
                registers[destination] = context[offset as usize / 4];
                false
            }
            0xbc => {
                registers[destination] = registers[source];
                false
            }
            0x54 => {
                registers[destination] &= immediate;
                false
            }
            0x74 => {
                registers[destination] >>= immediate;
                false
            }
            0xb4 => {
                registers[destination] = immediate;
                false
            }
            0x05 => true,
            0x56 => registers[destination] != immediate,
            0x46 => registers[destination] & immediate != 0,
            0x95 => return registers[0],
            _ => panic!("unknown opcode {opcode:#x}"),
        };
        if jump {
            assert!(offset >= 0, "backward jump");
            at += offset as usize;
        }
    }
}

/// What the rules say, read from the last to the first for each kind of access.
fn expected(rules: &[DeviceRule], access: Access) -> bool {
    [ACCESS_READ, ACCESS_WRITE, ACCESS_MKNOD]
        .into_iter()
        .filter(|bit| access.access & bit != 0)
        .all(|bit| {
            rules
                .iter()
                .rev()
                .find(|rule| {
                    let covers = match bit {
                        ACCESS_READ => rule.read,
                        ACCESS_WRITE => rule.write,
                        _ => rule.mknod,
                    };
                    let kind = match rule.kind {
                        None => true,
                        Some(DeviceKind::Block) => access.block,
                        Some(DeviceKind::Character) => !access.block,
                        Some(DeviceKind::Fifo) => false,
                    };
                    covers
                        && kind
                        && rule.major.is_none_or(|major| major == access.major)
                        && rule.minor.is_none_or(|minor| minor == access.minor)
                })
                .is_some_and(|rule| rule.allow)
        })
}

fn rule(allow: bool, kind: Option<DeviceKind>, major: Option<u32>, access: &str) -> DeviceRule {
    DeviceRule {
        allow,
        kind,
        major,
        minor: None,
        read: access.contains('r'),
        write: access.contains('w'),
        mknod: access.contains('m'),
    }
}

#[test]
fn the_last_rule_wins_for_each_kind_of_access() {
    let rules = [
        rule(false, None, None, "rwm"),
        rule(true, Some(DeviceKind::Character), Some(1), "rwm"),
        rule(false, Some(DeviceKind::Character), Some(1), "w"),
    ];
    let program = compile(&rules).unwrap();
    let ask = |block, major, access| {
        interpret(
            &program,
            Access {
                block,
                access,
                major,
                minor: 3,
            },
        )
    };
    assert_eq!(ask(false, 1, ACCESS_READ), 1);
    assert_eq!(ask(false, 1, ACCESS_READ | ACCESS_MKNOD), 1);
    assert_eq!(ask(false, 1, ACCESS_READ | ACCESS_WRITE), 0);
    assert_eq!(ask(true, 1, ACCESS_READ), 0);
    assert_eq!(ask(false, 2, ACCESS_READ), 0);
}

#[test]
fn rules_are_bounded() {
    let most = vec![rule(true, None, Some(1), "r"); RULES_MAX];
    assert!(compile(&most).is_ok());
    let too_many = vec![rule(true, None, Some(1), "r"); RULES_MAX + 1];
    assert_eq!(
        compile(&too_many).unwrap_err().to_string(),
        "2049 device rules exceed the maximum of 2048"
    );
}

#[test]
fn the_kernel_accepts_the_program() {
    let rules = [
        rule(false, None, None, "rwm"),
        rule(true, Some(DeviceKind::Character), Some(1), "rwm"),
        rule(true, Some(DeviceKind::Block), None, "m"),
        rule(false, Some(DeviceKind::Character), Some(u32::MAX), "w"),
    ];
    match crate::sys::load_device_program(&compile(&rules).unwrap()) {
        Ok(_) => {}
        // Where bpf(2) is not available to this user there is nothing to learn.
        Err(rustix::io::Errno::PERM | rustix::io::Errno::NOSYS) => {}
        Err(errno) => panic!("the verifier refused the program: {errno}"),
    }
}

prop_compose! {
    fn any_rule()(
        allow in any::<bool>(),
        kind in prop::option::of(prop_oneof![
            Just(DeviceKind::Block), Just(DeviceKind::Character), Just(DeviceKind::Fifo)
        ]),
        major in prop::option::of(0_u32..3),
        minor in prop::option::of(0_u32..3),
        read in any::<bool>(),
        write in any::<bool>(),
        mknod in any::<bool>(),
    ) -> DeviceRule {
        DeviceRule { allow, kind, major, minor, read, write, mknod }
    }
}

proptest! {
    #[test]
    fn program_and_rules_agree(
        rules in prop::collection::vec(any_rule(), 0..8),
        block in any::<bool>(),
        access in 1_i32..8,
        major in 0_u32..3,
        minor in 0_u32..3,
    ) {
        let access = Access { block, access, major, minor };
        let allowed = interpret(&compile(&rules).unwrap(), access) == 1;
        prop_assert_eq!(allowed, expected(&rules, access));
    }
}
