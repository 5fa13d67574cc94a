//! Coarse filters for what peers send: out of the tunnel, from within a filtered range, only to where the plan allows it,
//! at forward and at input.
//!
//! Of ranges that lie in each other the longest prefix counts, and only it, as in WireGuard's own table of allowed
//! ranges: so a narrower range may be allowed less than the wider one around it, or more. A narrower range that is not
//! named is filtered as the wider one.
//!
//! Answers to what did not begin with the filtered peer come back: conntrack knows who began. So a filter that is newly
//! in force cuts the flows that the peer has open already and spares ours. A flow older than conntrack in this
//! namespace (nothing there had rules of state or NAT) counts as begun by whoever sends first from then on.
//!
//! Destinations and ports are what they are after destination NAT: a Service's pod, not the Service. The rules are the
//! same whatever the filters are; these stand in sets, cut into pieces that do not overlap, and change in one step.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use mesh_types::cluster::Allowed;
use mesh_types::consts::NFT_FILTER_PRIORITY;
use netlink_packet_netfilter::nftables::{InetHookNumber, MetaKey};

use super::expression::{
    Family, Part, TCP, UDP, accept, answer, drop, family, is_in, is_not_in, key, other_interface,
    protocol,
};
use super::map::{Elements, Entry, Map, Value, put_port};
use super::span::{self, Span, put_number};
use super::{Chain, Kind, Rule, Tables};
use crate::HostError;

use Family::{V4, V6};

const TRIED: &str = "filter what peers send by nftables (Linux 5.6 or newer)";
const CHAINS: [(&str, InetHookNumber); 2] = [
    ("filter_input", InetHookNumber::LocalIn),
    ("filter_forward", InetHookNumber::Forward),
];

/// The sets of one family.
#[derive(Debug, Clone, Copy)]
struct Sets {
    family: Family,
    /// Sources that are filtered.
    filtered: Map,
    /// What of them may go where, whatever it is.
    allowed: Map,
    /// TCP and UDP, by port.
    ports: Map,
}

const fn set(name: &'static str, key: &'static [Part]) -> Map {
    let value = Value::Ranges;
    Map { name, key, value }
}

const SETS: [Sets; 2] = [
    Sets {
        family: V4,
        filtered: set("filtered4", &[Part::Source(V4)]),
        allowed: set("allowed4", &[Part::Source(V4), Part::Destination(V4)]),
        ports: set(
            "allowed_ports4",
            &[
                Part::Source(V4),
                Part::Destination(V4),
                Part::DestinationPort,
            ],
        ),
    },
    Sets {
        family: V6,
        filtered: set("filtered6", &[Part::Source(V6)]),
        allowed: set("allowed6", &[Part::Source(V6), Part::Destination(V6)]),
        ports: set(
            "allowed_ports6",
            &[
                Part::Source(V6),
                Part::Destination(V6),
                Part::DestinationPort,
            ],
        ),
    },
];

/// Makes it so for what comes from the device. Idempotent; says whether anything had to be changed.
pub(crate) fn filter(
    tables: &mut Tables,
    device: &str,
    filters: &BTreeMap<IpNet, BTreeSet<Allowed>>,
) -> Result<bool, HostError> {
    let filled: Vec<(Map, Elements)> = SETS.iter().flat_map(|sets| sets.filled(filters)).collect();
    let names = CHAINS.map(|(name, _)| name);
    if filters.is_empty() {
        return tables.apply_filled(TRIED, &names, &[], &filled);
    }
    let chains = CHAINS.map(|(name, hook)| Chain {
        name,
        kind: Kind::Filter,
        hook,
        priority: NFT_FILTER_PRIORITY,
        rules: rules(device),
    });
    tables.apply_filled(TRIED, &names, &chains, &filled)
}

