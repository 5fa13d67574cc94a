//! How long the own translator keeps a mapping that nothing crosses (RFC 5780 4.6), by halving.
//!
//! One spare socket, the keeper, talks with a peer for a moment and then is silent. After so long another
//! one asks the peer to answer to the keeper's external port (RESPONSE-PORT): where that arrives, the mapping
//! has lived. The keeper itself must not send, because most translators give it the same port again. The
//! main port takes no part.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mesh_types::SocketId;

use crate::api::Lifetime;
use crate::hard::SAMPLE_RETRY;
use crate::hard::sampler::Observer;
use crate::node::{Node, Purpose};
use crate::schedule::{KEEPALIVE, NAT_TEST};

/// Silences tried as long as every mapping has lived: the keepalive depends on the first, RFC 4787 REQ-5 asks
/// for the second and recommends the third.
const LADDER: [Duration; 3] = [
    Duration::from_secs(30),
    Duration::from_secs(120),
    Duration::from_secs(300),
];
/// Below this the keepalive depends on it.
const SHORT: Duration = LADDER[0];
/// Linux remembers a flow for longer once it has gone both ways for 2 s, as those of the main port have.
const STEADY: Duration = Duration::from_secs(3);
/// Of each question.
const TRIES: u8 = 3;
/// Between two of them.
const RETRY: Duration = Duration::from_millis(500);
/// Between two tests that the keepalive does not depend on.
const PAUSE: Duration = Duration::from_secs(120);
/// After a test that told nothing.
const AGAIN: Duration = Duration::from_secs(60);
/// What is known is tried again with no longer silences than this.
const CHECK_MAX: Duration = LADDER[1];
/// Known well enough: so much, or an eighth of it.
const TOLERANCE: Duration = Duration::from_secs(2);
/// No keepalive is sent more often.
const KEEPALIVE_LEAST: Duration = Duration::from_secs(2);

const EARLY: &str = "the first test takes half a minute and is not over yet";
const ALONE: &str = "no peer that strangers can reach is there to test with";
const SOCKETS: &str = "the host opened no spare sockets";
const SILENT: &str = "the peer to test with fell silent";
const OLD: &str = "the peer to test with cannot answer to another port";
const MOVED: &str = "the NAT shows sockets of this node under several addresses";
const OPEN: &str = "no NAT and no firewall is there that has to remember anything";
const MEASURED: &str = "a peer answered to a spare socket after so much silence";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Opening,
    /// The keeper asks how it is seen.
    First,
    /// The flow becomes one of those that last.
    Steadying,
    /// The keeper asks once more.
    Second,
    Silent,
    /// The other one asks for an answer to the keeper.
    Asking,
    /// And whether the peer is there at all.
    Control,
}

#[derive(Debug)]
struct Run {
    observer: Observer,
    keeper: u32,
    asker: u32,
    silence: Duration,
    phase: Phase,
    tokens: Vec<u64>,
    /// Where the keeper is seen.
    outside: Option<SocketAddr>,
    sent: u8,
    next: Instant,
}

impl Run {
    fn enter(&mut self, node: &mut Node, phase: Phase, next: Instant) {
        self.forget(node);
        self.phase = phase;
        self.sent = 0;
        self.next = next;
    }

    fn forget(&mut self, node: &mut Node) {
        for token in self.tokens.drain(..) {
            node.samples.forget(token);
        }
    }

    fn seen(&self, node: &Node) -> Option<SocketAddr> {
        let mut seen = self
            .tokens
            .iter()
            .filter_map(|token| node.samples.mapped(*token));
        seen.next()
    }

    /// Asks the next time. False where that was done often enough.
    fn ask(&mut self, node: &mut Node, now: Instant) -> bool {
        if self.sent == TRIES {
            return false;
        }
        self.sent += 1;
        self.next = now + RETRY;
        match (self.phase, self.outside, &self.observer.peer) {
            (Phase::Asking, Some(outside), Some((peer, link))) => {
                let way = (SocketId::Extra(self.asker), self.observer.address);
                node.probe(*peer, link, way, Purpose::Elsewhere(outside.port()), now);
            }
            (Phase::Control, ..) => {
                self.tokens
                    .extend(node.sample_by(self.asker, &self.observer, now));
            }
            _ => self
                .tokens
                .extend(node.sample_by(self.keeper, &self.observer, now)),
        }
        true
    }
}

