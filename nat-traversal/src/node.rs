//! What all path agents of a node share: keys, epoch, budgets, the own NAT, and the ways out.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use mesh_types::consts::{CANDIDATES_MAX, RELAY_PORTS, WIREGUARD_OVERHEAD};
use mesh_types::message::{Doubt, PathReady, RelayBind, RelayDistance};
use mesh_types::report::HostAddress;
use mesh_types::{Candidate, CandidateKind, Filtering, Idx, Mapping, Message, NatReport, PeerId};
use mesh_types::{SocketId, Transmit, WgSecret};
use rand_chacha::ChaCha20Rng;
use rand_core::{Rng as _, SeedableRng as _};

use crate::api::{Config, Counters, Event, PathKind};
use crate::budget::{Admission, Budget};
use crate::candidate;
use crate::flood::Flood;
use crate::hard::budget::Searches;
use crate::hard::sampler::Samples;
use crate::hard::sockets::Sockets;
use crate::nat_kind::NatKind;
use crate::probe::{Link, transaction};
use crate::schedule::{ANSWER_LIFETIME, KEEPALIVE};
use crate::score;
use crate::stun::{Class, Outgoing};
use crate::turn::Turn;

/// Validated sources remembered; beyond that those that answered longest ago are treated as strangers.
const VALIDATED_MAX: usize = 8192;
/// Of a STUN attribute (RFC 8489 14), bytes.
const ATTRIBUTE_HEADER: usize = 4;
/// No honest epoch lies further ahead than this (s): a member that lies cannot use up the epochs.
const EPOCH_LEAD: u64 = 10 * 366 * 86_400;
/// Epochs are Unix seconds; a node without a clock still accepts those of a mesh that has one.
const EPOCH_FLOOR: u64 = 2_000_000_000;

/// Why a probe was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To see whether it arrives.
    Check,
    /// To choose the path it travels on.
    Ready(u64),
    /// The same, and to tell the peer that the path in use is in doubt.
    Doubt,
    /// To see whether an answer from another port arrives.
    OtherPort,
    /// To see how another port of the peer sees us.
    Mapping,
    /// To bind to the peer's port for this other one.
    Bind(PeerId),
    /// To see how the peer sees a socket that is no path.
    Sample(u64),
    /// To have an answer sent to this port of ours.
    Elsewhere(u16),
    /// To a port that the peer may have.
    Search,
    /// To open the own translators: it ends after so many routers.
    Open(u8),
    /// To see whether the path carries a packet of this size inside the tunnel.
    Mtu(u16),
}

/// What has changed of this node, seen from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// Nothing.
    Nothing,
    /// What is thought of the NAT.
    Verdict,
    /// Where it can be reached.
    Endpoints,
}

/// A public address of a relay.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RelayAddress {
    pub(crate) relay: PeerId,
    /// Its host has it, no translator.
    pub(crate) own: bool,
}

