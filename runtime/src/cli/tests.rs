//! The command line beside runc's: no verb and no option of runc 1.4 may be unknown here.

use super::described;

/// The verbs of runc 1.4 with their options, as its own help and manual list them; obsolete and
/// hidden ones included. A letter after a slash is the short form.
const RUNC: &[(&str, &str)] = &[
    (
        "",
        "debug log log-format root criu systemd-cgroup rootless version/v help/h",
    ),
    (
        "checkpoint",
        "image-path work-path parent-path leave-running tcp-established ext-unix-sk shell-job \
         lazy-pages status-fd page-server file-locks pre-dump manage-cgroups-mode empty-ns \
         auto-dedup",
    ),
    (
        "create",
        "bundle/b console-socket pidfd-socket pid-file no-pivot no-new-keyring preserve-fds",
    ),
    ("delete", "force/f"),
    ("events", "interval stats"),
    (
        "exec",
        "console-socket pidfd-socket cwd env/e tty/t user/u additional-gids/g process/p detach/d \
         pid-file process-label apparmor no-new-privs cap/c preserve-fds cgroup ignore-paused",
    ),
    ("features", ""),
    ("kill", "all/a"),
    ("list", "format/f quiet/q"),
    ("pause", ""),
    ("ps", "format/f"),
    (
        "restore",
        "console-socket image-path work-path tcp-established ext-unix-sk shell-job file-locks \
         manage-cgroups-mode bundle/b detach/d pid-file no-subreaper no-pivot empty-ns auto-dedup \
         lazy-pages lsm-profile lsm-mount-context",
    ),
    ("resume", ""),
    (
        "run",
        "bundle/b console-socket pidfd-socket detach/d keep pid-file no-subreaper no-pivot \
         no-new-keyring preserve-fds",
    ),
    ("spec", "bundle/b rootless"),
    ("start", ""),
    ("state", ""),
    (
        "update",
        "resources/r blkio-weight cpu-period cpu-quota cpu-burst cpu-share cpu-rt-period \
         cpu-rt-runtime cpuset-cpus cpuset-mems kernel-memory kernel-memory-tcp memory cpu-idle \
         memory-reservation memory-swap pids-limit l3-cache-schema mem-bw-schema",
    ),
];

fn complete() -> clap::Command {
    let mut command = described();
    command.build();
    command
}

#[test]
fn every_verb_and_option_of_runc_is_known() {
    let lazaret = complete();
    for (verb, options) in RUNC {
        let command = match *verb {
            "" => &lazaret,
            verb => lazaret.find_subcommand(verb).expect(verb),
        };
        for option in options.split_whitespace().chain(["help/h"]) {
            let (long, short) = option.split_once('/').unwrap_or((option, ""));
            let found = command
                .get_arguments()
                .find(|argument| argument.get_long() == Some(long));
            let found = found.unwrap_or_else(|| panic!("{verb} --{long}"));
            assert_eq!(found.get_short(), short.chars().next(), "{verb} --{long}");
        }
    }
}

#[test]
fn a_verb_that_runc_does_not_have_is_ours_on_purpose() {
    for verb in complete().get_subcommands() {
        let name = verb.get_name();
        let known = RUNC.iter().any(|(verb, _)| *verb == name);
        assert!(known || ["check", "version"].contains(&name), "{name}");
    }
}

#[test]
fn help_has_a_line_a_paragraph_and_no_debug_faults() {
    let command = complete();
    command.clone().debug_assert();
    for verb in command.get_subcommands() {
        let name = verb.get_name();
        let about = verb
            .get_about()
            .map(ToString::to_string)
            .unwrap_or_default();
        assert!(!about.is_empty(), "{name}");
        let more = verb.get_after_help().map(ToString::to_string);
        assert!(more.is_some_and(|more| more.len() > 60), "{name}");
        for argument in verb.get_arguments() {
            let help = argument.get_help().map(ToString::to_string);
            assert!(help.is_some_and(|help| help.len() > 5), "{name} {argument}");
        }
    }
}

#[test]
fn help_looks_like_runcs() {
    let mut command = complete();
    let text = command.render_help().to_string();
    let sections = [
        "NAME:\n   lazaret - ",
        "\nUSAGE:\n",
        "\nCOMMANDS:\n",
        "\nGLOBAL OPTIONS:\n",
    ];
    for section in sections {
        assert!(text.contains(section), "{section:?} in {text}");
    }
    let kill = command.find_subcommand_mut("kill").unwrap();
    let text = kill.render_help().to_string();
    for section in [
        "NAME:\n   lazaret kill - Send a signal",
        "\nUSAGE:\n   lazaret kill [OPTIONS] <CONTAINER_ID> [SIGNAL]\n",
        "\nOptions:\n",
        "\n    # lazaret kill web KILL\n",
    ] {
        assert!(text.contains(section), "{section:?} in {text}");
    }
}
