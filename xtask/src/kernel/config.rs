//! Configuration fragments: put together, and compared with what Kconfig made of them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// All fragments of a folder in the order of their names.
///
/// # Errors
/// If there are none, or two set the same option.
pub(super) fn read(folder: &Path) -> Result<String> {
    let mut paths: Vec<_> = fs::read_dir(folder)
        .with_context(|| format!("reading {}", folder.display()))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    paths.retain(|path| {
        path.extension()
            .is_some_and(|extension| extension == "config")
    });
    paths.sort();
    let mut text = String::new();
    let mut owner = BTreeMap::new();
    for path in &paths {
        let fragment =
            fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        for option in options(&fragment).into_keys() {
            if let Some(other) = owner.insert(option.to_owned(), path.clone()) {
                bail!(
                    "{option} is set in {} and in {}",
                    other.display(),
                    path.display()
                );
            }
        }
        text.push_str(&fragment);
    }
    if text.is_empty() {
        bail!("there is no fragment in {}", folder.display());
    }
    Ok(text)
}

/// Checks that each option that was asked for has the value it was asked to have.
///
/// # Errors
/// If not, with all that differ.
pub(super) fn check(requested: &str, result: &str) -> Result<()> {
    let result = options(result);
    let wrong: Vec<String> = options(requested)
        .into_iter()
        .filter_map(|(option, value)| {
            let got = result.get(option).copied().unwrap_or("n");
            (got != value).then(|| format!("{option} is {got} instead of {value}"))
        })
        .collect();
    if !wrong.is_empty() {
        bail!(
            "the configuration came out differently:\n  {}",
            wrong.join("\n  ")
        );
    }
    Ok(())
}

/// The options of a configuration file by name; those that are not set have the value `n`.
fn options(text: &str) -> BTreeMap<&str, &str> {
    text.lines()
        .filter_map(|line| {
            if let Some(rest) = line.strip_prefix("# CONFIG_") {
                let name = rest.strip_suffix(" is not set")?;
                Some((name, "n"))
            } else {
                line.strip_prefix("CONFIG_")?.split_once('=')
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_and_comments_are_not() {
        let text =
            "# CONFIG_A is set because\nCONFIG_B=y\n# CONFIG_C is not set\nCONFIG_D=\"x=y\"\n";
        let found: Vec<_> = options(text).into_iter().collect();
        assert_eq!(found, [("B", "y"), ("C", "n"), ("D", "\"x=y\"")]);
    }

    #[test]
    fn a_missing_option_is_an_error_and_an_unset_one_may_be_absent() {
        check("CONFIG_A=y\n# CONFIG_B is not set\n", "CONFIG_A=y\n").unwrap();
        let error = check("CONFIG_A=y\nCONFIG_N=64\n", "CONFIG_N=8\n").unwrap_err();
        let text = error.to_string();
        assert!(text.contains("A is n instead of y"), "{text}");
        assert!(text.contains("N is 8 instead of 64"), "{text}");
    }

    #[test]
    fn the_fragments_of_both_kernels_set_each_option_once() {
        for kernel in [super::super::Kernel::Guest, super::super::Kernel::Host] {
            let text = read(&kernel.fragments()).unwrap();
            assert!(options(&text).contains_key("VIRTIO_CONSOLE"));
        }
    }
}
