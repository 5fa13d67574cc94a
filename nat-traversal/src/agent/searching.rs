//! Meeting a peer where one translator or both give each destination another port: the methods of
//! `hard.rs`, begun by calls, ended by the first answer.
//!
//! ```text
//!            a call           sockets open         answers
//! Idle ------------> Opening -------------> Sampling -------> Told (both predict: waits for the other's)
//!   ^  \ no sockets     |  nothing to sample    |               |
//!   |   '------------.  v                       v               v
//!   '--------------- Probing <-----------------------------------
//! ```

use std::collections::{BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use mesh_types::message::{CallMeAck, Message};
use mesh_types::{Allocation, Candidate, CandidateKind, SocketId};

use super::PathAgent;
use crate::api::{Event, PathKind};
use crate::hard::allocator::{advance, between, following};
use crate::hard::budget::Share;
use crate::hard::{
    BATCH, BATCH_EVERY, BLOCK_LEAST, BLOCK_SHARE, HOLD, LURE, Method, PORTS_PER_SOCKET, PREDICT_AT,
    PREDICT_EVERY, PREDICTION_AGE, PROBES_RANDOM, REPEATS, ROUND_EVERY, ROUND_SHARE,
    SAMPLE_PATIENCE, SEARCH_AT, SOCKETS_BLOCK, SOCKETS_RANDOM, WINDOW, WINDOW_MEET,
};
use crate::nat_kind::Sharing;
use crate::node::{Node, Purpose};
use crate::remote::Local;

/// How long the host may take to open sockets.
const OPENING: Duration = Duration::from_secs(5);
/// How long the other side may take to predict.
const TOLD: Duration = Duration::from_millis(1500);
/// Two searches run already.
const BUSY: Duration = Duration::from_millis(500);
/// Whether the own ports are shared is not known yet, and there are no more if they are not.
const ASKED: Duration = Duration::from_millis(50);
/// Addresses of the peer that sockets are opened to.
const TARGETS: usize = 2;

/// Everything about searching for one peer.
#[derive(Debug, Default)]
pub(super) struct Search {
    share: Share,
    /// Where a third node has seen the peer.
    vouched: Option<Ipv4Addr>,
    /// Addresses in its last call.
    named: Vec<SocketAddr>,
    /// Ports it predicted, and the call that said so.
    predicted: (Vec<u16>, u64),
    /// The own call that told predicted ports: its answer is no new call.
    told: Option<u64>,
    at: Option<Instant>,
    stage: Stage,
    /// Sockets of the last method, open until then.
    sockets: Vec<u32>,
    hold: Option<Instant>,
    /// All sockets asked for and not given back.
    owned: BTreeSet<u32>,
    began: Option<Instant>,
    /// Ports of a range, lowest and highest, that were not probed yet, in random order.
    ports: ((u16, u16), Vec<u16>),
}

#[derive(Debug, Default)]
enum Stage {
    /// Nothing is done.
    #[default]
    Idle,
    /// The host opens sockets.
    Opening { method: Method, until: Instant },
    /// Observers are asked.
    Sampling {
        method: Method,
        before: u64,
        after: Option<u64>,
        until: Instant,
    },
    /// The peer knows our next ports and has not told its own.
    Told { until: Instant },
    /// Probes go out.
    Probing(Barrage),
}

/// Probes to send: from which socket, to where.
#[derive(Debug)]
struct Barrage {
    method: Method,
    shots: Vec<(SocketId, SocketAddr)>,
    done: usize,
    /// More than so many take more ports of our translator than they may, unless it shares them.
    bound: usize,
    /// Ages at which all of it is sent again.
    again: VecDeque<Duration>,
    started: Instant,
    next: Instant,
}

impl PathAgent {
    /// Is there none, or only through a relay?
    pub(super) fn wants_direct(&self) -> bool {
        self.path().is_none_or(|path| path.kind > PathKind::Ipv4)
    }

    /// A third node says where it sees the peer.
    pub(crate) fn vouched(&mut self, ip: Ipv4Addr) {
        self.search.vouched = Some(ip);
    }

    /// Probes have just been sent to unknown ports of the peer: more than one may have got through.
    pub(super) fn searched_lately(&self, now: Instant) -> bool {
        let since = |at| now.saturating_duration_since(at) < ROUND_EVERY;
        self.search.began.is_some_and(since)
    }

    /// Does this socket belong to this peer?
    pub(super) fn local(&self, socket: SocketId, port: u16) -> Option<Local> {
        match socket {
            SocketId::Extra(socket) => {
                let owned = self.search.owned.contains(&socket);
                owned.then_some(Local { socket, port })
            }
            SocketId::Main
            | SocketId::Alternate
            | SocketId::Overlay
            | SocketId::Relay(_)
            | SocketId::Turn(_) => None,
        }
    }

    /// A call of the peer, or its answer to ours, has arrived: number, addresses, predicted ports.
    pub(super) fn exchanged(
        &mut self,
        node: &mut Node,
        (seq, named, predicted): (u64, Vec<SocketAddr>, &[u16]),
        now: Instant,
    ) {
        self.present(now);
        self.search.share.called(now);
        self.search.named = named;
        if !self.wants_direct() {
            return;
        }
        let Some(method) = self.method(node) else {
            return;
        };
        let told = self.search.told == Some(seq);
        if !predicted.is_empty() {
            let most = predicted.iter().take(WINDOW.1).copied().collect();
            self.search.predicted = (most, seq);
        }
        match method {
            Method::Guess if !predicted.is_empty() => self.begin(node, method, now),
            Method::Meet if !predicted.is_empty() && self.controlling() => {
                if matches!(self.search.stage, Stage::Told { .. }) {
                    self.probe_predicted(node, method, now);
                }
            }
            Method::Meet if !predicted.is_empty() => self.begin(node, method, now),
            Method::Meet if !self.controlling() => {}
            Method::Guess => {}
            Method::Meet | Method::Trace if told => {}
            Method::Meet | Method::Trace => self.plan(PREDICT_AT, PREDICT_EVERY, now),
            Method::Fan => self.plan(PREDICT_AT, PREDICT_EVERY, now),
            Method::Spray => self.plan(SEARCH_AT, PREDICT_EVERY, now),
            Method::Cross => self.plan(SEARCH_AT, ROUND_EVERY - PREDICT_EVERY, now),
        }
    }

    fn method(&self, node: &Node) -> Option<Method> {
        let allowed = |method: &Method| match method {
            Method::Guess | Method::Trace | Method::Meet => true,
            Method::Spray | Method::Fan | Method::Cross => node.birthday_search,
        };
        Method::of(node.nat.report(), self.spec.nat).filter(allowed)
    }

    /// Begins after a while, unless that was just done.
    fn plan(&mut self, after: Duration, every: Duration, now: Instant) {
        let just = |at| now.saturating_duration_since(at) < every;
        if matches!(self.search.stage, Stage::Idle) && !self.search.began.is_some_and(just) {
            self.search.at.get_or_insert(now + after);
        }
    }

    /// The peer's external address: named by the peer itself and seen by a third node.
    fn target(&self) -> Option<IpAddr> {
        let vouched = IpAddr::V4(self.search.vouched?);
        let named = self.search.named.iter().any(|a| a.ip() == vouched);
        named.then_some(vouched)
    }

    fn targets(&self) -> Vec<SocketAddr> {
        let target = self.target();
        let named = self.search.named.iter().copied();
        named
            .filter(|address| Some(address.ip()) == target)
            .take(TARGETS)
            .collect()
    }

    fn begin(&mut self, node: &mut Node, method: Method, now: Instant) {
        self.search.at = None;
        if matches!(
            self.search.stage,
            Stage::Opening { .. } | Stage::Sampling { .. }
        ) {
            return;
        }
        if self.target().is_none() {
            node.counters.add("refused-search-unconfirmed");
            return;
        }
        if !self.search.share.is_wanted(now) || self.search.share.left(method, now) == 0 {
            node.counters.add("refused-search-budget");
            return;
        }
        self.search.began = Some(now);
        node.counters.add("searches");
        let room = self.room(node, now);
        if room == 0 {
            node.counters.add("refused-search-ports");
            return;
        }
        let count = match method {
            Method::Guess => return self.probe_predicted(node, method, now),
            Method::Spray => return self.spray(node, now),
            Method::Trace => 3,
            Method::Meet => 2,
            Method::Fan => match own_block(node) {
                None => SOCKETS_RANDOM,
                Some(ports) => (ports / PORTS_PER_SOCKET).clamp(1, SOCKETS_BLOCK),
            },
            Method::Cross => SOCKETS_BLOCK,
        };
        let fresh = match method {
            Method::Trace | Method::Meet => true,
            Method::Guess | Method::Spray | Method::Fan | Method::Cross => {
                self.search.sockets.len() != count
            }
        };
        if fresh {
            let Some(sockets) = node.sockets.request(count) else {
                node.counters.add("refused-search-sockets");
                return;
            };
            self.search.owned.extend(&sockets);
            self.search.sockets = sockets;
        }
        self.search.hold = Some(now + HOLD);
        self.search.stage = Stage::Opening {
            method,
            until: now + OPENING,
        };
        self.run_search(node, now);
    }

    /// Does what is due.
    pub(super) fn run_search(&mut self, node: &mut Node, now: Instant) {
        if !self.wants_direct() {
            self.stop_search(node);
            return;
        }
        if self.search.at.is_some_and(|at| at <= now) {
            self.search.at = None;
            if let Some(method) = self.method(node) {
                self.begin(node, method, now);
            }
        }
        match self.search.stage {
            Stage::Idle => {}
            Stage::Opening { method, until } => {
                if node.sockets.are_open(&self.search.sockets) {
                    self.opened(node, method, now);
                } else if until <= now {
                    self.search.stage = Stage::Idle;
                    self.search.sockets.clear();
                }
            }
            Stage::Sampling {
                method,
                before,
                after,
                until,
            } => {
                let first = node.samples.port(before);
                let last = after.map_or(first, |token| node.samples.port(token));
                if let Some((first, last)) = first.zip(last) {
                    self.forget_samples(node);
                    self.predict(node, method, (first, last), now);
                } else if until <= now {
                    self.forget_samples(node);
                    self.search.stage = Stage::Idle;
                    self.search.at = Some(now + PREDICT_EVERY);
                }
            }
            Stage::Told { until } => {
                if until <= now {
                    self.search.stage = Stage::Idle;
                }
            }
            Stage::Probing(_) => self.shoot(node, now),
        }
        if self.search.hold.is_some_and(|at| at <= now) {
            self.search.hold = None;
            self.search.sockets.clear();
        }
        self.tidy(node);
    }

    fn forget_samples(&mut self, node: &mut Node) {
        if let Stage::Sampling { before, after, .. } = self.search.stage {
            node.samples.forget(before);
            after
                .into_iter()
                .for_each(|token| node.samples.forget(token));
        }
    }

    fn opened(&mut self, node: &mut Node, method: Method, now: Instant) {
        let sockets = self.search.sockets.clone();
        self.search.stage = Stage::Idle;
        match method {
            Method::Trace => {
                let (Some(before), Some(lure)) = (node.sample(sockets[0], now), sockets.get(1))
                else {
                    return;
                };
                // Between the two samples: its port is one of those between theirs.
                for target in self.targets() {
                    if self.search.share.take(&mut node.searches, method, now) {
                        self.send_search(node, (SocketId::Extra(*lure), target), now);
                    }
                }
                self.search.stage = Stage::Sampling {
                    method,
                    before,
                    after: node.sample(sockets[2], now),
                    until: now + SAMPLE_PATIENCE,
                };
            }
            Method::Meet => {
                if let Some(before) = node.sample(sockets[0], now) {
                    self.search.stage = Stage::Sampling {
                        method,
                        before,
                        after: None,
                        until: now + SAMPLE_PATIENCE,
                    };
                }
            }
            Method::Fan => {
                let targets = self.targets();
                let from = sockets.iter().map(|socket| SocketId::Extra(*socket));
                let shots = from.flat_map(|from| targets.iter().map(move |to| (from, *to)));
                let shots: Vec<_> = shots.take(self.room(node, now)).collect();
                let count = shots.len();
                node.searches.occupy(Some(self.id), count, now);
                self.fire(node, (method, count), shots, &[], now);
            }
            Method::Cross => self.cross(node, &sockets, now),
            Method::Guess | Method::Spray => {}
        }
    }

    /// The next ports are known: tells them.
    fn predict(&mut self, node: &mut Node, method: Method, ports: (u16, u16), now: Instant) {
        self.search.stage = Stage::Idle;
        let Allocation::Sequential(step) = node.nat.report().allocation else {
            return;
        };
        let Some(socket) = self.search.sockets.get(1).map(|s| SocketId::Extra(*s)) else {
            return;
        };
        match method {
            Method::Trace => {
                let predicted = between(ports.0, ports.1, step, WINDOW.0, WINDOW.1);
                self.search.told = Some(self.send_call(node, predicted, now));
                let shots = self.targets().into_iter().map(|to| (socket, to)).collect();
                self.fire(node, (method, usize::MAX), shots, &LURE, now);
            }
            Method::Meet if self.controlling() => {
                let predicted = following(ports.0, step, window(node));
                self.search.told = Some(self.send_call(node, predicted, now));
                self.search.stage = Stage::Told { until: now + TOLD };
            }
            Method::Meet => {
                let answer = Message::from(CallMeAck {
                    seq: self.search.predicted.1,
                    candidates: node.endpoints.clone(),
                    nat: node.nat.report(),
                    predicted: following(ports.0, step, window(node)),
                    relays: node.relays.clone(),
                });
                node.events.push_back(Event::Signal {
                    peer: self.id,
                    message: answer,
                });
                self.probe_predicted(node, method, now);
            }
            Method::Guess | Method::Spray | Method::Fan | Method::Cross => {}
        }
    }

    /// Probes the ports that the peer has predicted.
    fn probe_predicted(&mut self, node: &mut Node, method: Method, now: Instant) {
        self.search.stage = Stage::Idle;
        let (Some(ip), Some(first)) = (self.target(), self.search.predicted.0.first().copied())
        else {
            return;
        };
        let step = match self.spec.nat.allocation {
            Allocation::Sequential(step) => step,
            Allocation::Block(..)
            | Allocation::Random
            | Allocation::Preserving
            | Allocation::Unknown => 1,
        };
        let to = |port: u16| SocketAddr::new(ip, port);
        let socket = self.search.sockets.get(1).map(|s| SocketId::Extra(*s));
        let shots: Vec<_> = match (method, socket) {
            (Method::Meet, None) => return,
            // Our n-th probe leaves from our n-th port and goes to the peer's n-th, the peer's likewise.
            // Each port that others took meanwhile moves one of the two lists: one side goes
            // straight on, the other tries all sums of such moves in turn.
            (Method::Meet, Some(socket)) => {
                let count = i32::try_from(window(node)).unwrap_or_default();
                let moves = if self.controlling() { 1 } else { count / 4 };
                (0..count)
                    .map(|index| (socket, to(advance(first, step, index + index % moves))))
                    .collect()
            }
            (_, _) => {
                let told = self.search.predicted.0.iter();
                told.map(|port| (SocketId::Main, to(*port))).collect()
            }
        };
        self.fire(node, (method, usize::MAX), shots, &REPEATS, now);
    }

    /// Probes ports of the peer that were not probed before, in random order.
    fn spray(&mut self, node: &mut Node, now: Instant) {
        let Some(ip) = self.target() else {
            return;
        };
        let range = match self.spec.nat.allocation {
            Allocation::Block(low, high) => (low, high),
            Allocation::Sequential(_)
            | Allocation::Random
            | Allocation::Preserving
            | Allocation::Unknown => (1024, u16::MAX),
        };
        if self.search.ports.0 != range || self.search.ports.1.is_empty() {
            self.search.ports = (range, shuffled(node, range));
        }
        let left = self.search.share.left(Method::Spray, now);
        let kept = self
            .search
            .ports
            .1
            .len()
            .saturating_sub(left.min(PROBES_RANDOM));
        let ports = self.search.ports.1.split_off(kept);
        let shots = ports
            .into_iter()
            .map(|port| (SocketId::Main, SocketAddr::new(ip, port)))
            .collect();
        self.fire(node, (Method::Spray, usize::MAX), shots, &[], now);
    }

    /// Ports of our translator that this search may take.
    fn room(&self, node: &mut Node, now: Instant) -> usize {
        let ports = match (node.nat.report().allocation, node.nat.sharing) {
            (Allocation::Preserving | Allocation::Random | Allocation::Sequential(_), _)
            | (Allocation::Block(..), Sharing::Shared) => return usize::MAX,
            (Allocation::Block(..), Sharing::Unknown | Sharing::Asked | Sharing::Single) => {
                own_block(node).unwrap_or_default() * BLOCK_SHARE / 100
            }
            (Allocation::Unknown, _) if node.nat.is_hard() => BLOCK_LEAST,
            (Allocation::Unknown, _) => return usize::MAX,
        };
        node.searches.room(self.id, ports, now)
    }

    /// Probes the peer's block from all sockets: each probe takes a port of ours and tries one of the peer's.
    fn cross(&mut self, node: &mut Node, sockets: &[u32], now: Instant) {
        let (Some(ip), Allocation::Block(low, high)) = (self.target(), self.spec.nat.allocation)
        else {
            return;
        };
        let ports = shuffled(node, (low, high));
        let mean = (own_block(node).unwrap_or_default() * ports.len()).isqrt();
        let left = self.search.share.left(Method::Cross, now);
        let count = left.min(mean * ROUND_SHARE / 100);
        let bound = self.room(node, now);
        node.searches.occupy(Some(self.id), count.min(bound), now);
        let shots = pairs(sockets, &ports)
            .take(count)
            .map(|(socket, port)| (SocketId::Extra(socket), SocketAddr::new(ip, port)))
            .collect();
        self.fire(node, (Method::Cross, bound), shots, &[], now);
        if self.controlling() {
            // The next round begins with a call when this one's mappings are gone.
            self.calling.at = Some(now + ROUND_EVERY);
        }
    }

    fn fire(
        &mut self,
        node: &mut Node,
        (method, bound): (Method, usize),
        mut shots: Vec<(SocketId, SocketAddr)>,
        again: &[Duration],
        now: Instant,
    ) {
        shots.retain(|(_, to)| node.admission.admits(to));
        self.search.stage = Stage::Probing(Barrage {
            method,
            shots,
            done: 0,
            bound,
            again: again.iter().copied().collect(),
            started: now,
            next: now,
        });
        self.shoot(node, now);
    }

    fn shoot(&mut self, node: &mut Node, now: Instant) {
        let Stage::Probing(mut barrage) = std::mem::take(&mut self.search.stage) else {
            return;
        };
        if barrage.next > now {
            self.search.stage = Stage::Probing(barrage);
            return;
        }
        if barrage.done >= barrage.bound {
            match node.nat.sharing {
                Sharing::Shared => barrage.bound = usize::MAX,
                Sharing::Asked => {
                    node.searches.end(&self.id);
                    barrage.next = now + ASKED;
                    self.search.stage = Stage::Probing(barrage);
                    return;
                }
                Sharing::Unknown | Sharing::Single => barrage.shots.truncate(barrage.bound),
            }
        }
        if !node.searches.begin(self.id) {
            barrage.next = now + BUSY;
            self.search.stage = Stage::Probing(barrage);
            return;
        }
        barrage.next = now + BATCH_EVERY;
        for _ in 0..BATCH {
            let shot = barrage.shots.get(barrage.done).copied();
            let Some(shot) = shot.filter(|_| barrage.done < barrage.bound) else {
                break;
            };
            if !self
                .search
                .share
                .take(&mut node.searches, barrage.method, now)
            {
                break;
            }
            barrage.done += 1;
            self.send_search(node, shot, now);
        }
        if barrage.done >= barrage.shots.len() {
            barrage.done = 0;
            match barrage.again.pop_front() {
                Some(age) => barrage.next = (barrage.started + age).max(barrage.next),
                None => barrage.shots.clear(),
            }
        }
        let over = barrage.shots.is_empty()
            || !self.search.share.is_wanted(now)
            || self.search.share.left(barrage.method, now) == 0;
        if over {
            node.searches.end(&self.id);
            self.search.hold = Some(now + HOLD);
        } else {
            self.search.stage = Stage::Probing(barrage);
        }
    }

    fn send_search(&mut self, node: &mut Node, shot: (SocketId, SocketAddr), now: Instant) {
        let Some(link) = self.current.and_then(|names| self.links.get(&names)) else {
            return;
        };
        node.probe(self.id, link, shot, Purpose::Search, now);
        node.counters.add("search-probes");
        self.probes_sent += 1;
    }

    /// A probe of a search was answered from there.
    pub(crate) fn hit(&mut self, node: &mut Node, address: SocketAddr, now: Instant) {
        let kind = CandidateKind::PeerReflexive;
        if self.learn(node, Candidate { kind, address }, now) {
            node.counters.add("search-hits");
        }
    }

    /// Ends what is under way; what was spent stays spent.
    pub(crate) fn stop_search(&mut self, node: &mut Node) {
        self.search.at = None;
        if matches!(self.search.stage, Stage::Idle) && self.search.sockets.is_empty() {
            return;
        }
        self.forget_samples(node);
        self.search.stage = Stage::Idle;
        self.search.sockets.clear();
        self.search.hold = None;
        self.search.ports = ((0, 0), Vec::new());
        node.searches.end(&self.id);
        self.tidy(node);
    }

    /// The peer is forgotten: gives all sockets back.
    pub(crate) fn close(&mut self, node: &mut Node) {
        self.remotes.clear();
        self.stop_search(node);
        self.tidy(node);
    }

    /// Gives back sockets that nothing needs.
    fn tidy(&mut self, node: &mut Node) {
        if self.search.owned.is_empty() {
            return;
        }
        let mut needed: BTreeSet<u32> = self.search.sockets.iter().copied().collect();
        let lucky = self.remotes.values().filter_map(|remote| remote.local);
        needed.extend(lucky.map(|local| local.socket));
        let idle: Vec<u32> = self.search.owned.difference(&needed).copied().collect();
        for socket in idle {
            node.sockets.release(socket);
            self.search.owned.remove(&socket);
        }
    }

    pub(crate) fn waits_for_samples(&self) -> bool {
        matches!(self.search.stage, Stage::Sampling { .. })
    }

    pub(crate) fn waits_for_sockets(&self) -> bool {
        matches!(self.search.stage, Stage::Opening { .. })
    }

    pub(super) fn search_deadline(&self) -> Option<(Instant, &'static str)> {
        let stage = match &self.search.stage {
            Stage::Idle => None,
            Stage::Opening { until, .. }
            | Stage::Sampling { until, .. }
            | Stage::Told { until } => Some(*until),
            Stage::Probing(barrage) => Some(barrage.next),
        };
        let hold = self.search.hold.filter(|_| !self.search.sockets.is_empty());
        [stage, self.search.at, hold]
            .into_iter()
            .flatten()
            .min()
            .map(|at| (at, "search"))
    }
}

/// Ports known to be in the block that our translator takes them from.
fn own_block(node: &Node) -> Option<usize> {
    let Allocation::Block(low, high) = node.nat.report().allocation else {
        return None;
    };
    Some(usize::from(high - low) + 1)
}

/// Ports both sides try: four times what others may take meanwhile.
fn window(node: &Node) -> usize {
    let age = u32::try_from(PREDICTION_AGE.as_millis()).unwrap_or_default();
    let taken = usize::try_from(node.nat.busy().saturating_mul(age) / 1000).unwrap_or(WINDOW.1);
    taken.saturating_mul(8).clamp(WINDOW_MEET, WINDOW.1)
}

/// All sockets with all ports, each pair once: it is another port of ours. All ports come before one comes again.
fn pairs<'a>(sockets: &'a [u32], ports: &'a [u16]) -> impl Iterator<Item = (u32, u16)> + 'a {
    (0..sockets.len()).flat_map(move |lap| {
        let mut shift = sockets.iter().cycle().skip(lap);
        ports
            .iter()
            .map_while(move |port| Some((*shift.next()?, *port)))
    })
}

fn shuffled(node: &mut Node, (low, high): (u16, u16)) -> Vec<u16> {
    let mut ports: Vec<u16> = (low.max(1024)..=high).collect();
    for index in (1..ports.len()).rev() {
        ports.swap(index, node.below(index + 1));
    }
    ports
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_socket_tries_a_port_twice_before_all_have_tried_it() {
        let sockets: Vec<u32> = (0..8).collect();
        for count in 1..20 {
            let ports: Vec<u16> = (0..count).collect();
            let all: BTreeSet<_> = pairs(&sockets, &ports).collect();
            assert_eq!(all.len(), sockets.len() * ports.len());
            let first = pairs(&sockets, &ports).take(ports.len());
            assert!(first.map(|(_, port)| port).eq(ports.iter().copied()));
        }
    }
}
