//! Does the own translator let hosts behind it reach each other by its external addresses (RFC 5780 4.5)?
//!
//! A spare socket is seen from outside first. Then it and the main port knock at each other's external
//! addresses, both at once as two nodes would: a translator that filters lets in only whom was sent to.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mesh_types::{Mapping, SocketId};

use crate::api::Hairpin;
use crate::budget::Stake;
use crate::hard::SAMPLE_RETRY;
use crate::hard::sampler::Observer;
use crate::node::Node;
use crate::schedule::NAT_TEST;
use crate::stun::{Class, Outgoing};

/// Of the question to the observer, and of the knocks.
const TRIES: u8 = 3;
/// Between two of them: the first need a round trip, the second none that leaves the site.
const RETRY: Duration = Duration::from_millis(250);
/// After a test that told nothing.
const AGAIN: Duration = Duration::from_secs(30);

const UNSEEN: &str = "nobody has told yet under which address this node is seen";
const UNCLEAR: &str =
    "how the NAT maps is not known yet: too few peers or STUN servers have answered";
const HARD: &str =
    "the NAT gives each destination another port, so no address of this node could be tried";
const ALONE: &str =
    "no peer that strangers can reach, and no STUN server, can tell how a spare socket is seen";
const SILENT: &str = "nobody told how a spare socket is seen";
const POOL: &str = "the NAT shows a spare socket under another address";
const SOCKETS: &str = "the host opened no spare socket";
const OWN: &str = "no NAT is there: this node is seen under an address of its own";
const CAME: &str = "a packet of this node to its own public address came back";
const LOST: &str = "no packet of this node to its own public address came back";

#[derive(Debug)]
enum Phase {
    Opening,
    /// Questions asked.
    Sampling(Vec<u64>),
    /// Where the spare socket is seen.
    Knocking(SocketAddr),
}

#[derive(Debug)]
struct Run {
    observer: Observer,
    socket: u32,
    /// Where the main port is seen.
    own: SocketAddr,
    /// Of all knocks.
    transaction: [u8; 12],
    phase: Phase,
    sent: u8,
    next: Instant,
}

/// When to test, the test under way, and what came of the last.
#[derive(Debug)]
pub(crate) struct HairpinTest {
    verdict: Hairpin,
    due: Instant,
    turn: usize,
    running: Option<Run>,
}

