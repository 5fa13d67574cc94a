//! What a number of runs has covered.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::matrix::Class;

#[derive(Debug, Default)]
pub struct Cover {
    pub runs: u64,
    pub nodes: BTreeMap<usize, u64>,
    pub kinds: BTreeMap<String, u64>,
    pub faults: BTreeMap<&'static str, u64>,
    /// First meetings, by pair of classes: how long they took.
    pub meetings: BTreeMap<(Class, Class), Vec<Duration>>,
    /// Reconnections after faults.
    pub healings: Vec<Duration>,
    /// Pairs that need a relay, and those of them that connected.
    pub optional: (u64, u64),
    pub pings: (u64, u64),
    pub virtual_time: Duration,
    pub packets: u64,
}

impl Cover {
    pub fn merge(&mut self, other: Self) {
        self.runs += other.runs;
        for (nodes, count) in other.nodes {
            *self.nodes.entry(nodes).or_default() += count;
        }
        for (kind, count) in other.kinds {
            *self.kinds.entry(kind).or_default() += count;
        }
        for (fault, count) in other.faults {
            *self.faults.entry(fault).or_default() += count;
        }
        for (pair, times) in other.meetings {
            self.meetings.entry(pair).or_default().extend(times);
        }
        self.healings.extend(other.healings);
        self.optional.0 += other.optional.0;
        self.optional.1 += other.optional.1;
        self.pings.0 += other.pings.0;
        self.pings.1 += other.pings.1;
        self.virtual_time += other.virtual_time;
        self.packets += other.packets;
    }
}

impl fmt::Display for Cover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hours = self.virtual_time.as_secs_f64() / 3600.0;
        writeln!(
            f,
            "{} runs, {hours:.1} virtual hours, {} packets on links, {} of {} pings answered",
            self.runs, self.packets, self.pings.1, self.pings.0
        )?;
        write!(f, "nodes per run ")?;
        for (nodes, count) in &self.nodes {
            write!(f, " {nodes}:{count}")?;
        }
        writeln!(f, "\n\n{:<44}{:>8}", "what lies before a node", "nodes")?;
        for (kind, count) in &self.kinds {
            writeln!(f, "{kind:<44}{count:>8}")?;
        }
        writeln!(f, "\n{:<44}{:>8}", "fault", "times")?;
        for (fault, count) in &self.faults {
            writeln!(f, "{fault:<44}{count:>8}")?;
        }
        writeln!(
            f,
            "\n{:<24}{:>8}{:>12}{:>12}{:>12}",
            "first meeting", "pairs", "median ms", "p95 ms", "worst ms"
        )?;
        for ((a, b), times) in &self.meetings {
            line(f, &format!("{a:?} with {b:?}"), times)?;
        }
        let all: Vec<Duration> = self.meetings.values().flatten().copied().collect();
        line(f, "all", &all)?;
        line(f, "after faults", &self.healings)?;
        writeln!(
            f,
            "\npairs that need a relay: {}, {} of them connected",
            self.optional.0, self.optional.1
        )
    }
}

fn line(f: &mut fmt::Formatter<'_>, name: &str, times: &[Duration]) -> fmt::Result {
    let mut times = times.to_vec();
    times.sort_unstable();
    let at = |per_cent: usize| {
        let index = (times.len() * per_cent / 100).min(times.len().saturating_sub(1));
        times.get(index).map_or(0, Duration::as_millis)
    };
    let pairs = times.len();
    writeln!(
        f,
        "{name:<24}{pairs:>8}{:>12}{:>12}{:>12}",
        at(50),
        at(95),
        at(100)
    )
}
