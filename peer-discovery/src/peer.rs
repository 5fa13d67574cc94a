//! What others learn from the directory: peers and changes.

use std::net::Ipv4Addr;
use std::time::Duration;

use mesh_types::record::Features;
use mesh_types::{
    Candidate, IdentityKey, Idx, IpNet, NatReport, PeerId, Prefixes, PresharedKey, Source, WgKey,
};

/// Home relays taken from an announcement.
pub(crate) const RELAYS_MAX: usize = 8;

/// A node or device that packets may be exchanged with, as the vouching source and the node itself describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// What it is known by.
    pub id: PeerId,
    /// Its label: the file's, the membership's, the announced one, else the beginning of its key. Never
    /// empty, at most 63 characters, a Node's 253, printable. Not unique, but for those of Nodes.
    pub name: String,
    /// Who vouches for it: [`Source::Config`], [`Source::Signed`] or [`Source::Kubernetes`].
    pub source: Source,
    /// Its WireGuard key now.
    pub key: WgKey,
    /// The key it is about to change to.
    pub next_key: Option<WgKey>,
    /// What it may carry, no overlaps with any other peer.
    pub allowed_ips: Prefixes,
    /// Its own overlay IPv4 address, where an authority or the cluster says so; one of `allowed_ips`. Of a Node, the
    /// network address of its first pod range; where the mesh does not carry pods, its InternalIP.
    pub ipv4: Option<Ipv4Addr>,
    /// Those of `allowed_ips` that are its pods', where it is a Node; sorted.
    pub pod_cidrs: Vec<IpNet>,
    /// Those of `allowed_ips` that are its Node's InternalIPs; sorted.
    pub node_ips: Vec<IpNet>,
    /// Where it may be reached, best kinds first, the file's own before all; at most
    /// [`mesh_types::consts::CANDIDATES_MAX`].
    pub endpoints: Vec<Candidate>,
    /// What lies before it.
    pub nat: NatReport,
    /// Its region label.
    pub region: Option<String>,
    /// Its abilities.
    pub features: Features,
    /// Protocol versions it speaks, lowest and highest; [`mesh_types::consts::PROTOCOL`] until it says so.
    pub protocol: (u8, u8),
    /// An ordinary WireGuard device: no probes, no messages.
    pub plain: bool,
    /// Mixed into the handshake.
    pub preshared_key: Option<PresharedKey>,
    /// WireGuard's own keepalive, where the file asks for one.
    pub persistent_keepalive: Option<Duration>,
    /// Its identity, where known.
    pub identity: Option<IdentityKey>,
    /// Seq of its announcement, 0 where there is none.
    pub seq: u64,
    /// It may forward ciphertext for others, and is willing to.
    pub may_relay: bool,
    /// Ids of its home relays, as it says (identities' [`IdentityKey::idx`]); at most 8.
    pub relays: Vec<Idx>,
    /// Its key in the file, where there is an entry. Differs from `key` after a rotation: the file wants updating.
    pub configured_key: Option<WgKey>,
}

/// What changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A peer is new or differs; read [`crate::Directory::peer`].
    Changed(PeerId),
    /// A peer is gone.
    Removed(PeerId),
    /// A configured peer's identity became known: same peer, another name. `Changed(to)` follows.
    Renamed {
        /// Until now.
        from: PeerId,
        /// From now on.
        to: PeerId,
    },
    /// Records changed that must survive a restart.
    Dirty,
    /// A valid announcement of this very node with this seq was shown: where it is above our own, go on above it.
    OwnRecordNewer(u64),
    /// [`crate::Directory::own_membership`] differs.
    OwnMembership,
    /// An authority revoked this node.
    Revoked,
    /// The last listing of the cluster's Nodes is doubted: another one is wanted, best after a moment that differs from
    /// node to node.
    ListAgain,
}

/// Why a text names no peer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FindError {
    /// Nobody is called that.
    #[error("no peer has the name, key or address {0:?}; `farspan status` lists the peers")]
    NotFound(String),
    /// Several are.
    #[error("{1} peers have the name {0:?}; use a key or an overlay address instead")]
    Ambiguous(String, usize),
}
