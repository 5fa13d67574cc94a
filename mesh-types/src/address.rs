//! What follows from an identity alone: overlay IPv6 address and listen port.

use std::net::{IpAddr, Ipv6Addr};

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

/// Is an address routed on the internet? Not those of the special-purpose registries (RFC 6890): private ones
/// (RFC 1918, 4193), those of carriers' translators (RFC 6598, 7335), benchmarks (RFC 2544), loopback, link-local,
/// multicast and reserved ones. Those of examples (RFC 5737, 3849) are taken for ordinary ones.
pub fn is_global(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !matches!(
            ip.octets(),
            [0 | 10 | 127 | 224.., ..]
                | [100, 64..128, ..]
                | [169, 254, ..]
                | [172, 16..32, ..]
                | [192, 168, ..]
                | [192, 0, 0, _]
                | [198, 18 | 19, ..]
        ),
        IpAddr::V6(ip) => {
            let inside = ip.is_unique_local() || ip.is_unicast_link_local();
            !(inside || ip.is_unspecified() || ip.is_loopback() || ip.is_multicast())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_sites_and_carriers_are_not_of_the_internet() {
        let global = |text: &str| is_global(&text.parse().unwrap());
        for inside in [
            "0.1.2.3",
            "10.0.0.1",
            "100.64.0.1",
            "100.127.255.254",
            "127.0.0.1",
            "169.254.1.1",
            "172.31.255.1",
            "192.0.0.2",
            "192.168.1.1",
            "198.19.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fd00::1",
            "fe80::1",
            "ff02::1",
        ] {
            assert!(!global(inside), "{inside}");
        }
        for outside in [
            "100.63.0.1",
            "100.128.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "203.0.113.1",
            "223.255.255.254",
            "2001:db8::1",
        ] {
            assert!(global(outside), "{outside}");
        }
    }

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
