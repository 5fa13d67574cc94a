//! Memberships, announcements and tombstones: each attack on them, and what it comes to.

use std::time::Duration;

use crate::common::{
    START, Say as _, at, authority, directory, directory_of, domain, machine, net, observed, wg,
};
use mesh_types::address::overlay_ipv6;
use mesh_types::observation::Fact;
use mesh_types::{
    Announcement, DomainId, IdentitySecret, IpNet, Membership, Signed, Source, Tombstone,
};
use peer_discovery::{Event, FindError, Reason};

#[test]
fn a_member_that_announced_itself_is_a_peer_with_the_ranges_of_its_membership() {
    let mut directory = directory(1);
    let b = machine(2);
    directory.gossip(b.carrying(1, &["192.168.7.0/24"]));
    assert_eq!(directory.peers().count(), 0);
    directory.gossip(b.announcement(5));

    let peer = directory.peer(&b.id()).expect("peer").clone();
    let address = IpNet::from(std::net::IpAddr::V6(overlay_ipv6(&b.node())));
    let expected = [net("10.77.0.2/32"), net("192.168.7.0/24"), address];
    assert_eq!(peer.allowed_ips, expected.into_iter().collect());
    assert_eq!((peer.name.as_str(), peer.key, peer.seq), ("m2", b.key, 5));
    assert_eq!(peer.source.kind(), "signed");
    assert_eq!(directory.by_key(&b.key), Some(&b.id()));
    assert_eq!(directory.by_idx(&b.node().identity.idx()), Some(&b.id()));
    let carried = "192.168.7.9".parse().expect("address");
    assert_eq!(directory.by_address(carried), Some(&b.id()));
    let events = directory.events();
    assert_eq!(events, [Event::Changed(b.id()), Event::Dirty]);
}

#[test]
fn ranges_in_an_announcement_have_no_meaning_and_endpoints_do_not_become_ranges() {
    let mut directory = directory(1);
    let b = machine(2);
    directory.gossip(b.membership(1));
    directory.gossip(b.announcement(5));
    let peer = directory.peer(&b.id()).expect("peer");
    assert_eq!(peer.allowed_ips.len(), 2);
    assert_eq!(peer.endpoints.len(), 1);
}

#[test]
fn a_forged_membership_adds_nobody() {
    let mut directory = directory(1);
    let (b, thief) = (machine(2), IdentitySecret::from_bytes(&[66; 32]));
    directory.gossip(Signed::sign(b.member(1), &thief));
    directory.gossip(b.announcement(5));
    assert_eq!(directory.memberships().count(), 0);
    assert_eq!(directory.peers().count(), 0);
    assert_eq!(directory.count(Reason::Forged), 1);
}

#[test]
fn a_membership_whose_bytes_were_changed_is_forged() {
    let mut directory = directory(1);
    let b = machine(2);
    let real = b.membership(1);
    let mut record = b.member(1);
    record.ranges = vec![net("10.0.0.0/8")];
    let bytes = Signed::sign(record, &authority()).bytes().to_vec();
    let forged = Signed::<Membership>::parse(bytes, *real.signature()).expect("well-formed");
    directory.gossip(forged);
    assert_eq!(directory.count(Reason::Forged), 1);
}

#[test]
fn a_membership_of_another_domain_is_refused_even_with_a_good_signature() {
    let mut directory = directory(1);
    let other = IdentitySecret::from_bytes(&[201; 32]);
    let mut b = machine(2);
    b.domain = DomainId::standalone(Some(&other.authority()));
    directory.gossip(Signed::sign(b.member(1), &other));
    assert_eq!(directory.count(Reason::Domain), 1);
    // Our authority cannot speak for that domain either.
    directory.gossip(b.membership(2));
    assert_eq!(directory.count(Reason::Domain), 2);
    // Nor the other authority for ours.
    directory.gossip(Signed::sign(machine(2).member(3), &other));
    assert_eq!(directory.count(Reason::Forged), 1);
    assert_eq!(directory.memberships().count(), 0);
}

