//! TURN: what the owner configures and carries, and which peers are tried through it.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mesh_types::plan::{Proxy, TurnLink};
use mesh_types::report::TurnLinkState;
use mesh_types::turn::TurnServer;
use mesh_types::{Now, PeerId, SocketId};

use super::Traversal;
use crate::agent::Need;
use crate::api::{Event, TurnReport};
use crate::turn;

/// A pair that is reached otherwise again keeps its channels for this long, in case it was too soon.
const KEEP: Duration = Duration::from_secs(30);

impl Traversal {
    /// Sets the TURN servers that this node may use, and its name in their credentials.
    pub fn set_turn_servers(&mut self, servers: Vec<TurnServer>, name: &str, now: Now) {
        self.node.turn.set_servers(servers, name, now.mono);
        self.settle(now);
    }

    /// The last run reached nobody but through TURN servers: until UDP is seen to lead anywhere, peers are tried
    /// through them at once.
    pub fn expect_turn(&mut self) {
        self.node.expects_turn = true;
    }

    /// Do all paths lead through TURN servers, or by what these have led to? Nothing without a path.
    pub fn reaches_by_turn_only(&self) -> Option<bool> {
        let connected = !self.standings.connected().is_empty();
        connected.then(|| !self.standings.is_by_udp())
    }

    /// A name of [`Event::TurnResolve`] was looked up.
    pub fn handle_turn_resolved(&mut self, name: &str, addresses: &[SocketAddr], now: Now) {
        self.node.turn.resolved(name, addresses, now.mono);
        self.settle(now);
    }

    /// A link of [`Self::turn_links`] came up or ended.
    pub fn handle_turn_link(&mut self, number: u32, state: &TurnLinkState, now: Now) {
        self.node.turn.link_state(number, state, now);
        self.settle(now);
    }

    /// Connections to TURN servers that are wanted. A number is never used for two.
    pub fn turn_links(&self) -> BTreeSet<TurnLink> {
        self.node.turn.links()
    }

    /// Peers behind TURN servers.
    pub fn proxies(&self) -> BTreeSet<Proxy> {
        self.node.turn.proxies()
    }

    /// The configured TURN servers and how they do, in the order in which they are tried.
    pub fn turn_report(&self) -> Vec<TurnReport> {
        self.node.turn.report()
    }

    /// The address a loopback address of [`Self::proxies`] stands for; any other one itself.
    pub fn real_address(&self, address: SocketAddr) -> SocketAddr {
        self.node.turn.real(address)
    }

    /// Something came from a TURN server.
    pub(super) fn take_from_turn(&mut self, link: u32, bytes: &[u8], now: Now) {
        let retired = self.node.turn.is_retired(link, now.mono);
        let got = self.node.turn.handle(link, bytes, now.mono);
        // A link whose time is over is silent to probes: pairs move away by themselves while it still carries them.
        if let Some((remote, local, content)) = got.filter(|_| !retired) {
            let content = content.to_vec();
            if self.receive(SocketId::Turn(link), local, remote, &content, now) {
                self.node.turn.heard_peer(link, now.mono);
            }
        }
        self.settle(now);
    }

    /// Does all that is due about TURN.
    pub(super) fn run_turn(&mut self, now: Instant) {
        let used = self.used_links();
        self.node.turn.handle_timeout(&used, now);
        let mut pruned = false;
        while let Some(event) = self.node.turn.poll_event() {
            match event {
                turn::Event::Bound { peers, loopback } => {
                    for id in peers {
                        if let Some(agent) = self.agents.get_mut(&id) {
                            agent.turn_bound(&mut self.node, loopback, now);
                            agent.rearm(&mut self.standings);
                        }
                    }
                }
                turn::Event::Lost { server } => {
                    self.node
                        .counters
                        .add(if server { "turn-lost" } else { "tcp-lost" });
                    self.node.nat.unjudged = true;
                    pruned = true;
                }
                turn::Event::Ready => {
                    self.node.counters.add("turn-allocated");
                    self.node.nat.unjudged = true;
                    let lacking = self.agents.iter().filter(|(_, agent)| !agent.has_direct());
                    self.node.meet.extend(lacking.map(|(id, _)| *id));
                }
                turn::Event::Resolve(name) => {
                    self.node.events.push_back(Event::TurnResolve(name));
                }
            }
        }
        if pruned {
            self.prune_turn(now);
        }
        while let Some((link, server, bytes)) = self.node.turn.poll_transmit() {
            self.node.transmit_raw(SocketId::Turn(link), server, bytes);
        }
        if self.node.turn.take_changed() {
            self.node.events.push_back(Event::TurnChanged);
        }
    }

    fn prune_turn(&mut self, now: Instant) {
        for agent in self.agents.values_mut() {
            agent.prune_turn(&mut self.node, now);
            agent.rearm(&mut self.standings);
        }
    }

    fn used_links(&self) -> BTreeSet<u32> {
        self.standings.links()
    }

    /// Sees to it that a peer that needs a server is tried through one.
    pub(super) fn meet_turn(&mut self, id: PeerId, now: Instant) {
        if !self.node.turn.is_configured() {
            return;
        }
        let Some(agent) = self.agents.get_mut(&id) else {
            self.turning.remove(&id);
            self.node.turn.wish(Some(id), BTreeSet::new(), now);
            return;
        };
        let need = agent.turn_need(&self.node);
        let targets = match need {
            Need::From(at) if at > now => {
                self.turning.insert(id, at);
                return;
            }
            Need::From(_) | Need::Yes | Need::Served(_) => {
                self.turning.remove(&id);
                agent.turn_targets(&self.node)
            }
            Need::No | Need::Standby if !self.node.turn.is_wished(&id) => {
                self.turning.remove(&id);
                return;
            }
            Need::No | Need::Standby => {
                let leave = *self.turning.entry(id).or_insert(now + KEEP);
                if leave > now {
                    return;
                }
                self.turning.remove(&id);
                BTreeSet::new()
            }
        };
        let leaving = targets.is_empty();
        self.node.turn.wish(Some(id), targets, now);
        if leaving {
            agent.prune_turn(&mut self.node, now);
            agent.rearm(&mut self.standings);
        }
    }

    /// Peers of which it is time to see whether they are tried through a server.
    pub(super) fn due_turn(&self, now: Instant) -> impl Iterator<Item = PeerId> + '_ {
        let due = self.turning.iter().filter(move |(_, at)| **at <= now);
        due.map(|(id, _)| *id)
    }

    pub(super) fn turn_deadline(&self) -> Option<(Instant, &'static str)> {
        if !self.node.turn.is_configured() {
            return None;
        }
        let own = self.turning.values().min().map(|at| (*at, "turn"));
        let turn = self.node.turn.deadline(&self.used_links());
        own.into_iter().chain(turn).min()
    }
}
