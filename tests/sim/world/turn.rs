//! A TURN server of the simulated internet, and the links of nodes to it. What it understands of RFC 8656 is written
//! with another codec than the client's. A stream is a reliable line beside the network, which no filter sees.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use mesh_types::HostPlan;
use mesh_types::plan::{Proxy, TurnLink};
use mesh_types::turn::{TurnAddress, TurnSecret, TurnServer, TurnTransport};
use sim_net::{Delivery, Families, HostId, LinkSpec};
use stun_rs::attributes::stun::{
    ErrorCode, MessageIntegrity, Nonce, Realm, UserName, XorMappedAddress,
};
use stun_rs::attributes::turn::{ChannelNumber, Data, LifeTime, XorPeerAddress, XorRelayedAddress};
use stun_rs::methods::{ALLOCATE, CHANNEL_BIND, DATA, REFRESH, SEND};
use stun_rs::{
    Algorithm, AlgorithmId, DecoderContextBuilder, HMACKey, MessageClass, MessageDecoder,
    MessageDecoderBuilder, MessageEncoderBuilder, StunMessage, StunMessageBuilder,
};

use super::node::is_binding;
use super::{EPOCH, NodeId, World};

pub const PORT: u16 = 3478;
const FIRST_RELAYED: u16 = 49_152;
/// Of a reliable line, one way.
const DELAY: Duration = Duration::from_millis(20);
const REALM: &str = "example.org";
const NONCE: &str = "fresh";

/// How a client reaches the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Leg {
    Udp(SocketAddr),
    Line(NodeId, u32),
}

#[derive(Debug)]
struct Allocation {
    leg: Leg,
    port: u16,
    permitted: BTreeSet<IpAddr>,
    channels: BTreeMap<u16, SocketAddr>,
}

/// See the module.
pub struct Turn {
    host: HostId,
    ip: IpAddr,
    secret: String,
    on: bool,
    allocations: Vec<Allocation>,
    next_port: u16,
    /// What is under way on lines, by when it arrives.
    line: VecDeque<(Instant, Way, NodeId, u32, Line)>,
    /// Bytes of content relayed.
    pub relayed: u64,
    /// Requests with credentials that were refused, and allocations that were made.
    pub refused: u64,
    pub made: u64,
    /// TCP connections straight from node to node: whoever has begun one, and the other end once that has, too.
    meets: Vec<Meet>,
    /// Routers map TCP endpoint-independently, and the server tells where it sees a line.
    pub maps_tcp: bool,
}

/// One end of a connection from node to node.
#[derive(Debug, Clone, Copy)]
struct Meet {
    leg: (NodeId, u32),
    /// Its own address outside, and the one it connects to.
    ends: (SocketAddr, SocketAddr),
    up: bool,
}

/// Where the outside sees a line to a server.
fn outside(node: NodeId, link: u32) -> SocketAddr {
    let (third, port) = (node.0 as u8, 20_000 + link as u16);
    SocketAddr::from(([198, 51, third, 100], port))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    ToServer,
    ToNode,
}

/// What goes over a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    Open,
    /// From the port of this link's line, to a peer.
    Meet(u32, SocketAddr),
    Bytes(Vec<u8>),
    Close,
}

/// What a node's host does about links and proxies.
#[derive(Default)]
pub struct Links {
    links: BTreeMap<u32, (TurnLink, Option<u16>)>,
    proxies: BTreeSet<Proxy>,
    next_port: u16,
    /// Links that came up at once: those by datagrams.
    pub up: Vec<u32>,
    pub out: Vec<(u32, Line)>,
    pub ports: Vec<(u16, super::Port)>,
}

