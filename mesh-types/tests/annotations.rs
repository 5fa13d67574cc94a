//! Announcements as annotations: what is written is read back, and what was altered is not believed.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use mesh_types::annotations::{
    AnnotationError, KEYS, RECORD_MAX, decode, encode, fingerprint, fit,
};
use mesh_types::cluster::Node;
use mesh_types::record::Features;
use mesh_types::{
    Allocation, Announcement, Candidate, CandidateKind, DomainId, Filtering, IdentitySecret, Idx,
    Mapping, NatReport, Signed, WgKey,
};
use proptest::prelude::*;

const DOMAIN: DomainId = DomainId([7; 16]);

#[test]
fn a_record_reads_as_people_expect() {
    let annotations = encode(&signed(announcement()));
    let shown = |key: &str| {
        annotations
            .get(format!("farspan.io/{key}").as_str())
            .map(String::as_str)
    };
    assert_eq!(
        shown("endpoints"),
        Some("203.0.113.7:22514/srflx,192.168.1.5:22514/host,[2001:db8::5]:22514/host")
    );
    assert_eq!(shown("nat"), Some("map=apdm,filter=apdf,alloc=+1"));
    assert_eq!(shown("relay"), Some("0404040404040404"));
    assert_eq!(shown("features"), Some("no-ipv6,kernel,bit-9"));
    assert_eq!(shown("protocol"), Some("1-2"));
    assert_eq!(shown("seq"), Some("1800000000000"));
    assert_eq!(shown("next-public-key"), None);
    assert_eq!(shown("identity").map(str::len), Some(44));
    assert_eq!(shown("proof").map(str::len), Some(88));
}

#[test]
fn a_record_on_its_node_is_read_back_and_elsewhere_is_not_believed() {
    let record = signed(announcement());
    let node = node(&record);
    assert_eq!(decode(DOMAIN, &node), Ok(Some(record)));
    for elsewhere in [
        Node {
            name: "b".into(),
            ..node.clone()
        },
        Node {
            uid: "uid-of-b".into(),
            ..node.clone()
        },
    ] {
        assert_eq!(decode(DOMAIN, &elsewhere), Err(AnnotationError::Proof));
    }
    let other_cluster = decode(DomainId([8; 16]), &node);
    assert_eq!(other_cluster, Err(AnnotationError::Proof));
}

#[test]
fn a_node_without_our_keys_has_no_record() {
    let mut node = node(&signed(announcement()));
    node.annotations = BTreeMap::from([("config.farspan.io/region".into(), "eu".into())]);
    assert_eq!(decode(DOMAIN, &node), Ok(None));
    assert_eq!(fingerprint(&node), None);
}

#[test]
fn each_value_that_cannot_be_read_is_named_in_a_sentence() {
    let table = [
        (
            "identity",
            "AAAA",
            "annotation farspan.io/identity is \"AAAA\", which is not a key of 32 bytes in base64",
        ),
        (
            "public-key",
            "",
            "annotation farspan.io/public-key is \"\", which is not a key of 32 bytes in base64",
        ),
        (
            "public-key",
            "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
            "annotation farspan.io/public-key is \"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\", which is not a key of 32 bytes in base64",
        ),
        (
            "next-public-key",
            "?",
            "annotation farspan.io/next-public-key is \"?\", which is not a key of 32 bytes in base64",
        ),
        (
            "endpoints",
            "192.0.2.1/host",
            "annotation farspan.io/endpoints is \"192.0.2.1/host\", which is not a list of ADDRESS:PORT/KIND with kinds of this version",
        ),
        (
            "endpoints",
            "192.0.2.1:1/pigeon",
            "annotation farspan.io/endpoints is \"192.0.2.1:1/pigeon\", which is not a list of ADDRESS:PORT/KIND with kinds of this version",
        ),
        (
            "nat",
            "map=\u{1b}[2J",
            "annotation farspan.io/nat is \"map=\\u{1b}[2J\", which is not a NAT class in words of this version",
        ),
        (
            "nat",
            "alloc=9-1",
            "annotation farspan.io/nat is \"alloc=9-1\", which is not a NAT class in words of this version",
        ),
        (
            "nat",
            "alloc=+40000",
            "annotation farspan.io/nat is \"alloc=+40000\", which is not a NAT class in words of this version",
        ),
        (
            "relay",
            "12",
            "annotation farspan.io/relay is \"12\", which is not a list of ids of 16 hexadecimal digits",
        ),
        (
            "features",
            "bit-32",
            "annotation farspan.io/features is \"bit-32\", which is not a list of features in words of this version",
        ),
        (
            "protocol",
            "2-1",
            "annotation farspan.io/protocol is \"2-1\", which is not a range of versions",
        ),
        (
            "seq",
            "-1",
            "annotation farspan.io/seq is \"-1\", which is not a number",
        ),
        (
            "proof",
            "c2hvcnQ=",
            "annotation farspan.io/proof is \"c2hvcnQ=\", which is not a signature of 64 bytes in base64",
        ),
    ];
    for (key, value, sentence) in table {
        let mut node = node(&signed(announcement()));
        node.annotations
            .insert(format!("farspan.io/{key}"), value.into());
        let error = decode(DOMAIN, &node).unwrap_err();
        assert_eq!(error.to_string(), sentence);
    }
}

