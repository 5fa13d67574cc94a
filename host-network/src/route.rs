//! Routes in the mesh's table.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;
use mesh_types::consts::{MTU_MIN, ROUTE_PROTOCOL, ROUTE_TABLE};
use mesh_types::plan::{Route, RouteKind};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric,
    RouteProtocol, RouteScope, RouteType,
};

use crate::HostError;
use crate::netlink::{Routing, gather, is_absent};

/// The bit of RTAX_MTU (linux/rtnetlink.h) among the metrics that are locked.
const MTU_LOCKED: u32 = 1 << 2;

/// What the kernel tells two routes of a table apart by.
type Slot = (IpNet, u32);

/// What a route does, in the kernel's terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Action {
    kind: RouteType,
    link: Option<u32>,
    source: Option<IpAddr>,
    mtu: Option<u32>,
    mss: Option<u32>,
}

impl Action {
    /// `None` for a route into a device that is not there.
    fn planned(route: &Route, link: Option<u32>) -> Option<Self> {
        let (kind, link, source, mtu) = match route.kind {
            RouteKind::Unicast { source, mtu } => (RouteType::Unicast, Some(link?), source, mtu),
            RouteKind::Blackhole => (RouteType::BlackHole, None, None, None),
            RouteKind::Throw => (RouteType::Throw, None, None, None),
        };
        let ipv6 = route.prefix.addr().is_ipv6();
        // IP and TCP headers without options (RFC 9293 3.7.1).
        let headers = if ipv6 { 60 } else { 40 };
        // IPv6 knows no MTU below its least, but TCP may keep its segments shorter.
        let mss = mtu.map(|mtu| u32::from(mtu).saturating_sub(headers));
        let mtu = mtu.map(|mtu| u32::from(if ipv6 { mtu.max(MTU_MIN) } else { mtu }));
        Some(Self {
            kind,
            link,
            source,
            mtu,
            mss,
        })
    }

    fn held(message: &RouteMessage) -> Self {
        let mut action = Self {
            kind: message.header.kind,
            link: None,
            source: None,
            mtu: None,
            mss: None,
        };
        for attribute in &message.attributes {
            match attribute {
                // IPv6 hangs its blackholes on the loopback device.
                RouteAttribute::Oif(link) if action.kind == RouteType::Unicast => {
                    action.link = Some(*link);
                }
                RouteAttribute::PrefSource(source) => action.source = ip(source),
                RouteAttribute::Metrics(metrics) => {
                    for metric in metrics {
                        match metric {
                            RouteMetric::Mtu(mtu) => action.mtu = Some(*mtu),
                            RouteMetric::Advmss(mss) => action.mss = Some(*mss),
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        action
    }

    fn message(&self, (prefix, metric): Slot) -> RouteMessage {
        let mut message = slot_message((prefix, metric));
        message.header.kind = self.kind;
        if let Some(link) = self.link {
            message.header.scope = RouteScope::Link;
            message.attributes.push(RouteAttribute::Oif(link));
        }
        if let Some(source) = self.source {
            message
                .attributes
                .push(RouteAttribute::PrefSource(source.into()));
        }
        // For what it forwards IPv6 asks the device, unless the route's MTU is locked (ip6_dst_mtu_maybe_forward).
        let locked = self.mtu.filter(|_| prefix.addr().is_ipv6());
        let metrics: Vec<RouteMetric> = [
            locked.map(|_| RouteMetric::Lock(MTU_LOCKED)),
            self.mtu.map(RouteMetric::Mtu),
            self.mss.map(RouteMetric::Advmss),
        ]
        .into_iter()
        .flatten()
        .collect();
        if !metrics.is_empty() {
            message.attributes.push(RouteAttribute::Metrics(metrics));
        }
        message
    }
}

/// A message that names one route of ours.
fn slot_message((prefix, metric): Slot) -> RouteMessage {
    let mut message = table_message(family(prefix.addr()), ROUTE_TABLE);
    message.header.protocol = RouteProtocol::from(ROUTE_PROTOCOL);
    message.header.destination_prefix_length = prefix.prefix_len();
    message
        .attributes
        .push(RouteAttribute::Destination(prefix.network().into()));
    message.attributes.push(RouteAttribute::Priority(metric));
    message
}

fn table_message(family: AddressFamily, table: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family;
    message.header.table = RouteHeader::RT_TABLE_UNSPEC;
    message.attributes.push(RouteAttribute::Table(table));
    message
}

fn family(ip: IpAddr) -> AddressFamily {
    match ip {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    }
}

/// The destination of a route; the whole family where the message names none.
pub(crate) fn destination(message: &RouteMessage) -> Option<IpNet> {
    let named = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Destination(address) => ip(address),
            _ => None,
        });
    let unspecified = match message.header.address_family {
        AddressFamily::Inet => IpAddr::from([0; 4]),
        AddressFamily::Inet6 => IpAddr::from([0; 16]),
        _ => return None,
    };
    IpNet::new(
        named.unwrap_or(unspecified),
        message.header.destination_prefix_length,
    )
    .ok()
}

/// The link a route leads to.
pub(crate) fn outgoing(message: &RouteMessage) -> Option<u32> {
    message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Oif(link) => Some(*link),
            RouteAttribute::MultiPath(hops) => hops.first().map(|hop| hop.interface_index),
            _ => None,
        })
}

/// The next hop of a route, where it has one of its own family.
pub(crate) fn gateway(message: &RouteMessage) -> Option<IpAddr> {
    message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Gateway(address) => ip(address),
            RouteAttribute::MultiPath(hops) => {
                let mut attributes = hops.first()?.attributes.iter();
                attributes.find_map(|attribute| match attribute {
                    RouteAttribute::Gateway(address) => ip(address),
                    _ => None,
                })
            }
            _ => None,
        })
}

