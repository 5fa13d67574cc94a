//! Read-only view of a node for the CLI and metrics: the fields of `status -o json`, typed.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use crate::doctor::Reach;
use ipnet::IpNet;
use mesh_types::cluster::PodNetwork;
use mesh_types::report::{Backend, PortMapping};
use mesh_types::{Candidate, DomainId, IdentityKey, NatReport, Source, WgKey};
use nat_traversal::{Hairpin, Lifetime};

/// Everything `farspan status` shows.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// This node.
    pub node: NodeSnapshot,
    /// Its peers, by name.
    pub peers: Vec<PeerSnapshot>,
    /// What is wrong or worth knowing.
    pub findings: Vec<Finding>,
    /// Named counters, for metrics.
    pub counters: BTreeMap<&'static str, u64>,
    /// The Kubernetes cluster, where the node takes part in one.
    pub cluster: Option<ClusterSnapshot>,
}

/// The cluster as this node sees it.
#[derive(Debug, Clone)]
pub struct ClusterSnapshot {
    /// Its domain, once known.
    pub domain: Option<DomainId>,
    /// Name of the own Node object.
    pub node: String,
    /// Who owns pods' addresses here.
    pub pod_network: PodNetwork,
    /// Node objects known.
    pub nodes: usize,
    /// How often claims of the cluster were refused, by reason.
    pub refused: BTreeMap<&'static str, u64>,
    /// Seq of the record that the own Node carries.
    pub published_seq: Option<u64>,
    /// The own Node carries something else than what is to be said.
    pub pending_write: bool,
}

/// What a CNI configuration needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CniPlan {
    /// The own Node's pod ranges.
    pub pod_cidrs: Vec<IpNet>,
    /// MTU of pods' interfaces, bytes.
    pub mtu: u16,
}

/// This node.
#[derive(Debug, Clone)]
pub struct NodeSnapshot {
    /// Its label.
    pub name: String,
    /// Its WireGuard key.
    pub public_key: WgKey,
    /// Its identity.
    pub identity: IdentityKey,
    /// Its domain.
    pub domain: DomainId,
    /// What carries its tunnel.
    pub backend: Backend,
    /// The overlay device.
    pub interface: String,
    /// UDP port in use.
    pub listen_port: u16,
    /// Label of its region.
    pub region: Option<String>,
    /// Its overlay addresses.
    pub addresses: Vec<IpNet>,
    /// What lies before it.
    pub nat: NatReport,
    /// Where it may be reached.
    pub endpoints: Vec<Candidate>,
}

/// How a peer is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PeerState {
    /// Packets go straight to it.
    Direct,
    /// Packets go through a relay.
    Relayed,
    /// A path is being looked for.
    Connecting,
    /// Reached before; nothing moves, nothing is tried.
    Idle,
    /// No path, and no prospect of one right now.
    Down,
}

impl PeerState {
    /// The word in JSON and metrics.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Relayed => "relayed",
            Self::Connecting => "connecting",
            Self::Idle => "idle",
            Self::Down => "down",
        }
    }
}

/// What kind of path leads to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PathKind {
    /// Inside one site.
    Lan,
    /// Over the internet, IPv6.
    Ipv6,
    /// Over the internet, IPv4.
    Ipv4,
    /// Through a member that forwards ciphertext.
    NodeRelay,
    /// Through a TURN server, by UDP.
    TurnUdp,
    /// Straight to the peer, over TCP.
    Tcp,
    /// Through a TURN server, by TCP.
    TurnTcp,
    /// Through a TURN server, by TLS.
    TurnTls,
}

impl PathKind {
    /// The word in JSON and metrics.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Lan => "lan",
            Self::Ipv6 => "ipv6",
            Self::Ipv4 => "ipv4",
            Self::NodeRelay => "node-relay",
            Self::TurnUdp => "turn-udp",
            Self::Tcp => "tcp",
            Self::TurnTcp => "turn-tcp",
            Self::TurnTls => "turn-tls",
        }
    }
}

