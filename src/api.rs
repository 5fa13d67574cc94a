//! What goes over the control socket: HTTP with JSON, the same for scripts and for the verbs.
//!
//! [`Status`] is `farspan status -o json`, [`Netcheck`] is `farspan netcheck -o json`; both are stable.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// `GET /status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub node: Node,
    pub peers: Vec<Peer>,
    pub findings: Vec<Finding>,
    /// Absent where the node is in no Kubernetes cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<Cluster>,
}

/// The Kubernetes cluster as this node sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cluster {
    /// Empty before it is known.
    pub domain: String,
    /// Name of the own Node.
    pub node: String,
    /// `own`, `existing` or `nodes`.
    pub pod_network: String,
    /// Node objects known.
    pub nodes: usize,
    /// How often claims were refused, by reason.
    pub refused: BTreeMap<String, u64>,
    /// Seq of the announcement that the own Node carries.
    pub published_seq: Option<u64>,
    /// A changed announcement waits to be written.
    pub pending_write: bool,
}

/// This node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Node {
    pub name: String,
    pub public_key: String,
    pub identity: String,
    pub domain: String,
    pub backend: String,
    pub interface: String,
    pub listen_port: u16,
    pub region: String,
    pub addresses: Vec<String>,
    pub nat: Nat,
    pub endpoints: Vec<Endpoint>,
}

/// What lies before this node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Nat {
    pub mapping: String,
    pub filtering: String,
    pub allocation: String,
    pub udp_blocked: bool,
}

/// Where this node may be reached.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Endpoint {
    pub address: String,
    pub kind: String,
}

/// One peer. What is not known is `null`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Peer {
    pub name: String,
    pub public_key: String,
    pub region: String,
    pub source: String,
    pub state: String,
    pub identity: String,
    pub reason: String,
    pub path: Option<Path>,
    pub rtt_ms: Option<f64>,
    pub loss: Option<f64>,
    pub mtu: u16,
    pub last_handshake_s: Option<u64>,
    pub rx_bytes: u64,
    pub tx_bytes: u64,
    pub allowed_ips: Vec<String>,
    pub since_s: u64,
    pub connect_ms: Option<u64>,
}

/// The path in use.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Path {
    pub kind: String,
    pub remote: String,
    pub via: Option<String>,
}

/// Something wrong or worth knowing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    pub code: String,
    pub severity: String,
    pub message: String,
    pub remedy: String,
}

/// `GET /netcheck`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Netcheck {
    pub nat: Nat,
    pub endpoints: Vec<Endpoint>,
    pub stun: Vec<Stun>,
    pub relays: Vec<Relay>,
    pub port_mapping: String,
    pub ipv6: bool,
    pub mtu: u16,
    /// `yes`, `no` or `unknown`: do packets to the own public address come back?
    #[serde(default)]
    pub hairpin: String,
    #[serde(default)]
    pub mapping_lifetime: MappingLifetime,
    /// The most time between two packets that keep a mapping.
    #[serde(default)]
    pub keepalive_s: f64,
    /// By field: how a verdict is known, or why it is not.
    #[serde(default)]
    pub reasons: BTreeMap<String, String>,
    /// Kinds of networks that peers may be behind, by how they will be reached; empty while the own is unknown.
    #[serde(default)]
    pub reach: Reach,
    pub findings: Vec<Finding>,
}

/// How long a silent mapping lives: so much at least, and less than so much. What is not known is `null`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct MappingLifetime {
    pub at_least_s: Option<f64>,
    pub below_s: Option<f64>,
}

/// `open`, `address-filtered`, `port-filtered`, `address-dependent`, `sequential`, `small-block`, `random`,
/// `udp-blocked`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reach {
    pub direct: Vec<String>,
    pub relay: Vec<String>,
}

/// A configured STUN server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stun {
    pub name: String,
    pub addresses: Vec<String>,
}

/// A relay and how far it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Relay {
    pub name: String,
    pub rtt_ms: Option<f64>,
}

/// `POST /invite`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Invite {
    pub routes: Vec<mesh_types::IpNet>,
    pub lifetime_s: u64,
}

/// Answer to `POST /invite`, and the body of `POST /join`.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    pub token: String,
    /// Whoever comes with it has to be approved where the authority's key is.
    #[serde(default)]
    pub approval: bool,
}

/// `POST /revoke`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revoke {
    pub node: String,
}

/// `POST /approve`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Approve {
    pub node: String,
    pub refuse: bool,
}

/// One entry of `GET /approve`: who waits.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Waiting {
    pub name: String,
    pub identity: String,
    pub by: String,
    pub ranges: Vec<String>,
    pub may_relay: bool,
    pub member: bool,
    pub revoked: bool,
    pub waits_s: u64,
}

/// `POST /rotate`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rotate {
    pub force: bool,
}

/// `POST /doctor`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Doctor {
    pub peer: String,
}

/// Answer to `POST /doctor`; `farspan doctor PEER -o json`, of which `findings` is stable.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Diagnosis {
    pub peer: Peer,
    pub tried: Vec<Tried>,
    pub findings: Vec<Finding>,
}

/// An address of a peer and what came of probing it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Tried {
    pub address: String,
    pub kind: String,
    /// The TURN server through which it is tried.
    #[serde(default)]
    pub server: Option<String>,
    pub sent: u64,
    pub answered: u64,
    pub rtt_ms: Option<f64>,
}

/// `farspan doctor -o json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Findings {
    pub findings: Vec<Finding>,
}

/// `POST /ping`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ping {
    pub peer: String,
}

/// Answer to `POST /ping`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Pong {
    pub peer: String,
    pub address: Option<String>,
    pub rtt_ms: f64,
    pub path: Option<String>,
    pub remote: Option<String>,
    /// The relay's name, where there is one.
    #[serde(default)]
    pub via: Option<String>,
}

/// Answer of a verb that only does something.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Done {
    pub message: String,
    /// Worth knowing, one sentence each.
    #[serde(default)]
    pub notes: Vec<String>,
    /// Not done: somebody has to approve it first. Asking again brings the same answer until then.
    #[serde(default)]
    pub pending: bool,
}

/// Answer of a verb that failed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Error {
    pub error: String,
}
