//! The shared port: datagrams of STUN's Binding shape on the WireGuard port go to the agent's own socket,
//! and what leaves that socket leaves from the WireGuard port. Stateless, at input and output: a host
//! firewall before it sees one port, forwarded packets are not touched, conntrack holds one entry a remote.

use std::collections::BTreeSet;

use mesh_types::consts::{NFT_DEMUX_IN_PRIORITY, NFT_DEMUX_OUT_PRIORITY};
use mesh_types::plan::{Adoption, Alias};
use netlink_packet_netfilter::nftables::InetHookNumber;

use super::expression::{
    DESTINATION_PORT, SOURCE_PORT, UDP, bytes_at, drop, limit_over, log, masked_bytes_at, protocol,
    set_port,
};
use super::{Chain, Kind, Rule, Tables, adoption};
use crate::HostError;

/// Names of the chains.
const CHAINS: &[&str] = &["demux_in", "demux_out"];
const LOG_CHAINS: &[&str] = &["initiations"];
/// WireGuard's handshake initiation: its first four bytes.
const INITIATION: [u8; 4] = [1, 0, 0, 0];
/// STUN's magic cookie (RFC 8489 5), and where it stands behind the UDP header.
pub(super) const COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
pub(super) const COOKIE_OFFSET: u32 = 12;
/// Where STUN's message type stands.
pub(super) const TYPE_OFFSET: u32 = 8;
/// Binding, with the two bits of the class free: 0x0001, 0x0011, 0x0101, 0x0111 (RFC 8489 5). No WireGuard
/// message matches: its second byte is 0, and its first is 1 to 4.
const BINDING: [u8; 2] = [0x00, 0x01];
const BINDING_MASK: [u8; 2] = [0xfe, 0xef];
/// Datagrams a second that reach the agent; a mesh of 5,000 nodes whose heartbeats all fall together stays below.
const RATE: u64 = 5000;
/// Datagrams that may come at once: a burst of probes is no flood.
const BURST: u32 = 1000;

/// Shares the WireGuard port with the agent's own socket.
#[derive(Debug)]
pub struct Demux {
    tables: Tables,
}

impl Demux {
    /// Opens the netlink socket, in the namespace of the calling thread.
    pub fn new() -> Result<Self, HostError> {
        Ok(Self {
            tables: Tables::open()?,
        })
    }

    /// The netlink address from which it changes our table.
    pub fn netlink_port(&self) -> u32 {
        self.tables.port()
    }

    /// Binding-shaped datagrams to `wireguard_port` reach `agent_port`, and what leaves from there leaves as
    /// from the former. Idempotent; returns whether anything had to be changed.
    pub fn apply(&mut self, wireguard_port: u16, agent_port: u16) -> Result<bool, HostError> {
        self.tables
            .apply(CHAINS, &chains(wireguard_port, agent_port))
    }

    /// Towards an adoption's peer WireGuard's datagrams leave from and arrive at its port, and what an alias calls
    /// late counts as of the path in use. Idempotent; returns whether anything had to be changed.
    pub fn lend(
        &mut self,
        wireguard_port: u16,
        adoptions: &BTreeSet<Adoption>,
        aliases: &BTreeSet<Alias>,
    ) -> Result<bool, HostError> {
        adoption::lend(&mut self.tables, wireguard_port, adoptions, aliases)
    }

    /// Handshake initiations that leave from `wireguard_port` are logged, for [`crate::Initiations`]; not those that the
    /// agent sends again. Idempotent; returns whether anything had to be changed.
    pub fn log_initiations(&mut self, wireguard_port: u16) -> Result<bool, HostError> {
        let rule = vec![
            protocol(UDP),
            bytes_at(SOURCE_PORT, &wireguard_port.to_be_bytes()),
            bytes_at(TYPE_OFFSET, &INITIATION),
            log(wireguard_port),
        ];
        let comment = format!("farspan: initiations from {wireguard_port} are told to the agent");
        let chain = Chain {
            name: "initiations",
            kind: Kind::Filter,
            hook: InetHookNumber::LocalOut,
            priority: NFT_DEMUX_OUT_PRIORITY - 1,
            rules: vec![Rule::new(comment, rule)],
        };
        self.tables.apply(LOG_CHAINS, &[chain])
    }

    /// Takes the rules away. There being none is no error.
    pub fn remove(&mut self) -> Result<(), HostError> {
        self.tables.apply(CHAINS, &[])?;
        self.tables.apply(LOG_CHAINS, &[])?;
        self.lend(0, &BTreeSet::new(), &BTreeSet::new())?;
        Ok(())
    }
}

fn chains(wireguard_port: u16, agent_port: u16) -> [Chain; 2] {
    let stun = || {
        vec![
            protocol(UDP),
            bytes_at(DESTINATION_PORT, &wireguard_port.to_be_bytes()),
            bytes_at(COOKIE_OFFSET, &COOKIE),
        ]
    };
    let mut flood = stun();
    flood.extend([limit_over(RATE, BURST), drop()]);
    let mut inward = stun();
    inward.extend([
        masked_bytes_at(TYPE_OFFSET, &BINDING_MASK, &BINDING),
        set_port(DESTINATION_PORT, agent_port),
    ]);
    let outward = vec![
        protocol(UDP),
        bytes_at(SOURCE_PORT, &agent_port.to_be_bytes()),
        set_port(SOURCE_PORT, wireguard_port),
    ];
    [
        Chain {
            name: "demux_in",
            kind: Kind::Filter,
            hook: InetHookNumber::LocalIn,
            priority: NFT_DEMUX_IN_PRIORITY,
            rules: vec![
                Rule::new(
                    format!(
                        "farspan: no flood of STUN to {wireguard_port}, {RATE}/s, burst {BURST}"
                    ),
                    flood,
                ),
                Rule::new(
                    format!("farspan: Binding from {wireguard_port} to the agent at {agent_port}"),
                    inward,
                ),
            ],
        },
        Chain {
            name: "demux_out",
            kind: Kind::Filter,
            hook: InetHookNumber::LocalOut,
            priority: NFT_DEMUX_OUT_PRIORITY,
            rules: vec![Rule::new(
                format!("farspan: the agent at {agent_port} speaks from {wireguard_port}"),
                outward,
            )],
        },
    ]
}
