//! Two directories come to hold the same records, and no message is too long.

use std::collections::BTreeSet;

use mesh_types::consts::MESSAGE_MAX;
use mesh_types::message::{Delta, Digest, DigestEntry};
use mesh_types::{Announcement, Idx, Message, Now, Signed};
use peer_discovery::{Directory, Event, Reason};
use proptest::prelude::*;

use crate::common::{
    Machine, START, Say as _, at, authority, directory, directory_of, machine, net, wg,
};

/// Everything a directory would store.
fn holdings(directory: &Directory) -> BTreeSet<Vec<u8>> {
    let memberships = directory.memberships().map(|r| r.bytes().to_vec());
    let announcements = directory.announcements().map(|r| r.bytes().to_vec());
    let tombstones = directory.tombstones().map(|r| r.bytes().to_vec());
    memberships.chain(announcements).chain(tombstones).collect()
}

fn fits(message: impl Into<Message>) -> usize {
    let message = message.into();
    let bytes = message.encode();
    assert!(
        bytes.len() <= MESSAGE_MAX,
        "{} of {} bytes",
        message.kind(),
        bytes.len()
    );
    assert_eq!(Message::decode(&bytes), Ok(message));
    bytes.len()
}

/// `b` sends its digest to `a` and takes the answer; `a` gets what it wants. Gives how many deltas carried
/// records.
fn exchange(a: &mut Directory, b: &mut Directory) -> usize {
    let mut deltas = 0;
    let pages = b.digest_pages(None);
    covers_everything(&pages);
    for page in pages {
        fits(page.clone());
        for mut delta in a.answer_digest(&page, None) {
            delta.seq = u64::MAX;
            fits(delta.clone());
            deltas += records(&delta);
            b.handle_delta(&delta, wg(250), at(0));
            for answer in b.answer_want(&delta.want, None) {
                fits(answer.clone());
                deltas += records(&answer);
                a.handle_delta(&answer, wg(251), at(0));
            }
        }
    }
    deltas
}

fn records(delta: &Delta) -> usize {
    let none = delta.memberships.is_empty()
        && delta.announcements.is_empty()
        && delta.tombstones.is_empty();
    usize::from(!none)
}

fn covers_everything(pages: &[Digest]) {
    assert_eq!(pages[0].from, Idx([0; 8]));
    assert_eq!(pages[pages.len() - 1].to, Idx([0xff; 8]));
    for pair in pages.windows(2) {
        let (to, from) = (
            u64::from_be_bytes(pair[0].to.0),
            u64::from_be_bytes(pair[1].from.0),
        );
        assert_eq!(to + 1, from);
    }
    for page in pages {
        assert!(
            page.entries
                .iter()
                .all(|e| page.from <= e.node && e.node <= page.to)
        );
        assert!(page.entries.is_sorted());
    }
}

fn big(machine: &Machine, seq: u64) -> Signed<Announcement> {
    let mut record = machine.announce(seq);
    let endpoint = record.endpoints[0];
    record.endpoints = (0..24)
        .map(|n| mesh_types::Candidate {
            address: (endpoint.address.ip(), 20_000 + n).into(),
            ..endpoint
        })
        .collect();
    Signed::sign(record, &machine.secret)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(48) })]

    #[test]
    fn two_directories_with_any_records_agree_after_one_exchange_and_are_then_quiet(
        records in prop::collection::vec((2u8..40, 0u8..4, 1u64..6, any::<bool>(), any::<bool>()), 0..120)
    ) {
        let (mut a, mut b) = (directory(200), directory(201));
        for (number, kind, version, to_a, to_b) in records {
            let m = machine(number);
            let version = START * 1000 + 10 * version + u64::from(kind);
            for (wanted, directory) in [(to_a, &mut a), (to_b, &mut b)] {
                if !wanted {
                    continue;
                }
                match kind {
                    0 => directory.gossip(m.membership(version)),
                    1 => directory.gossip(m.tombstone(version)),
                    2 => directory.gossip(big(&m, version)),
                    _ => directory.gossip(m.announcement(version)),
                }
            }
        }
        exchange(&mut a, &mut b);
        exchange(&mut b, &mut a);
        prop_assert_eq!(holdings(&a), holdings(&b));
        let peers = |d: &Directory| d.peers().map(|(_, peer)| peer.clone()).collect::<Vec<_>>();
        prop_assert_eq!(peers(&a), peers(&b));
        prop_assert_eq!(exchange(&mut a, &mut b) + exchange(&mut b, &mut a), 0);
    }

    #[test]
    fn any_delta_and_any_digest_from_a_peer_hurt_nobody(
        from in any::<[u8; 8]>(),
        to in any::<[u8; 8]>(),
        entries in prop::collection::vec((any::<[u8; 8]>(), any::<u64>(), any::<u64>(), any::<u64>()), 0..30),
        want in prop::collection::vec(any::<[u8; 8]>(), 0..120),
    ) {
        let mut a = directory(1);
        a.gossip(machine(2).membership(1));
        a.gossip(machine(2).announcement(1));
        let entries = entries.into_iter().map(|(node, membership, announcement, tombstone)| DigestEntry {
            node: Idx(node), membership, announcement, tombstone,
        });
        let digest = Digest { from: Idx(from), to: Idx(to), entries: entries.collect(), seq: 0 };
        for delta in a.answer_digest(&digest, None) {
            fits(delta);
        }
        let want: Vec<Idx> = want.into_iter().map(Idx).collect();
        prop_assert!(a.answer_want(&want, None).is_empty());
        let delta = Delta { want, seq: 1, ..Delta::default() };
        prop_assert!(a.handle_delta(&delta, wg(9), at(0)).is_empty());
    }
}

