//! What either engine can demand of a container: who it is, what it may, its files, its limits.

use std::fs;

use anyhow::{Result, ensure};

use super::{Engine, has, is};

/// User, environment, names, capabilities, limits, and what the kernel is told.
pub(super) fn process(engine: &Engine<'_>) -> Result<()> {
    fs::write(engine.room.path("/tmp/env"), "A=1\nB=two words\n")?;
    let said = engine.script(
        &[
            "--user=user",
            "--hostname=h1",
            "--env-file=/tmp/env",
            "--workdir=/tmp",
            "--ulimit=nofile=123:456",
            "--cap-drop=ALL",
            "--cap-add=CHOWN",
        ],
        "id -u; id -g; hostname; echo $A $B; pwd; ulimit -n; ulimit -Hn; \
         grep CapBnd /proc/self/status",
    )?;
    let expected = "1000\n1000\nh1\n1 two words\n/tmp\n123\n456\nCapBnd:\t0000000000000001\n";
    is(&said, expected)?;
    let said = engine.script(
        &[
            "--init",
            "--sysctl=kernel.msgmax=4096",
            "--sysctl=net.ipv4.ip_unprivileged_port_start=80",
            "--shm-size=1m",
            "--device=/dev/fuse",
            "--memory=64m",
            "--cpus=0.5",
            "--pids-limit=50",
        ],
        "test $$ != 1 && cat /proc/1/comm; \
         cd /proc/sys; cat kernel/msgmax net/ipv4/ip_unprivileged_port_start; \
         df -k /dev/shm | awk 'NR == 2 { print $2 }'; \
         stat -c '%F %t %T' /dev/fuse; : <> /dev/fuse && echo opened; \
         cd /sys/fs/cgroup; cat memory.max cpu.max pids.max",
    )?;
    let (init, rest) = said.split_once('\n').unwrap_or_default();
    ensure!(init.contains("init") || init == "catatonit", "{said:?}");
    let expected = "4096\n80\n1024\ncharacter special file a e5\nopened\n\
                    67108864\n50000 100000\n50\n";
    is(rest, expected)?;
    let whole_kernel = engine.run(&["--rm", "--sysctl=kernel.panic=1"], &["true"]);
    let refused = whole_kernel.output()?;
    ensure!(refused.status.code() != Some(0), "kernel.panic was set");
    Ok(())
}

/// A container that may do anything, with every device of the machine.
pub(super) fn privileged(engine: &Engine<'_>) -> Result<()> {
    let said = engine.script(
        &["--privileged"],
        "mkdir /m && busybox mount -t tmpfs none /m 2>&1 && echo mounted; \
         cd /proc/sys/kernel; cat msgmax > msgmax && echo written; \
         : <> /dev/fuse && echo opened; grep -c 'CapEff:.*ffffffff' /proc/self/status",
    )?;
    is(&said, "mounted\nwritten\nopened\n1\n")
}

/// Read-only roots, tmpfs, bound files and directories, volumes; and a seccomp profile.
pub(super) fn files(engine: &Engine<'_>) -> Result<()> {
    let outside = |path: &str| engine.room.path(path);
    fs::create_dir(outside("/tmp/d"))?;
    fs::write(outside("/tmp/d/f"), "f\n")?;
    let profile = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
        {"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":95}]}"#;
    fs::write(outside("/tmp/profile"), profile)?;
    let volumes = [
        "--read-only",
        "--tmpfs=/mnt:size=1m,mode=700",
        "--security-opt=seccomp=/tmp/profile",
        "--volume=/tmp/d:/d:ro",
        "--volume=/tmp/d/f:/file",
        "--volume=named:/named",
    ];
    let said = engine.script(
        &volumes,
        "touch /x 2>&1; touch /mnt/x; df -k /mnt | awk 'NR == 2 { print $2 }'; stat -c %a /mnt; \
         cat /d/f; echo more >> /file; touch /d/x 2>&1; touch /named/kept; mkdir /mnt/d 2>&1 || :",
    )?;
    let expected = "touch: /x: Read-only file system\n1024\n700\n\
                    f\ntouch: /d/x: Read-only file system\n\
                    mkdir: can't create directory '/mnt/d': Operation not supported\n";
    is(&said, expected)?;
    is(&fs::read_to_string(outside("/tmp/d/f"))?, "f\nmore\n")?;
    let kept = engine.script(
        &["--volume=named:/named:ro"],
        "ls /named; touch /named/x 2>&1 || :",
    )?;
    has(&kept, "kept\ntouch: /named/x: Read-only file system\n")
}
