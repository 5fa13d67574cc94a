//! What the directory and the traversal say, and what they are told.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use mesh_types::address::is_global;
use mesh_types::plan::host_prefix;
use mesh_types::report::{HostAddress, PortMapping};
use mesh_types::{HostReport, Idx, IpNet, Now, PeerId, TunnelReport};
use nat_traversal::PeerSpec;
use rand_core::Rng as _;
use tracing::debug;

use crate::calls::Calls;
use crate::control::FORWARD_WAYS;
use crate::event::Event;
use crate::overlay::{Overlay, RESOLVE_AGAIN};
use crate::peer::{self, Greeting, LATE, PeerRecord, SECOND_SIDE_DELAY};
use crate::snapshot::PeerState;

/// How long the host of the other end may take to lend its tunnel the port that a search has found. A handshake
/// that comes before is lost, and the next one is five seconds later.
const ADOPTION: Duration = Duration::from_millis(150);
/// How often WireGuard's word of all peers is taken in while more comes of those in use.
const LOOK_EVERY: Duration = Duration::from_secs(1);

impl Overlay {
    pub(crate) fn handle_directory(&mut self, event: &peer_discovery::Event, now: Now) {
        self.cluster.claims_changed = true;
        match *event {
            peer_discovery::Event::Changed(id) => self.peer_changed(id, now),
            peer_discovery::Event::Removed(id) => {
                let record = self.peers.remove(&id);
                if let Some(record) = record.filter(|record| is_up(record.state)) {
                    self.events.push_back(Event::PeerDown {
                        name: record.name,
                        reason: "it is no longer a peer".to_owned(),
                    });
                }
                self.traversal.remove_peer(&id);
                self.gossip.forget(&id);
                self.stale.everything();
                self.excluded_dirty = true;
                self.persist_soon(now);
            }
            peer_discovery::Event::Renamed { from, to } => {
                if let Some(record) = self.peers.remove(&from) {
                    self.peers.insert(to, record);
                }
                self.traversal.rename_peer(&from, to);
                self.gossip.rename(&from, to);
                self.stale.everything();
            }
            peer_discovery::Event::Dirty => self.persist_soon(now),
            peer_discovery::Event::OwnRecordNewer(seq) => self.own_record_seen(seq, now),
            peer_discovery::Event::OwnMembership => {
                self.stale.everything();
                self.excluded_dirty = true;
                if self.directory.own_membership().is_some() {
                    self.revoked = false;
                }
                self.refresh_relay(now);
                self.persist_soon(now);
            }
            peer_discovery::Event::ListAgain => self.events.push_back(Event::ListAgain),
            peer_discovery::Event::Revoked => {
                self.revoked = true;
                self.refresh_relay(now);
                self.stale.everything();
                self.events.push_back(Event::Revoked);
                self.persist_soon(now);
            }
        }
    }

    fn peer_changed(&mut self, id: PeerId, now: Now) {
        let Some(peer) = self.directory.peer(&id) else {
            return;
        };
        let (key, next, plain) = (peer.key, peer.next_key, peer.plain);
        let name = peer.name.clone();
        let ipv4 = self.peer_ipv4(peer);
        // A node whose public address is its overlay address as well is met there.
        let met_at = |ip: &Ipv4Addr| peer.endpoints.iter().any(|c| c.address.ip() == *ip);
        let excluded = ipv4.filter(|ip| !met_at(ip));
        let known = self.peers.contains_key(&id);
        let disk = self.state.endpoints.iter();
        let last = disk
            .filter(|last| !known && last.key == key)
            .map(|last| last.address)
            .next();
        let record = self
            .peers
            .get_or_insert_with(id, || PeerRecord::new(key, now.mono));
        if last.is_some() {
            record.last_endpoint = last;
        }
        record.ipv4 = ipv4;
        self.excluded_dirty |= record.excluded != excluded;
        record.excluded = excluded;
        record.calls = Calls::default();
        record.name = name;
        let before = record.key;
        // A key proven by a probe stays in use until the announcement that names it has arrived.
        if record.adopted.is_none() || record.adopted != next {
            record.adopted = None;
            record.change_key(key, now.mono);
        }
        match record.key == before {
            true => self.stale.described(id),
            false => self.stale.everything(),
        }
        if plain {
            self.traversal.remove_peer(&id);
        } else {
            self.tell_traversal(&id, now);
        }
        if known {
            self.persist_soon(now);
        } else {
            // An agent that is killed and has forgotten a peer would take away what blocks the peer's ranges.
            self.persist_at = Some(now.mono);
        }
        self.refresh_peer(&id, now);
    }

