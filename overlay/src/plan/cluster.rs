//! What a Kubernetes cluster adds to the plan: what belongs to the CNI or to nobody, and what must stay reachable.
//!
//! Ranges that pods have their addresses from are dropped as a whole, so that nothing for a node that is gone leaves in
//! clear. A range inside of them that is not the mesh's is thrown back to the other tables: the own pods, networks
//! that this host is connected to, pods that the CNI connects inside a region, and what is protected, before all the way
//! to the API server.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use mesh_types::address::mesh_prefix;
use mesh_types::cluster::{Allowed, PodNetwork};
use mesh_types::consts::{CONTROL_PORT, MAIN_TABLE, SOURCE_RULE_PRIORITY};
use mesh_types::plan::Rule;
use mesh_types::{PeerId, Source};
use peer_discovery::Peer;

use super::Ground;
use crate::overlay::Overlay;
use crate::peer::PeerRecord;

/// Why a prefix that a peer may carry does not lead into the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LeftOut {
    /// Nobody may carry it.
    Protected,
    /// The CNI connects the pods of one region.
    Region,
    /// It lies in a network that this host is connected to, and the peer does not.
    Neighbour,
    /// The peer is reached there, and strict reverse path filters would drop what it answers.
    RpFilter,
}

/// Prefixes of peers that stay out of the tunnel.
type LeftOuts = BTreeMap<(PeerId, IpNet), LeftOut>;

impl Overlay {
    /// Prefixes of peers that do not lead into the tunnel.
    pub(crate) fn all_left_out(&self) -> LeftOuts {
        let mut out = BTreeMap::new();
        for (id, peer) in self.directory.peers() {
            let Some(record) = self.peers.get(id) else {
                continue;
            };
            for prefix in &peer.allowed_ips {
                if let Some(why) = self.left_out(id, peer, record, prefix) {
                    out.insert((*id, *prefix), why);
                }
            }
        }
        out
    }

    /// Why a prefix of a peer does not lead into the tunnel, where it does not.
    pub(super) fn left_out(
        &self,
        id: &PeerId,
        peer: &Peer,
        record: &PeerRecord,
        prefix: &IpNet,
    ) -> Option<LeftOut> {
        let kubernetes = self.config.kubernetes.as_ref()?;
        let mut protected = self.cluster.protected.iter();
        if peer.source != Source::Config && protected.any(|held| held.contains(prefix)) {
            return Some(LeftOut::Protected);
        }
        // A machine outside has no CNI.
        let beside = kubernetes.pod_network == PodNetwork::Existing && !kubernetes.external;
        if beside && peer.pod_cidrs.contains(prefix) && self.is_near(peer) {
            return Some(LeftOut::Region);
        }
        if !peer.node_ips.contains(prefix) {
            return None;
        }
        let address = prefix.addr();
        let path = self.traversal.path(id).map(|path| path.remote.ip());
        let last = record.last_endpoint.map(|last| last.ip());
        // Who is met in one network of a device is in its others, too, such as that of the other family.
        let met = |net: IpNet| [path, last].iter().flatten().any(|ip| net.contains(ip));
        let networks = || self.connected_networks();
        let there = |device| networks().any(|(on, net)| on == device && met(net));
        if networks().any(|(device, net)| net.contains(&address) && !there(device)) {
            return Some(LeftOut::Neighbour);
        }
        let met = self.is_met_at(id, peer, address);
        (met && address.is_ipv4() && !self.host.strict_rp_filter.is_empty())
            .then_some(LeftOut::RpFilter)
    }

    /// Own addresses that no peer takes a packet from, because nobody may carry them: those of the API server on its own
    /// machine. What answers from there must go the way it was asked, not into the tunnel, although the asker's address
    /// leads there. What calls from there goes into the tunnel: a Service's pod is behind the address that it names.
    pub(super) fn source_rules(&self, ipv6: bool) -> impl Iterator<Item = Rule> {
        let nets = self.cluster.protected.iter();
        nets.filter(|net| net.prefix_len() == net.max_prefix_len())
            .map(IpNet::addr)
            .filter(move |address| (ipv6 || address.is_ipv4()) && self.is_on_host(*address))
            .map(|address| Rule {
                ipv6: address.is_ipv6(),
                priority: SOURCE_RULE_PRIORITY,
                table: MAIN_TABLE,
                mark: 0,
                mask: 0,
                from: Some(address),
            })
    }

    /// Is a peer's own underlay address routed into the tunnel? `out` tells which of its prefixes are not.
    pub(super) fn is_underlay_routed(
        &self,
        id: &PeerId,
        peer: &Peer,
        out: impl Fn(&IpNet) -> bool,
    ) -> bool {
        self.config.kubernetes.is_some()
            && peer.allowed_ips.iter().any(|net| {
                let single = net.prefix_len() == net.max_prefix_len();
                single && self.is_met_at(id, peer, net.addr()) && !out(net)
            })
    }

    /// Ranges that are dropped as a whole.
    pub(super) fn pod_ranges(&self) -> BTreeSet<IpNet> {
        let Some(kubernetes) = &self.config.kubernetes else {
            return BTreeSet::new();
        };
        if !kubernetes.pod_network.carries_pods() {
            return BTreeSet::new();
        }
        let policy = self.directory.policy().map(|policy| &policy.pod_cidrs);
        let all = kubernetes
            .cluster_cidrs
            .iter()
            .chain(policy.into_iter().flatten());
        all.map(IpNet::trunc).collect()
    }

