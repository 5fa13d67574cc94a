//! How the agent takes part in a Kubernetes cluster: from flags and the environment, checked before anything is opened.

use std::path::{Path, PathBuf};

use axum::http::Uri;
use mesh_types::IpNet;
use mesh_types::cluster::PodNetwork;

use super::{ConfigError, value};
use crate::cli::{KubernetesArgs, PodNetworkChoice};

/// What kubelets put into every pod.
const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";
const CNI_CONF_DIR: &str = "/etc/cni/net.d";
const CNI_BIN_DIR: &str = "/opt/cni/bin";

/// What the agent is told of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kubernetes {
    /// Name of the own Node object.
    pub node: String,
    /// Reads the cluster, and is no Node of it.
    pub external: bool,
    /// Credentials; the pod's ServiceAccount where there is none.
    pub kubeconfig: Option<PathBuf>,
    /// Where the API server is, instead of where credentials say.
    pub api_server: Option<ApiServer>,
    /// None: by what is found on this node.
    pub pod_network: Option<PodNetwork>,
    /// Ranges of all pods.
    pub cluster_cidrs: Vec<IpNet>,
    /// Ranges of Services.
    pub service_cidrs: Vec<IpNet>,
    /// Where CNI files are.
    pub cni_conf_dir: PathBuf,
    /// Where CNI plugins are.
    pub cni_bin_dir: PathBuf,
    /// Does the agent run in a pod? Another one may own the device on its host.
    pub in_pod: bool,
}

/// The API server's URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiServer {
    /// Scheme, host and port.
    pub url: Uri,
    /// The host is a name, which the server's certificate holds.
    pub is_name: bool,
}

impl Kubernetes {
    /// None where the agent is told to stand alone, or runs outside of a pod and is told nothing.
    pub fn from_args(args: &KubernetesArgs) -> Result<Option<Self>, ConfigError> {
        let in_pod =
            Path::new(TOKEN).exists() && std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
        Self::read(args, in_pod)
    }

    fn read(args: &KubernetesArgs, in_pod: bool) -> Result<Option<Self>, ConfigError> {
        let KubernetesArgs {
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
        } = args;
        if !kubernetes.unwrap_or(in_pod) {
            return Ok(None);
        }
        if !in_pod && kubeconfig.is_none() {
            return Err(ConfigError(
                "--kubernetes: outside of a pod the agent needs credentials of its own; give --kubeconfig FILE".to_owned(),
            ));
        }
        let node = match node_name {
            Some(name) => node(name).map_err(|what| ConfigError(format!("--node-name: {what}")))?,
            None => host_node(),
        };
        let api_server = match api_server {
            Some(text) => {
                Some(server(text).map_err(|what| ConfigError(format!("--api-server: {what}")))?)
            }
            None => None,
        };
        Ok(Some(Self {
            node,
            external: *external,
            kubeconfig: kubeconfig.clone(),
            api_server,
            pod_network: match pod_network.unwrap_or_default() {
                PodNetworkChoice::Auto => None,
                PodNetworkChoice::Own => Some(PodNetwork::Own),
                PodNetworkChoice::Existing => Some(PodNetwork::Existing),
                PodNetworkChoice::Nodes => Some(PodNetwork::Nodes),
            },
            cluster_cidrs: ranges("--cluster-cidr", cluster_cidrs)?,
            service_cidrs: ranges("--service-cidr", service_cidrs)?,
            cni_conf_dir: cni_conf_dir
                .clone()
                .unwrap_or_else(|| PathBuf::from(CNI_CONF_DIR)),
            cni_bin_dir: cni_bin_dir
                .clone()
                .unwrap_or_else(|| PathBuf::from(CNI_BIN_DIR)),
            in_pod,
        }))
    }
}

fn ranges(flag: &str, texts: &[String]) -> Result<Vec<IpNet>, ConfigError> {
    texts
        .iter()
        .map(|text| value::range(text.trim()))
        .collect::<Result<_, _>>()
        .map_err(|what| ConfigError(format!("{flag}: {what}")))
}

