//! What stands in the plan of each peer: WireGuard's entry, routes, filters. Thousands of peers have some, and few
//! change at a time, so only theirs are made anew. Where anything changes that all of them depend on ([`Ground`]),
//! all are.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use mesh_types::address::mesh_prefix;
use mesh_types::cluster::Allowed;
use mesh_types::consts::ROUTE_METRIC;
use mesh_types::plan::{Route, RouteKind, TunnelPeer};
use mesh_types::{PeerId, Prefixes, Source, WgKey};

use super::{LeftOut, Stale, blackhole};
use crate::overlay::Overlay;

/// Meshes up to this size are made from nothing too, in tests, to see that what was changed came to the same.
const CHECKED_MAX: usize = 40;

/// What all entries depend on, beside what makes everything stale at once ([`Stale::everything`]).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Ground {
    pub(super) ipv6: bool,
    /// The own addresses, where there are any: the sources of packets into the tunnel.
    pub(super) source4: Option<IpAddr>,
    pub(super) source6: Option<IpAddr>,
    /// The file's IPv6 address.
    pub(super) given6: Option<IpAddr>,
    /// How often peers are kept awake.
    pub(super) keepalive: Duration,
    /// Ranges that are dropped as a whole.
    pub(super) dropped: BTreeSet<IpNet>,
    /// The own ones, which are left to other tables.
    pub(super) thrown: BTreeSet<IpNet>,
    /// Those that are left to other tables whoever has them.
    pub(super) spared: BTreeSet<IpNet>,
    /// What nobody may carry...
    pub(super) protected: BTreeSet<IpNet>,
    /// ...but by the file's word.
    pub(super) named: BTreeSet<IpNet>,
}

impl Ground {
    /// May it lead into the tunnel, whoever has it?
    pub(super) fn is_free(&self, net: &IpNet) -> bool {
        self.named.contains(net) || !self.protected.iter().any(|held| held.contains(net))
    }

    fn is_route(&self, net: &IpNet) -> bool {
        self.has_family(net) && self.is_free(net) && !self.spared.contains(net)
    }

    fn has_family(&self, net: &IpNet) -> bool {
        self.ipv6 || net.addr().is_ipv4()
    }

    /// Routes that are no peer's.
    fn routes(&self) -> impl Iterator<Item = Route> {
        let dropped = self.dropped.iter().filter(|net| self.is_route(net));
        let thrown = self.thrown.iter().filter(|net| self.is_route(net));
        let spared = self.spared.iter().filter(|net| self.has_family(net));
        let thrown = thrown.chain(spared).map(|prefix| Route {
            prefix: *prefix,
            metric: ROUTE_METRIC,
            kind: RouteKind::Throw,
        });
        dropped.copied().map(blackhole).chain(thrown)
    }
}

/// The entries of all peers.
#[derive(Debug, Default)]
pub(crate) struct Entries {
    pub(super) ground: Ground,
    pub(super) tunnel: BTreeMap<WgKey, TunnelPeer>,
    pub(super) routes: BTreeSet<Route>,
    pub(super) filters: BTreeMap<IpNet, BTreeSet<Allowed>>,
    pub(super) keep_source: BTreeSet<IpNet>,
    /// Prefixes that the CNI carries inside the region.
    pub(super) near: BTreeSet<IpNet>,
    /// Peers whose own underlay address is routed into the tunnel.
    pub(super) underlay: BTreeSet<PeerId>,
}

impl PartialEq for Entries {
    fn eq(&self, other: &Self) -> bool {
        self.tunnel == other.tunnel
            && self.routes == other.routes
            && self.filters == other.filters
            && self.keep_source == other.keep_source
            && self.underlay == other.underlay
    }
}

/// What stands in the plan of one peer.
pub(super) struct Entry {
    pub(super) id: PeerId,
    pub(super) key: WgKey,
    pub(super) tunnel: TunnelPeer,
    /// The key before a rotation, where handshakes are still taken under it.
    pub(super) retired: Option<WgKey>,
    /// Prefixes that lead into the tunnel.
    pub(super) routed: Prefixes,
    /// Those of a peer that knows this node by its own file: members know it by its identity.
    pub(super) given: Vec<IpNet>,
    /// Those that the CNI carries.
    pub(super) near: Vec<IpNet>,
    /// The path MTU, where it is lower than the device's.
    pub(super) mtu: Option<u16>,
    pub(super) underlay: bool,
}

