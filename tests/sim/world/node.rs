//! One node: what the shell does around [`overlay::Overlay`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use mesh_types::cluster::Publication;
use mesh_types::command::{Command, CommandId};
use mesh_types::consts::CONTROL_PORT;
use mesh_types::plan::{Route, RouteKind};
use mesh_types::report::{Answer, Backend, TurnLinkState};
use mesh_types::{
    Applied, HostPlan, HostReport, IdentitySecret, IpNet, Now, SocketId, State, WgKey, WgSecret,
};
use overlay::{Config, Event, Identity, Overlay, Reply};
use sim_net::tunnel::{Inner, Tunnel, is_wireguard};
use sim_net::{Delivery, HostId};

use super::relay::{Relay, is_indication};
use super::turn::{Line, Links};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeId(pub usize);

/// What survives a restart.
pub struct Disk {
    pub identity: IdentitySecret,
    pub key: WgSecret,
    pub next: Option<WgSecret>,
    pub state: Option<Vec<u8>>,
}

pub struct Node {
    pub name: String,
    pub host: HostId,
    pub config: Config,
    pub disk: Disk,
    /// Wall clock against the world's.
    pub skew: Duration,
    pub overlay: Option<Overlay>,
    pub tunnel: Option<Tunnel>,
    pub wake: Option<Instant>,
    /// When it was woken last, and how often in that very moment, less what came in it.
    woken: Option<Instant>,
    pub(super) woken_now: u32,
    pub inbox: Vec<Inner>,
    pub events: Vec<Event>,
    pub replies: BTreeMap<CommandId, Result<Reply, String>>,
    /// Endpoints that plans gave a peer, by when they changed.
    pub moves: BTreeMap<WgKey, Vec<(Instant, SocketAddr)>>,
    pub host_report: HostReport,
    /// What is to be written to its Node.
    pub(super) publications: Vec<Publication>,
    /// It wants the Nodes listed once more.
    pub(super) list_nodes: bool,
    pub issues_authority: Option<IdentitySecret>,
    pub(super) applied: Option<HostPlan>,
    /// Lengths of the prefixes of its routes.
    lengths: BTreeSet<u8>,
    pub relay: Relay,
    /// Own port and remote of what has arrived.
    heard: BTreeSet<(u16, SocketAddr)>,
    /// Packets that its agent has sent, and their bytes with all headers.
    pub said: (u64, u64),
    /// Time of the processor that the agent and what the world plays of its host have taken, where it is booked.
    pub spent: Option<Duration>,
    /// Probes to where nothing came from yet, by address: to what others name, and to ports that are guessed.
    pub blind: BTreeMap<IpAddr, u64>,
    pub(super) turn: Links,
    pub(super) paused: bool,
    pub(super) pod: IpAddr,
    pub(super) epoch: Instant,
    /// Sockets beside the main and alternate one that the plan names, and their local ports.
    extras: BTreeMap<u32, u16>,
    next_extra: u16,
    /// All numbers below were open once.
    opened: u32,
    /// Ports to open and to close.
    pub(super) ports: Vec<(u16, Port)>,
    report_at: Option<Instant>,
    commands: CommandId,
}

/// What is to become of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    Open,
    Close,
}

/// First local port of further sockets: below those the nodes listen on, in no translator's block.
const EXTRA_PORTS: u16 = 5_000;

/// IPv4 and UDP; and inside of them WireGuard's header and tag, IPv6 and UDP.
const OUTER: usize = 28;
const INNER: usize = 32 + 48;

pub(super) type Outgoing = (SocketAddr, SocketAddr, Option<u8>, Vec<u8>);

impl Node {
    pub(super) fn new(
        name: &str,
        host: HostId,
        config: Config,
        disk: Disk,
        pod: IpAddr,
        epoch: Instant,
    ) -> Self {
        Self {
            name: name.to_owned(),
            host,
            config,
            disk,
            skew: Duration::ZERO,
            overlay: None,
            tunnel: None,
            wake: None,
            woken: None,
            woken_now: 0,
            inbox: Vec::new(),
            events: Vec::new(),
            replies: BTreeMap::new(),
            moves: BTreeMap::new(),
            host_report: HostReport::default(),
            publications: Vec::new(),
            list_nodes: false,
            issues_authority: None,
            applied: None,
            lengths: BTreeSet::new(),
            relay: Relay::default(),
            heard: BTreeSet::new(),
            said: (0, 0),
            spent: None,
            blind: BTreeMap::new(),
            turn: Links::default(),
            paused: false,
            pod,
            epoch,
            extras: BTreeMap::new(),
            next_extra: EXTRA_PORTS,
            opened: 0,
            ports: Vec::new(),
            report_at: None,
            commands: 0,
        }
    }

