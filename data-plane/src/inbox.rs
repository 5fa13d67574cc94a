//! Packets on their way into the TUN, merged into super-packets where they follow each other in one flow
//! (generic receive offload).
//!
//! Packets are opened straight into one arena and never move: a super-packet is a list of places in it, written
//! by one `writev`. Two packets merge only if cutting the result again gives exactly these two; a packet that
//! does not fit its flow's newest group opens a new one behind it, so no packet overtakes another of its flow.
//! The kernel takes the checksum of a merged packet on trust: both are verified before they merge.

use std::io::IoSlice;
use std::ops::Range;

use batch_aead::TAG;

use crate::packet::{
    ACK, PSH, TCP, UDP, be16, be32, finish_ip, fold, pseudo, pseudo_len, put16, sum,
    transport_checksum_holds,
};
use crate::segment::{GSO_MAX, VnetHeader};

/// Plaintext held before a write, bytes.
const CAPACITY: usize = 256 * 1024;
/// Largest datagram that is opened.
const PACKET_MAX: usize = 65536;
/// Packets in one super-packet: what `UDP_SEGMENT` allows, and well under `IOV_MAX`.
const MERGE_MAX: usize = 64;
/// Buckets that remember the newest group of a flow. Two flows in one bucket merge less, nothing worse.
const BUCKETS: usize = 256;
const NONE: u32 = u32::MAX;

/// Packets gathered in this turn.
#[derive(Debug)]
pub struct Inbox {
    arena: Box<[u8]>,
    used: usize,
    pieces: Vec<Piece>,
    groups: Vec<Group>,
    buckets: [u32; BUCKETS],
    /// Merge TCP.
    pub merge_tcp: bool,
    /// Merge UDP.
    pub merge_udp: bool,
}

/// Where a packet's bytes lie, and the next of its group.
#[derive(Debug, Clone, Copy)]
struct Piece {
    at: usize,
    len: usize,
    next: u32,
}

#[derive(Debug, Clone, Copy)]
struct Group {
    first: u32,
    last: u32,
    count: usize,
    flow: Option<Flow>,
    /// Nothing may be added any more.
    closed: bool,
    /// The first packet's checksum was verified.
    verified: bool,
    /// Its last packet had PSH.
    push: bool,
    payload: usize,
    next_sequence: u32,
}

/// The shape of a TCP or UDP packet.
#[derive(Debug, Clone, Copy)]
struct Flow {
    protocol: u8,
    ip_len: usize,
    header_len: usize,
    /// Payload bytes of the first packet, and so of all but the last.
    size: usize,
    mergeable: bool,
    bucket: usize,
}

impl Inbox {
    /// An empty one. `merge_tcp`, `merge_udp`: see the fields.
    pub fn new(merge_tcp: bool, merge_udp: bool) -> Self {
        Self {
            arena: vec![0; CAPACITY + PACKET_MAX].into_boxed_slice(),
            used: 0,
            pieces: Vec::with_capacity(512),
            groups: Vec::with_capacity(512),
            buckets: [NONE; BUCKETS],
            merge_tcp,
            merge_udp,
        }
    }

    /// Is nothing in it, to be written or refused?
    pub fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// Must it be drained before the next packet?
    pub fn is_full(&self) -> bool {
        self.used >= CAPACITY
    }

    /// Copies a sealed packet to where it will be opened; says where. `None` where it is longer than the room.
    pub fn reserve(&mut self, sealed: &[u8]) -> Option<Range<usize>> {
        let place = self.used..self.used + sealed.len();
        self.arena.get_mut(place.clone())?.copy_from_slice(sealed);
        self.used = place.end;
        Some(place)
    }

    /// The bytes of reserved places, which must be in the order they were reserved in. Ends at one that is not.
    pub fn reserved(
        &mut self,
        places: impl Iterator<Item = Range<usize>>,
    ) -> impl Iterator<Item = &mut [u8]> {
        let (mut rest, mut at) = (&mut self.arena[..], 0);
        places.map_while(move |place| {
            let skipped = place.start.checked_sub(at)?;
            let (_, from) = std::mem::take(&mut rest).split_at_mut_checked(skipped)?;
            let (bytes, after) = from.split_at_mut_checked(place.len())?;
            (rest, at) = (after, place.end);
            Some(bytes)
        })
    }

