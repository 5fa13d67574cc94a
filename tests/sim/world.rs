//! A mesh in one process: real nodes on a simulated internet, in virtual time, from one seed.
//!
//! The world plays the shell: it carries datagrams, applies plans to a model of WireGuard, keeps each
//! node's state on a disk of its own and reports addresses. Whether a pair is connected is decided by
//! packets of its own that cross the mesh, never by what a node says of itself.

mod api;
mod build;
mod cloud;
mod flow;
mod node;
mod noise;
mod relay;
mod stun;
mod turn;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use mesh_types::{IdentitySecret, Now};
use sim_net::{Direction, HostId, LinkId, Network, Random};

pub use api::Api;
pub use build::{Access, Place, Seat};
pub use flow::{Flow, FlowId};
pub use node::{Disk, Node, NodeId, Port};
pub use noise::Noise;

/// Wall clock at the start of every run.
const EPOCH: Duration = Duration::from_secs(1_800_000_000);
/// How often a node may be woken without time passing before it counts as spinning. Datagrams that arrive are not
/// meant: after a mass restart thousands do in one instant.
const SPIN_MAX: u32 = 100;

pub struct World {
    pub net: Network,
    pub start: Instant,
    pub random: Random,
    pub authority: IdentitySecret,
    pub nodes: Vec<Node>,
    pub flows: Vec<Flow>,
    /// Nodes added from now on relay where they can.
    pub relays: bool,
    pub noise: Vec<Noise>,
    stun: BTreeSet<HostId>,
    /// Where there is one.
    pub turn: Option<turn::Turn>,
    /// Where there is one.
    pub api: Option<Api>,
    by_host: BTreeMap<HostId, NodeId>,
    sites: u8,
}

impl World {
    pub fn new(seed: u64) -> Self {
        let start = sim_net::start();
        let mut random = Random::new(seed);
        Self {
            net: Network::new(random.word(), start),
            start,
            authority: IdentitySecret::from_bytes(&random.bytes()),
            random,
            nodes: Vec::new(),
            flows: Vec::new(),
            relays: false,
            noise: Vec::new(),
            stun: BTreeSet::new(),
            turn: None,
            api: None,
            by_host: BTreeMap::new(),
            sites: 0,
        }
    }

    /// Time since the start of the run.
    pub fn elapsed(&self) -> Duration {
        self.net.now() - self.start
    }

    /// Lets time pass.
    pub fn run(&mut self, time: Duration) {
        let end = self.net.now() + time;
        self.run_until(end, |_| false);
    }

    /// Lets time pass until something holds; how long that took, `None` where it did not in that time.
    pub fn wait(&mut self, most: Duration, holds: impl Fn(&Self) -> bool) -> Option<Duration> {
        let (start, end) = (self.net.now(), self.net.now() + most);
        if self.run_until(end, &holds) || holds(self) {
            Some(self.net.now() - start)
        } else {
            None
        }
    }

    fn run_until(&mut self, end: Instant, holds: impl Fn(&Self) -> bool) -> bool {
        loop {
            let wakes = self.nodes.iter().filter_map(|node| node.wake);
            let flows = self.flows.iter().filter_map(|flow| flow.next);
            let noise = self.noise.iter().map(|noise| noise.next);
            let due = wakes
                .chain(flows)
                .chain(noise)
                .chain(self.turn_due())
                .chain(self.api_due())
                .chain(self.net.next_event_at())
                .min()
                .filter(|at| *at <= end);
            let now = self.net.advance_to(due.unwrap_or(end));
            while let Some(delivery) = self.net.poll() {
                if self.stun.contains(&delivery.host) {
                    stun::answer(&mut self.net, &delivery);
                } else if let Some(id) = self.by_host.get(&delivery.host).copied() {
                    let clock = self.clock(id);
                    self.timed(id, |node| node.handle_delivery(&delivery, clock));
                    self.pump(id);
                } else if self.at_turn_host(delivery.host) {
                    self.turn_delivery(&delivery);
                }
            }
            self.run_turn(now);
            self.run_api(now);
            for index in 0..self.nodes.len() {
                if self.nodes[index].wake.is_some_and(|at| at <= now) {
                    let clock = self.clock(NodeId(index));
                    self.timed(NodeId(index), |node| node.handle_timeout(clock));
                    self.pump(NodeId(index));
                    let node = &self.nodes[index];
                    if node.woken_now > SPIN_MAX {
                        panic!(
                            "{} spins at {:?}: {}",
                            node.name,
                            self.elapsed(),
                            node.why()
                        );
                    }
                }
            }
            self.send_flows(now);
            for noise in &mut self.noise {
                noise.send(&mut self.net, now);
            }
            if holds(self) {
                return true;
            }
            if due.is_none() {
                return false;
            }
        }
    }