    /// An address in the range that the node carries.
    pub fn pod(&self) -> IpAddr {
        self.pod
    }

    pub fn state(&self) -> State {
        self.disk
            .state
            .as_deref()
            .map(|bytes| State::decode(bytes).expect("a node reads its own file"))
            .unwrap_or_default()
    }

    pub fn alternate_port(&self) -> u16 {
        self.config.listen_port + 20_000
    }

    pub(super) fn start(&mut self, seed: [u8; 32], now: Now) {
        let identity = Identity {
            node: self.disk.identity.clone(),
            key: self.disk.key.clone(),
            next: self.disk.next.clone(),
            authority: self.issues_authority.clone(),
        };
        let mut overlay = Overlay::new(identity, self.config.clone(), self.state(), seed, now);
        overlay.handle_host(self.host_report.clone(), now);
        overlay.let_idle_peers_sleep(true, now);
        self.overlay = Some(overlay);
        if self.tunnel.is_none() {
            let [first, second, ..] = seed;
            let seed = u64::from_le_bytes([first, second, 0, 0, 0, 0, 0, 1]);
            self.tunnel = Some(Tunnel::new(self.config.backend, seed, self.epoch));
        }
        self.applied = None;
        self.report_at = Some(now.mono);
    }

    /// The agent is killed. A kernel's tunnel lives on.
    pub(super) fn kill(&mut self) {
        self.overlay = None;
        self.report_at = None;
        self.close_extras();
        self.turn.clear();
        match self.config.backend {
            Backend::Kernel => {}
            Backend::Userspace => self.power_off(),
        }
    }

    /// Relay ports to close and to open since this was last asked.
    pub(super) fn take_ports(&mut self) -> (Vec<u16>, Vec<u16>) {
        self.relay.take_ports()
    }

    pub(super) fn power_off(&mut self) {
        self.relay.clear();
        self.turn.clear();
        self.overlay = None;
        self.tunnel = None;
        self.close_extras();
        self.wake = None;
        self.report_at = None;
        self.applied = None;
    }

    fn close_extras(&mut self) {
        for port in std::mem::take(&mut self.extras).into_values() {
            self.ports.push((port, Port::Close));
        }
    }

    /// Opens and closes sockets as the plan names them.
    fn converge_sockets(&mut self, sockets: &BTreeSet<SocketId>) {
        let wanted: BTreeSet<u32> = sockets.iter().filter_map(|socket| socket.extra()).collect();
        let idle: Vec<u32> = self
            .extras
            .keys()
            .filter(|n| !wanted.contains(n))
            .copied()
            .collect();
        for port in idle
            .into_iter()
            .filter_map(|number| self.extras.remove(&number))
        {
            self.ports.push((port, Port::Close));
        }
        for number in wanted {
            if !self.extras.contains_key(&number) {
                self.next_extra = match self.next_extra {
                    20_000.. => EXTRA_PORTS,
                    port => port + 1,
                };
                self.extras.insert(number, self.next_extra);
                self.opened = self.opened.max(number + 1);
                self.ports.push((self.next_extra, Port::Open));
            }
        }
    }

    /// The local port from which the tunnel's packets to `remote` leave.
    fn tunnel_port(&self, remote: SocketAddr) -> u16 {
        let adoptions = self.applied.iter().flat_map(|plan| &plan.adoptions);
        adoptions
            .filter(|adoption| adoption.remote == remote)
            .map(|adoption| adoption.port)
            .next()
            .unwrap_or(self.config.listen_port)
    }

    /// Books what leaves the host.
    pub(super) fn book(&mut self, (source, destination, _, bytes): &Outgoing) {
        let known = self.heard.contains(&(source.port(), *destination));
        if is_request(bytes) && !known && !self.relay.holds(source.port()) {
            *self.blind.entry(destination.ip()).or_default() += 1;
        }
    }

    pub fn command(&mut self, command: Command, now: Now) -> CommandId {
        self.commands += 1;
        let id = self.commands;
        if let Some(overlay) = &mut self.overlay {
            overlay.handle_command(id, command, now);
        }
        id
    }

