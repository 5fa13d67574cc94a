//! Flags of the verbs that look at a Kubernetes cluster as a whole.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use mesh_types::IpNet;

use super::agent::listen_address;
use super::{BackendChoice, Output, PodNetworkChoice, duration};
use crate::config::value;

/// `farspan manifests`.
#[derive(Debug, Clone, Args)]
pub struct ManifestsArgs {
    /// The container image
    #[arg(long, default_value = concat!("farspan.io/farspan:", env!("CARGO_PKG_VERSION")), value_parser = image)]
    pub image: String,
    /// The namespace of the agents
    #[arg(long, value_name = "NAME", default_value = "farspan", value_parser = namespace)]
    pub namespace: String,
    /// The API server's real address, e.g. https://203.0.113.1:6443 [default: its Service, which needs kube-proxy]
    #[arg(long, value_name = "URL", value_parser = url)]
    pub api_server: Option<String>,
    /// Who owns pods' addresses
    #[arg(long, value_name = "MODE", default_value = "auto")]
    pub pod_network: PodNetworkChoice,
    /// What carries the tunnel: the kernel's WireGuard, the in-process engine, or whichever there is
    #[arg(long, value_name = "BACKEND", default_value = "auto")]
    pub backend: BackendChoice,
    /// Ranges of all pods: what no node carries of them is dropped, not sent in clear
    #[arg(long = "cluster-cidr", value_name = "CIDR,...", value_delimiter = ',', value_parser = value::range)]
    pub cluster_cidrs: Vec<IpNet>,
    /// Ranges of Services, which nobody may carry [default: what the API server says]
    #[arg(long = "service-cidr", value_name = "CIDR,...", value_delimiter = ',', value_parser = value::range)]
    pub service_cidrs: Vec<IpNet>,
    /// Where each agent serves /metrics, /healthz and /readyz [default: the node's own address, port 9586]
    #[arg(long, value_name = "ADDR", value_parser = listen_address)]
    pub metrics_listen: Option<SocketAddr>,
    /// Name every peer in /metrics: for small meshes, N nodes give N² series
    #[arg(long)]
    pub metrics_per_peer: bool,
    /// Where the nodes' container runtime reads CNI files
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d", value_parser = folder)]
    pub cni_conf_dir: String,
    /// Where the nodes' container runtime has its CNI plugins
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin", value_parser = folder)]
    pub cni_bin_dir: String,
    /// A farspan.toml for all agents
    #[arg(long, value_name = "FILE")]
    pub agent_config: Option<PathBuf>,
    /// Let forwarded traffic through although a firewall's FORWARD policy is drop (Docker, ufw, firewalld)
    #[arg(long)]
    pub forward_accept: bool,
    /// Set ip_forward and src_valid_mark on the nodes, by a privileged init container
    #[arg(long)]
    pub sysctls: bool,
    /// Also print a PodMonitor and a PrometheusRule for the Prometheus Operator
    #[arg(long)]
    pub monitoring: bool,
}

/// Which cluster.
#[derive(Debug, Clone, Default, Args)]
pub struct ClusterArgs {
    /// Credentials [default: KUBECONFIG, else ~/.kube/config, else the pod's ServiceAccount]
    #[arg(long, value_name = "FILE", env = "FARSPAN_KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig [default: its current one]
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
}

/// `farspan preflight`.
#[derive(Debug, Args)]
pub struct PreflightArgs {
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// Judge this mode
    #[arg(long, value_name = "MODE", default_value = "auto")]
    pub pod_network: PodNetworkChoice,
    /// Look at this machine too: it is a node of the cluster
    #[arg(long)]
    pub this_node: bool,
    /// Where CNI files are on this machine
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d", value_parser = folder)]
    pub cni_conf_dir: String,
    /// Output format
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub output: Output,
}

/// `farspan uninstall`.
#[derive(Debug, Clone, Args)]
pub struct UninstallArgs {
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// The namespace of the agents
    #[arg(long, value_name = "NAME", default_value = "farspan", value_parser = namespace)]
    pub namespace: String,
    /// The image that cleans up on the nodes [default: the agents' own]
    #[arg(long, value_parser = image)]
    pub image: Option<String>,
    /// Remove the nodes' keys and state, too
    #[arg(long)]
    pub purge: bool,
    /// How long to wait for the nodes, and for what Kubernetes is still deleting
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "5m")]
    pub timeout: Duration,
    /// Clean up this machine only, and leave the cluster's objects alone
    #[arg(long)]
    pub this_node: bool,
    /// Where CNI files are on the nodes
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d", value_parser = folder)]
    pub cni_conf_dir: String,
    /// Wait to be stopped afterwards (set by `uninstall` for its own pods)
    #[arg(long, hide = true, requires = "this_node")]
    pub stay: bool,
    /// Say what would be removed, and remove nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// A DNS label; not a namespace of Kubernetes' own, which `uninstall` would take with it.
fn namespace(text: &str) -> Result<String, String> {
    if text == "default" || text.starts_with("kube-") {
        return Err(format!(
            "{text} belongs to Kubernetes; give the agents a namespace of their own"
        ));
    }
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let ends = text.starts_with('-') || text.ends_with('-');
    if text.is_empty() || text.len() > 63 || ends || !text.chars().all(fits) {
        return Err(format!(
            "{text:?} cannot name a namespace; use small letters, digits and '-'"
        ));
    }
    Ok(text.to_owned())
}

fn image(text: &str) -> Result<String, String> {
    if text.is_empty() || !text.chars().all(|c| c.is_ascii_graphic()) {
        return Err(format!(
            "{text:?} is not an image; write it like registry.example.org/farspan:0.1.0"
        ));
    }
    Ok(text.to_owned())
}

/// What the agents' own `--api-server` takes, checked before it is on every node.
fn url(text: &str) -> Result<String, String> {
    let rest = text.strip_prefix("https://").unwrap_or_default();
    let host = rest.trim_end_matches('/');
    if host.is_empty() || !host.chars().all(|c| c.is_ascii_graphic() && c != '/') {
        return Err(format!(
            "{text:?} is not the address of an API server; write it like https://203.0.113.1:6443"
        ));
    }
    Ok(format!("https://{host}"))
}

/// A folder's absolute path.
fn folder(text: &str) -> Result<String, String> {
    let plain = text.chars().all(|c| c.is_ascii_graphic() && c != ':');
    if !text.starts_with('/') || !plain || text.split('/').any(|part| part == "..") {
        return Err(format!(
            "{text:?} is not a folder; write its whole path, like /etc/cni/net.d"
        ));
    }
    let trimmed = text.trim_end_matches('/');
    if trimmed.is_empty() {
        return Err("/ is no folder for CNI files".to_owned());
    }
    Ok(trimmed.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_be_wrong_on_every_node_is_refused_here() {
        for wrong in ["", "Farspan", "-a", "a.b", "a b", "kube-system", "default"] {
            assert!(namespace(wrong).is_err(), "{wrong}");
        }
        for wrong in [
            "",
            "203.0.113.1:6443",
            "http://a",
            "https://",
            "https://a/b",
        ] {
            assert!(url(wrong).is_err(), "{wrong}");
        }
        for wrong in ["", "/", "etc/cni", "/etc/../x", "/a:b"] {
            assert!(folder(wrong).is_err(), "{wrong}");
        }
        assert_eq!(url("https://a:6443/"), Ok("https://a:6443".to_owned()));
        assert_eq!(folder("/a/b/"), Ok("/a/b".to_owned()));
    }
}
