//! The records held, and the rules by which one is admitted.

use std::collections::{BTreeMap, BTreeSet};

use mesh_types::observation::ConfigPeer;
use mesh_types::record::{Announcement, Membership, Record, Signed, Tombstone};
use mesh_types::{AuthorityKey, DomainId, IdentityKey, IpNet, NodeKey, Now, Source, Table, WgKey};

use crate::kubernetes::Vouched;
use crate::refusal::Reason;

/// Memberships, tombstones and `[[peer]]` entries held, at most, each.
pub const NODES_MAX: usize = 10_000;
/// Bytes of a signed record ([`Signed::encoded_len`]), at most: larger ones could never be passed on.
pub const RECORD_MAX: usize = mesh_types::consts::MESSAGE_MAX - 40;
/// Unproven announcements kept for one configured key: the real one, and some room for liars.
const HINTS_MAX: usize = 4;
/// Expired records are kept that long, seconds: a wall clock that jumped ahead is set back.
const EXPIRED_KEPT: u64 = 30 * 24 * 3600;
/// Versions further ahead of our clock than this are reported, milliseconds.
const FUTURE: u64 = 24 * 3600 * 1000;

/// A membership that counts, or did until it expired.
#[derive(Debug)]
pub(crate) struct Member {
    pub voucher: Voucher,
    /// Place of its authority in the configuration; a cluster comes after them all.
    pub rank: usize,
    pub expired: bool,
}

/// Who vouches for a membership.
#[derive(Debug)]
pub(crate) enum Voucher {
    /// An authority, whose signature was checked.
    Signed {
        signed: Box<Signed<Membership>>,
        authority: AuthorityKey,
    },
    /// The API server of the cluster whose domain it is.
    Cluster(Vouched),
}

impl Member {
    pub(crate) fn record(&self) -> &Membership {
        match &self.voucher {
            Voucher::Signed { signed, .. } => signed.record(),
            Voucher::Cluster(vouched) => &vouched.record,
        }
    }

    /// What can be passed on: a cluster's word cannot.
    pub(crate) fn signed(&self) -> Option<&Signed<Membership>> {
        match &self.voucher {
            Voucher::Signed { signed, .. } => Some(signed),
            Voucher::Cluster(_) => None,
        }
    }

    pub(crate) fn vouched(&self) -> Option<&Vouched> {
        match &self.voucher {
            Voucher::Signed { .. } => None,
            Voucher::Cluster(vouched) => Some(vouched),
        }
    }

    pub(crate) fn source(&self) -> Source {
        match &self.voucher {
            Voucher::Signed { authority, .. } => Source::Signed {
                authority: *authority,
            },
            Voucher::Cluster(vouched) => Source::Kubernetes {
                domain: vouched.record.domain,
            },
        }
    }
}

/// Who has checked a record's signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Checked {
    /// Who read it.
    Before,
    /// Nobody yet.
    NotYet,
}

/// An announcement whose signature was checked.
#[derive(Debug)]
pub(crate) struct Announced {
    pub signed: Signed<Announcement>,
    /// It came through the session of the very key it names, so the node has that key.
    pub proven: bool,
}

/// What admitting a record came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admitted {
    /// Nothing new.
    Unchanged,
    /// The newest announcement of a node whose keys and standing stay.
    Refreshed,
    /// Who is a peer, under which key, with which ranges, must be decided anew.
    Decisive,
    /// A member's announcement that names other keys, or, `known`, the same that it has now shown to have.
    Keyed { known: bool },
    /// It was known, but now the node has shown to have the key.
    Proven,
    /// This very node's announcement.
    Own(u64),
}

#[derive(Debug)]
pub(crate) struct Records {
    pub own: NodeKey,
    pub own_key: WgKey,
    pub own_ranges: Vec<IpNet>,
    authorities: BTreeMap<DomainId, (usize, AuthorityKey)>,
    /// The cluster, where this node is in one.
    pub cluster: Option<DomainId>,
    /// `[[peer]]` entries of the file.
    file: Vec<ConfigPeer>,
    /// The cluster's external peers.
    externals: Vec<ConfigPeer>,
    /// Entries that stand: the file's, then the cluster's.
    pub config: Vec<ConfigPeer>,
    /// So many of them are the file's.
    of_file: usize,
    config_keys: BTreeMap<WgKey, usize>,
    listed: bool,
    /// By the key in the file.
    pub pins: BTreeMap<WgKey, NodeKey>,
    /// The reverse.
    pinned: BTreeMap<IdentityKey, WgKey>,
    pub members: Table<NodeKey, Member>,
    pub tombstones: BTreeMap<NodeKey, Signed<Tombstone>>,
    pub announced: Table<NodeKey, Announced>,
}

