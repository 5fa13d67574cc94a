//! What a peer's tunnel moves: is the peer in use, and does anything come back?

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::schedule::{ACTIVE_BYTES, ACTIVE_WINDOW};

/// Reports kept; at ten a second they span the window.
const SAMPLES_MAX: usize = 128;

/// Byte counts over time.
#[derive(Debug, Clone, Default)]
pub(crate) struct Activity {
    samples: VecDeque<(Instant, u64)>,
    last: Option<(Instant, u64, u64)>,
    unanswered: Option<Instant>,
}

impl Activity {
    /// The tunnel's counters at a moment. Counters that fall begin anew. True where they have changed.
    pub(crate) fn update(&mut self, rx: u64, tx: u64, now: Instant) -> bool {
        let (before, old_rx, old_tx) = self.last.unwrap_or((now, rx, tx));
        if rx < old_rx || tx < old_tx {
            *self = Self::default();
        } else if rx > old_rx {
            self.unanswered = None;
        } else if tx > old_tx {
            self.unanswered.get_or_insert(before);
        }
        self.last = Some((now, rx, tx));
        while self.samples.len() >= SAMPLES_MAX
            || self
                .samples
                .front()
                .is_some_and(|(at, _)| now.saturating_duration_since(*at) > ACTIVE_WINDOW)
        {
            self.samples.pop_front();
        }
        self.samples.push_back((now, rx.saturating_add(tx)));
        (rx, tx) != (old_rx, old_tx)
    }

    /// Does it move more than keepalives?
    pub(crate) fn is_active(&self, now: Instant) -> bool {
        let mut recent = self
            .samples
            .iter()
            .filter(|(at, _)| now.saturating_duration_since(*at) <= ACTIVE_WINDOW)
            .map(|(_, bytes)| *bytes);
        let first = recent.next().unwrap_or_default();
        recent
            .next_back()
            .is_some_and(|last| last - first >= ACTIVE_BYTES)
    }

    /// For how long has it sent and heard nothing?
    pub(crate) fn silence(&self, now: Instant) -> Option<Duration> {
        self.unanswered
            .map(|since| now.saturating_duration_since(since))
    }

    /// Something else has shown that the path works.
    pub(crate) fn proven(&mut self) {
        self.unanswered = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instant::start;

    #[test]
    fn keepalives_do_not_make_a_peer_active_and_traffic_does() {
        let (mut activity, start) = (Activity::default(), start());
        let at = |s: u64| start + Duration::from_secs(s);
        activity.update(0, 0, at(0));
        activity.update(148, 92, at(1));
        activity.update(180, 124, at(2));
        assert!(!activity.is_active(at(2)));
        activity.update(1500, 200, at(3));
        assert!(activity.is_active(at(3)));
        assert!(!activity.is_active(at(14)));
    }

    #[test]
    fn silence_counts_from_the_last_report_before_the_unanswered_byte() {
        let (mut activity, start) = (Activity::default(), start());
        let at = |ms: u64| start + Duration::from_millis(ms);
        activity.update(0, 0, at(0));
        activity.update(100, 100, at(500));
        activity.update(100, 200, at(1000));
        assert_eq!(activity.silence(at(1500)), Some(Duration::from_secs(1)));
        activity.update(101, 300, at(1500));
        assert_eq!(activity.silence(at(1500)), None);
        activity.update(0, 0, at(2000));
        assert_eq!(activity.silence(at(2500)), None);
    }
}
