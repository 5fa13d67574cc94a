//! Cutting a super-packet from the TUN into the packets it stands for (generic segmentation offload).
//!
//! The cut happens in place: each segment's header is written right in front of its payload, over the end of
//! the segment before, which has been sealed by then. So no payload is copied but by the sealing itself.

use crate::packet::{
    CWR, FIN, PSH, TCP, UDP, checksum, finish_ip, fold, padded_len, pseudo, pseudo_len, put16, sum,
};

/// Bytes that must follow a packet in its buffer: room for the padding.
pub const SLACK: usize = 16;

/// Most bytes of what is coalesced, either way. A device takes less than 64 KiB (`gso_max_size`), headers of the link and of
/// tunnels included; anything longer the kernel cuts into single packets itself (`gso_features_check`, net/core/dev.c).
pub(crate) const GSO_MAX: usize = 65_000;

/// Longest headers that are cut: IPv4 and TCP, both with all options, or IPv6 with a few extensions.
const HEADERS_MAX: usize = 128;

const NEEDS_CHECKSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCP4: u8 = 1;
const GSO_TCP6: u8 = 4;
const GSO_UDP: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// `struct virtio_net_hdr`: precedes every packet from and to the TUN. In the machine's byte order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VnetHeader {
    /// Bit 0: the checksum is only begun (pseudo-header).
    pub flags: u8,
    /// What kind of super-packet, if any.
    pub gso_type: u8,
    /// Length of all headers; a hint.
    pub header_len: u16,
    /// Payload bytes of each segment.
    pub gso_size: u16,
    /// Where the checksum begins to count: the transport header.
    pub csum_start: u16,
    /// Where it is stored, from there.
    pub csum_offset: u16,
}

impl VnetHeader {
    /// Its length, bytes.
    pub const LEN: usize = 10;

    /// Header of a merged packet whose checksum is begun.
    pub(crate) fn merged(
        v6: bool,
        protocol: u8,
        ip_len: usize,
        header_len: usize,
        size: usize,
    ) -> Self {
        Self {
            flags: NEEDS_CHECKSUM,
            gso_type: match (protocol, v6) {
                (UDP, _) => GSO_UDP,
                (_, false) => GSO_TCP4,
                (_, true) => GSO_TCP6,
            },
            header_len: header_len as u16,
            gso_size: size as u16,
            csum_start: ip_len as u16,
            csum_offset: if protocol == UDP { 6 } else { 16 },
        }
    }

    /// Reads the first ten bytes.
    pub fn decode(bytes: &[u8; Self::LEN]) -> Self {
        let word = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        Self {
            flags: bytes[0],
            gso_type: bytes[1],
            header_len: word(2),
            gso_size: word(4),
            csum_start: word(6),
            csum_offset: word(8),
        }
    }

    /// The bytes the kernel reads.
    pub fn encode(self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        out[0] = self.flags;
        out[1] = self.gso_type;
        for (at, word) in [
            (2, self.header_len),
            (4, self.gso_size),
            (6, self.csum_start),
            (8, self.csum_offset),
        ] {
            out[at..at + 2].copy_from_slice(&word.to_ne_bytes());
        }
        out
    }
}

/// A super-packet that is not what its headers say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

/// The segments of a packet, one after the other. Each is borrowed until the next is asked for.
#[derive(Debug)]
pub struct Segments<'a> {
    buffer: &'a mut [u8],
    len: usize,
    mtu: usize,
    plan: Plan,
    /// Payload bytes handed out so far, and whether anything was.
    done: usize,
    index: usize,
    /// What the padding of the segment before stands on.
    saved: ([u8; SLACK], usize, usize),
}

#[derive(Debug)]
enum Plan {
    /// One packet, as it is.
    Whole,
    /// Cut into pieces of `size` payload bytes.
    Cut(Cut),
}

#[derive(Debug)]
struct Cut {
    template: [u8; HEADERS_MAX],
    header_len: usize,
    ip_len: usize,
    size: usize,
    protocol: u8,
    pseudo: u64,
}

impl<'a> Segments<'a> {
    /// Takes a packet of `len` bytes at the start of `buffer`, which is at least [`SLACK`] bytes longer.
    pub fn new(
        buffer: &'a mut [u8],
        len: usize,
        header: VnetHeader,
        mtu: usize,
    ) -> Result<Self, Malformed> {
        if buffer.len() < len + SLACK || len < 20 {
            return Err(Malformed);
        }
        let start = usize::from(header.csum_start);
        let plan = match header.gso_type & !GSO_ECN {
            GSO_NONE => {
                if header.flags & NEEDS_CHECKSUM != 0 {
                    complete_checksum(&mut buffer[..len], start, header.csum_offset)?;
                }
                Plan::Whole
            }
            GSO_TCP4 | GSO_TCP6 => Plan::Cut(Cut::new(&buffer[..len], header, start, TCP)?),
            GSO_UDP => Plan::Cut(Cut::new(&buffer[..len], header, start, UDP)?),
            _ => return Err(Malformed),
        };
        Ok(Self {
            buffer,
            len,
            mtu,
            plan,
            done: 0,
            index: 0,
            saved: ([0; SLACK], 0, 0),
        })
    }

