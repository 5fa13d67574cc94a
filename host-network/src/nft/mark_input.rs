//! What arrives for us outside of the tunnel is marked as what we send outside of it, before anybody asks for the way
//! back: where a peer's own address is routed into the tunnel, a reverse path filter would look there and drop it.
//! The kernel's own filter heeds the mark with `src_valid_mark`.

use std::collections::BTreeSet;

use mesh_types::HostPlan;
use mesh_types::consts::NFT_MARK_INPUT_PRIORITIES;
use mesh_types::datagram::SocketId;
use netlink_packet_netfilter::nftables::{InetHookNumber, MetaKey};

use super::expression::{Part, UDP, add_mark, is_in, key, other_interface, protocol};
use super::map::{Elements, Entry, Map, Value, lone_port};
use super::{Chain, Kind, Rule, Tables};
use crate::HostError;

const TRIED: &str = "mark what comes to our ports by nftables";
const CHAINS: [&str; 2] = ["mark_input_raw", "mark_input"];
const PORTS: Map = Map {
    name: "input_ports",
    key: &[Part::DestinationPort],
    value: Value::None,
};

/// Makes it so, where the plan wants it. Idempotent; says whether anything had to be changed.
pub(crate) fn mark_input(
    tables: &mut Tables,
    plan: &HostPlan,
    beside: &BTreeSet<u16>,
) -> Result<bool, HostError> {
    let elements: Elements = ports(plan, beside)
        .into_iter()
        .map(|port| (lone_port(port), Entry::None))
        .collect();
    let filled = [(PORTS, elements)];
    if !plan.mark_input {
        return tables.apply_filled(TRIED, &CHAINS, &[], &filled);
    }
    let (device, mark) = (&plan.device.name, plan.tunnel.fwmark);
    let chain = |(name, priority)| Chain {
        name,
        kind: Kind::Filter,
        hook: InetHookNumber::PreRouting,
        priority,
        rules: vec![Rule::new(
            format!("farspan: what comes to our ports, not from {device}, is marked {mark:#x}"),
            vec![
                other_interface(MetaKey::Iifname, device),
                protocol(UDP),
                key(PORTS.key),
                is_in(PORTS.name),
                add_mark(mark),
            ],
        )],
    };
    let chains: Vec<Chain> = CHAINS
        .into_iter()
        .zip(NFT_MARK_INPUT_PRIORITIES)
        .map(chain)
        .collect();
    tables.apply_filled(TRIED, &CHAINS, &chains, &filled)
}

/// WireGuard's, those lent to it, those that members are relayed through, and the agent's own `beside` them.
fn ports(plan: &HostPlan, beside: &BTreeSet<u16>) -> BTreeSet<u16> {
    let relays = plan.sockets.iter().filter_map(|socket| match socket {
        SocketId::Relay(port) => Some(*port),
        _ => None,
    });
    std::iter::once(plan.tunnel.listen_port)
        .chain(plan.adoptions.iter().map(|adoption| adoption.port))
        .chain(relays)
        .chain(beside.iter().copied())
        .collect()
}
