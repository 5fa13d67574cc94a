//! Samples: under which external port does a socket that was never used before appear?
//!
//! Whoever sees this node from outside is an [`Observer`]: connected peers at public addresses, on both
//! their ports, and STUN servers. A sample to a peer is a probe with empty DATA: it is answered like any
//! other, and is no path.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use mesh_types::{Allocation, Mapping, PeerId, SocketId};

use super::{
    SAMPLE_AGAIN, SAMPLE_DESTINATIONS, SAMPLE_PATIENCE, SAMPLE_RETRY, SAMPLE_SPACING, SAMPLES,
    SHARING_BURST, SHARING_LEAST, SHARING_PAIRS, SHARING_SPACING, allocator,
};
use crate::nat_kind::Sharing;
use crate::node::{Node, Purpose};
use crate::probe::Link;
use crate::stun::{Class, Outgoing};

/// Sockets that must each show one port to all, before that is believed against what was seen earlier.
const INDEPENDENT: usize = 3;
/// Samples whose answers are waited for, of all that ask.
const WAITING_MAX: usize = 512;

/// Somebody who tells how he sees us.
#[derive(Debug, Clone)]
pub(crate) struct Observer {
    pub(crate) address: SocketAddr,
    /// Whose address it is; `None` is a STUN server.
    pub(crate) peer: Option<(PeerId, Link)>,
    /// It has answered a sample, or has not been asked.
    pub(crate) answers: bool,
}

/// A sample under way.
#[derive(Debug, Clone, Copy)]
struct Waiting {
    /// Of a request to a STUN server, and where it went.
    server: Option<([u8; 12], SocketAddr)>,
    mapped: Option<SocketAddr>,
}

/// Observers and samples of a node.
#[derive(Debug, Default)]
pub(crate) struct Samples {
    observers: Vec<Observer>,
    waiting: BTreeMap<u64, Waiting>,
    next: u64,
    /// An answer has come that nobody has looked at.
    pub(crate) news: bool,
}

impl Samples {
    /// Who can be asked now, the best first. What is known of them stays known.
    pub(crate) fn set_observers(&mut self, mut observers: Vec<Observer>) {
        for observer in &mut observers {
            observer.answers = self
                .observers
                .iter()
                .find(|known| known.address == observer.address)
                .is_none_or(|known| known.answers);
        }
        self.observers = observers;
    }

    /// Are the observers these already?
    pub(crate) fn observes_from(&self, addresses: &[SocketAddr]) -> bool {
        self.observers.len() == addresses.len()
            && self
                .observers
                .iter()
                .zip(addresses)
                .all(|(o, a)| o.address == *a)
    }

    /// Those that answer, as far as is known.
    fn usable(&self, limit: usize) -> Vec<SocketAddr> {
        let usable = self.observers.iter().filter(|observer| observer.answers);
        usable.map(|o| o.address).take(limit).collect()
    }

    /// A peer has answered.
    pub(crate) fn answered(&mut self, token: u64, mapped: SocketAddr) {
        if let Some(waiting) = self.waiting.get_mut(&token) {
            waiting.mapped = Some(mapped);
            self.news = true;
        }
    }

    /// The sample that a STUN server's answer belongs to.
    pub(crate) fn of_server(&self, transaction: [u8; 12], remote: SocketAddr) -> Option<u64> {
        self.waiting
            .iter()
            .find(|(_, waiting)| waiting.server == Some((transaction, remote)))
            .map(|(token, _)| *token)
    }

    /// The external port that a sample has shown.
    pub(crate) fn port(&self, token: u64) -> Option<u16> {
        Some(self.mapped(token)?.port())
    }

    /// The external address that a sample has shown.
    pub(crate) fn mapped(&self, token: u64) -> Option<SocketAddr> {
        self.waiting.get(&token)?.mapped
    }

    /// Nobody waits for it any longer.
    pub(crate) fn forget(&mut self, token: u64) {
        self.waiting.remove(&token);
    }
}

