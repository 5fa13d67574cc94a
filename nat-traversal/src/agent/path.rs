//! The path in use: chosen, watched, suspected, lost.
//!
//! With no path either side takes the first address that answers; later the controlling side alone
//! changes it while it works (`agent/choice.rs`).

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mesh_types::message::{Ack, Message};
use mesh_types::report::TunnelStats;
use mesh_types::{CandidateKind, Now, SocketId};
use tracing::debug;

use super::PathAgent;
use crate::api::{Event, Path, PathKind, TurnPath};
use crate::node::{Node, Purpose};
use crate::remote::Remote;
use crate::schedule::{
    FAST_GRACE, FAST_INTERVAL, FAST_PROBES, HEARTBEAT, KEEPALIVE_RETRY, SILENCE,
};
use crate::score::{Preference, Score};

/// While a challenger is compared, both are probed this often.
const SAMPLE_EVERY: Duration = Duration::from_secs(1);
/// Doubts of the peer count this often: it says three in a row.
const DOUBT_EVERY: Duration = Duration::from_secs(1);
/// Two round trips are at least this, for hosts that are slow to answer.
const ASK_LEAST: Duration = Duration::from_millis(50);

/// A path and how it does.
#[derive(Debug, Clone)]
pub(super) struct InUse {
    pub(super) path: Path,
    /// The choice that it stands for; 0 on the controlled side.
    pub(super) seq: u64,
    health: Health,
    /// Next heartbeat or keepalive.
    next: Instant,
    /// The last heartbeat was not answered yet.
    awaiting: bool,
    missed: u8,
    /// The last heartbeat was sent because nothing is heard: no answer in two round trips makes it suspect.
    asked: bool,
    last_answer: Instant,
    /// One bit a probe, the newest lowest; set while unanswered.
    history: u32,
}

/// Does the path answer?
#[derive(Debug, Clone, Copy)]
enum Health {
    /// As far as is known.
    Good,
    /// It is being asked.
    Suspect {
        since: Instant,
        sent: u8,
        next: Instant,
        /// When to look for others too; `None` once that was done.
        widen: Option<Instant>,
    },
}

impl InUse {
    /// Unanswered of the last 32 probes, percent; the newest may still be on its way.
    pub(super) fn loss(&self) -> u8 {
        let lost = (self.history >> u32::from(self.awaiting)).count_ones();
        u8::try_from(lost * 100 / 32).unwrap_or(100)
    }

    fn probed(&mut self) {
        self.history = (self.history << 1) | 1;
        self.awaiting = true;
    }
}

impl PathAgent {
    pub(crate) fn is_suspect(&self) -> bool {
        self.in_use
            .as_ref()
            .is_some_and(|in_use| matches!(in_use.health, Health::Suspect { .. }))
    }

    /// Since when the path in use is suspect.
    pub(super) fn suspect_since(&self) -> Option<Instant> {
        match self.in_use.as_ref()?.health {
            Health::Good => None,
            Health::Suspect { since, .. } => Some(since),
        }
    }

