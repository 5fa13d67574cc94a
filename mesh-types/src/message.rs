//! Control messages between agents.
//!
//! On the wire: CBOR `[type, {fields}]`. Unknown fields are skipped; an unknown type below 0x80 is an
//! error, from 0x80 on it is ignored: room for messages that older nodes need not understand.
//! Inside the tunnel (L2) a message is one datagram to [`crate::consts::CONTROL_PORT`]; between nodes that
//! share a neighbour (L1) it travels sealed in [`Message::Forward`]; before any session, in the DATA
//! attribute of an authenticated Binding message.

use std::net::{Ipv4Addr, SocketAddr};

use minicbor::{Decode, Decoder, Encode, Encoder};

use crate::candidate::{Candidate, NatReport};
use crate::key::Idx;
use crate::record::{Announcement, Membership, Signed, Tombstone};
use crate::wire;

/// Why bytes are not a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Longer than any message.
    #[error("message of {0} bytes, at most {max} are allowed", max = crate::consts::MESSAGE_MAX)]
    TooLong(usize),
    /// Not the CBOR of a message.
    #[error("malformed message")]
    Malformed,
    /// A type this build must know, and does not.
    #[error("unknown message type {0:#04x}")]
    UnknownType(u8),
    /// A type a newer version allows older ones to ignore.
    #[error("message type {0:#04x} is for newer versions")]
    Ignored(u8),
}

macro_rules! messages {
    ($($(#[$doc:meta])* $code:literal $word:literal $name:ident),+ $(,)?) => {
        /// A control message.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum Message { $($(#[$doc])* $name($name)),+ }

        impl Message {
            /// The word in logs and metrics.
            pub fn kind(&self) -> &'static str {
                match self { $(Self::$name(_) => $word),+ }
            }

            /// The bytes to send.
            pub fn encode(&self) -> Vec<u8> {
                let mut out = Vec::with_capacity(256);
                let mut e = Encoder::new(&mut out);
                // Encoding into a Vec cannot fail.
                let _ = match self { $(Self::$name(m) => e.array(2).and_then(|e| e.u8($code)).and_then(|e| e.encode(m)).map(|_| ())),+ };
                out
            }

            fn decode_body(code: u8, d: &mut Decoder<'_>) -> Result<Self, MessageError> {
                match code {
                    $($code => d.decode().map(Self::$name).map_err(|_| MessageError::Malformed),)+
                    0x80.. => Err(MessageError::Ignored(code)),
                    _ => Err(MessageError::UnknownType(code)),
                }
            }
        }
        $(impl From<$name> for Message { fn from(m: $name) -> Self { Self::$name(m) } })+
    };
}
messages! {
    /// First message of a session.
    0x01 "hello" Hello,
    /// Please probe me now, here.
    0x02 "call-me" CallMe,
    /// I am probing; please probe me here.
    0x03 "call-me-ack" CallMeAck,
    /// Let us use this path.
    0x04 "path-ready" PathReady,
    /// Received.
    0x05 "ack" Ack,
    /// What I know, to compare.
    0x06 "digest" Digest,
    /// Records you lack, and those I want.
    0x07 "delta" Delta,
    /// Please pass this on.
    0x08 "forward" Forward,
    /// Bind request to a relay.
    0x09 "relay-bind" RelayBind,
    /// A relay's offer to the other side.
    0x0a "relay-offer" RelayOffer,
    /// May I join?
    0x0b "join" Join,
    /// You may.
    0x0c "joined" Joined,
    /// A joiner's datagram, between introducer and inviter.
    0x0d "join-relay" JoinRelay,
    /// Are you there? (`farspan ping`)
    0x0e "echo" Echo,
    /// You may not.
    0x0f "join-refused" JoinRefused,
    /// Please sign this, if you hold the authority's key.
    0x90 "petition" Petition,
    /// The path in use brings me nothing of yours; do you hear me on it?
    0x98 "doubt" Doubt,
}

impl Message {
    /// Reads one datagram.
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        if bytes.len() > crate::consts::MESSAGE_MAX {
            return Err(MessageError::TooLong(bytes.len()));
        }
        let mut d = Decoder::new(bytes);
        if !matches!(d.array(), Ok(Some(2))) {
            return Err(MessageError::Malformed);
        }
        let code = d.u8().map_err(|_| MessageError::Malformed)?;
        let message = Self::decode_body(code, &mut d)?;
        if d.position() == bytes.len() {
            Ok(message)
        } else {
            Err(MessageError::Malformed)
        }
    }
}

/// Says nothing more than that the sender asks whether the path in use works.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Doubt {}

/// Protocol versions the sender speaks.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Hello {
    /// Lowest.
    #[n(0)]
    pub min: u8,
    /// Highest.
    #[n(1)]
    pub max: u8,
}

