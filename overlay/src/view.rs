//! The view of the node that people see.

use std::net::IpAddr;
use std::time::Duration;

use mesh_types::{Now, PeerId};
use peer_discovery::Peer;

use crate::overlay::Overlay;
use crate::peer::PeerRecord;
use crate::snapshot::{NodeSnapshot, PeerSnapshot, PeerState, Snapshot};

impl Overlay {
    pub(crate) fn view(&self, now: Now) -> Snapshot {
        let mut peers: Vec<PeerSnapshot> = self
            .directory
            .peers()
            .filter_map(|(id, peer)| {
                let record = self.peers.get(id)?;
                Some(self.peer_view(id, peer, record, now))
            })
            .collect();
        peers.sort_by(|a, b| (&a.name, a.public_key).cmp(&(&b.name, b.public_key)));
        let mut counters = self.counters.clone();
        for (name, value) in self.traversal.counters().iter() {
            *counters.entry(name).or_default() += value;
        }
        for (reason, value) in self.directory.refusal_counts() {
            *counters.entry(reason.kind()).or_default() += value;
        }
        Snapshot {
            node: self.node_view(),
            peers,
            findings: self.findings(now),
            counters,
            cluster: self.cluster_view(),
        }
    }

    fn node_view(&self) -> NodeSnapshot {
        let membership = self.directory.own_membership();
        NodeSnapshot {
            name: membership.map_or_else(
                || match &self.config.kubernetes {
                    Some(kubernetes) if !kubernetes.external => kubernetes.node.clone(),
                    Some(_) | None => self.config.name.clone(),
                },
                |member| member.name.clone(),
            ),
            public_key: self.identity.key.public(),
            identity: self.own.identity,
            domain: self.own.domain,
            backend: self.config.backend,
            interface: self.config.interface.clone(),
            listen_port: self.listen_port(),
            region: self.own_region(),
            addresses: self.plan.device.addresses.iter().copied().collect(),
            nat: self.traversal.nat(),
            endpoints: self.traversal.endpoints().to_vec(),
        }
    }

    /// The label of the peer whose own overlay address it is; `None` for strangers and for what lies behind peers.
    pub fn speaker(&self, address: IpAddr) -> Option<&str> {
        let id = self.directory.by_address(address)?;
        let peer = self.directory.peer(id)?;
        self.speaks_from(id, address).then_some(peer.name.as_str())
    }

    pub(crate) fn peer_view(
        &self,
        id: &PeerId,
        peer: &Peer,
        record: &PeerRecord,
        now: Now,
    ) -> PeerSnapshot {
        let path = self.traversal.path(id);
        let report = self.traversal.peer_report(id);
        PeerSnapshot {
            name: peer.name.clone(),
            public_key: record.key,
            region: peer.region.clone(),
            source: peer.source,
            state: record.current_state(peer.plain, self.is_resting(id), now.mono),
            identity: peer.identity,
            reason: self.reason(id, now),
            path: path.map(|path| self.path_view(path)),
            rtt: path.map(|path| path.rtt),
            loss: path
                .and(report.as_ref())
                .map(|report| f64::from(report.loss) / 100.0),
            mtu: self
                .traversal
                .path_mtu(id)
                .unwrap_or(self.config.mtu)
                .min(self.config.mtu),
            last_handshake: record.handshake_age(now.mono),
            rx_bytes: record.stats.rx_bytes,
            tx_bytes: record.stats.tx_bytes,
            allowed_ips: peer.allowed_ips.iter().copied().collect(),
            since: now.mono.saturating_duration_since(record.since),
            connect: report.and_then(|report| report.connect),
            plain: peer.plain,
        }
    }

    /// One sentence: why the peer is in its state, on its path.
    pub(crate) fn reason(&self, id: &PeerId, now: Now) -> String {
        let Some((peer, record)) = self.directory.peer(id).zip(self.peers.get(id)) else {
            return "it is no longer a peer".to_owned();
        };
        let state = record.current_state(peer.plain, self.is_resting(id), now.mono);
        if peer.plain {
            return match record.handshake_age(now.mono) {
                Some(age) => format!(
                    "a plain WireGuard device, last handshake {} s ago",
                    age.as_secs()
                ),
                None => "a plain WireGuard device that has not called yet".to_owned(),
            };
        }
        if !self.compatible(id) {
            return "it speaks no protocol version that this node knows".to_owned();
        }
        let report = self.traversal.peer_report(id);
        let error = report.as_ref().and_then(|report| report.error.clone());
        let remote = self.traversal.path(id).map(|path| {
            let kind = match path.kind {
                nat_traversal::PathKind::Lan => "inside the local network",
                nat_traversal::PathKind::Ipv6 => "by IPv6",
                nat_traversal::PathKind::Ipv4 => "by IPv4",
                nat_traversal::PathKind::Tcp => "over TCP",
                nat_traversal::PathKind::NodeRelay => {
                    let relay = path.via.map(|relay| self.peer_name(&relay));
                    let relay = relay.unwrap_or_else(|| "a member".to_owned());
                    return format!("through {relay}, {} ms", path.rtt.as_millis());
                }
                nat_traversal::PathKind::TurnUdp | nat_traversal::PathKind::TurnTcp => {
                    let rtt = path.rtt.as_millis();
                    return match &path.turn {
                        Some(turn) => format!(
                            "by the TURN server {} over {}, {rtt} ms",
                            turn.server.authority(),
                            turn.server.transport.kind()
                        ),
                        None => format!("by the peer's TURN server at {}, {rtt} ms", path.remote),
                    };
                }
            };
            format!("{kind} at {}", self.traversal.real_address(path.remote))
        });
        let suspect = report.as_ref().is_some_and(|report| report.suspect);
        match (state, remote) {
            (PeerState::Direct, Some(way)) if suspect => {
                format!("direct {way}, which stopped answering a moment ago")
            }
            (PeerState::Direct, Some(way)) => format!("direct {way}, both ways proven by probes"),
            (PeerState::Idle, Some(way)) => {
                format!("not used for a while; the next packet for it wakes it up, last {way}")
            }
            (PeerState::Connecting, Some(way)) => {
                format!("a path {way} is proven, WireGuard's handshake is awaited")
            }
            (PeerState::Relayed, Some(way)) if suspect => {
                format!("relayed {way}, which stopped answering a moment ago")
            }
            (PeerState::Relayed, Some(way)) => {
                format!("relayed {way}: no direct address of it has answered")
            }
            (
                PeerState::Relayed
                | PeerState::Direct
                | PeerState::Idle
                | PeerState::Connecting
                | PeerState::Down,
                _,
            ) => no_path(error, report.as_ref(), peer, record, now),
        }
    }
}

fn no_path(
    error: Option<String>,
    report: Option<&nat_traversal::PeerReport>,
    peer: &Peer,
    record: &PeerRecord,
    now: Now,
) -> String {
    if let Some(error) = error {
        return error;
    }
    let waited = now.mono.saturating_duration_since(record.since);
    let sent = report.map_or(0, |report| report.probes_sent);
    if peer.endpoints.is_empty() && record.last_endpoint.is_none() {
        return "no address of it is known yet; a member that both reach can introduce it"
            .to_owned();
    }
    let seconds = waited.max(Duration::from_secs(1)).as_secs();
    match sent {
        0 => "its addresses are about to be tried".to_owned(),
        _ => format!("{sent} probes in {seconds} s to its known addresses were not answered"),
    }
}
