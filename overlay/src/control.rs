//! Messages inside the tunnel (L2) and sealed ones through a neighbour (L1).
//!
//! A message inside the tunnel goes from the own overlay address to the peer's. It is believed to be the
//! peer's because it comes from exactly that address and port: cryptokey routing lets nobody else use the
//! address, and the ranges behind a peer (pods, phones) are not the peer itself.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::IpNet;
use mesh_types::address::{is_global, overlay_ipv6};
use mesh_types::consts::{CONTROL_PORT, MESSAGE_MAX};
use mesh_types::message::{Ack, Echo, Forward, Hello, MessageError};
use mesh_types::record::Features;
use mesh_types::{Candidate, CandidateKind, Filtering, Idx, Mapping, Message, NatReport, Now};
use mesh_types::{PeerId, SocketId, Source, Transmit};
use nat_traversal::{PathKind, Refused};
use peer_discovery::Peer;
use tracing::debug;

use crate::calls::{Calls, KEPT_BY_HOPS};
use crate::overlay::Overlay;
use crate::peer::{Greeting, PeerRecord};

/// Neighbours asked to pass one sealed message on.
pub(crate) const FORWARD_WAYS: usize = 3;
/// Neighbours that a sealed message crosses, at most.
const HOPS_MAX: u8 = 2;
/// Largest sealed part that is passed on, bytes.
const FORWARD_MAX: usize = 1024;
/// Messages that wait for the host to hold what they need, at most.
const HELD_MAX: usize = 256;

impl Overlay {
    /// A datagram arrived on the overlay device's control port.
    pub(crate) fn handle_control(&mut self, remote: SocketAddr, bytes: &[u8], now: Now) {
        let Some(id) = self.directory.by_address(remote.ip()).copied() else {
            return self.count("control-foreign-source");
        };
        if remote.port() != CONTROL_PORT || !self.speaks_from(&id, remote.ip()) {
            return self.count("control-foreign-source");
        }
        let Some(record) = self.peers.get_mut(&id) else {
            return;
        };
        if !record.messages.take(now.mono) {
            return self.count("control-flood");
        }
        record.heard = Some(now.mono);
        record.calls = Calls::default();
        record.speaks_ipv4 = remote.is_ipv4();
        if record.path_since.is_some() && !record.open(now.mono) {
            record.open_at = Some(now.mono);
            self.stale.peer(id);
        }
        let message = match Message::decode(bytes) {
            Ok(message) => message,
            Err(MessageError::Ignored(_)) => return self.count("control-newer"),
            Err(MessageError::TooLong(_) | MessageError::Malformed) => {
                return self.count("control-malformed");
            }
            Err(MessageError::UnknownType(_)) => return self.count("control-unknown-type"),
        };
        debug!(peer = %record.name, message = message.kind(), "Message received");
        record.count_gossip(&message, bytes.len(), remote.is_ipv4());
        self.handle_message(&id, message, now);
        self.refresh_peer(&id, now);
    }

    fn handle_message(&mut self, from: &PeerId, message: Message, now: Now) {
        if let Message::Hello(hello) = &message {
            return self.handle_hello(from, hello, now);
        }
        if !self.compatible(from) {
            return self.count("control-protocol");
        }
        match message {
            Message::Hello(_) => {}
            Message::CallMe(_) | Message::CallMeAck(_) | Message::RelayOffer(_) => {
                self.traversal.handle_message(from, &message, now);
            }
            Message::Ack(Ack { seq }) => self.handle_ack(from, seq, now),
            Message::Digest(digest) => self.handle_digest(from, &digest),
            Message::Delta(delta) => self.handle_delta(from, &delta, now),
            Message::Forward(forward) => self.handle_forward(from, forward, now),
            Message::JoinRelay(relay) => self.handle_join_relay(from, relay, now),
            Message::Petition(petition) => self.handle_petition(from, petition, now),
            Message::Echo(echo) => self.handle_echo(from, &echo, now),
            // These travel on the outside, inside authenticated Binding messages.
            Message::PathReady(_)
            | Message::Doubt(_)
            | Message::RelayBind(_)
            | Message::Join(_)
            | Message::Joined(_)
            | Message::JoinRefused(_) => self.count("control-misplaced"),
        }
    }

    fn handle_hello(&mut self, from: &PeerId, hello: &Hello, now: Now) {
        let Some(record) = self.peers.get_mut(from) else {
            return;
        };
        record.protocol = Some((hello.min, hello.max));
        self.greet_due(now);
    }

    fn handle_echo(&mut self, from: &PeerId, echo: &Echo, now: Now) {
        if echo.reply {
            self.handle_pong(from, echo.token, now);
        } else {
            let reply = Echo {
                token: echo.token,
                reply: true,
            };
            self.send_message(from, &reply.into());
        }
    }

