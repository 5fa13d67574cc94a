//! Who is relayed to whom, and how much. Bytes in, verdicts out; no I/O and no clock.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use mesh_types::plan::RelayPair;

use crate::core::is_control;
use crate::counters::Count;

/// Most pairs; the plan keeps below.
const PAIRS: usize = 4096;
/// Binding requests and answers of a pair a second, and at once.
const PROBES: u64 = 200;
const PROBES_BURST: u64 = 100;
/// What a pair may send at once: so long at its rate, but so many bytes at least.
const BURST: Duration = Duration::from_millis(100);
const BURST_MIN: u64 = 64 * 1024;

/// What becomes of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is for the agent.
    Up,
    /// It goes on.
    Forward {
        /// To whom.
        to: SocketAddr,
        /// From which port.
        port: u16,
        /// From which address of this host: the one that the other end sends to; the system's choice before it has.
        local: Option<IpAddr>,
    },
    /// It is dropped, for this reason.
    Drop(Count),
}

/// One direction of a pair.
struct Way {
    pair: usize,
    to: SocketAddr,
    port: u16,
    /// The address of ours that this end sends to.
    local: Option<IpAddr>,
}

/// All pairs.
#[derive(Default)]
pub struct Table {
    pairs: BTreeSet<RelayPair>,
    /// By source and our port. Looked up, never iterated.
    ways: HashMap<(SocketAddr, u16), Way>,
    meters: Vec<Meters>,
    /// Of all that a node sends and receives, by its port.
    nodes: BTreeMap<u16, Meter>,
}

struct Meters {
    pair: RelayPair,
    data: Option<Meter>,
    probes: Meter,
}

impl Table {
    /// Relays these pairs from now on and no others. What is known of a pair that stays is kept.
    pub fn apply(&mut self, pairs: &BTreeSet<RelayPair>, now: Instant) {
        if *pairs == self.pairs {
            return;
        }
        let old = std::mem::take(&mut self.meters);
        let mut old: BTreeMap<RelayPair, Meters> = old
            .into_iter()
            .map(|meters| (meters.pair, meters))
            .collect();
        let before = std::mem::take(&mut self.ways);
        let mut nodes = std::mem::take(&mut self.nodes);
        self.pairs.clone_from(pairs);
        for (index, pair) in pairs.iter().take(PAIRS).enumerate() {
            let stays = old.remove(pair);
            for port in [pair.first.1, pair.second.1] {
                let held = nodes.remove(&port);
                let held = held.filter(|held| held.rate == bytes(pair.node_rate));
                let meter = held.or_else(|| Meter::of(pair.node_rate, now));
                if let Some(meter) = meter {
                    self.nodes.entry(port).or_insert(meter);
                }
            }
            for (from, to) in [(pair.first, pair.second), (pair.second, pair.first)] {
                let local = stays.as_ref().and_then(|_| before.get(&from)?.local);
                let way = Way {
                    pair: index,
                    to: to.0,
                    port: to.1,
                    local,
                };
                self.ways.insert(from, way);
            }
            self.meters
                .push(stays.unwrap_or_else(|| Meters::new(pair, now)));
        }
    }

    /// Judges a datagram that came from `remote` to `port`, at `local`.
    pub fn handle(
        &mut self,
        remote: SocketAddr,
        port: u16,
        local: Option<IpAddr>,
        bytes: &[u8],
        now: Instant,
    ) -> Verdict {
        let control = is_control(bytes);
        if control && bytes[1] == 0x11 && bytes[0] == 0 {
            return Verdict::Up;
        }
        let Some(way) = self.ways.get_mut(&(remote, port)) else {
            return Verdict::Drop(Count::RelayStranger);
        };
        way.local = local;
        let (to, out) = (way.to, way.port);
        let Some(meters) = self.meters.get_mut(way.pair) else {
            return Verdict::Drop(Count::RelayStranger);
        };
        let allowed = if control {
            meters.probes.take(1, now)
        } else {
            let nodes = &mut self.nodes;
            let take = |meter: Option<&mut Meter>| {
                meter.is_none_or(|meter| meter.take(bytes.len() as u64, now))
            };
            take(meters.data.as_mut()) && take(nodes.get_mut(&out)) && take(nodes.get_mut(&port))
        };
        if !allowed {
            return Verdict::Drop(Count::RelayOverRate);
        }
        Verdict::Forward {
            to,
            port: out,
            local: self.ways.get(&(to, out)).and_then(|back| back.local),
        }
    }
}

