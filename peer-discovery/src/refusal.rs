//! What was refused, and why: for findings and metrics.

use std::collections::BTreeMap;
use std::time::Duration;

use mesh_types::{NodeKey, PeerId};

/// Why something was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// The signature is not that of who should have signed.
    Forged,
    /// The record's domain has no authority here.
    Domain,
    /// Older than what is held: replayed or rolled back.
    Stale,
    /// Past its `not_after`.
    Expired,
    /// Voided by a tombstone.
    Revoked,
    /// An announcement by a node without membership or `[[peer]]` entry.
    Unknown,
    /// A configured key's session shows another identity than the pinned one.
    PinMismatch,
    /// One identity behind two `[[peer]]` entries.
    PinTwice,
    /// A WireGuard key another peer has.
    DuplicateKey,
    /// This node's own WireGuard key.
    OwnKey,
    /// A range that overlaps another peer's.
    Overlap,
    /// A range that overlaps this node's own.
    OwnRange,
    /// A range nobody may carry: a default route, loopback, link-local, multicast, overlay IPv6 of others.
    Range,
    /// Accepted, but dated more than a day after our clock.
    Future,
    /// Too large to be passed on, or otherwise unusable.
    Malformed,
    /// Outside of what the cluster's MeshPolicy allows.
    Policy,
    /// An address of the API server, DNS or a Service.
    Protected,
    /// Another Node shows this identity already.
    DuplicateIdentity,
    /// A listing of the cluster without most of its Nodes: it waits to be confirmed.
    Doubted,
    /// No room.
    Full,
    /// The source may not say that.
    Source,
}

impl Reason {
    /// The word in findings and metrics.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Forged => "forged",
            Self::Domain => "domain",
            Self::Stale => "stale",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
            Self::Unknown => "unknown",
            Self::PinMismatch => "pin-mismatch",
            Self::PinTwice => "pin-twice",
            Self::DuplicateKey => "duplicate-key",
            Self::OwnKey => "own-key",
            Self::Overlap => "overlap",
            Self::OwnRange => "own-range",
            Self::Range => "range",
            Self::Future => "future",
            Self::Malformed => "malformed",
            Self::Policy => "policy",
            Self::Protected => "protected",
            Self::DuplicateIdentity => "duplicate-identity",
            Self::Doubted => "doubted",
            Self::Full => "full",
            Self::Source => "source",
        }
    }

    /// Ordinary gossip gives these: a late copy, or a node that only others list. Worth a counter, not a person.
    pub fn is_routine(self) -> bool {
        matches!(
            self,
            Self::Stale | Self::Unknown | Self::Expired | Self::Revoked
        )
    }
}

/// Something refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub reason: Reason,
    /// Whose record it was, where that is known.
    pub peer: Option<PeerId>,
    /// Name of the Node whose claim it was, where the cluster says so.
    pub node: Option<String>,
    /// One sentence: what was refused, and what to do where something can be done.
    pub sentence: String,
    /// Wall clock when last seen.
    pub at: Duration,
    /// How often, since it is in the list.
    pub count: u64,
}

/// The newest refusals and the number of all, by reason.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    newest: Vec<Refusal>,
    counts: BTreeMap<Reason, u64>,
}

const KEPT: usize = 64;

impl Refusals {
    /// Counts and keeps it, in place of the last for the same reason of the same peer.
    pub(crate) fn add(&mut self, refusal: Refusal) {
        self.count(refusal.reason);
        let known = self.newest.iter().position(|r| {
            r.reason == refusal.reason && r.peer == refusal.peer && r.node == refusal.node
        });
        let count = match known.map(|index| self.newest.remove(index)) {
            Some(old) => old.count.saturating_add(1),
            None => 1,
        };
        if self.newest.len() == KEPT {
            self.newest.remove(0);
        }
        self.newest.push(Refusal { count, ..refusal });
    }

    pub(crate) fn count(&mut self, reason: Reason) {
        let count = self.counts.entry(reason).or_default();
        *count = count.saturating_add(1);
    }

    /// Oldest first.
    pub(crate) fn newest(&self) -> &[Refusal] {
        &self.newest
    }

    pub(crate) fn counts(&self) -> impl Iterator<Item = (Reason, u64)> {
        self.counts.iter().map(|(reason, count)| (*reason, *count))
    }
}

/// What was refused, why, and what can be done.
///
/// `by` is the Node whose annotations said it.
pub(crate) fn sentence(reason: Reason, what: &str, node: &NodeKey, by: Option<&str>) -> String {
    let why = match reason {
        Reason::Forged => "is not signed by who should have signed it",
        Reason::Domain => "is of a domain whose authority is not in [mesh] authorities",
        Reason::Stale => "is not newer than the one held",
        Reason::Expired => "has expired, or this machine's clock is ahead",
        Reason::Revoked => "was voided by a tombstone",
        Reason::Unknown => "is by a node without membership and without [[peer]] entry",
        Reason::PinMismatch => {
            "names a configured key that belongs to another identity; if that machine was set up anew, remove its [[peer]] entry, reload, and add it again"
        }
        Reason::PinTwice => "belongs to two [[peer]] entries; remove the older entry",
        Reason::DuplicateKey => "claims a WireGuard key of another peer",
        Reason::OwnKey => "claims this node's own WireGuard key; was a key file copied?",
        Reason::Overlap => "claims a range of another peer",
        Reason::OwnRange => "claims a range of this node",
        Reason::Range => "claims a range that no peer may carry",
        Reason::Future => {
            "is dated more than a day ahead of this machine's clock and was accepted; check both clocks"
        }
        Reason::Malformed => "is too large or holds impossible values",
        Reason::Policy => "is outside of the MeshPolicy",
        Reason::Protected => "claims an address of the API server, DNS or a Service",
        Reason::DuplicateIdentity => "shows the identity of another Node",
        Reason::Doubted => "is missing in a listing that nobody has confirmed",
        Reason::Full => "finds no room",
        Reason::Source => "comes from a source that may not say it",
    };
    match by {
        Some(name) => format!("the {what} of Node {name} {why}"),
        None => format!("the {what} of node {} {why}", node.identity),
    }
}