impl Node {
    /// Asks an observer how it sees a socket; `None` where there is nobody to ask.
    pub(crate) fn sample(&mut self, socket: u32, now: Instant) -> Option<u64> {
        let observer = self.samples.usable(1).first().copied()?;
        self.sample_at(socket, observer, now)
    }

    fn sample_at(&mut self, socket: u32, address: SocketAddr, now: Instant) -> Option<u64> {
        let mut observers = self.samples.observers.iter();
        let observer = observers.find(|observer| observer.address == address)?;
        self.sample_by(socket, &observer.clone(), now)
    }

    /// Asks this observer how it sees a socket; `None` where too many are asked already.
    pub(crate) fn sample_by(
        &mut self,
        socket: u32,
        observer: &Observer,
        now: Instant,
    ) -> Option<u64> {
        if self.samples.waiting.len() >= WAITING_MAX {
            return None;
        }
        let token = self.samples.next;
        self.samples.next += 1;
        let socket = SocketId::Extra(socket);
        self.counters.add("samples-sent");
        let server = if let Some((peer, link)) = &observer.peer {
            self.probe(
                *peer,
                link,
                (socket, observer.address),
                Purpose::Sample(token),
                now,
            );
            None
        } else {
            let transaction = self.random();
            let bytes = Outgoing {
                transaction,
                ..Outgoing::default()
            }
            .encode(Class::Request);
            self.transmit(socket, None, observer.address, bytes);
            Some((transaction, observer.address))
        };
        let waiting = Waiting {
            server,
            mapped: None,
        };
        self.samples.waiting.insert(token, waiting);
        Some(token)
    }
}

/// Learns how the own translator chooses ports.
#[derive(Debug, Default)]
pub(crate) struct Sampler {
    running: Option<Run>,
    /// Not before.
    due: Option<Instant>,
    /// Samplings in a row that had too few answers.
    failures: u32,
}

#[derive(Debug)]
struct Run {
    sockets: Vec<u32>,
    /// What is still to be asked, the next one last.
    open: Vec<(u32, SocketAddr)>,
    /// Samples by the order in which they were asked for, and of whom.
    asked: Vec<(u64, u32, SocketAddr)>,
    started: Option<Instant>,
    next: Instant,
    /// The block is known; are its ports shared?
    sharing: bool,
    /// So many more follow each other at [`SAMPLE_SPACING`], the others at this.
    burst: usize,
    spacing: Duration,
}

impl Run {
    /// Have two sockets shown one port? Where one socket has, its port may be the same for all of an address.
    fn shows_sharing(&self, node: &Node) -> bool {
        let mut seen = BTreeMap::new();
        self.asked.iter().any(|(token, socket, _)| {
            let mapped = node.samples.mapped(*token);
            let first = mapped.map(|mapped| *seen.entry(mapped).or_insert(*socket));
            first.is_some_and(|first| first != *socket)
        })
    }

    /// Did each of several sockets show one port to all who looked? From several addresses; those at one address do
    /// where it is they who do not agree about the main socket.
    fn is_independent(&self, node: &Node) -> bool {
        let mut seen: BTreeMap<u32, (BTreeSet<SocketAddr>, BTreeSet<u16>)> = BTreeMap::new();
        for (token, socket, observer) in &self.asked {
            if let Some(port) = node.samples.port(*token) {
                let (observers, ports) = seen.entry(*socket).or_default();
                observers.insert(*observer);
                ports.insert(port);
            }
        }
        let several = seen.values().filter(|(observers, _)| {
            let addresses: BTreeSet<IpAddr> = observers.iter().map(SocketAddr::ip).collect();
            addresses.len() > 1 || node.nat.torn && observers.len() > 1
        });
        several.count() >= INDEPENDENT && seen.values().all(|(_, ports)| ports.len() == 1)
    }
}

impl Sampler {
    /// Learns afresh.
    pub(crate) fn restart(&mut self, node: &mut Node) {
        self.stop(node);
        self.due = None;
        self.failures = 0;
    }

