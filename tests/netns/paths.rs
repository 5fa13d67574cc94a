//! Who reaches whom directly, and how it heals.

use std::net::IpAddr;
use std::time::Duration;

use crate::lab::agent::{PATIENCE, timed};
use crate::lab::internet::LinkState;
use crate::lab::tap::Tap;
use crate::lab::traffic::{Echo, MARKER, Pings, ping_once, udp_exchange};
use crate::lab::wait::wait_until;
use crate::lab::{Lab, Nat, NatKind, Node};
use crate::scene::{TwoRegions, assert_pods_meet, founder, overlay_ipv4, static_pair};

/// Ten times the figure for a first connection (1 s).
const CONNECTED: Duration = Duration::from_secs(10);
/// Ten times the figure for healing (3 s).
const HEALED: Duration = Duration::from_secs(30);

#[test]
fn two_public_nodes_that_list_each_other_exchange_packets() {
    let lab = Lab::new();
    let (mut a, mut b) = static_pair(&lab);
    a.up();
    b.up();
    let (peer, _) = a.wait_direct("b", CONNECTED);
    assert_eq!(peer["source"], "config");
    b.wait_direct("a", CONNECTED);
    wait_until("b answers", CONNECTED, || {
        ping_once(&a.host.namespace, "10.77.0.2".parse().expect("an address"))
    });
}

