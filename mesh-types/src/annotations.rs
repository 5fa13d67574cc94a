//! The announcement as annotations of the node's own Node object: one key a field, so that people can read it with
//! `kubectl describe node`, and `farspan.io/proof` with the identity's signature over what the reader rebuilds from them.
//!
//! The signed bytes also hold the Node's UID and name, which are not written but read from the object: a record that is
//! copied to another Node, or outlives its own, proves nothing there. What a reader of this version cannot rebuild (a
//! word that only a later one knows) it cannot check either, and refuses; gossip still brings that record, verbatim.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::net::SocketAddr;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use sha2::{Digest as _, Sha256};

use crate::candidate::{Allocation, Candidate, CandidateKind, Filtering, Mapping, NatReport};
use crate::cluster::Node;
use crate::consts::CANDIDATES_MAX;
use crate::key::{DomainId, IdentityKey, Idx, WgKey};
use crate::record::{Announcement, Features, Signed};

/// The keys that the agent may write, and nobody else does.
pub const KEYS: [&str; 10] = [
    IDENTITY, PUBLIC_KEY, NEXT, ENDPOINTS, NAT, RELAY, FEATURES, PROTOCOL, SEQ, PROOF,
];

/// What people set begins with this; the agent never writes such a key.
pub const CONFIG_PREFIX: &str = "config.farspan.io/";

/// Keys and values of a whole record together, bytes at most: Node objects are watched by every kubelet's controller.
pub const RECORD_MAX: usize = 1024;

/// The identity, base64.
pub const IDENTITY: &str = "farspan.io/identity";
/// Seq, a number.
pub const SEQ: &str = "farspan.io/seq";
const PUBLIC_KEY: &str = "farspan.io/public-key";
const NEXT: &str = "farspan.io/next-public-key";
const ENDPOINTS: &str = "farspan.io/endpoints";
const NAT: &str = "farspan.io/nat";
const RELAY: &str = "farspan.io/relay";
const FEATURES: &str = "farspan.io/features";
const PROTOCOL: &str = "farspan.io/protocol";
const PROOF: &str = "farspan.io/proof";

/// Home relays written, at most: as many as a reader takes.
const RELAYS_MAX: usize = 8;
/// Length of a signature in base64.
const PROOF_LEN: usize = 88;
/// Length of the longest seq.
const SEQ_LEN: usize = 20;
/// Bits of [`Features`] that have a word; others are called `bit-N`.
const WORDS: [(Features, &str); 3] = [
    (Features::KERNEL, "kernel"),
    (Features::NO_IPV6, "no-ipv6"),
    (Features::MAY_RELAY, "relay"),
];

/// Why a Node's annotations are no announcement.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnnotationError {
    /// A key that every record has is not there.
    #[error("annotation {0} is missing")]
    Missing(&'static str),
    /// A value cannot be read.
    #[error("annotation {key} is {value}, which is not {expected}")]
    Value {
        /// Its key.
        key: &'static str,
        /// Its beginning, quoted.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
    /// All together are longer than [`RECORD_MAX`].
    #[error("the annotations are {0} bytes long, at most {RECORD_MAX} are read")]
    TooLarge(usize),
    /// The identity did not sign this record for this Node.
    #[error(
        "annotation {PROOF} is not the identity's signature over this record for this Node: it was altered, or copied from another Node"
    )]
    Proof,
}

/// Cuts an announcement to what annotations may hold: endpoints go, worst kinds first, until it is at most
/// [`RECORD_MAX`] bytes long. It loses its region, which is a person's word on a Node. The caller sets `name` and
/// `node_uid` to those of the Node.
pub fn fit(mut record: Announcement) -> Announcement {
    record.region = None;
    record.relays.truncate(RELAYS_MAX);
    record.nat = NatReport::from_bytes(record.nat.to_bytes());
    for candidate in &mut record.endpoints {
        // Neither flow nor scope survives the encoding.
        candidate.address = SocketAddr::new(candidate.address.ip(), candidate.address.port());
    }
    while record.endpoints.len() > CANDIDATES_MAX || size(&fields(&record)) > RECORD_MAX {
        let kinds = record.endpoints.iter().map(|c| c.kind).enumerate();
        let Some((worst, _)) = kinds.max_by_key(|(_, kind)| *kind) else {
            break;
        };
        record.endpoints.remove(worst);
    }
    record
}

/// The annotations of a record that [`fit`] gave, by key.
pub fn encode(signed: &Signed<Announcement>) -> BTreeMap<&'static str, String> {
    let mut out = fields(signed.record());
    out.insert(PROOF, BASE64.encode(signed.signature()));
    out
}

