//! `[[peer]]` entries: what an announcement may do to them, and what it may not.

use std::net::SocketAddr;

use crate::common::{Machine, Say as _, at, directory, directory_of, machine, net, observed, wg};
use mesh_types::address::overlay_ipv6;
use mesh_types::observation::{ConfigPeer, Fact};
use mesh_types::state::Pin;
use mesh_types::{Announcement, IpNet, PeerId, Signed, Source};
use peer_discovery::{Event, Reason};

fn static_machine(number: u8) -> Machine {
    machine(number).without_authority()
}

fn address(machine: &Machine) -> IpNet {
    IpNet::from(std::net::IpAddr::V6(overlay_ipv6(&machine.node())))
}

#[test]
fn an_entry_is_a_peer_by_its_key_with_exactly_its_ranges() {
    let mut directory = directory_of(&static_machine(1), Vec::new());
    let b = static_machine(2);
    directory.listed(vec![b.entry()]);
    let id = PeerId::Key(b.key);
    let peer = directory.peer(&id).expect("peer");
    assert_eq!(peer.allowed_ips, [net("10.9.0.2/32")].into());
    assert_eq!((peer.source, peer.identity), (Source::Config, None));
    assert_eq!(directory.events(), [Event::Changed(id), Event::Dirty]);
    directory.listed(Vec::new());
    assert_eq!(directory.events(), [Event::Removed(id), Event::Dirty]);
}

#[test]
fn an_announcement_that_names_a_configured_key_is_an_endpoint_hint_and_nothing_more() {
    let mut directory = directory_of(&static_machine(1), Vec::new());
    let b = static_machine(2);
    let endpoint: SocketAddr = "203.0.113.9:22001".parse().expect("address");
    directory.listed(vec![ConfigPeer {
        endpoints: vec![endpoint],
        ..b.entry()
    }]);
    let liar = static_machine(66);
    let claim = Announcement {
        next_key: Some(liar.key),
        name: Some("liar".into()),
        ..liar.announce(1)
    };
    let claim = Announcement {
        key: b.key,
        ..claim
    };
    directory.gossip(Signed::sign(claim, &liar.secret));

    let peer = directory.peer(&PeerId::Key(b.key)).expect("still by key");
    let addresses: Vec<_> = peer.endpoints.iter().map(|c| c.address).collect();
    assert_eq!(addresses, [endpoint, ([198, 51, 100, 66], 22000).into()]);
    assert_eq!(peer.allowed_ips, [net("10.9.0.2/32")].into());
    assert_eq!((peer.identity, peer.next_key, peer.seq), (None, None, 0));
    assert_ne!(peer.name, "liar");
    assert_eq!(directory.pins().count(), 0);
}

#[test]
fn hints_for_one_key_are_few_and_the_real_one_always_gets_in() {
    let mut directory = directory_of(&static_machine(1), Vec::new());
    let b = static_machine(2);
    directory.listed(vec![b.entry()]);
    for number in 60..80 {
        directory.gossip(static_machine(number).announcement_of(1, b.key));
    }
    assert_eq!(directory.announcements().count(), 4);
    assert_eq!(directory.count(Reason::Full), 16);
    directory.spoken(b.announcement(1), b.key);
    assert!(directory.peer(&b.id()).is_some());
    // The lies went with the pin.
    assert_eq!(directory.announcements().count(), 1);
}

