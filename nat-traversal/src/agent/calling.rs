//! CallMe and its answer: fresh candidates, exchanged through whoever reaches both sides.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mesh_types::address::is_global;
use mesh_types::consts::CANDIDATES_MAX;
use mesh_types::message::{CallMe, CallMeAck, Message, RelayDistance};
use mesh_types::{Candidate, CandidateKind, Idx, Now};

use super::PathAgent;
use crate::api::Event;
use crate::budget::{Bucket, Rate};
use crate::candidate::claimed;
use crate::node::Node;
use crate::schedule::{CALL, CALL_EAGER, CALL_RELAYED, CALL_SPACING, CALL_WAIT};

/// Calls of the peer remembered, so that copies on two ways count once.
const SEEN_MAX: usize = 8;
/// Calls repeated because the own candidates have changed: those of a translator that never rests must not make us
/// call for ever...
const REPEATS: Rate = Rate::every(Duration::from_secs(5), 8);
/// ...and wait for this, the last ones included.
const REPEAT_LATER: Duration = Duration::from_secs(5);
/// Relays told in a call.
pub(crate) const RELAYS_MAX: usize = 8;

/// When to call.
#[derive(Debug, Default)]
pub(super) struct Calling {
    pub(super) at: Option<Instant>,
    /// One call is owed even where the path turns out to work.
    pub(super) once: bool,
    step: usize,
    last: Option<Instant>,
    seen: VecDeque<u64>,
    repeats: Bucket,
}

impl Calling {
    /// There is a path.
    pub(super) fn stop(&mut self) {
        self.step = 0;
        if !self.once {
            self.at = None;
        }
    }

    /// There is a path through a relay: calls go on, for a better one.
    pub(super) fn relayed(&mut self, now: Instant) {
        self.step = 0;
        self.at = Some(self.spaced(now));
    }

    /// A call is due then, as the first of a search is.
    pub(super) fn again(&mut self, at: Instant) {
        self.step = 0;
        self.at = Some(at);
    }

    /// Call and answer have told both sides everything: an own call now would only repeat it.
    fn answered(&mut self, now: Instant) {
        if self.step > CALL_EAGER
            && !self.once
            && let Some(at) = &mut self.at
        {
            *at = (*at).max(now + CALL[self.step.min(CALL.len()) - 1]);
        }
    }

    fn spaced(&self, at: Instant) -> Instant {
        self.last.map_or(at, |last| at.max(last + CALL_SPACING))
    }
}

impl PathAgent {
    /// Calls now where the own address is known to the outside, else a moment later.
    pub(super) fn call_soon(&mut self, node: &Node, now: Instant) {
        let known = node.endpoints.iter().any(|candidate| {
            candidate.kind != CandidateKind::Host || is_global(&candidate.address.ip())
        });
        let fresh = known && !node.refresh;
        self.calling.step = 0;
        let at = if fresh { now } else { now + CALL_WAIT };
        self.calling.at = Some(self.calling.spaced(at));
    }

    /// The own candidates have changed: a call that is under way, or was a moment ago, is repeated with them.
    pub(super) fn recall(&mut self, now: Instant) {
        let recent = self
            .calling
            .last
            .is_some_and(|last| now.saturating_duration_since(last) < CALL[2]);
        if self.calling.at.is_some() || !self.has_direct() || recent {
            self.calling.once |= recent;
            let soon = self.calling.repeats.take(REPEATS, now);
            let at = self
                .calling
                .spaced(if soon { now } else { now + REPEAT_LATER });
            self.calling.at = Some(self.calling.at.map_or(at, |due| due.min(at)));
        }
    }

    /// The node has found its first neighbour: it can be heard again.
    pub(crate) fn neighbour_found(&mut self, node: &Node, now: Instant) {
        if self.in_use.is_none() && self.calling.at.is_some() {
            self.call_soon(node, now);
        }
    }

    pub(super) fn run_calling(&mut self, node: &mut Node, now: Instant) {
        if self.calling.at.is_none_or(|at| at > now) {
            return;
        }
        if let Some(start) = self.begin_openers(node, now) {
            let call = self.call(node, Vec::new(), start, now);
            self.asked_for_openers(call, now);
            return;
        }
        self.send_call(node, Vec::new(), now);
        let wanted = !self.has_direct() || self.is_suspect();
        // Who calls in vain may stand in its own candidates wrongly.
        node.refresh |= wanted && self.calling.step > CALL_EAGER;
        let schedule: &[_] = if self.in_use.is_some() && !self.is_suspect() {
            &CALL_RELAYED
        } else {
            &CALL
        };
        let interval = schedule[self.calling.step.min(schedule.len() - 1)];
        self.calling.once = false;
        self.calling.step += 1;
        self.calling.at = wanted.then(|| now + interval);
    }

    /// Calls, with predicted ports where there are any; the call's number.
    pub(super) fn send_call(&mut self, node: &mut Node, predicted: Vec<u16>, now: Instant) -> u64 {
        self.call(node, predicted, Duration::ZERO, now)
    }

