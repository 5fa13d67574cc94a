//! Who is which Node, and who may carry what.
//!
//! All Nodes are asked, those without an agent too: a range belongs to its Node. This node's own come first, then the
//! older Node before the younger. Ranges that a controller gave (podCIDRs) go before those that a kubelet says
//! (InternalIP), and those before what a person wishes (extra-cidrs), so that nobody's claim takes a pod range away.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use mesh_types::address::{mesh_prefix, overlay_ipv6};
use mesh_types::cluster::{PodNetwork, Policy};
use mesh_types::record::Membership;
use mesh_types::{ConfigPeer, IdentityKey, IpNet, NodeKey, PeerId};

use super::Held;
use super::wishes::Wishes;
use crate::ranges::{Ranges, is_special, overlap};
use crate::refusal::Reason;

/// Refusals that are kept.
const REFUSED_MAX: usize = 256;

/// What the cluster vouches for of one Node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Vouched {
    /// As an authority would say it, without a signature; its serial is the Node's age.
    pub record: Membership,
    /// Those of its ranges that are its pods'.
    pub pods: Vec<IpNet>,
    /// Those that are its InternalIPs.
    pub addresses: Vec<IpNet>,
    /// Its region, as a person or the cloud says.
    pub region: Option<String>,
    /// Where a person says it is reached.
    pub forced: Vec<SocketAddr>,
}

/// A claim that is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refused {
    pub reason: Reason,
    /// The Node's name; none where it is an external peer's.
    pub node: Option<String>,
    pub peer: Option<PeerId>,
    pub sentence: String,
}

/// What the cluster says, all in all.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    pub vouched: BTreeMap<NodeKey, Vouched>,
    /// Machines outside, with the ranges they may have.
    pub externals: Vec<ConfigPeer>,
    /// At most 256.
    pub refused: Vec<Refused>,
}

/// By what it is judged.
pub(super) struct Judge<'a> {
    pub own_node: &'a str,
    pub own: NodeKey,
    pub pod_network: PodNetwork,
    pub policy: Option<&'a Policy>,
    pub protected: &'a BTreeSet<IpNet>,
    pub crowd: usize,
    pub doubt: Option<String>,
}

/// Where a range comes from, in the order in which ranges are given away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    Pods,
    Address,
    Extra,
}

impl Origin {
    const ALL: [Self; 3] = [Self::Pods, Self::Address, Self::Extra];

    fn what(self) -> &'static str {
        match self {
            Self::Pods => "podCIDR",
            Self::Address => "InternalIP",
            Self::Extra => "extra-cidrs range",
        }
    }
}

/// A Node while it is judged.
struct Party<'a> {
    held: &'a Held,
    wishes: Wishes,
    /// Who it is, where it may be heard.
    node: Option<NodeKey>,
    /// What it may carry, by [`Origin::ALL`].
    granted: [Vec<IpNet>; 3],
}