#[test]
fn a_record_lacks_nothing_that_every_record_has() {
    for key in ["identity", "public-key", "protocol", "seq", "proof"] {
        let mut node = node(&signed(announcement()));
        node.annotations.remove(&format!("farspan.io/{key}"));
        let error = decode(DOMAIN, &node).unwrap_err().to_string();
        assert_eq!(error, format!("annotation farspan.io/{key} is missing"));
    }
}

#[test]
fn a_value_that_is_altered_or_taken_away_voids_the_proof() {
    let good = node(&signed(announcement()));
    for key in KEYS {
        let Some(value) = good.annotations.get(key) else {
            continue;
        };
        let mut taken = good.clone();
        taken.annotations.remove(key);
        assert!(decode(DOMAIN, &taken).is_err(), "{key}");
        assert_ne!(fingerprint(&taken), fingerprint(&good), "{key}");
        let mut altered = good.clone();
        let swapped: String = value.chars().rev().collect();
        altered.annotations.insert(key.into(), swapped);
        assert!(decode(DOMAIN, &altered).is_err(), "{key}");
        assert_ne!(fingerprint(&altered), fingerprint(&good), "{key}");
    }
}

#[test]
fn a_later_protocol_range_is_read() {
    let mut record = announcement();
    (record.protocol_min, record.protocol_max) = (9, 255);
    let record = signed(record);
    let read = decode(DOMAIN, &node(&record)).unwrap().unwrap();
    assert_eq!(read.record().protocol_min, 9);
    assert_eq!(read.record().protocol_max, 255);
}

#[test]
fn values_that_are_too_long_are_not_read_at_all() {
    let mut node = node(&signed(announcement()));
    let long = "[2001:db8::5]:22514/host,".repeat(10_000);
    node.annotations.insert("farspan.io/endpoints".into(), long);
    let error = decode(DOMAIN, &node).unwrap_err();
    assert!(matches!(error, AnnotationError::TooLarge(size) if size > 250_000));
}

#[test]
fn of_too_many_endpoints_the_worst_kinds_go_first() {
    let mut record = announcement();
    let address =
        |n: u16| -> SocketAddr { format!("[2001:db8:1:2:3:4:5:{n:x}]:22514").parse().unwrap() };
    let kinds = [
        CandidateKind::Tcp,
        CandidateKind::Host,
        CandidateKind::Mapped,
    ];
    record.endpoints = (0..30)
        .map(|n| Candidate {
            kind: kinds[usize::from(n % 3)],
            address: address(n),
        })
        .collect();
    let fitted = fit(record);
    let kinds: Vec<_> = fitted.endpoints.iter().map(|c| c.kind).collect();
    assert!(kinds.len() >= 8, "{} endpoints", kinds.len());
    assert!(!kinds.contains(&CandidateKind::Tcp));
    let mapped = fitted
        .endpoints
        .iter()
        .filter(|c| c.kind == CandidateKind::Mapped);
    assert_eq!(mapped.count().min(8), 8, "the best kind stays");
}

proptest! {
    #[test]
    fn what_was_fitted_is_read_back_and_is_short(record in any_announcement()) {
        let record = signed(fit(record));
        let node = node(&record);
        let size: usize = node.annotations.iter().map(|(k, v)| k.len() + v.len()).sum();
        prop_assert!(size <= RECORD_MAX, "{size} bytes");
        prop_assert!(record.encoded_len() <= mesh_types::consts::MESSAGE_MAX - 40);
        prop_assert_eq!(decode(DOMAIN, &node), Ok(Some(record)));
    }

    #[test]
    fn no_annotations_panic(values in prop::collection::vec((0..KEYS.len(), ".{0,60}"), 0..12)) {
        let mut node = node(&signed(announcement()));
        for (key, value) in values {
            node.annotations.insert(KEYS[key].into(), value);
        }
        let _ = decode(DOMAIN, &node);
    }
}