/// A Node's name is a DNS subdomain.
fn node(text: &str) -> Result<String, String> {
    let label = |label: &str| {
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(fits)
    };
    if text.len() > 253 || !text.split('.').all(label) {
        return Err(format!(
            "{text:?} cannot name a Node; `kubectl get nodes` lists their names"
        ));
    }
    Ok(text.to_owned())
}

/// As the kubelet names its Node: the whole host name in lower case.
fn host_node() -> String {
    let name = nix::unistd::gethostname().ok();
    let name = name.and_then(|name| name.into_string().ok());
    name.map(|name| name.to_lowercase())
        .and_then(|name| node(&name).ok())
        .unwrap_or_else(super::host_name)
}

fn server(text: &str) -> Result<ApiServer, String> {
    let wrong = || {
        format!("{text:?} is no address of an API server; write it like https://203.0.113.1:6443")
    };
    let url = if text.contains("://") {
        text.to_owned()
    } else {
        format!("https://{text}")
    };
    let url: Uri = url.parse().map_err(|_| wrong())?;
    let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
    let scheme = url.scheme_str();
    if host.is_empty() || !matches!(scheme, Some("https" | "http")) || url.path() != "/" {
        return Err(wrong());
    }
    let is_name = host.parse::<std::net::IpAddr>().is_err();
    Ok(ApiServer { url, is_name })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> KubernetesArgs {
        KubernetesArgs {
            kubernetes: Some(true),
            node_name: Some("n1.example".into()),
            kubeconfig: Some("/etc/k".into()),
            ..KubernetesArgs::default()
        }
    }

    #[test]
    fn in_a_pod_kubernetes_is_the_default_and_elsewhere_it_needs_credentials() {
        let default = KubernetesArgs::default();
        assert_eq!(Kubernetes::read(&default, false), Ok(None));
        assert!(Kubernetes::read(&default, true).unwrap().unwrap().in_pod);
        let off = KubernetesArgs {
            kubernetes: Some(false),
            ..args()
        };
        assert_eq!(Kubernetes::read(&off, true), Ok(None));
        let bare = KubernetesArgs {
            kubeconfig: None,
            ..args()
        };
        let error = Kubernetes::read(&bare, false).unwrap_err().to_string();
        assert!(error.contains("--kubeconfig"), "{error}");
        let read = Kubernetes::read(&args(), false).unwrap().unwrap();
        assert_eq!(read.node, "n1.example");
        assert_eq!(read.cni_conf_dir, Path::new("/etc/cni/net.d"));
        assert_eq!(read.pod_network, None);
    }

    #[test]
    fn the_api_server_is_given_by_address_or_name() {
        for (text, url, is_name) in [
            ("203.0.113.1:6443", "https://203.0.113.1:6443/", false),
            (
                "https://[2001:db8::1]:6443",
                "https://[2001:db8::1]:6443/",
                false,
            ),
            ("https://api.example.org", "https://api.example.org/", true),
        ] {
            let server = server(text).unwrap();
            assert_eq!(server.url.to_string(), url);
            assert_eq!(server.is_name, is_name);
        }
        for wrong in [
            "",
            "ftp://a",
            "https://a/b",
            "https://",
            "a b",
            "https://:1",
        ] {
            assert!(server(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn wrong_flags_are_one_sentence_with_the_flag() {
        let wrong = |change: fn(&mut KubernetesArgs)| {
            let mut args = args();
            change(&mut args);
            Kubernetes::read(&args, false).unwrap_err().to_string()
        };
        let name = wrong(|args| args.node_name = Some("Node_1".into()));
        assert!(name.starts_with("--node-name: \"Node_1\""), "{name}");
        let cidr = wrong(|args| args.cluster_cidrs = vec!["10.0.0.0/33".into()]);
        assert!(cidr.starts_with("--cluster-cidr: "), "{cidr}");
        let server = wrong(|args| args.api_server = Some("ftp://x".into()));
        assert!(server.starts_with("--api-server: "), "{server}");
    }
}
