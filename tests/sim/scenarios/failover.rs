//! How long traffic stands still when a path in use breaks, in virtual time: medians over seeds.

use std::time::Duration;

use mesh_types::report::Backend;
use overlay::{PathKind, PeerSnapshot, PeerState};
use sim_net::{Allocator, Families, Filtering, HostId, NatSpec};

use crate::world::{Access, FlowId, NodeId, Place, Seat, World};

const SECOND: Duration = Duration::from_secs(1);
const PING: Duration = Duration::from_millis(20);
const STRICT: NatSpec = NatSpec::cone(Filtering::AddressAndPortDependent);
/// It keeps no port numbers: after a restart they are others.
const FORGETFUL: NatSpec = NatSpec {
    allocator: Allocator::Random,
    ..STRICT
};
const SEEDS: u64 = 20;

/// What breaks.
#[derive(Debug, Clone, Copy)]
enum Fault {
    /// Nothing passes between the two sites; others reach both.
    Cut,
    /// One side's translator forgets, and gives other ports.
    Ports,
    /// The same, and it has another address.
    Address,
}

#[test]
fn userspace_without_ipv6_goes_on_within_a_second() {
    failover(Backend::Userspace, Families::V4, SECOND);
}

#[test]
fn userspace_with_both_families_goes_on_within_a_second() {
    failover(Backend::Userspace, Families::Both, SECOND);
}

#[test]
fn the_kernel_without_ipv6_goes_on_within_2_seconds() {
    failover(Backend::Kernel, Families::V4, 2 * SECOND);
}

#[test]
fn the_kernel_with_both_families_goes_on_within_2_seconds() {
    failover(Backend::Kernel, Families::Both, 2 * SECOND);
}

/// No silence is longer than that, whatever breaks; the way back loses nothing.
fn failover(backend: Backend, families: Families, most: Duration) {
    for fault in [Fault::Cut, Fault::Ports, Fault::Address] {
        let gap = |seed| Pair::connected(seed, backend, families).gap_of(fault);
        let mut gaps: Vec<Duration> = (0..SEEDS).map(gap).collect();
        gaps.sort();
        let (median, worst) = (gaps[gaps.len() / 2], gaps[gaps.len() - 1]);
        println!(
            "{} {families:?} {fault:?}: {median:?}, at most {worst:?}",
            backend.kind()
        );
        assert!(worst <= most, "{fault:?}: {gaps:?}");
    }
}

#[test]
fn a_translator_that_restarts_for_the_fortieth_time_is_followed_like_the_first_time() {
    for fault in [Fault::Ports, Fault::Address] {
        let mut pair = Pair::connected(40, Backend::Userspace, Families::V4);
        for time in 0..40 {
            let gap = pair.gap_of(fault);
            let state = pair.shown().state;
            assert!(
                gap <= SECOND && state == PeerState::Direct,
                "{fault:?} {time}: {gap:?}, {state:?}\n{}",
                pair.context()
            );
        }
    }
}

#[test]
fn servers_that_die_and_come_back_at_any_moment_cost_a_direct_pair_nothing() {
    for seed in 0..10 {
        let backend = [Backend::Userspace, Backend::Kernel][usize::from(seed % 2 == 1)];
        let mut servers = Servers::around(seed, FORGETFUL, backend);
        let since = servers.world.net.now();
        servers.die_and_return(Duration::from_secs(240));
        let now = servers.world.net.now();
        let lost = servers.world.flows[servers.flow.0].lost(since, now);
        assert_eq!(lost, 0, "seed {seed}\n{}", servers.world.describe());
    }
}

#[test]
fn a_relay_that_dies_is_replaced_by_the_one_that_stands_by_within_the_figures() {
    for (backend, most) in [(Backend::Userspace, SECOND), (Backend::Kernel, 2 * SECOND)] {
        let gaps = |seed| {
            let hard = NatSpec::symmetric(Allocator::Random);
            Servers::around(seed, hard, backend).die_and_return(Duration::from_secs(150))
        };
        let mut gaps: Vec<Duration> = (0..SEEDS / 2).flat_map(gaps).collect();
        gaps.sort();
        let (median, p95) = (gaps[gaps.len() / 2], gaps[gaps.len() * 19 / 20]);
        println!(
            "{} relay in use dies: {} times, median {median:?}, p95 {p95:?}",
            backend.kind(),
            gaps.len()
        );
        assert!(gaps.len() >= 20 && median <= most, "{gaps:?}");
    }
}

/// A pair with a flow, two relays that introduce it, and two STUN servers.
struct Servers {
    world: World,
    relays: Vec<NodeId>,
    stun: Vec<HostId>,
    flow: FlowId,
}

