//! Timers of sessions, keepalives, and handshakes that a plan asked for.

use std::time::Instant;

use boringtun::noise::TunnResult;

use super::peer::{Age, Kick};
use super::send::{INITIATION, written};
use super::{Core, OLD_LINK, TICK, TICKS_PER_TURN};
use crate::counters::Count;
use crate::outbox::{Destination, Outbox};

impl Core {
    /// Ends a turn: does what is due, but of handshakes and timers only as much as packets may wait for.
    pub fn handle_timeout(&mut self, now: Instant, out: &mut Outbox) {
        self.crowd.next_turn(now);
        self.handle_shakes(now, out);
        if self.round.is_none() && self.next_tick.is_some_and(|at| at <= now) {
            self.next_tick = None;
            self.round = Some((0, false));
        }
        let Some((first, mut busy)) = self.round.take() else {
            return;
        };
        let mut looks = 0;
        for index in first..self.peers.len() as u32 {
            let Some(peer) = self.peer(index) else {
                continue;
            };
            if looks == TICKS_PER_TURN {
                self.round = Some((index, busy));
                return;
            }
            looks += usize::from(peer.current.is_some() || peer.old.is_some());
            let ticked = self.tick_peer(index, now, out);
            busy |= ticked.again;
            if ticked.initiated {
                self.round = Some((index + 1, busy));
                return;
            }
        }
        if busy {
            self.next_tick.get_or_insert(now + TICK);
        }
    }

    fn tick_peer(&mut self, index: u32, now: Instant, out: &mut Outbox) -> Ticked {
        let current = self.tick_link(index, Age::Current, now, out);
        let old = self.tick_link(index, Age::Old, now, out);
        let mut ticked = Ticked {
            again: current.again || old.again,
            initiated: current.initiated || old.initiated,
        };
        let forgotten = self.previous.is_none();
        let Some(peer) = self.peer(index) else {
            return ticked;
        };
        if let Some(old) = &peer.old {
            let established = peer
                .handshake_at
                .is_some_and(|at| now.saturating_duration_since(at) >= OLD_LINK);
            let replaced = peer.live() == Some(Age::Current);
            if (replaced && (forgotten || established)) || (forgotten && !old.live) {
                self.drop_link(index, Age::Old);
            }
        }
        ticked.again |= self.tick_keepalive(index, now, out);
        ticked
    }

    /// Persistent keepalive; says whether there is one. Kept here, not by the sessions: theirs cannot be changed later, and sends even
    /// when other packets did the work.
    fn tick_keepalive(&mut self, index: u32, now: Instant, out: &mut Outbox) -> bool {
        let Some(peer) = self.peer(index) else {
            return false;
        };
        let (Some(interval), Some(_), false) = (peer.keepalive, peer.endpoint, peer.passive) else {
            return false;
        };
        let due = peer
            .traversed_at
            .is_none_or(|at| now.saturating_duration_since(at) >= interval);
        let live = peer.live();
        if due {
            if let Some(age) = live {
                self.keepalive(index, age, now, out);
            }
            if live != Some(Age::Current) {
                self.begin(index, Kick::Start);
            }
        }
        true
    }

    pub(super) fn tick_link(
        &mut self,
        index: u32,
        age: Age,
        now: Instant,
        out: &mut Outbox,
    ) -> Ticked {
        let may_start = age == Age::Current || self.previous.is_some();
        let nothing = Ticked {
            again: false,
            initiated: false,
        };
        let Self {
            peers, counters, ..
        } = self;
        let Some(peer) = peers.get_mut(index as usize).and_then(Option::as_mut) else {
            return nothing;
        };
        let to = peer.destination(index);
        let may_start = may_start && !peer.passive;
        let Some(link) = peer.link_mut(age) else {
            return nothing;
        };
        let slept = link.tunn.is_expired();
        link.ticked_at = now;
        let mut scratch = [0; INITIATION];
        let result = link.tunn.update_timers(&mut scratch);
        let expired = matches!(result, TunnResult::Err(_));
        let len = written(&result).unwrap_or(0);
        link.live &= link.tunn.time_since_last_handshake().is_some();
        let initiated = len > 0 && scratch[0] == 1;
        if len > 0 && (!initiated || may_start) && send(to, &scratch[..len], out) {
            peer.sent(len, now);
        }
        if expired && !slept {
            counters.add(Count::Expired, 1);
            if age == Age::Current {
                self.drop_staged(index);
            }
        }
        Ticked {
            again: !expired,
            initiated,
        }
    }
}

/// What a look at timers brought.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ticked {
    /// The next tick is wanted too.
    again: bool,
    /// A handshake was begun or repeated, which takes long.
    initiated: bool,
}

fn send(to: Option<Destination>, datagram: &[u8], out: &mut Outbox) -> bool {
    to.is_some_and(|to| {
        out.write(to, datagram.len(), |room| {
            room[..datagram.len()].copy_from_slice(datagram);
            Some(datagram.len())
        })
    })
}
