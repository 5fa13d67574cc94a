//! When the announcement is written to the own Node object: rarely, for every write goes to everybody who watches nodes.
//!
//! # Algorithm
//! What the Node carries (as the watch shows it, or as the last acknowledged write left it) is compared with what is to
//! be said. Where the two differ in something material, a write falls due:
//!
//! | the Node carries | after |
//! |---|---|
//! | nothing of this node's, and never did | [`FIRST`], whatever changes meanwhile |
//! | another key or next key | at once |
//! | an older record than the one that was acknowledged: a stale cache, or a restored backup | [`STALE`] |
//! | anything else that differs | [`STABLE`] without a further change |
//!
//! Each with some jitter, because a gateway that starts again changes all nodes behind it. A write takes a token
//! ([`EVERY`], [`BURST`]); its repetitions after failures take none, they have their own growing pauses.
//!
//! # Invariants
//! 1. Where the Node carries what is to be said, nothing is ever due: a mesh at rest writes nothing.
//! 2. One write is under way at a time; one that is never answered counts as failed after [`ANSWER`].
//! 3. After `handle_timeout` the next deadline lies in the future.

use std::time::{Duration, Instant};

use mesh_types::record::Announcement;
use mesh_types::{Allocation, Filtering, Mapping, NatReport};
use rand_core::Rng;

/// A Node that carries nothing of this node's gets its record after this.
const FIRST: Duration = Duration::from_secs(1);
/// A change has to last so long.
const STABLE: Duration = Duration::from_secs(10);
/// How long a Node may show an older record than the one that was acknowledged.
const STALE: Duration = Duration::from_secs(60);
/// A token comes back after this.
const EVERY: Duration = Duration::from_secs(60);
/// Tokens at most.
const BURST: u32 = 3;
/// The first repetition after a failure comes after this, each later one after twice as long.
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// The longest pause between repetitions.
const RETRY_MOST: Duration = Duration::from_secs(300);
/// A write that was not answered by then has failed.
const ANSWER: Duration = Duration::from_secs(60);

/// What a Node object carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Carried {
    /// None of the keys.
    Nothing,
    /// Something that is not this node's word: altered, copied from another object, or another identity's.
    Foreign,
    /// A valid record of this node.
    Own(Box<Announcement>),
}

/// Why a write is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Urgency {
    First,
    Key,
    Change,
    Stale,
}

impl Urgency {
    /// How long to wait, and how much longer at most.
    fn wait(self) -> (Duration, Duration) {
        match self {
            Self::First => (FIRST, Duration::from_secs(1)),
            Self::Key => (Duration::ZERO, Duration::from_millis(250)),
            Self::Change => (STABLE, Duration::from_secs(5)),
            Self::Stale => (STALE, Duration::from_secs(5)),
        }
    }
}

/// A write that falls due.
#[derive(Debug, Clone)]
struct Due {
    urgency: Urgency,
    wanted: Announcement,
    at: Instant,
}

/// A write under way.
#[derive(Debug, Clone)]
struct Flight {
    uid: String,
    record: Announcement,
    until: Instant,
}

/// Decides when to write.
#[derive(Debug)]
pub(crate) struct Publisher {
    /// UID of the own Node and what it carries, where there is one.
    node: Option<(String, Carried)>,
    /// What is to be said.
    wanted: Option<Announcement>,
    /// What was last acknowledged for this very Node.
    acknowledged: Option<Announcement>,
    due: Option<Due>,
    flight: Option<Flight>,
    /// Failures in a row, when to try again, and what the last one said.
    failures: u32,
    retry_at: Option<Instant>,
    failure: Option<String>,
    /// When all tokens are back.
    full_at: Instant,
    /// The write that failed has its token.
    paid: bool,
}

