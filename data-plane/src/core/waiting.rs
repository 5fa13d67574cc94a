//! A bounded queue whose room and turns are shared among those who fill it.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::ops::Bound::{Excluded, Unbounded};

/// Items that wait, those of one sender in order, the senders in turn. Where it is full, who has the most gives way.
#[derive(Debug)]
pub(super) struct Waiting<T> {
    room: usize,
    len: usize,
    senders: BTreeMap<IpAddr, VecDeque<T>>,
    served: Option<IpAddr>,
}

impl<T> Waiting<T> {
    /// For so many items in all.
    pub fn new(room: usize) -> Self {
        Self {
            room,
            len: 0,
            senders: BTreeMap::new(),
            served: None,
        }
    }

    /// How many items wait.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Says whether none was dropped for it: neither itself nor the newest of whoever has the most.
    pub fn push(&mut self, from: IpAddr, item: T) -> bool {
        let sender = site(from);
        let full = self.len >= self.room;
        if full {
            let own = self.senders.get(&sender).map_or(0, VecDeque::len);
            let longest = self.senders.iter().max_by_key(|(_, items)| items.len());
            let Some(greedy) = longest
                .filter(|(_, items)| items.len() > own + 1)
                .map(|(sender, _)| *sender)
            else {
                return false;
            };
            // It holds two at least, so it does not become empty.
            if let Some(items) = self.senders.get_mut(&greedy) {
                items.pop_back();
                self.len -= 1;
            }
        }
        let items = self.senders.entry(sender);
        items
            .or_insert_with(|| VecDeque::with_capacity(1))
            .push_back(item);
        self.len += 1;
        !full
    }

    /// The oldest item of the sender whose turn it is.
    pub fn pop(&mut self) -> Option<T> {
        let after = self.served.map_or(Unbounded, Excluded);
        let mut next = self.senders.range((after, Unbounded)).chain(&self.senders);
        let sender = *next.next()?.0;
        let items = self.senders.get_mut(&sender)?;
        let item = items.pop_front()?;
        if items.is_empty() {
            self.senders.remove(&sender);
        }
        self.served = Some(sender);
        self.len -= 1;
        Some(item)
    }
}

/// Who counts as one sender: an IPv4 address, or a /64 of IPv6, whose addresses cost nothing.
fn site(from: IpAddr) -> IpAddr {
    match from {
        IpAddr::V4(_) => from,
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & (u128::MAX << 64))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn senders_are_served_in_turn_and_each_ones_items_in_order() {
        let mut waiting = Waiting::new(100);
        for n in 0..50 {
            assert!(waiting.push(ip("192.0.2.1"), n));
        }
        assert!(waiting.push(ip("2001:db8::1"), 100));
        assert!(waiting.push(ip("192.0.2.7"), 200));
        assert!(waiting.push(ip("2001:db8::ffff"), 101), "the same /64");
        let all: Vec<i32> = std::iter::from_fn(|| waiting.pop()).collect();
        assert_eq!(all[..7], [0, 200, 100, 1, 101, 2, 3]);
        assert_eq!((all.len(), waiting.len()), (53, 0));
        assert!(waiting.senders.is_empty());
    }

    #[test]
    fn where_it_is_full_the_greediest_gives_way() {
        let mut waiting = Waiting::new(10);
        for n in 0..12 {
            assert_eq!(waiting.push(ip("192.0.2.1"), n), n < 10);
        }
        for n in 0..12 {
            assert!(
                !waiting.push(ip("192.0.2.2"), 100 + n),
                "something is dropped"
            );
        }
        assert_eq!(waiting.len(), 10);
        let mut all: Vec<i32> = std::iter::from_fn(|| waiting.pop()).collect();
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2, 3, 4, 100, 101, 102, 103, 104]);
    }
}