/// The routes of a table, both families, whoever made them.
pub(crate) async fn list(routing: &Routing, table: u32) -> Result<Vec<RouteMessage>, HostError> {
    let mut routes = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let request = routing.handle.route().get(table_message(family, table));
        let listed = gather("list the routes", request.execute()).await?;
        // A kernel without IPv6 answers for all families it has.
        let of_family = |route: &RouteMessage| route.header.address_family == family;
        routes.extend(listed.into_iter().filter(of_family));
    }
    // Cached exceptions (path MTU learned from ICMP) are listed beside the routes they belong to.
    routes.retain(|route| !route.header.flags.contains(RouteFlags::Cloned));
    Ok(routes)
}

/// The lower, the more it is preferred.
pub(crate) fn metric(message: &RouteMessage) -> u32 {
    message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Priority(metric) => Some(*metric),
            _ => None,
        })
        .unwrap_or(0)
}

/// Is it a route we made?
pub(crate) fn is_ours(message: &RouteMessage) -> bool {
    message.header.protocol == RouteProtocol::from(ROUTE_PROTOCOL)
}

/// Makes the table equal to the plan: first what is left to the host, so that no blackhole around it cuts it off; then
/// what drops packets, then what carries them; then the stale ones go. So at no moment a prefix of the mesh falls
/// through to the host's own routes.
pub(crate) async fn converge<'a>(
    routing: &mut Routing,
    planned: impl Iterator<Item = &'a Route>,
    link: Option<u32>,
) -> Vec<HostError> {
    let held: BTreeMap<Slot, Action> = match list(routing, ROUTE_TABLE).await {
        Ok(messages) => messages
            .iter()
            .filter(|message| is_ours(message))
            .filter_map(|message| {
                let slot = (destination(message)?, metric(message));
                Some((slot, Action::held(message)))
            })
            .collect(),
        Err(error) => return vec![error],
    };
    let (missing, stale) = difference(&held, planned, link);
    let mut failures = Vec::new();
    for (slot, action) in missing {
        let request = routing.handle.route().add(action.message(slot));
        let result = request.replace().execute().await;
        let tried = format!("add the {} route to {}", word(action.kind), slot.0);
        failures.extend(routing.changed(tried, result).err());
    }
    for slot in stale {
        failures.extend(delete(routing, slot_message(slot)).await.err());
    }
    failures
}

/// What to add or replace, and what to delete, each in order.
fn difference<'a>(
    held: &BTreeMap<Slot, Action>,
    planned: impl Iterator<Item = &'a Route>,
    link: Option<u32>,
) -> (Vec<(Slot, Action)>, Vec<Slot>) {
    let wanted: BTreeMap<Slot, Action> = planned
        .filter_map(|route| {
            let slot = (route.prefix.trunc(), route.metric);
            Some((slot, Action::planned(route, link)?))
        })
        .collect();
    let mut missing: Vec<(Slot, Action)> = wanted
        .iter()
        .filter(|(slot, action)| held.get(*slot) != Some(*action))
        .map(|(slot, action)| (*slot, *action))
        .collect();
    missing.sort_by_key(|(_, action)| match action.kind {
        RouteType::Throw => 0,
        RouteType::BlackHole => 1,
        _ => 2,
    });
    // By prefix and metric: what carries goes before the twin that drops.
    let stale = held
        .keys()
        .filter(|slot| !wanted.contains_key(*slot))
        .copied()
        .collect();
    (missing, stale)
}

