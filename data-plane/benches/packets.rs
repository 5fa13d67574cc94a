//! What the engine costs a packet beyond the bare cipher, without a system call: `cargo bench -p data-plane`.
//!
//! Each round works on one super-packet of 44 segments (or as many small packets), as in a drained turn.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::time::Instant;

use common::{MTU, Node, peer, secret, settle, start};
use data_plane::inbox::Inbox;
use data_plane::segment::{SLACK, Segments, VnetHeader};
use divan::Bencher;
use divan::counter::ItemsCount;
use mesh_types::key::WgSecret;
use mesh_types::plan::TunnelPeer;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

#[path = "../tests/common/mod.rs"]
#[expect(dead_code, reason = "tests use more of it")]
mod common;

/// Packets a round: what a super-packet of 64 KiB holds at an MTU of 1420.
const PACKETS: usize = 44;
/// Lengths of inner packets, bytes.
const LENGTHS: [usize; 2] = [92, 1420];
const TCP_HEADERS: usize = 40;

fn main() {
    divan::main();
}

#[divan::bench(args = LENGTHS)]
fn ring_seals(bencher: Bencher<'_, '_>, len: usize) {
    let key = key();
    let mut packet = vec![0; len];
    let mut counter = 0u64;
    bencher.counter(ItemsCount::new(PACKETS)).bench_local(|| {
        for _ in 0..PACKETS {
            counter += 1;
            let nonce = nonce(counter);
            let tag = key.seal_in_place_separate_tag(nonce, Aad::empty(), &mut packet);
            divan::black_box_drop(tag.expect("short enough"));
        }
    });
}

#[divan::bench(args = LENGTHS)]
fn ring_opens(bencher: Bencher<'_, '_>, len: usize) {
    let key = key();
    let mut sealed = vec![0; len];
    key.seal_in_place_append_tag(nonce(1), Aad::empty(), &mut sealed)
        .expect("short enough");
    let mut room = sealed.clone();
    bencher.counter(ItemsCount::new(PACKETS)).bench_local(|| {
        for _ in 0..PACKETS {
            room.copy_from_slice(&sealed);
            let plain = key.open_in_place(nonce(1), Aad::empty(), &mut room);
            divan::black_box(plain.expect("authentic"));
        }
    });
}

/// From the TUN's buffer to messages that are ready to send.
#[divan::bench(args = LENGTHS)]
fn core_sends(bencher: Bencher<'_, '_>, len: usize) {
    let now = start();
    let (mut a, _) = connected(now);
    let (packet, header) = super_packet(len, 0);
    let mut buffer = packet.clone();
    bencher.counter(ItemsCount::new(PACKETS)).bench_local(|| {
        buffer.copy_from_slice(&packet);
        let len = packet.len() - SLACK;
        a.core.handle_tun(&mut buffer, len, header, now, &mut a.out);
        divan::black_box(a.out.messages());
        a.out.clear();
    });
}

/// From received datagrams to super-packets that are ready to be written.
#[divan::bench(args = LENGTHS)]
fn core_receives(bencher: Bencher<'_, '_>, len: usize) {
    let now = start();
    let (a, mut b) = connected(now);
    b.inbox = Inbox::new(true, true);
    let a = RefCell::new(a);
    let from = (address(1), None);
    bencher
        .counter(ItemsCount::new(PACKETS))
        .with_inputs(|| {
            let mut a = a.borrow_mut();
            let (mut packet, header) = super_packet(len, 0);
            let len = packet.len() - SLACK;
            let Node { core, out, .. } = &mut *a;
            core.handle_tun(&mut packet, len, header, now, out);
            a.take()
        })
        .bench_local_values(|datagrams| {
            for (_, datagram) in &datagrams {
                b.core
                    .handle_datagram(from, datagram, now, &mut b.inbox, &mut b.out);
            }
            b.core.open_waiting(now, &mut b.inbox, &mut b.out);
            b.inbox.drain(|parts, _, count| {
                divan::black_box((parts, count));
            });
            datagrams
        });
}

/// The same with one peer and with a thousand that have sessions: nine of ten super-packets are for ten of them, the
/// others for all in turn.
#[divan::bench(args = [1, 1000])]
fn core_sends_among(bencher: Bencher<'_, '_>, peers: u16) {
    let now = start();
    let (mut hub, _) = crowd(peers, now);
    let (packet, header) = super_packet(1420, 0);
    let mut buffer = packet.clone();
    let mut order = order(peers);
    bencher.counter(ItemsCount::new(PACKETS)).bench_local(|| {
        buffer.copy_from_slice(&packet);
        buffer[16..20].copy_from_slice(&inside(order.next().unwrap_or(0)));
        let len = packet.len() - SLACK;
        hub.core
            .handle_tun(&mut buffer, len, header, now, &mut hub.out);
        divan::black_box(hub.out.messages());
        hub.out.clear();
    });
}

