//! Compiled filters do what their profiles say: an interpreter of classic BPF runs them against a
//! reading of the profile, rule by rule.

use proptest::prelude::*;

use super::*;

const X86_64: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;
const AARCH64: u32 = 0xc000_00b7;
const X32_BIT: u32 = 1 << 30;

/// A system call as a filter sees it (`struct seccomp_data`).
#[derive(Debug, Clone, Copy, Default)]
struct Call {
    number: u32,
    architecture: u32,
    arguments: [u64; 6],
}

impl Call {
    fn word(&self, offset: u32) -> u32 {
        match offset {
            0 => self.number,
            4 => self.architecture,
            8 | 12 => 0,
            offset => {
                let argument = self.arguments[(offset as usize - 16) / 8];
                (argument >> (offset % 8 * 8)) as u32
            }
        }
    }
}

/// What the kernel would make of a call: `SECCOMP_RET_*` and its data.
fn interpret(program: &[SockFilter], call: &Call) -> u32 {
    let (mut accumulator, mut at) = (0_u32, 0_usize);
    loop {
        let step = program[at];
        at += 1;
        let jump = |condition: bool| {
            usize::from(if condition {
                step.jump_true
            } else {
                step.jump_false
            })
        };
        match step.code {
            0x20 => accumulator = call.word(step.operand),
            0x54 => accumulator &= step.operand,
            0x05 => at += step.operand as usize,
            0x15 => at += jump(accumulator == step.operand),
            0x25 => at += jump(accumulator > step.operand),
            0x35 => at += jump(accumulator >= step.operand),
            0x45 => at += jump(accumulator & step.operand != 0),
            0x06 => return step.operand,
            code => panic!("instruction {code:#x} at {}", at - 1),
        }
    }
}

fn kernel(action: Action) -> u32 {
    match action {
        Action::KillProcess => 0x8000_0000,
        Action::KillThread => 0,
        Action::Trap => 0x0003_0000,
        Action::Errno(number) => 0x0005_0000 | u32::from(number),
        Action::Trace(number) => 0x7ff0_0000 | u32::from(number),
        Action::Log => 0x7ffc_0000,
        Action::Allow => 0x7fff_0000,
    }
}

const ENOSYS: Action = Action::Errno(38);

fn number(name: &str, architecture: Architecture) -> Option<u32> {
    let call = ScmpSyscall::from_name_by_arch(name, architecture.library()?).ok()?;
    u32::try_from(call.as_raw_syscall()).ok()
}

fn holds(condition: &Condition, arguments: &[u64; 6]) -> bool {
    let argument = arguments[condition.argument as usize];
    match condition.operator {
        Operator::NotEqual => argument != condition.value,
        Operator::Less => argument < condition.value,
        Operator::LessOrEqual => argument <= condition.value,
        Operator::Equal => argument == condition.value,
        Operator::GreaterOrEqual => argument >= condition.value,
        Operator::Greater => argument > condition.value,
        Operator::MaskedEqual(mask) => argument & mask == condition.value,
    }
}

/// What the profile says of a call; rules for the same name have the same action here.
fn evaluate(profile: &Profile, call: &Call) -> Action {
    let architecture = match (call.architecture, call.number & X32_BIT != 0) {
        (X86_64, false) => Architecture::X86_64,
        (X86_64, true) => Architecture::X32,
        (I386, _) => Architecture::X86,
        _ => return Action::KillThread,
    };
    let native = architecture == Architecture::X86_64;
    if !native && !profile.architectures.contains(&architecture) {
        return Action::KillThread;
    }
    let names = profile.rules.iter().map(|rule| &rule.name);
    let newest = names.filter_map(|name| number(name, architecture)).max();
    let strict = !matches!(
        profile.default_action,
        Action::Allow | Action::Log | Action::Trace(_)
    );
    if strict && newest.is_some_and(|newest| newest != 0 && call.number > newest) {
        return ENOSYS;
    }
    let applies = |rule: &&Rule| {
        let mut conditions = rule.conditions.iter();
        number(&rule.name, architecture) == Some(call.number)
            && conditions.all(|condition| holds(condition, &call.arguments))
    };
    let matching = profile.rules.iter().find(applies);
    matching.map_or(profile.default_action, |rule| rule.action)
}