/// Fresh candidates and a moment to start probing.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct CallMe {
    /// Rises with every call of the sender, so that copies on two ways count once.
    #[n(0)]
    pub seq: u64,
    /// Where to probe.
    #[cbor(n(1), with = "wire::candidates")]
    pub candidates: Vec<Candidate>,
    /// What lies before the sender.
    #[cbor(n(2), with = "wire::nat")]
    pub nat: NatReport,
    /// Predicted external ports, most likely first.
    #[n(3)]
    pub predicted: Vec<u16>,
    /// Start after so many milliseconds.
    #[n(4)]
    pub start_ms: u32,
    /// Relays that the sender reaches, nearest first.
    #[n(5)]
    #[cbor(default)]
    pub relays: Vec<RelayDistance>,
    /// From the lower idx: the relay to meet at (identity's [`crate::IdentityKey::idx`]).
    #[n(6)]
    pub relay: Option<Idx>,
}

/// A relay, and how far the sender is from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[cbor(array)]
pub struct RelayDistance {
    /// Its identity's [`crate::IdentityKey::idx`].
    #[n(0)]
    pub relay: Idx,
    /// Round trip time, milliseconds.
    #[n(1)]
    pub ms: u16,
}

/// Answer to [`CallMe`].
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct CallMeAck {
    /// Of the call.
    #[n(0)]
    pub seq: u64,
    /// Where to probe the answering side.
    #[cbor(n(1), with = "wire::candidates")]
    pub candidates: Vec<Candidate>,
    /// What lies before it.
    #[cbor(n(2), with = "wire::nat")]
    pub nat: NatReport,
    /// Predicted external ports, most likely first.
    #[n(3)]
    pub predicted: Vec<u16>,
    /// Relays that the answering side reaches, nearest first.
    #[n(4)]
    #[cbor(default)]
    pub relays: Vec<RelayDistance>,
}

/// The controlling side (lower idx) has chosen the path that this message travels on.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct PathReady {
    /// Rises with every choice.
    #[n(0)]
    pub seq: u64,
}

/// Confirms what carried `seq`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Ack {
    /// Of what is confirmed.
    #[n(0)]
    pub seq: u64,
}

/// One node in a [`Digest`]: versions held, 0 where none is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[cbor(array)]
pub struct DigestEntry {
    /// Names the identity.
    #[n(0)]
    pub node: Idx,
    /// Serial of the membership.
    #[n(1)]
    pub membership: u64,
    /// Seq of the announcement.
    #[n(2)]
    pub announcement: u64,
    /// Serial of the tombstone.
    #[n(3)]
    pub tombstone: u64,
}

/// What the sender knows of nodes whose idx lies in `from..=to`, complete for that interval.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Digest {
    /// Lowest idx covered.
    #[n(0)]
    pub from: Idx,
    /// Highest idx covered.
    #[n(1)]
    pub to: Idx,
    /// In ascending order.
    #[n(2)]
    pub entries: Vec<DigestEntry>,
    /// The receiver confirms with [`Ack`] of this number where it is not 0.
    #[n(3)]
    #[cbor(default)]
    pub seq: u64,
}

/// Records the receiver lacks, and names of nodes of which the sender wants all.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(map)]
pub struct Delta {
    /// Memberships.
    #[n(0)]
    pub memberships: Vec<Signed<Membership>>,
    /// Announcements.
    #[n(1)]
    pub announcements: Vec<Signed<Announcement>>,
    /// Tombstones.
    #[n(2)]
    pub tombstones: Vec<Signed<Tombstone>>,
    /// Please send what you have of these.
    #[n(3)]
    pub want: Vec<Idx>,
    /// The receiver confirms with [`Ack`] of this number where it is not 0.
    #[n(4)]
    pub seq: u64,
}

/// A message for a third node, sealed end to end between the two WireGuard keys.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Forward {
    /// For whom: idx of the receiver's WireGuard key.
    #[n(0)]
    pub to: Idx,
    /// From whom: idx of the sender's WireGuard key.
    #[n(1)]
    pub from: Idx,
    /// Hops left.
    #[n(2)]
    pub ttl: u8,
    /// Epoch of the sender, as in its probes.
    #[n(3)]
    pub epoch: u32,
    /// Sequence in that epoch; the receiver's replay window is the probes'.
    #[n(4)]
    pub sequence: u64,
    /// [`crate::sealed`]; associated data are both ids, epoch and sequence.
    #[cbor(n(5), with = "minicbor::bytes")]
    pub sealed: Vec<u8>,
    /// The external address at which the node that passes this on reaches the sender. A third node's word,
    /// outside the seal: it lets the receiver search for a port there.
    #[cbor(n(6), with = "wire::ipv4", has_nil)]
    pub seen: Option<Ipv4Addr>,
}

impl Forward {
    /// What the seal covers beside the message.
    pub fn associated(to: Idx, from: Idx, epoch: u32, sequence: u64) -> [u8; 28] {
        let mut out = [0; 28];
        out[..8].copy_from_slice(&to.0);
        out[8..16].copy_from_slice(&from.0);
        out[16..20].copy_from_slice(&epoch.to_be_bytes());
        out[20..].copy_from_slice(&sequence.to_be_bytes());
        out
    }
}

