//! Timers of sessions, keepalives, and handshakes that a plan asked for.

use std::time::Instant;

use boringtun::noise::TunnResult;

use super::peer::{Age, Kick};
use super::send::{INITIATION, written};
use super::{Core, KICKS_PER_TURN, OLD_LINK, TICK};
use crate::counters::Count;
use crate::outbox::{Destination, Outbox};

impl Core {
    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant, out: &mut Outbox) {
        for _ in 0..KICKS_PER_TURN {
            let Some(index) = self.kicks.pop_front() else {
                break;
            };
            self.kick(index, now, out);
        }
        if self.next_tick.is_some_and(|at| at <= now) {
            self.next_tick = None;
            let mut busy = false;
            for index in 0..self.peers.len() as u32 {
                busy |= self.tick_peer(index, now, out);
            }
            if busy {
                self.next_tick = Some(now + TICK);
            }
        }
    }

    fn kick(&mut self, index: u32, now: Instant, out: &mut Outbox) {
        let Some(peer) = self.peer_mut(index) else {
            return;
        };
        let kick = std::mem::replace(&mut peer.kick, Kick::Idle);
        if kick == Kick::Idle || peer.passive || peer.endpoint.is_none() {
            return;
        }
        match peer.live() {
            Some(age) => self.keepalive(index, age, now, out),
            None => self.start(index, kick == Kick::Afresh, now, out),
        }
    }

    /// Says whether this peer needs the next tick too.
    fn tick_peer(&mut self, index: u32, now: Instant, out: &mut Outbox) -> bool {
        if self.peer(index).is_none() {
            return false;
        }
        let mut busy = self.tick_link(index, Age::Current, now, out);
        busy |= self.tick_link(index, Age::Old, now, out);
        let forgotten = self.previous.is_none();
        let Some(peer) = self.peer(index) else {
            return false;
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
        busy | self.tick_keepalive(index, now, out)
    }

    /// Persistent keepalive. Kept here, not by the sessions: theirs cannot be changed later, and sends even
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
                self.start(index, false, now, out);
            }
        }
        true
    }

    /// Says whether the link needs the next tick too.
    pub(super) fn tick_link(
        &mut self,
        index: u32,
        age: Age,
        now: Instant,
        out: &mut Outbox,
    ) -> bool {
        let may_start = age == Age::Current || self.previous.is_some();
        let Self {
            peers,
            counters,
            staged,
            ..
        } = self;
        let Some(peer) = peers.get_mut(index as usize).and_then(Option::as_mut) else {
            return false;
        };
        let to = peer.destination(index);
        let may_start = may_start && !peer.passive;
        let Some(link) = peer.link_mut(age) else {
            return false;
        };
        let slept = link.tunn.is_expired();
        link.ticked_at = now;
        let mut scratch = [0; INITIATION];
        let result = link.tunn.update_timers(&mut scratch);
        let expired = matches!(result, TunnResult::Err(_));
        let len = written(&result).unwrap_or(0);
        if expired && !slept {
            counters.add(Count::Expired, 1);
            *staged -= link.staged.min(*staged);
            link.staged = 0;
        }
        link.live &= link.tunn.time_since_last_handshake().is_some();
        let (live, staged) = (link.live, link.staged);
        let sent = len > 0 && (scratch[0] != 1 || may_start) && send(to, &scratch[..len], out);
        if sent {
            peer.sent(len, now);
        }
        if live && staged > 0 {
            self.flush_staged(index, age, now, out);
        }
        !expired
    }
}

fn send(to: Option<Destination>, datagram: &[u8], out: &mut Outbox) -> bool {
    to.is_some_and(|to| {
        out.seal(to, datagram.len(), |room| {
            room[..datagram.len()].copy_from_slice(datagram);
            Some(datagram.len())
        })
    })
}
