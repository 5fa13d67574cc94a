//! Peers that are not reached directly are met at relays; and members are relayed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mesh_types::message::{RelayBind, RelayDistance, RelayOffer};
use mesh_types::plan::RelayPair;
use mesh_types::{Idx, Message, Now, PeerId};
use tracing::debug;

use super::Traversal;
use crate::agent::calling::RELAYS_MAX;
use crate::agent::{Need, PathAgent};
use crate::api::{Event, RelaySettings};
use crate::relay::PATIENCE;
use crate::relay::choice::{rendezvous, sums, worth};
use crate::relay::client;
use crate::relay::server::{Answer, Refusal, Request};

/// A relay at which the peer did not show up is given up for this long at first, doubled each time: one of two that
/// start together is often not there yet.
const AGAIN: Duration = Duration::from_millis(500);
const AGAIN_DOUBLINGS: u32 = 9;
/// A pair that is direct again keeps its relays for this long, in case it was too soon.
const KEEP: Duration = Duration::from_secs(30);
/// Home relays announced.
const HOMES: usize = 3;
/// A home relay out of reach stays announced for this long: it may be back before anybody cares.
const HOME_KEEP: Duration = Duration::from_secs(60);

/// How a peer is met at relays.
#[derive(Debug, Default)]
pub(super) struct Meeting {
    /// Relays at which it was not met, until when they are left alone.
    excluded: BTreeMap<PeerId, Instant>,
    /// Those of them whose ports are silent, whatever they offer: a translator before them may be closed.
    silent: BTreeSet<PeerId>,
    attempts: u32,
    /// Since when there is no path that answers.
    since: Option<Instant>,
    next: Option<Instant>,
    /// Since when no relay stands by that should.
    unready: Option<Instant>,
    /// When its relays are left, because it is reached directly.
    leave: Option<Instant>,
}

/// A relay in reach.
#[derive(Debug, Clone, Copy)]
struct Reach {
    id: PeerId,
    name: Idx,
    main: SocketAddr,
    rtt: Duration,
    /// It has an address of the internet itself.
    public: bool,
}

impl Traversal {
    /// Relays for other peers, or does so no longer.
    pub fn set_relay(&mut self, settings: Option<RelaySettings>, now: Now) {
        self.server.set(settings);
        self.settle(now);
    }

    /// Tells which of [`Self::relay_ports`] other programs on this host hold: others are taken.
    pub fn set_busy_ports(&mut self, ports: &BTreeSet<u16>, now: Now) {
        self.server.set_busy(ports, now.mono);
        self.settle(now);
    }

    /// UDP ports lent to members, [`mesh_types::SocketId::Relay`].
    pub fn relay_ports(&self) -> BTreeSet<u16> {
        self.server.ports()
    }

    /// Pairs that both have bound here.
    pub fn relay_pairs(&self) -> BTreeSet<RelayPair> {
        self.server.pairs()
    }

    /// Members in reach that relay, and their round trip times, nearest first.
    pub fn relays(&self) -> Vec<(PeerId, Duration)> {
        let reach = self.reach().into_iter();
        reach.map(|relay| (relay.id, relay.rtt)).collect()
    }

    /// The nearest relays, which the announcement names; changes are told by [`Event::EndpointsChanged`].
    pub fn home_relays(&self) -> Vec<Idx> {
        self.homes.keys().map(name).collect()
    }

    /// Addresses of relays from which a peer's datagrams may still come though both have agreed on another path.
    pub fn late(&self, id: &PeerId) -> Vec<SocketAddr> {
        let agent = self.agents.get(id);
        agent.map_or(Vec::new(), |agent| agent.late().collect())
    }

    fn reach(&self) -> Vec<Reach> {
        let relays = self.standings.relays().iter();
        let mut all: Vec<Reach> = relays
            .filter_map(|id| {
                let agent = self.agents.get(id)?;
                let (main, rtt) = agent.reach_as_relay()?;
                Some(Reach {
                    id: *id,
                    name: name(id),
                    main,
                    rtt,
                    public: agent.is_public(),
                })
            })
            .collect();
        all.sort_by_key(|relay| (relay.rtt, relay.name));
        all
    }

