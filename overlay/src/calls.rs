//! How many neighbours are asked to pass a call on. While an answer may be expected three are, because any copy may be
//! lost. A peer that never answers is dead or cut off, and whoever comes back calls by itself: to go on asking three
//! neighbours, of which each asks three more, would load the living with the dead.

use mesh_types::PeerId;

use crate::control::FORWARD_WAYS;
use crate::overlay::Overlay;

/// Calls that go by all ways: those of the first ten seconds.
const EAGER: u32 = 4;
/// Of the calls after that, the second, fourth, eighth... go by one way, then each of so many.
const RAREST: u32 = 16;

/// Calls to one peer since it was last heard of.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Calls {
    /// Number of the ways by which they went.
    ways: u32,
    made: u32,
}

impl Calls {
    /// By how many neighbours does the next one go? `ways` changes where it may have become another question.
    fn next(&mut self, ways: u32) -> usize {
        if self.ways != ways {
            *self = Self { ways, made: 0 };
        }
        self.made = self.made.saturating_add(1);
        match self.made.saturating_sub(EAGER) {
            0 => FORWARD_WAYS,
            late if late.is_power_of_two() && late < RAREST || late % RAREST == 0 => 1,
            _ => 0,
        }
    }
}

impl Overlay {
    /// How many neighbours are asked to pass a call on to a peer, and which of them is the first; beyond the last comes
    /// the first again.
    pub(crate) fn ways_to(&mut self, peer: &PeerId) -> (usize, usize) {
        if self.peers.met().next().is_none() {
            return (0, 0);
        }
        let Some(calls) = self.peers.calls(peer) else {
            return (0, 0);
        };
        match calls.next(self.ways) {
            // Another one each time: perhaps only one of them reaches it.
            1 => (1, calls.made as usize),
            ways => (ways, 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_go_by_all_ways_first_then_ever_more_rarely_by_one_and_anew_where_something_changed() {
        let mut calls = Calls::default();
        let made: Vec<usize> = (0..70).map(|_| calls.next(0)).collect();
        assert_eq!(made[..4], [3; 4]);
        let late: Vec<usize> = (0..70).filter(|n| made[*n] == 1).collect();
        assert_eq!(late, [4, 5, 7, 11, 19, 35, 51, 67]);
        assert_eq!(calls.next(1), 3);
    }
}