    /// A verified answer to a probe to `address`.
    pub(crate) fn on_answer(
        &mut self,
        node: &mut Node,
        (socket, local_port, address): (SocketId, u16, SocketAddr),
        sent: Instant,
        answer: (Option<SocketAddr>, Option<&[u8]>),
        now: Instant,
    ) {
        let (other, data) = answer;
        self.heard(node, address, now);
        self.probes_answered += 1;
        if !self.is_relayed(&address) {
            self.other = other.or(self.other);
        }
        let rtt = now.saturating_duration_since(sent);
        if let Some(lucky) = self.local(socket, local_port) {
            self.found(address, lucky, now);
        }
        let Some(remote) = self.remotes.get_mut(&address) else {
            return;
        };
        remote.answer(rtt, now);
        let smoothed = remote.rtt.unwrap_or(rtt);
        if remote.next.is_none() {
            remote.schedule(true, now);
        }
        node.validate(address, now);
        if let Some(in_use) = self.in_use.as_mut().filter(|u| u.path.remote == address) {
            in_use.path.rtt = smoothed;
            in_use.awaiting = false;
            in_use.missed = 0;
            in_use.asked = false;
            in_use.history &= !1;
            in_use.last_answer = now;
            self.activity.proven();
            if matches!(in_use.health, Health::Suspect { .. }) {
                in_use.health = Health::Good;
                in_use.next = now + node.keepalive();
                self.mtu.catch_up(now);
                node.meet.insert(self.id);
                if in_use.path.kind.is_relayed() {
                    self.calling.relayed(now);
                } else {
                    self.calling.stop();
                }
            }
            let soonest = now + HEARTBEAT;
            if self.activity.is_active(now) {
                in_use.next = in_use.next.min(soonest);
            } else if in_use.next < soonest + HEARTBEAT {
                in_use.next = now + node.keepalive();
            }
        }
        self.refresh_spare(node);
        if self.path().is_some_and(|path| path.remote == address) {
            self.woken(node);
        }
        if let Some((_, seq)) = self.awaited_ready.take_if(|(remote, _)| *remote == address) {
            self.follow(node, address, seq, now);
        }
        if let Some(Ok(Message::Ack(Ack { seq }))) = data.map(Message::decode) {
            self.on_ack(node, address, seq, now);
        }
        match self.in_use.as_ref() {
            None => self.adopt(node, address, now),
            Some(in_use) if in_use.path.remote != address => {
                self.consider(node, address, sent, now)
            }
            Some(_) => {}
        }
    }

    /// Is another address, which answered a probe of the moment `sent`, better than the path in use?
    fn consider(&mut self, node: &mut Node, address: SocketAddr, sent: Instant, now: Instant) {
        let controlling = self.controlling();
        let Some(in_use) = self.in_use.as_ref() else {
            return;
        };
        let current = Score {
            kind: in_use.path.kind,
            rtt: self
                .remotes
                .get(&in_use.path.remote)
                .map_or(in_use.path.rtt, |remote| remote.score().rtt),
        };
        let suspect = matches!(in_use.health, Health::Suspect { .. });
        let Some(remote) = self.remotes.get_mut(&address) else {
            return;
        };
        if !controlling || self.nomination.is_some() || suspect {
            return;
        }
        match remote.score().challenges(current) {
            Preference::Stay => remote.is_not_better(),
            Preference::Switch => self.nominate(node, address, now),
            Preference::AfterSamples if remote.is_better(sent, now) => {
                self.nominate(node, address, now)
            }
            Preference::AfterSamples => {
                remote.defer(now + SAMPLE_EVERY);
                // Both are measured in the same moments.
                self.heartbeat(node, now);
            }
        }
    }

    /// Takes an address into use, on this side.
    fn adopt(&mut self, node: &mut Node, address: SocketAddr, now: Instant) {
        self.take(node, address, now);
        if self.controlling() {
            self.nominate(node, address, now);
        }
    }

    pub(super) fn take(&mut self, node: &mut Node, address: SocketAddr, now: Instant) {
        let searched = self.searched_lately(now);
        let Some(remote) = self.remotes.get_mut(&address) else {
            return;
        };
        remote.is_not_better();
        let path = Path {
            remote: address,
            kind: remote.kind,
            rtt: remote.rtt.unwrap_or(FAST_INTERVAL),
            since: now,
            confirmed: false,
            via: remote.relay,
            turn: node.turn.server_of(&address).map(|server| TurnPath {
                server,
                peer: node.turn.real(address),
            }),
            local_port: remote.local.map(|local| local.port),
            searched: searched && remote.candidate.kind == CandidateKind::PeerReflexive
                || remote.local.is_some(),
        };
        node.expects_turn &= path.turn.is_some() || path.kind == PathKind::Tcp;
        debug!(peer = %self.id, remote = %path.remote, kind = path.kind.kind(), rtt = ?path.rtt, "Path in use");
        let next = if self.activity.is_active(now) {
            HEARTBEAT
        } else {
            node.keepalive()
        };
        let direct = !path.kind.is_relayed();
        if direct && !self.has_direct() {
            self.connect = Some(now.saturating_duration_since(self.searching));
        }
        self.in_use = Some(InUse {
            path,
            seq: 0,
            health: Health::Good,
            next: now + next,
            awaiting: false,
            missed: 0,
            asked: false,
            last_answer: now,
            history: 0,
        });
        self.slot = None;
        self.standby.renew = false;
        self.resting.awake();
        self.refresh_spare(node);
        if direct {
            self.calling.stop();
            self.stop_search(node);
        } else {
            self.calling.relayed(now);
        }
        self.activity.proven();
        node.meet.insert(self.id);
        self.mtu.start(now);
        node.events.push_back(Event::PathChanged { peer: self.id });
    }

