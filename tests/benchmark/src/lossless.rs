//! The highest rate of datagrams that a tunnel carries without loss, found by halving.

use std::net::UdpSocket;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::flood::{Flood, flood};

/// What may be lost: a datagram in a thousand.
const LOSS_MAX: f64 = 0.001;
/// Less than this share of what a rate asks for is another rate.
const SENT_MIN: f64 = 0.97;
/// What takes longer to arrive than it was sent, by this, has only been queued, and would be lost if it went on.
const LONGER_MAX: f64 = 1.1;
/// How often a rate is tried before it counts as too high: whatever else runs for a moment costs datagrams.
const TRIES: usize = 2;
/// The search begins between these parts of what arrives of a flood, in which the sender takes the tunnel's processors.
const BOUNDS: (f64, f64) = (1.0 / 16.0, 2.0);
/// What is left of a range of 32 after so many halves: 3 %.
const STEPS: u32 = 7;

/// Finds it, packets a second, between a connected socket and the other one for datagrams of `payload` bytes, each rate
/// tried for a while.
pub fn search(from: &UdpSocket, to: &UdpSocket, payload: usize, trial: Duration) -> Result<f64> {
    let overload = flood(from, to, payload, None, trial)?;
    ensure!(overload.seconds > 0.0, "Nothing of a flood arrived");
    let arrived = overload.delivered as f64 / overload.seconds;
    let (low, high) = (arrived * BOUNDS.0, arrived * BOUNDS.1);
    let held = |rate| -> Result<bool> {
        for _ in 0..TRIES {
            if holds(&flood(from, to, payload, Some(rate), trial)?, rate, trial) {
                return Ok(true);
            }
        }
        Ok(false)
    };
    halve((low, high), held)?.with_context(|| {
        format!("More than one datagram in a thousand is lost at {low:.0} packets a second")
    })
}

/// Was so much sent, and did it arrive, as fast?
fn holds(flood: &Flood, rate: f64, trial: Duration) -> bool {
    let (sent, seconds) = (flood.sent as f64, trial.as_secs_f64());
    let lost = flood.sent.saturating_sub(flood.delivered) as f64;
    sent >= rate * seconds * SENT_MIN - 1.0
        && lost <= sent * LOSS_MAX
        && flood.seconds <= seconds * LONGER_MAX
}

/// The highest of the rates tried that held; `None` where none did. Of two rates the middle is their geometric mean.
fn halve(
    (mut low, mut high): (f64, f64),
    mut holds: impl FnMut(f64) -> Result<bool>,
) -> Result<Option<f64>> {
    let mut best = None;
    for _ in 0..STEPS {
        let rate = (low * high).sqrt();
        if holds(rate)? {
            low = rate;
            best = Some(rate);
        } else {
            high = rate;
        }
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halving_finds_the_highest_rate_that_holds_to_three_percent() {
        for limit in [1100.0, 5_000.0, 31_000.0] {
            let found = halve((1_000.0, 32_000.0), |rate| Ok(rate <= limit)).unwrap();
            let found = found.expect("some rates hold");
            assert!(
                found <= limit && found * 1.03 >= limit,
                "{found} of {limit}"
            );
        }
        assert_eq!(halve((1_000.0, 32_000.0), |_| Ok(false)).unwrap(), None);
    }

    #[test]
    fn a_rate_holds_where_as_much_was_sent_and_a_thousandth_is_lost_at_most() {
        let trial = Duration::from_secs(1);
        let held = |sent, delivered, seconds| {
            let flood = Flood {
                sent,
                delivered,
                late: 0,
                seconds,
            };
            holds(&flood, 10_000.0, trial)
        };
        assert!(held(10_000, 9_990, 1.0));
        assert!(!held(10_000, 9_989, 1.0), "too much is lost");
        assert!(!held(9_000, 9_000, 1.0), "the sender was slower");
        assert!(!held(10_000, 10_000, 1.2), "a queue grew");
    }
}
