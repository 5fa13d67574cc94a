//! The mesh must never be a weapon: what may be sent to addresses that nobody has confirmed.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use mesh_types::IpNet;

/// Packets to an unconfirmed address per announcement or call.
pub(crate) const PER_ANNOUNCEMENT: u8 = 7;
/// Destinations remembered; with more in use at once, new ones wait.
const DESTINATIONS_MAX: usize = 4096;
/// All unconfirmed destinations together: 500 in any second.
const NODE: Rate = Rate::new(450, 50);
/// What waits is let go at four fifths of that rate, so that something is left for what is new.
const QUEUE: Rate = Rate::new(360, 1);
/// ...and not sooner than this.
const DEFER: Duration = Duration::from_millis(100);
/// One destination address: 20 in any second.
const DESTINATION: Rate = Rate::new(13, 7);
/// Calls that renew the allowance of unconfirmed addresses, per peer: the backoff of CallMe and its answers.
const CALLS: Rate = Rate::every(Duration::from_secs(10), 6);

/// Answers to other ports of a peer's address than it asked from, per peer.
pub(crate) const ELSEWHERE: Rate = Rate::every(Duration::from_secs(1), 4);

/// Whose packet to an unconfirmed address it is. Where many wait for packets to peers that are not there, those that are
/// must not wait with them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stake {
    /// The peer was heard from lately.
    Heard,
    /// It may be there.
    Search,
    /// Nobody has heard of it, and it is met at its time by the clock, just in case.
    Slot,
}

impl Stake {
    /// What it leaves of the packets that may go at once.
    const fn leaves(self) -> u32 {
        match self {
            Stake::Heard => 0,
            Stake::Search => NODE.burst / 4,
            Stake::Slot => NODE.burst / 2,
        }
    }
}

/// So many a second, and so many at once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rate {
    interval: Duration,
    burst: u32,
}

impl Rate {
    /// At most `per_second + burst` in any second.
    pub(crate) const fn new(per_second: u32, burst: u32) -> Self {
        Self {
            interval: Duration::from_nanos(1_000_000_000 / per_second as u64),
            burst,
        }
    }

    /// At most `burst` at once and one more every `interval`.
    pub(crate) const fn every(interval: Duration, burst: u32) -> Self {
        Self { interval, burst }
    }
}

/// A token bucket as a generic cell rate: one instant of memory.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Bucket(Option<Instant>);

impl Bucket {
    /// Would one more be within the rate?
    pub(crate) fn has(&self, rate: Rate, now: Instant) -> bool {
        self.has_beside(0, rate, now)
    }

    /// The same where so many are left for others.
    fn has_beside(&self, left: u32, rate: Rate, now: Instant) -> bool {
        self.0.is_none_or(|at| {
            let taken = at.saturating_duration_since(now);
            taken + rate.interval * (left + 1) <= rate.interval * rate.burst
        })
    }

    /// Takes one where it is within the rate.
    pub(crate) fn take(&mut self, rate: Rate, now: Instant) -> bool {
        let has = self.has(rate, now);
        if has {
            self.0 = Some(self.0.map_or(now, |at| at.max(now)) + rate.interval);
        }
        has
    }

    fn is_full(&self, now: Instant) -> bool {
        self.0.is_none_or(|at| at <= now)
    }
}

/// What this node has sent lately to addresses that nobody confirmed.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    node: Bucket,
    destinations: BTreeMap<IpAddr, Bucket>,
    /// When the last of those that were refused is tried again.
    queue: Option<Instant>,
}

impl Budget {
    /// Takes one packet to an unconfirmed address.
    pub(crate) fn take(&mut self, destination: IpAddr, stake: Stake, now: Instant) -> bool {
        if self.destinations.len() >= DESTINATIONS_MAX {
            self.destinations.retain(|_, bucket| !bucket.is_full(now));
        }
        let known = self.destinations.contains_key(&destination);
        if !self.node.has_beside(stake.leaves(), NODE, now)
            || (!known && self.destinations.len() >= DESTINATIONS_MAX)
        {
            return false;
        }
        self.destinations
            .entry(destination)
            .or_default()
            .take(DESTINATION, now)
            && self.node.take(NODE, now)
    }
}

impl Budget {
    /// When to try again what was refused: one after the other, else thousands would ask again and again at once.
    pub(crate) fn later(&mut self, stake: Stake, now: Instant) -> Instant {
        let soonest = now + DEFER;
        if stake == Stake::Heard {
            return soonest;
        }
        let at = self
            .queue
            .map_or(soonest, |last| soonest.max(last + QUEUE.interval));
        self.queue = Some(at);
        at
    }
}

/// How often a peer's calls may renew the allowance of unconfirmed addresses.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Calls(Bucket);

impl Calls {
    /// Takes one.
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        self.0.take(CALLS, now)
    }
}

/// Addresses that may be candidates at all.
#[derive(Debug, Clone)]
pub(crate) struct Admission {
    /// Mesh, pod and service ranges: in order, and none within another.
    excluded: Vec<IpNet>,
    /// For tests on one machine.
    pub(crate) allow_loopback: bool,
}