#[test]
fn the_identity_is_pinned_by_what_the_session_of_the_key_itself_says() {
    let mut directory = directory_of(&static_machine(1), Vec::new());
    let b = static_machine(2);
    directory.listed(vec![b.entry()]);
    directory.events();
    // Another session carries it: a hint.
    directory.spoken(b.announcement(1), wg(9));
    assert!(directory.peer(&PeerId::Key(b.key)).is_some());
    // Its own session carries it, the very same record.
    directory.spoken(b.announcement(1), b.key);
    let peer = directory.peer(&b.id()).expect("pinned");
    assert_eq!(peer.allowed_ips, [net("10.9.0.2/32"), address(&b)].into());
    assert_eq!(peer.source, Source::Config);
    let pin = Pin {
        configured: b.key,
        identity: b.node().identity,
        domain: b.domain,
    };
    assert_eq!(directory.pins().collect::<Vec<_>>(), [pin]);
    let renamed = Event::Renamed {
        from: PeerId::Key(b.key),
        to: b.id(),
    };
    let events = directory.events();
    assert_eq!(events.first(), Some(&renamed));
    assert!(events.contains(&Event::Changed(b.id())));
    assert!(events.contains(&Event::Dirty));
}

#[test]
fn a_record_of_another_key_carried_by_the_session_pins_nothing() {
    let mut directory = directory_of(&static_machine(1), Vec::new());
    let (b, c) = (static_machine(2), static_machine(3));
    directory.listed(vec![b.entry(), c.entry()]);
    // B passes on what C announced.
    directory.spoken(c.announcement(1), b.key);
    assert_eq!(directory.pins().count(), 0);
}

#[test]
fn the_pinned_identity_alone_may_change_the_key_and_the_file_is_then_out_of_date() {
    let mut directory = directory_of(&static_machine(1), Vec::new());
    let (b, thief) = (static_machine(2), static_machine(66));
    directory.listed(vec![b.entry()]);
    directory.spoken(b.announcement(1), b.key);
    // A new identity under the old key, by gossip and through the session.
    directory.gossip(thief.announcement_of(9, b.key));
    directory.spoken(thief.announcement_of(9, b.key), b.key);
    assert_eq!(directory.count(Reason::PinMismatch), 2);
    assert_eq!(directory.by_key(&b.key), Some(&b.id()));
    // The pinned one changes its key, told by anybody.
    directory.gossip(b.announcement_of(2, wg(90)));
    let peer = directory.peer(&b.id()).expect("peer");
    assert_eq!((peer.key, peer.configured_key), (wg(90), Some(b.key)));
    assert_eq!(directory.by_key(&wg(90)), Some(&b.id()));
    assert_eq!(directory.by_key(&b.key), Some(&b.id()));
    // Rolled back: refused.
    directory.gossip(b.announcement(1));
    assert_eq!(directory.peer(&b.id()).map(|p| p.key), Some(wg(90)));
}

#[test]
fn a_pinned_peer_may_not_take_another_peers_key() {
    let mut directory = directory_of(&static_machine(1), Vec::new());
    let (b, c) = (static_machine(2), static_machine(3));
    directory.listed(vec![b.entry(), c.entry()]);
    directory.spoken(b.announcement(1), b.key);
    directory.gossip(b.announcement_of(2, c.key));
    assert_eq!(directory.by_key(&c.key), Some(&PeerId::Key(c.key)));
    assert_eq!(directory.peer(&b.id()).map(|p| p.key), Some(b.key));
    assert!(directory.conflict(Reason::DuplicateKey));
}

#[test]
fn pins_and_announcements_come_back_from_disk_before_or_after_the_file() {
    let b = static_machine(2);
    let pin = Pin {
        configured: b.key,
        identity: b.node().identity,
        domain: b.domain,
    };
    let record = b.announcement_of(5, wg(90));
    let facts = [
        observed(Source::Disk, Fact::Pinned(pin)),
        observed(
            Source::Disk,
            Fact::Announcement {
                record,
                spoken_by: None,
            },
        ),
    ];
    for file_first in [true, false] {
        let mut directory = directory_of(&static_machine(1), Vec::new());
        if file_first {
            directory.listed(vec![b.entry()]);
        }
        directory.handle_observations(facts.clone(), at(0));
        if !file_first {
            directory.listed(vec![b.entry()]);
        }
        let peer = directory.peer(&b.id()).expect("pinned");
        assert_eq!((peer.key, peer.seq), (wg(90), 5));
        // Gone from the file: gone from the pins.
        directory.listed(vec![static_machine(3).entry()]);
        let held = directory.pins().count() + directory.announcements().count();
        assert_eq!((held, directory.peers().count()), (0, 1));
    }
}

