//! Cutting and merging against a plain reference: the packets themselves, made and checked by slow code.

use data_plane::inbox::{Inbox, Merged};
use data_plane::outbox::{Destination, Outbox};
use data_plane::segment::{SLACK, Segments, VnetHeader};
use proptest::prelude::*;

const MTU: usize = 1420;

/// What a flow's packets have in common.
#[derive(Debug, Clone, Copy)]
struct Shape {
    v6: bool,
    udp: bool,
    options: usize,
    flow: u8,
    unfragmented: bool,
}

impl Shape {
    /// Without options, and never cut.
    fn plain(v6: bool, udp: bool) -> Self {
        Self {
            v6,
            udp,
            options: 0,
            flow: 1,
            unfragmented: true,
        }
    }
    fn ip_len(self) -> usize {
        if self.v6 { 40 } else { 20 }
    }
    fn header_len(self) -> usize {
        self.ip_len() + if self.udp { 8 } else { 20 + 4 * self.options }
    }
    /// One packet, all checksums right.
    fn packet(self, id: u16, sequence: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut p = vec![0; self.header_len()];
        p.extend_from_slice(payload);
        let total = p.len();
        let ip = self.ip_len();
        if self.v6 {
            p[0] = 0x60;
            p[3] = 5;
            p[4..6].copy_from_slice(&((total - 40) as u16).to_be_bytes());
            p[6] = self.protocol();
            p[7] = 60;
            p[8] = 0xfd;
            p[23] = self.flow;
            p[24] = 0xfd;
            p[39] = 9;
        } else {
            p[0] = 0x45;
            p[2..4].copy_from_slice(&(total as u16).to_be_bytes());
            p[4..6].copy_from_slice(&id.to_be_bytes());
            p[6] = if self.unfragmented { 0x40 } else { 0 };
            p[8] = 60;
            p[9] = self.protocol();
            p[12..16].copy_from_slice(&[10, 0, 0, self.flow]);
            p[16..20].copy_from_slice(&[10, 0, 0, 99]);
            let check = !slow_sum(&p[..20], 0);
            p[10..12].copy_from_slice(&check.to_be_bytes());
        }
        p[ip..ip + 4].copy_from_slice(&[0x30, self.flow, 0x14, 0x51]);
        if self.udp {
            p[ip + 4..ip + 6].copy_from_slice(&((total - ip) as u16).to_be_bytes());
        } else {
            p[ip + 4..ip + 8].copy_from_slice(&sequence.to_be_bytes());
            p[ip + 8..ip + 12].copy_from_slice(&77u32.to_be_bytes());
            p[ip + 12] = ((5 + self.options) as u8) << 4;
            p[ip + 13] = flags;
            p[ip + 14..ip + 16].copy_from_slice(&500u16.to_be_bytes());
            p[ip + 20..self.header_len()].fill(1);
        }
        let field = self.checksum_at();
        let mut check = !self.transport_sum(&p);
        if self.udp && check == 0 {
            check = 0xffff;
        }
        p[field..field + 2].copy_from_slice(&check.to_be_bytes());
        p
    }
    fn protocol(self) -> u8 {
        if self.udp { 17 } else { 6 }
    }
    fn checksum_at(self) -> usize {
        self.ip_len() + if self.udp { 6 } else { 16 }
    }
    fn pseudo(self, p: &[u8]) -> u16 {
        let addresses = if self.v6 { &p[8..40] } else { &p[12..20] };
        let mut tail = vec![0, self.protocol()];
        tail.extend_from_slice(&((p.len() - self.ip_len()) as u32).to_be_bytes());
        slow_sum(&tail, slow_sum(addresses, 0))
    }
    fn transport_sum(self, p: &[u8]) -> u16 {
        slow_sum(&p[self.ip_len()..], self.pseudo(p))
    }
}