    /// Tells the traversal what is known of a peer.
    pub(crate) fn tell_traversal(&mut self, id: &PeerId, now: Now) {
        let Some((peer, record)) = self.directory.peer(id).zip(self.peers.get(id)) else {
            return;
        };
        let mut keys = vec![record.key];
        let further = [Some(peer.key), peer.next_key];
        keys.extend(
            further
                .into_iter()
                .flatten()
                .filter(|key| *key != record.key),
        );
        let spec = PeerSpec {
            keys,
            candidates: peer.endpoints.clone(),
            nat: peer.nat,
            last_endpoint: record.last_endpoint,
            relay_capable: peer.may_relay,
            relays: peer.relays.clone(),
            announcement_seq: peer.seq,
        };
        self.traversal.upsert_peer(*id, spec, now);
    }

    pub(crate) fn handle_traversal(&mut self, event: nat_traversal::Event, now: Now) {
        match event {
            nat_traversal::Event::PathChanged { peer } => self.path_changed(&peer, now),
            nat_traversal::Event::PathMtuChanged { peer }
            | nat_traversal::Event::SpareChanged { peer } => self.stale.peer(peer),
            nat_traversal::Event::Signal { peer, message } => self.signal(&peer, &message, now),
            nat_traversal::Event::EndpointsChanged => {
                self.ways += 1;
                self.refresh_relay(now);
                self.announcement_changed(now);
            }
            nat_traversal::Event::RestChanged { peer } => self.rest_changed(&peer, now),
            nat_traversal::Event::Woken { peer } => self.send_initiation(&peer, now),
            nat_traversal::Event::RelayChanged
            | nat_traversal::Event::KeepaliveChanged
            | nat_traversal::Event::SocketsChanged
            | nat_traversal::Event::TurnChanged => self.stale.frame(),
            nat_traversal::Event::TurnResolve(name) => {
                self.events.push_back(Event::Resolve { name });
            }
            nat_traversal::Event::PeerKeySeen { peer, key } => {
                self.peer_key_seen(&peer, key, now);
            }
            nat_traversal::Event::JoinRequest(request) => self.handle_join_request(&request, now),
            nat_traversal::Event::JoinAnswer { ticket, sealed, .. } => {
                self.handle_join_answer(ticket, &sealed, now);
            }
            nat_traversal::Event::EpochRaised(epoch) => {
                self.state.epoch = self.state.epoch.max(epoch);
                self.persist_now();
            }
        }
    }