    /// Does all that is due about relays. True where home relays changed.
    pub(super) fn run_relays(&mut self, now: Now) -> bool {
        let reach = self.reach();
        let changed = self.update_reach(&reach, now.mono);
        self.client.handle_timeout(now.mono);
        self.server.handle_timeout(now.mono);
        self.tell_again(now.mono);
        let mut peers = self.meeting_times.due(now.mono);
        peers.append(&mut self.node.meet);
        peers.extend(self.due_turn(now.mono));
        for id in peers {
            self.meet(id, &reach, now.mono);
            self.meet_turn(id, now.mono);
        }
        self.drain_client(now.mono);
        for id in std::mem::take(&mut self.node.meet) {
            self.meet(id, &reach, now.mono);
            self.meet_turn(id, now.mono);
        }
        self.send_binds(now.mono);
        if self.server.take_changed() {
            self.node.events.push_back(Event::RelayChanged);
        }
        changed
    }

    /// Who relays, and how far they are.
    fn update_reach(&mut self, reach: &[Reach], now: Instant) -> bool {
        let names: Vec<PeerId> = reach.iter().map(|relay| relay.id).collect();
        let mut fresh = false;
        for relay in reach.iter().filter(|r| !self.in_reach.contains(&r.id)) {
            fresh = true;
            for meeting in self.meetings.values_mut() {
                meeting.excluded.remove(&relay.id);
                // It may not have found the peer yet.
                meeting.attempts = 0;
            }
        }
        if names.len() != self.in_reach.len() || fresh {
            self.in_reach = names.into_iter().collect();
            self.note_relay_addresses();
            if fresh {
                for (id, agent) in &self.agents {
                    if !agent.has_direct() || agent.wants_standby(now) {
                        self.node.meet.insert(*id);
                    }
                }
            }
        }
        self.node.relays = reach
            .iter()
            .take(RELAYS_MAX)
            .map(|relay| RelayDistance {
                relay: relay.name,
                ms: millis(relay.rtt),
            })
            .collect();
        let homes = self.update_homes(reach, now);
        self.node.relaying = self.server.is_on();
        self.node.anchors = self.homes.keys().copied().collect();
        let public = |relay: &Reach| relay.public && self.homes.contains_key(&relay.id);
        self.node.anchored = self.node.relaying || reach.iter().any(public);
        homes
    }

    /// Remembers the addresses of all that may relay, in reach or not: a relay forwards for an end that has just
    /// started and reaches nobody yet.
    pub(super) fn note_relay_addresses(&mut self) {
        let agents = self.agents.values();
        self.node.relay_ips = agents.flat_map(PathAgent::relay_addresses).collect();
    }

    fn update_homes(&mut self, reach: &[Reach], now: Instant) -> bool {
        let before: Vec<PeerId> = self.homes.keys().copied().collect();
        let rtt = |id: &PeerId| {
            let relay = reach.iter().find(|relay| relay.id == *id);
            relay.map(|relay| u32::from(millis(relay.rtt)))
        };
        for (id, lost) in &mut self.homes {
            *lost = match rtt(id) {
                Some(_) => None,
                None => Some(lost.unwrap_or(now)),
            };
        }
        let agents = &self.agents;
        self.homes.retain(|id, lost| {
            agents.contains_key(id)
                && lost.is_none_or(|at| now.saturating_duration_since(at) < HOME_KEEP)
        });
        for relay in reach {
            if self.homes.contains_key(&relay.id) {
                continue;
            }
            if self.homes.len() >= HOMES {
                let farthest = self
                    .homes
                    .keys()
                    .max_by_key(|id| rtt(id).unwrap_or(u32::MAX))
                    .copied();
                let Some(farthest) = farthest.filter(|id| {
                    let old = rtt(id).unwrap_or(u32::MAX);
                    worth(u32::from(millis(relay.rtt)), old)
                }) else {
                    continue;
                };
                self.homes.remove(&farthest);
            }
            self.homes.insert(relay.id, None);
        }
        !self.homes.keys().eq(before.iter())
    }

