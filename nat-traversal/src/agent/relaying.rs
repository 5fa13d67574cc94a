//! When a peer is to be met at a relay, and what becomes of the relay's address.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use mesh_types::address::is_global;
use mesh_types::message::RelayDistance;
use mesh_types::{Candidate, CandidateKind, Filtering, Idx, Mapping, NatReport, PeerId};

use super::PathAgent;
use crate::api::PathKind;
use crate::node::{Node, RelayAddress};
use crate::remote::Remote;

/// A pair of which one side lets anybody in meets directly in less: no relay is asked so soon.
const EASY_WAIT: Duration = Duration::from_secs(1);

/// Does a peer need a relay?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// It is reached directly.
    No,
    /// Not before this moment.
    From(Instant),
    /// There is no path, or the one in use does not answer.
    Yes,
    /// It is reached directly, and much is sent: a relay stands by.
    Standby,
    /// It is reached through this relay.
    Served(PeerId),
}

impl PathAgent {
    /// Is there a path that nobody else carries?
    pub(crate) fn has_direct(&self) -> bool {
        self.path().is_some_and(|path| !path.kind.is_relayed())
    }

    /// Is there a path as good as an address of this tier could give?
    pub(super) fn has_path_like(&self, kind: PathKind) -> bool {
        self.has_direct() || (self.path().is_some() && kind.is_relayed())
    }

    pub(crate) fn relay_need(&self, node: &Node, now: Instant) -> Need {
        if self.current.is_none() || self.is_asleep() {
            return Need::No;
        }
        match &self.in_use {
            None => {
                let easy = open(&node.nat.report()) || open(&self.spec.nat) || self.is_public();
                let wait = if easy { EASY_WAIT } else { Duration::ZERO };
                Need::From(self.searching + wait)
            }
            Some(in_use) => match in_use.path.via {
                Some(relay) if !self.is_suspect() => Need::Served(relay),
                None if self.has_widened() || in_use.path.kind.is_relayed() => Need::Yes,
                None if self.wants_standby(now) => Need::Standby,
                None => Need::No,
                Some(_) => Need::Yes,
            },
        }
    }

    /// May it be asked to relay?
    pub(crate) fn reach_as_relay(&self) -> Option<(SocketAddr, Duration)> {
        let path = self.path().filter(|path| path.kind.is_direct_udp())?;
        (self.spec.relay_capable && !self.is_suspect()).then_some((path.remote, path.rtt))
    }

    /// Does it say that it relays?
    pub(crate) fn may_relay(&self) -> bool {
        self.spec.relay_capable
    }

    /// Its public addresses, where it relays.
    pub(crate) fn relay_addresses(&self) -> BTreeMap<IpAddr, RelayAddress> {
        if !self.spec.relay_capable {
            return BTreeMap::new();
        }
        let candidates = || self.spec.candidates.iter();
        let own = |ip| candidates().any(|c| c.kind == CandidateKind::Host && c.address.ip() == ip);
        let in_use = self.path().filter(|path| path.kind.is_direct_udp());
        candidates()
            .map(|c| c.address.ip())
            .chain(in_use.map(|path| path.remote.ip()))
            .filter(is_global)
            .map(|ip| {
                let (relay, own) = (self.id, own(ip));
                (ip, RelayAddress { relay, own })
            })
            .collect()
    }

    /// What it says of its relays.
    pub(crate) fn home_relays(&self) -> &[Idx] {
        &self.spec.relays
    }

    /// How far it is from its relays.
    pub(crate) fn their_relays(&self) -> &[RelayDistance] {
        &self.their_relays
    }

    /// A member that relays has got another name.
    pub(crate) fn rename_relay(&mut self, from: &PeerId, to: PeerId) {
        let named = self.remotes.iter_mut().map(|(_, remote)| &mut remote.relay);
        let in_use = self.in_use.iter_mut().map(|in_use| &mut in_use.path.via);
        for relay in named.chain(in_use) {
            if *relay == Some(*from) {
                *relay = Some(to);
            }
        }
    }

