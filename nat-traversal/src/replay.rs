//! Sliding window against replays (RFC 6479), one per sender's key.

/// How far behind the newest a sequence may be.
pub(crate) const WINDOW: u64 = 1024;
/// Words of the ring; twice the window, so that advancing never clears a bit still in it.
const WORDS: usize = 32;

/// What a sequence is to the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Not seen before; now it is.
    Fresh,
    /// Seen before, or too old to tell.
    Replayed,
    /// Of an earlier epoch than the highest seen, which is this.
    OldEpoch(u32),
}

/// Sequences seen of one sender in its highest epoch.
#[derive(Debug, Clone, Default)]
pub(crate) struct Replay {
    epoch: u32,
    highest: u64,
    words: [u64; WORDS],
}

impl Replay {
    /// Judges and remembers; only for what was authenticated before.
    pub(crate) fn check(&mut self, epoch: u32, sequence: u64) -> Verdict {
        if epoch < self.epoch {
            return Verdict::OldEpoch(self.epoch);
        }
        if epoch > self.epoch {
            *self = Self {
                epoch,
                highest: sequence,
                words: [0; WORDS],
            };
        }
        if sequence.saturating_add(WINDOW) <= self.highest {
            return Verdict::Replayed;
        }
        if sequence > self.highest {
            let (from, to) = (self.highest >> 6, sequence >> 6);
            for word in (from + 1..=to).take(WORDS) {
                self.words[slot(word)] = 0;
            }
            // The ring wraps when a sequence jumps far: the newest word is then cleared last.
            self.words[slot(to)] &= if to > from { 0 } else { u64::MAX };
            self.highest = sequence;
        }
        let (word, bit) = (slot(sequence >> 6), 1 << (sequence & 63));
        if self.words[word] & bit != 0 {
            return Verdict::Replayed;
        }
        self.words[word] |= bit;
        Verdict::Fresh
    }
}

fn slot(word: u64) -> usize {
    usize::try_from(word % WORDS as u64).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sequence_counts_once_in_any_order() {
        let mut replay = Replay::default();
        for sequence in [5, 1, 1030, 1024, 7] {
            assert_eq!(replay.check(1, sequence), Verdict::Fresh, "{sequence}");
        }
        for sequence in [5, 1, 6, 1030, 1024, 7] {
            assert_eq!(replay.check(1, sequence), Verdict::Replayed, "{sequence}");
        }
    }

    #[test]
    fn a_far_jump_forgets_nothing_it_must_refuse() {
        let mut replay = Replay::default();
        assert_eq!(replay.check(1, 0), Verdict::Fresh);
        assert_eq!(replay.check(1, 1 << 40), Verdict::Fresh);
        assert_eq!(replay.check(1, 0), Verdict::Replayed);
        assert_eq!(replay.check(1, (1 << 40) - 1), Verdict::Fresh);
        assert_eq!(replay.check(1, (1 << 40) - WINDOW), Verdict::Replayed);
        assert_eq!(replay.check(1, u64::MAX), Verdict::Fresh);
        assert_eq!(replay.check(1, u64::MAX), Verdict::Replayed);
    }

    #[test]
    fn a_lower_epoch_is_told_the_highest() {
        let mut replay = Replay::default();
        assert_eq!(replay.check(9, 100), Verdict::Fresh);
        assert_eq!(replay.check(8, 101), Verdict::OldEpoch(9));
        assert_eq!(replay.check(10, 3), Verdict::Fresh);
        assert_eq!(replay.check(10, 3), Verdict::Replayed);
    }
}