#[test]
fn a_large_mesh_fits_into_messages_and_a_newcomer_learns_all_of_it() {
    let (mut old, mut new) = (directory(200), directory(201));
    for number in 2..190 {
        let m = machine(number);
        old.gossip(m.membership(START * 1000));
        old.gossip(big(&m, START * 1000));
    }
    let pages = old.digest_pages(None);
    assert!(pages.len() >= 5);
    let largest = pages.into_iter().map(fits).max();
    assert!(largest > Some(MESSAGE_MAX - 40), "pages are filled");
    exchange(&mut old, &mut new);
    let (due, _) = new.poll_timeout().expect("a burst is decided upon at once");
    let wait = due - at(0).mono;
    new.handle_timeout(Now {
        mono: due,
        unix: at(0).unix + wait,
    });
    assert_eq!(new.peers().count(), 188);
}

#[test]
fn what_is_new_is_passed_on_once_and_what_is_refused_never() {
    let mut directory = directory(1);
    let (b, c) = (machine(2), machine(3));
    let delta = Delta {
        announcements: vec![c.announcement(1), b.announcement(1)],
        memberships: vec![b.membership(1), Signed::sign(c.member(1), &c.secret)],
        tombstones: vec![machine(4).tombstone(1)],
        ..Delta::default()
    };
    let passed = directory.handle_delta(&delta, b.key, at(0));
    let expected = Delta {
        announcements: vec![b.announcement(1)],
        memberships: vec![b.membership(1)],
        tombstones: vec![machine(4).tombstone(1)],
        ..Delta::default()
    };
    assert_eq!(passed, [expected]);
    assert!(directory.handle_delta(&delta, b.key, at(0)).is_empty());
    assert_eq!(directory.count(Reason::Forged), 2);
}

#[test]
fn the_session_that_carries_a_delta_speaks_for_its_own_key_only() {
    let own = machine(1).without_authority();
    let mut directory = directory_of(&own, Vec::new());
    let (b, c) = (
        machine(2).without_authority(),
        machine(3).without_authority(),
    );
    directory.listed(vec![b.entry(), c.entry()]);
    let delta = Delta {
        announcements: vec![b.announcement(1), c.announcement(1)],
        ..Delta::default()
    };
    assert_eq!(directory.handle_delta(&delta, b.key, at(0)), [delta]);
    let pinned: Vec<_> = directory.pins().map(|pin| pin.configured).collect();
    assert_eq!(pinned, [b.key]);
}

#[test]
fn our_own_announcement_is_offered_and_a_newer_one_of_ours_is_asked_for() {
    let own = machine(1);
    let mut directory = directory(1);
    directory.gossip(own.membership(1));
    let announcement = own.announcement(5);
    let empty = Digest {
        from: Idx([0; 8]),
        to: Idx([0xff; 8]),
        entries: Vec::new(),
        seq: 0,
    };
    let answer = directory.answer_digest(&empty, Some(&announcement));
    assert_eq!(answer.len(), 1);
    assert_eq!(answer[0].announcements, std::slice::from_ref(&announcement));
    assert_eq!(answer[0].memberships, [own.membership(1)]);

    let mut theirs = directory.digest_pages(Some(&announcement)).remove(0);
    theirs.entries[0].announcement = 9;
    let answer = directory.answer_digest(&theirs, Some(&announcement));
    assert_eq!(answer[0].want, [own.node().identity.idx()]);
    directory.events();
    let delta = Delta {
        announcements: vec![own.announcement(9)],
        ..Delta::default()
    };
    assert!(directory.handle_delta(&delta, wg(2), at(0)).is_empty());
    assert_eq!(directory.events(), [Event::OwnRecordNewer(9)]);
}

