//! What the edges see and tell the core.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;

use crate::SocketId;
use crate::key::WgKey;

/// Which implementation carries the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// The kernel's WireGuard.
    Kernel,
    /// The in-process engine.
    Userspace,
}

impl Backend {
    /// The word in JSON and flags.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Userspace => "userspace",
        }
    }
}

/// What WireGuard knows of its peers. Peers it has no state for are absent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TunnelReport {
    /// By key.
    pub peers: BTreeMap<WgKey, TunnelStats>,
}

/// What WireGuard knows of one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TunnelStats {
    /// Where it sends now (it roams by itself).
    pub endpoint: Option<SocketAddr>,
    /// Age of the last completed handshake.
    pub handshake_age: Option<Duration>,
    /// Bytes received, counted by WireGuard: transport messages with overhead, handshakes, keepalives.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
}

impl TunnelStats {
    /// Has nothing ever been exchanged?
    pub fn is_silent(&self) -> bool {
        self.handshake_age.is_none() && self.rx_bytes == 0 && self.tx_bytes == 0
    }
}

/// What the host looks like beside our own work.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostReport {
    /// Addresses of all interfaces that are up.
    pub addresses: Vec<HostAddress>,
    /// `net.ipv6.conf.all.disable_ipv6` or no IPv6 at all.
    pub ipv6_off: bool,
    /// Has it a default route, by family.
    pub default_route_v4: bool,
    /// Has it a default route, by family.
    pub default_route_v6: bool,
    /// Interfaces with a default route, of either family.
    pub uplinks: BTreeSet<String>,
    /// Next hops of the default routes, those of the preferred routes first.
    pub gateways: Vec<Gateway>,
    /// `net.ipv4.ip_forward`.
    pub forwarding_v4: bool,
    /// `net.ipv6.conf.all.forwarding`.
    pub forwarding_v6: bool,
    /// Interfaces with a default route whose effective `rp_filter` is 1 (strict) while `src_valid_mark` is 0.
    pub strict_rp_filter: Vec<String>,
    /// Names of nftables or iptables chains at the forward hook whose policy is drop.
    pub forward_drop: Vec<String>,
    /// Routes of others that overlap mesh ranges: prefix and interface.
    pub foreign_routes: Vec<(IpNet, String)>,
    /// The listen port was taken, and this one is used instead.
    pub port_moved: Option<u16>,
    /// Ports of [`crate::SocketId::Relay`] sockets in the plan that could not be bound because somebody else holds them.
    pub busy_ports: BTreeSet<u16>,
    /// The kernel says its clock is synchronised (`adjtimex`).
    pub clock_synchronised: bool,
}

/// An address of an interface.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostAddress {
    /// The interface.
    pub interface: String,
    /// The address.
    pub ip: IpAddr,
    /// Length of its network's prefix.
    pub prefix_len: u8,
    /// Usable as a candidate: not temporary, deprecated, tentative or failed.
    pub stable: bool,
}

/// Next hop of a default route.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Gateway {
    /// The interface it is reached through.
    pub interface: String,
    /// Its address.
    pub ip: IpAddr,
}

/// What converging a plan came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// Of the plan.
    pub generation: u64,
    /// What failed, one sentence each; empty where all is as planned.
    pub failures: Vec<String>,
    /// Sockets of the plan that are open, where the applier opens any.
    pub sockets: BTreeSet<SocketId>,
}

/// An answer to a question the core asked by an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// A STUN server's name was resolved.
    Resolved {
        /// `host:port`, as configured.
        name: String,
        /// Its addresses; empty where there are none, or the resolver failed.
        addresses: Vec<SocketAddr>,
    },
    /// The gateway was asked for a port that leads to ours. Comes unasked, at start and with every change.
    PortMapping(PortMapping),
    /// A link to a TURN server came up or ended. Comes unasked; the end comes once, and none where the plan has
    /// dropped the link.
    TurnLink {
        /// Of [`crate::plan::TurnLink`].
        number: u32,
        /// What became of it.
        state: TurnLinkState,
    },
}

/// What became of a link to a TURN server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TurnLinkState {
    /// It can be sent on.
    Up,
    /// It is at an end, or could not be made.
    Down {
        /// Why, one clause without a full stop.
        reason: String,
        /// The server's certificate was refused: another attempt will end the same way.
        certificate: bool,
    },
}

/// A port of the gateway that leads to this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortMapping {
    /// Switched off by the configuration.
    Off,
    /// The gateway has been asked and has not answered yet.
    Asking,
    /// There is one.
    Mapped {
        /// By which protocol.
        by: MappingProtocol,
        /// Where strangers reach this node, as the gateway says.
        external: SocketAddr,
    },
    /// There is none.
    Unmapped {
        /// Why, one clause without a full stop.
        reason: String,
    },
}

/// How a gateway is asked for a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum MappingProtocol {
    /// Port Control Protocol (RFC 6887).
    Pcp,
    /// NAT Port Mapping Protocol (RFC 6886).
    NatPmp,
    /// UPnP Internet Gateway Device (WANIPConnection).
    Upnp,
}

impl MappingProtocol {
    /// The word in JSON and files.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Pcp => "pcp",
            Self::NatPmp => "nat-pmp",
            Self::Upnp => "upnp",
        }
    }
}

impl fmt::Display for PortMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Asking => f.write_str("asking"),
            Self::Mapped { by, external } => write!(f, "{} {external}", by.kind()),
            Self::Unmapped { reason } => write!(f, "none: {reason}"),
        }
    }
}