/// An entry that cannot stand.
pub(crate) struct Unlisted {
    pub reason: Reason,
    pub why: &'static str,
    /// The cluster's, not the file's.
    pub external: bool,
    pub entry: ConfigPeer,
}

/// Why an announcement is worth keeping.
enum Role {
    Member,
    Pinned,
    /// The pinned identity says it is in another domain now.
    Moved {
        configured: WgKey,
        from: NodeKey,
    },
    Hint,
}

impl Records {
    pub(crate) fn new(own: NodeKey, own_key: WgKey, authorities: Vec<AuthorityKey>) -> Self {
        Self {
            own,
            own_key,
            own_ranges: Vec::new(),
            authorities: ranked(authorities),
            cluster: None,
            file: Vec::new(),
            externals: Vec::new(),
            config: Vec::new(),
            of_file: 0,
            config_keys: BTreeMap::new(),
            listed: false,
            pins: BTreeMap::new(),
            pinned: BTreeMap::new(),
            members: Table::default(),
            tombstones: BTreeMap::new(),
            announced: Table::default(),
        }
    }

    pub(crate) fn set_authorities(&mut self, authorities: Vec<AuthorityKey>) {
        self.authorities = ranked(authorities);
        let known = &self.authorities;
        self.members.retain(|node, member| {
            let rank = match &member.voucher {
                Voucher::Signed { .. } => known.get(&node.domain).map(|(rank, _)| *rank),
                Voucher::Cluster(_) => Some(member.rank),
            };
            member.rank = rank.unwrap_or(member.rank);
            rank.is_some()
        });
        self.tombstones
            .retain(|node, _| known.contains_key(&node.domain));
        self.prune();
    }

    /// Domains in which overlay IPv6 addresses belong to identities.
    pub(crate) fn domains(&self) -> BTreeSet<DomainId> {
        let authorities = self.authorities.keys().copied();
        let own = [Some(self.own.domain), self.cluster];
        authorities.chain(own.into_iter().flatten()).collect()
    }

    /// Replaces the `[[peer]]` entries; gives back what cannot stand.
    pub(crate) fn list(&mut self, entries: Vec<ConfigPeer>) -> Vec<Unlisted> {
        self.file = entries;
        self.listed = true;
        self.relist()
    }

    /// Replaces the cluster's external peers; gives back what cannot stand.
    pub(crate) fn list_externals(&mut self, externals: Vec<ConfigPeer>) -> Vec<Unlisted> {
        self.externals = externals;
        self.relist()
    }

    fn relist(&mut self) -> Vec<Unlisted> {
        let mut refused = Vec::new();
        self.config.clear();
        self.config_keys.clear();
        self.of_file = 0;
        let all = self.file.iter().map(|entry| (entry, false));
        let all = all.chain(self.externals.iter().map(|entry| (entry, true)));
        for (entry, external) in all {
            let reason = if entry.key == self.own_key {
                Some((Reason::OwnKey, "has this node's own key"))
            } else if self.config_keys.contains_key(&entry.key) {
                Some((Reason::DuplicateKey, "has the key of an earlier entry"))
            } else if self.config.len() >= NODES_MAX {
                Some((Reason::Full, "is one of too many"))
            } else if is_zero(&entry.key) {
                Some((Reason::Malformed, "has no valid key"))
            } else {
                None
            };
            if let Some((reason, why)) = reason {
                refused.push(Unlisted {
                    reason,
                    why,
                    external,
                    entry: entry.clone(),
                });
                continue;
            }
            self.config_keys.insert(entry.key, self.config.len());
            self.config.push(entry.clone());
            self.of_file += usize::from(!external);
        }
        // Until the file has been read nobody knows which pins it holds.
        if self.listed {
            let (keys, config) = (&self.config_keys, &self.config);
            self.pins
                .retain(|key, _| keys.get(key).is_some_and(|index| !config[*index].plain));
            let pins = &self.pins;
            self.pinned.retain(|_, key| pins.contains_key(key));
            self.prune();
        }
        refused
    }

