//! Programs that people have in containers, with the tests and benchmarks they come with: Debian's
//! python3, nginx, redis and PostgreSQL, started by Podman.
//!
//! Their root file system is the engines' userland itself, below an overlay that Podman makes
//! (`--rootfs …:O`): nothing is copied, and all that is written is thrown away.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{engine, has, podman::state_root};
use crate::{
    case::{Case, Probe, Test, Topic, case},
    room::{Room, USERLAND},
};

pub(crate) const TOPIC: Topic = Topic {
    name: "images",
    cases: CASES,
    probes: PROBES,
};

const CASES: &[Case] = &[
    engine(case!(python)),
    engine(case!(nginx)),
    engine(case!(redis)),
    engine(case!(postgresql)),
];

const PROBES: &[(&str, Probe)] = &[];

/// What a shell script prints in a container whose root the userland is, with more options.
fn script(test: &Test, options: &[&str], script: &str) -> Result<String> {
    let room = Room::new(test)?;
    let parent = room.cgroup_parent();
    let root = format!("{USERLAND}:O");
    let common = ["podman", "run", "--rm", "--network=none", "--cgroup-parent"];
    let command = ["--rootfs", &root, "sh", "-euc", script];
    let call = room.command(&[&common[..], &[parent.as_str()], options, &command].concat());
    let output = call.timeout(Duration::from_secs(240)).output()?;
    let said = output.stdout.clone();
    ensure!(
        output.status.success(),
        "it said {said:?} and {:?}",
        output.stderr
    );
    room.is_clean(test.runtime.kind, &state_root(test))?;
    Ok(said)
}

fn python(test: &Test) -> Result<()> {
    let said = script(
        test,
        &[],
        "cd /tmp
        python3 -m test test_mmap test_tempfile test_pty test_select test_epoll test_fileio 2>&1",
    )?;
    has(&said, "All 6 tests OK.")
}

fn nginx(test: &Test) -> Result<()> {
    let said = script(
        test,
        &[],
        "echo 'served to itself' > /var/www/html/index.html
        nginx
        python3 -c 'import urllib.request as r; print(r.urlopen(\"http://127.0.0.1/\").read())'
        nginx -s quit",
    )?;
    has(&said, "b'served to itself\\n'")
}

fn redis(test: &Test) -> Result<()> {
    let said = script(
        test,
        &[],
        "mkfifo /tmp/log
        redis-server --save '' --dir /tmp > /tmp/log &
        grep -q 'Ready to accept connections' /tmp/log
        redis-benchmark --csv -n 200 -c 5 -t set,get,lpush
        redis-cli --raw llen mylist
        redis-cli shutdown nosave",
    )?;
    for line in ["\"SET\",", "\"GET\",", "\"LPUSH\",", "\n200\n"] {
        has(&said, line)?;
    }
    Ok(())
}

fn postgresql(test: &Test) -> Result<()> {
    let said = script(
        test,
        // Its thousand files cost minutes where a VM is emulated and they lie on the host.
        &["--tmpfs=/tmp"],
        "PATH=$PATH:/usr/lib/postgresql/15/bin
        as() { runuser -u postgres -- env PATH=$PATH PGHOST=/tmp \"$@\"; }
        cd /tmp
        as initdb -D /tmp/data -N -A trust > /dev/null
        as pg_ctl -D /tmp/data -o '-k /tmp' -w -t 300 -l /tmp/log start > /dev/null
        as pgbench -q -i postgres 2> /dev/null
        as pgbench -c 2 -t 20 postgres
        as psql -A -t postgres -c 'select count(*) from pgbench_history'
        as pg_ctl -D /tmp/data -w stop > /dev/null",
    )?;
    has(&said, "number of transactions actually processed: 40/40")?;
    has(&said, "\n40\n")
}
