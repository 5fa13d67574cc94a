//! How records spread: a newly valid one at once to all neighbours, everything else by comparing digests.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use mesh_types::message::{Ack, Delta, Digest};
use mesh_types::{Message, Now, PeerId};
use rand_core::Rng as _;

use crate::overlay::Overlay;

/// A new record goes to every connected peer up to this number,
const PUSH_ALL: usize = 16;
/// and beyond it to so many at random: gossip does the rest.
const PUSH_SOME: usize = 8;
/// Digests are compared with one random peer this often, plus or minus a fifth.
const DIGEST_EVERY: Duration = Duration::from_secs(60);
/// The own announcement is repeated after this,
const REPEAT_AFTER: Duration = Duration::from_secs(1);
/// until it was sent so many times.
const TRIES: u8 = 3;
/// Both ends of a new path send their digest while it is that short; beyond, only the lower idx.
const SHORT_DIGEST: usize = 4;

/// What is under way.
#[derive(Debug, Default)]
pub(crate) struct Gossip {
    /// When to compare digests with somebody.
    pub(crate) digest_at: Option<Instant>,
    /// Who has not confirmed the own announcement: times sent, and when to repeat it.
    unconfirmed: BTreeMap<PeerId, (u8, Instant)>,
}

impl Gossip {
    /// Has everybody confirmed it, or been asked often enough?
    pub(crate) fn all_confirmed(&self) -> bool {
        self.unconfirmed.is_empty()
    }

    /// When something is to be sent.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let repeat = self.unconfirmed.values().map(|(_, at)| *at);
        repeat.chain(self.digest_at).min()
    }

    pub(crate) fn forget(&mut self, id: &PeerId) {
        self.unconfirmed.remove(id);
    }

    pub(crate) fn rename(&mut self, from: &PeerId, to: PeerId) {
        if let Some(entry) = self.unconfirmed.remove(from) {
            self.unconfirmed.insert(to, entry);
        }
    }
}

impl Overlay {
    /// Sends the own announcement to all that are connected, until they confirm it.
    pub(crate) fn push_announcement(&mut self, now: Now) {
        self.gossip.unconfirmed.clear();
        let connected: Vec<PeerId> = self.awake_peers(now);
        for id in connected {
            self.send_announcement(&id, 1, now);
        }
    }

    /// First exchange with a peer on a new path. True where the peer is to confirm `seq`.
    pub(crate) fn compare_notes(&mut self, id: &PeerId, seq: u64, now: Now) -> bool {
        let mut pages = self.directory.digest_pages(self.announcer.current.as_ref());
        let lower = self
            .peers
            .get(id)
            .is_some_and(|record| self.identity.key.public().idx() < record.idx);
        let asks = lower || pages.len() <= SHORT_DIGEST;
        if let Some(last) = pages.last_mut() {
            last.seq = seq;
        }
        if asks {
            for page in pages {
                self.send_message(id, &page.into());
            }
        }
        self.schedule_digest(now);
        asks
    }

    /// Repeats and compares what is due.
    pub(crate) fn gossip_due(&mut self, now: Now) {
        let repeat: Vec<(PeerId, u8)> = self
            .gossip
            .unconfirmed
            .iter()
            .filter(|(_, (_, at))| *at <= now.mono)
            .map(|(id, (sent, _))| (*id, *sent))
            .collect();
        for (id, sent) in repeat {
            self.gossip.forget(&id);
            if sent < TRIES && self.connected(&id, now) {
                self.send_announcement(&id, sent + 1, now);
            }
        }
        if self.gossip.digest_at.is_some_and(|at| at <= now.mono) {
            self.gossip.digest_at = None;
            let connected = self.awake_peers(now);
            if let Some(id) = self.choose(&connected) {
                self.send_digest(&id);
                self.schedule_digest(now);
            }
        }
    }

