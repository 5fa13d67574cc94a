//! First contact: Binding messages under a ticket's key, before there is a peer.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Instant;

use mesh_types::SocketId;
use mesh_types::token::{TicketId, TicketKeys};

use crate::api::{Event, JoinRequest};
use crate::node::Node;
use crate::schedule::{JOIN_LIFETIME, JOIN_RETRY};
use crate::stun::{self, Class, Outgoing, Password};

/// Joins under way; more are not begun.
const JOINS_MAX: usize = 64;

#[derive(Debug)]
struct Attempt {
    ticket: TicketId,
    password: Password,
    remote: SocketAddr,
    bytes: Vec<u8>,
    began: Instant,
    step: usize,
}

impl Attempt {
    fn next(&self) -> Instant {
        self.began + JOIN_RETRY.get(self.step).copied().unwrap_or(JOIN_LIFETIME)
    }

    fn send(&self, node: &mut Node) {
        node.transmit(SocketId::Main, None, self.remote, self.bytes.clone());
        for (link, loopback) in node.turn.ways(self.remote) {
            node.transmit(SocketId::Turn(link), None, loopback, self.bytes.clone());
        }
    }
}

/// Own joins, by transaction id.
#[derive(Debug, Default)]
pub(crate) struct Joins(BTreeMap<[u8; 12], Attempt>);

impl Joins {
    pub(crate) fn send(
        &mut self,
        node: &mut Node,
        ticket: TicketId,
        keys: &TicketKeys,
        remote: SocketAddr,
        sealed: &[u8],
        now: Instant,
    ) -> [u8; 12] {
        let transaction = node.random();
        let Some(password) = Password::new(&keys.integrity).filter(|_| self.0.len() < JOINS_MAX)
        else {
            return transaction;
        };
        let bytes = Outgoing {
            transaction,
            username: Some(&ticket.to_string()),
            data: Some(sealed),
            password: Some(&password),
            ..Outgoing::default()
        }
        .encode(Class::Request);
        node.nat.sent(remote.ip(), !node.by_udp, now);
        let attempt = Attempt {
            ticket,
            password,
            remote,
            bytes,
            began: now,
            step: 0,
        };
        attempt.send(node);
        self.0.insert(transaction, attempt);
        self.wish(node, now);
        transaction
    }

    /// True where the answer was to one of these.
    pub(crate) fn answer(
        &mut self,
        node: &mut Node,
        transaction: [u8; 12],
        remote: SocketAddr,
        bytes: &[u8],
    ) -> bool {
        let Some(attempt) = self.0.get(&transaction) else {
            return false;
        };
        let Some(sealed) = stun::verify(bytes, &attempt.password).and_then(|m| m.data) else {
            node.counters.add("refused-integrity");
            return true;
        };
        if node.turn.link_of(&remote).is_none() {
            node.nat.heard();
        }
        let ticket = attempt.ticket;
        node.events.push_back(Event::JoinAnswer {
            ticket,
            sealed,
            remote,
        });
        // All were the same question.
        self.0.retain(|_, other| other.ticket != ticket);
        true
    }

    /// Where no datagrams pass, who is asked is asked through a TURN server.
    fn wish(&self, node: &mut Node, now: Instant) {
        let remotes = self.0.values().map(|attempt| attempt.remote).collect();
        node.turn.wish(None, remotes, now);
    }

    pub(crate) fn run(&mut self, node: &mut Node, now: Instant) {
        self.0
            .retain(|_, attempt| now.saturating_duration_since(attempt.began) < JOIN_LIFETIME);
        self.wish(node, now);
        for attempt in self.0.values_mut() {
            if attempt.next() <= now {
                attempt.step += 1;
                attempt.send(node);
            }
        }
    }

    pub(crate) fn deadline(&self) -> Option<(Instant, &'static str)> {
        self.0
            .values()
            .map(Attempt::next)
            .min()
            .map(|at| (at, "join"))
    }
}

impl JoinRequest {
    /// Reads a joiner's datagram, as it arrived or as an introducer has passed it on; `local` is where it
    /// arrived. `None` where it is no Binding request with a ticket and DATA.
    pub fn parse(datagram: &[u8], remote: SocketAddr, local: SocketAddr) -> Option<Self> {
        let header = stun::header(datagram).filter(|header| header.class == Class::Request)?;
        let message = stun::parse(datagram)?;
        Some(Self {
            ticket: message.username?.parse().ok()?,
            remote,
            local,
            transaction: header.transaction,
            sealed: message.data?,
            datagram: datagram.to_vec(),
        })
    }

    /// Is MESSAGE-INTEGRITY-SHA256 present and right under the ticket's key?
    pub fn verify(&self, keys: &TicketKeys) -> bool {
        Password::new(&keys.integrity)
            .is_some_and(|password| stun::verify(&self.datagram, &password).is_some())
    }

    /// The datagram that answers it.
    pub(crate) fn answer(&self, keys: &TicketKeys, sealed: &[u8]) -> Vec<u8> {
        let password = Password::new(&keys.integrity);
        Outgoing {
            transaction: self.transaction,
            mapped: Some(self.remote),
            data: Some(sealed),
            password: password.as_ref(),
            ..Outgoing::default()
        }
        .encode(Class::Success)
    }
}
