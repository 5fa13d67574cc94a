//! Forwarding between two members in the kernel, stateless: no byte of a payload changes, no datagram of a pair
//! reaches a process, conntrack never sees one.
//!
//! A datagram is found by source address, source port and destination port. Before routing it gets its new
//! destination and source port; its new source address only after it, because routing drops what comes from outside
//! with an address of this host. What each pair needs stands in elements of maps and in objects these name, so a
//! pair comes and goes without a change to any rule.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};

use mesh_types::consts::{NFT_RELAY_IN_PRIORITY, NFT_RELAY_OUT_PRIORITY};
use mesh_types::plan::RelayPair;
use netlink_packet_netfilter::nftables::InetHookNumber;

use super::demux::{COOKIE, COOKIE_OFFSET, TYPE_OFFSET};
use super::expression::{
    Family, Part, Per, UDP, accept, add_mark, ask, bytes_at, drop, family, find, is_not_in, key,
    limit, masked_bytes_at, notrack, other_bytes_at, other_protocol, protocol, set_forwarded_part,
};
use super::map::{
    self, Batch, Elements, Entry, Map, Object, ObjectKind, Value, lone_port, put_address, put_ip,
    put_port,
};
use super::{Chain, Kind, Rule, Tables};
use crate::HostError;

use Family::{V4, V6};

const CHAINS: &[&str] = &["relay_in", "relay_out"];
/// A Binding indication (RFC 8489 5): between a member and this node, never forwarded.
const INDICATION: [u8; 2] = [0x00, 0x11];
/// Binding requests and answers of a pair a second, and at once: they are its probes.
const PROBES: u64 = 200;
const PROBES_BURST: u32 = 100;
/// Bytes a pair may send at once, however low its rate. The kernel adds what one second at that rate allows.
const BURST: u32 = 64 * 1024;
/// The kernel computes with 64 bits of nanoseconds times bytes.
const RATE_MAX: u64 = 10_000_000_000;

/// The ports of all pairs: what is for another port is not looked at any further.
const PORTS: Map = Map {
    name: "relay_ports",
    key: &[Part::DestinationPort],
    value: Value::None,
};

/// The maps of one family.
#[derive(Debug, Clone, Copy)]
struct Maps {
    family: Family,
    /// Datagrams and bytes of a pair.
    count: Map,
    /// Its rate.
    rate: Map,
    /// All that the node sends and receives which sends here.
    sender: Map,
    /// The same of the node that this is sent to.
    receiver: Map,
    /// The pair's probes.
    probe: Map,
    /// New destination, its port, new source port.
    forward: Map,
    /// New source address.
    from: Map,
}

const V4_KEY: &[Part] = &[Part::Source(V4), Part::SourcePort, Part::DestinationPort];
const V6_KEY: &[Part] = &[Part::Source(V6), Part::SourcePort, Part::DestinationPort];

const fn map(name: &'static str, key: &'static [Part], value: Value) -> Map {
    Map { name, key, value }
}

const LIMIT: Value = Value::Object(ObjectKind::Limit);
const COUNTER: Value = Value::Object(ObjectKind::Counter);

const MAPS: [Maps; 2] = [
    Maps {
        family: V4,
        count: map("relay_count4", V4_KEY, COUNTER),
        rate: map("relay_rate4", V4_KEY, LIMIT),
        sender: map("relay_sender4", V4_KEY, LIMIT),
        receiver: map("relay_receiver4", V4_KEY, LIMIT),
        probe: map("relay_probe4", V4_KEY, LIMIT),
        forward: map(
            "relay_forward4",
            V4_KEY,
            Value::Fields(&[
                Part::Destination(V4),
                Part::DestinationPort,
                Part::SourcePort,
            ]),
        ),
        from: map(
            "relay_from4",
            &[
                Part::Source(V4),
                Part::SourcePort,
                Part::Destination(V4),
                Part::DestinationPort,
            ],
            Value::Fields(&[Part::Source(V4)]),
        ),
    },
    Maps {
        family: V6,
        count: map("relay_count6", V6_KEY, COUNTER),
        rate: map("relay_rate6", V6_KEY, LIMIT),
        sender: map("relay_sender6", V6_KEY, LIMIT),
        receiver: map("relay_receiver6", V6_KEY, LIMIT),
        probe: map("relay_probe6", V6_KEY, LIMIT),
        forward: map(
            "relay_forward6",
            V6_KEY,
            Value::Fields(&[
                Part::Destination(V6),
                Part::DestinationPort,
                Part::SourcePort,
            ]),
        ),
        from: map(
            "relay_from6",
            &[
                Part::Source(V6),
                Part::SourcePort,
                Part::Destination(V6),
                Part::DestinationPort,
            ],
            Value::Fields(&[Part::Source(V6)]),
        ),
    },
];

