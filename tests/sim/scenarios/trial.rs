//! How often a pair meets, and how soon, over many seeds.

use std::time::Duration;

use mesh_types::report::Backend;
use sim_net::{Families, LinkSpec};

use super::meeting::Meeting;
use crate::world::{Access, NodeId, Noise, Seat, World};

const SECOND: Duration = Duration::from_secs(1);

/// Two ways to start a pair, at many seeds.
pub(super) struct Trial {
    pub(super) easy: Access,
    pub(super) hard: Access,
    pub(super) seeds: u64,
    pub(super) most: Duration,
    pub(super) link: LinkSpec,
    pub(super) backend: Backend,
    /// Is the path then used for a while, too?
    pub(super) used: bool,
    /// Some pings are lost.
    pub(super) lossy: bool,
    /// Ports a second that a host beside each node takes.
    pub(super) others: u32,
    /// Public nodes that both know in the end.
    pub(super) neighbours: usize,
    /// The second node starts so long after the first.
    pub(super) skew: Duration,
}

impl Trial {
    pub(super) fn new(easy: Access, hard: Access) -> Self {
        Self {
            easy,
            hard,
            seeds: 5,
            most: 60 * SECOND,
            link: LinkSpec::UPLINK,
            backend: Backend::Userspace,
            used: true,
            lossy: false,
            others: 0,
            neighbours: 1,
            skew: 5 * SECOND,
        }
    }
}

/// How often a pair met, and how long it took.
pub(super) struct Rate {
    name: String,
    tries: usize,
    took: Vec<Duration>,
    probes: Vec<u64>,
}

impl Rate {
    pub(super) fn of(name: &str, trial: &Trial) -> Self {
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
                let seat = Seat {
                    backend: trial.backend,
                    ..Seat::V4
                };
                let meeting = Meeting::of(&mut world, (a, seat), (b, seat));
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
                    if trial.used && !trial.lossy {
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

    pub(super) fn met(&self) -> usize {
        self.took.len()
    }

    /// Those that met in that time, in per mille of all.
    pub(super) fn within(&self, time: Duration) -> usize {
        let soon = self.took.iter().take_while(|took| **took <= time).count();
        soon * 1000 / self.tries.max(1)
    }

    pub(super) fn at(&self, per_cent: usize) -> Duration {
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
            "{}: {} of {} met, {} ‰ within 10 s, median {} ms, p95 {} ms, worst {} ms, most search probes of a node {}",
            self.name,
            self.met(),
            self.tries,
            self.within(10 * SECOND),
            ms(50),
            ms(95),
            ms(100),
            self.probes.last().copied().unwrap_or_default()
        )
    }
}

pub(super) fn start(world: &mut World, meeting: &Meeting, trial: &Trial) -> Option<Duration> {
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

pub(super) fn counter(world: &World, id: NodeId, name: &str) -> u64 {
    let node = &world.nodes[id.0];
    let snapshot = node
        .overlay
        .as_ref()
        .map(|overlay| overlay.snapshot(world.clock(id)));
    snapshot
        .and_then(|snapshot| snapshot.counters.get(name).copied())
        .unwrap_or_default()
}