    /// Is the entry that lists this key the cluster's?
    pub(crate) fn is_external(&self, key: &WgKey) -> bool {
        self.config_keys
            .get(key)
            .is_some_and(|index| *index >= self.of_file)
    }

    /// Replaces whom the cluster vouches for; gives the nodes for which that is new or differs, and those that are gone.
    pub(crate) fn vouch(&mut self, mut vouched: BTreeMap<NodeKey, Vouched>) -> BTreeSet<NodeKey> {
        let mut changed = BTreeSet::new();
        self.members.retain(|node, member| {
            let Voucher::Cluster(held) = &mut member.voucher else {
                // Nobody's domain is both an authority's and a cluster's; if it were, the signature would count.
                vouched.remove(node);
                return true;
            };
            match vouched.remove(node) {
                Some(now) if now == *held => true,
                Some(now) => {
                    *held = now;
                    changed.insert(*node)
                }
                None => {
                    changed.insert(*node);
                    false
                }
            }
        });
        for (node, vouched) in vouched {
            changed.insert(node);
            let member = Member {
                voucher: Voucher::Cluster(vouched),
                rank: usize::MAX,
                expired: false,
            };
            self.members.insert(node, member);
        }
        if !changed.is_empty() {
            self.prune();
        }
        changed
    }

    /// The entry that lists this key.
    pub(crate) fn entry(&self, key: &WgKey) -> Option<&ConfigPeer> {
        self.config_keys
            .get(key)
            .and_then(|index| self.config.get(*index))
    }

    pub(crate) fn admit_membership(
        &mut self,
        signed: &Signed<Membership>,
        keep_expired: bool,
        now: Now,
    ) -> Result<Admitted, Reason> {
        let record = signed.record();
        let node = record.node();
        let (rank, authority) = self.authority(signed)?;
        if let Some(held) = self.members.get(&node) {
            if held.signed() == Some(signed) {
                return Ok(Admitted::Unchanged);
            }
            if held.signed().is_none() || held.record().serial >= record.serial {
                return Err(Reason::Stale);
            }
        }
        if self.tombstone_serial(&node) >= Some(record.serial) {
            return Err(Reason::Revoked);
        }
        let expired = is_expired(record, now);
        if expired && !keep_expired {
            return Err(Reason::Expired);
        }
        let room = self.members.len() < NODES_MAX
            || self.members.contains_key(&node)
            || node.identity == self.own.identity;
        if !room {
            return Err(Reason::Full);
        }
        if !signed.verify_authority(&authority) {
            return Err(Reason::Forged);
        }
        self.members.insert(
            node,
            Member {
                voucher: Voucher::Signed {
                    signed: Box::new(signed.clone()),
                    authority,
                },
                rank,
                expired,
            },
        );
        Ok(Admitted::Decisive)
    }

    pub(crate) fn admit_tombstone(
        &mut self,
        signed: &Signed<Tombstone>,
    ) -> Result<Admitted, Reason> {
        let record = signed.record();
        let node = record.node();
        let (_, authority) = self.authority(signed)?;
        match self.tombstones.get(&node) {
            Some(held) if held == signed => return Ok(Admitted::Unchanged),
            Some(held) if held.record().serial >= record.serial => return Err(Reason::Stale),
            None if self.tombstones.len() >= NODES_MAX && node.identity != self.own.identity => {
                return Err(Reason::Full);
            }
            Some(_) | None => {}
        }
        if !signed.verify_authority(&authority) {
            return Err(Reason::Forged);
        }
        self.tombstones.insert(node, signed.clone());
        if let Some(member) = self.members.get(&node)
            && member.signed().is_some()
            && member.record().serial <= record.serial
        {
            self.members.remove(&node);
            self.prune();
        }
        Ok(Admitted::Decisive)
    }

