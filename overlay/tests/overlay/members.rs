//! Members come, go, and come back.

use std::time::Duration;

use mesh_types::command::{Command, Reload};
use mesh_types::message::JoinRelay;
use mesh_types::{Message, State};
use overlay::{Config, Event, Reply};

use crate::net::{Net, config, entry, founder, founder_state, identity, net};

fn mesh_of_three() -> Net {
    let mut world = Net::with_authority();
    world.invite_and_join(2).expect("joined");
    world.invite_and_join(3).expect("joined");
    world.run(Duration::from_secs(4));
    world
}

#[test]
fn a_revoked_node_is_dropped_everywhere() {
    let mut world = mesh_of_three();
    let revoke = Command::Revoke {
        node: "node-3".to_owned(),
    };
    let reply = world.command(1, revoke).expect("revoked");
    assert!(matches!(reply, Reply::Done(_)));
    world.run(Duration::from_secs(2));
    let gone = identity(3).key.public();
    for n in [1, 2] {
        assert!(world.peer(n, "node-3").is_none());
        assert!(!world.machine(n).plan.tunnel.peers.contains_key(&gone));
    }
    let revoked = |event: &Event| matches!(event, Event::Revoked);
    assert!(world.machine(3).events.iter().any(revoked));
    assert!(world.findings(3).contains(&"revoked".to_owned()));
    assert_eq!(world.machine(2).overlay.state().tombstones.len(), 1);
    assert!(world.is_direct(1, "node-2"));
}

#[test]
fn a_machine_without_the_authority_key_cannot_revoke() {
    let mut world = mesh_of_three();
    let revoke = Command::Revoke {
        node: "node-3".to_owned(),
    };
    let error = world.command(2, revoke).expect_err("no authority");
    assert!(error.contains("authority key"), "{error}");
}

#[test]
fn a_node_restarts_from_disk_while_the_introducer_is_away() {
    let mut world = mesh_of_three();
    world.run(Duration::from_secs(2));
    world.stop(1);
    let disk = world.machine(2).overlay.state();
    world.stop(2);
    world.run(Duration::from_secs(5));
    world.start(2, identity(2), config(2), disk);
    world.run(Duration::from_secs(3));
    assert!(
        world.is_direct(2, "node-3"),
        "{:?}",
        world.peer(2, "node-3")
    );
    assert!(world.is_direct(3, "node-2"));
}

#[test]
fn a_new_peer_is_on_disk_at_once() {
    let mut world = Net::with_authority();
    world.invite_and_join(2).expect("joined");
    world.run(Duration::from_secs(4));
    world.invite_and_join(3).expect("joined");
    let instant = Duration::from_millis(20);
    for _ in 0..100 {
        if world.peer(2, "node-3").is_some() {
            break;
        }
        world.run(instant);
    }
    world.run(instant);
    let peer = world.peer(2, "node-3").expect("a peer");
    let disk = &world.machine(2).disk.memberships;
    let mut names = disk.iter().map(|one| one.record().name.as_str());
    assert!(names.any(|name| name == "node-3"), "{peer:?}");
}

#[test]
fn a_restart_raises_epoch_and_seq() {
    let mut world = mesh_of_three();
    let before = world.machine(2).overlay.state();
    world.start(2, identity(2), config(2), before.clone());
    world.run(Duration::from_secs(1));
    let after = world.machine(2).disk.clone();
    assert!(after.epoch > before.epoch);
    assert!(after.seq > before.seq);
}

#[test]
fn a_node_that_lost_its_state_goes_on_above_its_old_announcement() {
    let mut world = mesh_of_three();
    let mut disk = world.machine(2).overlay.state();
    // A clock that was an hour ahead once.
    let seen = disk.seq + 3_600_000;
    disk.seq = seen;
    world.start(2, identity(2), config(2), disk.clone());
    world.run(Duration::from_secs(3));
    disk.seq = 0;
    world.start(2, identity(2), config(2), disk);
    world.run(Duration::from_secs(5));
    assert!(world.machine(2).disk.seq > seen + 1);
}

#[test]
fn a_route_added_to_the_file_of_the_authoritys_machine_is_vouched_for() {
    let mut world = mesh_of_three();
    let mut changed = config(1);
    changed.routes = vec![net("10.244.1.0/24")];
    let disk = world.machine(1).overlay.state();
    world.start(1, founder(), changed, disk);
    world.run(Duration::from_secs(4));
    let peer = world.peer(2, "node-1").expect("a peer");
    assert!(peer.allowed_ips.contains(&net("10.244.1.0/24")));
    assert!(!world.findings(1).contains(&"route-not-vouched".to_owned()));
}

