//! Data packets of a turn, opened together.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::time::Instant;

use arrayvec::ArrayVec;
use batch_aead::{Key, Message};
use boringtun::noise::TunnResult;

use super::Core;
use super::peer::Age;
use crate::counters::{Count, reason};
use crate::inbox::Inbox;
use crate::outbox::{HEADER, Outbox};

/// Data packets opened at once.
const OPENED_AT_ONCE: usize = 64;

type Batch<T> = ArrayVec<T, OPENED_AT_ONCE>;

/// A data packet that is to be opened.
pub(super) struct Opening {
    /// Where it came from, and the address it was sent to.
    from: (SocketAddr, Option<IpAddr>),
    index: u32,
    age: Age,
    receiver: u32,
    counter: u64,
    /// Where in the inbox it lies, with its tag.
    place: Range<usize>,
}

impl Core {
    /// Puts a data packet among what is to be opened.
    pub(super) fn handle_data(
        &mut self,
        from: (SocketAddr, Option<IpAddr>),
        bytes: &[u8],
        now: Instant,
        inbox: &mut Inbox,
        out: &mut Outbox,
    ) {
        let Some((header, sealed)) = bytes.split_first_chunk::<HEADER>() else {
            return;
        };
        let header = u128::from_le_bytes(*header);
        let (receiver, counter) = ((header >> 32) as u32, (header >> 64) as u64);
        let Some((index, age)) = self.link_of(receiver) else {
            self.counters.add(Count::UnknownSession, 1);
            return;
        };
        let Self {
            peers,
            counters,
            crowd,
            opening,
            ..
        } = self;
        let Some(peer) = peers.get_mut(index as usize).and_then(Option::as_mut) else {
            return;
        };
        if !crowd.admits(&mut peer.heard, bytes.len()) {
            counters.add(Count::OverShare, 1);
            return;
        }
        let Some(link) = peer.link_mut(age) else {
            return;
        };
        if let Err(error) = link.tunn.key_to_open(receiver, counter) {
            counters.add(reason(&error), 1);
            return;
        }
        let Some(place) = inbox.reserve(sealed) else {
            counters.add(Count::Oversize, 1);
            return;
        };
        opening.push(Opening {
            from,
            index,
            age,
            receiver,
            counter,
            place,
        });
        if opening.len() >= OPENED_AT_ONCE || inbox.is_full() {
            self.open_waiting(now, inbox, out);
        }
    }

    /// Opens the data packets that still wait for others to be opened with.
    pub fn open_waiting(&mut self, now: Instant, inbox: &mut Inbox, out: &mut Outbox) {
        let mut opening = std::mem::take(&mut self.opening);
        let texts = inbox.reserved(opening.iter().map(|one| one.place.clone()));
        let with_key = opening.iter().zip(texts).filter_map(|(one, bytes)| {
            let key = self.key_to_open(one)?;
            let counter = one.counter;
            Some((
                one,
                Message {
                    key,
                    counter,
                    bytes,
                },
            ))
        });
        let (opened, mut messages): (Batch<_>, Batch<_>) = with_key.unzip();
        let mut authentic = [false; OPENED_AT_ONCE];
        batch_aead::best().open(&mut messages, &mut authentic);
        drop(messages);
        for (one, authentic) in opened.into_iter().zip(authentic) {
            if authentic {
                self.take_opened(one, now, inbox, out);
            } else {
                self.counters.add(Count::Undecryptable, 1);
            }
        }
        opening.clear();
        self.opening = opening;
    }

    /// Its session was there when the packet came; a plan that was applied since may have ended it.
    fn key_to_open(&self, one: &Opening) -> Option<&Key> {
        let link = self.peer(one.index)?.link(one.age)?;
        link.tunn.key_to_open(one.receiver, one.counter).ok()
    }

    /// Takes a packet whose tag was right, unless another had its counter.
    fn take_opened(&mut self, one: &Opening, now: Instant, inbox: &mut Inbox, out: &mut Outbox) {
        let Opening {
            from: (remote, local),
            index,
            age,
            receiver,
            ..
        } = *one;
        let Self {
            peers,
            counters,
            routes,
            ..
        } = self;
        let Some(peer) = peers.get_mut(index as usize).and_then(Option::as_mut) else {
            return;
        };
        let Some(link) = peer.link_mut(age) else {
            return;
        };
        let sealed = one.place.len();
        let text = inbox.text(&one.place);
        let inner = match link.tunn.opened(receiver, one.counter, text) {
            TunnResult::WriteToTunnelV4(packet, source) => Some((packet.len(), IpAddr::V4(source))),
            TunnResult::WriteToTunnelV6(packet, source) => Some((packet.len(), IpAddr::V6(source))),
            TunnResult::Done => None,
            TunnResult::Err(error) => {
                counters.add(reason(&error), 1);
                return;
            }
            TunnResult::WriteToNetwork(_) => return,
        };
        let confirmed = link.unconfirmed == Some(receiver);
        let risen = confirmed || !link.live;
        if confirmed {
            link.unconfirmed = None;
        }
        link.live = true;
        peer.received(remote, local, HEADER + sealed, now);
        if let Some((len, source)) = inner {
            if routes
                .find(source)
                .is_some_and(|route| route.accepts(index))
            {
                inbox.push(one.place.start, len);
            } else {
                counters.add(Count::BadSource, 1);
            }
        }
        if confirmed {
            peer.handshake_at = Some(now);
            counters.add(Count::Handshakes, 1);
        }
        if risen {
            self.flush_staged(index, age, now, out);
        }
    }
}