/// When to test, the test under way, and what is known.
#[derive(Debug)]
pub(crate) struct LifetimeTest {
    /// The longest silence that a mapping has survived,
    alive: Duration,
    /// and the shortest that it has not.
    dead: Option<Duration>,
    /// Why there is nothing better to tell.
    why: &'static str,
    due: Instant,
    turn: usize,
    running: Option<Run>,
}

impl LifetimeTest {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            alive: Duration::ZERO,
            dead: None,
            why: ALONE,
            due: now,
            turn: 0,
            running: None,
        }
    }

    /// The host has moved: nothing known holds.
    pub(crate) fn restart(&mut self, node: &mut Node, now: Instant) {
        self.stop(node);
        *self = Self::new(now);
    }

    pub(crate) fn verdict(&self) -> Lifetime {
        let known = !self.alive.is_zero() || self.dead.is_some();
        Lifetime {
            at_least: (!self.alive.is_zero()).then_some(self.alive),
            below: self.dead,
            why: if known { MEASURED } else { self.why },
        }
    }

    /// Least and most time between two keepalives.
    pub(crate) fn keepalive(&self) -> (Duration, Duration) {
        let Some(dead) = self.dead else {
            return KEEPALIVE;
        };
        let safe = self.alive.max(dead / 3);
        if safe >= SHORT {
            return KEEPALIVE;
        }
        let most = (safe * 2 / 3).clamp(KEEPALIVE_LEAST, KEEPALIVE.1);
        (most * 4 / 5, most)
    }

    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.running.is_none() && self.due <= now
    }

    /// The silence that would tell most; `None` where all is known well enough.
    fn wanted(&self) -> Option<Duration> {
        match self.dead {
            None => LADDER.into_iter().find(|silence| *silence > self.alive),
            Some(dead) => {
                let gap = dead.saturating_sub(self.alive);
                (gap > TOLERANCE.max(self.alive / 8)).then(|| self.alive + gap / 2)
            }
        }
    }

    /// What is known is tried from both sides in turn.
    fn check(&self) -> Duration {
        match self.dead {
            Some(dead) if self.turn.is_multiple_of(2) || self.alive.is_zero() => {
                dead.min(CHECK_MAX)
            }
            Some(_) | None => self.alive.min(CHECK_MAX),
        }
    }

    /// Begins where somebody can be asked; `open` where strangers reach this node under an own address.
    pub(crate) fn begin(
        &mut self,
        node: &mut Node,
        observers: &[Observer],
        open: bool,
        now: Instant,
    ) {
        if open {
            self.why = OPEN;
            return;
        }
        let peers: Vec<_> = observers.iter().filter(|o| o.peer.is_some()).collect();
        let Some(observer) = peers.get(self.turn % peers.len().max(1)) else {
            self.why = ALONE;
            return;
        };
        let Some([keeper, asker]) = node
            .sockets
            .request(2)
            .and_then(|new| <[u32; 2]>::try_from(new).ok())
        else {
            self.why = SOCKETS;
            return;
        };
        self.why = EARLY;
        self.running = Some(Run {
            observer: (*observer).clone(),
            keeper,
            asker,
            silence: self.wanted().unwrap_or_else(|| self.check()),
            phase: Phase::Opening,
            tokens: Vec::new(),
            outside: None,
            sent: 0,
            next: now + SAMPLE_RETRY.1,
        });
    }

    pub(crate) fn run(&mut self, node: &mut Node, now: Instant) {
        while let Some(run) = &mut self.running {
            let due = run.next <= now;
            match run.phase {
                Phase::Opening if node.sockets.are_open(&[run.keeper, run.asker]) => {
                    run.enter(node, Phase::First, now);
                }
                Phase::Opening if due => return self.nothing(node, SOCKETS, now),
                Phase::Steadying if due => run.enter(node, Phase::Second, now),
                Phase::Silent if due => run.enter(node, Phase::Asking, now),
                Phase::Opening | Phase::Steadying | Phase::Silent => return,
                Phase::First | Phase::Second | Phase::Control => match run.seen(node) {
                    Some(seen) if run.outside.is_some_and(|outside| outside.ip() != seen.ip()) => {
                        return self.nothing(node, MOVED, now);
                    }
                    Some(_) if run.phase == Phase::Control => return self.died(node, now),
                    Some(seen) if run.phase == Phase::First => {
                        run.outside = Some(seen);
                        run.enter(node, Phase::Steadying, now + STEADY);
                    }
                    Some(seen) => {
                        run.outside = Some(seen);
                        let end = now + run.silence;
                        run.enter(node, Phase::Silent, end);
                    }
                    None if !due => return,
                    None if run.ask(node, now) => {}
                    None => return self.nothing(node, SILENT, now),
                },
                Phase::Asking if !due => return,
                Phase::Asking => {
                    if !run.ask(node, now) {
                        run.enter(node, Phase::Control, now);
                    }
                }
            }
        }
    }

    /// The answer that was asked for has come, to this socket.
    pub(crate) fn answered(&mut self, node: &mut Node, socket: SocketId, now: Instant) {
        let Some(run) = self.running.as_ref() else {
            return;
        };
        if !matches!(run.phase, Phase::Asking | Phase::Control) {
            return;
        }
        if socket != SocketId::Extra(run.keeper) {
            return self.nothing(node, OLD, now);
        }
        self.alive = self.alive.max(run.silence);
        self.dead = self.dead.filter(|dead| *dead > run.silence);
        self.learned(node, now);
    }

    fn died(&mut self, node: &mut Node, now: Instant) {
        let Some(run) = self.running.as_ref() else {
            return;
        };
        self.dead = Some(self.dead.map_or(run.silence, |dead| dead.min(run.silence)));
        if self.alive >= run.silence {
            self.alive = Duration::ZERO;
        }
        self.learned(node, now);
    }

    fn learned(&mut self, node: &mut Node, now: Instant) {
        node.counters.add("lifetime-tests");
        let short = self.dead.is_some_and(|dead| dead <= SHORT);
        let wait = match self.wanted() {
            Some(_) if short => Duration::ZERO,
            Some(_) => PAUSE,
            None => NAT_TEST,
        };
        self.end(node, wait, now);
    }

    fn nothing(&mut self, node: &mut Node, why: &'static str, now: Instant) {
        self.why = why;
        self.end(node, AGAIN, now);
    }

    fn end(&mut self, node: &mut Node, wait: Duration, now: Instant) {
        self.stop(node);
        self.turn += 1;
        self.due = now + wait;
    }

    fn stop(&mut self, node: &mut Node) {
        if let Some(mut run) = self.running.take() {
            run.forget(node);
            node.sockets.release(run.keeper);
            node.sockets.release(run.asker);
        }
    }

    pub(crate) fn deadline(&self) -> Option<(Instant, &'static str)> {
        let run = self.running.as_ref()?;
        Some((run.next, "lifetime-test"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instant::start;

    /// Silences tried against a NAT that forgets after so many seconds.
    fn tried(life: u64) -> (Vec<u64>, LifetimeTest) {
        let (mut test, life) = (LifetimeTest::new(start()), Duration::from_secs(life));
        let mut tried = Vec::new();
        while let Some(silence) = test.wanted() {
            tried.push(silence.as_secs());
            if silence < life {
                test.alive = silence;
            } else {
                test.dead = Some(silence);
            }
            assert!(tried.len() < 12, "{tried:?}");
        }
        (tried, test)
    }

    #[test]
    fn a_lifetime_is_found_within_an_eighth_or_two_seconds() {
        for life in [1, 3, 5, 10, 12, 20, 29, 31, 60, 119, 121, 180, 299] {
            let (_, test) = tried(life);
            let (alive, dead) = (test.alive.as_secs_f64(), test.dead.unwrap().as_secs_f64());
            let life = life as f64;
            assert!(alive <= life && life <= dead, "{alive} {life} {dead}");
            assert!(dead - alive <= f64::max(2.0, alive / 8.0), "{alive} {dead}");
        }
        assert_eq!(tried(1000).0, [30, 120, 300]);
    }

    #[test]
    fn the_keepalive_is_below_two_thirds_of_a_short_lifetime_and_the_usual_one_otherwise() {
        for life in [30, 31, 60, 120, 1000] {
            assert_eq!(tried(life + 1).1.keepalive(), KEEPALIVE);
        }
        for life in [5, 8, 12, 20, 28] {
            let (least, most) = tried(life).1.keepalive();
            assert!(
                most <= Duration::from_secs(life) * 2 / 3,
                "{most:?} of {life}"
            );
            assert!(least < most && most >= KEEPALIVE_LEAST);
        }
        let mut test = LifetimeTest::new(start());
        assert_eq!(test.keepalive(), KEEPALIVE, "nothing is known");
        test.dead = Some(SHORT);
        assert!(
            test.keepalive().1 < Duration::from_secs(10),
            "a first guess"
        );
    }
}
