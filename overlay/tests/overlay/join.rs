//! Invitations.

use std::time::Duration;

use mesh_types::State;
use mesh_types::command::Command;
use overlay::{Config, Event};

use crate::net::{Net, config, founder, founder_state, identity, net};

#[test]
fn an_invited_machine_becomes_a_member_and_connects() {
    let mut world = Net::with_authority();
    let done = world.invite_and_join(2).expect("joined");
    assert!(
        done.contains("node-2") && done.contains("10.77.0.2"),
        "{done}"
    );
    world.run(Duration::from_secs(3));
    assert!(world.is_direct(1, "node-2"));
    assert!(world.is_direct(2, "node-1"));
    let joined = |event: &Event| matches!(event, Event::Joined { .. });
    assert!(world.machine(2).events.iter().any(joined));
    assert!(world.machine(2).disk.authority.is_some());
    assert!(
        world
            .machine(2)
            .plan
            .device
            .addresses
            .contains(&net("10.77.0.2/32"))
    );
}

#[test]
fn a_member_that_started_this_very_moment_tells_the_joiner_of_itself() {
    let mut world = Net::new();
    world.start(1, founder(), config(1), founder_state());
    let token = world.invite(Vec::new()).expect("a token");
    world.start(2, identity(2), config(2), State::default());
    world.join(2, token).expect("joined");
    world.run(Duration::from_secs(3));
    assert!(world.is_direct(2, "node-1"));
}

#[test]
fn gossip_makes_members_known_to_each_other() {
    let mut world = Net::with_authority();
    world.invite_and_join(2).expect("joined");
    world.invite_and_join(3).expect("joined");
    world.run(Duration::from_secs(4));
    assert!(world.is_direct(2, "node-3"));
    assert!(world.is_direct(3, "node-2"));
}

#[test]
fn an_introducer_passes_the_joiners_datagrams_on() {
    let mut world = Net::with_authority();
    world.invite_and_join(2).expect("joined");
    world.run(Duration::from_secs(3));
    let mut token = world.invite(Vec::new()).expect("a token");
    let inviter = identity(1).node.identity();
    token.introducers.retain(|one| one.identity != inviter);
    assert_eq!(token.introducers.len(), 1);
    world.start(3, identity(3), config(3), State::default());
    world.run(Duration::from_secs(1));
    world.join(3, token).expect("joined");
    world.run(Duration::from_secs(4));
    assert!(world.is_direct(3, "node-1"));
    assert!(world.is_direct(3, "node-2"));
}

#[test]
fn a_token_serves_one_machine_only_and_that_one_again() {
    let mut world = Net::with_authority();
    let token = world.invite(Vec::new()).expect("a token");
    world.start(2, identity(2), config(2), State::default());
    world.start(3, identity(3), config(3), State::default());
    world.run(Duration::from_secs(1));
    world.join(2, token.clone()).expect("joined");
    let error = world.join(3, token.clone()).expect_err("used");
    assert!(error.contains("used by another machine"), "{error}");
    assert!(world.counter(1, "join-refused") > 0);
    assert!(world.findings(1).contains(&"refused-join".to_owned()));

    // The same machine lost its disk's newest state, not its identity.
    world.start(2, identity(2), config(2), State::default());
    world.run(Duration::from_secs(1));
    let again = world.join(2, token).expect("joined again");
    assert!(again.contains("10.77.0.2"), "{again}");
}

#[test]
fn an_expired_token_is_refused_on_both_sides() {
    let mut world = Net::with_authority();
    let token = world.invite(Vec::new()).expect("a token");
    world.run(Duration::from_secs(3700));
    world.start(2, identity(2), config(2), State::default());
    world.run(Duration::from_secs(1));
    let error = world.join(2, token.clone()).expect_err("expired");
    assert!(error.contains("expired"), "{error}");

    let mut forged = token;
    forged.expiry += 100_000;
    let error = world.join(2, forged).expect_err("expired at the inviter");
    assert!(
        error.contains("refused") && error.contains("expired"),
        "{error}"
    );
}

#[test]
fn a_token_with_a_wrong_secret_gets_no_answer() {
    let mut world = Net::with_authority();
    let mut token = world.invite(Vec::new()).expect("a token");
    token.secret = [0xff; 16];
    world.start(2, identity(2), config(2), State::default());
    world.run(Duration::from_secs(1));
    let error = world.join(2, token).expect_err("forged");
    assert!(error.contains("no member answered within 10 s"), "{error}");
    assert!(world.counter(1, "join-forged") > 0);
}

#[test]
fn a_joiner_carries_what_its_invitation_allows_and_no_more() {
    let mut world = Net::with_authority();
    let token = world.invite(vec![net("10.244.0.0/16")]).expect("a token");
    let carrying = |n: u8, route: &str| Config {
        routes: vec![net(route)],
        ..config(n)
    };
    world.start(2, identity(2), carrying(2, "10.1.0.0/16"), State::default());
    world.run(Duration::from_secs(1));
    let error = world.join(2, token.clone()).expect_err("too much");
    assert!(error.contains("10.1.0.0/16"), "{error}");

    world.start(
        3,
        identity(3),
        carrying(3, "10.244.3.0/24"),
        State::default(),
    );
    world.run(Duration::from_secs(1));
    world.join(3, token).expect("joined");
    world.run(Duration::from_secs(3));
    let peer = world.peer(1, "node-3").expect("a peer");
    assert!(peer.allowed_ips.contains(&net("10.244.3.0/24")));
}

#[test]
fn a_machine_in_no_mesh_cannot_invite() {
    let mut world = Net::new();
    world.start(1, identity(1), config(1), State::default());
    world.run(Duration::from_secs(1));
    let error = world.invite(Vec::new()).expect_err("no authority");
    assert!(error.contains("in no mesh"), "{error}");
}

#[test]
fn a_used_ticket_is_on_disk_before_its_answer_is_sent() {
    let mut world = Net::with_authority();
    world.invite_and_join(2).expect("joined");
    let tickets = &world.machine(1).disk.tickets;
    assert_eq!(tickets[0].used_by, Some(identity(2).node.identity()));
}

#[test]
fn a_late_copy_of_a_join_does_not_undo_a_revocation() {
    let mut world = Net::with_authority();
    let token = world.invite(Vec::new()).expect("a token");
    world.start(2, identity(2), config(2), State::default());
    world.run(Duration::from_secs(1));
    world.join(2, token.clone()).expect("joined");
    world.run(Duration::from_secs(2));
    let node = "node-2".to_owned();
    world.command(1, Command::Revoke { node }).expect("revoked");
    world.run(Duration::from_secs(1));
    world.start(2, identity(2), config(2), State::default());
    world.run(Duration::from_secs(1));
    let error = world.join(2, token).expect_err("revoked");
    assert!(error.contains("revoked"), "{error}");
    assert!(world.peer(1, "node-2").is_none());
    let again = world.invite(Vec::new()).expect("a token");
    world
        .join(2, again)
        .expect("a new invitation lets it in again");
}

#[test]
fn nothing_is_said_inside_the_tunnel_before_the_host_holds_the_addresses() {
    let mut world = Net::with_authority();
    world.slow = Duration::from_millis(150);
    for n in [2, 3] {
        let token = world.invite(Vec::new()).expect("a token");
        // At once: its first announcement is made while the new addresses are on their way to the host.
        world.start(n, identity(n), config(n), State::default());
        world.join(n, token).expect("joined");
    }
    world.run(Duration::from_secs(3));
    assert!(world.is_direct(2, "node-3"));
    assert!(world.is_direct(3, "node-2"));
}
