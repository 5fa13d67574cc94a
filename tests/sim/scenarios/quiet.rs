//! A mesh at rest is quiet, and stays as it is.

use std::time::Duration;

use sim_net::{Direction, Filtering, NatSpec};

use crate::world::{Access, NodeId, Seat, World};

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
