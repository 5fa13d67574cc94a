//! Packets of one turn, sealed and opened together.

use std::sync::Arc;
use std::time::Instant;

use batch_aead::{Key, Message};
use boringtun::noise::batch::Reserved;
use common::{Node, packet, peer, secret, settle, start};
use data_plane::counters::Count;
use data_plane::outbox::{Destination, OVERHEAD, Outbox};
use proptest::prelude::*;

mod common;

/// A hub at 10.0.0.1 with peers at 10.0.0.2 and so on, and a session with each.
fn star(peers: u8, now: Instant) -> (Node, Vec<Node>) {
    let mut hub = Node::new(&secret(1), "192.0.2.1:1000");
    let mut others = Vec::new();
    for n in 2..2 + peers {
        let mut other = Node::new(&secret(n), &format!("192.0.2.{n}:1000"));
        let known = peer(&["10.0.0.1/32"], Some(hub.address));
        other.set_peer(secret(1).public(), known, now);
        let range = format!("10.0.0.{n}/32");
        hub.set_peer(secret(n).public(), peer(&[&range], None), now);
        other.send(&inner(n, 100, 0), now);
        settle(&mut other, &mut hub, now);
        others.push(other);
    }
    assert_eq!(hub.received.len(), usize::from(peers), "no sessions");
    hub.received.clear();
    (hub, others)
}

fn inner(n: u8, len: usize, filling: u8) -> Vec<u8> {
    packet(&format!("10.0.0.{n}"), "10.0.0.1", len, filling)
}

#[test]
fn what_is_wrong_among_packets_of_a_turn_is_refused_and_its_neighbours_are_taken_in_order() {
    let now = start();
    let (mut hub, mut others) = star(3, now);
    let mut sent = Vec::new();
    for n in 0..150u8 {
        let who = usize::from(n % 3);
        let other = &mut others[who];
        other.send(&inner(who as u8 + 2, 60 + usize::from(n) * 9, n), now);
        sent.extend(other.take().into_iter().map(|(_, bytes)| (n, bytes)));
    }
    let mut turn: Vec<(u8, Vec<u8>)> = sent.clone();
    let spoiled = [0, 7, 15, 16, 63, 64, 100, 149];
    for at in spoiled {
        let bytes = &mut turn[at].1;
        let last = bytes.len() - 1;
        bytes[[last, 16, last - 15][at % 3]] ^= 1;
    }
    // Twice in one batch, and in one that comes later.
    let twice = [(3, 5), (20, 90), (21, 140)];
    for (at, after) in twice {
        turn.insert(after, sent[at].clone());
    }
    let datagrams = turn.iter().map(|(n, bytes)| {
        let from = others[usize::from(n % 3)].address;
        (from, bytes.as_slice())
    });
    hub.receive_all(datagrams, now);
    let expected: Vec<Vec<u8>> = (0..150u8)
        .filter(|n| !spoiled.contains(&usize::from(*n)))
        .map(|n| inner(n % 3 + 2, 60 + usize::from(n) * 9, n))
        .collect();
    assert_eq!(hub.received, expected);
    assert_eq!(hub.count(Count::Undecryptable), spoiled.len() as u64);
    assert_eq!(hub.count(Count::Replayed), twice.len() as u64);
    // Whose number was not used up by what was wrong.
    hub.received.clear();
    hub.receive_all([(others[1].address, sent[7].1.as_slice())], now);
    assert_eq!(hub.received, [inner(3, 60 + 63, 7)]);
}

#[test]
fn what_is_refused_alone_leaves_room_for_what_comes() {
    let now = start();
    let (mut hub, mut others) = star(1, now);
    let other = &mut others[0];
    other.send(&inner(2, 1400, 1), now);
    let (_, mut bad) = other.take().remove(0);
    bad[20] ^= 1;
    for _ in 0..1000 {
        hub.receive(other.address, &bad, now);
    }
    other.send(&inner(2, 1400, 2), now);
    let (_, good) = other.take().remove(0);
    hub.receive(other.address, &good, now);
    assert_eq!(hub.received, [inner(2, 1400, 2)]);
    assert_eq!(hub.count(Count::Undecryptable), 1000);
}

#[test]
fn a_turn_may_hold_more_than_the_inbox_if_it_is_emptied_when_it_is_full() {
    let now = start();
    let (mut hub, mut others) = star(1, now);
    let other = &mut others[0];
    let address = other.address;
    let mut taken = 0;
    for n in 0..400u32 {
        other.send(&inner(2, 1400, n as u8), now);
        let (_, bytes) = other.take().remove(0);
        let Node {
            core, inbox, out, ..
        } = &mut hub;
        core.handle_datagram((address, None), &bytes, now, inbox, out);
        if inbox.is_full() {
            inbox.drain(|_, _, count| taken += count);
        }
    }
    let Node {
        core, inbox, out, ..
    } = &mut hub;
    core.open_waiting(now, inbox, out);
    inbox.drain(|_, _, count| taken += count);
    assert_eq!(taken, 400);
}

proptest! {
    #[test]
    fn packets_of_sessions_are_sealed_in_order_whatever_comes_between_them(
        all in proptest::collection::vec((0..1500usize, 0..3usize, 0..2u32), 1..200),
        looks in 1..50usize,
    ) {
        let keys = [Arc::new(Key::new(&[1; 32])), Arc::new(Key::new(&[2; 32]))];
        let mut out = Outbox::new();
        let to = |peer| Destination { peer, remote: "192.0.2.1:1".parse().unwrap(), local: None, also: None };
        for (n, &(len, kind, peer)) in all.iter().enumerate() {
            if let Some(key) = keys.get(kind) {
                let place = Reserved { receiver: kind as u32, counter: n as u64, key };
                let sent = out.add(to(peer), &place, &vec![n as u8; len]);
                prop_assert_eq!(sent, Some(len + OVERHEAD));
            } else {
                let write = |room: &mut [u8]| {
                    room[..148].fill(n as u8);
                    Some(148)
                };
                prop_assert!(out.write(to(peer), 148, write));
            }
            // Whoever looks meanwhile has them sealed once, and no more than once.
            if n % looks == 0 {
                out.messages();
            }
        }
        for peer in 0..2 {
            let messages = out.messages().iter().filter(|message| message.to.peer == peer);
            let mut got = messages.flat_map(|message| message.datagrams());
            let expected = all.iter().enumerate().filter(|(_, (_, _, to))| *to == peer);
            for (n, &(len, kind, _)) in expected {
                let datagram = got.next().expect("as many datagrams as packets");
                let Some(key) = keys.get(kind) else {
                    prop_assert_eq!(datagram, vec![n as u8; 148]);
                    continue;
                };
                let mut header = vec![4, 0, 0, 0, kind as u8, 0, 0, 0];
                header.extend((n as u64).to_le_bytes());
                prop_assert_eq!(&datagram[..16], header);
                let mut bytes = datagram[16..].to_vec();
                let message = Message { key, counter: n as u64, bytes: &mut bytes };
                let mut authentic = [false];
                batch_aead::reference().open(&mut [message], &mut authentic);
                prop_assert!(authentic[0]);
                prop_assert_eq!(&bytes[..len], vec![n as u8; len]);
            }
            prop_assert_eq!(got.next(), None);
        }
    }
}
