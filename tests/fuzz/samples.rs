//! Valid input of every kind, to be changed.

use std::net::SocketAddr;

use mesh_types::annotations;
use mesh_types::cluster::{Allowed, Node, Policy, PolicyFilter, Saved};
use mesh_types::message::{
    Ack, CallMe, CallMeAck, Delta, Digest, DigestEntry, Echo, Forward, Hello, Join, JoinRefused,
    JoinRelay, Joined, PathReady, Petition, RelayBind, RelayDistance, RelayOffer,
};
use mesh_types::record::Features;
use mesh_types::state::{LastEndpoint, Pin, Ticket};
use mesh_types::token::{Introducer, TicketId, Token};
use mesh_types::{
    Announcement, Candidate, CandidateKind, ConfigPeer, DomainId, IdentitySecret, Idx, IpNet,
    Membership, Message, NatReport, NodeKey, PresharedKey, Signed, State, Tombstone, WgKey,
    WgSecret,
};

pub(crate) fn authority() -> IdentitySecret {
    IdentitySecret::from_bytes(&[200; 32])
}

pub(crate) fn identity(number: u8) -> IdentitySecret {
    IdentitySecret::from_bytes(&[number; 32])
}

pub(crate) fn node(number: u8) -> NodeKey {
    NodeKey {
        domain: DomainId::standalone(Some(&authority().authority())),
        identity: identity(number).identity(),
    }
}

pub(crate) fn wg_secret(number: u8) -> WgSecret {
    WgSecret::from_bytes([number; 32])
}

pub(crate) fn wg(number: u8) -> WgKey {
    wg_secret(number).public()
}

pub(crate) fn net(text: &str) -> IpNet {
    text.parse().expect("prefix")
}

pub(crate) fn endpoint(number: u8) -> SocketAddr {
    ([198, 51, 100, number], 22_000).into()
}

pub(crate) fn membership(number: u8, serial: u64) -> Membership {
    Membership {
        domain: node(number).domain,
        identity: node(number).identity,
        name: format!("node-{number}"),
        ipv4: Some([10, 77, 0, number].into()),
        ranges: vec![net(&format!("192.168.{number}.0/24")), net("fd12::/64")],
        may_relay: true,
        serial,
        not_after: Some(1_900_000_000),
    }
}

pub(crate) fn tombstone(number: u8, serial: u64) -> Tombstone {
    Tombstone {
        domain: node(number).domain,
        identity: node(number).identity,
        serial,
        not_after: None,
    }
}

pub(crate) fn announcement(number: u8, seq: u64) -> Announcement {
    Announcement {
        domain: node(number).domain,
        identity: node(number).identity,
        key: wg(number),
        next_key: Some(wg(number.wrapping_add(100))),
        endpoints: candidates(number),
        nat: NatReport::default(),
        relays: vec![Idx([4; 8])],
        region: Some("eu".into()),
        features: Features::KERNEL,
        protocol_min: 1,
        protocol_max: 2,
        seq,
        name: Some("label".into()),
        node_uid: None,
    }
}

fn candidates(number: u8) -> Vec<Candidate> {
    let v6 = SocketAddr::new([0x2001, 0xdb8, 0, 0, 0, 0, 0, 7].into(), 22_000);
    [
        (CandidateKind::Host, endpoint(number)),
        (CandidateKind::ServerReflexive, v6),
    ]
    .map(|(kind, address)| Candidate { kind, address })
    .to_vec()
}

/// One message of each kind.
pub(crate) fn messages() -> Vec<Message> {
    let delta = Delta {
        memberships: vec![Signed::sign(membership(2, 7), &authority())],
        announcements: vec![Signed::sign(announcement(2, 8), &identity(2))],
        tombstones: vec![Signed::sign(tombstone(3, 9), &authority())],
        want: vec![Idx([1; 8]), Idx([2; 8])],
        seq: 1_000_000,
    };
    let digest = Digest {
        from: Idx([0; 8]),
        to: Idx([0xff; 8]),
        entries: [2, 3]
            .map(|n| DigestEntry {
                node: node(n).identity.idx(),
                membership: 7,
                announcement: 1_800_000_000_000,
                tombstone: 0,
            })
            .to_vec(),
        seq: 0,
    };
    let call = CallMe {
        seq: 3,
        candidates: candidates(2),
        nat: NatReport::default(),
        predicted: vec![40_000, 40_001],
        start_ms: 20,
        relays: vec![RelayDistance {
            relay: node(3).identity.idx(),
            ms: 30,
        }],
        relay: Some(node(3).identity.idx()),
    };
    vec![
        Hello { min: 1, max: 1 }.into(),
        CallMeAck {
            seq: 3,
            candidates: call.candidates.clone(),
            nat: call.nat,
            predicted: call.predicted.clone(),
            relays: call.relays.clone(),
        }
        .into(),
        call.into(),
        PathReady { seq: 5 }.into(),
        Ack { seq: 5 }.into(),
        digest.into(),
        Join {
            name: "new".into(),
            announcement: delta.announcements[0].clone(),
            ranges: vec![net("10.5.0.0/16")],
            may_relay: false,
        }
        .into(),
        Joined {
            membership: delta.memberships[0].clone(),
            range: vec![net("10.77.0.0/16")],
            memberships: delta.memberships.clone(),
            announcements: delta.announcements.clone(),
        }
        .into(),
        delta.into(),
        Forward {
            to: wg(1).idx(),
            from: wg(2).idx(),
            ttl: 2,
            epoch: 9,
            sequence: 10,
            sealed: vec![7; 80],
            seen: Some([203, 0, 113, 9].into()),
        }
        .into(),
        RelayBind {
            peer: wg(2).idx(),
            nonce: Some(vec![1; 16]),
        }
        .into(),
        RelayOffer {
            peer: wg(2).idx(),
            port: 4000,
            nonce: None,
        }
        .into(),
        JoinRelay {
            remote: endpoint(9),
            datagram: vec![0; 120],
        }
        .into(),
        JoinRefused {
            reason: "the ticket was used".into(),
            pending: true,
        }
        .into(),
        petition().into(),
        Echo {
            token: 77,
            reply: false,
        }
        .into(),
    ]
}