#[test]
fn gossip_from_nobody_cannot_add_members_and_takes_no_memory() {
    let mut directory = directory(1);
    for number in 2..100 {
        directory.gossip(machine(number).announcement(1));
    }
    assert_eq!(directory.peers().count(), 0);
    assert_eq!(directory.announcements().count(), 0);
    assert_eq!(directory.count(Reason::Unknown), 98);
    assert!(directory.refusals().len() <= 64);
    assert!(directory.events().is_empty());
}

#[test]
fn an_announcement_signed_by_another_is_forged() {
    let mut directory = directory(1);
    let (b, thief) = (machine(2), machine(3));
    directory.gossip(b.membership(1));
    directory.gossip(Signed::sign(b.announce(9), &thief.secret));
    assert_eq!(directory.count(Reason::Forged), 1);
    assert_eq!(directory.peers().count(), 0);
    directory.gossip(b.announcement(1));
    assert!(directory.peer(&b.id()).is_some());
}

#[test]
fn a_replayed_or_rolled_back_announcement_changes_nothing() {
    let mut directory = directory(1);
    let b = machine(2);
    directory.gossip(b.membership(1));
    let old = b.announcement_of(5, wg(90));
    directory.gossip(old.clone());
    directory.gossip(b.announcement(6));
    directory.events();
    directory.gossip(old);
    directory.gossip(b.announcement(6));
    assert_eq!(directory.peer(&b.id()).map(|p| p.key), Some(b.key));
    assert_eq!(directory.count(Reason::Stale), 1);
    assert!(directory.events().is_empty());
}

#[test]
fn a_rolled_back_membership_does_not_give_ranges_back() {
    let mut directory = directory(1);
    let b = machine(2);
    let old = b.carrying(1, &["192.168.7.0/24"]);
    directory.gossip(old.clone());
    directory.gossip(b.announcement(5));
    directory.gossip(b.membership(2));
    directory.gossip(old);
    assert!(!directory.carries(&b, "192.168.7.0/24"));
    assert_eq!(directory.count(Reason::Stale), 1);
}

#[test]
fn a_copied_key_without_the_identity_is_ignored_and_with_another_identity_refused() {
    let mut directory = directory(1);
    let (b, thief) = (machine(2), machine(3));
    for m in [&b, &thief] {
        directory.gossip(m.membership(u64::from(m.number)));
    }
    directory.gossip(b.announcement(5));
    // The record as it is, under another signature.
    let stolen = Signed::<Announcement>::parse(b.announcement(9).bytes().to_vec(), [7; 64]);
    directory.gossip(stolen.expect("well-formed"));
    assert_eq!(directory.count(Reason::Forged), 1);
    // A member that claims the other's key.
    directory.gossip(thief.announcement_of(9, b.key));
    assert_eq!(directory.by_key(&b.key), Some(&b.id()));
    assert_eq!(directory.peer(&thief.id()), None);
    assert!(directory.conflict(Reason::DuplicateKey));
}

#[test]
fn who_speaks_through_a_keys_session_gets_the_key_even_from_an_older_member() {
    let mut directory = directory(1);
    let (thief, b) = (machine(2), machine(3));
    directory.gossip(thief.membership(1));
    directory.gossip(b.membership(2));
    directory.gossip(thief.announcement_of(1, b.key));
    assert_eq!(directory.by_key(&b.key), Some(&thief.id()));
    directory.gossip(b.announcement(1));
    assert_eq!(directory.by_key(&b.key), Some(&thief.id()));
    directory.spoken(b.announcement(2), b.key);
    assert_eq!(directory.by_key(&b.key), Some(&b.id()));
    assert_eq!(directory.peer(&thief.id()), None);
    // Told by session first, or by gossip and then by session, is the same.
    directory.spoken(b.announcement(2), b.key);
    assert_eq!(directory.by_key(&b.key), Some(&b.id()));
}