impl Links {
    pub fn apply(&mut self, plan: &HostPlan) {
        self.proxies.clone_from(&plan.proxies);
        let mut seen = BTreeSet::new();
        for proxy in &plan.proxies {
            assert!(seen.insert(proxy.loopback), "two proxies share an address");
        }
        let wanted: BTreeSet<u32> = plan.turn_links.iter().map(|link| link.number).collect();
        let gone: Vec<u32> = self
            .links
            .keys()
            .filter(|n| !wanted.contains(n))
            .copied()
            .collect();
        for number in gone {
            self.close(number);
        }
        for link in &plan.turn_links {
            if self.links.contains_key(&link.number) {
                continue;
            }
            let port = match link.transport {
                TurnTransport::Udp => {
                    self.next_port += 1;
                    self.ports.push((9_000 + self.next_port, super::Port::Open));
                    self.up.push(link.number);
                    Some(9_000 + self.next_port)
                }
                TurnTransport::Tcp | TurnTransport::Tls => {
                    let open = link.from.map(|from| Line::Meet(from, link.server));
                    self.out.push((link.number, open.unwrap_or(Line::Open)));
                    None
                }
            };
            self.links.insert(link.number, (link.clone(), port));
        }
    }

    fn close(&mut self, number: u32) {
        match self.links.remove(&number) {
            Some((_, Some(port))) => self.ports.push((port, super::Port::Close)),
            Some((_, None)) => self.out.push((number, Line::Close)),
            None => {}
        }
    }

    pub fn clear(&mut self) {
        let all: Vec<u32> = self.links.keys().copied().collect();
        all.into_iter().for_each(|number| self.close(number));
        self.proxies.clear();
        self.up.clear();
    }

    /// The link whose socket has this port.
    pub fn of_port(&self, port: u16) -> Option<u32> {
        let mut links = self.links.iter();
        links
            .find(|(_, (_, own))| *own == Some(port))
            .map(|(number, _)| *number)
    }

    /// Port and server where a message on a link leaves as a datagram; else it is on its line.
    pub fn send(&mut self, number: u32, bytes: &[u8]) -> Option<(u16, SocketAddr)> {
        match self.links.get(&number)? {
            (link, Some(port)) => Some((*port, link.server)),
            (_, None) => {
                self.out.push((number, Line::Bytes(bytes.to_vec())));
                None
            }
        }
    }

    /// Link and framed bytes of what the tunnel sends to a loopback address.
    pub fn wrap(&self, loopback: SocketAddr, bytes: &[u8]) -> Option<(u32, Vec<u8>)> {
        let proxy = self
            .proxies
            .iter()
            .find(|proxy| proxy.loopback == loopback)?;
        let mut out = proxy.channel.to_be_bytes().to_vec();
        out.extend(
            u16::try_from(bytes.len())
                .expect("a datagram")
                .to_be_bytes(),
        );
        out.extend(bytes);
        Some((proxy.link, out))
    }

    /// What the tunnel is to hear of a message on a link: from which loopback address, and what.
    pub fn unwrap(&self, number: u32, bytes: &[u8]) -> Option<(SocketAddr, Vec<u8>)> {
        let (channel, content) = channel_data(bytes)?;
        if is_binding(content) {
            return None;
        }
        let of = |proxy: &&Proxy| proxy.link == number && proxy.channel == channel;
        let proxy = self.proxies.iter().find(of)?;
        Some((proxy.loopback, content.to_vec()))
    }
}

fn channel_data(bytes: &[u8]) -> Option<(u16, &[u8])> {
    let ([c0, c1, l0, l1], rest) = bytes.split_first_chunk()?;
    let length = usize::from(u16::from_be_bytes([*l0, *l1]));
    (c0 & 0xc0 == 0x40).then(|| (u16::from_be_bytes([*c0, *c1]), &rest[..length]))
}

impl World {
    /// Adds a TURN server to the core of the internet.
    pub fn turn_server(&mut self, secret: &str) {
        let core = self.net.core();
        let host = self.net.add_host("turn", core, Families::V4, LinkSpec::LAN);
        self.net.bind(host, PORT);
        let ip = self.net.addresses(host)[0].ip;
        self.turn = Some(Turn {
            host,
            ip,
            secret: secret.to_owned(),
            on: true,
            allocations: Vec::new(),
            next_port: FIRST_RELAYED,
            line: VecDeque::new(),
            relayed: 0,
            refused: 0,
            made: 0,
            meets: Vec::new(),
            maps_tcp: false,
        });
    }

    /// A node's configuration of it.
    pub fn turn_config(&self, transport: TurnTransport, secret: &str) -> TurnServer {
        let turn = self.turn.as_ref().expect("there is a server");
        TurnServer {
            address: TurnAddress {
                host: turn.ip.to_string(),
                port: PORT,
                transport,
            },
            secret: Some(TurnSecret::new(secret)),
        }
    }