    /// The text that was opened at a place: all but its tag.
    pub fn text(&mut self, place: &Range<usize>) -> &mut [u8] {
        let end = place.end.saturating_sub(TAG).max(place.start);
        self.arena.get_mut(place.start..end).unwrap_or_default()
    }

    /// Takes the packet of `len` bytes at the start of a reserved place.
    pub fn push(&mut self, at: usize, len: usize) {
        let Some(packet) = self.arena.get(at..at + len) else {
            return;
        };
        let flow = flow(packet);
        let piece = self.pieces.len() as u32;
        self.pieces.push(Piece {
            at,
            len,
            next: NONE,
        });
        if let Some(flow) = flow {
            let newest = self.buckets[flow.bucket];
            if newest != NONE && self.merge(newest as usize, piece, flow) {
                return;
            }
            self.buckets[flow.bucket] = self.groups.len() as u32;
        }
        let packet = &self.arena[at..at + len];
        self.groups.push(Group {
            first: piece,
            last: piece,
            count: 1,
            flow,
            closed: flow.is_none_or(|flow| !flow.mergeable || pushes(packet, &flow)),
            verified: false,
            push: flow.is_some_and(|flow| pushes(packet, &flow)),
            payload: flow.map_or(0, |flow| flow.size),
            next_sequence: flow.map_or(0, |flow| end_sequence(packet, &flow)),
        });
    }

    fn merge(&mut self, index: usize, piece: u32, flow: Flow) -> bool {
        let group = self.groups[index];
        let Some(head) = group.flow else { return false };
        let allowed = if flow.protocol == TCP {
            self.merge_tcp
        } else {
            self.merge_udp
        };
        let added = self.pieces[piece as usize];
        let first = self.pieces[group.first as usize];
        let (before, packet) = self.arena.split_at(added.at);
        let packet = &packet[..added.len];
        let leader = &before[first.at..first.at + first.len];
        if !allowed
            || group.closed
            || !flow.mergeable
            || flow.protocol != head.protocol
            || flow.header_len != head.header_len
            || flow.ip_len != head.ip_len
            || flow.size > head.size
            || group.count >= MERGE_MAX
            || head.header_len + group.payload + flow.size > GSO_MAX
            || !continues(leader, packet, &head, &group)
            || !transport_checksum_holds(packet, flow.ip_len, flow.protocol)
            || !(group.verified || transport_checksum_holds(leader, head.ip_len, head.protocol))
        {
            return false;
        }
        let push = pushes(packet, &flow);
        let next_sequence = end_sequence(packet, &flow);
        self.pieces[group.last as usize].next = piece;
        let group = &mut self.groups[index];
        group.verified = true;
        group.last = piece;
        group.count += 1;
        group.payload += flow.size;
        group.push = push;
        group.next_sequence = next_sequence;
        group.closed = push || flow.size < head.size;
        true
    }