fn slow_sum(bytes: &[u8], start: u16) -> u16 {
    let mut total = u32::from(start);
    for pair in bytes.chunks(2) {
        total += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

fn shapes() -> impl Strategy<Value = Shape> {
    (
        any::<bool>(),
        any::<bool>(),
        0..=10usize,
        0..4u8,
        any::<bool>(),
    )
        .prop_map(|(v6, udp, options, flow, unfragmented)| Shape {
            v6,
            udp,
            options,
            flow,
            unfragmented,
        })
}

/// The super-packet the kernel would hand over for `payload`, checksum begun only.
fn super_packet(shape: Shape, size: usize, flags: u8, payload: &[u8]) -> (Vec<u8>, VnetHeader) {
    let mut p = shape.packet(1000, u32::MAX - 3000, flags, payload);
    let begun = shape.pseudo(&p);
    let at = shape.checksum_at();
    p[at..at + 2].copy_from_slice(&begun.to_be_bytes());
    let header = VnetHeader {
        flags: 1,
        gso_type: match (shape.udp, shape.v6) {
            (true, _) => 5,
            (false, false) => 1,
            (false, true) => 4,
        },
        header_len: shape.header_len() as u16,
        gso_size: size as u16,
        csum_start: shape.ip_len() as u16,
        csum_offset: if shape.udp { 6 } else { 16 },
    };
    (p, header)
}

/// The packets that super-packet stands for, the plain way.
fn reference(shape: Shape, size: usize, flags: u8, payload: &[u8]) -> Vec<Vec<u8>> {
    let pieces: Vec<&[u8]> = if payload.is_empty() {
        vec![payload]
    } else {
        payload.chunks(size).collect()
    };
    let last = pieces.len() - 1;
    let one = |(n, piece): (usize, &&[u8])| {
        let mut flags = flags;
        if n != last {
            flags &= !0x09;
        }
        if n != 0 {
            flags &= !0x80;
        }
        let sequence = (u32::MAX - 3000).wrapping_add((n * size) as u32);
        shape.packet(1000 + n as u16, sequence, flags, piece)
    };
    pieces.iter().enumerate().map(one).collect()
}

/// Cuts, checks the padding, and takes it off.
fn cut(packet: &[u8], header: VnetHeader) -> Vec<Vec<u8>> {
    let mut buffer = packet.to_vec();
    buffer.resize(packet.len() + SLACK, 0xee);
    let Ok(mut segments) = Segments::new(&mut buffer, packet.len(), header, MTU) else {
        return Vec::new();
    };
    let count = segments.count();
    let mut all = Vec::new();
    while let Some(padded) = segments.next_segment() {
        let len = if padded[0] >> 4 == 4 {
            usize::from(u16::from_be_bytes([padded[2], padded[3]]))
        } else {
            40 + usize::from(u16::from_be_bytes([padded[4], padded[5]]))
        };
        let wanted = if len >= MTU {
            len
        } else {
            len.next_multiple_of(16).min(MTU)
        };
        assert_eq!(padded.len(), wanted, "padding");
        assert!(
            padded[len..].iter().all(|byte| *byte == 0),
            "padding is zero"
        );
        all.push(padded[..len].to_vec());
    }
    assert_eq!(all.len(), count);
    all
}

/// What the inbox writes: header, bytes, how many packets, of what kind.
fn merge(packets: &[Vec<u8>], tcp: bool, udp: bool) -> Vec<(VnetHeader, Vec<u8>, usize, Merged)> {
    let mut inbox = Inbox::new(tcp, udp);
    let mut written = Vec::new();
    let mut drain = |inbox: &mut Inbox| {
        inbox.drain(|parts, merged, count| {
            let header = VnetHeader::decode(parts[0].first_chunk().expect("ten bytes"));
            let bytes = parts[1..].iter().flat_map(|part| part.to_vec()).collect();
            written.push((header, bytes, count, merged));
        });
    };
    for packet in packets {
        if inbox.is_full() {
            drain(&mut inbox);
        }
        let place = inbox.reserve(packet).expect("room");
        inbox.push(place.start, packet.len());
    }
    drain(&mut inbox);
    assert!(inbox.is_empty());
    written
}

fn uncut(written: &[(VnetHeader, Vec<u8>, usize, Merged)]) -> Vec<Vec<u8>> {
    written
        .iter()
        .flat_map(|(header, bytes, _, _)| cut(bytes, *header))
        .collect()
}

fn payloads(len: impl Into<proptest::collection::SizeRange>) -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), len)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn cutting_gives_the_packets_the_kernel_would_have_sent(
        shape in shapes(),
        size in 1..1400usize,
        flags in any::<u8>(),
        payload in payloads(0..9000usize),
    ) {
        let (packet, header) = super_packet(shape, size, flags, &payload);
        prop_assert_eq!(cut(&packet, header), reference(shape, size, flags, &payload));
    }

    #[test]
    fn merging_and_cutting_again_changes_nothing_within_a_flow(
        flows in proptest::collection::vec(
            (shapes(), 1..600usize, any::<bool>(), payloads(1..4000usize)), 1..5),
        order in proptest::collection::vec(any::<u8>(), 0..60),
        flips in proptest::collection::vec((any::<u16>(), any::<u16>()), 0..3),
    ) {
        // Cut each flow into its packets, interleave them, break a few, merge, cut again.
        let mut queues: Vec<std::collections::VecDeque<Vec<u8>>> = flows
            .iter()
            .enumerate()
            .map(|(n, (shape, size, push, payload))| {
                let shape = Shape { flow: n as u8, ..*shape };
                let flags = if *push { 0x18 } else { 0x10 };
                reference(shape, *size, flags, payload).into()
            })
            .collect();
        let mut packets = Vec::new();
        let mut picks = order.iter().copied().chain(std::iter::repeat(0));
        while queues.iter().any(|queue| !queue.is_empty()) {
            let pick = usize::from(picks.next().unwrap_or(0));
            queues.retain(|queue| !queue.is_empty());
            let index = pick % queues.len();
            packets.extend(queues[index].pop_front());
        }
        for (which, at) in flips {
            let count = packets.len();
            let packet = &mut packets[usize::from(which) % count];
            // Anywhere after the ports (others would be another flow): they must come through as broken as
            // they are, not repaired.
            let from = if packet[0] >> 4 == 4 { 24 } else { 44 };
            let at = from + usize::from(at) % (packet.len() - from);
            packet[at] ^= 0x04;
        }
        let again = uncut(&merge(&packets, true, true));
        let flow = |packet: &Vec<u8>| if packet[0] >> 4 == 4 { packet[15] } else { packet[23] };
        for n in 0..5u8 {
            let sent: Vec<_> = packets.iter().filter(|p| flow(p) == n).collect();
            let got: Vec<_> = again.iter().filter(|p| flow(p) == n).collect();
            prop_assert!(sent == got, "flow {n}: {} packets became {}", sent.len(), got.len());
        }
        prop_assert_eq!(packets.len(), again.len());
    }

    #[test]
    fn what_follows_in_a_flow_comes_out_as_it_came_in_whatever_order(
        (v6, udp) in any::<(bool, bool)>(),
        parts in proptest::collection::vec((prop_oneof![Just(100), 1..600usize], 0..2usize, 0..4u8), 2..30),
        swaps in proptest::collection::vec((any::<u8>(), any::<u8>()), 0..4),
        broken in proptest::option::of(any::<u8>()),
    ) {
        // Sizes and options vary, the sequence does not; then some change places, and one has a wrong IP checksum.
        let (mut packets, mut sequence) = (Vec::new(), u32::MAX - 1000);
        for (n, (size, options, push)) in parts.iter().enumerate() {
            let shape = Shape { v6, udp, options: *options, flow: 1, unfragmented: false };
            let flags = if *push == 0 { 0x18 } else { 0x10 };
            packets.push(shape.packet(n as u16, sequence, flags, &vec![n as u8; *size]));
            sequence = sequence.wrapping_add(*size as u32);
        }
        let count = packets.len();
        for (a, b) in swaps {
            packets.swap(usize::from(a) % count, usize::from(b) % count);
        }
        let mut lost = None;
        if let (Some(which), false) = (broken, v6) {
            let which = usize::from(which) % count;
            packets[which][10] ^= 0x10;
            lost = Some(packets[which].clone());
        }
        let mut again = uncut(&merge(&packets, true, true));
        // The kernel will drop that one: it comes through as it is, whenever.
        if let Some(lost) = lost {
            let before = again.len();
            again.retain(|packet| *packet != lost);
            packets.retain(|packet| *packet != lost);
            prop_assert_eq!(again.len() + 1, before);
        }
        prop_assert_eq!(again, packets);
    }

    #[test]
    fn any_bytes_go_through_cutting_and_merging_without_panic(
        bytes in payloads(0..300usize),
        header in proptest::array::uniform10(any::<u8>()),
        kind in 0..7u8,
        start in 0..80u16,
        version in 0..3u8,
        protocol in prop_oneof![Just(6u8), Just(17u8), any::<u8>()],
    ) {
        let mut bytes = bytes;
        if let Some(first) = bytes.first_mut() {
            *first = [*first, 0x45, 0x60][usize::from(version)];
        }
        for at in [6, 9] {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = protocol;
            }
        }
        let mut header = VnetHeader::decode(&header);
        let _ = run(&bytes, header);
        header.gso_type = kind;
        header.csum_start = start;
        header.csum_offset = if kind == 5 { 6 } else { 16 };
        header.flags = 1;
        let _ = run(&bytes, header);
        let written = merge(&[bytes.clone(), bytes.clone()], true, true);
        let all: Vec<u8> = written.iter().flat_map(|(_, bytes, _, _)| bytes.clone()).collect();
        prop_assert!(all.len() <= 2 * bytes.len());
    }

    #[test]
    fn messages_hold_equal_datagrams_but_the_last_and_lose_none(
        sizes in proptest::collection::vec((1..2000usize, 0..3u32), 1..200),
    ) {
        let mut out = Outbox::new();
        let to = |peer| Destination { peer, remote: "192.0.2.1:1".parse().unwrap(), local: None, also: None };
        for (n, (size, peer)) in sizes.iter().enumerate() {
            let added = out.write(to(*peer), *size, |room| {
                assert!(room.len() >= (*size).max(148));
                room[..*size].fill(n as u8);
                Some(*size)
            });
            prop_assert!(added);
        }
        for peer in 0..3 {
            let sent = sizes.iter().enumerate().filter(|(_, (_, p))| *p == peer);
            let sent: Vec<Vec<u8>> = sent.map(|(n, (size, _))| vec![n as u8; *size]).collect();
            let messages = out.messages().iter().filter(|message| message.to.peer == peer);
            let got: Vec<Vec<u8>> =
                messages.flat_map(|message| message.datagrams().map(<[u8]>::to_vec)).collect();
            prop_assert_eq!(sent, got);
        }
        for message in out.messages() {
            prop_assert!(message.count <= 64 && message.bytes().len() <= 65_000);
            prop_assert_eq!(message.datagrams().count(), message.count);
        }
    }
}