#[test]
fn a_next_key_that_another_peer_has_is_left_out() {
    let mut directory = directory(1);
    let (b, thief) = (machine(2), machine(3));
    for m in [&b, &thief] {
        directory.gossip(m.membership(u64::from(m.number)));
    }
    directory.gossip(b.announcement(1));
    let claim = Announcement {
        next_key: Some(b.key),
        ..thief.announce(1)
    };
    directory.gossip(Signed::sign(claim, &thief.secret));
    assert_eq!(directory.peer(&thief.id()).expect("peer").next_key, None);
    assert_eq!(directory.by_key(&b.key), Some(&b.id()));
    assert!(directory.conflict(Reason::DuplicateKey));
}

#[test]
fn a_rotation_announced_beforehand_cannot_be_overtaken_by_another_member() {
    let mut directory = directory(1);
    let (thief, b) = (machine(2), machine(3));
    for m in [&b, &thief] {
        directory.gossip(m.membership(u64::from(m.number)));
        directory.gossip(m.announcement(1));
    }
    let rotating = Announcement {
        next_key: Some(wg(90)),
        ..b.announce(2)
    };
    directory.gossip(Signed::sign(rotating, &b.secret));
    assert_eq!(directory.by_key(&wg(90)), Some(&b.id()));
    directory.gossip(thief.announcement_of(2, wg(90)));
    assert_eq!(directory.by_key(&wg(90)), Some(&b.id()));
    directory.gossip(b.announcement_of(3, wg(90)));
    assert_eq!(directory.peer(&b.id()).map(|p| p.key), Some(wg(90)));
}

#[test]
fn nobody_may_announce_this_nodes_own_key() {
    let mut directory = directory(1);
    let b = machine(2);
    directory.gossip(b.membership(1));
    directory.gossip(b.announcement_of(1, wg(1)));
    assert_eq!(directory.count(Reason::OwnKey), 1);
    assert_eq!(directory.peers().count(), 0);
    assert_eq!(directory.announcements().count(), 0);
}

#[test]
fn an_expired_membership_is_refused_from_gossip() {
    let mut directory = directory(1);
    let b = machine(2);
    let mut record = b.member(1);
    record.not_after = Some(START - 1);
    directory.gossip(Signed::sign(record, &authority()));
    assert_eq!(directory.count(Reason::Expired), 1);
    assert_eq!(directory.memberships().count(), 0);
}

#[test]
fn a_membership_expires_by_the_timer_and_comes_back_when_the_clock_is_set_back() {
    let mut directory = directory(1);
    let b = machine(2);
    let mut record = b.member(1);
    record.not_after = Some(START + 100);
    directory.gossip(Signed::sign(record, &authority()));
    directory.gossip(b.announcement(1));
    assert_eq!(
        directory.poll_timeout().map(|(due, _)| due),
        Some(at(101).mono)
    );
    directory.handle_timeout(at(100));
    assert!(directory.peer(&b.id()).is_some());
    directory.events();
    directory.handle_timeout(at(101));
    assert_eq!(directory.peer(&b.id()), None);
    assert!(directory.events().contains(&Event::Removed(b.id())));
    directory.handle_timeout(at(50));
    assert!(directory.peer(&b.id()).is_some());
    // Renewed: another serial, a later end.
    directory.handle_timeout(at(200));
    directory.gossip(b.membership(2));
    assert!(directory.peer(&b.id()).is_some());
    assert_eq!(directory.poll_timeout(), None);
}

#[test]
fn a_far_expiry_is_looked_at_every_hour_because_clocks_are_set() {
    let mut directory = directory(1);
    let mut record = machine(2).member(1);
    record.not_after = Some(u64::MAX);
    directory.gossip(Signed::sign(record, &authority()));
    let (due, _) = directory.poll_timeout().expect("timer");
    assert_eq!(due, at(0).mono + Duration::from_secs(3600));
}

