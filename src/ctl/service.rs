//! Starting and stopping the agent. The only processes a verb ever starts are `systemctl` and, where there
//! is no systemd, the agent itself.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, anyhow, bail};

use crate::cli::{AgentArgs, Global, KubernetesArgs};
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
        metrics_per_peer,
        dry_run: _,
        detached: _,
        kubernetes:
            KubernetesArgs {
                kubernetes,
                node_name,
                external,
                kubeconfig,
                api_server,
                pod_network,
                cluster_cidrs,
                service_cidrs,
                cni_conf_dir,
                cni_bin_dir,
            },
    } = args;
    let mut out: Vec<std::ffi::OsString> = vec!["agent".into(), "--detached".into()];
    for (flag, path) in [
        ("--config", config),
        ("--socket", socket),
        ("--state-dir", state_dir),
        ("--kubeconfig", kubeconfig),
        ("--cni-conf-dir", cni_conf_dir),
        ("--cni-bin-dir", cni_bin_dir),
    ] {
        if let Some(path) = path {
            out.push(flag.into());
            out.push(std::path::absolute(path)?.into());
        }
    }
    for (flag, set) in [
        ("--metrics-per-peer", *metrics_per_peer),
        ("--external", *external),
    ] {
        if set {
            out.push(flag.into());
        }
    }
    out.extend(kubernetes.map(|on| format!("--kubernetes={on}").into()));
    let ranges = |list: &[String]| Some(list.join(",")).filter(|text| !text.is_empty());
    for (flag, text) in [
        ("--interface", interface.clone()),
        ("--backend", backend.as_ref().map(word)),
        ("--listen-port", listen_port.map(|port| port.to_string())),
        ("--name", name.clone()),
        ("--region", region.clone()),
        (
            "--metrics-listen",
            metrics_listen.map(|address| address.to_string()),
        ),
        ("--node-name", node_name.clone()),
        ("--api-server", api_server.clone()),
        ("--pod-network", pod_network.as_ref().map(word)),
        ("--cluster-cidr", ranges(cluster_cidrs)),
        ("--service-cidr", ranges(service_cidrs)),
    ] {
        if let Some(text) = text {
            out.push(flag.into());
            out.push(text.into());
        }
    }
    Ok(out)
}

/// A choice as its flag takes it.
fn word(choice: &impl clap::ValueEnum) -> String {
    let value = choice.to_possible_value();
    value.map_or_else(String::new, |value| value.get_name().to_owned())
}
