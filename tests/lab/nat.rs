//! NAT routers from nftables rules.
//!
//! What RFC 4787 calls mapping and filtering comes out of connection tracking like this: source NAT reuses an
//! inside socket's mapping for every destination (endpoint-independent mapping), and admits answers from where
//! the socket has sent to only (address and port dependent filtering). The wider filters need a map of the
//! mappings, learned behind the translation, by which strangers are let in. The router itself must DROP what
//! reaches it from the WAN side: an accepted early packet of the peer would hold the tuple, and the inside
//! host's own packet would get another port ([`Nat::accepting`] does that on purpose).
//!
//! Mappings that depend on the destination: by address, the port of the first packet to an address is learned
//! behind the translation and given to what follows there; by address and port, every flow gets the next port
//! of a sequence, any of a block, or any at all. What connection tracking does not do like a carrier's box:
//! ports of a block are shared between destinations without limit, and nobody counts a subscriber's sessions.

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
    /// Address dependent mapping: a random port for each address, address and port dependent filtering.
    ByAddress,
    /// Address and port dependent mapping, the next port of [`SEQUENCE`] for each destination.
    Sequential,
    /// Address and port dependent mapping, any port of [`BLOCK`] for each destination.
    Block,
    /// "Symmetric": any of 64512 ports for each destination.
    Symmetric,
}