/// The other way.
#[divan::bench(args = [1, 1000])]
fn core_receives_among(bencher: Bencher<'_, '_>, peers: u16) {
    let now = start();
    let (mut hub, others) = crowd(peers, now);
    hub.inbox = Inbox::new(true, true);
    let state = RefCell::new((others, order(peers)));
    bencher
        .counter(ItemsCount::new(PACKETS))
        .with_inputs(|| {
            let (others, order) = &mut *state.borrow_mut();
            let n = order.next().unwrap_or(0);
            let (mut packet, header) = super_packet(1420, 0);
            packet[12..16].copy_from_slice(&inside(n));
            packet[16..20].copy_from_slice(&[10, 0, 0, 1]);
            let len = packet.len() - SLACK;
            let Node { core, out, .. } = &mut others[usize::from(n)];
            core.handle_tun(&mut packet, len, header, now, out);
            let mut datagrams = Vec::new();
            for message in out.messages() {
                datagrams.extend(message.datagrams().map(<[u8]>::to_vec));
            }
            out.clear();
            ((outside(n), None), datagrams)
        })
        .bench_local_values(|(from, datagrams)| {
            for datagram in &datagrams {
                hub.core
                    .handle_datagram(from, datagram, now, &mut hub.inbox, &mut hub.out);
            }
            hub.core.open_waiting(now, &mut hub.inbox, &mut hub.out);
            hub.inbox.drain(|parts, _, count| {
                divan::black_box((parts, count));
            });
            datagrams
        });
}

/// Headers and checksums of the segments.
#[divan::bench(args = LENGTHS)]
fn segments_are_cut(bencher: Bencher<'_, '_>, len: usize) {
    let (packet, header) = super_packet(len, 0);
    let mut buffer = packet.clone();
    bencher.counter(ItemsCount::new(PACKETS)).bench_local(|| {
        buffer.copy_from_slice(&packet);
        let len = packet.len() - SLACK;
        let mut segments =
            Segments::new(&mut buffer, len, header, MTU.into()).expect("well formed");
        while let Some(segment) = segments.next_segment() {
            divan::black_box(segment);
        }
    });
}

/// Putting opened packets into the arena, checking their checksums, merging.
#[divan::bench(args = LENGTHS)]
fn packets_are_merged(bencher: Bencher<'_, '_>, len: usize) {
    let (mut packet, header) = super_packet(len, 0);
    let total = packet.len() - SLACK;
    let mut segments = Segments::new(&mut packet, total, header, MTU.into()).expect("well formed");
    let mut packets = Vec::new();
    while let Some(segment) = segments.next_segment() {
        packets.push(segment[..len].to_vec());
    }
    let mut inbox = Inbox::new(true, true);
    bencher.counter(ItemsCount::new(PACKETS)).bench_local(|| {
        for packet in &packets {
            if let Some(place) = inbox.reserve(packet) {
                inbox.push(place.start, len);
            }
        }
        inbox.drain(|parts, _, count| {
            divan::black_box((parts, count));
        });
    });
}

/// Both sides of a handshake, from the first packet to the last answer.
#[divan::bench]
fn handshake(bencher: Bencher<'_, '_>) {
    let now = start();
    bencher
        .with_inputs(|| pair(now))
        .bench_local_values(|(mut a, mut b)| {
            a.send(&common::packet("10.0.0.1", "10.0.0.2", 100, 1), now);
            settle(&mut a, &mut b, now);
            (a, b)
        });
}

/// What a packet waits at most when another peer wants a handshake: one initiation is answered, for a peer that
/// had no session.
#[divan::bench]
fn turn_with_an_initiation(bencher: Bencher<'_, '_>) {
    let now = start();
    bencher
        .with_inputs(|| {
            let (mut a, mut b) = pair(now);
            a.send(&common::packet("10.0.0.1", "10.0.0.2", 100, 1), now);
            a.turn(now);
            b.turn(now);
            for (_, initiation) in a.take() {
                b.receive(address(1), &initiation, now);
            }
            b
        })
        .bench_local_values(|mut b| {
            b.core.handle_timeout(now, &mut b.out);
            assert!(!b.out.is_empty());
            b
        });
}

fn key() -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &[7; 32]).expect("32 bytes"))
}

fn nonce(counter: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}

fn address(n: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, n], 1000))
}