#[test]
fn an_entry_and_a_member_that_turn_out_to_be_one_node_are_one_peer_with_the_files_ranges() {
    let mut directory = directory(1);
    let b = machine(2);
    directory.gossip(b.carrying(1, &["192.168.7.0/24"]));
    directory.gossip(b.announcement(1));
    assert_eq!(directory.events().first(), Some(&Event::Changed(b.id())));
    directory.listed(vec![b.entry()]);
    // By key alone: one peer, the entry; the announcement is a hint.
    assert_eq!(directory.peers().count(), 1);
    assert!(directory.peer(&PeerId::Key(b.key)).is_some());
    directory.spoken(b.announcement(1), b.key);
    assert_eq!(directory.peers().count(), 1);
    let peer = directory.peer(&b.id()).expect("by identity");
    assert_eq!(peer.allowed_ips, [net("10.9.0.2/32"), address(&b)].into());
    assert_eq!(peer.name, "m2");
    // Out of the file again: a member like any other.
    directory.listed(Vec::new());
    assert!(directory.carries(&b, "192.168.7.0/24"));
}

#[test]
fn a_member_that_names_a_configured_key_gets_neither_its_ranges_nor_its_identity() {
    let mut directory = directory(1);
    let (b, thief) = (static_machine(2), machine(66));
    directory.listed(vec![b.entry()]);
    directory.gossip(thief.membership(1));
    directory.gossip(thief.announcement_of(1, b.key));
    assert_eq!(directory.peer(&thief.id()), None);
    let peer = directory.peer(&PeerId::Key(b.key)).expect("by key");
    assert_eq!(peer.allowed_ips, [net("10.9.0.2/32")].into());
    directory.gossip(thief.announcement(2));
    assert!(!directory.carries(&thief, "10.9.0.2/32"));
    assert!(directory.peer(&thief.id()).is_some());
}

#[test]
fn the_file_outranks_an_older_membership() {
    let mut directory = directory(1);
    let (b, c) = (machine(2), static_machine(3));
    directory.gossip(b.carrying(1, &["192.168.7.0/24"]));
    directory.gossip(b.announcement(1));
    let entry = ConfigPeer {
        allowed_ips: vec![net("192.168.7.5/32")],
        ..c.entry()
    };
    directory.listed(vec![entry]);
    assert!(!directory.carries(&b, "192.168.7.0/24"));
    let at = "192.168.7.5".parse().expect("address");
    assert_eq!(directory.by_address(at), Some(&PeerId::Key(c.key)));
    assert!(directory.conflict(Reason::Overlap));
}

#[test]
fn a_tombstone_does_not_remove_what_the_file_lists() {
    let mut directory = directory(1);
    let b = machine(2);
    directory.listed(vec![b.entry()]);
    directory.gossip(b.membership(1));
    directory.spoken(b.announcement(1), b.key);
    directory.gossip(b.tombstone(1));
    assert!(directory.carries(&b, "10.9.0.2/32"));
}

