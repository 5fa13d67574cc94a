//! Datagrams from outside: the cheap checks first, the dear ones within a budget.

use std::net::SocketAddr;

use mesh_types::{Idx, Message, Now, PeerId, SocketId};

use super::Traversal;
use crate::api::{Event, JoinRequest};
use crate::nat_kind::Witness;
use crate::node::{Node, Purpose};
use crate::probe::{parse_transaction, parse_username};
use crate::replay::Verdict;
use crate::stun::{self, Class, Header, Incoming, Outgoing, Password, STALE_EPOCH};

/// How a datagram came.
#[derive(Debug, Clone, Copy)]
struct Arrival {
    socket: SocketId,
    local: SocketAddr,
    remote: SocketAddr,
    /// An answer to one of our probes came from there.
    validated: bool,
    now: Now,
}

impl Arrival {
    fn by_turn(&self) -> bool {
        matches!(self.socket, SocketId::Turn(_))
    }
}

impl Traversal {
    /// A control datagram arrived on [`SocketId::Main`], [`SocketId::Alternate`], [`SocketId::Relay`] or [`SocketId::Turn`].
    /// Whatever is in it, at most one datagram goes back to `remote` (or, where a peer asks so and seldom, to another
    /// port of its address), and none to senders that are not known.
    pub fn handle_datagram(
        &mut self,
        socket: SocketId,
        local: SocketAddr,
        remote: SocketAddr,
        bytes: &[u8],
        now: Now,
    ) {
        self.check_suspended(now);
        match socket {
            SocketId::Turn(link) => self.take_from_turn(link, bytes, now),
            SocketId::Main
            | SocketId::Alternate
            | SocketId::Overlay
            | SocketId::Extra(_)
            | SocketId::Relay(_) => {
                if self.receive(socket, local, remote, bytes, now) {
                    self.settle(now);
                }
            }
        }
    }

    /// True where something may have changed.
    pub(super) fn receive(
        &mut self,
        socket: SocketId,
        local: SocketAddr,
        remote: SocketAddr,
        bytes: &[u8],
        now: Now,
    ) -> bool {
        let Some(header) = stun::header(bytes) else {
            self.node.counters.add("refused-header");
            return false;
        };
        let validated = self.node.validated.contains_key(&remote);
        let ip = self.node.turn.real(remote).ip();
        if !validated && !self.node.flood.admits(ip, now.mono) {
            self.node.counters.add("refused-flood");
            return false;
        }
        let arrival = Arrival {
            socket,
            local,
            remote,
            validated,
            now,
        };
        let refused = match header.class {
            Class::Request | Class::Success | Class::Error
                if matches!(socket, SocketId::Relay(_)) =>
            {
                // Those of a bound pair are forwarded by the host.
                Err("refused-relay-port")
            }
            Class::Request
                if self
                    .hairpin
                    .heard(&mut self.node, header.transaction, now.mono) =>
            {
                Ok(())
            }
            Class::Request => self.request(arrival, header, bytes),
            Class::Success | Class::Error => self.answer(arrival, header, bytes),
            Class::Indication => self.bind_request(arrival, header, bytes),
        };
        if let Err(reason) = refused {
            self.node.counters.add(reason);
        }
        refused.is_ok()
    }