    /// Is the path still there? Asks it fast.
    pub(super) fn suspect(&mut self, node: &mut Node, now: Instant) {
        self.suspect_saying(node, Purpose::Doubt, now);
    }

    /// The same of a path that was asked and had its time to answer: looks for others at once.
    fn suspect_unanswered(&mut self, node: &mut Node, now: Instant) {
        self.suspect(node, now);
        if !self.has_widened() {
            self.widen(node, now);
        }
    }

    /// Is the path still there? `doubt` says what the peer is told by the second way.
    fn suspect_saying(&mut self, node: &mut Node, doubt: Purpose, now: Instant) {
        let Some(in_use) = self.in_use.as_mut() else {
            return;
        };
        if matches!(in_use.health, Health::Good) {
            let patience = FAST_INTERVAL.max(in_use.path.rtt * 5 / 4 + Duration::from_millis(20));
            in_use.health = Health::Suspect {
                since: now,
                sent: 0,
                next: now,
                widen: Some(now + patience),
            };
            node.counters.add("suspects");
            self.mtu.doubt();
            self.standby.doubt = doubt;
            self.standby.renew = true;
            node.meet.insert(self.id);
            self.refresh_spare(node);
            if let Some(link) = self.turn_link() {
                node.turn.check(link, now);
            }
            self.run_suspect(node, now);
        }
    }

    /// The peer doubts the path in use.
    pub(super) fn doubted(&mut self, node: &mut Node, now: Instant) {
        let just = |at| now.saturating_duration_since(at) < DOUBT_EVERY;
        if self.is_suspect() || self.standby.doubted.is_some_and(just) {
            return;
        }
        self.standby.doubted = Some(now);
        // It knows: to say it back would go on for ever.
        self.suspect_saying(node, Purpose::Check, now);
    }

    /// Looks for other ways while the path is suspect.
    pub(super) fn widen(&mut self, node: &mut Node, now: Instant) {
        if let Some(InUse {
            health: Health::Suspect { widen, .. },
            path,
            ..
        }) = &mut self.in_use
        {
            *widen = None;
            let remote = path.remote;
            let others: Vec<_> = self
                .remotes
                .keys()
                .copied()
                .filter(|a| *a != remote)
                .collect();
            self.burst(&others, false, now);
            node.refresh = true;
            node.meet.insert(self.id);
            self.call_soon(node, now);
        }
    }

    fn run_suspect(&mut self, node: &mut Node, now: Instant) {
        let Some(in_use) = &mut self.in_use else {
            return;
        };
        let Health::Suspect {
            since,
            sent,
            next,
            widen,
        } = &mut in_use.health
        else {
            return;
        };
        let (since, remote, rtt) = (*since, in_use.path.remote, in_use.path.rtt);
        if *next <= now {
            if *sent == FAST_PROBES {
                self.lose(node, since, now);
                return;
            }
            *sent += 1;
            *next = if *sent == FAST_PROBES {
                now + (rtt * 2 + FAST_GRACE).max(FAST_INTERVAL)
            } else {
                now + FAST_INTERVAL
            };
            in_use.probed();
            let widen_now = widen_due(in_use, now);
            let purpose = self.asking().unwrap_or(self.purpose(remote));
            self.send_probe(node, remote, purpose, now);
            let spare = self.spare_of(since);
            if let Some(spare) = spare {
                self.send_probe(node, spare, self.standby.doubt, now);
            }
            if let Some(second) = self.runner_up(None).filter(|second| spare != Some(*second)) {
                self.send_probe(node, second, Purpose::Check, now);
            }
            if widen_now {
                self.widen(node, now);
            }
        } else if widen.is_some_and(|at| at <= now) {
            self.widen(node, now);
        }
    }