#[test]
fn a_tombstone_beats_the_membership_in_both_orders_however_often_that_is_shown() {
    for tombstone_first in [true, false] {
        let mut directory = directory(1);
        let b = machine(2);
        if tombstone_first {
            directory.gossip(b.tombstone(1));
        }
        directory.gossip(b.membership(1));
        directory.gossip(b.announcement(1));
        if !tombstone_first {
            assert!(directory.peer(&b.id()).is_some());
            directory.gossip(b.tombstone(1));
        }
        directory.gossip(b.membership(1));
        directory.gossip(b.announcement(2));
        assert_eq!(directory.peer(&b.id()), None);
        assert_eq!(directory.announcements().count(), 0);
        assert!(directory.count(Reason::Revoked) > 0);
    }
}

#[test]
fn a_forged_tombstone_removes_nobody() {
    let mut directory = directory(1);
    let b = machine(2);
    directory.gossip(b.membership(1));
    directory.gossip(b.announcement(1));
    let record = b.tombstone(1).record().clone();
    directory.gossip(Signed::sign(record, &b.secret));
    assert!(directory.peer(&b.id()).is_some());
    assert_eq!(directory.count(Reason::Forged), 1);
}

#[test]
fn a_node_invited_again_after_a_tombstone_is_a_peer_again() {
    let mut directory = directory(1);
    let b = machine(2);
    directory.gossip(b.membership(1));
    directory.gossip(b.tombstone(5));
    directory.gossip(b.membership(5));
    directory.gossip(b.membership(6));
    directory.gossip(b.announcement(1));
    assert!(directory.peer(&b.id()).is_some());
    // The old tombstone, shown again.
    directory.gossip(b.tombstone(5));
    directory.gossip(b.tombstone(4));
    assert!(directory.peer(&b.id()).is_some());
}

#[test]
fn of_two_members_with_one_range_the_older_keeps_it_in_both_orders_of_arrival() {
    let (older, newer) = (machine(2), machine(3));
    let records = [
        older.carrying(1, &["192.168.7.0/24"]),
        newer.carrying(2, &["192.168.0.0/16", "172.16.0.0/24"]),
    ];
    for order in [[0, 1], [1, 0]] {
        let mut directory = directory(1);
        for index in order {
            directory.gossip(records[index].clone());
        }
        directory.gossip(newer.announcement(1));
        directory.gossip(older.announcement(1));
        assert!(directory.carries(&older, "192.168.7.0/24"));
        assert!(!directory.carries(&newer, "192.168.0.0/16"));
        assert!(directory.carries(&newer, "172.16.0.0/24"));
        assert!(directory.conflict(Reason::Overlap));
        // Settled by the authority: the finding goes, the range moves.
        directory.gossip(older.membership(3));
        assert!(directory.carries(&newer, "192.168.0.0/16"));
        assert!(!directory.conflict(Reason::Overlap));
    }
}

#[test]
fn the_age_of_a_membership_is_its_serial_whoever_it_is_of() {
    for (first, second) in [(2, 3), (3, 2)] {
        let (older, newer) = (machine(first), machine(second));
        let mut directory = directory(1);
        for (m, serial) in [(&newer, 2), (&older, 1)] {
            directory.gossip(m.carrying(serial, &["192.168.7.0/24"]));
            directory.gossip(m.announcement(1));
        }
        assert!(directory.carries(&older, "192.168.7.0/24"));
        assert!(!directory.carries(&newer, "192.168.7.0/24"));
    }
}

#[test]
fn of_two_authorities_the_one_listed_first_wins_whatever_serial_the_other_writes() {
    let other = IdentitySecret::from_bytes(&[201; 32]);
    let authorities = vec![authority().authority(), other.authority()];
    let mut directory = directory_of(&machine(1), authorities);
    let (ours, mut theirs) = (machine(2), machine(3));
    theirs.domain = DomainId::standalone(Some(&other.authority()));
    let mut claim = theirs.member(0);
    claim.ipv4 = Some([10, 77, 0, 2].into());
    directory.gossip(Signed::sign(claim, &other));
    directory.gossip(theirs.announcement(1));
    assert!(directory.carries(&theirs, "10.77.0.2/32"));
    directory.gossip(ours.membership(5));
    directory.gossip(ours.announcement(1));
    assert!(directory.carries(&ours, "10.77.0.2/32"));
    assert!(!directory.carries(&theirs, "10.77.0.2/32"));
}

