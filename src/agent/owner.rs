//! One agent owns the device of a host. A lock beside the control socket says which: the kernel lets go of it when the
//! owner ends, however it ends. Under Kubernetes another agent stands by until then; elsewhere it refuses to start.

use std::fs::{self, File, OpenOptions};
use std::io::Read as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use tokio::sync::oneshot;
use tracing::{info, warn};

use super::control;
use crate::cli::AgentArgs;
use crate::config::{Config, sentence};

/// An owner that is started anew has the device again before another takes it.
const COURTESY: Duration = Duration::from_secs(5);

/// The lock, until it is dropped.
#[derive(Debug)]
pub struct Owner {
    _lock: Flock<File>,
}

/// What the lock's file says about who holds it.
const IN_POD: &str = "an agent in a pod";
const ON_HOST: &str = "an agent on the host";

/// The lock of an agent's device.
fn path(config: &Config) -> PathBuf {
    config.socket.with_extension("lock")
}

/// Becomes the owner; under Kubernetes after the present one is gone. None where it was told to stop before that.
pub async fn become_owner(config: &Config, flags: &AgentArgs) -> Result<Option<Owner>> {
    let path = path(config);
    let who = match &config.kubernetes {
        Some(kubernetes) if kubernetes.in_pod => IN_POD,
        Some(_) | None => ON_HOST,
    };
    let Some(holder) = (match claim(&path, who)? {
        Ok(owner) => return Ok(Some(owner)),
        Err(holder) => Some(holder),
    }) else {
        return Ok(None);
    };
    if config.kubernetes.is_none() {
        bail!(
            "{} is held by {holder}: it owns {} already; stop it with `farspan down`, or give another --interface or --socket",
            path.display(),
            config.interface
        );
    }
    info!(interface = %config.interface, %holder, "Another agent owns this node; standing by until it ends");
    let health = match flags.metrics_listen {
        // On the host's network the owner may answer there already.
        Some(address) => control::serve_standby(address)
            .await
            .inspect_err(|error| info!("{error:#}; the owner may serve it"))
            .ok(),
        None => None,
    };
    let stopped = super::boot::stopped()?;
    let owner = tokio::select! {
        owner = wait(&path, who, COURTESY) => Some(owner?),
        () = stopped => None,
    };
    if let Some(health) = health {
        health.abort();
        // The address is free once the task is gone.
        _ = health.await;
    }
    if owner.is_some() {
        info!(interface = %config.interface, "The other agent is gone; taking over");
    }
    Ok(owner)
}

/// The lock, or who holds it.
fn claim(path: &Path, who: &str) -> Result<Result<Owner, String>> {
    let fail =
        |error: std::io::Error| anyhow!("cannot open {}: {}", path.display(), sentence(&error));
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(fail)?;
    }
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(fail)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Ok(sign(lock, who))),
        Err((mut file, Errno::EWOULDBLOCK)) => {
            let mut holder = String::new();
            // Who it is matters for the sentence only.
            _ = file.read_to_string(&mut holder);
            let holder = holder.lines().next().unwrap_or_default().trim();
            Ok(Err(if holder.is_empty() {
                "another agent".to_owned()
            } else {
                holder.to_owned()
            }))
        }
        Err((_, errno)) => Err(fail(errno.into())),
    }
}

fn sign(mut lock: Flock<File>, who: &str) -> Owner {
    // For sentences of others only; a full disk must not matter.
    _ = lock
        .set_len(0)
        .and_then(|()| writeln!(lock, "{who}, process {}", std::process::id()));
    Owner { _lock: lock }
}

/// Until the lock is free and nobody else took it.
async fn wait(path: &Path, who: &str, courtesy: Duration) -> Result<Owner> {
    loop {
        if let Err(error) = released(path).await {
            warn!("{error:#}");
        }
        tokio::time::sleep(courtesy).await;
        if let Ok(owner) = claim(path, who)? {
            return Ok(owner);
        }
    }
}

/// Until whoever holds it lets go: in a thread, because the kernel's wait cannot be put into a loop.
async fn released(path: &Path) -> Result<()> {
    let file = File::open(path)?;
    let (sender, receiver) = oneshot::channel();
    std::thread::Builder::new()
        .name("owner-lock".to_owned())
        .spawn(move || {
            let waited = Flock::lock(file, FlockArg::LockExclusive);
            // Let go again at once: the owner may only be starting anew.
            _ = sender.send(waited.map(drop).map_err(|(_, errno)| errno));
        })?;
    Ok(receiver.await??)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_stands_by_takes_over_when_the_owner_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/farspan0.lock");
        let first = claim(&path, ON_HOST).unwrap().unwrap();
        let holder = claim(&path, IN_POD).unwrap().unwrap_err();
        assert!(
            holder.starts_with("an agent on the host, process "),
            "{holder}"
        );
        let waiting = tokio::spawn({
            let path = path.clone();
            async move { wait(&path, IN_POD, Duration::ZERO).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(first);
        let _owner = waiting.await.unwrap().unwrap();
        let holder = claim(&path, ON_HOST).unwrap().unwrap_err();
        assert!(holder.starts_with(IN_POD), "{holder}");
    }
}
