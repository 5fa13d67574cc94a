//! What a node keeps on disk beside its keys: versioned, checksummed, and never trusted beyond its
//! signatures.

use std::net::SocketAddr;

use ipnet::IpNet;
use minicbor::{Decode, Encode};
use sha2::{Digest as _, Sha256};

use crate::cluster::Saved;
use crate::key::{AuthorityKey, DomainId, IdentityKey, WgKey};
use crate::message::Petition;
use crate::record::{Announcement, Membership, Signed, Tombstone};
use crate::token::TicketId;
use crate::wire;

const MAGIC: &[u8; 8] = b"farspanS";
/// Version of the file's format.
pub const VERSION: u16 = 1;

/// Why bytes are not a state file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// Does not begin like one.
    #[error("not a farspan state file")]
    Magic,
    /// Written by a version this build does not know.
    #[error("state file of version {0}, this build reads version {VERSION}")]
    Version(u16),
    /// The checksum or the content is wrong.
    #[error("damaged state file")]
    Damaged,
}

/// Everything a node restarts from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct State {
    /// Seq of the last announcement published.
    #[n(0)]
    pub seq: u64,
    /// Epoch of the last probes sent.
    #[n(1)]
    pub epoch: u32,
    /// Listen port in use.
    #[n(2)]
    pub listen_port: Option<u16>,
    /// Memberships, own one included.
    #[n(3)]
    pub memberships: Vec<Signed<Membership>>,
    /// Announcements of others.
    #[n(4)]
    pub announcements: Vec<Signed<Announcement>>,
    /// Tombstones.
    #[n(5)]
    pub tombstones: Vec<Signed<Tombstone>>,
    /// Invitations issued here.
    #[n(6)]
    pub tickets: Vec<Ticket>,
    /// Identities of configured peers, as pinned.
    #[n(7)]
    pub pins: Vec<Pin>,
    /// Where peers were last reached.
    #[n(8)]
    pub endpoints: Vec<LastEndpoint>,
    /// Where the authority on this machine takes overlay IPv4 addresses from.
    #[cbor(n(9), with = "wire::prefixes")]
    pub range: Vec<IpNet>,
    /// Authority of the mesh this node joined or made.
    #[n(10)]
    pub authority: Option<AuthorityKey>,
    /// Membership lifetime in seconds, where `init --lifetime` gave one.
    #[n(11)]
    pub lifetime: Option<u64>,
    /// Who came by an invitation of this node and waits for the machine with the authority's key.
    #[n(12)]
    #[cbor(default)]
    pub petitions: Vec<Petition>,
    /// Peers were reached through TURN servers, and none otherwise: the next run need not find out that UDP leads nowhere.
    #[n(13)]
    #[cbor(default)]
    pub only_turn: bool,
    /// The cluster whose Node this machine is, or that it reads.
    #[n(14)]
    #[cbor(default)]
    pub cluster: Option<Saved>,
}

/// An invitation as the inviter keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Ticket {
    /// Its name.
    #[n(0)]
    pub id: TicketId,
    /// SHA-256 of its secret.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub secret_hash: [u8; 32],
    /// Unix seconds.
    #[n(2)]
    pub expiry: u64,
    /// Ranges the joiner may carry.
    #[cbor(n(3), with = "wire::prefixes")]
    pub ranges: Vec<IpNet>,
    /// Overlay IPv4 address held for the joiner.
    #[cbor(n(4), with = "wire::ipv4", has_nil)]
    pub ipv4: Option<std::net::Ipv4Addr>,
    /// Who used it. The same identity may ask again (its answer was lost); nobody else.
    #[n(5)]
    pub used_by: Option<IdentityKey>,
}

/// The identity behind a configured WireGuard key.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Pin {
    /// The key in the file.
    #[n(0)]
    pub configured: WgKey,
    /// Who it turned out to be.
    #[n(1)]
    pub identity: IdentityKey,
    /// The domain it says it is in; its overlay IPv6 address follows from both.
    #[n(2)]
    pub domain: DomainId,
}

/// Where a peer was last reached.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct LastEndpoint {
    /// Its WireGuard key.
    #[n(0)]
    pub key: WgKey,
    /// Its address.
    #[cbor(n(1), with = "wire::address")]
    pub address: SocketAddr,
}

impl State {
    /// The file's bytes: magic, version, SHA-256 of the rest, CBOR.
    pub fn encode(&self) -> Vec<u8> {
        let body = minicbor::to_vec(self).unwrap_or_default();
        let mut out = MAGIC.to_vec();
        out.extend(VERSION.to_be_bytes());
        out.extend_from_slice(&Sha256::digest(&body));
        out.extend(body);
        out
    }

    /// Reads the file's bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, StateError> {
        let rest = bytes.strip_prefix(MAGIC).ok_or(StateError::Magic)?;
        let (version, rest) = rest.split_first_chunk::<2>().ok_or(StateError::Damaged)?;
        let version = u16::from_be_bytes(*version);
        if version != VERSION {
            return Err(StateError::Version(version));
        }
        let (digest, body) = rest.split_first_chunk::<32>().ok_or(StateError::Damaged)?;
        if Sha256::digest(body)[..] != digest[..] {
            return Err(StateError::Damaged);
        }
        minicbor::decode(body).map_err(|_| StateError::Damaged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_file_is_read_back() {
        let state = State {
            seq: 9,
            epoch: 4,
            listen_port: Some(22000),
            ..State::default()
        };
        assert_eq!(State::decode(&state.encode()), Ok(state));
    }

    #[test]
    fn a_flipped_bit_or_a_cut_end_is_noticed() {
        let mut bytes = State {
            seq: 9,
            ..State::default()
        }
        .encode();
        assert_eq!(
            State::decode(&bytes[..bytes.len() - 1]),
            Err(StateError::Damaged)
        );
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        assert_eq!(State::decode(&bytes), Err(StateError::Damaged));
    }
}
