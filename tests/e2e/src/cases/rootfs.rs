//! The root file system as real programs use it: the file system suites `pjdfstest` and `fsx`, a
//! git clone, an `apt-get install` and a C build, in a Debian userland.
//!
//! The userland lies on ext4, on a loop device over a file in memory: a file system that people
//! have containers on, and one that knows everything the suites ask for. The suites run natively
//! in the same userland first (`chroot`), and every single result is compared. `lazaret-e2e
//! prepare` makes what these cases need.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::{
    bundle::Bundle,
    case::{Case, Probe, Test, Topic, case},
    runtime::Kind,
};

pub(crate) const TOPIC: Topic = Topic {
    name: "rootfs",
    cases: CASES,
    probes: PROBES,
};

const CASES: &[Case] = &[
    case!(pjdfstest).userland().alone().timeout_s(1500),
    case!(fsx).userland().alone().timeout_s(900),
    case!(git_clone).userland().alone().timeout_s(600),
    case!(apt_install).userland().alone().timeout_s(600),
    case!(c_build).userland().alone().timeout_s(600),
];

const PROBES: &[(&str, Probe)] = &[];

/// Two users that the image has beside root, for the tests about permissions.
const PJDFSTEST_CONFIGURATION: &str = r#"
[features]
posix_fallocate = {}
[settings]
naptime = 0.02
allow_remount = false
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"#;

/// What a VM's share cannot have as it is natively: the C library tells the limit by the type of the
/// file system, which is that of virtio-fs, and the suite skips what it cannot learn.
const PJDFSTEST_SKIPPED_IN_VM: &str = "link::link_count_max";

/// Fewest results that count as a run of `pjdfstest`.
const PJDFSTEST_LEAST: usize = 300;

/// A mounted Debian userland; unmounted when dropped.
struct Userland {
    mount: PathBuf,
}

impl Userland {
    /// Copies the image and mounts the copy.
    fn new(test: &Test) -> Result<Self> {
        let image = test.directory.join("image");
        // Holes stay holes: the copy lies in memory.
        command(
            "cp",
            &[
                "--sparse=always",
                &text(&test.assets.join("debian.ext4")),
                &text(&image),
            ],
        )?;
        let mount = test.directory.join("userland");
        fs::create_dir(&mount)?;
        attach(&image, &mount)?;
        let userland = Self { mount };
        for name in ["pjdfstest", "fsx"] {
            let to = userland.mount.join("usr/local/bin").join(name);
            fs::copy(test.assets.join("bin").join(name), &to)
                .with_context(|| format!("cannot copy {name} to {}", to.display()))?;
        }
        fs::write(
            userland.mount.join("etc/pjdfstest.toml"),
            PJDFSTEST_CONFIGURATION,
        )?;
        fs::create_dir_all(userland.mount.join("work"))?;
        Ok(userland)
    }

    /// An empty directory `/work/name` of the userland.
    fn directory(&self, name: &str) -> Result<String> {
        let path = self.mount.join("work").join(name);
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(format!("/work/{name}"))
    }

    /// A bundle that runs a program in the userland with all capabilities.
    fn bundle(&self, test: &Test, args: &[&str]) -> Result<Bundle> {
        let mut bundle = test.bundle("", &[])?;
        let all: Vec<Value> = CAPABILITIES
            .iter()
            .map(|name| json!(format!("CAP_{name}")))
            .collect();
        bundle.set("/root/path", json!(self.mount));
        bundle.set("/process/args", json!(args));
        bundle.set(
            "/process/capabilities",
            json!({ "bounding": all, "permitted": all, "effective": all }),
        );
        bundle.set(
            "/process/env",
            json!([
                "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "HOME=/root",
                "LC_ALL=C.UTF-8"
            ]),
        );
        Ok(bundle)
    }

    /// Runs a program in a container and returns what it said.
    fn contained(&self, test: &Test, args: &[&str]) -> Result<crate::invocation::Output> {
        test.runtime
            .run(&self.bundle(test, args)?)?
            .timeout(Duration::from_secs(1200))
            .output()
    }

