//! The desired state of the host. Level-triggered: the edge compares it with the kernel again and again
//! and repairs what differs, so a crash, a missed event or a foreign change heals the same way.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;

use crate::cluster::Allowed;
use crate::datagram::SocketId;
use crate::key::{PresharedKey, WgKey, WgSecret};
use crate::prefixes::Prefixes;
use crate::turn::TurnTransport;

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
    /// Policy rules: one a family, and those that keep an own address out of the tunnel.
    pub rules: BTreeSet<Rule>,
    /// Sockets beside the tunnel's own.
    pub sockets: BTreeSet<SocketId>,
    /// Clamp the MSS of forwarded TCP on the device, both ways.
    pub mss_clamp: bool,
    /// Let the host's filters forward from and to the device (`[host] forward-accept`).
    pub forward_accept: bool,
    /// Lucky local ports lent to single peers.
    pub adoptions: BTreeSet<Adoption>,
    /// Pairs relayed by this node. Their ports, and those of pairs that are about to be, stand in `sockets` too.
    pub relay_pairs: BTreeSet<RelayPair>,
    /// Late datagrams of relays, shown to WireGuard as if they had come by the path in use.
    pub aliases: BTreeSet<Alias>,
    /// Where paths carry too little for what IPv6 may send through the tunnel
    /// ([`crate::consts::MTU_MIN`]), and how long a packet of IP they carry, bytes: longer datagrams to there must be
    /// sent in fragments, though no ICMP says so.
    pub narrow: BTreeMap<IpAddr, u16>,
    /// Connections to TURN servers.
    pub turn_links: BTreeSet<TurnLink>,
    /// Peers reached through a TURN server, by loopback address.
    pub proxies: BTreeSet<Proxy>,
    /// Coarse packet filters: what comes out of the tunnel from within one of these ranges may go only where it says,
    /// forwarded or not, beside answers to what did not begin there. Of ranges that lie in each other the longest prefix
    /// counts, and only it. Ranges that are not named are not filtered.
    pub filters: BTreeMap<IpNet, BTreeSet<Allowed>>,
    /// Between these ranges source addresses are kept, whatever masquerading the host does (kube-proxy, the CNI); empty:
    /// nothing is said to the host's NAT. Packets that kube-proxy has marked 0x4000 stay masqueraded.
    pub keep_source: BTreeSet<IpNet>,
    /// Peers' own underlay addresses are routed into the tunnel: what arrives at the listen port, a lent one, a relay's
    /// or another of the agent's is marked before the route back is looked up, so that reverse path filters find the uplink (needs
    /// `src_valid_mark`).
    pub mark_input: bool,
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
    /// All that is sent to the endpoint is sent here too: the path in use may be gone. Userspace; the kernel cannot.
    pub also: Option<SocketAddr>,
    /// Cryptokey routing, both ways.
    pub allowed_ips: Prefixes,
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
    /// The rule is about what answers by TCP from here ([`crate::consts::SERVED_PORTS`]), whatever its mark.
    pub from: Option<IpAddr>,
}

/// Towards one peer, WireGuard's packets leave from and arrive at another local port than its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Adoption {
    /// The peer.
    pub remote: SocketAddr,
    /// The local port.
    pub port: u16,
}

/// Ciphertext forwarded between two members, unseen: no byte of a payload changes.
///
/// A UDP datagram from exactly `first.0` to local port `first.1` goes out from local port `second.1`, of the
/// address at which `second.0` is reached, to `second.0`; and the other way round. The hop limit falls by one
/// where the kernel forwards. Both ports are also in [`HostPlan::sockets`] as [`SocketId::Relay`].
///
/// - Never forwarded: Binding indications (bytes 0-1 are 0x0011 and bytes 4-7 the cookie 0x2112a442). They are for
///   the agent, on the socket of the port they came to.
/// - Forwarded outside of `rate`: Binding requests and answers (0x0001, 0x0101, 0x0111 with the cookie). They are the
///   ends' probes: they must travel as the data do, and must not drown in them. 200 a second of one pair suffice.
/// - Everything else counts against `rate`; what exceeds it is dropped, after a burst of 100 ms at that rate or 64 KiB,
///   whichever is more.
/// - What comes from anybody else to a relay port is dropped, except Binding indications.
///
/// No two pairs share an end, address and port: `(source, destination port)` is a key. The ends may be of
/// different families; then only userspace can carry the pair, by the sockets of both ports. A pair whose end moves is
/// another pair: the old element goes in the same step in which the new one comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RelayPair {
    /// One end, and the local port it sends to.
    pub first: (SocketAddr, u16),
    /// The other.
    pub second: (SocketAddr, u16),
    /// Bits of UDP payload a second, both directions together; 0 is no limit.
    pub rate: u64,
    /// The same for all pairs of one node together, sent and received. A node is known by its port: the one that
    /// the others send to.
    pub node_rate: u64,
}

/// Kernel and engine follow any authentic datagram. After a pair has left a relay, datagrams that are still on their
/// way through it would drag both ends back, each other again and again. So what comes from `late` to
/// WireGuard's port is handed to WireGuard as if it had come from `path`, and nothing is lost.
///
/// In the kernel: source address and port rewritten at input, before the socket is looked up, for everything that the
/// demultiplexer does not take. In the engine: before the peer's endpoint is updated. Where the families differ the
/// kernel cannot rewrite, and drops what comes from `late`; the plan waits a second with those, and the engine shows
/// them as all others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Alias {
    /// The relay's address and port, where the peer's datagrams came from.
    pub late: SocketAddr,
    /// The endpoint in use.
    pub path: SocketAddr,
}

/// A connection to a TURN server: a UDP socket of its own, or a TCP or TLS connection. The edge opens it once and tells
/// what became of it ([`crate::report::TurnLinkState`]); a link that has ended is not opened again, the core names
/// another number.
///
/// Or a TCP connection straight to a peer, which connects at the same time (RFC 5382 REQ-2: simultaneous open). It
/// carries ChannelData too, of one channel.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct TurnLink {
    /// [`SocketId::Turn`]. Never used for two links.
    pub number: u32,
    /// The server.
    pub server: SocketAddr,
    /// How it is spoken to.
    pub transport: TurnTransport,
    /// The server's name, which its certificate must bear (TLS).
    pub name: String,
    /// Where `server` is a peer: the link to a TURN server whose local port it is connected from. Nobody is listened
    /// to there.
    pub from: Option<u32>,
}

/// A peer behind a TURN server, as WireGuard sees it: what is sent to `loopback` goes out as ChannelData (RFC 8656
/// 12.4) on `channel` of the link, and the link's ChannelData of that channel comes to WireGuard from `loopback`.
/// Control datagrams (Binding messages with the cookie) are not shown to WireGuard, they are for the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Proxy {
    /// An address in [`crate::consts::PROXY_RANGE`], port [`crate::consts::PROXY_PORT`]. No two proxies share one.
    pub loopback: SocketAddr,
    /// Number of the link.
    pub link: u32,
    /// 0x4000 to 0x4fff.
    pub channel: u16,
}

/// A prefix of one address.
pub fn host_prefix(ip: IpAddr) -> IpNet {
    IpNet::from(ip)
}
