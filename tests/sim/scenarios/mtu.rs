//! Links that carry less than most, and do not say so.

use std::net::IpAddr;
use std::time::Duration;

use mesh_types::plan::RouteKind;
use sim_net::{Filtering, NatSpec};

use super::trial::counter;
use crate::world::{Access, FlowId, NodeId, Seat, World};

const SECOND: Duration = Duration::from_secs(1);
const STRICT: NatSpec = NatSpec::cone(Filtering::AddressAndPortDependent);

/// Two nodes behind translators that have met, with packets between them.
fn pair(world: &mut World, uplink: Option<u16>) -> [NodeId; 2] {
    let core = world.place(Access::Public, true);
    let (east, west) = (
        world.place(Access::Nat(STRICT), false),
        world.place(Access::Nat(STRICT), false),
    );
    let introducer = world.member("introducer", core, Seat::V4, &[]);
    let a = world.member("east", east, Seat::V4, &[introducer]);
    let b = world.member("west", west, Seat::V4, &[introducer]);
    if let Some(mtu) = uplink {
        narrow(world, a, mtu);
    }
    world.boot_all();
    world
        .meet(a, b, 10 * SECOND)
        .unwrap_or_else(|| panic!("they never met\n{}", world.describe()));
    world.flow(a, b, Duration::from_millis(20));
    [a, b]
}

fn narrow(world: &mut World, node: NodeId, mtu: u16) {
    for link in world.links(node) {
        world.net.set_link_mtu(link, mtu);
    }
}

/// The MTU of the route to a peer's pod, where it has one of its own.
fn route_mtu(world: &World, from: NodeId, to: NodeId) -> Option<u16> {
    let pod: IpAddr = world.nodes[to.0].pod();
    let overlay = world.nodes[from.0].overlay.as_ref().expect("it is on");
    let mut routes = overlay.host_plan().routes.iter();
    routes.find_map(|route| match route.kind {
        RouteKind::Unicast { mtu, .. } if route.prefix.contains(&pod) => Some(mtu),
        RouteKind::Unicast { .. } | RouteKind::Blackhole | RouteKind::Throw => None,
    })?
}

#[test]
fn packets_after_a_rest_are_not_taken_for_the_end_of_a_sleep() {
    let mut world = World::new(26);
    let ids = pair(&mut world, None);
    world.seconds(20);
    let moved = |world: &World| ids.map(|id| counter(world, id, "moved"));
    let before = moved(&world);
    let first = FlowId(world.flows.len() - 1);
    world.stop(first);
    world.seconds(60);
    world.flow(ids[0], ids[1], Duration::from_millis(20));
    world.seconds(60);
    assert_eq!(moved(&world), before, "{}", world.describe());
}

#[test]
fn the_largest_packet_that_a_silent_link_carries_is_found_within_three_seconds() {
    // Outside by IPv4, 60 bytes longer than inside; inside by sixteen.
    for (link, found) in [
        (1296, 1232),
        (1300, 1232),
        (1400, 1328),
        (1480, 1420),
        (1500, 1420),
    ] {
        let mut world = World::new(u64::from(link));
        let [a, b] = pair(&mut world, Some(link));
        world.seconds(3);
        let expected = Some(found).filter(|mtu| *mtu < 1420);
        assert_eq!(route_mtu(&world, a, b), expected, "out of a link of {link}");
        assert_eq!(route_mtu(&world, b, a), expected, "into a link of {link}");
    }
}

#[test]
fn a_link_that_shrinks_under_way_is_noticed_and_one_that_grows_is_used_later() {
    let mut world = World::new(5);
    let [a, b] = pair(&mut world, None);
    world.seconds(20);
    assert_eq!(route_mtu(&world, a, b), None);
    narrow(&mut world, a, 1400);
    world.seconds(9);
    assert_eq!(route_mtu(&world, a, b), Some(1328), "{}", world.describe());
    assert_eq!(route_mtu(&world, b, a), Some(1328));
    narrow(&mut world, a, 1500);
    world.seconds(90);
    assert_eq!(route_mtu(&world, a, b), None);
}

#[test]
fn a_lossy_path_of_full_size_is_not_taken_for_a_narrow_one_for_long() {
    let mut narrow_seconds = 0;
    for seed in 0..5 {
        let mut world = World::new(seed);
        let [a, b] = pair(&mut world, None);
        for link in world.links(a) {
            let spec = world.net.link(link);
            world.net.set_link(
                link,
                sim_net::LinkSpec {
                    loss: 50_000,
                    ..spec
                },
            );
        }
        for _ in 0..60 {
            world.seconds(1);
            narrow_seconds += u32::from(route_mtu(&world, a, b).is_some());
        }
    }
    assert!(narrow_seconds < 30, "{narrow_seconds} of 300 s");
}
