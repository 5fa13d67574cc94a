//! Sealed datagrams on their way out, gathered into UDP GSO messages: equal sizes, only the last shorter.

use std::net::{IpAddr, SocketAddr};

use crate::segment::GSO_MAX;

/// Most datagrams a message (`UDP_MAX_SEGMENTS`).
const SEGMENTS_MAX: usize = 64;
/// Most payload bytes of a datagram (65 535 less IPv4 and UDP headers).
const DATAGRAM_MAX: usize = 65507;
/// The least room sealing wants: a handshake initiation.
const ROOM_MIN: usize = 148;
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

    fn takes(&self, len: usize) -> bool {
        self.count == 0
            || (!self.closed
                && self.count < SEGMENTS_MAX
                && len <= self.segment
                && self.len + len <= GSO_MAX)
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

    /// The messages, oldest first.
    pub fn messages(&self) -> &[Message] {
        &self.messages[..self.used]
    }

    /// Forgets all messages.
    pub fn clear(&mut self) {
        self.used = 0;
    }

    /// Adds what `seal` writes into the next free place: it gets at least `expected` bytes (and 148 and more in
    /// any case) and returns the datagram's length, or `None` where there is none. Says whether there was one.
    pub fn seal(
        &mut self,
        to: Destination,
        expected: usize,
        seal: impl FnOnce(&mut [u8]) -> Option<usize>,
    ) -> bool {
        if expected > DATAGRAM_MAX || self.used >= LIMIT {
            return false;
        }
        let index = self.place(to, expected);
        let message = &mut self.messages[index];
        let at = message.len;
        let Some(len) = seal(&mut message.buffer[at..]) else {
            if message.count == 0 {
                self.used -= 1;
            }
            return false;
        };
        if message.takes(len) {
            message.add(len);
        } else {
            let new = self.open(to);
            let (old, fresh) = self.messages.split_at_mut(new);
            fresh[0].buffer[..len].copy_from_slice(&old[index].buffer[at..at + len]);
            fresh[0].add(len);
        }
        true
    }

    /// The newest message to there if it takes a datagram of this length, else a new one.
    fn place(&mut self, to: Destination, expected: usize) -> usize {
        let newest = self.messages[..self.used]
            .iter()
            .rposition(|message| message.to == to);
        match newest {
            Some(index) if self.messages[index].takes(expected) => index,
            Some(_) | None => self.open(to),
        }
    }

    fn open(&mut self, to: Destination) -> usize {
        if self.used == self.messages.len() {
            self.messages.push(Message {
                to,
                segment: 0,
                count: 0,
                len: 0,
                closed: false,
                buffer: vec![0; DATAGRAM_MAX + 2 * ROOM_MIN].into_boxed_slice(),
            });
        }
        let message = &mut self.messages[self.used];
        message.to = to;
        message.segment = 0;
        message.count = 0;
        message.len = 0;
        message.closed = false;
        self.used += 1;
        self.used - 1
    }
}

impl Message {
    fn add(&mut self, len: usize) {
        if self.count == 0 {
            self.segment = len;
        }
        self.closed = len < self.segment;
        self.len += len;
        self.count += 1;
    }
}
