//! Filters of system calls: what each action does to a call, and to whom a profile applies.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{
    call::{call, call_in_thread},
    errors,
    process::{expect, status},
};
use crate::{
    bundle::{Bundle, probe_args},
    case::{Case, Probe, Test, Topic, case},
    runtime::Kind,
};

pub(crate) const TOPIC: Topic = Topic {
    name: "seccomp",
    cases: CASES,
    probes: PROBES,
};

const CASES: &[Case] = &[
    case!(no_filter_without_a_profile),
    case!(actions),
    case!(killing_a_thread_or_the_process),
    case!(operators),
    case!(default_errno),
    case!(newer_calls_do_not_exist).only(REFERENCE, "crun knows no rule for newer calls"),
    case!(unknown_names_are_passed_over),
    case!(calls_of_32_bit_programs).only(
        &[Kind::Lazaret],
        "the emulated host's kernel, unlike the guest's, runs no 32-bit programs",
    ),
    case!(profile_of_an_engine).timeout_s(240),
    case!(flags).only(
        &[Kind::Lazaret],
        "Debian's runc and crun refuse all of them, or some",
    ),
    case!(exec_inherits_the_profile),
    case!(comes_last_with_no_new_privileges).only(REFERENCE, "crun needs more calls"),
    case!(comes_before_capabilities_go).timeout_s(240),
    case!(leaves_the_capabilities_alone),
    case!(in_a_user_namespace),
    case!(listener_is_refused).only(&[Kind::Lazaret], "the others can hand calls to a listener"),
    case!(wrong_profiles_are_refused)
        .only(
            &[Kind::Lazaret],
            "the others take some of them, and name none of the fields",
        )
        .covers(&["config-linux#seccomp-11", "config#valid-values-1"])
        .right("lazaret: a value that is not valid is an error"),
];

const REFERENCE: &[Kind] = &[Kind::Runc, Kind::Lazaret];

const PROBES: &[(&str, Probe)] = &[("call", call), ("call-in-thread", call_in_thread)];

/// Numbers on 64-bit x86. `lseek` is a good subject: with a descriptor that is none it fails with
/// `EBADF` whatever its other arguments are.
const LSEEK: &str = "8";
const GETPID: &str = "39";
const NO_DESCRIPTOR: &str = "18446744073709551615";

const EPERM: i64 = 1;
const EBADF: i64 = 9;
const ENOSYS: i64 = 38;

/// What a shell reports for death by `SIGSYS`.
const DEATH_BY_SIGSYS: i32 = 128 + 31;

/// A bundle that makes a call under a profile.
fn calling(test: &Test, profile: Value, words: &[&str]) -> Result<Bundle> {
    let mut bundle = test.bundle("call", words)?;
    bundle.set("/linux/seccomp", profile);
    Ok(bundle)
}

/// What comes of a call under a profile.
fn result(test: &Test, profile: Value, words: &[&str]) -> Result<i64> {
    let bundle = calling(test, profile, words)?;
    let report = test.runtime.run(&bundle)?.succeed()?.json()?;
    report["result"].as_i64().context("no result")
}

fn lseek() -> [&'static str; 2] {
    [LSEEK, NO_DESCRIPTOR]
}

/// Everything is allowed but what the rules say.
fn allowing(syscalls: Value) -> Value {
    json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": syscalls,
    })
}

fn no_filter_without_a_profile(test: &Test) -> Result<()> {
    let report = test.runtime.run(&test.bundle("report", &[])?)?;
    let report = report.succeed()?.json()?;
    ensure!(status(&report, "Seccomp")? == "0", "{}", report["status"]);
    let mut bundle = test.bundle("report", &[])?;
    bundle.set("/linux/seccomp", allowing(json!([])));
    let report = test.runtime.run(&bundle)?.succeed()?.json()?;
    ensure!(status(&report, "Seccomp")? == "2", "{}", report["status"]);
    expect(&report, "/status/Seccomp_filters", &json!("1"))
}