    fn call(&mut self, node: &mut Node, predicted: Vec<u16>, start: Duration, now: Instant) -> u64 {
        let seq = node.next_choice();
        let message = Message::from(CallMe {
            seq,
            candidates: node.endpoints.clone(),
            nat: node.nat.report(),
            predicted,
            start_ms: u32::try_from(start.as_millis()).unwrap_or(u32::MAX),
            relays: node.relays.clone(),
            relay: self.proposal.filter(|_| self.controlling()),
        });
        node.counters.add("calls-sent");
        node.events.push_back(Event::Signal {
            peer: self.id,
            message,
        });
        self.calling.last = Some(now);
        seq
    }

    /// CallMe or CallMeAck arrived.
    pub(crate) fn on_message(&mut self, node: &mut Node, message: &Message, now: Now) {
        if matches!(message, Message::CallMe(_) | Message::CallMeAck(_)) {
            self.last_called = Some(now.mono);
        }
        match message {
            Message::CallMe(call) => {
                if self.calling.seen.contains(&call.seq) {
                    return;
                }
                self.wake_up(node, now.mono);
                if self.calling.seen.len() == SEEN_MAX {
                    self.calling.seen.pop_front();
                }
                self.calling.seen.push_back(call.seq);
                self.spec.nat = call.nat;
                self.told_relays(node, &call.relays, call.relay);
                let start = Duration::from_millis(u64::from(call.start_ms));
                self.called_for_openers(node, start, now.mono);
                self.called(node, &call.candidates, now.mono);
                self.connect_tcp(node, &call.candidates, now.mono);
                if self.has_direct() {
                    // The peer would not call if it were content.
                    self.question(node, now.mono);
                }
                let answer = Message::from(CallMeAck {
                    seq: call.seq,
                    candidates: node.endpoints.clone(),
                    nat: node.nat.report(),
                    predicted: Vec::new(),
                    relays: node.relays.clone(),
                });
                self.calling.last = Some(now.mono);
                self.calling.answered(now.mono);
                node.events.push_back(Event::Signal {
                    peer: self.id,
                    message: answer,
                });
                let words = (call.seq, named(&call.candidates), call.predicted.as_slice());
                self.exchanged(node, words, now.mono);
            }
            Message::CallMeAck(answer) => {
                self.answered_openers(answer.seq);
                self.spec.nat = answer.nat;
                self.told_relays(node, &answer.relays, None);
                self.called(node, &answer.candidates, now.mono);
                self.connect_tcp(node, &answer.candidates, now.mono);
                if self.has_direct() {
                    self.question(node, now.mono);
                }
                let words = (
                    answer.seq,
                    named(&answer.candidates),
                    answer.predicted.as_slice(),
                );
                self.exchanged(node, words, now.mono);
            }
            Message::Hello(_)
            | Message::PathReady(_)
            | Message::Ack(_)
            | Message::Digest(_)
            | Message::Delta(_)
            | Message::Forward(_)
            | Message::RelayBind(_)
            | Message::RelayOffer(_)
            | Message::Join(_)
            | Message::Joined(_)
            | Message::JoinRelay(_)
            | Message::Echo(_)
            | Message::JoinRefused(_)
            | Message::Doubt(_)
            | Message::Petition(_) => node.counters.add("refused-message"),
        }
    }

    /// Which relays the peer reaches, and which one it proposes.
    fn told_relays(&mut self, node: &mut Node, relays: &[RelayDistance], proposed: Option<Idx>) {
        let relays: Vec<_> = relays.iter().take(RELAYS_MAX).copied().collect();
        let proposed = proposed.filter(|_| !self.controlling());
        if relays != self.their_relays || (proposed.is_some() && proposed != self.proposal) {
            self.their_relays = relays;
            self.proposal = proposed.or(self.proposal);
            node.meet.insert(self.id);
        }
    }

    fn called(&mut self, node: &mut Node, candidates: &[Candidate], now: Instant) {
        let renewed = self.calls.take(now);
        let fresh: Vec<SocketAddr> = candidates
            .iter()
            .take(CANDIDATES_MAX)
            .map(|candidate| claimed(*candidate))
            .filter(|candidate| self.learn(node, *candidate, now))
            .map(|candidate| candidate.address)
            .collect();
        self.burst(&fresh, renewed, now);
        if !self.has_direct() {
            let relayed = self.in_use.is_some();
            let all: Vec<_> = self
                .remotes
                .iter()
                .filter(|(_, remote)| !(relayed && remote.kind.is_relayed()))
                .map(|(address, _)| *address)
                .collect();
            self.burst(&all, false, now);
            // It may be as content with the relay as we are, or may have lost it.
            self.ask_path(node, now);
        }
        self.run_probes(node, now);
        self.doubt_unnamed(node, candidates, now);
    }
}

fn named(candidates: &[Candidate]) -> Vec<SocketAddr> {
    let all = candidates.iter().take(CANDIDATES_MAX);
    let all = all.filter(|candidate| candidate.kind != CandidateKind::Tcp);
    all.map(|candidate| candidate.address).collect()
}
