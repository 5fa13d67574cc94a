//! Something breaks under a pair that is connected.

use std::time::Duration;

use mesh_types::report::Backend;
use sim_net::{Families, Filtering, NatSpec};

use crate::world::{Access, FlowId, NodeId, Place, Seat, World};

const SECOND: Duration = Duration::from_secs(1);
const STRICT: NatSpec = NatSpec::cone(Filtering::AddressAndPortDependent);
const EASY: NatSpec = NatSpec::cone(Filtering::EndpointIndependent);

#[test]
fn a_translator_that_forgets_is_healed_within_3_seconds() {
    for spec in [STRICT, EASY] {
        let mut pair = Pair::connected(1, spec, Seat::V4);
        let router = pair.east.sites[0].expect("a router").router;
        let gap = pair.gap_of(|world, _| world.net.forget(router));
        assert!(gap < 3 * SECOND, "{gap:?}");
    }
}

#[test]
fn a_translator_that_reboots_with_other_ports_is_healed_within_3_seconds() {
    let spec = NatSpec {
        allocator: sim_net::Allocator::Random,
        ..STRICT
    };
    let mut pair = Pair::connected(2, spec, Seat::V4);
    let router = pair.east.sites[0].expect("a router").router;
    let gap = pair.gap_of(|world, _| world.net.reboot(router));
    assert!(gap < 3 * SECOND, "{gap:?}\n{}", pair.world.describe());
}

#[test]
fn another_external_address_is_healed_within_3_seconds() {
    let mut pair = Pair::connected(3, STRICT, Seat::V4);
    let router = pair.east.sites[0].expect("a router").router;
    let gap = pair.gap_of(|world, _| world.net.readdress_router(router));
    assert!(gap < 3 * SECOND, "{gap:?}\n{}", pair.world.describe());
}

#[test]
fn another_external_address_is_healed_where_all_other_paths_are_of_ipv6() {
    let both = Seat {
        families: Families::Both,
        ..Seat::V4
    };
    let mut pair = Pair::seated(3, STRICT, [both, both, Seat::V4]);
    let router = pair.east.sites[0].expect("a router").router;
    let gap = pair.gap_of(|world, _| world.net.readdress_router(router));
    assert!(gap < 3 * SECOND, "{gap:?}\n{}", pair.world.describe());
}

#[test]
fn a_host_that_moves_to_another_network_is_healed_within_3_seconds() {
    let mut pair = Pair::connected(4, STRICT, Seat::V4);
    let elsewhere = pair.world.place(Access::Nat(STRICT), false);
    let gap = pair.gap_of(|world, east| world.move_to(east, elsewhere));
    assert!(gap < 3 * SECOND, "{gap:?}\n{}", pair.world.describe());
}

#[test]
fn both_hosts_that_move_at_once_are_healed_within_6_seconds_by_their_neighbour() {
    let mut pair = Pair::connected(5, STRICT, Seat::V4);
    let places = [0, 1].map(|_| pair.world.place(Access::Nat(STRICT), false));
    let west = pair.b;
    let gap = pair.gap_of(|world, east| {
        world.move_to(east, places[0]);
        world.move_to(west, places[1]);
    });
    assert!(gap < 6 * SECOND, "{gap:?}\n{}", pair.world.describe());
}

#[test]
fn the_introducers_death_loses_no_packet_of_the_pair() {
    let mut pair = Pair::connected(6, STRICT, Seat::V4);
    let since = pair.world.net.now();
    let introducer = pair.introducer;
    pair.world.power_off(introducer);
    pair.world.seconds(300);
    let now = pair.world.net.now();
    assert_eq!(pair.flow().lost(since, now), 0);
}

#[test]
fn a_node_restarts_from_disk_with_the_introducer_gone() {
    for spec in [STRICT, EASY] {
        let mut pair = Pair::connected(7, spec, Seat::V4);
        let (introducer, east) = (pair.introducer, pair.a);
        pair.world.seconds(60);
        pair.world.power_off(introducer);
        pair.world.seconds(30);
        let gap = pair.gap_of(|world, _| {
            world.power_off(east);
            world.boot(east);
        });
        assert!(gap < 3 * SECOND, "{gap:?}\n{}", pair.world.describe());
    }
}