fn actions(test: &Test) -> Result<()> {
    let rule = |action: &str, errno: Value| {
        let mut rule = json!({ "names": ["lseek"], "action": action });
        if !errno.is_null() {
            rule["errnoRet"] = errno;
        }
        allowing(json!([rule]))
    };
    for (action, errno, expected) in [
        ("SCMP_ACT_ALLOW", json!(null), EBADF),
        ("SCMP_ACT_LOG", json!(null), EBADF),
        ("SCMP_ACT_ERRNO", json!(null), EPERM),
        ("SCMP_ACT_ERRNO", json!(95), 95),
        // Nobody traces.
        ("SCMP_ACT_TRACE", json!(null), ENOSYS),
        ("SCMP_ACT_TRACE", json!(7), ENOSYS),
    ] {
        let found = result(test, rule(action, errno), &lseek())?;
        ensure!(found == -expected, "{action}: {found}");
    }
    for action in [
        "SCMP_ACT_KILL",
        "SCMP_ACT_KILL_THREAD",
        "SCMP_ACT_KILL_PROCESS",
        "SCMP_ACT_TRAP",
    ] {
        let bundle = calling(test, rule(action, json!(null)), &lseek())?;
        let output = test.runtime.run(&bundle)?.output()?;
        let output = output.code(DEATH_BY_SIGSYS).context(action)?;
        ensure!(output.stdout.is_empty(), "{action}: {}", output.stdout);
    }
    let mut bundle = calling(test, rule("SCMP_ACT_TRAP", json!(null)), &lseek())?;
    bundle.set("/process/env", json!(["PATH=/", "TRAP=1"]));
    let report = test.runtime.run(&bundle)?.succeed()?.json()?;
    expect(&report, "/trapped", &json!(true))
}

fn killing_a_thread_or_the_process(test: &Test) -> Result<()> {
    for (action, code, said) in [
        ("SCMP_ACT_KILL_THREAD", 0, "goes on\n"),
        ("SCMP_ACT_KILL_PROCESS", DEATH_BY_SIGSYS, ""),
    ] {
        let mut bundle = test.bundle("call-in-thread", &[])?;
        let rules = json!([{ "names": ["lseek"], "action": action }]);
        bundle.set("/linux/seccomp", allowing(rules));
        let output = test.runtime.run(&bundle)?.output()?;
        let output = output.code(code).context(action)?;
        ensure!(output.stdout == said, "{action}: {:?}", output.stdout);
    }
    Ok(())
}

/// An operator, the values it gets, and values it is tried on with what comes of it.
type Comparison = (&'static str, u64, u64, &'static [(u64, bool)]);

/// One container for each profile, one exec for each value.
fn operators(test: &Test) -> Result<()> {
    const LARGE: u64 = 0x1_0000_0005;
    let cases: &[Comparison] = &[
        ("SCMP_CMP_EQ", LARGE, 0, &[(LARGE, true), (5, false)]),
        ("SCMP_CMP_NE", 5, 0, &[(5, false), (LARGE, true)]),
        (
            "SCMP_CMP_LT",
            LARGE,
            0,
            &[(LARGE, false), (LARGE - 1, true)],
        ),
        ("SCMP_CMP_LE", 5, 0, &[(5, true), (LARGE, false)]),
        ("SCMP_CMP_GT", 5, 0, &[(5, false), (LARGE, true)]),
        (
            "SCMP_CMP_GE",
            LARGE,
            0,
            &[(LARGE, true), (LARGE - 1, false)],
        ),
        ("SCMP_CMP_MASKED_EQ", 0xf, 5, &[(LARGE, true), (6, false)]),
    ];
    let mut rules = Vec::new();
    for (index, (operator, value, value_two, _)) in cases.iter().enumerate() {
        // The number of the case is the third argument.
        rules.push(json!({
            "names": ["lseek"],
            "action": "SCMP_ACT_ERRNO",
            "args": [
                { "index": 1, "value": value, "valueTwo": value_two, "op": operator },
                { "index": 2, "value": index, "op": "SCMP_CMP_EQ" },
            ],
        }));
    }
    let mut bundle = test.idle_bundle()?;
    bundle.set("/linux/seccomp", allowing(rules.into()));
    test.runtime.launch(&bundle)?;
    for (index, (operator, .., values)) in cases.iter().enumerate() {
        for &(value, matches) in *values {
            let (value, index) = (value.to_string(), index.to_string());
            let words = [LSEEK, NO_DESCRIPTOR, &value, &index];
            let call = test.runtime.exec_probe(&bundle.id, "call", &words);
            let found = call.succeed()?.json()?["result"].as_i64();
            let expected = if matches { EPERM } else { EBADF };
            ensure!(
                found == Some(-expected),
                "{operator} with {value}: {found:?}"
            );
        }
    }
    test.runtime.destroy(&bundle.id)
}

