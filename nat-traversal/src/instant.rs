//! The only clock of the tests.

use std::time::Instant;

/// Some instant to start from.
#[expect(
    clippy::disallowed_methods,
    reason = "tests need some instant to start from"
)]
pub(crate) fn start() -> Instant {
    Instant::now()
}
