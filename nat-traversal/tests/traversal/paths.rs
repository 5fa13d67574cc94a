//! Two or three nodes find, keep and change their paths.

use std::net::SocketAddr;
use std::time::Duration;

use mesh_types::{Filtering, Mapping};
use nat_traversal::{Event, PathKind};

use crate::net::{DELAY, Net, host};

const SECOND: Duration = Duration::from_secs(1);

/// Two sites behind port-restricted NATs, and a public node that both know and that knows both.
fn two_sites() -> (Net, usize, usize, usize) {
    let mut net = Net::new();
    let (first, second) = (net.nat("203.0.113.1"), net.nat("198.51.100.1"));
    let a = net.node("192.168.1.10", Some(first));
    let b = net.node("192.168.2.10", Some(second));
    let c = net.node("192.0.2.99", None);
    net.introduce(a, c);
    net.introduce(b, c);
    net.introduce(a, b);
    (net, a, b, c)
}

/// Two nodes behind one NAT that hairpins; they have yet to hear of each other.
fn one_site() -> (Net, usize, usize, usize) {
    let mut net = Net::new();
    let site = net.nat("203.0.113.1");
    net.nats[site].filtering = false;
    net.signals = false;
    let a = net.node("192.168.1.10", Some(site));
    let b = net.node("192.168.1.11", Some(site));
    let c = net.node("192.0.2.99", None);
    net.introduce(a, c);
    net.introduce(b, c);
    net.run(SECOND);
    (net, site, a, b)
}

fn changes(net: &Net, node: usize, peer: usize) -> usize {
    let id = net.nodes[peer].id;
    let changed = |event: &Event| matches!(event, Event::PathChanged { peer } if *peer == id);
    net.nodes[node]
        .events
        .iter()
        .filter(|(_, e)| changed(e))
        .count()
}

#[test]
fn a_public_node_is_reached_in_two_round_trips() {
    let mut net = Net::new();
    let site = net.nat("203.0.113.1");
    let a = net.node("192.168.1.10", Some(site));
    let c = net.node("192.0.2.99", None);
    net.introduce(a, c);
    let took = net.until(SECOND, |net| net.connected(a, c)).unwrap();
    assert!(took <= DELAY * 4, "{took:?}");
    let id = net.nodes[c].id;
    net.run(SECOND);
    assert!(net.nodes[a].traversal.path(&id).unwrap().confirmed);
    assert!(net.passes(a, c) && net.passes(c, a));
}

#[test]
fn two_port_restricted_nats_open_to_each_other_by_a_call_through_a_third() {
    let (mut net, a, b, _) = two_sites();
    let took = net.until(SECOND, |net| net.connected(a, b)).unwrap();
    assert!(took <= Duration::from_millis(500), "{took:?}");
    net.run(5 * SECOND);
    assert!(net.passes(a, b) && net.passes(b, a));
    assert_eq!(net.path(a, b).unwrap().ip(), net.nats[1].public);
    assert!(changes(&net, a, b) <= 2 && changes(&net, b, a) <= 2);
}

#[test]
fn without_any_third_the_wall_clock_brings_known_addresses_together() {
    let mut net = Net::new();
    let (first, second) = (net.nat("203.0.113.1"), net.nat("198.51.100.1"));
    let a = net.node("192.168.1.10", Some(first));
    let b = net.node("192.168.2.10", Some(second));
    // Mappings 40001 are what each NAT gives its first flow.
    let reflexive = |ip: &str| mesh_types::Candidate {
        kind: mesh_types::CandidateKind::ServerReflexive,
        address: SocketAddr::new(ip.parse().unwrap(), 40_001),
    };
    net.tell_of(a, b, vec![reflexive("198.51.100.1")]);
    net.run(45 * SECOND);
    net.tell_of(b, a, vec![reflexive("203.0.113.1")]);
    let took = net.until(35 * SECOND, |net| net.connected(a, b));
    assert!(took.is_some());
}

#[test]
fn inside_one_site_the_lan_is_preferred_and_both_sides_agree() {
    let (mut net, site, a, b) = one_site();
    // The outer addresses are known first, and work (the NAT hairpins).
    for (node, peer) in [(a, b), (b, a)] {
        let own = net.nodes[peer].traversal.endpoints().to_vec();
        let outer = own
            .into_iter()
            .filter(|c| c.address.ip() == net.nats[site].public);
        net.tell_of(node, peer, outer.collect());
    }
    net.run(SECOND);
    assert_eq!(net.path(a, b).map(|p| p.ip()), Some(net.nats[site].public));
    for (node, peer) in [(a, b), (b, a)] {
        let own = net.nodes[peer].traversal.endpoints().to_vec();
        net.tell_of(node, peer, own);
    }
    net.run(SECOND);
    let path = |node: usize, peer: usize| {
        let id = net.nodes[peer].id;
        net.nodes[node].traversal.path(&id).unwrap().clone()
    };
    assert_eq!(
        (path(a, b).kind, path(b, a).kind),
        (PathKind::Lan, PathKind::Lan)
    );
    assert!(path(a, b).confirmed && path(b, a).confirmed);
    assert!(changes(&net, a, b) <= 2 && changes(&net, b, a) <= 2);
}

