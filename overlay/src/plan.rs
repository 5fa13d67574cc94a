//! The desired state of the host, built anew from what is known whenever something changed. The
//! generation rises only when the plan differs.
//!
//! Every prefix a peer carries is a unicast route with the own overlay address as its source, and a
//! blackhole twin at a worse metric: while the device is gone its packets are dropped, never sent in clear.
//! The mesh's own ranges are blackholed as a whole. What this node carries itself is thrown back to the
//! other tables, unless a peer (a phone, say) carries exactly that. What a cluster adds stands in `cluster`.

mod cluster;
mod entries;
mod stale;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use mesh_types::address::mesh_prefix;
use mesh_types::consts::{
    BLACKHOLE_METRIC, MTU_MIN, PERSISTENT_KEEPALIVE, ROUTE_TABLE, RULE_PRIORITY, WIREGUARD_OVERHEAD,
};
use mesh_types::observation::Source;
use mesh_types::plan::host_prefix;
use mesh_types::plan::{Adoption, DevicePlan, Route, RouteKind, Rule, TunnelPlan};
use mesh_types::report::Backend;
use mesh_types::{HostPlan, Now, PeerId, SocketId};
use peer_discovery::Peer;
use tracing::debug;

use crate::overlay::Overlay;
use crate::peer::PeerRecord;
pub(crate) use cluster::LeftOut;
pub(crate) use entries::{Entries, Ground};
pub(crate) use stale::Stale;

/// Where WireGuard sends what a peer must not get for now: nobody listens there (discard, RFC 863).
pub(crate) const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9);
/// How often WireGuard's numbers are wanted while any peer is active: a dead path shows within a second.
const REPORT_ACTIVE: Duration = Duration::from_millis(500);
/// The same of the userspace engine, which costs nothing to ask.
const REPORT_ENGINE: Duration = Duration::from_millis(100);
/// How often otherwise.
const REPORT_QUIET: Duration = Duration::from_secs(2);

impl Overlay {
    /// Makes the plan follow where something changed; its generation rises only when it differs.
    pub(crate) fn refresh_plan(&mut self, now: Now) {
        if !self.stale.is_any() {
            return;
        }
        let stale = std::mem::take(&mut self.stale);
        match stale.all {
            true => self
                .peers
                .iter_mut()
                .for_each(|(_, record)| record.plan(now.mono)),
            false => {
                let records = stale.peers.iter();
                for id in records {
                    if let Some(record) = self.peers.get_mut(id) {
                        record.plan(now.mono);
                    }
                }
            }
        }
        let mut entries = self.take_entries();
        let mut outcome = self.refresh_entries(&mut entries, &stale);
        let frame = self.frame(!entries.underlay.is_empty());
        outcome.changed |= frame != self.plan;
        let mut moved = self.addresses_since.is_none();
        if outcome.changed {
            let generation = self.plan.generation + 1;
            debug!(generation, "Plan changed");
            moved |= frame.device.addresses != self.plan.device.addresses;
            self.plan = HostPlan {
                generation,
                ..frame
            };
        }
        self.put_entries(entries);
        let generation = self.plan.generation;
        if moved {
            self.addresses_since = Some(generation);
        }
        let follow = |record: &mut PeerRecord| {
            if outcome.moved.contains(&record.key) {
                record.held_since = None;
            }
            record.held_since.get_or_insert(generation);
            if let Some(greeting) = &mut record.greeting
                && record.opened
            {
                greeting.generation.get_or_insert(generation);
            }
        };
        match stale.all {
            true => self.peers.iter_mut().for_each(|(_, record)| follow(record)),
            false => {
                let ids = self.peers.greeted().into_iter().chain(stale.peers);
                for id in ids {
                    if let Some(record) = self.peers.get_mut(&id) {
                        follow(record);
                    }
                }
            }
        }
        self.rotation.planned(generation);
    }

    /// The entries of the plan, to be changed: the plan is without them until they are put back.
    fn take_entries(&mut self) -> Entries {
        let entries = std::mem::take(&mut self.entries);
        Entries {
            tunnel: std::mem::take(&mut self.plan.tunnel.peers),
            routes: std::mem::take(&mut self.plan.routes),
            filters: std::mem::take(&mut self.plan.filters),
            keep_source: std::mem::take(&mut self.plan.keep_source),
            ..entries
        }
    }

    fn put_entries(&mut self, mut entries: Entries) {
        self.plan.tunnel.peers = std::mem::take(&mut entries.tunnel);
        self.plan.routes = std::mem::take(&mut entries.routes);
        self.plan.filters = std::mem::take(&mut entries.filters);
        self.plan.keep_source = std::mem::take(&mut entries.keep_source);
        self.entries = entries;
    }

