//! Mass deletion: a listing without most of the Nodes may be a restored backup, a wrong kubeconfig or a fault of the
//! API server's. It counts only when it comes again, identically, from the same cluster.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use mesh_types::{DomainId, Now};

/// That many Nodes may always go at once.
pub(super) const FEW: usize = 2;
/// How long a listing is doubted, at least.
const CONFIRM_AFTER: Duration = Duration::from_secs(30);
/// A listing that nobody confirms is asked for ever more rarely: this long at most.
const ASK_MAX: Duration = Duration::from_secs(300);

/// A listing that is not believed yet.
#[derive(Debug)]
pub(super) struct Doubt {
    domain: DomainId,
    uids: BTreeSet<String>,
    gone: usize,
    since: Instant,
    asked: Instant,
    every: Duration,
}

/// Does a listing without `gone` of `held` Nodes need confirmation?
pub(super) fn is_mass(gone: usize, held: usize) -> bool {
    gone > FEW && gone * 2 > held
}

impl Doubt {
    pub(super) fn new(domain: DomainId, uids: BTreeSet<String>, gone: usize, now: Now) -> Self {
        Self {
            domain,
            uids,
            gone,
            since: now.mono,
            asked: now.mono,
            every: CONFIRM_AFTER,
        }
    }

    /// Is it the same listing?
    pub(super) fn is_of(&self, domain: DomainId, uids: &BTreeSet<String>) -> bool {
        self.domain == domain && self.uids == *uids
    }

    /// Having come again now, does it count?
    pub(super) fn is_confirmed(&self, now: Now) -> bool {
        now.mono.saturating_duration_since(self.since) >= CONFIRM_AFTER
    }

    /// When to ask for the next listing.
    pub(super) fn ask_at(&self) -> Instant {
        self.asked + self.every
    }

    /// Is it time to ask?
    pub(super) fn asks(&mut self, now: Now) -> bool {
        let due = self.ask_at() <= now.mono;
        if due {
            self.every = match self.asked == self.since {
                true => self.every,
                false => (self.every * 2).min(ASK_MAX),
            };
            self.asked = now.mono;
        }
        due
    }

    /// What a person should know.
    pub(super) fn sentence(&self) -> String {
        format!(
            "the API server lists {} Nodes, and {} that were there are missing; they stay until it says so again after 30 s",
            self.uids.len(),
            self.gone
        )
    }
}
