//! The core's typed view as the JSON that scripts rely on, and as metrics.

use mesh_types::{Candidate, NatReport};
use overlay::{
    ClusterSnapshot, Diagnosis, Finding, NetcheckSnapshot, NodeSnapshot, PeerSnapshot,
    PetitionSnapshot, Snapshot,
};

use crate::api;

/// `GET /status`; `own` are findings of the shell itself.
pub fn status(snapshot: &Snapshot, own: &[Finding]) -> api::Status {
    api::Status {
        node: node(&snapshot.node),
        peers: snapshot.peers.iter().map(peer).collect(),
        findings: snapshot.findings.iter().chain(own).map(finding).collect(),
        cluster: snapshot.cluster.as_ref().map(cluster),
    }
}

fn cluster(cluster: &ClusterSnapshot) -> api::Cluster {
    api::Cluster {
        domain: cluster.domain.map(|id| id.to_string()).unwrap_or_default(),
        node: cluster.node.clone(),
        pod_network: cluster.pod_network.kind().to_owned(),
        nodes: cluster.nodes,
        refused: cluster
            .refused
            .iter()
            .map(|(reason, count)| ((*reason).to_owned(), *count))
            .collect(),
        published_seq: cluster.published_seq,
        pending_write: cluster.pending_write,
    }
}

/// `GET /netcheck`.
pub fn netcheck(snapshot: &NetcheckSnapshot) -> api::Netcheck {
    api::Netcheck {
        nat: nat(snapshot.nat),
        endpoints: snapshot.endpoints.iter().map(endpoint).collect(),
        stun: snapshot
            .stun
            .iter()
            .map(|(name, addresses)| api::Stun {
                name: name.clone(),
                addresses: addresses.iter().map(ToString::to_string).collect(),
            })
            .collect(),
        relays: snapshot
            .relays
            .iter()
            .map(|(name, rtt)| api::Relay {
                name: name.clone(),
                rtt_ms: Some(milliseconds(*rtt)),
            })
            .chain(snapshot.turn.iter().map(|(name, rtt)| api::Relay {
                name: name.clone(),
                rtt_ms: rtt.map(milliseconds),
            }))
            .collect(),
        port_mapping: snapshot
            .port_mapping
            .as_ref()
            .map_or_else(|| "asking".to_owned(), ToString::to_string),
        ipv6: snapshot.ipv6,
        mtu: snapshot.mtu,
        hairpin: snapshot.hairpin.kind().to_owned(),
        mapping_lifetime: api::MappingLifetime {
            at_least_s: snapshot.lifetime.at_least.map(seconds),
            below_s: snapshot.lifetime.below.map(seconds),
        },
        keepalive_s: seconds(snapshot.keepalive),
        reasons: snapshot
            .reasons
            .iter()
            .map(|(field, why)| ((*field).to_owned(), why.clone()))
            .collect(),
        reach: api::Reach {
            direct: words(&snapshot.reach.direct),
            relay: words(&snapshot.reach.relay),
        },
        findings: snapshot.findings.iter().map(finding).collect(),
    }
}

/// `POST /doctor`.
pub fn diagnosis(diagnosis: &Diagnosis) -> api::Diagnosis {
    let Diagnosis {
        peer: view,
        tried,
        findings,
    } = diagnosis;
    api::Diagnosis {
        peer: peer(view),
        tried: tried
            .iter()
            .map(|tried| api::Tried {
                address: tried.candidate.address.to_string(),
                kind: tried.candidate.kind.kind().to_owned(),
                server: tried.server.map(|server| server.to_string()),
                sent: tried.sent,
                answered: tried.answered,
                rtt_ms: tried.rtt.map(milliseconds),
            })
            .collect(),
        findings: findings.iter().map(finding).collect(),
    }
}

/// One entry of `GET /approve`.
pub fn waiting(waiting: &PetitionSnapshot) -> api::Waiting {
    api::Waiting {
        name: waiting.name.clone(),
        identity: waiting.identity.to_string(),
        by: waiting.by.clone(),
        ranges: waiting.ranges.iter().map(ToString::to_string).collect(),
        may_relay: waiting.may_relay,
        member: waiting.member,
        revoked: waiting.revoked,
        waits_s: waiting.waits.as_secs(),
    }
}

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|word| (*word).to_owned()).collect()
}