impl Entries {
    fn insert(&mut self, entry: Entry) {
        self.near.extend(entry.near);
        match entry.underlay {
            true => self.underlay.insert(entry.id),
            false => self.underlay.remove(&entry.id),
        };
        for net in &entry.routed {
            if !self.ground.is_route(net) {
                continue;
            }
            self.routes.insert(blackhole(*net));
            let source = match net {
                IpNet::V4(_) => self.ground.source4,
                IpNet::V6(_) if entry.given.contains(net) => {
                    self.ground.given6.or(self.ground.source6)
                }
                IpNet::V6(_) => self.ground.source6,
            };
            // Without an own address of that family the kernel would pick some other interface's as the source,
            // which every peer drops.
            if source.is_some() {
                let mtu = entry.mtu;
                self.routes.insert(Route {
                    prefix: *net,
                    metric: ROUTE_METRIC,
                    kind: RouteKind::Unicast { source, mtu },
                });
            }
        }
        self.tunnel.insert(entry.key, entry.tunnel);
    }

    /// Takes a peer's routes away; gives them, in order.
    fn take_routes(&mut self, key: &WgKey) -> Vec<Route> {
        let held = self.tunnel.get(key).map(|peer| peer.allowed_ips.clone());
        let mut out = Vec::new();
        for net in held.iter().flatten() {
            self.near.remove(net);
            out.extend(self.routes_to(net));
        }
        for route in &out {
            self.routes.remove(route);
        }
        out
    }

    /// A peer's routes to a prefix.
    fn routes_to(&self, net: &IpNet) -> impl Iterator<Item = Route> {
        let least = Route {
            prefix: *net,
            metric: 0,
            kind: RouteKind::Unicast {
                source: None,
                mtu: None,
            },
        };
        let there = self.routes.range(least..);
        let there = there.take_while(move |route| route.prefix == least.prefix);
        let peers = |route: &&Route| match route.kind {
            RouteKind::Unicast { .. } => true,
            RouteKind::Blackhole => !self.ground.dropped.contains(&route.prefix),
            RouteKind::Throw => false,
        };
        there.filter(peers).copied()
    }
}

/// What became of the entries.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) changed: bool,
    /// Whose prefixes in the tunnel are others now.
    pub(super) moved: BTreeSet<WgKey>,
}

impl Overlay {
    /// Makes what is stale of the entries follow.
    pub(super) fn refresh_entries(&self, entries: &mut Entries, stale: &Stale) -> Outcome {
        let patched = match stale.all {
            true => None,
            false => self.patch(entries, stale),
        };
        let outcome = patched.unwrap_or_else(|| {
            let new = self.all_entries();
            let old = std::mem::replace(entries, new);
            let before = |key| old.tunnel.get(key).map(|peer| &peer.allowed_ips);
            let moved = entries.tunnel.iter();
            let moved = moved.filter(|(key, peer)| before(key) != Some(&peer.allowed_ips));
            Outcome {
                moved: moved.map(|(key, _)| *key).collect(),
                changed: old != *entries,
            }
        });
        debug_assert!(
            self.peers.len() > CHECKED_MAX || *entries == self.all_entries(),
            "what was changed of the plan came to the same as all of it made anew"
        );
        outcome
    }

