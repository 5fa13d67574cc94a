//! Probes to candidate addresses: bursts, the slow search, wall-clock slots, checks of what was heard.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mesh_types::message::{Ack, Message, PathReady};
use mesh_types::{Candidate, CandidateKind, Now, SocketId, WgKey};

use super::PathAgent;
use super::choice::Nomination;
use crate::api::Event;
use crate::budget::Stake;
use crate::node::{Node, Purpose};
use crate::remote::{Local, Remote};
use crate::schedule::{BURST, SLOT_LAZY_AFTER, SLOT_PROBES, next_slot};

/// Where several sockets have got through, each is tried for so long: else every datagram would begin a burst.
const HIT_KEPT: Duration = Duration::from_millis(500);

/// The pair's next wall-clock rendezvous (L0).
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot {
    start: Instant,
    step: usize,
}

impl PathAgent {
    /// Sends one probe. False where a budget refuses.
    pub(super) fn send_probe(
        &mut self,
        node: &mut Node,
        address: SocketAddr,
        purpose: Purpose,
        now: Instant,
    ) -> bool {
        let stake = self.stake(Stake::Search, now);
        self.send_probe_for(node, address, (purpose, stake), now)
    }

    /// What depends on a packet to an unconfirmed address of this peer.
    fn stake(&self, otherwise: Stake, now: Instant) -> Stake {
        match self.is_alive(now) {
            true => Stake::Heard,
            false => otherwise,
        }
    }

    fn send_probe_for(
        &mut self,
        node: &mut Node,
        address: SocketAddr,
        (purpose, stake): (Purpose, Stake),
        now: Instant,
    ) -> bool {
        let by_udp = |remote: &Remote| remote.kind.is_direct_udp();
        if self.is_silent()
            && self
                .remotes
                .get(&address)
                .is_none_or(|remote| by_udp(remote))
        {
            return true;
        }
        let on_path = self.path().is_some_and(|path| path.remote == address);
        let ip = node.turn.real(address).ip();
        let sure = on_path
            || self
                .remotes
                .get(&address)
                .is_some_and(|remote| remote.is_sure());
        if !sure && !node.budget.take(ip, stake, now) {
            node.counters.add("budget-deferred");
            return false;
        }
        let Some(link) = self.current.and_then(|names| self.links.get(&names)) else {
            return true;
        };
        let socket = self
            .remotes
            .get(&address)
            .map_or(SocketId::Main, |remote| remote.socket());
        node.probe(self.id, link, (socket, address), purpose, now);
        self.probes_sent += 1;
        if let Some(remote) = self.remotes.get_mut(&address) {
            remote.sent(now);
        }
        true
    }

    /// What a probe to an address is for: those of the controlling side on its path choose it again.
    pub(super) fn purpose(&self, address: SocketAddr) -> Purpose {
        match (&self.nomination, &self.in_use) {
            (Some(nomination), _) if nomination.remote == address => Purpose::Ready(nomination.seq),
            (None, Some(in_use)) if in_use.path.remote == address && self.controlling() => {
                Purpose::Ready(in_use.seq)
            }
            (Some(_) | None, Some(_) | None) => Purpose::Check,
        }
    }

    pub(super) fn run_probes(&mut self, node: &mut Node, now: Instant) {
        let due: Vec<_> = self
            .remotes
            .iter()
            .filter(|(_, remote)| remote.next.is_some_and(|at| at <= now))
            .map(|(address, _)| *address)
            .collect();
        let stake = self.stake(Stake::Search, now);
        for address in due {
            let lost = self
                .remotes
                .get(&address)
                .is_some_and(|remote| remote.is_lost());
            if lost && self.is_spare(&address) {
                self.remotes.remove(&address);
                continue;
            }
            let sent = self.send_probe(node, address, self.purpose(address), now);
            let (direct, any) = (self.has_direct(), self.in_use.is_some());
            if let Some(remote) = self.remotes.get_mut(&address) {
                if sent {
                    remote.schedule(direct || (any && remote.kind.is_relayed()), now);
                } else {
                    remote.defer(node.budget.later(stake, now));
                }
            }
        }
    }

    /// Is there a direct path, and another one than this?
    fn is_spare(&self, address: &SocketAddr) -> bool {
        self.has_direct() && self.path().is_some_and(|path| path.remote != *address)
    }

    /// Probes an address at once, unless that was just done.
    pub(super) fn check(&mut self, node: &mut Node, address: SocketAddr, now: Instant) {
        let just = |at: Instant| now.saturating_duration_since(at) < BURST[1];
        let Some(remote) = self.remotes.get(&address) else {
            return;
        };
        if remote.may_send() && !remote.last_sent.is_some_and(just) {
            self.send_probe(node, address, self.purpose(address), now);
        }
    }

    pub(super) fn next_slot(&self, now: Now) -> Option<Slot> {
        let (own, peer) = (self.own_key?, self.spec.keys.first()?);
        let lazy = now.mono.saturating_duration_since(self.searching) > SLOT_LAZY_AFTER;
        let at = next_slot(&own, peer, now.unix, lazy);
        Some(Slot {
            start: now.mono + at.saturating_sub(now.unix),
            step: 0,
        })
    }

