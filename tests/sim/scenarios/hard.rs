//! Pairs behind translators that give each destination another port meet directly all the same: one test a
//! cell of the matrix, success rates over seeds for those that chance decides.

use std::time::Duration;

use sim_net::{Allocator, Families, Filtering, LinkSpec, Mapping, NatSpec};

use super::meeting::Meeting;
use crate::world::{Access, NodeId, Noise, Seat, World};

const SECOND: Duration = Duration::from_secs(1);
const STRICT: Access = Access::Nat(NatSpec::cone(Filtering::AddressAndPortDependent));
const FIREWALLED: Access = Access::OneToOne { firewall: true };
const RANDOM: Access = Access::Nat(NatSpec::symmetric(Allocator::Random));
const BLOCK: Access = block(40_000, 42_047);
const SEQUENCE: Access = sequence(1);

const fn sequence(step: i16) -> Access {
    Access::Nat(NatSpec::symmetric(Allocator::Sequential(step)))
}

const fn block(low: u16, high: u16) -> Access {
    Access::Nat(NatSpec::symmetric(Allocator::Block(low, high)))
}

const BY_ADDRESS: Access = Access::Nat(NatSpec {
    mapping: Mapping::AddressDependent,
    ..NatSpec::symmetric(Allocator::Random)
});

#[test]
fn a_sequential_translator_is_met_by_its_predicted_ports() {
    for (name, hard) in [
        ("sequential +1", SEQUENCE),
        ("sequential +2", sequence(2)),
        ("sequential -3", sequence(-3)),
    ] {
        for easy in [STRICT, FIREWALLED] {
            let rate = Rate::of(
                name,
                &Trial {
                    seeds: 10,
                    ..Trial::new(easy, hard)
                },
            );
            assert_eq!(rate.met(), 20, "{rate}");
            assert!(rate.at(100) < 8 * SECOND, "{rate}");
        }
    }
}

#[test]
fn a_block_is_met_by_a_small_search() {
    for (name, hard) in [
        ("block of 256", block(50_000, 50_255)),
        ("block of 2048", BLOCK),
        ("block of 4096", block(8_192, 12_287)),
    ] {
        let rate = Rate::of(
            name,
            &Trial {
                seeds: 10,
                ..Trial::new(STRICT, hard)
            },
        );
        assert_eq!(rate.met(), 20, "{rate}");
        assert!(rate.at(95) < 12 * SECOND, "{rate}");
    }
}

#[test]
fn random_ports_are_met_by_a_search_within_the_budget() {
    let rate = Rate::of(
        "random",
        &Trial {
            seeds: 25,
            ..Trial::new(STRICT, RANDOM)
        },
    );
    assert!(rate.met() >= 49, "{rate}");
    assert!(rate.at(90) < 12 * SECOND, "{rate}");
    let rate = Rate::of(
        "random",
        &Trial {
            seeds: 5,
            ..Trial::new(FIREWALLED, RANDOM)
        },
    );
    assert!(rate.met() >= 9, "{rate}");
}

#[test]
fn ports_by_address_are_met_like_random_ones_once_two_neighbours_tell_them() {
    let trial = Trial {
        seeds: 10,
        neighbours: 2,
        ..Trial::new(STRICT, BY_ADDRESS)
    };
    let rate = Rate::of("by address", &trial);
    assert!(rate.met() >= 19, "{rate}");
}

#[test]
fn two_sequential_translators_meet_at_each_others_next_ports() {
    for (name, first, second) in [
        ("sequential +1 with +1", SEQUENCE, SEQUENCE),
        ("sequential +1 with -2", SEQUENCE, sequence(-2)),
    ] {
        let rate = Rate::of(
            name,
            &Trial {
                seeds: 10,
                ..Trial::new(first, second)
            },
        );
        assert_eq!(rate.met(), 20, "{rate}");
        assert!(rate.at(100) < 8 * SECOND, "{rate}");
    }
}

#[test]
fn two_blocks_meet_in_some_rounds() {
    for (name, first, second, least) in [
        (
            "block of 1024 with 1024",
            block(40_000, 41_023),
            block(20_000, 21_023),
            9,
        ),
        ("block of 2048 with 2048", BLOCK, BLOCK, 8),
    ] {
        let trial = Trial {
            seeds: 5,
            most: 400 * SECOND,
            ..Trial::new(first, second)
        };
        let rate = Rate::of(name, &trial);
        assert!(rate.met() >= least, "{rate}");
    }
}

#[test]
fn other_hosts_that_move_the_sequence_on_do_not_prevent_a_meeting() {
    for (name, first, second, ports) in [
        ("sequential, 20 ports/s of others", STRICT, SEQUENCE, 20),
        ("sequential, 100 ports/s of others", STRICT, SEQUENCE, 100),
        (
            "sequential with sequential, 10 ports/s of others each",
            SEQUENCE,
            SEQUENCE,
            10,
        ),
        (
            "sequential with sequential, 25 ports/s of others each",
            SEQUENCE,
            sequence(2),
            25,
        ),
    ] {
        let trial = Trial {
            seeds: 5,
            others: ports,
            ..Trial::new(first, second)
        };
        let rate = Rate::of(name, &trial);
        assert_eq!(rate.met(), 10, "{rate}");
        assert!(rate.at(80) < 8 * SECOND, "{rate}");
    }
}

#[test]
fn it_does_not_matter_who_starts_first_and_when() {
    for ms in [0, 30, 300, 1_000, 2_500, 20_000] {
        for hard in [SEQUENCE, BLOCK, RANDOM] {
            let trial = Trial {
                seeds: 2,
                skew: Duration::from_millis(ms),
                ..Trial::new(STRICT, hard)
            };
            let rate = Rate::of(&format!("{ms} ms apart"), &trial);
            assert_eq!(rate.met(), 4, "{rate}");
        }
        let trial = Trial {
            seeds: 2,
            skew: Duration::from_millis(ms),
            ..Trial::new(SEQUENCE, SEQUENCE)
        };
        let rate = Rate::of(&format!("both sequential, {ms} ms apart"), &trial);
        assert_eq!(rate.met(), 4, "{rate}");
    }
}

