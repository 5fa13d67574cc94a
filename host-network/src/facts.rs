//! What the host looks like beside our own work.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use ipnet::IpNet;
use mesh_types::report::{Gateway, HostAddress, HostReport};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{RouteHeader, RouteType};

use crate::netlink::Routing;
use crate::nft::{self, Tables};
use crate::{address, link, route, sys};

/// Reads all of it. What cannot be read is left out.
pub(crate) async fn report(
    routing: &Routing,
    tables: Option<&mut Tables>,
    interface: &str,
    ours: &Ranges,
) -> HostReport {
    let links: BTreeMap<u32, link::Link> = link::list(routing)
        .await
        .unwrap_or_default()
        .into_iter()
        .map(|link| (link.index, link))
        .collect();
    let addresses = address::list(routing).await.unwrap_or_default();
    let main = route::list(routing, RouteHeader::RT_TABLE_MAIN.into())
        .await
        .unwrap_or_default();

    let mut report = HostReport {
        ipv6_off: ipv6_off(),
        forwarding_v4: sysctl("ipv4/ip_forward") == Some(1),
        forwarding_v6: sysctl("ipv6/conf/all/forwarding") == Some(1),
        clock_synchronised: sys::clock_synchronised(),
        ..HostReport::default()
    };
    for address in &addresses {
        if let Some(link) = links.get(&address.link).filter(|link| link.up) {
            report.addresses.push(HostAddress {
                interface: link.name.clone(),
                ip: address.net.addr(),
                prefix_len: address.net.prefix_len(),
                stable: address.is_stable(),
            });
        }
    }
    report.addresses.sort();

    let mut uplinks = BTreeSet::new();
    let mut foreign = BTreeSet::new();
    let mut gateways = BTreeSet::new();
    for message in &main {
        let link = route::outgoing(message).and_then(|index| links.get(&index));
        let (Some(prefix), Some(link)) = (route::destination(message), link) else {
            continue;
        };
        if message.header.kind != RouteType::Unicast || link.name == interface {
            continue;
        }
        if prefix.prefix_len() > 0 {
            if ours.is_claimed(&prefix) {
                foreign.insert((prefix, link.name.clone()));
            }
            continue;
        }
        report.uplinks.insert(link.name.clone());
        if let Some(ip) = route::gateway(message) {
            let interface = link.name.clone();
            gateways.insert((route::metric(message), Gateway { interface, ip }));
        }
        if message.header.address_family == AddressFamily::Inet6 {
            report.default_route_v6 = true;
        } else {
            report.default_route_v4 = true;
            uplinks.insert(link.name.clone());
        }
    }
    report.gateways = gateways.into_iter().map(|(_, gateway)| gateway).collect();
    report.foreign_routes = foreign.into_iter().collect();
    report.strict_rp_filter = uplinks.into_iter().filter(|name| is_strict(name)).collect();
    if let Some(tables) = tables {
        report.forward_drop = nft::dropping_chains(tables).unwrap_or_default();
    }
    report.forward_drop.extend(legacy_forward_drop());
    report
}

/// The old iptables, which nftables does not list.
pub(crate) fn legacy_forward_drop() -> impl Iterator<Item = String> {
    [(false, "ip"), (true, "ip6")]
        .into_iter()
        .filter(|(ipv6, word)| {
            let names = format!("/proc/thread-self/net/{word}_tables_names");
            let tables = fs::read_to_string(names).unwrap_or_default();
            tables.lines().any(|name| name == "filter")
                && sys::legacy_forward_drops(*ipv6) == Some(true)
        })
        .map(|(_, word)| format!("{word}tables-legacy filter FORWARD"))
}

/// The ranges of the last plan.
#[derive(Debug, Default)]
pub(crate) struct Ranges {
    /// Those of the mesh.
    pub(crate) mesh: Vec<IpNet>,
    /// Those left to the host.
    pub(crate) own: Vec<IpNet>,
}

impl Ranges {
    /// Does the mesh take what a route of the host leads to?
    fn is_claimed(&self, prefix: &IpNet) -> bool {
        let overlaps = |range: &IpNet| range.contains(prefix) || prefix.contains(range);
        self.mesh.iter().any(overlaps) && !self.own.iter().any(|range| range.contains(prefix))
    }
}

/// Is there no IPv6, or is it switched off everywhere?
pub(crate) fn ipv6_off() -> bool {
    sysctl("ipv6/conf/all/disable_ipv6") != Some(0)
}

/// Would answers to our outer packets, which the mark sends another way than their source looks, be dropped?
fn is_strict(name: &str) -> bool {
    let value = |of: &str, key: &str| sysctl(&format!("ipv4/conf/{of}/{key}")).unwrap_or(0);
    let rp_filter = value("all", "rp_filter").max(value(name, "rp_filter"));
    let by_mark = value("all", "src_valid_mark") | value(name, "src_valid_mark");
    rp_filter == 1 && by_mark == 0
}

/// A number below /proc/sys/net of the calling thread's namespace. A dot in an interface's name is a dot in its folder's.
pub(crate) fn sysctl(path: &str) -> Option<i64> {
    let text = fs::read_to_string(format!("/proc/sys/net/{path}")).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn a_route_of_the_host_is_foreign_where_the_mesh_takes_it_and_the_plan_does_not_leave_it() {
        let ranges = Ranges {
            mesh: vec![net("10.77.0.0/16"), net("10.200.0.0/14")],
            own: vec![net("10.201.3.0/24")],
        };
        assert!(ranges.is_claimed(&net("10.77.5.0/24")));
        assert!(ranges.is_claimed(&net("10.0.0.0/8")));
        assert!(ranges.is_claimed(&net("10.201.4.0/24")));
        assert!(!ranges.is_claimed(&net("10.201.3.0/25")));
        assert!(!ranges.is_claimed(&net("192.168.1.0/24")));
        assert!(!ranges.is_claimed(&net("fd00::/64")));
    }
}