    /// The plan without the entries of peers; of the generation that holds already.
    fn frame(&self, mark_input: bool) -> HostPlan {
        let ipv6 = !self.host.ipv6_off;
        let addresses: BTreeSet<IpNet> = self
            .own_addresses()
            .into_iter()
            .filter(|net| ipv6 || net.addr().is_ipv4())
            .collect();
        let (mark, mask) = self.config.fwmark;
        let rule = |ipv6| Rule {
            ipv6,
            priority: RULE_PRIORITY,
            table: ROUTE_TABLE,
            mark,
            mask,
            from: None,
        };
        let mut met = self.peers.met().filter_map(|id| self.peers.get(id));
        let any_active = met.any(|record| record.planned.1);
        HostPlan {
            generation: self.plan.generation,
            device: DevicePlan {
                name: self.config.interface.clone(),
                mtu: self.config.mtu,
                addresses,
            },
            tunnel: TunnelPlan {
                key: self.identity.key.clone(),
                previous_key: self.rotation.previous().cloned(),
                listen_port: self.listen_port(),
                fwmark: mark,
                peers: BTreeMap::new(),
                report_every: match self.config.backend {
                    Backend::Userspace if any_active => REPORT_ENGINE,
                    Backend::Kernel if any_active => REPORT_ACTIVE,
                    Backend::Userspace | Backend::Kernel => REPORT_QUIET,
                },
            },
            routes: BTreeSet::new(),
            rules: [Some(rule(false)), ipv6.then(|| rule(true))]
                .into_iter()
                .flatten()
                .chain(self.source_rules(ipv6))
                .collect(),
            sockets: [SocketId::Main, SocketId::Alternate, SocketId::Overlay]
                .into_iter()
                .chain(self.relay_sockets())
                .chain(self.traversal.sockets())
                .collect(),
            mss_clamp: true,
            forward_accept: self.config.forward_accept,
            adoptions: self.adoptions(),
            relay_pairs: self.traversal.relay_pairs(),
            aliases: self.aliases(),
            narrow: if ipv6 { self.narrow() } else { BTreeMap::new() },
            turn_links: self.traversal.turn_links(),
            proxies: self.traversal.proxies(),
            filters: BTreeMap::new(),
            keep_source: BTreeSet::new(),
            mark_input,
        }
    }

    /// What the entries of all peers depend on; `near` are the prefixes of peers that the CNI carries.
    fn ground(&self, near: &BTreeSet<IpNet>) -> Ground {
        let ipv6 = !self.host.ipv6_off;
        let mesh = IpNet::V6(mesh_prefix(&self.own.domain));
        let own = self.config.routes.iter().map(IpNet::trunc);
        let mut ground = Ground {
            ipv6,
            source4: self.own_ipv4().map(IpAddr::V4),
            source6: ipv6.then(|| IpAddr::V6(self.own_ipv6())),
            given6: self.given_ipv6().filter(|_| ipv6).map(IpAddr::V6),
            keepalive: self.traversal.keepalive(),
            dropped: std::iter::once(mesh).chain(self.ranges()).collect(),
            thrown: own.filter(|net| !self.carries(net)).collect(),
            ..Ground::default()
        };
        if self.config.kubernetes.is_some() {
            self.add_cluster(&mut ground, near);
        }
        ground
    }

    /// Does this very prefix lead to a peer?
    fn carries(&self, net: &IpNet) -> bool {
        let carrier = self.directory.carrier(net);
        carrier.is_some_and(|id| self.leads(id, net))
    }

    /// Does this prefix of a peer lead into the tunnel?
    fn leads(&self, id: &PeerId, net: &IpNet) -> bool {
        let known = self.directory.peer(id).zip(self.peers.get(id));
        known.is_some_and(|(peer, record)| self.left_out(id, peer, record, net).is_none())
    }

    /// Paths that a socket of a search has found: the tunnel's packets leave from its port.
    fn adoptions(&self) -> BTreeSet<Adoption> {
        let paths = self.peers.met().filter_map(|id| self.traversal.path(id));
        paths
            .filter_map(|path| {
                let (remote, port) = (path.remote, path.local_port?);
                Some(Adoption { remote, port })
            })
            .collect()
    }

    /// The second way to a peer while its path is suspect, for the backend that can use it.
    fn also(&self, id: &PeerId) -> Option<SocketAddr> {
        match self.config.backend {
            Backend::Userspace => self.traversal.spare(id),
            Backend::Kernel => None,
        }
    }

