//! What follows from an identity alone: overlay IPv6 address and listen port.

use std::net::Ipv6Addr;

use ipnet::Ipv6Net;
use sha2::{Digest as _, Sha256};

use crate::consts::{CONTROL_PORT, LISTEN_PORT_BASE, LISTEN_PORT_SPAN};
use crate::key::{DomainId, IdentityKey, NodeKey};

/// The domain's /48: `fd` || SHA-256("farspan mesh v1" || domain)[..5] (RFC 4193).
pub fn mesh_prefix(domain: &DomainId) -> Ipv6Net {
    let mut octets = [0; 16];
    octets[0] = 0xfd;
    octets[1..6].copy_from_slice(&mesh_bits(domain));
    Ipv6Net::new(Ipv6Addr::from(octets), 48).unwrap_or_default()
}

/// A node's overlay IPv6 address: the domain's /48 || SHA-256("farspan addr v1" || identity)[..10].
/// Self-certifying: no allocator, and it survives key rotation.
pub fn overlay_ipv6(node: &NodeKey) -> Ipv6Addr {
    let hash = Sha256::new()
        .chain_update(b"farspan addr v1")
        .chain_update(node.identity.0)
        .finalize();
    let mut octets = [0; 16];
    octets[0] = 0xfd;
    octets[1..6].copy_from_slice(&mesh_bits(&node.domain));
    octets[6..].copy_from_slice(&hash[..10]);
    Ipv6Addr::from(octets)
}

/// A node's listen port unless configured, kept on disk or in use: 20480 + hash mod 8192, never [`CONTROL_PORT`].
pub fn derived_port(identity: &IdentityKey) -> u16 {
    let hash = Sha256::new()
        .chain_update(b"farspan port v1")
        .chain_update(identity.0)
        .finalize();
    next_port(LISTEN_PORT_BASE + u16::from_be_bytes([hash[0], hash[1]]) % LISTEN_PORT_SPAN - 1)
}

/// The port to try after one that is in use.
pub fn next_port(port: u16) -> u16 {
    let next = if port >= LISTEN_PORT_BASE + LISTEN_PORT_SPAN - 1 {
        LISTEN_PORT_BASE
    } else {
        port + 1
    };
    if next == CONTROL_PORT { next + 1 } else { next }
}

fn mesh_bits(domain: &DomainId) -> [u8; 5] {
    let hash = Sha256::new()
        .chain_update(b"farspan mesh v1")
        .chain_update(domain.0)
        .finalize();
    [hash[0], hash[1], hash[2], hash[3], hash[4]]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_control_port_is_never_a_listen_port() {
        assert_eq!(next_port(CONTROL_PORT - 1), CONTROL_PORT + 1);
        assert_eq!(
            next_port(LISTEN_PORT_BASE + LISTEN_PORT_SPAN - 1),
            LISTEN_PORT_BASE
        );
    }

    #[test]
    fn an_overlay_address_lies_in_its_domains_prefix() {
        let node = NodeKey {
            domain: DomainId([7; 16]),
            identity: IdentityKey([9; 32]),
        };
        assert!(mesh_prefix(&node.domain).contains(&overlay_ipv6(&node)));
    }
}
