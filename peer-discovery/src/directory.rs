//! The directory: records in, peers out.

mod cluster;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use mesh_types::message::{Delta, Digest};
use mesh_types::observation::{ConfigPeer, Fact, Observation};
use mesh_types::record::{Announcement, Membership, Record as _, Signed, Tombstone};
use mesh_types::state::Pin;
use mesh_types::{
    AuthorityKey, IdentityKey, Idx, IpNet, Ipv4Net, NodeKey, Now, PeerId, Source, WgKey,
};

use crate::address::lowest_free;
use crate::gossip::{Holdings, Packer};
use crate::kubernetes::{Cluster, ClusterConfig};
use crate::peer::{Event, FindError, Peer};
use crate::records::{Admitted, Checked, Member, Records, Unlisted, is_future};
use crate::refusal::{Reason, Refusal, Refusals, sentence};
use crate::view::{Contested, View, own_ranges};

/// A wall clock may be set at any time, so an expiry that is far away is looked at again after this.
const RECHECK: Duration = Duration::from_secs(3600);
/// Beyond so many peers what gossip brings is gathered,
const GATHER_ABOVE: usize = 100;
/// and decided upon no sooner than this after the last time: to decide takes milliseconds for each hundred.
const GATHER: Duration = Duration::from_millis(50);
/// Refused announcements that are remembered so as not to be fetched again.
const UNWANTED_MAX: usize = 4096;

/// What a directory starts from.
#[derive(Debug, Clone)]
pub struct Config {
    /// This node.
    pub own: NodeKey,
    /// Its WireGuard key: nobody else may have it.
    pub own_key: WgKey,
    /// Whose memberships count; where they disagree, the earlier in the list.
    pub authorities: Vec<AuthorityKey>,
    /// The cluster that it reads, where it does.
    pub cluster: Option<ClusterConfig>,
}

/// Who is in the mesh, and who says so.
#[derive(Debug)]
pub struct Directory {
    records: Records,
    view: View,
    refusals: Refusals,
    /// Entries of the file and of the cluster that cannot stand.
    unlisted: Vec<Refusal>,
    cluster: Option<Cluster>,
    /// When what the cluster has said counts.
    cluster_due: Option<Instant>,
    /// Claims of the cluster's Nodes that are refused.
    objections: Vec<Refusal>,
    unwanted: BTreeMap<Idx, u64>,
    standing: Standing,
    expiry: Option<Instant>,
    /// When it was decided last who is a peer.
    decided: Instant,
    /// When that is to be done again, for what gossip has brought.
    decide_at: Option<Instant>,
    moves: VecDeque<Event>,
    changed: BTreeSet<PeerId>,
    own_newer: Option<u64>,
    own_changed: Option<Event>,
    dirty: bool,
}

/// This node's own membership.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Standing {
    /// None is held.
    Stranger,
    /// One counts.
    Member(Box<Membership>),
    /// A tombstone counts.
    Revoked,
}

/// Something that was said of a node.
struct Said {
    node: NodeKey,
    version: u64,
    what: &'static str,
    /// The Node whose annotations said it.
    by: Option<String>,
}

/// What a batch of observations changed.
#[derive(Default)]
struct Effect {
    decisive: bool,
    /// What is decisive may wait for more of the kind.
    patient: bool,
    /// Members that announce other keys, or have shown to have them.
    keyed: BTreeSet<NodeKey>,
    refreshed: BTreeSet<NodeKey>,
    dirty: bool,
}

impl Directory {
    /// An empty directory.
    pub fn new(config: Config, now: Now) -> Self {
        let Config {
            own,
            own_key,
            authorities,
            cluster,
        } = config;
        let records = Records::new(own, own_key, authorities);
        let view = View::resolve(&records, &View::default(), now);
        Self {
            records,
            view,
            refusals: Refusals::default(),
            unlisted: Vec::new(),
            cluster: cluster.map(Cluster::new),
            cluster_due: None,
            objections: Vec::new(),
            unwanted: BTreeMap::new(),
            standing: Standing::Stranger,
            expiry: None,
            decided: now.mono,
            decide_at: None,
            moves: VecDeque::new(),
            changed: BTreeSet::new(),
            own_newer: None,
            own_changed: None,
            dirty: false,
        }
    }

