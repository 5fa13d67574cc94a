//! From a peer to the TUN.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::{Packet, Tunn, TunnResult};
use mesh_types::key::WgKey;

use super::peer::Age;
use super::send::{INITIATION, written};
use super::shakes::COOKIE;
use super::{Core, OwnKey, TICK};
use crate::counters::{Count, reason};
use crate::inbox::Inbox;
use crate::outbox::{Destination, Outbox};

const RESPONSE: usize = 92;
const DATA_MIN: usize = 32;

/// Is this datagram STUN: a Binding request, indication, response or error with the magic cookie (RFC 8489 5)?
/// WireGuard's begin with a type from 1 to 4 and three zeros.
pub fn is_control(bytes: &[u8]) -> bool {
    bytes.len() >= 20
        && bytes[4..8] == 0x2112_a442_u32.to_be_bytes()
        && matches!(
            u16::from_be_bytes([bytes[0], bytes[1]]),
            0x0001 | 0x0011 | 0x0101 | 0x0111
        )
}

impl Core {
    /// Takes a datagram that is no control datagram. `local` is the address it was sent to. What it holds goes
    /// to `inbox`, which must not be full; answers go to `out`. Data packets wait for each other to be opened together,
    /// until there are enough, `inbox` is full, or [`Core::open_waiting`] is called.
    pub fn handle_datagram(
        &mut self,
        (remote, local): (SocketAddr, Option<IpAddr>),
        bytes: &[u8],
        now: Instant,
        inbox: &mut Inbox,
        out: &mut Outbox,
    ) {
        let word = |at: usize| {
            bytes[at..]
                .first_chunk()
                .map(|word| u32::from_le_bytes(*word))
        };
        let from = (remote, local);
        match (bytes.first_chunk(), bytes.len()) {
            (Some(&[4, 0, 0, 0]), DATA_MIN..) => self.handle_data(from, bytes, now, inbox, out),
            (Some(&[1, 0, 0, 0]), INITIATION) => self.queue_initiation(from, bytes, now, out),
            (Some(&[2, 0, 0, 0]), RESPONSE) => {
                self.queue_response(from, word(8).unwrap_or(0), bytes);
            }
            (Some(&[3, 0, 0, 0]), COOKIE) => {
                self.handle_answer(from, word(4).unwrap_or(0), bytes, now, out);
            }
            (Some(_) | None, _) => self.counters.add(Count::Foreign, 1),
        }
    }

    /// A handshake response or a cookie: both answer something we sent.
    pub(super) fn handle_answer(
        &mut self,
        (remote, local): (SocketAddr, Option<IpAddr>),
        receiver: u32,
        bytes: &[u8],
        now: Instant,
        out: &mut Outbox,
    ) {
        let Some((index, age)) = self.link_of(receiver) else {
            self.counters.add(Count::UnknownSession, 1);
            return;
        };
        let Self {
            peers, counters, ..
        } = self;
        let Some(peer) = peers.get_mut(index as usize).and_then(Option::as_mut) else {
            return;
        };
        let Some(link) = peer.link_mut(age) else {
            return;
        };
        let to = Destination {
            peer: index,
            remote,
            local,
            also: None,
        };
        let mut sent = 0;
        out.write(to, INITIATION, |room| {
            let result = link.tunn.decapsulate(Some(remote.ip()), bytes, room);
            if let TunnResult::Err(error) = &result {
                counters.add(reason(error), 1);
            }
            sent = written(&result)?;
            Some(sent)
        });
        if sent == 0 {
            return;
        }
        link.live = true;
        peer.received(remote, local, bytes.len(), now);
        peer.sent(sent, now);
        peer.handshake_at = Some(now);
        counters.add(Count::Handshakes, 1);
        self.flush_staged(index, age, now, out);
    }

    /// An initiation to that one of our keys.
    pub(super) fn handle_initiation(
        &mut self,
        (remote, local): (SocketAddr, Option<IpAddr>),
        age: Age,
        bytes: &[u8],
        now: Instant,
        out: &mut Outbox,
    ) {
        let own = match age {
            Age::Current => &self.own,
            Age::Old => &self.previous,
        };
        let Some(own) = own else {
            return;
        };
        let key = match initiator(own, bytes) {
            Ok(key) => key,
            Err(error) => {
                self.counters.add(reason(&error), 1);
                return;
            }
        };
        let Some(&index) = self.by_key.get(&key) else {
            self.counters.add(Count::UnknownPeer, 1);
            return;
        };
        let link = match age {
            Age::Current => self.current_link(index, now),
            Age::Old => self.previous_link(index, now),
        };
        // Sessions date themselves by their last tick; one that slept would be born expired.
        if link.is_some_and(|link| now.saturating_duration_since(link.ticked_at) > TICK) {
            self.tick_link(index, age, now, out);
        }
        let Self {
            peers, counters, ..
        } = self;
        let Some(peer) = peers.get_mut(index as usize).and_then(Option::as_mut) else {
            return;
        };
        let Some(link) = peer.link_mut(age) else {
            return;
        };
        let to = Destination {
            peer: index,
            remote,
            local,
            also: None,
        };
        let mut sent = 0;
        let mut head = [0; 8];
        out.write(to, INITIATION, |room| {
            let result = link.tunn.decapsulate(Some(remote.ip()), bytes, room);
            if let TunnResult::Err(error) = &result {
                counters.add(reason(error), 1);
            }
            sent = written(&result)?;
            head.copy_from_slice(&room[..8]);
            Some(sent)
        });
        if sent == 0 {
            return;
        }
        link.unconfirmed = Some(u32::from_le_bytes([head[4], head[5], head[6], head[7]]));
        peer.received(remote, local, bytes.len(), now);
        peer.sent(sent, now);
    }

    pub(super) fn link_of(&self, receiver: u32) -> Option<(u32, Age)> {
        let index = *self.sessions.get(&(receiver >> 8))?;
        Some((index, self.peer(index)?.age_of(receiver >> 8)?))
    }
}

/// Who sends this initiation.
fn initiator(own: &OwnKey, bytes: &[u8]) -> Result<WgKey, WireGuardError> {
    match Tunn::parse_incoming_packet(bytes)? {
        Packet::HandshakeInit(initiation) => {
            let half = parse_handshake_anon(&own.secret, &own.public_key(), &initiation)?;
            Ok(WgKey(half.peer_static_public))
        }
        Packet::HandshakeResponse(_) | Packet::PacketCookieReply(_) | Packet::PacketData(_) => {
            Err(WireGuardError::UnexpectedPacket)
        }
    }
}