impl Maps {
    fn all(&self) -> [Map; 7] {
        [
            self.count,
            self.rate,
            self.sender,
            self.receiver,
            self.probe,
            self.forward,
            self.from,
        ]
    }
}

fn maps() -> Vec<Map> {
    let mut maps = vec![PORTS];
    maps.extend(MAPS.iter().flat_map(Maps::all));
    maps
}

/// A pair of one family, and the addresses of this host from which its ends are reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Link {
    pub(crate) pair: RelayPair,
    /// Towards the first end.
    pub(crate) first_local: IpAddr,
    /// Towards the second.
    pub(crate) second_local: IpAddr,
}

impl Link {
    /// Ends and ports of both directions: from, at which port, to, from which port, from which address.
    fn ways(&self) -> [Way; 2] {
        let RelayPair { first, second, .. } = self.pair;
        let way = |from: (SocketAddr, u16), to: (SocketAddr, u16), local| Way {
            from: from.0,
            at: from.1,
            to: to.0,
            out: to.1,
            local,
        };
        [
            way(first, second, self.second_local),
            way(second, first, self.first_local),
        ]
    }
}

struct Way {
    from: SocketAddr,
    at: u16,
    to: SocketAddr,
    out: u16,
    local: IpAddr,
}

/// Bits a second.
fn rate_limit(name: String, rate: u64) -> Object {
    let bytes = (rate / 8).clamp(1, RATE_MAX);
    Object {
        name,
        kind: ObjectKind::Limit,
        data: limit(bytes, BURST, Per::Byte),
    }
}

