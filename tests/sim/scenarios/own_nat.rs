//! What a node finds out about the translator before it with spare sockets.

use std::time::Duration;

use mesh_types::command::Command;
use overlay::{Hairpin, NetcheckSnapshot, Reply};
use sim_net::{Allocator, Filtering, NatSpec, Timeouts};

use crate::scenarios::trial::counter;
use crate::world::{Access, NodeId, Place, Seat, World};

const STRICT: NatSpec = NatSpec::cone(Filtering::AddressAndPortDependent);
const SECOND: Duration = Duration::from_secs(1);

/// A translator that forgets silent flows after so long.
fn forgetting(stream: Duration) -> NatSpec {
    NatSpec {
        timeouts: Timeouts {
            unreplied: stream.min(Duration::from_secs(30)),
            stream,
            refresh_inbound: false,
        },
        ..STRICT
    }
}

/// A node at home, and a public one, connected.
fn connected(seed: u64, home: NatSpec) -> (World, Place, [NodeId; 2]) {
    let mut world = World::new(seed);
    let core = world.place(Access::Public, false);
    let home = world.place(Access::Nat(home), false);
    let server = world.member("server", core, Seat::V4, &[]);
    let laptop = world.member("laptop", home, Seat::V4, &[server]);
    world.boot_all();
    world.meet(server, laptop, 10 * SECOND).expect("they meet");
    (world, home, [server, laptop])
}

fn netcheck(world: &mut World, id: NodeId) -> NetcheckSnapshot {
    let clock = world.clock(id);
    let command = world.nodes[id.0].command(Command::Netcheck, clock);
    world.pump(id);
    world.seconds(4);
    match world.nodes[id.0].replies.remove(&command) {
        Some(Ok(Reply::Netcheck(netcheck))) => *netcheck,
        other => panic!("no netcheck: {other:?}"),
    }
}

#[test]
fn hairpin_is_told_from_what_comes_back() {
    for filtering in [
        Filtering::EndpointIndependent,
        Filtering::AddressDependent,
        Filtering::AddressAndPortDependent,
    ] {
        for (seed, hairpin) in [(1, false), (2, true)] {
            let nat = NatSpec {
                hairpin,
                ..NatSpec::cone(filtering)
            };
            let (mut world, _, [server, laptop]) = connected(seed, nat);
            world.seconds(3);
            let found = netcheck(&mut world, laptop).hairpin;
            match found {
                Hairpin::Yes(_) => assert!(hairpin, "{filtering:?}"),
                Hairpin::No(_) => assert!(!hairpin, "{filtering:?}"),
                Hairpin::Unknown(why) => panic!("{filtering:?} {hairpin}: {why}"),
            }
            let open = netcheck(&mut world, server).hairpin;
            assert!(
                matches!(open, Hairpin::Yes(_)),
                "nothing is before it: {open:?}"
            );
        }
    }
}

#[test]
fn where_hairpin_cannot_be_told_it_is_said_why() {
    let hard = NatSpec::symmetric(Allocator::Random);
    let (mut world, _, [_, laptop]) = connected(3, hard);
    world.seconds(3);
    let found = netcheck(&mut world, laptop).hairpin;
    assert!(
        matches!(found, Hairpin::Unknown(why) if why.contains("another port")),
        "{found:?}"
    );
    let mut world = World::new(4);
    let home = world.place(Access::Nat(STRICT), false);
    let alone = world.member("alone", home, Seat::V4, &[]);
    world.boot_all();
    let checked = netcheck(&mut world, alone);
    let why = |field| {
        checked
            .reasons
            .iter()
            .any(|(f, why)| *f == field && !why.is_empty())
    };
    assert!(matches!(checked.hairpin, Hairpin::Unknown(_)));
    for field in [
        "mapping",
        "filtering",
        "allocation",
        "hairpin",
        "mapping_lifetime",
    ] {
        assert!(why(field), "{field}: {:?}", checked.reasons);
    }
}