    fn path_changed(&mut self, id: &PeerId, now: Now) {
        let path = self.traversal.path(id);
        let relayed = path.is_some_and(|path| path.kind.is_relayed());
        let datagrams = path.is_some_and(|path| path.kind.is_direct_udp());
        let remote = path.map(|path| path.remote);
        let ready = path
            .filter(|path| path.searched)
            .map_or(Duration::ZERO, |path| path.rtt * 2 + ADOPTION);
        let silent = self.traversal.is_silent(id);
        let own = self.identity.key.public().idx();
        let seq = self.rng.next_u64().max(1);
        if remote.is_some() && self.connected_peers(now).len() < FORWARD_WAYS {
            self.ways += 1;
        }
        let Some(record) = self.peers.get_mut(id) else {
            return;
        };
        self.stale.peer(*id);
        record.late_until = (record.relayed && !relayed).then(|| now.mono + LATE);
        record.relayed = relayed;
        debug!(peer = %record.name, ?remote, silent, "Path changed");
        match remote {
            Some(remote) => {
                let fresh = record.path_since.is_none();
                record.hushed = false;
                record.calls = Calls::default();
                // A relay's port is lent for minutes, and says nothing of where the peer is.
                if datagrams {
                    record.last_endpoint = Some(remote);
                }
                if fresh {
                    record.path_since = Some(now.mono);
                    // The lower idx begins, so that two handshakes do not cross.
                    let first = own < record.idx || record.session(now.mono);
                    let wait = if first {
                        Duration::ZERO
                    } else {
                        SECOND_SIDE_DELAY
                    };
                    record.open_at = Some(now.mono + ready + wait);
                }
                let records = fresh || record.greeting.is_some_and(|greeting| greeting.records);
                // On an old connection the words only force a packet onto the new path.
                record.greeting = Some(Greeting::new(records, seq));
                self.send_initiation(id, now);
                self.persist_soon(now);
            }
            None => {
                record.hushed |= silent;
                record.path_since = None;
                record.open_at = None;
                record.greeting = None;
            }
        }
        self.refresh_peer(id, now);
    }

    /// Takes WireGuard's word in: of those that were met, and of whoever else it has something to tell. While some peer is
    /// in use reports come often, and most of them only of it: the others are looked at every [`LOOK_EVERY`].
    pub(crate) fn take_tunnel(&mut self, report: &TunnelReport, now: Now) {
        let all = self.looked_at.is_none_or(|at| now.mono >= at + LOOK_EVERY);
        let told = report.peers.iter().filter_map(|(key, stats)| {
            let id = self.directory.by_key(key)?;
            let record = self.peers.get(id);
            let told = match all {
                true => !stats.is_silent(),
                false => record.is_some_and(|record| record.is_news(stats, now.mono)),
            };
            told.then_some(*id)
        });
        let mut ids: BTreeSet<PeerId> = told.collect();
        if all {
            ids.extend(self.peers.met());
            self.looked_at = Some(now.mono);
        }
        for id in ids {
            let plain = self.directory.peer(&id).is_none_or(|peer| peer.plain);
            let Some(record) = self.peers.get_mut(&id) else {
                continue;
            };
            let Some(stats) = report.peers.get(&record.key) else {
                self.refresh_peer(&id, now);
                continue;
            };
            let mut stats = *stats;
            stats.endpoint = peer::at(&stats);
            let (path, insisted) = (self.traversal.path(&id), record.insist);
            record.handle_stats(stats, path.map(|path| path.remote), now.mono);
            let digests = record.gossip_bytes;
            let late = |at| self.traversal.late(&id).contains(&at);
            if stats.endpoint.is_some_and(late) {
                // Late datagrams of a relay have drawn it back there; nothing is silent, so it would stay.
                record.insist = record.insist.wrapping_add(1);
            }
            if record.insist != insisted {
                self.stale.peer(id);
            }
            if record.session(now.mono) && record.path_since.is_some() && !record.open(now.mono) {
                record.open_at = Some(now.mono);
                self.stale.peer(id);
            }
            if !plain {
                self.traversal.handle_tunnel(&id, &stats, digests, now);
            }
            self.refresh_peer(&id, now);
        }
        self.greet_due(now);
    }

    /// Follows a peer's state and says when it comes and goes.
    pub(crate) fn refresh_peer(&mut self, id: &PeerId, now: Now) {
        let plain = self.directory.peer(id).is_some_and(|peer| peer.plain);
        let resting = self.is_resting(id);
        let Some(record) = self.peers.get_mut(id) else {
            return;
        };
        let planned = (record.session(now.mono), record.active(now.mono));
        if planned != record.planned {
            self.stale.peer(*id);
        }
        let state = record.current_state(plain, resting, now.mono);
        let before = record.state;
        if state == before {
            return;
        }
        record.state = state;
        record.since = now.mono;
        let (was, is) = (is_up(before), is_up(state));
        let name = self.peer_name(id);
        debug!(peer = %name, before = before.kind(), state = state.kind(), "Peer state changed");
        if is && !was {
            self.events.push_back(Event::PeerUp { name });
        } else if was && !is {
            let reason = self.reason(id, now);
            self.events.push_back(Event::PeerDown { name, reason });
        }
    }

