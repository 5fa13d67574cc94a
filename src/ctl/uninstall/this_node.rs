//! What an agent leaves on its host: device, routes, rules, packet filters, the CNI file, its socket, its keys.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Result, anyhow};
use tokio::signal::unix::{SignalKind, signal};

use crate::agent::cni;
use crate::cli::{AgentArgs, Global, UninstallArgs};
use crate::config::{Config, sentence};
use crate::ctl::{blocking_runtime, down, must_be_root, print};

pub fn run(global: &Global, args: &UninstallArgs) -> Result<()> {
    must_be_root("uninstall --this-node")?;
    let config = Config::load(global, &AgentArgs::default())?;
    let cni_file = Path::new(&args.cni_conf_dir).join(cni::FILE);
    if args.dry_run {
        return would(&config, args, &cni_file);
    }
    let mut removed = down::remove(&config)?;
    let run_files = ["sock", "lock"].map(|kind| config.socket.with_extension(kind));
    for file in std::iter::once(cni_file).chain(run_files) {
        if gone(&file, fs::remove_file(&file))? {
            removed.push(format!("removed {}", file.display()));
        }
    }
    if args.purge {
        removed.extend(empty(&config.state_dir)?);
    }
    if removed.is_empty() {
        print("Nothing of farspan was left on this host.\n")?;
    }
    for line in removed {
        print(&format!("{line}\n"))?;
    }
    if args.stay {
        return wait_to_be_stopped();
    }
    Ok(())
}

fn would(config: &Config, args: &UninstallArgs, cni_file: &Path) -> Result<()> {
    print(&format!(
        "Would remove {} with its routes, rules and packet filters\n",
        config.interface
    ))?;
    for path in [
        Some(cni_file),
        args.purge.then_some(config.state_dir.as_path()),
    ] {
        if let Some(path) = path.filter(|path| path.exists()) {
            print(&format!("Would remove {}\n", path.display()))?;
        }
    }
    Ok(())
}

/// Was it there?
fn gone(path: &Path, result: io::Result<()>) -> Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(anyhow!(
            "cannot remove {}: {}",
            path.display(),
            sentence(&error)
        )),
    }
}

/// Removes what is in a folder, and the folder unless it is mounted.
fn empty(folder: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) => return gone(folder, Err(error)).map(|_| Vec::new()),
    };
    let mut removed = false;
    for entry in entries.flatten() {
        let path = entry.path();
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let result = if is_folder {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        removed |= gone(&path, result)?;
    }
    let whole = fs::remove_dir(folder).is_ok();
    Ok(if removed || whole {
        vec![format!("removed keys and state in {}", folder.display())]
    } else {
        Vec::new()
    })
}

fn wait_to_be_stopped() -> Result<()> {
    blocking_runtime()?.block_on(async {
        let mut told = signal(SignalKind::terminate())?;
        _ = told.recv().await;
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_folder_goes_with_all_that_is_in_it_and_once() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("farspan");
        fs::create_dir_all(state.join("old")).unwrap();
        fs::write(state.join("identity.key"), "x").unwrap();
        let said = format!("removed keys and state in {}", state.display());
        assert_eq!(empty(&state).unwrap(), [said]);
        assert!(!state.exists());
        assert_eq!(empty(&state).unwrap(), Vec::<String>::new());
    }
}
