//! A third of the matrix, carried by the kernel: one cell of each method of traversal, and what needs a relay.

use std::time::Duration;

use crate::cell::{Class, Pair, Way, entry};
use crate::lab::traffic::bulk;
use crate::scene::assert_pods_meet;

/// Emulation is slow, and all agents share one processor.
const SLACK: u32 = 10;
/// Starting an agent alone takes seconds there when the machine is busy.
const LEAST: Duration = Duration::from_secs(15);
/// How long a relayed pair is watched.
const WATCHED: Duration = Duration::from_secs(10);

#[test]
fn an_open_nat_and_random_ports_meet_directly() {
    assert_direct(Class::Open, Class::Rand);
}

#[test]
fn an_address_filtering_nat_and_one_that_maps_by_address_meet_directly() {
    assert_direct(Class::Adf, Class::Adm);
}

#[test]
fn two_port_filtering_nats_meet_directly() {
    assert_direct(Class::Apdf, Class::Apdf);
}

#[test]
fn a_port_filtering_nat_and_a_sequential_one_meet_directly() {
    assert_direct(Class::Apdf, Class::Seq);
}

#[test]
fn a_port_filtering_nat_and_a_block_of_ports_meet_directly() {
    assert_direct(Class::Apdf, Class::Blk);
}

#[test]
fn a_port_filtering_nat_and_random_ports_meet_directly() {
    assert_direct(Class::Apdf, Class::Rand);
}

#[test]
fn two_sequential_nats_meet_directly() {
    assert_direct(Class::Seq, Class::Seq);
}

#[test]
fn two_blocks_of_ports_meet_directly() {
    assert_direct(Class::Blk, Class::Blk);
}

#[test]
fn two_nats_that_map_by_address_are_relayed() {
    assert_relayed(Class::Adm, Class::Adm);
}

#[test]
fn random_ports_on_both_sides_are_relayed() {
    assert_relayed(Class::Rand, Class::Rand);
}

fn assert_direct(west: Class, east: Class) {
    let mut pair = Pair::new(west, east);
    let most = (west.figure(east) * SLACK).max(LEAST);
    let trial = pair.trial(most, Some(Way::Direct));
    println!("{west} with {east}: {trial:?}");
    assert!(trial.direct.is_some(), "not direct within {most:?}");
    assert_pods_meet(&pair.paris, &pair.tokyo);
    assert_one_port(&pair);
    // On a busy machine the emulated one loses packets, and a suspect path is left for the relay for a while.
    let (sent, relayed) = pair.weigh();
    assert!(
        relayed < sent / 2,
        "of {sent} bytes {relayed} crossed the relay's link"
    );
}

fn assert_relayed(west: Class, east: Class) {
    let mut pair = Pair::new(west, east);
    let trial = pair.trial(Duration::from_secs(20), Some(Way::Relay));
    println!("{west} with {east}: {trial:?}");
    assert_pods_meet(&pair.paris, &pair.tokyo);
    let (silence, changes) = pair.watch(WATCHED);
    assert!(silence < Duration::from_secs(2), "silent for {silence:?}");
    assert_eq!(changes, Vec::<String>::new());
    for (node, peer) in [(&pair.paris, "tokyo"), (&pair.tokyo, "paris")] {
        let entry = entry(&node.ask("/status").expect("the agent answers"), peer);
        assert_eq!(entry["path"]["kind"], "node-relay", "{entry}");
    }
    let (from, to) = (pair.paris.pod(), pair.tokyo.pod());
    let took = bulk(&from.namespace, &to.namespace, to.ipv4, 1_000_000);
    println!("1 MB relayed in {took:?}");
    assert_one_port(&pair);
}

/// Whatever port a search was lucky with: the kernel's WireGuard keeps the one it listens on.
fn assert_one_port(pair: &Pair) {
    for node in [&pair.paris, &pair.tokyo] {
        let status = node.ask("/status").expect("the agent answers");
        let arguments = ["show", "farspan0", "listen-port"];
        let held = node.host.namespace.output("wg", &arguments);
        assert_eq!(held.trim(), status["node"]["listen_port"].to_string());
        assert_eq!(status["node"]["backend"], "kernel");
    }
}
