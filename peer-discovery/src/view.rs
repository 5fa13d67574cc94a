//! The view: who is a peer, under which key, with which ranges. Computed from the records by precedence, so
//! that the order in which records arrived does not matter; only between members that claim one WireGuard
//! key without having shown that they have it, whoever holds it already keeps it.

use std::collections::{BTreeMap, BTreeSet};

use mesh_types::address::{mesh_prefix, overlay_ipv6};
use mesh_types::observation::ConfigPeer;
use mesh_types::{Idx, IpNet, NodeKey, Now, PeerId, Table, WgKey};

use crate::describe::{Claimant, label};
use crate::peer::Peer;
use crate::ranges::{Ranges, is_special, overlap};
use crate::records::{Member, Records};
use crate::refusal::{Reason, Refusal};

/// Standing conflicts kept for findings.
const CONFLICTS_MAX: usize = 256;

#[derive(Debug, Default)]
pub(crate) struct View {
    pub peers: Table<PeerId, Peer>,
    /// Current, next and configured keys.
    pub keys: BTreeMap<WgKey, PeerId>,
    pub ranges: Ranges,
    /// Every node of which a record is held, this one included.
    pub index: BTreeSet<(Idx, NodeKey)>,
    pub conflicts: Vec<Refusal>,
}

/// A key is claimed by several, or by somebody who is no peer yet: all is to be decided anew.
#[derive(Debug)]
pub(crate) struct Contested;

/// Why a claim to a key is good, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum KeyClaim {
    /// The file says so.
    Configured,
    /// A session under the key said so.
    Proven,
    /// The peer has it in the view so far.
    Held,
    /// The cluster's external peer has it.
    External,
    /// Announced as current.
    Current,
    /// Announced as next.
    Next,
}

/// How a range may lie to those of others.
#[derive(Debug, Clone, Copy)]
enum Claim {
    /// Around or inside them: the file may say so, the longest prefix counts.
    Nested,
    /// Apart from them all.
    Alone,
    /// Not at all.
    Refused(Reason),
}

impl View {
    /// Decides anew.
    pub(crate) fn resolve(records: &Records, previous: &Self, now: Now) -> Self {
        let mut view = Self {
            index: index(records),
            ..Self::default()
        };
        let claimants = claimants(records);
        view.grant_keys(records, previous, &claimants, now);
        let granted = view.grant_ranges(records, &claimants, now);
        for (claimant, allowed_ips) in claimants.iter().zip(granted) {
            let announced = claimant.announced.map(|a| a.signed.record());
            let has = |key: &WgKey| view.keys.get(key) == Some(&claimant.id);
            let key = announced
                .map(|a| a.key)
                .filter(has)
                .or(claimant.entry.map(|entry| entry.key));
            let Some(key) = key else {
                continue;
            };
            let next_key = announced.and_then(|a| a.next_key).filter(has);
            let allowed_ips = allowed_ips.into_iter().collect();
            let peer = claimant.describe(key, next_key, allowed_ips);
            view.peers.insert(claimant.id, peer);
        }
        view
    }

    /// Takes over a newer announcement that leaves keys and standing as they are; gives the peer it changed.
    pub(crate) fn refresh(&mut self, records: &Records, node: &NodeKey) -> Option<PeerId> {
        let announced = records.announced.get(node)?.signed.record();
        let id = match PeerId::Node(*node) {
            id if self.peers.contains_key(&id) => id,
            _ => PeerId::Key(announced.key),
        };
        let old = self.peers.get_mut(&id)?;
        let entry = old.configured_key.and_then(|key| records.entry(&key));
        let hints = match id {
            PeerId::Key(key) => records.hints(&key).collect(),
            PeerId::Node(_) => Vec::new(),
        };
        let claimant = claimant(records, id, entry, hints);
        let new = claimant.describe(old.key, old.next_key, old.allowed_ips.clone());
        let changed = *old != new;
        *old = new;
        changed.then_some(id)
    }

