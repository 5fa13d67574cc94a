//! The publisher alone, in virtual time.

#![expect(
    clippy::disallowed_methods,
    reason = "a test's clock has to start somewhere"
)]

use mesh_types::record::Features;
use mesh_types::{Candidate, CandidateKind, DomainId, IdentitySecret, WgKey};
use rand_chacha::ChaCha12Rng;
use rand_core::SeedableRng as _;

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

/// A node, its clock, and an API server that keeps what is written.
struct Bench {
    publisher: Publisher,
    random: ChaCha12Rng,
    start: Instant,
    now: Instant,
    wanted: Announcement,
    /// When writes began.
    writes: Vec<Duration>,
    /// What is answered; taken from the front, success where it is empty.
    failures: u32,
    silent: bool,
}

impl Bench {
    fn new() -> Self {
        let start = Instant::now();
        Self {
            publisher: Publisher::new(start),
            random: ChaCha12Rng::from_seed([3; 32]),
            start,
            now: start,
            wanted: Announcement {
                domain: DomainId([1; 16]),
                identity: IdentitySecret::from_bytes(&[1; 32]).identity(),
                key: WgKey([2; 32]),
                next_key: None,
                endpoints: Vec::new(),
                nat: NatReport::default(),
                relays: Vec::new(),
                region: None,
                features: Features::default(),
                protocol_min: 1,
                protocol_max: 1,
                seq: 1,
                name: Some("node-1".to_owned()),
                node_uid: Some("uid-1".to_owned()),
            },
            writes: Vec::new(),
            failures: 0,
            silent: false,
        }
    }

    /// Its Node carries what it says.
    fn published() -> Self {
        let mut bench = Self::new();
        bench.show("uid-1", Carried::Nothing);
        bench.say(|_| {});
        bench.run(5 * SECOND);
        assert_eq!(bench.writes.len(), 1);
        bench.writes.clear();
        bench.run(HOUR);
        bench
    }

    fn show(&mut self, uid: &str, carried: Carried) {
        let node = Some((uid.to_owned(), carried));
        self.publisher.handle_node(node, self.now, &mut self.random);
    }

    fn say(&mut self, change: impl FnOnce(&mut Announcement)) {
        change(&mut self.wanted);
        self.wanted.seq += 1;
        let wanted = self.wanted.clone();
        self.publisher
            .handle_announcement(wanted, self.now, &mut self.random);
    }

    fn move_to(&mut self, port: u16) {
        let address = ([203, 0, 113, 1], port).into();
        let kind = CandidateKind::ServerReflexive;
        self.say(|record| record.endpoints = vec![Candidate { kind, address }]);
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.publisher.poll_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            if self.publisher.handle_timeout(self.now, &mut self.random) {
                self.writes.push(self.now - self.start);
                let result = if self.failures > 0 {
                    self.failures -= 1;
                    Err("no".to_owned())
                } else {
                    Ok(self
                        .publisher
                        .flight
                        .as_ref()
                        .expect("under way")
                        .record
                        .seq)
                };
                if !self.silent {
                    self.publisher
                        .handle_result(result, self.now, &mut self.random);
                }
            }
            let next = self.publisher.poll_timeout();
            assert!(next.is_none_or(|at| at > self.now), "it spins");
        }
        self.now = end;
    }

    fn since(&self, before: Instant) -> Vec<u64> {
        let offset = before - self.start;
        self.writes
            .iter()
            .map(|at| (*at - offset).as_secs())
            .collect()
    }
}

#[test]
fn a_node_without_a_record_gets_it_within_two_seconds_though_addresses_still_come() {
    let mut bench = Bench::new();
    bench.say(|_| {});
    bench.run(HOUR);
    assert!(bench.writes.is_empty(), "there is no Node yet");
    let before = bench.now;
    bench.show("uid-1", Carried::Nothing);
    bench.run(SECOND / 2);
    bench.move_to(7);
    bench.run(HOUR);
    assert_eq!(bench.since(before), [1], "and once is enough");
    assert_eq!(bench.publisher.carried_seq(), Some(bench.wanted.seq));
}

