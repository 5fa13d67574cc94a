//! A tiny internet in virtual time: hosts, port-restricted NATs whose mappings expire, and tunnels that
//! roam as WireGuard does. One delay, no loss unless asked for.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use mesh_types::message::Forward;
use mesh_types::report::{HostAddress, TunnelStats};
use mesh_types::{Candidate, CandidateKind, Message, Now, PeerId, SocketId, Transmit, WgSecret};
use nat_traversal::{Config, Event, PeerSpec, Traversal};

/// One way across the internet.
pub const DELAY: Duration = Duration::from_millis(20);
/// Local ports of further sockets.
const EXTRA_PORTS: u16 = 50_000;
/// One way inside a site, at first.
const LAN_DELAY: Duration = Duration::from_millis(1);
const MAPPING_LIFETIME: Duration = Duration::from_secs(60);
const UNIX: Duration = Duration::from_secs(1_800_000_000);

#[derive(Clone)]
pub enum Payload {
    Control(Vec<u8>),
    /// Bytes inside the tunnel of this sender; a sealed message maybe.
    Tunnel(PeerId, Option<Box<(PeerId, Forward)>>),
}

pub struct Packet {
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub payload: Payload,
    site: Option<usize>,
}

pub struct Nat {
    pub public: IpAddr,
    /// By inner address, and by remote where the mapping depends on it.
    mappings: BTreeMap<(SocketAddr, Option<SocketAddr>), (u16, Instant)>,
    allowed: BTreeMap<(u16, SocketAddr), Instant>,
    next_port: u16,
    pub filtering: bool,
    pub dependent: bool,
}

pub struct Node {
    pub traversal: Traversal,
    pub id: PeerId,
    pub secret: WgSecret,
    pub ip: IpAddr,
    pub port: u16,
    pub site: Option<usize>,
    pub sent: Vec<(Instant, SocketAddr, Vec<u8>)>,
    pub events: Vec<(Instant, Event)>,
    pub tunnels: BTreeMap<PeerId, TunnelStats>,
    pub wakes: u64,
    pub up: bool,
}

pub struct Net {
    pub start: Instant,
    pub now: Now,
    pub nodes: Vec<Node>,
    pub nats: Vec<Nat>,
    queue: BTreeMap<(Instant, u64), Packet>,
    count: u64,
    /// Drops a packet where it says so.
    pub drop: Option<fn(&Packet) -> bool>,
    /// Pairs between which tunnels carry data.
    pub traffic: Vec<(usize, usize)>,
    next_tick: Instant,
    tick: u32,
    /// Are signals passed on by neighbours?
    pub signals: bool,
    /// One way inside a site.
    pub lan_delay: Duration,
}

#[expect(
    clippy::disallowed_methods,
    reason = "virtual time needs some instant to start from"
)]
pub fn start() -> Instant {
    Instant::now()
}

pub fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

pub fn host(ip: IpAddr) -> HostAddress {
    HostAddress {
        interface: "eth0".to_owned(),
        ip,
        prefix_len: if ip.is_ipv4() { 24 } else { 64 },
        stable: true,
    }
}

impl Net {
    pub fn new() -> Self {
        let start = start();
        Self {
            start,
            now: Now {
                mono: start,
                unix: UNIX,
            },
            nodes: Vec::new(),
            nats: Vec::new(),
            queue: BTreeMap::new(),
            count: 0,
            drop: None,
            traffic: Vec::new(),
            next_tick: start,
            tick: 0,
            signals: true,
            lan_delay: LAN_DELAY,
        }
    }

    pub fn nat(&mut self, public: &str) -> usize {
        self.nats.push(Nat {
            public: public.parse().unwrap(),
            mappings: BTreeMap::new(),
            allowed: BTreeMap::new(),
            next_port: 40_000,
            filtering: true,
            dependent: false,
        });
        self.nats.len() - 1
    }

    /// A node; on the internet, or behind a NAT.
    pub fn node(&mut self, ip: &str, site: Option<usize>) -> usize {
        let index = self.nodes.len();
        let secret = WgSecret::from_bytes([u8::try_from(index).unwrap() + 1; 32]);
        let port = 22_000 + u16::try_from(index).unwrap();
        let ip: IpAddr = ip.parse().unwrap();
        let traversal = self.traversal(&secret, port, ip, 1_800_000_000);
        self.nodes.push(Node {
            traversal,
            id: PeerId::Key(secret.public()),
            secret,
            ip,
            port,
            site,
            sent: Vec::new(),
            events: Vec::new(),
            tunnels: BTreeMap::new(),
            wakes: 0,
            up: true,
        });
        index
    }

