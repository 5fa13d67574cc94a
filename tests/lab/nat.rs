//! NAT routers from nftables rules.
//!
//! What RFC 4787 calls mapping and filtering comes out of connection tracking like this: source NAT reuses an
//! inside socket's mapping for every destination (endpoint-independent mapping), and admits answers from where
//! the socket has sent to only (address and port dependent filtering). The wider filters need a map of the
//! mappings, learned behind the translation, by which strangers are let in. The router itself must DROP what
//! reaches it from the WAN side: an accepted early packet of the peer would hold the tuple, and the inside
//! host's own packet would get another port.

use std::fmt::Write;
use std::net::Ipv4Addr;

/// What a NAT does to UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NatKind {
    /// One public address for one host, everything let in.
    Open,
    /// One public address for one host, strangers not let in.
    Firewall,
    /// Endpoint-independent mapping and filtering.
    Eif,
    /// Endpoint-independent mapping, address dependent filtering.
    Adf,
    /// "Port restricted": endpoint-independent mapping, address and port dependent filtering, port preserved.
    Prc,
    /// As [`NatKind::Prc`], the port never preserved.
    PrcNotPreserving,
    /// "Symmetric": a random port for each destination.
    Symmetric,
}

impl NatKind {
    /// Every kind.
    pub const ALL: [Self; 7] = [
        Self::Open,
        Self::Firewall,
        Self::Eif,
        Self::Adf,
        Self::Prc,
        Self::PrcNotPreserving,
        Self::Symmetric,
    ];
}

/// A NAT router: its kind and what else is known of it.
#[derive(Clone, Copy, Debug)]
pub struct Nat {
    /// What it does to UDP.
    pub kind: NatKind,
    /// Whether an inside host reaches another one by its public mapping.
    pub hairpin: bool,
    /// A second, port-restricted NAT of the provider in front of it.
    pub carrier: Option<NatKind>,
    /// Whether hosts get IPv6 addresses, behind a stateful firewall.
    pub ipv6: bool,
}

impl Nat {
    /// A router without hairpinning, carrier NAT and IPv6.
    pub const fn new(kind: NatKind) -> Self {
        Self {
            kind,
            hairpin: false,
            carrier: None,
            ipv6: false,
        }
    }

    /// The same with hairpinning.
    pub const fn hairpin(self) -> Self {
        Self {
            hairpin: true,
            ..self
        }
    }

    /// The same behind a carrier's NAT.
    pub const fn behind(self, carrier: NatKind) -> Self {
        Self {
            carrier: Some(carrier),
            ..self
        }
    }

    /// The same with IPv6 behind a stateful firewall.
    pub const fn ipv6(self) -> Self {
        Self { ipv6: true, ..self }
    }
}

/// Ports a not preserving NAT maps to: outside of every port an agent or the kernel would choose.
const NOT_PRESERVED: &str = "61000-64999";

/// The nftables script of a router with interfaces `wan` and `lan`; `one_to_one` is the inside host of
/// [`NatKind::Open`] and [`NatKind::Firewall`].
pub fn rules(kind: NatKind, hairpin: bool, wan: Ipv4Addr, one_to_one: Ipv4Addr) -> String {
    let (learned, seen) = match kind {
        NatKind::Eif => (true, false),
        NatKind::Adf => (true, true),
        NatKind::Open
        | NatKind::Firewall
        | NatKind::Prc
        | NatKind::PrcNotPreserving
        | NatKind::Symmetric => (hairpin, false),
    };
    let source = match kind {
        NatKind::Open | NatKind::Firewall => format!("snat to {wan}"),
        NatKind::Eif | NatKind::Adf | NatKind::Prc => "masquerade".to_owned(),
        NatKind::PrcNotPreserving => {
            format!("meta l4proto udp snat to {wan}:{NOT_PRESERVED}\n  oifname wan masquerade")
        }
        NatKind::Symmetric => "masquerade random".to_owned(),
    };
    let destination = match kind {
        NatKind::Open | NatKind::Firewall => format!("ip daddr {wan} dnat to {one_to_one}"),
        NatKind::Eif => "dnat to udp dport map @mapping".to_owned(),
        NatKind::Adf => "ip saddr . udp dport @seen dnat to udp dport map @mapping".to_owned(),
        NatKind::Prc | NatKind::PrcNotPreserving | NatKind::Symmetric => String::new(),
    };
    let strangers = match kind {
        NatKind::Firewall => "ct state new drop",
        NatKind::Open
        | NatKind::Eif
        | NatKind::Adf
        | NatKind::Prc
        | NatKind::PrcNotPreserving
        | NatKind::Symmetric => "ct status dnat accept",
    };
    let mut script = String::from("table ip nat {\n");
    if learned {
        script.push_str(
            " map mapping { type inet_service : ipv4_addr . inet_service; flags dynamic, timeout; timeout 300s; size 65535; }\n",
        );
        script.push_str(" chain learn {\n  type filter hook postrouting priority 300;\n  oifname wan meta l4proto udp ");
        script.push_str(
            "update @mapping { udp sport : ct original ip saddr . ct original proto-src }\n",
        );
        if seen {
            script
                .push_str("  oifname wan meta l4proto udp update @seen { ip daddr . udp sport }\n");
        }
        script.push_str(" }\n");
    }
    if seen {
        script.push_str(" set seen { type ipv4_addr . inet_service; flags dynamic, timeout; timeout 300s; size 65535; }\n");
    }
    let _ = writeln!(
        script,
        " chain source {{\n  type nat hook postrouting priority 100;\n  oifname wan {source}"
    );
    if hairpin {
        let _ = writeln!(script, "  oifname lan ct status dnat snat to {wan}");
    }
    script.push_str(" }\n chain destination {\n  type nat hook prerouting priority -100;\n");
    if !destination.is_empty() {
        let _ = writeln!(script, "  iifname wan {destination}");
    }
    if hairpin {
        let _ = writeln!(
            script,
            "  iifname lan ip daddr {wan} dnat to udp dport map @mapping"
        );
    }
    script.push_str(" }\n}\n");
    let _ = writeln!(
        script,
        "table inet fence {{
 chain input {{
  type filter hook input priority 0; policy accept;
  iifname wan ct state established,related accept
  iifname wan meta l4proto ipv6-icmp accept
  iifname wan drop
 }}
 chain forward {{
  type filter hook forward priority 0; policy accept;
  ct state established,related accept
  iifname wan {strangers}
  iifname wan meta l4proto ipv6-icmp accept
  iifname wan drop
 }}
}}"
    );
    script
}