    /// Adds what the cluster asks for; `near` are the prefixes of peers that the CNI carries.
    pub(super) fn add_cluster(&self, ground: &mut Ground, near: &BTreeSet<IpNet>) {
        let pods = self.pod_ranges();
        let mut spared: BTreeSet<IpNet> = self.own_pod_cidrs().iter().map(IpNet::trunc).collect();
        let covered = |net: &IpNet| pods.iter().any(|range| range.contains(net));
        // What a peer carries exactly is the peer's, though some device claims to lead there.
        let carried = |net: &IpNet| {
            self.carries(net) || ground.dropped.contains(net) || ground.thrown.contains(net)
        };
        let connected = self.connected_networks().map(|(_, net)| net);
        spared.extend(connected.filter(|net| covered(net) && !carried(net)));
        spared.extend(near.iter().copied().filter(covered));
        ground.dropped.extend(pods);
        // The file's word goes before all: a node may have no other way to the API server than through a peer.
        ground.protected.clone_from(&self.cluster.protected);
        ground.named = self.named_by_file();
        let around = |held: &&IpNet| {
            let mut others = ground.dropped.iter().chain(&ground.thrown);
            let mut peers = self.directory.around(**held);
            others.any(|net| net.contains(*held) && ground.is_free(net))
                || peers.any(|(net, id)| ground.is_free(&net) && self.leads(&id, &net))
        };
        let protected = ground.protected.iter();
        let open = protected.filter(|held| !ground.named.contains(&held.trunc()));
        spared.extend(open.filter(around).map(IpNet::trunc));
        ground.spared = spared;
    }

    /// What `[[peer]]` entries say that their peers carry.
    fn named_by_file(&self) -> BTreeSet<IpNet> {
        if self.cluster.protected.is_empty() {
            return BTreeSet::new();
        }
        let entries = self.config.peers.iter();
        let ids = entries.filter_map(|entry| self.directory.by_key(&entry.key));
        let peers = ids.filter_map(|id| self.directory.peer(id));
        let listed = peers.filter(|peer| peer.source == Source::Config);
        listed.flat_map(|peer| &peer.allowed_ips).copied().collect()
    }

    /// Between which ranges source addresses are kept: all that pods and nodes of the mesh have.
    pub(super) fn keep_source(&self) -> BTreeSet<IpNet> {
        let carries = |kubernetes: &crate::Kubernetes| kubernetes.pod_network.carries_pods();
        if !self.config.kubernetes.as_ref().is_some_and(carries) {
            return BTreeSet::new();
        }
        let mut all: Vec<IpNet> = self.pod_ranges().into_iter().collect();
        all.push(IpNet::V6(mesh_prefix(&self.own.domain)));
        all.extend(self.own_pod_cidrs());
        all.extend(self.own_addresses());
        for (id, peer) in self.directory.peers() {
            all.extend(peer.allowed_ips.iter().filter(|net| self.leads(id, net)));
        }
        IpNet::aggregate(&all).into_iter().collect()
    }

    /// What the policy lets peers send to; agents may always speak with each other.
    pub(super) fn filters(&self) -> BTreeMap<IpNet, BTreeSet<Allowed>> {
        let mut out = BTreeMap::new();
        let rules = self.directory.policy().map(|policy| &policy.filters);
        let Some(rules) = rules.filter(|rules| !rules.is_empty()) else {
            return out;
        };
        let agent: Vec<Allowed> = self
            .own_addresses()
            .into_iter()
            .map(|destination| Allowed {
                destination,
                ports: Some((CONTROL_PORT, CONTROL_PORT)),
            })
            .collect();
        for (_, peer) in self.directory.peers() {
            let mut named = rules.iter().filter(|rule| {
                let region = peer.region.as_ref();
                rule.peers.contains(&peer.name)
                    || region.is_some_and(|region| rule.regions.contains(region))
            });
            let Some(first) = named.next() else {
                continue;
            };
            let to = std::iter::once(first)
                .chain(named)
                .flat_map(|rule| &rule.to);
            let to: BTreeSet<Allowed> = to.chain(&agent).copied().collect();
            out.extend(peer.allowed_ips.iter().map(|net| (*net, to.clone())));
        }
        out
    }

    /// Networks that this host is connected to, by other devices than the overlay's, and those devices.
    fn connected_networks(&self) -> impl Iterator<Item = (&str, IpNet)> {
        let addresses = self.host.addresses.iter();
        let outside = addresses.filter(|address| address.interface != self.config.interface);
        outside.filter_map(|address| {
            let net = IpNet::new(address.ip, address.prefix_len).ok()?.trunc();
            let shared = net.prefix_len() < net.max_prefix_len() && !is_link_local(address.ip);
            shared.then_some((address.interface.as_str(), net))
        })
    }

    /// Is the peer in the own region?
    fn is_near(&self, peer: &Peer) -> bool {
        peer.region.is_some() && peer.region == self.own_region()
    }

    /// Do packets of the tunnel go to that address of a peer, or may they?
    fn is_met_at(&self, id: &PeerId, peer: &Peer, address: IpAddr) -> bool {
        let path = self.traversal.path(id).map(|path| path.remote.ip());
        path == Some(address) || peer.endpoints.iter().any(|at| at.address.ip() == address)
    }

    /// Does another device of this host have it?
    pub(super) fn is_on_host(&self, address: IpAddr) -> bool {
        let mut addresses = self.host.addresses.iter();
        addresses.any(|held| held.ip == address && held.interface != self.config.interface)
    }
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_loopback(),
        IpAddr::V6(ip) => ip.is_unicast_link_local() || ip.is_loopback(),
    }
}
