//! A router that takes early packets for itself gives the flow to that remote another port, and none of both
//! sides' probes arrive, as long as they go on. The cure: both fall silent until such routers have
//! forgotten, then open their own translators with packets that end before the peer's, then probe.
//!
//! The controlling side says when: CallMe with a start far ahead. Where there is no path the tunnel must be silent,
//! too: [`crate::Traversal::is_silent`]. A path through a relay goes on: what it carries, those routers do not see
//! as the peer's.

use std::time::{Duration, Instant};

use super::PathAgent;
use crate::api::Event;
use crate::budget::Stake;
use crate::hard::Method;
use crate::node::Node;
use crate::schedule::{
    OPENER_TTL, OPENERS, OPENERS_AFTER, OPENERS_AGAIN, OPENERS_END, OPENERS_EVERY, OPENERS_SILENCE,
};

/// A start further ahead than this means silence until then.
const MEANT: Duration = Duration::from_secs(1);
/// The peer must have called, or answered, so lately: calls are up to a minute apart.
const PRESENT: Duration = Duration::from_secs(65);

/// An answer to the call comes in this time, or the round does not take place.
const ANSWER: Duration = Duration::from_secs(2);

/// The round under way, and those before.
#[derive(Debug, Default)]
pub(super) struct Openers {
    /// When the first opener leaves, and how many have left.
    round: Option<(Instant, usize)>,
    /// When the latest round began.
    last: Option<Instant>,
    /// Rounds since the peer was last heard.
    rounds: usize,
    /// The call that the peer has not answered, and when it is too late.
    asked: Option<(u64, Instant)>,
    /// The first and the last message of the peer in this search.
    exchanges: Option<(Instant, Instant)>,
}

impl Openers {
    /// May a round begin? Not while one is under way, and no third one before `every` has passed.
    fn may_begin(&self, every: Duration, now: Instant) -> bool {
        let just = |at: Instant| now.saturating_duration_since(at) < every;
        self.round.is_none() && (self.rounds == 1 || !self.last.is_some_and(just))
    }
}

impl PathAgent {
    /// Is it time for a round? Then how long until it starts, for the peer to know.
    pub(super) fn begin_openers(&mut self, node: &mut Node, now: Instant) -> Option<Duration> {
        let (own, peer) = (node.nat.report(), self.spec.nat);
        let plain = Method::of(own, peer).is_none() && !Method::hopeless(own, peer);
        let unheard = self.heard_direct.is_none_or(|at| at < self.searching);
        let present = self.openers.exchanges.is_some_and(|(first, last)| {
            first >= self.searching
                && now.saturating_duration_since(first) >= OPENERS_AFTER
                && now.saturating_duration_since(last) < PRESENT
        });
        let fit = self.controlling() && !self.has_direct();
        let due = self.openers.may_begin(OPENERS_EVERY, now);
        if !fit || !plain || !present || !unheard || !due {
            return None;
        }
        let [first, second] = OPENERS_SILENCE;
        let silence = if self.openers.rounds == 0 {
            first
        } else {
            second
        };
        self.await_openers(node, silence, now);
        Some(silence)
    }

    pub(super) fn asked_for_openers(&mut self, call: u64, now: Instant) {
        self.openers.asked = Some((call, now + ANSWER));
    }

    /// The peer has answered a call.
    pub(super) fn answered_openers(&mut self, call: u64) {
        self.openers.asked = self.openers.asked.filter(|(asked, _)| *asked != call);
    }

    /// The peer has called or answered.
    pub(super) fn present(&mut self, now: Instant) {
        let this_search = |(first, last): &(Instant, Instant)| {
            *first >= self.searching && now.saturating_duration_since(*last) < PRESENT
        };
        let first = self.openers.exchanges.filter(this_search);
        self.openers.exchanges = Some((first.map_or(now, |(first, _)| first), now));
    }

    /// The peer has called, and says when to start.
    pub(super) fn called_for_openers(&mut self, node: &mut Node, start: Duration, now: Instant) {
        if start <= MEANT || self.has_direct() {
            return;
        }
        let [_, longest] = OPENERS_SILENCE;
        let start = start.min(longest);
        if let Some((at, 0)) = &mut self.openers.round {
            // Our answer was lost, and the peer has put the round off.
            *at = now + start;
        } else if self.openers.may_begin(OPENERS_EVERY / 2, now) {
            self.await_openers(node, start, now);
        }
    }

    fn await_openers(&mut self, node: &mut Node, start: Duration, now: Instant) {
        self.openers.round = Some((now + start, 0));
        self.openers.last = Some(now);
        self.openers.rounds += 1;
        self.openers.asked = None;
        // A call in between is no harm, and brings nothing.
        self.calling.at = Some(now + start + OPENERS_END);
        self.tell_silence(node);
    }

    /// May nothing be sent to the peer's own addresses now?
    pub(crate) fn is_silent(&self) -> bool {
        self.openers.round.is_some()
    }

    /// The peer was heard: there is no need.
    pub(super) fn heard_openers(&mut self, node: &mut Node) {
        self.openers.rounds = 0;
        self.end_openers(node);
    }

    fn end_openers(&mut self, node: &mut Node) {
        if self.openers.round.take().is_some() {
            self.tell_silence(node);
        }
    }

    /// A tunnel that has no path must follow.
    fn tell_silence(&self, node: &mut Node) {
        if self.in_use.is_none() {
            node.events.push_back(Event::PathChanged { peer: self.id });
        }
    }

    pub(super) fn run_openers(&mut self, node: &mut Node, now: Instant) {
        let Some((start, step)) = self
            .openers
            .round
            .filter(|_| self.openers_deadline().is_some_and(|(at, _)| at <= now))
        else {
            return;
        };
        if self.openers.asked.is_some_and(|(_, until)| until <= now) {
            // It would not be silent, too.
            self.openers.last = None;
            self.openers.rounds -= 1;
            self.calling.at = Some(now + OPENERS_AFTER);
            return self.end_openers(node);
        }
        let remotes = self.remotes.iter();
        let direct = remotes.filter(|(_, remote)| !remote.kind.is_relayed());
        let all: Vec<_> = direct.map(|(address, _)| *address).collect();
        if step == OPENERS.len() {
            self.end_openers(node);
            self.calling.again(now + OPENERS_AGAIN);
            self.burst(&all, true, now);
            self.run_probes(node, now);
            return;
        }
        let past = |age: &&Duration| start + **age <= now;
        let step = OPENERS.iter().take_while(past).count();
        self.openers.round = Some((start, step));
        let Some(link) = self.current.and_then(|names| self.links.get(&names)) else {
            return;
        };
        for address in all {
            if node.budget.take(address.ip(), Stake::Heard, now) {
                node.opener(self.id, link, address, OPENER_TTL, now);
            }
        }
    }

    pub(super) fn openers_deadline(&self) -> Option<(Instant, &'static str)> {
        let (start, step) = self.openers.round?;
        let age = OPENERS.get(step).copied().unwrap_or(OPENERS_END);
        let at = self.openers.asked.map_or(start + age, |(_, until)| until);
        Some((at, "openers"))
    }
}