    /// Passes a sealed message on, or opens it where it is for this node.
    fn handle_forward(&mut self, from: &PeerId, forward: Forward, now: Now) {
        if self.is_own_idx(forward.to) {
            match self.traversal.open(&forward, now) {
                Ok((
                    sender,
                    message @ (Message::CallMe(_) | Message::CallMeAck(_) | Message::RelayOffer(_)),
                )) => {
                    if let Some(ip) = forward.seen
                        && sender != *from
                    {
                        self.traversal.handle_seen(&sender, ip);
                    }
                    if let Some(calls) = self.peers.calls(&sender) {
                        *calls = Calls::default();
                    }
                    self.traversal.handle_message(&sender, &message, now);
                }
                Ok(_) => self.count("forward-misplaced"),
                Err(refused) => {
                    self.count(refused.kind());
                    let record = self.peers.get_mut(from);
                    if refused == Refused::UnknownSender
                        && record.is_some_and(|record| record.forwards.take(now.mono))
                    {
                        // The neighbour knows somebody whom we do not: a record was lost on the way.
                        self.send_digest(from);
                    }
                }
            }
            return;
        }
        let allowed = self
            .peers
            .get_mut(from)
            .is_some_and(|record| record.forwards.take(now.mono));
        if !allowed || forward.ttl == 0 || forward.sealed.len() > FORWARD_MAX {
            return self.count("forward-refused");
        }
        // Whatever a sender claims.
        let hops = forward.ttl.min(HOPS_MAX);
        let target = self.traversal.by_idx(forward.to);
        let target = target.filter(|target| target != from);
        let ways = match target.filter(|id| self.connected(id, now)) {
            Some(id) => vec![id],
            // Perhaps a neighbour reaches it. Each hop takes one off what is left, so none goes in circles.
            None if hops > 1 => {
                let mut ways = self.neighbours(target, Some(*from), forward.from, now);
                ways.retain(|way| self.call_queue.has_room(way, KEPT_BY_HOPS, now.mono));
                ways.truncate(FORWARD_WAYS);
                for way in &ways {
                    self.call_queue.asked(*way, now.mono);
                }
                ways
            }
            None => Vec::new(),
        };
        if ways.is_empty() {
            return self.count("forward-no-way");
        }
        // Where a sender is says who heard it there, not the sender, under whichever of its keys.
        let seen = match self.traversal.by_idx(forward.from) {
            Some(sender) if sender == *from => self.seen_at(from),
            Some(_) => forward.seen,
            None => None,
        };
        let passed = Message::from(Forward {
            ttl: hops - 1,
            seen,
            ..forward
        });
        for way in ways {
            self.send_message(&way, &passed);
            self.count("forwarded");
        }
    }

    /// The external address at which this node reaches a peer: what it vouches for to others.
    fn seen_at(&self, id: &PeerId) -> Option<Ipv4Addr> {
        let seen = self.traversal.seen(id);
        seen.into_iter().find(|ip| is_global(&IpAddr::V4(*ip)))
    }

    /// Delivers a signal inside the tunnel; where the path is gone or in doubt, by neighbours too. Copies on
    /// two ways count once at the other end.
    pub(crate) fn signal(&mut self, peer: &PeerId, message: &Message, now: Now) {
        let sound = self.traversal.path(peer).is_some()
            && self
                .traversal
                .peer_report(peer)
                .is_some_and(|report| !report.suspect);
        let session = self
            .peers
            .get(peer)
            .is_some_and(|record| record.session(now.mono));
        if session || sound {
            self.send_message(peer, message);
        }
        // A neighbour's word on where this node is goes with what it passes on; a search needs it.
        let direct = self
            .traversal
            .path(peer)
            .is_some_and(|path| path.kind <= PathKind::Ipv4);
        if session && sound && direct {
            return;
        }
        self.ask_neighbours(peer, message, now);
    }

    /// Connected peers that may reach `target`, if it is known, best first: its own relays, then publicly reachable
    /// ones that are awake; neither `from` nor `sender`.
    pub(crate) fn neighbours(
        &self,
        target: Option<PeerId>,
        from: Option<PeerId>,
        sender: Idx,
        now: Now,
    ) -> Vec<PeerId> {
        let known = target.and_then(|target| self.directory.peer(&target));
        let homes = known.map(|peer| &peer.relays);
        let home = |id: &PeerId| match id {
            PeerId::Node(node) => homes.is_some_and(|homes| homes.contains(&node.identity.idx())),
            PeerId::Key(_) => false,
        };
        let but = [target, from];
        let mut out: Vec<(bool, bool, bool, PeerId)> = self
            .peers
            .met()
            .filter(|id| !but.contains(&Some(**id)) && self.connected(id, now))
            .filter(|id| self.peers.get(id).is_some_and(|peer| peer.idx != sender))
            .filter_map(|id| {
                let peer = self.directory.peer(id)?;
                let public = public(&peer.nat, &peer.endpoints);
                Some((!home(id), self.is_resting(id), !public, *id))
            })
            .collect();
        out.sort();
        out.into_iter().map(|(.., id)| id).collect()
    }