    pub(super) fn slot_deadline(&self) -> Option<(Instant, &'static str)> {
        let slot = self.slot.filter(|_| self.in_use.is_none())?;
        (!self.remotes.is_empty())
            .then(|| {
                SLOT_PROBES
                    .get(slot.step)
                    .map(|offset| slot.start + *offset)
            })
            .flatten()
            .map(|at| (at, "slot"))
    }

    pub(super) fn run_slot(&mut self, node: &mut Node, now: Now) {
        if self.slot_deadline().is_none_or(|(at, _)| at > now.mono) {
            return;
        }
        let addresses: Vec<_> = self.remotes.keys().copied().collect();
        let stake = self.stake(Stake::Slot, now.mono);
        for address in addresses {
            self.send_probe_for(node, address, (Purpose::Check, stake), now.mono);
        }
        if let Some(slot) = &mut self.slot {
            // Where no address was known in time, what was missed is not made up for.
            let past = |offset: &&Duration| slot.start + **offset <= now.mono;
            slot.step = SLOT_PROBES.iter().take_while(past).count();
            if slot.step == SLOT_PROBES.len() {
                self.slot = self.next_slot(now);
            }
        }
    }

    /// An authenticated request arrived. Gives the DATA of the answer.
    pub(crate) fn on_request(
        &mut self,
        node: &mut Node,
        (socket, local_port, address): (SocketId, u16, SocketAddr),
        key: &WgKey,
        data: Option<&[u8]>,
        now: Instant,
    ) -> Option<Vec<u8>> {
        self.last_heard = Some(now);
        if self.spec.keys.first() != Some(key) && self.key_seen != Some(*key) {
            self.key_seen = Some(*key);
            node.events.push_back(Event::PeerKeySeen {
                peer: self.id,
                key: *key,
            });
        }
        let doubt = || matches!(data.map(Message::decode), Some(Ok(Message::Doubt(_))));
        if self.is_asleep() && doubt() {
            self.wake_up(node, now);
        }
        if data.is_some_and(<[u8]>::is_empty) || self.is_asleep() {
            return None;
        }
        let known = self.remotes.contains_key(&address);
        let kind = CandidateKind::PeerReflexive;
        if !self.learn(node, Candidate { kind, address }, now) {
            return None;
        }
        self.heard(node, address, now);
        let lucky = self.local(socket, local_port);
        if let Some(lucky) = lucky {
            self.found(address, lucky, now);
        }
        if let Some(remote) = self.remotes.get_mut(&address) {
            remote.grant(now);
        }
        let on_path = self.path().is_some_and(|path| path.remote == address);
        let steady = self.has_direct() && !self.searched_lately(now);
        if !known && steady && !self.is_relayed(&address) {
            // The peer's mapping may have changed: does it still answer at the old one?
            self.suspect(node, now);
        }
        let answered = self.remotes.get(&address).is_some_and(|r| r.confirmed);
        let wanting = !self.has_path_like(self.tier(&address));
        if !on_path && (!answered || wanting) {
            self.check(node, address, now);
        }
        match data.map(Message::decode) {
            Some(Ok(Message::PathReady(PathReady { seq }))) => self
                .on_ready(node, (address, lucky), seq, now)
                .then(|| Message::from(Ack { seq }).encode()),
            Some(Ok(Message::Doubt(_))) if !on_path => {
                // It may hear nothing though it is heard, or have more to send than we.
                self.doubted(node, now);
                None
            }
            Some(_) | None => None,
        }
    }

    /// A socket of a search got through to an address of the peer.
    pub(super) fn found(&mut self, address: SocketAddr, lucky: Local, now: Instant) {
        let direct = !self.wants_direct();
        // The other side is being told of one of several that got through: it would follow each of them.
        let told = |n: &Nomination| n.remote == address && n.local.is_some();
        let told = self.nomination.as_ref().is_some_and(told);
        if let Some(remote) = self.remotes.get_mut(&address)
            && !direct
            && !told
            && remote.local != Some(lucky)
            && (remote.local.is_none() || remote.found.is_none_or(|at| at + HIT_KEPT <= now))
        {
            remote.local = Some(lucky);
            remote.found = Some(now);
            remote.restart(true, now);
        }
    }

    /// Something authentic came from the peer.
    pub(super) fn heard(&mut self, node: &mut Node, address: SocketAddr, now: Instant) {
        self.last_heard = Some(now);
        if !self.is_relayed(&address) {
            self.heard_direct = Some(now);
            self.heard_openers(node);
        }
    }

    /// Addresses of the peer that are worth a burst now.
    pub(super) fn burst(&mut self, addresses: &[SocketAddr], renewed: bool, now: Instant) {
        for address in addresses {
            if let Some(remote) = self.remotes.get_mut(address) {
                remote.restart(renewed, now);
            }
        }
    }

    /// A datagram of the peer's tunnel came from `address` (as a stranger to probes might).
    pub(super) fn roamed(&mut self, node: &mut Node, address: SocketAddr, now: Instant) {
        let kind = CandidateKind::PeerReflexive;
        if self.learn(node, Candidate { kind, address }, now) {
            if let Some(remote) = self.remotes.get_mut(&address) {
                remote.grant(now);
            }
            self.check(node, address, now);
        }
    }
}