impl NatKind {
    /// Every kind.
    pub const ALL: [Self; 10] = [
        Self::Open,
        Self::Firewall,
        Self::Eif,
        Self::Adf,
        Self::Prc,
        Self::PrcNotPreserving,
        Self::ByAddress,
        Self::Sequential,
        Self::Block,
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
    /// Whether the router itself takes what reaches it from outside, so that an early packet holds a tuple.
    pub accepts: bool,
}

impl Nat {
    /// A router without hairpinning, carrier NAT and IPv6.
    pub const fn new(kind: NatKind) -> Self {
        Self {
            kind,
            hairpin: false,
            carrier: None,
            ipv6: false,
            accepts: false,
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

    /// The same with a router that takes what reaches it from outside, as many virtual machines' gateways do.
    pub const fn accepting(self) -> Self {
        Self {
            accepts: true,
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
/// Ports of [`NatKind::Sequential`], lowest and highest; then it starts over.
pub const SEQUENCE: (u16, u16) = (40_000, 56_383);
/// Ports of [`NatKind::Block`], lowest and highest.
pub const BLOCK: (u16, u16) = (40_000, 42_047);

/// What a router has learned, by its name in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learned {
    /// Inside socket of each mapping.
    Mapping,
    /// Whom each mapping has sent to.
    Seen,
    /// Port of each inside socket toward each address.
    Port,
}

impl Learned {
    /// How nft names it.
    pub const fn object(self) -> &'static str {
        match self {
            Self::Mapping => "map ip nat mapping",
            Self::Seen => "set ip nat seen",
            Self::Port => "map ip nat port",
        }
    }

    const fn declaration(self) -> &'static str {
        match self {
            Self::Mapping => {
                "map mapping { type inet_service : ipv4_addr . inet_service; flags dynamic, timeout; timeout 300s; size 65535; }"
            }
            Self::Seen => {
                "set seen { type ipv4_addr . inet_service; flags dynamic, timeout; timeout 300s; size 65535; }"
            }
            Self::Port => {
                "map port { type ipv4_addr . inet_service . ipv4_addr : inet_service; flags dynamic, timeout; timeout 300s; size 65535; }"
            }
        }
    }

    const fn update(self) -> &'static str {
        match self {
            Self::Mapping => {
                "ct direction original update @mapping { udp sport : ct original ip saddr . ct original proto-src }"
            }
            Self::Seen => "update @seen { ip daddr . udp sport }",
            Self::Port => {
                "ct direction original update @port { ct original ip saddr . ct original proto-src . ip daddr : udp sport }"
            }
        }
    }
}

/// What a router has to learn to behave as it should.
pub fn learned(nat: Nat) -> Vec<Learned> {
    let mut all = match nat.kind {
        NatKind::Eif => vec![Learned::Mapping],
        NatKind::Adf => vec![Learned::Mapping, Learned::Seen],
        NatKind::ByAddress => vec![Learned::Port],
        NatKind::Open
        | NatKind::Firewall
        | NatKind::Prc
        | NatKind::PrcNotPreserving
        | NatKind::Sequential
        | NatKind::Block
        | NatKind::Symmetric => Vec::new(),
    };
    if nat.hairpin && !all.contains(&Learned::Mapping) {
        all.push(Learned::Mapping);
    }
    all
}

/// The nftables script of a router with interfaces `wan` and `lan`; `one_to_one` is the inside host of
/// [`NatKind::Open`] and [`NatKind::Firewall`].
pub fn rules(nat: Nat, wan: Ipv4Addr, one_to_one: Ipv4Addr) -> String {
    let source = match nat.kind {
        NatKind::Open | NatKind::Firewall => format!("snat to {wan}"),
        NatKind::Eif | NatKind::Adf | NatKind::Prc => "masquerade".to_owned(),
        NatKind::PrcNotPreserving => {
            format!("meta l4proto udp snat to {wan}:{NOT_PRESERVED}\n  oifname wan masquerade")
        }
        NatKind::ByAddress => format!(
            "meta l4proto udp snat to {wan} : ip saddr . udp sport . ip daddr map @port\n  oifname wan masquerade random"
        ),
        NatKind::Sequential => format!("{}\n  oifname wan masquerade", sequence(wan)),
        NatKind::Block => format!(
            "meta l4proto udp snat to {wan}:{}-{} random\n  oifname wan masquerade",
            BLOCK.0, BLOCK.1
        ),
        NatKind::Symmetric => "masquerade random".to_owned(),
    };
    let destination = match nat.kind {
        NatKind::Open | NatKind::Firewall => format!("ip daddr {wan} dnat to {one_to_one}"),
        NatKind::Eif => "dnat to udp dport map @mapping".to_owned(),
        NatKind::Adf => "ip saddr . udp dport @seen dnat to udp dport map @mapping".to_owned(),
        NatKind::Prc
        | NatKind::PrcNotPreserving
        | NatKind::ByAddress
        | NatKind::Sequential
        | NatKind::Block
        | NatKind::Symmetric => String::new(),
    };
    let strangers = match nat.kind {
        NatKind::Firewall => "ct state new drop",
        NatKind::Open
        | NatKind::Eif
        | NatKind::Adf
        | NatKind::Prc
        | NatKind::PrcNotPreserving
        | NatKind::ByAddress
        | NatKind::Sequential
        | NatKind::Block
        | NatKind::Symmetric => "ct status dnat accept",
    };
    let early = if nat.accepts { "accept" } else { "drop" };
    let mut script = String::from("table ip nat {\n");
    let learned = learned(nat);
    for what in &learned {
        let _ = writeln!(script, " {}", what.declaration());
    }
    if !learned.is_empty() {
        script.push_str(" chain learn {\n  type filter hook postrouting priority 300;\n");
        for what in &learned {
            let _ = writeln!(script, "  oifname wan meta l4proto udp {}", what.update());
        }
        script.push_str(" }\n");
    }
    let _ = writeln!(
        script,
        " chain source {{\n  type nat hook postrouting priority 100;\n  oifname wan {source}"
    );
    if nat.hairpin {
        let _ = writeln!(script, "  oifname lan ct status dnat snat to {wan}");
    }
    script.push_str(" }\n chain destination {\n  type nat hook prerouting priority -100;\n");
    if !destination.is_empty() {
        let _ = writeln!(script, "  iifname wan {destination}");
    }
    if nat.hairpin {
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
  iifname wan {early}
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

/// The rule of a sequence: the counter of a rule moves with each new flow. Ports need a map, because the bytes of
/// a number and those of a port do not stand in one order.
fn sequence(wan: Ipv4Addr) -> String {
    let (low, high) = SEQUENCE;
    let ports: Vec<String> = (low..=high)
        .enumerate()
        .map(|(count, port)| format!("{count}:{port}"))
        .collect();
    format!(
        "meta l4proto udp snat to {wan} : numgen inc mod {} map {{ {} }}",
        ports.len(),
        ports.join(", ")
    )
}