impl Admission {
    pub(crate) fn new(allow_loopback: bool) -> Self {
        Self {
            excluded: Vec::new(),
            allow_loopback,
        }
    }

    /// No address within these.
    pub(crate) fn exclude(&mut self, ranges: Vec<IpNet>) {
        self.excluded = ranges;
        self.excluded = IpNet::aggregate(&self.excluded);
        self.excluded.sort_unstable_by_key(IpNet::network);
    }

    /// May packets be sent there?
    pub(crate) fn admits(&self, address: &SocketAddr) -> bool {
        address.port() >= 1024 && self.admits_ip(&address.ip())
    }

    /// Is this an address a node can have?
    pub(crate) fn admits_ip(&self, ip: &IpAddr) -> bool {
        let special = match ip {
            IpAddr::V4(ip) => {
                ip.octets()[0] == 0 || ip.is_multicast() || ip.is_link_local() || ip.is_broadcast()
            }
            IpAddr::V6(ip) => {
                ip.is_unspecified()
                    || ip.is_multicast()
                    || ip.is_unicast_link_local()
                    || ip.to_ipv4_mapped().is_some()
            }
        };
        !special && (self.allow_loopback || !ip.is_loopback()) && !self.is_excluded(ip)
    }

    fn is_excluded(&self, ip: &IpAddr) -> bool {
        let next = self.excluded.partition_point(|net| net.network() <= *ip);
        let last = next.checked_sub(1).and_then(|at| self.excluded.get(at));
        last.is_some_and(|net| net.contains(ip))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::instant::start;

    #[test]
    fn no_second_sees_more_than_twenty_packets_to_one_address() {
        let (mut budget, start) = (Budget::default(), start());
        let victim = "198.51.100.1".parse().unwrap();
        let sent: Vec<_> = (0..5000)
            .map(Duration::from_millis)
            .filter(|at| budget.take(victim, Stake::Heard, start + *at))
            .collect();
        assert!(sent.len() > 60);
        assert!(
            sent.windows(21)
                .all(|w| w[20] - w[0] >= Duration::from_secs(1))
        );
    }

    #[test]
    fn no_second_sees_more_than_five_hundred_packets_in_all() {
        let (mut budget, start) = (Budget::default(), start());
        let sent = (0..10_000u32)
            .filter(|i| {
                let ip = IpAddr::from((0xc633_0000 + i).to_be_bytes());
                budget.take(ip, Stake::Heard, start + Duration::from_micros(100) * *i)
            })
            .count();
        assert!((450..=500).contains(&sent), "{sent}");
    }

    #[test]
    fn ten_thousand_that_wait_ask_again_little_more_than_once_each() {
        let (mut budget, start) = (Budget::default(), start());
        let mut waiting: BTreeSet<(Instant, u32)> = (0..10_000).map(|i| (start, i)).collect();
        let mut asked = 0;
        while let Some((now, i)) = waiting.pop_first() {
            asked += 1;
            assert!(now - start < Duration::from_secs(30));
            let ip = IpAddr::from((0xc633_0000 + i).to_be_bytes());
            if !budget.take(ip, Stake::Search, now) {
                waiting.insert((budget.later(Stake::Search, now), i));
            }
        }
        assert!(asked < 25_000, "{asked}");
    }

    #[test]
    fn who_was_heard_from_need_not_wait_with_those_that_were_not() {
        let (mut budget, start) = (Budget::default(), start());
        let mut next = 0;
        let mut asks = |stake, now| {
            next += 1;
            budget.take(
                IpAddr::from((0xc633_0000_u32 + next).to_be_bytes()),
                stake,
                now,
            )
        };
        while asks(Stake::Search, start) {}
        assert!(!asks(Stake::Slot, start) && !asks(Stake::Search, start));
        assert!((0..10).all(|_| asks(Stake::Heard, start)));
        assert!(!asks(Stake::Search, start));
    }

    #[test]
    fn addresses_that_are_no_nodes_are_not_admitted() {
        let mut admission = Admission::new(false);
        let ranges = ["10.77.3.0/24", "fd77::/16", "10.77.0.0/16", "10.1.0.0/16"];
        admission.exclude(ranges.map(|net| net.parse().unwrap()).into());
        for refused in [
            "127.0.0.1:5000",
            "224.0.0.1:5000",
            "169.254.169.254:5000",
            "0.0.0.0:5000",
            "255.255.255.255:5000",
            "10.77.3.4:5000",
            "10.77.255.255:5000",
            "10.1.0.0:5000",
            "[fd77::1]:5000",
            "203.0.113.1:53",
            "[fe80::1]:5000",
            "[ff02::1]:5000",
            "[::]:5000",
            "[::1]:5000",
            "[::ffff:203.0.113.1]:5000",
        ] {
            assert!(!admission.admits(&refused.parse().unwrap()), "{refused}");
        }
        for admitted in [
            "203.0.113.1:5000",
            "10.0.255.255:5000",
            "10.2.0.0:5000",
            "10.76.255.255:5000",
            "10.78.0.0:5000",
            "[2001:db8::1]:5000",
            "[fd78::1]:5000",
        ] {
            assert!(admission.admits(&admitted.parse().unwrap()), "{admitted}");
        }
    }
}
