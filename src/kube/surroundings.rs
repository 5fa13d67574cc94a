//! What a cluster is besides its nodes: its name, and the addresses that nobody may carry: of the API server, of Services,
//! of name servers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_types::cluster::ClusterEvent;
use mesh_types::{DomainId, IpNet};
use overlay::{Finding, Severity};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::Notify;
use tracing::{debug, info, warn};

use super::client::{Api, Backoff, Failure, Fresh, Kind, by_chance, path};
use super::node::{List, Meta, range};
use super::{Stopped, Teller};

const LOOK_EVERY: Duration = Duration::from_secs(600);
/// Where the host's name servers are named; the second file names those behind systemd's own.
const RESOLVERS: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Named {
    metadata: Meta,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Service {
    spec: ServiceSpec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ServiceSpec {
    #[serde(rename = "clusterIP")]
    cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Slice {
    endpoints: Vec<Endpoint>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Endpoint {
    addresses: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct ServiceCidr {
    spec: Cidrs,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Cidrs {
    cidrs: Vec<String>,
}

/// Looks again and again.
#[derive(Debug)]
pub struct Surroundings {
    api: Api,
    tell: Teller,
    /// Ranges of Services that somebody named.
    named: Vec<IpNet>,
    domain: Option<DomainId>,
    /// By where they were learnt: one source that fails does not take the others' away.
    protected: BTreeMap<&'static str, BTreeSet<IpNet>>,
    told: Option<BTreeSet<IpNet>>,
}

impl Surroundings {
    /// Knows nothing yet.
    pub fn new(api: Api, tell: Teller, named: Vec<IpNet>) -> Self {
        Self {
            api,
            tell,
            named,
            domain: None,
            protected: BTreeMap::new(),
            told: None,
        }
    }

    /// Until the cluster's name is known: before that, nothing of it can be believed.
    pub async fn first(&mut self) -> Result<(), Stopped> {
        let mut backoff = Backoff::default();
        let mut last = None;
        loop {
            let Err(failure) = self.look().await? else {
                self.tell.finding("kubernetes-api", None).await?;
                return Ok(());
            };
            if last.as_ref() != Some(&failure.kind) {
                warn!(%failure, "Failed to read which cluster this is");
            }
            last = Some(failure.kind);
            let message =
                format!("which cluster this is cannot be read (namespace kube-system): {failure}");
            self.tell
                .warn("kubernetes-api", message, super::UNREACHABLE)
                .await?;
            tokio::time::sleep(backoff.wait()).await;
        }
    }

    /// For ever; at once where `again` asks. Has the Nodes listed where another cluster has come behind the address.
    pub async fn follow(mut self, again: Arc<Notify>, relist: Arc<Notify>) -> Result<(), Stopped> {
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY / 2 + by_chance(LOOK_EVERY)) => {}
                () = again.notified() => {}
            }
            let before = self.domain;
            if let Err(failure) = self.look().await? {
                debug!(%failure, "Failed to look at the cluster again");
            }
            if self.domain != before {
                relist.notify_one();
            }
        }
    }

    async fn look(&mut self) -> Result<Result<(), Failure>, Stopped> {
        let domain = match cluster(&self.api).await {
            Ok(domain) => domain,
            Err(failure) => return Ok(Err(failure)),
        };
        self.addresses().await;
        if self.domain != Some(domain) {
            info!(%domain, server = self.api.server(), "Cluster");
            self.domain = Some(domain);
            self.tell.cluster(ClusterEvent::Domain(domain)).await?;
        }
        let protected: BTreeSet<IpNet> = self.protected.values().flatten().copied().collect();
        if self.told.as_ref() != Some(&protected) {
            debug!(?protected, "Addresses that nobody may carry");
            self.told = Some(protected.clone());
            self.tell
                .cluster(ClusterEvent::Protected(protected))
                .await?;
        }
        self.tell
            .finding("api-service-ip", self.by_service())
            .await?;
        Ok(Ok(()))
    }

    async fn addresses(&mut self) {
        let server = server(self.api.server()).await;
        self.learnt("server", server);
        let hosts = RESOLVERS
            .iter()
            .filter_map(|file| std::fs::read_to_string(file).ok());
        let servers = hosts.flat_map(|text| name_servers(&text)).collect();
        self.learnt("resolvers", Some(servers));
        self.learnt("named", Some(self.named.iter().copied().collect()));
        let found = self.ask::<Slice>(path::SLICES, "kubernetes").await;
        self.learnt("api", found.map(|slice| slice.nets()));
        let found = self.ask::<Service>(path::SERVICES, "kubernetes").await;
        self.learnt("service", found.map(|service| service.nets()));
        let found = self.ask::<Service>(path::SYSTEM_SERVICES, "kube-dns").await;
        self.learnt("dns", found.map(|service| service.nets()));
        let found = self
            .api
            .list::<ServiceCidr>(path::SERVICE_CIDRS, &Fresh::Any);
        let found = found.await.map(|List { items, .. }| {
            let texts = items.iter().flat_map(|item| &item.spec.cidrs);
            texts.filter_map(|text| range(text)).collect()
        });
        self.learnt("ranges", found.ok());
    }

    /// What cannot be read stays as it was: not every cluster has every object, nor gives every right.
    async fn ask<T: DeserializeOwned>(&self, path: &str, name: &str) -> Option<T> {
        let found = self.api.get(path, name).await;
        found
            .inspect_err(|failure| debug!(path, name, %failure, "Failed to read"))
            .ok()
    }

    fn learnt(&mut self, source: &'static str, nets: Option<BTreeSet<IpNet>>) {
        if let Some(nets) = nets {
            self.protected.insert(source, nets);
        }
    }

    /// The Service's address works where kube-proxy does, and a node of another region may have nobody behind it.
    fn by_service(&self) -> Option<Finding> {
        let server = self.api.server();
        let address = server.parse::<IpAddr>().ok().map(IpNet::from);
        let service = self.protected.get("service");
        let known = address.is_some_and(|net| service.is_some_and(|nets| nets.contains(&net)));
        if !known && !server.starts_with("kubernetes.default") {
            return None;
        }
        Some(Finding {
            code: "api-service-ip".into(),
            severity: Severity::Info,
            message: format!(
                "the API server is reached by its Service ({server}), so only while kube-proxy has set it up"
            ),
            remedy: "Give the address at which nodes of every region reach it: --api-server https://ADDRESS:6443."
                .to_owned(),
        })
    }
}

impl Service {
    fn nets(&self) -> BTreeSet<IpNet> {
        let all = self.spec.cluster_ips.iter().chain(&self.spec.cluster_ip);
        all.filter_map(|text| text.parse::<IpAddr>().ok())
            .map(IpNet::from)
            .collect()
    }
}

impl Slice {
    fn nets(&self) -> BTreeSet<IpNet> {
        let all = self.endpoints.iter().flat_map(|one| &one.addresses);
        all.filter_map(|text| text.parse::<IpAddr>().ok())
            .map(IpNet::from)
            .collect()
    }
}

/// Which cluster answers now: the UID of its namespace kube-system.
pub async fn cluster(api: &Api) -> Result<DomainId, Failure> {
    let system: Named = api.get(path::NAMESPACES, "kube-system").await?;
    domain(&system.metadata.uid).ok_or_else(|| Failure {
        kind: Kind::Malformed,
        message: format!("UID {:?} of kube-system is no UUID", system.metadata.uid),
    })
}

/// The 16 bytes of a UUID.
fn domain(uid: &str) -> Option<DomainId> {
    let digits: String = uid.chars().filter(|c| *c != '-').collect();
    if digits.len() != 32 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    u128::from_str_radix(&digits, 16)
        .ok()
        .map(|number| DomainId(number.to_be_bytes()))
}

/// The addresses behind a name, or the address itself. None where the name is not resolved now.
async fn server(host: &str) -> Option<BTreeSet<IpNet>> {
    match tokio::net::lookup_host((host, 443)).await {
        Ok(found) => Some(found.map(|address| IpNet::from(address.ip())).collect()),
        Err(error) => {
            debug!(host, %error, "Failed to resolve");
            None
        }
    }
}

/// Those outside of this host.
fn name_servers(text: &str) -> Vec<IpNet> {
    let addresses = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let word = (words.next() == Some("nameserver")).then(|| words.next())??;
        let address = word.split('%').next()?;
        address.parse::<IpAddr>().ok()
    });
    addresses
        .filter(|ip| !ip.is_loopback() && !ip.is_unspecified())
        .map(IpNet::from)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_is_named_by_a_uuid() {
        let id = domain("0d6c8f3e-1a2b-4c5d-8e9f-a0b1c2d3e4f5").unwrap();
        assert_eq!(id.to_string(), "0d6c8f3e1a2b4c5d8e9fa0b1c2d3e4f5");
        for wrong in ["", "kube-system", "+d6c8f3e-1a2b-4c5d-8e9f-a0b1c2d3e4f5"] {
            assert_eq!(domain(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn name_servers_outside_of_the_host_are_protected() {
        let text = "# made by hand\nsearch a.b\nnameserver 127.0.0.53\nnameserver 192.0.2.53\n\
                    nameserver fe80::1%eth0\noptions edns0\nnameserver\nnameserver x\n";
        let found: Vec<_> = name_servers(text).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["192.0.2.53/32", "fe80::1/128"]);
    }

    #[test]
    fn addresses_of_services_and_of_the_api_server_are_read() {
        let service: Service = serde_json::from_str(
            r#"{"spec": {"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00::1"], "ports": []}}"#,
        )
        .unwrap();
        let nets: Vec<_> = service.nets().iter().map(ToString::to_string).collect();
        assert_eq!(nets, ["10.96.0.1/32", "fd00::1/128"]);
        let headless: Service = serde_json::from_str(r#"{"spec": {"clusterIP": "None"}}"#).unwrap();
        assert!(headless.nets().is_empty());
        let slice: Slice = serde_json::from_str(
            r#"{"endpoints": [{"addresses": ["198.51.100.7"]}], "ports": []}"#,
        )
        .unwrap();
        assert_eq!(slice.nets().len(), 1);
    }
}