/// The path in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathSnapshot {
    /// Its kind.
    pub kind: PathKind,
    /// The peer's end of it.
    pub remote: SocketAddr,
    /// The name of the relay, or the URL of the own TURN server, where there is one.
    pub via: Option<String>,
}

/// One peer.
#[derive(Debug, Clone)]
pub struct PeerSnapshot {
    /// Its label.
    pub name: String,
    /// Its WireGuard key.
    pub public_key: WgKey,
    /// Label of its region.
    pub region: Option<String>,
    /// Who vouches for it.
    pub source: Source,
    /// How it is doing.
    pub state: PeerState,
    /// Its identity, where known.
    pub identity: Option<IdentityKey>,
    /// One sentence: why this state and path.
    pub reason: String,
    /// The path in use.
    pub path: Option<PathSnapshot>,
    /// Round trip of the path.
    pub rtt: Option<Duration>,
    /// Share of probes lost on the path, 0 to 1.
    pub loss: Option<f64>,
    /// Largest packet that fits, bytes.
    pub mtu: u16,
    /// Age of the last handshake.
    pub last_handshake: Option<Duration>,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// What it may carry.
    pub allowed_ips: Vec<IpNet>,
    /// Time in this state.
    pub since: Duration,
    /// From learning of the peer to the first direct packet both ways.
    pub connect: Option<Duration>,
    /// An ordinary WireGuard device.
    pub plain: bool,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Worth knowing.
    Info,
    /// Something is not as it should be.
    Warning,
    /// Something does not work.
    Error,
}

impl Severity {
    /// The word in JSON.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// Something wrong or worth knowing, from real state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Stable word for scripts.
    pub code: String,
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong and how we know: one sentence.
    pub message: String,
    /// What to do: one sentence.
    pub remedy: String,
}

/// Somebody who waits for this machine's authority key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PetitionSnapshot {
    /// The name it wishes for.
    pub name: String,
    /// Its identity.
    pub identity: IdentityKey,
    /// The member that asks for it: its inviter, or itself.
    pub by: String,
    /// What it would carry.
    pub ranges: Vec<IpNet>,
    /// It would relay.
    pub may_relay: bool,
    /// It is a member already, and asks for more.
    pub member: bool,
    /// Its membership was revoked earlier.
    pub revoked: bool,
    /// For how long it has waited.
    pub waits: Duration,
}

/// What the network around this node is.
#[derive(Debug, Clone)]
pub struct NetcheckSnapshot {
    /// Translators and filters before it.
    pub nat: NatReport,
    /// Where it may be reached.
    pub endpoints: Vec<Candidate>,
    /// Configured STUN servers: name, and the addresses it resolved to.
    pub stun: Vec<(String, Vec<SocketAddr>)>,
    /// Members in reach that relay, and their round trip times, nearest first.
    pub relays: Vec<(String, Duration)>,
    /// Configured TURN servers by URL, in the order in which they are tried, and their round trip times where they
    /// answered.
    pub turn: Vec<(String, Option<Duration>)>,
    /// What came of asking the gateway for a port, once it is known.
    pub port_mapping: Option<PortMapping>,
    /// Has the host IPv6 with a default route?
    pub ipv6: bool,
    /// MTU of the overlay device, bytes.
    pub mtu: u16,
    /// Do packets to the own public address come back?
    pub hairpin: Hairpin,
    /// How long a silent mapping lives.
    pub lifetime: Lifetime,
    /// The most time between two packets that keep a mapping.
    pub keepalive: Duration,
    /// What is not obvious about a verdict: its field in the JSON, and one sentence.
    pub reasons: Vec<(&'static str, String)>,
    /// Which kinds of networks it will reach how.
    pub reach: Reach,
    /// What is wrong or worth knowing about it.
    pub findings: Vec<Finding>,
}