/// Deletes a route of ours. One that is gone already counts as deleted.
pub(crate) async fn delete(
    routing: &mut Routing,
    mut message: RouteMessage,
) -> Result<(), HostError> {
    let tried = match destination(&message) {
        Some(prefix) => format!("delete the route to {prefix}"),
        None => "delete a route".to_owned(),
    };
    // "Nowhere" matches every scope; nothing narrower is needed beside prefix, metric, table and protocol.
    message.header.scope = RouteScope::NoWhere;
    let result = match routing.handle.route().del(message).execute().await {
        Err(error) if is_absent(&error) => Ok(()),
        result => result,
    };
    routing.changed(tried, result)
}

/// Makes the kernel forget what ICMP has told of the path to an address.
pub(crate) async fn forget(
    routing: &mut Routing,
    remote: Ipv6Addr,
    mark: u32,
) -> Result<(), HostError> {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet6;
    message.header.destination_prefix_length = 128;
    message.attributes = vec![
        RouteAttribute::Destination(RouteAddress::Inet6(remote)),
        RouteAttribute::Mark(mark),
    ];
    let asked = routing.handle.route().get(message);
    // Without a route there is nothing to forget.
    let found = gather("look up a route", asked.execute()).await;
    for learned in found.unwrap_or_default() {
        if learned.header.flags.contains(RouteFlags::Cloned) {
            let result = match routing.handle.route().del(learned).execute().await {
                Err(error) if is_absent(&error) => Ok(()),
                result => result,
            };
            routing.changed(format!("forget the path MTU to {remote}"), result)?;
        }
    }
    Ok(())
}

fn word(kind: RouteType) -> &'static str {
    match kind {
        RouteType::BlackHole => "blackhole",
        RouteType::Throw => "throw",
        _ => "unicast",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(prefix: &str, metric: u32, kind: RouteKind) -> Route {
        Route {
            prefix: prefix.parse().unwrap(),
            metric,
            kind,
        }
    }

    const UNICAST: RouteKind = RouteKind::Unicast {
        source: None,
        mtu: Some(1000),
    };

    #[test]
    fn the_host_s_own_comes_first_and_what_carries_comes_last() {
        let plan = [
            route("10.0.0.0/8", 4096, RouteKind::Blackhole),
            route("10.1.0.0/16", 100, UNICAST),
            route("10.1.0.0/16", 4096, RouteKind::Blackhole),
            route("10.9.0.0/16", 100, RouteKind::Throw),
        ];
        let (missing, stale) = difference(&BTreeMap::new(), plan.iter(), Some(3));
        let kinds: Vec<RouteType> = missing.iter().map(|(_, action)| action.kind).collect();
        assert_eq!(
            kinds,
            [
                RouteType::Throw,
                RouteType::BlackHole,
                RouteType::BlackHole,
                RouteType::Unicast
            ]
        );
        assert!(stale.is_empty());

        let held: BTreeMap<Slot, Action> = missing.into_iter().collect();
        let (missing, stale) = difference(&held, [].iter(), Some(3));
        assert!(missing.is_empty());
        let carried = stale
            .iter()
            .position(|slot| slot.1 == 100 && slot.0.prefix_len() == 16);
        let dropped = stale
            .iter()
            .position(|slot| slot.1 == 4096 && slot.0.prefix_len() == 16);
        assert!(carried < dropped, "{stale:?}");
    }

    #[test]
    fn without_the_device_only_what_carries_is_missing() {
        let plan = [
            route("fd77::2/128", 100, UNICAST),
            route("fd77::2/128", 4096, RouteKind::Blackhole),
        ];
        let (missing, _) = difference(&BTreeMap::new(), plan.iter(), None);
        assert_eq!(missing.len(), 1);
        assert_eq!(missing[0].1.kind, RouteType::BlackHole);
    }

    #[test]
    fn an_ipv6_route_never_goes_below_the_smallest_mtu_of_ipv6() {
        let of = |prefix| Action::planned(&route(prefix, 100, UNICAST), Some(3)).unwrap();
        assert_eq!(
            (of("fd77::/64").mtu, of("fd77::/64").mss),
            (Some(1280), Some(940))
        );
        assert_eq!(
            (of("10.0.0.0/8").mtu, of("10.0.0.0/8").mss),
            (Some(1000), Some(960))
        );
    }
}