#[test]
fn regions_behind_port_restricted_nats_meet_directly_and_the_introducer_carries_nothing() {
    let scene = TwoRegions::connected(Nat::new(NatKind::Prc), Nat::new(NatKind::Prc));
    assert_pods_meet(&scene.paris, &scene.tokyo);
    let (peer, _) = scene.paris.wait_direct("tokyo", CONNECTED);
    let remote = peer["path"]["remote"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    assert!(
        remote.starts_with(&scene.east.public_address().to_string()),
        "{peer}"
    );
    assert_eq!(peer["path"]["kind"], "ipv4", "{peer}");
    assert!(
        !peer["reason"].as_str().unwrap_or_default().is_empty(),
        "a state without a reason: {peer}"
    );

    let (from, to) = (scene.paris.pod(), scene.tokyo.pod());
    let _echo = Echo::start(&to.namespace);
    let tap = Tap::start(scene.lab.internet(), MARKER);
    let before = scene.lab.uplink_bytes(scene.hub.host.ipv4);
    let answered = udp_exchange(&from.namespace, IpAddr::V4(to.ipv4), 2000, 1000);
    assert!(answered >= 1990, "{answered} of 2000 answered");
    let hub = scene.lab.uplink_bytes(scene.hub.host.ipv4) - before;
    let pair = tap.bytes_between(
        scene.west.public_address().into(),
        scene.east.public_address().into(),
    );
    assert!(
        pair > 4_000_000,
        "the pair's own link carried {pair} bytes only"
    );
    assert!(
        hub < 40_000,
        "the introducer's uplink carried {hub} bytes meanwhile"
    );
}

#[test]
fn an_endpoint_independent_filter_meets_a_port_restricted_one() {
    assert_regions_meet(NatKind::Eif, NatKind::Prc);
}

#[test]
fn an_address_restricted_filter_meets_a_port_restricted_one() {
    assert_regions_meet(NatKind::Adf, NatKind::Prc);
}

#[test]
fn a_nat_that_changes_ports_meets_one_that_keeps_them() {
    assert_regions_meet(NatKind::PrcNotPreserving, NatKind::Prc);
}

#[test]
fn two_nats_that_change_ports_meet() {
    assert_regions_meet(NatKind::PrcNotPreserving, NatKind::PrcNotPreserving);
}

#[test]
fn an_address_restricted_filter_meets_an_endpoint_independent_one() {
    assert_regions_meet(NatKind::Adf, NatKind::Eif);
}

#[test]
fn a_firewall_without_nat_meets_a_port_restricted_one() {
    assert_regions_meet(NatKind::Firewall, NatKind::Prc);
}

#[test]
fn a_host_with_every_port_forwarded_meets_a_nat_that_changes_ports() {
    assert_regions_meet(NatKind::Open, NatKind::PrcNotPreserving);
}

#[test]
fn a_carriers_nat_in_front_of_the_home_router_is_no_obstacle() {
    for carrier in [NatKind::Prc, NatKind::Eif] {
        let scene = TwoRegions::connected(
            Nat::new(NatKind::Prc).behind(carrier),
            Nat::new(NatKind::Prc),
        );
        assert_pods_meet(&scene.paris, &scene.tokyo);
    }
}

#[test]
fn ipv6_behind_firewalls_is_preferred_to_ipv4_through_nats() {
    let scene = TwoRegions::connected(Nat::new(NatKind::Prc).ipv6(), Nat::new(NatKind::Prc).ipv6());
    assert_pods_meet(&scene.paris, &scene.tokyo);
    wait_until("the path is IPv6", HEALED, || {
        let peer = scene.paris.peer("tokyo")?;
        if peer["path"]["kind"] == "ipv6" {
            Ok(())
        } else {
            Err(peer["path"].to_string())
        }
    });
}

#[test]
fn two_nodes_behind_one_nat_meet_in_the_lan_whether_it_hairpins_or_not() {
    for nat in [Nat::new(NatKind::Prc), Nat::new(NatKind::Prc).hairpin()] {
        let lab = Lab::new();
        let site = lab.site("home", nat);
        let mut hub = founder(&lab, lab.public_host("hub"));
        hub.up();
        let mut nodes = [("attic", 1), ("cellar", 2)]
            .map(|(name, number)| Node::new(&lab, site.host(name)).with_pod(&lab, number));
        for node in &mut nodes {
            node.up();
            node.join(&hub);
        }
        let [attic, cellar] = &nodes;
        attic.wait_direct("cellar", CONNECTED);
        assert_pods_meet(attic, cellar);
        wait_until("the path is the LAN's", HEALED, || {
            let peer = attic.peer("cellar")?;
            if peer["path"]["kind"] == "lan" {
                Ok(())
            } else {
                Err(peer["path"].to_string())
            }
        });
    }
}

#[test]
fn symmetric_nats_on_both_sides_are_named_as_the_reason_for_no_path() {
    let scene = TwoRegions::joined(Nat::new(NatKind::Symmetric), Nat::new(NatKind::Symmetric));
    let reason = wait_until("status gives a reason", PATIENCE, || {
        let peer = scene.paris.peer("tokyo")?;
        let reason = peer["reason"].as_str().unwrap_or_default().to_owned();
        if peer["state"] != "direct" && !reason.is_empty() {
            Ok(reason)
        } else {
            Err(peer.to_string())
        }
    });
    assert!(!reason.0.is_empty());
    scene.paris.wait_finding("no-path", PATIENCE);
    scene.paris.wait_direct("hub", CONNECTED);
}

#[test]
fn a_host_without_ipv6_takes_part_by_ipv4() {
    let lab = Lab::new();
    let mut hub = founder(&lab, lab.public_host("hub"));
    hub.up();
    let site = lab.site("home", Nat::new(NatKind::Prc));
    let mut old = Node::new(&lab, site.host("old"));
    old.host
        .namespace
        .sysctl("net/ipv6/conf/all/disable_ipv6", "1");
    old.host
        .namespace
        .sysctl("net/ipv6/conf/default/disable_ipv6", "1");
    old.up();
    old.join(&hub);
    old.wait_direct("hub", CONNECTED);
    hub.wait_direct("old", CONNECTED);
    wait_until("the hub answers", CONNECTED, || {
        ping_once(&old.host.namespace, overlay_ipv4(&hub))
    });
    assert!(old.overlay().iter().all(IpAddr::is_ipv4));
}

#[test]
fn traffic_heals_when_a_nat_forgets_its_mappings() {
    let scene = TwoRegions::connected(Nat::new(NatKind::PrcNotPreserving), Nat::new(NatKind::Prc));
    let (from, to) = (scene.paris.pod(), scene.tokyo.pod());
    wait_until("pods meet", CONNECTED, || {
        ping_once(&from.namespace, to.ipv4.into())
    });
    let pings = Pings::start(
        &from.namespace,
        to.ipv4.into(),
        1500,
        Duration::from_millis(10),
    );
    scene.west.forget_mappings();
    scene.east.forget_mappings();
    let report = pings.finish();
    eprintln!("mappings forgotten: {report:?}");
    assert!(report.longest_gap < HEALED, "{report:?}");
    wait_until("pods meet again", HEALED, || {
        ping_once(&from.namespace, to.ipv4.into())
    });
}

#[test]
fn traffic_heals_when_a_region_gets_another_public_address() {
    let scene = TwoRegions::connected(Nat::new(NatKind::Prc), Nat::new(NatKind::Prc));
    let (from, to) = (scene.paris.pod(), scene.tokyo.pod());
    wait_until("pods meet", CONNECTED, || {
        ping_once(&from.namespace, to.ipv4.into())
    });
    scene.lab.renumber(&scene.west);
    let ((), healed) = wait_until("pods meet again", HEALED, || {
        ping_once(&from.namespace, to.ipv4.into())
    });
    eprintln!("public address changed: healed after {healed:?}");
    assert_pods_meet(&scene.paris, &scene.tokyo);
}

#[test]
fn a_laptop_that_moves_to_another_network_is_reached_there() {
    let mut scene = TwoRegions::connected(Nat::new(NatKind::Prc), Nat::new(NatKind::Prc));
    let cafe = scene.lab.site("cafe", Nat::new(NatKind::PrcNotPreserving));
    scene.paris.host.unplug();
    cafe.plug(&mut scene.paris.host);
    let (from, to) = (scene.tokyo.pod().clone(), scene.paris.pod().clone());
    let ((), healed) = wait_until("pods meet again", HEALED, || {
        ping_once(&from.namespace, to.ipv4.into())
    });
    eprintln!("moved to another network: healed after {healed:?}");
}

#[test]
fn a_region_heals_when_its_uplink_was_cut_for_a_while() {
    let scene = TwoRegions::connected(Nat::new(NatKind::Prc), Nat::new(NatKind::Prc));
    let (from, to) = (scene.paris.pod(), scene.tokyo.pod());
    scene
        .lab
        .set_uplink(scene.west.public_address(), LinkState::Cut);
    wait_until(
        "the path is noticed as dead",
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
    scene
        .lab
        .set_uplink(scene.west.public_address(), LinkState::Whole);
    wait_until("pods meet again", HEALED, || {
        ping_once(&from.namespace, to.ipv4.into())
    });
}

#[test]
fn connected_nodes_do_not_notice_that_the_introducer_dies() {
    let mut scene = TwoRegions::connected(Nat::new(NatKind::Prc), Nat::new(NatKind::Prc));
    let (from, to) = (scene.paris.pod().clone(), scene.tokyo.pod().clone());
    wait_until("pods meet", CONNECTED, || {
        ping_once(&from.namespace, to.ipv4.into())
    });
    let pings = Pings::start(
        &from.namespace,
        to.ipv4.into(),
        1000,
        Duration::from_millis(10),
    );
    scene.hub.kill();
    scene.lab.set_uplink(scene.hub.host.ipv4, LinkState::Cut);
    let report = pings.finish();
    assert_eq!(report.lost(), 0, "{report:?}");
}

#[test]
fn a_node_restarts_from_disk_while_the_introducer_is_gone() {
    let mut scene = TwoRegions::connected(Nat::new(NatKind::Prc), Nat::new(NatKind::Prc));
    scene.hub.kill();
    scene.paris.kill();
    scene.paris.start();
    let (_, took) = timed(|| scene.paris.wait_direct("tokyo", HEALED));
    eprintln!("restarted from disk without the introducer: direct after {took:?}");
    assert_pods_meet(&scene.paris, &scene.tokyo);
}

fn assert_regions_meet(west: NatKind, east: NatKind) {
    let scene = TwoRegions::connected(Nat::new(west), Nat::new(east));
    assert_pods_meet(&scene.paris, &scene.tokyo);
}
