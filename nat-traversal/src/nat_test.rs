//! Tests of the own NAT with a connected peer's two ports (RFC 5780 4.3 and 4.4).
//!
//! Filtering first: the peer is asked to answer from its alternate port, to which nothing was sent yet.
//! Then mapping: that port is asked how it sees us. From then on whatever comes from there says nothing of
//! filtering: a test that is repeated has the first one's verdict.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mesh_types::{PeerId, SocketId};

use crate::node::{Node, Purpose};
use crate::probe::Link;
use crate::schedule::NAT_TEST;

const TRIES: u8 = 3;
/// Between two tries, least and most: an answer takes a round trip, and no hard translator is met before the
/// last try has brought none.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(300));
/// A translator may let in what was sent to for so long.
const OPEN: Duration = NAT_TEST;
/// Another peer may tell more.
const AGAIN: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Filtering,
    Mapping,
}

/// A test with one peer.
#[derive(Debug)]
struct Running {
    peer: PeerId,
    remote: SocketAddr,
    other: SocketAddr,
    phase: Phase,
    sent: u8,
    retry: Duration,
    next: Instant,
}

/// When to test, and the test under way.
#[derive(Debug, Default)]
pub(crate) struct NatTest {
    running: Option<Running>,
    /// Not before.
    due: Option<Instant>,
    last: Option<PeerId>,
    /// Alternate ports that something was sent to, and when: translators and firewalls let them in.
    opened: BTreeMap<SocketAddr, Instant>,
    /// Was such a port let in before anything was sent to it?
    let_in: Option<bool>,
}

impl NatTest {
    /// Tests afresh in another network, as soon as somebody is connected.
    pub(crate) fn restart(&mut self, now: Instant) {
        *self = Self {
            running: None,
            due: Some(now),
            last: self.last,
            opened: BTreeMap::new(),
            let_in: None,
        };
    }

    /// Tests again in the same network.
    pub(crate) fn repeat(&mut self, now: Instant) {
        self.running = None;
        self.due = Some(now);
    }

    /// May a test begin now? With another peer than the last, where there is a choice.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.running.is_none() && self.due.is_some_and(|due| due <= now)
    }

    pub(crate) fn last(&self) -> Option<PeerId> {
        self.last
    }

    /// Begins with a peer at `remote`, a round trip `rtt` away, whose answers name `other`.
    pub(crate) fn begin(
        &mut self,
        peer: PeerId,
        (remote, other): (SocketAddr, SocketAddr),
        rtt: Duration,
        now: Instant,
    ) {
        self.last = Some(peer);
        self.running = Some(Running {
            peer,
            remote,
            other,
            phase: Phase::Filtering,
            sent: 0,
            retry: rtt.saturating_mul(2).clamp(RETRY.0, RETRY.1),
            next: now,
        });
    }

    /// The peer whose turn it is to be asked.
    pub(crate) fn wants(&self, now: Instant) -> Option<PeerId> {
        self.running
            .as_ref()
            .filter(|running| running.next <= now)
            .map(|running| running.peer)
    }

    /// Asks; `link` is that of [`Self::wants`], `None` where the peer has gone.
    pub(crate) fn run(&mut self, node: &mut Node, link: Option<&Link>, now: Instant) {
        let Some(running) = &mut self.running else {
            return;
        };
        let Some(link) = link else {
            self.finish(node, now);
            return;
        };
        if running.sent == TRIES {
            match running.phase {
                Phase::Filtering => {
                    self.let_in = Some(false);
                    node.nat.other_port_silent();
                    self.next_phase(node, now);
                }
                Phase::Mapping => self.finish(node, now),
            }
            return;
        }
        if running.phase == Phase::Mapping {
            self.opened
                .retain(|_, at| now.saturating_duration_since(*at) < OPEN);
            self.opened.insert(running.other, now);
        }
        running.sent += 1;
        running.next = now + running.retry;
        let (remote, purpose) = match running.phase {
            Phase::Filtering => (running.remote, Purpose::OtherPort),
            Phase::Mapping => (running.other, Purpose::Mapping),
        };
        node.probe(running.peer, link, (SocketId::Main, remote), purpose, now);
    }

    /// An answer to one of these probes came, from the port asked or from another.
    pub(crate) fn answered(
        &mut self,
        node: &mut Node,
        purpose: Purpose,
        from_other: bool,
        now: Instant,
    ) {
        let running = self.running.as_ref();
        let opened = running.and_then(|running| self.opened.get(&running.other));
        let open = opened.is_some_and(|at| now.saturating_duration_since(*at) < OPEN);
        match (purpose, running.map(|running| running.phase)) {
            (Purpose::OtherPort, Some(Phase::Filtering)) => {
                if from_other && !open {
                    self.let_in = Some(true);
                }
                match self.let_in {
                    Some(true) if from_other => node.nat.other_port_answered(),
                    Some(false) if from_other => node.nat.other_port_silent(),
                    Some(_) | None => {}
                }
                self.next_phase(node, now);
            }
            (Purpose::Mapping, Some(Phase::Mapping)) => self.end(NAT_TEST, now),
            (
                Purpose::OtherPort
                | Purpose::Mapping
                | Purpose::Check
                | Purpose::Open(_)
                | Purpose::Doubt
                | Purpose::Ready(_)
                | Purpose::Bind(_)
                | Purpose::Sample(_)
                | Purpose::Elsewhere(_)
                | Purpose::Search
                | Purpose::Mtu(_),
                Some(_) | None,
            ) => {}
        }
    }

    fn next_phase(&mut self, node: &Node, now: Instant) {
        match &mut self.running {
            // Behind a translator the peer does not know its alternate port's outer address.
            Some(running) if running.other.ip() == running.remote.ip() => {
                running.phase = Phase::Mapping;
                running.sent = 0;
                running.next = now;
            }
            Some(_) => self.finish(node, now),
            None => {}
        }
    }

    fn finish(&mut self, node: &Node, now: Instant) {
        let wait = if node.nat.wants_tests() {
            AGAIN
        } else {
            NAT_TEST
        };
        self.end(wait, now);
    }

    fn end(&mut self, wait: Duration, now: Instant) {
        self.running = None;
        self.due = Some(now + wait);
    }

    pub(crate) fn deadline(&self) -> Option<(Instant, &'static str)> {
        self.running
            .as_ref()
            .map(|running| (running.next, "nat-test"))
    }
}
