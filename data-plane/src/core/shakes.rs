//! Handshakes wait here, so that packets need not wait for them.
//!
//! A handshake message costs up to five Diffie-Hellman operations, as much as a few hundred packets. So what
//! comes in is only looked at (is it authentic for one of our keys, do too many wait?) and queued, and what is to
//! begin is noted with its peer. Each turn does one of either after the packets, so the longest a flow waits for
//! a storm of them is one message each way.
//!
//! Who sends many waits behind those who send few ([`Waiting`](super::waiting::Waiting)). So that nobody sends in the
//! name of others, whoever begins a handshake while many wait must show a cookie first (WireGuard 5.3). A
//! thousand peers at once need none: each message takes less than half a millisecond, and is sent again after five
//! seconds. Responses need none ever: their receiver index was told to the address they come from.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use boringtun::noise::TunnResult;
use boringtun::noise::errors::WireGuardError;

use super::Core;
use super::peer::{Age, Kick};
use crate::counters::{Count, reason};
use crate::outbox::{Destination, Outbox};

/// Received handshake messages that wait (the kernel: 4096).
pub(super) const WAITING: usize = 4096;
/// So many wait where cookies begin to be demanded.
const LOADED: usize = 1024;
/// How long they are demanded from then on, as in the kernel.
const LOADED_FOR: Duration = Duration::from_secs(1);
/// Peers looked at in one turn to find one whose handshake is to begin.
const LOOKS: usize = 32;
/// A cookie reply.
pub(super) const COOKIE: usize = 64;

/// A handshake message that was received.
pub(super) struct Received {
    pub remote: SocketAddr,
    pub local: Option<IpAddr>,
    pub bytes: Box<[u8]>,
    pub kind: Kind,
}

/// What kind of message it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// An initiation, for which of our keys: its first MAC says so.
    Initiation(Age),
    /// A response, to this index of ours.
    Response(u32),
}

impl Core {
    /// Queues an initiation that is meant for one of our keys, or answers with a cookie where too many come.
    pub(super) fn queue_initiation(
        &mut self,
        (remote, local): (SocketAddr, Option<IpAddr>),
        bytes: &[u8],
        now: Instant,
        out: &mut Outbox,
    ) {
        if self.received.len() >= LOADED {
            self.loaded_until = Some(now + LOADED_FOR);
        }
        let loaded = self.loaded_until.is_some_and(|until| now < until);
        let own = self.own.iter().map(|own| (Age::Current, own));
        let previous = self.previous.iter().map(|own| (Age::Old, own));
        let mut refusal = Count::BadMac;
        for (age, own) in own.chain(previous) {
            let limiter = if loaded { &own.strict } else { &*own.open };
            let mut cookie = [0; COOKIE];
            match limiter.verify_packet(Some(remote.ip()), bytes, &mut cookie) {
                Ok(_) => {
                    self.queue(Received {
                        remote,
                        local,
                        bytes: bytes.into(),
                        kind: Kind::Initiation(age),
                    });
                    return;
                }
                Err(TunnResult::WriteToNetwork(_)) => {
                    let to = Destination {
                        peer: u32::MAX,
                        remote,
                        local,
                        also: None,
                    };
                    out.write(to, COOKIE, |room| {
                        room[..COOKIE].copy_from_slice(&cookie);
                        Some(COOKIE)
                    });
                    self.counters.add(Count::CookieSent, 1);
                    return;
                }
                Err(TunnResult::Err(WireGuardError::InvalidMac)) => {}
                Err(TunnResult::Err(error)) => {
                    refusal = reason(&error);
                    break;
                }
                Err(
                    TunnResult::Done
                    | TunnResult::WriteToTunnelV4(..)
                    | TunnResult::WriteToTunnelV6(..),
                ) => {
                    refusal = Count::Protocol;
                    break;
                }
            }
        }
        self.counters.add(refusal, 1);
    }

    /// Queues a response to something we sent.
    pub(super) fn queue_response(
        &mut self,
        (remote, local): (SocketAddr, Option<IpAddr>),
        receiver: u32,
        bytes: &[u8],
    ) {
        if self.link_of(receiver).is_none() {
            self.counters.add(Count::UnknownSession, 1);
            return;
        }
        self.queue(Received {
            remote,
            local,
            bytes: bytes.into(),
            kind: Kind::Response(receiver),
        });
    }

    fn queue(&mut self, received: Received) {
        if !self.received.push(received.remote.ip(), received) {
            self.counters.add(Count::HandshakesFull, 1);
        }
    }

    /// Notes that a peer's handshake is to begin, or a keepalive to be sent.
    pub(super) fn begin(&mut self, index: u32, kick: Kick) {
        let Some(peer) = self.peers.get_mut(index as usize).and_then(Option::as_mut) else {
            return;
        };
        if peer.kick == Kick::Idle {
            self.kicks.push_back(index);
        }
        peer.kick = peer.kick.max(kick);
    }

    /// Does one handshake message of those that came, and one of those that are to go.
    pub(super) fn handle_shakes(&mut self, now: Instant, out: &mut Outbox) {
        if let Some(received) = self.received.pop() {
            let Received {
                remote,
                local,
                bytes,
                kind,
            } = received;
            let from = (remote, local);
            match kind {
                Kind::Initiation(age) => self.handle_initiation(from, age, &bytes, now, out),
                Kind::Response(receiver) => self.handle_answer(from, receiver, &bytes, now, out),
            }
        }
        for _ in 0..LOOKS {
            let Some(index) = self.kicks.pop_front() else {
                break;
            };
            if self.kick(index, now, out) {
                break;
            }
        }
    }

    /// Says whether that was a handshake.
    fn kick(&mut self, index: u32, now: Instant, out: &mut Outbox) -> bool {
        let Some(peer) = self.peer_mut(index) else {
            return false;
        };
        let kick = std::mem::replace(&mut peer.kick, Kick::Idle);
        if peer.passive || peer.endpoint.is_none() {
            return false;
        }
        match (kick, peer.live()) {
            (Kick::Idle, _) | (Kick::Start, Some(Age::Current)) => false,
            (Kick::Start, Some(Age::Old) | None) | (Kick::Hello, None) => {
                self.start(index, false, now, out)
            }
            (Kick::Afresh, None) => self.start(index, true, now, out),
            (Kick::Hello | Kick::Afresh, Some(age)) => {
                self.keepalive(index, age, now, out);
                false
            }
        }
    }
}