    fn request(
        &mut self,
        arrival: Arrival,
        header: Header,
        bytes: &[u8],
    ) -> Result<(), &'static str> {
        let username = stun::username(bytes).ok_or("refused-stranger")?;
        let by_turn = arrival.by_turn();
        let Some(names) = parse_username(username) else {
            return if by_turn {
                Err("refused-stranger")
            } else {
                self.join_request(arrival, bytes)
            };
        };
        let caller = self.authenticate(arrival, header, names, bytes)?;
        let Arrival {
            local, remote, now, ..
        } = arrival;
        let agent = self.agents.get_mut(&caller.id);
        let agent = agent.ok_or("refused-unknown-sender")?;
        let relayed = by_turn || agent.is_relayed(&remote);
        let key = agent.keys().iter().find(|key| key.idx() == caller.name);
        let key = key.copied().ok_or("refused-unknown-sender")?;
        if !relayed {
            self.node.nat.request_from(remote.ip());
        }
        if !by_turn {
            self.node.nat.heard();
        }
        let to = match caller.message.response_port {
            None => remote,
            Some(port) => {
                let to = SocketAddr::new(remote.ip(), port);
                let may = !relayed && self.node.admission.admits(&to);
                if !may || !agent.answers_elsewhere(now.mono) {
                    return Err("refused-response-port");
                }
                to
            }
        };
        let data = agent.on_request(
            &mut self.node,
            (arrival.socket, local.port(), remote),
            &key,
            caller.message.data.as_deref(),
            now.mono,
        );
        agent.rearm(&mut self.standings);
        let reply = Reply::Success {
            to,
            data,
            other: self.node.other_address(local).filter(|_| !relayed),
            change_port: caller.message.change_port && !relayed,
        };
        self.respond(arrival, header, &caller.password, &reply);
        Ok(())
    }

    /// A member asks for a port for a peer.
    fn bind_request(
        &mut self,
        arrival: Arrival,
        header: Header,
        bytes: &[u8],
    ) -> Result<(), &'static str> {
        let port = match arrival.socket {
            SocketId::Main => None,
            SocketId::Relay(port) => Some(port),
            SocketId::Alternate | SocketId::Overlay | SocketId::Extra(_) | SocketId::Turn(_) => {
                return Err("refused-relay-port");
            }
        };
        let names = stun::username(bytes).and_then(parse_username);
        let names = names.ok_or("refused-stranger")?;
        let caller = self.authenticate(arrival, header, names, bytes)?;
        let data = caller.message.data.as_deref().map(Message::decode);
        let Some(Ok(Message::RelayBind(bind))) = data else {
            return Err("refused-indication");
        };
        self.node.nat.heard();
        let came = (arrival.remote, port);
        let served = self.serve(caller.id, caller.name, &bind, came, arrival.now.mono);
        let reply = match served {
            Ok(data) => Reply::Success {
                to: arrival.remote,
                data: Some(data),
                other: None,
                change_port: false,
            },
            Err(refusal) => {
                self.node.counters.add(refusal.kind());
                Reply::Refused(refusal.code())
            }
        };
        self.respond(arrival, header, &caller.password, &reply);
        Ok(())
    }

    /// Who sent a request, where its integrity is right and it is fresh.
    fn authenticate(
        &mut self,
        arrival: Arrival,
        header: Header,
        (receiver, sender): (Idx, Idx),
        bytes: &[u8],
    ) -> Result<Caller, &'static str> {
        let now = arrival.now;
        let id = *self.by_idx.get(&sender).ok_or("refused-unknown-sender")?;
        let agent = self.agents.get_mut(&id).ok_or("refused-unknown-sender")?;
        let link = agent
            .link_between(receiver, sender)
            .ok_or("refused-unknown-receiver")?;
        if !self.node.flood.may_check(arrival.validated, now.mono) {
            return Err("refused-checks");
        }
        let password = link.password.clone();
        let message = stun::verify(bytes, &password).ok_or("refused-integrity")?;
        let (epoch, sequence) = parse_transaction(header.transaction);
        match agent.replay(sender).check(epoch, sequence) {
            Verdict::Fresh => {}
            Verdict::Replayed => return Err("refused-replay"),
            Verdict::OldEpoch(highest) => {
                self.respond(arrival, header, &password, &Reply::Stale(highest));
                return Err("refused-epoch-old");
            }
        }
        Ok(Caller {
            id,
            name: sender,
            password,
            message,
        })
    }

    fn join_request(&mut self, arrival: Arrival, bytes: &[u8]) -> Result<(), &'static str> {
        if !self
            .node
            .flood
            .may_check(arrival.validated, arrival.now.mono)
        {
            return Err("refused-checks");
        }
        let request = JoinRequest::parse(bytes, arrival.remote, arrival.local);
        let request = request.ok_or("refused-stranger")?;
        self.node.events.push_back(Event::JoinRequest(request));
        Ok(())
    }

    fn respond(&mut self, arrival: Arrival, header: Header, password: &Password, reply: &Reply) {
        let mut outgoing = Outgoing {
            transaction: header.transaction,
            password: Some(password),
            ..Outgoing::default()
        };
        let source =
            Some(arrival.local.ip()).filter(|ip| !ip.is_unspecified() && !arrival.by_turn());
        let mut destination = arrival.remote;
        let (socket, bytes) = match reply {
            Reply::Stale(highest) => {
                let highest = highest.to_be_bytes();
                outgoing.error = Some(STALE_EPOCH);
                outgoing.data = Some(&highest);
                (arrival.socket, outgoing.encode(Class::Error))
            }
            Reply::Refused(code) => {
                outgoing.error = Some(*code);
                (arrival.socket, outgoing.encode(Class::Error))
            }
            Reply::Success {
                to,
                data,
                other,
                change_port,
            } => {
                destination = *to;
                outgoing.mapped = Some(self.node.turn.real(arrival.remote));
                outgoing.other = *other;
                outgoing.data = data.as_deref();
                let from_other = *change_port && self.node.alternate_port.is_some();
                let socket = if from_other {
                    SocketId::Alternate
                } else {
                    arrival.socket
                };
                (socket, outgoing.encode(Class::Success))
            }
        };
        self.node.counters.add("answers-sent");
        self.node.transmit(socket, source, destination, bytes);
    }

    fn answer(
        &mut self,
        arrival: Arrival,
        header: Header,
        bytes: &[u8],
    ) -> Result<(), &'static str> {
        let Arrival {
            local, remote, now, ..
        } = arrival;
        let Self {
            servers,
            joins,
            node,
            agents,
            lifetime,
            ..
        } = self;
        let Some(pending) = node.pending.get(&header.transaction).cloned() else {
            return if servers.answer(node, header.transaction, remote, bytes, now.mono)
                || sample_of_server(node, header.transaction, remote, bytes)
                || joins.answer(node, header.transaction, remote, bytes)
            {
                Ok(())
            } else {
                Err("refused-unasked")
            };
        };
        let same_port = remote == pending.remote;
        let other_port =
            pending.purpose == Purpose::OtherPort && remote.ip() == pending.remote.ip();
        if !same_port && !other_port {
            return Err("refused-other-source");
        }
        let agent = agents.get_mut(&pending.peer).ok_or("refused-unasked")?;
        let link = agent
            .link_between(pending.link.0, pending.link.1)
            .ok_or("refused-unasked")?;
        if !node.flood.may_check(arrival.validated, now.mono) {
            return Err("refused-checks");
        }
        let message = stun::verify(bytes, &link.password).ok_or("refused-integrity")?;
        node.pending.remove(&header.transaction);
        if !arrival.by_turn() {
            node.nat.heard();
        }
        if let Purpose::Bind(peer) = pending.purpose
            && message.error != Some(STALE_EPOCH)
        {
            let answer = match message.error {
                Some(code) => Err(code),
                None => Ok(message.data.as_deref().unwrap_or_default()),
            };
            self.bind_answered(pending.peer, peer, remote, answer, now.mono);
            return Ok(());
        }
        if header.class == Class::Error {
            return self.refused_by_peer(&message, now);
        }
        if let Some(mapped) = message.mapped
            && same_port
            && !agent.is_relayed(&remote)
            && pending.socket == SocketId::Main
            && node.nat.observe(remote, mapped, Witness::Peer, now.mono)
        {
            node.refresh = true;
        }
        match pending.purpose {
            Purpose::Check
            | Purpose::Doubt
            | Purpose::Ready(_)
            | Purpose::Search
            | Purpose::Open(_) => {
                let content = (message.other, message.data.as_deref());
                if pending.purpose == Purpose::Search {
                    agent.hit(node, remote, now.mono);
                }
                let way = (pending.socket, local.port(), remote);
                agent.on_answer(node, way, pending.sent, content, now.mono);
            }
            Purpose::Sample(token) => {
                if let Some(mapped) = message.mapped {
                    node.samples.answered(token, mapped);
                }
            }
            Purpose::Elsewhere(_) => lifetime.answered(node, arrival.socket, now.mono),
            Purpose::Mtu(size) => agent.on_mtu_answer(node, remote, size, now.mono),
            Purpose::OtherPort | Purpose::Mapping | Purpose::Bind(_) => {
                self.nat_test
                    .answered(node, pending.purpose, !same_port, now.mono);
            }
        }
        agent.rearm(&mut self.standings);
        Ok(())
    }

    /// Our epoch is behind what the peer has seen of us.
    fn refused_by_peer(&mut self, message: &Incoming, now: Now) -> Result<(), &'static str> {
        let highest = message
            .data
            .as_deref()
            .and_then(|data| <[u8; 4]>::try_from(data).ok())
            .filter(|_| message.error == Some(STALE_EPOCH))
            .map(u32::from_be_bytes)
            .ok_or("refused-error")?;
        if self.node.raise_epoch(highest, now.unix_secs()) {
            for agent in self.agents.values_mut() {
                agent.again(&mut self.node, now.mono);
                agent.rearm(&mut self.standings);
            }
        }
        Ok(())
    }
}

/// Who sent a request, and what it says.
struct Caller {
    id: PeerId,
    /// Idx of the key that was used.
    name: Idx,
    password: Password,
    message: Incoming,
}

/// A STUN server's answer to a sample.
fn sample_of_server(node: &mut Node, id: [u8; 12], remote: SocketAddr, bytes: &[u8]) -> bool {
    let Some(token) = node.samples.of_server(id, remote) else {
        return false;
    };
    if let Some(mapped) = stun::parse(bytes).and_then(|message| message.mapped) {
        node.samples.answered(token, mapped);
    }
    true
}

/// What to answer.
enum Reply {
    Success {
        /// Whom it is for.
        to: SocketAddr,
        data: Option<Vec<u8>>,
        other: Option<SocketAddr>,
        change_port: bool,
    },
    /// The highest epoch seen of the sender.
    Stale(u32),
    /// An error code.
    Refused(u16),
}
