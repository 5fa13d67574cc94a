//! What searches may send: they go to ports that nobody has confirmed, so they are counted thrice.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use mesh_types::PeerId;

use super::{HOLD, Method};
use crate::budget::{Bucket, Rate};

/// All searches of a node together: 1000 in any second.
const NODE: Rate = Rate::new(980, 20);
/// Searches at once.
const AT_ONCE: usize = 2;
/// Per peer and [`WINDOW`], where one side has one port for all: 1150 probes find 99 %, and some more.
const PER_PEER: u32 = 2048;
/// Per peer and [`WINDOW`], block against block: 4400 each in blocks of 2048 find 99 %, twice.
const PER_PEER_CROSS: u32 = 9000;
/// See [`PER_PEER`].
const WINDOW: Duration = Duration::from_secs(600);
/// Ports that a peer takes without a search: its candidates, and those of relays that are tried. Of many peers not
/// all are sought at once: half of the ports at most are kept for them.
const PORTS_PER_PEER: usize = 32;
/// A search goes on only so long after the peer last called: it must want this.
const CALLED: Duration = Duration::from_secs(10);

/// The node's share.
#[derive(Debug, Default)]
pub(crate) struct Searches {
    rate: Bucket,
    running: BTreeSet<PeerId>,
    /// Ports of the own translator that a peer's search has taken, or samples of them, and until when they are taken.
    taken: BTreeMap<Option<PeerId>, (usize, Instant)>,
    /// Peers there are: each needs some ports without any search.
    pub(crate) peers: usize,
    /// Peers behind the own translator: they know of the same block only, and search in it too.
    pub(crate) neighbours: usize,
}

impl Searches {
    /// May a search of this peer run?
    pub(crate) fn begin(&mut self, peer: PeerId) -> bool {
        if self.running.len() < AT_ONCE {
            self.running.insert(peer);
        }
        self.running.contains(&peer)
    }

    /// Ports of the own translator that this peer's search may take, where all together may take so many.
    pub(crate) fn room(&mut self, peer: PeerId, all: usize, now: Instant) -> usize {
        self.taken.retain(|_, (_, until)| *until > now);
        let others = self.taken.iter().filter(|(of, _)| **of != Some(peer));
        let others: usize = others.map(|(_, (count, _))| count).sum();
        let ours = all / (1 + self.neighbours);
        let reserve = (self.peers * PORTS_PER_PEER).min(ours / 2);
        ours.saturating_sub(others + reserve)
    }

    /// It, or who samples, takes so many, and keeps them for as long as translators remember.
    pub(crate) fn occupy(&mut self, of: Option<PeerId>, count: usize, now: Instant) {
        self.taken.insert(of, (count, now + HOLD));
    }

    /// It is over.
    pub(crate) fn end(&mut self, peer: &PeerId) {
        self.running.remove(peer);
    }
}

/// One peer's share.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Share {
    since: Option<Instant>,
    spent: u32,
    called: Option<Instant>,
}

impl Share {
    /// The peer called, or answered a call.
    pub(crate) fn called(&mut self, now: Instant) {
        self.called = Some(now);
    }

    /// Has the peer called a moment ago?
    pub(crate) fn is_wanted(&self, now: Instant) -> bool {
        self.called
            .is_some_and(|at| now.saturating_duration_since(at) <= CALLED)
    }

    /// How many probes are left.
    pub(crate) fn left(&self, method: Method, now: Instant) -> usize {
        let limit = match method {
            Method::Cross => PER_PEER_CROSS,
            Method::Guess | Method::Spray | Method::Trace | Method::Fan | Method::Meet => PER_PEER,
        };
        let current = self
            .since
            .is_some_and(|at| now.saturating_duration_since(at) < WINDOW);
        let spent = if current { self.spent } else { 0 };
        usize::try_from(limit.saturating_sub(spent)).unwrap_or_default()
    }

    /// Takes one probe of this peer's share and of the node's.
    pub(crate) fn take(&mut self, node: &mut Searches, method: Method, now: Instant) -> bool {
        if !self.is_wanted(now) || self.left(method, now) == 0 || !node.rate.take(NODE, now) {
            return false;
        }
        if self
            .since
            .is_none_or(|at| now.saturating_duration_since(at) >= WINDOW)
        {
            self.since = Some(now);
            self.spent = 0;
        }
        self.spent += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(
        clippy::disallowed_methods,
        reason = "tests need some instant to start from"
    )]
    fn start() -> Instant {
        Instant::now()
    }

