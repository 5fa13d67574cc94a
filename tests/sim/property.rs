//! Random worlds: 3 to 12 nodes behind whatever, one of them a relay that all reach, at least ten minutes, at least
//! five faults. One seed, one
//! run; a failure prints its seed.
//!
//! `FARSPAN_SIM_SEEDS` says how many (64 unless set; 500 in CI, at 3 to 4 CPU seconds each; `scripts/soak` runs more),
//! `FARSPAN_SIM_FIRST` which is the first;
//! with `FARSPAN_SIM_DESCRIBE` each world is described at its end.

mod cover;
mod fault;
mod run;
mod site;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

use cover::Cover;

/// Threads that share the seeds.
const THREADS: usize = 2;
/// Failures printed in full.
const PRINTED: usize = 3;

#[test]
fn in_random_worlds_every_pair_that_can_connect_does_whatever_fails() {
    let seeds = number("FARSPAN_SIM_SEEDS", 64);
    let first = number("FARSPAN_SIM_FIRST", 0);
    let next = AtomicU64::new(first);
    let results = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..THREADS)
            .map(|_| scope.spawn(|| work(&next, first + seeds)))
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().expect("failures are caught"))
            .collect::<Vec<_>>()
    });
    let mut cover = Cover::default();
    let mut failures = Vec::new();
    for (part, failed) in results {
        cover.merge(part);
        failures.extend(failed);
    }
    failures.sort();
    println!("{cover}");
    for (seed, why) in failures.iter().take(PRINTED) {
        println!("seed {seed}: {why}\nagain: FARSPAN_SIM_FIRST={seed} FARSPAN_SIM_SEEDS=1\n");
    }
    let seeds: Vec<u64> = failures.iter().map(|(seed, _)| *seed).collect();
    assert!(failures.is_empty(), "failing seeds: {seeds:?}");
}

fn work(next: &AtomicU64, end: u64) -> (Cover, Vec<(u64, String)>) {
    let mut cover = Cover::default();
    let mut failures = Vec::new();
    loop {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if seed >= end {
            return (cover, failures);
        }
        match catch_unwind(AssertUnwindSafe(|| run::run(seed))) {
            Ok(Ok(part)) => cover.merge(part),
            Ok(Err(why)) => failures.push((seed, why)),
            Err(panic) => {
                let why = panic
                    .downcast_ref::<String>()
                    .map(String::as_str)
                    .or_else(|| panic.downcast_ref::<&str>().copied())
                    .unwrap_or("a panic without words");
                failures.push((seed, format!("panic: {why}")));
            }
        }
    }
}

pub fn number(variable: &str, unless_set: u64) -> u64 {
    std::env::var(variable).map_or(unless_set, |text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{variable}={text} is not a number"))
    })
}