    fn stop(&mut self, node: &mut Node) {
        if let Some(run) = self.running.take() {
            run.sockets
                .iter()
                .for_each(|socket| node.sockets.release(*socket));
            run.asked
                .iter()
                .for_each(|(token, ..)| node.samples.forget(*token));
            if node.nat.sharing == Sharing::Asked {
                node.nat.sharing = Sharing::Unknown;
            }
        }
    }

    /// Begins, asks the next, or judges.
    pub(crate) fn run(&mut self, node: &mut Node, now: Instant) {
        if self.running.is_none() {
            self.begin(node, now);
        }
        let Some(run) = &mut self.running else {
            // Whatever is missing tells by itself when it is there.
            self.due.take_if(|due| *due <= now);
            return;
        };
        if !node.sockets.are_open(&run.sockets) {
            if run.next <= now {
                // The host does not open them.
                let retry = !run.sharing;
                self.stop(node);
                if retry {
                    self.retry(now);
                }
            }
            return;
        }
        if run.sharing && run.shows_sharing(node) {
            self.learnt(node, Sharing::Shared);
            return;
        }
        let complete = run.open.is_empty()
            && run
                .asked
                .iter()
                .all(|(token, ..)| node.samples.port(*token).is_some());
        if run.started.is_none() {
            run.started = Some(now);
            run.next = now;
        }
        if !complete && run.next > now {
            return;
        }
        if let Some((socket, observer)) = run.open.pop() {
            if let Some(token) = node.sample_at(socket, observer, now) {
                run.asked.push((token, socket, observer));
                node.searches.occupy(None, run.asked.len(), now);
            }
            let last = run.open.is_empty();
            let swift = run.burst > 0;
            run.burst = run.burst.saturating_sub(1);
            run.next = now
                + match (last, swift) {
                    (true, _) => SAMPLE_PATIENCE,
                    (false, true) => SAMPLE_SPACING,
                    (false, false) => run.spacing,
                };
        } else if run.sharing {
            let answered = run.asked.iter();
            let answered = answered.filter(|(token, ..)| node.samples.port(*token).is_some());
            let enough = answered.count() * 100 >= run.asked.len() * SHARING_LEAST;
            let single = if enough {
                Sharing::Single
            } else {
                Sharing::Unknown
            };
            self.learnt(node, single);
        } else {
            self.judge(node, now);
        }
    }

    fn begin(&mut self, node: &mut Node, now: Instant) {
        let wanted = match node.nat.report().mapping {
            Mapping::AddressAndPortDependent => self.due.is_none_or(|due| due <= now),
            // One port an address: the allocator shows only over many addresses, and nothing follows from it.
            Mapping::AddressDependent | Mapping::EndpointIndependent | Mapping::Unknown => false,
        };
        if !wanted {
            return;
        }
        let observers = node.samples.usable(SAMPLE_DESTINATIONS);
        if observers.is_empty() {
            // Perhaps those that were silent answer the next time.
            node.samples
                .observers
                .iter_mut()
                .for_each(|observer| observer.answers = true);
            return;
        }
        let count = SAMPLES.div_ceil(observers.len());
        let Some(sockets) = node.sockets.request(count) else {
            return;
        };
        let mut open: Vec<_> = sockets
            .iter()
            .flat_map(|socket| observers.iter().map(|observer| (*socket, *observer)))
            .take(SAMPLES)
            .collect();
        open.reverse();
        self.running = Some(Run {
            sockets,
            open,
            asked: Vec::new(),
            started: None,
            next: now + SAMPLE_RETRY.1,
            sharing: false,
            burst: SAMPLES,
            spacing: SAMPLE_SPACING,
        });
    }