    /// Tries once a millisecond; how many were let through, with a call every second.
    fn sent(method: Method, time: Duration, calls: Duration) -> usize {
        let (mut node, mut share, start) = (Searches::default(), Share::default(), start());
        (0..u64::try_from(time.as_millis()).unwrap())
            .map(Duration::from_millis)
            .filter(|at| {
                if *at < calls {
                    share.called(start + *at);
                }
                share.take(&mut node, method, start + *at)
            })
            .count()
    }

    #[test]
    fn a_peer_gets_its_share_in_ten_minutes_and_no_more() {
        let minutes = Duration::from_secs(599);
        assert_eq!(sent(Method::Spray, minutes, minutes), 2048);
        assert_eq!(sent(Method::Cross, minutes, minutes), 9000);
    }

    #[test]
    fn a_search_ends_ten_seconds_after_the_last_call() {
        let (mut node, mut share, start) = (Searches::default(), Share::default(), start());
        assert!(!share.take(&mut node, Method::Fan, start), "nobody called");
        share.called(start);
        assert!(share.take(&mut node, Method::Fan, start + CALLED));
        let late = start + CALLED + Duration::from_millis(1);
        assert!(!share.take(&mut node, Method::Fan, late));
    }

    #[test]
    fn all_searches_together_stay_below_a_thousand_a_second() {
        let (mut node, start) = (Searches::default(), start());
        let mut shares = [Share::default(), Share::default()];
        let mut times = Vec::new();
        for step in 0..40_000_u32 {
            let now = start + Duration::from_micros(100) * step;
            for share in &mut shares {
                share.called(now);
                if share.take(&mut node, Method::Cross, now) {
                    times.push(now);
                }
            }
        }
        assert!(times.len() > 3_900);
        assert!(
            times
                .windows(1001)
                .all(|w| w[1000] - w[0] >= Duration::from_secs(1))
        );
    }

    #[test]
    fn two_searches_run_at_once() {
        let mut node = Searches::default();
        let peers: Vec<_> = (0..3)
            .map(|n| PeerId::Key(mesh_types::WgKey([n; 32])))
            .collect();
        assert!(node.begin(peers[0]) && node.begin(peers[1]) && node.begin(peers[0]));
        assert!(!node.begin(peers[2]));
        node.end(&peers[0]);
        assert!(node.begin(peers[2]));
    }

    #[test]
    fn members_behind_one_translator_divide_its_ports() {
        let peer = PeerId::Key(mesh_types::WgKey([1; 32]));
        let mut node = Searches {
            peers: 3,
            neighbours: 2,
            ..Searches::default()
        };
        assert_eq!(node.room(peer, 1200, start()), 400 - 3 * PORTS_PER_PEER);
        node.peers = 1000;
        assert_eq!(node.room(peer, 1200, start()), 200);
    }

    #[test]
    fn searches_share_the_ports_of_the_own_translator_until_it_has_forgotten_them() {
        let (mut node, start) = (Searches::default(), start());
        let peers: Vec<_> = (0..3)
            .map(|n| PeerId::Key(mesh_types::WgKey([n; 32])))
            .collect();
        assert_eq!(node.room(peers[0], 1000, start), 1000);
        node.occupy(Some(peers[0]), 600, start);
        assert_eq!(node.room(peers[0], 1000, start), 1000, "its own");
        assert_eq!(node.room(peers[1], 1000, start), 400);
        node.occupy(Some(peers[1]), 400, start + HOLD / 2);
        node.end(&peers[0]);
        assert_eq!(node.room(peers[2], 1000, start + HOLD / 2), 0);
        assert_eq!(node.room(peers[2], 1000, start + HOLD), 600);
        node.occupy(None, 150, start + HOLD);
        assert_eq!(node.room(peers[2], 1000, start + HOLD), 450);
        node.peers = 10;
        assert_eq!(node.room(peers[2], 1000, start + HOLD), 130);
    }
}
