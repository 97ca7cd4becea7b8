//! What profiles become, and what is refused of them.

use oci_spec::runtime::Linux;
use serde_json::{Value, json};

use super::*;

fn of(seccomp: Value) -> Result<Profile, String> {
    let linux: Linux = serde_json::from_value(json!({ "seccomp": seccomp })).unwrap();
    let profile = profile(Some(&linux)).map_err(|error| error.to_string())?;
    Ok(profile.unwrap())
}

/// The profile with one rule.
fn of_rule(rule: Value) -> Result<Profile, String> {
    of(json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule] }))
}

#[test]
fn nothing_is_asked_for_by_default() {
    assert_eq!(profile(None).unwrap(), None);
    let linux: Linux = serde_json::from_value(json!({})).unwrap();
    assert_eq!(profile(Some(&linux)).unwrap(), None);
}

#[test]
fn every_action_has_its_number() {
    for (name, errno, expected) in [
        ("SCMP_ACT_KILL", None, Action::KillThread),
        ("SCMP_ACT_KILL_THREAD", None, Action::KillThread),
        ("SCMP_ACT_KILL_PROCESS", None, Action::KillProcess),
        ("SCMP_ACT_TRAP", None, Action::Trap),
        ("SCMP_ACT_ERRNO", None, Action::Errno(1)),
        ("SCMP_ACT_ERRNO", Some(0), Action::Errno(0)),
        ("SCMP_ACT_ERRNO", Some(4094), Action::Errno(4094)),
        ("SCMP_ACT_TRACE", None, Action::Trace(1)),
        ("SCMP_ACT_TRACE", Some(65535), Action::Trace(65535)),
        ("SCMP_ACT_LOG", None, Action::Log),
        ("SCMP_ACT_ALLOW", None, Action::Allow),
    ] {
        let rule = json!({ "names": ["getpid"], "action": name, "errnoRet": errno });
        assert_eq!(of_rule(rule).unwrap().rules[0].action, expected, "{name}");
        let default = json!({ "defaultAction": name, "defaultErrnoRet": errno });
        assert_eq!(of(default).unwrap().default_action, expected, "{name}");
    }
}

#[test]
fn every_operator_is_known() {
    for (name, expected) in [
        ("SCMP_CMP_NE", (Operator::NotEqual, 6)),
        ("SCMP_CMP_LT", (Operator::Less, 6)),
        ("SCMP_CMP_LE", (Operator::LessOrEqual, 6)),
        ("SCMP_CMP_EQ", (Operator::Equal, 6)),
        ("SCMP_CMP_GE", (Operator::GreaterOrEqual, 6)),
        ("SCMP_CMP_GT", (Operator::Greater, 6)),
        ("SCMP_CMP_MASKED_EQ", (Operator::MaskedEqual(6), 4)),
    ] {
        let arg = json!({ "index": 5, "value": 6, "valueTwo": 4, "op": name });
        let rule = json!({ "names": ["a", "b"], "action": "SCMP_ACT_TRAP", "args": [arg] });
        let profile = of_rule(rule).unwrap();
        let names: Vec<&str> = profile
            .rules
            .iter()
            .map(|rule| rule.name.as_str())
            .collect();
        assert_eq!(names, ["a", "b"]);
        let condition = profile.rules[1].conditions[0];
        assert_eq!((condition.operator, condition.value), expected, "{name}");
        assert_eq!(condition.argument, 5);
    }
}

#[test]
fn architectures_and_flags() {
    let of = |more: Value| {
        let mut seccomp = json!({ "defaultAction": "SCMP_ACT_ALLOW" });
        seccomp
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        of(seccomp)
    };
    let profile = of(json!({ "architectures": [
        "SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_AARCH64",
        "SCMP_ARCH_S390X", "SCMP_ARCH_X86",
    ] }));
    assert_eq!(
        profile.unwrap().architectures,
        [
            Architecture::X86_64,
            Architecture::X86,
            Architecture::X32,
            Architecture::Foreign,
        ]
    );
    for (flags, bits) in [
        (json!(null), 4),
        (json!([]), 0),
        (json!(["SECCOMP_FILTER_FLAG_TSYNC"]), 0),
        (
            json!(["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"]),
            6,
        ),
    ] {
        assert_eq!(of(json!({ "flags": flags })).unwrap().flags, bits);
    }
}

#[test]
fn a_listener_with_nothing_to_do_is_ignored() {
    let rules = json!([{ "names": ["write"], "action": "SCMP_ACT_LOG" }]);
    let mut seccomp = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules });
    let without = of(seccomp.clone()).unwrap();
    seccomp["listenerPath"] = json!("/run/l");
    seccomp["listenerMetadata"] = json!("x");
    assert_eq!(of(seccomp).unwrap(), without);
}

#[test]
fn every_refusal_names_its_field() {
    for (seccomp, message) in [
        (
            json!({ "defaultAction": "SCMP_ACT_NOTIFY" }),
            "linux.seccomp.defaultAction: SCMP_ACT_NOTIFY cannot be used as default action",
        ),
        (
            json!({ "defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 1 }),
            "linux.seccomp.defaultErrnoRet: is nothing that SCMP_ACT_ALLOW can return",
        ),
        (
            json!({ "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 4095 }),
            "linux.seccomp.defaultErrnoRet: must be a number from 0 to 4094",
        ),
        (
            json!({ "defaultAction": "SCMP_ACT_ALLOW",
                    "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"] }),
            "linux.seccomp.flags: SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, which concerns a \
             listener, is not supported",
        ),
    ] {
        assert_eq!(of(seccomp).unwrap_err(), message);
    }
    for (rule, message) in [
        (
            json!({ "names": ["a"], "action": "SCMP_ACT_NOTIFY" }),
            "action: SCMP_ACT_NOTIFY, which hands system calls to a listener, is not supported",
        ),
        (
            json!({ "names": ["a", "write"], "action": "SCMP_ACT_NOTIFY" }),
            "action: SCMP_ACT_NOTIFY cannot be used for the write syscall",
        ),
        (
            json!({ "names": ["a"], "action": "SCMP_ACT_LOG", "errnoRet": 0 }),
            "errnoRet: is nothing that SCMP_ACT_LOG can return",
        ),
        (
            json!({ "names": ["a"], "action": "SCMP_ACT_TRACE", "errnoRet": 65536 }),
            "errnoRet: must be a number from 0 to 65535",
        ),
        (
            json!({ "names": ["a", ""], "action": "SCMP_ACT_LOG" }),
            "names[1]: must not be empty",
        ),
        (
            json!({ "names": ["a"], "action": "SCMP_ACT_LOG",
                    "args": [{ "index": 6, "value": 0, "op": "SCMP_CMP_EQ" }] }),
            "args[0].index: must be a number from 0 to 5",
        ),
    ] {
        let field = "linux.seccomp.syscalls[0].";
        assert_eq!(of_rule(rule).unwrap_err(), format!("{field}{message}"));
    }
}
