//! What sources say of nodes. Every observation carries its source; what a source may say is decided by
//! `peer-discovery`.

use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;

use crate::key::{AuthorityKey, DomainId, PresharedKey, WgKey};
use crate::record::{Announcement, Membership, Signed, Tombstone};

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

/// One `[[peer]]` entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigPeer {
    /// Its label.
    pub name: Option<String>,
    /// Its WireGuard key.
    pub key: WgKey,
    /// Where it may be reached.
    pub endpoints: Vec<SocketAddr>,
    /// Its ranges, overlay addresses included.
    pub allowed_ips: Vec<IpNet>,
    /// An ordinary WireGuard device: no probes, no messages.
    pub plain: bool,
    /// Mixed into the handshake.
    pub preshared_key: Option<PresharedKey>,
    /// WireGuard's own keepalive; a plain device may need it.
    pub persistent_keepalive: Option<Duration>,
}