    /// After the verdict: asks on until two ports are the same, or chance would have made two the same. False where
    /// that is known, or cannot be known.
    fn asks_on(&mut self, node: &mut Node, verdict: Allocation, now: Instant) -> bool {
        let observers = node.samples.usable(SAMPLE_DESTINATIONS);
        let (Allocation::Block(low, high), Sharing::Unknown, Some(run)) =
            (verdict, node.nat.sharing, &mut self.running)
        else {
            return false;
        };
        let same = |a: &SocketAddr| observers.iter().filter(|b| b.ip() == a.ip()).count();
        let Some(most) = observers.iter().map(same).max() else {
            return false;
        };
        let ports = usize::from(high - low) + 1;
        let Some(count) = sharing_samples(ports, observers.len()) else {
            return false;
        };
        let count = count.saturating_sub(run.asked.len());
        let Some(sockets) = node.sockets.request(count.div_ceil(observers.len())) else {
            return false;
        };
        let pairs = sockets
            .iter()
            .flat_map(|socket| observers.iter().map(|observer| (*socket, *observer)));
        run.open = pairs.take(count).collect();
        run.open.reverse();
        run.sockets.extend(&sockets);
        run.started = None;
        run.next = now + SAMPLE_RETRY.1;
        run.sharing = true;
        run.burst = SHARING_BURST * observers.len() / most;
        run.spacing = SHARING_SPACING * u32::try_from(most).unwrap_or(1)
            / u32::try_from(observers.len()).unwrap_or(1);
        node.nat.sharing = Sharing::Asked;
        true
    }

    fn learnt(&mut self, node: &mut Node, sharing: Sharing) {
        node.nat.sharing = sharing;
        let name = match sharing {
            Sharing::Shared => "blocks-shared",
            Sharing::Single => "blocks-not-shared",
            Sharing::Asked | Sharing::Unknown => "blocks-unknown",
        };
        node.counters.add(name);
        self.stop(node);
    }

    fn judge(&mut self, node: &mut Node, now: Instant) {
        let Some(run) = &self.running else {
            return;
        };
        let port = |token: &u64| node.samples.port(*token);
        let ports: Vec<u16> = run
            .asked
            .iter()
            .filter_map(|(token, ..)| port(token))
            .collect();
        let answered = |observer: SocketAddr| {
            let mut of_it = run.asked.iter().filter(|(.., asked)| *asked == observer);
            of_it.any(|(token, ..)| port(token).is_some())
        };
        let silent: Vec<SocketAddr> = run
            .asked
            .iter()
            .map(|(.., observer)| *observer)
            .filter(|observer| !answered(*observer))
            .collect();
        if run.is_independent(node) {
            node.nat.sampled_as_independent(now);
            self.stop(node);
            self.due = None;
            return;
        }
        let verdict = allocator::judge(&ports);
        let taken = match verdict {
            Allocation::Sequential(step) => allocator::taken_by_others(&ports, step),
            Allocation::Block(..)
            | Allocation::Random
            | Allocation::Unknown
            | Allocation::Preserving => 0,
        };
        let took = SAMPLE_SPACING.as_millis() * run.asked.len().max(1) as u128;
        let busy = u32::try_from(taken as u128 * 1000 / took).unwrap_or(u32::MAX);
        for observer in &mut node.samples.observers {
            observer.answers &= !silent.contains(&observer.address);
        }
        node.nat.sampled(verdict, busy);
        node.counters.add("allocator-verdicts");
        if verdict == Allocation::Unknown {
            self.retry(now);
        } else {
            self.failures = 0;
            self.due = Some(now + SAMPLE_AGAIN);
        }
        if !self.asks_on(node, verdict, now) {
            self.stop(node);
        }
    }

    fn retry(&mut self, now: Instant) {
        let wait = SAMPLE_RETRY.0 * 2_u32.saturating_pow(self.failures);
        self.due = Some(now + wait.min(SAMPLE_RETRY.1));
        self.failures = self.failures.saturating_add(1).min(8);
    }

    pub(crate) fn deadline(&self) -> Option<(Instant, &'static str)> {
        let next = self.running.as_ref().map(|run| run.next);
        Some((next.or(self.due)?, "samples"))
    }
}