    /// The best other address that ever answered, or that answered since a moment.
    fn runner_up(&self, since: Option<Instant>) -> Option<SocketAddr> {
        let path = self.path().map(|path| path.remote);
        self.remotes
            .iter()
            .filter(|(address, remote)| {
                Some(**address) != path && remote.confirmed && remote.last_answer >= since
            })
            .min_by_key(|(_, remote)| remote.score())
            .map(|(address, _)| *address)
    }

    pub(super) fn lose(&mut self, node: &mut Node, suspect_since: Instant, now: Instant) {
        let next = self.runner_up(Some(suspect_since));
        let lost = self.path().map(|path| path.remote);
        debug!(peer = %self.id, ?lost, ?next, "Path lost");
        self.in_use = None;
        self.mtu.stop();
        self.refresh_spare(node);
        self.nomination = None;
        self.awaited_ready = None;
        self.searching = now;
        node.meet.insert(self.id);
        node.counters.add("paths-lost");
        if let Some(address) = lost {
            node.validated.remove(&address);
            if let Some(remote) = self.remotes.get_mut(&address) {
                remote.local = None;
            }
        }
        let all: Vec<_> = self.remotes.keys().copied().collect();
        self.burst(&all, false, now);
        if let Some(address) = next {
            self.adopt(node, address, now);
            // The peer hears the tunnel on the new path, and may go on sending by the lost one.
            self.send_probe(node, address, Purpose::Doubt, now);
        } else {
            node.events.push_back(Event::PathChanged { peer: self.id });
            if self.calling.at.is_none() {
                self.call_soon(node, now);
            }
        }
    }

    pub(super) fn run_path(&mut self, node: &mut Node, now: Now) {
        self.run_suspect(node, now.mono);
        if self.in_use.is_none() && self.slot.is_none() {
            self.slot = self.next_slot(now);
        }
        let active = self.activity.is_active(now.mono);
        let Some(in_use) = self.in_use.as_mut() else {
            return;
        };
        if !matches!(in_use.health, Health::Good) || in_use.next > now.mono {
            return;
        }
        if in_use.awaiting {
            in_use.missed += 1;
        }
        if in_use.missed >= 2 || (in_use.awaiting && in_use.asked) {
            self.suspect_unanswered(node, now.mono);
            return;
        }
        let wait = if active {
            HEARTBEAT
        } else {
            KEEPALIVE_RETRY.max(in_use.path.rtt * 3)
        };
        in_use.next = now.mono + wait;
        self.heartbeat(node, now.mono);
    }

    /// One probe on the path.
    pub(crate) fn heartbeat(&mut self, node: &mut Node, now: Instant) {
        if self.is_asleep() {
            return;
        }
        if let Some(in_use) = &mut self.in_use {
            in_use.probed();
            if !in_use.asked {
                in_use.next = in_use.next.max(now + KEEPALIVE_RETRY);
            }
            let remote = in_use.path.remote;
            self.send_probe(node, remote, self.purpose(remote), now);
        }
    }

    /// Mappings turn out to live for less than was thought.
    pub(crate) fn hasten(&mut self, node: &mut Node, now: Instant) {
        if let Some(in_use) = &mut self.in_use {
            in_use.next = in_use.next.min(now + node.keepalive());
        }
    }

    /// Sees soon whether the path still answers.
    pub(super) fn ask_path(&mut self, node: &mut Node, now: Instant) {
        self.heartbeat(node, now);
        if let Some(in_use) = &mut self.in_use {
            in_use.next = in_use.next.min(now + KEEPALIVE_RETRY);
        }
    }

    pub(super) fn path_deadline(&self) -> Option<(Instant, &'static str)> {
        let in_use = self.in_use.as_ref()?;
        Some(match in_use.health {
            Health::Good => (in_use.next, "keepalive"),
            Health::Suspect { next, widen, .. } => {
                (widen.map_or(next, |at| at.min(next)), "suspect")
            }
        })
    }