impl HairpinTest {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            verdict: Hairpin::Unknown(UNSEEN),
            due: now,
            turn: 0,
            running: None,
        }
    }

    pub(crate) fn verdict(&self) -> Hairpin {
        self.verdict
    }

    /// Tests afresh, unless it is under way. What is known stays known until then, unless the host has moved.
    pub(crate) fn restart(&mut self, node: &mut Node, moved: bool, now: Instant) {
        if self.running.is_some() && !moved {
            return;
        }
        self.stop(node);
        self.due = now;
        if moved {
            self.verdict = Hairpin::Unknown(UNSEEN);
        }
    }

    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.running.is_none() && self.due <= now
    }

    /// Begins where everything needed is known; `observers` are those who can tell how a new socket is seen.
    pub(crate) fn begin(&mut self, node: &mut Node, observers: &[Observer], now: Instant) {
        let servers = node.config.stun.len();
        let own = node
            .nat
            .reflexive(servers)
            .into_iter()
            .find(SocketAddr::is_ipv4);
        let Some(own) = own.filter(|own| node.admission.admits(own)) else {
            return self.cannot(UNSEEN);
        };
        if own.port() == node.config.listen_port && node.hosts.iter().any(|h| h.ip == own.ip()) {
            self.verdict = Hairpin::Yes(OWN);
            self.due = now + NAT_TEST;
            return;
        }
        match node.nat.report().mapping {
            Mapping::EndpointIndependent => {}
            Mapping::Unknown => return self.cannot(UNCLEAR),
            Mapping::AddressDependent | Mapping::AddressAndPortDependent => {
                return self.cannot(HARD);
            }
        }
        let Some(observer) = observers.get(self.turn % observers.len().max(1)) else {
            return self.cannot(ALONE);
        };
        let Some(socket) = node.sockets.request(1).and_then(|new| new.first().copied()) else {
            return self.cannot(SOCKETS);
        };
        self.running = Some(Run {
            observer: observer.clone(),
            socket,
            own,
            transaction: node.random(),
            phase: Phase::Opening,
            sent: 0,
            next: now + SAMPLE_RETRY.1,
        });
    }

    /// Why there is no test now. What an earlier one has told still stands.
    fn cannot(&mut self, why: &'static str) {
        if let Hairpin::Unknown(_) = self.verdict {
            self.verdict = Hairpin::Unknown(why);
        }
    }

    pub(crate) fn run(&mut self, node: &mut Node, now: Instant) {
        while let Some(run) = &mut self.running {
            match &mut run.phase {
                Phase::Opening if node.sockets.are_open(&[run.socket]) => {
                    run.phase = Phase::Sampling(Vec::new());
                    run.next = now;
                }
                Phase::Opening if run.next <= now => {
                    return self.finish(node, Hairpin::Unknown(SOCKETS), now);
                }
                Phase::Opening => return,
                Phase::Sampling(tokens) => {
                    let mut seen = tokens
                        .iter()
                        .filter_map(|token| node.samples.mapped(*token));
                    if let Some(outside) = seen.next() {
                        if outside.ip() != run.own.ip() || !node.admission.admits(&outside) {
                            return self.finish(node, Hairpin::Unknown(POOL), now);
                        }
                        tokens.iter().for_each(|token| node.samples.forget(*token));
                        run.phase = Phase::Knocking(outside);
                        run.sent = 0;
                        run.next = now;
                    } else if run.next > now {
                        return;
                    } else if run.sent == TRIES {
                        return self.finish(node, Hairpin::Unknown(SILENT), now);
                    } else {
                        run.sent += 1;
                        run.next = now + RETRY * u32::from(run.sent);
                        tokens.extend(node.sample_by(run.socket, &run.observer, now));
                    }
                }
                Phase::Knocking(_) if run.next > now => return,
                Phase::Knocking(_) if run.sent == TRIES => {
                    return self.finish(node, Hairpin::No(LOST), now);
                }
                Phase::Knocking(outside) => {
                    run.sent += 1;
                    run.next = now + RETRY;
                    let request = Outgoing {
                        transaction: run.transaction,
                        ..Outgoing::default()
                    };
                    let spare = SocketId::Extra(run.socket);
                    for (socket, to) in [(SocketId::Main, *outside), (spare, run.own)] {
                        if node.budget.take(to.ip(), Stake::Search, now) {
                            node.transmit(socket, None, to, request.encode(Class::Request));
                        }
                    }
                }
            }
        }
    }

    /// A request came: is it a knock of our own?
    pub(crate) fn heard(&mut self, node: &mut Node, transaction: [u8; 12], now: Instant) -> bool {
        let own = self
            .running
            .as_ref()
            .is_some_and(|run| run.transaction == transaction);
        if own {
            self.finish(node, Hairpin::Yes(CAME), now);
        }
        own
    }

    fn finish(&mut self, node: &mut Node, verdict: Hairpin, now: Instant) {
        self.stop(node);
        self.turn += 1;
        node.counters.add("hairpin-tests");
        match verdict {
            Hairpin::Unknown(why) => {
                self.cannot(why);
                self.due = now + AGAIN;
            }
            Hairpin::Yes(_) | Hairpin::No(_) => {
                self.verdict = verdict;
                self.due = now + NAT_TEST;
            }
        }
    }

    fn stop(&mut self, node: &mut Node) {
        if let Some(run) = self.running.take() {
            node.sockets.release(run.socket);
            if let Phase::Sampling(tokens) = run.phase {
                tokens.iter().for_each(|token| node.samples.forget(*token));
            }
        }
    }

    pub(crate) fn deadline(&self) -> Option<(Instant, &'static str)> {
        let run = self.running.as_ref()?;
        Some((run.next, "hairpin-test"))
    }
}
