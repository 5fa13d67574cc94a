//! Clocks.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

/// Clock ticks of `/proc` a second.
const TICKS: f64 = 100.0;

/// Seconds that the packet threads of this process have run.
pub fn cpu() -> f64 {
    let tasks = fs::read_dir("/proc/self/task").expect("proc is mounted");
    let stats = tasks.flatten().filter_map(|task| {
        let stat = fs::read_to_string(task.path().join("stat")).ok()?;
        let (name, rest) = stat.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split(' ').collect();
        let ticks = |n: usize| fields.get(n)?.parse::<f64>().ok();
        name.contains("farspan-packet")
            .then(|| Some(ticks(11)? + ticks(12)?))?
    });
    stats.sum::<f64>() / TICKS
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