    /// Replaces the authorities; records of those no longer listed are dropped.
    pub fn set_authorities(&mut self, authorities: Vec<AuthorityKey>, now: Now) {
        self.records.set_authorities(authorities);
        self.unwanted.clear();
        self.redecide(now);
    }

    /// Replaces this node's name and WireGuard key (join, rotation).
    pub fn set_own(&mut self, own: NodeKey, key: WgKey, now: Now) {
        self.records.own = own;
        self.records.own_key = key;
        self.redecide(now);
    }

    /// Replaces the ranges this node carries itself by configuration (routes; addresses as /32 and /128);
    /// those of its membership are known anyway. No member may claim any part of them; a `[[peer]]` entry
    /// only a smaller part. A range that a plain `[[peer]]` entry carries exactly, and this node on its behalf, is to be
    /// left out.
    pub fn set_own_ranges(&mut self, ranges: Vec<IpNet>, now: Now) {
        self.records.own_ranges = ranges;
        self.redecide(now);
    }

    /// Takes in what a source says.
    pub fn handle_observation(&mut self, observation: Observation, now: Now) {
        self.handle_observations([observation], now);
    }

    /// Takes in many at once, which is much cheaper than one by one (a state file). Order within a batch does
    /// not matter, except that announcements count only after what vouches for them.
    pub fn handle_observations(
        &mut self,
        observations: impl IntoIterator<Item = Observation>,
        now: Now,
    ) {
        let mut effect = Effect::default();
        let mut batch: Vec<Observation> = observations.into_iter().collect();
        batch.sort_by_key(|observation| order(&observation.fact));
        for Observation { source, fact } in batch {
            self.take(&source, fact, &mut effect, now);
        }
        self.settle(&effect, now);
    }

    /// Takes in what a peer sent through the session of the key `from`; returns what was new, to be pushed on
    /// to other peers. `delta.want` is the caller's: [`Self::answer_want`].
    pub fn handle_delta(&mut self, delta: &Delta, from: WgKey, now: Now) -> Vec<Delta> {
        let mut effect = Effect {
            patient: self.view.peers.len() > GATHER_ABOVE,
            ..Effect::default()
        };
        let mut fresh = Packer::default();
        for record in &delta.tombstones {
            let fact = Fact::Tombstone(record.clone());
            if self.take(&Source::Gossip, fact, &mut effect, now) {
                fresh.tombstone(record);
            }
        }
        for record in &delta.memberships {
            let fact = Fact::Membership(record.clone());
            if self.take(&Source::Gossip, fact, &mut effect, now) {
                fresh.membership(record);
            }
        }
        for record in &delta.announcements {
            let fact = Fact::Announcement {
                record: record.clone(),
                spoken_by: (record.record().key == from).then_some(from),
            };
            if self.take(&Source::Gossip, fact, &mut effect, now) {
                fresh.announcement(record);
            }
        }
        self.settle(&effect, now);
        fresh.finish()
    }

    /// Call when [`Self::poll_timeout`] is due, and when the wall clock was set.
    pub fn handle_timeout(&mut self, now: Now) {
        let aged = self.records.age(now);
        let gathered = self.decide_at.is_some_and(|at| at <= now.mono);
        let mut effect = Effect {
            decisive: aged || gathered,
            dirty: aged,
            ..Effect::default()
        };
        self.gather(&mut effect, now);
        self.settle(&effect, now);
        self.restand();
        self.watch_expiry(now);
    }

    /// When to call [`Self::handle_timeout`], and why.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let doubted = self.cluster.as_ref().and_then(Cluster::doubted_until);
        [
            self.expiry.map(|at| (at, "membership expiry")),
            self.decide_at.map(|at| (at, "records of others")),
            self.cluster_due.map(|at| (at, "events of the cluster")),
            doubted.map(|at| (at, "doubted listing")),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// The next change.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.moves
            .pop_front()
            .or_else(|| self.changed.pop_first().map(Event::Changed))
            .or_else(|| self.own_newer.take().map(Event::OwnRecordNewer))
            .or_else(|| self.own_changed.take())
            .or_else(|| std::mem::take(&mut self.dirty).then_some(Event::Dirty))
    }