#[test]
fn memberships_with_a_lifetime_are_renewed_at_half() {
    let mut world = Net::new();
    let state = State {
        lifetime: Some(3600),
        ..founder_state()
    };
    world.start(1, founder(), config(1), state);
    world.run(Duration::from_secs(2));
    world.invite_and_join(2).expect("joined");
    world.run(Duration::from_secs(4));
    let end = |world: &mut Net| {
        let memberships = world.machine(2).overlay.state().memberships;
        let ends = memberships.iter().map(|m| m.record().not_after);
        ends.min().flatten().expect("a lifetime")
    };
    let before = end(&mut world);
    world.run(Duration::from_secs(2400));
    assert!(end(&mut world) >= before + 1700);
    assert!(world.is_direct(2, "node-1"));
}

#[test]
fn a_phone_is_reached_by_all_through_the_node_that_lists_it() {
    let mut world = Net::new();
    let mut phone = entry(9);
    phone.name = Some("phone".to_owned());
    phone.plain = true;
    phone.endpoints.clear();
    phone.allowed_ips = vec![net("10.77.0.50/32")];
    let lists = Config {
        routes: vec![net("10.77.0.50/32")],
        peers: vec![phone],
        ..config(1)
    };
    world.start(1, founder(), lists, founder_state());
    world.run(Duration::from_secs(2));
    world.invite_and_join(2).expect("joined");
    world.run(Duration::from_secs(4));
    let ranges = |world: &Net, n: u8, key| {
        world.machines[&n].plan.tunnel.peers[&key]
            .allowed_ips
            .clone()
    };
    let phone = ranges(&world, 1, identity(9).key.public());
    assert!(
        phone.contains(&net("10.77.0.50/32")),
        "{:?}",
        world.findings(1)
    );
    let carrier = ranges(&world, 2, identity(1).key.public());
    assert!(carrier.contains(&net("10.77.0.50/32")), "{carrier:?}");
}

#[test]
fn a_neighbour_passes_calls_on_between_members_that_have_lost_each_other() {
    let mut world = mesh_of_three();
    world.cut = vec![(2, 3)];
    world.run(Duration::from_secs(60));
    assert!(!world.is_direct(2, "node-3"));
    assert!(world.findings(2).contains(&"no-path".to_owned()));
    let down = |event: &Event| matches!(event, Event::PeerDown { name, .. } if name == "node-3");
    assert!(world.machine(2).events.iter().any(down));
    assert!(world.counter(1, "forwarded") > 0);
    let plan = &world.machines[&2].plan;
    let ranges = &plan.tunnel.peers[&identity(3).key.public()].allowed_ips;
    assert!(ranges.contains(&net("10.77.0.3/32")), "it stays a peer");

    world.cut.clear();
    world.run(Duration::from_secs(35));
    assert!(
        world.is_direct(2, "node-3"),
        "{:?}",
        world.peer(2, "node-3")
    );
}

#[test]
fn a_new_announcement_is_passed_on_to_those_it_does_not_reach_itself() {
    let mut world = mesh_of_three();
    world.cut = vec![(1, 3)];
    let moved = Reload {
        peers: Vec::new(),
        name: "node-3".to_owned(),
        region: Some("tokyo".to_owned()),
        routes: Vec::new(),
        addresses: Vec::new(),
        stun: Vec::new(),
        turn: Vec::new(),
        may_relay: false,
        relay_ports: (28672, 29183),
        pair_rate: 0,
        node_rate: 0,
        birthday_search: true,
        authorities: Vec::new(),
        forward_accept: false,
        authority: None,
    };
    let reload = Command::Reload(Box::new(moved));
    world.command(3, reload).expect("reloaded");
    world.run(Duration::from_secs(3));
    let region = world.peer(1, "node-3").expect("a peer").region;
    assert_eq!(region.as_deref(), Some("tokyo"));
}

#[test]
fn an_introducer_sends_no_answer_that_nobody_asked_for() {
    let mut world = mesh_of_three();
    let ip = |n: u8| {
        let own = &world.machines[&n].plan.device.addresses;
        let v6 = own.iter().find(|net| net.addr().is_ipv6());
        std::net::SocketAddr::new(v6.expect("an address").addr(), 22511)
    };
    let relay = Message::from(JoinRelay {
        remote: "192.0.2.1:9".parse().expect("address"),
        datagram: vec![1, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42],
    });
    let (from, to) = (ip(2), ip(1));
    world.spoof(2, from, to, relay.encode());
    world.run(Duration::from_secs(1));
    assert_eq!(world.counter(1, "join-unasked-answer"), 1);
}
