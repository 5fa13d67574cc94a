//! A network where every address reaches every other, and WireGuard as the plans ask for it.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use mesh_types::command::{Command, CommandId};
use mesh_types::observation::ConfigPeer;
use mesh_types::report::{Backend, HostAddress, TunnelStats};
use mesh_types::token::Token;
use mesh_types::{
    Applied, HostPlan, HostReport, IdentitySecret, IpNet, Now, SocketId, State, Transmit,
    TunnelReport, WgKey, WgSecret,
};
use overlay::{Config, Event, Identity, Overlay, PeerSnapshot, PeerState, Reply};

/// One way, underlay and tunnel.
const DELAY: Duration = Duration::from_millis(10);
/// How long WireGuard keeps a packet for a handshake in this model.
const STAGED: Duration = Duration::from_secs(5);
/// A machine that works so often at one instant never sleeps.
const BUSY: u32 = 5_000;
/// 2026-01-01.
const EPOCH: Duration = Duration::from_secs(1_767_225_600);

/// A prefix.
pub fn net(text: &str) -> IpNet {
    text.parse().expect("a prefix")
}

/// The identity of node number `n`.
pub fn identity(n: u8) -> Identity {
    Identity {
        node: IdentitySecret::from_bytes(&[n; 32]),
        key: WgSecret::from_bytes([n + 100; 32]),
        next: None,
        authority: None,
    }
}

/// The configuration of node number `n`: no peers, no authority.
pub fn config(n: u8) -> Config {
    Config {
        name: format!("node-{n}"),
        region: None,
        interface: "farspan0".to_owned(),
        backend: Backend::Userspace,
        listen_port: 22000 + u16::from(n),
        alternate_port: Some(40000 + u16::from(n)),
        addresses: Vec::new(),
        routes: Vec::new(),
        authorities: Vec::new(),
        peers: Vec::new(),
        stun: Vec::new(),
        fwmark: (0x2000, 0x2000),
        forward_accept: false,
        mtu: 1420,
        may_relay: false,
        relay_ports: (28672, 29183),
        pair_rate: 50_000_000,
        node_rate: 200_000_000,
        birthday_search: true,
        turn: Vec::new(),
        protocol: mesh_types::consts::PROTOCOL,
        kubernetes: None,
    }
}

/// `[[peer]]` for node number `n`, with its endpoint and the address 10.77.0.n.
pub fn entry(n: u8) -> ConfigPeer {
    ConfigPeer {
        name: Some(format!("node-{n}")),
        key: identity(n).key.public(),
        endpoints: vec![SocketAddr::new(address(n), 22000 + u16::from(n))],
        allowed_ips: vec![net(&format!("10.77.0.{n}/32"))],
        plain: false,
        preshared_key: None,
        persistent_keepalive: None,
    }
}

/// The underlay address of node number `n`.
pub fn address(n: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(203, 0, 113, n))
}

/// A machine.
pub struct Machine {
    pub overlay: Overlay,
    pub plan: HostPlan,
    /// Every plan that was applied, in order.
    pub plans: Vec<HostPlan>,
    pub events: Vec<Event>,
    pub replies: BTreeMap<CommandId, Result<Reply, String>>,
    /// What was persisted last.
    pub disk: State,
    address: IpAddr,
    /// Where WireGuard sends, by peer.
    learned: BTreeMap<WgKey, SocketAddr>,
    handshakes: BTreeMap<WgKey, Instant>,
    bytes: BTreeMap<WgKey, (u64, u64)>,
    report_at: Instant,
    apply_at: Option<Instant>,
    up: bool,
}

enum Parcel {
    /// A datagram between agents, outside.
    Outer {
        to: SocketAddr,
        from: SocketAddr,
        bytes: Vec<u8>,
    },
    /// A datagram between agents inside the tunnel; empty for WireGuard's own keepalive.
    Inner {
        machine: u8,
        peer: WgKey,
        source: SocketAddr,
        destination: SocketAddr,
        bytes: Vec<u8>,
        staged: Instant,
    },
}

/// All of it.
pub struct Net {
    pub now: Now,
    pub machines: BTreeMap<u8, Machine>,
    parcels: BTreeMap<(Instant, u64), Parcel>,
    /// Pairs of machines between which nothing passes outside.
    pub cut: Vec<(u8, u8)>,
    /// WireGuard makes no sessions.
    pub mute: bool,
    /// Until then every message inside the tunnel is lost.
    pub deaf_until: Option<Instant>,
    /// How long a plan takes to be applied.
    pub slow: Duration,
    /// Who started a handshake by keepalive, in order.
    pub calls: Vec<u8>,
    sequence: u64,
    next_command: CommandId,
}

