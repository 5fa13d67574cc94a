//! Waiting for a state with a deadline, never for a time.

use std::sync::mpsc;
use std::time::{Duration, Instant};

/// How often a state is looked at.
const POLL: Duration = Duration::from_millis(50);

/// Looks until `check` returns `Ok`, and returns its value and the time it took. Panics with the last
/// `Err` when `deadline` has passed.
pub fn wait_until<T>(
    what: &str,
    deadline: Duration,
    mut check: impl FnMut() -> Result<T, String>,
) -> (T, Duration) {
    let start = Instant::now();
    loop {
        match check() {
            Ok(value) => return (value, start.elapsed()),
            Err(last) => {
                assert!(
                    start.elapsed() < deadline,
                    "not within {deadline:?}: {what}; last seen: {last}"
                );
            }
        }
        pause(POLL);
    }
}

/// Lets `time` pass: the pace of a poll or of a sender.
pub fn pause(time: Duration) {
    let (_keep, never) = mpsc::channel::<()>();
    let _ = never.recv_timeout(time);
}
