//! Many peers at once: who floods takes nothing from the others.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use common::{Node, packet, peer, secret, settle, start};
use data_plane::counters::Count;

mod common;

const TURN: usize = 256 * 1024;
/// Of a datagram that holds 1,400 bytes.
const DATAGRAM: usize = 1440;

/// A node with a flooder, 10.0.0.2, and somebody who says little, 10.0.0.3; all have sessions.
struct Three {
    hub: Node,
    flooder: Node,
    quiet: Node,
}

impl Three {
    fn new(now: Instant) -> Self {
        let mut hub = Node::new(&secret(1), "192.0.2.1:1");
        let mut other = |n: u8| {
            let mut node = Node::new(&secret(n), &format!("192.0.2.{n}:1"));
            let range = format!("10.0.0.{n}/32");
            hub.set_peer(secret(n).public(), peer(&[&range], None), now);
            let planned = peer(&["10.0.0.1/32"], Some(hub.address));
            node.set_peer(secret(1).public(), planned, now);
            node.send(&inner(n, 0), now);
            settle(&mut node, &mut hub, now);
            node
        };
        let (flooder, quiet) = (other(2), other(3));
        assert_eq!(hub.received.len(), 2);
        hub.received.clear();
        Self {
            hub,
            flooder,
            quiet,
        }
    }

    /// A turn in which the flooder sends so many, and the other one in the midst of them. Says how many came of each.
    fn turn(&mut self, flood: usize, full: bool, now: Instant) -> (usize, usize) {
        for n in 0..flood {
            if n == flood / 2 {
                deliver(&mut self.quiet, &mut self.hub, 3, now);
            }
            deliver(&mut self.flooder, &mut self.hub, 2, now);
        }
        if full {
            self.hub.core.socket_is_full();
        }
        self.hub.core.handle_timeout(now, &mut self.hub.out);
        let from = |n| move |packet: &&Vec<u8>| packet[15] == n;
        let count = |n| self.hub.received.iter().filter(from(n)).count();
        let counts = (count(2), count(3));
        self.hub.received.clear();
        counts
    }
}

fn inner(n: u8, filling: u8) -> Vec<u8> {
    packet(&format!("10.0.0.{n}"), "10.0.0.1", 1400, filling)
}

fn deliver(node: &mut Node, hub: &mut Node, n: u8, now: Instant) {
    node.send(&inner(n, 1), now);
    let from: SocketAddr = node.address;
    for (_, datagram) in node.take() {
        hub.receive(from, &datagram, now);
    }
    node.sent.clear();
}

#[test]
fn while_the_socket_stays_full_a_flood_is_cut_and_who_sends_little_loses_nothing() {
    let now = start();
    let mut three = Three::new(now);
    let flood = 400;
    assert_eq!(
        three.turn(flood, true, now),
        (flood, 1),
        "so far all is well"
    );
    let mut dropped = 0;
    for pressure in 1..=6 {
        let share = (TURN >> pressure.min(4)) / DATAGRAM;
        let limit = TURN << pressure.min(4);
        assert_eq!(three.hub.core.receive_limit(), limit, "more is read");
        let came = three.turn(flood, true, now);
        assert_eq!(came, (share.min(flood), 1), "after {pressure} turns");
        dropped += flood - came.0;
    }
    assert_eq!(three.hub.count(Count::OverShare), dropped as u64);

    // It empties: step by step all is opened again.
    for _ in 0..4 {
        three.turn(1, false, now);
    }
    assert_eq!(three.hub.core.receive_limit(), TURN);
    assert_eq!(three.turn(flood, false, now), (flood, 1));
}

#[test]
fn a_peer_that_is_alone_is_never_cut() {
    let now = start();
    let mut three = Three::new(now);
    let later = now + Duration::from_secs(1);
    // The other one was heard, and is forgotten.
    three.turn(1, false, now);
    three.turn(0, false, later);
    three.turn(0, false, later + Duration::from_secs(1));
    for _ in 0..6 {
        for _ in 0..400 {
            deliver(&mut three.flooder, &mut three.hub, 2, later);
        }
        three.hub.core.socket_is_full();
        let until = later + Duration::from_secs(2);
        three.hub.core.handle_timeout(until, &mut three.hub.out);
    }
    assert_eq!(three.hub.received.len(), 6 * 400);
    assert_eq!(three.hub.core.receive_limit(), TURN);
}

#[test]
fn some_packets_wait_for_each_peer_however_many_others_have() {
    let now = start();
    let mut node = Node::new(&secret(1), "192.0.2.1:1");
    for n in 2..=101 {
        let range = format!("10.0.0.{n}/32");
        let endpoint = SocketAddr::from(([192, 0, 2, n], 1));
        let planned = peer(&[&range], Some(endpoint));
        node.plan.peers.insert(secret(n).public(), planned);
    }
    node.apply(now);
    for n in 2..=101 {
        for _ in 0..200 {
            node.send(&packet("10.0.0.1", &format!("10.0.0.{n}"), 100, n), now);
        }
    }
    let waiting = 64 * 128 + 36 * 4;
    assert_eq!(node.count(Count::StagedFull), 100 * 200 - waiting);
}
