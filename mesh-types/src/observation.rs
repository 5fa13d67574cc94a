//! What sources say of nodes. Every observation carries its source; what a source may say is decided by
//! `peer-discovery`.

use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;
use minicbor::{Decode, Encode};

use crate::key::{AuthorityKey, DomainId, PresharedKey, WgKey};
use crate::record::{Announcement, Membership, Signed, Tombstone};
use crate::wire;

/// Who says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// `[[peer]]` in the local file. Outranks all else.
    Config,
    /// A Kubernetes API server.
    Kubernetes {
        /// Its cluster.
        domain: DomainId,
    },
    /// An authority on this machine or at the join.
    Signed {
        /// Which.
        authority: AuthorityKey,
    },
    /// A peer passed it on; worth its signature.
    Gossip,
    /// Our own state file; worth its signature.
    Disk,
}

impl Source {
    /// The word in JSON and metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Kubernetes { .. } => "kubernetes",
            Self::Signed { .. } => "signed",
            Self::Gossip => "gossip",
            Self::Disk => "disk",
        }
    }
}

/// A source says something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observation {
    /// Who.
    pub source: Source,
    /// What.
    pub fact: Fact,
}

/// What a source says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fact {
    /// The complete list of `[[peer]]` entries, anew (start, reload).
    Listed(Vec<ConfigPeer>),
    /// A membership.
    Membership(Signed<Membership>),
    /// An announcement. `spoken_by` is the WireGuard key whose session carried it, where the node itself
    /// sent it through its tunnel (L2): only that pins a configured peer's identity.
    Announcement {
        /// The record.
        record: Signed<Announcement>,
        /// The session's key.
        spoken_by: Option<WgKey>,
    },
    /// A tombstone.
    Tombstone(Signed<Tombstone>),
    /// A configured peer's identity, as pinned earlier (disk only).
    Pinned(crate::state::Pin),
}

/// One `[[peer]]` entry, or an `ExternalPeer` object of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct ConfigPeer {
    /// Its label.
    #[n(0)]
    pub name: Option<String>,
    /// Its WireGuard key.
    #[n(1)]
    pub key: WgKey,
    /// Where it may be reached.
    #[cbor(n(2), with = "wire::addresses")]
    pub endpoints: Vec<SocketAddr>,
    /// Its ranges, overlay addresses included.
    #[cbor(n(3), with = "wire::prefixes")]
    pub allowed_ips: Vec<IpNet>,
    /// An ordinary WireGuard device: no probes, no messages.
    #[n(4)]
    pub plain: bool,
    /// Mixed into the handshake.
    #[cbor(n(5), with = "wire::preshared_key", has_nil)]
    pub preshared_key: Option<PresharedKey>,
    /// WireGuard's own keepalive; a plain device may need it.
    #[n(6)]
    pub persistent_keepalive: Option<Duration>,
}
