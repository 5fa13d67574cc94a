//! What is measured, and the file it is kept in: JSON lines, the first about the run, then one a sample.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

/// What all samples of a run share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// The day it was measured.
    pub date: String,
    /// As `/proc/cpuinfo` names it.
    pub processor: String,
    /// Its flags.
    pub flags: Vec<String>,
    pub cores: usize,
    /// The kernel's release.
    pub linux: String,
    pub rounds: u32,
    /// How long a TCP stream runs.
    pub seconds: u64,
    /// Bytes, of every tunnel.
    pub mtu: u32,
    /// What is compared, ours first.
    pub contenders: Vec<Contender>,
    /// Other programs that took part, with their versions.
    pub tools: Vec<String>,
}

/// A program that makes a tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contender {
    pub name: String,
    /// `None` when it could not be had.
    pub version: Option<String>,
}

/// The addresses inside and outside of a tunnel.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum,
)]
pub enum Family {
    #[serde(rename = "4")]
    #[value(name = "4")]
    Ipv4,
    #[serde(rename = "6")]
    #[value(name = "6")]
    Ipv6,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ipv4 => "IPv4",
            Self::Ipv6 => "IPv6",
        })
    }
}

/// The circumstances of a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Variant {
    pub family: Family,
    /// May the veth carry packets that are not yet cut to its MTU?
    pub offloads: bool,
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let offloads = if self.offloads { "on" } else { "off" };
        write!(f, "{}, veth offloads {offloads}", self.family)
    }
}

/// What is done for a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cell {
    /// TCP from the first node to the second.
    Tcp { streams: u8, reverse: bool },
    /// Datagrams from the first node to the second, as fast as they can be sent; bytes of payload.
    Udp { payload: usize },
    /// Datagrams from the first node to the second, as fast as none is lost; bytes of payload.
    Lossless { payload: usize },
    /// Datagrams that are sent back, one at a time.
    Rtt(Pace),
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { streams, reverse } => {
                let plural = if *streams == 1 { "" } else { "s" };
                let reverse = if *reverse { " back" } else { "" };
                write!(f, "TCP, {streams} stream{plural}{reverse}")
            }
            Self::Udp { payload } => write!(f, "UDP, {payload} bytes"),
            Self::Lossless { payload } => write!(f, "UDP, {payload} bytes, none lost"),
            Self::Rtt(Pace::BackToBack) => f.write_str("round trip back to back"),
            Self::Rtt(Pace::Gaps) => f.write_str("round trip, 1 ms gaps"),
            Self::Rtt(Pace::Loaded) => f.write_str("round trip under load"),
        }
    }
}

/// When the next datagram follows an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pace {
    /// At once.
    BackToBack,
    /// After 1 ms.
    Gaps,
    /// After 1 ms, while one TCP stream takes what it can get.
    Loaded,
}

impl Cell {
    /// All of them, in the order they are measured.
    pub const ALL: [Self; 10] = [
        Self::tcp(1, false),
        Self::tcp(1, true),
        Self::tcp(4, false),
        Self::tcp(4, true),
        Self::Udp { payload: 64 },
        Self::Udp { payload: 1332 },
        Self::Lossless { payload: 64 },
        Self::Rtt(Pace::BackToBack),
        Self::Rtt(Pace::Gaps),
        Self::Rtt(Pace::Loaded),
    ];

    /// TCP streams.
    pub const fn tcp(streams: u8, reverse: bool) -> Self {
        Self::Tcp { streams, reverse }
    }
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    Tcp {
        /// Received.
        bits_per_second: f64,
        /// Received.
        bytes: f64,
        retransmits: u64,
    },
    Udp {
        sent: u64,
        /// Each counted once.
        delivered: u64,
        /// Arrived after a later one.
        late: u64,
        /// From the first arrival to the last.
        seconds: f64,
    },
    Lossless {
        /// The highest rate at which not more than one in a thousand was lost.
        packets_per_second: f64,
    },
    Rtt {
        /// Microseconds.
        p50: f64,
        /// Microseconds.
        p99: f64,
        answered: u64,
        lost: u64,
        /// What the TCP stream beside it received.
        load_bits_per_second: Option<f64>,
    },
}

/// One contender, one cell, one round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    pub round: u32,
    pub contender: String,
    pub variant: Variant,
    pub cell: Cell,
    /// Seconds of processor that the daemons used: the sending node's (unless reversed), the other's.
    pub daemons: [f64; 2],
    /// Seconds of processor that all of the machine used, generators and kernel included.
    #[serde(default)]
    pub machine: f64,
    /// Share of the machine's processors that other programs and other virtual machines had meanwhile.
    pub foreign: f64,
    pub outcome: Outcome,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Line {
    Run(Run),
    Sample(Sample),
}

/// A line of the file.
pub fn run_line(run: &Run) -> Result<String> {
    Ok(serde_json::to_string(&Line::Run(run.clone()))?)
}

/// A line of the file.
pub fn sample_line(sample: &Sample) -> Result<String> {
    Ok(serde_json::to_string(&Line::Sample(sample.clone()))?)
}

/// Reads a file of rounds.
pub fn read(path: &Path) -> Result<(Run, Vec<Sample>)> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("Failed to read the rounds in {}", path.display()))?;
    let (mut run, mut samples) = (None, Vec::new());
    for (index, line) in text.lines().enumerate() {
        let line = serde_json::from_str(line).with_context(|| {
            let place = format!("line {} of {}", index + 1, path.display());
            format!("Failed to read {place}; give a file that scripts/bench wrote")
        })?;
        match line {
            Line::Run(line) => run = Some(line),
            Line::Sample(sample) => samples.push(sample),
        }
    }
    let Some(run) = run else {
        bail!(
            "{} does not say of which run it is; give a file that scripts/bench wrote",
            path.display()
        );
    };
    Ok((run, samples))
}

/// Samples in which others had more of the machine than this do not count.
pub const FOREIGN_MAX: f64 = 0.05;

impl Sample {
    /// Were the processors ours?
    pub fn quiet(&self) -> bool {
        self.foreign <= FOREIGN_MAX
    }
}

/// Values by round of a contender in a cell.
pub fn by_round(
    samples: &[Sample],
    wanted: impl Fn(&Sample) -> bool,
    value: impl Fn(&Sample) -> Option<f64>,
) -> BTreeMap<u32, f64> {
    let wanted = samples.iter().filter(|sample| wanted(sample));
    wanted
        .filter_map(|sample| Some((sample.round, value(sample)?)))
        .collect()
}
