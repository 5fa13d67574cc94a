//! Clocks.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

/// Seconds that the packet threads of this process have run.
pub fn cpu() -> f64 {
    let tasks = fs::read_dir("/proc/self/task").expect("proc is mounted");
    let nanos = tasks.flatten().filter_map(|task| {
        let name = fs::read_to_string(task.path().join("comm")).ok()?;
        let ran = fs::read_to_string(task.path().join("schedstat")).ok()?;
        let ran: f64 = ran.split(' ').next()?.parse().ok()?;
        name.starts_with("farspan-packet").then_some(ran)
    });
    nanos.sum::<f64>() / 1e9
}

#[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
pub fn now() -> Instant {
    Instant::now()
}

/// Lets time pass.
pub fn pass(time: Duration) {
    let until = now() + time;
    while let Some(left) = until
        .checked_duration_since(now())
        .filter(|left| !left.is_zero())
    {
        thread::park_timeout(left);
    }
}