impl Net {
    pub fn new() -> Self {
        #[expect(
            clippy::disallowed_methods,
            reason = "virtual time may start at any instant, and only this makes one"
        )]
        let mono = Instant::now();
        Self {
            now: Now { mono, unix: EPOCH },
            machines: BTreeMap::new(),
            parcels: BTreeMap::new(),
            cut: Vec::new(),
            mute: false,
            deaf_until: None,
            slow: Duration::ZERO,
            calls: Vec::new(),
            sequence: 0,
            next_command: 0,
        }
    }

    /// Starts node number `n`.
    pub fn start(&mut self, n: u8, identity: Identity, config: Config, state: State) {
        let mut overlay = Overlay::new(identity, config, state.clone(), [n; 32], self.now);
        let host = HostReport {
            addresses: vec![HostAddress {
                interface: "eth0".to_owned(),
                ip: address(n),
                prefix_len: 24,
                stable: true,
            }],
            default_route_v4: true,
            forwarding_v4: true,
            forwarding_v6: true,
            clock_synchronised: true,
            ..HostReport::default()
        };
        overlay.handle_host(host, self.now);
        let machine = Machine {
            plan: overlay.host_plan().clone(),
            plans: Vec::new(),
            overlay,
            events: Vec::new(),
            replies: BTreeMap::new(),
            disk: state,
            address: address(n),
            learned: BTreeMap::new(),
            handshakes: BTreeMap::new(),
            bytes: BTreeMap::new(),
            report_at: self.now.mono,
            apply_at: None,
            up: true,
        };
        self.machines.insert(n, machine);
        self.work(n);
    }

    /// A mesh made on machine 1, with its authority.
    pub fn with_authority() -> Self {
        let mut net = Self::new();
        net.start(1, founder(), config(1), founder_state());
        net.run(Duration::from_secs(2));
        net
    }

    /// Invites on machine 1 and joins on machine `n`; gives the joiner's reply.
    pub fn invite_and_join(&mut self, n: u8) -> Result<String, String> {
        let token = self.invite(Vec::new())?;
        self.start(n, identity(n), config(n), State::default());
        self.run(Duration::from_secs(1));
        self.join(n, token)
    }

    pub fn invite(&mut self, routes: Vec<IpNet>) -> Result<Token, String> {
        let invite = Command::Invite {
            random: [u8::try_from(self.next_command).expect("few commands"); 24],
            routes,
            lifetime: Duration::from_secs(3600),
        };
        let Reply::Token(token) = self.command(1, invite)? else {
            panic!("not a token");
        };
        Ok(token)
    }

    pub fn join(&mut self, n: u8, token: Token) -> Result<String, String> {
        let token = Box::new(token);
        let Reply::Done(done) = self.command(n, Command::Join { token })? else {
            panic!("not done");
        };
        Ok(done)
    }

    /// Gives a command and waits up to 12 s for its reply.
    pub fn command(&mut self, n: u8, command: Command) -> Result<Reply, String> {
        self.next_command += 1;
        let id = self.next_command;
        let now = self.now;
        self.machine(n).overlay.handle_command(id, command, now);
        self.work(n);
        for _ in 0..120 {
            if let Some(reply) = self.machine(n).replies.remove(&id) {
                return reply;
            }
            self.run(Duration::from_millis(100));
        }
        panic!("no reply within 12 s");
    }

    pub fn machine(&mut self, n: u8) -> &mut Machine {
        self.machines.get_mut(&n).expect("a machine")
    }

    pub fn stop(&mut self, n: u8) {
        self.machine(n).up = false;
    }

    pub fn peer(&mut self, n: u8, name: &str) -> Option<PeerSnapshot> {
        let now = self.now;
        let peers = self.machine(n).overlay.snapshot(now).peers;
        peers.into_iter().find(|peer| peer.name == name)
    }

    pub fn is_direct(&mut self, n: u8, name: &str) -> bool {
        self.peer(n, name)
            .is_some_and(|peer| peer.state == PeerState::Direct)
    }

    pub fn findings(&mut self, n: u8) -> Vec<String> {
        let now = self.now;
        let findings = self.machine(n).overlay.snapshot(now).findings;
        findings.into_iter().map(|finding| finding.code).collect()
    }

    pub fn counter(&mut self, n: u8, name: &str) -> u64 {
        let now = self.now;
        let counters = self.machine(n).overlay.snapshot(now).counters;
        counters.get(name).copied().unwrap_or_default()
    }

    /// Lets time pass.
    pub fn run(&mut self, duration: Duration) {
        let end = self.now.mono + duration;
        let mut busy = (self.now.mono, 0);
        loop {
            let parcel = self.parcels.keys().next().map(|(at, _)| *at);
            let timers = self.machines.values().filter(|m| m.up).flat_map(|m| {
                let own = m.overlay.poll_timeout().map(|(at, _)| at);
                own.into_iter().chain([m.report_at]).chain(m.apply_at)
            });
            let next = timers.chain(parcel).min().filter(|at| *at <= end);
            let Some(next) = next else {
                break;
            };
            self.advance(next);
            busy = if busy.0 == self.now.mono {
                (busy.0, busy.1 + 1)
            } else {
                (self.now.mono, 0)
            };
            assert!(busy.1 < BUSY, "somebody never sleeps: {:?}", self.reasons());
            self.step();
        }
        self.advance(end);
    }

    fn reasons(&self) -> Vec<&'static str> {
        let timers = self.machines.values().map(|m| m.overlay.poll_timeout());
        timers.flatten().map(|(_, why)| why).collect()
    }

    fn advance(&mut self, to: Instant) {
        let passed = to.saturating_duration_since(self.now.mono);
        self.now.mono += passed;
        self.now.unix += passed;
    }

    fn step(&mut self) {
        while let Some(entry) = self.parcels.first_entry() {
            if entry.key().0 > self.now.mono {
                break;
            }
            let parcel = entry.remove();
            self.deliver(parcel);
        }
        let numbers: Vec<u8> = self.machines.keys().copied().collect();
        for n in numbers {
            let now = self.now;
            let machine = self.machine(n);
            if !machine.up {
                continue;
            }
            let due = machine.overlay.poll_timeout();
            if due.is_some_and(|(at, _)| at <= now.mono) {
                machine.overlay.handle_timeout(now);
            }
            if machine.report_at <= now.mono {
                let report = machine.report(now);
                machine.report_at = now.mono + machine.plan.tunnel.report_every;
                machine.overlay.handle_tunnel(&report, now);
            }
            self.work(n);
        }
    }

    /// Does what the node asks for, as the shell would: events, then the plan, then datagrams.
    fn work(&mut self, n: u8) {
        let (now, slow) = (self.now, self.slow);
        loop {
            let mut quiet = true;
            let machine = self.machine(n);
            while let Some(event) = machine.overlay.poll_event() {
                quiet = false;
                match event {
                    Event::Persist => machine.disk = machine.overlay.state(),
                    Event::Reply { id, reply } => {
                        machine.replies.insert(id, reply);
                    }
                    other @ (Event::Resolve { .. }
                    | Event::NextKey { .. }
                    | Event::KeyRotated { .. }
                    | Event::Joined { .. }
                    | Event::Revoked
                    | Event::Publish(_)
                    | Event::ListAgain
                    | Event::Refused { .. }
                    | Event::PeerUp { .. }
                    | Event::PeerDown { .. }) => machine.events.push(other),
                }
            }
            let plan = machine.overlay.host_plan();
            let changed = *plan != machine.plan || machine.plans.is_empty();
            if changed && *machine.apply_at.get_or_insert(now.mono + slow) <= now.mono {
                quiet = false;
                machine.apply_at = None;
                let plan = plan.clone();
                let calls = machine.apply(plan);
                let generation = machine.plan.generation;
                machine.overlay.handle_applied(
                    Applied {
                        generation,
                        failures: Vec::new(),
                        sockets: machine.plan.sockets.clone(),
                    },
                    now,
                );
                for peer in calls {
                    self.calls.push(n);
                    self.inner(n, peer, None);
                }
            }
            let mut out = VecDeque::new();
            while let Some(transmit) = self.machine(n).overlay.poll_transmit() {
                out.push_back(transmit);
            }
            quiet &= out.is_empty();
            for transmit in out {
                self.send(n, transmit);
            }
            if quiet {
                return;
            }
        }
    }

    fn send(&mut self, n: u8, transmit: Transmit) {
        let machine = self.machine(n);
        let port = match transmit.socket {
            SocketId::Main => machine.plan.tunnel.listen_port,
            SocketId::Alternate => 40000 + u16::from(n),
            SocketId::Overlay => {
                let source = IpNet::from(transmit.source.expect("an overlay source"));
                assert!(
                    machine.plan.device.addresses.contains(&source),
                    "the kernel refuses {source}, which the device does not hold yet"
                );
                let peer = machine.route(transmit.destination.ip());
                if let Some(peer) = peer {
                    self.inner(n, peer, Some(transmit));
                }
                return;
            }
            SocketId::Extra(_) | SocketId::Relay(_) | SocketId::Turn(_) => return,
        };
        let from = SocketAddr::new(machine.address, port);
        self.post(
            DELAY,
            Parcel::Outer {
                to: transmit.destination,
                from,
                bytes: transmit.bytes,
            },
        );
    }

    fn inner(&mut self, n: u8, peer: WgKey, transmit: Option<Transmit>) {
        let any = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
        let (source, destination, bytes) = match transmit {
            Some(transmit) => (
                SocketAddr::new(transmit.source.expect("an overlay source"), 22511),
                transmit.destination,
                transmit.bytes,
            ),
            None => (any, any, Vec::new()),
        };
        let staged = self.now.mono;
        self.post(
            DELAY,
            Parcel::Inner {
                machine: n,
                peer,
                source,
                destination,
                bytes,
                staged,
            },
        );
    }

    /// Puts a datagram into the tunnel from `n` to `to` as if some process on `n` had sent it.
    pub fn spoof(&mut self, n: u8, source: SocketAddr, destination: SocketAddr, bytes: Vec<u8>) {
        let transmit = Transmit {
            socket: SocketId::Overlay,
            source: Some(source.ip()),
            destination,
            ttl: None,
            bytes,
        };
        let peer = self.machine(n).route(destination.ip()).expect("a route");
        let staged = self.now.mono;
        self.post(
            DELAY,
            Parcel::Inner {
                machine: n,
                peer,
                source,
                destination,
                bytes: transmit.bytes,
                staged,
            },
        );
    }

    fn post(&mut self, after: Duration, parcel: Parcel) {
        self.sequence += 1;
        self.parcels
            .insert((self.now.mono + after, self.sequence), parcel);
    }

    fn deliver(&mut self, parcel: Parcel) {
        let now = self.now;
        match parcel {
            Parcel::Outer { to, from, .. } if self.is_cut(from.ip(), to.ip()) => {}
            Parcel::Outer { to, from, bytes } => {
                let found = self.machines.iter_mut().find_map(|(n, m)| {
                    let here = m.up && m.address == to.ip();
                    let socket = match to.port() {
                        port if port == m.plan.tunnel.listen_port => SocketId::Main,
                        port if port == 40000 + u16::from(*n) => SocketId::Alternate,
                        _ => return None,
                    };
                    here.then_some((*n, socket))
                });
                if let Some((n, socket)) = found {
                    let overlay = &mut self.machine(n).overlay;
                    overlay.handle_datagram(socket, to, from, &bytes, now);
                    self.work(n);
                }
            }
            Parcel::Inner { bytes, .. }
                if !bytes.is_empty() && self.deaf_until.is_some_and(|until| now.mono < until) => {}
            Parcel::Inner {
                machine,
                peer,
                source,
                destination,
                bytes,
                staged,
            } => match self.session(machine, peer) {
                Some((to, from_key)) => {
                    let receiver = self.machine(to);
                    if destination.port() == 0 {
                        return;
                    }
                    let here = receiver
                        .plan
                        .device
                        .addresses
                        .contains(&IpNet::from(destination.ip()));
                    let entry = receiver.plan.tunnel.peers.get(&from_key);
                    let allowed = entry.is_some_and(|entry| {
                        entry.allowed_ips.iter().any(|r| r.contains(&source.ip()))
                    });
                    if here && allowed {
                        receiver.overlay.handle_datagram(
                            SocketId::Overlay,
                            destination,
                            source,
                            &bytes,
                            now,
                        );
                        self.work(to);
                    }
                }
                None if now.mono.saturating_duration_since(staged) < STAGED => self.post(
                    Duration::from_millis(100),
                    Parcel::Inner {
                        machine,
                        peer,
                        source,
                        destination,
                        bytes,
                        staged,
                    },
                ),
                None => {}
            },
        }
    }

    fn is_cut(&self, one: IpAddr, other: IpAddr) -> bool {
        self.cut.iter().any(|(a, b)| {
            let ends = (address(*a), address(*b));
            ends == (one, other) || ends == (other, one)
        })
    }

    /// Finds or makes a session from machine `n` towards a key; gives the other machine and the key it knows
    /// the sender by.
    fn session(&mut self, n: u8, peer: WgKey) -> Option<(u8, WgKey)> {
        let now = self.now.mono;
        let sender = self.machine(n);
        if !sender.up || !sender.plan.tunnel.peers.contains_key(&peer) {
            return None;
        }
        let endpoint = *sender.learned.get(&peer)?;
        let source = SocketAddr::new(sender.address, sender.plan.tunnel.listen_port);
        if self.mute || self.is_cut(source.ip(), endpoint.ip()) {
            return None;
        }
        let sender = self.machine(n);
        let keys = [
            Some(sender.plan.tunnel.key.public()),
            sender
                .plan
                .tunnel
                .previous_key
                .as_ref()
                .map(WgSecret::public),
        ];
        let (to, from_key) = self.machines.iter().find_map(|(to, m)| {
            let at = SocketAddr::new(m.address, m.plan.tunnel.listen_port);
            let own = m.plan.tunnel.key.public() == peer
                || m.plan.tunnel.previous_key.as_ref().map(WgSecret::public) == Some(peer);
            if !m.up || at != endpoint || !own {
                return None;
            }
            let known = keys
                .iter()
                .flatten()
                .find(|key| m.plan.tunnel.peers.get(key).is_some_and(|p| !p.passive))?;
            Some((*to, *known))
        })?;
        let receiver = self.machine(to);
        receiver.learned.insert(from_key, source);
        receiver.handshakes.entry(from_key).or_insert(now);
        receiver.bytes.entry(from_key).or_default().0 += 32;
        let sender = self.machine(n);
        sender.handshakes.entry(peer).or_insert(now);
        sender.bytes.entry(peer).or_default().1 += 32;
        Some((to, from_key))
    }
}