    fn traversal(&self, secret: &WgSecret, port: u16, ip: IpAddr, epoch: u32) -> Traversal {
        let config = Config {
            listen_port: port,
            ..Config::default()
        };
        let mut traversal = Traversal::new(config, epoch, *secret.public().as_bytes(), self.now);
        traversal.set_keys(secret, None, self.now);
        traversal.set_alternate_port(Some(port + 10_000));
        traversal.set_host_addresses(&[host(ip)], false, self.now);
        traversal
    }

    /// The agent starts anew, with nothing in memory.
    pub fn restart(&mut self, node: usize, epoch: u32) {
        let n = &self.nodes[node];
        self.nodes[node].traversal = self.traversal(&n.secret, n.port, n.ip, epoch);
        self.nodes[node].tunnels.clear();
    }

    pub fn host_candidate(&self, node: usize) -> Candidate {
        let node = &self.nodes[node];
        Candidate {
            kind: CandidateKind::Host,
            address: SocketAddr::new(node.ip, node.port),
        }
    }

    pub fn spec(&self, node: usize, candidates: Vec<Candidate>) -> PeerSpec {
        PeerSpec {
            keys: vec![self.nodes[node].secret.public()],
            candidates,
            announcement_seq: 1,
            ..PeerSpec::default()
        }
    }

    /// `node` learns of `peer` with its host candidate.
    pub fn tell(&mut self, node: usize, peer: usize) {
        let candidates = vec![self.host_candidate(peer)];
        self.tell_of(node, peer, candidates);
    }

    pub fn tell_of(&mut self, node: usize, peer: usize, candidates: Vec<Candidate>) {
        let (id, spec) = (self.nodes[peer].id, self.spec(peer, candidates));
        self.nodes[node].traversal.upsert_peer(id, spec, self.now);
        self.drain(node);
    }

    pub fn introduce(&mut self, a: usize, b: usize) {
        self.tell(a, b);
        self.tell(b, a);
    }

    pub fn path(&self, node: usize, peer: usize) -> Option<SocketAddr> {
        let id = self.nodes[peer].id;
        self.nodes[node].traversal.path(&id).map(|path| path.remote)
    }

    pub fn connected(&self, a: usize, b: usize) -> bool {
        self.path(a, b).is_some() && self.path(b, a).is_some()
    }

    /// Do datagrams of the tunnel pass from `a` to `b` now?
    pub fn passes(&mut self, a: usize, b: usize) -> bool {
        let Some(remote) = self.path(a, b) else {
            return false;
        };
        let source = SocketAddr::new(self.nodes[a].ip, self.nodes[a].port);
        let packet = Packet {
            source,
            destination: remote,
            payload: Payload::Tunnel(self.nodes[a].id, None),
            site: self.nodes[a].site,
        };
        let Some((_, packet)) = self.out(packet) else {
            return false;
        };
        self.inward(&packet).is_some_and(|(node, _)| node == b)
    }

    pub fn forget_mappings(&mut self, nat: usize) {
        self.nats[nat].mappings.clear();
        self.nats[nat].allowed.clear();
        self.nats[nat].next_port += 1000;
    }

    pub fn run(&mut self, time: Duration) {
        let end = self.now.mono + time;
        while self.step(end) {}
    }

    /// Runs until `done`; gives the time it took, or `None` after `limit`.
    pub fn until(&mut self, limit: Duration, done: impl Fn(&mut Self) -> bool) -> Option<Duration> {
        let begin = self.now.mono;
        loop {
            if done(self) {
                return Some(self.now.mono - begin);
            }
            if !self.step(begin + limit) {
                return None;
            }
        }
    }

    /// One moment on: false at the end.
    fn step(&mut self, end: Instant) -> bool {
        let arrival = self.queue.keys().next().map(|(at, _)| *at);
        let wake = self
            .nodes
            .iter()
            .filter(|node| node.up)
            .filter_map(|node| node.traversal.poll_timeout())
            .map(|(at, _)| at)
            .min();
        let tick = (!self.traffic.is_empty()).then_some(self.next_tick);
        let next = [arrival, wake, tick].into_iter().flatten().min();
        let Some(next) = next.filter(|next| *next <= end) else {
            self.advance(end);
            return false;
        };
        self.advance(next.max(self.now.mono));
        while let Some(((at, _), _)) = self.queue.first_key_value()
            && *at <= self.now.mono
        {
            let (_, packet) = self.queue.pop_first().unwrap();
            self.deliver(packet);
        }
        if tick.is_some_and(|at| at <= self.now.mono) {
            self.pump();
        }
        for index in 0..self.nodes.len() {
            let now = self.now;
            let node = &mut self.nodes[index];
            if node.up
                && node
                    .traversal
                    .poll_timeout()
                    .is_some_and(|(at, _)| at <= now.mono)
            {
                node.wakes += 1;
                node.traversal.handle_timeout(now);
                let (again, why) = node.traversal.poll_timeout().unwrap();
                assert!(again > now.mono, "{why} spins");
                self.drain(index);
            }
        }
        true
    }