    /// Runs a program natively, with the userland as its root; exit code and output. It has `/proc`
    /// as in the container: the C library asks there what a file system can do.
    fn native(&self, args: &[&str]) -> Result<(Option<i32>, String)> {
        let proc = text(&self.mount.join("proc"));
        command("mount", &["-t", "proc", "proc", &proc])?;
        let output = Command::new("chroot").arg(&self.mount).args(args).output();
        command("umount", &[&proc])?;
        let output = output?;
        Ok((
            output.status.code(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
        ))
    }

    /// Runs a shell script in a container and demands that it succeeds and says `expected` last.
    fn script(&self, test: &Test, script: &str, expected: &str) -> Result<()> {
        let output = self.contained(test, &["/bin/sh", "-euc", script])?;
        let said = output.stdout.trim_end().to_owned();
        let output = output
            .code(0)
            .with_context(|| format!("it said {said:?}"))?;
        ensure!(
            said.ends_with(expected),
            "it said {said:?} and {:?}, expected {expected:?}",
            output.stderr
        );
        Ok(())
    }
}

impl Drop for Userland {
    fn drop(&mut self) {
        // What stays mounted is reported as left behind.
        command("umount", &[&text(&self.mount)]).ok();
    }
}

/// What root has without a container, as far as file systems care.
const CAPABILITIES: &[&str] = &[
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "SYS_CHROOT",
    "SYS_RESOURCE",
    "SYS_ADMIN",
    "MKNOD",
    "LEASE",
    "SETFCAP",
];

/// Mounts an image. `mount -o loop` would keep the device open for writing, which kernels without
/// `CONFIG_BLK_DEV_WRITE_MOUNTED` refuse to mount.
fn attach(image: &Path, mount: &Path) -> Result<()> {
    let output = Command::new("losetup")
        .args(["--find", "--show"])
        .arg(image)
        .output()?;
    let device = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    ensure!(
        output.status.success(),
        "losetup: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let outcome = command("mount", &[&device, &text(mount)]);
    // A mounted device goes with its last user, which from now on is the mount.
    command("losetup", &["--detach", &device])?;
    outcome
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn command(program: &str, args: &[&str]) -> Result<()> {
    let output = Command::new(program)
        .args(args)
        .output()
        .with_context(|| format!("cannot start {program}"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{program} {}: {}",
        args.join(" "),
        errors.trim_end()
    );
    Ok(())
}

/// The result of each test: lines `name   ok`, with other text in between.
fn results(output: &str) -> BTreeMap<String, String> {
    output
        .lines()
        .filter_map(|line| {
            let (name, result) = line.split_once(' ')?;
            let result = plain(result);
            let known = ["ok", "FAILED", "skipped"].contains(&&*result);
            (known && name.contains("::")).then(|| (name.to_owned(), result))
        })
        .collect()
}

/// Text without spaces around it and without the colours of a terminal.
fn plain(text: &str) -> String {
    let mut plain = String::new();
    let mut in_escape = false;
    for letter in text.trim().chars() {
        match letter {
            '\x1b' => in_escape = true,
            'm' if in_escape => in_escape = false,
            _ if in_escape => {}
            _ => plain.push(letter),
        }
    }
    plain
}

fn pjdfstest(test: &Test) -> Result<()> {
    let userland = Userland::new(test)?;
    let args = |directory: &str| {
        [
            "/usr/local/bin/pjdfstest",
            "-v",
            "-c",
            "/etc/pjdfstest.toml",
            "-p",
            directory,
        ]
        .map(str::to_owned)
    };
    let native = args(&userland.directory("native")?);
    let native: Vec<&str> = native.iter().map(String::as_str).collect();
    let native = results(&userland.native(&native)?.1);
    ensure!(
        native.len() >= PJDFSTEST_LEAST,
        "only {} results natively",
        native.len()
    );
    ensure!(
        native.values().any(|result| result == "ok"),
        "nothing passes natively"
    );
    let contained = args(&userland.directory("contained")?);
    let contained: Vec<&str> = contained.iter().map(String::as_str).collect();
    let contained = results(&userland.contained(test, &contained)?.stdout);
    let none = "missing".to_owned();
    let different: Vec<String> = native
        .iter()
        .filter_map(|(name, expected)| {
            let found = contained.get(name).unwrap_or(&none);
            let known = test.runtime.kind == Kind::Lazaret
                && name == PJDFSTEST_SKIPPED_IN_VM
                && found == "skipped";
            (found != expected && !known)
                .then(|| format!("{name}: {expected} natively, {found} in the container"))
        })
        .collect();
    ensure!(
        different.is_empty(),
        "{} of {} results differ: {}",
        different.len(),
        native.len(),
        different.join("; ")
    );
    Ok(())
}

fn fsx(test: &Test) -> Result<()> {
    let userland = Userland::new(test)?;
    let operations = if test.full { "20000" } else { "2000" };
    for seed in ["1", "7", "1234567"] {
        let args = |name: &str| {
            let path = format!("/work/fsx-{name}-{seed}");
            [
                "/usr/local/bin/fsx",
                "-q",
                "-P",
                "/tmp",
                "-N",
                operations,
                "-S",
                seed,
                &path,
            ]
            .map(str::to_owned)
        };
        let native = args("native");
        let native: Vec<&str> = native.iter().map(String::as_str).collect();
        let (code, said) = userland.native(&native)?;
        ensure!(code == Some(0), "seed {seed} fails natively: {said}");
        let contained = args("contained");
        let contained: Vec<&str> = contained.iter().map(String::as_str).collect();
        let output = userland.contained(test, &contained)?;
        let said = output.stdout.clone();
        output
            .code(0)
            .with_context(|| format!("seed {seed}: {said}"))?;
        let content = |name: &str| fs::read(userland.mount.join(format!("work/fsx-{name}-{seed}")));
        ensure!(
            content("native")? == content("contained")?,
            "seed {seed} leaves different files"
        );
    }
    Ok(())
}

fn git_clone(test: &Test) -> Result<()> {
    const SCRIPT: &str = "
        export GIT_AUTHOR_DATE='2020-01-01T00:00:00Z' GIT_COMMITTER_DATE='2020-01-01T00:00:00Z'
        git config --global user.name tester
        git config --global user.email tester@example.org
        git init -q -b main source
        cd source
        for directory in a b c/d/e; do
            mkdir -p $directory
            for file in 1 2 3 4 5 6 7 8 9 10; do
                echo \"$directory $file\" > $directory/$file
            done
        done
        ln -s a/1 link
        chmod +x a/2
        git add .
        git commit -q -m first
        git rm -q -r b
        git mv c f
        git commit -q -m second
        git gc -q
        cd ..
        git clone -q --no-local file://$PWD/source clone
        cd clone
        git fsck --strict
        test -z \"$(git status --porcelain)\"
        test $(git log --oneline | wc -l) = 2
        git rev-parse HEAD^{tree}";
    let userland = Userland::new(test)?;
    let in_directory =
        |name: &str| Ok::<_, anyhow::Error>(format!("cd {}; {SCRIPT}", userland.directory(name)?));
    let (code, tree) = userland.native(&["/bin/sh", "-euc", &in_directory("native")?])?;
    ensure!(code == Some(0), "it fails natively");
    let tree = tree
        .trim_end()
        .lines()
        .last()
        .unwrap_or_default()
        .to_owned();
    ensure!(tree.len() == 40, "no tree: {tree:?}");
    userland.script(test, &in_directory("contained")?, &tree)
}

fn apt_install(test: &Test) -> Result<()> {
    let userland = Userland::new(test)?;
    let script = "
        apt-get install -y -q /packages/*.deb > /work/apt.log 2>&1 || { cat /work/apt.log; exit 1; }
        dpkg --audit
        dpkg --verify bc hello file
        test \"$(hello)\" = 'Hello, world!'
        file -b /bin/sh
        echo '6 * 7' | bc";
    userland.script(test, script, "42")?;
    // The host sees what was installed.
    let status = fs::read_to_string(userland.mount.join("var/lib/dpkg/status"))?;
    ensure!(
        status.contains("Package: hello\nStatus: install ok installed"),
        "dpkg's list lacks hello"
    );
    Ok(())
}

fn c_build(test: &Test) -> Result<()> {
    let userland = Userland::new(test)?;
    let script = "
        mkdir /work/build
        cd /work/build
        for n in 1 2 3 4 5 6 7 8; do
            printf '#include <stdio.h>\\nint part%d(void) { return %d * %d; }\\n' $n $n $n > part$n.c
        done
        cat > main.c <<'END'
#include <stdio.h>
int part1(void), part2(void), part3(void), part4(void), part5(void), part6(void), part7(void), part8(void);
int main(void) {
    printf(\"%d\\n\", part1() + part2() + part3() + part4() + part5() + part6() + part7() + part8());
    return 0;
}
END
        printf 'objects = $(patsubst %%.c,%%.o,$(wildcard *.c))\\nsum: $(objects)\\n\\t$(CC) -o $@ $^\\n' > Makefile
        make -s -j2 CFLAGS='-O2 -Wall'
        make -q
        touch part3.c
        ! make -q
        make -s
        ./sum";
    userland.script(test, script, "204")
}