    /// All peers.
    pub fn peers(&self) -> impl Iterator<Item = (&PeerId, &Peer)> {
        self.view.peers.iter()
    }

    /// One peer.
    pub fn peer(&self, id: &PeerId) -> Option<&Peer> {
        self.view.peers.get(id)
    }

    /// Whose WireGuard key is it: current, next, or the one in the file.
    pub fn by_key(&self, key: &WgKey) -> Option<&PeerId> {
        let id = self.view.keys.get(key)?;
        self.view.peers.get(id).map(|peer| &peer.id)
    }

    /// Whose identity has this idx.
    pub fn by_idx(&self, idx: &Idx) -> Option<&PeerId> {
        self.holdings(None).nodes(*idx).find_map(|node| {
            let peer = self.view.peers.get(&PeerId::Node(*node))?;
            Some(&peer.id)
        })
    }

    /// Who carries this very prefix.
    pub fn carrier(&self, net: &IpNet) -> Option<&PeerId> {
        let id = self.view.ranges.holder(net)?;
        self.view.peers.get(id).map(|peer| &peer.id)
    }

    /// Prefixes around one, that itself too, and who carries them.
    pub fn around(&self, net: IpNet) -> impl Iterator<Item = (IpNet, PeerId)> {
        let around = self.view.ranges.around(net);
        let carried = around.filter(|(_, id)| self.view.peers.contains_key(*id));
        carried.map(|(net, id)| (*net, *id))
    }

    /// Who carries this address.
    pub fn by_address(&self, address: IpAddr) -> Option<&PeerId> {
        let id = self.view.ranges.owner(address)?;
        self.view.peers.get(id).map(|peer| &peer.id)
    }

    /// Finds a peer by name, WireGuard key, identity, or an address it carries.
    pub fn find(&self, text: &str) -> Result<&PeerId, FindError> {
        let text = text.trim();
        let by_address = || text.parse().ok().and_then(|ip| self.by_address(ip));
        let by_key = || text.parse().ok().and_then(|key| self.by_key(&key));
        let by_identity = || {
            let identity: IdentityKey = text.parse().ok()?;
            let peer = self
                .view
                .peers
                .values()
                .find(|peer| peer.identity == Some(identity))?;
            Some(&peer.id)
        };
        if let Some(id) = by_address().or_else(by_key).or_else(by_identity) {
            return Ok(id);
        }
        let mut named = self.view.peers.values().filter(|peer| peer.name == text);
        match (named.next(), named.count()) {
            (None, _) => Err(FindError::NotFound(text.to_owned())),
            (Some(peer), 0) => Ok(&peer.id),
            (Some(_), more) => Err(FindError::Ambiguous(text.to_owned(), more + 1)),
        }
    }

    /// The membership of this node that counts, signed or its Node's; `None` where it has none, it expired, or it was
    /// revoked.
    pub fn own_membership(&self) -> Option<&Membership> {
        self.records.own_member().map(Member::record)
    }

    /// The same, where an authority has signed it.
    pub fn own_signed_membership(&self) -> Option<&Signed<Membership>> {
        self.records.own_member().and_then(Member::signed)
    }

    /// What is known here, in pages that together cover all nodes; each is at most
    /// [`mesh_types::consts::MESSAGE_MAX`] bytes encoded. `own` is this node's announcement.
    pub fn digest_pages(&self, own: Option<&Signed<Announcement>>) -> Vec<Digest> {
        self.holdings(own).digest_pages()
    }

    /// What the sender of `digest` lacks, and the names of what we lack; `seq` is 0 and may be set, the size
    /// allows for it. At most 256 deltas with records.
    pub fn answer_digest(&self, digest: &Digest, own: Option<&Signed<Announcement>>) -> Vec<Delta> {
        self.holdings(own).answer_digest(digest)
    }