    fn advance(&mut self, to: Instant) {
        self.now.unix += to - self.now.mono;
        self.now.mono = to;
    }

    /// The machine sleeps: time passes for it alone, and nothing is delivered to it.
    pub fn jump(&mut self, time: Duration) {
        self.queue.clear();
        self.advance(self.now.mono + time);
        self.next_tick = self.now.mono;
    }

    /// Takes out what a node wants to send and say.
    pub fn drain(&mut self, index: usize) {
        while let Some(event) = self.nodes[index].traversal.poll_event() {
            self.nodes[index]
                .events
                .push((self.now.mono, event.clone()));
            self.event(index, event);
        }
        while let Some(transmit) = self.nodes[index].traversal.poll_transmit() {
            let node = &mut self.nodes[index];
            node.sent
                .push((self.now.mono, transmit.destination, transmit.bytes.clone()));
            self.transmit(index, transmit);
        }
    }

    fn transmit(&mut self, index: usize, transmit: Transmit) {
        let node = &self.nodes[index];
        let port = match transmit.socket {
            SocketId::Main => node.port,
            SocketId::Alternate => node.port + 10_000,
            SocketId::Extra(number) => EXTRA_PORTS + u16::try_from(number % 10_000).unwrap(),
            SocketId::Overlay | SocketId::Relay(_) | SocketId::Turn(_) => unreachable!("not used"),
        };
        self.send(
            index,
            port,
            transmit.destination,
            Payload::Control(transmit.bytes),
        );
    }

    pub fn send(&mut self, index: usize, port: u16, destination: SocketAddr, payload: Payload) {
        let node = &self.nodes[index];
        let packet = Packet {
            source: SocketAddr::new(node.ip, port),
            destination,
            payload,
            site: node.site,
        };
        if let Some((delay, packet)) = self.out(packet) {
            self.count += 1;
            self.queue
                .insert((self.now.mono + delay, self.count), packet);
        }
    }

    /// A datagram from anywhere on the internet.
    pub fn inject(&mut self, source: SocketAddr, destination: SocketAddr, bytes: Vec<u8>) {
        self.count += 1;
        let packet = Packet {
            source,
            destination,
            payload: Payload::Control(bytes),
            site: None,
        };
        self.queue.insert((self.now.mono, self.count), packet);
    }

    /// Through the sender's NAT.
    fn out(&mut self, mut packet: Packet) -> Option<(Duration, Packet)> {
        if self.drop.is_some_and(|drop| drop(&packet)) {
            return None;
        }
        let Some(site) = packet.site else {
            return Some((DELAY, packet));
        };
        let same_site = |node: &Node| node.site == Some(site) && node.ip == packet.destination.ip();
        if self.nodes.iter().any(same_site) {
            return Some((self.lan_delay, packet));
        }
        let now = self.now.mono;
        let nat = &mut self.nats[site];
        nat.mappings
            .retain(|_, (_, used)| now - *used < MAPPING_LIFETIME);
        let key = (packet.source, nat.dependent.then_some(packet.destination));
        if !nat.mappings.contains_key(&key) {
            nat.next_port += 1;
        }
        let port = nat.next_port;
        let (port, used) = nat.mappings.entry(key).or_insert((port, now));
        *used = now;
        nat.allowed.insert((*port, packet.destination), now);
        packet.source = SocketAddr::new(nat.public, *port);
        packet.site = None;
        Some((DELAY, packet))
    }

    /// Through the receiver's NAT, to a node's port.
    fn inward(&self, packet: &Packet) -> Option<(usize, u16)> {
        let mut destination = packet.destination;
        let mut site = packet.site;
        if let Some(index) = self
            .nats
            .iter()
            .position(|nat| nat.public == destination.ip())
        {
            let nat = &self.nats[index];
            let ((inner, _), (port, _)) = nat
                .mappings
                .iter()
                .find(|(_, (port, _))| *port == destination.port())?;
            let fresh = |used: &Instant| self.now.mono - *used < MAPPING_LIFETIME;
            if nat.filtering && !nat.allowed.get(&(*port, packet.source)).is_some_and(fresh) {
                return None;
            }
            destination = *inner;
            site = Some(index);
        }
        let node = self.nodes.iter().position(|node| {
            node.up
                && node.site == site
                && node.ip == destination.ip()
                && ([node.port, node.port + 10_000].contains(&destination.port())
                    || destination.port() >= EXTRA_PORTS)
        })?;
        Some((node, destination.port()))
    }

