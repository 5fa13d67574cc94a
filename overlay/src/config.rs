//! What the shell gives a node: its keys and its configuration, parsed and valid.

use ipnet::IpNet;
use mesh_types::cluster::PodNetwork;
use mesh_types::observation::ConfigPeer;
use mesh_types::report::Backend;
use mesh_types::turn::TurnServer;
use mesh_types::{AuthorityKey, IdentitySecret, WgSecret};

/// The node's own secrets, as its key files hold them.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Who the node is, for ever (`identity.key`).
    pub node: IdentitySecret,
    /// Its WireGuard key (`private.key`).
    pub key: WgSecret,
    /// The key it was about to change to when it stopped, where a rotation was under way.
    pub next: Option<WgSecret>,
    /// The domain's authority, where its key lies on this machine.
    pub authority: Option<IdentitySecret>,
}

/// The node's configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// Label of the node.
    pub name: String,
    /// Label of its region.
    pub region: Option<String>,
    /// The overlay device.
    pub interface: String,
    /// Which implementation carries the tunnel.
    pub backend: Backend,
    /// UDP port of WireGuard and of everything that shares it.
    pub listen_port: u16,
    /// Port of [`mesh_types::SocketId::Alternate`], where it is open already.
    pub alternate_port: Option<u16>,
    /// Overlay addresses beside the one that follows from the identity.
    pub addresses: Vec<IpNet>,
    /// Ranges this node carries for others.
    pub routes: Vec<IpNet>,
    /// Whose signed memberships count.
    pub authorities: Vec<AuthorityKey>,
    /// `[[peer]]` entries.
    pub peers: Vec<ConfigPeer>,
    /// STUN servers, `host:port`.
    pub stun: Vec<String>,
    /// Mark on outer packets, and the bits of it that are compared.
    pub fwmark: (u32, u32),
    /// Let the host's filters forward from and to the device.
    pub forward_accept: bool,
    /// MTU of the overlay device, bytes.
    pub mtu: u16,
    /// May members be relayed through this node?
    pub may_relay: bool,
    /// Lowest and highest port lent to members that are relayed, one each.
    pub relay_ports: (u16, u16),
    /// Bits a second of a relayed pair, both directions together; 0 is no limit.
    pub pair_rate: u64,
    /// Bits a second of all pairs of one member, sent and received together; 0 is no limit.
    pub node_rate: u64,
    /// May peers behind random NATs be searched for, from many sockets or at many ports?
    pub birthday_search: bool,
    /// TURN servers that this node may use.
    pub turn: Vec<TurnServer>,
    /// Lowest and highest protocol version spoken: [`mesh_types::consts::PROTOCOL`], but for tests of a rollout.
    pub protocol: (u8, u8),
    /// The cluster that says who is in the mesh, where there is one.
    pub kubernetes: Option<Kubernetes>,
}

/// How a node takes part in a Kubernetes cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kubernetes {
    /// Name of the own Node object.
    pub node: String,
    /// Who owns pods' addresses here.
    pub pod_network: PodNetwork,
    /// Ranges that the cluster's pods have their addresses from (`--cluster-cidr`): what nobody carries of them is dropped.
    pub cluster_cidrs: Vec<IpNet>,
    /// Reads the cluster and is no Node of it: publishes nothing.
    pub external: bool,
}