#[test]
fn ranges_nobody_may_carry_are_refused_and_the_rest_of_the_membership_counts() {
    let mut directory = directory(1);
    let b = machine(2);
    let mesh = mesh_types::address::mesh_prefix(&domain()).to_string();
    let refused = [
        "0.0.0.0/0",
        "::/0",
        "128.0.0.0/1",
        "127.0.0.0/8",
        "fe80::/64",
        mesh.as_str(),
    ];
    let mut claimed = refused.to_vec();
    claimed.push("172.16.0.0/12");
    directory.gossip(b.carrying(1, &claimed));
    directory.gossip(b.announcement(1));
    for range in refused {
        assert!(!directory.carries(&b, range), "{range}");
    }
    assert!(directory.carries(&b, "172.16.0.0/12"));
    let reported = directory.conflicts().iter();
    assert_eq!(reported.filter(|c| c.reason == Reason::Range).count(), 6);
}

#[test]
fn our_own_ranges_are_nobody_elses_by_configuration_and_by_membership() {
    let mut directory = directory(1);
    let own = machine(1);
    directory.set_own_ranges(vec![net("172.20.0.0/16")], at(0));
    directory.gossip(own.carrying(9, &["172.21.0.0/16"]));
    let b = machine(2);
    let claims = [
        "10.77.0.1/32",
        "172.20.5.0/24",
        "172.21.0.0/16",
        "172.22.0.0/16",
    ];
    directory.gossip(b.carrying(1, &claims));
    directory.gossip(b.announcement(1));
    for range in &claims[..3] {
        assert!(!directory.carries(&b, range), "{range}");
    }
    assert!(directory.carries(&b, "172.22.0.0/16"));
    assert!(directory.conflict(Reason::OwnRange));
}

#[test]
fn a_version_from_the_future_is_believed_and_reported() {
    let mut directory = directory(1);
    let b = machine(2);
    directory.gossip(b.membership(1));
    directory.gossip(b.announcement((START + 90_000) * 1000));
    assert!(directory.peer(&b.id()).is_some());
    assert_eq!(directory.count(Reason::Future), 1);
    assert_eq!(directory.refusals()[0].reason, Reason::Future);
}

#[test]
fn an_announcement_may_stand_before_its_membership_in_one_batch() {
    let mut directory = directory(1);
    let b = machine(2);
    let announcement = Fact::Announcement {
        record: b.announcement(1),
        spoken_by: None,
    };
    let membership = Fact::Membership(b.membership(1));
    let batch = [announcement, membership].map(|fact| observed(Source::Disk, fact));
    directory.handle_observations(batch, at(0));
    assert!(directory.peer(&b.id()).is_some());
    // What came from disk need not go there.
    assert_eq!(directory.events(), [Event::Changed(b.id())]);
}

#[test]
fn our_own_membership_is_known_and_a_tombstone_of_ours_tells_us() {
    let mut directory = directory(1);
    let own = machine(1);
    directory.gossip(own.membership(1));
    assert_eq!(directory.own_membership(), Some(&own.member(1)));
    assert_eq!(directory.events(), [Event::OwnMembership, Event::Dirty]);
    assert_eq!(directory.peers().count(), 0);
    directory.gossip(own.tombstone(1));
    assert_eq!(directory.own_membership(), None);
    assert_eq!(directory.events(), [Event::Revoked, Event::Dirty]);
    directory.gossip(own.membership(2));
    assert_eq!(directory.events(), [Event::OwnMembership, Event::Dirty]);
}

#[test]
fn a_newer_announcement_of_ourselves_is_told_and_a_forged_one_is_not() {
    let mut directory = directory(1);
    let own = machine(1);
    directory.gossip(Signed::sign(own.announce(9), &machine(2).secret));
    assert!(directory.events().is_empty());
    directory.gossip(own.announcement(7));
    assert_eq!(directory.events(), [Event::OwnRecordNewer(7)]);
    assert_eq!(directory.announcements().count(), 0);
}

