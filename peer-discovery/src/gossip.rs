//! Digests and deltas: how two directories come to hold the same records.
//!
//! A digest page lists the versions held for every node whose idx lies in its interval; an idx that is not
//! in it is unknown to the sender. The answer carries what the sender lacks and names what we lack.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use mesh_types::consts::MESSAGE_MAX;
use mesh_types::message::{Delta, Digest, DigestEntry};
use mesh_types::record::{Announcement, Membership, Signed, Tombstone};
use mesh_types::{DomainId, IdentityKey, Idx, NodeKey};

use crate::records::{Member, Records};

/// Deltas in one answer: enough for some 1,000 nodes; the next digest fetches the rest.
const DELTAS_MAX: usize = 256;
/// Names wanted in one delta.
const WANT_MAX: usize = 100;
/// Domains of one identity in a digest: more than anybody has.
const DOMAINS_MAX: usize = 16;
/// CBOR of a delta without its records, at most: message and map heads, five keys, four list heads, seq.
const DELTA_HEAD: usize = 2 + 1 + 5 + 4 * 3 + 9;
/// CBOR of a digest without its entries, at most: message and map heads, four keys, two idx, list head, seq.
const DIGEST_HEAD: usize = 2 + 1 + 4 + 2 * 9 + 3 + 9;
/// CBOR of an idx.
const IDX_LEN: usize = 9;

/// What is held, as gossip sees it.
pub(crate) struct Holdings<'a> {
    pub records: &'a Records,
    pub index: &'a BTreeSet<(Idx, NodeKey)>,
    /// Seqs of announcements that were refused because nobody here vouches for the node: as good as held.
    pub unwanted: &'a BTreeMap<Idx, u64>,
    pub own: Option<&'a Signed<Announcement>>,
}

/// All records of one node.
#[derive(Default)]
struct Held<'a> {
    membership: Option<&'a Signed<Membership>>,
    announcement: Option<&'a Signed<Announcement>>,
    tombstone: Option<&'a Signed<Tombstone>>,
    expired: bool,
}

impl<'a> Holdings<'a> {
    pub(crate) fn digest_pages(&self) -> Vec<Digest> {
        let mut groups: BTreeMap<Idx, Vec<DigestEntry>> = BTreeMap::new();
        for (idx, node) in self.index {
            let group = groups.entry(*idx).or_default();
            if group.len() < DOMAINS_MAX {
                group.push(self.held(node).entry(*idx));
            }
        }
        for (idx, seq) in self.unwanted {
            groups.entry(*idx).or_insert_with(|| {
                let held = Held::default().entry(*idx);
                vec![DigestEntry {
                    announcement: *seq,
                    ..held
                }]
            });
        }
        let mut pages = Vec::new();
        let mut page = Digest {
            from: Idx([0; 8]),
            to: Idx([0xff; 8]),
            entries: Vec::new(),
            seq: 0,
        };
        let mut size = DIGEST_HEAD;
        for (idx, group) in groups {
            let len: usize = group.iter().map(entry_len).sum();
            if size + len > MESSAGE_MAX {
                let next = Digest {
                    from: idx,
                    to: Idx([0xff; 8]),
                    entries: Vec::new(),
                    seq: 0,
                };
                let mut full = std::mem::replace(&mut page, next);
                full.to = before(idx);
                pages.push(full);
                size = DIGEST_HEAD;
            }
            size += len;
            page.entries.extend(group);
        }
        pages.push(page);
        pages
    }

