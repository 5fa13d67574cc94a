//! Two ways in which a peer's datagrams are shown to kernel WireGuard as others than they are, both stateless.
//!
//! *Adoption*: towards one peer WireGuard leaves from another local port than its own, one whose mapping a NAT
//! happened to make useful. The agent keeps that port's socket; STUN stays with it, so paths are still proven
//! from there. *Alias*: what still comes by a relay that a pair has left counts as if it came by the path in
//! use, for WireGuard roams to wherever an authentic datagram comes from.
//!
//! Both at input and output like the demultiplexer: the operator's firewall and conntrack see the datagrams as they
//! are on the wire.

use std::collections::BTreeSet;

use mesh_types::consts::{NFT_DEMUX_IN_PRIORITY, NFT_DEMUX_OUT_PRIORITY};
use mesh_types::plan::{Adoption, Alias};
use netlink_packet_netfilter::nftables::InetHookNumber;

use super::demux::{COOKIE, COOKIE_OFFSET};
use super::expression::{
    DESTINATION_PORT, Family, Part, SOURCE_PORT, UDP, bytes_at, drop, family, find, is_in, key,
    other_bytes_at, protocol, set_part, set_port,
};
use super::map::{Elements, Entry, Map, Value, lone_port, put_address, put_port};
use super::{Chain, Kind, Rule, Tables};
use crate::HostError;

const ADOPT_CHAINS: &[&str] = &["adopt_in", "adopt_out"];
const ALIAS_CHAINS: &[&str] = &["alias_in"];

use Family::{V4, V6};

const ADOPT_IN: [Map; 2] = [
    Map {
        name: "adopt_in4",
        key: &[Part::Source(V4), Part::SourcePort, Part::DestinationPort],
        value: Value::None,
    },
    Map {
        name: "adopt_in6",
        key: &[Part::Source(V6), Part::SourcePort, Part::DestinationPort],
        value: Value::None,
    },
];
const ADOPT_OUT: [Map; 2] = [
    Map {
        name: "adopt_out4",
        key: &[Part::Destination(V4), Part::DestinationPort],
        value: Value::Fields(&[Part::SourcePort]),
    },
    Map {
        name: "adopt_out6",
        key: &[Part::Destination(V6), Part::DestinationPort],
        value: Value::Fields(&[Part::SourcePort]),
    },
];
const ALIAS: [Map; 2] = [
    Map {
        name: "alias4",
        key: &[Part::Source(V4), Part::SourcePort],
        value: Value::Fields(&[Part::Source(V4), Part::SourcePort]),
    },
    Map {
        name: "alias6",
        key: &[Part::Source(V6), Part::SourcePort],
        value: Value::Fields(&[Part::Source(V6), Part::SourcePort]),
    },
];
/// Late datagrams of one family whose path is of the other: they cannot be shown as what they are not.
const LATE: [Map; 2] = [
    Map {
        name: "late4",
        key: &[Part::Source(V4), Part::SourcePort],
        value: Value::None,
    },
    Map {
        name: "late6",
        key: &[Part::Source(V6), Part::SourcePort],
        value: Value::None,
    },
];
const FAMILIES: [Family; 2] = [V4, V6];

/// Makes it so; says whether anything had to be changed.
pub(super) fn lend(
    tables: &mut Tables,
    wireguard_port: u16,
    adoptions: &BTreeSet<Adoption>,
    aliases: &BTreeSet<Alias>,
) -> Result<bool, HostError> {
    let maps = [ADOPT_IN, ADOPT_OUT].concat();
    let mut changed = if adoptions.is_empty() {
        tables.apply_with(ADOPT_CHAINS, &[], &maps)?
    } else {
        tables.apply_with(ADOPT_CHAINS, &adopt_chains(wireguard_port), &maps)?
    };
    if !adoptions.is_empty() {
        for of in FAMILIES {
            let (inward, outward) = (map_of(&ADOPT_IN, of), map_of(&ADOPT_OUT, of));
            let ours = || adoptions.iter().filter(move |it| is_of(it.remote.ip(), of));
            let entries = ours().map(|Adoption { remote, port }| {
                let mut key = Vec::new();
                put_address(&mut key, *remote);
                put_port(&mut key, *port);
                (key, Entry::None)
            });
            changed |= tables.fill(inward, &entries.collect())?;
            let entries = ours().map(|Adoption { remote, port }| {
                let mut key = Vec::new();
                put_address(&mut key, *remote);
                (key, Entry::Fields(lone_port(*port)))
            });
            changed |= tables.fill(outward, &entries.collect())?;
        }
    }
    let maps = [ALIAS, LATE].concat();
    if aliases.is_empty() {
        return Ok(changed | tables.apply_with(ALIAS_CHAINS, &[], &maps)?);
    }
    changed |= tables.apply_with(ALIAS_CHAINS, &[alias_chain(wireguard_port)], &maps)?;
    for of in FAMILIES {
        let (mut shown, mut dropped) = (Elements::new(), Elements::new());
        for Alias { late, path } in aliases.iter().filter(|it| is_of(it.late.ip(), of)) {
            let (mut key, mut value) = (Vec::new(), Vec::new());
            put_address(&mut key, *late);
            put_address(&mut value, *path);
            if is_of(path.ip(), of) {
                shown.insert(key, Entry::Fields(value));
            } else {
                dropped.insert(key, Entry::None);
            }
        }
        changed |= tables.fill(map_of(&ALIAS, of), &shown)?;
        changed |= tables.fill(map_of(&LATE, of), &dropped)?;
    }
    Ok(changed)
}

