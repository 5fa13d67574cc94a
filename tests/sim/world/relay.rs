//! What a host does for pairs that are relayed through it: the plan's `relay_pairs` and `aliases` carried out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use mesh_types::plan::RelayPair;
use mesh_types::report::Backend;
use mesh_types::{HostPlan, SocketId};

use super::node::Outgoing;

/// What may exceed a pair's rate at once, bytes.
const BURST: f64 = 65_536.0;

#[derive(Default)]
pub struct Relay {
    pairs: BTreeSet<RelayPair>,
    aliases: BTreeMap<SocketAddr, SocketAddr>,
    ports: BTreeSet<u16>,
    /// What the host has bound.
    bound: BTreeSet<u16>,
    /// Bytes left of each pair, and when that was counted.
    left: BTreeMap<RelayPair, (f64, Instant)>,
    /// The same of each node, by its port.
    nodes: BTreeMap<u16, (f64, Instant)>,
    out: Vec<Outgoing>,
    /// Bytes of data that were forwarded, those that exceeded a rate, datagrams from anybody else.
    pub forwarded: u64,
    /// Datagrams that were forwarded, probes included.
    pub packets: u64,
    pub exceeded: u64,
    pub foreign: u64,
}

impl Relay {
    pub fn apply(&mut self, plan: &HostPlan) {
        self.pairs.clone_from(&plan.relay_pairs);
        self.left.retain(|pair, _| plan.relay_pairs.contains(pair));
        let of_pair = |port: u16, pair: &RelayPair| pair.first.1 == port || pair.second.1 == port;
        self.nodes
            .retain(|port, _| plan.relay_pairs.iter().any(|pair| of_pair(*port, pair)));
        self.aliases = plan.aliases.iter().map(|a| (a.late, a.path)).collect();
        let ports = plan.sockets.iter().filter_map(|socket| match socket {
            SocketId::Relay(port) => Some(*port),
            SocketId::Main
            | SocketId::Alternate
            | SocketId::Overlay
            | SocketId::Extra(_)
            | SocketId::Turn(_) => None,
        });
        self.ports = ports.collect();
        for pair in &self.pairs {
            assert!(
                self.ports.contains(&pair.first.1) && self.ports.contains(&pair.second.1),
                "a pair's ports stand among the sockets"
            );
        }
        let ends: BTreeSet<_> = self
            .pairs
            .iter()
            .flat_map(|p| [p.first, p.second])
            .collect();
        assert_eq!(ends.len(), 2 * self.pairs.len(), "pairs share an end");
    }

    pub fn clear(&mut self) {
        self.pairs.clear();
        self.aliases.clear();
        self.ports.clear();
        self.left.clear();
        self.nodes.clear();
        self.out.clear();
    }

    pub fn take_ports(&mut self) -> (Vec<u16>, Vec<u16>) {
        let gone = self.bound.difference(&self.ports).copied().collect();
        let fresh = self.ports.difference(&self.bound).copied().collect();
        self.bound.clone_from(&self.ports);
        (gone, fresh)
    }

    pub fn holds(&self, port: u16) -> bool {
        self.ports.contains(&port)
    }

    pub fn pairs(&self) -> &BTreeSet<RelayPair> {
        &self.pairs
    }

    /// Whom WireGuard takes a datagram for; `None` where it is dropped.
    pub fn alias(&self, remote: SocketAddr, backend: Backend) -> Option<SocketAddr> {
        let alias = self.aliases.get(&remote).copied();
        match backend {
            Backend::Kernel if alias.is_some_and(|a| a.is_ipv4() != remote.is_ipv4()) => None,
            Backend::Kernel | Backend::Userspace => Some(alias.unwrap_or(remote)),
        }
    }

    pub fn forward(&mut self, from: (SocketAddr, u16), bytes: &[u8], now: Instant) {
        let pair = self
            .pairs
            .iter()
            .find(|pair| pair.first == from || pair.second == from);
        let Some(pair) = pair.copied() else {
            self.foreign += 1;
            return;
        };
        if !is_cookie(bytes) {
            if !self.has_room(pair, bytes.len(), now) {
                self.exceeded += bytes.len() as u64;
                return;
            }
            self.forwarded += bytes.len() as u64;
        }
        let (to, port) = if pair.first == from {
            pair.second
        } else {
            pair.first
        };
        let unspecified = match to {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let source = SocketAddr::new(unspecified, port);
        self.packets += 1;
        self.out.push((source, to, None, bytes.to_vec()));
    }

    fn has_room(&mut self, pair: RelayPair, bytes: usize, now: Instant) -> bool {
        let of_pair = self.left.entry(pair).or_insert((BURST, now));
        let mut has = takes(of_pair, pair.rate, bytes, now);
        for port in [pair.first.1, pair.second.1] {
            let of_node = self.nodes.entry(port).or_insert((BURST, now));
            has = has && takes(of_node, pair.node_rate, bytes, now);
        }
        has
    }

    pub fn take(&mut self) -> Vec<Outgoing> {
        std::mem::take(&mut self.out)
    }
}

/// For the relay's agent, never forwarded.
pub fn is_indication(bytes: &[u8]) -> bool {
    bytes.starts_with(&[0x00, 0x11]) && is_cookie(bytes)
}

fn is_cookie(bytes: &[u8]) -> bool {
    bytes.get(4..8) == Some(&[0x21, 0x12, 0xa4, 0x42])
}

/// Takes bytes of what a rate (bits a second; 0: none) has left.
fn takes((left, at): &mut (f64, Instant), rate: u64, bytes: usize, now: Instant) -> bool {
    if rate == 0 {
        return true;
    }
    let passed: Duration = now - *at;
    *left = (*left + passed.as_secs_f64() * rate as f64 / 8.0).min(BURST);
    *at = now;
    let has = *left >= bytes as f64;
    if has {
        *left -= bytes as f64;
    }
    has
}