/// Cuts whatever it is; the result is not looked at.
fn run(bytes: &[u8], header: VnetHeader) -> usize {
    let mut buffer = bytes.to_vec();
    buffer.resize(bytes.len() + SLACK, 0);
    let Ok(mut segments) = Segments::new(&mut buffer, bytes.len(), header, MTU) else {
        return 0;
    };
    let mut total = 0;
    while let Some(segment) = segments.next_segment() {
        total += segment.len();
    }
    total
}

#[test]
fn a_bulk_flow_merges_into_few_super_packets() {
    for (udp, v6) in [(false, false), (false, true), (true, false), (true, true)] {
        let shape = Shape {
            options: if udp { 0 } else { 3 },
            ..Shape::plain(v6, udp)
        };
        let payload = vec![5; 46 * 1300];
        let packets = reference(shape, 1300, 0x10, &payload);
        let written = merge(&packets, true, true);
        assert_eq!(written.len(), 1, "udp {udp} v6 {v6}");
        assert_eq!(written[0].2, 46);
        assert_eq!(uncut(&written), packets);
        assert_eq!(merge(&packets, false, false).len(), 46, "switched off");
    }
}

#[test]
fn a_super_packet_ends_at_65000_bytes() {
    for (udp, v6) in [(false, false), (false, true), (true, false), (true, true)] {
        let shape = Shape::plain(v6, udp);
        let packets = reference(shape, 1300, 0x10, &vec![5; 60 * 1300]);
        let written = merge(&packets, true, true);
        let counts: Vec<_> = written.iter().map(|(_, _, count, _)| *count).collect();
        assert_eq!(counts, [49, 11], "udp {udp} v6 {v6}");
        assert_eq!(uncut(&written), packets);
    }
}