    pub(crate) fn answer_digest(&self, digest: &Digest) -> Vec<Delta> {
        if digest.from > digest.to {
            return Vec::new();
        }
        let mut theirs = digest.entries.clone();
        theirs.retain(|entry| (digest.from..=digest.to).contains(&entry.node));
        theirs.sort_by_key(|entry| entry.node);
        let mut packer = Packer::default();
        let mut ours = self.between(digest.from, digest.to).peekable();
        let mut nodes = Vec::new();
        while let Some((idx, node)) = ours.next() {
            nodes.push(node);
            if ours.peek().is_some_and(|(next, _)| next == idx) {
                continue;
            }
            let from = theirs.partition_point(|entry| entry.node < *idx);
            let to = theirs.partition_point(|entry| entry.node <= *idx);
            let entries = &theirs[from..to];
            let single = nodes.len() == 1 && entries.len() <= 1;
            for held in nodes.drain(..).map(|node| self.held(node)) {
                packer.add(&held.lacking(entries, single));
            }
            if packer.is_full() {
                break;
            }
        }
        for entries in theirs.chunk_by(|a, b| a.node == b.node) {
            let idx = entries[0].node;
            if self.wants(idx, entries) {
                packer.want(idx);
            }
        }
        packer.finish()
    }

    pub(crate) fn answer_want(&self, want: &[Idx]) -> Vec<Delta> {
        let mut packer = Packer::default();
        for idx in want.iter().take(WANT_MAX).collect::<BTreeSet<_>>() {
            for node in self.nodes(*idx) {
                packer.add(&self.held(node).lacking(&[], true));
            }
        }
        packer.finish()
    }

    /// Nodes whose identity has this idx.
    pub(crate) fn nodes(&self, idx: Idx) -> impl Iterator<Item = &'a NodeKey> {
        self.between(idx, idx).map(|(_, node)| node)
    }

    fn between(&self, from: Idx, to: Idx) -> impl Iterator<Item = &'a (Idx, NodeKey)> {
        let (from, to) = ((from, LOWEST), (to, HIGHEST));
        self.index
            .range((Bound::Included(from), Bound::Included(to)))
    }

    fn held(&self, node: &NodeKey) -> Held<'a> {
        let member = self.records.members.get(node);
        let own = self
            .own
            .filter(|own| mesh_types::record::Record::node(own.record()) == *node);
        Held {
            membership: member.and_then(Member::signed),
            announcement: own.or(self.records.announced.get(node).map(|a| &a.signed)),
            tombstone: self.records.tombstones.get(node),
            expired: member.is_some_and(|member| member.expired),
        }
    }

    fn wants(&self, idx: Idx, entries: &[DigestEntry]) -> bool {
        let ours: Vec<DigestEntry> = self
            .nodes(idx)
            .map(|node| self.held(node).entry(idx))
            .collect();
        let single = ours.len() <= 1 && entries.len() == 1;
        let buried = if single {
            ours.first().map_or(0, |ours| ours.tombstone)
        } else {
            0
        };
        let lacks = |theirs: u64, version: fn(&DigestEntry) -> u64| {
            theirs != 0
                && !ours
                    .iter()
                    .any(|ours| covers(version(ours), theirs, single))
        };
        let unwanted = self.unwanted.get(&idx).copied().unwrap_or(0);
        entries.iter().any(|entry| {
            let gone = buried != 0 && entry.membership <= buried;
            lacks(entry.tombstone, |e| e.tombstone)
                || (!gone && lacks(entry.membership, |e| e.membership))
                || (!gone
                    && entry.announcement > unwanted
                    && lacks(entry.announcement, |e| e.announcement))
        })
    }
}

impl<'a> Held<'a> {
    fn entry(&self, idx: Idx) -> DigestEntry {
        DigestEntry {
            node: idx,
            membership: self.membership.map_or(0, |m| m.record().serial),
            announcement: self.announcement.map_or(0, |a| a.record().seq),
            tombstone: self.tombstone.map_or(0, |t| t.record().serial),
        }
    }