    /// Hands out everything, in order, and is empty afterwards. `write` gets the parts of one packet, the
    /// `vnet_hdr` first, what it is, and how many packets it holds.
    pub fn drain(&mut self, mut write: impl FnMut(&[IoSlice<'_>], Merged, usize)) {
        for group in &self.groups {
            let merged = if group.count > 1 { group.flow } else { None };
            let header = match &merged {
                Some(flow) => {
                    let first = self.pieces[group.first as usize];
                    let leader = &mut self.arena[first.at..first.at + first.len];
                    finish(leader, flow, group)
                }
                None => VnetHeader::default(),
            }
            .encode();
            let mut parts = [IoSlice::new(&[]); MERGE_MAX + 1];
            parts[0] = IoSlice::new(&header);
            let mut piece = self.pieces[group.first as usize];
            parts[1] = IoSlice::new(&self.arena[piece.at..piece.at + piece.len]);
            let mut filled = 2;
            while piece.next != NONE {
                piece = self.pieces[piece.next as usize];
                let skip = merged.map_or(0, |flow| flow.header_len);
                parts[filled] = IoSlice::new(&self.arena[piece.at + skip..piece.at + piece.len]);
                filled += 1;
            }
            let kind = match merged.map(|flow| flow.protocol) {
                Some(TCP) => Merged::Tcp,
                Some(_) => Merged::Udp,
                None => Merged::No,
            };
            write(&parts[..filled], kind, group.count);
        }
        self.clear();
    }

    fn clear(&mut self) {
        self.used = 0;
        self.pieces.clear();
        self.groups.clear();
        self.buckets.fill(NONE);
    }
}

/// What a written packet is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Merged {
    /// A single packet.
    No,
    /// Several TCP segments.
    Tcp,
    /// Several UDP datagrams.
    Udp,
}

/// The shape of a packet; `None` for what is neither whole TCP nor whole UDP.
fn flow(packet: &[u8]) -> Option<Flow> {
    let (ip_len, protocol) = match packet.first()? >> 4 {
        4 if packet.len() >= 20 => {
            let fragment = be16(packet, 6) & 0x3fff != 0;
            let plain = packet[0] & 15 == 5 && !fragment;
            let intact = fold(sum(&packet[..20], 0)) == [0xff, 0xff];
            ((plain && intact).then_some(20)?, packet[9])
        }
        6 if packet.len() >= 40 => (40, packet[6]),
        _ => return None,
    };
    let transport = match protocol {
        TCP if packet.len() >= ip_len + 20 => usize::from(packet[ip_len + 12] >> 4) * 4,
        UDP if packet.len() >= ip_len + 8 => 8,
        _ => return None,
    };
    let header_len = ip_len + transport;
    if packet.len() < header_len || transport < 8 {
        return None;
    }
    let size = packet.len() - header_len;
    let mergeable = size > 0
        && if protocol == TCP {
            transport >= 20 && packet[ip_len + 13] & !PSH == ACK
        } else {
            usize::from(be16(packet, ip_len + 4)) == packet.len() - ip_len
        };
    let ports = be32(packet, ip_len);
    let address = be32(packet, if ip_len == 20 { 16 } else { 36 });
    let mixed = (ports ^ address.rotate_left(7) ^ u32::from(protocol)).wrapping_mul(0x9e37_79b1);
    Some(Flow {
        protocol,
        ip_len,
        header_len,
        size,
        mergeable,
        bucket: (mixed >> 24) as usize % BUCKETS,
    })
}

fn pushes(packet: &[u8], flow: &Flow) -> bool {
    flow.protocol == TCP && packet[flow.ip_len + 13] & PSH != 0
}

fn end_sequence(packet: &[u8], flow: &Flow) -> u32 {
    if flow.protocol == TCP {
        be32(packet, flow.ip_len + 4).wrapping_add(flow.size as u32)
    } else {
        0
    }
}

/// Does `packet` follow the group that `leader` began, with equal headers else?
fn continues(leader: &[u8], packet: &[u8], flow: &Flow, group: &Group) -> bool {
    let ip_len = flow.ip_len;
    let ip = if ip_len == 20 {
        let unfragmented = be16(packet, 6) & 0x4000 != 0;
        let sequential = be16(packet, 4) == be16(leader, 4).wrapping_add(group.count as u16);
        leader[..2] == packet[..2]
            && leader[6..10] == packet[6..10]
            && leader[12..20] == packet[12..20]
            && (sequential || unfragmented)
    } else {
        leader[..4] == packet[..4] && leader[6..40] == packet[6..40]
    };
    let ports = leader[ip_len..ip_len + 4] == packet[ip_len..ip_len + 4];
    if !ip || !ports || flow.protocol == UDP {
        return ip && ports;
    }
    let (a, b) = (
        &leader[ip_len..flow.header_len],
        &packet[ip_len..flow.header_len],
    );
    be32(b, 4) == group.next_sequence
        && a[8..13] == b[8..13]
        && a[14..16] == b[14..16]
        && a[18..] == b[18..]
}

/// Makes the leader's headers those of the whole group.
fn finish(leader: &mut [u8], flow: &Flow, group: &Group) -> VnetHeader {
    let ip_len = flow.ip_len;
    let total = flow.header_len + group.payload;
    finish_ip(leader, ip_len, total);
    let start = pseudo_len(pseudo(leader, flow.protocol), total - ip_len);
    let begun = fold(start);
    let field = if flow.protocol == TCP {
        if group.push {
            leader[ip_len + 13] |= PSH;
        }
        ip_len + 16
    } else {
        put16(leader, ip_len + 4, (total - ip_len) as u16);
        ip_len + 6
    };
    leader[field..field + 2].copy_from_slice(&begun);
    let v6 = ip_len == 40;
    VnetHeader::merged(v6, flow.protocol, ip_len, flow.header_len, flow.size)
}