/// Binds the sender to a relay's port for a peer. In the DATA attribute of an authenticated Binding *indication*,
/// which the relay answers all the same: indications are what its data path never forwards.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct RelayBind {
    /// The other end: idx of its WireGuard key.
    #[n(0)]
    pub peer: Idx,
    /// Nonce of the relay's answer, in the second request: from the WireGuard port to the relay's port for the peer.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub nonce: Option<Vec<u8>>,
}

/// A relay tells a member where it is relayed: as the answer to [`RelayBind`], and unasked, inside the tunnel, to the
/// other end of a pair.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct RelayOffer {
    /// The other end: idx of its WireGuard key.
    #[n(0)]
    pub peer: Idx,
    /// The relay's port for it.
    #[n(1)]
    pub port: u16,
    /// To be shown in a bind request to that port; `None`: the sender is bound.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub nonce: Option<Vec<u8>>,
}

/// A joiner shows itself to the inviter; sealed with the ticket.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Join {
    /// The joiner's wish for a name.
    #[n(0)]
    pub name: String,
    /// Its announcement, from which the inviter learns identity, key and endpoints.
    #[n(1)]
    pub announcement: Signed<Announcement>,
    /// Ranges it would like to carry.
    #[cbor(n(2), with = "wire::prefixes")]
    pub ranges: Vec<ipnet::IpNet>,
    /// Is it willing to relay?
    #[n(3)]
    pub may_relay: bool,
}

/// The inviter's answer; sealed with the ticket.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Joined {
    /// The joiner's membership.
    #[n(0)]
    pub membership: Signed<Membership>,
    /// Where overlay IPv4 addresses come from.
    #[cbor(n(1), with = "wire::prefixes")]
    pub range: Vec<ipnet::IpNet>,
    /// Memberships of the first peers to reach.
    #[n(2)]
    pub memberships: Vec<Signed<Membership>>,
    /// Announcements of the first peers to reach.
    #[n(3)]
    pub announcements: Vec<Signed<Announcement>>,
}

/// The inviter's refusal; sealed with the ticket.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct JoinRefused {
    /// One sentence.
    #[n(0)]
    pub reason: String,
    /// The same request will be answered otherwise once somebody has approved it.
    #[n(1)]
    #[cbor(default)]
    pub pending: bool,
}

/// A wish for a membership that the sender cannot sign: of somebody it has invited, or its own for more than the
/// membership it has.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Petition {
    /// Who, and what it would carry.
    #[n(0)]
    pub join: Join,
    /// Void from then on, unix seconds.
    #[n(1)]
    pub expiry: u64,
}

/// A joiner's datagram on its way to the inviter, or the answer on its way back.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct JoinRelay {
    /// The joiner, as the introducer sees it.
    #[cbor(n(0), with = "wire::address")]
    pub remote: SocketAddr,
    /// The Binding message.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub datagram: Vec<u8>,
}

/// Request or reply of `farspan ping`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Echo {
    /// Given back in the reply.
    #[n(0)]
    pub token: u64,
    /// Is this the reply?
    #[n(1)]
    pub reply: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_survives_the_wire() {
        let message = Message::from(CallMe {
            seq: 7,
            candidates: vec![Candidate {
                kind: crate::CandidateKind::ServerReflexive,
                address: "203.0.113.7:22514".parse().expect("address"),
            }],
            nat: NatReport::default(),
            predicted: vec![40001],
            start_ms: 0,
            relays: vec![RelayDistance {
                relay: Idx([3; 8]),
                ms: 40,
            }],
            relay: Some(Idx([3; 8])),
        });
        assert_eq!(Message::decode(&message.encode()), Ok(message));
    }

    #[test]
    fn unknown_fields_are_skipped() {
        let mut bytes = Vec::new();
        Encoder::new(&mut bytes)
            .array(2)
            .and_then(|e| {
                e.u8(0x01)?
                    .map(3)?
                    .u8(0)?
                    .u8(1)?
                    .u8(1)?
                    .u8(2)?
                    .u8(99)?
                    .str("new")
            })
            .expect("vec");
        assert_eq!(Message::decode(&bytes), Ok(Hello { min: 1, max: 2 }.into()));
    }

    #[test]
    fn unknown_types_are_refused_below_0x80_and_ignored_from_there() {
        assert_eq!(
            Message::decode(&[0x82, 0x18, 0x7f, 0xa0]),
            Err(MessageError::UnknownType(0x7f))
        );
        assert_eq!(
            Message::decode(&[0x82, 0x18, 0x80, 0xa0]),
            Err(MessageError::Ignored(0x80))
        );
    }

    #[test]
    fn trailing_bytes_are_refused() {
        let mut bytes = Message::from(Ack { seq: 1 }).encode();
        bytes.push(0);
        assert_eq!(Message::decode(&bytes), Err(MessageError::Malformed));
    }
}