    /// Takes over a member's announcement that names other keys, or that the member has shown to have them; gives the
    /// peer where that changed it. While nobody contests a key, nobody else's are touched by that.
    pub(crate) fn rekey(
        &mut self,
        records: &Records,
        node: &NodeKey,
    ) -> Result<Option<PeerId>, Contested> {
        let id = PeerId::Node(*node);
        let keys = [Reason::OwnKey, Reason::DuplicateKey];
        let contested = self.conflicts.len() >= CONFLICTS_MAX
            || self.conflicts.iter().any(|c| keys.contains(&c.reason));
        let announced = records.announced.get(node).map(|a| a.signed.record());
        let (false, Some(announced), Some(peer)) = (contested, announced, self.peers.get_mut(&id))
        else {
            return Err(Contested);
        };
        let wanted = || std::iter::once(announced.key).chain(announced.next_key);
        let free = |key| key != records.own_key && self.keys.get(&key).is_none_or(|h| *h == id);
        if !wanted().all(free) {
            return Err(Contested);
        }
        let held = [Some(peer.key), peer.next_key];
        for key in held.iter().flatten() {
            self.keys.remove(key);
        }
        self.keys.extend(wanted().map(|key| (key, id)));
        let claimant = claimant(records, id, None, Vec::new());
        let new = claimant.describe(announced.key, announced.next_key, peer.allowed_ips.clone());
        let changed = *peer != new;
        *peer = new;
        Ok(changed.then_some(id))
    }