    pub(crate) fn admit_announcement(
        &mut self,
        signed: &Signed<Announcement>,
        spoken_by: Option<WgKey>,
        checked: Checked,
    ) -> Result<Admitted, Reason> {
        let record = signed.record();
        let node = record.node();
        let is_genuine = || checked == Checked::Before || signed.verify_identity();
        let sane = signed.encoded_len() <= RECORD_MAX
            && !is_zero(&record.key)
            && !record.next_key.as_ref().is_some_and(is_zero)
            && record.protocol_min <= record.protocol_max;
        if !sane {
            return Err(Reason::Malformed);
        }
        if node.identity == self.own.identity {
            return match (is_genuine(), node.domain == self.own.domain) {
                (false, _) => Err(Reason::Forged),
                (true, true) => Ok(Admitted::Own(record.seq)),
                (true, false) => Ok(Admitted::Unchanged),
            };
        }
        let proven = spoken_by == Some(record.key);
        let held = self.announced.get(&node);
        let known = held.is_some_and(|held| held.signed == *signed);
        if known && !(proven && held.is_some_and(|held| !held.proven)) {
            return Ok(Admitted::Unchanged);
        }
        if !known && held.is_some_and(|held| held.signed.record().seq >= record.seq) {
            return Err(Reason::Stale);
        }
        let role = self.role(record)?;
        // What stands on a Node is held, so that the conflict stands as long as it does: `view` gives nobody our key.
        let ours = record.key == self.own_key || record.next_key == Some(self.own_key);
        if ours && checked == Checked::NotYet {
            return Err(Reason::OwnKey);
        }
        let same_keys = held.is_some_and(|held| {
            let old = held.signed.record();
            old.key == record.key && old.next_key == record.next_key
        });
        let was_proven = same_keys && held.is_some_and(|held| held.proven);
        if !known && !is_genuine() {
            return Err(Reason::Forged);
        }
        let mut pinned = false;
        let mut decisive = !same_keys || (proven && !was_proven);
        // Behind a key of the file is somebody else, or the same node: that is for everybody to be decided.
        let listed = |key: &WgKey| self.config_keys.contains_key(key);
        let by_file = held.is_some_and(|held| listed(&held.signed.record().key))
            || listed(&record.key)
            || record.next_key.as_ref().is_some_and(listed);
        let keyed = matches!(role, Role::Member) && !by_file;
        match role {
            Role::Pinned => {}
            Role::Moved { configured, from } => {
                self.pins.insert(configured, node);
                self.announced.remove(&from);
                decisive = true;
            }
            Role::Member | Role::Hint if proven => pinned = self.pin(record.key, node)?,
            Role::Hint if !same_keys && self.hints(&record.key).count() >= HINTS_MAX => {
                return Err(Reason::Full);
            }
            Role::Member | Role::Hint => {}
        }
        self.announced.insert(
            node,
            Announced {
                signed: signed.clone(),
                proven: proven || was_proven,
            },
        );
        if pinned {
            self.prune();
        }
        Ok(match (known, decisive || pinned) {
            (_, true) if keyed && !pinned => Admitted::Keyed { known },
            (true, _) => Admitted::Proven,
            (false, true) => Admitted::Decisive,
            (false, false) => Admitted::Refreshed,
        })
    }

    /// Takes back a pin from disk.
    pub(crate) fn admit_pin(&mut self, key: WgKey, node: NodeKey) -> Result<Admitted, Reason> {
        if self.listed {
            return Ok(if self.pin(key, node)? {
                Admitted::Decisive
            } else {
                Admitted::Unchanged
            });
        }
        if self.pins.len() >= NODES_MAX {
            return Err(Reason::Full);
        }
        if self.pinned.contains_key(&node.identity) || self.pins.contains_key(&key) {
            return Err(Reason::PinTwice);
        }
        self.pins.insert(key, node);
        self.pinned.insert(node.identity, key);
        Ok(Admitted::Decisive)
    }

    /// The key in the file behind which a node is.
    pub(crate) fn pinned_key(&self, node: &NodeKey) -> Option<&WgKey> {
        self.pinned
            .get(&node.identity)
            .filter(|key| self.pins.get(key) == Some(node))
    }

    /// Sets aside what has expired, takes back what has not (clocks are set back), and forgets what is long past.
    /// Gives whether anything came or went.
    pub(crate) fn age(&mut self, now: Now) -> bool {
        let mut changed = false;
        let long_past = |not_after: Option<u64>| {
            not_after.is_some_and(|t| t.saturating_add(EXPIRED_KEPT) < now.unix_secs())
        };
        self.members
            .retain(|_, member| !long_past(member.record().not_after));
        for member in self.members.values_mut() {
            let expired = is_expired(member.record(), now);
            changed |= expired != member.expired;
            member.expired = expired;
        }
        let before = self.tombstones.len();
        self.tombstones
            .retain(|_, tombstone| !long_past(tombstone.record().not_after));
        changed | (before != self.tombstones.len())
    }

    /// Unix seconds at which the next membership expires.
    pub(crate) fn next_expiry(&self) -> Option<u64> {
        let valid = self.members.values().filter(|member| !member.expired);
        valid.filter_map(|member| member.record().not_after).min()
    }