/// A probe that waits for its answer.
#[derive(Debug, Clone)]
pub(crate) struct Pending {
    pub(crate) peer: PeerId,
    pub(crate) socket: SocketId,
    pub(crate) remote: SocketAddr,
    pub(crate) sent: Instant,
    pub(crate) link: (Idx, Idx),
    pub(crate) purpose: Purpose,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) config: Config,
    /// Current first.
    pub(crate) keys: Vec<WgSecret>,
    pub(crate) alternate_port: Option<u16>,
    pub(crate) admission: Admission,
    pub(crate) hosts: Vec<HostAddress>,
    /// A port of the gateway that leads here.
    pub(crate) mapped: Option<SocketAddr>,
    pub(crate) endpoints: Vec<Candidate>,
    pub(crate) nat: NatKind,
    pub(crate) budget: Budget,
    pub(crate) searches: Searches,
    pub(crate) sockets: Sockets,
    pub(crate) samples: Samples,
    pub(crate) flood: Flood,
    pub(crate) counters: Counters,
    pub(crate) transmits: VecDeque<Transmit>,
    pub(crate) events: VecDeque<Event>,
    pub(crate) pending: BTreeMap<[u8; 12], Pending>,
    /// Addresses from which an answer to a probe came, and when the last.
    pub(crate) validated: BTreeMap<SocketAddr, Instant>,
    /// Somebody wants to know how others see us now.
    pub(crate) refresh: bool,
    /// Some peer has a path.
    pub(crate) connected: bool,
    /// Some peer has a path that is not through an own TURN server: UDP is not blocked.
    pub(crate) by_udp: bool,
    pub(crate) turn: Turn,
    /// Least and most time between two packets that keep a mapping.
    pub(crate) keepalive: (Duration, Duration),
    /// Public addresses of members that relay.
    pub(crate) relay_ips: BTreeMap<IpAddr, RelayAddress>,
    /// Relays in reach, nearest first, as calls tell it.
    pub(crate) relays: Vec<RelayDistance>,
    /// Peers of which something has changed that decides whether they are met at a relay.
    pub(crate) meet: BTreeSet<PeerId>,
    /// Idle peers may sleep: their next packet will be told.
    pub(crate) lazy: bool,
    /// Peers may be searched for, from many sockets or at many ports.
    pub(crate) birthday_search: bool,
    /// The last run reached peers through TURN servers only, and UDP has led nowhere yet.
    pub(crate) expects_turn: bool,
    /// The own name as a relay.
    pub(crate) name: Option<Idx>,
    /// Relays through which others call this node.
    pub(crate) anchors: BTreeSet<PeerId>,
    /// There is one, or strangers reach this node.
    pub(crate) anchored: bool,
    /// Others are relayed here.
    pub(crate) relaying: bool,
    reported_nat: NatReport,
    epoch: u32,
    sequence: u64,
    choices: u32,
    rng: ChaCha20Rng,
}

impl Node {
    pub(crate) fn new(config: Config, epoch: u32, seed: [u8; 32], now: Instant) -> Self {
        let mut rng = ChaCha20Rng::from_seed(seed);
        let mut turn_seed = seed;
        turn_seed[0] ^= 0xff;
        let admission = Admission::new(config.allow_loopback);
        Self {
            config,
            keys: Vec::new(),
            alternate_port: None,
            admission,
            hosts: Vec::new(),
            mapped: None,
            endpoints: Vec::new(),
            nat: NatKind::new(),
            budget: Budget::default(),
            searches: Searches::default(),
            sockets: Sockets::default(),
            samples: Samples::default(),
            flood: Flood::new(rng.next_u64()),
            counters: Counters::default(),
            transmits: VecDeque::new(),
            events: VecDeque::new(),
            pending: BTreeMap::new(),
            validated: BTreeMap::new(),
            refresh: false,
            connected: false,
            by_udp: false,
            turn: Turn::new(turn_seed, now),
            keepalive: KEEPALIVE,
            relay_ips: BTreeMap::new(),
            relays: Vec::new(),
            meet: BTreeSet::new(),
            lazy: false,
            birthday_search: true,
            expects_turn: false,
            name: None,
            anchors: BTreeSet::new(),
            anchored: false,
            relaying: false,
            reported_nat: NatReport::default(),
            epoch,
            sequence: 0,
            choices: 0,
            rng,
        }
    }

    pub(crate) fn epoch(&self) -> u32 {
        self.epoch
    }

    /// A sequence of this epoch, never given before.
    pub(crate) fn next_sequence(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    /// Rises with every choice and every call, across restarts too.
    pub(crate) fn next_choice(&mut self) -> u64 {
        self.choices = self.choices.wrapping_add(1);
        (u64::from(self.epoch) << 32) | u64::from(self.choices)
    }

    /// Random bytes of the seed.
    pub(crate) fn random<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        self.rng.fill_bytes(&mut out);
        out
    }

    /// A random duration, `low` to `high`.
    pub(crate) fn jitter(&mut self, (low, high): (Duration, Duration)) -> Duration {
        low + (high - low) * (self.rng.next_u32() >> 16) / 0x1_0000
    }

