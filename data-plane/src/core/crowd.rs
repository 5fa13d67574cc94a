//! Who gets how much opened while more comes in than can be.
//!
//! The socket's buffer is one queue for all peers. Where one of them floods, the kernel drops what comes while it is
//! full, and that hits everybody in proportion to what they send, so the flood drowns the rest. Opening is what takes the
//! time: to read what the kernel has coalesced takes a fraction of it. So while the buffer stays more than half
//! full, each turn reads more and opens less of each peer, until it is empty again. A peer that sends little loses
//! nothing, and what is dropped of the others is counted. A peer that is alone is left to the kernel, which does it
//! for less.

use std::time::{Duration, Instant};

/// Bytes read in a turn while all is well.
pub(super) const TURN: usize = 256 * 1024;
/// How many times the limit of a turn doubles and a peer's share halves: from 256 KiB to 4 MiB (all that the
/// socket holds) and to 16 KiB.
pub(crate) const PRESSURE_MAX: u32 = 4;
/// How long a peer counts as one of several.
const WINDOW: Duration = Duration::from_secs(1);

/// What all peers have in common.
#[derive(Debug, Default)]
pub(super) struct Crowd {
    pressure: u32,
    /// The socket was more than half full when its turn was over.
    full: bool,
    turn: u32,
    window: u32,
    window_until: Option<Instant>,
    /// Peers heard in this window and in the one before.
    heard: [u32; 2],
}

/// What came from a peer.
#[derive(Debug, Default)]
pub(super) struct Heard {
    turn: u32,
    window: u32,
    /// Bytes taken in that turn.
    taken: usize,
}

impl Crowd {
    /// Bytes to read before other sockets get their turn.
    pub fn limit(&self) -> usize {
        TURN << self.pressure
    }

    /// So much was read, and the socket is still more than half full.
    pub fn is_full(&mut self) {
        self.full = true;
    }

    /// May this datagram be opened?
    pub fn admits(&mut self, heard: &mut Heard, len: usize) -> bool {
        if heard.turn != self.turn {
            heard.turn = self.turn;
            heard.taken = 0;
            if heard.window != self.window {
                heard.window = self.window;
                self.heard[0] += 1;
            }
        }
        if self.pressure > 0 && heard.taken + len > TURN >> self.pressure {
            return false;
        }
        heard.taken += len;
        true
    }

    /// All sockets had their turn.
    pub fn next_turn(&mut self, now: Instant) {
        let several = self.heard.iter().any(|peers| *peers > 1);
        if !self.full || !several {
            self.pressure = self.pressure.saturating_sub(1);
        } else if self.pressure < PRESSURE_MAX {
            self.pressure += 1;
        }
        self.full = false;
        // Zero is what a peer has that was never heard.
        self.turn = self.turn.wrapping_add(1).max(1);
        if self.window_until.is_none_or(|until| until <= now) {
            self.window_until = Some(now + WINDOW);
            self.window = self.window.wrapping_add(1).max(1);
            self.heard = [0, self.heard[0]];
        }
    }
}