#[test]
fn nothing_is_ever_written_where_the_node_carries_what_is_to_be_said() {
    let mut bench = Bench::new();
    bench.show("uid-1", Carried::Own(Box::new(bench.wanted.clone())));
    bench.say(|record| record.seq += 10);
    bench.run(24 * HOUR);
    assert!(bench.writes.is_empty(), "{:?}", bench.writes);
    assert!(!bench.publisher.is_pending());
}

#[test]
fn the_order_of_addresses_is_not_worth_a_write() {
    let mut bench = Bench::published();
    let candidate = |port| Candidate {
        kind: CandidateKind::Host,
        address: ([192, 168, 1, 2], port).into(),
    };
    bench.say(|record| record.endpoints = vec![candidate(1), candidate(2)]);
    bench.run(HOUR);
    assert_eq!(bench.writes.len(), 1);
    bench.say(|record| record.endpoints.reverse());
    bench.run(HOUR);
    assert_eq!(bench.writes.len(), 1);
}

#[test]
fn what_is_not_known_of_the_translators_after_a_restart_is_not_written_but_news_of_them_is() {
    let mut bench = Bench::published();
    bench.say(|record| record.nat.mapping = Mapping::EndpointIndependent);
    bench.run(HOUR);
    assert_eq!(bench.writes.len(), 1);
    bench.say(|record| record.nat.mapping = Mapping::Unknown);
    bench.run(HOUR);
    bench.say(|record| record.nat.mapping = Mapping::EndpointIndependent);
    bench.run(HOUR);
    assert_eq!(bench.writes.len(), 1);
    bench.say(|record| record.nat.mapping = Mapping::AddressDependent);
    bench.run(HOUR);
    assert_eq!(bench.writes.len(), 2);
    bench.say(|record| record.nat.filtering = Filtering::EndpointIndependent);
    bench.run(HOUR);
    bench.say(|record| record.nat.filtering = Filtering::AddressDependent);
    bench.run(HOUR);
    assert_eq!(bench.writes.len(), 3, "nobody has come who would prove it");
}

#[test]
fn a_change_is_written_once_after_it_has_lasted_ten_seconds() {
    let mut bench = Bench::published();
    let before = bench.now;
    for port in 0..5 {
        bench.move_to(port);
        bench.run(9 * SECOND);
    }
    assert!(bench.writes.is_empty(), "it did not last");
    bench.run(HOUR);
    let [written] = bench.since(before)[..] else {
        panic!("{:?}", bench.writes);
    };
    assert!((46..=51).contains(&written), "{written} s");
}

#[test]
fn a_change_that_goes_back_is_not_written() {
    let mut bench = Bench::published();
    bench.move_to(1);
    bench.run(HOUR);
    bench.writes.clear();
    bench.move_to(2);
    bench.run(9 * SECOND);
    bench.move_to(1);
    bench.run(HOUR);
    assert!(bench.writes.is_empty());
}

#[test]
fn an_address_that_flaps_for_an_hour_is_written_once_a_minute_after_a_burst_of_three() {
    let mut bench = Bench::published();
    let before = bench.now;
    for port in 0..200 {
        bench.move_to(port);
        bench.run(18 * SECOND);
    }
    let times = bench.since(before);
    assert!((58..=63).contains(&times.len()), "{} writes", times.len());
    for window in times.windows(4) {
        assert!(window[3] - window[0] >= 60, "{window:?}");
    }
}

#[test]
fn a_new_key_is_written_at_once_and_a_rotation_fits_into_the_burst() {
    let mut bench = Bench::published();
    let before = bench.now;
    bench.say(|record| record.next_key = Some(WgKey([3; 32])));
    bench.run(6 * SECOND);
    bench.say(|record| {
        record.key = WgKey([3; 32]);
        record.next_key = None;
    });
    bench.run(HOUR);
    assert_eq!(bench.since(before), [0, 6]);
}

