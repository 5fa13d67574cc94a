//! From the TUN to a peer.

use std::time::Instant;

use boringtun::noise::TunnResult;

use super::peer::{Age, Link};
use super::routes::Route;
use super::{Core, STAGED, STAGED_PER_PEER};
use crate::counters::{Count, Counters, reason};
use crate::outbox::{Destination, Outbox};
use crate::packet;
use crate::segment::{Segments, VnetHeader};

/// What sealing adds: header and tag.
const OVERHEAD: usize = 32;
/// A handshake initiation.
pub(super) const INITIATION: usize = 148;

impl Core {
    /// Takes a packet or super-packet of `len` bytes from the TUN and seals what it stands for. The buffer is
    /// longer by [`crate::segment::SLACK`] and overwritten.
    pub fn handle_tun(
        &mut self,
        buffer: &mut [u8],
        len: usize,
        header: VnetHeader,
        now: Instant,
        out: &mut Outbox,
    ) {
        let route = buffer
            .get(..len)
            .and_then(packet::destination)
            .and_then(|ip| self.routes.find(ip));
        let Ok(mut segments) = Segments::new(buffer, len, header, self.mtu) else {
            self.counters.add(Count::TunMalformed, 1);
            return;
        };
        let packets = segments.count() as u64;
        self.counters.add(Count::TunPackets, packets);
        let Some(route) = route else {
            self.counters.add(Count::NoRoute, packets);
            return;
        };
        let Some((index, age)) = self.carrier(route, now, out) else {
            self.counters.add(Count::NoEndpoint, packets);
            return;
        };
        let Self {
            peers,
            counters,
            staged,
            ..
        } = self;
        let Some(peer) = peers.get_mut(index as usize).and_then(Option::as_mut) else {
            return;
        };
        let Some(to) = peer.destination(index) else {
            counters.add(Count::NoEndpoint, packets);
            return;
        };
        let Some(link) = peer.link_mut(age) else {
            return;
        };
        let mut sent = 0;
        while let Some(plain) = segments.next_segment() {
            if link.live {
                sent += seal(link, plain, to, counters, out);
            } else if link.staged < STAGED_PER_PEER && *staged < STAGED {
                link.staged += 1;
                link.staged_max = link.staged_max.max(plain.len());
                *staged += 1;
                sent += seal(link, plain, to, counters, out);
            } else {
                counters.add(Count::StagedFull, 1);
            }
        }
        if sent > 0 {
            peer.sent(sent, now);
        }
    }

    /// Whose session carries a range now. Starts the owner's handshake where a stand-in carries it.
    fn carrier(&mut self, route: Route, now: Instant, out: &mut Outbox) -> Option<(u32, Age)> {
        let owner = self.peer(route.owner)?;
        let startable = owner.endpoint.is_some() && !owner.passive;
        let live = owner.live();
        if live == Some(Age::Current) {
            return Some((route.owner, Age::Current));
        }
        let stand_in = live.map(|age| (route.owner, age)).or_else(|| {
            let fallback = route.fallback?;
            Some((fallback, self.peer(fallback)?.live()?))
        });
        if stand_in.is_some() {
            if startable {
                self.start(route.owner, false, now, out);
            }
            return stand_in;
        }
        if !startable {
            return None;
        }
        self.current_link(route.owner, now)?;
        Some((route.owner, Age::Current))
    }

    /// Sends a handshake initiation under the present key, unless one is under way (`afresh`: even then).
    pub(super) fn start(&mut self, index: u32, afresh: bool, now: Instant, out: &mut Outbox) {
        let Some(to) = self.peer(index).and_then(|peer| peer.destination(index)) else {
            return;
        };
        let Some(link) = self.current_link(index, now) else {
            return;
        };
        let mut sent = 0;
        out.seal(to, INITIATION, |room| {
            let result = link.tunn.format_handshake_initiation(room, afresh);
            sent = written(&result)?;
            Some(sent)
        });
        if sent > 0
            && let Some(peer) = self.peer_mut(index)
        {
            peer.sent(sent, now);
        }
    }

    /// Sends an empty packet on a live session.
    pub(super) fn keepalive(&mut self, index: u32, age: Age, now: Instant, out: &mut Outbox) {
        let Self {
            peers, counters, ..
        } = self;
        let Some(peer) = peers.get_mut(index as usize).and_then(Option::as_mut) else {
            return;
        };
        let to = peer.destination(index);
        if let (Some(to), Some(link)) = (to, peer.link_mut(age)) {
            let sent = seal(link, &[], to, counters, out);
            peer.sent(sent, now);
        }
    }

    /// Sends what waited for a session.
    pub(super) fn flush_staged(&mut self, index: u32, age: Age, now: Instant, out: &mut Outbox) {
        let Some(peer) = self.peers.get_mut(index as usize).and_then(Option::as_mut) else {
            return;
        };
        let Some(to) = peer.destination(index) else {
            return;
        };
        let Some(link) = peer.link_mut(age) else {
            return;
        };
        let mut sent = 0;
        let expected = (link.staged_max + OVERHEAD).max(INITIATION);
        while link.staged > 0 {
            let (mut asked, mut len) = (false, 0);
            out.seal(to, expected, |room| {
                asked = true;
                len = written(&link.tunn.decapsulate(None, &[], room))?;
                Some(len)
            });
            if !asked {
                break;
            }
            // An empty answer: nothing waits any more, whatever was counted.
            let gone = if len == 0 { link.staged } else { 1 };
            sent += len;
            link.staged -= gone;
            self.staged = self.staged.saturating_sub(gone);
        }
        if link.staged == 0 {
            link.staged_max = 0;
        }
        if sent > 0 {
            peer.sent(sent, now);
        }
    }
}

/// Seals a plaintext; without a session it is staged and a handshake may go out instead.
fn seal(
    link: &mut Link,
    plain: &[u8],
    to: Destination,
    counters: &Counters,
    out: &mut Outbox,
) -> usize {
    let mut asked = false;
    let mut sent = 0;
    out.seal(to, plain.len() + OVERHEAD, |room| {
        asked = true;
        let result = link.tunn.encapsulate(plain, room);
        if let TunnResult::Err(error) = &result {
            counters.add(reason(error), 1);
        }
        sent = written(&result)?;
        Some(sent)
    });
    if !asked {
        counters.add(Count::Oversize, 1);
    }
    sent
}

/// Length of the datagram to send, if there is one.
pub(super) fn written(result: &TunnResult<'_>) -> Option<usize> {
    match result {
        TunnResult::WriteToNetwork(datagram) => Some(datagram.len()),
        TunnResult::Done
        | TunnResult::Err(_)
        | TunnResult::WriteToTunnelV4(..)
        | TunnResult::WriteToTunnelV6(..) => None,
    }
}
