//! How a translator chooses external ports, told from samples, and which one comes next.

use mesh_types::Allocation;

use super::{BLOCK_MAX, SAMPLES_LEAST, STEP_MAX};

/// Translators use no ports below.
const PORT_MIN: u16 = 1024;
/// Of the steps between samples so many, in percent, must go one way for a sequence...
const ONE_WAY: usize = 80;
/// ...and be equal, for the step to be theirs; else it is what divides them all.
const EQUAL: usize = 60;

/// Judges external ports in the order in which they were asked for.
pub(crate) fn judge(ports: &[u16]) -> Allocation {
    if ports.len() < SAMPLES_LEAST {
        return Allocation::Unknown;
    }
    if let Some(step) = sequence(ports) {
        return Allocation::Sequential(step);
    }
    let low = ports.iter().copied().min().unwrap_or(PORT_MIN);
    let high = ports.iter().copied().max().unwrap_or(PORT_MIN);
    if high - low >= BLOCK_MAX {
        return Allocation::Random;
    }
    // Somewhat less than the block, and surely nothing beside it.
    Allocation::Block(low, high)
}

fn sequence(ports: &[u16]) -> Option<i16> {
    let steps: Vec<i16> = ports
        .windows(2)
        .map(|pair| pair[1].wrapping_sub(pair[0]).cast_signed())
        .collect();
    let one_way = |up: bool| -> Vec<i16> {
        let near = if up { 1..=STEP_MAX } else { -STEP_MAX..=-1 };
        let fits = |step: &i16| near.contains(step);
        steps.iter().copied().filter(fits).collect()
    };
    let (up, down) = (one_way(true), one_way(false));
    let most = if up.len() >= down.len() { up } else { down };
    if most.len() * 100 < steps.len() * ONE_WAY {
        return None;
    }
    let count = |step: &i16| most.iter().filter(|other| *other == step).count();
    let usual = most.iter().copied().max_by_key(count)?;
    if count(&usual) * 100 >= steps.len() * EQUAL {
        return Some(usual);
    }
    let common = most.iter().fold(0, |all, step| divisor(all, step.abs()));
    Some(if usual > 0 { common } else { -common })
}

fn divisor(a: i16, b: i16) -> i16 {
    if b == 0 { a } else { divisor(b, a % b) }
}

/// Ports that others took while a sequence was sampled.
pub(crate) fn taken_by_others(ports: &[u16], step: i16) -> usize {
    let (Some(first), Some(last)) = (ports.first(), ports.last()) else {
        return 0;
    };
    distance(*first, *last, step)
        .unwrap_or_default()
        .saturating_sub(ports.len() - 1)
}

/// Ports that are in use by translators.
const SPAN: i32 = 64_512;

/// Steps from one port of a sequence to a later one; `None` where it lies behind.
fn distance(from: u16, to: u16, step: i16) -> Option<usize> {
    let apart = (i32::from(to) - i32::from(from)) * i32::from(step.signum());
    let ahead = apart.rem_euclid(SPAN);
    let steps = ahead.checked_div(i32::from(step).abs())?;
    (ahead < SPAN / 2).then(|| usize::try_from(steps).unwrap_or_default())
}

/// The port `count` steps on; sequences start over below the highest port.
pub(crate) fn advance(port: u16, step: i16, count: i32) -> u16 {
    let offset = i32::from(port) - i32::from(PORT_MIN) + i32::from(step) * count;
    PORT_MIN + u16::try_from(offset.rem_euclid(SPAN)).unwrap_or_default()
}

/// The ports that come next, in order.
pub(crate) fn following(port: u16, step: i16, count: usize) -> Vec<u16> {
    (1..=i32::try_from(count).unwrap_or_default())
        .map(|index| advance(port, step, index))
        .collect()
}

/// The ports given out between two samples, and then those around them, at least `least` and at most
/// `most`: packets may have overtaken each other.
pub(crate) fn between(before: u16, after: u16, step: i16, least: usize, most: usize) -> Vec<u16> {
    let inside = distance(before, after, step)
        .unwrap_or_default()
        .saturating_sub(1)
        .min(most);
    let mut out = following(before, step, inside);
    for index in 1.. {
        if out.len() >= least {
            break;
        }
        out.push(advance(after, step, index));
        out.push(advance(before, step, -index));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers without order.
    fn scatter(low: u16, high: u16, seed: u64) -> Vec<u16> {
        let span = u64::from(high - low) + 1;
        let mut state = seed;
        (0..16)
            .map(|_| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                low + u16::try_from((state >> 33) % span).unwrap()
            })
            .collect()
    }

    #[test]
    fn sequences_are_told_by_their_step_whatever_others_take_from_them() {
        let quiet: Vec<u16> = (0..16).map(|i| 40_000 + i).collect();
        assert_eq!(judge(&quiet), Allocation::Sequential(1));
        assert_eq!(taken_by_others(&quiet, 1), 0);
        let down: Vec<u16> = (0..16).map(|i| 40_000 - 2 * i).collect();
        assert_eq!(judge(&down), Allocation::Sequential(-2));
        let mut busy = vec![30_000];
        for (index, step) in [2, 6, 4, 2, 8, 2, 4, 6, 2, 2, 10, 4, 2, 6, 4]
            .iter()
            .enumerate()
        {
            busy.push(busy[index] + step);
        }
        assert_eq!(judge(&busy), Allocation::Sequential(2));
        assert_eq!(taken_by_others(&busy, 2), 17);
        let mut overtaken = quiet;
        overtaken.swap(3, 4);
        assert_eq!(judge(&overtaken), Allocation::Sequential(1));
        let wrapped: Vec<u16> = (0..16).map(|i| advance(65_530, 1, i)).collect();
        assert_eq!(judge(&wrapped), Allocation::Sequential(1));
    }

    #[test]
    fn ports_half_the_range_apart_are_no_sequence() {
        let ports: Vec<u16> = (0..16).map(|i| 20_000 + (i % 2) * 32_768).collect();
        assert_eq!(judge(&ports), Allocation::Random);
    }

    #[test]
    fn blocks_and_chance_are_told_apart_and_never_taken_for_a_sequence() {
        for seed in 0..200 {
            let judged = judge(&scatter(40_000, 42_047, seed));
            let Allocation::Block(low, high) = judged else {
                panic!("{judged:?} of seed {seed}");
            };
            assert!(
                low >= 40_000 && high <= 42_047 && high - low > 1000,
                "{low} {high}"
            );
            assert!(matches!(
                judge(&scatter(40_000, 44_095, seed)),
                Allocation::Block(..)
            ));
            assert_eq!(judge(&scatter(1024, 65_535, seed)), Allocation::Random);
        }
    }

    #[test]
    fn too_few_samples_tell_nothing() {
        assert_eq!(judge(&[1025; 11]), Allocation::Unknown);
        assert_eq!(judge(&[]), Allocation::Unknown);
    }

    #[test]
    fn a_prediction_is_no_longer_than_allowed_and_no_shorter() {
        assert_eq!(between(5000, 5002, 1, 3, 128), [5001, 5003, 4999]);
        assert_eq!(between(5000, 5008, 2, 1, 128), [5002, 5004, 5006]);
        assert_eq!(between(5000, 9000, 1, 16, 128).len(), 128);
        assert_eq!(between(65_535, 1025, 1, 1, 128).len(), 1);
        assert_eq!(following(65_534, 1, 3), [65_535, 1024, 1025]);
    }
}
