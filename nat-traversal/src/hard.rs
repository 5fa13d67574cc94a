//! Translators that give each destination another external port ("hard" ones): what is known of how
//! they choose ports, and how two nodes meet through them all the same.
//!
//! | before us | before the peer | what is done |
//! |---|---|---|
//! | one port for all | sequential | [`Method::Guess`]: probe the few ports that the peer predicts |
//! | one port for all | block, random | [`Method::Spray`]: probe ports of its address in random order |
//! | sequential | one port for all | [`Method::Trace`]: open a port between two samples, tell what lies between |
//! | block, random | one port for all | [`Method::Fan`]: open a port from each of many sockets |
//! | sequential | sequential | [`Method::Meet`]: both sample, both probe the other's next ports |
//! | block | block | [`Method::Cross`]: both probe the other's block from many sockets |
//!
//! Two blocks meet with a chance that grows with the square of the ports that both sides take. Where each destination
//! may see the same port (Linux), a block does not run out of them, and a round goes on until 99 % have met; where a
//! port is for one destination only (carriers), it ends with the block, after half of them.
//!
//! Nothing else can be met, and nothing is tried. All of it starts from a call of the peer.

use std::time::Duration;

use mesh_types::{Allocation, Filtering, Mapping, NatReport};

pub(crate) mod allocator;
pub(crate) mod budget;
pub(crate) mod sampler;
pub(crate) mod sockets;

/// Samples of the allocator: enough that ports in order, or near each other, are no accident.
pub(crate) const SAMPLES: usize = 16;
/// Destinations among them; with fewer, more sockets are used.
pub(crate) const SAMPLE_DESTINATIONS: usize = 4;
/// Answers without which there is no verdict.
pub(crate) const SAMPLES_LEAST: usize = 12;
/// Between two samples: they must arrive in order, and cross traffic must not drown them.
pub(crate) const SAMPLE_SPACING: Duration = Duration::from_millis(5);
/// Answers that come later count for nothing: a satellite's round trip fits.
pub(crate) const SAMPLE_PATIENCE: Duration = Duration::from_millis(800);
/// After a verdict, the next sampling: as often as the other tests of the own NAT.
pub(crate) const SAMPLE_AGAIN: Duration = Duration::from_secs(300);
/// After too few answers, at first and at most: at a start not all observers are in reach at once.
pub(crate) const SAMPLE_RETRY: (Duration, Duration) =
    (Duration::from_secs(2), Duration::from_secs(30));

/// Whether the ports of a block are shared is told by two equal ones, which only different observers can see: so many
/// pairs of samples at different observers for each port show them with 99.7 % (some 220 samples at two observers in a
/// block of 2048).
pub(crate) const SHARING_PAIRS: usize = 6;
/// Of the samples so many, in percent, must be answered for all ports to be single.
pub(crate) const SHARING_LEAST: usize = 90;
/// Between two of these samples at one observer: it looks at 20 strangers' datagrams a second from one address, and
/// at [`SHARING_BURST`] at once after the first samples.
pub(crate) const SHARING_SPACING: Duration = Duration::from_millis(60);
/// See [`SHARING_SPACING`].
pub(crate) const SHARING_BURST: usize = 8;

/// Ports that lie within so many form a block: what carriers give a subscriber (RFC 6888), and what 64
/// sockets hit with 283 probes (99 %).
pub(crate) const BLOCK_MAX: u16 = 4096;
/// Steps larger than this between two samples are not a sequence with cross traffic.
pub(crate) const STEP_MAX: i16 = 256;
/// Predicted ports, least and most: 16 where nobody else uses the translator, more as others move it on.
pub(crate) const WINDOW: (usize, usize) = (16, 128);
/// Ports both sides try where both predict: a quarter of them may be used up by others meanwhile.
pub(crate) const WINDOW_MEET: usize = 64;
/// A prediction must hold for so long: a sample's and a call's way.
pub(crate) const PREDICTION_AGE: Duration = Duration::from_millis(300);

/// Sockets against a block: with 140 probes 99 % in a block of 2048, with 283 in one of 4096.
pub(crate) const SOCKETS_BLOCK: usize = 64;
/// Sockets against random ports: with 1150 probes 99 %.
pub(crate) const SOCKETS_RANDOM: usize = 256;
/// Probes of one search through random ports.
pub(crate) const PROBES_RANDOM: usize = 1150;
/// Of the own block's ports between the lowest and the highest that samples have shown (15 of 17 of it on average),
/// all searches together take so many, in percent: the rest is for the node itself and the rest of the site.
pub(crate) const BLOCK_SHARE: usize = 98;
/// While nothing is known of the own translator's ports, it may have so many only.
pub(crate) const BLOCK_LEAST: usize = 1024;
/// Probes of one round of block against block, in percent of the (geometric) mean of what samples have shown of both
/// blocks: 99 % of the rounds meet where both sides' ports are shared, 85 % where one side's are.
pub(crate) const ROUND_SHARE: usize = 250;
/// One socket for so many ports of the own block: the peer tries each of them.
pub(crate) const PORTS_PER_SOCKET: usize = 4;
/// Rounds of block against block are so far apart that the first one's mappings are gone (30 s).
pub(crate) const ROUND_EVERY: Duration = Duration::from_secs(33);
/// Mappings without an answer live so long (Linux; RFC 4787 asks for more): sockets are kept meanwhile.
pub(crate) const HOLD: Duration = Duration::from_secs(35);