impl Judge<'_> {
    pub(super) fn verdict<'a>(
        &self,
        nodes: impl Iterator<Item = &'a Held>,
        externals: &[ConfigPeer],
    ) -> Verdict {
        let mut out = Verdict::default();
        if self.crowd > 0 {
            let sentence = format!(
                "{} Nodes find no room: a mesh holds at most {}",
                self.crowd,
                crate::NODES_MAX
            );
            out.refuse(Reason::Full, None, sentence);
        }
        if let Some(sentence) = &self.doubt {
            out.refuse(Reason::Doubted, None, sentence.clone());
        }
        let mut order: Vec<&Held> = nodes.collect();
        order.sort_by_key(|held| {
            let node = &held.node;
            (node.name != self.own_node, node.created, &node.uid)
        });
        let mut parties = self.identities(&order, &mut out);
        let names: Vec<&str> = order.iter().map(|held| held.node.name.as_str()).collect();
        let mut ledger = Ranges::<usize>::default();
        for origin in Origin::ALL {
            for (index, party) in parties.iter_mut().enumerate() {
                self.grant(origin, index, party, &names, &mut ledger, &mut out);
            }
        }
        out.externals = externals
            .iter()
            .enumerate()
            .map(|(index, peer)| {
                self.external(peer, order.len() + index, &names, &mut ledger, &mut out)
            })
            .collect();
        for party in parties {
            if let Some(node) = party.node {
                out.vouched.insert(node, self.vouch(node, party));
            }
        }
        out
    }

    /// One Node an identity: this node's own, else the oldest that has proven it.
    fn identities<'a>(&self, order: &[&'a Held], out: &mut Verdict) -> Vec<Party<'a>> {
        let mut holders: BTreeMap<IdentityKey, &str> = BTreeMap::new();
        let own = order.iter().find(|held| held.node.name == self.own_node);
        holders.extend(own.map(|held| (self.own.identity, held.node.name.as_str())));
        let mut parties = Vec::new();
        for held in order {
            let name = held.node.name.as_str();
            let id = held.id(self.own.domain);
            if let Some((reason, sentence)) = held.flaw() {
                out.refuse(reason, Some((name, id)), sentence);
            }
            let identity = match name == self.own_node {
                true => Some(self.own.identity),
                false => held.identity,
            };
            let holder = identity.map(|identity| *holders.entry(identity).or_insert(name));
            let node = identity.filter(|identity| {
                holder == Some(name) && (name == self.own_node || *identity != self.own.identity)
            });
            if let (Some(_), None, Some(holder)) = (identity, node, holder) {
                let whose = match holder == name {
                    true => "this machine".to_owned(),
                    false => format!("Node {holder}"),
                };
                let sentence = format!(
                    "Node {name} shows the identity of {whose}, which keeps it; was identity.key copied?"
                );
                out.refuse(Reason::DuplicateIdentity, Some((name, id)), sentence);
            }
            let wishes = Wishes::of(&held.node);
            for sentence in &wishes.flaws {
                out.refuse(Reason::Malformed, Some((name, id)), sentence.clone());
            }
            parties.push(Party {
                held,
                wishes,
                node: node.map(|identity| NodeKey {
                    domain: self.own.domain,
                    identity,
                }),
                granted: Default::default(),
            });
        }
        parties
    }

    fn grant(
        &self,
        origin: Origin,
        index: usize,
        party: &mut Party<'_>,
        names: &[&str],
        ledger: &mut Ranges<usize>,
        out: &mut Verdict,
    ) {
        let name = names[index];
        let carried = origin != Origin::Pods || self.pod_network.carries_pods();
        // What a controller gave, and what is this node's own, is nobody else's even where the policy routes it nowhere.
        let kept = origin == Origin::Pods || name == self.own_node;
        for net in self.claims(origin, party) {
            let mut refused = self.forbidden(origin, name, &net);
            let occupies = match &refused {
                None => true,
                Some((reason, _)) => *reason == Reason::Policy && kept,
            };
            if occupies && let Err(holder) = ledger.claim(net, index) {
                refused = Some(overlapping(names, holder, self.own_node));
            }
            match refused {
                None if carried => party.granted[origin as usize].push(net),
                Some((reason, why)) if carried => {
                    let sentence = format!("{} {net} of Node {name} {why}", origin.what());
                    let id = party.held.id(self.own.domain);
                    out.refuse(reason, Some((name, id)), sentence);
                }
                None | Some(_) => {}
            }
        }
    }

    /// What a Node claims, without what is its own anyway.
    fn claims(&self, origin: Origin, party: &Party<'_>) -> Vec<IpNet> {
        let node = &party.held.node;
        match origin {
            Origin::Pods => node.pod_cidrs.iter().map(IpNet::trunc).collect(),
            Origin::Address => {
                let overlay = party.node.as_ref().map(|n| IpAddr::V6(overlay_ipv6(n)));
                let ips = || node.internal_ips.iter().map(IpAddr::to_canonical);
                let first = [ips().find(IpAddr::is_ipv4), ips().find(IpAddr::is_ipv6)];
                let first = first.into_iter().flatten();
                first
                    .filter(|ip| Some(*ip) != overlay)
                    .map(IpNet::from)
                    .collect()
            }
            Origin::Extra => party.wishes.extra.clone(),
        }
    }

    /// Why nobody, or not this Node, may carry a range.
    fn forbidden(&self, origin: Origin, name: &str, net: &IpNet) -> Option<(Reason, String)> {
        if let Some(refused) = self.unroutable(net) {
            return Some(refused);
        }
        let inside = |list: &[IpNet]| list.iter().any(|around| around.contains(net));
        let limits = |list: &[IpNet]| list.is_empty() || inside(list);
        let (allowed, field) = match (origin, self.policy) {
            (Origin::Pods, policy) => (policy.is_none_or(|p| limits(&p.pod_cidrs)), "podCIDRs"),
            (Origin::Address, policy) => {
                (policy.is_none_or(|p| limits(&p.node_cidrs)), "nodeCIDRs")
            }
            (Origin::Extra, policy) => {
                let list = policy.and_then(|p| p.extra_cidrs.get(name));
                (list.is_some_and(|list| inside(list)), "extraCIDRs")
            }
        };
        (!allowed).then(|| {
            let why = format!("is outside of the MeshPolicy's {field} and is not routed");
            (Reason::Policy, why)
        })
    }

    /// Why nobody may carry a range.
    fn unroutable(&self, net: &IpNet) -> Option<(Reason, String)> {
        let mesh = IpNet::V6(mesh_prefix(&self.own.domain));
        if is_special(net) || overlap(&mesh, net) {
            let why = "is a range that no peer may carry; it is not routed".to_owned();
            return Some((Reason::Range, why));
        }
        let protected = self.protected.iter().find(|held| overlap(held, net))?;
        let why = format!(
            "meets {protected}, which is the API server's, DNS' or the Services', and is not routed; on the API server's own machine that is as it should be"
        );
        Some((Reason::Protected, why))
    }

    /// A machine outside, with the ranges that no Node has.
    fn external(
        &self,
        peer: &ConfigPeer,
        index: usize,
        names: &[&str],
        ledger: &mut Ranges<usize>,
        out: &mut Verdict,
    ) -> ConfigPeer {
        let name = peer.name.clone().unwrap_or_else(|| peer.key.to_string());
        let mut granted = Vec::new();
        for net in peer.allowed_ips.iter().map(IpNet::trunc) {
            let mut refused = self.unroutable(&net);
            if refused.is_none()
                && let Err(holder) = ledger.claim(net, index)
            {
                refused = Some(overlapping(names, holder, self.own_node));
            }
            match refused {
                None => granted.push(net),
                Some((reason, why)) => {
                    out.refuse(reason, None, format!("{net} of ExternalPeer {name} {why}"));
                }
            }
        }
        ConfigPeer {
            allowed_ips: granted,
            ..peer.clone()
        }
    }

    fn vouch(&self, node: NodeKey, party: Party<'_>) -> Vouched {
        let Party {
            held,
            wishes,
            granted: [pods, addresses, extra],
            ..
        } = party;
        let address_of = match self.pod_network {
            PodNetwork::Own | PodNetwork::Existing => &pods,
            PodNetwork::Nodes => &addresses,
        };
        let first = address_of.iter().find_map(|net| match net {
            IpNet::V4(net) => Some(net.network()),
            IpNet::V6(_) => None,
        });
        let relays = self.policy.and_then(|policy| policy.relays.as_ref());
        Vouched {
            record: Membership {
                domain: node.domain,
                identity: node.identity,
                name: held.node.name.clone(),
                ipv4: first,
                ranges: [&pods[..], &addresses, &extra].concat(),
                may_relay: wishes.relay
                    && relays.is_none_or(|names| names.contains(&held.node.name)),
                serial: held.node.created,
                not_after: None,
            },
            pods: sorted(pods),
            addresses: sorted(addresses),
            region: wishes.region,
            forced: wishes.forced,
        }
    }
}

impl Verdict {
    fn refuse(&mut self, reason: Reason, node: Option<(&str, Option<PeerId>)>, sentence: String) {
        if self.refused.len() < REFUSED_MAX {
            self.refused.push(Refused {
                reason,
                node: node.map(|(name, _)| name.to_owned()),
                peer: node.and_then(|(_, peer)| peer),
                sentence,
            });
        }
    }
}

fn sorted(mut nets: Vec<IpNet>) -> Vec<IpNet> {
    nets.sort_unstable();
    nets.dedup();
    nets.shrink_to_fit();
    nets
}

fn overlapping(names: &[&str], holder: usize, own: &str) -> (Reason, String) {
    match names.get(holder) {
        Some(name) if *name == own => (
            Reason::OwnRange,
            "overlaps a range of this node and is not routed; change one of the two".to_owned(),
        ),
        Some(name) => (
            Reason::Overlap,
            format!("overlaps a range of Node {name}, which keeps it; change one of the two"),
        ),
        None => (
            Reason::Overlap,
            "overlaps a range of another ExternalPeer, which keeps it; change one of the two"
                .to_owned(),
        ),
    }
}
