//! One pass that makes the kernel equal to a plan.
//!
//! The order keeps packets of the mesh from leaving in clear, whatever fails halfway: settings and new
//! addresses before routes, which name them as their source; then routes, those that drop before those that
//! carry; then the rules that lead to them; stale addresses go last, when no route names them any more. Packet
//! filters come before all of it: a peer that is filtered is so from its first packet on, and a connection
//! keeps the source address it began with.

use std::collections::BTreeSet;

use ipnet::IpNet;
use mesh_types::HostPlan;
use mesh_types::plan::{Route, RouteKind};

use crate::facts::{Ranges, ipv6_off};
use crate::netlink::Routing;
use crate::nft::{self, Tables};
use crate::relay::Relaying;
use crate::underlay::Underlay;
use crate::{HostError, address, link, route, rule};

/// Makes it so. Each failure is kept and the rest is still tried.
pub(crate) async fn converge(
    routing: &mut Routing,
    tables: &mut Result<Tables, HostError>,
    relaying: &mut Relaying,
    underlay: &mut Underlay,
    plan: &HostPlan,
) -> Vec<HostError> {
    // Without IPv6 the kernel takes neither addresses nor routes of it, and no packet can leak by it.
    let ipv6 = !ipv6_off();
    let usable = |net: &IpNet| ipv6 || net.addr().is_ipv4();
    let planned: BTreeSet<IpNet> = plan
        .device
        .addresses
        .iter()
        .copied()
        .filter(usable)
        .collect();
    let routes: Vec<&Route> = plan
        .routes
        .iter()
        .filter(|route| usable(&route.prefix))
        .collect();
    let mut failures = Vec::new();

    let device = match link::find(routing, &plan.device.name).await {
        Ok(device) => device,
        Err(error) => {
            failures.push(error);
            None
        }
    };
    let mut held = Vec::new();
    if let Some(link) = &device {
        let forward = plan
            .routes
            .iter()
            .any(|route| route.kind == RouteKind::Throw);
        failures.extend(
            link::configure(routing, link, &plan.device, forward)
                .await
                .err(),
        );
        failures.extend(link::up(routing, link).await.err());
        match address::list(routing).await {
            Ok(addresses) => held = addresses,
            Err(error) => failures.push(error),
        }
        failures.extend(address::add_missing(routing, link, &planned, &held).await);
    }

    let index = device.as_ref().map(|link| link.index);
    failures.extend(route::converge(routing, routes.into_iter(), index).await);
    let rules = plan.rules.iter().filter(|rule| ipv6 || !rule.ipv6);
    failures.extend(rule::converge(routing, rules).await);

    if let Some(link) = &device {
        failures.extend(address::remove_stale(routing, link, &planned, &held).await);
    }
    let relayed = relaying.converge(
        tables,
        &plan.relay_pairs,
        plan.tunnel.fwmark,
        plan.forward_accept,
    );
    failures.extend(relayed.err());
    let narrow = underlay.converge(routing, &plan.narrow, plan.tunnel.fwmark);
    failures.extend(narrow.await.err());
    failures
}

/// The packet filters, each in a step of its own: what one kernel does not know shall not cost the others. `ports` are the
/// agent's, beside those that the plan names.
pub(crate) fn filters(
    tables: &mut Result<Tables, HostError>,
    plan: &HostPlan,
    ports: &BTreeSet<u16>,
) -> Vec<HostError> {
    let wanted = plan.mss_clamp
        || plan.forward_accept
        || plan.mark_input
        || !plan.keep_source.is_empty()
        || !plan.filters.is_empty();
    let tables = match tables {
        Ok(tables) => tables,
        Err(_) if !wanted => return Vec::new(),
        Err(error) => {
            return vec![HostError::Refused {
                tried: "write packet filter rules".to_owned(),
                answer: error.to_string(),
            }];
        }
    };
    let device = &plan.device.name;
    let clamp: &[nft::Chain] = if plan.mss_clamp {
        &[nft::mss_chain(device)]
    } else {
        &[]
    };
    let relays = plan.forward_accept && !plan.relay_pairs.is_empty();
    let through = nft::Through {
        device,
        of_device: plan.forward_accept,
        relayed: relays.then_some(plan.tunnel.fwmark),
    };
    let results = [
        nft::filter(tables, device, &plan.filters).map(drop),
        nft::keep_source(tables, &plan.keep_source).map(drop),
        nft::mark_input(tables, plan, ports).map(drop),
        tables.apply(&["mss"], clamp).map(drop),
        match nft::forward_accept(tables, through) {
            // Only what an earlier run might have left was looked for.
            Err(_) if !plan.forward_accept => Ok(()),
            result => result,
        },
    ];
    results.into_iter().filter_map(Result::err).collect()
}

/// The ranges of a plan, for the report.
pub(crate) fn ranges(plan: &HostPlan) -> Ranges {
    let mut ranges = Ranges::default();
    for route in &plan.routes {
        match route.kind {
            RouteKind::Unicast { .. } | RouteKind::Blackhole => ranges.mesh.push(route.prefix),
            RouteKind::Throw => ranges.own.push(route.prefix),
        }
    }
    ranges
}
