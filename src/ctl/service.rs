//! Starting and stopping the agent. The only processes a verb ever starts are `systemctl` and, where there
//! is no systemd, the agent itself.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, anyhow, bail};

use crate::cli::{AgentArgs, BackendChoice, Global};
use crate::config::{Config, sentence};

/// The unit that packages install.
pub const UNIT: &str = "farspan.service";
const UNIT_FOLDERS: [&str; 3] = [
    "/etc/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];

/// Is this machine run by systemd, and does it know our unit?
pub fn has_unit() -> bool {
    Path::new("/run/systemd/system").is_dir()
        && UNIT_FOLDERS
            .iter()
            .any(|folder| Path::new(folder).join(UNIT).exists())
}

/// Does the unit run?
pub fn active() -> bool {
    has_unit() && systemctl(&["is-active", "--quiet"]).is_ok()
}

/// Runs `systemctl VERB farspan.service`.
pub fn systemctl(arguments: &[&str]) -> Result<()> {
    let output = Command::new("systemctl")
        .args(arguments)
        .arg(UNIT)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| anyhow!("cannot run systemctl: {}", sentence(&error)))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    bail!(
        "`systemctl {} {UNIT}` failed: {}; see journalctl -u farspan",
        arguments.join(" "),
        said.lines().next().unwrap_or("it gave no reason")
    )
}

/// Starts the agent detached, its log in the state folder.
pub fn detach(global: &Global, args: &AgentArgs, config: &Config) -> Result<(Child, PathBuf)> {
    let log = config.state_dir.join("agent.log");
    std::fs::create_dir_all(&config.state_dir).map_err(|error| {
        anyhow!(
            "cannot make {}: {}",
            config.state_dir.display(),
            sentence(&error)
        )
    })?;
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(&log)
        .map_err(|error| anyhow!("cannot open {}: {}", log.display(), sentence(&error)))?;
    let errors = file.try_clone().context("Failed to share the log file")?;
    let program = std::env::current_exe().context("Failed to find the program's own path")?;
    let child = Command::new(program)
        .args(arguments(global, args)?)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(errors)
        .spawn()
        .map_err(|error| anyhow!("cannot start the agent: {}", sentence(&error)))?;
    Ok((child, log))
}

fn arguments(global: &Global, args: &AgentArgs) -> Result<Vec<std::ffi::OsString>> {
    let Global {
        config,
        socket,
        state_dir,
        interface,
        log_format: _,
    } = global;
    let AgentArgs {
        backend,
        listen_port,
        name,
        region,
        metrics_listen,
        dry_run: _,
        detached: _,
    } = args;
    let mut out: Vec<std::ffi::OsString> = vec!["agent".into(), "--detached".into()];
    for (flag, path) in [
        ("--config", config),
        ("--socket", socket),
        ("--state-dir", state_dir),
    ] {
        if let Some(path) = path {
            out.push(flag.into());
            out.push(std::path::absolute(path)?.into());
        }
    }
    let backend = backend.map(|backend| match backend {
        BackendChoice::Auto => "auto".to_owned(),
        BackendChoice::Kernel => "kernel".to_owned(),
        BackendChoice::Userspace => "userspace".to_owned(),
    });
    for (flag, text) in [
        ("--interface", interface.clone()),
        ("--backend", backend),
        ("--listen-port", listen_port.map(|port| port.to_string())),
        ("--name", name.clone()),
        ("--region", region.clone()),
        (
            "--metrics-listen",
            metrics_listen.map(|address| address.to_string()),
        ),
    ] {
        if let Some(text) = text {
            out.push(flag.into());
            out.push(text.into());
        }
    }
    Ok(out)
}