#[test]
fn a_failed_write_is_repeated_ever_more_rarely_until_it_succeeds_and_takes_one_token() {
    let mut bench = Bench::published();
    let before = bench.now;
    bench.failures = 12;
    bench.move_to(1);
    bench.run(HOUR);
    let times = bench.since(before);
    assert_eq!(times.len(), 13);
    let pauses: Vec<u64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!((1..=2).contains(&pauses[0]), "{pauses:?}");
    assert!(
        pauses.is_sorted_by(|a, b| a <= b || *b >= 300),
        "{pauses:?}"
    );
    assert!(pauses.iter().all(|pause| *pause <= 376), "{pauses:?}");
    assert!(bench.publisher.failure().is_none());
    // Two tokens of three were left, and an hour has passed.
    let before = bench.now;
    bench.writes.clear();
    for key in 10..13 {
        bench.say(|record| record.key = WgKey([key; 32]));
        bench.run(SECOND);
    }
    assert_eq!(bench.since(before), [0, 1, 2]);
}

#[test]
fn a_write_that_is_never_answered_is_repeated_and_a_late_answer_is_no_answer() {
    let mut bench = Bench::published();
    let before = bench.now;
    bench.silent = true;
    bench.say(|record| record.key = WgKey([9; 32]));
    bench.run(10 * SECOND);
    let stale = bench.wanted.seq - 1;
    bench
        .publisher
        .handle_result(Ok(stale), bench.now, &mut bench.random);
    assert!(bench.publisher.is_pending());
    bench.silent = false;
    bench.run(HOUR);
    assert_eq!(bench.since(before), [0, 61]);
}

#[test]
fn what_was_said_last_is_written_though_another_write_was_under_way() {
    let mut bench = Bench::published();
    bench.silent = true;
    bench.say(|record| record.key = WgKey([9; 32]));
    bench.run(SECOND);
    bench.say(|record| record.key = WgKey([8; 32]));
    let under_way = bench.wanted.seq - 1;
    bench.silent = false;
    bench
        .publisher
        .handle_result(Ok(under_way), bench.now, &mut bench.random);
    bench.run(SECOND);
    assert_eq!(bench.writes.len(), 2);
    assert_eq!(bench.publisher.carried_seq(), Some(bench.wanted.seq));
}

#[test]
fn a_node_that_was_made_anew_gets_the_record_anew() {
    let mut bench = Bench::published();
    let before = bench.now;
    bench.show("uid-2", Carried::Nothing);
    bench.run(HOUR);
    assert!(bench.writes.is_empty(), "the record names the old Node");
    bench.say(|record| record.node_uid = Some("uid-2".to_owned()));
    bench.run(HOUR);
    assert_eq!(bench.since(before), [3601]);
}

#[test]
fn annotations_that_somebody_removes_or_alters_are_written_again_within_the_budget() {
    for carried in [Carried::Nothing, Carried::Foreign] {
        let mut bench = Bench::published();
        let before = bench.now;
        for _ in 0..600 {
            bench.show("uid-1", carried.clone());
            bench.run(6 * SECOND);
        }
        let times = bench.since(before);
        assert!((10..=15).contains(&times[0]), "{times:?}");
        assert!(times.len() <= 63, "{} writes", times.len());
    }
}

#[test]
fn a_stale_cache_does_not_make_it_write_but_a_restored_backup_does() {
    let mut bench = Bench::published();
    let old = Carried::Own(Box::new(bench.wanted.clone()));
    bench.move_to(5);
    bench.run(HOUR);
    let new = Carried::Own(Box::new(bench.wanted.clone()));
    bench.writes.clear();
    bench.show("uid-1", old.clone());
    bench.run(50 * SECOND);
    bench.show("uid-1", new);
    bench.run(HOUR);
    assert!(bench.writes.is_empty());
    let before = bench.now;
    bench.show("uid-1", old);
    bench.run(HOUR);
    let [written] = bench.since(before)[..] else {
        panic!("{:?}", bench.writes);
    };
    assert!((60..=65).contains(&written), "{written}");
}
