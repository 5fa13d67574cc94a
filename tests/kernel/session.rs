//! Sessions come up, and stay up through everything that need not end them.

use std::time::Duration;

use mesh_types::plan::TunnelPeer;
use mesh_types::{PresharedKey, WgSecret};

use crate::harness::{Node, eventually, key, pair, secret, wire};

const EVERY: Duration = Duration::from_millis(10);

#[test]
fn two_nodes_shake_hands_without_traffic_and_carry_both_families_over_both() {
    let (mut a, mut b) = pair();
    for ipv6_outside in [false, true] {
        if ipv6_outside {
            a.peer(2).endpoint = Some("[2001:db8:2::2]:22002".parse().unwrap());
            a.apply();
        }
        for ipv6 in [false, true] {
            let to = b.ip(ipv6).to_string();
            assert_eq!(a.namespace.ping(&to, 20, EVERY).finish(), (20, 0));
            let to = a.ip(ipv6).to_string();
            assert_eq!(b.namespace.ping(&to, 20, EVERY).finish(), (20, 0));
        }
        let stats = b.stats(&key(1)).unwrap();
        assert_eq!(stats.endpoint.unwrap().is_ipv6(), ipv6_outside, "it roams");
        assert!(stats.rx_bytes > 0 && stats.tx_bytes > 0);
        assert!(stats.handshake_age.unwrap() < Duration::from_secs(120));
    }
    assert_eq!(a.namespace.sh("wg show farspan0 fwmark"), "0x2000\n");
    assert_eq!(a.namespace.sh("wg show farspan0 listen-port"), "22001\n");
}

#[test]
fn applying_a_plan_again_sends_nothing() {
    let (mut a, mut b) = pair();
    assert_eq!(a.apply(), 0);
    assert_eq!(b.apply(), 0, "a learned endpoint is nothing to repair");
}

#[test]
fn a_new_endpoint_keeps_the_session_and_loses_nothing() {
    let (mut a, b) = pair();
    wire(&a.namespace, &b.namespace, 3);
    let before = a.handshakes();
    let ping = a.namespace.ping("10.77.0.2", 1000, EVERY);

    for endpoint in [
        "[2001:db8:2::2]:22002",
        "192.0.3.2:22002",
        "192.0.2.2:22002",
    ] {
        eventually("pings flow", || a.stats(&key(2)).unwrap().rx_bytes > 500);
        a.peer(2).endpoint = Some(endpoint.parse().unwrap());
        assert_eq!(a.apply(), 1, "one message");
        // What is on its way makes the kernel roam back, and each report insists.
        let there = Some(endpoint.parse().unwrap());
        eventually("the new path is in use", || {
            let so = a.stats(&key(2)).unwrap().endpoint == there;
            so && a
                .namespace
                .sh("wg show farspan0 endpoints")
                .contains(endpoint)
                && b.namespace.sh("wg show farspan0 endpoints").contains(
                    if endpoint.starts_with('[') {
                        "[2001:db8:2::1]"
                    } else if endpoint.starts_with("192.0.3") {
                        "192.0.3.1"
                    } else {
                        "192.0.2.1"
                    },
                )
        });
    }

    assert_eq!(ping.finish(), (1000, 0));
    assert_eq!(a.handshakes(), before);
}

#[test]
fn an_agent_that_dies_and_comes_back_takes_over_device_and_session() {
    let (mut a, mut b) = pair();
    let before = a.handshakes();
    let ping = b.namespace.ping("10.77.0.1", 300, EVERY);

    a.die();
    a.apply();

    let wireguard = a.wireguard.as_mut().unwrap();
    let again = a
        .namespace
        .enter(|| wireguard.apply(&a.plan.tunnel))
        .unwrap();
    assert_eq!(again, 0);
    assert_eq!(ping.finish(), (300, 0));
    assert_eq!(a.handshakes(), before);
    // What it remembers of endpoints is older than what the kernel knows of a live session.
    a.die();
    a.peer(2).endpoint = Some("203.0.113.1:1".parse().unwrap());
    a.apply();
    assert_eq!(
        a.stats(&key(2)).unwrap().endpoint,
        Some("192.0.2.2:22002".parse().unwrap())
    );
    let _ = b.stats(&key(1));
}

#[test]
fn a_peer_that_rotates_its_key_loses_nothing() {
    let (mut a, mut b) = pair();
    let to_b = a.namespace.ping("10.77.0.2", 400, EVERY);
    let to_a = b.namespace.ping("10.77.0.1", 400, EVERY);
    eventually("pings flow", || a.stats(&key(2)).unwrap().rx_bytes > 2000);

    // The other side hears of it a moment later.
    b.plan.tunnel.previous_key = Some(secret(2));
    b.plan.tunnel.key = secret(12);
    b.apply();
    let old = a.plan.tunnel.peers.remove(&key(2)).unwrap();
    let passive = TunnelPeer {
        passive: true,
        allowed_ips: Default::default(),
        keepalive: None,
        ..old.clone()
    };
    a.plan.tunnel.peers.insert(key(2), passive);
    a.plan.tunnel.peers.insert(key(12), old);
    assert_eq!(
        a.apply(),
        2,
        "new peer in one message, old keepalive off in another"
    );
    a.await_session(12);
    a.plan.tunnel.peers.remove(&key(2));
    assert_eq!(a.apply(), 1);

    assert_eq!(to_b.finish(), (400, 0));
    assert_eq!(to_a.finish(), (400, 0));
    assert_eq!(
        a.namespace.sh("wg show farspan0 peers"),
        format!("{}\n", key(12))
    );
}

#[test]
fn a_preshared_key_is_set_and_cleared_without_dropping_the_session() {
    let (mut a, b) = pair();
    let text = WgSecret::from_bytes([9; 32]).to_base64();
    a.peer(2).preshared_key = Some(PresharedKey::from_base64(&text).unwrap());
    assert_eq!(a.apply(), 1);
    assert!(
        a.namespace
            .sh("wg show farspan0 preshared-keys")
            .contains(text.as_str())
    );
    a.peer(2).preshared_key = None;
    assert_eq!(a.apply(), 1);
    assert!(
        a.namespace
            .sh("wg show farspan0 preshared-keys")
            .contains("(none)")
    );
    assert_eq!(a.apply(), 0);
    assert_eq!(
        a.namespace
            .ping(&b.ip(false).to_string(), 10, EVERY)
            .finish(),
        (10, 0)
    );
}

#[test]
fn a_removed_peer_is_gone_and_the_others_do_not_notice() {
    let (mut a, b) = pair();
    let mut c = Node::new(3);
    wire(&a.namespace, &c.namespace, 4);
    c.plan_peer(1, Some("192.0.4.1:22001"));
    c.peer(1).keepalive = Some(Duration::from_secs(25));
    a.plan_peer(3, None);
    a.apply();
    c.apply();
    c.await_session(1);
    let ping = b.namespace.ping("10.77.0.1", 100, EVERY);

    a.plan.tunnel.peers.remove(&key(3));
    assert_eq!(a.apply(), 1);

    assert_eq!(ping.finish(), (100, 0));
    assert!(a.stats(&key(3)).is_none());
}