impl Servers {
    fn around(seed: u64, nat: NatSpec, backend: Backend) -> Self {
        let mut world = World::new(900 + seed);
        let seat = Seat {
            backend,
            ..Seat::V4
        };
        let (stun, names): (Vec<_>, Vec<_>) = ["stun0", "stun1"]
            .map(|name| world.stun_server(name))
            .into_iter()
            .unzip();
        world.relays = true;
        let mut relays = Vec::new();
        for name in ["relay0", "relay1"] {
            let core = world.place(Access::Public, false);
            relays.push(world.member(name, core, Seat::V4, &relays.clone()));
        }
        world.relays = false;
        let ends = ["east", "west"].map(|name| {
            let place = world.place(Access::Nat(nat), false);
            let id = world.member(name, place, seat, &relays);
            world.nodes[id.0].config.stun.clone_from(&names);
            id
        });
        world.boot_all();
        let [a, b] = ends;
        world.meet(a, b, 20 * SECOND).expect("they meet");
        let flow = world.flow(a, b, PING);
        world.seconds(20);
        Self {
            world,
            relays,
            stun,
            flow,
        }
    }

    /// Now this server goes, now that, at random; one relay is left at any time, and has been known for a while. The gaps
    /// that followed where it was the relay in use.
    fn die_and_return(&mut self, time: Duration) -> Vec<Duration> {
        let end = self.world.net.now() + time;
        let mut gaps = Vec::new();
        while self.world.net.now() < end {
            let wait = self.world.random.time(5 * SECOND);
            self.world.run(wait);
            let relay = self.relays[usize::from(self.world.random.chance(500_000))];
            let stun = self.stun[usize::from(self.world.random.chance(500_000))];
            let stun = self.world.net.links(stun)[0];
            let in_use = self.via().as_deref() == Some(&self.world.nodes[relay.0].name);
            let since = self.world.net.now();
            self.world.net.cut(stun);
            self.world.power_off(relay);
            let wait = self.world.random.time(10 * SECOND);
            self.world.run(wait);
            self.world.net.mend(stun);
            self.world.boot(relay);
            self.world.seconds(15);
            if in_use {
                gaps.push(self.world.flows[self.flow.0].longest_gap(since));
            }
        }
        gaps
    }

    /// The relay in use.
    fn via(&self) -> Option<String> {
        let flow = &self.world.flows[self.flow.0];
        let overlay = self.world.nodes[flow.from.0].overlay.as_ref()?;
        let peers = overlay.snapshot(self.world.clock(flow.from)).peers;
        let name = &self.world.nodes[flow.to.0].name;
        peers.into_iter().find(|p| p.name == *name)?.path?.via
    }
}

/// Two nodes that are connected directly, a flow between them, and a member that relays.
struct Pair {
    world: World,
    relay: NodeId,
    a: NodeId,
    b: NodeId,
    places: [Place; 2],
    flow: FlowId,
}

impl Pair {
    fn connected(seed: u64, backend: Backend, families: Families) -> Self {
        let mut world = World::new(700 + seed);
        let ipv6 = families == Families::Both;
        let seat = |backend| Seat {
            families,
            backend,
            ..Seat::V4
        };
        world.relays = true;
        let core = world.place(Access::Public, ipv6);
        let relay = world.member("relay", core, seat(Backend::Kernel), &[]);
        world.relays = false;
        let places = [0, 1].map(|_| world.place(Access::Nat(FORGETFUL), ipv6));
        let a = world.member("east", places[0], seat(backend), &[relay]);
        let b = world.member("west", places[1], seat(backend), &[relay]);
        world.boot_all();
        world.meet(a, b, 20 * SECOND).expect("they meet");
        let flow = world.flow(a, b, PING);
        world.seconds(15);
        let phase = world.random.time(2 * SECOND);
        world.run(phase);
        let pair = Self {
            world,
            relay,
            a,
            b,
            places,
            flow,
        };
        assert_eq!(pair.shown().state, PeerState::Direct, "{}", pair.context());
        pair
    }

    fn gap_of(&mut self, fault: Fault) -> Duration {
        let since = self.world.net.now();
        let sites = self.places.map(|place| place.sites[0].expect("a router"));
        match fault {
            Fault::Cut => self.world.net.sever(sites[0].uplink, sites[1].uplink),
            Fault::Ports => self.world.net.reboot(sites[0].router),
            Fault::Address => self.world.net.readdress_router(sites[0].router),
        }
        self.world.seconds(6);
        let gap = self.world.flows[self.flow.0].longest_gap(since);
        if let Fault::Cut = fault {
            let path = self.shown().path.map(|path| path.kind);
            assert_eq!(path, Some(PathKind::NodeRelay), "{}", self.context());
            let since = self.world.net.now();
            self.world.net.rejoin(sites[0].uplink, sites[1].uplink);
            self.world.seconds(12);
            let now = self.world.net.now();
            assert_eq!(self.shown().state, PeerState::Direct, "{}", self.context());
            let lost = self.world.flows[self.flow.0].lost(since, now);
            assert_eq!(lost, 0, "on the way back\n{}", self.context());
        }
        gap
    }

    fn shown(&self) -> PeerSnapshot {
        let name = &self.world.nodes[self.b.0].name;
        let overlay = self.world.nodes[self.a.0].overlay.as_ref();
        let snapshot = overlay
            .expect("it is on")
            .snapshot(self.world.clock(self.a));
        let mut peers = snapshot.peers.into_iter();
        let shown = peers.find(|shown| shown.name == *name);
        shown.expect("it is known")
    }

    fn context(&self) -> String {
        format!("relay {:?}\n{}", self.relay, self.world.describe())
    }
}
