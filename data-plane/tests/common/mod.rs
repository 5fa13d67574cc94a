//! Two or more cores joined in memory: what one sends the other receives at once.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use data_plane::core::Core;
use data_plane::counters::{Count, Counters};
use data_plane::inbox::Inbox;
use data_plane::outbox::Outbox;
use data_plane::segment::{SLACK, VnetHeader};
use mesh_types::key::{WgKey, WgSecret};
use mesh_types::plan::{TunnelPeer, TunnelPlan};

pub const MTU: u16 = 1420;

pub fn secret(n: u8) -> WgSecret {
    WgSecret::from_bytes([n; 32])
}

pub fn plan(key: &WgSecret) -> TunnelPlan {
    TunnelPlan {
        key: key.clone(),
        previous_key: None,
        listen_port: 0,
        fwmark: 0,
        peers: BTreeMap::new(),
        report_every: Duration::from_secs(5),
    }
}

pub fn peer(ranges: &[&str], endpoint: Option<SocketAddr>) -> TunnelPeer {
    TunnelPeer {
        endpoint,
        allowed_ips: ranges
            .iter()
            .map(|range| range.parse().expect("a prefix"))
            .collect(),
        ..TunnelPeer::default()
    }
}

/// A core with its buffers, at an address.
pub struct Node {
    pub core: Core,
    pub plan: TunnelPlan,
    pub address: SocketAddr,
    pub counters: Arc<Counters>,
    pub out: Outbox,
    pub inbox: Inbox,
    /// Packets that reached the TUN.
    pub received: Vec<Vec<u8>>,
    /// Datagrams it sent, for replays.
    pub sent: Vec<Vec<u8>>,
}

impl Node {
    pub fn new(key: &WgSecret, address: &str) -> Self {
        let counters = Arc::new(Counters::default());
        Self {
            core: Core::new(MTU, counters.clone()),
            plan: plan(key),
            address: address.parse().expect("an address"),
            counters,
            out: Outbox::new(),
            inbox: Inbox::new(false, false),
            received: Vec::new(),
            sent: Vec::new(),
        }
    }

    pub fn apply(&mut self, now: Instant) {
        self.core.apply(&self.plan, now);
    }

    pub fn set_peer(&mut self, key: WgKey, peer: TunnelPeer, now: Instant) {
        self.plan.peers.insert(key, peer);
        self.apply(now);
    }

    /// Gives a plain packet to the TUN.
    pub fn send(&mut self, packet: &[u8], now: Instant) {
        let mut buffer = packet.to_vec();
        buffer.resize(packet.len() + SLACK, 0xee);
        let header = VnetHeader::default();
        self.core
            .handle_tun(&mut buffer, packet.len(), header, now, &mut self.out);
    }

    /// What it wants to send: destination and datagram.
    pub fn take(&mut self) -> Vec<(SocketAddr, Vec<u8>)> {
        let mut all = Vec::new();
        for message in self.out.messages() {
            for datagram in message.datagrams() {
                all.push((message.to.remote, datagram.to_vec()));
                if let Some(also) = message.to.also {
                    all.push((also, datagram.to_vec()));
                }
            }
        }
        self.out.clear();
        self.sent.extend(all.iter().map(|(_, bytes)| bytes.clone()));
        all
    }

    /// Does what is due.
    pub fn turn(&mut self, now: Instant) {
        while self.core.poll_timeout(now).is_some_and(|(at, _)| at <= now) {
            self.core.handle_timeout(now, &mut self.out);
        }
    }

    pub fn receive(&mut self, from: SocketAddr, datagram: &[u8], now: Instant) {
        self.receive_all([(from, datagram)], now);
    }

    /// In one turn.
    pub fn receive_all<'a>(
        &mut self,
        datagrams: impl IntoIterator<Item = (SocketAddr, &'a [u8])>,
        now: Instant,
    ) {
        let Self {
            core, inbox, out, ..
        } = self;
        for (from, datagram) in datagrams {
            let from = (from, Some(self.address.ip()));
            core.handle_datagram(from, datagram, now, inbox, out);
        }
        core.open_waiting(now, inbox, out);
        if inbox.is_empty() {
            return;
        }
        let received = &mut self.received;
        inbox.drain(|parts, _, _| {
            received.push(parts[1..].iter().flat_map(|part| part.to_vec()).collect());
        });
    }

    pub fn count(&self, count: Count) -> u64 {
        self.counters.get(count)
    }
}

/// Lets both talk until nothing is left to say.
pub fn settle(a: &mut Node, b: &mut Node, now: Instant) {
    for _ in 0..100 {
        a.turn(now);
        b.turn(now);
        let (from_a, from_b) = (a.take(), b.take());
        if from_a.is_empty() && from_b.is_empty() {
            return;
        }
        for (to, datagram) in from_a {
            if to == b.address {
                b.receive(a.address, &datagram, now);
            }
        }
        for (to, datagram) in from_b {
            if to == a.address {
                a.receive(b.address, &datagram, now);
            }
        }
    }
    panic!("they never stop talking");
}

/// An IPv4 packet of `len` bytes with protocol 253 and a recognisable filling.
pub fn packet(source: &str, destination: &str, len: usize, filling: u8) -> Vec<u8> {
    let mut packet = vec![filling; len];
    packet[..20].fill(0);
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
    packet[8] = 64;
    packet[9] = 253;
    let ip = |text: &str| {
        text.parse::<std::net::Ipv4Addr>()
            .expect("an address")
            .octets()
    };
    packet[12..16].copy_from_slice(&ip(source));
    packet[16..20].copy_from_slice(&ip(destination));
    packet
}

/// The start of a test's time.
#[expect(clippy::disallowed_methods, reason = "tests start somewhere")]
pub fn start() -> Instant {
    Instant::now()
}