#[test]
fn answers_that_were_late_when_a_path_was_new_do_not_cost_it() {
    let (mut net, _, a, b) = one_site();
    let quick = std::mem::replace(&mut net.lan_delay, SECOND / 2);
    for (node, peer) in [(a, b), (b, a)] {
        net.tell_of(node, peer, vec![net.host_candidate(peer)]);
    }
    net.until(5 * SECOND, |net| net.connected(a, b)).unwrap();
    net.lan_delay = quick;
    for (node, peer) in [(a, b), (b, a)] {
        let own = net.nodes[peer].traversal.endpoints().to_vec();
        net.tell_of(node, peer, own);
    }
    net.run(10 * SECOND);
    assert_eq!(net.path(a, b).map(|p| p.ip()), Some(net.nodes[b].ip));
    let changes = (changes(&net, a, b), changes(&net, b, a));
    assert_eq!(changes, (1, 1), "the path was left for a while");
}

#[test]
fn a_path_heals_within_three_seconds_after_both_nats_forgot_it() {
    let (mut net, a, b, _) = two_sites();
    net.traffic.push((a, b));
    net.run(20 * SECOND);
    assert!(net.passes(a, b) && net.passes(b, a));
    net.forget_mappings(0);
    net.forget_mappings(1);
    net.run(Duration::from_millis(300));
    let took = net.until(3 * SECOND, |net| net.passes(a, b) && net.passes(b, a));
    // Reports of the tunnel come every 500 ms; after the second of them that is silent the path has two round trips.
    assert!(took.unwrap() < Duration::from_millis(1700), "{took:?}");
    net.run(30 * SECOND);
    assert!(net.passes(a, b) && net.passes(b, a));
    assert!(changes(&net, a, b) <= 6, "{}", changes(&net, a, b));
}

#[test]
fn a_path_heals_within_three_seconds_after_one_nat_forgot_it() {
    let (mut net, a, b, _) = two_sites();
    net.traffic.push((a, b));
    net.run(20 * SECOND);
    net.forget_mappings(0);
    net.run(Duration::from_millis(300));
    assert!(
        net.until(3 * SECOND, |net| net.passes(a, b) && net.passes(b, a))
            .is_some()
    );
}

#[test]
fn while_a_path_is_suspect_a_neighbour_is_asked_how_it_sees_us() {
    let (mut net, a, b, c) = two_sites();
    net.traffic.push((a, b));
    net.run(20 * SECOND);
    let suspects = |net: &Net| net.nodes[a].traversal.counters().value("suspects");
    let before = suspects(&net);
    net.nodes[b].up = false;
    net.nodes[a].sent.clear();
    net.until(3 * SECOND, |net| suspects(net) > before).unwrap();
    let suspect = net.now.mono;
    net.run(Duration::from_millis(200));
    let neighbour = net.host_candidate(c).address;
    let asked = |(at, to, _): &(_, _, _)| *at >= suspect && *to == neighbour;
    assert!(net.nodes[a].sent.iter().any(asked));
}

#[test]
fn an_idle_nodes_next_packet_tells_its_new_mapping() {
    let mut net = Net::new();
    let site = net.nat("203.0.113.1");
    let a = net.node("192.168.1.10", Some(site));
    let c = net.node("192.0.2.99", None);
    net.introduce(a, c);
    net.run(10 * SECOND);
    net.forget_mappings(site);
    net.nodes[a].sent.clear();
    net.until(30 * SECOND, |net| !net.nodes[a].sent.is_empty())
        .unwrap();
    assert!(net.until(SECOND, |net| net.passes(c, a)).is_some());
}

