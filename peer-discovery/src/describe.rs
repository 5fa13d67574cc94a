//! Turns what is known of one claimant into a [`Peer`].

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use mesh_types::consts::{CANDIDATES_MAX, PROTOCOL};
use mesh_types::observation::ConfigPeer;
use mesh_types::record::Features;
use mesh_types::{
    Candidate, CandidateKind, DomainId, IpNet, NatReport, PeerId, Prefixes, Source, WgKey,
};

use crate::kubernetes::Vouched;
use crate::peer::{Peer, RELAYS_MAX};
use crate::records::{Announced, Member};

const NAME_MAX: usize = 63;
/// A Node object's name may be longer (RFC 1123).
const NODE_NAME_MAX: usize = 253;

/// Somebody who could be a peer, and what is known of it.
pub(crate) struct Claimant<'a> {
    pub id: PeerId,
    pub name: String,
    pub entry: Option<&'a ConfigPeer>,
    /// The entry is the cluster's, not the file's.
    pub external: Option<DomainId>,
    pub member: Option<&'a Member>,
    pub announced: Option<&'a Announced>,
    hints: Vec<&'a Announced>,
}

impl<'a> Claimant<'a> {
    pub(crate) fn new(
        id: PeerId,
        entry: Option<&'a ConfigPeer>,
        external: Option<DomainId>,
        member: Option<&'a Member>,
        announced: Option<&'a Announced>,
        hints: Vec<&'a Announced>,
    ) -> Self {
        let by_file = entry.and_then(|entry| entry.name.as_deref());
        let by_authority = member.map(|member| member.record().name.as_str());
        let by_itself = announced.and_then(|a| a.signed.record().name.as_deref());
        let is_node = entry.is_none() && member.is_some_and(|member| member.vouched().is_some());
        let most = if is_node { NODE_NAME_MAX } else { NAME_MAX };
        let name = [by_file, by_authority, by_itself]
            .into_iter()
            .flatten()
            .map(|text| clean(text, most))
            .find(|name| !name.is_empty())
            .unwrap_or_else(|| label(&id));
        Self {
            id,
            name,
            entry,
            external,
            member,
            announced,
            hints,
        }
    }

    pub(crate) fn describe(
        &self,
        key: WgKey,
        next_key: Option<WgKey>,
        allowed_ips: Prefixes,
    ) -> Peer {
        let record = self.announced.map(|a| a.signed.record());
        let features = record.map_or(Features::default(), |a| a.features);
        let source = match (self.entry, self.member) {
            (None, Some(member)) => member.source(),
            (Some(_), _) | (None, None) => match self.external {
                Some(domain) => Source::Kubernetes { domain },
                None => Source::Config,
            },
        };
        let relays = match (self.entry, self.member) {
            (None, Some(member)) => member.record().may_relay,
            (Some(entry), _) => !entry.plain,
            (None, None) => false,
        };
        let of_node = |nets: fn(&Vouched) -> &Vec<IpNet>| {
            let vouched = self.member.and_then(Member::vouched);
            let nets = vouched.into_iter().flat_map(nets);
            nets.filter(|net| allowed_ips.contains(net))
                .copied()
                .collect()
        };
        let address = |ip: &Ipv4Addr| IpNet::from(IpAddr::V4(*ip));
        Peer {
            ipv4: self
                .member
                .and_then(|member| member.record().ipv4)
                .filter(|ip| allowed_ips.contains(&address(ip))),
            pod_cidrs: of_node(|vouched| &vouched.pods),
            node_ips: of_node(|vouched| &vouched.addresses),
            id: self.id,
            name: self.name.clone(),
            source,
            key,
            next_key,
            allowed_ips,
            endpoints: self.endpoints(),
            nat: record.map_or(NatReport::default(), |a| a.nat),
            region: self.region(),
            features,
            protocol: record.map_or(PROTOCOL, |a| (a.protocol_min, a.protocol_max)),
            plain: self.entry.is_some_and(|entry| entry.plain),
            preshared_key: self.entry.and_then(|entry| entry.preshared_key.clone()),
            persistent_keepalive: self.entry.and_then(|entry| entry.persistent_keepalive),
            identity: match self.id {
                PeerId::Node(node) => Some(node.identity),
                PeerId::Key(_) => None,
            },
            seq: record.map_or(0, |a| a.seq),
            may_relay: relays && features.has(Features::MAY_RELAY),
            relays: record.map_or(Vec::new(), |a| {
                a.relays.iter().take(RELAYS_MAX).copied().collect()
            }),
            configured_key: self.entry.map(|entry| entry.key),
        }
    }

    /// Of a Node a person or the cloud says it, of others they themselves.
    fn region(&self) -> Option<String> {
        let region = match self.member.and_then(Member::vouched) {
            Some(vouched) => vouched.region.as_deref(),
            None => self.announced?.signed.record().region.as_deref(),
        };
        region.map(printable).filter(|region| !region.is_empty())
    }

    /// The file's first or those forced on the Node, then the node's own, then unproven ones; best kinds first, one
    /// candidate an address.
    fn endpoints(&self) -> Vec<Candidate> {
        let by_file = self.entry.iter().flat_map(|entry| &entry.endpoints);
        let forced = self.member.and_then(Member::vouched);
        let forced = forced.iter().flat_map(|vouched| &vouched.forced);
        let by_person = by_file.chain(forced).map(|address| Candidate {
            kind: CandidateKind::Mapped,
            address: *address,
        });
        let mut out: Vec<Candidate> = by_person.collect();
        for announced in self.announced.iter().chain(&self.hints) {
            let mut theirs = announced.signed.record().endpoints.clone();
            theirs.sort();
            out.extend(theirs);
        }
        let mut seen = BTreeSet::new();
        out.iter_mut().for_each(|c| c.address = unmapped(c.address));
        out.retain(|c| is_usable(&c.address) && seen.insert(c.address));
        out.truncate(CANDIDATES_MAX);
        out
    }
}

/// What somebody without a name is called: the beginning of the key or identity.
pub(crate) fn label(id: &PeerId) -> String {
    match id {
        PeerId::Node(node) => node.identity.to_string().chars().take(8).collect(),
        PeerId::Key(key) => key.to_string().chars().take(8).collect(),
    }
}

/// Others choose these texts, and a terminal shows them: letters, digits, blanks and punctuation only.
pub(crate) fn printable(text: &str) -> String {
    clean(text, NAME_MAX)
}

fn clean(text: &str, most: usize) -> String {
    text.chars()
        .filter(|c| c.is_alphanumeric() || *c == ' ' || (c.is_ascii_punctuation() && *c != '\\'))
        .take(most)
        .collect::<String>()
        .trim()
        .to_owned()
}

fn unmapped(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn is_usable(address: &SocketAddr) -> bool {
    let ip = address.ip();
    address.port() != 0 && !ip.is_unspecified() && !ip.is_multicast()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lose_what_a_terminal_would_obey() {
        assert_eq!(printable("berlin\x1b[2J\n-1"), "berlin[2J-1");
        assert_eq!(printable(&"x".repeat(500)).len(), NAME_MAX);
    }
}