    /// Until the next packet that keeps a mapping.
    pub(crate) fn keepalive(&mut self) -> Duration {
        self.jitter(self.keepalive)
    }

    /// A peer says it has seen `seen` of ours: goes above it. True where that was news to believe.
    pub(crate) fn raise_epoch(&mut self, seen: u32, unix_secs: u64) -> bool {
        if seen < self.epoch || u64::from(seen) > unix_secs.max(EPOCH_FLOOR) + EPOCH_LEAD {
            self.counters.add("refused-epoch");
            return false;
        }
        self.epoch = seen + 1;
        self.sequence = 0;
        self.pending.clear();
        self.counters.add("epoch-raised");
        self.events.push_back(Event::EpochRaised(self.epoch));
        true
    }

    /// The relay that lends this address, as far as addresses tell: behind a translator all share one, and only
    /// the ports that relays usually lend are theirs.
    pub(crate) fn relay_at(&self, address: &SocketAddr) -> Option<PeerId> {
        let at = self.relay_ips.get(&address.ip())?;
        let lent = (RELAY_PORTS.0..=RELAY_PORTS.1).contains(&address.port());
        (at.own || lent).then_some(at.relay)
    }

    /// Is this node seen under an address of its own, and reached there by strangers?
    pub(crate) fn is_open(&self) -> bool {
        let port = self.config.listen_port;
        let own = |seen: &SocketAddr| {
            seen.port() == port && self.hosts.iter().any(|host| host.ip == seen.ip())
        };
        let seen = self.nat.reflexive(self.config.stun.len());
        self.nat.report().filtering == Filtering::EndpointIndependent && seen.iter().any(own)
    }

    /// The tier of a remote address, seen from this host.
    pub(crate) fn tier(&self, ip: &IpAddr) -> PathKind {
        let on_link = self.hosts.iter().any(|host| {
            ipnet::IpNet::new(host.ip, host.prefix_len)
                .is_ok_and(|net| net.prefix_len() > 0 && net.contains(ip))
        });
        score::tier(ip, on_link)
    }

    /// Sends a Binding request to a peer.
    pub(crate) fn probe(
        &mut self,
        peer: PeerId,
        link: &Link,
        (socket, remote): (SocketId, SocketAddr),
        purpose: Purpose,
        now: Instant,
    ) {
        let transaction = transaction(self.epoch, self.next_sequence());
        let data = match purpose {
            Purpose::Ready(seq) => Some(Message::from(PathReady { seq }).encode()),
            Purpose::Doubt => Some(Message::from(Doubt {}).encode()),
            // Nothing to say: the receiver takes it for no path.
            Purpose::Sample(_) | Purpose::Elsewhere(_) => Some(Vec::new()),
            Purpose::Check
            | Purpose::OtherPort
            | Purpose::Mapping
            | Purpose::Bind(_)
            | Purpose::Search
            | Purpose::Open(_)
            | Purpose::Mtu(_) => None,
        };
        let username = link.username();
        let mut outgoing = Outgoing {
            transaction,
            username: Some(&username),
            change_port: purpose == Purpose::OtherPort,
            data: data.as_deref(),
            password: Some(&link.password),
            ..Outgoing::default()
        };
        if let Purpose::Elsewhere(port) = purpose {
            outgoing.response_port = Some(port);
        }
        let mut bytes = outgoing.encode(Class::Request);
        let padding;
        if let Purpose::Mtu(size) = purpose {
            let wanted = usize::from(size + WIREGUARD_OVERHEAD);
            padding = vec![0; wanted.saturating_sub(bytes.len() + ATTRIBUTE_HEADER)];
            outgoing.data = Some(&padding);
            bytes = outgoing.encode(Class::Request);
        }
        match socket {
            SocketId::Turn(_) => {}
            SocketId::Main
            | SocketId::Alternate
            | SocketId::Overlay
            | SocketId::Extra(_)
            | SocketId::Relay(_) => self.nat.sent(remote.ip(), !self.by_udp, now),
        }
        self.counters.add("probes-sent");
        self.await_answer((transaction, socket), peer, link, remote, purpose, now);
        let ttl = match purpose {
            Purpose::Open(hops) => Some(hops),
            Purpose::Check
            | Purpose::Ready(_)
            | Purpose::Doubt
            | Purpose::OtherPort
            | Purpose::Mapping
            | Purpose::Bind(_)
            | Purpose::Sample(_)
            | Purpose::Elsewhere(_)
            | Purpose::Search
            | Purpose::Mtu(_) => None,
        };
        self.transmit_within(ttl, socket, None, remote, bytes);
    }