/// Calls that all three architectures have, and that none of them multiplexes.
const NAMES: [&str; 48] = [
    "read",
    "write",
    "close",
    "lseek",
    "mprotect",
    "brk",
    "ioctl",
    "access",
    "dup",
    "dup2",
    "getpid",
    "fork",
    "execve",
    "exit",
    "kill",
    "uname",
    "fcntl",
    "fsync",
    "chdir",
    "rename",
    "mkdir",
    "rmdir",
    "link",
    "unlink",
    "chmod",
    "getuid",
    "ptrace",
    "setsid",
    "mount",
    "umount2",
    "swapon",
    "reboot",
    "sethostname",
    "init_module",
    "delete_module",
    "gettid",
    "unshare",
    "tee",
    "openat",
    "mknodat",
    "splice",
    "setns",
    "getrandom",
    "memfd_create",
    "bpf",
    "execveat",
    "copy_file_range",
    "clone3",
];

/// Values around which comparisons go wrong.
const VALUES: [u64; 10] = [
    0,
    1,
    2,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x1_0000_0000,
    0x1_0000_0001,
    0xffff_ffff_0000_0000,
    u64::MAX,
];

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        Just(Action::KillProcess),
        Just(Action::KillThread),
        Just(Action::Trap),
        (0_u16..4095).prop_map(Action::Errno),
        any::<u16>().prop_map(Action::Trace),
        Just(Action::Log),
        Just(Action::Allow),
    ]
}

fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        proptest::sample::select(&VALUES[..]),
        0_u64..8,
        any::<u64>()
    ]
}

fn condition() -> impl Strategy<Value = Condition> {
    let operator = prop_oneof![
        Just(Operator::NotEqual),
        Just(Operator::Less),
        Just(Operator::LessOrEqual),
        Just(Operator::Equal),
        Just(Operator::GreaterOrEqual),
        Just(Operator::Greater),
        value().prop_map(Operator::MaskedEqual),
    ];
    (0_u32..6, operator, value()).prop_map(|(argument, operator, value)| {
        let value = match operator {
            // No argument has a bit that the mask clears.
            Operator::MaskedEqual(mask) => value & mask,
            _ => value,
        };
        Condition {
            argument,
            operator,
            value,
        }
    })
}

fn rules(conditions_max: usize) -> impl Strategy<Value = Vec<Rule>> {
    // Alternatives, an argument compared twice, are left to `rules_for_one_call_add_up`: libseccomp
    // 2.5 loses some that overlap, under runc as here.
    let conditions =
        proptest::collection::vec(condition(), 0..=conditions_max).prop_map(|mut conditions| {
            conditions.sort_by_key(|condition| condition.argument);
            conditions.dedup_by_key(|condition| condition.argument);
            conditions
        });
    let one = (action(), conditions);
    proptest::collection::vec(one, 0..NAMES.len()).prop_map(|rules| {
        let named = rules.into_iter().zip(NAMES);
        named
            .map(|((action, conditions), name)| Rule {
                name: name.to_owned(),
                action,
                conditions,
            })
            .collect()
    })
}

fn architectures() -> impl Strategy<Value = Vec<Architecture>> {
    let all = [
        Architecture::X86_64,
        Architecture::X86,
        Architecture::X32,
        Architecture::Foreign,
    ];
    proptest::sample::subsequence(all.to_vec(), 0..=all.len())
}

fn profile(conditions_max: usize) -> impl Strategy<Value = Profile> {
    (action(), architectures(), rules(conditions_max)).prop_map(
        |(default_action, architectures, rules)| Profile {
            default_action,
            architectures,
            flags: 0,
            rules,
        },
    )
}

/// Numbers worth trying: those of all names, their neighbours, and some that nobody has.
fn numbers() -> impl Strategy<Value = u32> {
    let named = NAMES.iter().flat_map(|name| {
        [Architecture::X86_64, Architecture::X86, Architecture::X32]
            .into_iter()
            .filter_map(|architecture| number(name, architecture))
    });
    let mut known: Vec<u32> = named.flat_map(|number| [number, number + 1]).collect();
    known.extend([0, 1023, X32_BIT, X32_BIT + 1023]);
    proptest::sample::select(known)
}

fn calls(architectures: &'static [u32]) -> impl Strategy<Value = Vec<Call>> {
    let architecture = proptest::sample::select(architectures);
    let one = (
        numbers(),
        architecture,
        [value(), value(), value(), value(), value(), value()],
    );
    let call = one.prop_map(|(number, architecture, arguments)| Call {
        number,
        architecture,
        arguments,
    });
    proptest::collection::vec(call, 64)
}

fn check(profile: &Profile, calls: &[Call]) -> Result<(), TestCaseError> {
    let compiled = compile(profile).unwrap();
    for call in calls {
        prop_assert_eq!(
            interpret(&compiled.program, call),
            kernel(evaluate(profile, call)),
            "{:?}",
            call
        );
    }
    Ok(())
}