    /// Everything about these nodes; of more than 100 names the first 100 count.
    pub fn answer_want(&self, want: &[Idx], own: Option<&Signed<Announcement>>) -> Vec<Delta> {
        self.holdings(own).answer_want(want)
    }

    /// Signed memberships to store, this node's included.
    pub fn memberships(&self) -> impl Iterator<Item = &Signed<Membership>> {
        self.records.members.values().filter_map(Member::signed)
    }

    /// Announcements of others to store.
    pub fn announcements(&self) -> impl Iterator<Item = &Signed<Announcement>> {
        self.records.announced.values().map(|a| &a.signed)
    }

    /// Tombstones to store.
    pub fn tombstones(&self) -> impl Iterator<Item = &Signed<Tombstone>> {
        self.records.tombstones.values()
    }

    /// Pinned identities to store.
    pub fn pins(&self) -> impl Iterator<Item = Pin> {
        self.records.pins.iter().map(|(key, node)| Pin {
            configured: *key,
            identity: node.identity,
            domain: node.domain,
        })
    }

    /// The newest 64 records that were refused, newest last.
    pub fn refusals(&self) -> &[Refusal] {
        self.refusals.newest()
    }

    /// What stands refused now because peers contradict each other, this node, or the rules; gone when
    /// settled. At most 256, as many of the cluster's, and what the file itself contradicts.
    pub fn conflicts(&self) -> &[Refusal] {
        &self.view.conflicts
    }

    /// How often each reason was given.
    pub fn refusal_counts(&self) -> impl Iterator<Item = (Reason, u64)> {
        self.refusals.counts()
    }

    /// The lowest host address of `range` that no membership, `[[peer]]` entry, own range or `held` has.
    pub fn free_ipv4(&self, range: Ipv4Net, held: &[Ipv4Addr]) -> Option<Ipv4Addr> {
        let address = |ip: &Ipv4Addr| IpNet::from(IpAddr::V4(*ip));
        let members = self.records.members.values().flat_map(|member| {
            let record = member.record();
            let ranges = record.ranges.iter().copied();
            ranges.chain(record.ipv4.iter().map(address))
        });
        let entries = self.records.config.iter();
        let taken = members
            .chain(entries.flat_map(|entry| entry.allowed_ips.iter().copied()))
            .chain(own_ranges(&self.records))
            .chain(held.iter().map(address));
        lowest_free(range, taken)
    }

    fn holdings<'a>(&'a self, own: Option<&'a Signed<Announcement>>) -> Holdings<'a> {
        Holdings {
            records: &self.records,
            index: &self.view.index,
            unwanted: &self.unwanted,
            own,
        }
    }

    /// Admits one fact; gives whether it was a new record.
    fn take(&mut self, source: &Source, fact: Fact, effect: &mut Effect, now: Now) -> bool {
        let disk = matches!(source, Source::Disk);
        let (node, version, what, admitted) = match (fact, source) {
            (Fact::Listed(entries), Source::Config) => {
                self.list(entries, now);
                effect.decisive = true;
                effect.dirty = true;
                return true;
            }
            (Fact::Pinned(pin), Source::Disk | Source::Config) => {
                let node = NodeKey {
                    domain: pin.domain,
                    identity: pin.identity,
                };
                let admitted = self.records.admit_pin(pin.configured, node);
                (node, 0, "pinned identity", admitted)
            }
            (Fact::Membership(record), Source::Signed { .. } | Source::Gossip | Source::Disk) => {
                let admitted = self.records.admit_membership(&record, disk, now);
                let node = record.record().node();
                if admitted == Ok(Admitted::Decisive) {
                    self.unwanted.remove(&node.identity.idx());
                }
                (node, record.record().serial, "membership", admitted)
            }
            (Fact::Tombstone(record), Source::Signed { .. } | Source::Gossip | Source::Disk) => {
                let admitted = self.records.admit_tombstone(&record);
                let node = record.record().node();
                (node, record.record().serial, "tombstone", admitted)
            }
            (
                Fact::Announcement { record, spoken_by },
                Source::Signed { .. } | Source::Gossip | Source::Disk,
            ) => {
                let admitted = self
                    .records
                    .admit_announcement(&record, spoken_by, Checked::NotYet);
                if admitted == Err(Reason::Unknown) {
                    self.remember_unwanted(&record);
                }
                let record = record.record();
                (record.node(), record.seq, "announcement", admitted)
            }
            (
                Fact::Listed(_)
                | Fact::Pinned(_)
                | Fact::Membership(_)
                | Fact::Tombstone(_)
                | Fact::Announcement { .. },
                Source::Config
                | Source::Kubernetes { .. }
                | Source::Signed { .. }
                | Source::Gossip
                | Source::Disk,
            ) => {
                self.refusals.count(Reason::Source);
                return false;
            }
        };
        let said = Said {
            node,
            version,
            what,
            by: None,
        };
        let dirty = effect.dirty;
        let new = self.conclude(said, admitted, effect, now);
        if disk {
            effect.dirty = dirty;
        }
        new
    }