#[test]
fn a_push_ends_a_super_packet() {
    let shape = Shape::plain(false, false);
    let mut packets = reference(shape, 100, 0x18, &[1; 400]);
    let after = u32::MAX - 3000;
    packets.push(shape.packet(1004, after.wrapping_add(400), 0x10, &[2; 100]));
    let written = merge(&packets, true, true);
    assert_eq!(written.len(), 2);
    assert_eq!(uncut(&written), packets);
}

#[test]
fn a_lone_packet_is_written_as_it_came_even_with_a_wrong_checksum() {
    let shape = Shape::plain(false, false);
    let mut packet = shape.packet(1, 1, 0x10, b"hello");
    packet[36] ^= 0xff;
    let written = merge(&[packet.clone()], true, true);
    assert_eq!(written, [(VnetHeader::default(), packet, 1, Merged::No)]);
}

#[test]
fn a_packet_with_a_wrong_checksum_is_merged_with_none_and_stays_wrong() {
    for (udp, v6) in [(false, false), (false, true), (true, false), (true, true)] {
        let shape = Shape::plain(v6, udp);
        for broken in [0, 4, 9] {
            let mut packets = reference(shape, 500, 0x10, &[7; 5000]);
            let last = packets[broken].len() - 1;
            packets[broken][last] ^= 0x20;
            let written = merge(&packets, true, true);
            let lone = written
                .iter()
                .filter(|(_, bytes, ..)| *bytes == packets[broken]);
            assert_eq!(lone.count(), 1, "packet {broken}, udp {udp} v6 {v6}");
            assert_eq!(uncut(&written), packets);
        }
    }
}

