//! The largest packet that a path carries, found without ICMP (RFC 8899).
//!
//! Sizes are those of packets inside the tunnel; a probe is a Binding request padded until it is as long as
//! WireGuard makes such a packet, with "don't fragment" set. Its answer is short, so it tells of this
//! direction only, which is the one this side's routes are for.
//!
//! A new path is first asked for the full size, which most paths carry. Where no answer comes the path counts
//! as carrying [`SIZES`]' smallest, and ladders of sizes narrow the search down: each is sent [`TRIES`] times,
//! the next lies between the largest that was answered and the smallest that was not. What was found is asked
//! for again every [`CONFIRM`] while packets flow: a size that no longer passes on a path that answers
//! otherwise is a black hole, and the search begins anew from below. After [`RAISE`] larger sizes get a chance.
//!
//! Unlike RFC 8899 5.2, there is no separate probe of a base size, and nothing is sent for idle peers.

use std::time::{Duration, Instant};

use mesh_types::consts::MTU;

/// Sizes that are told apart, smallest first: 1280 bytes outside by IPv6, the least that it carries (RFC 8200
/// 5); then by sixteen, because WireGuard pads to that; last the device's.
const SIZES: [u16; 15] = [
    1200, 1216, 1232, 1248, 1264, 1280, 1296, 1312, 1328, 1344, 1360, 1376, 1392, 1408, MTU,
];
const LARGEST: usize = SIZES.len() - 1;
/// Sizes of one ladder: few enough not to fill a slow uplink's queue.
const LADDER: usize = 4;
/// Probes of each size before it counts as too large: at a loss of 10 % each way one in 150 finds is too low.
const TRIES: u8 = 3;
/// Between the probes of one size.
const APART: Duration = Duration::from_millis(100);
/// Beyond one and a half round trips after the last of them.
const GRACE: Duration = Duration::from_millis(50);
/// How often the size in use is asked for again while packets flow.
const CONFIRM: Duration = Duration::from_secs(5);
/// How long a size is kept before larger ones are tried: the first time, then always (RFC 8899 5.1.1).
const RAISE: [Duration; 2] = [Duration::from_secs(30), Duration::from_secs(600)];

/// What is known of a path. See the module.
#[derive(Debug, Default)]
pub(crate) struct PathMtu {
    /// Index into [`SIZES`] of what counts now; `None` where nothing says that the device's MTU does not pass.
    low: Option<usize>,
    /// The same once a search of this path has ended, until the next one has.
    firm: Option<usize>,
    round: Option<Round>,
    confirm_at: Option<Instant>,
    raise_at: Option<Instant>,
    raises: usize,
    /// Packets flow, so that a hole would hurt.
    active: bool,
}

/// Sizes that are being asked for.
#[derive(Debug)]
struct Round {
    aim: Aim,
    /// Indices into [`SIZES`], ascending, and whether each was answered.
    asked: Vec<(usize, bool)>,
    sent: u8,
    next: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Aim {
    /// Does the full size pass?
    Full,
    /// What passes below this one, which does not?
    Below(usize),
    /// Does the size that counts still pass?
    Confirm,
    /// Does more pass by now?
    Raise,
}

impl PathMtu {
    /// A path was taken into use. What the last one carried counts until this one has shown more.
    pub(crate) fn start(&mut self, now: Instant) {
        *self = Self {
            low: self.low,
            active: self.active,
            ..Self::default()
        };
        self.ask(Aim::Full, vec![LARGEST], now);
    }

    /// There is no path.
    pub(crate) fn stop(&mut self) {
        *self = Self::default();
    }

    /// The largest packet inside the tunnel that passes, bytes, where that is less than the device's MTU.
    pub(crate) fn limit(&self) -> Option<u16> {
        self.low.map(|at| SIZES[at]).filter(|size| *size < MTU)
    }

    /// The same, but only what a search of this path came to: for what cannot be changed at any moment.
    pub(crate) fn firm_limit(&self) -> Option<u16> {
        self.firm.map(|at| SIZES[at]).filter(|size| *size < MTU)
    }

    /// Do packets flow?
    pub(crate) fn set_active(&mut self, active: bool) {
        self.active = active;
    }

    /// It was not run for a while: what is overdue is due now, for a deadline long past means that the machine slept.
    pub(crate) fn catch_up(&mut self, now: Instant) {
        let next = self.round.as_mut().map(|round| &mut round.next);
        let times = [self.confirm_at.as_mut(), self.raise_at.as_mut(), next];
        for at in times.into_iter().flatten() {
            *at = (*at).max(now);
        }
    }