    pub(super) fn handle_delivery(&mut self, delivery: &Delivery, now: Now) {
        if self.paused {
            return;
        }
        self.woken_now = self.woken_now.saturating_sub(1);
        let port = delivery.local.port();
        self.heard.insert((port, delivery.remote));
        let main = port == self.config.listen_port;
        let extra = self
            .extras
            .iter()
            .find(|(_, local)| **local == port)
            .map(|(n, _)| *n);
        let tunnel = port == self.tunnel_port(delivery.remote) || main;
        if let Some(link) = self.turn.of_port(port) {
            self.take_from_turn(link, &delivery.bytes, now);
        } else if self.relay.holds(port) {
            if !is_indication(&delivery.bytes) {
                let source = (delivery.remote, port);
                self.relay.forward(source, &delivery.bytes, now.mono);
            } else if let Some(overlay) = &mut self.overlay {
                overlay.handle_datagram(
                    SocketId::Relay(port),
                    delivery.local,
                    delivery.remote,
                    &delivery.bytes,
                    now,
                );
            }
        } else if tunnel && is_wireguard(&delivery.bytes) {
            let remote = self.relay.alias(delivery.remote, self.config.backend);
            if let Some((tunnel, remote)) = self.tunnel.as_mut().zip(remote) {
                tunnel.handle_datagram(remote, &delivery.bytes, now.mono);
            }
        } else if let Some(overlay) = &mut self.overlay
            && (!main || is_binding(&delivery.bytes))
        {
            let socket = match extra {
                Some(number) => SocketId::Extra(number),
                None if main => SocketId::Main,
                None => SocketId::Alternate,
            };
            overlay.handle_datagram(
                socket,
                delivery.local,
                delivery.remote,
                &delivery.bytes,
                now,
            );
        }
    }

    /// A message has come on a link to a TURN server.
    fn take_from_turn(&mut self, link: u32, bytes: &[u8], now: Now) {
        if let Some((loopback, content)) = self.turn.unwrap(link, bytes) {
            let remote = self.relay.alias(loopback, self.config.backend);
            if let Some((tunnel, remote)) = self.tunnel.as_mut().zip(remote) {
                tunnel.handle_datagram(remote, &content, now.mono);
            }
        } else if let Some(overlay) = &mut self.overlay {
            let nobody = SocketAddr::from(([0, 0, 0, 0], 0));
            overlay.handle_datagram(SocketId::Turn(link), nobody, nobody, bytes, now);
        }
    }

    pub(super) fn take_line(&mut self, link: u32, line: Line, now: Now) {
        let state = match line {
            Line::Bytes(bytes) => return self.take_from_turn(link, &bytes, now),
            Line::Open | Line::Meet(..) => TurnLinkState::Up,
            Line::Close => TurnLinkState::Down {
                reason: "it closed the connection".to_owned(),
                certificate: false,
            },
        };
        self.tell_link(link, state, now);
    }

    fn tell_link(&mut self, number: u32, state: TurnLinkState, now: Now) {
        if let Some(overlay) = &mut self.overlay {
            overlay.handle_answer(Answer::TurnLink { number, state }, now);
        }
    }

    fn send_turn(&mut self, link: u32, bytes: Vec<u8>, out: &mut Vec<Outgoing>) {
        if let Some((port, server)) = self.turn.send(link, &bytes) {
            let source = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
            out.push((source, server, None, bytes));
        }
    }

    pub(super) fn handle_timeout(&mut self, now: Now) {
        let again = self.woken.replace(now.mono) == Some(now.mono);
        self.woken_now = if again { self.woken_now + 1 } else { 1 };
        if let Some(tunnel) = &mut self.tunnel
            && tunnel.poll_timeout().is_some_and(|at| at <= now.mono)
        {
            tunnel.handle_timeout(now.mono);
        }
        let Some(overlay) = &mut self.overlay else {
            return;
        };
        if self.report_at.is_some_and(|at| at <= now.mono)
            && let Some(tunnel) = &self.tunnel
        {
            overlay.handle_tunnel(&tunnel.report(now.mono), now);
            self.report_at = Some(now.mono + overlay.host_plan().tunnel.report_every);
        }
        if overlay.poll_timeout().is_some_and(|(at, _)| at <= now.mono) {
            overlay.handle_timeout(now);
        }
    }

