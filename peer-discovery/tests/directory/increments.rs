//! What is decided record by record comes to the same as deciding everything anew.

use std::time::Duration;

use mesh_types::message::Delta;
use mesh_types::{Announcement, Now, PeerId, Signed, WgKey};
use peer_discovery::{Directory, Peer, Reason};
use proptest::prelude::*;

use crate::common::{Machine, START, at, directory, machine, wg};

/// Keys that machines come to have: fewer than machines, so that they contest them.
const KEYS: u8 = 12;

fn announcement(machine: &Machine, seq: u64, key: u8, next: Option<u8>) -> Signed<Announcement> {
    let record = Announcement {
        key: wg(key),
        next_key: next.map(wg),
        ..machine.announce(seq)
    };
    Signed::sign(record, &machine.secret)
}

type Shown<'a> = (
    Vec<(&'a PeerId, &'a Peer)>,
    Vec<Option<&'a PeerId>>,
    Vec<(Reason, &'a str)>,
);

/// All that a view tells.
fn shown(directory: &Directory) -> Shown<'_> {
    let keys: Vec<WgKey> = (0..KEYS).map(wg).collect();
    let conflicts = directory.conflicts().iter();
    let mut conflicts: Vec<_> = conflicts.map(|c| (c.reason, c.sentence.as_str())).collect();
    // Whose claim is better is told first, and that may have changed without any other effect.
    conflicts.sort_unstable();
    (
        directory.peers().collect(),
        keys.iter().map(|key| directory.by_key(key)).collect(),
        conflicts,
    )
}

/// Decides everything anew.
fn redecide(directory: &mut Directory) {
    directory.set_own_ranges(Vec::new(), at(0));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    #[test]
    fn any_order_of_keys_named_shown_and_changed_leaves_the_same_view_as_deciding_anew(
        listed in prop::collection::vec(2u8..5, 0..2),
        steps in prop::collection::vec(
            (2u8..9, 0u8..8, 1u8..KEYS, prop::option::of(1u8..KEYS), any::<bool>()),
            1..40,
        )
    ) {
        let (mut one, mut anew) = (directory(100), directory(100));
        for directory in [&mut one, &mut anew] {
            let entries = listed.iter().map(|number| machine(*number).entry()).collect();
            crate::common::Say::listed(directory, entries);
        }
        for (index, (number, kind, key, next, spoken)) in steps.into_iter().enumerate() {
            let machine = machine(number);
            let version = START * 1000 + index as u64;
            let mut delta = Delta::default();
            match kind {
                0 => delta.memberships.push(machine.carrying(version, &["10.244.1.0/24"])),
                1 | 2 => delta.memberships.push(machine.membership(version)),
                3 => delta.tombstones.push(machine.tombstone(version)),
                _ => delta.announcements.push(announcement(&machine, version, key, next)),
            }
            let from = if spoken { wg(key) } else { wg(250) };
            one.handle_delta(&delta, from, at(0));
            anew.handle_delta(&delta, from, at(0));
            redecide(&mut anew);
            prop_assert_eq!(shown(&one), shown(&anew));
        }
    }
}

#[test]
fn a_burst_of_records_in_a_large_mesh_gives_one_view_and_the_same() {
    let later = |now: Now, time: Duration| Now {
        mono: now.mono + time,
        unix: now.unix + time,
    };
    let delta = |numbers: std::ops::Range<u8>| Delta {
        memberships: numbers
            .clone()
            .map(|n| machine(n).membership(START * 1000))
            .collect(),
        announcements: numbers.map(|n| machine(n).announcement(1)).collect(),
        ..Delta::default()
    };
    let mut directory = directory(255);
    directory.handle_delta(&delta(1..120), wg(250), at(0));
    assert_eq!(
        directory.peers().count(),
        119,
        "the first are peers at once"
    );
    while directory.poll_event().is_some() {}
    for n in 120..220 {
        directory.handle_delta(&delta(n..n + 1), wg(250), at(0));
    }
    assert_eq!(
        directory.peers().count(),
        119,
        "the others wait for each other"
    );
    let pages = directory.digest_pages(None);
    let told: usize = pages.iter().map(|page| page.entries.len()).sum();
    assert_eq!(told, 220, "they are known all the same, this node too");
    let (due, _) = directory.poll_timeout().expect("they are decided upon");
    let wait = due - at(0).mono;
    assert!(wait <= Duration::from_millis(50), "{wait:?}");
    directory.handle_timeout(later(at(0), wait));
    assert_eq!(directory.peers().count(), 219);
    let mut anew = crate::common::directory(255);
    anew.handle_delta(&delta(1..220), wg(250), at(0));
    assert_eq!(shown(&directory), shown(&anew));
    let late = later(at(0), Duration::from_secs(1));
    directory.handle_delta(&delta(220..221), wg(250), late);
    assert_eq!(directory.peers().count(), 220, "a single one does not wait");
}