    /// Sizes to be probed now.
    pub(crate) fn run(&mut self, rtt: Duration, now: Instant) -> Vec<u16> {
        if self.round.is_none() {
            let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
            if due(self.raise_at) {
                self.raise_at = None;
                self.ask(Aim::Raise, between(self.now_at(), SIZES.len()), now);
            } else if self.active && due(self.confirm_at) {
                self.confirm_at = None;
                self.ask(Aim::Confirm, vec![self.now_at()], now);
            }
        }
        while let Some(round) = self.round.as_mut().filter(|round| round.next <= now) {
            if round.sent == TRIES {
                self.conclude(now);
                continue;
            }
            round.sent += 1;
            let wait = if round.sent == TRIES {
                rtt * 3 / 2 + GRACE
            } else {
                Duration::ZERO
            };
            round.next = now + APART.max(wait);
            let best = round.best();
            let open = round.asked.iter().filter(|(at, _)| Some(*at) > best);
            return open.map(|(at, _)| SIZES[*at]).collect();
        }
        Vec::new()
    }

    /// The path does not answer small probes either: what large ones came to says nothing, and is asked again.
    pub(crate) fn doubt(&mut self) {
        if let Some(round) = &mut self.round {
            round.sent = 0;
        }
    }

    /// A probe of this size was answered.
    pub(crate) fn answered(&mut self, size: u16, now: Instant) {
        let Some(round) = &mut self.round else {
            return;
        };
        for (at, answered) in &mut round.asked {
            *answered |= SIZES[*at] <= size;
        }
        if round.asked.iter().all(|(_, answered)| *answered) {
            self.conclude(now);
        }
    }

    /// When to [`Self::run`].
    pub(crate) fn deadline(&self) -> Option<Instant> {
        if let Some(round) = &self.round {
            return Some(round.next);
        }
        let confirm = self.confirm_at.filter(|_| self.active);
        confirm.into_iter().chain(self.raise_at).min()
    }

    fn now_at(&self) -> usize {
        self.low.unwrap_or(LARGEST)
    }

    fn ask(&mut self, aim: Aim, sizes: Vec<usize>, now: Instant) {
        self.round = Some(Round {
            aim,
            asked: sizes.into_iter().map(|at| (at, false)).collect(),
            sent: 0,
            next: now,
        });
    }

    /// The round is over.
    fn conclude(&mut self, now: Instant) {
        let Some(round) = self.round.take() else {
            return;
        };
        let low = round.best().unwrap_or(match round.aim {
            // Nothing of what was known holds.
            Aim::Full | Aim::Confirm => 0,
            Aim::Below(_) | Aim::Raise => self.low.unwrap_or(0),
        });
        // What is smaller than what arrived was lost by chance.
        let mut asked = round.asked.iter();
        let refused = asked.find(|(at, answered)| !answered && *at > low);
        let high = match (refused, round.aim) {
            (Some((at, _)), _) => *at,
            (None, Aim::Below(high)) => high,
            (None, Aim::Full | Aim::Confirm | Aim::Raise) => SIZES.len(),
        };
        self.low = Some(low);
        let ladder = between(low, high);
        if ladder.is_empty() {
            self.settle(low, now);
        } else {
            self.ask(Aim::Below(high), ladder, now);
        }
    }