fn rules(device: &str) -> Vec<Rule> {
    let mut rules = vec![
        Rule::new(
            format!("farspan: filters are for what comes from {device}"),
            vec![other_interface(MetaKey::Iifname, device), accept()],
        ),
        Rule::new(
            "farspan: answers come back".to_owned(),
            vec![answer(), accept()],
        ),
    ];
    rules.extend(SETS.iter().flat_map(Sets::rules));
    rules
}

impl Sets {
    fn rules(&self) -> [Rule; 5] {
        let word = match self.family {
            V4 => "IPv4",
            V6 => "IPv6",
        };
        let rule = |what: &str, parts: Vec<Vec<_>>| {
            let mut all = vec![family(self.family)];
            all.extend(parts);
            Rule::new(format!("farspan: {what}, {word}"), all)
        };
        let ports = |name, of| {
            let Map {
                key: fields,
                name: set,
                ..
            } = self.ports;
            rule(
                &format!("a peer's {name} to where it may go"),
                vec![protocol(of), key(fields), is_in(set), accept()],
            )
        };
        let Self {
            filtered, allowed, ..
        } = self;
        [
            rule(
                "peers that are not filtered",
                vec![key(filtered.key), is_not_in(filtered.name), accept()],
            ),
            rule(
                "a peer's packets to where it may go",
                vec![key(allowed.key), is_in(allowed.name), accept()],
            ),
            ports("TCP", TCP),
            ports("UDP", UDP),
            rule("nothing else of a filtered peer", vec![drop()]),
        ]
    }

    /// The sets and what is to stand in them.
    fn filled(&self, filters: &BTreeMap<IpNet, BTreeSet<Allowed>>) -> [(Map, Elements); 3] {
        let of_family = |net: &IpNet| Family::of(net.addr()) == self.family;
        let filtered = span::elements(self.family, filters.keys());
        // The same range may be written in several ways.
        let mut by_span: BTreeMap<Span, BTreeSet<Allowed>> = BTreeMap::new();
        for (range, to) in filters.iter().filter(|(range, _)| of_family(range)) {
            let to = to.iter().filter(|to| of_family(&to.destination));
            by_span.entry(Span::of(range)).or_default().extend(to);
        }
        let (mut allowed, mut ports) = (Elements::new(), Elements::new());
        // Many peers may go to the same places.
        let mut known: BTreeMap<&BTreeSet<Allowed>, Pieces> = BTreeMap::new();
        let pairs = by_span.iter().map(|(span, to)| (*span, to));
        for (source, to) in span::by_longest_prefix(pairs) {
            let pieces = known.entry(to).or_insert_with(|| Pieces::of(to));
            let of = self.family;
            for destination in &pieces.all {
                let key = |source, destination| {
                    let mut key = Vec::new();
                    put_number(&mut key, of, source);
                    put_number(&mut key, of, destination);
                    key
                };
                let last = key(source.last, destination.last);
                allowed.insert(key(source.first, destination.first), Entry::UpTo(last));
            }
            for (destination, span) in &pieces.ports {
                let key = |source, destination, port: u128| {
                    let mut key = Vec::new();
                    put_number(&mut key, of, source);
                    put_number(&mut key, of, destination);
                    put_port(&mut key, port as u16);
                    key
                };
                let last = key(source.last, destination.last, span.last);
                let first = key(source.first, destination.first, span.first);
                ports.insert(first, Entry::UpTo(last));
            }
        }
        [
            (self.filtered, filtered),
            (self.allowed, allowed),
            (self.ports, ports),
        ]
    }
}

/// Destinations of one family, in pieces that do not overlap.
struct Pieces {
    all: Vec<Span>,
    ports: Vec<(Span, Span)>,
}

