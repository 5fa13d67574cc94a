//! Floods from outside: a fixed table of rates by source, and a cap on integrity checks.

use std::net::IpAddr;
use std::time::Instant;

use crate::budget::{Bucket, Rate};

const BUCKETS: usize = 4096;
/// One /32 or /64: 50 in any second.
const SOURCE: Rate = Rate::new(20, 30);
/// Integrity checks in all: 2000 in any second.
const CHECKS: Rate = Rate::new(1800, 200);
/// Of these for sources that no answer has validated: half.
const STRANGERS: Rate = Rate::new(900, 100);

/// What arrived lately.
#[derive(Debug)]
pub(crate) struct Flood {
    seed: u64,
    sources: Vec<Bucket>,
    checks: Bucket,
    strangers: Bucket,
}

impl Flood {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            seed,
            sources: vec![Bucket::default(); BUCKETS],
            checks: Bucket::default(),
            strangers: Bucket::default(),
        }
    }

    /// May a datagram of this source be looked at?
    pub(crate) fn admits(&mut self, source: IpAddr, now: Instant) -> bool {
        let key = match source {
            IpAddr::V4(ip) => u64::from(u32::from(ip)),
            IpAddr::V6(ip) => u64::try_from(u128::from(ip) >> 64).unwrap_or_default(),
        };
        // splitmix64 of the seeded key: which sources share a bucket cannot be foretold from outside.
        let mut hash = (key ^ self.seed).wrapping_add(0x9e37_79b9_7f4a_7c15);
        hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        hash ^= hash >> 31;
        let index = usize::try_from(hash % BUCKETS as u64).unwrap_or_default();
        self.sources[index].take(SOURCE, now)
    }

    /// May an integrity be checked? Strangers leave half to sources that an answer has validated.
    pub(crate) fn may_check(&mut self, validated: bool, now: Instant) -> bool {
        (validated || self.strangers.take(STRANGERS, now)) && self.checks.take(CHECKS, now)
    }
}

#[cfg(test)]
mod tests {
    use crate::instant::start;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_flood_of_strangers_leaves_half_of_the_checks() {
        let (mut flood, now) = (Flood::new(7), start());
        let strangers = (0..100_000u32)
            .filter(|i| flood.may_check(false, now + Duration::from_micros(10) * *i))
            .count();
        assert!((900..=1000).contains(&strangers), "{strangers}");
        assert!(flood.may_check(true, now + Duration::from_secs(1)));
    }

    #[test]
    fn one_source_is_limited_and_its_neighbours_are_not() {
        let (mut flood, now) = (Flood::new(7), start());
        let source = "203.0.113.1".parse().unwrap();
        let seen = (0..10_000u32)
            .filter(|i| flood.admits(source, now + Duration::from_micros(100) * *i))
            .count();
        assert!((45..=50).contains(&seen), "{seen}");
        assert!(flood.admits("203.0.113.2".parse().unwrap(), now));
        assert!(flood.admits(source, now + Duration::from_secs(3)));
    }
}
