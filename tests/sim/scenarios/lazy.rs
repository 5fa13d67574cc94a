//! Pairs that are not used send each other nothing, and their next packet arrives.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use mesh_types::report::Backend;
use overlay::PeerState;
use sim_net::{Allocator, Direction, Families, Filtering, NatSpec};

use crate::world::{Access, NodeId, Seat, World};

const SECOND: Duration = Duration::from_secs(1);
const STRICT: NatSpec = NatSpec::cone(Filtering::AddressAndPortDependent);
const HARD: NatSpec = NatSpec::symmetric(Allocator::Random);

#[test]
fn an_idle_pair_sends_nothing_and_its_next_packet_arrives_within_a_second() {
    for backend in [Backend::Userspace, Backend::Kernel] {
        for families in [Families::V4, Families::Both] {
            for seed in 0..5 {
                sleep_and_wake(seed, STRICT, families, backend);
            }
        }
    }
}

#[test]
fn so_does_a_pair_that_is_relayed() {
    for backend in [Backend::Userspace, Backend::Kernel] {
        for seed in 0..5 {
            sleep_and_wake(seed, HARD, Families::V4, backend);
        }
    }
}

#[test]
fn a_pair_that_says_little_is_never_cut_off() {
    let (mut world, [a, b]) = pair(40, STRICT, Families::V4, Backend::Kernel);
    let flow = world.flow(a, b, 50 * SECOND);
    let since = world.net.now();
    world.seconds(3_600);
    let now = world.net.now();
    assert_eq!(
        world.flows[flow.0].lost(since, now),
        0,
        "{}",
        world.describe()
    );
}

#[test]
fn where_handshakes_are_told_no_more_sleepers_are_woken() {
    let (mut world, [a, b]) = pair(50, STRICT, Families::V4, Backend::Kernel);
    world.seconds(840);
    assert_eq!(state(&world, a, b), PeerState::Idle, "{}", world.describe());
    let now = world.clock(a);
    let overlay = world.nodes[a.0].overlay.as_mut().expect("it is on");
    overlay.let_idle_peers_sleep(false, now);
    world.pump(a);
    world.seconds(10);
    assert_ne!(state(&world, a, b), PeerState::Idle, "{}", world.describe());
}

fn sleep_and_wake(seed: u64, nat: NatSpec, families: Families, backend: Backend) {
    let (mut world, [a, b]) = pair(seed, nat, families, backend);
    world.seconds(840);
    for id in [a, b] {
        for link in world.links(id) {
            world.net.tap(link);
        }
    }
    let since = world.net.now();
    world.seconds(1_800);
    let context = |world: &World| {
        format!(
            "{nat:?} {families:?} {backend:?} {seed}\n{}",
            world.describe()
        )
    };
    assert_eq!(between(&world, a, b, since), 0, "{}", context(&world));
    assert_eq!(state(&world, a, b), PeerState::Idle, "{}", context(&world));

    let since = world.net.now();
    let flow = world.flow(a, b, 50 * Duration::from_millis(1));
    world.seconds(20);
    let flow = &world.flows[flow.0];
    let took = flow.reached.get(&0).map(|at| *at - since);
    assert!(
        took.is_some_and(|took| took < SECOND),
        "{took:?} {}",
        context(&world)
    );
    assert_eq!(flow.lost(since, world.net.now()), 0, "{}", context(&world));
}

/// Two nodes that are connected, and their relay; they have just met.
fn pair(seed: u64, nat: NatSpec, families: Families, backend: Backend) -> (World, [NodeId; 2]) {
    let mut world = World::new(1_100 + seed);
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
    let ends = ["east", "west"].map(|name| {
        let place = world.place(Access::Nat(nat), ipv6);
        world.member(name, place, seat(backend), &[relay])
    });
    world.boot_all();
    world
        .meet(ends[0], ends[1], 20 * SECOND)
        .expect("they meet");
    world.seconds(10);
    (world, ends)
}

/// Datagrams that either sent to the other since a moment, directly or to a relay's port for it. What goes to the
/// relay itself is for the relay, and what goes to an own address tests the own translator.
fn between(world: &World, a: NodeId, b: NodeId, since: Instant) -> usize {
    let relays = world.nodes.iter().filter(|node| node.config.may_relay);
    let mains: Vec<(Vec<IpAddr>, u16)> = relays
        .map(|node| {
            let addresses = world.net.addresses(node.host).into_iter();
            (
                addresses.map(|address| address.ip).collect(),
                node.config.listen_port,
            )
        })
        .collect();
    let others = |destination: &std::net::SocketAddr| {
        let ours = |(ips, port): &(Vec<IpAddr>, u16)| {
            ips.contains(&destination.ip())
                && (destination.port() == *port || destination.port() == *port + 20_000)
        };
        !mains.iter().any(ours)
    };
    [a, b]
        .into_iter()
        .flat_map(|id| world.links(id).into_iter().map(move |link| (id, link)))
        .flat_map(|(id, link)| {
            let own = own_addresses(world, id);
            let tapped = world.net.tapped(link).iter();
            tapped.filter(move |packet| !own.contains(&packet.destination.ip()))
        })
        .filter(|packet| packet.at >= since && packet.direction == Direction::Out)
        .filter(|packet| others(&packet.destination))
        .count()
}

/// Under which it is known, inside and outside.
fn own_addresses(world: &World, id: NodeId) -> Vec<IpAddr> {
    let overlay = world.nodes[id.0].overlay.as_ref().expect("it is on");
    let endpoints = overlay.snapshot(world.clock(id)).node.endpoints;
    endpoints.iter().map(|own| own.address.ip()).collect()
}

fn state(world: &World, id: NodeId, peer: NodeId) -> PeerState {
    let overlay = world.nodes[id.0].overlay.as_ref().expect("it is on");
    let shown = overlay.snapshot(world.clock(id)).peers;
    let named = |one: &&overlay::PeerSnapshot| one.name == world.nodes[peer.0].name;
    shown.iter().find(named).expect("it is known").state
}
