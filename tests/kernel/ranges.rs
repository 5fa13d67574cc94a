//! Allowed ranges: many of them, and their moves from peer to peer.

use std::time::Duration;

use mesh_types::plan::TunnelPeer;

use crate::harness::{key, net, pair};

#[test]
fn a_peer_may_carry_three_thousand_ranges_of_each_family() {
    let (mut a, _b) = pair();
    for n in 0..3000_u32 {
        let (high, low) = (n / 250, n % 250);
        let ipv4 = net(&format!("10.{}.{low}.0/24", 100 + high));
        let ipv6 = net(&format!("fd77:{high:x}:{low:x}::/64"));
        a.peer(2).allowed_ips.extend([ipv4, ipv6]);
    }
    let count = "wg show farspan0 allowed-ips | wc -w";

    assert_eq!(a.apply(), 12, "500 in a message");

    assert_eq!(a.namespace.sh(count), "6003\n");
    assert_eq!(a.apply(), 0);
    let keep = a.peer(2).allowed_ips.iter().copied().step_by(2).collect();
    a.peer(2).allowed_ips = keep;
    a.apply();
    assert_eq!(a.namespace.sh(count), "3002\n");
    assert_eq!(a.apply(), 0);
    assert_eq!(a.namespace.sh("wg show farspan0 peers | wc -l"), "1\n");
}

#[test]
fn ranges_come_and_go_beside_traffic_that_does_not_notice() {
    let (mut a, _b) = pair();
    let ping = a.namespace.ping("10.77.0.2", 500, Duration::from_millis(5));
    for round in 0..20_u8 {
        let held = a.peer(2).allowed_ips.clone();
        let kept = held.iter().filter(|range| range.prefix_len() > 24).copied();
        let new = (0..50_u8).map(|n| net(&format!("10.{}.{n}.0/24", 100 + round)));
        a.peer(2).allowed_ips = kept.chain(new).collect();
        assert!(a.apply() >= 1);
    }
    assert_eq!(ping.finish(), (500, 0));
    assert_eq!(
        a.namespace.sh("wg show farspan0 allowed-ips | wc -w"),
        "53\n"
    );
}

#[test]
fn a_range_that_changes_owners_is_never_without_one() {
    let (mut a, _b) = pair();
    a.plan.tunnel.peers.insert(key(9), TunnelPeer::default());
    let before = a.peer(2).allowed_ips.clone();
    a.peer(2).allowed_ips.extend([net("10.201.0.0/16")]);
    a.apply();
    a.peer(2).allowed_ips = before;
    a.peer(9).allowed_ips.extend([net("10.201.0.0/16")]);

    assert_eq!(
        a.apply(),
        1,
        "its new owner claims it; nobody has to give it up"
    );

    let listed = a.namespace.sh("wg show farspan0 allowed-ips");
    let line = listed
        .lines()
        .find(|line| line.contains("10.201.0.0/16"))
        .unwrap();
    assert!(line.starts_with(&key(9).to_string()), "{listed}");
    assert_eq!(a.apply(), 0);
    a.peer(9).passive = true;
    assert_eq!(a.apply(), 1);
    assert!(
        !a.namespace
            .sh("wg show farspan0 allowed-ips")
            .contains("10.201")
    );
}
