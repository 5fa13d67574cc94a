//! Which of several relays.

use mesh_types::Idx;
use mesh_types::message::RelayDistance;
use sha2::{Digest as _, Sha256};

/// Another relay must be nearer by more than this, milliseconds...
const NEARER_MS: u32 = 10;
/// ...and by more than this part.
const NEARER_PART: u32 = 5;

/// Is a way of `new` milliseconds worth leaving one of `old`?
pub(crate) fn worth(new: u32, old: u32) -> bool {
    let gain = old.saturating_sub(new);
    gain > NEARER_MS && gain > old / NEARER_PART
}

/// Round trip by each relay that both reach, milliseconds.
pub(crate) fn sums<'a>(
    mine: &'a [RelayDistance],
    theirs: &'a [RelayDistance],
) -> impl Iterator<Item = (u32, Idx)> + 'a {
    mine.iter().filter_map(move |own| {
        let other = theirs.iter().find(|other| other.relay == own.relay)?;
        Some((u32::from(own.ms) + u32::from(other.ms), own.relay))
    })
}

/// Before anything can be said: both ends come to the same of the relays that both know, whatever the order, and
/// pairs spread over them (highest random weight).
pub(crate) fn rendezvous(a: Idx, b: Idx, relays: impl Iterator<Item = Idx>) -> Option<Idx> {
    let (low, high) = (a.min(b), a.max(b));
    relays.max_by_key(|relay| {
        let weight: [u8; 32] = Sha256::new()
            .chain_update(b"farspan relay choice v1")
            .chain_update(low.0)
            .chain_update(high.0)
            .chain_update(relay.0)
            .finalize()
            .into();
        (weight, *relay)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn idx(n: u8) -> Idx {
        Idx([n; 8])
    }

    #[test]
    fn both_ends_choose_the_same_relay_and_pairs_spread() {
        let relays = || (0..5).map(idx);
        let mut chosen = [0; 5];
        for a in 10..60 {
            for b in 60..110 {
                let one = rendezvous(idx(a), idx(b), relays()).unwrap();
                let other = rendezvous(idx(b), idx(a), relays().rev()).unwrap();
                assert_eq!(one, other);
                chosen[usize::from(one.0[0])] += 1;
            }
        }
        assert!(chosen.iter().all(|count| *count > 350), "{chosen:?}");
        assert_eq!(rendezvous(idx(1), idx(2), std::iter::empty()), None);
    }

    #[test]
    fn a_relay_is_left_for_more_than_ten_milliseconds_and_a_fifth_only() {
        assert!(worth(39, 50) && worth(0, 11));
        assert!(!worth(40, 50), "ten milliseconds");
        assert!(!worth(160, 200), "a fifth");
        assert!(worth(159, 200));
        assert!(!worth(60, 50));
        assert!((0..200).all(|a| (0..200).all(|b| !(worth(a, b) && worth(b, a)))));
    }

    #[test]
    fn the_way_by_a_relay_is_the_sum_of_both_legs() {
        let at = |relay, ms| RelayDistance {
            relay: idx(relay),
            ms,
        };
        let mine = [at(1, 10), at(2, 50), at(3, 1)];
        let theirs = [at(2, 1), at(1, 60)];
        let mut sums: Vec<_> = sums(&mine, &theirs).collect();
        sums.sort_unstable();
        assert_eq!(sums, [(51, idx(2)), (70, idx(1))]);
    }
}
