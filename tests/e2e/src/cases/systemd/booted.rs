//! A room with a systemd, for the cases of the topic: the runtime in it, and what systemd says of
//! units.

use std::{collections::BTreeMap, fs, path::PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::{bundle::Bundle, case::Test, host::has_cgroup_v1, invocation::Invocation, room::Room};

/// A systemd, and the runtime beside it.
pub(super) struct Booted {
    pub(super) test: Test,
    pub(super) room: Room,
}

impl Booted {
    /// Boots it for the case.
    pub(super) fn new(test: &Test) -> Result<Self> {
        let room = Room::with_systemd(test)?;
        let test = Test {
            runtime: room.runtime(test),
            directory: test.directory.clone(),
            tag: test.tag.clone(),
            assets: test.assets.clone(),
            probe: test.probe.clone(),
            bundles: test.bundles.clone(),
            ..*test
        };
        Ok(Self { test, room })
    }

    /// An idle container of this slice.
    pub(super) fn bundle(&self, slice: &str) -> Result<Bundle> {
        let mut bundle = self.test.idle_bundle()?;
        let path = format!("{slice}:e2e:{}", bundle.id);
        bundle.set("/linux/cgroupsPath", json!(path));
        Ok(bundle)
    }

    /// `create` with the option.
    pub(super) fn create(&self, bundle: &Bundle) -> Result<Invocation> {
        let create = self.test.runtime.create(bundle)?;
        Ok(create.global(&["--systemd-cgroup"]))
    }

    /// `create` and `start`.
    pub(super) fn launch(&self, bundle: &Bundle) -> Result<()> {
        self.create(bundle)?.succeed()?;
        self.start(&bundle.id)
    }

    /// `start`.
    pub(super) fn start(&self, id: &str) -> Result<()> {
        self.test.runtime.start(id).succeed()?;
        Ok(())
    }

    /// `delete --force`.
    pub(super) fn delete(&self, id: &str) -> Result<()> {
        self.test.runtime.delete_force(id).succeed()?;
        Ok(())
    }

    /// Properties of a unit, by name.
    pub(super) fn show(&self, unit: &str) -> Result<BTreeMap<String, String>> {
        let output = self.room.command(&["systemctl", "show", unit]).succeed()?;
        let pairs = output.stdout.lines().filter_map(|line| {
            let (name, value) = line.split_once('=')?;
            Some((name.to_owned(), value.to_owned()))
        });
        Ok(pairs.collect())
    }

    /// Demands that properties of a unit have these values.
    pub(super) fn shows(&self, unit: &str, expected: &[(&str, &str)]) -> Result<()> {
        let found = self.show(unit)?;
        for (name, value) in expected {
            let found = found.get(*name).with_context(|| format!("no {name}"))?;
            ensure!(found == value, "{name} is {found}, expected {value}");
        }
        Ok(())
    }

    /// Demands that systemd knows no such unit, and that no cgroup of it is left.
    pub(super) fn has_no(&self, unit: &str) -> Result<()> {
        self.shows(
            unit,
            &[("LoadState", "not-found"), ("ActiveState", "inactive")],
        )?;
        let left = crate::host::cgroups(unit);
        ensure!(left.is_empty(), "{left:?} is left");
        Ok(())
    }

    /// A file of a unit's cgroup, which is at that path for systemd. With cgroup v1 it is in the
    /// hierarchy of the controller that it is named after.
    pub(super) fn file(&self, path: &str, name: &str) -> Result<String> {
        let group = self.test.tag.trim_end_matches('-');
        let controller = match name.split_once('.') {
            Some((controller, _)) if has_cgroup_v1() => controller.replace("cgroup", "systemd"),
            _ => String::new(),
        };
        let path = PathBuf::from(format!("/sys/fs/cgroup/{controller}/{group}{path}/{name}"));
        let text = fs::read_to_string(&path);
        let text = text.with_context(|| format!("cannot read {}", path.display()))?;
        Ok(text.trim_end().to_owned())
    }

    /// Demands that nothing is left in the room, and takes it away.
    pub(super) fn end(self) -> Result<()> {
        let units = ["systemctl", "list-units", "--all", "--plain", "--no-legend"];
        let units = self.room.command(&[&units[..], &["--type=scope"]].concat());
        let units = units.succeed()?.stdout;
        let left = units.lines().find(|line| !line.starts_with("init.scope"));
        ensure!(
            left.is_none(),
            "a unit is left: {}",
            left.unwrap_or_default()
        );
        let mounts = self.room.command(&["cat", "/proc/1/mountinfo"]).succeed()?;
        let root = self.test.runtime.root.to_string_lossy();
        let left = mounts.stdout.lines().find(|line| line.contains(&*root));
        ensure!(
            left.is_none(),
            "a mount is left: {}",
            left.unwrap_or_default()
        );
        self.room.dissolve()
    }
}
