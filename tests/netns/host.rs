//! What an agent does to its host, and what the host does to it.

use std::net::UdpSocket;
use std::time::Duration;

use crate::lab::agent::PATIENCE;
use crate::lab::traffic::ping_once;
use crate::lab::wait::wait_until;
use crate::lab::{Lab, Nat, NatKind, Node};
use crate::scene::{TwoRegions, assert_pods_meet, founder, static_pair};

/// Ten times the figure for repair (1 s).
const REPAIRED: Duration = Duration::from_secs(10);

#[test]
fn down_leaves_the_host_as_it_was() {
    let lab = Lab::new();
    let (mut a, mut b) = static_pair(&lab);
    let before = a.kernel_state();
    a.up();
    b.up();
    a.wait_direct("b", PATIENCE);
    assert_ne!(a.kernel_state(), before);
    let said = a.ok(&["down"]);
    assert!(a.wait_ended(), "the agent ends well after down");
    wait_until("the host is as it was", PATIENCE, || {
        let after = a.kernel_state();
        if after == before {
            Ok(())
        } else {
            Err(format!("{said}\nbefore:\n{before}\nafter:\n{after}"))
        }
    });
}

#[test]
fn a_killed_agent_leaves_blackholes_and_down_without_an_agent_removes_them() {
    let lab = Lab::new();
    let (mut a, mut b) = static_pair(&lab);
    let before = a.kernel_state();
    a.up();
    b.up();
    a.wait_direct("b", PATIENCE);
    a.kill();
    let route = a
        .host
        .namespace
        .output("sh", &["-c", "ip route get 10.77.0.2 2>&1 || true"]);
    assert!(
        !route.contains("eth0"),
        "packets for a peer would leave in clear: {route}"
    );
    a.ok(&["down"]);
    assert_eq!(a.kernel_state(), before);
}

#[test]
fn what_others_delete_is_put_back() {
    let scene = TwoRegions::connected(Nat::new(NatKind::Prc), Nat::new(NatKind::Prc));
    let node = &scene.paris.host.namespace;
    let deletions = [
        (
            "a route",
            "route del 10.244.2.0/24 dev farspan0 table 22512",
            vec!["-4", "route", "show", "table", "22512"],
            "10.244.2.0/24 dev farspan0",
        ),
        (
            "the rule",
            "rule del priority 5300",
            vec!["-4", "rule"],
            "5300:",
        ),
        (
            "the device's state",
            "link set farspan0 down",
            vec!["link", "show", "up"],
            "farspan0",
        ),
    ];
    for (what, command, look, expected) in deletions {
        assert!(
            node.output("ip", &look).contains(expected),
            "{what} is there: {}",
            node.output("ip", &look)
        );
        node.ip(command);
        let ((), took) = wait_until(&format!("{what} is put back"), REPAIRED, || {
            let now = node.output("ip", &look);
            if now.contains(expected) {
                Ok(())
            } else {
                Err(now)
            }
        });
        eprintln!("{what}: put back after {took:?}");
    }
    assert_pods_meet(&scene.paris, &scene.tokyo);
}

#[test]
fn a_configured_port_that_is_in_use_is_told_in_one_sentence_and_nothing_is_left() {
    let lab = Lab::new();
    let (mut a, _b) = static_pair(&lab);
    let before = a.kernel_state();
    let _taken = a
        .host
        .namespace
        .enter(|| UdpSocket::bind("0.0.0.0:22000").expect("the port is free"));
    a.start();
    assert!(!a.wait_ended(), "the agent gives up");
    let log = crate::lab::agent::tail(&a.file("agent-1.log"), 5);
    assert!(log.contains("22000"), "the sentence names the port: {log}");
    assert!(!log.contains("panicked"), "{log}");
    assert_eq!(a.kernel_state(), before);
}

#[test]
fn a_derived_port_that_is_in_use_is_replaced_by_the_next_one() {
    let lab = Lab::new();
    let mut hub = founder(&lab, lab.public_host("hub"));
    hub.up();
    let port = |node: &Node| {
        node.status()
            .ok()
            .and_then(|status| status["node"]["listen_port"].as_u64())
            .expect("a port")
    };
    let first = port(&hub);
    assert!(hub.stop());
    let _taken = hub
        .host
        .namespace
        .enter(|| UdpSocket::bind(("::", first as u16)).expect("the port is free"));
    hub.up();
    assert_ne!(port(&hub), first);
}

#[test]
fn a_clock_far_off_is_found_and_does_no_harm() {
    let lab = Lab::new();
    let mut hub = founder(&lab, lab.public_host("hub"));
    hub.up();
    let site = lab.site("home", Nat::new(NatKind::Prc));
    let mut late = Node::new(&lab, site.host("late"));
    late.up();
    late.join(&hub);
    late.wait_direct("hub", PATIENCE);
    assert!(late.stop());
    // Only what the clock on the wall shows is wrong; timers go on.
    late.start_by(&["faketime", "--exclude-monotonic", "-f", "+400d"]);
    late.wait_direct("hub", PATIENCE);
    wait_until("the hub finds the clock of the other", PATIENCE, || {
        let findings = hub.status()?["findings"].clone();
        let ahead = |finding: &serde_json::Value| {
            finding["code"] == "clock"
                && finding["message"]
                    .as_str()
                    .is_some_and(|text| text.contains("more than 5 minutes ahead"))
        };
        let found = findings.as_array().is_some_and(|all| all.iter().any(ahead));
        found.then_some(()).ok_or_else(|| findings.to_string())
    });
    let address = crate::scene::overlay_ipv4(&hub);
    wait_until("packets pass", PATIENCE, || {
        ping_once(&late.host.namespace, address)
    });
}
