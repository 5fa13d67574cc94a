//! Time, seeds and mutations.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mesh_types::Now;
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng as _, SeedableRng as _};

/// Runs `target` with one seed after the other until the time is up. `target` gives whether its input was
/// accepted, so that a target which never gets past the door is noticed.
pub(crate) fn fuzz(name: &str, mut target: impl FnMut(&mut Random) -> bool) {
    if let Some(seed) = number("FARSPAN_FUZZ_SEED") {
        println!(
            "fuzz {name}: seed {seed}, accepted {}",
            target(&mut Random::new(seed))
        );
        return;
    }
    let time = Duration::from_secs(number("FARSPAN_FUZZ_SECONDS").unwrap_or(5));
    let (first, began) = (clock_seed(), started());
    let (mut count, mut accepted) = (0u64, 0u64);
    while began.elapsed() < time {
        let seed = first.wrapping_add(count);
        let mut random = Random::new(seed);
        match catch_unwind(AssertUnwindSafe(|| target(&mut random))) {
            Ok(good) => accepted += u64::from(good),
            Err(panic) => {
                println!("fuzz {name}: failed; repeat with FARSPAN_FUZZ_SEED={seed}");
                resume_unwind(panic);
            }
        }
        count += 1;
    }
    println!("fuzz {name}: seeds from {first}, {count} inputs, {accepted} accepted");
    assert!(
        count > 0 && accepted > 0,
        "no input of {count} was accepted"
    );
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

#[expect(
    clippy::disallowed_methods,
    reason = "a time limit and a seed, not behaviour"
)]
fn clock_seed() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| d.as_secs() << 20 | u64::from(d.subsec_micros()))
}

#[expect(
    clippy::disallowed_methods,
    reason = "a time limit and a start, not behaviour"
)]
fn started() -> Instant {
    Instant::now()
}

/// Virtual time: a start that stays, and milliseconds after it.
#[derive(Clone, Copy)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn new() -> Self {
        Self(started())
    }

    pub(crate) fn at(self, millis: u64) -> Now {
        Now {
            mono: self.0 + Duration::from_millis(millis),
            unix: Duration::from_secs(1_800_000_000) + Duration::from_millis(millis),
        }
    }
}

/// Seeded randomness.
pub(crate) struct Random(ChaCha8Rng);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// Below `bound`, which is at least 1.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.0.next_u64() % bound as u64).unwrap_or(0)
    }

    pub(crate) fn u64(&mut self) -> u64 {
        self.0.next_u64()
    }

    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    pub(crate) fn bytes(&mut self, most: usize) -> Vec<u8> {
        let mut out = vec![0; self.below(most + 1)];
        self.0.fill_bytes(&mut out);
        out
    }

    /// Arbitrary bytes now and then, else one of `samples` with a few changes.
    pub(crate) fn input(&mut self, samples: &[Vec<u8>]) -> Vec<u8> {
        if self.below(16) == 0 {
            return self.bytes(1300);
        }
        let mut out = self.pick(samples).clone();
        // 0 changes now and then: what is valid must stay so.
        for _ in 0..self.below(6) {
            self.change(&mut out, samples);
        }
        out
    }

    fn change(&mut self, bytes: &mut Vec<u8>, samples: &[Vec<u8>]) {
        /// Heads that promise much: byte strings, texts, lists and maps of 2^32 and 2^64 - 1, and indefinite ones.
        const HEADS: [&[u8]; 12] = [
            &[0x5a, 0xff, 0xff, 0xff, 0xff],
            &[0x5b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
            &[0x7a, 0xff, 0xff, 0xff, 0xff],
            &[0x9a, 0xff, 0xff, 0xff, 0xff],
            &[0x9b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
            &[0x9b, 0, 0, 0, 1, 0, 0, 0, 0],
            &[0xba, 0xff, 0xff, 0xff, 0xff],
            &[0xbb, 0, 0, 0, 1, 0, 0, 0, 0],
            &[0x9f],
            &[0xbf],
            &[0x5f],
            &[0xf6],
        ];
        if bytes.is_empty() {
            *bytes = self.bytes(64);
            return;
        }
        let at = self.below(bytes.len());
        match self.below(9) {
            0 => bytes[at] ^= 1 << self.below(8),
            1 => bytes[at] = self.u64() as u8,
            2 => bytes.truncate(at),
            3 => {
                bytes.remove(at);
            }
            4 => bytes.insert(at, self.u64() as u8),
            5 => {
                let more = self.bytes(16);
                bytes.splice(at..at, more);
            }
            6 => {
                let other = self.pick(samples);
                let tail = &other[self.below(other.len().max(1)).min(other.len())..];
                bytes.truncate(at);
                bytes.extend_from_slice(tail);
            }
            7 => {
                let end = (at + 1 + self.below(8)).min(bytes.len());
                let head = *self.pick(&HEADS);
                bytes.splice(at..end, head.iter().copied());
            }
            _ => {
                let end = (at + 1 + self.below(64)).min(bytes.len());
                let copy = bytes[at..end].to_vec();
                let to = self.below(bytes.len());
                bytes.splice(to..to, copy);
            }
        }
    }
}