    fn grant_keys(
        &mut self,
        records: &Records,
        previous: &Self,
        claimants: &[Claimant<'_>],
        now: Now,
    ) {
        let mut claims = Vec::new();
        for (order, claimant) in claimants.iter().enumerate() {
            if let Some(entry) = claimant.entry {
                let held = previous.keys.get(&entry.key) == Some(&claimant.id);
                let claim = match (claimant.external, held) {
                    (None, _) => KeyClaim::Configured,
                    (Some(_), true) => KeyClaim::Held,
                    (Some(_), false) => KeyClaim::External,
                };
                claims.push((claim, order, entry.key));
            }
            let Some(announced) = claimant.announced else {
                continue;
            };
            let record = announced.signed.record();
            let held = |key: &WgKey| previous.keys.get(key) == Some(&claimant.id);
            let current = match (announced.proven, held(&record.key)) {
                (true, _) => KeyClaim::Proven,
                (false, true) => KeyClaim::Held,
                (false, false) => KeyClaim::Current,
            };
            claims.push((current, order, record.key));
            if let Some(next) = record.next_key {
                let claim = if held(&next) {
                    KeyClaim::Held
                } else {
                    KeyClaim::Next
                };
                claims.push((claim, order, next));
            }
        }
        claims.sort();
        for (_, order, key) in claims {
            let claimant = &claimants[order];
            if key == records.own_key {
                let sentence = format!(
                    "{} claims this node's own WireGuard key {key}; was a key file copied?",
                    claimant.name
                );
                self.conflict(Reason::OwnKey, claimant, sentence, now);
                continue;
            }
            let holder = *self.keys.entry(key).or_insert(claimant.id);
            if holder != claimant.id {
                let sentence = format!(
                    "{} claims the WireGuard key {key} of {}, which keeps it; was a key file copied?",
                    claimant.name,
                    label(&holder)
                );
                self.conflict(Reason::DuplicateKey, claimant, sentence, now);
            }
        }
    }

    /// Allowed ranges in the order of `claimants`.
    fn grant_ranges(
        &mut self,
        records: &Records,
        claimants: &[Claimant<'_>],
        now: Now,
    ) -> Vec<BTreeSet<IpNet>> {
        let own = own_ranges(records);
        let meshes: Vec<IpNet> = records
            .domains()
            .iter()
            .map(|domain| IpNet::V6(mesh_prefix(domain)))
            .collect();
        let mut granted = vec![BTreeSet::new(); claimants.len()];
        for (claimant, granted) in claimants.iter().zip(&mut granted) {
            let (Some(entry), None) = (claimant.entry, claimant.external) else {
                continue;
            };
            for net in &entry.allowed_ips {
                // A plain device's range may be one that this node carries on the device's behalf.
                let lent = entry.plain && carried_for_others(records, net);
                let refused = if net.prefix_len() == 0 {
                    Some(Reason::Range)
                } else if own.iter().any(|own| net.contains(own)) && !lent {
                    Some(Reason::OwnRange)
                } else {
                    None
                };
                self.grant(
                    claimant,
                    net,
                    refused.map_or(Claim::Nested, Claim::Refused),
                    granted,
                    now,
                );
            }
        }
        for (claimant, granted) in claimants.iter().zip(&mut granted) {
            if let PeerId::Node(node) = &claimant.id {
                let address = IpNet::from(std::net::IpAddr::V6(overlay_ipv6(node)));
                self.grant(claimant, &address, Claim::Alone, granted, now);
            }
        }
        for (claimant, granted) in claimants.iter().zip(&mut granted) {
            // The cluster's external peers come after the file's, in front of members: no Node has their ranges.
            let nets: Vec<IpNet> = match (claimant.entry, claimant.external, claimant.member) {
                (Some(entry), Some(_), _) => entry.allowed_ips.clone(),
                (None, _, Some(member)) => {
                    let record = member.record();
                    let address = record.ipv4.map(|ip| IpNet::from(std::net::IpAddr::V4(ip)));
                    address.iter().chain(&record.ranges).copied().collect()
                }
                (Some(_), None, _) | (None, _, None) => continue,
            };
            for net in &nets {
                let refused = if is_special(net) || meshes.iter().any(|mesh| overlap(mesh, net)) {
                    Some(Reason::Range)
                } else if own.iter().any(|own| overlap(own, net)) {
                    Some(Reason::OwnRange)
                } else {
                    None
                };
                self.grant(
                    claimant,
                    net,
                    refused.map_or(Claim::Alone, Claim::Refused),
                    granted,
                    now,
                );
            }
        }
        granted
    }

    fn grant(
        &mut self,
        claimant: &Claimant<'_>,
        net: &IpNet,
        claim: Claim,
        granted: &mut BTreeSet<IpNet>,
        now: Now,
    ) {
        let name = &claimant.name;
        let net = net.trunc();
        let claimed = match claim {
            Claim::Refused(Reason::OwnRange) => {
                let sentence = format!(
                    "{net} of {name} overlaps a range of this node and is not routed; change one of the two"
                );
                return self.conflict(Reason::OwnRange, claimant, sentence, now);
            }
            Claim::Refused(reason) => {
                let sentence =
                    format!("{net} of {name} is a range that no peer may carry; it is not routed");
                return self.conflict(reason, claimant, sentence, now);
            }
            Claim::Nested => self.ranges.claim_nested(net, claimant.id),
            Claim::Alone => self.ranges.claim(net, claimant.id),
        };
        match claimed {
            Ok(()) => _ = granted.insert(net),
            Err(holder) => {
                let sentence = format!(
                    "{net} of {name} overlaps a range of {}, which keeps it; change one of the two",
                    label(&holder)
                );
                self.conflict(Reason::Overlap, claimant, sentence, now);
            }
        }
    }

    fn conflict(&mut self, reason: Reason, claimant: &Claimant<'_>, sentence: String, now: Now) {
        if self.conflicts.len() < CONFLICTS_MAX {
            let vouched = claimant.member.and_then(Member::vouched);
            self.conflicts.push(Refusal {
                reason,
                peer: Some(claimant.id),
                node: vouched.map(|vouched| vouched.record.name.clone()),
                sentence,
                at: now.unix,
                count: 1,
            });
        }
    }
}

/// Is it exactly a range of this node's membership, and neither an address of its own nor, by the file, its
/// own range?
fn carried_for_others(records: &Records, net: &IpNet) -> bool {
    records.own_member().is_some_and(|member| {
        let record = member.record();
        let address = record.ipv4.map(|ip| IpNet::from(std::net::IpAddr::V4(ip)));
        record.ranges.contains(net) && address != Some(*net) && !records.own_ranges.contains(net)
    })
}

/// This node's own ranges: by configuration, by membership, and its overlay IPv6 address.
pub(crate) fn own_ranges(records: &Records) -> Vec<IpNet> {
    let mut out: Vec<IpNet> = records.own_ranges.iter().map(IpNet::trunc).collect();
    out.push(IpNet::from(std::net::IpAddr::V6(overlay_ipv6(
        &records.own,
    ))));
    if let Some(member) = records.own_member() {
        let record = member.record();
        out.extend(record.ipv4.map(|ip| IpNet::from(std::net::IpAddr::V4(ip))));
        out.extend(record.ranges.iter().filter(|net| !is_special(net)));
    }
    out
}

/// Everybody who could be a peer, by precedence: the file in its order, the cluster's external peers, then members
/// by authority and serial.
fn claimants(records: &Records) -> Vec<Claimant<'_>> {
    let mut hints: BTreeMap<WgKey, Vec<_>> = BTreeMap::new();
    for (node, announced) in &records.announced {
        let key = announced.signed.record().key;
        let listed = records.entry(&key).is_some_and(|entry| !entry.plain);
        if listed && !records.pins.contains_key(&key) && records.pinned_key(node).is_none() {
            hints.entry(key).or_default().push(announced);
        }
    }
    // A member that announces a key of the file is that entry, but only a session under the key may say so;
    // until then it is no peer of its own.
    let shadowed: BTreeSet<NodeKey> = hints
        .values()
        .flatten()
        .map(|announced| announced.signed.record())
        .map(mesh_types::record::Record::node)
        .collect();
    let mut out = Vec::new();
    for entry in &records.config {
        let (id, hints) = match records.pins.get(&entry.key) {
            Some(node) => (PeerId::Node(*node), Vec::new()),
            None => (
                PeerId::Key(entry.key),
                hints.remove(&entry.key).unwrap_or_default(),
            ),
        };
        out.push(claimant(records, id, Some(entry), hints));
    }
    let mut members: Vec<_> = records
        .members
        .iter()
        .filter(|(node, member)| {
            !member.expired
                && node.identity != records.own.identity
                && records.pinned_key(node).is_none()
                && !shadowed.contains(*node)
        })
        .collect();
    members.sort_by_key(|(node, member)| (member.rank, member.record().serial, **node));
    out.extend(
        members
            .into_iter()
            .map(|(node, _)| claimant(records, PeerId::Node(*node), None, Vec::new())),
    );
    out
}

fn claimant<'a>(
    records: &'a Records,
    id: PeerId,
    entry: Option<&'a ConfigPeer>,
    hints: Vec<&'a crate::records::Announced>,
) -> Claimant<'a> {
    let (member, announced) = match &id {
        PeerId::Node(node) => (
            records.members.get(node).filter(|member| !member.expired),
            records.announced.get(node),
        ),
        PeerId::Key(_) => (None, None),
    };
    let external = entry.filter(|entry| records.is_external(&entry.key));
    let external = external.and(records.cluster);
    Claimant::new(id, entry, external, member, announced, hints)
}

fn index(records: &Records) -> BTreeSet<(Idx, NodeKey)> {
    let nodes = records.members.keys().chain(records.tombstones.keys());
    nodes
        .chain(records.announced.keys())
        .chain([&records.own])
        .map(|node| (node.identity.idx(), *node))
        .collect()
}