    /// Makes the entries of a few peers anew; `None` where that does not suffice, and then they are of no use.
    fn patch(&self, entries: &mut Entries, stale: &Stale) -> Option<Outcome> {
        let ipv6 = entries.ground.ipv6;
        let made: Vec<Entry> = stale
            .peers
            .iter()
            .filter_map(|id| self.entry(id, ipv6))
            .collect();
        let mut outcome = Outcome::default();
        let mut before: Vec<Vec<Route>> = Vec::new();
        for entry in &made {
            before.push(entries.take_routes(&entry.key));
        }
        entries
            .near
            .extend(made.iter().flat_map(|entry| &entry.near));
        if self.ground(&entries.near) != entries.ground {
            return None;
        }
        let mut rerouted = false;
        for (entry, before) in made.into_iter().zip(before) {
            let key = entry.key;
            let old = entries.tunnel.get(&key);
            outcome.changed |= old != Some(&entry.tunnel);
            if old.map(|peer| &peer.allowed_ips) != Some(&entry.tunnel.allowed_ips) {
                outcome.moved.insert(key);
                rerouted = true;
            }
            let routed = entry.routed.clone();
            entries.insert(entry);
            let after: Vec<Route> = routed
                .iter()
                .flat_map(|net| entries.routes_to(net))
                .collect();
            outcome.changed |= before != after;
            rerouted |= !before
                .iter()
                .map(|r| r.prefix)
                .eq(after.iter().map(|r| r.prefix));
        }
        if rerouted {
            let keep = self.keep_source();
            outcome.changed |= keep != entries.keep_source;
            entries.keep_source = keep;
        }
        if stale.described {
            let filters = self.filters();
            outcome.changed |= filters != entries.filters;
            entries.filters = filters;
        }
        Some(outcome)
    }

    /// The entries of all peers, made from nothing.
    fn all_entries(&self) -> Entries {
        let ipv6 = !self.host.ipv6_off;
        let ids = self.directory.peers().map(|(id, _)| id);
        let made: Vec<Entry> = ids.filter_map(|id| self.entry(id, ipv6)).collect();
        let near: BTreeSet<IpNet> = made.iter().flat_map(|entry| &entry.near).copied().collect();
        let mut out = Entries {
            ground: self.ground(&near),
            near,
            filters: self.filters(),
            keep_source: self.keep_source(),
            ..Entries::default()
        };
        out.routes.extend(out.ground.routes());
        for entry in &made {
            if let Some(old) = entry.retired {
                let passive = TunnelPeer {
                    passive: true,
                    preshared_key: entry.tunnel.preshared_key.clone(),
                    ..TunnelPeer::default()
                };
                out.tunnel.insert(old, passive);
            }
        }
        made.into_iter().for_each(|entry| out.insert(entry));
        out
    }

    fn entry(&self, id: &PeerId, ipv6: bool) -> Option<Entry> {
        let (peer, record) = self.directory.peer(id).zip(self.peers.get(id))?;
        let (endpoint, keepalive) = if peer.plain {
            (
                peer.endpoints.first().map(|c| c.address),
                peer.persistent_keepalive,
            )
        } else {
            self.reach(id, peer, record)
        };
        let family = |net: &IpNet| ipv6 || net.addr().is_ipv4();
        let nets = peer.allowed_ips.iter();
        let left_out: Vec<(IpNet, LeftOut)> = nets
            .filter_map(|net| Some((*net, self.left_out(id, peer, record, net)?)))
            .collect();
        let out = |net: &IpNet| left_out.iter().any(|(left, _)| left == net);
        // Of a near peer's pods some packets may come this way all the same; of a neighbour's address none may.
        let kept_out = |net: &IpNet| {
            let mut left_out = left_out.iter();
            left_out.any(|(left, why)| left == net && *why != LeftOut::Region)
        };
        let all = left_out.is_empty() && peer.allowed_ips.iter().all(family);
        let filtered = |keep: &dyn Fn(&IpNet) -> bool| match all {
            true => peer.allowed_ips.clone(),
            false => peer
                .allowed_ips
                .iter()
                .filter(|net| keep(net))
                .copied()
                .collect(),
        };
        let mesh = IpNet::V6(mesh_prefix(&self.own.domain));
        let by_file = peer.source == Source::Config;
        let given = peer.allowed_ips.iter().copied();
        let given = given.filter(|net| by_file && !mesh.contains(net));
        let near = left_out.iter().filter(|(_, why)| *why == LeftOut::Region);
        Some(Entry {
            id: *id,
            key: record.key,
            retired: record.retired.map(|(old, _)| old),
            routed: filtered(&|net| family(net) && !out(net)),
            given: given.collect(),
            near: near.map(|(net, _)| *net).collect(),
            mtu: self.route_mtu(id),
            underlay: self.is_underlay_routed(id, peer, out),
            tunnel: TunnelPeer {
                endpoint,
                insist: record.insist,
                also: self.also(id),
                allowed_ips: filtered(&|net| family(net) && !kept_out(net)),
                keepalive,
                preshared_key: peer.preshared_key.clone(),
                passive: false,
            },
        })
    }
}