    /// TCP connections of a node straight to peers, those that it is about to make too.
    pub fn connections(&self, id: NodeId) -> usize {
        let all = self.nodes[id.0].turn.links.values();
        all.filter(|(link, _)| link.from.is_some()).count()
    }

    /// Switches it off, or on again: it remembers nothing.
    pub fn set_turn(&mut self, on: bool) {
        let now = self.net.now();
        let turn = self.turn.as_mut().expect("there is a server");
        turn.on = on;
        for allocation in std::mem::take(&mut turn.allocations) {
            self.net.unbind(turn.host, allocation.port);
            if let Leg::Line(node, link) = allocation.leg {
                turn.line
                    .push_back((now + DELAY, Way::ToNode, node, link, Line::Close));
            }
        }
    }

    pub(super) fn turn_due(&self) -> Option<Instant> {
        let line = self.turn.iter().flat_map(|turn| &turn.line);
        line.map(|(at, ..)| *at).min()
    }

    /// What a node puts on its lines.
    pub(super) fn turn_lines(&mut self, id: NodeId) {
        let now = self.net.now();
        for (link, line) in std::mem::take(&mut self.nodes[id.0].turn.out) {
            let turn = self.turn.as_mut().expect("links lead to a server");
            turn.line
                .push_back((now + DELAY, Way::ToServer, id, link, line));
        }
    }

    /// Carries what has arrived on lines.
    pub(super) fn run_turn(&mut self, now: Instant) {
        while let Some(turn) = &mut self.turn
            && let Some(index) = turn.line.iter().position(|(at, ..)| *at <= now)
            && let Some((_, way, node, link, line)) = turn.line.remove(index)
        {
            match way {
                Way::ToServer => {
                    let leg = Leg::Line(node, link);
                    match line {
                        Line::Meet(from, at) => turn.meet((node, link), from, at, now),
                        Line::Bytes(_) | Line::Close
                            if turn.meets.iter().any(|meet| meet.leg == (node, link)) =>
                        {
                            turn.pass_on((node, link), line, now);
                        }
                        Line::Open if turn.on => turn.say(leg, Line::Open, now),
                        Line::Open => turn.say(leg, Line::Close, now),
                        Line::Bytes(bytes) if turn.on => self.at_turn(leg, &bytes, now),
                        Line::Bytes(_) => {}
                        Line::Close => self.end_allocation(leg),
                    }
                }
                Way::ToNode => {
                    let clock = self.clock(node);
                    self.nodes[node.0].take_line(link, line, clock);
                    self.pump(node);
                }
            }
        }
    }

    fn end_allocation(&mut self, leg: Leg) {
        let turn = self.turn.as_mut().expect("there is a server");
        for allocation in turn.allocations.extract_if(.., |a| a.leg == leg) {
            self.net.unbind(turn.host, allocation.port);
        }
    }

    pub(super) fn at_turn_host(&self, host: HostId) -> bool {
        self.turn.as_ref().is_some_and(|turn| turn.host == host)
    }

    /// A datagram has come to the server's host.
    pub(super) fn turn_delivery(&mut self, delivery: &Delivery) {
        let now = self.net.now();
        let Some(turn) = self.turn.as_mut().filter(|turn| turn.on) else {
            return;
        };
        if delivery.local.port() == PORT {
            return self.at_turn(Leg::Udp(delivery.remote), &delivery.bytes, now);
        }
        let port = delivery.local.port();
        let Some(allocation) = turn.allocations.iter().find(|a| a.port == port) else {
            return;
        };
        if !allocation.permitted.contains(&delivery.remote.ip()) {
            return;
        }
        turn.relayed += delivery.bytes.len() as u64;
        let mut channels = allocation.channels.iter();
        let channel = channels.find(|(_, peer)| **peer == delivery.remote);
        let bytes = match channel {
            Some((number, _)) => {
                let mut out = number.to_be_bytes().to_vec();
                out.extend((delivery.bytes.len() as u16).to_be_bytes());
                out.extend(&delivery.bytes);
                out
            }
            None => encode(
                StunMessageBuilder::new(DATA, MessageClass::Indication)
                    .with_attribute(XorPeerAddress::from(delivery.remote))
                    .with_attribute(Data::new(&delivery.bytes)),
            ),
        };
        let leg = allocation.leg;
        self.tell_client(leg, bytes, now);
    }

