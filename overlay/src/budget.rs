//! How often something may happen.

use std::time::{Duration, Instant};

/// So many times in any second, counted in windows of one second.
#[derive(Debug, Clone)]
pub(crate) struct Budget {
    per_second: u32,
    used: u32,
    window: Option<Instant>,
}

impl Budget {
    /// Allows `per_second` takes in a second.
    pub(crate) fn new(per_second: u32) -> Self {
        Self {
            per_second,
            used: 0,
            window: None,
        }
    }

    /// Is none of its time left?
    pub(crate) fn is_over(&self, now: Instant) -> bool {
        self.window
            .is_none_or(|start| now.saturating_duration_since(start) >= Duration::from_secs(1))
    }

    /// May it happen once more, with so many left?
    pub(crate) fn has_beside(&self, left: u32, now: Instant) -> bool {
        self.is_over(now) || self.used + left < self.per_second
    }

    /// May it happen once more? Counts it where it may.
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        if self.is_over(now) {
            self.window = Some(now);
            self.used = 0;
        }
        let allowed = self.used < self.per_second;
        self.used += u32::from(allowed);
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_spent_and_comes_back_after_a_second() {
        // The crate reads no clock; any instant will do, and this one is the test's own.
        #[expect(
            clippy::disallowed_methods,
            reason = "a test may start its virtual clock anywhere"
        )]
        let start = Instant::now();
        let mut budget = Budget::new(2);
        assert!(budget.take(start) && budget.take(start) && !budget.take(start));
        assert!(budget.take(start + Duration::from_secs(1)));
    }
}