    /// What time alone changes of peers.
    pub(crate) fn peers_due(&mut self, now: Now) {
        for id in self.peers.due(now.mono) {
            if let Some(record) = self.peers.get_mut(&id) {
                if record.retired.is_some_and(|(_, until)| until <= now.mono) {
                    record.retired = None;
                    self.stale.everything();
                }
                if record.late_until.take_if(|at| *at <= now.mono).is_some() {
                    self.stale.frame();
                }
                if record.open(now.mono) && !record.opened {
                    self.stale.peer(id);
                }
            }
            self.refresh_peer(&id, now);
        }
    }

    pub(crate) fn peer_name(&self, id: &PeerId) -> String {
        self.directory
            .peer(id)
            .map_or_else(|| id.to_string(), |peer| peer.name.clone())
    }

    /// Is it the name of a WireGuard key of this node?
    pub(crate) fn is_own_idx(&self, idx: Idx) -> bool {
        self.identity.key.public().idx() == idx
            || self
                .rotation
                .previous()
                .is_some_and(|key| key.public().idx() == idx)
    }

    pub(crate) fn take_host(&mut self, report: HostReport, now: Now) {
        let moved = report.port_moved != self.host.port_moved;
        let addresses = !self.host_known
            || report.addresses != self.host.addresses
            || report.uplinks != self.host.uplinks
            || report.ipv6_off != self.host.ipv6_off;
        let busy = report.busy_ports != self.host.busy_ports;
        self.host = report;
        self.host_known = true;
        if busy {
            self.traversal.set_busy_ports(&self.host.busy_ports, now);
        }
        self.refresh_relay(now);
        if moved {
            self.traversal.set_listen_port(self.listen_port());
            self.persist_soon(now);
        }
        if addresses {
            self.tell_host_addresses(now);
            self.announcement_changed(now);
        }
        self.stale.everything();
    }

    /// Tells the traversal where this host may be met. An address inside a range that this node carries
    /// belongs to the pods or machines behind it: they use the mesh by it, nobody outside can reach it, and
    /// probes to it would only tell an eavesdropper what lies behind. It counts all the same on an interface
    /// with a default route, which leads outside: there the range is the LAN where neighbours meet. A host
    /// without any default route has nothing better than what it has.
    pub(crate) fn tell_host_addresses(&mut self, now: Now) {
        let uplinks = &self.host.uplinks;
        let inward = |address: &HostAddress| {
            !uplinks.is_empty()
                && !uplinks.contains(&address.interface)
                && self
                    .config
                    .routes
                    .iter()
                    .chain(self.own_pod_cidrs())
                    .any(|net| net.contains(&address.ip))
        };
        let mut addresses = self.host.addresses.clone();
        addresses.retain(|address| !inward(address));
        self.traversal
            .set_host_addresses(&addresses, self.host.ipv6_off, now);
    }

    /// Overlay addresses are never underlay addresses, ours or theirs. Ranges behind nodes are left alone:
    /// a LAN that a node carries is also where its neighbours find it, and outer packets escape the mesh's
    /// routes by their mark.
    pub(crate) fn tell_excluded(&mut self) {
        let mesh = IpNet::V6(mesh_types::address::mesh_prefix(&self.own.domain));
        let mut out: Vec<IpNet> = std::iter::once(mesh).chain(self.ranges()).collect();
        let whole = out.len();
        for net in self.own_addresses() {
            if !out[..whole].iter().any(|range| range.contains(&net)) {
                out.push(net);
            }
        }
        let peers = self.peers.values().filter_map(|record| record.excluded);
        let nets = peers.map(|ip| host_prefix(ip.into()));
        let outside: Vec<IpNet> = nets
            .filter(|net| !out[..whole].iter().any(|range| range.contains(net)))
            .collect();
        out.extend(outside);
        self.traversal.set_excluded(out);
    }