    /// How many segments there are in all.
    pub fn count(&self) -> usize {
        match &self.plan {
            Plan::Whole => 1,
            Plan::Cut(cut) => (self.len - cut.header_len).div_ceil(cut.size).max(1),
        }
    }

    /// The next segment with all its headers, zero-padded as WireGuard wants it.
    pub fn next_segment(&mut self) -> Option<&[u8]> {
        let (bytes, at, count) = self.saved;
        self.buffer[at..at + count].copy_from_slice(&bytes[..count]);
        let (start, end) = match &self.plan {
            Plan::Whole => {
                if self.index > 0 {
                    return None;
                }
                (0, self.len)
            }
            Plan::Cut(cut) => {
                let payload = self.len - cut.header_len;
                if self.index > 0 && self.done == payload {
                    return None;
                }
                let size = cut.size.min(payload - self.done);
                let start = self.done;
                let end = start + cut.header_len + size;
                cut.write(
                    &mut self.buffer[start..end],
                    self.index,
                    self.done,
                    self.done + size == payload,
                );
                self.done += size;
                (start, end)
            }
        };
        self.index += 1;
        let pad = padded_len(end - start, self.mtu) - (end - start);
        let mut saved = [0; SLACK];
        saved[..pad].copy_from_slice(&self.buffer[end..end + pad]);
        self.buffer[end..end + pad].fill(0);
        self.saved = (saved, end, pad);
        Some(&self.buffer[start..end + pad])
    }
}

impl Cut {
    fn new(
        packet: &[u8],
        header: VnetHeader,
        ip_len: usize,
        protocol: u8,
    ) -> Result<Self, Malformed> {
        let v4 = packet[0] >> 4 == 4;
        let least = if v4 { 20 } else { 40 };
        let transport = if protocol == TCP { 20 } else { 8 };
        let field = if protocol == TCP { 16 } else { 6 };
        let kind_fits = match header.gso_type & !GSO_ECN {
            GSO_TCP4 => v4,
            GSO_TCP6 => packet[0] >> 4 == 6,
            _ => v4 || packet[0] >> 4 == 6,
        };
        if !kind_fits
            || header.gso_size == 0
            || header.flags & NEEDS_CHECKSUM == 0
            || header.csum_offset != field
            || ip_len < least
            || packet.len() < ip_len + transport
            || (v4 && (packet[9] != protocol || usize::from(packet[0] & 15) * 4 != ip_len))
        {
            return Err(Malformed);
        }
        let transport = if protocol == TCP {
            usize::from(packet[ip_len + 12] >> 4) * 4
        } else {
            transport
        };
        let header_len = ip_len + transport;
        if (protocol == TCP && transport < 20)
            || header_len > packet.len()
            || header_len > HEADERS_MAX
        {
            return Err(Malformed);
        }
        let mut template = [0; HEADERS_MAX];
        template[..header_len].copy_from_slice(&packet[..header_len]);
        template[ip_len + usize::from(field)..][..2].fill(0);
        Ok(Self {
            template,
            header_len,
            ip_len,
            size: usize::from(header.gso_size),
            protocol,
            pseudo: pseudo(packet, protocol),
        })
    }

    /// Writes the header of segment `index`, whose payload begins `offset` bytes into the whole.
    fn write(&self, segment: &mut [u8], index: usize, offset: usize, last: bool) {
        let ip_len = self.ip_len;
        segment[..self.header_len].copy_from_slice(&self.template[..self.header_len]);
        if segment[0] >> 4 == 4 {
            let id = u16::from_be_bytes([segment[4], segment[5]]).wrapping_add(index as u16);
            put16(segment, 4, id);
        }
        let total = segment.len();
        finish_ip(segment, ip_len, total);
        let transport = &mut segment[ip_len..];
        let field = if self.protocol == TCP {
            let sequence = crate::packet::be32(transport, 4).wrapping_add(offset as u32);
            transport[4..8].copy_from_slice(&sequence.to_be_bytes());
            if !last {
                transport[13] &= !(FIN | PSH);
            }
            if index > 0 {
                transport[13] &= !CWR;
            }
            16
        } else {
            put16(transport, 4, (total - ip_len) as u16);
            6
        };
        let start = pseudo_len(self.pseudo, total - ip_len);
        let mut check = checksum(sum(transport, start));
        if self.protocol == UDP && check == [0, 0] {
            check = [0xff, 0xff];
        }
        transport[field..field + 2].copy_from_slice(&check);
    }
}

/// Finishes a checksum the kernel left begun: the field holds the pseudo-header's sum.
fn complete_checksum(packet: &mut [u8], start: usize, offset: u16) -> Result<(), Malformed> {
    let at = start + usize::from(offset);
    if at + 2 > packet.len() {
        return Err(Malformed);
    }
    let [a, b] = fold(sum(&packet[start..], 0));
    let check = if [!a, !b] == [0, 0] {
        [0xff, 0xff]
    } else {
        [!a, !b]
    };
    packet[at..at + 2].copy_from_slice(&check);
    Ok(())
}