fn pair(now: Instant) -> (Node, Node) {
    let mut a = Node::new(&secret(1), &address(1).to_string());
    let mut b = Node::new(&secret(2), &address(2).to_string());
    let (of_a, of_b) = (secret(1).public(), secret(2).public());
    a.set_peer(of_b, peer(&["10.0.0.2/32"], Some(address(2))), now);
    b.set_peer(of_a, peer(&["10.0.0.1/32"], None), now);
    (a, b)
}

/// A node, and so many others that have a session with it.
fn crowd(peers: u16, now: Instant) -> (Node, Vec<Node>) {
    let mut hub = Node::new(&secret(1), &address(1).to_string());
    let key = |n: u16| {
        let [high, low] = n.to_be_bytes();
        // Not the first byte: X25519 leaves its lower bits out.
        let mut bytes = [7; 32];
        bytes[1..3].copy_from_slice(&[high, low]);
        WgSecret::from_bytes(bytes)
    };
    let known = |n: u16| (key(n).public(), in_range(inside(n), outside(n)));
    hub.plan.peers = (0..peers).map(known).collect();
    hub.apply(now);
    let mut meet = |n: u16| {
        let mut node = Node::new(&key(n), &outside(n).to_string());
        let planned = in_range([10, 0, 0, 1], hub.address);
        node.set_peer(secret(1).public(), planned, now);
        let [a, b, c, d] = inside(n);
        let source = format!("{a}.{b}.{c}.{d}");
        node.send(&common::packet(&source, "10.0.0.1", 100, 1), now);
        settle(&mut node, &mut hub, now);
        node
    };
    let others = (0..peers).map(&mut meet).collect();
    assert_eq!(hub.received.len(), usize::from(peers), "all have sessions");
    hub.received.clear();
    (hub, others)
}

fn in_range(ip: [u8; 4], endpoint: SocketAddr) -> TunnelPeer {
    let [a, b, c, d] = ip;
    peer(&[&format!("{a}.{b}.{c}.{d}/32")], Some(endpoint))
}

fn order(peers: u16) -> impl Iterator<Item = u16> {
    let turn = move |n: u64| {
        if n % 10 == 9 {
            n / 10 % u64::from(peers)
        } else {
            n % u64::from(peers.min(10))
        }
    };
    (0..).map(move |n| turn(n) as u16)
}

fn inside(n: u16) -> [u8; 4] {
    let [high, low] = n.to_be_bytes();
    [10, 1, high, low]
}

fn outside(n: u16) -> SocketAddr {
    let [high, low] = n.to_be_bytes();
    SocketAddr::from(([198, 18, high, low], 1))
}

/// A session both ways, and 1,000 further peers with their ranges.
fn connected(now: Instant) -> (Node, Node) {
    let (mut a, mut b) = pair(now);
    for node in [&mut a, &mut b] {
        for n in 0..1000u16 {
            let [high, low] = n.to_be_bytes();
            let key = mesh_types::key::WgKey([high, low].repeat(16).try_into().expect("32 bytes"));
            let ranges = [
                format!("10.1.{high}.{low}/32"),
                format!("10.{}.{low}.0/24", 16 + high),
            ];
            let peer = peer(&[&ranges[0], &ranges[1]], None);
            node.plan.peers.insert(key, peer);
        }
        node.apply(now);
    }
    a.send(&common::packet("10.0.0.1", "10.0.0.2", 100, 1), now);
    settle(&mut a, &mut b, now);
    b.received.clear();
    (a, b)
}

/// A TCP super-packet from 10.0.0.1 to 10.0.0.2, to be cut into packets of `len` bytes.
fn super_packet(len: usize, sequence: u32) -> (Vec<u8>, VnetHeader) {
    let size = len - TCP_HEADERS;
    let mut packet = vec![0x5a; TCP_HEADERS + PACKETS * size + SLACK];
    let total = (packet.len() - SLACK) as u16;
    packet[..TCP_HEADERS].fill(0);
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&total.to_be_bytes());
    packet[6] = 0x40;
    packet[8] = 64;
    packet[9] = 6;
    packet[12..16].copy_from_slice(&[10, 0, 0, 1]);
    packet[16..20].copy_from_slice(&[10, 0, 0, 2]);
    packet[20..24].copy_from_slice(&[0x9c, 0x40, 0x14, 0x51]);
    packet[24..28].copy_from_slice(&sequence.to_be_bytes());
    packet[32] = 5 << 4;
    packet[33] = 0x10;
    let header = VnetHeader {
        flags: 1,
        gso_type: 1,
        header_len: TCP_HEADERS as u16,
        gso_size: size as u16,
        csum_start: 20,
        csum_offset: 16,
    };
    (packet, header)
}
