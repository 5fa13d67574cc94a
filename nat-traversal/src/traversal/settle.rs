//! What follows from a change in one part for the others.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use mesh_types::{Candidate, CandidateKind, Now, PeerId};

use super::Traversal;
use crate::agent::PathAgent;
use crate::api::Event;
use crate::budget::Rate;
use crate::hard::sampler::Observer;
use crate::node::Change;

/// Peers asked how they see us, when somebody must know.
const REFRESH_PEERS: usize = 2;
/// Meshes up to this size are looked through in tests, to see that the standings are right.
const CHECKED_MAX: usize = 40;
/// Observers remembered; four are asked, the others stand in for those that do not answer.
const OBSERVERS_MAX: usize = 8;
/// A translator whose mappings never rest must not make us ask for ever.
const REFRESHES: Rate = Rate::every(Duration::from_secs(2), 4);

impl Traversal {
    /// After everything: own candidates, refreshes asked for, the next NAT test, the next wake-up.
    pub(super) fn settle(&mut self, now: Now) {
        self.latest = now.mono;
        let connected = !self.standings.connected().is_empty();
        if connected && !std::mem::replace(&mut self.node.connected, connected) {
            for agent in self.agents.values_mut() {
                agent.neighbour_found(&self.node, now.mono);
                agent.rearm(&mut self.standings);
            }
        }
        self.node.connected = connected;
        self.node.by_udp = self.standings.is_by_udp();
        self.node.searches.peers = self.agents.len();
        if std::mem::take(&mut self.node.refresh) && self.refreshes.take(REFRESHES, now.mono) {
            self.refresh(now.mono);
        }
        self.begin_nat_test(now.mono);
        self.run_nat_test(now.mono);
        let homes = self.run_relays(now);
        self.run_turn(now.mono);
        self.refresh_observers();
        self.count_neighbours();
        self.sampler.run(&mut self.node, now.mono);
        self.run_spare_tests(now.mono);
        if std::mem::take(&mut self.node.samples.news) {
            for agent in self
                .agents
                .values_mut()
                .filter(|agent| agent.waits_for_samples())
            {
                agent.run(&mut self.node, now);
                agent.rearm(&mut self.standings);
            }
        }
        let change = self.node.update_endpoints(now.mono);
        if change != Change::Nothing || homes {
            self.node.events.push_back(Event::EndpointsChanged);
        }
        self.recount |= change != Change::Nothing;
        match change {
            Change::Nothing => {}
            Change::Verdict => {
                for agent in self.agents.values_mut() {
                    agent.verdict_changed(&mut self.node, now.mono);
                    agent.rearm(&mut self.standings);
                }
            }
            Change::Endpoints => {
                for agent in self.agents.values_mut() {
                    agent.endpoints_changed(&mut self.node, now.mono);
                    agent.rearm(&mut self.standings);
                }
            }
        }
        self.tell_sockets();
        debug_assert!(
            self.agents.len() > CHECKED_MAX || self.agents.values().all(PathAgent::is_told),
            "every change of an agent is told"
        );
        let first = self.standings.first();
        let first = first.and_then(|(_, id)| self.agents.get(&id)?.wake());
        self.wake = first
            .into_iter()
            .chain(self.servers.deadline())
            .chain(self.joins.deadline())
            .chain(self.nat_test.deadline())
            .chain(self.relay_deadline())
            .chain(self.turn_deadline())
            .chain(self.sampler.deadline())
            .chain(self.hairpin.deadline())
            .chain(self.lifetime.deadline())
            .chain(self.node.nat.deadline().map(|at| (at, "udp-blocked")))
            .min()
            // What had to wait for something else is due now; it does not mean that the machine slept.
            .map(|(at, why)| (at.max(now.mono), why));
    }

    /// The agents of those with a path.
    fn connected(&self) -> impl Iterator<Item = (&PeerId, &PathAgent)> {
        let ids = self.standings.connected().iter();
        ids.filter_map(|id| self.agents.get_key_value(id))
    }

    pub(super) fn tell_sockets(&mut self) {
        if self.node.sockets.take_changed() {
            self.node.events.push_back(Event::SocketsChanged);
        }
    }

    /// What is tested with sockets of its own.
    fn run_spare_tests(&mut self, now: Instant) {
        if self.hairpin.is_due(now) {
            let observers = self.observers();
            self.hairpin.begin(&mut self.node, &observers, now);
        }
        self.hairpin.run(&mut self.node, now);
        if self.node.connected && self.lifetime.is_due(now) {
            let (observers, open) = (self.observers(), self.node.is_open());
            self.lifetime.begin(&mut self.node, &observers, open, now);
        }
        self.lifetime.run(&mut self.node, now);
        let keepalive = self.lifetime.keepalive();
        if keepalive != self.node.keepalive {
            self.node.keepalive = keepalive;
            self.node.events.push_back(Event::KeepaliveChanged);
            for agent in self.agents.values_mut() {
                agent.hasten(&mut self.node, now);
                agent.rearm(&mut self.standings);
            }
        }
    }