/// The ends of a pair, as part of a name.
fn name(pair: &RelayPair) -> String {
    let mut bytes = Vec::new();
    for (end, port) in [pair.first, pair.second] {
        put_ip(&mut bytes, end.ip());
        bytes.extend(end.port().to_be_bytes());
        bytes.extend(port.to_be_bytes());
    }
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn rate_name(pair: &RelayPair) -> String {
    format!("rate-{}-{}", pair.rate, name(pair))
}

/// Of the node of a port, whichever pairs it has.
fn node_name(pair: &RelayPair, port: u16) -> String {
    format!("node-{}-{port}", pair.node_rate)
}

fn probe_name(pair: &RelayPair) -> String {
    format!("probe-{}", name(pair))
}

fn count_name(pair: &RelayPair) -> String {
    format!("count-{}", name(pair))
}

/// What the kernel is to hold for all pairs.
#[derive(Debug, Default)]
struct Wanted {
    /// By map, in the order of [`maps`].
    elements: Vec<Elements>,
    objects: Vec<Object>,
    /// Names of those that pairs share.
    nodes: BTreeSet<String>,
}

impl Wanted {
    fn of(links: &[Link]) -> Self {
        let mut wanted = Self {
            elements: vec![Elements::new(); maps().len()],
            ..Self::default()
        };
        for link in links {
            wanted.add(link);
        }
        wanted
    }

    fn add(&mut self, link: &Link) {
        let pair = &link.pair;
        self.objects.push(Object {
            name: count_name(pair),
            kind: ObjectKind::Counter,
            data: Vec::new(),
        });
        self.objects.push(Object {
            name: probe_name(pair),
            kind: ObjectKind::Limit,
            data: limit(PROBES, PROBES_BURST, Per::Packet),
        });
        if pair.rate > 0 {
            self.objects.push(rate_limit(rate_name(pair), pair.rate));
        }
        if pair.node_rate > 0 {
            for port in [pair.first.1, pair.second.1] {
                let name = node_name(pair, port);
                if self.nodes.insert(name.clone()) {
                    self.objects.push(rate_limit(name, pair.node_rate));
                }
            }
        }
        for way in link.ways() {
            let start = match Family::of(way.from.ip()) {
                V4 => 1,
                V6 => 1 + MAPS[0].all().len(),
            };
            let mut key = Vec::new();
            put_address(&mut key, way.from);
            put_port(&mut key, way.at);
            let (mut forward, mut after, mut source) = (Vec::new(), Vec::new(), Vec::new());
            put_address(&mut forward, way.to);
            put_port(&mut forward, way.out);
            put_ip(&mut after, way.from.ip());
            put_port(&mut after, way.out);
            put_address(&mut after, way.to);
            put_ip(&mut source, way.local);
            let rate = (pair.rate > 0).then(|| Entry::Object(rate_name(pair)));
            let of_node = |port| (pair.node_rate > 0).then(|| Entry::Object(node_name(pair, port)));
            let entries = [
                (key.clone(), Some(Entry::Object(count_name(pair)))),
                (key.clone(), rate),
                (key.clone(), of_node(way.out)),
                (key.clone(), of_node(way.at)),
                (key.clone(), Some(Entry::Object(probe_name(pair)))),
                (key, Some(Entry::Fields(forward))),
                (after, Some(Entry::Fields(source))),
            ];
            for (elements, (key, entry)) in self.elements[start..].iter_mut().zip(entries) {
                elements.extend(entry.map(|entry| (key, entry)));
            }
            self.elements[0].insert(lone_port(way.at), Entry::None);
        }
    }
}

/// Makes the kernel forward between these pairs and no others; says whether anything had to be changed. What is
/// forwarded gets `mark`, which leads it past the mesh's own routes.
pub(crate) fn carry(tables: &mut Tables, links: &[Link], mark: u32) -> Result<bool, HostError> {
    let maps = maps();
    if links.is_empty() {
        let changed = tables.apply_with(CHAINS, &[], &maps)?;
        if changed {
            // Where the table stays, its objects do, and now no element names them.
            update(tables, &[], &Wanted::default()).map_err(|error| failed(&error))?;
        }
        return Ok(changed);
    }
    let changed = tables.apply_with(CHAINS, &chains(mark), &maps)?;
    Ok(changed | update(tables, &maps, &Wanted::of(links)).map_err(|error| failed(&error))?)
}

fn failed(error: &io::Error) -> HostError {
    HostError::from_io("write the pairs that are relayed in the kernel", error)
}

/// Sends what differs: elements go before the objects they name, and come after them.
fn update(tables: &mut Tables, maps: &[Map], wanted: &Wanted) -> io::Result<bool> {
    let (mut gone, mut new) = (Batch::new(), Batch::new());
    for (map, wanted) in maps.iter().zip(&wanted.elements) {
        let held = tables.elements(map)?;
        map::withdraw(&mut gone, map, &map::without(&held, wanted));
        map::insert(&mut new, map, &map::without(wanted, &held));
    }
    let mut batch = gone;
    for kind in [ObjectKind::Counter, ObjectKind::Limit] {
        let held = tables.objects(kind)?;
        let is_wanted = |name: &String| wanted.objects.iter().any(|object| object.name == *name);
        for name in held.keys().filter(|name| !is_wanted(name)) {
            map::delete_object(&mut batch, name, kind);
        }
        for object in wanted.objects.iter().filter(|object| object.kind == kind) {
            if !held.contains_key(&object.name) {
                map::create_object(&mut batch, object);
            }
        }
    }
    batch.extend(new);
    if batch.is_empty() {
        return Ok(false);
    }
    tables.batches(batch)?;
    Ok(true)
}

/// Datagrams and bytes of IP forwarded for each pair, both directions together, since the pair came.
pub(crate) fn traffic(
    tables: &mut Tables,
    links: &[Link],
) -> io::Result<Vec<(RelayPair, u64, u64)>> {
    const BYTES: u16 = 1;
    const PACKETS: u16 = 2;
    let held = tables.objects(ObjectKind::Counter)?;
    Ok(links
        .iter()
        .filter_map(|Link { pair, .. }| {
            let attributes = held.get(&count_name(pair))?;
            let number = |kind| {
                let found = attributes.iter().find(|(held, _)| *held == kind);
                found.and_then(|(_, value)| Some(u64::from_be_bytes(*value.first_chunk()?)))
            };
            Some((*pair, number(PACKETS)?, number(BYTES)?))
        })
        .collect())
}

fn chains(mark: u32) -> [Chain; 2] {
    let mut inward = vec![
        Rule::new(
            "farspan: only UDP is relayed".to_owned(),
            vec![other_protocol(UDP), accept()],
        ),
        Rule::new(
            "farspan: only what comes to a relay port".to_owned(),
            vec![key(PORTS.key), is_not_in(PORTS.name), accept()],
        ),
        Rule::new(
            "farspan: Binding indications are for the agent".to_owned(),
            vec![
                bytes_at(TYPE_OFFSET, &INDICATION),
                bytes_at(COOKIE_OFFSET, &COOKIE),
                accept(),
            ],
        ),
    ];
    let mut outward = vec![
        Rule::new(
            "farspan: only UDP was relayed".to_owned(),
            vec![other_protocol(UDP), accept()],
        ),
        Rule::new(
            "farspan: only what leaves from a relay port".to_owned(),
            vec![key(&[Part::SourcePort]), is_not_in(PORTS.name), accept()],
        ),
    ];
    for maps in &MAPS {
        let word = match maps.family {
            V4 => "IPv4",
            V6 => "IPv6",
        };
        let of = || vec![family(maps.family), protocol(UDP)];
        let with = |rest: Vec<_>| [of(), rest].concat();
        let rated = |what: &str, map: Map| {
            Rule::new(
                format!("farspan: no more than {what}, {word}"),
                with(vec![
                    other_bytes_at(COOKIE_OFFSET, &COOKIE),
                    key(map.key),
                    ask(map.name),
                    drop(),
                ]),
            )
        };
        let value: u8 = maps.forward.key.iter().map(|part| part.places()).sum();
        let address = Part::Destination(maps.family);
        let ports = value + address.places();
        inward.extend([
            Rule::new(
                format!("farspan: no flood of a pair's probes, {word}"),
                with(vec![
                    bytes_at(COOKIE_OFFSET, &COOKIE),
                    key(maps.probe.key),
                    ask(maps.probe.name),
                    drop(),
                ]),
            ),
            rated("a pair's rate", maps.rate),
            rated("its sender's rate", maps.sender),
            rated("its receiver's rate", maps.receiver),
            Rule::new(
                format!("farspan: relay {word}, mark {mark:#x}"),
                with(vec![
                    // True of every datagram that is long enough for the limits to have looked at it.
                    masked_bytes_at(COOKIE_OFFSET, &[0; 4], &[0; 4]),
                    key(maps.forward.key),
                    ask(maps.count.name),
                    find(maps.forward.name, value),
                    set_forwarded_part(address, value),
                    set_forwarded_part(Part::DestinationPort, ports),
                    set_forwarded_part(Part::SourcePort, ports + 1),
                    add_mark(mark),
                    notrack(),
                ]),
            ),
        ]);
        let value = maps.from.key.iter().map(|part| part.places()).sum();
        outward.push(Rule::new(
            format!("farspan: relayed {word} leaves from this host"),
            with(vec![
                key(maps.from.key),
                find(maps.from.name, value),
                set_forwarded_part(Part::Source(maps.family), value),
            ]),
        ));
    }
    [
        Chain {
            name: "relay_in",
            kind: Kind::Filter,
            hook: InetHookNumber::PreRouting,
            priority: NFT_RELAY_IN_PRIORITY,
            rules: inward,
        },
        Chain {
            name: "relay_out",
            kind: Kind::Filter,
            hook: InetHookNumber::PostRouting,
            priority: NFT_RELAY_OUT_PRIORITY,
            rules: outward,
        },
    ]
}
