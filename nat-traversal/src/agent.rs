//! The path agent: everything about reaching one peer.
//!
//! [`run`](PathAgent::run) does what is due; [`wake`](PathAgent::wake) says when something will be. The
//! parts: `agent/probing.rs` sends probes to candidate addresses, `agent/path.rs` takes, watches and
//! loses the path in use, `agent/choice.rs` agrees on it, `agent/calling.rs` exchanges candidates through others,
//! `agent/relaying.rs` says when a relay is needed, `agent/turning.rs` when a TURN server is, `agent/standby.rs` keeps a
//! second way ready, `agent/rest.rs` lets idle peers sleep, `agent/searching.rs` finds ports that nobody can name.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use litemap::LiteMap;
use mesh_types::consts::CANDIDATES_MAX;
use mesh_types::message::RelayDistance;
use mesh_types::{Candidate, CandidateKind, Filtering, Idx, Now, PeerId, WgKey, WgSecret};

use crate::activity::Activity;
use crate::api::{Path, PathKind, PeerSpec};
use crate::budget::{Bucket, Calls, ELSEWHERE};
use crate::candidate::claimed;
use crate::node::Node;
use crate::path_mtu::PathMtu;
use crate::probe::Link;
use crate::remote::Remote;
use crate::replay::Replay;
use crate::standings::{Standing, Standings};

pub(crate) mod calling;
mod choice;
mod mtu;
mod openers;
mod path;
mod probing;
mod relaying;
mod report;
mod rest;
mod searching;
mod standby;
mod turning;

use calling::Calling;
use choice::Nomination;
use openers::Openers;
use path::InUse;
use probing::Slot;
pub(crate) use relaying::Need;
use rest::Resting;
use searching::Search;
use standby::Standby;

/// Of the announced candidates so many are taken; the rest of [`CANDIDATES_MAX`] is for what is learned.
const ANNOUNCED_MAX: usize = 16;
/// Who was heard of in this time is there.
const ALIVE: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug)]
pub(crate) struct PathAgent {
    id: PeerId,
    spec: PeerSpec,
    /// By own and the peer's idx.
    links: LiteMap<(Idx, Idx), Link>,
    current: Option<(Idx, Idx)>,
    own_key: Option<WgKey>,
    replays: LiteMap<Idx, Replay>,
    // Thousands of agents have two or three: a B-tree would take room for eleven.
    remotes: LiteMap<SocketAddr, Box<Remote>>,
    in_use: Option<InUse>,
    mtu: PathMtu,
    nomination: Option<Nomination>,
    /// Highest choice of the controlling side.
    last_ready: u64,
    /// A choice of the controlling side on an address we have not validated yet.
    awaited_ready: Option<(SocketAddr, u64)>,
    /// Since when it is sought.
    searching: Instant,
    slot: Option<Slot>,
    calling: Calling,
    calls: Calls,
    /// Attempts to connect to it by TCP.
    connects: Bucket,
    /// Answers that went to other ports than the request came from.
    elsewhere: Bucket,
    search: Search,
    openers: Openers,
    activity: Activity,
    tunnel_endpoint: Option<SocketAddr>,
    standby: Standby,
    resting: Resting,
    key_seen: Option<WgKey>,
    /// How far the peer is from its relays, as its last call says.
    their_relays: Vec<RelayDistance>,
    /// The relay at which the lower idx wants to meet.
    pub(crate) proposal: Option<Idx>,
    /// OTHER-ADDRESS of its last answer.
    other: Option<SocketAddr>,
    probes_sent: u64,
    probes_answered: u64,
    last_heard: Option<Instant>,
    /// The same without what came through relays.
    heard_direct: Option<Instant>,
    /// When its last call or answer came, by whatever way.
    last_called: Option<Instant>,
    connect: Option<Duration>,
    wake: Option<(Instant, &'static str)>,
    /// As the standings of all have it.
    standing: Standing,
}

impl PathAgent {
    pub(crate) fn new(id: PeerId, now: Now) -> Self {
        Self {
            id,
            spec: PeerSpec::default(),
            links: LiteMap::new(),
            current: None,
            own_key: None,
            replays: LiteMap::new(),
            remotes: LiteMap::new(),
            in_use: None,
            mtu: PathMtu::default(),
            nomination: None,
            last_ready: 0,
            awaited_ready: None,
            searching: now.mono,
            slot: None,
            calling: Calling::default(),
            calls: Calls::default(),
            connects: Bucket::default(),
            elsewhere: Bucket::default(),
            search: Search::default(),
            openers: Openers::default(),
            activity: Activity::default(),
            tunnel_endpoint: None,
            standby: Standby::default(),
            resting: Resting::new(now.mono),
            key_seen: None,
            their_relays: Vec::new(),
            proposal: None,
            other: None,
            probes_sent: 0,
            probes_answered: 0,
            last_heard: None,
            heard_direct: None,
            last_called: None,
            connect: None,
            wake: None,
            standing: Standing::default(),
        }
    }