    /// Keeps the observers of samples up to date, where there is something to sample.
    fn refresh_observers(&mut self) {
        if !self.node.nat.is_hard() {
            return;
        }
        let observers = self.observers();
        let addresses: Vec<_> = observers.iter().map(|o| o.address).collect();
        if !self.node.samples.observes_from(&addresses) {
            self.node.samples.set_observers(observers);
        }
    }

    /// Members of one site divide the ports of its translator.
    fn count_neighbours(&mut self) {
        if self.node.nat.is_hard() && std::mem::take(&mut self.recount) {
            let ours: Vec<IpAddr> = external(&self.node.endpoints).collect();
            let near =
                |agent: &&PathAgent| external(agent.announced()).any(|ip| ours.contains(&ip));
            self.node.searches.neighbours = self.agents.values().filter(near).count();
        }
    }

    /// Who can tell how new sockets appear: peers' main ports, STUN servers, peers' alternate ports.
    fn observers(&self) -> Vec<Observer> {
        let peers = self.connected().filter_map(|(id, agent)| {
            let (link, remote, other) = agent.observes()?;
            Some((*id, link, remote, other))
        });
        let peers: Vec<_> = peers.take(OBSERVERS_MAX).collect();
        let servers = self
            .node
            .config
            .stun
            .iter()
            .filter(|server| server.is_ipv4());
        let mains = peers
            .iter()
            .map(|(id, link, remote, _)| (*remote, Some((*id, *link))));
        let others = peers
            .iter()
            .filter_map(|(id, link, _, other)| Some(((*other)?, Some((*id, *link)))));
        mains
            .chain(servers.map(|server| (*server, None)))
            .chain(others)
            .take(OBSERVERS_MAX)
            .map(|(address, peer)| Observer {
                address,
                peer: peer.map(|(id, link)| (id, link.clone())),
                answers: true,
            })
            .collect()
    }

    /// Asks up to two good paths, those heard last, and the servers, how they see us now.
    fn refresh(&mut self, now: Instant) {
        let mut peers: Vec<_> = self
            .connected()
            .filter(|(_, agent)| agent.shows_nat().is_some())
            .map(|(id, agent)| (agent.last_heard(), *id))
            .collect();
        peers.sort();
        for (_, id) in peers.into_iter().rev().take(REFRESH_PEERS) {
            if let Some(agent) = self.agents.get_mut(&id) {
                agent.heartbeat(&mut self.node, now);
                agent.rearm(&mut self.standings);
            }
        }
        self.refresh_ipv4(now);
        self.servers.refresh(now);
    }

    /// Peers without IPv6 find us only by an IPv4 address, which paths of IPv6 do not keep known.
    fn refresh_ipv4(&mut self, now: Instant) {
        let by_ipv4 = |agent: &PathAgent| agent.shows_nat().is_some_and(|remote| remote.is_ipv4());
        if self.connected().any(|(_, agent)| by_ipv4(agent)) {
            return;
        }
        let mut left = REFRESH_PEERS;
        let connected = self.standings.connected().clone();
        for id in connected {
            let Some(agent) = self.agents.get_mut(&id) else {
                continue;
            };
            if left > 0 && agent.ask_ipv4(&mut self.node, now) {
                agent.rearm(&mut self.standings);
                left -= 1;
            }
        }
    }

    fn begin_nat_test(&mut self, now: Instant) {
        if !self.nat_test.is_due(now) {
            return;
        }
        let last = self.nat_test.last();
        let fit = self
            .connected()
            .filter_map(|(id, agent)| Some((*id, agent.shows_nat()?, agent.other()?)))
            .min_by_key(|(id, ..)| Some(*id) == last);
        if let Some((id, remote, other)) = fit {
            let path = self.agents.get(&id).and_then(PathAgent::path);
            let rtt = path.map_or(Duration::MAX, |path| path.rtt);
            self.nat_test.begin(id, (remote, other), rtt, now);
        }
    }

    pub(super) fn run_nat_test(&mut self, now: Instant) {
        while let Some(id) = self.nat_test.wants(now) {
            let link = self.agents.get(&id).and_then(|agent| agent.link());
            self.nat_test.run(&mut self.node, link, now);
        }
    }
}

/// Addresses under which others see who announces these candidates.
fn external(candidates: &[Candidate]) -> impl Iterator<Item = IpAddr> {
    let seen = |candidate: &&Candidate| candidate.kind == CandidateKind::ServerReflexive;
    candidates.iter().filter(seen).map(|seen| seen.address.ip())
}
