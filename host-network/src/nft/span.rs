//! Ranges of addresses and ports as numbers: merged, and cut into pieces that do not overlap, for the kernel's sets
//! take no others.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::expression::Family;
use super::map::{Elements, Entry};

/// From the first to the last, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Span {
    pub(crate) first: u128,
    pub(crate) last: u128,
}

impl Span {
    /// Of a prefix's addresses, within its family.
    pub(crate) fn of(net: &IpNet) -> Self {
        Self {
            first: number(net.network()),
            last: number(net.broadcast()),
        }
    }

    fn contains(&self, other: &Self) -> bool {
        self.first <= other.first && other.last <= self.last
    }
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u32::from(ip).into(),
        IpAddr::V6(ip) => ip.into(),
    }
}

/// Adds an address of a family to a key.
pub(crate) fn put_number(key: &mut Vec<u8>, family: Family, number: u128) {
    let bytes = number.to_be_bytes();
    match family {
        Family::V4 => key.extend(&bytes[12..]),
        Family::V6 => key.extend(bytes),
    }
}

/// The addresses of these prefixes of one family, as elements of a set of ranges.
pub(crate) fn elements<'a>(family: Family, nets: impl Iterator<Item = &'a IpNet>) -> Elements {
    let of_family = nets.filter(|net| Family::of(net.addr()) == family);
    merged(of_family.map(Span::of))
        .into_iter()
        .map(|span| {
            let (mut first, mut last) = (Vec::new(), Vec::new());
            put_number(&mut first, family, span.first);
            put_number(&mut last, family, span.last);
            (first, Entry::UpTo(last))
        })
        .collect()
}

/// The fewest spans that cover the same numbers, in order.
pub(crate) fn merged(spans: impl IntoIterator<Item = Span>) -> Vec<Span> {
    let mut spans: Vec<Span> = spans.into_iter().collect();
    spans.sort_unstable();
    let mut merged: Vec<Span> = Vec::new();
    for span in spans {
        match merged.last_mut() {
            Some(before) if span.first <= before.last.saturating_add(1) => {
                before.last = before.last.max(span.last);
            }
            _ => merged.push(span),
        }
    }
    merged
}

/// Cuts prefixes that lie in each other into spans, each with what its longest prefix has; in order.
pub(crate) fn by_longest_prefix<T: Copy + PartialEq>(
    nets: impl IntoIterator<Item = (Span, T)>,
) -> Vec<(Span, T)> {
    let mut nets: Vec<(Span, T)> = nets.into_iter().collect();
    // Of those that begin together the wider comes first.
    nets.sort_by_key(|(span, _)| (span.first, std::cmp::Reverse(span.last)));
    let mut cut = Cut {
        open: Vec::new(),
        from: 0,
        done: Vec::new(),
    };
    for (span, value) in nets {
        cut.close(Some(span.first));
        cut.give_up_to(span.first.checked_sub(1));
        cut.open.push((span, value));
        cut.from = span.first;
    }
    cut.close(None);
    cut.done
}

/// Work of [`by_longest_prefix`]: prefixes around the current place, each within the one before.
struct Cut<T> {
    open: Vec<(Span, T)>,
    /// What is below has been given out.
    from: u128,
    done: Vec<(Span, T)>,
}

impl<T: Copy + PartialEq> Cut<T> {
    /// Gives what is open, from the current place to the last one, to the innermost prefix.
    fn give_up_to(&mut self, last: Option<u128>) {
        if let (Some(last), Some((_, value))) = (last, self.open.last())
            && self.from <= last
        {
            let value = *value;
            match self.done.last_mut() {
                Some((before, held)) if *held == value && before.last + 1 == self.from => {
                    before.last = last;
                }
                _ => {
                    let first = self.from;
                    self.done.push((Span { first, last }, value));
                }
            }
        }
    }

    /// Closes what ends before a place, or everything.
    fn close(&mut self, place: Option<u128>) {
        while let Some((span, _)) = self.open.last().copied()
            && place.is_none_or(|place| span.last < place)
        {
            self.give_up_to(Some(span.last));
            self.open.pop();
            match span.last.checked_add(1) {
                Some(next) => self.from = next,
                // Nothing is left of those around it either.
                None => self.open.clear(),
            }
        }
    }
}