    /// Sees to it that a peer that needs a relay has one, and when to look again.
    fn meet(&mut self, id: PeerId, reach: &[Reach], now: Instant) {
        self.meet_once(id, reach, now);
        let times = self.meetings.get(&id).map(|m| [m.next, m.leave]);
        let next = times.and_then(|times| times.into_iter().flatten().min());
        self.meeting_times.set(id, next);
    }

    fn meet_once(&mut self, id: PeerId, reach: &[Reach], now: Instant) {
        let Some(agent) = self.agents.get_mut(&id) else {
            self.meetings.remove(&id);
            return;
        };
        let need = agent.relay_need(&self.node, now);
        if agent.takes_renewal() {
            let relays: Vec<PeerId> = self.client.relays_of(id).map(|(relay, _)| relay).collect();
            for relay in relays {
                self.client.renew(id, relay, now);
            }
        }
        let Some(agent) = self.agents.get_mut(&id) else {
            return;
        };
        if need == Need::No {
            self.leave_relays(id, now);
            return;
        }
        if reach.is_empty() && !self.meetings.contains_key(&id) {
            // Once a relay is in reach, all are looked at that lack a path.
            return;
        }
        let meeting = self.meetings.entry(id).or_default();
        meeting.leave = None;
        meeting.next = None;
        meeting.excluded.retain(|_, until| *until > now);
        let excluded = &meeting.excluded;
        meeting.silent.retain(|relay| excluded.contains_key(relay));
        if need == Need::Standby {
            meeting.since = None;
            return self.stand_by(id, None, reach, now);
        }
        meeting.since.get_or_insert(now);
        match need {
            Need::No | Need::Standby => {}
            Need::From(at) if at > now => meeting.next = Some(at),
            Need::From(_) | Need::Yes => {
                let suspect = agent.path().and_then(|path| path.via);
                if let Some(relay) = suspect {
                    self.client.renew(id, relay, now);
                }
                self.seek(id, suspect, reach, now);
            }
            Need::Served(relay) => {
                meeting.attempts = 0;
                meeting.since = None;
                self.improve(id, relay, reach, now);
                if self.agents.get(&id).is_some_and(|a| a.wants_standby(now)) {
                    self.stand_by(id, Some(relay), reach, now);
                }
            }
        }
    }

    /// It is reached directly: its relays are kept for a while.
    fn leave_relays(&mut self, id: PeerId, now: Instant) {
        let relays: Vec<PeerId> = self.client.relays_of(id).map(|(relay, _)| relay).collect();
        let Some(meeting) = self.meetings.get_mut(&id) else {
            return;
        };
        let leave = *meeting.leave.get_or_insert(now + KEEP);
        meeting.next = None;
        meeting.since = None;
        if leave > now && !relays.is_empty() {
            return;
        }
        self.meetings.remove(&id);
        for relay in relays {
            self.client.release(id, relay);
            if let Some(agent) = self.agents.get_mut(&id) {
                agent.leave_relay(relay);
                agent.rearm(&mut self.standings);
            }
        }
        self.node.events.push_back(Event::RelayChanged);
    }

    /// It is reached: sees to it that it would be through another relay, too. The controlling side begins, and the
    /// relay calls the other.
    fn stand_by(&mut self, id: PeerId, current: Option<PeerId>, reach: &[Reach], now: Instant) {
        let Some((agent, meeting)) = self.agents.get_mut(&id).zip(self.meetings.get_mut(&id))
        else {
            return;
        };
        if agent.warm_relay(now).is_some() {
            meeting.attempts = 0;
            meeting.unready = None;
            return;
        }
        if meeting.unready.is_none() {
            agent.ask_relays(&mut self.node, now);
            agent.rearm(&mut self.standings);
        }
        let since = *meeting.unready.get_or_insert(now);
        let controlling = agent.controlling();
        let binds = self.client.relays_of(id);
        let binds: Vec<_> = binds.filter(|(relay, _)| Some(*relay) != current).collect();
        let mut waiting = None;
        for (relay, bound) in binds {
            let until = bound.unwrap_or(now).max(since) + PATIENCE;
            if until <= now {
                self.exclude(id, relay, now);
            } else {
                waiting = waiting.max(Some(until));
            }
        }
        let relay = match waiting {
            None if controlling => self.choose(id, current, reach),
            None | Some(_) => None,
        };
        if let Some(relay) = relay {
            debug!(peer = %id, relay = %relay.id, "A relay stands by");
            self.client.want(id, relay.id, relay.main, now);
            waiting = Some(now + PATIENCE);
        }
        if let Some(meeting) = self.meetings.get_mut(&id) {
            let again = meeting.excluded.values().min().copied();
            meeting.next = waiting.or(again.filter(|_| controlling));
        }
    }

