//! From the TUN to a peer.

use std::time::Instant;

use boringtun::noise::TunnResult;

use super::peer::{Age, Kick, Link};
use super::routes::Route;
use super::{Core, STAGED, STAGED_LEAST, STAGED_PER_PEER};
use crate::counters::{Count, Counters};
use crate::outbox::{Destination, Outbox};
use crate::packet;
use crate::segment::{Segments, VnetHeader};

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
        let Ok(segments) = Segments::new(buffer, len, header, self.mtu) else {
            self.counters.add(Count::TunMalformed, 1);
            return;
        };
        let packets = segments.count() as u64;
        self.counters.add(Count::TunPackets, packets);
        let Some(route) = route else {
            self.counters.add(Count::NoRoute, packets);
            return;
        };
        match self.carrier(route) {
            Carrier::Session(index, age) => self.seal_all(index, age, segments, now, out),
            Carrier::Handshake(index) => self.stage(index, segments),
            Carrier::Nobody => self.counters.add(Count::NoEndpoint, packets),
        }
    }

    fn seal_all(
        &mut self,
        index: u32,
        age: Age,
        mut segments: Segments<'_>,
        now: Instant,
        out: &mut Outbox,
    ) {
        let Self {
            peers, counters, ..
        } = self;
        let Some(peer) = peers.get_mut(index as usize).and_then(Option::as_mut) else {
            return;
        };
        let Some(to) = peer.destination(index) else {
            counters.add(Count::NoEndpoint, segments.count() as u64);
            return;
        };
        let Some(link) = peer.link_mut(age) else {
            return;
        };
        let mut sent = 0;
        while let Some(plain) = segments.next_segment() {
            sent += seal(link, plain, to, counters, out);
        }
        if sent > 0 {
            peer.sent(sent, now);
        }
    }

    /// Keeps packets until there is a session, and has its handshake begin.
    fn stage(&mut self, index: u32, mut segments: Segments<'_>) {
        let Self {
            peers,
            counters,
            staged,
            ..
        } = self;
        let Some(peer) = peers.get_mut(index as usize).and_then(Option::as_mut) else {
            return;
        };
        while let Some(plain) = segments.next_segment() {
            let most = if *staged < STAGED {
                STAGED_PER_PEER
            } else {
                STAGED_LEAST
            };
            if peer.staged.len() < most {
                peer.staged.push_back(plain.into());
                *staged += 1;
            } else {
                counters.add(Count::StagedFull, 1);
            }
        }
        self.begin(index, Kick::Start);
    }

    /// Who carries a range now. Has the owner's handshake begin where a stand-in carries it.
    fn carrier(&mut self, route: Route) -> Carrier {
        let Some(owner) = self.peer(route.owner) else {
            return Carrier::Nobody;
        };
        let startable = owner.endpoint.is_some() && !owner.passive && self.own.is_some();
        let live = owner.live();
        if live == Some(Age::Current) {
            return Carrier::Session(route.owner, Age::Current);
        }
        let stand_in = live.map(|age| (route.owner, age)).or_else(|| {
            let fallback = route.fallback?;
            Some((fallback, self.peer(fallback)?.live()?))
        });
        match stand_in {
            Some((index, age)) => {
                if startable {
                    self.begin(route.owner, Kick::Start);
                }
                Carrier::Session(index, age)
            }
            None if startable => Carrier::Handshake(route.owner),
            None => Carrier::Nobody,
        }
    }

    /// Sends a handshake initiation under the present key, unless one is under way (`afresh`: even then). Says
    /// whether it did.
    pub(super) fn start(
        &mut self,
        index: u32,
        afresh: bool,
        now: Instant,
        out: &mut Outbox,
    ) -> bool {
        let Some(to) = self.peer(index).and_then(|peer| peer.destination(index)) else {
            return false;
        };
        let Some(link) = self.current_link(index, now) else {
            return false;
        };
        let mut sent = 0;
        out.write(to, INITIATION, |room| {
            let result = link.tunn.format_handshake_initiation(room, afresh);
            sent = written(&result)?;
            Some(sent)
        });
        if sent > 0
            && let Some(peer) = self.peer_mut(index)
        {
            peer.sent(sent, now);
        }
        sent > 0
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
        let Self {
            peers,
            counters,
            staged,
            ..
        } = self;
        let Some(peer) = peers.get_mut(index as usize).and_then(Option::as_mut) else {
            return;
        };
        let waiting = std::mem::take(&mut peer.staged);
        *staged -= waiting.len().min(*staged);
        let Some(to) = peer.destination(index) else {
            counters.add(Count::NoEndpoint, waiting.len() as u64);
            return;
        };
        let Some(link) = peer.link_mut(age) else {
            return;
        };
        let mut sent = 0;
        for plain in waiting {
            sent += seal(link, &plain, to, counters, out);
        }
        if sent > 0 {
            peer.sent(sent, now);
        }
    }
}

/// How packets to a range go on.
enum Carrier {
    /// By this session.
    Session(u32, Age),
    /// They wait for this peer's.
    Handshake(u32),
    /// The owner cannot be reached.
    Nobody,
}

/// Puts a plaintext among what is to be sealed; says how long the datagram is.
fn seal(
    link: &mut Link,
    plain: &[u8],
    to: Destination,
    counters: &Counters,
    out: &mut Outbox,
) -> usize {
    let Some(place) = link.tunn.reserve(plain.len()) else {
        // Sessions end in a look at their timers, which says so itself.
        counters.add(Count::Expired, 1);
        return 0;
    };
    let sent = out.add(to, &place, plain);
    if sent.is_none() {
        counters.add(Count::Oversize, 1);
    }
    sent.unwrap_or(0)
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
