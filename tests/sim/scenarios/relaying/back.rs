//! Relays and ends that were away and come back.

use super::*;

#[test]
fn a_pair_whose_only_relay_restarts_is_healed_when_it_is_back() {
    let mut world = World::new(530);
    let places = [0, 1].map(|_| world.place(Access::Nat(HARD), false));
    let mut trio = Trio::of(world, (places[0], Seat::V4), (places[1], Seat::V4), 1);
    trio.start_and_meet();
    let flow = trio.flow(Duration::from_millis(50));
    trio.world.seconds(20);
    for pause in [2, 40, 400] {
        let relay = trio.relays[0];
        trio.world.power_off(relay);
        trio.world.seconds(pause);
        let since = trio.world.net.now();
        trio.world.boot(relay);
        trio.world.seconds(60);
        let gap = trio.world.flows[flow.0].longest_gap(since);
        let context = || format!("after {pause} s: {gap:?}\n{}", trio.world.describe());
        assert!(gap < 10 * SECOND, "{}", context());
    }
}

#[test]
fn an_end_that_restarts_or_moves_is_relayed_again_at_once() {
    let mut world = World::new(540);
    let places = [0, 1, 2].map(|_| world.place(Access::Nat(HARD), false));
    let mut trio = Trio::of(world, (places[0], Seat::V4), (places[1], Seat::V4), 1);
    trio.start_and_meet();
    let flow = trio.flow(Duration::from_millis(50));
    trio.world.seconds(20);
    let a = trio.a;
    let faults: [&dyn Fn(&mut World); 3] = [
        &|world| {
            world.power_off(a);
            world.boot(a);
        },
        &|world| world.move_to(a, places[2]),
        &|world| {
            world
                .net
                .forget(places[2].sites[0].expect("a router").router)
        },
    ];
    for (index, fault) in faults.into_iter().enumerate() {
        let since = trio.world.net.now();
        fault(&mut trio.world);
        trio.world.seconds(60);
        let gap = trio.world.flows[flow.0].longest_gap(since);
        let context = || format!("fault {index}: {gap:?}\n{}", trio.world.describe());
        assert!(gap < 4 * SECOND, "{}", context());
    }
}

#[test]
fn a_peer_that_comes_back_after_a_quarter_of_an_hour_is_relayed_at_once() {
    for (seed, restarts) in [(610, true), (611, false)] {
        let mut world = World::new(seed);
        let places = [0, 1].map(|_| world.place(Access::Nat(HARD), false));
        let uplink = places[1].sites[0].expect("a home has a router").uplink;
        let mut trio = Trio::of(world, (places[0], Seat::V4), (places[1], Seat::V4), 1);
        trio.start_and_meet();
        trio.world.seconds(5);
        if restarts {
            trio.world.power_off(trio.b);
        } else {
            trio.world.net.cut(uplink);
        }
        let flow = trio.flow(SECOND);
        trio.world.seconds(900);
        trio.world.stop(flow);
        if restarts {
            trio.world.boot(trio.b);
        } else {
            trio.world.net.mend(uplink);
            // Nobody tells it: it finds out by itself.
            let (a, b) = (trio.relays[0], trio.b);
            trio.world.meet(a, b, 120 * SECOND).expect("they meet");
        }
        let took = trio.world.meet(trio.a, trio.b, 60 * SECOND);
        assert!(
            took.is_some_and(|took| took < 5 * SECOND),
            "restarts {restarts}: {took:?}\n{}",
            trio.world.describe()
        );
    }
}

#[test]
fn a_peer_that_comes_back_is_relayed_at_once_where_the_relay_holds_a_dead_mapping_of_the_other() {
    for (seed, away) in [(620, 40), (621, 70), (622, 140), (623, 190)] {
        let mut world = World::new(seed);
        let places = [0, 1].map(|_| world.place(Access::Nat(HARD), false));
        let router = places[0].sites[0].expect("a home has a router").router;
        let mut trio = Trio::of(world, (places[0], Seat::V4), (places[1], Seat::V4), 1);
        trio.start_and_meet();
        let (end, relay) = (trio.a, trio.relays[0]);
        trio.world.flow(end, relay, SECOND);
        trio.world.seconds(5);
        trio.world.power_off(trio.b);
        let flow = trio.flow(SECOND);
        trio.world.seconds(away);
        trio.world.stop(flow);
        trio.world.net.forget(router);
        trio.world.seconds(5);
        trio.world.boot(trio.b);
        let took = trio.world.meet(trio.a, trio.b, 60 * SECOND);
        assert!(
            took.is_some_and(|took| took < SECOND),
            "away for {away} s: {took:?}\n{}",
            trio.world.describe()
        );
    }
}