    /// Tells the directory what this node carries itself. What a plain device listed here carries is left
    /// out: this node carries it on the device's behalf.
    pub(crate) fn tell_own_ranges(&mut self, now: Now) {
        let plain = |net: &IpNet| {
            let mut entries = self.config.peers.iter();
            entries.any(|entry| entry.plain && entry.allowed_ips.contains(net))
        };
        let routes = self.config.routes.iter().map(IpNet::trunc);
        let routes = routes.filter(|net| !plain(net));
        let own = self
            .config
            .addresses
            .iter()
            .map(|net| host_prefix(net.addr()))
            .chain(routes)
            .chain(self.own_pod_cidrs().iter().map(IpNet::trunc))
            .collect();
        self.directory.set_own_ranges(own, now);
    }

    /// Asks for the addresses of STUN servers that are given by name.
    pub(crate) fn resolve_stun(&mut self) {
        for server in self.config.stun.clone() {
            match server.parse::<SocketAddr>() {
                Ok(address) => {
                    self.stun.insert(server, vec![address]);
                }
                Err(_) => self.events.push_back(Event::Resolve { name: server }),
            }
        }
    }

    pub(crate) fn tell_stun(&mut self, now: Now) {
        let servers: Vec<SocketAddr> = self.stun.values().flatten().copied().collect();
        self.traversal.set_stun_servers(servers, now);
    }

    pub(crate) fn tell_turn(&mut self, now: Now) {
        let servers = self.config.turn.clone();
        self.traversal
            .set_turn_servers(servers, &self.config.name, now);
    }

    /// A name was looked up. Of STUN servers, answers in private ranges are refused: a name must not turn probes
    /// inwards. A TURN server may be anywhere: it is spoken to with a secret that both share.
    pub(crate) fn take_resolved(&mut self, name: String, addresses: Vec<SocketAddr>, now: Now) {
        self.traversal.handle_turn_resolved(&name, &addresses, now);
        if !self.config.stun.contains(&name) {
            return;
        }
        let usable: Vec<SocketAddr> = addresses
            .into_iter()
            .filter(|address| is_global(&address.ip()))
            .take(4)
            .collect();
        if usable.is_empty() {
            self.resolve_at.get_or_insert(now.mono + RESOLVE_AGAIN);
        }
        self.stun.insert(name, usable);
        self.tell_stun(now);
    }

    /// A gateway behind another translator gives an address that strangers do not reach.
    pub(crate) fn take_port_mapping(&mut self, mapping: PortMapping, now: Now) {
        let mapping = match mapping {
            PortMapping::Mapped { by, external } if !is_global(&external.ip()) => {
                PortMapping::Unmapped {
                    reason: format!(
                        "the gateway gave {external} ({}), which is not public: another NAT lies before it",
                        by.kind()
                    ),
                }
            }
            PortMapping::Mapped { .. }
            | PortMapping::Unmapped { .. }
            | PortMapping::Asking
            | PortMapping::Off => mapping,
        };
        let mapped = match &mapping {
            PortMapping::Mapped { external, .. } => Some(*external),
            PortMapping::Unmapped { .. } | PortMapping::Asking | PortMapping::Off => None,
        };
        self.port_mapping = Some(mapping);
        self.traversal.set_mapped(mapped, now);
    }

    pub(crate) fn resolve_due(&mut self, now: Now) {
        if self.resolve_at.is_some_and(|at| at <= now.mono) {
            self.resolve_at = None;
            let empty = self.stun.iter().filter(|(_, found)| found.is_empty());
            let names: Vec<String> = empty.map(|(name, _)| name.clone()).collect();
            for name in names {
                self.events.push_back(Event::Resolve { name });
            }
        }
    }
}

fn is_up(state: PeerState) -> bool {
    match state {
        PeerState::Direct | PeerState::Relayed | PeerState::Idle => true,
        PeerState::Connecting | PeerState::Down => false,
    }
}
