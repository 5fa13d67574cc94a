//! An address at which a peer may be, and how it did.

use std::time::{Duration, Instant};

use mesh_types::{Candidate, CandidateKind, PeerId, SocketId};

use crate::api::PathKind;
use crate::budget::PER_ANNOUNCEMENT;
use crate::schedule::{BURST, after_burst};
use crate::score::{SAMPLES, Score};

/// Least time between two grants of [`Remote::grant`].
const GRANT_EVERY: Duration = Duration::from_secs(1);
/// Probes in a row without an answer, after which an address that the peer no longer names is given up.
const LOST_AFTER: u8 = 8;

/// A socket that got through to the peer, and its local port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Local {
    pub(crate) socket: u32,
    pub(crate) port: u16,
}

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Remote {
    pub(crate) candidate: Candidate,
    pub(crate) kind: PathKind,
    /// The relay whose port it is.
    pub(crate) relay: Option<PeerId>,
    /// The relay has named it to this node, which is bound there.
    pub(crate) lent: bool,
    /// The link to a TURN server that it is behind.
    pub(crate) turn: Option<u32>,
    /// The socket that reaches it, where that is not the main one.
    pub(crate) local: Option<Local>,
    /// When that socket got through.
    pub(crate) found: Option<Instant>,
    /// It stands in the peer's announcement.
    pub(crate) announced: bool,
    /// An answer to a probe came from it.
    pub(crate) confirmed: bool,
    /// When to probe it next.
    pub(crate) next: Option<Instant>,
    pub(crate) sent: u64,
    pub(crate) answered: u64,
    pub(crate) last_sent: Option<Instant>,
    pub(crate) last_answer: Option<Instant>,
    pub(crate) rtt: Option<Duration>,
    /// The last round trips, microseconds: what [`Remote::score`] goes by.
    recent: [u32; SAMPLES as usize],
    /// Probes since the last answer.
    silent: u8,
    /// Samples in a row in which it was better than the path in use.
    better: u8,
    /// When the last of them was taken.
    sampled: Option<Instant>,
    /// Packets left while unconfirmed.
    allowance: u8,
    granted: Option<Instant>,
    burst: Instant,
    step: usize,
}

impl Remote {
    /// Starts with a burst.
    pub(crate) fn new(candidate: Candidate, kind: PathKind, now: Instant) -> Self {
        Self {
            candidate,
            kind,
            relay: None,
            lent: false,
            turn: None,
            local: None,
            found: None,
            announced: false,
            confirmed: false,
            next: Some(now),
            sent: 0,
            answered: 0,
            last_sent: None,
            last_answer: None,
            rtt: None,
            recent: [u32::MAX; SAMPLES as usize],
            silent: 0,
            better: 0,
            sampled: None,
            allowance: PER_ANNOUNCEMENT,
            granted: None,
            burst: now,
            step: 0,
        }
    }

    /// Starts a burst; `renewed` where an announcement or a call of the peer pays for it.
    pub(crate) fn restart(&mut self, renewed: bool, now: Instant) {
        if renewed {
            self.allowance = PER_ANNOUNCEMENT;
        }
        self.burst = now;
        self.step = 0;
        self.next = self.may_send().then_some(now);
    }

    /// Probes to it leave from here.
    pub(crate) fn socket(&self) -> SocketId {
        match (self.turn, self.local) {
            (Some(link), _) => SocketId::Turn(link),
            (None, Some(local)) => SocketId::Extra(local.socket),
            (None, None) => SocketId::Main,
        }
    }

    /// Does it need no budget? A relay has named its own port: nobody else is sent to.
    pub(crate) fn is_sure(&self) -> bool {
        self.confirmed || self.lent
    }

    /// May it be sent to at all?
    pub(crate) fn may_send(&self) -> bool {
        self.is_sure() || self.allowance > 0
    }

    /// The peer itself was heard from there: two more packets, once a second.
    pub(crate) fn grant(&mut self, now: Instant) {
        let due = self
            .granted
            .is_none_or(|at| now.saturating_duration_since(at) >= GRANT_EVERY);
        if self.allowance == 0 && due {
            self.allowance = 2;
            self.granted = Some(now);
        }
    }

    /// A probe goes out now.
    pub(crate) fn sent(&mut self, now: Instant) {
        self.sent += 1;
        self.last_sent = Some(now);
        self.silent = self.silent.saturating_add(1);
        if !self.confirmed {
            self.allowance = self.allowance.saturating_sub(1);
        }
    }

    /// Moves the schedule on.
    pub(crate) fn schedule(&mut self, has_path: bool, now: Instant) {
        self.step += 1;
        // Beside a path one answer is enough, the rest of the burst would say nothing new.
        let done = has_path && self.last_answer >= Some(self.burst);
        let next = match BURST.get(self.step) {
            Some(offset) if !done => self.burst + *offset,
            Some(_) | None if self.confirmed => {
                let age = now.saturating_duration_since(self.burst);
                self.burst + after_burst(age.max(BURST[BURST.len() - 1]), has_path)
            }
            Some(_) | None => {
                self.next = None;
                return;
            }
        };
        self.next = self
            .may_send()
            .then_some(next.max(now + Duration::from_millis(1)));
    }

    /// Puts the next probe off.
    pub(crate) fn defer(&mut self, until: Instant) {
        self.next = Some(until);
    }

    /// An answer came after `rtt` (RFC 6298 2: alpha 1/8).
    pub(crate) fn answer(&mut self, rtt: Duration, now: Instant) {
        self.confirmed = true;
        self.answered += 1;
        self.silent = 0;
        self.last_answer = Some(now);
        self.rtt = Some(self.rtt.map_or(rtt, |old| (old * 7 + rtt) / 8));
        self.recent.rotate_right(1);
        self.recent[0] = u32::try_from(rtt.as_micros()).unwrap_or(u32::MAX);
    }

    /// By the shortest of its last round trips: what a host is busy with makes an answer late, nothing makes it early.
    pub(crate) fn score(&self) -> Score {
        let shortest = self.recent.iter().min().copied().unwrap_or(u32::MAX);
        Score {
            kind: self.kind,
            rtt: Duration::from_micros(shortest.into()),
        }
    }

    /// It was better than the path in use, says the answer to a probe of the moment `sent`. True where that was so often
    /// enough in a row; answers to probes that were on their way together are one sample.
    pub(crate) fn is_better(&mut self, sent: Instant, now: Instant) -> bool {
        if self.sampled.is_none_or(|at| sent >= at) {
            self.better += 1;
            self.sampled = Some(now);
        }
        self.better >= SAMPLES
    }

    /// Samples are counted anew.
    pub(crate) fn is_not_better(&mut self) {
        self.better = 0;
        self.sampled = None;
    }

    /// Has the peer left it? What answered once would otherwise be kept and asked for ever, and others keep no room.
    pub(crate) fn is_lost(&self) -> bool {
        self.confirmed && !self.announced && !self.lent && self.silent >= LOST_AFTER
    }

    /// How willingly it is given up for another one: spent and unconfirmed first.
    pub(crate) fn dispensable(&self) -> (bool, bool, CandidateKind) {
        let lost = self.is_lost();
        let unconfirmed = !self.confirmed || lost;
        let spent = !self.may_send() || lost;
        (unconfirmed, spent, self.candidate.kind)
    }
}