#[test]
fn entries_that_contradict_the_file_or_this_node_are_reported_until_the_file_is_mended() {
    let mut directory = directory_of(&static_machine(1), Vec::new());
    directory.set_own_ranges(vec![net("10.9.0.1/32"), net("10.8.0.0/16")], at(0));
    let (own, b, c) = (static_machine(1), static_machine(2), static_machine(3));
    let clash = ConfigPeer {
        allowed_ips: ["10.9.0.2/32", "0.0.0.0/0", "10.9.0.0/31", "10.8.3.0/24"]
            .map(net)
            .to_vec(),
        ..c.entry()
    };
    directory.listed(vec![own.entry(), b.entry(), b.entry(), clash]);
    assert_eq!(directory.peers().count(), 2);
    let peer = directory.peer(&PeerId::Key(c.key)).expect("peer");
    // A part of our own range may be a plain device behind us.
    assert_eq!(peer.allowed_ips, [net("10.8.3.0/24")].into());
    for reason in [
        Reason::OwnKey,
        Reason::DuplicateKey,
        Reason::Overlap,
        Reason::Range,
        Reason::OwnRange,
    ] {
        assert!(directory.conflict(reason), "{}", reason.kind());
    }
    directory.listed(vec![b.entry()]);
    assert!(directory.conflicts().is_empty());
}

#[test]
fn a_plain_device_is_never_pinned_and_takes_no_hints() {
    let mut directory = directory_of(&static_machine(1), Vec::new());
    let phone = static_machine(2);
    directory.listed(vec![ConfigPeer {
        plain: true,
        ..phone.entry()
    }]);
    directory.spoken(phone.announcement(1), phone.key);
    let peer = directory.peer(&PeerId::Key(phone.key)).expect("by key");
    assert!(peer.plain && peer.endpoints.is_empty() && !peer.may_relay);
    assert_eq!(directory.pins().count(), 0);
}

#[test]
fn a_pinned_peer_that_joins_a_mesh_is_renamed_and_cannot_be_moved_back() {
    let mut directory = directory(1);
    let (before, after) = (static_machine(2), machine(2));
    directory.listed(vec![before.entry()]);
    directory.spoken(before.announcement(1), before.key);
    assert!(directory.peer(&before.id()).is_some());
    directory.events();
    directory.gossip(after.announcement(2));
    let renamed = Event::Renamed {
        from: before.id(),
        to: after.id(),
    };
    assert_eq!(directory.events().first(), Some(&renamed));
    assert!(directory.carries(&after, "10.9.0.2/32"));
    directory.gossip(before.announcement(1));
    assert!(directory.peer(&before.id()).is_none());
    assert_eq!(
        directory.pins().map(|p| p.domain).collect::<Vec<_>>(),
        [after.domain]
    );
}

#[test]
fn a_machine_set_up_anew_is_accepted_after_its_entry_was_removed_and_added() {
    let mut directory = directory_of(&static_machine(1), Vec::new());
    let b = static_machine(2);
    let mut anew = static_machine(3);
    anew.key = b.key;
    directory.listed(vec![b.entry()]);
    directory.spoken(b.announcement(1), b.key);
    directory.spoken(anew.announcement(1), b.key);
    assert_eq!(directory.by_key(&b.key), Some(&b.id()));
    directory.listed(Vec::new());
    directory.listed(vec![b.entry()]);
    directory.spoken(anew.announcement(1), b.key);
    assert_eq!(directory.by_key(&b.key), Some(&anew.id()));
}

#[test]
fn new_endpoints_change_a_peer_and_nothing_else() {
    let mut directory = directory(1);
    let (b, c) = (machine(2), machine(3));
    for m in [&b, &c] {
        directory.gossip(m.membership(u64::from(m.number)));
        directory.gossip(m.announcement(1));
    }
    directory.events();
    let mut moved = b.announce(2);
    moved.endpoints[0].address = "203.0.113.1:1".parse().expect("address");
    directory.gossip(Signed::sign(moved.clone(), &b.secret));
    assert_eq!(
        directory.peer(&b.id()).expect("peer").endpoints,
        moved.endpoints
    );
    assert_eq!(directory.events(), [Event::Changed(b.id()), Event::Dirty]);
}

