//! IP, TCP and UDP headers as bytes, and the Internet checksum (RFC 1071).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// IP protocol number of TCP.
pub const TCP: u8 = 6;
/// IP protocol number of UDP.
pub const UDP: u8 = 17;
/// TCP flag FIN.
pub const FIN: u8 = 0x01;
/// TCP flag PSH.
pub const PSH: u8 = 0x08;
/// TCP flag ACK.
pub const ACK: u8 = 0x10;
/// TCP flag CWR.
pub const CWR: u8 = 0x80;

/// Length of a plaintext once padded as WireGuard wants it: to 16 bytes, but never beyond the MTU.
pub fn padded_len(len: usize, mtu: usize) -> usize {
    if len >= mtu {
        len
    } else {
        len.next_multiple_of(16).min(mtu)
    }
}

/// The source address of an IP packet.
pub fn source(packet: &[u8]) -> Option<IpAddr> {
    address(packet, 12, 8)
}

/// The destination address of an IP packet.
pub fn destination(packet: &[u8]) -> Option<IpAddr> {
    address(packet, 16, 24)
}

fn address(packet: &[u8], v4: usize, v6: usize) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        4 if packet.len() >= 20 => {
            let bytes: [u8; 4] = packet.get(v4..v4 + 4)?.try_into().ok()?;
            Some(IpAddr::V4(Ipv4Addr::from(bytes)))
        }
        6 if packet.len() >= 40 => {
            let bytes: [u8; 16] = packet.get(v6..v6 + 16)?.try_into().ok()?;
            Some(IpAddr::V6(Ipv6Addr::from(bytes)))
        }
        _ => None,
    }
}

/// Reads a big-endian number; the caller has checked the length.
pub(crate) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Reads a big-endian number; the caller has checked the length.
pub(crate) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Writes a big-endian number; the caller has checked the length.
pub(crate) fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// Adds bytes to an unfolded checksum. The sum is kept in the machine's byte order (RFC 1071 2 B), which
/// spares a swap a word; [`fold`] gives what stands in a header.
pub(crate) fn sum(bytes: &[u8], start: u64) -> u64 {
    let mut words = bytes.chunks_exact(4);
    let mut total = start;
    for word in &mut words {
        total += u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
    }
    let mut last = [0; 4];
    let rest = words.remainder();
    last[..rest.len()].copy_from_slice(rest);
    total + u64::from(u32::from_ne_bytes(last))
}

/// Folds a sum to the 16 bits of a header, not inverted.
pub(crate) fn fold(sum: u64) -> [u8; 2] {
    let mut sum = sum;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (sum as u16).to_ne_bytes()
}

/// Folds and inverts: the checksum as it stands in a header.
pub(crate) fn checksum(sum: u64) -> [u8; 2] {
    let [a, b] = fold(sum);
    [!a, !b]
}

/// Sum of the pseudo-header (RFC 9293 3.1, RFC 8200 8.1) without the length.
pub(crate) fn pseudo(packet: &[u8], protocol: u8) -> u64 {
    let addresses = if packet[0] >> 4 == 4 {
        &packet[12..20]
    } else {
        &packet[8..40]
    };
    sum(addresses, sum(&[0, protocol], 0))
}

/// Adds a length to a pseudo-header's sum.
pub(crate) fn pseudo_len(pseudo: u64, len: usize) -> u64 {
    sum(&(len as u32).to_be_bytes(), pseudo)
}

/// Writes the lengths of an IP header, and the IPv4 header checksum. `ip_len` is the header's length.
pub(crate) fn finish_ip(packet: &mut [u8], ip_len: usize, total: usize) {
    if packet[0] >> 4 == 4 {
        put16(packet, 2, total as u16);
        packet[10..12].fill(0);
        let check = checksum(sum(&packet[..ip_len], 0));
        packet[10..12].copy_from_slice(&check);
    } else {
        put16(packet, 4, (total - 40) as u16);
    }
}

/// Is the TCP or UDP checksum of this packet right? A UDP packet over IPv4 without one is not.
pub(crate) fn transport_checksum_holds(packet: &[u8], ip_len: usize, protocol: u8) -> bool {
    if protocol == UDP && packet[ip_len + 6..ip_len + 8] == [0, 0] {
        return false;
    }
    let start = pseudo_len(pseudo(packet, protocol), packet.len() - ip_len);
    fold(sum(&packet[ip_len..], start)) == [0xff, 0xff]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The plain way: big-endian words, carries folded at once.
    fn slow(bytes: &[u8]) -> u16 {
        let mut total = 0u32;
        for pair in bytes.chunks(2) {
            total += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            total = (total & 0xffff) + (total >> 16);
        }
        total as u16
    }

    #[test]
    fn the_fast_sum_equals_the_plain_one_at_every_length() {
        let bytes: Vec<u8> = (0..2000u32).map(|i| (i * 7 + i / 251) as u8).collect();
        for len in 0..bytes.len() {
            assert_eq!(
                u16::from_be_bytes(fold(sum(&bytes[..len], 0))),
                slow(&bytes[..len]),
                "length {len}"
            );
        }
    }

    #[test]
    fn padding_is_to_sixteen_bytes_and_never_beyond_the_mtu() {
        assert_eq!(padded_len(0, 1420), 0);
        assert_eq!(padded_len(1, 1420), 16);
        assert_eq!(padded_len(1408, 1420), 1408);
        assert_eq!(padded_len(1409, 1420), 1420);
        assert_eq!(padded_len(1420, 1420), 1420);
        assert_eq!(padded_len(1500, 1420), 1500);
    }

    #[test]
    fn addresses_of_short_or_foreign_packets_are_none() {
        assert_eq!(source(&[]), None);
        assert_eq!(source(&[0x45; 19]), None);
        assert_eq!(destination(&[0x60; 39]), None);
        assert_eq!(destination(&[0x50; 60]), None);
        assert_eq!(source(&[0x45; 20]), Some("69.69.69.69".parse().unwrap()));
    }
}