#[test]
fn a_short_memory_is_measured_and_keepalives_fit_it() {
    for (seed, life) in [(5, 6), (6, 10), (7, 20), (8, 28)] {
        let life = Duration::from_secs(life);
        let (mut world, home, [_, laptop]) = connected(seed, forgetting(life));
        world.seconds(150);
        let checked = netcheck(&mut world, laptop);
        let (alive, dead) = (checked.lifetime.at_least, checked.lifetime.below);
        assert!(
            alive <= Some(life) && Some(life) <= dead,
            "{life:?}: {alive:?} {dead:?}"
        );
        let gap = dead.zip(alive).map(|(dead, alive)| dead - alive);
        assert!(
            gap.is_some_and(|gap| gap <= life / 2),
            "{life:?}: {alive:?} {dead:?}"
        );
        assert!(
            checked.keepalive <= life * 2 / 3,
            "{life:?}: {:?}",
            checked.keepalive
        );
        // From now on the main port's mapping is never lost.
        let before = counter(&world, laptop, "paths-lost");
        let router = home.sites[0].expect("a home has a router").router;
        for _ in 0..120 {
            world.seconds(1);
            assert!(world.net.mappings(router) > 0, "{life:?}");
        }
        assert_eq!(counter(&world, laptop, "paths-lost"), before);
    }
}

#[test]
fn a_long_memory_is_measured_without_haste_and_changes_no_keepalive() {
    for (seed, life) in [(9, 60), (10, 120), (11, 200), (12, 3600)] {
        let life = Duration::from_secs(life);
        let (mut world, _, [_, laptop]) = connected(seed, forgetting(life));
        world.seconds(45);
        let early = netcheck(&mut world, laptop).lifetime;
        assert_eq!(early.at_least, Some(30 * SECOND), "after the first test");
        world.seconds(2400);
        let checked = netcheck(&mut world, laptop);
        let (alive, dead) = (checked.lifetime.at_least, checked.lifetime.below);
        assert!(
            alive <= Some(life) && dead.is_none_or(|dead| life <= dead),
            "{alive:?} {dead:?}"
        );
        assert!(
            alive >= Some(life.min(Duration::from_secs(300)) * 3 / 4),
            "{life:?}: {alive:?}"
        );
        assert_eq!(
            dead.is_some(),
            life < Duration::from_secs(300),
            "{life:?}: {dead:?}"
        );
        assert_eq!(checked.keepalive, 25 * SECOND);
    }
}

#[test]
fn a_node_that_moves_learns_the_other_translator() {
    let patient = forgetting(Duration::from_secs(200));
    let (mut world, _, [_, laptop]) = connected(
        13,
        NatSpec {
            hairpin: true,
            ..patient
        },
    );
    world.seconds(45);
    let checked = netcheck(&mut world, laptop);
    assert!(matches!(checked.hairpin, Hairpin::Yes(_)));
    assert_eq!(checked.lifetime.at_least, Some(30 * SECOND));
    let other = world.place(Access::Nat(forgetting(Duration::from_secs(12))), false);
    world.move_to(laptop, other);
    world.seconds(180);
    let checked = netcheck(&mut world, laptop);
    assert!(
        matches!(checked.hairpin, Hairpin::No(_)),
        "{:?}",
        checked.hairpin
    );
    assert!(
        checked.lifetime.below <= Some(Duration::from_secs(15)),
        "{:?}",
        checked.lifetime
    );
    assert!(checked.keepalive <= Duration::from_secs(8));
}

#[test]
fn verdicts_follow_a_translator_that_changes_under_them() {
    let (mut world, home, [_, laptop]) = connected(14, forgetting(Duration::from_secs(12)));
    world.seconds(180);
    assert!(netcheck(&mut world, laptop).keepalive <= Duration::from_secs(8));
    let router = home.sites[0].expect("a home has a router").router;
    let kinder = NatSpec {
        hairpin: true,
        timeouts: Timeouts::LINUX,
        ..NatSpec::cone(Filtering::AddressDependent)
    };
    world.net.set_nat(router, kinder);
    world.seconds(1500);
    // As the node sees it by itself, before netcheck asks.
    let snapshot = world.snapshot(laptop);
    assert_eq!(
        snapshot.node.nat.filtering,
        mesh_types::Filtering::AddressDependent
    );
    let checked = netcheck(&mut world, laptop);
    assert!(
        matches!(checked.hairpin, Hairpin::Yes(_)),
        "{:?}",
        checked.hairpin
    );
    assert_eq!(checked.keepalive, 25 * SECOND, "{:?}", checked.lifetime);
    world.net.set_nat(router, STRICT);
    world.seconds(700);
    let snapshot = world.snapshot(laptop);
    assert_eq!(
        snapshot.node.nat.filtering,
        mesh_types::Filtering::AddressAndPortDependent
    );
    assert!(matches!(
        netcheck(&mut world, laptop).hairpin,
        Hairpin::No(_)
    ));
}
