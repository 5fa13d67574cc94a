//! The objects of group `farspan.io`: what people write about the mesh, its schema, and its nouns.
//!
//! The schema refuses what is wrong at the API server. An object that came by an older schema is read field by field:
//! what is wrong is left out and told in one sentence, and a limit never grows by it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{CustomResource, CustomResourceExt as _, KubeSchema, ResourceExt as _};
use mesh_types::cluster::{Allowed, Policy, PolicyFilter};
use mesh_types::{ConfigPeer, IpNet};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::value;

/// The name of the one `MeshPolicy` that counts.
pub const POLICY_NAME: &str = "default";

/// What the cluster's administrators allow in the mesh. One object, named `default`.
#[derive(Debug, Clone, PartialEq, Eq, CustomResource, KubeSchema, Serialize, Deserialize)]
#[kube(
    group = "farspan.io",
    version = "v1alpha1",
    kind = "MeshPolicy",
    plural = "meshpolicies",
    category = "farspan",
    doc = "What the cluster's administrators allow in the mesh. One object, named default; without it nothing is limited, and no node carries extra ranges.",
    derive = "PartialEq",
    validation = Rule::new("self.metadata.name == 'default'").message("the one MeshPolicy is named default"),
    printcolumn(name = "Node CIDRs", type_ = "string", json_path = ".spec.nodeCIDRs"),
    printcolumn(name = "Pod CIDRs", type_ = "string", json_path = ".spec.podCIDRs"),
    printcolumn(name = "Topology", type_ = "string", json_path = ".spec.topology"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct MeshPolicySpec {
    /// Node addresses outside of these ranges are refused; empty is no limit.
    #[serde(rename = "nodeCIDRs", default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 256), inner(regex(pattern = CIDR)))]
    pub node_cidrs: Vec<String>,
    /// Pod ranges of nodes outside of these ranges are refused; empty is no limit. What no node carries of them is dropped
    /// by every node, never sent in clear.
    #[serde(rename = "podCIDRs", default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 256), inner(regex(pattern = CIDR)))]
    pub pod_cidrs: Vec<String>,
    /// Ranges that a node may carry for others by its annotation config.farspan.io/extra-cidrs. Nothing else may be.
    #[serde(rename = "extraCIDRs", default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 4096))]
    pub extra_cidrs: Vec<ExtraCidrs>,
    /// Names of the nodes that may relay for others. Absent: every node that is willing; empty: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxItems" = 4096))]
    pub relays: Option<Vec<String>>,
    /// How nodes are connected: mesh, every pair by a tunnel of its own.
    #[serde(default = "mesh")]
    #[schemars(extend("enum" = ["mesh"]))]
    pub topology: String,
    /// Which peers may send where. A peer that no rule names is not filtered.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 256))]
    pub filters: Vec<Filter>,
}

/// What one node may carry for others.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct ExtraCidrs {
    /// The node's name.
    #[schemars(length(min = 1, max = 253))]
    pub node: String,
    /// The ranges.
    #[schemars(extend("maxItems" = 256), inner(regex(pattern = CIDR)))]
    pub cidrs: Vec<String>,
}

/// A rule: these peers may send to these destinations, and nowhere else unless another rule says so.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct Filter {
    /// Whom the rule is about.
    pub from: FilterFrom,
    /// Where they may send to; empty: nowhere.
    #[serde(default)]
    #[schemars(extend("maxItems" = 256))]
    pub to: Vec<FilterTo>,
}

/// Peers, by region or by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(default)]
pub struct FilterFrom {
    /// Regions, as label topology.kubernetes.io/region or annotation config.farspan.io/region names them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 256))]
    pub regions: Vec<String>,
    /// Names of nodes and of ExternalPeer objects.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 4096))]
    pub peers: Vec<String>,
}

/// A destination.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct FilterTo {
    /// A range.
    #[schemars(regex(pattern = CIDR))]
    pub cidr: String,
    /// TCP and UDP ports. Absent: everything, other protocols too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<Ports>,
}

/// A range of ports, both ends included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, KubeSchema, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("self.from <= self.to").message("from must not be above to"))]
pub struct Ports {
    /// The lowest.
    #[schemars(range(min = 1, max = 65535))]
    pub from: i64,
    /// The highest.
    #[schemars(range(min = 1, max = 65535))]
    pub to: i64,
}