/// Reads the announcement of a Node and checks its proof; `None` where the Node has none of [`KEYS`].
pub fn decode(
    domain: DomainId,
    node: &Node,
) -> Result<Option<Signed<Announcement>>, AnnotationError> {
    let shown = || {
        KEYS.iter()
            .filter_map(|key| Some((*key, value(node, key)?)))
    };
    if shown().next().is_none() {
        return Ok(None);
    }
    let len = shown().map(|(key, value)| key.len() + value.len()).sum();
    if len > RECORD_MAX {
        return Err(AnnotationError::TooLarge(len));
    }
    let (protocol_min, protocol_max) = required(node, PROTOCOL, "a range of versions", range)?;
    let record = Announcement {
        domain,
        identity: required(node, IDENTITY, KEY_EXPECTED, parsed::<IdentityKey>)?,
        key: required(node, PUBLIC_KEY, KEY_EXPECTED, parsed::<WgKey>)?,
        next_key: optional(node, NEXT, KEY_EXPECTED, parsed::<WgKey>)?,
        endpoints: optional(
            node,
            ENDPOINTS,
            "a list of ADDRESS:PORT/KIND with kinds of this version",
            |text| list(text, candidate),
        )?
        .unwrap_or_default(),
        nat: optional(node, NAT, "a NAT class in words of this version", nat)?.unwrap_or_default(),
        relays: optional(
            node,
            RELAY,
            "a list of ids of 16 hexadecimal digits",
            |text| list(text, parsed::<Idx>),
        )?
        .unwrap_or_default(),
        region: None,
        features: optional(
            node,
            FEATURES,
            "a list of features in words of this version",
            features,
        )?
        .unwrap_or_default(),
        protocol_min,
        protocol_max,
        seq: required(node, SEQ, "a number", parsed::<u64>)?,
        name: Some(node.name.clone()),
        node_uid: Some(node.uid.clone()),
    };
    let proof = required(node, PROOF, "a signature of 64 bytes in base64", |text| {
        BASE64.decode(text).ok()?.try_into().ok()
    })?;
    let bytes = minicbor::to_vec(&record).unwrap_or_default();
    let signed = Signed::parse(bytes, proof).map_err(|_| AnnotationError::Proof)?;
    match signed.verify_identity() {
        true => Ok(Some(signed)),
        false => Err(AnnotationError::Proof),
    }
}

/// Names what [`decode`] would read: two Nodes of one name and UID with equal fingerprints decode to the same. `None`
/// where the Node has none of [`KEYS`].
pub fn fingerprint(node: &Node) -> Option<[u8; 32]> {
    let mut hash = Sha256::new();
    let mut any = false;
    for key in KEYS {
        let value = value(node, key);
        any |= value.is_some();
        // Lengths keep values apart; the highest stands for none.
        hash.update(value.map_or(u64::MAX, |v| v.len() as u64).to_be_bytes());
        hash.update(value.unwrap_or_default());
    }
    any.then(|| hash.finalize().into())
}

fn fields(record: &Announcement) -> BTreeMap<&'static str, String> {
    let mut out = BTreeMap::from([
        (IDENTITY, record.identity.to_string()),
        (PUBLIC_KEY, record.key.to_string()),
        (
            PROTOCOL,
            format!("{}-{}", record.protocol_min, record.protocol_max),
        ),
        (SEQ, record.seq.to_string()),
    ]);
    let mut put = |key, value: String| {
        if !value.is_empty() {
            out.insert(key, value);
        }
    };
    put(NEXT, joined(record.next_key));
    put(ENDPOINTS, joined(&record.endpoints));
    put(NAT, nat_text(&record.nat));
    put(RELAY, joined(&record.relays));
    put(FEATURES, features_text(record.features));
    out
}

/// Length with a proof and the longest seq, so that a later seq never makes a record too long.
fn size(fields: &BTreeMap<&'static str, String>) -> usize {
    let values = fields.iter().map(|(key, value)| match *key {
        SEQ => key.len() + SEQ_LEN,
        _ => key.len() + value.len(),
    });
    values.sum::<usize>() + PROOF.len() + PROOF_LEN
}

const KEY_EXPECTED: &str = "a key of 32 bytes in base64";

fn value<'a>(node: &'a Node, key: &str) -> Option<&'a str> {
    node.annotations.get(key).map(String::as_str)
}

fn required<T>(
    node: &Node,
    key: &'static str,
    expected: &'static str,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<T, AnnotationError> {
    optional(node, key, expected, parse)?.ok_or(AnnotationError::Missing(key))
}

fn optional<T>(
    node: &Node,
    key: &'static str,
    expected: &'static str,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<Option<T>, AnnotationError> {
    let Some(text) = value(node, key) else {
        return Ok(None);
    };
    parse(text).map(Some).ok_or_else(|| AnnotationError::Value {
        key,
        value: quoted(text),
        expected,
    })
}

/// The beginning of somebody's text, in quotes and without what a terminal would obey.
pub fn quoted(text: &str) -> String {
    const SHOWN: usize = 48;
    let more = if text.chars().nth(SHOWN).is_some() {
        "..."
    } else {
        ""
    };
    format!("{:?}{more}", text.chars().take(SHOWN).collect::<String>())
}