    pub(crate) fn rename(&mut self, id: PeerId) {
        self.id = id;
    }

    pub(crate) fn keys(&self) -> &[WgKey] {
        &self.spec.keys
    }

    /// The link probes go out under.
    pub(crate) fn link(&self) -> Option<&Link> {
        self.links.get(&self.current?)
    }

    pub(crate) fn link_between(&self, own: Idx, peer: Idx) -> Option<&Link> {
        self.links.get(&(own, peer))
    }

    pub(crate) fn replay(&mut self, sender: Idx) -> &mut Replay {
        self.replays.entry(sender).or_default()
    }

    pub(crate) fn path(&self) -> Option<&Path> {
        self.in_use.as_ref().map(|in_use| &in_use.path)
    }

    pub(crate) fn other(&self) -> Option<SocketAddr> {
        self.other
    }

    pub(crate) fn last_heard(&self) -> Option<Instant> {
        self.last_heard
    }

    /// Was it heard of lately, by itself or through others?
    pub(crate) fn is_alive(&self, now: Instant) -> bool {
        self.last_heard
            .max(self.last_called)
            .is_some_and(|at| now.saturating_duration_since(at) < ALIVE)
    }

    /// May an answer go to another port of the peer's address?
    pub(crate) fn answers_elsewhere(&mut self, now: Instant) -> bool {
        self.elsewhere.take(ELSEWHERE, now)
    }

    /// When to run next, and why.
    pub(crate) fn wake(&self) -> Option<(Instant, &'static str)> {
        self.wake
    }

    /// News of the peer, the first included.
    pub(crate) fn update(&mut self, node: &mut Node, mut spec: PeerSpec, now: Now) {
        let first = self.spec.keys.is_empty();
        let announced = first || spec.announcement_seq > self.spec.announcement_seq;
        spec.candidates = spec.candidates.into_iter().map(claimed).collect();
        spec.candidates.sort();
        spec.candidates.dedup();
        let keys_changed = spec.keys != self.spec.keys;
        let last_endpoint = spec.last_endpoint.filter(|_| first);
        self.spec = spec;
        if keys_changed {
            self.relink(node, now);
        }
        let listed: Vec<_> = self.spec.candidates.clone();
        for (_, remote) in self.remotes.iter_mut() {
            remote.announced = listed
                .iter()
                .any(|candidate| candidate.address == remote.candidate.address);
        }
        if announced {
            self.doubt_unnamed(node, &listed, now.mono);
        }
        let keep = self.path().map(|path| path.remote);
        self.remotes.retain(|address, remote| {
            let learned = remote.confirmed || remote.candidate.kind == CandidateKind::PeerReflexive;
            remote.announced
                || learned && !remote.is_lost()
                || remote.relay.is_some()
                || remote.turn.is_some()
                || Some(*address) == keep
        });
        let direct = self.has_direct();
        let mut taken = 0;
        for candidate in listed {
            if taken < ANNOUNCED_MAX && self.learn(node, candidate, now.mono) {
                taken += 1;
                if let Some(remote) = self.remotes.get_mut(&candidate.address) {
                    remote.announced = true;
                    if announced && !direct {
                        remote.restart(true, now.mono);
                    }
                }
            }
        }
        if let Some(address) = last_endpoint {
            node.nat.sent_before(address.ip());
            let kind = CandidateKind::PeerReflexive;
            self.learn(node, Candidate { kind, address }, now.mono);
        }
        if !direct && (announced || keys_changed) {
            self.search(node, now);
        }
    }

    /// The candidates that it announces.
    pub(crate) fn announced(&self) -> &[Candidate] {
        &self.spec.candidates
    }