#[test]
fn a_super_packet_whose_end_is_missing_is_cut_to_what_there_is() {
    for options in [0, 10] {
        let shape = Shape {
            options,
            ..Shape::plain(false, false)
        };
        let (packet, header) = super_packet(shape, 500, 0x10, &[7; 5000]);
        for len in 0..packet.len() {
            let payload = len.saturating_sub(shape.header_len());
            let most = payload + payload.div_ceil(500).max(1) * (shape.header_len() + 15);
            let total = run(&packet[..len], header);
            assert!(total <= most, "{total} bytes of {len}");
        }
    }
}

#[test]
fn a_super_packet_that_is_not_what_its_header_says_is_refused() {
    let shape = |v6| Shape::plain(v6, false);
    let refused = |v6: bool, change: fn(&mut Vec<u8>, &mut VnetHeader)| {
        let (mut packet, mut header) = super_packet(shape(v6), 500, 0x10, &[0x77; 5000]);
        change(&mut packet, &mut header);
        let len = packet.len();
        packet.resize(len + SLACK, 0);
        Segments::new(&mut packet, len, header, MTU).is_err()
    };
    assert!(!refused(false, |_, _| {}));
    assert!(refused(false, |_, header| header.gso_size = 0));
    assert!(refused(false, |_, header| header.flags = 0));
    assert!(refused(false, |_, header| header.csum_offset = 6));
    assert!(refused(false, |_, header| header.gso_type = 4), "IPv6");
    assert!(refused(false, |packet, _| packet[9] = 17), "UDP");
    assert!(refused(false, |packet, _| packet[0] = 0x46), "options");
    let beyond = |_: &mut Vec<u8>, header: &mut VnetHeader| header.csum_start = 120;
    assert!(refused(true, beyond), "longer headers than are cut");
}

#[test]
fn a_message_ends_at_64_datagrams_and_at_65000_bytes() {
    let to = Destination {
        peer: 1,
        remote: "192.0.2.1:1".parse().unwrap(),
        local: None,
        also: None,
    };
    for (size, counts) in [(100, [64, 64, 22]), (1452, [44, 44, 15])] {
        let mut out = Outbox::new();
        for n in 0..counts.iter().sum() {
            let seal = |room: &mut [u8]| {
                room[..size].fill(n as u8);
                Some(size)
            };
            assert!(out.write(to, size, seal));
        }
        let held: Vec<usize> = out.messages().iter().map(|message| message.count).collect();
        assert_eq!(held, counts, "of {size} bytes");
        let all = out
            .messages()
            .iter()
            .flat_map(|message| message.datagrams());
        for (n, datagram) in all.enumerate() {
            assert_eq!(datagram, vec![n as u8; size]);
        }
    }
}

#[test]
fn a_begun_checksum_is_completed() {
    let shape = Shape {
        unfragmented: false,
        ..Shape::plain(true, true)
    };
    let whole = shape.packet(1, 1, 0, b"hello");
    let (mut begun, mut header) = super_packet(shape, 1, 0, b"hello");
    header.gso_type = 0;
    header.gso_size = 0;
    begun[7] = whole[7];
    assert_eq!(cut(&begun, header), [whole]);
}