    /// There is no path: binds at a relay, and at another one where the peer does not come.
    fn seek(&mut self, id: PeerId, suspect: Option<PeerId>, reach: &[Reach], now: Instant) {
        let under_way: Vec<(PeerId, Option<Instant>)> = self.client.relays_of(id).collect();
        let since = self.meetings.get(&id).and_then(|meeting| meeting.since);
        let since = since.unwrap_or(now);
        let mut waiting = None;
        for (relay, bound) in under_way {
            if Some(relay) == suspect {
                continue;
            }
            let until = bound.map(|at| at.max(since) + PATIENCE);
            if until.is_some_and(|until| until <= now) {
                self.exclude(id, relay, now);
            } else {
                // One that is not bound yet ends by itself.
                waiting = waiting.max(Some(until.unwrap_or(now + PATIENCE)));
            }
        }
        let relay = match waiting {
            Some(_) => None,
            None => self.choose(id, suspect, reach),
        };
        if let Some(relay) = relay {
            debug!(peer = %id, relay = %relay.id, "Meeting at a relay");
            self.client.want(id, relay.id, relay.main, now);
            waiting = Some(now + PATIENCE);
        }
        if let Some(meeting) = self.meetings.get_mut(&id) {
            let again = meeting.excluded.values().min().copied();
            meeting.next = waiting.or(again);
        }
    }

    /// The one that the lower idx proposes, the one that both are nearest to, or one that both know.
    fn choose(&self, id: PeerId, suspect: Option<PeerId>, reach: &[Reach]) -> Option<Reach> {
        let (agent, meeting) = self.agents.get(&id).zip(self.meetings.get(&id))?;
        let fit: Vec<&Reach> = reach
            .iter()
            .filter(|relay| {
                relay.id != id
                    && Some(relay.id) != suspect
                    && !meeting.excluded.contains_key(&relay.id)
            })
            .collect();
        // Behind a translator a relay's ports may be closed though its main port is open to all.
        let public: Vec<&Reach> = fit.iter().copied().filter(|relay| relay.public).collect();
        let fit = if public.is_empty() { fit } else { public };
        let named = |name: Idx| fit.iter().find(|relay| relay.name == name);
        let proposed = agent.proposal.and_then(named);
        let nearest = || {
            let sums = sums(&self.node.relays, agent.their_relays());
            sums.filter(|(_, name)| named(*name).is_some())
                .min()
                .and_then(|(_, name)| named(name))
        };
        let common = || {
            let (own, peer) = agent.names()?;
            let homes = agent.home_relays();
            let both = fit.iter().filter(|relay| homes.contains(&relay.name));
            rendezvous(own, peer, both.map(|relay| relay.name))
                .or_else(|| rendezvous(own, peer, fit.iter().map(|relay| relay.name)))
                .and_then(named)
        };
        let chosen = proposed.or_else(nearest).or_else(common);
        chosen.map(|relay| **relay)
    }

