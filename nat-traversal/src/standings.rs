//! What all path agents come to together: when the first of them wants to run, who has a path, who relays. Thousands are
//! kept and few change at a time, so no event may look at all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use mesh_types::PeerId;

/// Moments, one a peer at most, found by peer and by time.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Deadlines {
    of: BTreeMap<PeerId, Instant>,
    queue: BTreeSet<(Instant, PeerId)>,
}

impl Deadlines {
    /// This peer's is now that, or there is none.
    pub(crate) fn set(&mut self, id: PeerId, at: Option<Instant>) {
        let before = match at {
            Some(at) => self.of.insert(id, at),
            None => self.of.remove(&id),
        };
        if before != at {
            if let Some(before) = before {
                self.queue.remove(&(before, id));
            }
            self.queue.extend(at.map(|at| (at, id)));
        }
    }

    /// The earliest, and whose it is.
    pub(crate) fn first(&self) -> Option<(Instant, PeerId)> {
        self.queue.first().copied()
    }

    /// Whose has come, in the order of their names.
    pub(crate) fn due(&self, now: Instant) -> BTreeSet<PeerId> {
        let due = self.queue.iter().take_while(|(at, _)| *at <= now);
        due.map(|(_, id)| *id).collect()
    }
}

/// What counts of one agent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    /// When it wants to run next.
    pub(crate) wake: Option<Instant>,
    /// It has a path.
    pub(crate) connected: bool,
    /// That shows that UDP is not blocked.
    pub(crate) by_udp: bool,
    /// It relays, and is in reach.
    pub(crate) relays: bool,
    /// The link to a TURN server that its path leads through.
    pub(crate) link: Option<u32>,
}

/// The standings of all agents. An agent tells each change ([`Standings::change`]), so that nobody has to ask them all.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Standings {
    wakes: Deadlines,
    connected: BTreeSet<PeerId>,
    by_udp: BTreeSet<PeerId>,
    relays: BTreeSet<PeerId>,
    links: BTreeSet<(u32, PeerId)>,
}

impl Standings {
    /// An agent stands otherwise than before; one that is new or gone stands as the default does.
    pub(crate) fn change(&mut self, id: PeerId, before: Standing, now: Standing) {
        if before == now {
            return;
        }
        self.wakes.set(id, now.wake);
        for (set, is_in) in [
            (&mut self.connected, now.connected),
            (&mut self.by_udp, now.by_udp),
            (&mut self.relays, now.relays),
        ] {
            match is_in {
                true => set.insert(id),
                false => set.remove(&id),
            };
        }
        if before.link != now.link {
            if let Some(link) = before.link {
                self.links.remove(&(link, id));
            }
            self.links.extend(now.link.map(|link| (link, id)));
        }
    }

    /// Whoever wants to run first, and when.
    pub(crate) fn first(&self) -> Option<(Instant, PeerId)> {
        self.wakes.first()
    }

    /// Who wants to run by now, in the order of their names.
    pub(crate) fn due(&self, now: Instant) -> BTreeSet<PeerId> {
        self.wakes.due(now)
    }

    /// Those with a path.
    pub(crate) fn connected(&self) -> &BTreeSet<PeerId> {
        &self.connected
    }

    /// Does any path show that UDP is not blocked?
    pub(crate) fn is_by_udp(&self) -> bool {
        !self.by_udp.is_empty()
    }

    /// Those that relay and are in reach.
    pub(crate) fn relays(&self) -> &BTreeSet<PeerId> {
        &self.relays
    }

    /// Links to TURN servers that paths lead through.
    pub(crate) fn links(&self) -> BTreeSet<u32> {
        self.links.iter().map(|(link, _)| *link).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mesh_types::WgKey;

    use super::*;
    use crate::instant::start;

    #[test]
    fn a_deadline_is_found_by_time_until_it_moves_or_goes() {
        let start = start();
        let second = |n| start + Duration::from_secs(n);
        let id = |n| PeerId::Key(WgKey([n; 32]));
        let mut deadlines = Deadlines::default();
        deadlines.set(id(1), Some(second(5)));
        deadlines.set(id(2), Some(second(3)));
        assert_eq!(deadlines.first(), Some((second(3), id(2))));
        assert_eq!(deadlines.due(second(4)), [id(2)].into());
        deadlines.set(id(2), Some(second(7)));
        assert_eq!(deadlines.first(), Some((second(5), id(1))));
        assert_eq!(deadlines.due(second(7)), [id(1), id(2)].into());
        deadlines.set(id(1), None);
        deadlines.set(id(2), None);
        assert_eq!(deadlines, Deadlines::default());
    }

    #[test]
    fn an_agent_that_goes_leaves_nothing_behind() {
        let id = PeerId::Key(WgKey([1; 32]));
        let mut standings = Standings::default();
        let standing = Standing {
            wake: Some(start()),
            connected: true,
            by_udp: true,
            relays: true,
            link: Some(3),
        };
        standings.change(id, Standing::default(), standing);
        assert!(standings.is_by_udp() && standings.relays().contains(&id));
        assert_eq!(standings.links(), [3].into());
        standings.change(id, standing, Standing::default());
        assert_eq!(standings, Standings::default());
    }
}
