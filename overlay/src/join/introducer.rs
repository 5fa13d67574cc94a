//! The introducer's side: passes on what it cannot read.

use std::time::Duration;

use mesh_types::message::JoinRelay;
use mesh_types::{Now, PeerId, SocketId, Transmit};
use nat_traversal::JoinRequest;

use crate::overlay::Overlay;

/// An answer goes back to a joiner for so long after its request.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

impl Overlay {
    /// A joiner's request arrived from outside.
    pub(crate) fn handle_join_request(&mut self, request: &JoinRequest, now: Now) {
        let inviter = request.ticket.inviter();
        if inviter == self.own.identity.idx() {
            if let Some(datagram) = self.answer_request(request, now) {
                self.transmits.push_back(Transmit {
                    socket: SocketId::Main,
                    source: None,
                    destination: request.remote,
                    ttl: None,
                    bytes: datagram,
                });
            }
            return;
        }
        let Some(inviter) = self.directory.by_idx(&inviter).copied() else {
            return self.count("join-unknown-inviter");
        };
        if !self.connected(&inviter, now) {
            return self.count("join-inviter-away");
        }
        if !self.joining.budget.take(now.mono) {
            return self.count("join-flood");
        }
        self.joining
            .relayed
            .retain(|_, (until, _)| *until > now.mono);
        self.joining
            .relayed
            .insert(request.remote, (now.mono + ANSWER_WITHIN, request.ticket));
        let relay = JoinRelay {
            remote: request.remote,
            datagram: request.datagram.clone(),
        };
        self.send_message(&inviter, &relay.into());
    }

    /// A datagram of or for a joiner came through the tunnel.
    pub(crate) fn handle_join_relay(&mut self, from: &PeerId, relay: JoinRelay, now: Now) {
        if let Some(request) = JoinRequest::parse(&relay.datagram, relay.remote, relay.remote) {
            if let Some(datagram) = self.answer_request(&request, now) {
                let answer = JoinRelay {
                    remote: relay.remote,
                    datagram,
                };
                self.send_message(from, &answer.into());
            }
            return;
        }
        // An answer: only the inviter's, only to who asked just now, and only a Binding response.
        let asked = self
            .joining
            .relayed
            .get(&relay.remote)
            .filter(|(until, _)| *until > now.mono)
            .is_some_and(|(_, ticket)| self.directory.by_idx(&ticket.inviter()) == Some(from));
        if !asked || !relay.datagram.starts_with(&[0x01, 0x01]) {
            return self.count("join-unasked-answer");
        }
        self.transmits.push_back(Transmit {
            socket: SocketId::Main,
            source: None,
            destination: relay.remote,
            ttl: None,
            bytes: relay.datagram,
        });
    }
}