fn node(node: &NodeSnapshot) -> api::Node {
    api::Node {
        name: node.name.clone(),
        public_key: node.public_key.to_string(),
        identity: node.identity.to_string(),
        domain: node.domain.to_string(),
        backend: node.backend.kind().to_owned(),
        interface: node.interface.clone(),
        listen_port: node.listen_port,
        region: node.region.clone().unwrap_or_default(),
        addresses: node.addresses.iter().map(ToString::to_string).collect(),
        nat: nat(node.nat),
        endpoints: node.endpoints.iter().map(endpoint).collect(),
    }
}

fn nat(nat: NatReport) -> api::Nat {
    api::Nat {
        mapping: nat.mapping.kind().to_owned(),
        filtering: nat.filtering.kind().to_owned(),
        allocation: nat.allocation.kind().to_owned(),
        udp_blocked: nat.udp_blocked,
    }
}

fn endpoint(candidate: &Candidate) -> api::Endpoint {
    api::Endpoint {
        address: candidate.address.to_string(),
        kind: candidate.kind.kind().to_owned(),
    }
}

fn peer(peer: &PeerSnapshot) -> api::Peer {
    api::Peer {
        name: peer.name.clone(),
        public_key: peer.public_key.to_string(),
        region: peer.region.clone().unwrap_or_default(),
        source: peer.source.kind().to_owned(),
        state: peer.state.kind().to_owned(),
        identity: peer.identity.map(|key| key.to_string()).unwrap_or_default(),
        reason: peer.reason.clone(),
        path: peer.path.as_ref().map(|path| api::Path {
            kind: path.kind.kind().to_owned(),
            remote: path.remote.to_string(),
            via: path.via.clone(),
        }),
        rtt_ms: peer.rtt.map(milliseconds),
        loss: peer.loss,
        mtu: peer.mtu,
        last_handshake_s: peer.last_handshake.map(|age| age.as_secs()),
        rx_bytes: peer.rx_bytes,
        tx_bytes: peer.tx_bytes,
        allowed_ips: peer.allowed_ips.iter().map(ToString::to_string).collect(),
        since_s: peer.since.as_secs(),
        connect_ms: peer
            .connect
            .map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
    }
}

fn finding(finding: &Finding) -> api::Finding {
    api::Finding {
        code: finding.code.to_string(),
        severity: finding.severity.kind().to_owned(),
        message: finding.message.clone(),
        remedy: finding.remedy.clone(),
    }
}

/// Rounded to the tenth.
fn seconds(time: std::time::Duration) -> f64 {
    (time.as_secs_f64() * 10.0).round() / 10.0
}

