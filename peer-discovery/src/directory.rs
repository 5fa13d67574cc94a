//! The directory: records in, peers out.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use mesh_types::message::{Delta, Digest};
use mesh_types::observation::Observation;
use mesh_types::record::{Announcement, Membership, Signed, Tombstone};
use mesh_types::state::Pin;
use mesh_types::{AuthorityKey, Idx, IpNet, Ipv4Net, NodeKey, Now, PeerId, WgKey};

use crate::peer::{Event, FindError, Peer};
use crate::refusal::{Reason, Refusal, Refusals};

/// Memberships, tombstones and `[[peer]]` entries held, at most, each.
pub const NODES_MAX: usize = 10_000;
/// Bytes of a signed record ([`Signed::encoded_len`]), at most: larger ones could never be passed on.
pub const RECORD_MAX: usize = mesh_types::consts::MESSAGE_MAX - 40;

/// What a directory starts from.
#[derive(Debug, Clone)]
pub struct Config {
    /// This node.
    pub own: NodeKey,
    /// Its WireGuard key: nobody else may have it.
    pub own_key: WgKey,
    /// Whose memberships count; where they disagree, the earlier in the list.
    pub authorities: Vec<AuthorityKey>,
}

/// Who is in the mesh, and who says so.
#[derive(Debug)]
pub struct Directory {
    refusals: Refusals,
}

impl Directory {
    /// An empty directory.
    pub fn new(config: Config, now: Now) -> Self {
        let _ = (config, now);
        Self {
            refusals: Refusals::default(),
        }
    }
    /// Replaces the authorities; records of those no longer listed are dropped.
    pub fn set_authorities(&mut self, authorities: Vec<AuthorityKey>, now: Now) {
        let _ = (authorities, now);
    }
    /// Replaces this node's name and WireGuard key (join, rotation).
    pub fn set_own(&mut self, own: NodeKey, key: WgKey, now: Now) {
        let _ = (own, key, now);
    }
    /// Replaces the ranges this node carries itself by configuration (addresses and routes); those of its
    /// membership are known anyway. No member may claim any of them; a `[[peer]]` entry only a smaller part.
    pub fn set_own_ranges(&mut self, ranges: Vec<IpNet>, now: Now) {
        let _ = (ranges, now);
    }
    /// Takes in what a source says.
    pub fn handle_observation(&mut self, observation: Observation, now: Now) {
        self.handle_observations([observation], now);
    }
    /// Takes in many at once, which is much cheaper than one by one (a state file).
    pub fn handle_observations(
        &mut self,
        observations: impl IntoIterator<Item = Observation>,
        now: Now,
    ) {
        let _ = (observations.into_iter().count(), now);
    }
    /// Takes in what a peer sent through the session of the key `from`; returns what was new, to be pushed on
    /// to other peers. `delta.want` is the caller's: [`Self::answer_want`].
    pub fn handle_delta(&mut self, delta: &Delta, from: WgKey, now: Now) -> Vec<Delta> {
        let _ = (delta, from, now);
        Vec::new()
    }
    /// Call when [`Self::poll_timeout`] is due.
    pub fn handle_timeout(&mut self, now: Now) {
        let _ = now;
    }
    /// When to call [`Self::handle_timeout`], and why.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        None
    }
    /// The next change.
    pub fn poll_event(&mut self) -> Option<Event> {
        None
    }
    /// All peers.
    pub fn peers(&self) -> impl Iterator<Item = (&PeerId, &Peer)> {
        std::iter::empty()
    }
    /// One peer.
    pub fn peer(&self, id: &PeerId) -> Option<&Peer> {
        let _ = id;
        None
    }
    /// Whose WireGuard key is it: current, next, or the one in the file.
    pub fn by_key(&self, key: &WgKey) -> Option<&PeerId> {
        let _ = key;
        None
    }
    /// Whose identity has this idx.
    pub fn by_idx(&self, idx: &Idx) -> Option<&PeerId> {
        let _ = idx;
        None
    }
    /// Who carries this address.
    pub fn by_address(&self, address: IpAddr) -> Option<&PeerId> {
        let _ = address;
        None
    }
    /// Finds a peer by name, WireGuard key, identity, or an address it carries.
    pub fn find(&self, text: &str) -> Result<&PeerId, FindError> {
        Err(FindError::NotFound(text.to_owned()))
    }
    /// The membership of this node that counts; `None` where it has none, or was revoked.
    pub fn own_membership(&self) -> Option<&Signed<Membership>> {
        None
    }
    /// What is known here, in pages that together cover all nodes.
    pub fn digest_pages(&self, own: Option<&Signed<Announcement>>) -> Vec<Digest> {
        let _ = own;
        Vec::new()
    }
    /// What the sender of `digest` lacks, and the names of what we lack.
    pub fn answer_digest(&self, digest: &Digest, own: Option<&Signed<Announcement>>) -> Vec<Delta> {
        let _ = (digest, own);
        Vec::new()
    }
    /// Everything about these nodes.
    pub fn answer_want(&self, want: &[Idx], own: Option<&Signed<Announcement>>) -> Vec<Delta> {
        let _ = (want, own);
        Vec::new()
    }
    /// Memberships to store, this node's included.
    pub fn memberships(&self) -> impl Iterator<Item = &Signed<Membership>> {
        std::iter::empty()
    }
    /// Announcements of others to store.
    pub fn announcements(&self) -> impl Iterator<Item = &Signed<Announcement>> {
        std::iter::empty()
    }
    /// Tombstones to store.
    pub fn tombstones(&self) -> impl Iterator<Item = &Signed<Tombstone>> {
        std::iter::empty()
    }
    /// Pinned identities to store.
    pub fn pins(&self) -> impl Iterator<Item = Pin> {
        std::iter::empty()
    }
    /// The newest records that were refused, newest last.
    pub fn refusals(&self) -> &[Refusal] {
        self.refusals.newest()
    }
    /// What stands refused now because peers contradict each other, this node, or the rules; gone when settled.
    pub fn conflicts(&self) -> &[Refusal] {
        &[]
    }
    /// How often each reason was given.
    pub fn refusal_counts(&self) -> impl Iterator<Item = (Reason, u64)> {
        self.refusals.counts()
    }
    /// The lowest host address of `range` that no membership, `[[peer]]` entry, own range or `held` has.
    pub fn free_ipv4(&self, range: Ipv4Net, held: &[Ipv4Addr]) -> Option<Ipv4Addr> {
        let _ = (range, held);
        None
    }
}
