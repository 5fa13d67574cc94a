//! When to send what: every number of time, each with its reason.

use std::time::Duration;

use mesh_types::WgKey;
use sha2::{Digest as _, Sha256};

/// Probes of a burst after its start. Close at first, because two simultaneous opens meet within one
/// round trip; wide at the end, because a signal may be late by hundreds of milliseconds.
pub(crate) const BURST: [Duration; 7] = [
    Duration::ZERO,
    Duration::from_millis(20),
    Duration::from_millis(40),
    Duration::from_millis(80),
    Duration::from_millis(160),
    Duration::from_millis(320),
    Duration::from_millis(640),
];

/// After a burst, without a path: (until this age, every). Later every [`SLOWEST`].
const SEARCH: [(Duration, Duration); 3] = [
    (Duration::from_secs(10), Duration::from_secs(1)),
    (Duration::from_secs(60), Duration::from_secs(15)),
    (Duration::from_secs(300), Duration::from_secs(60)),
];
/// After a burst, beside a path: probes at these ages, to find a better one. Later every [`SLOWEST`].
const UPGRADE: [Duration; 4] = [
    Duration::from_secs(5),
    Duration::from_secs(15),
    Duration::from_secs(60),
    Duration::from_secs(300),
];
const SLOWEST: Duration = Duration::from_secs(300);

/// CallMe after CallMe while there is no path; the last interval repeats.
pub(crate) const CALL: [Duration; 6] = [
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(15),
    Duration::from_secs(30),
    Duration::from_secs(60),
];
/// The same beside a path through a relay, for a better one.
pub(crate) const CALL_RELAYED: [Duration; 5] = [
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(15),
    Duration::from_secs(60),
    Duration::from_secs(300),
];
/// After so many of them a call of the peer, which was answered, stands for the next own one.
pub(crate) const CALL_EAGER: usize = 3;
/// How long a first CallMe waits for the own reflexive address: the answer of a near neighbour.
pub(crate) const CALL_WAIT: Duration = Duration::from_millis(100);
/// Least time between two CallMe to one peer; a change of the own addresses may trigger them.
pub(crate) const CALL_SPACING: Duration = Duration::from_millis(200);

/// So long after the search for a peer began, plain probes have had their chance: both sides fall silent...
pub(crate) const OPENERS_AFTER: Duration = Duration::from_secs(12);
/// ...for longer than a router remembers what it took for itself (Linux: 30 s). A flow that is forgotten still lends
/// its port to the next one of the same source until it is swept, which Linux does once in 60 s at the latest
/// (`find_appropriate_src` and `gc_worker` under net/netfilter): the second round waits for that, too...
pub(crate) const OPENERS_SILENCE: [Duration; 2] =
    [Duration::from_secs(35), Duration::from_secs(95)];
/// ...then send packets that leave the own translator and do not reach the peer's, at these ages...
pub(crate) const OPENERS: [Duration; 3] = [
    Duration::ZERO,
    Duration::from_millis(100),
    Duration::from_millis(200),
];
/// ...and then plain probes: a call's way to the peer is shorter than this.
pub(crate) const OPENERS_END: Duration = Duration::from_millis(400);
/// ...for so long, before the second round.
pub(crate) const OPENERS_AGAIN: Duration = Duration::from_secs(2);
/// Routers an opener crosses: the home's and a carrier's, and no more.
pub(crate) const OPENER_TTL: u8 = 3;
/// Two such rounds are not followed by another sooner.
pub(crate) const OPENERS_EVERY: Duration = Duration::from_secs(600);

/// Heartbeat on the path to an active peer: two missed are noticed in 4 s.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(2);
/// Keepalive of the mapping otherwise, least and most: mappings of 30 s exist (RFC 4787 asks for 120 s).
pub(crate) const KEEPALIVE: (Duration, Duration) =
    (Duration::from_secs(20), Duration::from_secs(25));
/// A keepalive unanswered for so long is repeated, then the path is suspect.
pub(crate) const KEEPALIVE_RETRY: Duration = Duration::from_secs(1);
/// An active peer that hears nothing for so long plus two round trips suspects its path.
pub(crate) const SILENCE: Duration = Duration::from_millis(500);
/// Probes on a suspect path.
pub(crate) const FAST_PROBES: u8 = 3;
/// Between them.
pub(crate) const FAST_INTERVAL: Duration = Duration::from_millis(100);
/// Beyond two round trips after the last of them, before the path is dead.
pub(crate) const FAST_GRACE: Duration = Duration::from_millis(100);
/// PathReady is repeated after so long, doubled each time.
pub(crate) const NOMINATE_RETRY: Duration = Duration::from_millis(100);
/// PathReady is given up after so many.
pub(crate) const NOMINATE_TRIES: u32 = 5;