#[test]
fn an_authority_no_longer_listed_takes_its_members_along() {
    let mut directory = directory(1);
    let b = machine(2);
    directory.gossip(b.membership(1));
    directory.gossip(b.announcement(1));
    directory.gossip(machine(3).tombstone(1));
    directory.set_authorities(Vec::new(), at(0));
    assert_eq!(directory.peers().count(), 0);
    let held = directory.memberships().count() + directory.announcements().count();
    assert_eq!(held + directory.tombstones().count(), 0);
}

#[test]
fn a_source_may_only_say_what_it_may() {
    let mut directory = directory(1);
    let b = machine(2);
    let kubernetes = Source::Kubernetes { domain: domain() };
    let facts = [
        observed(kubernetes, Fact::Membership(b.membership(1))),
        observed(Source::Config, Fact::Membership(b.membership(1))),
        observed(Source::Gossip, Fact::Listed(vec![b.entry()])),
        observed(Source::Disk, Fact::Listed(vec![b.entry()])),
    ];
    directory.handle_observations(facts, at(0));
    assert_eq!(directory.count(Reason::Source), 4);
    assert_eq!(
        directory.memberships().count() + directory.peers().count(),
        0
    );
}

#[test]
fn a_record_too_large_to_be_passed_on_is_refused() {
    let mut directory = directory(1);
    let ranges: Vec<String> = (0..250).map(|n| format!("172.16.{n}.0/24")).collect();
    let ranges: Vec<&str> = ranges.iter().map(String::as_str).collect();
    directory.gossip(machine(2).carrying(1, &ranges));
    assert_eq!(directory.count(Reason::Malformed), 1);
}

#[test]
fn peers_are_found_by_name_key_identity_and_address_and_twins_are_ambiguous() {
    let mut directory = directory(1);
    let (b, c) = (machine(2), machine(3));
    let mut twin = c.member(2);
    twin.name = "m2".to_owned();
    directory.gossip(b.membership(1));
    directory.gossip(b.announcement(1));
    assert_eq!(directory.find("m2"), Ok(&b.id()));
    directory.gossip(Signed::sign(twin, &authority()));
    directory.gossip(c.announcement(1));
    assert_eq!(
        directory.find("m2"),
        Err(FindError::Ambiguous("m2".into(), 2))
    );
    assert_eq!(directory.find(&c.key.to_string()), Ok(&c.id()));
    assert_eq!(directory.find(&c.node().identity.to_string()), Ok(&c.id()));
    assert_eq!(directory.find("10.77.0.3"), Ok(&c.id()));
    assert_eq!(directory.find("m9"), Err(FindError::NotFound("m9".into())));
}

#[test]
fn a_free_address_is_nobodys_and_not_promised_to_anybody() {
    let mut directory = directory(1);
    directory.gossip(machine(1).membership(1));
    directory.gossip(machine(2).membership(1));
    directory.listed(vec![
        crate::common::Machine {
            key: wg(50),
            ..machine(50)
        }
        .entry(),
    ]);
    let range = "10.77.0.0/16".parse().expect("range");
    let free = directory.free_ipv4(range, &[[10, 77, 0, 3].into()]);
    assert_eq!(free, Some([10, 77, 0, 4].into()));
}

#[test]
fn a_tombstone_is_kept_past_its_end_so_that_a_clock_set_back_revives_nobody() {
    let mut directory = directory(1);
    let b = machine(2);
    let record = Tombstone {
        not_after: Some(START + 10),
        ..b.tombstone(1).record().clone()
    };
    directory.gossip(Signed::sign(record, &authority()));
    directory.handle_timeout(at(86_400));
    directory.gossip(b.membership(1));
    assert_eq!(directory.memberships().count(), 0);
    directory.handle_timeout(at(31 * 86_400));
    assert_eq!(directory.tombstones().count(), 0);
}