    /// Endpoint and keepalive of a node. Without a path a live session keeps the endpoint that the tunnel
    /// has learned; a session that has died falls back to where the peer was last reached.
    fn reach(
        &self,
        id: &PeerId,
        peer: &Peer,
        record: &PeerRecord,
    ) -> (Option<SocketAddr>, Option<Duration>) {
        if self.traversal.is_silent(id) {
            return (Some(NOWHERE), None);
        }
        let path = self.traversal.path(id).map(|path| path.remote);
        let (session, _) = record.planned;
        let open = (path.is_some() && record.opened) || session;
        // Its packets would begin a handshake that crosses the other side's, and kernels finish neither.
        let waits = self.config.backend == Backend::Kernel && !open;
        let endpoint = match (path, session) {
            (Some(_), _) if waits => None,
            (Some(remote), _) => Some(remote),
            (None, true) if !record.hushed => None,
            (None, _) => record.last_endpoint.or_else(|| self.guess(peer)),
        };
        let own = || {
            let least = PERSISTENT_KEEPALIVE.min(self.traversal.keepalive());
            // Whole seconds are all that WireGuard knows.
            Some(Duration::from_secs(least.as_secs())).filter(|_| !self.is_resting(id))
        };
        let keepalive = peer.persistent_keepalive.or_else(own).filter(|_| open);
        (endpoint, keepalive)
    }

    /// Where a peer may be that was never reached. The kernel's WireGuard is told what the file says, and nothing
    /// else: the first packet would begin a handshake that goes nowhere, and it begins no other one for five
    /// seconds, be there a path by then. The userspace engine begins anew as soon as the plan names another
    /// endpoint, and keeps the packets until then.
    fn guess(&self, peer: &Peer) -> Option<SocketAddr> {
        let fit = match self.config.backend {
            Backend::Userspace => true,
            Backend::Kernel => peer.source == Source::Config,
        };
        let first = peer.endpoints.first().filter(|_| fit);
        first.map(|candidate| candidate.address)
    }

    /// The path MTU of a peer, where it is lower than the device's. What a route of IPv6 cannot have
    /// ([`MTU_MIN`]) is left to [`Self::narrow`]: such packets travel in fragments outside.
    fn route_mtu(&self, id: &PeerId) -> Option<u16> {
        let found = self.traversal.path_mtu(id)?;
        Some(found).filter(|mtu| *mtu < self.config.mtu)
    }

    /// Where paths lead that carry less than IPv6 asks for inside, and what they carry outside.
    fn narrow(&self) -> BTreeMap<IpAddr, u16> {
        let mut out = BTreeMap::new();
        for id in self.peers.met() {
            let inside = self
                .traversal
                .firm_path_mtu(id)
                .filter(|mtu| *mtu < MTU_MIN);
            let (Some(inside), Some(path)) = (inside, self.traversal.path(id)) else {
                continue;
            };
            let remote = path.remote.ip();
            // What a proxy sends on is not the kernel's to cut up.
            if !remote.is_loopback() {
                let limit = out.entry(remote).or_insert(u16::MAX);
                *limit = (*limit).min(inside + outside(remote));
            }
        }
        out
    }

    /// The node's overlay addresses: what follows from its identity, what its membership gives it, and what
    /// the file adds.
    pub(crate) fn own_addresses(&self) -> BTreeSet<IpNet> {
        let configured = self
            .config
            .addresses
            .iter()
            .map(|net| host_prefix(net.addr()));
        // In `nodes` mode it may be the address of another device already.
        let ipv4 = self.own_ipv4().map(IpAddr::V4);
        let ipv4 = ipv4.filter(|ip| self.config.kubernetes.is_none() || !self.is_on_host(*ip));
        let ipv4 = ipv4.map(host_prefix);
        let ipv6 = host_prefix(IpAddr::V6(self.own_ipv6()));
        configured.chain(ipv4).chain([ipv6]).collect()
    }

    /// The IPv4 address that is the source of this node's own packets: the file's first, else the membership's.
    pub(crate) fn own_ipv4(&self) -> Option<Ipv4Addr> {
        let configured = self.config.addresses.iter().find_map(|net| match net {
            IpNet::V4(net) => Some(net.addr()),
            IpNet::V6(_) => None,
        });
        configured.or_else(|| self.cluster_ipv4()).or_else(|| {
            self.directory
                .own_membership()
                .and_then(|membership| membership.ipv4)
        })
    }

    /// The file's first IPv6 address.
    fn given_ipv6(&self) -> Option<std::net::Ipv6Addr> {
        self.config.addresses.iter().find_map(|net| match net {
            IpNet::V4(_) => None,
            IpNet::V6(net) => Some(net.addr()),
        })
    }

    /// The IPv6 address that follows from the node's identity.
    pub(crate) fn own_ipv6(&self) -> std::net::Ipv6Addr {
        mesh_types::address::overlay_ipv6(&self.own)
    }

    /// Where overlay addresses come from, as far as known.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.state.range.iter().map(IpNet::trunc)
    }
}

/// What WireGuard, UDP and IP add to a packet.
fn outside(remote: IpAddr) -> u16 {
    let ip = if remote.is_ipv6() { 40 } else { 20 };
    WIREGUARD_OVERHEAD + 8 + ip
}

fn blackhole(prefix: IpNet) -> Route {
    Route {
        prefix,
        metric: BLACKHOLE_METRIC,
        kind: RouteKind::Blackhole,
    }
}