    pub(super) fn schedule(&mut self, now: Instant) {
        let agent = self.overlay.as_ref().and_then(Overlay::poll_timeout);
        let tunnel = self.tunnel.as_ref().and_then(Tunnel::poll_timeout);
        self.wake = if self.paused {
            None
        } else {
            [agent.map(|(at, _)| at), tunnel, self.report_at]
                .into_iter()
                .flatten()
                .min()
                .map(|at| at.max(now))
        };
    }

    pub(super) fn why(&self) -> String {
        let agent = self.overlay.as_ref().and_then(Overlay::poll_timeout);
        let tunnel = self.tunnel.as_ref().and_then(Tunnel::poll_timeout);
        format!(
            "agent {agent:?}, tunnel {tunnel:?}, report {:?}",
            self.report_at
        )
    }

    /// Does all that the node wants; what is to leave the host.
    pub(super) fn drain(&mut self, now: Now) -> Vec<Outgoing> {
        let mut out = self.relay.take();
        let mut rounds = 0;
        loop {
            rounds += 1;
            assert!(rounds < 1_000, "{} never comes to rest", self.name);
            let mut moved = self.apply_plan(now);
            moved |= self.drain_overlay(now, &mut out);
            moved |= self.drain_tunnel(now, &mut out);
            if !moved {
                return out;
            }
        }
    }

    fn apply_plan(&mut self, now: Now) -> bool {
        let (Some(overlay), Some(tunnel)) = (&mut self.overlay, &mut self.tunnel) else {
            return false;
        };
        let plan = overlay.host_plan();
        let known = self.applied.as_ref().map(|applied| applied.generation);
        if known == Some(plan.generation) {
            return false;
        }
        tunnel.apply(&plan.tunnel, now.mono);
        let plan = plan.clone();
        self.relay.apply(&plan);
        self.turn.apply(&plan);
        self.converge_sockets(&plan.sockets);
        for (key, peer) in &plan.tunnel.peers {
            let moves = self.moves.entry(*key).or_default();
            if let Some(endpoint) = peer.endpoint
                && moves.last().is_none_or(|(_, last)| *last != endpoint)
            {
                moves.push((now.mono, endpoint));
            }
        }
        self.lengths = plan
            .routes
            .iter()
            .map(|route| route.prefix.prefix_len())
            .collect();
        let generation = plan.generation;
        let applied = Applied {
            generation,
            failures: Vec::new(),
            sockets: plan.sockets.clone(),
        };
        self.applied = Some(plan);
        if let Some(overlay) = &mut self.overlay {
            overlay.handle_applied(applied, now);
        }
        for number in std::mem::take(&mut self.turn.up) {
            self.tell_link(number, TurnLinkState::Up, now);
        }
        true
    }

    fn drain_overlay(&mut self, now: Now, out: &mut Vec<Outgoing>) -> bool {
        let mut moved = false;
        while let Some(overlay) = &mut self.overlay
            && let Some(event) = overlay.poll_event()
        {
            moved = true;
            match &event {
                Event::Persist => self.disk.state = Some(overlay.state().encode()),
                Event::NextKey { key } => self.disk.next = Some(key.clone()),
                Event::KeyRotated { key } => {
                    self.disk.key = key.clone();
                    self.disk.next = None;
                }
                Event::Joined { authority } => self.config.authorities = vec![*authority],
                Event::Reply { id, reply } => {
                    self.replies.insert(*id, reply.clone());
                }
                Event::Publish(publication) => self.publications.push(publication.clone()),
                Event::ListAgain => self.list_nodes = true,
                Event::Resolve { .. }
                | Event::Revoked
                | Event::Refused { .. }
                | Event::PeerUp { .. }
                | Event::PeerDown { .. } => {}
            }
            self.events.push(event);
        }
        while let Some(overlay) = &mut self.overlay
            && let Some(transmit) = overlay.poll_transmit()
        {
            moved = true;
            let inside = transmit.socket == SocketId::Overlay;
            let headers = if inside { INNER + OUTER } else { OUTER };
            self.said.0 += 1;
            self.said.1 += (transmit.bytes.len() + headers) as u64;
            let port = match transmit.socket {
                SocketId::Main => self.config.listen_port,
                SocketId::Alternate => self.alternate_port(),
                SocketId::Overlay => {
                    let source = transmit
                        .source
                        .or_else(|| self.overlay_address(transmit.destination.is_ipv4()));
                    if let Some(source) = source {
                        let inner = Inner {
                            source: SocketAddr::new(source, CONTROL_PORT),
                            destination: transmit.destination,
                            payload: transmit.bytes,
                        };
                        self.send_inner(&inner, now.mono);
                    }
                    continue;
                }
                SocketId::Turn(number) => {
                    self.send_turn(number, transmit.bytes, out);
                    continue;
                }
                SocketId::Relay(port) => port,
                SocketId::Extra(number) => match self.extras.get(&number) {
                    Some(port) => *port,
                    // Closed since; one that the plan never named would be a fault.
                    None if number < self.opened => continue,
                    None => panic!("{}: socket {number} was never open", self.name),
                },
            };
            let unspecified = match transmit.destination {
                SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            };
            let source = SocketAddr::new(transmit.source.unwrap_or(unspecified), port);
            out.push((source, transmit.destination, transmit.ttl, transmit.bytes));
        }
        moved
    }

