//! Our corrections to kernel sources: `*.patch` of a folder, in the order of their names.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// A change to a tree of sources, as `diff -u` writes it, paths with one leading component.
#[derive(Debug)]
pub(super) struct Patch {
    name: String,
    text: Vec<u8>,
}

impl Patch {
    /// The patches of `folder`; none if there is no such folder.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub(super) fn read_all(folder: &Path) -> Result<Vec<Self>> {
        if !folder.exists() {
            return Ok(Vec::new());
        }
        let mut patches = Vec::new();
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path
                .extension()
                .is_some_and(|extension| extension == "patch")
            {
                let name = path.file_name().unwrap_or_default();
                patches.push(Self {
                    name: name.to_string_lossy().into_owned(),
                    text: fs::read(&path).with_context(|| format!("reading {}", path.display()))?,
                });
            }
        }
        patches.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(patches)
    }

    /// What a cache key needs to know.
    pub(super) fn text(&self) -> &[u8] {
        &self.text
    }

    /// Changes `tree`, unless it has the change.
    ///
    /// # Errors
    /// If the patch does not fit.
    pub(super) fn apply(&self, tree: &Path) -> Result<()> {
        if self.is_in(tree)? {
            return Ok(());
        }
        let done = self.patch(tree, &[])?;
        if !done.status.success() {
            let said = String::from_utf8_lossy(&done.stdout);
            bail!(
                "{} does not fit {}: {}",
                self.name,
                tree.display(),
                said.trim()
            );
        }
        Ok(())
    }

    /// Whether `tree` has the change.
    ///
    /// # Errors
    /// If patch(1) cannot be run.
    pub(super) fn is_in(&self, tree: &Path) -> Result<bool> {
        let undone = self.patch(tree, &["--reverse", "--dry-run"])?;
        Ok(undone.status.success())
    }

    /// The file's name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    fn patch(&self, tree: &Path, options: &[&str]) -> Result<Output> {
        let mut child = Command::new("patch")
            .args([
                "--strip=1",
                "--force",
                "--fuzz=0",
                "--no-backup-if-mismatch",
            ])
            .args(options)
            .arg("--directory")
            .arg(tree)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting patch")?;
        let mut input = child.stdin.take().context("patch has no input")?;
        // patch reads everything before it writes more than a few lines.
        input.write_all(&self.text).context("writing to patch")?;
        drop(input);
        child.wait_with_output().context("waiting for patch")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATCH: &str =
        "Why it is so.\n\n--- a/file\n+++ b/file\n@@ -1,3 +1,3 @@\n one\n-two\n+2\n three\n";

    fn patch(text: &str) -> Patch {
        crate::packages::ensure(&["patch"], "to test patches").unwrap();
        Patch {
            name: "0001-test.patch".into(),
            text: text.into(),
        }
    }

    #[test]
    fn a_tree_is_changed_once() {
        let tree = tempfile::tempdir().unwrap();
        let file = tree.path().join("file");
        fs::write(&file, "one\ntwo\nthree\n").unwrap();
        assert!(!patch(PATCH).is_in(tree.path()).unwrap());
        patch(PATCH).apply(tree.path()).unwrap();
        patch(PATCH).apply(tree.path()).unwrap();
        assert!(patch(PATCH).is_in(tree.path()).unwrap());
        assert_eq!(fs::read_to_string(&file).unwrap(), "one\n2\nthree\n");
        // No rejects, no backups.
        assert_eq!(fs::read_dir(tree.path()).unwrap().count(), 1);
    }

    #[test]
    fn one_that_does_not_fit_is_named() {
        let tree = tempfile::tempdir().unwrap();
        fs::write(tree.path().join("file"), "something else\n").unwrap();
        let error = patch(PATCH).apply(tree.path()).unwrap_err().to_string();
        assert!(
            error.starts_with("0001-test.patch does not fit "),
            "{error}"
        );
    }

    #[test]
    fn the_patches_of_the_guest_are_found_in_order() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["0002-b.patch", "README.md", "0001-a.patch"] {
            fs::write(folder.path().join(name), name).unwrap();
        }
        let names: Vec<String> = Patch::read_all(folder.path())
            .unwrap()
            .iter()
            .map(|patch| patch.name().to_owned())
            .collect();
        assert_eq!(names, ["0001-a.patch", "0002-b.patch"]);
        let missing = Patch::read_all(&folder.path().join("missing")).unwrap();
        assert!(missing.is_empty());
    }
}
