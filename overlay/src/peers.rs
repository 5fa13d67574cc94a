//! The records of all peers, and which of them wait for something: thousands are kept, few have anything due.

use std::collections::BTreeSet;
use std::ops::Deref;
use std::time::Instant;

use mesh_types::{PeerId, Table};

use crate::calls::Calls;
use crate::peer::PeerRecord;

/// Records by peer. Whoever changes one says so by how it is asked for; [`Peers::follow`] then makes the indexes follow.
#[derive(Debug, Default)]
pub(crate) struct Peers {
    records: Table<PeerId, PeerRecord>,
    /// Handed out to be changed since the indexes followed.
    touched: BTreeSet<PeerId>,
    /// When state, key or keepalive of whom changes by time alone, as [`PeerRecord::armed`] says too.
    deadlines: BTreeSet<(Instant, PeerId)>,
    /// Who is to be greeted.
    greeted: BTreeSet<PeerId>,
    /// Whom a message may reach: there is a path, or was a session.
    met: BTreeSet<PeerId>,
}

impl Deref for Peers {
    type Target = Table<PeerId, PeerRecord>;

    fn deref(&self) -> &Self::Target {
        &self.records
    }
}

impl Peers {
    /// A record to change.
    pub(crate) fn get_mut(&mut self, id: &PeerId) -> Option<&mut PeerRecord> {
        let record = self.records.get_mut(id)?;
        self.touched.insert(*id);
        Some(record)
    }

    /// The same, made where there is none.
    pub(crate) fn get_or_insert_with(
        &mut self,
        id: PeerId,
        make: impl FnOnce() -> PeerRecord,
    ) -> &mut PeerRecord {
        self.touched.insert(id);
        self.records.get_or_insert_with(id, make)
    }

    /// Calls to a peer, to change: no index tells of them.
    pub(crate) fn calls(&mut self, id: &PeerId) -> Option<&mut Calls> {
        self.records.get_mut(id).map(|record| &mut record.calls)
    }

    /// All records, to change.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (&PeerId, &mut PeerRecord)> {
        self.touched.extend(self.records.keys().copied());
        self.records.iter_mut()
    }

    pub(crate) fn insert(&mut self, id: PeerId, record: PeerRecord) {
        self.remove(&id);
        self.touched.insert(id);
        self.records.insert(id, record);
    }

    pub(crate) fn remove(&mut self, id: &PeerId) -> Option<PeerRecord> {
        let mut record = self.records.remove(id)?;
        if let Some(at) = record.armed.take() {
            self.deadlines.remove(&(at, *id));
        }
        self.greeted.remove(id);
        self.met.remove(id);
        self.touched.remove(id);
        Some(record)
    }

    /// Makes the indexes follow the records.
    pub(crate) fn follow(&mut self) {
        while let Some(id) = self.touched.pop_first() {
            let Some(record) = self.records.get_mut(&id) else {
                continue;
            };
            let deadline = record.deadline();
            if deadline != record.armed {
                if let Some(at) = record.armed {
                    self.deadlines.remove(&(at, id));
                }
                self.deadlines.extend(deadline.map(|at| (at, id)));
                record.armed = deadline;
            }
            keep(&mut self.greeted, id, record.greeting.is_some());
            keep(&mut self.met, id, record.met());
        }
    }

    /// All who may have a path or a session, in the order of their names.
    pub(crate) fn met(&self) -> impl Iterator<Item = &PeerId> {
        self.met.union(&self.touched)
    }

    /// The earliest deadline.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let touched = self.touched.iter();
        let touched = touched.filter_map(|id| self.records.get(id)?.deadline());
        let first = self.deadlines.first().map(|(at, _)| *at);
        touched.chain(first).min()
    }

    /// Whose deadline has come, in the order of their names.
    pub(crate) fn due(&mut self, now: Instant) -> BTreeSet<PeerId> {
        self.follow();
        let due = self.deadlines.iter().take_while(|(at, _)| *at <= now);
        due.map(|(_, id)| *id).collect()
    }

    /// Who is to be greeted.
    pub(crate) fn greeted(&mut self) -> BTreeSet<PeerId> {
        self.follow();
        self.greeted.clone()
    }
}

fn keep(set: &mut BTreeSet<PeerId>, id: PeerId, wanted: bool) {
    if wanted {
        set.insert(id);
    } else {
        set.remove(&id);
    }
}

#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "a test's clock has to start somewhere"
)]
mod tests {
    use std::time::Duration;

    use mesh_types::WgKey;

    use super::*;

    #[test]
    fn a_deadline_is_found_however_a_record_came_to_it_and_goes_with_the_record() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let key = |n| WgKey([n; 32]);
        let id = |n| PeerId::Key(key(n));
        let mut peers = Peers::default();
        for n in 1..4 {
            peers.insert(id(n), PeerRecord::new(key(n), start));
        }
        let patience = peers.deadline().expect("they connect");
        peers.follow();
        assert_eq!(peers.deadline(), Some(patience));
        assert_eq!(peers.due(patience).len(), 3);
        peers.get_mut(&id(2)).expect("a record").retired = Some((key(9), start + second));
        assert_eq!(peers.deadline(), Some(start + second));
        assert_eq!(peers.due(start + second), [id(2)].into());
        let record = peers.remove(&id(2)).expect("a record");
        assert_eq!(peers.deadline(), Some(patience));
        peers.insert(id(5), record);
        assert_eq!(peers.due(start + second), [id(5)].into());
        for (_, record) in peers.iter_mut() {
            record.state = crate::snapshot::PeerState::Down;
            record.retired = None;
        }
        peers.follow();
        assert_eq!(peers.deadline(), None);
        assert!(peers.due(start + 100 * second).is_empty());
    }

    #[test]
    fn whoever_was_met_is_among_the_met_at_once_and_until_that_is_forgotten() {
        let start = Instant::now();
        let id = PeerId::Key(WgKey([1; 32]));
        let met = |peers: &Peers| peers.met().any(|met| *met == id);
        let mut peers = Peers::default();
        peers.insert(id, PeerRecord::new(WgKey([1; 32]), start));
        peers.follow();
        assert!(!met(&peers));
        peers.get_mut(&id).expect("a record").path_since = Some(start);
        assert!(met(&peers));
        peers.follow();
        assert!(met(&peers));
        let record = peers.get_mut(&id).expect("a record");
        (record.path_since, record.heard) = (None, Some(start));
        peers.follow();
        assert!(met(&peers));
        peers.get_mut(&id).expect("a record").heard = None;
        peers.follow();
        assert!(!met(&peers));
    }
}