    fn tell_client(&mut self, leg: Leg, bytes: Vec<u8>, now: Instant) {
        let turn = self.turn.as_mut().expect("there is a server");
        match leg {
            Leg::Udp(client) => {
                let _ = self.net.send(
                    turn.host,
                    SocketAddr::new(turn.ip, PORT),
                    client,
                    bytes,
                    None,
                );
            }
            Leg::Line(..) => turn.say(leg, Line::Bytes(bytes), now),
        }
    }

    /// A message of a client.
    fn at_turn(&mut self, leg: Leg, bytes: &[u8], now: Instant) {
        let unix = (EPOCH + self.elapsed()).as_secs();
        let turn = self.turn.as_mut().expect("there is a server");
        if let Some((channel, content)) = channel_data(bytes) {
            let own = turn.allocations.iter().find(|a| a.leg == leg);
            if let Some((port, peer)) = own.and_then(|a| Some((a.port, *a.channels.get(&channel)?)))
            {
                turn.relayed += content.len() as u64;
                let source = SocketAddr::new(turn.ip, port);
                let _ = self
                    .net
                    .send(turn.host, source, peer, content.to_vec(), None);
            }
            return;
        }
        let Ok((message, _)) = MessageDecoder::default().decode(bytes) else {
            return;
        };
        if message.method() == SEND {
            let peer = message
                .get::<XorPeerAddress>()
                .and_then(|a| a.as_xor_peer_address().ok());
            let data = message.get::<Data>().and_then(|a| a.as_data().ok());
            let own = turn.allocations.iter().find(|a| a.leg == leg);
            if let Some(((peer, data), own)) = peer.zip(data).zip(own)
                && own.permitted.contains(&peer.socket_address().ip())
            {
                let source = SocketAddr::new(turn.ip, own.port);
                let content = data.as_bytes().to_vec();
                let _ = self
                    .net
                    .send(turn.host, source, *peer.socket_address(), content, None);
            }
            return;
        }
        let answer = turn.answer(leg, &message, bytes, unix);
        let fresh = turn.allocations.last().map(|a| a.port);
        let host = turn.host;
        if let Some(port) = fresh {
            self.net.bind(host, port);
        }
        self.tell_client(leg, answer, now);
        if message.method() == REFRESH
            && message
                .get::<LifeTime>()
                .and_then(|a| a.as_life_time().ok())
                .is_some_and(|l| *l == 0)
        {
            self.end_allocation(leg);
        }
    }
}

impl Turn {
    /// A node connects to another, which must have done so too, or do so before this one gives up.
    fn meet(&mut self, leg: (NodeId, u32), from: u32, at: SocketAddr, now: Instant) {
        let ends = (outside(leg.0, from), at);
        let mut up = false;
        if let Some(other) = self
            .meets
            .iter_mut()
            .find(|meet| meet.ends == (ends.1, ends.0))
        {
            (other.up, up) = (true, true);
            let other = other.leg;
            for (node, link) in [leg, other] {
                self.say(Leg::Line(node, link), Line::Open, now);
            }
        }
        self.meets.push(Meet { leg, ends, up });
    }

    /// What goes from one end to the other, the end of the connection too.
    fn pass_on(&mut self, leg: (NodeId, u32), line: Line, now: Instant) {
        let own = self.meets.iter().find(|meet| meet.leg == leg);
        let own = *own.expect("a connection");
        let reverse = (own.ends.1, own.ends.0);
        let other = self
            .meets
            .iter()
            .find(|meet| meet.up && own.up && meet.ends == reverse)
            .map(|meet| meet.leg);
        if line == Line::Close {
            let gone = |meet: &Meet| meet.leg == leg || Some(meet.leg) == other;
            self.meets.retain(|meet| !gone(meet));
        }
        if let Some((node, link)) = other {
            self.say(Leg::Line(node, link), line, now);
        }
    }

    fn say(&mut self, leg: Leg, line: Line, now: Instant) {
        if let Leg::Line(node, link) = leg {
            self.line
                .push_back((now + DELAY, Way::ToNode, node, link, line));
        }
    }

