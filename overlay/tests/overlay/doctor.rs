//! What a node says of the way to a peer.

use std::time::Duration;

use mesh_types::State;
use mesh_types::command::Command;
use overlay::{Reply, Severity};

use crate::net::{Net, config, identity};

fn codes(world: &mut Net, n: u8, peer: &str) -> Vec<(String, Severity)> {
    let now = world.now;
    let said = world.machine(n).overlay.diagnose(peer, now);
    let findings = said.expect("a peer").findings;
    findings
        .into_iter()
        .map(|finding| (finding.code, finding.severity))
        .collect()
}

#[test]
fn a_direct_peer_is_explained_without_a_complaint() {
    let mut world = Net::with_authority();
    world.invite_and_join(2).expect("joined");
    world.run(Duration::from_secs(3));
    let said = codes(&mut world, 1, "node-2");
    assert!(
        said.iter().all(|(_, severity)| *severity == Severity::Info),
        "{said:?}"
    );
    for code in [
        "connection",
        "nat-here",
        "nat-there",
        "why-direct",
        "probes",
        "addresses",
        "tunnel",
    ] {
        assert!(
            said.iter().any(|(found, _)| found == code),
            "{code}: {said:?}"
        );
    }
    let now = world.now;
    let said = world
        .machine(1)
        .overlay
        .diagnose("node-2", now)
        .expect("a peer");
    let answered = said.tried.iter().filter(|tried| tried.answered > 0);
    assert!(answered.count() > 0, "{:?}", said.tried);
}

#[test]
fn a_peer_that_is_gone_is_an_error_and_an_unknown_one_a_sentence() {
    let mut world = Net::with_authority();
    world.invite_and_join(2).expect("joined");
    world.run(Duration::from_secs(3));
    world.stop(2);
    world.run(Duration::from_secs(90));
    let said = codes(&mut world, 1, "node-2");
    assert_eq!(
        said[0],
        ("connection".to_owned(), Severity::Error),
        "{said:?}"
    );
    let now = world.now;
    let nobody = world.machine(1).overlay.diagnose("node-9", now);
    assert!(nobody.is_err_and(|why| why.contains("node-9")));
}

#[test]
fn netcheck_tells_who_will_be_reached_how() {
    let mut world = Net::with_authority();
    world.invite_and_join(2).expect("joined");
    world.run(Duration::from_secs(3));
    let Ok(Reply::Netcheck(netcheck)) = world.command(1, Command::Netcheck) else {
        panic!("no netcheck");
    };
    assert!(netcheck.reach.direct.contains(&"random"), "{netcheck:?}");
    assert_eq!(netcheck.reach.relay, ["udp-blocked"]);
}

#[test]
fn only_a_peers_own_address_is_its_own() {
    let mut world = Net::with_authority();
    world.invite_and_join(2).expect("joined");
    world.start(3, identity(3), config(3), State::default());
    world.run(Duration::from_secs(3));
    let overlay = &world.machine(1).overlay;
    let speaker = |ip: &str| overlay.speaker(ip.parse().expect("an address"));
    assert_eq!(speaker("10.77.0.2"), Some("node-2"));
    assert_eq!(speaker("10.77.0.1"), None, "this node itself");
    assert_eq!(speaker("10.77.0.3"), None, "a machine outside of the mesh");
}
