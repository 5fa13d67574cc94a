//! The second way, kept ready: where everything goes too while the path in use is suspect.
//!
//! An active pair is met at a relay as well, or at a second one, and both ends probe that way as often as a mapping
//! needs. So a path that is cut costs the time to notice it, not the time to find another one.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mesh_types::PeerId;

use super::PathAgent;
use crate::api::Event;
use crate::node::{Node, Purpose};
use crate::remote::Remote;
use crate::schedule::KEEPALIVE;

/// An answer that old says that an address works: two keepalives may be lost.
const WARM: Duration = Duration::from_secs(75);

/// See the module.
#[derive(Debug)]
pub(super) struct Standby {
    /// When to probe the second way.
    next: Option<Instant>,
    /// Where everything is to go too.
    spare: Option<SocketAddr>,
    /// What probes on the second way say while the path is suspect.
    pub(super) doubt: Purpose,
    /// When the peer doubted the path last.
    pub(super) doubted: Option<Instant>,
    /// The own mapping may have changed: relays must be told.
    pub(super) renew: bool,
}

impl Default for Standby {
    fn default() -> Self {
        Self {
            next: None,
            spare: None,
            doubt: Purpose::Check,
            doubted: None,
            renew: false,
        }
    }
}

impl Standby {
    /// There is nothing to stand by for.
    pub(super) fn stop(&mut self) {
        self.next = None;
    }
}

impl PathAgent {
    /// Where the tunnel's packets should go too, because the path in use is suspect.
    pub(crate) fn spare(&self) -> Option<SocketAddr> {
        self.standby.spare
    }

    pub(super) fn refresh_spare(&mut self, node: &mut Node) {
        // Whoever hears the tunnel follows it: to a relay, which he knows for one, or to where both ways are proven.
        let sound = |address: &SocketAddr, since| {
            let remote = self.remotes.get(address);
            remote.is_some_and(|r| r.relay.is_some() || r.last_answer >= Some(since))
        };
        let spare = self.suspect_since().and_then(|since| {
            let spare = self.spare_of(since);
            spare.filter(|address| sound(address, since))
        });
        if spare != self.standby.spare {
            self.standby.spare = spare;
            node.events.push_back(Event::SpareChanged { peer: self.id });
        }
    }

    /// The best other address: one that answered since the path is suspect, a relay that stands by, one that answered
    /// lately, any that ever did.
    pub(super) fn spare_of(&self, since: Instant) -> Option<SocketAddr> {
        let path = self.path().map(|path| path.remote);
        let lately = since.checked_sub(WARM);
        self.remotes
            .iter()
            .filter(|(address, remote)| Some(**address) != path && remote.confirmed)
            .min_by_key(|(_, remote)| {
                let stale = remote.last_answer < Some(since);
                let late = remote.last_answer < lately;
                // What breaks one direct way often breaks the others.
                let direct = stale && remote.relay.is_none();
                (stale, late, direct, remote.score())
            })
            .map(|(address, _)| *address)
    }

    /// Should it be met at a relay beside its path?
    pub(crate) fn wants_standby(&self, now: Instant) -> bool {
        self.in_use.is_some() && self.activity.is_active(now)
    }

    /// The relay through which it answered lately, beside its path.
    pub(crate) fn warm_relay(&self, now: Instant) -> Option<PeerId> {
        let (_, remote) = self.relayed_remote()?;
        let answered = remote.last_answer?;
        (now.saturating_duration_since(answered) < WARM).then_some(remote.relay)?
    }

    fn relayed_remote(&self) -> Option<(SocketAddr, &Remote)> {
        let via = self.path().and_then(|path| path.via);
        self.remotes
            .iter()
            .filter(|(_, remote)| remote.relay.is_some() && remote.relay != via)
            .max_by_key(|(_, remote)| remote.last_answer)
            .map(|(address, remote)| (*address, &**remote))
    }

    /// The relays' knowledge of the own mapping is to be renewed, once.
    pub(crate) fn takes_renewal(&mut self) -> bool {
        std::mem::take(&mut self.standby.renew)
    }

    /// Does the peer answer through relays at which it was met?
    pub(crate) fn ask_relays(&mut self, node: &mut Node, now: Instant) {
        let relayed = self
            .remotes
            .iter()
            .filter(|(_, remote)| remote.relay.is_some());
        let relayed: Vec<SocketAddr> = relayed.map(|(address, _)| *address).collect();
        self.burst(&relayed, false, now);
        self.run_probes(node, now);
        if !relayed.is_empty() {
            self.keep_standby(node, now);
        }
    }

    /// Keeps the second way open from now on.
    pub(super) fn keep_standby(&mut self, node: &mut Node, now: Instant) {
        if self.standby.next.is_none() {
            self.standby.next = Some(now + node.jitter(KEEPALIVE));
        }
    }

    pub(super) fn run_standby(&mut self, node: &mut Node, now: Instant) {
        if self.standby.next.take_if(|at| *at <= now).is_none() {
            return;
        }
        let wanted = self.wants_standby(now);
        let Some((address, _)) = self.relayed_remote().filter(|_| wanted) else {
            return;
        };
        self.send_probe(node, address, Purpose::Check, now);
        self.standby.next = Some(now + node.jitter(KEEPALIVE));
        if self.warm_relay(now).is_none() {
            node.meet.insert(self.id);
        }
    }

    pub(super) fn standby_deadline(&self) -> Option<(Instant, &'static str)> {
        self.standby.next.map(|at| (at, "standby"))
    }
}