/// A peer is active while it moves [`ACTIVE_BYTES`] in this time.
pub(crate) const ACTIVE_WINDOW: Duration = Duration::from_secs(10);
/// See [`ACTIVE_WINDOW`]; keepalives and a handshake stay below.
pub(crate) const ACTIVE_BYTES: u64 = 1024;

/// Retransmissions to STUN servers.
pub(crate) const STUN_RETRY: [Duration; 3] = [
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(400),
];
/// A STUN server that did not answer is asked again after this.
pub(crate) const STUN_AGAIN: Duration = Duration::from_secs(5);
/// Retransmissions of a Join, ages.
pub(crate) const JOIN_RETRY: [Duration; 6] = [
    Duration::from_millis(100),
    Duration::from_millis(300),
    Duration::from_millis(700),
    Duration::from_millis(1500),
    Duration::from_millis(3100),
    Duration::from_millis(6300),
];
/// A Join is forgotten after this.
pub(crate) const JOIN_LIFETIME: Duration = Duration::from_secs(10);
/// Answers that come later are not believed.
pub(crate) const ANSWER_LIFETIME: Duration = Duration::from_secs(5);
/// A wake-up later than expected by this much means the machine slept.
pub(crate) const SUSPENDED: Duration = Duration::from_secs(10);
/// Own filtering and mapping are tested anew after this.
pub(crate) const NAT_TEST: Duration = Duration::from_secs(300);

/// Period of the wall-clock rendezvous (L0), seconds.
const SLOT_PERIOD: u64 = 30;
/// Probes of a slot, relative to 500 ms before its start (the clocks' assumed skew). Announced addresses
/// get no more than these three.
pub(crate) const SLOT_PROBES: [Duration; 3] = [
    Duration::ZERO,
    Duration::from_millis(1250),
    Duration::from_millis(2500),
];
const SLOT_LEAD: Duration = Duration::from_millis(500);
/// A peer not reached for so long is met in every tenth slot only; both sides count slots alike.
pub(crate) const SLOT_LAZY_AFTER: Duration = Duration::from_secs(600);
const SLOT_LAZY_EVERY: u64 = 10;

/// Age of the next probe to an address whose burst is over, given the age of the burst.
pub(crate) fn after_burst(age: Duration, has_path: bool) -> Duration {
    if has_path {
        return UPGRADE
            .into_iter()
            .find(|next| *next > age)
            .unwrap_or(age + SLOWEST);
    }
    SEARCH
        .into_iter()
        .find(|(until, _)| age < *until)
        .map_or(age + SLOWEST, |(until, every)| {
            (age + every).min(until.max(age + Duration::from_millis(1)))
        })
}

/// Wall-clock moment of the first probe of the pair's next slot strictly after `unix`.
pub(crate) fn next_slot(a: &WgKey, b: &WgKey, unix: Duration, lazy: bool) -> Duration {
    let (low, high) = if a < b { (a, b) } else { (b, a) };
    let hash = Sha256::new()
        .chain_update(b"farspan slot v1")
        .chain_update(low.0)
        .chain_update(high.0)
        .finalize();
    let number = u64::from(u16::from_be_bytes([hash[0], hash[1]]));
    let every = if lazy { SLOT_LAZY_EVERY } else { 1 };
    let mut index = unix.as_secs() / SLOT_PERIOD;
    loop {
        let start = Duration::from_secs(index * SLOT_PERIOD + number % SLOT_PERIOD);
        let first = start.saturating_sub(SLOT_LEAD);
        if first > unix && index % every == number % every {
            return first;
        }
        index += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_search_slows_down_and_never_stands_still() {
        for has_path in [false, true] {
            let mut age = BURST[6];
            let mut probes = 0;
            while age < Duration::from_secs(3600) {
                let next = after_burst(age, has_path);
                assert!(next > age);
                age = next;
                probes += 1;
            }
            assert!((15..40).contains(&probes), "{probes} probes in an hour");
        }
    }

    #[test]
    fn both_sides_find_one_slot_and_lazy_pairs_use_some_of_the_same() {
        let (a, b) = (WgKey([1; 32]), WgKey([2; 32]));
        let unix = Duration::from_millis(1_800_000_000_123);
        let slot = next_slot(&a, &b, unix, false);
        assert_eq!(slot, next_slot(&b, &a, unix, false));
        assert!(slot > unix && slot <= unix + Duration::from_secs(30));
        let lazy = next_slot(&a, &b, unix, true);
        assert!(lazy <= unix + Duration::from_secs(300));
        assert_eq!((lazy - slot).as_secs() % 30, 0);
        assert_eq!(
            next_slot(&a, &b, slot, false),
            slot + Duration::from_secs(30)
        );
    }
}
