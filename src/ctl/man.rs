//! `farspan man`: manual pages from the same text as `--help`.

use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use clap::{Command, CommandFactory as _};

use super::print;
use crate::agent::state::write_atomic;
use crate::cli::{Cli, ManArgs};
use crate::config::ConfigError;

pub fn run(args: &ManArgs) -> Result<()> {
    let mut whole = Cli::command().disable_help_subcommand(true);
    whole.build();
    if let Some(folder) = &args.dir {
        let written = write_all(&whole, "farspan", folder)?;
        return print(&format!(
            "{written} pages written to {}\n",
            folder.display()
        ));
    }
    let mut command = &whole;
    let mut name = "farspan".to_owned();
    for word in &args.verb {
        command = command
            .find_subcommand(word)
            .filter(|found| !found.is_hide_set())
            .ok_or_else(|| {
                ConfigError(format!(
                    "there is no page {name}-{word}; see `farspan --help`"
                ))
            })?;
        name = format!("{name}-{}", command.get_name());
    }
    print(&page(command, &name)?)
}

/// Pages of a command and all below it; how many.
fn write_all(command: &Command, name: &str, folder: &Path) -> Result<usize> {
    let path = folder.join(format!("{name}.1"));
    write_atomic(&path, page(command, name)?.as_bytes(), 0o644)
        .map_err(|error| anyhow!("cannot write {}: {error:#}", path.display()))?;
    let mut written = 1;
    for below in command
        .get_subcommands()
        .filter(|below| !below.is_hide_set())
    {
        written += write_all(below, &format!("{name}-{}", below.get_name()), folder)?;
    }
    Ok(written)
}

fn page(command: &Command, name: &str) -> Result<String> {
    let mut roff = Vec::new();
    clap_mangen::Man::new(command.clone().display_name(name.to_owned()))
        .manual("farspan")
        .render(&mut roff)
        .context("Failed to render the page")?;
    String::from_utf8(roff).context("Failed to render the page")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verb_has_a_page_and_pages_name_each_other() {
        let folder = tempfile::tempdir().unwrap();
        let mut whole = Cli::command().disable_help_subcommand(true);
        whole.build();
        let written = write_all(&whole, "farspan", folder.path()).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), written);
        let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
        for verb in whole.get_subcommands().filter(|verb| !verb.is_hide_set()) {
            assert!(
                read("farspan.1").contains(verb.get_name()),
                "{}",
                verb.get_name()
            );
        }
        let add = read("farspan-peer-add.1");
        assert!(
            add.starts_with(".ie") || add.contains(".TH farspan-peer-add 1"),
            "{add}"
        );
        assert!(add.contains("allowed\\-ips"), "{add}");
    }
}
