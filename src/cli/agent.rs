//! Flags of the agent: what the systemd unit and the DaemonSet give it.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// `farspan agent`.
#[derive(Debug, Clone, Default, Args)]
pub struct AgentArgs {
    /// What carries the tunnel: the kernel's WireGuard, the in-process engine, or whichever there is
    #[arg(long, value_name = "BACKEND", env = "FARSPAN_BACKEND")]
    pub backend: Option<BackendChoice>,
    /// UDP port; one that is in use is then an error [default: derived from the identity]
    #[arg(long, value_name = "PORT", env = "FARSPAN_LISTEN_PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub listen_port: Option<u16>,
    /// Label of this node [default: the host's name; in Kubernetes the Node's]
    #[arg(long, env = "FARSPAN_NAME")]
    pub name: Option<String>,
    /// Label of its region [default in Kubernetes: label topology.kubernetes.io/region of the Node]
    #[arg(long, env = "FARSPAN_REGION")]
    pub region: Option<String>,
    /// Serve /metrics, /healthz and /readyz by HTTP on this address
    #[arg(long, value_name = "ADDR", env = "FARSPAN_METRICS_LISTEN", value_parser = listen_address)]
    pub metrics_listen: Option<SocketAddr>,
    /// Name every peer in /metrics: for small meshes, N nodes give N² series
    #[arg(long, env = "FARSPAN_METRICS_PER_PEER", value_parser = clap::builder::FalseyValueParser::new())]
    pub metrics_per_peer: bool,
    /// Print what would be done to this host, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Start a session of its own (set by `up`)
    #[arg(long, hide = true)]
    pub detached: bool,
    #[command(flatten)]
    pub kubernetes: KubernetesArgs,
}

/// What carries the tunnel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum BackendChoice {
    /// The kernel's WireGuard where it has one, else userspace.
    #[default]
    Auto,
    /// The kernel's WireGuard.
    Kernel,
    /// The in-process engine.
    Userspace,
}

/// Who owns pods' addresses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum PodNetworkChoice {
    /// By the CNI files on this node: none is own, one that follows podCIDRs is existing, else nodes.
    #[default]
    Auto,
    /// farspan is the cluster's CNI.
    Own,
    /// Another CNI hands out addresses of the Node's podCIDRs.
    Existing,
    /// Another CNI runs on top of the mesh; only node addresses are routed.
    Nodes,
}

/// Where the agent is part of a Kubernetes cluster.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Kubernetes")]
pub struct KubernetesArgs {
    /// Take part in the mesh of a Kubernetes cluster [default: in a pod yes, else no]
    #[arg(long, value_name = "BOOL", env = "FARSPAN_KUBERNETES", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", value_parser = clap::builder::FalseyValueParser::new())]
    pub kubernetes: Option<bool>,
    /// Name of this machine's Node object [default: the host's name]
    #[arg(long, value_name = "NAME", env = "FARSPAN_NODE_NAME")]
    pub node_name: Option<String>,
    /// This machine is no Node: it reads the cluster and writes nothing; an `ExternalPeer` lets it in
    #[arg(long, env = "FARSPAN_EXTERNAL", value_parser = clap::builder::FalseyValueParser::new())]
    pub external: bool,
    /// How the API server is reached, outside of a pod [default: the pod's ServiceAccount]
    #[arg(long, value_name = "FILE", env = "FARSPAN_KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,
    /// Its real address, e.g. https://203.0.113.1:6443, not that of a Service [default: as credentials say]
    #[arg(long, value_name = "URL", env = "FARSPAN_API_SERVER")]
    pub api_server: Option<String>,
    /// Who owns pods' addresses on this node
    #[arg(long, value_name = "MODE", env = "FARSPAN_POD_NETWORK")]
    pub pod_network: Option<PodNetworkChoice>,
    /// Ranges of all pods: what no node carries of them is dropped, not sent in clear
    #[arg(
        long = "cluster-cidr",
        value_name = "CIDR,...",
        value_delimiter = ',',
        env = "FARSPAN_CLUSTER_CIDR"
    )]
    pub cluster_cidrs: Vec<String>,
    /// Ranges of Services, which nobody may carry [default: what the API server says]
    #[arg(
        long = "service-cidr",
        value_name = "CIDR,...",
        value_delimiter = ',',
        env = "FARSPAN_SERVICE_CIDR"
    )]
    pub service_cidrs: Vec<String>,
    /// Where CNI files are read, and in mode own written [default: /etc/cni/net.d]
    #[arg(long, value_name = "DIR", env = "FARSPAN_CNI_CONF_DIR")]
    pub cni_conf_dir: Option<PathBuf>,
    /// Where CNI plugins are, as the container runtime sees them [default: /opt/cni/bin]
    #[arg(long, value_name = "DIR", env = "FARSPAN_CNI_BIN_DIR")]
    pub cni_bin_dir: Option<PathBuf>,
}

/// `IP:PORT`; an IPv6 address may stand without brackets, as a pod's environment has the node's.
pub fn listen_address(text: &str) -> Result<SocketAddr, String> {
    let bare = || {
        let (ip, port) = text.rsplit_once(':')?;
        Some(SocketAddr::new(ip.parse().ok()?, port.parse().ok()?))
    };
    text.parse().ok().or_else(bare).ok_or_else(|| {
        format!("{text:?} is not an address with a port; write it like 127.0.0.1:9586")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_to_listen_on_needs_no_brackets() {
        for (text, address) in [
            ("127.0.0.1:9586", "127.0.0.1:9586"),
            ("[2001:db8::1]:9586", "[2001:db8::1]:9586"),
            ("2001:db8::1:9586", "[2001:db8::1]:9586"),
        ] {
            assert_eq!(listen_address(text).unwrap().to_string(), address);
        }
        for wrong in ["", "9586", "127.0.0.1", "localhost:9586", "127.0.0.1:99999"] {
            assert!(listen_address(wrong).is_err(), "{wrong}");
        }
    }
}