    /// The clocks of a node.
    pub fn clock(&self, id: NodeId) -> Now {
        Now {
            mono: self.net.now(),
            unix: EPOCH + self.elapsed() + self.nodes[id.0].skew,
        }
    }

    /// Carries what a node wants done until it wants nothing more.
    pub(crate) fn pump(&mut self, id: NodeId) {
        let clock = self.clock(id);
        let outgoing = self.timed(id, |node| node.drain(clock));
        let node = &mut self.nodes[id.0];
        let (host, (gone, fresh)) = (node.host, node.take_ports());
        for port in gone {
            self.net.unbind(host, port);
        }
        for port in fresh {
            self.net.bind(host, port);
        }
        let node = &mut self.nodes[id.0];
        for (port, wanted) in std::mem::take(&mut node.ports) {
            match wanted {
                Port::Open => self.net.bind(host, port),
                Port::Close => self.net.unbind(host, port),
            }
        }
        self.turn_lines(id);
        self.call_api(id);
        let node = &mut self.nodes[id.0];
        for (port, wanted) in std::mem::take(&mut node.turn.ports) {
            match wanted {
                Port::Open => self.net.bind(host, port),
                Port::Close => self.net.unbind(host, port),
            }
        }
        let node = &mut self.nodes[id.0];
        for outgoing in outgoing {
            node.book(&outgoing);
            let (source, destination, ttl, bytes) = outgoing;
            // A host without an address of the family cannot send, as in reality.
            let _ = self.net.send(node.host, source, destination, bytes, ttl);
        }
        node.schedule(clock.mono);
        self.collect_echoes(id);
    }

    /// Lets a node do something, and books the time that it takes where that is wanted: the clock costs as much as
    /// many a packet.
    fn timed<T>(&mut self, id: NodeId, act: impl FnOnce(&mut Node) -> T) -> T {
        let node = &mut self.nodes[id.0];
        let Some(spent) = node.spent else {
            return act(node);
        };
        let since = processor_time();
        let out = act(node);
        node.spent = Some(spent + (processor_time() - since));
        out
    }

    /// What a node says of itself.
    pub fn snapshot(&self, id: NodeId) -> overlay::Snapshot {
        let overlay = self.nodes[id.0].overlay.as_ref();
        overlay.expect("the node is on").snapshot(self.clock(id))
    }

    /// What a node says of one of its peers.
    pub fn shown(&self, id: NodeId, peer: NodeId) -> overlay::PeerSnapshot {
        let name = &self.nodes[peer.0].name;
        let mut peers = self.snapshot(id).peers.into_iter();
        peers
            .find(|shown| shown.name == *name)
            .expect("it is known")
    }

    /// Packets that a node sent.
    pub fn sent(&self, id: NodeId) -> u64 {
        self.links(id)
            .into_iter()
            .map(|link| self.net.counters(link, Direction::Out).packets)
            .sum()
    }

    pub fn links(&self, id: NodeId) -> Vec<LinkId> {
        self.net.links(self.nodes[id.0].host)
    }

    /// Does a flow's marker appear on a node's links? Its taps must be on.
    pub fn carried_for(&self, id: NodeId, flow: FlowId) -> usize {
        let marker = self.flows[flow.0].marker();
        self.links(id)
            .into_iter()
            .flat_map(|link| self.net.tapped(link))
            .filter(|packet| packet.bytes.windows(marker.len()).any(|w| w == marker))
            .count()
    }
}

/// What this thread has taken of the processor.
fn processor_time() -> Duration {
    let clock = nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID;
    clock.now().map(Duration::from).unwrap_or_default()
}
