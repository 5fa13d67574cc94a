//! A node of a Kubernetes cluster: what the API server says comes in, the own Node's annotations go out.
//!
//! Who is a peer and what it may carry is the directory's to decide. Here stand the own Node (its pod ranges, what its
//! annotations carry) and when to write to it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use mesh_types::cluster::{ClusterEvent, Node, Policy};
use mesh_types::{DomainId, NodeKey, Now};

use crate::overlay::Overlay;
use crate::publish::Publisher;
use crate::snapshot::{ClusterSnapshot, CniPlan};

/// What is known of the cluster beside its nodes.
#[derive(Debug)]
pub(crate) struct Cluster {
    /// Which cluster it is, once known.
    pub(crate) domain: Option<DomainId>,
    /// The own Node object.
    pub(crate) own: Option<Node>,
    /// The administrators' policy.
    pub(crate) policy: Option<Policy>,
    /// Addresses that nobody may carry.
    pub(crate) protected: BTreeSet<IpNet>,
    /// When the own Node is written to.
    pub(crate) publisher: Publisher,
}

impl Cluster {
    pub(crate) fn new(now: Now) -> Self {
        Self {
            domain: None,
            own: None,
            policy: None,
            protected: BTreeSet::new(),
            publisher: Publisher::new(now.mono),
        }
    }
}

impl Overlay {
    /// The API server says something.
    pub fn handle_cluster(&mut self, event: ClusterEvent, now: Now) {
        let Some(name) = self.config.kubernetes.as_ref().map(|k| k.node.clone()) else {
            return;
        };
        match event {
            ClusterEvent::Domain(domain) => self.adopt_domain(domain, now),
            ClusterEvent::Listed(nodes) => {
                let own = nodes.into_iter().find(|node| node.name == name);
                self.own_node_changed(own, now);
            }
            ClusterEvent::Applied(node) if node.name == name => {
                self.own_node_changed(Some(*node), now);
            }
            ClusterEvent::Deleted { name: gone, .. } if gone == name => {
                self.own_node_changed(None, now);
            }
            ClusterEvent::Policy(policy) => {
                self.cluster.policy = policy.map(|policy| *policy);
                self.plan_dirty = true;
            }
            ClusterEvent::Protected(ranges) => {
                self.cluster.protected = ranges;
                self.plan_dirty = true;
            }
            ClusterEvent::Published(result) => {
                self.cluster
                    .publisher
                    .handle_result(result, now.mono, &mut self.rng);
            }
            ClusterEvent::Applied(_)
            | ClusterEvent::Deleted { .. }
            | ClusterEvent::Externals(_) => {}
        }
        self.settle(now);
    }

    /// The node's name in the mesh follows from the cluster it is in.
    fn adopt_domain(&mut self, domain: DomainId, now: Now) {
        self.cluster.domain = Some(domain);
        let own = NodeKey { domain, ..self.own };
        if own != self.own {
            self.own = own;
            self.directory.set_own(own, self.identity.key.public(), now);
            self.announce_now(now);
            self.excluded_dirty = true;
            self.plan_dirty = true;
        }
    }

    fn own_node_changed(&mut self, own: Option<Node>, now: Now) {
        if own != self.cluster.own {
            self.cluster.own = own;
            self.announcement_changed(now);
            self.tell_own_ranges(now);
            self.excluded_dirty = true;
            self.plan_dirty = true;
        }
    }

    /// The own pod ranges, where the mesh carries pods.
    pub(crate) fn own_pod_cidrs(&self) -> &[IpNet] {
        let carries = |kubernetes: &crate::Kubernetes| kubernetes.pod_network.carries_pods();
        match (&self.config.kubernetes, &self.cluster.own) {
            (Some(kubernetes), Some(own)) if carries(kubernetes) => &own.pod_cidrs,
            (_, _) => &[],
        }
    }

    /// The overlay IPv4 address that the cluster gives this node: the network address of its first pod range, or in
    /// `nodes` mode the address of the Node object.
    pub(crate) fn cluster_ipv4(&self) -> Option<Ipv4Addr> {
        let kubernetes = self.config.kubernetes.as_ref()?;
        if kubernetes.pod_network.carries_pods() {
            return self.own_pod_cidrs().iter().find_map(|net| match net {
                IpNet::V4(net) => Some(net.network()),
                IpNet::V6(_) => None,
            });
        }
        let own = self.cluster.own.as_ref()?;
        own.internal_ips.iter().find_map(|ip| match ip {
            IpAddr::V4(ip) => Some(*ip),
            IpAddr::V6(_) => None,
        })
    }

    /// What a CNI configuration needs, once the own Node has pod ranges and the device has its addresses; only where
    /// farspan is the cluster's CNI.
    pub fn cni(&self) -> Option<CniPlan> {
        let kubernetes = self.config.kubernetes.as_ref()?;
        let own = kubernetes.pod_network == mesh_types::cluster::PodNetwork::Own;
        let pod_cidrs = self.own_pod_cidrs();
        let applied = self.applied.as_ref().map(|applied| applied.generation);
        let ready = self.addresses_since.is_some() && applied >= self.addresses_since;
        (own && ready && !pod_cidrs.is_empty()).then(|| CniPlan {
            pod_cidrs: pod_cidrs.to_vec(),
            mtu: self.config.mtu,
        })
    }

    pub(crate) fn cluster_view(&self) -> Option<ClusterSnapshot> {
        let kubernetes = self.config.kubernetes.as_ref()?;
        let cluster = &self.cluster;
        Some(ClusterSnapshot {
            domain: cluster.domain,
            node: kubernetes.node.clone(),
            pod_network: kubernetes.pod_network,
            nodes: usize::from(cluster.own.is_some()),
            refused: std::collections::BTreeMap::new(),
            published_seq: cluster.publisher.carried_seq(),
            pending_write: cluster.publisher.is_pending(),
        })
    }
}