/// Cuts rectangles of addresses and ports into such that do not overlap and cover the same.
pub(crate) fn rectangles(of: &BTreeSet<(Span, Span)>) -> Vec<(Span, Span)> {
    // Where rectangles begin or end; between two such places the ports are the same for all addresses.
    let mut places = BTreeSet::new();
    for (addresses, _) in of {
        places.insert(addresses.first);
        places.extend(addresses.last.checked_add(1));
    }
    let places: Vec<u128> = places.into_iter().collect();
    let mut cut: Vec<(Span, Vec<Span>)> = Vec::new();
    for (at, first) in places.iter().enumerate() {
        let last = places.get(at + 1).map_or(u128::MAX, |next| next - 1);
        let piece = Span {
            first: *first,
            last,
        };
        let around = of
            .iter()
            .filter(|(addresses, _)| addresses.contains(&piece));
        let ports = merged(around.map(|(_, ports)| *ports));
        match cut.last_mut() {
            Some((before, same)) if *same == ports => before.last = last,
            _ => cut.push((piece, ports)),
        }
    }
    cut.into_iter()
        .flat_map(|(addresses, ports)| ports.into_iter().map(move |ports| (addresses, ports)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(first: u128, last: u128) -> Span {
        Span { first, last }
    }

    #[test]
    fn what_overlaps_or_touches_is_merged() {
        let spans = [
            span(5, 9),
            span(0, 3),
            span(10, 12),
            span(6, 7),
            span(20, u128::MAX),
        ];
        assert_eq!(
            merged(spans),
            [span(0, 3), span(5, 12), span(20, u128::MAX)]
        );
    }

    #[test]
    fn every_number_goes_to_the_longest_prefix_around_it() {
        // Prefixes within 0..=255, whole and nested, against the definition.
        let mut nets = Vec::new();
        for (at, (first, size)) in [
            (0, 256),
            (0, 64),
            (0, 1),
            (16, 16),
            (16, 4),
            (20, 4),
            (128, 128),
            (255, 1),
            (64, 32),
        ]
        .into_iter()
        .enumerate()
        {
            nets.push((span(first, first + size - 1), at % 7));
        }
        for skip in 0..2 * nets.len() {
            // In one order and the other.
            let mut nets = nets[skip / 2..].to_vec();
            if skip % 2 == 1 {
                nets.reverse();
            }
            let cut = by_longest_prefix(nets.clone());
            for pair in cut.windows(2) {
                assert!(pair[0].0.last < pair[1].0.first, "{cut:?}");
            }
            for number in 0..256 {
                let here = span(number, number);
                let longest = nets
                    .iter()
                    .filter(|(net, _)| net.contains(&here))
                    .min_by_key(|(net, _)| net.last - net.first)
                    .map(|(_, value)| *value);
                let found = cut.iter().find(|(piece, _)| piece.contains(&here));
                assert_eq!(found.map(|(_, value)| *value), longest, "{number}");
            }
        }
        let all = span(0, u128::MAX);
        let top = span(u128::MAX, u128::MAX);
        assert_eq!(
            by_longest_prefix([(all, 1), (top, 2)]),
            [(span(0, u128::MAX - 1), 1), (top, 2)]
        );
        assert_eq!(by_longest_prefix([(all, 1), (top, 1)]), [(all, 1)]);
    }

    #[test]
    fn rectangles_cover_the_same_and_do_not_overlap() {
        let of = BTreeSet::from([
            (span(0, 15), span(80, 80)),
            (span(4, 7), span(70, 90)),
            (span(4, 7), span(443, 443)),
            (span(6, 20), span(443, 500)),
            (span(30, 31), span(1, 9)),
            (span(30, 31), span(10, 12)),
        ]);

        let cut = rectangles(&of);

        for address in 0..40 {
            for port in 0..600 {
                let here = |of: &&(Span, Span)| {
                    of.0.contains(&span(address, address)) && of.1.contains(&span(port, port))
                };
                let held = cut.iter().filter(here).count();
                let wanted = usize::from(of.iter().any(|one| here(&one)));
                assert_eq!(held, wanted, "{address} {port} in {cut:?}");
            }
        }
        assert!(cut.len() < 10, "{cut:?}");
        let all = span(0, u128::MAX);
        assert_eq!(
            rectangles(&BTreeSet::from([
                (all, span(0, 9)),
                (span(9, u128::MAX), span(5, 12))
            ])),
            [(span(0, 8), span(0, 9)), (span(9, u128::MAX), span(0, 12))]
        );
        assert!(rectangles(&BTreeSet::new()).is_empty());
    }
}
