//! What a peer's tunnel moves: is the peer in use, and does anything come back?

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::schedule::{ACTIVE_BYTES, ACTIVE_WINDOW};

/// Reports kept; at ten a second they span the window.
const SAMPLES_MAX: usize = 128;

/// Byte counts over time.
#[derive(Debug, Clone, Default)]
pub(crate) struct Activity {
    samples: VecDeque<Sample>,
    last: Option<(Instant, u64, u64)>,
    unanswered: Option<Instant>,
}

/// The counters at a moment.
#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Instant,
    moved: u64,
    upkeep: u64,
}

impl Activity {
    /// The tunnel's counters at a moment; `upkeep` is what of both was no use of the peer. Counters that
    /// fall begin anew. True where the tunnel's have changed.
    pub(crate) fn update(&mut self, (rx, tx): (u64, u64), upkeep: u64, now: Instant) -> bool {
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
                .is_some_and(|sample| !sample.is_recent(now))
        {
            self.samples.pop_front();
        }
        self.samples.push_back(Sample {
            at: now,
            moved: rx.saturating_add(tx),
            upkeep,
        });
        (rx, tx) != (old_rx, old_tx)
    }

    /// Does it move more than keepalives and upkeep?
    pub(crate) fn is_active(&self, now: Instant) -> bool {
        let mut recent = self.samples.iter().filter(|sample| sample.is_recent(now));
        let ends = recent.next().zip(recent.next_back());
        ends.is_some_and(|(first, last)| {
            // What was just said may not have left yet.
            let upkeep = last.upkeep.saturating_sub(first.upkeep);
            (last.moved - first.moved).saturating_sub(upkeep) >= ACTIVE_BYTES
        })
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

impl Sample {
    fn is_recent(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.at) <= ACTIVE_WINDOW
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
        activity.update((0, 0), 0, at(0));
        activity.update((148, 92), 0, at(1));
        activity.update((180, 124), 0, at(2));
        assert!(!activity.is_active(at(2)));
        activity.update((1500, 200), 0, at(3));
        assert!(activity.is_active(at(3)));
        assert!(!activity.is_active(at(14)));
    }

    #[test]
    fn upkeep_is_no_use_of_a_peer() {
        let (mut activity, start) = (Activity::default(), start());
        let at = |s: u64| start + Duration::from_secs(s);
        activity.update((0, 0), 0, at(0));
        activity.update((200, 20_000), 20_100, at(1));
        assert!(!activity.is_active(at(1)));
        activity.update((200, 20_000), 21_500, at(2));
        assert!(!activity.is_active(at(2)), "said, and not sent yet");
        activity.update((1_300, 21_400), 21_500, at(3));
        assert!(activity.is_active(at(3)), "beside it something else came");
    }

    #[test]
    fn silence_counts_from_the_last_report_before_the_unanswered_byte() {
        let (mut activity, start) = (Activity::default(), start());
        let at = |ms: u64| start + Duration::from_millis(ms);
        activity.update((0, 0), 0, at(0));
        activity.update((100, 100), 0, at(500));
        activity.update((100, 200), 0, at(1000));
        assert_eq!(activity.silence(at(1500)), Some(Duration::from_secs(1)));
        activity.update((101, 300), 0, at(1500));
        assert_eq!(activity.silence(at(1500)), None);
        activity.update((0, 0), 0, at(2000));
        assert_eq!(activity.silence(at(2500)), None);
    }
}
