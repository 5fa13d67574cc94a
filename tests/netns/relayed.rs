//! A member that relays: by its kernel, at a rate, for members only.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use mesh_types::consts::RELAY_PORTS;

use crate::cell::{Class, Pair, entry};
use crate::lab::agent::PATIENCE;
use crate::lab::tap::Tap;
use crate::lab::traffic::{MARKER, bulk};
use crate::lab::wait::wait_until;
use crate::lab::wire::Wire;

/// STUN Binding indication: a bind.
const INDICATION: [u8; 2] = [0x00, 0x11];
/// Datagrams of each sort that a stranger sends.
const FLOOD: usize = 500;
const MB: u64 = 1_000_000;

#[test]
fn random_nats_exchange_100_mb_by_tcp_through_the_kernel_of_a_relay() {
    let pair = relayed("pair-rate = \"10Gbit/s\"");
    let (from, to) = (pair.paris.pod(), pair.tokyo.pod());
    let crossed = || pair.lab.uplink_bytes(pair.hub.host.ipv4);
    let (link, cpu) = (crossed(), pair.hub.cpu_time());
    let took = bulk(&from.namespace, &to.namespace, to.ipv4, 100 * MB);
    let (link, cpu) = (crossed() - link, pair.hub.cpu_time() - cpu);
    println!(
        "100 MB relayed in {took:?}; the relay's agent took {cpu:?}; {link} bytes on its link"
    );
    assert!(
        cpu < Duration::from_millis(50),
        "the relay's agent took {cpu:?}"
    );
    assert!(link > 200 * MB, "{link} bytes crossed the relay's link");
    for (node, peer) in [(&pair.paris, "tokyo"), (&pair.tokyo, "paris")] {
        let entry = entry(&node.ask("/status").expect("the agent answers"), peer);
        assert_eq!(entry["state"], "relayed", "{entry}");
        assert_eq!(entry["path"]["kind"], "node-relay", "{entry}");
        assert_eq!(entry["path"]["via"], "hub", "{entry}");
    }
}

#[test]
fn a_relayed_pair_is_held_to_its_rate_and_so_is_a_node() {
    for settings in [
        "pair-rate = \"20Mbit/s\"",
        "pair-rate = \"1Gbit/s\"\nnode-rate = \"20Mbit/s\"",
    ] {
        let pair = relayed(settings);
        let (from, to) = (pair.paris.pod(), pair.tokyo.pod());
        let took = bulk(&from.namespace, &to.namespace, to.ipv4, 20 * MB);
        println!("20 MB relayed in {took:?} with {settings}");
        // What one second allows may go at once.
        assert!(took > Duration::from_secs(6), "20 MB in {took:?}");
        assert!(took < Duration::from_secs(40), "20 MB in {took:?}");
    }
}

#[test]
fn strangers_get_nothing_from_a_relay_and_a_bind_replayed_from_elsewhere_changes_nothing() {
    let mut pair = Pair::joined(Class::Rand, Class::Rand, "");
    let relay = pair.hub.host.ipv4;
    let lent = move |to: SocketAddr| to.ip() == relay && ports().contains(&to.port());
    pair.wait_relayed();
    // A restart makes members bind anew: what is recorded is fresh. Requests of their lives before are answered, with
    // the epoch that they have reached.
    pair.paris.kill();
    pair.tokyo.kill();
    let wire = Wire::start(&pair.hub.host.namespace, Box::new(move |one| lent(one.to)));
    pair.paris.up();
    pair.tokyo.up();
    pair.wait_relayed();
    let (recorded, _) = wait_until("binds and ciphertext pass", PATIENCE, || {
        let kept = wire.kept();
        let is_bind = |bytes: &[u8]| bytes.starts_with(&INDICATION);
        let binds = kept.iter().filter(|one| is_bind(&one.payload)).count();
        if binds >= 2 && kept.len() > binds + 2 {
            Ok(kept)
        } else {
            Err(format!("{binds} binds of {} datagrams", kept.len()))
        }
    });
    let before = pairs(&pair);
    assert!(!before.is_empty(), "the relay's kernel holds the pair");

    let mallory = pair.lab.public_host("mallory");
    let heard = {
        let own = mallory.ipv4;
        Wire::start(
            &mallory.namespace,
            Box::new(move |one| one.from.ip() == relay && one.to.ip() == own),
        )
    };
    let tap = Tap::start(&pair.tokyo.host.namespace, MARKER);
    let main = pair.hub.status().expect("a status")["node"]["listen_port"]
        .as_u64()
        .and_then(|port| u16::try_from(port).ok())
        .expect("a port");
    let flood = || {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a port is free");
        let mut targets: Vec<SocketAddr> = recorded.iter().map(|one| one.to).collect();
        targets.push(SocketAddr::new(relay.into(), main));
        targets.sort();
        targets.dedup();
        for one in recorded.iter().rev().take(FLOOD) {
            for target in &targets {
                for bytes in [&one.payload[..], MARKER] {
                    // A full queue refuses some; the rest is flood enough.
                    let _ = socket.send_to(bytes, target);
                }
            }
        }
    };
    let (silence, changes) = std::thread::scope(|scope| {
        scope.spawn(|| (0..3).for_each(|_| mallory.namespace.enter(flood)));
        pair.watch(Duration::from_secs(5))
    });
    assert_eq!(changes, Vec::<String>::new());
    assert!(silence < Duration::from_secs(1), "silent for {silence:?}");
    assert_eq!(pairs(&pair), before);
    assert_eq!(heard.kept().len(), 0, "{:?}", heard.kept().first());
    assert_eq!(tap.hits(), 0, "a stranger's datagram was relayed");
}

/// A pair that only a relay can connect, relayed; `settings` of the relay.
fn relayed(settings: &str) -> Pair {
    let pair = Pair::joined(Class::Rand, Class::Rand, settings);
    pair.wait_relayed();
    pair
}

fn ports() -> std::ops::RangeInclusive<u16> {
    RELAY_PORTS.0..=RELAY_PORTS.1
}

/// What the relay's kernel does with whom.
fn pairs(pair: &Pair) -> Vec<String> {
    let arguments = ["list", "map", "inet", "farspan", "relay_forward4"];
    let map = pair.hub.host.namespace.output("nft", &arguments);
    map.lines()
        .filter(|line| line.contains(" : "))
        .map(|line| line.trim().to_owned())
        .collect()
}