/// The calls that a runtime and the probe need anyway are many: all that 64-bit x86 has, by name,
/// but for the given ones.
fn refusing(refused: &[&str]) -> Value {
    let names: Vec<&str> = CALLS
        .split_whitespace()
        .filter(|name| !refused.contains(name))
        .collect();
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [{ "names": names, "action": "SCMP_ACT_ALLOW" }],
    })
}

fn default_errno(test: &Test) -> Result<()> {
    let mut profile = refusing(&["lseek"]);
    ensure!(
        result(test, profile.clone(), &lseek())? == -EPERM,
        "not EPERM"
    );
    profile["defaultErrnoRet"] = json!(95);
    let found = result(test, profile, &lseek())?;
    ensure!(found == -95, "{found}");
    Ok(())
}

fn newer_calls_do_not_exist(test: &Test) -> Result<()> {
    let profile = refusing(&["lseek"]);
    for (number, expected) in [("1000", ENOSYS), ("460", ENOSYS), (LSEEK, EPERM)] {
        let found = result(test, profile.clone(), &[number, NO_DESCRIPTOR])?;
        ensure!(found == -expected, "call {number}: {found}");
    }
    // A default that lets calls pass is left alone.
    let profile = allowing(json!([{ "names": ["lseek"], "action": "SCMP_ACT_ERRNO" }]));
    let found = result(test, profile, &["1000"])?;
    ensure!(found == -ENOSYS, "{found}");
    Ok(())
}

fn unknown_names_are_passed_over(test: &Test) -> Result<()> {
    let names = json!(["call_of_the_future", "lseek"]);
    let profile = allowing(json!([{ "names": names, "action": "SCMP_ACT_ERRNO" }]));
    let bundle = calling(test, profile, &lseek())?;
    let output = test.runtime.run(&bundle)?.succeed()?;
    ensure!(output.stderr.is_empty(), "said {:?}", output.stderr);
    expect(&output.json()?, "/result", &json!(-EPERM))
}

/// 32-bit x86 numbers its calls in its own way; a filter that is not for it lets none of them be.
fn calls_of_32_bit_programs(test: &Test) -> Result<()> {
    let with = |architectures: Value| {
        let mut profile = allowing(json!([
            { "names": ["getuid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95 },
        ]));
        profile["architectures"] = architectures;
        profile
    };
    let (getpid, getuid) = ("32:20", "32:24");
    let both = json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]);
    let found = result(test, with(both.clone()), &[getpid])?;
    ensure!(found == 1, "getpid: {found}");
    let found = result(test, with(both), &[getuid])?;
    ensure!(found == -95, "getuid: {found}");
    let bundle = calling(test, with(json!(["SCMP_ARCH_X86_64"])), &[getpid])?;
    test.runtime.run(&bundle)?.output()?.code(DEATH_BY_SIGSYS)?;
    Ok(())
}