fn secret() -> IdentitySecret {
    IdentitySecret::from_bytes(&[3; 32])
}

fn signed(record: Announcement) -> Signed<Announcement> {
    Signed::sign(record, &secret())
}

fn node(record: &Signed<Announcement>) -> Node {
    let annotations = encode(record);
    assert!(annotations.keys().all(|key| KEYS.contains(key)));
    Node {
        name: record.record().name.clone().expect("set below"),
        uid: record.record().node_uid.clone().expect("set below"),
        created: 1_800_000_000,
        pod_cidrs: Vec::new(),
        internal_ips: Vec::new(),
        region: None,
        annotations: annotations
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect(),
    }
}

fn announcement() -> Announcement {
    let candidate = |kind, address: &str| Candidate {
        kind,
        address: address.parse().expect("address"),
    };
    Announcement {
        domain: DOMAIN,
        identity: secret().identity(),
        key: WgKey([5; 32]),
        next_key: None,
        endpoints: vec![
            candidate(CandidateKind::ServerReflexive, "203.0.113.7:22514"),
            candidate(CandidateKind::Host, "192.168.1.5:22514"),
            candidate(CandidateKind::Host, "[2001:db8::5]:22514"),
        ],
        nat: NatReport {
            mapping: Mapping::AddressAndPortDependent,
            filtering: Filtering::AddressAndPortDependent,
            allocation: Allocation::Sequential(1),
            udp_blocked: false,
        },
        relays: vec![Idx([4; 8])],
        region: None,
        features: Features::KERNEL
            .with(Features::NO_IPV6)
            .with(Features(1 << 9)),
        protocol_min: 1,
        protocol_max: 2,
        seq: 1_800_000_000_000,
        name: Some("a".into()),
        node_uid: Some("6f5c7a1e-0000-4000-8000-000000000001".into()),
    }
}

fn any_announcement() -> impl Strategy<Value = Announcement> {
    let keys = (any::<[u8; 32]>(), any::<Option<[u8; 32]>>());
    let versions = (any::<u8>(), any::<u8>(), any::<u64>());
    let ids = ("[a-z0-9.-]{1,253}", "[0-9a-f-]{36}");
    let lists = (
        prop::collection::vec(any_candidate(), 0..40),
        prop::collection::vec(any::<[u8; 8]>().prop_map(Idx), 0..12),
    );
    (keys, versions, ids, lists, any_nat(), any::<u32>()).prop_map(
        |((key, next), (a, b, seq), (name, uid), (endpoints, relays), nat, features)| {
            let real = |mut key: [u8; 32]| {
                key[0] |= 1;
                WgKey(key)
            };
            Announcement {
                key: real(key),
                next_key: next.map(real),
                endpoints,
                nat,
                relays,
                region: Some("dropped".into()),
                features: Features(features),
                protocol_min: a.min(b),
                protocol_max: a.max(b),
                seq,
                name: Some(name),
                node_uid: Some(uid),
                ..announcement()
            }
        },
    )
}

fn any_candidate() -> impl Strategy<Value = Candidate> {
    let kinds = [
        CandidateKind::Mapped,
        CandidateKind::Host,
        CandidateKind::ServerReflexive,
        CandidateKind::PeerReflexive,
        CandidateKind::Relayed,
        CandidateKind::Tcp,
    ];
    (
        prop::sample::select(kinds.to_vec()),
        any::<IpAddr>(),
        any::<u16>(),
    )
        .prop_map(|(kind, ip, port)| Candidate {
            kind,
            address: SocketAddr::new(ip, port),
        })
}

fn any_nat() -> impl Strategy<Value = NatReport> {
    let allocation = prop_oneof![
        Just(Allocation::Unknown),
        Just(Allocation::Preserving),
        Just(Allocation::Random),
        any::<i16>().prop_map(Allocation::Sequential),
        any::<(u16, u16)>().prop_map(|(low, high)| Allocation::Block(low, high)),
    ];
    let mapping = prop::sample::select(vec![
        Mapping::Unknown,
        Mapping::EndpointIndependent,
        Mapping::AddressDependent,
        Mapping::AddressAndPortDependent,
    ]);
    let filtering = prop::sample::select(vec![
        Filtering::Unknown,
        Filtering::EndpointIndependent,
        Filtering::AddressDependent,
        Filtering::AddressAndPortDependent,
    ]);
    (mapping, filtering, allocation, any::<bool>()).prop_map(
        |(mapping, filtering, allocation, udp_blocked)| NatReport {
            mapping,
            filtering,
            allocation,
            udp_blocked,
        },
    )
}