#[test]
fn a_member_that_speaks_through_a_pinned_keys_session_is_refused() {
    let mut directory = directory(1);
    let (b, thief) = (static_machine(2), machine(66));
    directory.listed(vec![b.entry()]);
    directory.spoken(b.announcement(1), b.key);
    directory.gossip(thief.membership(1));
    directory.spoken(thief.announcement_of(1, b.key), b.key);
    assert_eq!(directory.count(Reason::PinMismatch), 1);
    assert_eq!(directory.by_key(&b.key), Some(&b.id()));
    let pinned: Vec<_> = directory.pins().map(|pin| pin.identity).collect();
    assert_eq!(pinned, [b.node().identity]);
}

#[test]
fn one_identity_is_never_behind_two_entries() {
    let mut directory = directory_of(&static_machine(1), Vec::new());
    let (b, c) = (static_machine(2), static_machine(3));
    directory.listed(vec![b.entry(), c.entry()]);
    for configured in [b.key, c.key] {
        let pin = Pin {
            configured,
            identity: b.node().identity,
            domain: b.domain,
        };
        directory.handle_observation(observed(Source::Disk, Fact::Pinned(pin)), at(0));
    }
    assert_eq!(directory.count(Reason::PinTwice), 1);
    assert!(directory.peer(&b.id()).is_some());
    assert!(directory.peer(&PeerId::Key(c.key)).is_some());
}

#[test]
fn a_member_that_is_probably_an_entry_claims_nothing_beside_it() {
    let mut directory = directory(1);
    let b = machine(2);
    let entry = ConfigPeer {
        allowed_ips: vec![net("10.77.0.2/32")],
        ..b.entry()
    };
    directory.listed(vec![entry]);
    directory.gossip(b.membership(1));
    directory.gossip(b.announcement(1));
    assert!(directory.conflicts().is_empty());
}

#[test]
fn a_hint_stays_while_its_entry_does() {
    let mut directory = directory_of(&static_machine(1), Vec::new());
    let b = static_machine(2);
    directory.listed(vec![b.entry()]);
    directory.gossip(b.announcement(1));
    directory.listed(vec![b.entry(), static_machine(3).entry()]);
    assert_eq!(directory.announcements().count(), 1);
    directory.listed(vec![static_machine(3).entry()]);
    assert_eq!(directory.announcements().count(), 0);
}

#[test]
fn ranges_of_entries_may_nest_whatever_their_order_and_the_longest_prefix_counts() {
    let (b, c) = (static_machine(2), static_machine(3));
    let wide = ConfigPeer {
        allowed_ips: vec![net("10.0.0.0/16")],
        ..b.entry()
    };
    let narrow = ConfigPeer {
        allowed_ips: vec![net("10.0.1.0/24")],
        ..c.entry()
    };
    for entries in [vec![wide.clone(), narrow.clone()], vec![narrow, wide]] {
        let mut directory = directory_of(&static_machine(1), Vec::new());
        directory.listed(entries);
        let ranges = |key| &directory.peer(&PeerId::Key(key)).expect("peer").allowed_ips;
        assert_eq!(*ranges(b.key), [net("10.0.0.0/16")].into());
        assert_eq!(*ranges(c.key), [net("10.0.1.0/24")].into());
        let owner = |text: &str| directory.by_address(text.parse().expect("address"));
        assert_eq!(owner("10.0.1.9"), Some(&PeerId::Key(c.key)));
        assert_eq!(owner("10.0.2.9"), Some(&PeerId::Key(b.key)));
        assert!(directory.conflicts().is_empty());
    }
}

#[test]
fn of_entries_with_the_same_range_the_first_of_the_file_keeps_it() {
    let (b, c) = (static_machine(2), static_machine(3));
    let same = |machine: &Machine| ConfigPeer {
        allowed_ips: vec![net("10.0.0.0/16")],
        ..machine.entry()
    };
    let mut directory = directory_of(&static_machine(1), Vec::new());
    directory.listed(vec![same(&c), same(&b)]);
    let owner = directory.by_address([10, 0, 0, 9].into());
    assert_eq!(owner, Some(&PeerId::Key(c.key)));
    assert!(directory.conflict(Reason::Overlap));
}