fn is_of(ip: std::net::IpAddr, of: Family) -> bool {
    Family::of(ip) == of
}

fn map_of(maps: &[Map; 2], of: Family) -> &Map {
    match of {
        V4 => &maps[0],
        V6 => &maps[1],
    }
}

fn word(of: Family) -> &'static str {
    match of {
        V4 => "IPv4",
        V6 => "IPv6",
    }
}

/// `udp`, of a family, and not STUN: that belongs to the agent.
fn wireguard(of: Family) -> Vec<Vec<netlink_packet_netfilter::nftables::Expressions>> {
    vec![
        family(of),
        protocol(UDP),
        other_bytes_at(COOKIE_OFFSET, &COOKIE),
    ]
}

fn adopt_chains(port: u16) -> [Chain; 2] {
    let inward = |of: Family| {
        let map = map_of(&ADOPT_IN, of);
        let mut parts = wireguard(of);
        parts.extend([
            key(map.key),
            is_in(map.name),
            set_port(DESTINATION_PORT, port),
        ]);
        Rule::new(
            format!(
                "farspan: {} of a peer to a lent port reaches {port}",
                word(of)
            ),
            parts,
        )
    };
    let outward = |of: Family| {
        let map = map_of(&ADOPT_OUT, of);
        let value = map.key.iter().map(|part| part.places()).sum();
        let mut parts = wireguard(of);
        parts.extend([
            bytes_at(SOURCE_PORT, &port.to_be_bytes()),
            key(map.key),
            find(map.name, value),
            set_part(Part::SourcePort, value),
        ]);
        Rule::new(
            format!(
                "farspan: {} from {port} to a peer leaves from its lent port",
                word(of)
            ),
            parts,
        )
    };
    [
        Chain {
            name: "adopt_in",
            kind: Kind::Filter,
            hook: InetHookNumber::LocalIn,
            priority: NFT_DEMUX_IN_PRIORITY,
            rules: FAMILIES.map(inward).into(),
        },
        Chain {
            name: "adopt_out",
            kind: Kind::Filter,
            hook: InetHookNumber::LocalOut,
            priority: NFT_DEMUX_OUT_PRIORITY,
            rules: FAMILIES.map(outward).into(),
        },
    ]
}

fn alias_chain(port: u16) -> Chain {
    let rule = |of: Family| {
        let map = map_of(&ALIAS, of);
        let address: u8 = map.key.iter().map(|part| part.places()).sum();
        let source = Part::Source(of);
        let mut parts = wireguard(of);
        parts.extend([
            bytes_at(DESTINATION_PORT, &port.to_be_bytes()),
            key(map.key),
            find(map.name, address),
            set_part(source, address),
            set_part(Part::SourcePort, address + source.places()),
        ]);
        Rule::new(
            format!(
                "farspan: late {} to {port} counts as of the path in use",
                word(of)
            ),
            parts,
        )
    };
    let late = |of: Family| {
        let map = map_of(&LATE, of);
        let mut parts = wireguard(of);
        parts.extend([
            bytes_at(DESTINATION_PORT, &port.to_be_bytes()),
            key(map.key),
            is_in(map.name),
            drop(),
        ]);
        Rule::new(
            format!(
                "farspan: late {} to {port} whose path is of the other family",
                word(of)
            ),
            parts,
        )
    };
    Chain {
        name: "alias_in",
        kind: Kind::Filter,
        hook: InetHookNumber::LocalIn,
        priority: NFT_DEMUX_IN_PRIORITY,
        rules: FAMILIES
            .map(late)
            .into_iter()
            .chain(FAMILIES.map(rule))
            .collect(),
    }
}