/// From a call to predicted ports: plain probes get so long.
pub(crate) const PREDICT_AT: Duration = Duration::from_millis(300);
/// From a call to a search: prediction gets so long.
pub(crate) const SEARCH_AT: Duration = Duration::from_millis(800);
/// Between two attempts at predicting; calls may come faster.
pub(crate) const PREDICT_EVERY: Duration = Duration::from_secs(2);
/// Predicted ports are probed again after these: for what was lost, no port is used up by it.
pub(crate) const REPEATS: [Duration; 3] = [
    Duration::from_millis(150),
    Duration::from_millis(450),
    Duration::from_millis(1000),
];
/// The side that waits to be found at one port probes from it at these ages.
pub(crate) const LURE: [Duration; 6] = [
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_millis(900),
    Duration::from_millis(1500),
    Duration::from_millis(2500),
];
/// A search sends so many at once...
pub(crate) const BATCH: usize = 10;
/// ...and then waits: 1000 a second without a timer a probe.
pub(crate) const BATCH_EVERY: Duration = Duration::from_millis(10);

/// What lies before a node, as far as meeting it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    /// Its address is the same for all, and closed to strangers.
    Fixed,
    /// The next port is the last plus a step.
    Sequential,
    /// Any port of a block.
    Block,
    /// Any port.
    Random,
    /// Plain probes reach it, or nothing is known yet.
    Other,
}

fn side(report: NatReport) -> Side {
    let hard = match report.mapping {
        Mapping::AddressDependent => {
            return if open(report) {
                Side::Other
            } else {
                Side::Random
            };
        }
        Mapping::AddressAndPortDependent => true,
        Mapping::EndpointIndependent => false,
        Mapping::Unknown => return Side::Other,
    };
    match report.allocation {
        _ if open(report) => Side::Other,
        _ if !hard => Side::Fixed,
        Allocation::Sequential(_) => Side::Sequential,
        Allocation::Block(..) => Side::Block,
        Allocation::Preserving | Allocation::Random | Allocation::Unknown => Side::Random,
    }
}

/// Whoever was sent to may answer from any port, so the peer's port shows by itself.
fn open(report: NatReport) -> bool {
    match report.filtering {
        Filtering::EndpointIndependent | Filtering::AddressDependent => true,
        Filtering::AddressAndPortDependent | Filtering::Unknown => false,
    }
}

/// How a pair is met. See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    /// The peer predicts, we probe.
    Guess,
    /// The peer opens many ports, we probe many.
    Spray,
    /// We predict, the peer probes.
    Trace,
    /// We open many ports, the peer probes many.
    Fan,
    /// Both predict.
    Meet,
    /// Both probe a block.
    Cross,
}

impl Method {
    /// `None` where plain probes do, or nothing does.
    pub(crate) fn of(own: NatReport, peer: NatReport) -> Option<Self> {
        match (side(own), side(peer)) {
            (Side::Fixed, Side::Sequential) => Some(Self::Guess),
            (Side::Fixed, Side::Block | Side::Random) => Some(Self::Spray),
            (Side::Sequential, Side::Fixed) => Some(Self::Trace),
            (Side::Block | Side::Random, Side::Fixed) => Some(Self::Fan),
            (Side::Sequential, Side::Sequential) => Some(Self::Meet),
            (Side::Block, Side::Block) => Some(Self::Cross),
            (
                Side::Fixed | Side::Sequential | Side::Block | Side::Random | Side::Other,
                Side::Fixed | Side::Sequential | Side::Block | Side::Random | Side::Other,
            ) => None,
        }
    }

    /// Neither side can be met by any of these: a relay is needed.
    pub(crate) fn hopeless(own: NatReport, peer: NatReport) -> bool {
        let changing = |side| match side {
            Side::Sequential | Side::Block | Side::Random => true,
            Side::Fixed | Side::Other => false,
        };
        changing(side(own)) && changing(side(peer)) && Self::of(own, peer).is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(mapping: Mapping, allocation: Allocation) -> NatReport {
        NatReport {
            mapping,
            allocation,
            ..NatReport::default()
        }
    }

    #[test]
    fn each_side_takes_the_part_that_answers_the_others() {
        let hard = |allocation| report(Mapping::AddressAndPortDependent, allocation);
        let fixed = report(Mapping::EndpointIndependent, Allocation::Preserving);
        let block = hard(Allocation::Block(40000, 42047));
        let sequence = hard(Allocation::Sequential(1));
        let random = hard(Allocation::Random);
        let adm = report(Mapping::AddressDependent, Allocation::Unknown);
        let pairs = [
            (fixed, sequence, Some(Method::Guess), Some(Method::Trace)),
            (fixed, block, Some(Method::Spray), Some(Method::Fan)),
            (fixed, random, Some(Method::Spray), Some(Method::Fan)),
            (fixed, adm, Some(Method::Spray), Some(Method::Fan)),
            (sequence, sequence, Some(Method::Meet), Some(Method::Meet)),
            (block, block, Some(Method::Cross), Some(Method::Cross)),
            (fixed, fixed, None, None),
            (random, random, None, None),
            (random, block, None, None),
            (sequence, block, None, None),
            (adm, adm, None, None),
            (NatReport::default(), random, None, None),
        ];
        for (a, b, ours, theirs) in pairs {
            assert_eq!(Method::of(a, b), ours, "{a:?} {b:?}");
            assert_eq!(Method::of(b, a), theirs, "{b:?} {a:?}");
        }
        assert!(Method::hopeless(random, sequence) && !Method::hopeless(fixed, random));
    }

    #[test]
    fn whoever_filters_by_address_alone_is_met_without_a_search() {
        let loose = NatReport {
            filtering: Filtering::AddressDependent,
            ..report(Mapping::EndpointIndependent, Allocation::Preserving)
        };
        let random = report(Mapping::AddressAndPortDependent, Allocation::Random);
        assert_eq!(Method::of(loose, random), None);
        assert_eq!(Method::of(random, loose), None);
    }
}
