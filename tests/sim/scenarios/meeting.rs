//! Two nodes find each other.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use sim_net::{Allocator, Families, Filtering, LinkSpec, Mapping, NatSpec};

use crate::matrix::{class, soon};
use crate::scenarios::trial::counter;
use crate::world::{Access, NodeId, Place, Seat, World};

const SECOND: Duration = Duration::from_secs(1);
const STRICT: NatSpec = NatSpec::cone(Filtering::AddressAndPortDependent);
const EASY: NatSpec = NatSpec::cone(Filtering::EndpointIndependent);
const DUAL: Seat = Seat {
    families: Families::Both,
    ..Seat::V4
};

#[test]
fn two_regions_behind_port_restricted_translators_meet_within_a_second_of_the_second_start() {
    let mut took = Vec::new();
    for seed in 0..20 {
        let mut world = World::new(seed);
        let east = world.place(Access::Nat(STRICT), false);
        let west = world.place(Access::Nat(STRICT), false);
        let meeting = Meeting::of(&mut world, (east, Seat::V4), (west, Seat::V4));
        took.push(meeting.start_and_meet(&mut world, Duration::from_secs(10)));
    }
    took.sort_unstable();
    assert!(took[10] < SECOND, "the median of 20: {took:?}");
    assert!(took[19] < 6 * SECOND, "the worst of 20: {took:?}");
}

#[test]
fn the_introducers_uplink_carries_none_of_the_pairs_data() {
    let mut world = World::new(2);
    let east = world.place(Access::Nat(STRICT), false);
    let west = world.place(Access::Nat(STRICT), false);
    let meeting = Meeting::of(&mut world, (east, Seat::V4), (west, Seat::V4));
    for link in world.links(meeting.introducer) {
        world.net.tap(link);
    }
    meeting.start_and_meet(&mut world, 10 * SECOND);
    let flow = world.flow(meeting.a, meeting.b, Duration::from_millis(10));
    world.seconds(30);
    let (sent, answered) = world.flows[flow.0].tally(world.start);
    assert!(sent > 2_000 && answered > sent - 20, "{answered}/{sent}");
    for index in 0..world.flows.len() {
        let flow = crate::world::FlowId(index);
        assert_eq!(world.carried_for(meeting.introducer, flow), 0);
    }
}

#[test]
fn every_pair_that_the_matrix_names_connects() {
    let accesses = accesses();
    for (row, (first, a)) in accesses.iter().enumerate() {
        for (second, b) in &accesses[row..] {
            let mut world = World::new(row as u64 + 40);
            let (pa, pb) = (world.place(*a, false), world.place(*b, false));
            if !soon(class(&pa, &Seat::V4), class(&pb, &Seat::V4)) {
                continue;
            }
            let meeting = Meeting::of(&mut world, (pa, Seat::V4), (pb, Seat::V4));
            let took = meeting.start_and_meet(&mut world, 20 * SECOND);
            assert!(took < 10 * SECOND, "{first} with {second}: {took:?}");
        }
    }
}

#[test]
fn two_nodes_behind_one_translator_use_the_lan() {
    for hairpin in [false, true] {
        let mut world = World::new(3);
        let home = world.place(Access::Nat(NatSpec { hairpin, ..STRICT }), false);
        let meeting = Meeting::of(&mut world, (home, Seat::V4), (home, Seat::V4));
        meeting.start_and_meet(&mut world, 10 * SECOND);
        world.seconds(20);
        let inside = home.sites[0].expect("a home has a router").uplink;
        world.net.tap(inside);
        let flow = world.flow(meeting.a, meeting.b, Duration::from_millis(100));
        world.seconds(10);
        let flow = &world.flows[flow.0];
        let marker = flow.marker();
        let outside = world.net.tapped(inside).iter();
        let leaked = outside.filter(|p| p.bytes.windows(marker.len()).any(|w| w == marker));
        assert_eq!(leaked.count(), 0, "hairpin {hairpin}");
        assert!(flow.tally(world.start).1 > 90);
    }
}

#[test]
fn two_homes_behind_one_carrier_meet_by_its_hairpin() {
    let mut world = World::new(4);
    let carrier = NatSpec {
        hairpin: true,
        ..EASY
    };
    let first = world.place(
        Access::Carrier {
            home: STRICT,
            carrier,
        },
        false,
    );
    let second = world.place_inside(first.sites[1].expect("a carrier"), STRICT);
    let meeting = Meeting::of(&mut world, (first, Seat::V4), (second, Seat::V4));
    assert!(meeting.start_and_meet(&mut world, 10 * SECOND) < 6 * SECOND);
}

