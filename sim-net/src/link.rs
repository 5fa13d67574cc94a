//! A link: what attaches a host or a router to a segment.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::random::Random;
use crate::topology::{Owner, SegmentId};

/// How a link treats packets, each way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkSpec {
    /// Delay of every packet.
    pub latency: Duration,
    /// More delay, uniform below this; order is kept.
    pub jitter: Duration,
    /// Packets lost, in a million.
    pub loss: u32,
    /// Packets overtaken by later ones, in a million.
    pub reordered: u32,
    /// Packets that arrive twice, in a million.
    pub duplicated: u32,
}

impl LinkSpec {
    /// A clean link.
    pub const fn clean(latency: Duration) -> Self {
        Self {
            latency,
            jitter: Duration::ZERO,
            loss: 0,
            reordered: 0,
            duplicated: 0,
        }
    }

    /// A wire inside a building: 200 us.
    pub const LAN: Self = Self::clean(Duration::from_micros(200));

    /// An uplink: 10 ms each way, so a round trip between two such takes 40 ms.
    pub const UPLINK: Self = Self::clean(Duration::from_millis(10));
}

/// Which way a packet crosses a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// From the owner into the segment.
    Out,
    /// From the segment to the owner.
    In,
}

/// What crossed a link one way. Packets that the link then lost are counted: they were sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Packets.
    pub packets: u64,
    /// Bytes, IP and UDP headers included.
    pub bytes: u64,
}

/// A packet seen by a tap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tapped {
    /// When.
    pub at: Instant,
    /// Which way.
    pub direction: Direction,
    /// From, as seen there.
    pub source: SocketAddr,
    /// To, as seen there.
    pub destination: SocketAddr,
    /// The UDP payload.
    pub bytes: Vec<u8>,
}

#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) owner: Owner,
    pub(crate) segment: SegmentId,
    pub(crate) spec: LinkSpec,
    pub(crate) up: bool,
    /// Longer packets vanish, IP header included.
    pub(crate) mtu: u64,
    pub(crate) counters: [Counters; 2],
    pub(crate) tap: Option<Vec<Tapped>>,
    last: [Option<Instant>; 2],
}

impl Link {
    pub(crate) fn new(owner: Owner, segment: SegmentId, spec: LinkSpec) -> Self {
        Self {
            owner,
            segment,
            spec,
            up: true,
            mtu: u64::MAX,
            counters: [Counters::default(); 2],
            tap: None,
            last: [None; 2],
        }
    }

    /// When a packet that enters now leaves: not at all, once or twice.
    pub(crate) fn cross(
        &mut self,
        direction: Direction,
        random: &mut Random,
        now: Instant,
    ) -> [Option<Instant>; 2] {
        if !self.up || random.chance(self.spec.loss) {
            return [None, None];
        }
        let mut at = now + self.spec.latency + random.time(self.spec.jitter);
        if random.chance(self.spec.reordered) {
            at += random.time(self.spec.latency + self.spec.jitter + Duration::from_millis(5));
        } else {
            let last = &mut self.last[direction as usize];
            at = last.map_or(at, |last| last.max(at));
            *last = Some(at);
        }
        let twice = random
            .chance(self.spec.duplicated)
            .then(|| at + random.time(Duration::from_millis(3)));
        [Some(at), twice]
    }
}