impl Publisher {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            node: None,
            wanted: None,
            acknowledged: None,
            due: None,
            flight: None,
            failures: 0,
            retry_at: None,
            failure: None,
            full_at: now,
            paid: false,
        }
    }

    /// The own Node is this, or there is none.
    pub(crate) fn handle_node(
        &mut self,
        node: Option<(String, Carried)>,
        now: Instant,
        random: &mut impl Rng,
    ) {
        let uid = |node: &Option<(String, Carried)>| node.as_ref().map(|(uid, _)| uid.clone());
        if uid(&node) != uid(&self.node) {
            self.acknowledged = None;
            self.due = None;
        }
        self.node = node;
        self.weigh(now, random);
    }

    /// This is to be said from now on.
    pub(crate) fn handle_announcement(
        &mut self,
        wanted: Announcement,
        now: Instant,
        random: &mut impl Rng,
    ) {
        self.wanted = Some(wanted);
        self.weigh(now, random);
    }

    /// What became of the write under way.
    pub(crate) fn handle_result(
        &mut self,
        result: Result<u64, String>,
        now: Instant,
        random: &mut impl Rng,
    ) {
        let Some(flight) = self.flight.take() else {
            return;
        };
        let mut repeated = None;
        match result {
            Ok(seq) if seq == flight.record.seq => {
                self.failures = 0;
                self.failure = None;
                self.retry_at = None;
                self.paid = false;
                if let Some((uid, carried)) = &mut self.node
                    && *uid == flight.uid
                {
                    *carried = Carried::Own(Box::new(flight.record.clone()));
                    self.acknowledged = Some(flight.record);
                }
            }
            // The answer to an earlier write that had been given up.
            Ok(_) => self.flight = Some(flight),
            Err(sentence) => {
                repeated = Some(flight.record);
                let pause = RETRY_FIRST
                    .saturating_mul(1 << self.failures.min(16))
                    .min(RETRY_MOST);
                self.retry_at = Some(now + pause + jitter(pause / 4, random));
                self.failures += 1;
                self.failure = Some(sentence);
            }
        }
        self.weigh(now, random);
        // What has lasted long enough once need not do so again.
        if let Some((due, failed)) = self.due.as_mut().zip(repeated)
            && is_same(&due.wanted, &failed)
        {
            due.at = now;
        }
    }

    /// Is a write to begin now? The caller then writes what it announced last, and says what became of it.
    pub(crate) fn handle_timeout(&mut self, now: Instant, random: &mut impl Rng) -> bool {
        if self.flight.as_ref().is_some_and(|one| one.until <= now) {
            let sentence = "the API server did not answer within a minute".to_owned();
            self.handle_result(Err(sentence), now, random);
        }
        if self.poll_timeout().is_none_or(|at| at > now) || self.flight.is_some() {
            return false;
        }
        let (Some(due), Some((uid, _))) = (self.due.take(), &self.node) else {
            return false;
        };
        self.flight = Some(Flight {
            uid: uid.clone(),
            record: due.wanted,
            until: now + ANSWER,
        });
        if !std::mem::replace(&mut self.paid, true) {
            self.full_at = self.full_at.max(now) + EVERY;
        }
        self.retry_at = None;
        true
    }

    /// When to call [`Self::handle_timeout`].
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        if let Some(flight) = &self.flight {
            return Some(flight.until);
        }
        let due = self.due.as_ref()?;
        let token = self
            .full_at
            .checked_sub(EVERY * (BURST - 1))
            .filter(|_| !self.paid);
        [Some(due.at), self.retry_at, token]
            .into_iter()
            .flatten()
            .max()
    }

    /// Seq of what the Node carries of this node's, as far as known.
    pub(crate) fn carried_seq(&self) -> Option<u64> {
        match &self.node {
            Some((_, Carried::Own(record))) => Some(record.seq),
            Some((_, Carried::Nothing | Carried::Foreign)) | None => None,
        }
    }

    /// Does the Node carry something else than what is to be said?
    pub(crate) fn is_pending(&self) -> bool {
        self.due.is_some() || self.flight.is_some()
    }

    /// Why the last write failed, where it is to be repeated.
    pub(crate) fn failure(&self) -> Option<&str> {
        self.failure.as_deref().filter(|_| self.is_pending())
    }

    /// After a write was acknowledged, the Node carries what this node never said.
    pub(crate) fn is_contested(&self) -> bool {
        self.acknowledged.is_some() && matches!(self.node, Some((_, Carried::Foreign)))
    }

    fn weigh(&mut self, now: Instant, random: &mut impl Rng) {
        let (Some(urgency), Some(wanted)) = (self.urgency(), &self.wanted) else {
            self.due = None;
            return;
        };
        let goes_on = self.due.as_ref().is_some_and(|due| {
            let same = is_same(&due.wanted, wanted) || urgency == Urgency::First;
            due.urgency == urgency && same
        });
        if let Some(due) = self.due.as_mut().filter(|_| goes_on) {
            due.wanted.clone_from(wanted);
            return;
        }
        let (wait, more) = urgency.wait();
        self.due = Some(Due {
            urgency,
            wanted: wanted.clone(),
            at: now + wait + jitter(more, random),
        });
    }

    fn urgency(&self) -> Option<Urgency> {
        let (uid, carried) = self.node.as_ref()?;
        let wanted = self.wanted.as_ref()?;
        if wanted.node_uid.as_ref() != Some(uid) {
            return None;
        }
        // What is under way counts as carried until it is answered.
        let flight = self.flight.as_ref().filter(|flight| flight.uid == *uid);
        let carried = match (flight, carried) {
            (Some(flight), _) => &flight.record,
            (None, Carried::Own(record)) => record,
            (None, Carried::Nothing | Carried::Foreign) if self.acknowledged.is_none() => {
                return Some(Urgency::First);
            }
            (None, Carried::Nothing | Carried::Foreign) => return Some(Urgency::Change),
        };
        let acknowledged = self.acknowledged.as_ref().map(|record| record.seq);
        if is_same(carried, wanted) {
            None
        } else if Some(carried.seq) < acknowledged {
            Some(Urgency::Stale)
        } else if (carried.key, carried.next_key) != (wanted.key, wanted.next_key) {
            Some(Urgency::Key)
        } else {
            Some(Urgency::Change)
        }
    }
}

/// Does `other` say nothing that is worth a write after `one`? Neither the order of addresses nor the seq is, nor that
/// less is known of the translators: a restart forgets it.
fn is_same(one: &Announcement, other: &Announcement) -> bool {
    let plain = |record: &Announcement| {
        let mut plain = record.clone();
        plain.seq = 0;
        plain.nat = NatReport::default();
        plain.endpoints.sort();
        plain.relays.sort();
        plain
    };
    plain(one) == plain(other) && !tells_news(one.nat, other.nat)
}

/// Is something known of the translators that was not before, or otherwise?
fn tells_news(before: NatReport, after: NatReport) -> bool {
    let filtering = match (before.filtering, after.filtering) {
        (_, Filtering::Unknown) => false,
        // Those who ask are known by now: a stranger, who would prove more, may never come.
        (Filtering::EndpointIndependent, Filtering::AddressDependent) => false,
        (before, after) => before != after,
    };
    let mapping = after.mapping != Mapping::Unknown && before.mapping != after.mapping;
    let allocation =
        after.allocation != Allocation::Unknown && before.allocation != after.allocation;
    filtering || mapping || allocation || before.udp_blocked != after.udp_blocked
}

fn jitter(most: Duration, random: &mut impl Rng) -> Duration {
    most.mul_f64(f64::from(random.next_u32()) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests;