    /// Sends a message inside the tunnel, where an address and a common protocol version exist.
    pub(crate) fn send_message(&mut self, to: &PeerId, message: &Message) -> bool {
        let hello = matches!(message, Message::Hello(_));
        let Some((source, destination)) = self.tunnel_addresses(to) else {
            return false;
        };
        if !hello && !self.compatible(to) {
            return false;
        }
        if !self.host_holds(to) {
            if self.held.len() >= HELD_MAX {
                self.count("control-held-full");
                return false;
            }
            self.held.push_back((*to, message.clone()));
            return true;
        }
        let bytes = message.encode();
        if bytes.len() > MESSAGE_MAX {
            self.count("control-too-long");
            return false;
        }
        if let Some(record) = self.peers.get_mut(to) {
            record.count_gossip(message, bytes.len(), destination.is_ipv4());
        }
        debug!(peer = %self.peer_name(to), message = message.kind(), "Message sent");
        self.transmits.push_back(Transmit {
            socket: SocketId::Overlay,
            source: Some(source),
            destination: SocketAddr::new(destination, CONTROL_PORT),
            ttl: None,
            bytes,
        });
        true
    }

    /// Does the host hold our addresses and the peer's as planned now? Earlier the kernel refuses our source
    /// or has no way to the peer.
    fn host_holds(&self, to: &PeerId) -> bool {
        let applied = self.applied.as_ref().map(|applied| applied.generation);
        let since = self.peers.get(to).and_then(|record| record.held_since);
        !self.stale.is_any()
            && self
                .addresses_since
                .is_some_and(|since| applied >= Some(since))
            && since.is_some_and(|since| applied >= Some(since))
    }

    /// Sends what has waited for a plan that is applied now.
    pub(crate) fn send_held(&mut self) {
        for (to, message) in std::mem::take(&mut self.held) {
            self.send_message(&to, &message);
        }
    }

    /// Own and the peer's address for messages inside the tunnel. Members use IPv6 unless either side has
    /// none. A peer from the file is met by IPv4 where both have it: its IPv6 address becomes a range only
    /// once its identity is pinned, and neither side knows when the other has done so.
    fn tunnel_addresses(&self, to: &PeerId) -> Option<(IpAddr, IpAddr)> {
        let peer = self.directory.peer(to)?;
        let record = self.peers.get(to)?;
        if peer.plain {
            return None;
        }
        let ipv4 = self
            .own_ipv4()
            .zip(record.ipv4)
            .map(|(own, theirs)| (IpAddr::V4(own), IpAddr::V4(theirs)));
        let both = !self.host.ipv6_off && !peer.features.has(Features::NO_IPV6);
        let ipv6 = self
            .peer_ipv6(to, peer)
            // Whoever lost its IPv6 says so by speaking IPv4, long before its new record arrives.
            .filter(|_| both && !(record.speaks_ipv4 && ipv4.is_some()))
            .map(|theirs| (IpAddr::V6(self.own_ipv6()), theirs));
        match peer.source {
            Source::Config => ipv4.or(ipv6),
            Source::Kubernetes { .. } | Source::Signed { .. } | Source::Gossip | Source::Disk => {
                ipv6.or(ipv4)
            }
        }
    }

    fn peer_ipv6(&self, id: &PeerId, peer: &Peer) -> Option<IpAddr> {
        let derived = match id {
            PeerId::Node(node) => Some(IpAddr::V6(overlay_ipv6(node))),
            PeerId::Key(_) => None,
        };
        let vouched = |ip: &IpAddr| peer.allowed_ips.contains(&IpNet::from(*ip));
        derived.filter(vouched).or_else(|| {
            let mut ranges = peer.allowed_ips.iter();
            ranges
                .find(|net| net.addr().is_ipv6() && net.prefix_len() == 128)
                .map(IpNet::addr)
        })
    }

    pub(crate) fn speaks_from(&self, id: &PeerId, source: IpAddr) -> bool {
        let Some((peer, record)) = self.directory.peer(id).zip(self.peers.get(id)) else {
            return false;
        };
        !peer.plain
            && match source {
                IpAddr::V4(ip) => record.ipv4 == Some(ip),
                IpAddr::V6(_) => self.peer_ipv6(id, peer) == Some(source),
            }
    }

