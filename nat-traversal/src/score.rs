//! Which of two paths is better. The order of tiers is data: [`PathKind`] derives `Ord`.

use std::net::IpAddr;
use std::time::Duration;

use mesh_types::address::is_global;

use crate::api::PathKind;

/// A lower tier wins only when it is faster by this...
const MUCH: Duration = Duration::from_millis(30);
/// ...and by half; inside a tier a path must be faster by this...
const SOME: Duration = Duration::from_millis(5);
/// ...a relayed one by this: a path through another relay is not worth more than that...
const SOME_RELAYED: Duration = Duration::from_millis(10);
/// ...and by a fifth...
const FIFTH: u32 = 5;
/// ...in so many samples in a row.
pub(crate) const SAMPLES: u8 = 3;

/// What makes a path good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Score {
    pub(crate) kind: PathKind,
    pub(crate) rtt: Duration,
}

/// Is a challenger worth a switch?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Preference {
    /// No.
    Stay,
    /// When [`SAMPLES`] in a row say so.
    AfterSamples,
    /// Yes.
    Switch,
}

impl Score {
    fn much_faster(self, other: Self) -> bool {
        self.rtt * 2 < other.rtt && self.rtt + MUCH < other.rtt
    }

    /// Compares a challenger with the path in use.
    pub(crate) fn challenges(self, current: Self) -> Preference {
        let least = if self.kind.is_relayed() {
            SOME_RELAYED
        } else {
            SOME
        };
        if self.kind < current.kind {
            if current.much_faster(self) {
                Preference::Stay
            } else {
                Preference::Switch
            }
        } else if self.kind > current.kind {
            if self.much_faster(current) {
                Preference::AfterSamples
            } else {
                Preference::Stay
            }
        } else if self.rtt + least.max(current.rtt / FIFTH) < current.rtt {
            Preference::AfterSamples
        } else {
            Preference::Stay
        }
    }
}

/// The tier of an address: those that are not of the internet, and those of a network the host is in, are of the same site.
pub(crate) fn tier(ip: &IpAddr, on_link: bool) -> PathKind {
    match ip {
        _ if on_link || !is_global(ip) => PathKind::Lan,
        IpAddr::V6(_) => PathKind::Ipv6,
        IpAddr::V4(_) => PathKind::Ipv4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(kind: PathKind, ms: u64) -> Score {
        Score {
            kind,
            rtt: Duration::from_millis(ms),
        }
    }

    #[test]
    fn a_better_tier_wins_unless_it_is_much_slower() {
        use PathKind::{Ipv4, Lan};
        let lan = score(Lan, 10);
        assert_eq!(lan.challenges(score(Ipv4, 1)), Preference::Switch);
        assert_eq!(score(Lan, 90).challenges(score(Ipv4, 40)), Preference::Stay);
        assert_eq!(score(Ipv4, 1).challenges(lan), Preference::Stay);
    }

    #[test]
    fn no_two_scores_prefer_each_other() {
        let all: Vec<_> = [
            PathKind::Lan,
            PathKind::Ipv6,
            PathKind::Ipv4,
            PathKind::NodeRelay,
            PathKind::TurnUdp,
            PathKind::Tcp,
            PathKind::TurnTcp,
        ]
        .into_iter()
        .flat_map(|kind| (0..40).map(move |i| score(kind, i * 7)))
        .collect();
        for a in &all {
            for b in &all {
                assert!(
                    a.challenges(*b) == Preference::Stay || b.challenges(*a) == Preference::Stay,
                    "{a:?} {b:?}"
                );
            }
        }
    }

    #[test]
    fn inside_a_tier_a_fifth_and_five_milliseconds_count() {
        use PathKind::Ipv6;
        let current = score(Ipv6, 100);
        assert_eq!(score(Ipv6, 81).challenges(current), Preference::Stay);
        assert_eq!(
            score(Ipv6, 79).challenges(current),
            Preference::AfterSamples
        );
        assert_eq!(score(Ipv6, 5).challenges(score(Ipv6, 9)), Preference::Stay);
    }
}