#[test]
fn a_home_behind_a_carrier_meets_a_home_that_is_not() {
    let mut world = World::new(5);
    let carrier = world.place(
        Access::Carrier {
            home: STRICT,
            carrier: STRICT,
        },
        false,
    );
    let home = world.place(Access::Nat(STRICT), false);
    let meeting = Meeting::of(&mut world, (carrier, Seat::V4), (home, Seat::V4));
    assert!(meeting.start_and_meet(&mut world, 10 * SECOND) < 2 * SECOND);
}

#[test]
fn ipv6_is_preferred_where_both_have_it() {
    let mut world = World::new(6);
    let east = world.place(Access::Nat(STRICT), true);
    let west = world.place(Access::Nat(STRICT), true);
    let meeting = Meeting::of(&mut world, (east, DUAL), (west, DUAL));
    meeting.start_and_meet(&mut world, 10 * SECOND);
    world.seconds(20);
    assert!(remote(&mut world, meeting.a, meeting.b).is_ipv6());
    assert!(remote(&mut world, meeting.b, meeting.a).is_ipv6());
}

#[test]
fn hosts_behind_ipv6_firewalls_meet_where_ipv4_cannot() {
    let mut world = World::new(7);
    let hard = NatSpec::symmetric(Allocator::Random);
    let east = world.place(Access::Nat(hard), true);
    let west = world.place(Access::Nat(hard), true);
    let meeting = Meeting::of(&mut world, (east, DUAL), (west, DUAL));
    assert!(meeting.start_and_meet(&mut world, 10 * SECOND) < 2 * SECOND);
}

#[test]
fn a_host_without_ipv6_takes_part() {
    let mut world = World::new(8);
    let east = world.place(Access::Nat(STRICT), true);
    let west = world.place(Access::Nat(STRICT), true);
    let meeting = Meeting::of(&mut world, (east, DUAL), (west, DUAL));
    let host = world.nodes[meeting.a.0].host;
    world.net.set_ipv6_off(host, true);
    assert!(meeting.start_and_meet(&mut world, 10 * SECOND) < 2 * SECOND);
    assert!(remote(&mut world, meeting.a, meeting.b).is_ipv4());
}

#[test]
fn homes_that_use_the_same_private_range_are_not_confused() {
    let mut world = World::new(9);
    let (east, _, west) = (
        world.place(Access::Nat(STRICT), false),
        world.place(Access::Nat(STRICT), false),
        world.place(Access::Nat(STRICT), false),
    );
    let meeting = Meeting::of(&mut world, (east, Seat::V4), (west, Seat::V4));
    let address = |id: NodeId| world.net.addresses(world.nodes[id.0].host)[0].ip;
    assert_eq!(address(meeting.a), address(meeting.b));
    assert!(meeting.start_and_meet(&mut world, 10 * SECOND) < 2 * SECOND);
}

#[test]
fn nodes_that_list_each_other_in_files_meet_without_any_authority() {
    let mut world = World::new(10);
    let public = world.place(Access::Public, false);
    let home = world.place(Access::Nat(STRICT), false);
    let a = world.node("server", public, Seat::V4);
    let b = world.node("laptop", home, Seat::V4);
    world.list(a, b, false);
    world.list(b, a, true);
    for (index, id) in [a, b].into_iter().enumerate() {
        let own = IpAddr::from([10, 77, 0, u8::try_from(index + 1).expect("small")]);
        world.nodes[id.0].config.addresses = vec![own.into()];
    }
    world.boot_all();
    let took = world.meet(a, b, 10 * SECOND);
    assert!(
        took.is_some_and(|t| t < 2 * SECOND),
        "{took:?}\n{}",
        world.describe()
    );
}