    /// The own keys or the peer's have changed.
    pub(crate) fn relink(&mut self, node: &mut Node, now: Now) {
        let mut links = LiteMap::with_capacity(node.keys.len() * self.spec.keys.len());
        for own in &node.keys {
            for peer in &self.spec.keys {
                let names = (own.public().idx(), peer.idx());
                let link = self.links.remove(&names);
                if let Some(link) = link.or_else(|| Link::new(own, peer)) {
                    links.insert(names, link);
                }
            }
        }
        self.links = links;
        self.own_key = node.keys.first().map(WgSecret::public);
        let current = node
            .keys
            .first()
            .zip(self.spec.keys.first())
            .map(|(own, peer)| (own.public().idx(), peer.idx()))
            .filter(|names| self.links.contains_key(names));
        let had = self.current.is_some();
        self.current = current;
        let peers: Vec<_> = self.spec.keys.iter().map(WgKey::idx).collect();
        self.replays.retain(|idx, _| peers.contains(idx));
        if current.is_none() {
            return;
        }
        if self.is_asleep() {
            return;
        }
        if self.in_use.is_some() {
            // The peer learns a new key of ours from a probe; nothing else tells it so soon.
            self.heartbeat(node, now.mono);
        } else if !had {
            self.search(node, now);
        }
    }

    /// Own and the peer's name, under which probes go out.
    pub(crate) fn names(&self) -> Option<(Idx, Idx)> {
        self.current
    }

    /// The lower idx chooses the path.
    pub(crate) fn controlling(&self) -> bool {
        self.current.is_some_and(|(own, peer)| own < peer)
    }

    /// Adds a candidate where it is admissible and there is room. True where it is known afterwards.
    fn learn(&mut self, node: &mut Node, candidate: Candidate, now: Instant) -> bool {
        if candidate.kind == CandidateKind::Tcp {
            return false;
        }
        let turn = node.turn.link_of(&candidate.address);
        if turn.is_none() && !node.admission.admits(&candidate.address)
            || node
                .endpoints
                .iter()
                .any(|own| own.kind == CandidateKind::Host && own.address == candidate.address)
        {
            node.counters.add("refused-candidate");
            return false;
        }
        if self.remotes.contains_key(&candidate.address) {
            if candidate.kind == CandidateKind::Relayed {
                self.told_relayed(node, candidate.address);
            }
            return true;
        }
        if !self.room_for(candidate.kind, node) {
            return false;
        }
        let (kind, relay) = self.tier_of(node, &candidate);
        let mut remote = Remote::new(candidate, kind, now);
        remote.relay = relay;
        remote.turn = turn.map(|(link, _)| link);
        self.remotes.insert(candidate.address, Box::new(remote));
        if !self.has_direct() {
            // It may be tried through a TURN server too.
            node.meet.insert(self.id);
        }
        true
    }

    fn room_for(&mut self, kind: CandidateKind, node: &mut Node) -> bool {
        let room = self.remotes.len() < CANDIDATES_MAX || self.make_room(kind);
        if !room {
            node.counters.add("refused-candidate-full");
        }
        room
    }

    /// What may be a candidate has changed.
    pub(crate) fn readmit(&mut self, node: &Node) {
        let keep = self.path().map(|path| path.remote);
        self.remotes.retain(|address, remote| {
            remote.turn.is_some() || Some(*address) == keep || node.admission.admits(address)
        });
    }

    fn make_room(&mut self, kind: CandidateKind) -> bool {
        let keep = self.path().map(|path| path.remote);
        let worst = self
            .remotes
            .iter()
            .filter(|(address, _)| Some(**address) != keep)
            .max_by_key(|(_, remote)| remote.dispensable())
            .map(|(address, remote)| (*address, remote.dispensable()));
        // What an authenticated datagram came from displaces what is only claimed.
        let learned = kind == CandidateKind::PeerReflexive;
        match worst {
            Some((address, (unconfirmed, spent, worst_kind)))
                if learned || (unconfirmed && (spent || worst_kind > kind)) =>
            {
                self.remotes.remove(&address);
                true
            }
            Some(_) | None => false,
        }
    }

    /// Starts to seek a path: bursts, calls, slots.
    fn search(&mut self, node: &mut Node, now: Now) {
        self.call_soon(node, now.mono);
        self.slot = self.next_slot(now);
        node.meet.insert(self.id);
    }

    /// The host has moved or has slept: nothing that was learned of paths holds.
    pub(crate) fn moved(&mut self, node: &mut Node, now: Now) {
        self.stop_search(node);
        for (_, remote) in self.remotes.iter_mut() {
            remote.restart(true, now.mono);
            if remote.kind.is_direct_udp() {
                remote.kind = node.tier(&remote.candidate.address.ip());
            }
        }
        if self.is_asleep() {
            return;
        }
        if self.in_use.is_some() {
            self.suspect(node, now.mono);
            self.widen(node, now.mono);
            self.calling.once = true;
        } else {
            self.search(node, now);
        }
    }

