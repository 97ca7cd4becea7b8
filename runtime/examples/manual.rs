//! Writes the man pages and the shells' completions, made of the command line itself, into the
//! folder that is its argument, laid out as below `/usr/share`. Called by `cargo xtask manual`.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use clap::{Command, builder::Resettable};
use clap_complete::{Shell, generate};
use clap_mangen::Man;

/// Where a shell looks for the completions of packages, and under which name.
const COMPLETIONS: [(Shell, &str); 3] = [
    (Shell::Bash, "bash-completion/completions/lazaret"),
    (Shell::Zsh, "zsh/vendor-completions/_lazaret"),
    (Shell::Fish, "fish/vendor_completions.d/lazaret.fish"),
];

fn main() -> Result<()> {
    let folder = env::args_os().nth(1).context("no folder given")?;
    let folder = PathBuf::from(folder);
    let mut command = lazaret::command_line();
    for (shell, path) in COMPLETIONS {
        let mut text = Vec::new();
        generate(shell, &mut command.clone(), "lazaret", &mut text);
        write(&folder.join(path), &text)?;
    }
    command.build();
    page(&folder, &command, "lazaret")?;
    for verb in command.get_subcommands() {
        page(&folder, verb, &format!("lazaret-{}", verb.get_name()))?;
    }
    Ok(())
}

/// Writes the page called `name`, in the section of the administrator's commands, as runc's are.
fn page(folder: &Path, command: &Command, name: &str) -> Result<()> {
    // What stands after the options in a help is the description in a manual.
    let texts = [command.get_about(), command.get_after_help()];
    let description: Vec<String> = texts
        .into_iter()
        .flatten()
        .map(ToString::to_string)
        .collect();
    let described = command
        .clone()
        .display_name(name.to_owned())
        .long_about(description.join(".\n\n"))
        .after_help(Resettable::Reset);
    let man = Man::new(described)
        .title(name.to_uppercase())
        .section("8")
        .source(format!("lazaret {}", env!("CARGO_PKG_VERSION")))
        .manual("Lazaret");
    let mut text = Vec::new();
    man.render(&mut text)?;
    write(&folder.join(format!("man/man8/{name}.8")), &text)
}

fn write(path: &Path, text: &[u8]) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    }
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}