#[test]
fn lossy_and_slow_links_delay_a_search_and_do_not_prevent_it() {
    let link = LinkSpec {
        loss: 30_000,
        jitter: Duration::from_millis(3),
        latency: Duration::from_millis(60),
        ..LinkSpec::UPLINK
    };
    for (name, first, second) in [
        ("sequential", STRICT, SEQUENCE),
        ("block", STRICT, BLOCK),
        ("random", STRICT, RANDOM),
        ("both sequential", SEQUENCE, SEQUENCE),
    ] {
        let trial = Trial {
            seeds: 4,
            link,
            lossy: true,
            ..Trial::new(first, second)
        };
        let rate = Rate::of(&format!("{name}, 3 % lost, 240 ms round trip"), &trial);
        assert_eq!(rate.met(), 8, "{rate}");
    }
}

/// Two ways to start a pair, at many seeds.
struct Trial {
    easy: Access,
    hard: Access,
    seeds: u64,
    most: Duration,
    link: LinkSpec,
    /// Some pings are lost.
    lossy: bool,
    /// Ports a second that a host beside each node takes.
    others: u32,
    /// Public nodes that both know in the end.
    neighbours: usize,
    /// The second node starts so long after the first.
    skew: Duration,
}

impl Trial {
    fn new(easy: Access, hard: Access) -> Self {
        Self {
            easy,
            hard,
            seeds: 5,
            most: 60 * SECOND,
            link: LinkSpec::UPLINK,
            lossy: false,
            others: 0,
            neighbours: 1,
            skew: 5 * SECOND,
        }
    }
}

/// How often a pair met, and how long it took.
struct Rate {
    name: String,
    tries: usize,
    took: Vec<Duration>,
    probes: Vec<u64>,
}

impl Rate {
    fn of(name: &str, trial: &Trial) -> Self {
        let mut rate = Self {
            name: name.to_owned(),
            tries: 0,
            took: Vec::new(),
            probes: Vec::new(),
        };
        for seed in 0..trial.seeds {
            for (first, second) in [(trial.easy, trial.hard), (trial.hard, trial.easy)] {
                let mut world = World::new(seed + 1000);
                let a = world.place_with(first, false, trial.link);
                let b = world.place_with(second, false, trial.link);
                let meeting = Meeting::of(&mut world, (a, Seat::V4), (b, Seat::V4));
                for _ in 1..trial.neighbours {
                    let core = world.place(Access::Public, false);
                    let id = world.member("neighbour", core, Seat::V4, &[meeting.introducer]);
                    world.boot(id);
                }
                rate.tries += 1;
                let beside = [a, b].map(|place| {
                    let (segment, link) = (place.segment, LinkSpec::LAN);
                    world.net.add_host("other", segment, Families::V4, link)
                });
                if trial.others > 0 {
                    let every = SECOND / trial.others;
                    world.noise = beside
                        .map(|host| Noise::new(host, every, world.net.now()))
                        .into();
                }
                if let Some(took) = start(&mut world, &meeting, trial) {
                    rate.took.push(took);
                    world.noise.clear();
                    if !trial.lossy {
                        stays(&mut world, &meeting);
                    }
                } else {
                    println!("seed {seed}: {}", world.describe());
                }
                rate.probes
                    .extend([meeting.a, meeting.b].map(|id| counter(&world, id, "search-probes")));
            }
        }
        rate.took.sort_unstable();
        rate.probes.sort_unstable();
        println!("{rate}");
        rate
    }

    fn met(&self) -> usize {
        self.took.len()
    }

    fn at(&self, per_cent: usize) -> Duration {
        let index = (self.took.len() * per_cent / 100).min(self.took.len() - 1);
        self.took[index]
    }
}

impl std::fmt::Display for Rate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = |per_cent: usize| {
            let index = (self.took.len() * per_cent / 100).min(self.took.len().saturating_sub(1));
            self.took.get(index).map_or(0, Duration::as_millis)
        };
        write!(
            f,
            "{}: {} of {} met, median {} ms, p95 {} ms, worst {} ms, most search probes of a node {}",
            self.name,
            self.met(),
            self.tries,
            ms(50),
            ms(95),
            ms(100),
            self.probes.last().copied().unwrap_or_default()
        )
    }
}

fn start(world: &mut World, meeting: &Meeting, trial: &Trial) -> Option<Duration> {
    world.boot(meeting.introducer);
    world.boot(meeting.a);
    world.run(trial.skew);
    world.boot(meeting.b);
    world.meet(meeting.a, meeting.b, trial.most)
}

/// A path once found carries data both ways, from the port that found it.
fn stays(world: &mut World, meeting: &Meeting) {
    world.seconds(5);
    let since = world.net.now();
    let flow = world.flow(meeting.a, meeting.b, Duration::from_millis(100));
    world.seconds(40);
    world.stop(flow);
    let (sent, answered) = world.flows[flow.0].tally(since);
    assert!(
        answered + 2 >= sent,
        "{answered} of {sent}\n{}",
        world.describe()
    );
}

fn counter(world: &World, id: NodeId, name: &str) -> u64 {
    let node = &world.nodes[id.0];
    let snapshot = node
        .overlay
        .as_ref()
        .map(|overlay| overlay.snapshot(world.clock(id)));
    snapshot
        .and_then(|snapshot| snapshot.counters.get(name).copied())
        .unwrap_or_default()
}
