//! Datagrams on their way out, gathered into UDP GSO messages: equal sizes, only the last shorter. Packets of sessions
//! are sealed when the messages are wanted, many at once.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use arrayvec::ArrayVec;
use batch_aead::{Key, TAG};
use boringtun::noise::batch::Reserved;

use crate::segment::GSO_MAX;

/// Most datagrams a message (`UDP_MAX_SEGMENTS`).
const SEGMENTS_MAX: usize = 64;
/// Most payload bytes of a datagram (65 535 less IPv4 and UDP headers).
const DATAGRAM_MAX: usize = 65507;
/// The least room sealing wants: a handshake initiation.
const ROOM_MIN: usize = 148;
/// Type, receiver index and counter of a data packet (WireGuard 5.4.6).
pub(crate) const HEADER: usize = 16;
/// What sealing adds: header and tag.
pub const OVERHEAD: usize = HEADER + TAG;
/// Packets sealed at once. More would leave the cache between being written and being sealed.
const BATCH: usize = 64;
/// Messages after which a turn is flushed.
const FULL: usize = 16;
/// Messages after which nothing is added: a super-packet of the smallest segments opens a few dozen.
const LIMIT: usize = 512;

/// Where a datagram goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Destination {
    /// The peer, as the core counts them; tells messages of two peers behind one address apart.
    pub peer: u32,
    /// The other end.
    pub remote: SocketAddr,
    /// Our address, once known.
    pub local: Option<IpAddr>,
    /// Another address of the peer, which gets the same: either may be gone.
    pub also: Option<SocketAddr>,
}

/// One message.
#[derive(Debug)]
pub struct Message {
    /// Where it goes.
    pub to: Destination,
    /// Length of its datagrams, but for the last.
    pub segment: usize,
    /// How many datagrams it holds.
    pub count: usize,
    len: usize,
    closed: bool,
    /// Seals its datagrams; without one they are as they go.
    key: Option<Arc<Key>>,
    /// So many bytes are sealed.
    sealed: usize,
    buffer: Box<[u8]>,
}

impl Message {
    /// All its datagrams, end to end.
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[..self.len]
    }

    /// Its datagrams.
    pub fn datagrams(&self) -> impl Iterator<Item = &[u8]> {
        self.bytes().chunks(self.segment.max(1))
    }

    fn takes(&self, len: usize, key: Option<&Arc<Key>>) -> bool {
        let same = match (&self.key, key) {
            (Some(own), Some(key)) => Arc::ptr_eq(own, key),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        self.count == 0
            || (same
                && !self.closed
                && self.count < SEGMENTS_MAX
                && len <= self.segment
                && self.len + len <= GSO_MAX)
    }

    fn add(&mut self, len: usize) {
        if self.count == 0 {
            self.segment = len;
        }
        self.closed = len < self.segment;
        self.len += len;
        self.count += 1;
    }

    /// Its packets that are still to be sealed, which the caller does.
    fn unsealed(&mut self) -> impl Iterator<Item = batch_aead::Message<'_>> {
        let from = std::mem::replace(&mut self.sealed, self.len);
        let key = self.key.as_deref();
        let datagrams = self.buffer[from..self.len].chunks_mut(self.segment.max(1));
        datagrams.filter_map(move |datagram| {
            let (header, bytes) = datagram.split_at_mut_checked(HEADER)?;
            Some(batch_aead::Message {
                key: key?,
                counter: u64::from_le_bytes(*header.last_chunk()?),
                bytes,
            })
        })
    }
}

/// The messages of this turn. Buffers are kept for the next.
#[derive(Debug, Default)]
pub struct Outbox {
    messages: Vec<Message>,
    used: usize,
}

impl Outbox {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Is there nothing to send?
    pub fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// Should it be flushed before more is added?
    pub fn is_full(&self) -> bool {
        self.used >= FULL
    }

    /// The messages, oldest first, sealed.
    pub fn messages(&mut self) -> &[Message] {
        let messages = &mut self.messages[..self.used];
        let mut unsealed = messages.iter_mut().flat_map(Message::unsealed);
        let mut batch = ArrayVec::<_, BATCH>::new();
        loop {
            batch.clear();
            batch.extend(unsealed.by_ref().take(BATCH));
            if batch.is_empty() {
                break;
            }
            batch_aead::best().seal(&mut batch);
        }
        drop((batch, unsealed));
        &self.messages[..self.used]
    }

    /// Forgets all messages.
    pub fn clear(&mut self) {
        for message in &mut self.messages[..self.used] {
            message.key = None;
        }
        self.used = 0;
    }

    /// Adds a packet of a session, to be sealed. Says how long the datagram is, or `None` where it is too long or there
    /// are too many.
    pub fn add(&mut self, to: Destination, place: &Reserved<'_>, plain: &[u8]) -> Option<usize> {
        let len = plain.len() + OVERHEAD;
        if len > DATAGRAM_MAX || self.used >= LIMIT {
            return None;
        }
        let index = self.place(to, len, Some(place.key));
        let message = &mut self.messages[index];
        let room = &mut message.buffer[message.len..message.len + len];
        room[..4].copy_from_slice(&[4, 0, 0, 0]);
        room[4..8].copy_from_slice(&place.receiver.to_le_bytes());
        room[8..HEADER].copy_from_slice(&place.counter.to_le_bytes());
        room[HEADER..len - TAG].copy_from_slice(plain);
        message.add(len);
        Some(len)
    }

    /// Adds what `write` writes into the next free place: it gets at least `expected` bytes (and 148 and more in
    /// any case) and returns the datagram's length, or `None` where there is none. Says whether there was one.
    pub fn write(
        &mut self,
        to: Destination,
        expected: usize,
        write: impl FnOnce(&mut [u8]) -> Option<usize>,
    ) -> bool {
        if expected > DATAGRAM_MAX || self.used >= LIMIT {
            return false;
        }
        let index = self.place(to, expected, None);
        let message = &mut self.messages[index];
        let at = message.len;
        let Some(len) = write(&mut message.buffer[at..]) else {
            if message.count == 0 {
                self.used -= 1;
            }
            return false;
        };
        if message.takes(len, None) {
            message.add(len);
        } else {
            let new = self.open(to, None);
            let (old, fresh) = self.messages.split_at_mut(new);
            fresh[0].buffer[..len].copy_from_slice(&old[index].buffer[at..at + len]);
            fresh[0].add(len);
        }
        true
    }

    /// The newest message to there if it takes a datagram of this length, else a new one.
    fn place(&mut self, to: Destination, expected: usize, key: Option<&Arc<Key>>) -> usize {
        let newest = self.messages[..self.used]
            .iter()
            .rposition(|message| message.to == to);
        match newest {
            Some(index) if self.messages[index].takes(expected, key) => index,
            Some(_) | None => self.open(to, key),
        }
    }

    fn open(&mut self, to: Destination, key: Option<&Arc<Key>>) -> usize {
        if self.used == self.messages.len() {
            self.messages.push(Message {
                to,
                segment: 0,
                count: 0,
                len: 0,
                closed: false,
                key: None,
                sealed: 0,
                buffer: vec![0; DATAGRAM_MAX + 2 * ROOM_MIN].into_boxed_slice(),
            });
        }
        let message = &mut self.messages[self.used];
        message.to = to;
        message.segment = 0;
        message.count = 0;
        message.len = 0;
        message.closed = false;
        message.key = key.cloned();
        message.sealed = 0;
        self.used += 1;
        self.used - 1
    }
}