/// Samples that show whether so many ports are shared. `None`: one observer sees a port of each socket once.
fn sharing_samples(ports: usize, observers: usize) -> Option<usize> {
    // Of n samples, n * n / 2 pairs, one in so many as there are observers is at one and the same.
    let samples = 2 * ports * SHARING_PAIRS * observers;
    Some(samples.checked_div(observers.checked_sub(1)?)?.isqrt())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Config;
    use crate::flood::Flood;
    use crate::instant::start;
    use crate::nat_kind::Witness;

    fn server(n: u8) -> Observer {
        Observer {
            address: SocketAddr::from(([192, 0, 2, n], 3478)),
            peer: None,
            answers: true,
        }
    }

    #[test]
    fn sharing_shows_at_several_observers_only_and_the_sooner_the_more_there_are() {
        assert_eq!(sharing_samples(2048, 0), None);
        assert_eq!(sharing_samples(2048, 1), None);
        assert_eq!(sharing_samples(2048, 2), Some(221));
        assert_eq!(sharing_samples(2048, 8), Some(167));
    }

    #[test]
    fn observers_that_change_places_during_a_run_are_not_taken_for_one_another() {
        let now = start();
        let mut node = Node::new(Config::default(), 1, [0; 32], now);
        node.samples.set_observers(vec![server(1), server(2)]);
        let sockets = node.sockets.request(1).unwrap();
        let open = node.sockets.wanted().collect();
        node.sockets.opened(&open);
        let socket = sockets[0];
        let mut usable = node.samples.usable(2);
        let (first, second) = (usable.remove(0), usable.remove(0));
        let mut sampler = Sampler {
            running: Some(Run {
                sockets,
                open: vec![(socket, second), (socket, first)],
                asked: Vec::new(),
                started: None,
                next: now,
                sharing: false,
                burst: 2,
                spacing: SAMPLE_SPACING,
            }),
            ..Sampler::default()
        };
        sampler.run(&mut node, now);
        node.samples.answered(0, server(9).address);
        node.samples.set_observers(vec![server(2), server(1)]);
        for wait in [SAMPLE_SPACING, SAMPLE_PATIENCE] {
            let (at, _) = sampler.deadline().unwrap();
            assert!(at <= now + SAMPLE_SPACING + wait);
            sampler.run(&mut node, at);
        }
        let asked: Vec<_> = node.transmits.iter().map(|t| t.destination).collect();
        assert_eq!(asked, [server(1).address, server(2).address]);
        let answers: Vec<_> = node.samples.observers.iter().map(|o| o.answers).collect();
        assert_eq!(answers, [false, true], "the second was silent");
    }

    #[test]
    fn only_observers_at_several_addresses_show_that_mappings_are_independent() {
        let now = start();
        let other_port = |mut observer: Observer| {
            observer.address.set_port(3479);
            observer
        };
        for (second, torn, independent) in [
            (other_port(server(1)), false, false),
            (other_port(server(1)), true, true),
            (server(2), false, true),
        ] {
            let mut node = Node::new(Config::default(), 1, [0; 32], now);
            node.nat.torn = torn;
            node.samples.set_observers(vec![server(1), second]);
            let sockets = node.sockets.request(INDEPENDENT).unwrap();
            let open = node.sockets.wanted().collect();
            node.sockets.opened(&open);
            let mut asked = Vec::new();
            for (socket, port) in sockets.iter().zip(1024..) {
                for observer in node.samples.usable(2) {
                    let token = node.sample_at(*socket, observer, now).unwrap();
                    node.samples
                        .answered(token, SocketAddr::from(([203, 0, 113, 1], port)));
                    asked.push((token, *socket, observer));
                }
            }
            let run = Run {
                sockets,
                open: Vec::new(),
                asked,
                started: None,
                next: now,
                sharing: false,
                burst: 2,
                spacing: SAMPLE_SPACING,
            };
            assert_eq!(run.is_independent(&node), independent);
        }
    }

    /// Samples a translator to the end; `port` is given the node, the socket and the destination, and may lose the
    /// answer. What is learnt, and when each observer was asked.
    fn learn(
        seed: u8,
        observers: Vec<Observer>,
        mut port: impl FnMut(&mut Node, SocketId, SocketAddr) -> Option<u16>,
    ) -> (Sharing, Vec<(Instant, SocketAddr)>) {
        let mut now = start();
        let mut node = Node::new(Config::default(), 1, [seed; 32], now);
        for last in [1, 2] {
            let seen = SocketAddr::from(([203, 0, 113, 1], 40_000 + last));
            let by = SocketAddr::from(([192, 0, 2, 1], 3477 + last));
            node.nat.observe(by, seen, Witness::Peer, now);
        }
        node.nat.judge(&[], 22000, now);
        node.samples.set_observers(observers);
        let (mut sampler, mut asked) = (Sampler::default(), Vec::new());
        let mut tokens = 0;
        for _ in 0..1000 {
            let wanted = node.sockets.wanted().collect();
            node.sockets.opened(&wanted);
            sampler.run(&mut node, now);
            while let Some(sent) = node.transmits.pop_front() {
                asked.push((now, sent.destination));
                if let Some(port) = port(&mut node, sent.socket, sent.destination) {
                    let mapped = SocketAddr::from(([203, 0, 113, 1], port));
                    node.samples.answered(tokens, mapped);
                }
                tokens += 1;
            }
            if sampler.running.is_none() {
                break;
            }
            now = sampler.deadline().map_or(now, |(at, _)| at.max(now));
        }
        assert!(sampler.running.is_none(), "it ends");
        assert_eq!(node.sockets.wanted().count(), 0, "all are given back");
        (node.nat.sharing, asked)
    }

    /// One observer at both its ports.
    fn pair() -> Vec<Observer> {
        let mut other = server(1);
        other.address.set_port(3479);
        vec![server(1), other]
    }

    /// A port of a block that nobody has.
    fn single(node: &mut Node, taken: &mut Vec<u16>) -> u16 {
        loop {
            let port = 40_000 + u16::try_from(node.below(2048)).unwrap();
            if !taken.contains(&port) {
                taken.push(port);
                return port;
            }
        }
    }

    #[test]
    fn shared_ports_of_a_block_are_told_from_single_ones() {
        let random =
            |node: &mut Node, _, _| Some(40_000 + u16::try_from(node.below(2048)).unwrap());
        let told = (0..100).map(|seed| learn(seed, pair(), random).0);
        assert!(told.filter(|told| *told == Sharing::Shared).count() >= 98);
        for seed in 0..20 {
            let mut taken = Vec::new();
            let told = learn(seed, pair(), |node, _, _| Some(single(node, &mut taken))).0;
            assert_eq!(told, Sharing::Single, "seed {seed}");
        }
    }

    #[test]
    fn one_port_for_both_of_an_observer_is_no_shared_one() {
        let (mut taken, mut of) = (Vec::new(), BTreeMap::new());
        let observers = pair().into_iter().chain([server(2)]).collect();
        let (told, asked) = learn(1, observers, |node, socket, to| {
            Some(
                *of.entry((socket, to.ip()))
                    .or_insert_with(|| single(node, &mut taken)),
            )
        });
        assert_eq!((told, asked.len() > 120), (Sharing::Single, true));
    }

    #[test]
    fn ports_are_not_taken_for_single_ones_where_answers_are_lost() {
        let (mut taken, mut count) = (Vec::new(), 0);
        let told = learn(1, pair(), |node, _, _| {
            count += 1;
            (count <= SAMPLES || count % 2 == 0).then(|| single(node, &mut taken))
        });
        assert_eq!(told.0, Sharing::Unknown);
    }

    #[test]
    fn no_observer_is_asked_more_often_than_it_looks_at_a_stranger() {
        let all: Vec<_> = pair().into_iter().chain([server(2), server(3)]).collect();
        for observers in [pair(), all] {
            let mut floods: BTreeMap<_, _> = BTreeMap::new();
            let mut taken = Vec::new();
            let (_, asked) = learn(1, observers, |node, _, _| Some(single(node, &mut taken)));
            assert!(asked.len() > 120, "{}", asked.len());
            for (at, to) in asked {
                let flood = floods.entry(to.ip()).or_insert_with(|| Flood::new(7));
                assert!(flood.admits([203, 0, 113, 1].into(), at), "{to}");
            }
        }
    }
}