#[test]
fn what_only_others_list_is_neither_kept_nor_fetched_again() {
    let (a, b) = (
        machine(1).without_authority(),
        machine(2).without_authority(),
    );
    let (c, d) = (
        machine(3).without_authority(),
        machine(4).without_authority(),
    );
    let mut at_a = directory_of(&a, Vec::new());
    at_a.listed(vec![b.entry()]);
    let mut at_b = directory_of(&b, Vec::new());
    at_b.listed(vec![a.entry(), c.entry(), d.entry()]);
    at_b.spoken(c.announcement(1), c.key);
    at_b.spoken(d.announcement(1), d.key);
    assert!(exchange(&mut at_b, &mut at_a) > 0);
    assert_eq!(at_a.announcements().count(), 0);
    assert_eq!(exchange(&mut at_b, &mut at_a), 0);
    assert_eq!(exchange(&mut at_a, &mut at_b), 0);
    // Listed now: fetched.
    at_a.listed(vec![b.entry(), c.entry()]);
    exchange(&mut at_b, &mut at_a);
    assert_eq!(at_a.announcements().count(), 1);
}

#[test]
fn a_lie_about_an_unknown_node_does_not_keep_its_true_record_away() {
    let (mut at_a, mut at_b) = (directory(200), directory(201));
    let c = machine(3);
    at_b.gossip(c.membership(1));
    at_b.gossip(c.announcement(1));
    at_a.gossip(Signed::sign(c.announce(u64::MAX), &machine(66).secret));
    exchange(&mut at_b, &mut at_a);
    assert!(at_a.peer(&c.id()).is_some());
}

#[test]
fn a_revocation_reaches_who_still_has_the_membership_and_is_not_undone_from_there() {
    let (mut at_a, mut at_b) = (directory(200), directory(201));
    let c = machine(3);
    for directory in [&mut at_a, &mut at_b] {
        directory.gossip(c.membership(1));
        directory.gossip(c.announcement(1));
    }
    at_a.gossip(c.tombstone(2));
    exchange(&mut at_b, &mut at_a);
    assert_eq!(at_b.peers().count(), 0);
    assert_eq!(at_a.peers().count(), 0);
    assert_eq!(
        exchange(&mut at_a, &mut at_b) + exchange(&mut at_b, &mut at_a),
        0
    );
}

#[test]
fn an_expired_membership_is_offered_to_nobody() {
    let mut directory = directory(1);
    let mut record = machine(2).member(1);
    record.not_after = Some(START + 10);
    record.ranges = vec![net("192.168.7.0/24")];
    directory.gossip(Signed::sign(record, &authority()));
    directory.handle_timeout(at(20));
    let want = [machine(2).node().identity.idx()];
    assert!(directory.answer_want(&want, None).is_empty());
}

#[test]
fn one_identity_in_two_domains_reaches_the_other_side_in_both() {
    let other = mesh_types::IdentitySecret::from_bytes(&[201; 32]);
    let authorities = vec![authority().authority(), other.authority()];
    let mut at_a = directory_of(&machine(100), authorities.clone());
    let mut at_b = directory_of(&machine(101), authorities);
    let first = machine(3);
    let mut second = machine(3);
    second.domain = mesh_types::DomainId::standalone(Some(&other.authority()));
    at_a.gossip(first.membership(5));
    at_a.gossip(Signed::sign(second.member(4), &other));
    at_b.gossip(first.membership(5));
    exchange(&mut at_a, &mut at_b);
    exchange(&mut at_b, &mut at_a);
    assert_eq!(at_b.memberships().count(), 2);
    assert_eq!(exchange(&mut at_a, &mut at_b), 0);
}

#[test]
fn a_membership_is_not_offered_to_who_has_buried_it() {
    let mut directory = directory(1);
    directory.gossip(machine(2).membership(5));
    let mut digest = directory.digest_pages(None).remove(0);
    for entry in &mut digest.entries {
        (entry.membership, entry.tombstone) = (0, 7);
    }
    let records: usize = directory
        .answer_digest(&digest, None)
        .iter()
        .map(records)
        .sum();
    assert_eq!(records, 0);
}

#[test]
fn an_announcement_travels_in_one_datagram_with_its_membership() {
    let mut directory = directory(200);
    for number in 2..60 {
        directory.gossip(machine(number).membership(1));
        directory.gossip(machine(number).announcement(1));
    }
    let want: Vec<Idx> = (2..60).map(|n| machine(n).node().identity.idx()).collect();
    let deltas = directory.answer_want(&want, None);
    assert!(deltas.len() > 10);
    for delta in deltas {
        let members: BTreeSet<_> = delta
            .memberships
            .iter()
            .map(|r| r.record().identity)
            .collect();
        let announced: BTreeSet<_> = delta
            .announcements
            .iter()
            .map(|r| r.record().identity)
            .collect();
        assert_eq!(members, announced);
    }
}