/// As large as the profiles of Podman and Docker, and made like them.
fn profile_of_an_engine(test: &Test) -> Result<()> {
    let refused = [
        "acct",
        "add_key",
        "bpf",
        "delete_module",
        "init_module",
        "kexec_load",
        "keyctl",
        "mount",
        "personality",
        "reboot",
        "swapon",
        "umount2",
        "unshare",
    ];
    let mut profile = refusing(&refused);
    for value in [0, 8, 0xffff_ffff_u64] {
        let rule = json!({
            "names": ["personality"],
            "action": "SCMP_ACT_ALLOW",
            "args": [{ "index": 0, "value": value, "op": "SCMP_CMP_EQ" }],
        });
        if let Some(rules) = profile["syscalls"].as_array_mut() {
            rules.push(rule);
        }
    }
    let query = ["135", "4294967295"];
    for (words, expected) in [
        (&query[..], 0),
        (&["135", "2"], -EPERM),
        (&["165"], -EPERM),
        (&[LSEEK, NO_DESCRIPTOR], -EBADF),
        (&[GETPID], 1),
    ] {
        let found = result(test, profile.clone(), words)?;
        ensure!(found == expected, "{words:?}: {found}");
    }
    Ok(())
}

fn flags(test: &Test) -> Result<()> {
    for flags in [
        json!([]),
        json!(["SECCOMP_FILTER_FLAG_LOG"]),
        json!(["SECCOMP_FILTER_FLAG_TSYNC"]),
        json!(["SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_LOG"]),
    ] {
        let mut profile = allowing(json!([{ "names": ["lseek"], "action": "SCMP_ACT_ERRNO" }]));
        profile["flags"] = flags.clone();
        let found = result(test, profile, &lseek())?;
        ensure!(found == -EPERM, "{flags}: {found}");
    }
    Ok(())
}

fn exec_inherits_the_profile(test: &Test) -> Result<()> {
    for no_new_privileges in [false, true] {
        let mut bundle = test.idle_bundle()?;
        let rules = json!([{ "names": ["lseek"], "action": "SCMP_ACT_ERRNO" }]);
        bundle.set("/linux/seccomp", allowing(rules));
        bundle.set("/process/noNewPrivileges", json!(no_new_privileges));
        test.runtime.launch(&bundle)?;
        let call = test.runtime.exec_probe(&bundle.id, "call", &lseek());
        expect(&call.succeed()?.json()?, "/result", &json!(-EPERM))?;
        let path = test.directory.join("process.json");
        let process = json!({
            "args": probe_args("call", &lseek()),
            "cwd": "/",
            "env": [],
            "user": { "uid": 1000, "gid": 1000 },
            "noNewPrivileges": !no_new_privileges,
        });
        fs::write(&path, process.to_string())?;
        let call = test.runtime.exec(&bundle.id, &[]);
        let call = call.option(&["--process", &path.to_string_lossy()]);
        expect(&call.succeed()?.json()?, "/result", &json!(-EPERM))?;
        test.runtime.destroy(&bundle.id)?;
    }
    Ok(())
}

/// What changes the user and the capabilities need not be allowed, because it is done by then.
fn comes_last_with_no_new_privileges(test: &Test) -> Result<()> {
    let refused = [
        "capset",
        "prctl",
        "setuid",
        "setgid",
        "setgroups",
        "setresuid",
        "setresgid",
        "chdir",
        "umask",
        "lseek",
    ];
    let mut bundle = calling(test, refusing(&refused), &lseek())?;
    bundle.set("/process/noNewPrivileges", json!(true));
    bundle.set("/process/user", json!({ "uid": 1000, "gid": 1000 }));
    let report = test.runtime.run(&bundle)?.succeed()?.json()?;
    expect(&report, "/result", &json!(-EPERM))
}

/// Without, loading a filter takes a capability, which is given up afterwards.
fn comes_before_capabilities_go(test: &Test) -> Result<()> {
    let mut bundle = calling(test, refusing(&["capset"]), &[GETPID])?;
    test.runtime.run(&bundle)?.output()?.code(1)?;
    bundle.set("/process/noNewPrivileges", json!(true));
    test.runtime.run(&bundle)?.succeed()?;
    Ok(())
}