    /// The relay in use is kept; another one that is much nearer to both is tried beside it.
    fn improve(&mut self, id: PeerId, current: PeerId, reach: &[Reach], now: Instant) {
        let main = |of: PeerId| {
            let relay = reach.iter().find(|relay| relay.id == of);
            relay.map(|relay| relay.main)
        };
        let bound = self.client.relays_of(id).any(|(relay, _)| relay == current);
        if let Some(main) = main(current).filter(|_| !bound) {
            self.client.want(id, current, main, now);
        }
        let Some((agent, meeting)) = self.agents.get_mut(&id).zip(self.meetings.get(&id)) else {
            return;
        };
        if !agent.controlling() {
            return;
        }
        let all: Vec<(u32, Idx)> = sums(&self.node.relays, agent.their_relays()).collect();
        let old = all.iter().find(|(_, relay)| *relay == name(&current));
        let best = all.iter().min().and_then(|(ms, best)| {
            let relay = reach.iter().find(|relay| relay.name == *best)?;
            (old.is_some_and(|(old, _)| worth(*ms, *old))
                && !meeting.excluded.contains_key(&relay.id))
            .then_some(*relay)
        });
        agent.proposal = Some(best.map_or(name(&current), |relay| relay.name));
        if let Some(relay) = best {
            self.client.want(id, relay.id, relay.main, now);
        }
    }

    /// Leaves a relay alone for a while, for one peer.
    fn exclude(&mut self, id: PeerId, relay: PeerId, now: Instant) {
        let meeting = self.meetings.entry(id).or_default();
        let doublings = meeting.attempts.min(AGAIN_DOUBLINGS);
        meeting.attempts += 1;
        let until = now + AGAIN * 2_u32.pow(doublings);
        meeting.excluded.insert(relay, until);
        self.client.release(id, relay);
        if let Some(agent) = self.agents.get_mut(&id) {
            agent.leave_relay(relay);
            agent.rearm(&mut self.standings);
        }
    }

    fn drain_client(&mut self, now: Instant) {
        while let Some(event) = self.client.poll_event() {
            match event {
                client::Event::Bound {
                    peer,
                    relay,
                    address,
                } => {
                    self.node.counters.add("relay-bound");
                    let others = self.agents.iter_mut().filter(|(id, _)| **id != peer);
                    for (_, agent) in others {
                        agent.lent_to_another(&mut self.node, address, now);
                        agent.rearm(&mut self.standings);
                    }
                    if let Some(agent) = self.agents.get_mut(&peer) {
                        agent.met_at(&mut self.node, relay, address, now);
                        agent.rearm(&mut self.standings);
                    }
                    // Its patience begins.
                    self.node.meet.insert(peer);
                }
                client::Event::Failed {
                    peer,
                    relay,
                    refused,
                } => {
                    self.node.counters.add("relay-bind-failed");
                    self.exclude(peer, relay, now);
                    if let Some(meeting) = self.meetings.get_mut(&peer).filter(|_| !refused) {
                        meeting.silent.insert(relay);
                    }
                    self.node.meet.insert(peer);
                }
            }
        }
    }

    fn send_binds(&mut self, now: Instant) {
        while let Some(request) = self.client.poll_request() {
            let link = self.agents.get(&request.relay).and_then(|a| a.link());
            let target = self.agents.get(&request.peer).and_then(|a| a.names());
            if let Some((link, (_, peer))) = link.zip(target) {
                let bind = RelayBind {
                    peer,
                    nonce: request.nonce,
                };
                let what = (request.peer, bind);
                self.node
                    .bind(request.relay, link, request.destination, what, now);
            }
        }
    }

    /// A relay tells that a peer waits there.
    pub(super) fn handle_offer(&mut self, relay: &PeerId, offer: &RelayOffer, now: Now) {
        let reach = self.agents.get(relay).and_then(PathAgent::reach_as_relay);
        let main = reach.map(|(main, _)| main);
        let main = main.filter(|main| self.may_lend(*main, offer));
        let peer = self.by_idx.get(&offer.peer).copied();
        let Some((peer, main)) = peer.zip(main).filter(|(peer, _)| peer != relay) else {
            self.node.counters.add("refused-relay-offer");
            return;
        };
        let meeting = self.meetings.entry(peer).or_default();
        let until = meeting.excluded.get(relay);
        if meeting.silent.contains(relay) && until.is_some_and(|until| *until > now.mono) {
            self.node.counters.add("refused-relay-silent");
            return;
        }
        if meeting.excluded.remove(relay).is_some() && !meeting.silent.remove(relay) {
            meeting.attempts = 0;
        }
        self.client
            .handle_offer(peer, *relay, main, offer, now.mono);
        self.node.meet.insert(peer);
        self.settle(now);
    }