    /// Draws the conclusions of a record that was admitted or refused; gives whether it was new.
    fn conclude(
        &mut self,
        said: Said,
        admitted: Result<Admitted, Reason>,
        effect: &mut Effect,
        now: Now,
    ) -> bool {
        let Said {
            node,
            version,
            what,
            by,
        } = said;
        let refusal = |reason| Refusal {
            reason,
            peer: Some(PeerId::Node(node)),
            sentence: sentence(reason, what, &node, by.as_deref()),
            node: by.clone(),
            at: now.unix,
            count: 1,
        };
        let admitted = match admitted {
            Ok(admitted) => admitted,
            Err(reason) => {
                self.refusals.add(refusal(reason));
                return false;
            }
        };
        match admitted {
            Admitted::Unchanged => return false,
            Admitted::Own(seq) => {
                self.own_newer = self.own_newer.max(Some(seq));
                return false;
            }
            Admitted::Keyed { .. } => _ = effect.keyed.insert(node),
            Admitted::Proven => effect.decisive = true,
            Admitted::Decisive => {
                effect.decisive = true;
                self.view.index.insert((node.identity.idx(), node));
            }
            Admitted::Refreshed => {
                effect.refreshed.insert(node);
            }
        }
        effect.dirty = true;
        if is_future(version, now) {
            self.refusals.add(refusal(Reason::Future));
        }
        !matches!(admitted, Admitted::Proven | Admitted::Keyed { known: true })
    }

    fn list(&mut self, entries: Vec<ConfigPeer>, now: Now) {
        let unlisted = self.records.list(entries);
        self.set_unlisted(unlisted, now);
        self.unwanted.clear();
    }

    fn set_unlisted(&mut self, unlisted: Vec<Unlisted>, now: Now) {
        let refusal = |unlisted: Unlisted| {
            let Unlisted {
                reason,
                why,
                external,
                entry,
            } = unlisted;
            let sentence = match external {
                false => format!(
                    "the [[peer]] entry with public-key {} {why} and is ignored; remove it from the file",
                    entry.key
                ),
                true => format!(
                    "ExternalPeer {} {why} and is ignored; give it another publicKey",
                    entry.name.unwrap_or_else(|| entry.key.to_string())
                ),
            };
            Refusal {
                reason,
                peer: Some(PeerId::Key(entry.key)),
                node: None,
                sentence,
                at: now.unix,
                count: 1,
            }
        };
        self.unlisted = unlisted.into_iter().map(refusal).collect();
    }

    /// Only what the node itself signed is remembered, so nobody can make us decline another's records.
    fn remember_unwanted(&mut self, record: &Signed<Announcement>) {
        let idx = record.record().identity.idx();
        let known = self.unwanted.get(&idx).copied();
        let room = known.is_some() || self.unwanted.len() < UNWANTED_MAX;
        if room && known < Some(record.record().seq) && record.verify_identity() {
            self.unwanted.insert(idx, record.record().seq);
        }
    }

