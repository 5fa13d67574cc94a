//! Signed records, carried, stored and forwarded verbatim: never re-encoded, so a signature survives
//! versions that know more fields.

use std::net::Ipv4Addr;

use ipnet::IpNet;
use minicbor::{Decode, Decoder, Encode, Encoder};

use crate::candidate::{Candidate, NatReport};
use crate::key::{AuthorityKey, DomainId, IdentityKey, IdentitySecret, NodeKey, WgKey};
use crate::wire;

/// Said by an authority: this identity is a node of this domain and may carry these ranges.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Membership {
    /// The domain, which follows from the authority's key.
    #[n(1)]
    pub domain: DomainId,
    /// The node.
    #[n(2)]
    pub identity: IdentityKey,
    /// Its label.
    #[n(3)]
    pub name: String,
    /// Its overlay IPv4 address.
    #[cbor(n(4), with = "wire::ipv4", has_nil)]
    pub ipv4: Option<Ipv4Addr>,
    /// What it may carry beside its overlay addresses.
    #[cbor(n(5), with = "wire::prefixes")]
    pub ranges: Vec<IpNet>,
    /// May it forward ciphertext for others?
    #[n(6)]
    pub may_relay: bool,
    /// Of two memberships of one identity the higher counts; Unix milliseconds at signing.
    #[n(7)]
    pub serial: u64,
    /// Unix seconds after which it is void.
    #[n(8)]
    pub not_after: Option<u64>,
}

/// Said by an authority: this identity is no longer a node. Kept until `not_after`, else for good.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Tombstone {
    /// The domain.
    #[n(1)]
    pub domain: DomainId,
    /// The node that was.
    #[n(2)]
    pub identity: IdentityKey,
    /// Voids memberships up to this serial.
    #[n(3)]
    pub serial: u64,
    /// Unix seconds after which no membership it voids could count anyway.
    #[n(4)]
    pub not_after: Option<u64>,
}

/// Said by the node: this is my WireGuard key, here I may be reached.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Announcement {
    /// The domain.
    #[n(1)]
    pub domain: DomainId,
    /// The node.
    #[n(2)]
    pub identity: IdentityKey,
    /// Its WireGuard key.
    #[n(3)]
    pub key: WgKey,
    /// The key it is about to change to.
    #[n(4)]
    pub next_key: Option<WgKey>,
    /// Where it may be reached.
    #[cbor(n(5), with = "wire::candidates")]
    pub endpoints: Vec<Candidate>,
    /// What lies before it.
    #[cbor(n(6), with = "wire::nat")]
    pub nat: NatReport,
    /// Ids of its home relays (identities' [`IdentityKey::idx`]).
    #[n(7)]
    pub relays: Vec<crate::key::Idx>,
    /// Region label.
    #[n(8)]
    pub region: Option<String>,
    /// Abilities.
    #[n(9)]
    pub features: Features,
    /// Lowest protocol version it speaks.
    #[n(10)]
    pub protocol_min: u8,
    /// Highest protocol version it speaks.
    #[n(11)]
    pub protocol_max: u8,
    /// Of two announcements of one identity the higher counts.
    #[n(12)]
    pub seq: u64,
    /// Label of a node that has no membership to name it (static files); under Kubernetes the Node's name.
    #[n(13)]
    pub name: Option<String>,
    /// UID of its Node object, under Kubernetes.
    #[n(14)]
    pub node_uid: Option<String>,
}

/// Abilities of a node, one bit each; unknown bits are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(transparent)]
pub struct Features(#[n(0)] pub u32);

impl Features {
    /// The host has no IPv6.
    pub const NO_IPV6: Self = Self(1);
    /// WireGuard runs in the kernel.
    pub const KERNEL: Self = Self(2);
    /// Willing to relay.
    pub const MAY_RELAY: Self = Self(4);

    /// Is every bit of `other` set?
    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// With the bits of `other` set.
    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// A kind of record that is signed.
pub trait Record: Encode<()> + for<'b> Decode<'b, ()> {
    /// Separates the signatures of different records.
    const CONTEXT: &'static str;
    /// Whose record it is.
    fn node(&self) -> NodeKey;
    /// Of two records of one node the higher counts.
    fn version(&self) -> u64;
}
impl Record for Membership {
    const CONTEXT: &'static str = "farspan membership v1";
    fn node(&self) -> NodeKey {
        NodeKey {
            domain: self.domain,
            identity: self.identity,
        }
    }
    fn version(&self) -> u64 {
        self.serial
    }
}
impl Record for Tombstone {
    const CONTEXT: &'static str = "farspan tombstone v1";
    fn node(&self) -> NodeKey {
        NodeKey {
            domain: self.domain,
            identity: self.identity,
        }
    }
    fn version(&self) -> u64 {
        self.serial
    }
}
impl Record for Announcement {
    const CONTEXT: &'static str = "farspan announcement v1";
    fn node(&self) -> NodeKey {
        NodeKey {
            domain: self.domain,
            identity: self.identity,
        }
    }
    fn version(&self) -> u64 {
        self.seq
    }
}

/// A record with the bytes that were signed. Decoding parses; only `verify_*` tells whether to believe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed<T> {
    record: T,
    bytes: Vec<u8>,
    signature: [u8; 64],
}

impl<T: Record> Signed<T> {
    /// Encodes and signs.
    pub fn sign(record: T, secret: &IdentitySecret) -> Self {
        let bytes = minicbor::to_vec(&record).unwrap_or_default();
        let signature = secret.sign(&signed_bytes::<T>(&bytes));
        Self {
            record,
            bytes,
            signature,
        }
    }

    /// Parses bytes that came with a signature; trailing bytes are an error.
    pub fn parse(bytes: Vec<u8>, signature: [u8; 64]) -> Result<Self, minicbor::decode::Error> {
        let mut decoder = Decoder::new(&bytes);
        let record = decoder.decode()?;
        if decoder.position() != bytes.len() {
            return Err(minicbor::decode::Error::message("trailing bytes"));
        }
        Ok(Self {
            record,
            bytes,
            signature,
        })
    }

    /// The record, believed or not.
    pub fn record(&self) -> &T {
        &self.record
    }

    /// The signed bytes, verbatim.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The signature.
    pub fn signature(&self) -> &[u8; 64] {
        &self.signature
    }

    /// Encoded size in a message, at most.
    pub fn encoded_len(&self) -> usize {
        self.bytes.len() + 64 + 8
    }

    /// Did this authority say so? The record's domain must be that authority's.
    pub fn verify_authority(&self, authority: &AuthorityKey) -> bool {
        self.record.node().domain == DomainId::standalone(Some(authority))
            && authority.verify(&signed_bytes::<T>(&self.bytes), &self.signature)
    }
}

impl Signed<Announcement> {
    /// Did the node itself say so?
    pub fn verify_identity(&self) -> bool {
        self.record
            .identity
            .verify(&signed_bytes::<Announcement>(&self.bytes), &self.signature)
    }
}

fn signed_bytes<T: Record>(bytes: &[u8]) -> Vec<u8> {
    [T::CONTEXT.as_bytes(), bytes].concat()
}

impl<T, C> Encode<C> for Signed<T> {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.array(2)?.bytes(&self.bytes)?.bytes(&self.signature)?.ok()
    }
}

impl<'b, T: Record, C> Decode<'b, C> for Signed<T> {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        let position = d.position();
        if d.array()? != Some(2) {
            return Err(minicbor::decode::Error::message("not a signed record").at(position));
        }
        let bytes = d.bytes()?.to_vec();
        let signature = wire::fixed::<64>(d)?;
        Self::parse(bytes, signature)
    }
}