    fn deliver(&mut self, packet: Packet) {
        let Some((index, port)) = self.inward(&packet) else {
            return;
        };
        let now = self.now;
        let node = &mut self.nodes[index];
        match packet.payload {
            Payload::Control(bytes) => {
                let (socket, local) = if port == node.port {
                    (SocketId::Main, SocketAddr::new(node.ip, port))
                } else if port >= EXTRA_PORTS {
                    let number = u32::from(port - EXTRA_PORTS);
                    (SocketId::Extra(number), SocketAddr::new(node.ip, port))
                } else {
                    (SocketId::Alternate, SocketAddr::new(node.ip, port))
                };
                node.traversal
                    .handle_datagram(socket, local, packet.source, &bytes, now);
            }
            Payload::Tunnel(from, sealed) => {
                let stats = node.tunnels.entry(from).or_default();
                stats.rx_bytes += 600;
                stats.endpoint = Some(packet.source);
                if let Some(sealed) = sealed {
                    let (to, forward) = *sealed;
                    if to == node.id {
                        if let Ok((from, message)) = node.traversal.open(&forward, now) {
                            node.traversal.handle_message(&from, &message, now);
                        }
                    } else {
                        self.tunnel(index, to, Some(Box::new((to, forward))));
                        return;
                    }
                }
            }
        }
        self.drain(index);
    }

    /// Sends inside the tunnel to a peer, where the tunnel has an endpoint.
    fn tunnel(&mut self, index: usize, to: PeerId, sealed: Option<Box<(PeerId, Forward)>>) {
        let node = &mut self.nodes[index];
        let stats = node.tunnels.entry(to).or_default();
        let Some(endpoint) = stats.endpoint.filter(|_| node.up) else {
            return;
        };
        stats.tx_bytes += 600;
        let (port, from) = (node.port, node.id);
        self.send(index, port, endpoint, Payload::Tunnel(from, sealed));
    }

    fn event(&mut self, index: usize, event: Event) {
        let node = &mut self.nodes[index];
        match event {
            Event::PathChanged { peer } => {
                let path = node.traversal.path(&peer).map(|path| path.remote);
                let stats = node.tunnels.entry(peer).or_default();
                stats.endpoint = path.or(stats.endpoint);
            }
            Event::Signal { peer, message } if self.signals => self.signal(index, peer, &message),
            Event::Signal { .. } => {}
            Event::SocketsChanged => {
                let sockets = node.traversal.sockets().collect();
                node.traversal.handle_sockets(&sockets, self.now);
            }
            Event::EndpointsChanged
            | Event::PeerKeySeen { .. }
            | Event::JoinRequest(_)
            | Event::JoinAnswer { .. }
            | Event::PathMtuChanged { .. }
            | Event::SpareChanged { .. }
            | Event::EpochRaised(_)
            | Event::RestChanged { .. }
            | Event::Woken { .. }
            | Event::RelayChanged
            | Event::KeepaliveChanged
            | Event::TurnChanged
            | Event::TurnResolve(_) => {}
        }
    }

    /// Sealed, through every neighbour that has a path.
    fn signal(&mut self, index: usize, peer: PeerId, message: &Message) {
        let neighbours: Vec<_> = self.nodes[index]
            .tunnels
            .keys()
            .copied()
            .filter(|id| *id != peer && self.nodes[index].traversal.path(id).is_some())
            .collect();
        for neighbour in neighbours {
            let forward = self.nodes[index].traversal.seal(&peer, message);
            let forward = forward.expect("sealed");
            self.tunnel(index, neighbour, Some(Box::new((peer, forward))));
        }
    }

    /// Traffic in all pairs, every 100 ms; reports of the tunnels every 500 ms.
    fn pump(&mut self) {
        self.tick += 1;
        self.next_tick = self.now.mono + Duration::from_millis(100);
        for (a, b) in self.traffic.clone() {
            let (id_a, id_b) = (self.nodes[a].id, self.nodes[b].id);
            self.tunnel(a, id_b, None);
            self.tunnel(b, id_a, None);
        }
        if self.tick.is_multiple_of(5) {
            for index in 0..self.nodes.len() {
                let now = self.now;
                let node = &mut self.nodes[index];
                for (peer, stats) in &node.tunnels {
                    node.traversal.handle_tunnel(peer, stats, 0, now);
                }
                self.drain(index);
            }
        }
    }
}