    fn settle(&mut self, at: usize, now: Instant) {
        self.firm = Some(at);
        self.confirm_at = Some(now + CONFIRM);
        if at < LARGEST && self.raise_at.is_none() {
            self.raise_at = Some(now + RAISE[self.raises.min(RAISE.len() - 1)]);
            self.raises += 1;
        }
    }
}

impl Round {
    fn best(&self) -> Option<usize> {
        let answered = self.asked.iter().filter(|(_, answered)| *answered);
        answered.map(|(at, _)| *at).max()
    }
}

/// Up to [`LADDER`] sizes between two, evenly spread.
fn between(low: usize, high: usize) -> Vec<usize> {
    let inside = high.saturating_sub(low + 1);
    let steps = inside.min(LADDER);
    (1..=steps)
        .map(|step| low + step * (inside + 1) / (steps + 1))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const RTT: Duration = Duration::from_millis(40);

    #[expect(
        clippy::disallowed_methods,
        reason = "tests need some instant to start from"
    )]
    fn start() -> Instant {
        Instant::now()
    }

    /// A path that carries sizes up to a limit, and loses every `lossy`th answer.
    struct World {
        mtu: PathMtu,
        now: Instant,
        carries: u16,
        lossy: u32,
        sent: u32,
        bytes: u32,
        answers: Vec<(Instant, u16)>,
    }

    impl World {
        fn new(carries: u16) -> Self {
            let mut world = Self {
                mtu: PathMtu::default(),
                now: start(),
                carries,
                lossy: u32::MAX,
                sent: 0,
                bytes: 0,
                answers: Vec::new(),
            };
            world.mtu.set_active(true);
            world.mtu.start(world.now);
            world
        }

        fn run(&mut self, time: Duration) {
            let end = self.now + time;
            loop {
                let answer = self.answers.iter().map(|(at, _)| *at).min();
                let next = self.mtu.deadline().into_iter().chain(answer);
                let Some(at) = next.min().filter(|at| *at <= end) else {
                    self.now = end;
                    return;
                };
                self.now = self.now.max(at);
                let (due, later) = self.answers.iter().partition(|(at, _)| *at <= self.now);
                self.answers = later;
                let due: Vec<(Instant, u16)> = due;
                for (_, size) in due {
                    self.mtu.answered(size, self.now);
                }
                for size in self.mtu.run(RTT, self.now) {
                    self.sent += 1;
                    self.bytes += u32::from(size);
                    if size <= self.carries && !self.sent.is_multiple_of(self.lossy) {
                        self.answers.push((self.now + RTT, size));
                    }
                }
            }
        }
    }

    #[test]
    fn a_path_of_full_size_costs_one_probe_and_no_time() {
        let mut world = World::new(1420);
        world.run(Duration::from_secs(4));
        assert_eq!((world.mtu.limit(), world.sent), (None, 1));
    }

    #[test]
    fn every_limit_is_found_within_a_second_and_a_half() {
        for carries in 1200..1420 {
            let mut world = World::new(carries);
            world.run(Duration::from_millis(400));
            assert!(world.mtu.limit().is_some(), "narrowed at once");
            world.run(Duration::from_millis(1100));
            let found = world.mtu.limit().unwrap();
            assert!(
                found <= carries && carries - found < 16,
                "{carries}: {found}"
            );
            assert!(world.sent <= 27, "{carries}: {} probes", world.sent);
        }
    }

    #[test]
    fn a_path_that_carries_less_than_ipv6_must_is_taken_to_carry_that() {
        let mut world = World::new(600);
        world.run(Duration::from_secs(3));
        assert_eq!(world.mtu.limit(), Some(SIZES[0]));
    }

    #[test]
    fn a_path_that_ceases_to_carry_even_the_smallest_size_is_asked_on() {
        let mut world = World::new(600);
        world.run(Duration::from_secs(3));
        world.carries = 0;
        world.run(Duration::from_secs(30));
        assert_eq!(world.mtu.limit(), Some(SIZES[0]));
        world.carries = 1420;
        world.run(Duration::from_secs(1200));
        assert_eq!(world.mtu.limit(), None);
    }

    #[test]
    fn lost_answers_do_not_shrink_a_path() {
        for lossy in 2..9 {
            let mut world = World::new(1420);
            world.lossy = lossy;
            world.run(Duration::from_secs(60));
            assert_eq!(world.mtu.limit(), None, "every {lossy}th is lost");
        }
    }

    #[test]
    fn a_black_hole_is_noticed_while_packets_flow_and_a_way_through_is_found() {
        for (before, after) in [(1420, 1300), (1360, 1216)] {
            let mut world = World::new(before);
            world.run(Duration::from_secs(7));
            world.carries = after;
            world.run(CONFIRM + Duration::from_millis(400));
            assert!(world.mtu.limit().is_some_and(|size| size <= after));
            world.run(Duration::from_secs(1));
            let found = world.mtu.limit().unwrap();
            assert!(found <= after && after - found < 16, "{after}: {found}");
        }
    }

    #[test]
    fn a_path_that_grows_is_used_in_full_after_a_while() {
        let mut world = World::new(1300);
        world.run(Duration::from_secs(3));
        assert_eq!(world.mtu.limit(), Some(1296));
        world.carries = 1420;
        world.run(RAISE[0] + Duration::from_secs(2));
        assert_eq!(world.mtu.limit(), None);
    }

    #[test]
    fn an_idle_peer_is_asked_only_whether_more_passes_by_now() {
        let mut world = World::new(1300);
        world.mtu.set_active(false);
        world.run(Duration::from_secs(3));
        let sent = world.sent;
        world.run(Duration::from_secs(20));
        assert_eq!(world.sent, sent);
        world.run(Duration::from_secs(3600));
        assert!(world.sent - sent < 120, "{} in an hour", world.sent - sent);
        assert!(world.bytes < 250_000, "{} bytes", world.bytes);
    }

    #[test]
    fn the_next_path_keeps_the_limit_until_it_has_shown_more() {
        let mut world = World::new(1300);
        world.run(Duration::from_secs(3));
        world.mtu.start(world.now);
        world.carries = 1420;
        assert_eq!(world.mtu.limit(), Some(1296));
        world.run(RTT * 2);
        assert_eq!(world.mtu.limit(), None);
    }

    #[test]
    fn what_is_firm_never_moves_while_a_search_goes_on() {
        let mut world = World::new(1300);
        while world.mtu.firm_limit().is_none() {
            world.run(Duration::from_millis(1));
        }
        assert_eq!(world.mtu.firm_limit(), Some(1296));
        world.run(Duration::from_secs(3));
        world.carries = 1216;
        for _ in 0..10_000 {
            world.run(Duration::from_millis(1));
            let firm = world.mtu.firm_limit();
            assert!(firm == Some(1296) || firm == Some(1216), "{firm:?}");
        }
        assert_eq!(world.mtu.firm_limit(), Some(1216));
        world.mtu.start(world.now);
        assert_eq!(world.mtu.firm_limit(), None, "of another path");
    }

    #[test]
    fn a_path_in_doubt_is_not_judged() {
        let mut world = World::new(0);
        for _ in 0..40 {
            world.run(Duration::from_millis(100));
            world.mtu.doubt();
        }
        assert_eq!(world.mtu.limit(), None);
    }
}