    /// Asks a relay for a peer.
    pub(crate) fn bind(
        &mut self,
        relay: PeerId,
        link: &Link,
        remote: SocketAddr,
        (peer, bind): (PeerId, RelayBind),
        now: Instant,
    ) {
        let transaction = transaction(self.epoch, self.next_sequence());
        let bytes = Outgoing {
            transaction,
            username: Some(&link.username()),
            data: Some(&Message::from(bind).encode()),
            password: Some(&link.password),
            ..Outgoing::default()
        }
        .encode(Class::Indication);
        self.counters.add("relay-binds-sent");
        let sent = (transaction, SocketId::Main);
        self.await_answer(sent, relay, link, remote, Purpose::Bind(peer), now);
        self.transmit(SocketId::Main, None, remote, bytes);
    }

    fn await_answer(
        &mut self,
        (transaction, socket): ([u8; 12], SocketId),
        peer: PeerId,
        link: &Link,
        remote: SocketAddr,
        purpose: Purpose,
        now: Instant,
    ) {
        // Ids ascend with time, so the oldest come first.
        while let Some(oldest) = self.pending.first_entry()
            && now.saturating_duration_since(oldest.get().sent) > ANSWER_LIFETIME
        {
            oldest.remove();
        }
        let pending = Pending {
            peer,
            socket,
            remote,
            sent: now,
            link: (link.own, link.peer),
            purpose,
        };
        self.pending.insert(transaction, pending);
    }

    /// Sends a Binding request that ends after so many routers.
    pub(crate) fn opener(
        &mut self,
        peer: PeerId,
        link: &Link,
        remote: SocketAddr,
        hops: u8,
        now: Instant,
    ) {
        let purpose = Purpose::Open(hops);
        self.probe(peer, link, (SocketId::Main, remote), purpose, now);
        self.counters.add("openers-sent");
    }