impl Meters {
    fn new(pair: &RelayPair, now: Instant) -> Self {
        Self {
            pair: *pair,
            data: Meter::of(pair.rate, now),
            probes: Meter::new(PROBES, PROBES_BURST, now),
        }
    }
}

/// A token bucket.
struct Meter {
    /// A second.
    rate: u64,
    burst: u64,
    /// Billionths of a unit, so that no rate is too low for short times.
    tokens: u128,
    filled: Instant,
}

const NANOS: u128 = 1_000_000_000;

/// A second, of a rate in bits.
fn bytes(rate: u64) -> u64 {
    (rate / 8).max(1)
}

impl Meter {
    /// Of a rate in bits a second, where there is one.
    fn of(rate: u64, now: Instant) -> Option<Self> {
        let bytes = bytes(rate);
        let burst = (u128::from(bytes) * BURST.as_millis() / 1000) as u64;
        (rate > 0).then(|| Self::new(bytes, burst.max(BURST_MIN), now))
    }

    fn new(rate: u64, burst: u64, now: Instant) -> Self {
        Self {
            rate,
            burst,
            tokens: u128::from(burst) * NANOS,
            filled: now,
        }
    }

    fn take(&mut self, units: u64, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.filled).as_nanos();
        self.filled = self.filled.max(now);
        let full = u128::from(self.burst) * NANOS;
        self.tokens = full.min(self.tokens + passed * u128::from(self.rate));
        let cost = u128::from(units) * NANOS;
        let enough = self.tokens >= cost;
        if enough {
            self.tokens -= cost;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::now;

    const FIRST: &str = "192.0.2.1:1000";
    const SECOND: &str = "[2001:db8::2]:2000";

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn pair(rate: u64) -> BTreeSet<RelayPair> {
        [RelayPair {
            first: (at(FIRST), 28001),
            second: (at(SECOND), 28002),
            rate,
            node_rate: 0,
        }]
        .into()
    }

    fn binding(kind: [u8; 2]) -> Vec<u8> {
        let mut bytes = vec![0; 20];
        bytes[..2].copy_from_slice(&kind);
        bytes[4..8].copy_from_slice(&0x2112_a442_u32.to_be_bytes());
        bytes
    }

    fn forward(to: &str, port: u16, local: Option<&str>) -> Verdict {
        Verdict::Forward {
            to: at(to),
            port,
            local: local.map(|ip| ip.parse().unwrap()),
        }
    }

    #[test]
    fn both_ways_go_on_from_the_address_that_the_other_end_sends_to() {
        let (mut table, start) = (Table::default(), now());
        table.apply(&pair(0), start);
        let ours = "203.0.113.9".parse().ok();
        let seen = table.handle(at(FIRST), 28001, ours, &[4; 100], start);
        assert_eq!(seen, forward(SECOND, 28002, None));
        let ours6 = "2001:db8::9".parse().ok();
        let seen = table.handle(at(SECOND), 28002, ours6, &[4; 100], start);
        assert_eq!(seen, forward(FIRST, 28001, Some("203.0.113.9")));
        let mut more = pair(0);
        more.extend(pair(8));
        table.apply(&pair(0), start);
        let seen = table.handle(at(FIRST), 28001, ours, &[4; 100], start);
        assert_eq!(seen, forward(SECOND, 28002, Some("2001:db8::9")));
    }

    #[test]
    fn strangers_and_ends_at_the_wrong_port_get_nothing_and_indications_go_up() {
        let (mut table, start) = (Table::default(), now());
        table.apply(&pair(0), start);
        for (from, port) in [
            ("192.0.2.1:1001", 28001),
            ("192.0.2.9:1000", 28001),
            (FIRST, 28002),
            (SECOND, 28001),
        ] {
            let seen = table.handle(at(from), port, None, &[4; 100], start);
            assert_eq!(seen, Verdict::Drop(Count::RelayStranger), "{from} {port}");
            let seen = table.handle(at(from), port, None, &binding([0, 0x11]), start);
            assert_eq!(seen, Verdict::Up);
        }
        let seen = table.handle(at(FIRST), 28001, None, &binding([0, 0x11]), start);
        assert_eq!(seen, Verdict::Up, "of an end too");
        for kind in [[0, 1], [1, 1], [1, 0x11]] {
            let seen = table.handle(at(FIRST), 28001, None, &binding(kind), start);
            assert_eq!(seen, forward(SECOND, 28002, None));
        }
    }

    #[test]
    fn the_rate_holds_for_both_ways_together_and_probes_do_not_drown() {
        let (mut table, start) = (Table::default(), now());
        let rate = 8_000_000;
        table.apply(&pair(rate), start);
        let mut passed = 0;
        for ms in 0..2000 {
            let now = start + Duration::from_millis(ms);
            for (from, port) in [(FIRST, 28001), (SECOND, 28002)] {
                let seen = table.handle(at(from), port, None, &[4; 1000], now);
                passed += u64::from(matches!(seen, Verdict::Forward { .. })) * 1000;
                if ms == 1000 {
                    let seen = table.handle(at(from), port, None, &binding([0, 1]), now);
                    assert!(matches!(seen, Verdict::Forward { .. }));
                }
            }
        }
        let (least, most) = (rate / 8 * 2, rate / 8 * 2 + rate / 80 + 2000);
        assert!((least..=most).contains(&passed), "{passed}");
    }

    #[test]
    fn all_pairs_of_a_node_share_its_rate_and_those_of_others_have_their_own() {
        let (mut table, start) = (Table::default(), now());
        let node_rate = 8_000_000;
        let of = |first: (&str, u16), second: (&str, u16)| RelayPair {
            first: (at(first.0), first.1),
            second: (at(second.0), second.1),
            rate: 0,
            node_rate,
        };
        // The hub's port is 28000; the others' 28001 to 28004.
        let hub = |n: u8, port| of(("192.0.2.9:9", port), (&format!("192.0.2.{n}:1"), 28000));
        let mut pairs: BTreeSet<RelayPair> = [hub(1, 28001), hub(2, 28002)].into();
        pairs.insert(of(("192.0.2.3:1", 28004), ("192.0.2.4:1", 28003)));
        table.apply(&pairs, start);
        let mut passed = [0, 0];
        for ms in 0..2000 {
            let now = start + Duration::from_millis(ms);
            if ms == 1000 {
                // Another pair of the hub brings it nothing.
                pairs.insert(hub(5, 28005));
                table.apply(&pairs, now);
            }
            for (from, port, whose) in [
                ("192.0.2.9:9", 28001, 0),
                ("192.0.2.9:9", 28002, 0),
                ("192.0.2.1:1", 28000, 0),
                ("192.0.2.2:1", 28000, 0),
                ("192.0.2.3:1", 28004, 1),
            ] {
                let seen = table.handle(at(from), port, None, &[4; 1000], now);
                passed[whose] += u64::from(matches!(seen, Verdict::Forward { .. })) * 1000;
            }
        }
        let (least, most) = (node_rate / 8 * 2, node_rate / 8 * 2 + node_rate / 80 + 2000);
        assert!((least..=most).contains(&passed[0]), "{passed:?}");
        assert_eq!(passed[1], 2_000_000, "another node's");
        assert_eq!(table.nodes.len(), 6);
    }

    #[test]
    fn a_pair_that_stays_keeps_its_measure_and_one_that_goes_is_forgotten() {
        let (mut table, start) = (Table::default(), now());
        table.apply(&pair(8), start);
        let from = (at(FIRST), 28001);
        while table.handle(from.0, from.1, None, &[4; 1000], start)
            != Verdict::Drop(Count::RelayOverRate)
        {}
        let mut more = pair(8);
        more.insert(RelayPair {
            first: (at("192.0.2.7:7"), 28003),
            second: (at("192.0.2.8:8"), 28004),
            rate: 0,
            node_rate: 0,
        });
        table.apply(&more, start);
        let seen = table.handle(from.0, from.1, None, &[4; 1000], start);
        assert_eq!(seen, Verdict::Drop(Count::RelayOverRate));
        table.apply(&BTreeSet::new(), start);
        let seen = table.handle(from.0, from.1, None, &[4; 10], start);
        assert_eq!(seen, Verdict::Drop(Count::RelayStranger));
    }
}