    fn answer(&mut self, leg: Leg, message: &StunMessage, bytes: &[u8], unix: u64) -> Vec<u8> {
        let reply = |class| {
            StunMessageBuilder::new(message.method(), class)
                .with_transaction_id(*message.transaction_id())
        };
        let error = |code: u16| {
            let code = stun_rs::ErrorCode::new(code, "no").expect("a code");
            reply(MessageClass::ErrorResponse).with_attribute(ErrorCode::new(code))
        };
        let challenge = |code| {
            error(code)
                .with_attribute(Realm::new(REALM).expect("a realm"))
                .with_attribute(Nonce::new(NONCE).expect("a nonce"))
        };
        let Some(key) = self.key(message, bytes, unix) else {
            self.refused += u64::from(message.get::<UserName>().is_some());
            return encode(challenge(401));
        };
        let own = self.allocations.iter().position(|a| a.leg == leg);
        let answer = match (message.method(), own) {
            (ALLOCATE, None) => {
                self.made += 1;
                self.next_port += 1;
                self.allocations.push(Allocation {
                    leg,
                    port: self.next_port,
                    permitted: BTreeSet::new(),
                    channels: BTreeMap::new(),
                });
                let relayed = SocketAddr::new(self.ip, self.next_port);
                let answer = reply(MessageClass::SuccessResponse)
                    .with_attribute(XorRelayedAddress::from(relayed))
                    .with_attribute(LifeTime::from(600));
                match leg {
                    Leg::Line(node, link) if self.maps_tcp => {
                        answer.with_attribute(XorMappedAddress::from(outside(node, link)))
                    }
                    Leg::Line(..) | Leg::Udp(_) => answer,
                }
            }
            (ALLOCATE, Some(_)) | (_, None) => error(437),
            (REFRESH, Some(_)) => {
                reply(MessageClass::SuccessResponse).with_attribute(LifeTime::from(600))
            }
            (CHANNEL_BIND, Some(own)) => {
                let number = message
                    .get::<ChannelNumber>()
                    .and_then(|a| a.as_channel_number().ok());
                let peer = message
                    .get::<XorPeerAddress>()
                    .and_then(|a| a.as_xor_peer_address().ok());
                let (number, peer) = number.zip(peer).expect("a channel and a peer");
                let peer = *peer.socket_address();
                let own = &mut self.allocations[own];
                let before = own.channels.insert(number.number(), peer);
                assert!(
                    before.is_none_or(|before| before == peer),
                    "a number for two peers"
                );
                let numbers = own
                    .channels
                    .values()
                    .filter(|other| **other == peer)
                    .count();
                assert_eq!(numbers, 1, "two numbers for one peer");
                own.permitted.insert(peer.ip());
                reply(MessageClass::SuccessResponse)
            }
            (other, Some(_)) => panic!("what is {other:?} for?"),
        };
        encode(answer.with_attribute(MessageIntegrity::new(key)))
    }

    /// The key of a request that is signed rightly, by credentials that have not expired.
    fn key(&self, message: &StunMessage, bytes: &[u8], unix: u64) -> Option<HMACKey> {
        message.get::<MessageIntegrity>()?;
        let name = message
            .get::<UserName>()?
            .as_user_name()
            .ok()?
            .as_str()
            .to_owned();
        let expiry: u64 = name.split(':').next()?.parse().ok()?;
        if expiry < unix {
            return None;
        }
        let password = BASE64.encode(hmac_sha1::hmac_sha1(
            self.secret.as_bytes(),
            name.as_bytes(),
        ));
        let key = HMACKey::new_long_term(&name, REALM, password, Algorithm::from(AlgorithmId::MD5))
            .ok()?;
        let context = DecoderContextBuilder::default()
            .with_key(key.clone())
            .with_validation()
            .build();
        let decoder = MessageDecoderBuilder::default()
            .with_context(context)
            .build();
        decoder.decode(bytes).ok().map(|_| key)
    }
}

fn encode(message: StunMessageBuilder) -> Vec<u8> {
    let mut bytes = vec![0; 2048];
    let encoder = MessageEncoderBuilder::default().build();
    let length = encoder
        .encode(&mut bytes, &message.build())
        .expect("it fits");
    bytes.truncate(length);
    bytes
}
