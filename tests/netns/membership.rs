//! Who is in: tokens, revocation, ranges.

use std::net::IpAddr;
use std::time::Duration;

use crate::lab::agent::PATIENCE;
use crate::lab::traffic::ping_once;
use crate::lab::wait::wait_until;
use crate::lab::{Lab, Nat, NatKind, Node};
use crate::scene::{TwoRegions, founder, overlay_ipv4};

#[test]
fn a_token_lets_one_machine_in_and_no_second_one() {
    let lab = Lab::new();
    let mut hub = founder(&lab, lab.public_host("hub"));
    hub.up();
    let token = hub.ok(&["invite"]);
    let mut nodes = ["first", "second"].map(|name| Node::new(&lab, lab.public_host(name)));
    for node in &mut nodes {
        node.up();
    }
    let [first, second] = &nodes;
    let joined = first.verb(&["join"], &token);
    assert!(
        joined.status.success(),
        "{}",
        String::from_utf8_lossy(&joined.stderr)
    );
    first.wait_direct("hub", PATIENCE);
    let refused = second.verb(&["join"], &token);
    assert!(
        !refused.status.success(),
        "a used token was accepted: {}",
        String::from_utf8_lossy(&refused.stdout)
    );
    assert!(!String::from_utf8_lossy(&refused.stderr).trim().is_empty());
    assert!(hub.peer("second").is_err());
    wait_until("the hub counts the refusal", PATIENCE, || {
        let status = hub.status()?;
        if status["peers"]
            .as_array()
            .is_some_and(|peers| peers.len() == 1)
        {
            Ok(())
        } else {
            Err(status.to_string())
        }
    });
}

#[test]
fn a_revoked_node_is_out_and_the_others_stay_connected() {
    let scene = TwoRegions::connected(Nat::new(NatKind::Prc), Nat::new(NatKind::Prc));
    let (from, to) = (scene.tokyo.pod(), scene.paris.pod());
    wait_until("pods meet", PATIENCE, || {
        ping_once(&from.namespace, to.ipv4.into())
    });
    scene.hub.ok(&["revoke", "tokyo"]);
    wait_until("tokyo is out everywhere", PATIENCE, || {
        for node in [&scene.hub, &scene.paris] {
            if let Ok(peer) = node.peer("tokyo") {
                return Err(format!("{} still has {peer}", node.name()));
            }
        }
        Ok(())
    });
    assert!(
        ping_once(&from.namespace, to.ipv4.into()).is_err(),
        "a revoked node's pod still reaches another"
    );
    scene.hub.wait_direct("paris", Duration::from_secs(10));
}

#[test]
fn a_range_that_the_invitation_does_not_allow_is_not_carried() {
    let lab = Lab::new();
    let mut hub = founder(&lab, lab.public_host("hub"));
    hub.up();
    let mut greedy = Node::new(&lab, lab.public_host("greedy")).with_pod(&lab, 9);
    greedy.up();
    let token = hub.ok(&["invite"]);
    greedy.verb(&["join"], &token);
    let (peer, _) = wait_until("the hub knows it, or refused it", PATIENCE, || {
        let peers = hub.status()?["peers"].clone();
        if peers.to_string().contains("10.244.9.0") {
            Err(peers.to_string())
        } else {
            Ok(peers)
        }
    });
    assert!(!peer.to_string().contains("10.244.9.0"));
    let route = hub
        .host
        .namespace
        .output("ip", &["route", "show", "table", "all"]);
    assert!(!route.contains("10.244.9.0"), "{route}");
}

#[test]
fn a_new_member_is_reached_by_all_by_both_of_its_addresses() {
    let scene = TwoRegions::connected(Nat::new(NatKind::Prc), Nat::new(NatKind::Prc));
    let mut third = Node::new(
        &scene.lab,
        scene.lab.site("third", Nat::new(NatKind::Adf)).host("lima"),
    )
    .with_pod(&scene.lab, 3);
    third.up();
    third.join(&scene.hub);
    for node in [&scene.hub, &scene.paris, &scene.tokyo] {
        node.wait_direct("lima", PATIENCE);
        for address in third.overlay() {
            wait_until(
                &format!("{} reaches {address}", node.name()),
                PATIENCE,
                || ping_once(&node.host.namespace, address),
            );
        }
    }
    assert!(
        third.overlay().iter().any(IpAddr::is_ipv4) && third.overlay().iter().any(IpAddr::is_ipv6)
    );
    assert!(overlay_ipv4(&third).to_string().starts_with("10.77."));
}
