//! Medians, percentiles and ratios.

/// A median with the smallest and the largest value it stands for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    /// `None` of no values. Of an even number of values the median is the mean of the middle two.
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        Some(Self { median, min, max })
    }
}

/// The smallest value that at least this share of all values does not exceed (nearest rank); `None` of no values.
pub fn percentile(sorted: &[f64], share: f64) -> Option<f64> {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied()
}

/// One value divided by the other of the same round, for the rounds that have both; a divisor of 0 gives none.
pub fn ratios<'a>(
    rounds: impl IntoIterator<Item = (&'a u32, &'a f64)>,
    divisor: impl Fn(u32) -> Option<f64>,
) -> Vec<f64> {
    let pairs = rounds
        .into_iter()
        .filter_map(|(round, value)| Some((value, divisor(*round)?)));
    pairs
        .filter(|(_, divisor)| *divisor != 0.0)
        .map(|(value, divisor)| value / divisor)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        let spread = |median, min, max| Some(Spread { median, min, max });
        assert_eq!(Spread::of(&[]), None);
        assert_eq!(Spread::of(&[3.0]), spread(3.0, 3.0, 3.0));
        assert_eq!(Spread::of(&[9.0, 1.0, 4.0]), spread(4.0, 1.0, 9.0));
        assert_eq!(Spread::of(&[9.0, 1.0, 4.0, 2.0]), spread(3.0, 1.0, 9.0));
    }

    #[test]
    fn percentiles_are_values_that_occurred() {
        let hundred: Vec<_> = (1..=100).map(f64::from).collect();
        assert_eq!(percentile(&hundred, 0.5), Some(50.0));
        assert_eq!(percentile(&hundred, 0.99), Some(99.0));
        assert_eq!(percentile(&hundred, 1.0), Some(100.0));
        assert_eq!(percentile(&hundred[..10], 0.99), Some(10.0));
        assert_eq!(percentile(&[7.0], 0.0), Some(7.0));
        assert_eq!(percentile(&[], 0.5), None);
    }

    #[test]
    fn ratios_are_taken_inside_a_round_and_only_where_both_were_measured() {
        let ours = BTreeMap::from([(1, 4.0), (2, 9.0), (4, 5.0), (5, 1.0)]);
        let theirs = BTreeMap::from([(1, 2.0), (2, 3.0), (3, 7.0), (5, 0.0)]);
        assert_eq!(
            ratios(&ours, |round| theirs.get(&round).copied()),
            [2.0, 3.0]
        );
    }
}