/// Rounded to the microsecond, so that JSON stays short.
pub fn milliseconds(time: std::time::Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
pub mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use mesh_types::cluster::PodNetwork;
    use mesh_types::report::Backend;
    use mesh_types::{DomainId, IdentityKey, Source, WgKey};
    use overlay::{PathKind, PathSnapshot, PeerState, Severity};

    use super::*;

    pub fn snapshot() -> Snapshot {
        Snapshot {
            node: NodeSnapshot {
                name: "a".into(),
                public_key: WgKey([1; 32]),
                identity: IdentityKey([2; 32]),
                domain: DomainId([3; 16]),
                backend: Backend::Userspace,
                interface: "farspan0".into(),
                listen_port: 22000,
                region: None,
                addresses: vec!["10.77.0.1/32".parse().unwrap()],
                nat: NatReport::default(),
                endpoints: vec![],
            },
            peers: vec![PeerSnapshot {
                name: "b".into(),
                public_key: WgKey([4; 32]),
                region: None,
                source: Source::Config,
                state: PeerState::Direct,
                identity: None,
                reason: "direct".into(),
                path: Some(PathSnapshot {
                    kind: PathKind::Ipv4,
                    remote: "203.0.113.9:22514".parse().unwrap(),
                    via: None,
                }),
                rtt: Some(Duration::from_micros(12_345)),
                loss: Some(0.0),
                mtu: 1420,
                last_handshake: Some(Duration::from_secs(5)),
                rx_bytes: 10,
                tx_bytes: 20,
                allowed_ips: vec!["10.77.0.2/32".parse().unwrap()],
                since: Duration::from_secs(9),
                connect: None,
                plain: false,
            }],
            findings: vec![Finding {
                code: "clock".into(),
                severity: Severity::Warning,
                message: "m".into(),
                remedy: "r".into(),
            }],
            counters: BTreeMap::from([("probe-refused", 3)]),
            cluster: None,
        }
    }

    /// The keys of the documented example, in every object.
    #[test]
    fn the_json_has_exactly_the_documented_keys() {
        let json = serde_json::to_value(status(&snapshot(), &[])).unwrap();
        let keys = |value: &serde_json::Value| {
            let mut keys: Vec<_> = value.as_object().unwrap().keys().cloned().collect();
            keys.sort();
            keys.join(" ")
        };
        assert_eq!(keys(&json), "findings node peers");
        assert_eq!(
            keys(&json["node"]),
            "addresses backend domain endpoints identity interface listen_port name nat public_key region"
        );
        assert_eq!(
            keys(&json["node"]["nat"]),
            "allocation filtering mapping udp_blocked"
        );
        assert_eq!(
            keys(&json["peers"][0]),
            "allowed_ips connect_ms identity last_handshake_s loss mtu name path public_key reason region rtt_ms rx_bytes since_s source state tx_bytes"
        );
        assert_eq!(keys(&json["peers"][0]["path"]), "kind remote via");
        assert_eq!(keys(&json["findings"][0]), "code message remedy severity");
        assert_eq!(json["peers"][0]["rtt_ms"], 12.345);
        let mut snapshot = snapshot();
        snapshot.cluster = Some(ClusterSnapshot {
            domain: Some(DomainId([3; 16])),
            node: "n1".into(),
            pod_network: PodNetwork::Own,
            nodes: 3,
            refused: BTreeMap::from([("outside-policy", 2)]),
            published_seq: Some(7),
            pending_write: false,
        });
        let json = serde_json::to_value(status(&snapshot, &[])).unwrap();
        assert_eq!(keys(&json), "cluster findings node peers");
        assert_eq!(
            keys(&json["cluster"]),
            "domain node nodes pending_write pod_network published_seq refused"
        );
        assert_eq!(json["cluster"]["refused"]["outside-policy"], 2);
    }

    #[test]
    fn netcheck_has_the_documented_keys_and_says_why() {
        let snapshot = NetcheckSnapshot {
            nat: NatReport::default(),
            endpoints: vec![],
            stun: vec![],
            relays: vec![],
            turn: vec![],
            port_mapping: None,
            ipv6: false,
            mtu: 1420,
            hairpin: overlay::Hairpin::No("nothing came back"),
            lifetime: overlay::Lifetime {
                at_least: Some(Duration::from_millis(7_500)),
                below: Some(Duration::from_millis(9_375)),
                why: "",
            },
            keepalive: Duration::from_secs(5),
            reasons: vec![("hairpin", "nothing came back".to_owned())],
            reach: overlay::Reach::default(),
            findings: vec![],
        };
        let json = serde_json::to_value(netcheck(&snapshot)).unwrap();
        let keys: Vec<_> = json.as_object().unwrap().keys().cloned().collect();
        let mut keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        keys.sort_unstable();
        assert_eq!(
            keys.join(" "),
            "endpoints findings hairpin ipv6 keepalive_s mapping_lifetime mtu nat port_mapping reach reasons relays stun"
        );
        assert_eq!(json["hairpin"], "no");
        assert_eq!(json["mapping_lifetime"]["at_least_s"], 7.5);
        assert_eq!(json["mapping_lifetime"]["below_s"], 9.4);
        assert_eq!(json["reasons"]["hairpin"], "nothing came back");
    }
}
