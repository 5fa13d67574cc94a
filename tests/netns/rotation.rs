//! Keys change, agents die and stop: what traffic notices of it.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::lab::agent::PATIENCE;
use crate::lab::traffic::{Pings, ping_once};
use crate::lab::wait::wait_until;
use crate::lab::{Lab, Nat, NatKind, Node};
use crate::scene::{TwoRegions, founder, overlay_ipv4};

#[test]
fn a_key_is_rotated_under_pings_to_three_peers_without_losing_one() {
    let lab = Lab::new();
    let mut hub = founder(&lab, lab.public_host("hub"));
    hub.up();
    let site = lab.site("home", Nat::new(NatKind::Prc));
    let mut node = Node::new(&lab, site.host("node"));
    let mut others = ["east", "west"].map(|name| {
        Node::new(
            &lab,
            lab.site(name, Nat::new(NatKind::Prc))
                .host(&format!("{name}-node")),
        )
    });
    for node in std::iter::once(&mut node).chain(&mut others) {
        node.up();
        node.join(&hub);
    }
    let peers: Vec<&Node> = std::iter::once(&hub).chain(&others).collect();
    for peer in &peers {
        node.wait_direct(peer.name(), PATIENCE);
        wait_until("the peer answers", PATIENCE, || {
            ping_once(&node.host.namespace, overlay_ipv4(peer))
        });
    }
    let own_key = || {
        node.status().map(|status| {
            status["node"]["public_key"]
                .as_str()
                .unwrap_or_default()
                .to_owned()
        })
    };
    let old = own_key().expect("the agent answers");
    let mut pings: Vec<_> = peers
        .iter()
        .map(|peer| {
            Pings::start(
                &node.host.namespace,
                overlay_ipv4(peer),
                1000,
                Duration::from_millis(5),
            )
        })
        .collect();
    for pings in &mut pings {
        pings.wait_answered(100);
    }
    node.ok(&["key", "rotate"]);
    for (peer, pings) in peers.iter().zip(pings) {
        let report = pings.finish();
        assert_eq!(
            (report.lost(), report.sent),
            (0, 1000),
            "to {}: {report:?}",
            peer.name()
        );
    }
    let new = own_key().expect("the agent answers");
    assert_ne!(new, old);
    for peer in &peers {
        wait_until("no reader holds the old key", PATIENCE, || {
            let status = peer.status()?.to_string();
            if status.contains(&new) && !status.contains(&old) {
                Ok(())
            } else {
                Err(status)
            }
        });
    }
}

#[test]
fn an_agent_killed_and_restarted_costs_traffic_less_than_ten_seconds() {
    let mut scene = TwoRegions::connected(Nat::new(NatKind::Prc), Nat::new(NatKind::Prc));
    let (from, to) = (scene.tokyo.pod().clone(), scene.paris.pod().clone());
    wait_until("pods meet", PATIENCE, || {
        ping_once(&from.namespace, to.ipv4.into())
    });
    let mut pings = Pings::start(
        &from.namespace,
        to.ipv4.into(),
        1500,
        Duration::from_millis(10),
    );
    pings.wait_answered(50);
    scene.paris.kill();
    scene.paris.start();
    let report = pings.finish();
    eprintln!("kill -9 and restart, userspace: {report:?}");
    assert!(report.longest_gap < Duration::from_secs(10), "{report:?}");
}

#[test]
fn a_reload_by_sighup_loses_no_packet() {
    let scene = TwoRegions::connected(Nat::new(NatKind::Prc), Nat::new(NatKind::Prc));
    let (from, to) = (scene.paris.pod(), scene.tokyo.pod());
    wait_until("pods meet", PATIENCE, || {
        ping_once(&from.namespace, to.ipv4.into())
    });
    let pings = Pings::start(
        &from.namespace,
        to.ipv4.into(),
        400,
        Duration::from_millis(5),
    );
    for node in [&scene.paris, &scene.tokyo, &scene.hub] {
        node.signal(Signal::SIGHUP);
    }
    let report = pings.finish();
    assert_eq!(report.lost(), 0, "{report:?}");
    assert!(scene.paris.status().is_ok());
}

#[test]
fn a_suspended_agent_heals_at_once_when_it_resumes() {
    let scene = TwoRegions::connected(Nat::new(NatKind::Prc), Nat::new(NatKind::Prc));
    let (from, to) = (scene.paris.pod(), scene.tokyo.pod());
    wait_until("pods meet", PATIENCE, || {
        ping_once(&from.namespace, to.ipv4.into())
    });
    scene.paris.signal(Signal::SIGSTOP);
    scene.west.forget_mappings();
    wait_until(
        "the suspended side is noticed as away",
        Duration::from_secs(60),
        || {
            let peer = scene.tokyo.peer("paris")?;
            if peer["state"] == "direct" {
                Err(peer.to_string())
            } else {
                Ok(())
            }
        },
    );
    scene.paris.signal(Signal::SIGCONT);
    let ((), healed) = wait_until("pods meet again", PATIENCE, || {
        ping_once(&from.namespace, to.ipv4.into())
    });
    eprintln!("resumed: healed after {healed:?}");
}