fn petition() -> Petition {
    Petition {
        join: Join {
            name: "new".into(),
            announcement: Signed::sign(announcement(2, 8), &identity(2)),
            ranges: vec![net("10.5.0.0/16")],
            may_relay: true,
        },
        expiry: 1_800_000_000,
    }
}

pub(crate) fn token() -> Token {
    Token {
        domain: node(1).domain,
        authority: authority().authority(),
        introducers: vec![Introducer {
            identity: node(1).identity,
            key: wg(1),
            endpoints: vec![endpoint(1)],
        }],
        ticket: TicketId::new(node(1).identity.idx(), [4; 8]),
        secret: [6; 16],
        expiry: 1_800_000_000,
        ipv4: Some([10, 77, 0, 2].into()),
    }
}

/// The Node of machine `number`, with its record.
pub(crate) fn cluster_node(number: u8) -> Node {
    let announced = Announcement {
        name: Some(format!("n{number}")),
        node_uid: Some(format!("uid-{number}")),
        ..announcement(number, 5)
    };
    let written = annotations::encode(&Signed::sign(
        annotations::fit(announced),
        &identity(number),
    ));
    let person = ["region", "force-endpoint", "extra-cidrs", "relay"]
        .into_iter()
        .zip(["eu", "203.0.113.9:4500", "172.16.0.0/24", "true"])
        .map(|(key, value)| (format!("{}{key}", annotations::CONFIG_PREFIX), value.into()));
    Node {
        name: format!("n{number}"),
        uid: format!("uid-{number}"),
        created: 1_800_000_000 + u64::from(number),
        pod_cidrs: vec![net(&format!("10.244.{number}.0/24"))],
        internal_ips: vec![[192, 0, 2, number].into()],
        region: Some("eu".into()),
        annotations: written
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .chain(person)
            .collect(),
    }
}

fn saved() -> Saved {
    let allowed = Allowed {
        destination: net("10.0.0.0/8"),
        ports: Some((80, 443)),
    };
    Saved {
        domain: node(1).domain,
        nodes: vec![cluster_node(2), cluster_node(3)],
        policy: Some(Policy {
            node_cidrs: vec![net("192.0.2.0/24")],
            pod_cidrs: vec![net("10.244.0.0/16")],
            extra_cidrs: [("n2".to_owned(), vec![net("172.16.0.0/16")])].into(),
            relays: Some(["n2".to_owned()].into()),
            filters: vec![PolicyFilter {
                regions: ["eu".to_owned()].into(),
                peers: ["n3".to_owned()].into(),
                to: vec![allowed],
            }],
        }),
        protected: [net("10.96.0.0/12")].into(),
        externals: vec![ConfigPeer {
            name: Some("laptop".into()),
            key: wg(50),
            endpoints: vec![endpoint(50)],
            allowed_ips: vec![net("10.9.0.50/32")],
            plain: true,
            preshared_key: PresharedKey::from_base64(&wg(51).to_string()).ok(),
            persistent_keepalive: Some(std::time::Duration::from_secs(25)),
        }],
    }
}

pub(crate) fn state() -> State {
    State {
        seq: 9,
        epoch: 4,
        listen_port: Some(22_000),
        memberships: vec![Signed::sign(membership(2, 7), &authority())],
        announcements: vec![Signed::sign(announcement(2, 8), &identity(2))],
        tombstones: vec![Signed::sign(tombstone(3, 9), &authority())],
        tickets: vec![Ticket {
            id: token().ticket,
            secret_hash: [3; 32],
            expiry: 1_800_000_000,
            ranges: vec![net("10.5.0.0/16")],
            ipv4: None,
            used_by: Some(node(2).identity),
        }],
        pins: vec![Pin {
            configured: wg(3),
            identity: node(3).identity,
            domain: node(3).domain,
        }],
        endpoints: vec![LastEndpoint {
            key: wg(2),
            address: endpoint(2),
        }],
        range: vec![net("10.77.0.0/16")],
        authority: Some(authority().authority()),
        lifetime: Some(86_400),
        petitions: vec![petition()],
        only_turn: true,
        cluster: Some(saved()),
    }
}
