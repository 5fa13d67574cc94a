//! Source addresses inside the mesh are kept, whatever the host masquerades (kube-proxy, the CNI, Docker).
//!
//! An `accept` ahead of masquerading would not stop it. But the kernel asks the chains of type nat in the order of their
//! priority, and the first that decides on a connection's source has decided: ours, earlier than all common ones, makes it
//! what it is already. What kube-proxy has marked stays its own: a NodePort's client from outside is in nobody's
//! allowed ranges.
//!
//! That holds for connections that begin afterwards; what conntrack knows already stays as it is until it ends.

use std::collections::BTreeSet;

use ipnet::IpNet;
use mesh_types::consts::{KUBE_MASQUERADE_MARK, NFT_KEEP_SOURCE_PRIORITY};
use netlink_packet_netfilter::nftables::InetHookNumber;

use super::expression::{Family, Part, family, is_in, key, snat, unmarked};
use super::map::{Map, Value};
use super::{Chain, Kind, Rule, Tables, span};
use crate::HostError;

use Family::{V4, V6};

const TRIED: &str = "keep source addresses in the mesh by nftables (Linux 5.2 or newer)";
const CHAINS: &[&str] = &["keep_source"];
const MESH: [(Family, Map); 2] = [
    (
        V4,
        Map {
            name: "mesh4",
            key: &[Part::Source(V4)],
            value: Value::Ranges,
        },
    ),
    (
        V6,
        Map {
            name: "mesh6",
            key: &[Part::Source(V6)],
            value: Value::Ranges,
        },
    ),
];

/// Makes it so between these ranges; without any, nothing is said to the host's NAT. Idempotent; says whether anything
/// had to be changed.
pub(crate) fn keep_source(tables: &mut Tables, mesh: &BTreeSet<IpNet>) -> Result<bool, HostError> {
    let filled = MESH.map(|(family, map)| (map, span::elements(family, mesh.iter())));
    if mesh.is_empty() {
        return tables.apply_filled(TRIED, CHAINS, &[], &filled);
    }
    let chain = Chain {
        name: "keep_source",
        kind: Kind::Nat,
        hook: InetHookNumber::PostRouting,
        priority: NFT_KEEP_SOURCE_PRIORITY,
        rules: MESH.map(rule).into(),
    };
    tables.apply_filled(TRIED, CHAINS, &[chain], &filled)
}

fn rule((of, map): (Family, Map)) -> Rule {
    let (source, destination) = ([Part::Source(of)], [Part::Destination(of)]);
    Rule::new(
        format!(
            "farspan: between ranges of {} sources are kept, unless marked {KUBE_MASQUERADE_MARK:#x}",
            map.name
        ),
        vec![
            family(of),
            unmarked(KUBE_MASQUERADE_MARK),
            key(&destination),
            is_in(map.name),
            key(&source),
            is_in(map.name),
            // The source is still where the key was.
            snat(of, 0),
        ],
    )
}
