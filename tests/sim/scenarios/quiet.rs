//! A mesh at rest is quiet, and stays as it is.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use mesh_types::{Candidate, CandidateKind};
use sim_net::{Direction, Filtering, NatSpec};

use crate::world::{Access, NodeId, Seat, World};

const SECOND: Duration = Duration::from_secs(1);
/// To one address that nobody confirmed, as the algorithm of `nat-traversal` says.
const A_SECOND: usize = 20;
const STRICT: NatSpec = NatSpec::cone(Filtering::AddressAndPortDependent);

#[test]
fn an_idle_mesh_of_two_sends_no_more_than_a_packet_a_second_and_node() {
    let mut world = World::new(1);
    let core = world.place(Access::Public, false);
    let home = world.place(Access::Nat(STRICT), false);
    let a = world.member("server", core, Seat::V4, &[]);
    let b = world.member("laptop", home, Seat::V4, &[a]);
    world.boot_all();
    world
        .meet(a, b, Duration::from_secs(10))
        .expect("they meet");
    world.seconds(60);
    let before = [a, b].map(|id| world.sent(id));
    world.seconds(600);
    let after = [a, b].map(|id| world.sent(id));
    for (before, after) in before.iter().zip(after) {
        assert!(after - before <= 600, "{} in 600 s", after - before);
        assert!(after - before >= 600 / 30, "the mapping is kept");
    }
}

#[test]
fn a_converged_mesh_of_eight_changes_no_path_and_stays_quiet() {
    let mut world = World::new(2);
    let ids = eight(&mut world);
    world.boot_all();
    world.seconds(120);
    let since = world.net.now();
    let before: Vec<u64> = ids.iter().map(|id| world.sent(*id)).collect();
    world.seconds(600);
    for (id, before) in ids.iter().zip(before) {
        let moves = world.nodes[id.0].moves.values().flatten();
        let late = moves.filter(|(at, _)| *at > since).count();
        assert_eq!(late, 0, "paths change\n{}", world.describe());
        let sent = world.sent(*id) - before;
        assert!(sent <= 7 * 600, "{sent} packets to 7 peers in 600 s");
    }
}

#[test]
fn a_peer_that_never_answers_is_asked_for_ever_more_rarely_until_it_speaks() {
    let mut world = World::new(6);
    let core = world.place(Access::Public, false);
    let mut ids: Vec<NodeId> = Vec::new();
    for n in 0..6 {
        ids.push(world.member(&format!("n{n}"), core, Seat::V4, &ids));
    }
    let home = world.place(Access::Nat(STRICT), false);
    let late = world.member("late", home, Seat::V4, &ids);
    for id in &ids {
        world.boot(*id);
    }
    let asked = |world: &World| {
        world
            .snapshot(ids[0])
            .counters
            .get("forwards-asked")
            .copied()
    };
    world.seconds(60);
    let first = asked(&world).unwrap_or(0);
    assert!((3..=16).contains(&first), "{first} in the first minute");
    world.seconds(3600);
    let more = asked(&world).unwrap_or(0) - first;
    assert!((2..=8).contains(&more), "{more} in an hour");
    world.boot(late);
    for id in &ids {
        let met = world.meet(*id, late, Duration::from_secs(10));
        assert!(met.is_some(), "{}", world.describe());
    }
}

#[test]
fn a_pair_that_cannot_meet_gives_up_no_hope_and_makes_little_noise() {
    let mut world = World::new(4);
    let core = world.place(Access::Public, false);
    let hard = world.place(
        Access::Nat(NatSpec::symmetric(sim_net::Allocator::Random)),
        false,
    );
    let other = world.place(
        Access::Nat(NatSpec::symmetric(sim_net::Allocator::Random)),
        false,
    );
    let introducer = world.member("introducer", core, Seat::V4, &[]);
    let a = world.member("a", hard, Seat::V4, &[introducer]);
    let b = world.member("b", other, Seat::V4, &[introducer]);
    world.boot_all();
    world.seconds(120);
    let before = [a, b].map(|id| world.sent(id));
    world.seconds(600);
    let sent = [a, b].map(|id| world.sent(id));
    for (before, after) in before.into_iter().zip(sent) {
        let sent = after - before;
        // A tenth of them are tests of the own translator.
        assert!(sent <= 500, "{sent} packets in 600 s\n{}", world.describe());
    }
}