    /// The memberships of this node that count, best first in the own domain, then newest.
    pub(crate) fn own_member(&self) -> Option<&Member> {
        let own = self
            .members
            .iter()
            .filter(|(node, member)| node.identity == self.own.identity && !member.expired);
        own.max_by_key(|(node, member)| (node.domain == self.own.domain, member.record().serial))
            .map(|(_, member)| member)
    }

    /// Announcements of unproven identity that name a configured key.
    pub(crate) fn hints(&self, key: &WgKey) -> impl Iterator<Item = &Announced> {
        let key = *key;
        let open =
            self.entry(&key).is_some_and(|entry| !entry.plain) && !self.pins.contains_key(&key);
        self.announced.iter().filter_map(move |(node, announced)| {
            let hint =
                open && announced.signed.record().key == key && self.pinned_key(node).is_none();
            hint.then_some(announced)
        })
    }

    pub(crate) fn tombstone_serial(&self, node: &NodeKey) -> Option<u64> {
        self.tombstones.get(node).map(|t| t.record().serial)
    }

    fn authority<T: Record>(&self, signed: &Signed<T>) -> Result<(usize, AuthorityKey), Reason> {
        if signed.encoded_len() > RECORD_MAX {
            return Err(Reason::Malformed);
        }
        self.authorities
            .get(&signed.record().node().domain)
            .copied()
            .ok_or(Reason::Domain)
    }

    fn role(&self, record: &Announcement) -> Result<Role, Reason> {
        let node = record.node();
        let pin = self
            .pinned
            .get(&node.identity)
            .and_then(|key| self.pins.get_key_value(key));
        if let Some((configured, pin)) = pin {
            if *pin == node {
                return Ok(Role::Pinned);
            }
            let held = self.announced.get(pin).map(|a| a.signed.record().seq);
            if held < Some(record.seq) {
                return Ok(Role::Moved {
                    configured: *configured,
                    from: *pin,
                });
            }
            return Err(Reason::Stale);
        }
        if self.members.contains_key(&node) {
            return Ok(Role::Member);
        }
        let hint = self.entry(&record.key).is_some_and(|entry| !entry.plain)
            && !self.pins.contains_key(&record.key);
        match hint {
            true => Ok(Role::Hint),
            false if self.tombstones.contains_key(&node) => Err(Reason::Revoked),
            false if self.pins.contains_key(&record.key) => Err(Reason::PinMismatch),
            false => Err(Reason::Unknown),
        }
    }

    /// Ties an identity to a configured key; gives whether that is new.
    fn pin(&mut self, key: WgKey, node: NodeKey) -> Result<bool, Reason> {
        if self.entry(&key).is_none_or(|entry| entry.plain) {
            return Ok(false);
        }
        match self.pins.get(&key) {
            Some(pin) if *pin == node => return Ok(false),
            Some(_) => return Err(Reason::PinMismatch),
            None => {}
        }
        if self.pinned.contains_key(&node.identity) {
            return Err(Reason::PinTwice);
        }
        self.pins.insert(key, node);
        self.pinned.insert(node.identity, key);
        Ok(true)
    }

    /// Drops announcements that nobody vouches for any more.
    fn prune(&mut self) {
        let gone: Vec<NodeKey> = self
            .announced
            .iter()
            .filter(|(node, announced)| {
                let kept = self.members.contains_key(node)
                    || self.pinned_key(node).is_some()
                    || self.role(announced.signed.record()).is_ok();
                !kept
            })
            .map(|(node, _)| *node)
            .collect();
        for node in gone {
            self.announced.remove(&node);
        }
    }
}

/// Is it dated further ahead of our clock than clocks of sane machines differ?
pub(crate) fn is_future(version: u64, now: Now) -> bool {
    version > now.unix_millis().saturating_add(FUTURE)
}

fn is_expired(record: &Membership, now: Now) -> bool {
    record.not_after.is_some_and(|t| t < now.unix_secs())
}

fn is_zero(key: &WgKey) -> bool {
    key.0 == [0; 32]
}

fn ranked(authorities: Vec<AuthorityKey>) -> BTreeMap<DomainId, (usize, AuthorityKey)> {
    let mut out = BTreeMap::new();
    for (rank, authority) in authorities.into_iter().enumerate() {
        out.entry(DomainId::standalone(Some(&authority)))
            .or_insert((rank, authority));
    }
    out
}
