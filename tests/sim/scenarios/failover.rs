//! How long traffic stands still when a path in use breaks, in virtual time: medians over seeds.

use std::time::Duration;

use mesh_types::report::Backend;
use overlay::{PathKind, PeerSnapshot, PeerState};
use sim_net::{Allocator, Families, Filtering, NatSpec};

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

/// The median silence over seeds is at most that long, whatever breaks; the way back loses nothing.
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
        assert!(median <= most && worst <= 2 * most, "{fault:?}: {gaps:?}");
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