    fn drain_tunnel(&mut self, now: Now, out: &mut Vec<Outgoing>) -> bool {
        let mut moved = false;
        while let Some(tunnel) = &mut self.tunnel
            && let Some((destination, bytes)) = tunnel.poll_transmit()
        {
            moved = true;
            if bytes.first() == Some(&1)
                && let Some(overlay) = &mut self.overlay
            {
                overlay.handle_initiation(destination, &bytes, now);
            }
            if destination.ip().is_loopback() {
                if let Some((link, framed)) = self.turn.wrap(destination, &bytes) {
                    self.send_turn(link, framed, out);
                }
                continue;
            }
            let unspecified = match destination {
                SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            };
            let source = SocketAddr::new(unspecified, self.tunnel_port(destination));
            out.push((source, destination, None, bytes));
        }
        while let Some(tunnel) = &mut self.tunnel
            && let Some((_, inner)) = tunnel.poll_received()
        {
            moved = true;
            if inner.destination.port() != CONTROL_PORT {
                self.inbox.push(inner);
            } else if self.owns(inner.destination.ip())
                && let Some(overlay) = &mut self.overlay
            {
                overlay.handle_datagram(
                    SocketId::Overlay,
                    inner.destination,
                    inner.source,
                    &inner.payload,
                    now,
                );
            }
        }
        moved
    }

    /// Sends a packet as the kernel would: by the routes of the plan.
    pub(super) fn send_inner(&mut self, inner: &Inner, now: Instant) {
        let routed = self
            .applied
            .as_ref()
            .and_then(|plan| route(&plan.routes, &self.lengths, inner.destination.ip()));
        match (routed, &mut self.tunnel) {
            (Some(RouteKind::Unicast { .. }), Some(tunnel)) if !self.paused => {
                tunnel.send(inner, now);
            }
            (Some(_) | None, _) => {}
        }
    }

    fn owns(&self, ip: IpAddr) -> bool {
        self.applied
            .as_ref()
            .is_some_and(|plan| plan.device.addresses.iter().any(|net| net.addr() == ip))
    }

    fn overlay_address(&self, ipv4: bool) -> Option<IpAddr> {
        let addresses = &self.applied.as_ref()?.device.addresses;
        addresses
            .iter()
            .map(IpNet::addr)
            .find(|ip| ip.is_ipv4() == ipv4)
    }
}

/// The most specific route, of equal ones that of the lowest metric. They are sorted by prefix, then metric.
fn route(routes: &BTreeSet<Route>, lengths: &BTreeSet<u8>, ip: IpAddr) -> Option<RouteKind> {
    lengths.iter().rev().find_map(|length| {
        let prefix = IpNet::new(ip, *length).ok()?.trunc();
        let least = Route {
            prefix,
            metric: 0,
            kind: RouteKind::Unicast {
                source: None,
                mtu: None,
            },
        };
        let first = routes.range(least..).next()?;
        (first.prefix == prefix).then_some(first.kind)
    })
}

/// A STUN Binding request.
fn is_request(bytes: &[u8]) -> bool {
    is_binding(bytes) && bytes.starts_with(&[0x00, 0x01])
}

/// What the shared port hands to the agent: STUN Binding messages only.
pub(super) fn is_binding(bytes: &[u8]) -> bool {
    matches!(
        bytes,
        [0x00, 0x01 | 0x11, _, _, 0x21, 0x12, 0xa4, 0x42, ..]
            | [0x01, 0x01 | 0x11, _, _, 0x21, 0x12, 0xa4, 0x42, ..]
    )
}