#[test]
fn an_agent_of_the_kernel_backend_that_is_killed_and_started_again_loses_no_packet() {
    let seat = Seat {
        backend: Backend::Kernel,
        ..Seat::V4
    };
    let mut pair = Pair::connected(8, STRICT, seat);
    let since = pair.world.net.now();
    let east = pair.a;
    pair.world.kill(east);
    pair.world.seconds(30);
    pair.world.boot(east);
    pair.world.seconds(60);
    let now = pair.world.net.now();
    assert_eq!(pair.flow().lost(since, now), 0);
}

#[test]
fn a_laptop_that_slept_an_hour_is_healed_at_once() {
    let mut pair = Pair::connected(9, STRICT, Seat::V4);
    let east = pair.a;
    pair.world.suspend(east);
    pair.world.seconds(3_600);
    pair.world.resume(east);
    let gap = pair.gap_of(|_, _| {});
    assert!(gap < 3 * SECOND, "{gap:?}\n{}", pair.world.describe());
}

#[test]
fn a_link_cut_for_a_minute_is_healed_within_3_seconds_of_its_mending() {
    let mut pair = Pair::connected(10, STRICT, Seat::V4);
    let uplink = pair.east.sites[0].expect("a router").uplink;
    pair.world.net.cut(uplink);
    pair.world.seconds(60);
    let gap = pair.gap_of(|world, _| world.net.mend(uplink));
    assert!(gap < 3 * SECOND, "{gap:?}\n{}", pair.world.describe());
}

#[test]
fn a_silent_pair_still_has_its_path_after_an_hour() {
    let mut pair = Pair::connected(11, STRICT, Seat::V4);
    let flow = pair.flow;
    pair.world.stop(flow);
    pair.world.seconds(3_600);
    let took = pair.world.meet(pair.a, pair.b, 10 * SECOND);
    assert!(took.is_some_and(|t| t < SECOND), "{took:?}");
}

/// Two connected nodes behind translators, a flow between them, and their introducer.
struct Pair {
    world: World,
    introducer: NodeId,
    a: NodeId,
    b: NodeId,
    east: Place,
    flow: FlowId,
}

impl Pair {
    fn connected(seed: u64, spec: NatSpec, seat: Seat) -> Self {
        Self::seated(seed, spec, [Seat::V4, seat, seat])
    }

    /// Introducer, east and west; their places have IPv6 where they do.
    fn seated(seed: u64, spec: NatSpec, seats: [Seat; 3]) -> Self {
        let mut world = World::new(seed);
        let [at_core, at_east, at_west] = seats;
        let ipv6 = |seat: &Seat| seat.families == Families::Both;
        let core = world.place(Access::Public, ipv6(&at_core));
        let introducer = world.member("introducer", core, at_core, &[]);
        let east = world.place(Access::Nat(spec), ipv6(&at_east));
        let west = world.place(Access::Nat(spec), ipv6(&at_west));
        let a = world.member("east", east, at_east, &[introducer]);
        let b = world.member("west", west, at_west, &[introducer]);
        world.boot_all();
        let flow = world.flow(a, b, Duration::from_millis(50));
        let start = world.net.now();
        let met = world.wait(30 * SECOND, |world| world.answered_since(flow, start));
        assert!(met.is_some(), "they never met\n{}", world.describe());
        world.seconds(30);
        Self {
            world,
            introducer,
            a,
            b,
            east,
            flow,
        }
    }

    fn flow(&self) -> &crate::world::Flow {
        &self.world.flows[self.flow.0]
    }

    /// The longest silence in the minute after a fault.
    fn gap_of(&mut self, fault: impl FnOnce(&mut World, NodeId)) -> Duration {
        let since = self.world.net.now();
        fault(&mut self.world, self.a);
        self.world.seconds(60);
        self.flow().longest_gap(since)
    }
}
