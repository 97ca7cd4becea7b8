//! Device rules as an eBPF program of type `BPF_PROG_TYPE_CGROUP_DEVICE`. Pure; called by
//! [`crate::cgroup`].
//!
//! The rules are those of the runtime-spec's `linux.resources.devices`: for each kind of access
//! (read, write, mknod) the last rule that covers the device decides, and what no rule covers is
//! denied. An access that asks for several kinds is allowed when each of them is.
//!
//! Sources: kernel `Documentation/bpf/standardization/instruction-set.rst`, `struct
//! bpf_cgroup_dev_ctx` in `include/uapi/linux/bpf.h`.

use lazaret_protocol::container::{DeviceKind, DeviceRule};

/// Rules in one program: each takes at most ten instructions, and a program of this many stays far
/// below the 512 KiB of stack-free jumps (16-bit offsets) that one exit per rule needs.
pub const RULES_MAX: usize = 2048;

/// `BPF_DEVCG_DEV_BLOCK` and `BPF_DEVCG_DEV_CHAR`.
const DEVICE_BLOCK: i32 = 1;
const DEVICE_CHARACTER: i32 = 2;

/// `BPF_DEVCG_ACC_*`.
const ACCESS_MKNOD: i32 = 1;
const ACCESS_READ: i32 = 2;
const ACCESS_WRITE: i32 = 4;
const ACCESS_ALL: i32 = ACCESS_MKNOD | ACCESS_READ | ACCESS_WRITE;

/// Opcodes: class, source and operation of each instruction that is used.
mod opcode {
    /// Load 32 bits from memory at a register.
    pub(super) const LOAD_WORD: u8 = 0x61;
    /// 32-bit operations with an immediate; they clear the upper half.
    pub(super) const AND: u8 = 0x54;
    pub(super) const SHIFT_RIGHT: u8 = 0x74;
    pub(super) const MOVE: u8 = 0xb4;
    /// 32-bit move from a register.
    pub(super) const MOVE_REGISTER: u8 = 0xbc;
    /// Unconditional jump, and jumps on a 32-bit comparison with an immediate.
    pub(super) const JUMP: u8 = 0x05;
    pub(super) const JUMP_NOT_EQUAL: u8 = 0x56;
    pub(super) const JUMP_ANY_BIT: u8 = 0x46;
    pub(super) const EXIT: u8 = 0x95;
}

/// Registers: 0 is the result, 1 the context at entry.
const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
/// Kinds of access that no rule has decided yet.
const OPEN: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

/// Too many rules.
#[derive(Debug, thiserror::Error)]
#[error("{count} device rules exceed the maximum of {RULES_MAX}")]
pub struct TooManyRules {
    count: usize,
}

/// Compiles `rules` to instructions, one `u64` each.
///
/// # Errors
/// [`TooManyRules`] beyond [`RULES_MAX`].
pub fn compile(rules: &[DeviceRule]) -> Result<Vec<u64>, TooManyRules> {
    if rules.len() > RULES_MAX {
        return Err(TooManyRules { count: rules.len() });
    }
    let mut program = vec![
        instruction(opcode::LOAD_WORD, KIND, CONTEXT, 0, 0),
        instruction(opcode::MOVE_REGISTER, OPEN, KIND, 0, 0),
        instruction(opcode::AND, KIND, 0, 0, 0xffff),
        instruction(opcode::SHIFT_RIGHT, OPEN, 0, 0, 16),
        instruction(opcode::LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        instruction(opcode::LOAD_WORD, MINOR, CONTEXT, 8, 0),
    ];
    // Last rule first: once it has decided on an access, no earlier one is asked.
    for rule in rules.iter().rev() {
        if let Some(block) = rule_block(rule) {
            program.extend(block);
        }
    }
    program.extend(exit_with(0));
    Ok(program)
}

/// Instructions for one rule; `None` for one that never applies.
fn rule_block(rule: &DeviceRule) -> Option<Vec<u64>> {
    let access = access_bits(rule);
    let kind = match rule.kind {
        None => None,
        Some(DeviceKind::Block) => Some(DEVICE_BLOCK),
        Some(DeviceKind::Character) => Some(DEVICE_CHARACTER),
        // Pipes are not devices to the kernel.
        Some(DeviceKind::Fifo) => return None,
    };
    if access == 0 {
        return None;
    }
    let verdict = if rule.allow {
        let mut block = vec![instruction(opcode::AND, OPEN, 0, 0, ACCESS_ALL & !access)];
        block.push(instruction(opcode::JUMP_NOT_EQUAL, OPEN, 0, 2, 0));
        block.extend(exit_with(1));
        block
    } else {
        let mut block = vec![instruction(opcode::JUMP_ANY_BIT, OPEN, 0, 1, access)];
        // Over the jump below when a denied bit is asked for.
        block.push(instruction(opcode::JUMP, 0, 0, 2, 0));
        block.extend(exit_with(0));
        block
    };
    let conditions = [
        kind.map(|kind| (KIND, kind)),
        rule.major.map(|major| (MAJOR, major.cast_signed())),
        rule.minor.map(|minor| (MINOR, minor.cast_signed())),
    ];
    let conditions: Vec<_> = conditions.into_iter().flatten().collect();
    let mut block = Vec::with_capacity(conditions.len() + verdict.len());
    for (index, &(register, value)) in conditions.iter().enumerate() {
        let skip = conditions.len() - index - 1 + verdict.len();
        let skip = i16::try_from(skip).expect("a rule has at most ten instructions");
        block.push(instruction(
            opcode::JUMP_NOT_EQUAL,
            register,
            0,
            skip,
            value,
        ));
    }
    block.extend(verdict);
    Some(block)
}

fn access_bits(rule: &DeviceRule) -> i32 {
    let bit = |set: bool, bit: i32| if set { bit } else { 0 };
    bit(rule.read, ACCESS_READ) | bit(rule.write, ACCESS_WRITE) | bit(rule.mknod, ACCESS_MKNOD)
}

fn exit_with(result: i32) -> [u64; 2] {
    [
        instruction(opcode::MOVE, RESULT, 0, 0, result),
        instruction(opcode::EXIT, 0, 0, 0, 0),
    ]
}

/// Encodes one instruction as the little-endian machine lays it out.
fn instruction(opcode: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> u64 {
    u64::from(opcode)
        | u64::from(destination) << 8
        | u64::from(source) << 12
        | u64::from(offset.cast_unsigned()) << 16
        | u64::from(immediate.cast_unsigned()) << 32
}

#[cfg(test)]
mod tests;