proptest! {
    // Each compiles a filter, which takes a moment.
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn rules_by_number_hold_on_every_architecture(
        profile in profile(0),
        calls in calls(&[X86_64, I386, AARCH64]),
    ) {
        check(&profile, &calls)?;
    }

    #[test]
    fn rules_on_arguments_hold(mut profile in profile(3), calls in calls(&[X86_64])) {
        profile.architectures.retain(|&architecture| architecture != Architecture::X32);
        let calls: Vec<Call> = calls
            .into_iter()
            .map(|call| Call { number: call.number & !X32_BIT, ..call })
            .collect();
        check(&profile, &calls)?;
    }
}

fn rule(name: &str, action: Action, conditions: &[Condition]) -> Rule {
    Rule {
        name: name.to_owned(),
        action,
        conditions: conditions.to_vec(),
    }
}

fn strict(rules: Vec<Rule>) -> Profile {
    Profile {
        default_action: Action::Errno(1),
        architectures: vec![Architecture::X86_64, Architecture::X86, Architecture::X32],
        flags: 0,
        rules,
    }
}

fn result(profile: &Profile, architecture: u32, number: u32, arguments: [u64; 6]) -> u32 {
    let call = Call {
        number,
        architecture,
        arguments,
    };
    interpret(&compile(profile).unwrap().program, &call)
}

/// As Docker's profile has `personality` and `clone`: several rules with one action.
#[test]
fn rules_for_one_call_add_up() {
    let equal = |value| Condition {
        argument: 0,
        operator: Operator::Equal,
        value,
    };
    let profile = strict(vec![
        rule("personality", Action::Allow, &[equal(0)]),
        rule("personality", Action::Allow, &[equal(8)]),
        rule("kill", Action::Allow, &[equal(1), equal(2)]),
        rule("clone3", Action::Errno(38), &[]),
        rule("read", Action::Allow, &[]),
        rule("read", Action::Allow, &[]),
    ]);
    let personality = 135;
    let of = |value| result(&profile, X86_64, personality, [value, 0, 0, 0, 0, 0]);
    assert_eq!(of(0), kernel(Action::Allow));
    assert_eq!(of(8), kernel(Action::Allow));
    assert_eq!(of(9), kernel(Action::Errno(1)));
    assert_eq!(result(&profile, X86_64, 435, [0; 6]), kernel(ENOSYS));
    let kill = 62;
    let of = |value| result(&profile, X86_64, kill, [value, 0, 0, 0, 0, 0]);
    assert_eq!(
        [1, 2, 3].map(of),
        [Action::Allow, Action::Allow, Action::Errno(1)].map(kernel)
    );
}

/// 32-bit x86 has these calls twice: by themselves, and as a case of `socketcall` and `ipc`.
#[test]
fn multiplexed_calls_are_both() {
    let profile = strict(vec![
        rule("socket", Action::Allow, &[]),
        rule("msgget", Action::Allow, &[]),
    ]);
    let (socketcall, socket, ipc) = (102, 359, 117);
    let of = |number, case| result(&profile, I386, number, [case, 0, 0, 0, 0, 0]);
    assert_eq!(of(socket, 0), kernel(Action::Allow));
    assert_eq!(of(socketcall, 1), kernel(Action::Allow));
    assert_eq!(of(socketcall, 2), kernel(Action::Errno(1)));
    assert_eq!(of(ipc, 13), kernel(Action::Allow));
    assert_eq!(of(ipc, 14), kernel(Action::Errno(1)));
}

#[test]
fn unknown_names_are_passed_over() {
    let mut profile = strict(vec![
        rule("not_a_call", Action::Allow, &[]),
        rule("with\0nul", Action::Allow, &[]),
        rule(&"x".repeat(100), Action::Allow, &[]),
        rule("getpid", Action::Allow, &[]),
    ]);
    assert_eq!(result(&profile, X86_64, 39, [0; 6]), kernel(Action::Allow));
    assert_eq!(
        result(&profile, X86_64, 38, [0; 6]),
        kernel(Action::Errno(1))
    );
    assert_eq!(result(&profile, X86_64, 40, [0; 6]), kernel(ENOSYS));
    // Nothing is newer than what a profile without names knows.
    profile.rules.pop();
    assert_eq!(
        result(&profile, X86_64, 40, [0; 6]),
        kernel(Action::Errno(1))
    );
}

#[test]
fn a_filter_too_long_is_refused() {
    let instruction = SockFilter {
        code: 0x06,
        jump_true: 0,
        jump_false: 0,
        operand: 0,
    };
    assert!(check_length(&[instruction; 4096]).is_ok());
    assert_eq!(
        check_length(&[instruction; 4097]).unwrap_err().to_string(),
        "linux.seccomp: the filter has 4097 instructions, the kernel takes 4096"
    );
}