    /// Bound at a relay, which forwards from there to the peer: probes it.
    pub(crate) fn met_at(
        &mut self,
        node: &mut Node,
        relay: PeerId,
        address: SocketAddr,
        now: Instant,
    ) {
        if !self.remotes.contains_key(&address)
            && !self.room_for(CandidateKind::PeerReflexive, node)
        {
            return;
        }
        let kind = CandidateKind::Relayed;
        let new = || {
            Box::new(Remote::new(
                Candidate { kind, address },
                PathKind::NodeRelay,
                now,
            ))
        };
        let remote = self.remotes.entry(address).or_insert_with(new);
        remote.relay = Some(relay);
        remote.lent = true;
        remote.kind = PathKind::NodeRelay;
        if self.path().is_none_or(|path| path.remote != address) {
            self.burst(&[address], false, now);
            self.run_probes(node, now);
            self.keep_standby(node, now);
        }
    }

    /// A relay lends this address for another peer now: what comes from there is not this one's.
    pub(crate) fn lent_to_another(&mut self, node: &mut Node, address: SocketAddr, now: Instant) {
        if self.remotes.remove(&address).is_some()
            && self.path().is_some_and(|path| path.remote == address)
        {
            self.lose(node, now, now);
        }
    }

    /// The peer is no longer met at a relay. A path through it stays until it breaks.
    pub(crate) fn leave_relay(&mut self, relay: PeerId) {
        let keep = self.path().map(|path| path.remote);
        self.remotes
            .retain(|address, remote| remote.relay != Some(relay) || Some(*address) == keep);
    }

    /// The tier of an address it is known by.
    pub(super) fn tier(&self, address: &SocketAddr) -> PathKind {
        let remote = self.remotes.get(address);
        remote.map_or(PathKind::NodeRelay, |remote| remote.kind)
    }

    /// Is it an address of a relay?
    pub(crate) fn is_relayed(&self, address: &SocketAddr) -> bool {
        let remote = self.remotes.get(address);
        remote.is_some_and(|remote| remote.kind.is_relayed())
    }

    /// Where datagrams of the peer may still come from after both have agreed on another path.
    pub(crate) fn late(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        let path = self.path();
        let agreed = path.is_some_and(|path| !path.kind.is_relayed() || path.confirmed);
        let settled = agreed && (self.has_direct() || !self.is_suspect());
        let path = path.map(|path| path.remote);
        self.remotes
            .iter()
            .filter(move |(address, remote)| {
                settled && remote.kind.is_relayed() && Some(**address) != path
            })
            .map(|(address, _)| *address)
    }

    /// Tier of an address that something came from, and the relay whose address it is: one that the peer
    /// does not share. An end that has just started does not remember its binds, the relay does.
    pub(super) fn tier_of(&self, node: &Node, candidate: &Candidate) -> (PathKind, Option<PeerId>) {
        if let Some((_, kind)) = node.turn.link_of(&candidate.address) {
            return (kind, None);
        }
        let listed = |own: &Candidate| {
            own.kind == CandidateKind::Relayed && own.address == candidate.address
        };
        if listed(candidate) || self.spec.candidates.iter().any(listed) {
            return (PathKind::TurnUdp, None);
        }
        let ip = candidate.address.ip();
        let learned = candidate.kind == CandidateKind::PeerReflexive;
        let relay = node.relay_at(&candidate.address);
        let relay = relay.filter(|relay| learned && *relay != self.id);
        let shared = || self.spec.candidates.iter().any(|c| c.address.ip() == ip);
        match relay.filter(|_| !shared()) {
            Some(relay) => (PathKind::NodeRelay, Some(relay)),
            None => (node.tier(&ip), None),
        }
    }

    /// Does it have an address of its own on the internet?
    pub(crate) fn is_public(&self) -> bool {
        self.spec.candidates.iter().any(|candidate| {
            let own = matches!(candidate.kind, CandidateKind::Host | CandidateKind::Mapped);
            own && candidate.address.is_ipv4() && is_global(&candidate.address.ip())
        })
    }
}

/// Anybody may send to it.
fn open(nat: &NatReport) -> bool {
    nat.mapping == Mapping::EndpointIndependent && nat.filtering == Filtering::EndpointIndependent
}