fn parsed<T: FromStr>(text: &str) -> Option<T> {
    text.parse().ok()
}

fn joined<T: Display>(items: impl IntoIterator<Item = T>) -> String {
    let texts: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    texts.join(",")
}

fn list<T>(text: &str, parse: impl Fn(&str) -> Option<T>) -> Option<Vec<T>> {
    let items = text.split(',').filter(|item| !item.is_empty());
    items.map(parse).collect()
}

fn candidate(text: &str) -> Option<Candidate> {
    let (address, kind) = text.rsplit_once('/')?;
    let address: SocketAddr = address.parse().ok()?;
    Some(Candidate {
        kind: word(kind, &KINDS, CandidateKind::kind)?,
        address: SocketAddr::new(address.ip(), address.port()),
    })
}

const KINDS: [CandidateKind; 6] = [
    CandidateKind::Mapped,
    CandidateKind::Host,
    CandidateKind::ServerReflexive,
    CandidateKind::PeerReflexive,
    CandidateKind::Relayed,
    CandidateKind::Tcp,
];
const MAPPINGS: [Mapping; 3] = [
    Mapping::EndpointIndependent,
    Mapping::AddressDependent,
    Mapping::AddressAndPortDependent,
];
const FILTERINGS: [Filtering; 3] = [
    Filtering::EndpointIndependent,
    Filtering::AddressDependent,
    Filtering::AddressAndPortDependent,
];

/// The value whose word it is.
fn word<T: Copy>(text: &str, all: &[T], kind: impl Fn(T) -> &'static str) -> Option<T> {
    all.iter().copied().find(|value| kind(*value) == text)
}

/// `map=eim,filter=apdf,alloc=+1,udp=blocked`; what is unknown is left out.
fn nat_text(nat: &NatReport) -> String {
    let mut parts = Vec::new();
    if nat.mapping != Mapping::Unknown {
        parts.push(format!("map={}", nat.mapping.kind()));
    }
    if nat.filtering != Filtering::Unknown {
        parts.push(format!("filter={}", nat.filtering.kind()));
    }
    match nat.allocation {
        Allocation::Unknown => {}
        Allocation::Sequential(step) => parts.push(format!("alloc={step:+}")),
        Allocation::Block(low, high) => parts.push(format!("alloc={low}-{high}")),
        Allocation::Preserving | Allocation::Random => {
            parts.push(format!("alloc={}", nat.allocation.kind()));
        }
    }
    if nat.udp_blocked {
        parts.push("udp=blocked".into());
    }
    parts.join(",")
}

fn nat(text: &str) -> Option<NatReport> {
    let mut out = NatReport::default();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        match part.split_once('=')? {
            ("map", text) => out.mapping = word(text, &MAPPINGS, Mapping::kind)?,
            ("filter", text) => out.filtering = word(text, &FILTERINGS, Filtering::kind)?,
            ("alloc", text) => out.allocation = allocation(text)?,
            ("udp", "blocked") => out.udp_blocked = true,
            _ => return None,
        }
    }
    Some(out)
}

fn allocation(text: &str) -> Option<Allocation> {
    let single = word(
        text,
        &[Allocation::Preserving, Allocation::Random],
        Allocation::kind,
    );
    if single.is_some() {
        return single;
    }
    if text.starts_with(['+', '-']) {
        return text.parse().ok().map(Allocation::Sequential);
    }
    let (low, high) = text.split_once('-')?;
    let (low, high) = (low.parse().ok()?, high.parse().ok()?);
    (low <= high).then_some(Allocation::Block(low, high))
}

fn features_text(features: Features) -> String {
    let bits = (0..32).filter(|bit| features.0 >> bit & 1 == 1);
    joined(bits.map(Feature))
}

fn features(text: &str) -> Option<Features> {
    let bits = list(text, |text| {
        let named = WORDS.iter().find(|(_, word)| *word == text);
        let numbered = || {
            let bit: u32 = text.strip_prefix("bit-")?.parse().ok()?;
            1u32.checked_shl(bit).map(Features)
        };
        named.map(|(feature, _)| *feature).or_else(numbered)
    })?;
    Some(bits.into_iter().fold(Features::default(), Features::with))
}

/// One bit of [`Features`].
struct Feature(u32);

impl Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match WORDS.iter().find(|(feature, _)| feature.0 == 1 << self.0) {
            Some((_, word)) => f.write_str(word),
            None => write!(f, "bit-{}", self.0),
        }
    }
}

/// `1-2`: lowest and highest.
fn range(text: &str) -> Option<(u8, u8)> {
    let (min, max) = text.split_once('-')?;
    let (min, max) = (min.parse().ok()?, max.parse().ok()?);
    (min <= max).then_some((min, max))
}