    /// The peer's own IPv4 address: first /32 of its entry in the file, else its membership's.
    pub(crate) fn peer_ipv4(&self, peer: &Peer) -> Option<Ipv4Addr> {
        let single = |net: &IpNet| match net {
            IpNet::V4(net) if net.prefix_len() == 32 => Some(net.addr()),
            IpNet::V4(_) | IpNet::V6(_) => None,
        };
        let listed = peer
            .configured_key
            .and_then(|key| self.config.peers.iter().find(|entry| entry.key == key));
        if let Some(entry) = listed {
            let vouched = |ip: &Ipv4Addr| peer.allowed_ips.contains(&IpNet::from(IpAddr::V4(*ip)));
            return entry.allowed_ips.iter().find_map(single).filter(vouched);
        }
        let member = match &peer.id {
            PeerId::Node(node) => self.directory.member(node),
            PeerId::Key(_) => None,
        };
        let member = member.and_then(|member| member.ipv4);
        if let Source::Kubernetes { .. } = peer.source
            && let Some(ip) = member
        {
            let mut ranges = peer.allowed_ips.iter();
            return ranges
                .any(|net| net.contains(&IpAddr::V4(ip)))
                .then_some(ip);
        }
        let mut singles = peer.allowed_ips.iter().filter_map(single);
        let first = singles.next()?;
        if singles.next().is_none() {
            return Some(first);
        }
        member
    }

    /// Is there a protocol version that both speak?
    pub(crate) fn compatible(&self, id: &PeerId) -> bool {
        let own = self.config.protocol;
        let overlap = |(min, max): (u8, u8)| min <= own.1 && max >= own.0;
        let announced = self
            .directory
            .peer(id)
            .is_some_and(|peer| overlap(peer.protocol));
        announced
            && self
                .peers
                .get(id)
                .is_some_and(|record| record.protocol.is_none_or(overlap))
    }

    /// Do messages reach this peer, as far as anybody can tell?
    pub(crate) fn connected(&self, id: &PeerId, now: Now) -> bool {
        self.peers.get(id).is_some_and(|record| {
            let speaks = self.directory.peer(id).is_some_and(|peer| !peer.plain);
            speaks && (record.path_since.is_some() || record.session(now.mono))
        })
    }

    /// Everybody a message can be sent to, those that sleep too: it wakes them.
    pub(crate) fn connected_peers(&self, now: Now) -> Vec<PeerId> {
        let met = self.peers.met();
        met.filter(|id| self.connected(id, now)).copied().collect()
    }

    /// Says what is due to peers on new paths.
    pub(crate) fn greet_due(&mut self, now: Now) {
        let applied = self.applied.as_ref().map(|applied| applied.generation);
        let due = |record: &PeerRecord, greeting: Greeting| match greeting.again {
            Some(again) => again <= now.mono,
            None => {
                let planned = greeting
                    .generation
                    .is_some_and(|generation| applied >= Some(generation));
                // Whoever speaks on the path can be answered there.
                let called = record.heard >= record.path_since;
                record.open(now.mono) && (planned || called)
            }
        };
        let greeted = self.peers.greeted();
        let due: Vec<(PeerId, Greeting)> = greeted
            .iter()
            .filter_map(|id| Some((*id, self.peers.get(id)?)))
            .filter_map(|(id, record)| Some((id, record.greeting?, record)))
            .filter(|(_, greeting, record)| due(record, *greeting))
            .map(|(id, greeting, _)| (id, greeting))
            .collect();
        for (id, greeting) in due {
            if !self.host_holds(&id) {
                // What the host has applied next brings it up again; until then time changes nothing.
                if !self.stale.is_any()
                    && greeting.again.is_some()
                    && let Some(record) = self.peers.get_mut(&id)
                {
                    record.greeting = Some(Greeting {
                        again: None,
                        ..greeting
                    });
                }
                continue;
            }
            let (min, max) = self.config.protocol;
            self.send_message(&id, &Hello { min, max }.into());
            if greeting.records && greeting.said.is_none() {
                self.send_announcement(&id, 1, now);
            }
            let again = greeting.records && self.compare_notes(&id, greeting.seq, now);
            if let Some(record) = self.peers.get_mut(&id) {
                record.greeting = greeting.next(now.mono).filter(|_| again);
            }
        }
    }
}

/// Can strangers reach a node with these properties without its help?
pub(crate) fn public(nat: &NatReport, endpoints: &[Candidate]) -> bool {
    let open = nat.mapping == Mapping::EndpointIndependent
        && nat.filtering == Filtering::EndpointIndependent;
    open || endpoints.iter().any(|candidate| {
        let own = match candidate.kind {
            CandidateKind::Mapped => return true,
            CandidateKind::Host => is_global(&candidate.address.ip()),
            CandidateKind::ServerReflexive
            | CandidateKind::PeerReflexive
            | CandidateKind::Relayed
            | CandidateKind::Tcp => false,
        };
        // An IPv6 address is global behind most firewalls too, and says nothing.
        own && candidate.address.is_ipv4()
    })
}