#[test]
fn a_node_that_moves_to_another_network_is_reached_again_within_three_seconds() {
    let (mut net, a, b, c) = two_sites();
    net.traffic.push((a, b));
    net.run(20 * SECOND);
    let elsewhere = net.nat("198.51.100.77");
    net.nodes[a].ip = "10.9.8.7".parse().unwrap();
    net.nodes[a].site = Some(elsewhere);
    let now = net.now;
    let moved = [host(net.nodes[a].ip)];
    net.nodes[a]
        .traversal
        .set_host_addresses(&moved, false, now);
    net.drain(a);
    net.run(Duration::from_millis(100));
    let healed = |net: &mut Net| {
        [(a, b), (b, a), (a, c), (c, a)]
            .into_iter()
            .all(|(from, to)| net.passes(from, to))
    };
    assert!(net.until(3 * SECOND, healed).is_some());
}

#[test]
fn a_dead_peer_is_noticed_and_a_restarted_one_found_again() {
    let (mut net, a, _, c) = two_sites();
    net.run(2 * SECOND);
    net.nodes[c].up = false;
    let lost = net.until(30 * SECOND, |net| net.path(a, c).is_none());
    assert!(lost.is_some());
    let report = net.nodes[a]
        .traversal
        .peer_report(&net.nodes[c].id)
        .unwrap();
    assert!(report.error.unwrap().contains("path broke"));
    net.nodes[c].up = true;
    net.restart(c, 1_800_000_100);
    net.tell(c, a);
    assert!(net.until(20 * SECOND, |net| net.connected(a, c)).is_some());
}

#[test]
fn an_idle_mesh_is_quiet_and_wakes_rarely() {
    let (mut net, a, b, c) = two_sites();
    net.run(60 * SECOND);
    for node in [a, b, c] {
        net.nodes[node].sent.clear();
        net.nodes[node].wakes = 0;
    }
    net.run(600 * SECOND);
    for node in [a, b, c] {
        let (sent, wakes) = (net.nodes[node].sent.len(), net.nodes[node].wakes);
        assert!(sent <= 300, "{sent} packets in ten minutes");
        assert!(wakes <= 200, "{wakes} wake-ups in ten minutes");
    }
    assert!(net.passes(a, b) && net.passes(b, a));
}

#[test]
fn a_machine_that_slept_probes_at_once() {
    let (mut net, a, b, c) = two_sites();
    net.run(10 * SECOND);
    net.jump(3600 * SECOND);
    net.run(Duration::from_millis(1));
    net.nodes[a].sent.clear();
    net.run(3 * SECOND);
    for (from, to) in [(a, c), (a, b), (b, a)] {
        assert!(net.passes(from, to));
    }
    assert_eq!(net.nodes[a].traversal.counters().value("moved"), 1);
}

#[test]
fn the_own_nat_is_told_from_what_peers_see() {
    let (mut net, a, b, c) = two_sites();
    net.nats[1].dependent = true;
    net.run(5 * SECOND);
    let nat = net.nodes[a].traversal.nat();
    assert_eq!(nat.mapping, Mapping::EndpointIndependent);
    assert_eq!(nat.filtering, Filtering::AddressAndPortDependent);
    let nat = net.nodes[b].traversal.nat();
    assert_eq!(nat.mapping, Mapping::AddressAndPortDependent);
    let nat = net.nodes[c].traversal.nat();
    assert_eq!(nat.mapping, Mapping::EndpointIndependent);
    assert!(!nat.udp_blocked);
}

#[test]
fn a_test_of_the_own_nat_that_is_repeated_comes_to_the_same() {
    let (mut net, a, ..) = two_sites();
    net.run(5 * SECOND);
    let before = net.nodes[a].traversal.nat();
    assert_eq!(before.filtering, Filtering::AddressAndPortDependent);
    for _ in 0..5 {
        let now = net.now;
        net.nodes[a].traversal.reprobe(now);
        // Now the translator lets in what comes from the port that the first test has asked.
        net.run(5 * SECOND);
        assert_eq!(net.nodes[a].traversal.nat(), before);
    }
}

#[test]
fn a_node_nobody_answers_knows_that_udp_is_blocked() {
    let mut net = Net::new();
    let a = net.node("192.0.2.1", None);
    for last in 2..6 {
        let b = net.node(&format!("192.0.2.{last}"), None);
        net.nodes[b].up = false;
        net.tell(a, b);
    }
    net.run(4 * SECOND);
    assert!(net.nodes[a].traversal.nat().udp_blocked);
}

#[test]
fn equal_seeds_give_equal_runs() {
    let run = || {
        let (mut net, a, ..) = two_sites();
        net.run(60 * SECOND);
        let start = net.start;
        let sent = std::mem::take(&mut net.nodes[a].sent);
        sent.into_iter()
            .map(|(at, to, bytes)| (at - start, to, bytes))
            .collect::<Vec<_>>()
    };
    assert!(run() == run());
}