fn leaves_the_capabilities_alone(test: &Test) -> Result<()> {
    for no_new_privileges in [false, true] {
        for user in [0, 1000] {
            let mut bundle = test.bundle("report", &[])?;
            bundle.set("/linux/seccomp", refusing(&["lseek"]));
            bundle.set("/process/noNewPrivileges", json!(no_new_privileges));
            bundle.set("/process/user", json!({ "uid": user, "gid": user }));
            let report = test.runtime.run(&bundle)?.succeed()?.json()?;
            // Those of the default bundle: chown, kill, setgid, setuid, mknod.
            let all = "00000000080000e1";
            let own = if user == 0 { all } else { "0000000000000000" };
            for (set, expected) in [("CapBnd", all), ("CapPrm", own), ("CapEff", own)] {
                let found = status(&report, set)?;
                ensure!(found == expected, "{set} of user {user}: {found}");
            }
            let found = (status(&report, "Seccomp")?, status(&report, "NoNewPrivs")?);
            let expected = ("2".to_owned(), u8::from(no_new_privileges).to_string());
            ensure!(found == expected, "{found:?}");
        }
    }
    Ok(())
}

fn in_a_user_namespace(test: &Test) -> Result<()> {
    let mut bundle = calling(test, refusing(&["lseek"]), &lseek())?;
    let mapping = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
    bundle.set("/linux/uidMappings", mapping.clone());
    bundle.set("/linux/gidMappings", mapping);
    if let Some(namespaces) = bundle.config["linux"]["namespaces"].as_array_mut() {
        namespaces.push(json!({ "type": "user" }));
    }
    let report = test.runtime.run(&bundle)?.succeed()?.json()?;
    expect(&report, "/result", &json!(-EPERM))
}

fn refuses(test: &Test, profile: Value, words: &[&str]) -> Result<()> {
    let mut bundle = test.idle_bundle()?;
    bundle.set("/linux/seccomp", profile);
    errors::check(test, test.runtime.create(&bundle)?.output()?, words)
}

fn listener_is_refused(test: &Test) -> Result<()> {
    let rules = json!([{ "names": ["lseek"], "action": "SCMP_ACT_NOTIFY" }]);
    refuses(
        test,
        allowing(rules),
        &["linux.seccomp.syscalls[0].action: SCMP_ACT_NOTIFY"],
    )
}

fn wrong_profiles_are_refused(test: &Test) -> Result<()> {
    let mut profile = allowing(json!([]));
    profile["defaultAction"] = json!("SCMP_ACT_DANCE");
    refuses(
        test,
        profile,
        &["linux.seccomp.defaultAction", "SCMP_ACT_DANCE"],
    )?;
    let mut profile = allowing(json!([]));
    profile["architectures"] = json!(["SCMP_ARCH_VAX"]);
    refuses(
        test,
        profile,
        &["linux.seccomp.architectures[0]", "SCMP_ARCH_VAX"],
    )?;
    let mut profile = allowing(json!([]));
    profile["flags"] = json!(["SECCOMP_FILTER_FLAG_X"]);
    refuses(
        test,
        profile,
        &["linux.seccomp.flags[0]", "SECCOMP_FILTER_FLAG_X"],
    )?;
    let args = json!([{ "index": 9, "value": 0, "op": "SCMP_CMP_EQ" }]);
    let rules = json!([{ "names": ["lseek"], "action": "SCMP_ACT_ERRNO", "args": args }]);
    refuses(
        test,
        allowing(rules),
        &["linux.seccomp.syscalls[0].args[0].index", "0 to 5"],
    )?;
    let rules = json!([{ "names": ["lseek"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5000 }]);
    refuses(
        test,
        allowing(rules),
        &["linux.seccomp.syscalls[0].errnoRet", "0 to 4094"],
    )?;
    let rules = json!([{ "names": ["lseek"], "action": "SCMP_ACT_ALLOW", "errnoRet": 22 }]);
    refuses(
        test,
        allowing(rules),
        &["linux.seccomp.syscalls[0].errnoRet", "SCMP_ACT_ALLOW"],
    )
}

/// The system calls of 64-bit x86 up to Linux 5.17, which libseccomp 2.5 knows.
const CALLS: &str = include_str!("seccomp_calls.txt");