#[test]
fn nodes_that_no_single_neighbour_knows_both_of_meet_over_two() {
    let mut world = World::new(11);
    let public = world.place(Access::Public, false);
    let (east, west) = (
        world.place(Access::Nat(STRICT), false),
        world.place(Access::Nat(STRICT), false),
    );
    let x = world.node("x", public, Seat::V4);
    let y = world.node("y", public, Seat::V4);
    let a = world.node("a", east, Seat::V4);
    let b = world.node("b", west, Seat::V4);
    // Nobody gossips about whom only a file names, so calls are all that a and b have.
    for (one, other) in [(x, y), (a, x), (b, y), (a, b)] {
        world.list(one, other, other != b);
        world.list(other, one, false);
    }
    for (index, id) in [x, y, a, b].into_iter().enumerate() {
        let own = IpAddr::from([10, 77, 0, u8::try_from(index + 1).expect("small")]);
        world.nodes[id.0].config.addresses = vec![own.into()];
    }
    world.boot_all();
    let took = world.meet(a, b, 10 * SECOND);
    assert!(
        took.is_some_and(|t| t < 3 * SECOND),
        "{took:?}\n{}",
        world.describe()
    );
    // Two answered calls take four passages; a circle would take thousands.
    world.seconds(60);
    for id in [x, y] {
        let passed = counter(&world, id, "forwarded");
        assert!((1..40).contains(&passed), "{passed} passed on");
    }
}

#[test]
fn a_lossy_link_delays_a_meeting_and_does_not_prevent_it() {
    for seed in 0..10 {
        let mut world = World::new(seed + 100);
        let link = LinkSpec {
            loss: 100_000,
            jitter: Duration::from_millis(5),
            ..LinkSpec::UPLINK
        };
        let east = world.place_with(Access::Nat(STRICT), false, link);
        let west = world.place_with(Access::Nat(STRICT), false, link);
        let meeting = Meeting::of(&mut world, (east, Seat::V4), (west, Seat::V4));
        meeting.start_and_meet(&mut world, 40 * SECOND);
    }
}

/// A public introducer, and two nodes that know only it.
pub(super) struct Meeting {
    pub(super) introducer: NodeId,
    pub(super) a: NodeId,
    pub(super) b: NodeId,
}

impl Meeting {
    pub(super) fn of(world: &mut World, a: (Place, Seat), b: (Place, Seat)) -> Self {
        let core = world.place(Access::Public, true);
        let introducer = world.member("introducer", core, DUAL, &[]);
        let a = world.member("east", a.0, a.1, &[introducer]);
        let b = world.member("west", b.0, b.1, &[introducer]);
        Self { introducer, a, b }
    }

    /// How long after the start of the second node a ping of the pair is answered.
    fn start_and_meet(&self, world: &mut World, most: Duration) -> Duration {
        world.boot(self.introducer);
        world.boot(self.a);
        world.seconds(5);
        world.boot(self.b);
        world
            .meet(self.a, self.b, most)
            .unwrap_or_else(|| panic!("they never met\n{}", world.describe()))
    }
}

/// Where packets of a pair go: the destination of what leaves the sender's host.
fn remote(world: &mut World, from: NodeId, to: NodeId) -> SocketAddr {
    let flow = world.flow(from, to, Duration::from_millis(50));
    let marker = world.flows[flow.0].marker();
    for link in world.links(from) {
        world.net.tap(link);
    }
    world.seconds(1);
    world.stop(flow);
    let links = world.links(from);
    let mut packets = links.into_iter().flat_map(|link| world.net.tapped(link));
    packets
        .find(|p| p.bytes.windows(marker.len()).any(|w| w == marker))
        .expect("the flow left the host")
        .destination
}

fn accesses() -> Vec<(&'static str, Access)> {
    let cone = |filtering, allocator| {
        Access::Nat(NatSpec {
            allocator,
            ..NatSpec::cone(filtering)
        })
    };
    let block = Allocator::Block(40000, 42047);
    vec![
        ("open", Access::OneToOne { firewall: false }),
        ("firewalled", Access::OneToOne { firewall: true }),
        ("eif", Access::Nat(EASY)),
        (
            "adf",
            cone(Filtering::AddressDependent, Allocator::Preserving),
        ),
        ("apdf", Access::Nat(STRICT)),
        (
            "apdf, ports not preserved",
            cone(Filtering::AddressAndPortDependent, Allocator::Random),
        ),
        (
            "adm",
            Access::Nat(NatSpec {
                mapping: Mapping::AddressDependent,
                ..NatSpec::symmetric(Allocator::Random)
            }),
        ),
        (
            "sequential",
            Access::Nat(NatSpec::symmetric(Allocator::Sequential(1))),
        ),
        ("block", Access::Nat(NatSpec::symmetric(block))),
        ("random", Access::Nat(NatSpec::symmetric(Allocator::Random))),
    ]
}