    /// The part that somebody who holds `entries` lacks.
    fn lacking(&self, entries: &[DigestEntry], single: bool) -> Self {
        let has = |ours: u64, version: fn(&DigestEntry) -> u64| {
            entries.iter().any(|e| covers(version(e), ours, single))
        };
        let buried = |serial: u64| single && entries.iter().any(|e| e.tombstone >= serial.max(1));
        Self {
            membership: self.membership.filter(|m| {
                let serial = m.record().serial;
                !self.expired && !has(serial, |e| e.membership) && !buried(serial)
            }),
            announcement: self
                .announcement
                .filter(|a| !has(a.record().seq, |e| e.announcement)),
            tombstone: self
                .tombstone
                .filter(|t| !has(t.record().serial, |e| e.tombstone)),
            expired: self.expired,
        }
    }

    fn len(&self) -> usize {
        self.membership.map_or(0, Signed::encoded_len)
            + self.announcement.map_or(0, Signed::encoded_len)
            + self.tombstone.map_or(0, Signed::encoded_len)
    }
}

/// Does one who holds `held` need no `version`? Where an identity is in several domains, entries do not say
/// which is which, and only the very version counts.
fn covers(held: u64, version: u64, single: bool) -> bool {
    if single {
        held >= version
    } else {
        held == version
    }
}

/// Fills deltas up to [`MESSAGE_MAX`].
#[derive(Default)]
pub(crate) struct Packer {
    done: Vec<Delta>,
    open: Delta,
    size: usize,
}

impl Packer {
    pub(crate) fn membership(&mut self, record: &Signed<Membership>) {
        self.reserve(record.encoded_len());
        self.open.memberships.push(record.clone());
    }

    pub(crate) fn announcement(&mut self, record: &Signed<Announcement>) {
        self.reserve(record.encoded_len());
        self.open.announcements.push(record.clone());
    }

    pub(crate) fn tombstone(&mut self, record: &Signed<Tombstone>) {
        self.reserve(record.encoded_len());
        self.open.tombstones.push(record.clone());
    }

    pub(crate) fn finish(mut self) -> Vec<Delta> {
        self.flush();
        self.done
    }

    /// Keeps the records of a node in one delta where they fit: an announcement counts only beside or after
    /// its membership, and datagrams overtake each other.
    fn add(&mut self, held: &Held<'_>) {
        if self.size + held.len() > MESSAGE_MAX {
            self.flush();
        }
        if let Some(record) = held.tombstone {
            self.tombstone(record);
        }
        if let Some(record) = held.membership {
            self.membership(record);
        }
        if let Some(record) = held.announcement {
            self.announcement(record);
        }
    }

    fn want(&mut self, idx: Idx) {
        if self.open.want.len() >= WANT_MAX {
            self.flush();
        }
        self.reserve(IDX_LEN);
        self.open.want.push(idx);
    }

    fn is_full(&self) -> bool {
        self.done.len() >= DELTAS_MAX
    }

    fn reserve(&mut self, len: usize) {
        if self.size + len > MESSAGE_MAX {
            self.flush();
        }
        self.size = self.size.max(DELTA_HEAD) + len;
    }

    fn flush(&mut self) {
        if self.open != Delta::default() {
            self.done.push(std::mem::take(&mut self.open));
        }
        self.size = DELTA_HEAD;
    }
}

const LOWEST: NodeKey = NodeKey {
    domain: DomainId([0; 16]),
    identity: IdentityKey([0; 32]),
};
const HIGHEST: NodeKey = NodeKey {
    domain: DomainId([0xff; 16]),
    identity: IdentityKey([0xff; 32]),
};

/// The idx below, which exists because it follows another.
fn before(idx: Idx) -> Idx {
    Idx(u64::from_be_bytes(idx.0).saturating_sub(1).to_be_bytes())
}

/// CBOR of an entry (RFC 8949 3).
fn entry_len(entry: &DigestEntry) -> usize {
    let uint = |value: u64| match value {
        0..=23 => 1,
        24..=0xff => 2,
        0x100..=0xffff => 3,
        0x1_0000..=0xffff_ffff => 5,
        _ => 9,
    };
    1 + IDX_LEN + uint(entry.membership) + uint(entry.announcement) + uint(entry.tombstone)
}