    /// May the port that a relay at this address offers be sent to?
    fn may_lend(&self, relay: SocketAddr, offer: &RelayOffer) -> bool {
        let lent = SocketAddr::new(relay.ip(), offer.port);
        self.node.admission.admits(&lent)
    }

    /// The answer to a request of ours that went to `destination`.
    pub(super) fn bind_answered(
        &mut self,
        relay: PeerId,
        peer: PeerId,
        destination: SocketAddr,
        answer: Result<&[u8], u16>,
        now: Instant,
    ) {
        match answer {
            Ok(data) => {
                if let Ok(Message::RelayOffer(offer)) = Message::decode(data)
                    && self.may_lend(destination, &offer)
                {
                    self.client
                        .handle_answer(peer, relay, destination, &offer, now);
                }
            }
            Err(_) => self.client.handle_refusal(peer, relay),
        }
    }

    /// An authenticated bind request: the answer's DATA.
    pub(super) fn serve(
        &mut self,
        from: PeerId,
        own_name: Idx,
        bind: &RelayBind,
        (source, port): (SocketAddr, Option<u16>),
        now: Instant,
    ) -> Result<Vec<u8>, Refusal> {
        if !self.server.is_on() {
            return Err(Refusal::Off);
        }
        let to = *self.by_idx.get(&bind.peer).ok_or(Refusal::Peer)?;
        let path = self.agents.get(&to).and_then(|agent| agent.path());
        let at = path.filter(|path| path.kind.is_direct_udp());
        let request = Request {
            from,
            to,
            source,
            port,
            nonce: bind.nonce.as_deref(),
        };
        let answer = match at {
            Some(_) => self.server.handle_bind(&request, now),
            None => Err(Refusal::Absent),
        };
        let (port, nonce) = match answer {
            Ok(Answer::Come(port, nonce)) => (port, Some(nonce)),
            Ok(Answer::Bound(port)) => (port, None),
            Err(refusal) => return Err(refusal),
        };
        let offer = at.and_then(|path| self.server.offer(&request, path.remote.ip(), now));
        if let Some(offer) = offer {
            self.tell(to, own_name, offer);
        }
        let answer = RelayOffer {
            peer: bind.peer,
            port,
            nonce,
        };
        Ok(Message::from(answer).encode())
    }

    /// Tells an end that another one waits for it here.
    fn tell(&mut self, to: PeerId, waits: Idx, (port, nonce): (u16, Vec<u8>)) {
        let message = RelayOffer {
            peer: waits,
            port,
            nonce: Some(nonce),
        };
        self.node.counters.add("relay-offers");
        self.node.events.push_back(Event::Signal {
            peer: to,
            message: message.into(),
        });
    }

    /// Tells those again that did not come.
    fn tell_again(&mut self, now: Instant) {
        for (from, to) in self.server.offers_due(now) {
            let path = self.agents.get(&to).and_then(|agent| agent.path());
            let path = path.filter(|path| path.kind.is_direct_udp());
            let at = path.map(|path| path.remote.ip());
            let names = self.agents.get(&from).and_then(|agent| agent.names());
            let offer = self.server.offer_again(from, to, at, now);
            if let Some(((_, waits), offer)) = names.zip(offer) {
                self.tell(to, waits, offer);
            }
        }
    }

    pub(super) fn relay_deadline(&self) -> Option<(Instant, &'static str)> {
        let meeting = self.meeting_times.first().map(|(at, _)| (at, "relay"));
        [
            meeting,
            self.client.poll_timeout(),
            self.server.poll_timeout(),
        ]
        .into_iter()
        .flatten()
        .min()
    }
}

/// The id of a relay: of its identity, of its WireGuard key where that is all that is known.
fn name(id: &PeerId) -> Idx {
    match id {
        PeerId::Node(node) => node.identity.idx(),
        PeerId::Key(key) => key.idx(),
    }
}

fn millis(time: Duration) -> u16 {
    u16::try_from(time.as_millis()).unwrap_or(u16::MAX)
}
