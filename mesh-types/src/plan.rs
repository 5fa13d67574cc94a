//! The desired state of the host. Level-triggered: the edge compares it with the kernel again and again
//! and repairs what differs, so a crash, a missed event or a foreign change heals the same way.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;

use crate::datagram::SocketId;
use crate::key::{PresharedKey, WgKey, WgSecret};

/// Everything the host must hold. Equal plans have equal effects; `generation` rises with every change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPlan {
    /// Rises whenever anything below changes.
    pub generation: u64,
    /// The overlay device.
    pub device: DevicePlan,
    /// WireGuard: keys and peers.
    pub tunnel: TunnelPlan,
    /// Routes in [`crate::consts::ROUTE_TABLE`].
    pub routes: BTreeSet<Route>,
    /// Policy rules, one a family.
    pub rules: BTreeSet<Rule>,
    /// Sockets beside the tunnel's own.
    pub sockets: BTreeSet<SocketId>,
    /// Clamp the MSS of forwarded TCP on the device, both ways.
    pub mss_clamp: bool,
    /// Let the host's filters forward from and to the device (`[host] forward-accept`).
    pub forward_accept: bool,
    /// Lucky local ports lent to single peers.
    pub adoptions: BTreeSet<Adoption>,
    /// Pairs relayed by this node.
    pub relay_pairs: BTreeSet<RelayPair>,
    /// Peers reached through a framed relay, by loopback address.
    pub proxies: BTreeSet<Proxy>,
    /// Coarse packet filters per peer.
    pub filters: BTreeSet<Filter>,
}

/// The overlay device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DevicePlan {
    /// Its name.
    pub name: String,
    /// Its MTU, bytes.
    pub mtu: u16,
    /// Its addresses, /32 and /128. IPv6 ones are left out where the host has no IPv6.
    pub addresses: BTreeSet<IpNet>,
}

/// WireGuard: one device, one UDP port for both families.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelPlan {
    /// The private key.
    pub key: WgSecret,
    /// During a rotation: sessions under this key are still received (userspace; the kernel does so by itself).
    pub previous_key: Option<WgSecret>,
    /// UDP port.
    pub listen_port: u16,
    /// Mark on outer packets.
    pub fwmark: u32,
    /// By key.
    pub peers: BTreeMap<WgKey, TunnelPeer>,
    /// How often [`crate::report::TunnelReport`]s are wanted.
    pub report_every: Duration,
}

/// A WireGuard peer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TunnelPeer {
    /// Where to send. `None`: unknown, or leave what the tunnel has learned.
    pub endpoint: Option<SocketAddr>,
    /// Differs from the last plan's: the endpoint is to be set though the plan's is the same, because WireGuard has
    /// roamed to where nothing comes from.
    pub insist: u32,
    /// Cryptokey routing, both ways.
    pub allowed_ips: BTreeSet<IpNet>,
    /// WireGuard's own keepalive. Going from `None` to `Some` sends a packet at once, and so a handshake.
    pub keepalive: Option<Duration>,
    /// Mixed into the handshake.
    pub preshared_key: Option<PresharedKey>,
    /// Handshakes are taken, nothing is started: the old key of a peer that rotated. It owns no ranges.
    pub passive: bool,
}

/// What a route does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouteKind {
    /// Into the overlay device.
    Unicast {
        /// Preferred source.
        source: Option<IpAddr>,
        /// Path MTU where it is lower than the device's, bytes. A route of IPv6 gets [`crate::consts::MTU_MIN`] where
        /// this is less, and only its TCP segments fit the path.
        mtu: Option<u16>,
    },
    /// Dropped: the twin of a unicast route, used when that is gone, or a range of the mesh nobody carries.
    Blackhole,
    /// Left to the next rule: this node's own ranges.
    Throw,
}

/// A route in our table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Destination.
    pub prefix: IpNet,
    /// Metric.
    pub metric: u32,
    /// What it does.
    pub kind: RouteKind,
}

/// `not fwmark MARK/MASK lookup TABLE` in one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// IPv6, else IPv4.
    pub ipv6: bool,
    /// Priority.
    pub priority: u32,
    /// Routing table.
    pub table: u32,
    /// Packets with this mark escape.
    pub mark: u32,
    /// Bits of it that are compared.
    pub mask: u32,
}

/// Towards one peer, WireGuard's packets leave from and arrive at another local port than its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Adoption {
    /// The peer.
    pub remote: SocketAddr,
    /// The local port.
    pub port: u16,
}

/// Ciphertext forwarded between two members.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RelayPair {
    /// One end, and the local port it sends to.
    pub first: (SocketAddr, u16),
    /// The other.
    pub second: (SocketAddr, u16),
    /// Bits a second, both directions together.
    pub rate: u64,
}

/// A peer behind a framed relay, as the tunnel sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Proxy {
    /// In 127.128.0.0/9.
    pub loopback: SocketAddr,
    /// The relay's socket.
    pub socket: SocketId,
    /// The peer's relayed address.
    pub relayed: SocketAddr,
}

/// A peer may send to these.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Filter {
    /// The peer's range.
    pub source: IpNet,
    /// Where it may go.
    pub destination: IpNet,
    /// Ports, TCP and UDP; `None` is all.
    pub ports: Option<(u16, u16)>,
}

/// A prefix of one address.
pub fn host_prefix(ip: IpAddr) -> IpNet {
    IpNet::from(ip)
}