/// A machine outside of the cluster that belongs to its mesh: a laptop, a server on premises, any WireGuard device.
#[derive(Debug, Clone, PartialEq, Eq, CustomResource, JsonSchema, Serialize, Deserialize)]
#[kube(
    group = "farspan.io",
    version = "v1alpha1",
    kind = "ExternalPeer",
    category = "farspan",
    doc = "A machine outside of the cluster that belongs to its mesh: a laptop, a server on premises, any WireGuard device.",
    derive = "PartialEq",
    printcolumn = r#"{"name":"Addresses","type":"string","jsonPath":".spec.addresses"}"#,
    printcolumn = r#"{"name":"Routes","type":"string","jsonPath":".spec.routes"}"#,
    printcolumn = r#"{"name":"Plain","type":"boolean","jsonPath":".spec.plain"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct ExternalPeerSpec {
    /// Its WireGuard key, as wg or farspan key public shows it.
    #[schemars(regex(pattern = KEY))]
    pub public_key: String,
    /// Its own overlay addresses, each a single one (/32, /128).
    #[schemars(extend("maxItems" = 16), length(min = 1), inner(regex(pattern = CIDR)))]
    pub addresses: Vec<String>,
    /// Ranges behind it that it carries for others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 256), inner(regex(pattern = CIDR)))]
    pub routes: Vec<String>,
    /// Where it may be reached, each ip:port. Absent: any node both sides reach introduces it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 16), inner(regex(pattern = ENDPOINT)))]
    pub endpoints: Vec<String>,
    /// An ordinary WireGuard device: no probes, no messages.
    #[serde(default)]
    pub plain: bool,
    /// WireGuard's keepalive in seconds; 0 is off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 65535))]
    pub persistent_keepalive: Option<i64>,
}

/// Patterns are what every supported API server has; CEL's `cidr()` came later.
const CIDR: &str = r"^(((25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])\.){3}(25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])/(3[0-2]|[12]?[0-9])|[0-9a-fA-F:]*:[0-9a-fA-F:.]*/(12[0-8]|1[01][0-9]|[1-9]?[0-9]))$";
const ENDPOINT: &str =
    r"^([0-9]{1,3}(\.[0-9]{1,3}){3}|\[[0-9a-fA-F:]*:[0-9a-fA-F:.]*\]):[1-9][0-9]{0,4}$";
/// 32 bytes of base64: the last character carries four bits.
const KEY: &str = "^[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=$";

fn mesh() -> String {
    "mesh".to_owned()
}

/// The definitions that an API server needs for these objects.
pub fn definitions() -> [CustomResourceDefinition; 2] {
    [MeshPolicy::crd(), ExternalPeer::crd()]
}

impl MeshPolicy {
    /// What it says, and one sentence for each field that is wrong and left out.
    pub fn read(&self) -> (Policy, Vec<String>) {
        let spec = &self.spec;
        let mut wrong = Told::new("MeshPolicy", &self.name_any());
        let policy = Policy {
            node_cidrs: limit(&mut wrong, "spec.nodeCIDRs", &spec.node_cidrs),
            pod_cidrs: limit(&mut wrong, "spec.podCIDRs", &spec.pod_cidrs),
            extra_cidrs: extra(&mut wrong, &spec.extra_cidrs),
            relays: spec
                .relays
                .as_ref()
                .map(|names| names.iter().cloned().collect()),
            filters: filters(&mut wrong, &spec.filters),
        };
        if spec.topology != "mesh" {
            wrong.say(
                "spec.topology",
                format!(
                    "{:?} is not a topology of this version; the nodes stay a mesh",
                    spec.topology
                ),
            );
        }
        (policy, wrong.sentences)
    }
}

impl ExternalPeer {
    /// The peer, and one sentence for each field that is wrong and left out; no peer where there is no key or address.
    pub fn read(&self) -> (Option<ConfigPeer>, Vec<String>) {
        let spec = &self.spec;
        let mut wrong = Told::new("ExternalPeer", &self.name_any());
        let addresses = each(&mut wrong, "spec.addresses", &spec.addresses, |text| {
            value::host_address(text)
        });
        let routes = each(&mut wrong, "spec.routes", &spec.routes, |text| {
            value::range(text)
        });
        let endpoints = each(&mut wrong, "spec.endpoints", &spec.endpoints, endpoint);
        let persistent_keepalive = match spec.persistent_keepalive.map(u16::try_from) {
            None | Some(Ok(0)) => None,
            Some(Ok(seconds)) => Some(Duration::from_secs(u64::from(seconds))),
            Some(Err(_)) => {
                wrong.say(
                    "spec.persistentKeepalive",
                    "give seconds from 0 (off) to 65535",
                );
                None
            }
        };
        let key = spec.public_key.parse();
        if let Err(error) = &key {
            wrong.say("spec.publicKey", format!("{error}; the peer is left out"));
        }
        if addresses.is_empty() {
            wrong.say(
                "spec.addresses",
                "there is no usable address; the peer is left out",
            );
        }
        let peer = key
            .ok()
            .filter(|_| !addresses.is_empty())
            .map(|key| ConfigPeer {
                name: Some(self.name_any()),
                key,
                endpoints,
                allowed_ips: addresses.into_iter().chain(routes).collect(),
                plain: spec.plain,
                preshared_key: None,
                persistent_keepalive,
            });
        (peer, wrong.sentences)
    }
}