    fn redecide(&mut self, now: Now) {
        let mut effect = Effect {
            decisive: true,
            dirty: true,
            ..Effect::default()
        };
        self.judge(&mut effect, now);
        self.settle(&effect, now);
    }

    fn settle(&mut self, effect: &Effect, now: Now) {
        self.dirty |= effect.dirty;
        let mut decisive = effect.decisive;
        for node in &effect.keyed {
            if self.decide_at.is_some() {
                decisive = true;
                break;
            }
            match self.view.rekey(&self.records, node) {
                Ok(changed) => self.changed.extend(changed),
                Err(Contested) => decisive = true,
            }
        }
        if decisive {
            let due = self.decided + GATHER;
            if effect.patient && now.mono < due {
                self.decide_at.get_or_insert(due);
            } else {
                self.decide(now);
            }
            self.restand();
            self.watch_expiry(now);
        }
        for node in &effect.refreshed {
            self.changed.extend(self.view.refresh(&self.records, node));
        }
    }

    /// Decides anew who is a peer.
    fn decide(&mut self, now: Now) {
        (self.decided, self.decide_at) = (now.mono, None);
        let mut new = View::resolve(&self.records, &self.view, now);
        new.conflicts.extend(self.unlisted.iter().cloned());
        new.conflicts.extend(self.objections.iter().cloned());
        let old = std::mem::replace(&mut self.view, new);
        self.compare(&old);
    }

    fn watch_expiry(&mut self, now: Now) {
        self.expiry = self.records.next_expiry().map(|at| {
            // Valid through its last second.
            let left = Duration::from_secs(at.saturating_add(1)).saturating_sub(now.unix);
            now.mono + left.min(RECHECK)
        });
    }

    /// Tells what differs between the view before and now.
    fn compare(&mut self, old: &View) {
        let new = &self.view;
        let by_entry: BTreeMap<WgKey, PeerId> = new
            .peers
            .values()
            .filter_map(|peer| Some((peer.configured_key?, peer.id)))
            .collect();
        for (id, peer) in &old.peers {
            if new.peers.contains_key(id) {
                continue;
            }
            self.changed.remove(id);
            let to = peer.configured_key.and_then(|key| by_entry.get(&key));
            self.moves.push_back(match to {
                Some(to) if !old.peers.contains_key(to) => Event::Renamed { from: *id, to: *to },
                Some(_) | None => Event::Removed(*id),
            });
        }
        let changed = new
            .peers
            .iter()
            .filter(|(id, peer)| old.peers.get(id) != Some(peer));
        self.changed.extend(changed.map(|(id, _)| *id));
        let known: BTreeMap<(Reason, &str), Duration> = old
            .conflicts
            .iter()
            .map(|c| ((c.reason, c.sentence.as_str()), c.at))
            .collect();
        for conflict in &mut self.view.conflicts {
            match known.get(&(conflict.reason, conflict.sentence.as_str())) {
                Some(at) => conflict.at = *at,
                None => self.refusals.count(conflict.reason),
            }
        }
    }

    fn restand(&mut self) {
        let own = &self.records.own;
        let standing = match self.records.own_member() {
            Some(member) => Standing::Member(Box::new(member.record().clone())),
            None if self.records.tombstones.contains_key(own)
                && !self.records.members.contains_key(own) =>
            {
                Standing::Revoked
            }
            None => Standing::Stranger,
        };
        if standing == self.standing {
            return;
        }
        self.own_changed = Some(match standing {
            Standing::Revoked => Event::Revoked,
            Standing::Member(_) | Standing::Stranger => Event::OwnMembership,
        });
        self.standing = standing;
    }
}

/// What vouches comes before what is vouched for.
fn order(fact: &Fact) -> u8 {
    match fact {
        Fact::Listed(_) => 0,
        Fact::Pinned(_) => 1,
        Fact::Tombstone(_) => 2,
        Fact::Membership(_) => 3,
        Fact::Announcement { .. } => 4,
    }
}