    /// Asks a peer to compare all that is known.
    pub(crate) fn send_digest(&mut self, id: &PeerId) {
        for page in self.directory.digest_pages(self.announcer.current.as_ref()) {
            self.send_message(id, &page.into());
        }
    }

    pub(crate) fn handle_ack(&mut self, from: &PeerId, seq: u64, now: Now) {
        if Some(seq) == self.announcer.seq() {
            self.gossip.forget(from);
            self.rotation_due(now);
        }
        if let Some(record) = self.peers.get_mut(from) {
            record
                .greeting
                .take_if(|greeting| greeting.said.is_some() && greeting.seq == seq);
        }
    }

    pub(crate) fn handle_digest(&mut self, from: &PeerId, digest: &Digest) {
        let own = self.announcer.current.as_ref();
        for delta in self.directory.answer_digest(digest, own) {
            self.send_message(from, &delta.into());
        }
        if digest.seq != 0 {
            self.send_message(from, &Ack { seq: digest.seq }.into());
        }
    }

    pub(crate) fn handle_delta(&mut self, from: &PeerId, delta: &Delta, now: Now) {
        let Some(key) = self.peers.get(from).map(|record| record.key) else {
            return;
        };
        let fresh = self.directory.handle_delta(delta, key, now);
        let own = self.announcer.current.as_ref();
        for answer in self.directory.answer_want(&delta.want, own) {
            self.send_message(from, &answer.into());
        }
        if delta.seq != 0 {
            self.send_message(from, &Ack { seq: delta.seq }.into());
        }
        self.push(fresh, Some(from), now);
    }

    /// Passes records on to neighbours.
    pub(crate) fn push(&mut self, deltas: Vec<Delta>, except: Option<&PeerId>, now: Now) {
        if deltas.is_empty() {
            return;
        }
        let mut targets = self.awake_peers(now);
        targets.retain(|id| Some(id) != except);
        if targets.len() > PUSH_ALL {
            self.thin_out(&mut targets);
        }
        for delta in deltas {
            let message = Message::from(delta);
            for id in &targets {
                self.send_message(id, &message);
            }
        }
    }

    /// Leaves [`PUSH_SOME`] at random.
    fn thin_out(&mut self, targets: &mut Vec<PeerId>) {
        while targets.len() > PUSH_SOME {
            let index = self.below(targets.len());
            targets.swap_remove(index);
        }
    }

    pub(crate) fn send_announcement(&mut self, id: &PeerId, count: u8, now: Now) {
        let Some(announcement) = self.announcer.current.clone() else {
            return;
        };
        let delta = Delta {
            seq: announcement.record().seq,
            announcements: vec![announcement],
            ..Delta::default()
        };
        if self.send_message(id, &delta.into()) {
            self.gossip
                .unconfirmed
                .insert(*id, (count, now.mono + REPEAT_AFTER));
        }
    }

    /// Whom news is told. Those that rest hear of it from those that never do.
    fn awake_peers(&self, now: Now) -> Vec<PeerId> {
        let mut peers = self.connected_peers(now);
        peers.retain(|id| !self.is_resting(id));
        peers
    }

    fn schedule_digest(&mut self, now: Now) {
        if self.gossip.digest_at.is_none() {
            let fifth = DIGEST_EVERY / 5;
            let jitter = fifth.mul_f64(f64::from(self.rng.next_u32()) / f64::from(u32::MAX) * 2.0);
            self.gossip.digest_at = Some(now.mono + DIGEST_EVERY - fifth + jitter);
        }
    }

    fn choose(&mut self, from: &[PeerId]) -> Option<PeerId> {
        if from.is_empty() {
            return None;
        }
        let index = self.below(from.len());
        from.get(index).copied()
    }

    fn below(&mut self, len: usize) -> usize {
        let len = u64::try_from(len).unwrap_or(u64::MAX).max(1);
        usize::try_from(self.rng.next_u64() % len).unwrap_or(0)
    }
}