/// Sentences about one object.
struct Told {
    object: String,
    sentences: Vec<String>,
}

impl Told {
    fn new(kind: &str, name: &str) -> Self {
        Self {
            object: format!("{kind} {name}"),
            sentences: Vec::new(),
        }
    }

    fn say(&mut self, field: &str, why: impl std::fmt::Display) {
        self.sentences
            .push(format!("{}: {field}: {why}", self.object));
    }
}

/// Those values that are right; a sentence for each other one.
fn each<T>(
    wrong: &mut Told,
    field: &str,
    values: &[String],
    read: impl Fn(&str) -> Result<T, String>,
) -> Vec<T> {
    let mut good = Vec::with_capacity(values.len());
    for (at, text) in values.iter().enumerate() {
        match read(text) {
            Ok(value) => good.push(value),
            Err(why) => wrong.say(&format!("{field}[{at}]"), why),
        }
    }
    good
}

/// Any range, the whole internet too: a limit may be that wide.
fn cidr(text: &str) -> Result<IpNet, String> {
    text.parse::<IpNet>()
        .map(|net| net.trunc())
        .map_err(|_| format!("{text:?} is not a range; write it like 10.244.1.0/24"))
}

/// A limit of which nothing can be read must not become no limit: it holds an address that nobody has.
fn limit(wrong: &mut Told, field: &str, values: &[String]) -> Vec<IpNet> {
    let good = each(wrong, field, values, cidr);
    if good.is_empty() && !values.is_empty() {
        return vec![IpNet::from(IpAddr::V6(Ipv6Addr::UNSPECIFIED))];
    }
    good
}

fn extra(wrong: &mut Told, entries: &[ExtraCidrs]) -> BTreeMap<String, Vec<IpNet>> {
    let mut by_node: BTreeMap<String, Vec<IpNet>> = BTreeMap::new();
    for (at, entry) in entries.iter().enumerate() {
        let field = format!("spec.extraCIDRs[{at}]");
        if entry.node.is_empty() {
            wrong.say(&field, "name the node that may carry these ranges");
            continue;
        }
        let good = each(wrong, &format!("{field}.cidrs"), &entry.cidrs, |text| {
            value::range(text)
        });
        by_node.entry(entry.node.clone()).or_default().extend(good);
    }
    by_node
}

fn filters(wrong: &mut Told, filters: &[Filter]) -> Vec<PolicyFilter> {
    let mut good = Vec::with_capacity(filters.len());
    for (at, filter) in filters.iter().enumerate() {
        let field = format!("spec.filters[{at}]");
        let names = |list: &[String]| -> BTreeSet<String> { list.iter().cloned().collect() };
        let from = (names(&filter.from.regions), names(&filter.from.peers));
        if from.0.is_empty() && from.1.is_empty() {
            wrong.say(
                &format!("{field}.from"),
                "name a region or a peer; the rule is about nobody",
            );
            continue;
        }
        let mut to = Vec::with_capacity(filter.to.len());
        for (at, allowed) in filter.to.iter().enumerate() {
            match destination(allowed) {
                Ok(allowed) => to.push(allowed),
                Err(why) => wrong.say(&format!("{field}.to[{at}]"), why),
            }
        }
        good.push(PolicyFilter {
            regions: from.0,
            peers: from.1,
            to,
        });
    }
    good
}

fn destination(to: &FilterTo) -> Result<Allowed, String> {
    let port = |port: i64| u16::try_from(port).ok().filter(|port| *port > 0);
    let ports = match to.ports {
        None => None,
        Some(ports) => match (port(ports.from), port(ports.to)) {
            (Some(from), Some(to)) if from <= to => Some((from, to)),
            _ => {
                return Err(format!(
                    "ports from {} to {} are no range; give numbers from 1 to 65535, the lower first",
                    ports.from, ports.to
                ));
            }
        },
    };
    Ok(Allowed {
        destination: cidr(&to.cidr)?,
        ports,
    })
}

/// An address with a port: what a cluster says must not depend on anybody's name server.
fn endpoint(text: &str) -> Result<SocketAddr, String> {
    match value::endpoint(text)? {
        value::Endpoint::Address(address) => Ok(address),
        value::Endpoint::Name(_) => Err(format!(
            "{text:?} is a name; give an address with its port, like 203.0.113.9:22514"
        )),
    }
}

#[cfg(test)]
mod tests;