    /// What was sent of late counts for nothing: sends it again.
    pub(crate) fn again(&mut self, node: &mut Node, now: Instant) {
        if self.is_asleep() {
            return;
        }
        if self.in_use.is_some() {
            self.heartbeat(node, now);
        }
        let all: Vec<_> = self.remotes.keys().copied().collect();
        self.burst(&all, self.in_use.is_none(), now);
    }

    /// The own candidates have changed: whoever is being called must know.
    pub(crate) fn endpoints_changed(&mut self, node: &mut Node, now: Instant) {
        if self.is_asleep() {
            return;
        }
        if self.current.is_some() {
            self.recall(now);
            self.run_calling(node, now);
        }
    }

    /// Does what is due.
    pub(crate) fn run(&mut self, node: &mut Node, now: Now) {
        if self.is_asleep() {
            return;
        }
        if self.current.is_some() {
            self.run_nomination(node, now.mono);
            self.run_path(node, now);
            self.run_standby(node, now.mono);
            self.run_probes(node, now.mono);
            self.run_slot(node, now);
            self.run_calling(node, now.mono);
            self.run_search(node, now.mono);
            self.run_openers(node, now.mono);
            self.run_mtu(node, now.mono);
        }
    }

    /// What is told of the own translators has changed, not the addresses: whoever is sought must know.
    pub(crate) fn verdict_changed(&mut self, node: &mut Node, now: Instant) {
        if self.current.is_some() && self.in_use.is_none() {
            self.recall(now);
            self.run_calling(node, now);
        }
    }

    /// IPv4 addresses at which it has answered, that of the path first, then the latest.
    pub(crate) fn seen(&self) -> Vec<Ipv4Addr> {
        let path = self.path().map(|path| path.remote);
        let mut seen: Vec<_> = self
            .remotes
            .iter()
            .filter_map(|(address, remote)| match address.ip() {
                IpAddr::V4(ip) => {
                    let preferred = Some(*address) == path;
                    Some(((preferred, remote.last_answer?), ip))
                }
                IpAddr::V6(_) => None,
            })
            .collect();
        seen.sort_unstable();
        seen.into_iter().rev().map(|(_, ip)| ip).collect()
    }

    /// Where it can be asked how it sees a new socket: what it has at public addresses, or lets all in.
    pub(crate) fn observes(&self) -> Option<(&Link, SocketAddr, Option<SocketAddr>)> {
        let remote = self.shows_nat()?;
        let public =
            self.spec.candidates.iter().any(|candidate| {
                candidate.address == remote && candidate.kind <= CandidateKind::Host
            });
        let open = self.spec.nat.filtering == Filtering::EndpointIndependent;
        let other = self.other.filter(|other| other.ip() == remote.ip());
        (remote.is_ipv4() && (public || open)).then_some((self.link()?, remote, other))
    }

    /// Computes [`Self::wake`] and tells how this agent stands now; after every change.
    pub(crate) fn rearm(&mut self, all: &mut Standings) {
        self.wake = if self.current.is_none() || self.is_asleep() {
            None
        } else {
            let probes = self
                .remotes
                .values()
                .filter_map(|remote| remote.next)
                .min()
                .map(|at| (at, "probe"));
            [
                probes,
                self.path_deadline(),
                self.mtu_deadline(),
                self.nomination.as_ref().map(|n| (n.next, "nomination")),
                self.slot_deadline(),
                self.standby_deadline(),
                self.calling.at.map(|at| (at, "call")),
                self.search_deadline(),
                self.openers_deadline(),
            ]
            .into_iter()
            .flatten()
            .min()
        };
        let now = self.stands();
        all.change(self.id, self.standing, now);
        self.standing = now;
    }

    /// It is gone, or gets another name.
    pub(crate) fn disarm(&mut self, all: &mut Standings) {
        all.change(self.id, self.standing, Standing::default());
        self.standing = Standing::default();
    }

    fn stands(&self) -> Standing {
        let path = self.path();
        let by_udp = |path: &Path| path.turn.is_none() && path.kind != PathKind::Tcp;
        Standing {
            wake: self.wake.map(|(at, _)| at),
            connected: path.is_some(),
            by_udp: path.is_some_and(by_udp),
            relays: self.reach_as_relay().is_some(),
            link: self.turn_link(),
        }
    }

    /// Is what was told of it last still so?
    pub(crate) fn is_told(&self) -> bool {
        self.standing == self.stands()
    }
}