#[test]
fn nothing_is_sent_to_addresses_that_nobody_ever_confirmed_for_long() {
    let mut world = World::new(3);
    let core = world.place(Access::Public, false);
    let bystander = world.net.add_host(
        "bystander",
        core.segment,
        sim_net::Families::V4,
        sim_net::LinkSpec::LAN,
    );
    let link = world.net.links(bystander)[0];
    world.net.tap(link);
    let a = world.member("a", core, Seat::V4, &[]);
    let absent = world.node("absent", core, Seat::V4);
    let victim = world.net.addresses(bystander)[0].ip;
    // A member's record names a stranger's address, and the member itself never answers.
    let papers = [world.membership(absent, 1), world.membership(a, 1)];
    let lie = world.announce(absent, crate::scenarios::trust::aimed_at(victim, 24), 5);
    let mut state = world.nodes[a.0].state();
    state.memberships = papers.to_vec();
    state.announcements = vec![lie];
    world.nodes[a.0].disk.state = Some(state.encode());
    world.boot(a);
    world.seconds(600);
    let heard = world.net.counters(link, Direction::In).packets;
    // 24 addresses: 7 each at once, then 3 each in one slot of 30 s.
    assert!(heard <= 24 * (7 + 3 * 21), "{heard} packets");
}

#[test]
fn a_thousand_forged_candidates_at_one_victim_bring_it_no_more_than_the_budgets_allow() {
    let mut world = World::new(5);
    let core = world.place(Access::Public, false);
    let victim = world.net.add_host(
        "victim",
        core.segment,
        sim_net::Families::V4,
        sim_net::LinkSpec::LAN,
    );
    let link = world.net.links(victim)[0];
    world.net.tap(link);
    let target = world.net.addresses(victim)[0].ip;
    let a = world.member("a", core, Seat::V4, &[]);
    let mut state = world.nodes[a.0].state();
    state.memberships = vec![world.membership(a, 1)];
    for forged in 0..50 {
        let id = world.node(&format!("forged-{forged}"), core, Seat::V4);
        let endpoints = (0..20).map(|n| Candidate {
            kind: CandidateKind::ServerReflexive,
            address: SocketAddr::new(target, 2_000 + forged * 20 + n),
        });
        state.memberships.push(world.membership(id, 1));
        state
            .announcements
            .push(world.announce(id, endpoints.collect(), 5));
    }
    world.nodes[a.0].disk.state = Some(state.encode());
    world.boot(a);
    world.seconds(600);
    let heard = world.net.tapped(link);
    let mut targets = BTreeMap::<_, Vec<Duration>>::new();
    let begun = heard.first().expect("the node tried").at;
    let mut times: Vec<Duration> = Vec::new();
    for packet in heard.iter().filter(|one| one.direction == Direction::In) {
        let at = packet.at - begun;
        targets.entry(packet.destination).or_default().push(at);
        times.push(at);
    }
    let within = |from: Duration, time: Duration| {
        let later = times.iter().filter(|at| **at >= from && **at < from + time);
        later.count()
    };
    let a_second = times.iter().map(|at| within(*at, SECOND)).max();
    assert!(a_second <= Some(A_SECOND), "{a_second:?} in one second");
    let a_minute = times.iter().map(|at| within(*at, 60 * SECOND)).max();
    assert!(a_minute <= Some(60 * A_SECOND), "{a_minute:?} in a minute");
    // 7 at once, 3 in each slot of 30 s.
    let most = targets.values().map(Vec::len).max();
    assert!(most <= Some(7 + 3 * 21), "{most:?} to one candidate");
    println!(
        "{} packets, {a_second:?} a second, {most:?} to one of {}",
        times.len(),
        targets.len()
    );
}

fn eight(world: &mut World) -> Vec<NodeId> {
    let core = world.place(Access::Public, false);
    let introducer = world.member("introducer", core, Seat::V4, &[]);
    let kinds = [
        Filtering::EndpointIndependent,
        Filtering::AddressDependent,
        Filtering::AddressAndPortDependent,
    ];
    let mut ids = vec![introducer];
    for index in 0..7 {
        let place = world.place(Access::Nat(NatSpec::cone(kinds[index % 3])), false);
        let name = format!("node{index}");
        ids.push(world.member(&name, place, Seat::V4, &[introducer]));
    }
    ids
}
