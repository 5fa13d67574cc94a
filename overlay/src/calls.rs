//! How many neighbours are asked to pass a call on. While an answer may be expected three are, because any copy may be
//! lost. A peer that never answers is dead or cut off, and whoever comes back calls by itself: to go on asking three
//! neighbours, of which each asks three more, would load the living with the dead.
//!
//! A neighbour passes so much on in a second and drops the rest. So no more is asked of it: first goes what is for peers
//! that were heard of, everything else takes turns.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use mesh_types::message::Message;
use mesh_types::{Now, PeerId};

use crate::budget::Budget;
use crate::control::FORWARD_WAYS;
use crate::overlay::Overlay;
use crate::peer::FORWARDS_PER_SECOND;

/// Calls that go by all ways: those of the first ten seconds.
const EAGER: u32 = 4;
/// Of the calls after that, the second, fourth, eighth... go by one way, then each of so many.
const RAREST: u32 = 16;
/// Of what a neighbour passes on in a second, so much is left for peers that were heard of...
const KEPT: u32 = 4;
/// ...and so much by what is asked in the name of others.
pub(crate) const KEPT_BY_HOPS: u32 = 7;
/// Who waits asks again after this.
const AGAIN: Duration = Duration::from_millis(200);

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

/// What neighbours were asked lately, and what has yet to be asked.
#[derive(Debug, Default)]
pub(crate) struct CallQueue {
    asked: BTreeMap<PeerId, Budget>,
    /// Peers that wait, the first one first, and the last message for each.
    order: VecDeque<PeerId>,
    messages: BTreeMap<PeerId, Message>,
    /// When to look again whether a neighbour has room.
    pub(crate) at: Option<Instant>,
}

impl CallQueue {
    /// Would a neighbour pass one more on, with so many left?
    pub(crate) fn has_room(&self, neighbour: &PeerId, left: u32, now: Instant) -> bool {
        let asked = self.asked.get(neighbour);
        asked.is_none_or(|asked| asked.has_beside(left, now))
    }

    /// A neighbour is asked to pass something on.
    pub(crate) fn asked(&mut self, neighbour: PeerId, now: Instant) {
        let fresh = || Budget::new(FORWARDS_PER_SECOND);
        self.asked.entry(neighbour).or_insert_with(fresh).take(now);
    }

    /// Puts a message for a peer that was heard of first, another one last or in the place of an earlier one for the
    /// same peer.
    fn wait(&mut self, peer: PeerId, message: Message, heard: bool, now: Instant) {
        let waits = self.messages.insert(peer, message).is_some();
        if heard {
            self.order.retain(|other| *other != peer);
            self.order.push_front(peer);
        } else if !waits {
            self.order.push_back(peer);
        }
        self.at.get_or_insert(now + AGAIN);
    }

    fn pop(&mut self) -> Option<(PeerId, Message)> {
        let peer = self.order.pop_front()?;
        Some((peer, self.messages.remove(&peer)?))
    }
}

impl Overlay {
    /// Has neighbours pass a message on to a peer, now or when they have room for it.
    pub(crate) fn ask_neighbours(&mut self, peer: &PeerId, message: &Message, now: Now) {
        let heard = self.traversal.is_alive(peer, now);
        let turn = heard || self.call_queue.order.is_empty();
        if !(turn && self.asks_neighbours(peer, message, heard, now)) {
            self.call_queue
                .wait(*peer, message.clone(), heard, now.mono);
        }
    }

    /// False where none of them has room.
    fn asks_neighbours(&mut self, peer: &PeerId, message: &Message, heard: bool, now: Now) -> bool {
        if self.peers.met().next().is_none() {
            return true;
        }
        let own = self.identity.key.public().idx();
        let mut neighbours = self.neighbours(Some(*peer), None, own, now);
        if neighbours.is_empty() {
            return true;
        }
        let left = if heard { 0 } else { KEPT };
        neighbours.retain(|way| self.call_queue.has_room(way, left, now.mono));
        if neighbours.is_empty() {
            return false;
        }
        let (mut ways, first) = self.ways_to(peer);
        if !heard && !self.call_queue.order.is_empty() {
            // One call for each that waits is worth more than three for one.
            ways = ways.min(1);
        }
        let first = first % neighbours.len();
        neighbours.rotate_left(first);
        neighbours.truncate(ways);
        if ways == 0 {
            return true;
        }
        let Some(forward) = self.traversal.seal(peer, message) else {
            return true;
        };
        let forward = Message::from(forward);
        for neighbour in neighbours {
            self.call_queue.asked(neighbour, now.mono);
            self.send_message(&neighbour, &forward);
            self.count("forwards-asked");
        }
        true
    }

    /// Those that wait ask again, the first one first.
    pub(crate) fn calls_due(&mut self, now: Now) {
        if self.call_queue.at.take_if(|at| *at <= now.mono).is_none() {
            return;
        }
        while let Some((peer, message)) = self.call_queue.pop() {
            let met = self.traversal.path(&peer).is_some();
            let heard = self.traversal.is_alive(&peer, now);
            if !met && !self.asks_neighbours(&peer, &message, heard, now) {
                self.call_queue.order.push_front(peer);
                self.call_queue.messages.insert(peer, message);
                self.call_queue.at = Some(now.mono + AGAIN);
                return;
            }
        }
        self.call_queue
            .asked
            .retain(|_, asked| !asked.is_over(now.mono));
    }

    /// How many neighbours are asked to pass a call on to a peer, and which of them is the first; beyond the last comes
    /// the first again.
    fn ways_to(&mut self, peer: &PeerId) -> (usize, usize) {
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
    use mesh_types::WgSecret;
    use mesh_types::message::Echo;

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

    #[expect(
        clippy::disallowed_methods,
        reason = "a test may start its virtual clock anywhere"
    )]
    fn start() -> Instant {
        Instant::now()
    }

    fn peer(number: u8) -> PeerId {
        PeerId::Key(WgSecret::from_bytes([number; 32]).public())
    }

    #[test]
    fn a_neighbour_is_asked_for_what_it_passes_on_and_some_of_it_is_left_for_who_was_heard_of() {
        let start = start();
        let mut queue = CallQueue::default();
        let mut asks = |left, now| {
            let room = queue.has_room(&peer(1), left, now);
            if room {
                queue.asked(peer(1), now);
            }
            room
        };
        assert_eq!((0..20).filter(|_| asks(KEPT_BY_HOPS, start)).count(), 3);
        assert_eq!((0..20).filter(|_| asks(KEPT, start)).count(), 3);
        assert_eq!((0..20).filter(|_| asks(0, start)).count(), 4);
        assert!(asks(KEPT, start + Duration::from_secs(1)));
        assert!(queue.has_room(&peer(2), KEPT, start));
    }

    #[test]
    fn who_waits_has_one_turn_with_the_last_message_and_who_was_heard_of_comes_before() {
        let start = start();
        let message = |token| {
            let reply = false;
            Message::from(Echo { token, reply })
        };
        let mut queue = CallQueue::default();
        for (number, heard) in [(1, false), (2, false), (3, true), (1, false), (2, true)] {
            let token = u64::from(number) + queue.order.len() as u64;
            queue.wait(peer(number), message(token), heard, start);
        }
        assert_eq!(queue.at, Some(start + AGAIN));
        let all: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        let turns = [(2, 5), (3, 5), (1, 4)];
        assert_eq!(
            all,
            turns.map(|(number, token)| (peer(number), message(token)))
        );
    }
}
