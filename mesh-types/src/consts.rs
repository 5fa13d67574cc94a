//! Numbers that meet the outside world, each with its reason and its known neighbours.

use std::net::Ipv4Addr;
use std::time::Duration;

/// UDP port of agent-to-agent messages inside the tunnel (L2), bound to the overlay device only.
pub const CONTROL_PORT: u16 = 22511;
/// First listen port; below NodePorts (30000-32767) and the ephemeral range (32768-60999).
pub const LISTEN_PORT_BASE: u16 = 20480;
/// Number of listen ports an identity is hashed into. Never one fixed port: two hosts behind one NAT
/// that share a source port destroy each other's endpoint-independent mapping.
pub const LISTEN_PORT_SPAN: u16 = 8192;
/// Routing table of the mesh. Neighbours: 51820 (wg-quick), 52 (Tailscale), 180 (KubeSpan), 7119 (NetBird).
pub const ROUTE_TABLE: u32 = 22512;
/// Priority of our policy rule. Neighbours: 5210-5270 (Tailscale), 99 (Calico), 32500 (KubeSpan), 105/110 (NetBird).
pub const RULE_PRIORITY: u32 = 5300;
/// Priority of the rules that come before it: own addresses from which no peer takes a packet out of the tunnel.
pub const SOURCE_RULE_PRIORITY: u32 = 5299;
/// TCP ports that those rules are about, first and last: of what answers. Linux connects from higher ones (`ip_local_port_range`).
pub const SERVED_PORTS: (u16, u16) = (1, 32_767);
/// The kernel's main routing table.
pub const MAIN_TABLE: u32 = 254;
/// Mark on outer packets, which escape the mesh's table. 0x4000 and 0x8000 are kube-proxy's.
pub const FWMARK: u32 = 0x2000;
/// Bits of the mark that are ours.
pub const FWMARK_MASK: u32 = 0x2000;
/// Route protocol of every route of ours, so that repair and removal find only ours. Neighbours: 186-192 (FRR).
pub const ROUTE_PROTOCOL: u8 = 201;
/// Metric of the unicast route of a peer's prefix.
pub const ROUTE_METRIC: u32 = 100;
/// Metric of its blackhole twin: used only when the unicast route is gone.
pub const BLACKHOLE_METRIC: u32 = 4096;
/// Name of our nftables table (family inet).
pub const NFT_TABLE: &str = "farspan";
/// nftables priority of the demux chain at input: after every common filter (0) and security (50) hook,
/// so that the operator's firewall sees one port.
pub const NFT_DEMUX_IN_PRIORITY: i32 = 310;
/// nftables priority of the demux chain at output: raw, so that conntrack sees the shared port.
pub const NFT_DEMUX_OUT_PRIORITY: i32 = -300;
/// nftables priority of the MSS clamp at forward: mangle.
pub const NFT_MSS_PRIORITY: i32 = -150;
/// nftables priority of the relay chain at prerouting: raw, before conntrack (-200), which never sees what is relayed.
pub const NFT_RELAY_IN_PRIORITY: i32 = -300;
/// nftables priority of the relay chain at postrouting: after every common source NAT (100).
pub const NFT_RELAY_OUT_PRIORITY: i32 = 310;
/// nftables priority of the chains that filter what peers send, at input and forward: filter, when kube-proxy has
/// already put pods in place of Services.
pub const NFT_FILTER_PRIORITY: i32 = 0;
/// nftables priority of the chain that keeps source addresses: before every common source NAT (100), which then finds
/// that of the connection decided.
pub const NFT_KEEP_SOURCE_PRIORITY: i32 = 90;
/// nftables priorities of the chains that mark what arrives for us at prerouting: before the reverse path filters of
/// others at raw (-300; firewalld's is at -290), and again at mangle, where others may have set marks anew.
pub const NFT_MARK_INPUT_PRIORITIES: [i32; 2] = [-310, -150];
/// kube-proxy's mark on what it will masquerade (`--iptables-masquerade-bit` 14).
pub const KUBE_MASQUERADE_MARK: u32 = 0x4000;
/// Name of the overlay device unless configured.
pub const INTERFACE: &str = "farspan0";
/// Largest control message inside the tunnel or an established session, bytes.
pub const MESSAGE_MAX: usize = 1200;
/// Largest control message before a session exists (DATA attribute of a Binding message), bytes.
pub const MESSAGE_MAX_EARLY: usize = 1000;
/// Largest control datagram: a probe of the path MTU, as long as WireGuard makes a packet of [`MTU`] bytes.
/// Anything longer is not ours.
pub const DATAGRAM_MAX: usize = (MTU + WIREGUARD_OVERHEAD) as usize;
/// A control datagram of this length or more is a probe of the path MTU and must not be fragmented. All others
/// are shorter: content of at most [`MESSAGE_MAX_EARLY`] bytes, and what frames it.
pub const MTU_PROBE_MIN: usize = 1232;
/// Candidates kept per peer; more are dropped, the best kinds first kept.
pub const CANDIDATES_MAX: usize = 24;
/// MTU of the overlay device over an underlay of 1500 bytes: 1500 - 80 (IPv6 outside).
pub const MTU: u16 = 1420;
/// What WireGuard adds to a packet of 16 bytes, or of a multiple: header and tag.
pub const WIREGUARD_OVERHEAD: u16 = 32;
/// Smallest MTU where IPv6 is carried (RFC 8200 5).
pub const MTU_MIN: u16 = 1280;
/// WireGuard's persistent keepalive of reachable peers: keeps NAT mappings (>= 30 s seen) when the agent is away.
pub const PERSISTENT_KEEPALIVE: Duration = Duration::from_secs(25);
/// Mesh range of `init` unless configured.
pub const MESH_RANGE: &str = "10.77.0.0/16";
/// Lifetime of an invitation.
pub const TICKET_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// Ports that a relay lends to members unless configured; below NodePorts, above most of what listens.
pub const RELAY_PORTS: (u16, u16) = (28672, 29183);
/// Bits a second of a relayed pair unless configured: a relay's operator pays for the traffic of others.
pub const RELAY_PAIR_RATE: u64 = 50_000_000;
/// Of so many pairs at full rate one node may have the traffic unless configured, however many it has.
pub const RELAY_NODE_PAIRS: u64 = 4;
/// Loopback addresses that stand for peers behind TURN servers: 127.128.0.0/9, far from what people use of 127.0.0.0/8.
pub const PROXY_RANGE: (Ipv4Addr, u8) = (Ipv4Addr::new(127, 128, 0, 0), 9);
/// Their port: below the listen ports, which WireGuard holds on all addresses.
pub const PROXY_PORT: u16 = 20479;
/// Protocol versions this build speaks, lowest and highest.
pub const PROTOCOL: (u8, u8) = (1, 1);

/// Prefixes of names of interfaces whose addresses are never candidates: tunnels, container bridges,
/// CNI devices, kube-proxy's and nodelocaldns' dummies.
pub const NOT_UNDERLAY: &[&str] = &[
    "lo",
    "docker",
    "br-",
    "cni",
    "cali",
    "cilium",
    "lxc",
    "flannel",
    "kube-ipvs",
    "nodelocaldns",
    "virbr",
    "veth",
    "tun",
    "tap",
    "wg",
    "tailscale",
    "wt",
    "zt",
    "nebula",
    "farspan",
    "vxlan",
    "geneve",
    "dummy",
    "ifb",
    "kube-bridge",
    "weave",
];
