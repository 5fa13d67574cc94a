//! Invitations by a member that does not hold the authority's key.

use std::time::Duration;

use mesh_types::State;
use mesh_types::command::Command;
use mesh_types::token::Token;
use overlay::{PetitionSnapshot, Reply};

use crate::net::{Net, config, identity, net};

/// Machine 1 holds the authority's key, 2 is a member; gives an invitation by 2.
fn invited_by_a_member(routes: &[&str]) -> (Net, Token) {
    let mut world = Net::with_authority();
    world.invite_and_join(2).expect("joined");
    world.run(Duration::from_secs(3));
    let invite = Command::Invite {
        random: [77; 24],
        routes: routes.iter().map(|route| net(route)).collect(),
        lifetime: Duration::from_secs(3600),
    };
    let Ok(Reply::Token(token)) = world.command(2, invite) else {
        panic!("no token");
    };
    (world, token)
}

fn join(world: &mut Net, n: u8, token: &Token) -> Result<Reply, String> {
    let token = Box::new(token.clone());
    world.command(n, Command::Join { token })
}

fn approve(world: &mut Net, n: u8, node: &str, refuse: bool) -> Result<Reply, String> {
    let node = node.to_owned();
    world.command(n, Command::Approve { node, refuse })
}

/// Who waits for the person at machine 1.
fn who_waits(world: &mut Net) -> Vec<PetitionSnapshot> {
    let now = world.now;
    let overlay = &world.machine(1).overlay;
    overlay.petitions(now).expect("the key is here")
}

#[test]
fn who_is_invited_by_a_member_waits_for_a_persons_word_and_is_then_let_in() {
    let (mut world, token) = invited_by_a_member(&["10.244.3.0/24"]);
    let mut wish = config(3);
    wish.routes = vec![net("10.244.3.0/24")];
    world.start(3, identity(3), wish, State::default());
    world.run(Duration::from_secs(1));
    let asked = join(&mut world, 3, &token);
    assert!(
        matches!(&asked, Ok(Reply::Pending(why)) if why.contains("farspan approve node-3")),
        "{asked:?}"
    );
    assert!(world.peer(1, "node-3").is_none(), "not yet a member");
    let waiting = who_waits(&mut world);
    assert_eq!(waiting.len(), 1);
    assert_eq!(
        (waiting[0].name.as_str(), waiting[0].by.as_str()),
        ("node-3", "node-2")
    );
    assert_eq!(waiting[0].ranges, [net("10.244.3.0/24")]);
    assert!(!waiting[0].member && !waiting[0].revoked);
    let now = world.now;
    let findings = world.machine(1).overlay.snapshot(now).findings;
    assert!(findings.iter().any(|one| one.code == "waits-for-approval"));

    let elsewhere = approve(&mut world, 2, "node-3", false);
    assert!(elsewhere.is_err_and(|why| why.contains("does not hold")));
    assert!(approve(&mut world, 1, "node-9", false).is_err());
    let done = approve(&mut world, 1, "node-3", false);
    assert!(
        matches!(&done, Ok(Reply::Done(said)) if said.contains("10.77.0.3")),
        "{done:?}"
    );
    world.run(Duration::from_secs(1));
    let joined = join(&mut world, 3, &token);
    assert!(
        matches!(&joined, Ok(Reply::Done(said)) if said.contains("10.77.0.3")),
        "{joined:?}"
    );
    world.run(Duration::from_secs(4));
    assert!(world.is_direct(3, "node-1"));
    assert!(world.is_direct(3, "node-2"));
    assert_eq!(who_waits(&mut world), Vec::new());
}

#[test]
fn an_invitation_of_a_member_serves_one_machine_only() {
    let (mut world, token) = invited_by_a_member(&[]);
    for n in [3, 4] {
        world.start(n, identity(n), config(n), State::default());
    }
    world.run(Duration::from_secs(1));
    assert!(matches!(join(&mut world, 3, &token), Ok(Reply::Pending(_))));
    let second = join(&mut world, 4, &token);
    assert!(second.is_err_and(|why| why.contains("another machine")));
    let waiting = who_waits(&mut world);
    assert_eq!(waiting.len(), 1);
}

#[test]
fn who_is_refused_is_not_shown_again() {
    let (mut world, token) = invited_by_a_member(&[]);
    world.start(3, identity(3), config(3), State::default());
    world.run(Duration::from_secs(1));
    assert!(matches!(join(&mut world, 3, &token), Ok(Reply::Pending(_))));
    approve(&mut world, 1, "node-3", true).expect("refused");
    world.run(Duration::from_secs(130));
    assert_eq!(who_waits(&mut world), Vec::new());
    assert!(world.peer(1, "node-3").is_none());
}

#[test]
fn a_wish_that_has_changed_is_looked_at_again_before_it_is_approved() {
    let (mut world, token) = invited_by_a_member(&["10.244.3.0/24"]);
    world.start(3, identity(3), config(3), State::default());
    world.run(Duration::from_secs(1));
    assert!(matches!(join(&mut world, 3, &token), Ok(Reply::Pending(_))));
    world.stop(3);
    let mut wish = config(3);
    wish.routes = vec![net("10.244.3.0/24")];
    world.start(3, identity(3), wish, State::default());
    world.run(Duration::from_secs(20));
    assert!(matches!(join(&mut world, 3, &token), Ok(Reply::Pending(_))));
    let early = approve(&mut world, 1, "node-3", false);
    assert!(early.is_err_and(|why| why.contains("something else")));
    assert!(world.peer(1, "node-3").is_none(), "not yet a member");
    approve(&mut world, 1, "node-3", false).expect("approved");
    let peer = world.peer(1, "node-3").expect("a peer");
    assert!(peer.allowed_ips.contains(&net("10.244.3.0/24")));
}

#[test]
fn a_member_that_wishes_to_carry_more_waits_as_well() {
    let mut world = Net::with_authority();
    let token = world.invite(Vec::new()).expect("a token");
    world.start(2, identity(2), config(2), State::default());
    world.run(Duration::from_secs(1));
    world.join(2, token).expect("joined");
    world.run(Duration::from_secs(3));
    let disk = world.machine(2).disk.clone();
    world.stop(2);
    let mut wish = config(2);
    wish.routes = vec![net("10.244.2.0/24")];
    world.start(2, identity(2), wish, disk);
    world.run(Duration::from_secs(70));
    let waiting = who_waits(&mut world);
    assert_eq!(waiting.len(), 1, "{waiting:?}");
    assert!(waiting[0].member && waiting[0].by == "node-2");
    approve(&mut world, 1, "node-2", false).expect("approved");
    world.run(Duration::from_secs(2));
    let peer = world.peer(1, "node-2").expect("a peer");
    assert!(peer.allowed_ips.contains(&net("10.244.2.0/24")));
    assert!(peer.allowed_ips.contains(&net("10.77.0.2/32")));
}
