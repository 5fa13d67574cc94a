//! Peers that nothing is sent to: an idle pair rests, then sleeps, and wakes with its next packet.
//!
//! ```text
//! awake --little moved for 400 s--> resting --nothing moved for 190 s, idle for 600 s--> asleep
//!   ^                                  |                                                   |
//!   '------- traffic of any size ------'<---- a packet for it, its call, its doubt --------'
//! ```
//! A resting peer's tunnel has no keepalive, so that its counters tell whether it is used at all; the path's own
//! keepalive goes on. Asleep means no datagram between the two. Whoever wakes up asks the path, and calls: mappings
//! on the way are gone, and both ends must send to open them. So only those may sleep that can be called:
//! both ends keep a relay awake that others reach.

use std::time::{Duration, Instant};

use mesh_types::Idx;

use super::PathAgent;
use crate::activity::Activity;
use crate::api::{Event, Rest};
use crate::node::{Node, Purpose};

/// The tunnel's keepalive ends. What is left of [`SLEEP`] suffices for the session to expire (180 s).
const REST: Duration = Duration::from_secs(400);
/// Nothing at all is sent any more.
const SLEEP: Duration = Duration::from_secs(600);
/// The tunnel is unused: beyond this no session of it lives, and its next packet begins with a handshake, which
/// wakes the pair.
const UNMOVED: Duration = Duration::from_secs(190);

/// See the module.
#[derive(Debug)]
pub(super) struct Resting {
    state: Rest,
    /// When more than keepalives moved last.
    used: Instant,
    /// When the tunnel's counters changed last.
    moved: Instant,
    /// It was woken and has not answered yet.
    waking: bool,
}

impl Resting {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            state: Rest::Awake,
            used: now,
            moved: now,
            waking: false,
        }
    }

    /// There is another path.
    pub(super) fn awake(&mut self) {
        self.waking = false;
    }
}

impl PathAgent {
    pub(crate) fn rest(&self) -> Rest {
        self.resting.state
    }

    pub(crate) fn is_asleep(&self) -> bool {
        self.resting.state == Rest::Asleep
    }

    /// The tunnel was asked: moves on. `moved`: its counters have changed.
    pub(super) fn run_rest(&mut self, node: &mut Node, moved: bool, now: Instant) {
        if moved {
            self.resting.moved = now;
        }
        if self.activity.is_active(now) {
            self.resting.used = now;
        }
        if self.is_asleep() {
            if moved || self.is_anchor(node) {
                self.wake_up(node, now);
            }
            return;
        }
        let idle = now.saturating_duration_since(self.resting.used);
        let unmoved = now.saturating_duration_since(self.resting.moved);
        let state = if idle < REST || !self.may_rest(node) {
            Rest::Awake
        } else if idle < SLEEP || unmoved < UNMOVED {
            Rest::Resting
        } else {
            Rest::Asleep
        };
        self.set_rest(node, state);
    }

    fn set_rest(&mut self, node: &mut Node, state: Rest) {
        if state != self.resting.state {
            self.resting.state = state;
            node.events.push_back(Event::RestChanged { peer: self.id });
            node.meet.insert(self.id);
            if state == Rest::Asleep {
                self.fall_asleep(node);
            }
        }
    }

    fn fall_asleep(&mut self, node: &mut Node) {
        self.activity = Activity::default();
        self.nomination = None;
        self.awaited_ready = None;
        self.standby.stop();
        self.calling.stop();
        self.calling.at = None;
        self.stop_search(node);
        for (_, remote) in self.remotes.iter_mut() {
            remote.next = None;
        }
    }

    /// A packet for it waits, or it has one for us: asks the path, and everything else it may be reached by.
    pub(crate) fn wake_up(&mut self, node: &mut Node, now: Instant) {
        if !self.is_asleep() {
            return;
        }
        node.counters.add("woken");
        self.resting = Resting {
            waking: true,
            ..Resting::new(now)
        };
        node.events.push_back(Event::RestChanged { peer: self.id });
        self.suspect(node, now);
        self.widen(node, now);
    }

    /// An answer came on the path in use.
    pub(super) fn woken(&mut self, node: &mut Node) {
        if std::mem::take(&mut self.resting.waking) {
            node.events.push_back(Event::Woken { peer: self.id });
        }
    }

    /// What probes on the path in use say while it is suspect.
    pub(super) fn asking(&self) -> Option<Purpose> {
        self.resting.waking.then_some(Purpose::Doubt)
    }

    /// May it sleep? Both must be able to call each other, and keep whom others call them through.
    fn may_rest(&self, node: &Node) -> bool {
        let callable =
            !self.spec.relays.is_empty() || (self.spec.relay_capable && self.is_public());
        let sound = self.in_use.is_some() && !self.is_suspect();
        node.lazy && node.anchored && callable && sound && !self.is_anchor(node)
    }

    /// Is one of the two reached through the other, or do both relay?
    fn is_anchor(&self, node: &Node) -> bool {
        let own: Option<Idx> = node.name;
        node.anchors.contains(&self.id)
            || own.is_some_and(|own| self.spec.relays.contains(&own))
            || (node.relaying && self.spec.relay_capable)
    }
}