    /// What the tunnel says of this peer, and how many of the bytes were no use of it.
    pub(crate) fn on_tunnel(
        &mut self,
        node: &mut Node,
        (stats, upkeep): (&TunnelStats, u64),
        now: Instant,
    ) {
        let was_active = self.activity.is_active(now);
        let bytes = (stats.rx_bytes, stats.tx_bytes);
        let moved = self.activity.update(bytes, upkeep, now);
        let active = self.activity.is_active(now);
        let slept = self.is_asleep();
        self.run_rest(node, moved, now);
        if slept || self.is_asleep() {
            self.tunnel_endpoint = stats.endpoint;
            return;
        }
        if stats.endpoint != self.tunnel_endpoint {
            self.tunnel_endpoint = stats.endpoint;
            let elsewhere = stats
                .endpoint
                .filter(|endpoint| self.path().is_none_or(|path| path.remote != *endpoint));
            if let Some(endpoint) = elsewhere {
                let known = self.remotes.get(&endpoint).is_some_and(|r| r.confirmed);
                self.roamed(node, endpoint, now);
                if known {
                    // The peer may just be sending both ways; to do the same would keep both at it.
                    self.question(node, now);
                } else {
                    self.suspect(node, now);
                }
            }
        }
        if active && !was_active {
            self.mtu.catch_up(now);
        }
        self.mtu.set_active(active);
        let silence = self.activity.silence(now);
        let Some(in_use) = self.in_use.as_mut() else {
            return;
        };
        if active && !was_active {
            in_use.next = in_use.next.min(now + HEARTBEAT);
        }
        if active != was_active {
            node.meet.insert(self.id);
        }
        let unheard = now.saturating_duration_since(in_use.last_answer);
        let silent = silence.is_some_and(|silence| silence >= SILENCE) && unheard >= SILENCE;
        if active && silent && !in_use.asked && matches!(in_use.health, Health::Good) {
            // One that sends much and gets no answers is not silent for that: its path is asked first.
            self.question(node, now);
        }
    }

    /// Asks the path; without an answer in two round trips it is suspect.
    pub(super) fn question(&mut self, node: &mut Node, now: Instant) {
        if self.is_suspect() || self.is_asleep() {
            return;
        }
        self.heartbeat(node, now);
        if let Some(in_use) = self.in_use.as_mut().filter(|in_use| !in_use.asked) {
            in_use.asked = true;
            in_use.next = now + (in_use.path.rtt * 2).max(ASK_LEAST);
        }
    }

    /// Across the internet, and good: fit to learn the own NAT by.
    pub(crate) fn shows_nat(&self) -> Option<SocketAddr> {
        let path = self.path()?;
        let outside = path.kind != PathKind::Lan && path.kind.is_direct_udp();
        (outside && !self.is_suspect() && !self.is_asleep()).then_some(path.remote)
    }

    /// Are other ways looked for, because the path does not answer?
    pub(super) fn has_widened(&self) -> bool {
        self.in_use
            .as_ref()
            .is_some_and(|in_use| matches!(in_use.health, Health::Suspect { widen: None, .. }))
    }

    /// Asks a connected peer under which IPv4 address it sees us, be the path to it of IPv6. False where that
    /// cannot be.
    pub(crate) fn ask_ipv4(&mut self, node: &mut Node, now: Instant) -> bool {
        if self.in_use.is_none() || self.is_suspect() || self.is_asleep() {
            return false;
        }
        let fit = |remote: &Remote| remote.confirmed && remote.kind == PathKind::Ipv4;
        let best = self
            .remotes
            .iter()
            .filter(|(_, remote)| fit(remote))
            .max_by_key(|(_, remote)| remote.last_answer)
            .map(|(address, _)| *address);
        best.is_some_and(|address| self.send_probe(node, address, Purpose::Check, now))
    }
}

fn widen_due(in_use: &InUse, now: Instant) -> bool {
    match in_use.health {
        Health::Suspect { widen, .. } => widen.is_some_and(|at| at <= now),
        Health::Good => false,
    }
}