    /// Random numbers below `limit`, which is not 0.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        let limit = u64::try_from(limit).unwrap_or(u64::MAX).max(1);
        usize::try_from(self.rng.next_u64() % limit).unwrap_or_default()
    }

    /// Queues a datagram.
    pub(crate) fn transmit(
        &mut self,
        socket: SocketId,
        source: Option<IpAddr>,
        destination: SocketAddr,
        bytes: Vec<u8>,
    ) {
        self.transmit_within(None, socket, source, destination, bytes);
    }

    /// Queues a datagram that ends after `ttl` routers.
    fn transmit_within(
        &mut self,
        ttl: Option<u8>,
        socket: SocketId,
        source: Option<IpAddr>,
        destination: SocketAddr,
        bytes: Vec<u8>,
    ) {
        if bytes.is_empty() {
            self.counters.add("too-long");
            return;
        }
        if let SocketId::Turn(link) = socket {
            match self.turn.wrap(link, destination, &bytes) {
                Some((server, framed)) => self.transmit_raw(socket, server, framed),
                None => self.counters.add("turn-no-link"),
            }
            return;
        }
        self.transmits.push_back(Transmit {
            socket,
            source,
            destination,
            ttl,
            bytes,
        });
    }

    /// Queues what goes to a TURN server as it is.
    pub(crate) fn transmit_raw(&mut self, socket: SocketId, server: SocketAddr, bytes: Vec<u8>) {
        self.transmits.push_back(Transmit {
            socket,
            source: None,
            destination: server,
            ttl: None,
            bytes,
        });
    }

    /// An answer came from there.
    pub(crate) fn validate(&mut self, remote: SocketAddr, now: Instant) {
        self.validated.insert(remote, now);
        if self.validated.len() > VALIDATED_MAX {
            let oldest = self.validated.iter().min_by_key(|(_, at)| **at);
            let oldest = oldest.map(|(remote, _)| *remote);
            oldest.and_then(|remote| self.validated.remove(&remote));
        }
    }

    /// The address of our alternate port as a remote may reach it, given where its request arrived.
    pub(crate) fn other_address(&self, local: SocketAddr) -> Option<SocketAddr> {
        let ip = if local.ip().is_unspecified() {
            self.hosts
                .iter()
                .find(|host| host.ip.is_ipv4() == local.is_ipv4())?
                .ip
        } else {
            local.ip()
        };
        Some(SocketAddr::new(ip, self.alternate_port?))
    }

    /// Judges the own NAT and recomputes the candidates.
    pub(crate) fn update_endpoints(&mut self, now: Instant) -> Change {
        if !std::mem::take(&mut self.nat.unjudged) {
            return Change::Nothing;
        }
        let ips: Vec<_> = self.hosts.iter().map(|host| host.ip).collect();
        self.nat.judge(&ips, self.config.listen_port, now);
        let reflexive = self.nat.reflexive(self.config.stun.len());
        let reflexive: Vec<_> = reflexive
            .into_iter()
            .filter(|address| self.admission.admits(address))
            .map(|address| self.settled(address))
            .collect();
        let mapped = self.mapped.filter(|address| self.admission.admits(address));
        let mut endpoints =
            candidate::endpoints(mapped, &self.hosts, self.config.listen_port, &reflexive);
        let relayed = self.turn.relayed().filter(|at| self.admission.admits(at));
        endpoints.extend(relayed.map(|address| Candidate {
            kind: CandidateKind::Relayed,
            address,
        }));
        let tcp = self
            .turn
            .mapped_tcp()
            .filter(|at| self.admission.admits(at));
        endpoints.extend(tcp.map(|address| Candidate {
            kind: CandidateKind::Tcp,
            address,
        }));
        endpoints.sort();
        endpoints.truncate(CANDIDATES_MAX);
        let change = if endpoints != self.endpoints {
            Change::Endpoints
        } else if self.nat.report() != self.reported_nat {
            Change::Verdict
        } else {
            Change::Nothing
        };
        self.endpoints = endpoints;
        self.reported_nat = self.nat.report();
        change
    }

    /// Where every remote sees another port, none is better than the one that is announced already, while
    /// anybody sees it: it tells the external address, and changing it would call all peers each time one of
    /// them answers.
    fn settled(&self, seen: SocketAddr) -> SocketAddr {
        let settled = match self.nat.report().mapping {
            Mapping::AddressDependent | Mapping::AddressAndPortDependent => self
                .endpoints
                .iter()
                .filter(|own| own.kind == CandidateKind::ServerReflexive)
                .map(|own| own.address)
                .find(|address| address.ip() == seen.ip() && self.nat.shows(*address)),
            Mapping::EndpointIndependent | Mapping::Unknown => None,
        };
        settled.unwrap_or(seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instant::start;

    #[test]
    fn sources_that_answered_lately_are_known_however_many_came_before() {
        let now = start();
        let mut node = Node::new(Config::default(), 1, [0; 32], now);
        let at = |n: usize| SocketAddr::from(([192, 0, 2, 1], u16::try_from(n).unwrap()));
        for n in 0..=VALIDATED_MAX {
            node.validate(at(n), now + Duration::from_millis(n as u64));
        }
        assert_eq!(node.validated.len(), VALIDATED_MAX);
        assert!(node.validated.contains_key(&at(VALIDATED_MAX)));
        assert!(!node.validated.contains_key(&at(0)));
    }
}