impl Machine {
    /// Takes a plan over; gives the peers that WireGuard now calls by itself.
    fn apply(&mut self, plan: HostPlan) -> Vec<WgKey> {
        let mut calls = Vec::new();
        for (key, peer) in &plan.tunnel.peers {
            if let Some(endpoint) = peer.endpoint {
                self.learned.insert(*key, endpoint);
            }
            let before = self.plan.tunnel.peers.get(key);
            if peer.keepalive.is_some() && before.is_none_or(|peer| peer.keepalive.is_none()) {
                calls.push(*key);
            }
        }
        let known = |key: &WgKey| plan.tunnel.peers.contains_key(key);
        self.learned.retain(|key, _| known(key));
        self.handshakes.retain(|key, _| known(key));
        self.bytes.retain(|key, _| known(key));
        self.plans.push(plan.clone());
        self.plan = plan;
        calls
    }

    fn route(&self, destination: IpAddr) -> Option<WgKey> {
        let peers = self.plan.tunnel.peers.iter();
        let carriers = peers.flat_map(|(key, peer)| {
            let ranges = peer.allowed_ips.iter();
            ranges.map(move |range| (range.prefix_len(), range, *key))
        });
        carriers
            .filter(|(_, range, _)| range.contains(&destination))
            .max_by_key(|(len, _, _)| *len)
            .map(|(_, _, key)| key)
    }

    fn report(&self, now: Now) -> TunnelReport {
        let stats = |key: &WgKey| {
            let (rx_bytes, tx_bytes) = self.bytes.get(key).copied().unwrap_or_default();
            let age = |at: &Instant| {
                let age = now.mono.saturating_duration_since(*at).as_secs() % 120;
                Duration::from_secs(age)
            };
            TunnelStats {
                endpoint: self.learned.get(key).copied(),
                handshake_age: self.handshakes.get(key).map(age),
                rx_bytes,
                tx_bytes,
            }
        };
        let keys = self.plan.tunnel.peers.keys();
        TunnelReport {
            peers: keys.map(|key| (*key, stats(key))).collect(),
        }
    }
}

/// The machine that made the mesh.
pub fn founder() -> Identity {
    Identity {
        authority: Some(IdentitySecret::from_bytes(&[77; 32])),
        ..identity(1)
    }
}

/// What `init` leaves on its disk.
pub fn founder_state() -> State {
    State {
        range: vec![net("10.77.0.0/16")],
        authority: Some(IdentitySecret::from_bytes(&[77; 32]).authority()),
        ..State::default()
    }
}
