//! What a Kubernetes API server says: nodes, the mesh's policy, machines outside. Parsed by the shell, judged by
//! `peer-discovery`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use minicbor::{Decode, Encode};

use crate::key::DomainId;
use crate::observation::ConfigPeer;
use crate::wire;

/// Who owns pods' addresses on a node, and so what the mesh routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PodNetwork {
    /// farspan is the cluster's CNI: pod ranges and node addresses.
    Own,
    /// Another CNI hands out addresses from podCIDRs and connects pods inside a region: pod ranges and node addresses.
    Existing,
    /// The CNI's own encapsulation runs on top of the mesh: node and overlay addresses only.
    Nodes,
}

impl PodNetwork {
    /// The word in flags, JSON and metrics.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Existing => "existing",
            Self::Nodes => "nodes",
        }
    }

    /// Are pods' ranges routed by the mesh?
    pub fn carries_pods(self) -> bool {
        match self {
            Self::Own | Self::Existing => true,
            Self::Nodes => false,
        }
    }
}

/// A Node object, as far as the mesh reads it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Node {
    /// `metadata.name`.
    #[n(0)]
    pub name: String,
    /// `metadata.uid`.
    #[n(1)]
    pub uid: String,
    /// `metadata.creationTimestamp`, Unix seconds: of two nodes that claim one range the older keeps it.
    #[n(2)]
    pub created: u64,
    /// `spec.podCIDRs`, else `spec.podCIDR`.
    #[cbor(n(3), with = "wire::prefixes")]
    pub pod_cidrs: Vec<IpNet>,
    /// `status.addresses` of type InternalIP, in their order.
    #[cbor(n(4), with = "wire::ips")]
    pub internal_ips: Vec<IpAddr>,
    /// Label `topology.kubernetes.io/region`.
    #[n(5)]
    pub region: Option<String>,
    /// Annotations whose keys begin with `farspan.io/` or `config.farspan.io/`.
    #[n(6)]
    pub annotations: BTreeMap<String, String>,
}

/// The `MeshPolicy` object: what the cluster's administrators allow.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(map)]
pub struct Policy {
    /// Node addresses outside of these are refused; empty is no limit.
    #[cbor(n(0), with = "wire::prefixes")]
    pub node_cidrs: Vec<IpNet>,
    /// Pod ranges outside of these are refused; empty is no limit. What nobody carries of them is dropped, not sent elsewhere.
    #[cbor(n(1), with = "wire::prefixes")]
    pub pod_cidrs: Vec<IpNet>,
    /// Ranges that a node may carry for others by `config.farspan.io/extra-cidrs`, by the node's name; nothing else may be.
    #[cbor(n(2), with = "wire::prefix_lists")]
    pub extra_cidrs: BTreeMap<String, Vec<IpNet>>,
    /// Names of the nodes that may relay; `None`: each that is willing.
    #[n(3)]
    pub relays: Option<BTreeSet<String>>,
    /// Which peers may send where. A peer that no rule names is not filtered.
    #[n(4)]
    pub filters: Vec<PolicyFilter>,
}

/// Peers of these regions or names may send to these destinations, and nowhere else unless another rule says so.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(map)]
pub struct PolicyFilter {
    /// Regions.
    #[n(0)]
    pub regions: BTreeSet<String>,
    /// Names of peers.
    #[n(1)]
    pub peers: BTreeSet<String>,
    /// Where they may send to.
    #[n(2)]
    pub to: Vec<Allowed>,
}

/// A destination that a filtered peer may reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[cbor(map)]
pub struct Allowed {
    /// Where.
    #[cbor(n(0), with = "wire::prefix")]
    pub destination: IpNet,
    /// Lowest and highest port, TCP and UDP; `None`: everything, other protocols too.
    #[n(1)]
    pub ports: Option<(u16, u16)>,
}

/// What comes from the API server, in the order in which it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClusterEvent {
    /// Which cluster it is: the UID of namespace kube-system.
    Domain(DomainId),
    /// A complete listing of the nodes.
    Listed(Vec<Node>),
    /// A node is new or differs.
    Applied(Box<Node>),
    /// A node is gone.
    Deleted {
        /// Its name.
        name: String,
        /// Its UID: a later node of that name is another one.
        uid: String,
    },
    /// The policy, or that there is none.
    Policy(Option<Box<Policy>>),
    /// A complete listing of the `ExternalPeer` objects.
    Externals(Vec<ConfigPeer>),
    /// Addresses that nobody may carry: of the API server, DNS and Services.
    Protected(BTreeSet<IpNet>),
    /// What became of the last [`Publication`]: of this seq; or one sentence why not.
    Published(Result<u64, String>),
}

/// What a node keeps on disk of its cluster, so that its mesh outlives the API server.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Saved {
    /// Which cluster.
    #[n(0)]
    pub domain: DomainId,
    /// Its nodes. Of the agents' annotations only the identity is kept, once it was proven; the announcements stand
    /// beside, signed.
    #[n(1)]
    pub nodes: Vec<Node>,
    /// Its policy.
    #[n(2)]
    pub policy: Option<Policy>,
    /// What nobody may carry.
    #[cbor(n(3), with = "wire::prefix_set")]
    pub protected: BTreeSet<IpNet>,
    /// Machines outside.
    #[n(4)]
    pub externals: Vec<ConfigPeer>,
}

/// Annotations that this node's Node object is to carry: all keys of [`crate::annotations::KEYS`]; absent ones are removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publication {
    /// The Node's UID: of another node of that name nothing is changed.
    pub uid: String,
    /// Seq of the announcement.
    pub seq: u64,
    /// By key.
    pub annotations: BTreeMap<&'static str, String>,
}
