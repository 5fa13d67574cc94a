//! A peer behind an own TURN server, or one that is reached at its relayed address.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mesh_types::address::is_global;
use mesh_types::consts::CANDIDATES_MAX;
use mesh_types::{Candidate, CandidateKind};

use super::PathAgent;
use super::relaying::Need;
use crate::api::{Event, Path, PathKind};
use crate::budget::Rate;
use crate::node::Node;
use crate::remote::Remote;

/// Many a pair has met directly, or at a member, by then; of the others none should wait for its first packet.
const WAIT: Duration = Duration::from_millis(150);
/// What is better than TCP has mostly answered by then.
const TCP_WAIT: Duration = Duration::from_millis(300);
/// Addresses of a peer that are tried through a server.
const TARGETS_MAX: usize = 6;
/// TCP addresses of a peer that are tried.
const TCP_MAX: usize = 2;
/// Attempts to connect by TCP to one peer.
const CONNECTS: Rate = Rate::every(Duration::from_secs(10), 4);
/// What answered so recently may take the place of a path whose link has ended.
const RECENT: Duration = Duration::from_secs(5);

impl PathAgent {
    /// Is it to be tried through a TURN server?
    pub(crate) fn turn_need(&self, node: &Node) -> Need {
        if self.current.is_none() {
            return Need::No;
        }
        match &self.in_use {
            None if node.expects_turn || node.nat.report().udp_blocked => Need::Yes,
            None => Need::From(self.searching + WAIT),
            Some(in_use) if in_use.path.kind > PathKind::NodeRelay => Need::Yes,
            Some(_) if self.is_suspect() && self.has_widened() => Need::Yes,
            Some(_) => Need::No,
        }
    }

    /// The link that the path in use leads through.
    pub(crate) fn turn_link(&self) -> Option<u32> {
        let address = self.path()?.remote;
        self.remotes.get(&address)?.turn
    }

    /// Addresses of the peer to be tried through a server, as the server sees them: its relayed one, those of the
    /// internet, and whatever it came from already. Private ones only where there is nothing else.
    pub(crate) fn turn_targets(&self, node: &Node) -> BTreeSet<SocketAddr> {
        let proven = |remote: &Remote| {
            remote.confirmed || remote.candidate.kind == CandidateKind::PeerReflexive
        };
        let mut out: BTreeSet<SocketAddr> = self
            .remotes
            .iter()
            .filter(|(_, remote)| remote.turn.is_some() && remote.kind != PathKind::Tcp)
            .filter(|(_, remote)| proven(remote))
            .map(|(address, _)| node.turn.real(*address))
            .collect();
        let own = |remote: &Remote| remote.turn.is_none() && remote.relay.is_none();
        let mut candidates: Vec<(bool, bool, Candidate)> = self
            .remotes
            .values()
            .filter(|remote| own(remote))
            .map(|remote| {
                let candidate = remote.candidate;
                let relayed = candidate.kind == CandidateKind::Relayed;
                (!is_global(&candidate.address.ip()), !relayed, candidate)
            })
            .collect();
        candidates.sort();
        let private = candidates.iter().all(|(private, ..)| *private);
        let fit = candidates.iter().filter(|(inside, ..)| *inside == private);
        out.extend(fit.take(TARGETS_MAX).map(|(.., c)| c.address));
        out
    }

    /// An address of it can be reached through a link from now on: probes it.
    pub(crate) fn turn_bound(&mut self, node: &mut Node, loopback: SocketAddr, now: Instant) {
        let Some((link, kind)) = node.turn.link_of(&loopback) else {
            return;
        };
        if !self.remotes.contains_key(&loopback) {
            if !self.room_for(CandidateKind::PeerReflexive, node) {
                return;
            }
            let candidate = Candidate {
                kind: CandidateKind::Relayed,
                address: loopback,
            };
            let mut remote = Remote::new(candidate, kind, now);
            remote.turn = Some(link);
            self.remotes.insert(loopback, Box::new(remote));
        } else if self.path().is_none_or(|path| path.remote != loopback) {
            self.burst(&[loopback], false, now);
        }
        self.run_probes(node, now);
    }

    /// The peer has said where it can be connected to by TCP, and does the same now: both NATs must see a packet from
    /// inside first. Only beside a path that nothing better has replaced for a moment.
    pub(super) fn connect_tcp(&mut self, node: &mut Node, candidates: &[Candidate], now: Instant) {
        let poor = |path: &Path| path.kind > PathKind::Tcp && path.since + TCP_WAIT <= now;
        if !self.path().is_some_and(poor) {
            return;
        }
        let tcp = candidates.iter().take(CANDIDATES_MAX);
        let tcp = tcp.filter(|candidate| candidate.kind == CandidateKind::Tcp);
        for at in tcp.map(|candidate| candidate.address).take(TCP_MAX) {
            if !node.admission.admits(&at) || !node.turn.may_connect(&self.id, at) {
                continue;
            }
            if !self.connects.take(CONNECTS, now) {
                node.counters.add("budget-deferred");
                return;
            }
            node.counters.add("tcp-connects");
            node.turn.connect(self.id, at, now);
        }
    }

    /// Forgets addresses whose link or channel is gone.
    pub(crate) fn prune_turn(&mut self, node: &mut Node, now: Instant) {
        let before = self.remotes.len();
        self.remotes.retain(|address, remote| {
            let link = node.turn.link_of(address).map(|(link, _)| link);
            remote.turn.is_none() || remote.turn == link
        });
        if self.remotes.len() == before {
            return;
        }
        let remotes = &self.remotes;
        self.nomination
            .take_if(|nomination| !remotes.contains_key(&nomination.remote));
        self.awaited_ready
            .take_if(|(address, _)| !remotes.contains_key(address));
        let path = self.path().map(|path| path.remote);
        if path.is_some_and(|address| !remotes.contains_key(&address)) {
            let since = now.checked_sub(RECENT).unwrap_or(now);
            self.lose(node, since, now);
        }
    }

    /// The peer names its addresses: where the path leads to one on a relay of its own, and that is not among them, the
    /// allocation has likely ended.
    pub(super) fn doubt_unnamed(&mut self, node: &mut Node, named: &[Candidate], now: Instant) {
        let gone = |path: &Path| {
            path.kind == PathKind::TurnUdp
                && path.turn.is_none()
                && named
                    .iter()
                    .all(|candidate| candidate.address != path.remote)
        };
        if named.len() < CANDIDATES_MAX && self.path().is_some_and(gone) {
            self.suspect(node, now);
        }
    }

    /// The peer says that an address is one on a relay of its own.
    pub(super) fn told_relayed(&mut self, node: &mut Node, address: SocketAddr) {
        let Some(remote) = self.remotes.get_mut(&address) else {
            return;
        };
        if remote.relay.is_some() || remote.turn.is_some() || remote.kind == PathKind::TurnUdp {
            return;
        }
        remote.kind = PathKind::TurnUdp;
        remote.candidate.kind = CandidateKind::Relayed;
        if let Some(in_use) = self.in_use.as_mut().filter(|u| u.path.remote == address) {
            in_use.path.kind = PathKind::TurnUdp;
            self.connect = None;
            node.events.push_back(Event::PathChanged { peer: self.id });
        }
        node.meet.insert(self.id);
    }
}