impl Pieces {
    fn of(to: &BTreeSet<Allowed>) -> Self {
        let (mut all, mut ports) = (Vec::new(), BTreeSet::new());
        for Allowed {
            destination,
            ports: limit,
        } in to
        {
            let destination = Span::of(destination);
            match *limit {
                None => all.push(destination),
                Some((first, last)) if first <= last => {
                    let (first, last) = (first.into(), last.into());
                    ports.insert((destination, Span { first, last }));
                }
                // From a higher port to a lower one there is none.
                Some(_) => {}
            }
        }
        Self {
            all: span::merged(all),
            ports: span::rectangles(&ports),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    /// Is a key within one element of a set, as the kernel sees it: field by field? Never within two.
    fn has(elements: &Elements, key: &[&[u8]]) -> bool {
        let lengths: Vec<usize> = key.iter().map(|field| field.len()).collect();
        let fields = |bytes: &[u8]| -> Vec<Vec<u8>> {
            let mut rest = bytes;
            let mut fields = Vec::new();
            for length in &lengths {
                let (field, after) = rest.split_at(length.next_multiple_of(4));
                fields.push(field[..*length].to_vec());
                rest = after;
            }
            assert!(rest.is_empty());
            fields
        };
        let around = elements.iter().filter(|(first, last)| {
            let Entry::UpTo(last) = last else {
                panic!("no range");
            };
            let (first, last) = (fields(first), fields(last));
            key.iter()
                .zip(first.iter().zip(&last))
                .all(|(key, (first, last))| first.as_slice() <= *key && *key <= last.as_slice())
        });
        let count = around.count();
        assert!(count < 2, "the kernel takes no overlapping elements");
        count == 1
    }

    #[test]
    fn the_sets_say_what_the_filters_do() {
        let allowed = |destination, ports| Allowed {
            destination: net(destination),
            ports,
        };
        let filters: BTreeMap<IpNet, BTreeSet<Allowed>> = [
            (
                net("10.0.0.0/28"),
                [
                    allowed("10.1.0.0/29", Some((3, 5))),
                    allowed("10.1.0.4/30", Some((5, 7))),
                    allowed("10.1.0.6/31", None),
                    allowed("fd77::/16", None),
                ]
                .into(),
            ),
            (net("10.0.0.4/30"), [allowed("10.1.0.0/16", None)].into()),
            (net("10.0.0.6/32"), BTreeSet::new()),
            (
                net("10.0.0.8/31"),
                [allowed("0.0.0.0/0", Some((0, u16::MAX)))].into(),
            ),
            (
                net("10.0.0.9/31"),
                [
                    allowed("10.1.0.1/32", None),
                    allowed("10.1.0.2/32", Some((9, 1))),
                ]
                .into(),
            ),
            (net("fd77::/16"), BTreeSet::new()),
        ]
        .into();
        let [(_, filtered), (_, all), (_, ports)] = SETS[0].filled(&filters);

        for last in 0..20_u8 {
            let source = Ipv4Addr::new(10, 0, 0, last);
            let longest = filters
                .keys()
                .filter(|range| range.contains(&std::net::IpAddr::from(source)))
                .map(IpNet::prefix_len)
                .max();
            assert_eq!(has(&filtered, &[&source.octets()]), longest.is_some());
            for last in 0..10_u8 {
                let destination = Ipv4Addr::new(10, 1, 0, last);
                let may = |port: Option<u16>| {
                    filters.iter().any(|(range, to)| {
                        range.contains(&std::net::IpAddr::from(source))
                            && Some(range.prefix_len()) == longest
                            && to.iter().any(|to| {
                                to.destination
                                    .contains(&std::net::IpAddr::from(destination))
                                    && match (to.ports, port) {
                                        (None, None) => true,
                                        (Some((first, last)), Some(port)) => {
                                            (first..=last).contains(&port)
                                        }
                                        (None, Some(_)) | (Some(_), None) => false,
                                    }
                            })
                    })
                };
                let key: [&[u8]; 2] = [&source.octets(), &destination.octets()];
                assert_eq!(has(&all, &key), may(None), "{source} {destination}");
                for port in 0..12_u16 {
                    let key: [&[u8]; 3] = [key[0], key[1], &port.to_be_bytes()];
                    let wanted = may(Some(port));
                    assert_eq!(has(&ports, &key), wanted, "{source} {destination} {port}");
                }
            }
        }
    }
}
