//! Who is a Node, and what its agent says of itself.

use mesh_types::annotations;
use mesh_types::cluster::{ClusterEvent, PodNetwork};
use mesh_types::observation::Fact;
use mesh_types::record::Features;
use mesh_types::{Candidate, CandidateKind, Signed, Source};
use peer_discovery::{Event, Reason};

use super::world::{CLUSTER, Hear as _, Worker, reader, reader_in, stranger_in, worker};
use crate::common::{Say as _, at, net, observed, wg};

#[test]
fn a_node_with_a_record_is_a_peer_with_its_ranges_and_its_region() {
    let (own, two) = (worker(1), worker(2));
    let mut directory = reader();
    directory.list(&[&own, &two]);
    let peer = directory.of(&two);
    assert_eq!(peer.name, "n2");
    assert_eq!(peer.key, two.key);
    assert_eq!(peer.region.as_deref(), Some("r0"));
    assert_eq!(peer.source, Source::Kubernetes { domain: CLUSTER });
    assert_eq!(peer.ipv4, Some([10, 244, 2, 0].into()));
    assert!(peer.pod_cidrs.contains(&net("10.244.2.0/24")));
    assert_eq!(peer.node_ips, [net("192.0.2.2/32")]);
    let carried: Vec<String> = peer.allowed_ips.iter().map(ToString::to_string).collect();
    let overlay = mesh_types::address::overlay_ipv6(&two.node()).to_string() + "/128";
    let mut expected = [
        "10.244.2.0/24",
        "10.244.2.0/32",
        "192.0.2.2/32",
        "2001:db8:244:2::/64",
        &overlay,
    ];
    expected.sort_by_key(|text| net(text));
    assert_eq!(carried, expected);
    assert!(!directory.has(&own), "nobody is its own peer");
    assert_eq!(directory.objections(), []);
    let membership = directory.own_membership().expect("the own Node vouches");
    assert_eq!(membership.name, "n1");
    assert_eq!(membership.ipv4, Some([10, 244, 1, 0].into()));
    assert!(directory.own_signed_membership().is_none());
    assert_eq!(directory.memberships().count(), 0, "nothing to pass on");
}

#[test]
fn where_the_mesh_lies_under_the_cni_only_node_addresses_are_routed() {
    let (own, two) = (
        worker(1),
        worker(2).at(&["2001:db8::2", "192.0.2.2", "192.0.2.9"]),
    );
    let mut directory = reader_in(PodNetwork::Nodes);
    directory.list(&[&own, &two]);
    let peer = directory.of(&two);
    assert!(peer.pod_cidrs.is_empty());
    assert_eq!(peer.ipv4, Some([192, 0, 2, 2].into()));
    let one_a_family = [net("192.0.2.2/32"), net("2001:db8::2/128")];
    assert_eq!(peer.node_ips, one_a_family);
    assert_eq!(peer.allowed_ips.len(), 3);
}

#[test]
fn a_node_whose_internal_ip_is_its_overlay_address_claims_nothing_of_others() {
    let two = worker(2);
    let overlay = mesh_types::address::overlay_ipv6(&two.node()).to_string();
    let two = two.at(&["192.0.2.2", &overlay]);
    let mut directory = reader_in(PodNetwork::Nodes);
    directory.list(&[&worker(1), &two]);
    assert_eq!(directory.objections(), []);
    assert_eq!(directory.carried(&two).len(), 2);
}

#[test]
fn a_node_without_an_agent_is_no_peer_and_no_reproach() {
    let mut directory = reader();
    let nodes = vec![worker(1).shown(), worker(2).object];
    directory.hear(ClusterEvent::Listed(nodes), 0);
    assert_eq!(directory.peers().count(), 0);
    assert_eq!(directory.objections(), []);
    assert_eq!(directory.cluster_nodes().count(), 2);
}

#[test]
fn a_burst_of_events_counts_once() {
    let mut directory = reader();
    directory.drained();
    for number in 1..100 {
        let node = Box::new(worker(number).shown());
        directory.handle_cluster(ClusterEvent::Applied(node), at(10));
    }
    assert_eq!(directory.peers().count(), 0, "not yet");
    let (due, why) = directory.poll_timeout().expect("a time");
    assert_eq!((due - at(10).mono).as_millis(), 50);
    assert_eq!(why, "events of the cluster");
    directory.wait(11);
    assert_eq!(directory.peers().count(), 98);
    let dirty = directory
        .drained()
        .into_iter()
        .filter(|e| *e == Event::Dirty);
    assert_eq!(dirty.count(), 1);
}

#[test]
fn a_record_that_is_copied_to_another_node_is_worth_nothing_there() {
    let (own, victim) = (worker(1), worker(2));
    let mut thief = worker(3).object;
    thief.annotations = victim.shown().annotations;
    let mut directory = reader();
    let nodes = vec![own.shown(), victim.shown(), thief];
    directory.hear(ClusterEvent::Listed(nodes), 0);
    assert_eq!(directory.peers().count(), 1);
    assert!(directory.has(&victim));
    let [(reason, node, sentence)] = directory.objections()[..] else {
        panic!("{:?}", directory.objections());
    };
    assert_eq!((reason, node), (Reason::Forged, Some("n3")));
    assert_eq!(
        sentence,
        "the record on Node n3 is refused: annotation farspan.io/proof is not the identity's signature over this record for this Node: it was altered, or copied from another Node; it is no peer until its agent publishes a good one"
    );
}

#[test]
fn an_identity_that_is_copied_without_its_secret_proves_nothing() {
    let victim = worker(2);
    let mut thief = worker(3).shown();
    let identity = victim.secret.identity().to_string();
    thief
        .annotations
        .insert(annotations::IDENTITY.into(), identity);
    let mut directory = reader();
    let nodes = vec![worker(1).shown(), victim.shown(), thief];
    directory.hear(ClusterEvent::Listed(nodes), 0);
    assert_eq!(directory.peers().count(), 1);
    assert!(directory.carries_of(&victim, "10.244.2.0/24"));
    assert!(!directory.carries_of(&victim, "10.244.3.0/24"));
    assert!(directory.conflict(Reason::Forged));
}

#[test]
fn a_public_key_that_is_copied_stays_with_the_older_node() {
    let victim = worker(2);
    let thief = worker(3).with(|thief| thief.key = wg(2));
    let mut directory = reader();
    directory.list(&[&worker(1), &thief, &victim]);
    assert_eq!(directory.by_key(&wg(2)), Some(&victim.id()));
    assert!(!directory.has(&thief), "no key, no peer");
    let refused = directory
        .conflicts()
        .iter()
        .find(|c| c.reason == Reason::DuplicateKey);
    assert_eq!(refused.and_then(|c| c.node.as_deref()), Some("n3"));
}

#[test]
fn this_nodes_own_key_on_another_node_is_refused() {
    let thief = worker(3).with(|thief| thief.key = wg(1));
    let mut directory = reader();
    directory.list(&[&worker(1), &thief]);
    assert!(!directory.has(&thief));
    let refused = directory.objections();
    assert_eq!(refused.len(), 1);
    assert_eq!((refused[0].0, refused[0].1), (Reason::OwnKey, Some("n3")));
    let rotated = wg(99);
    directory.set_own(worker(1).node(), rotated, at(5));
    assert!(directory.has(&thief), "a key that nobody else has");
}

#[test]
fn one_identity_on_two_nodes_belongs_to_the_older_until_that_is_gone() {
    let older = worker(2);
    let younger = worker(3).with(|younger| younger.secret = older.secret.clone());
    let mut directory = reader();
    directory.list(&[&worker(1), &younger, &older]);
    assert_eq!(directory.of(&older).name, "n2");
    assert!(directory.carries_of(&older, "10.244.2.0/24"));
    let [(reason, node, sentence)] = directory.objections()[..] else {
        panic!("{:?}", directory.objections());
    };
    assert_eq!((reason, node), (Reason::DuplicateIdentity, Some("n3")));
    assert_eq!(
        sentence,
        "Node n3 shows the identity of Node n2, which keeps it; was identity.key copied?"
    );
    directory.delete(&older);
    let heir = directory.of(&younger);
    assert_eq!(heir.name, "n3");
    assert!(directory.carries_of(&younger, "10.244.3.0/24"));
    assert!(!directory.carries_of(&younger, "10.244.2.0/24"));
    assert_eq!(directory.objections(), []);
}

#[test]
fn this_nodes_own_identity_on_another_node_is_refused() {
    let copy = worker(2).with(|copy| copy.secret = worker(1).secret);
    let mut directory = reader();
    for nodes in [vec![worker(1), copy.clone()], vec![copy]] {
        directory.list(&nodes.iter().collect::<Vec<_>>());
        assert_eq!(directory.peers().count(), 0);
        assert!(directory.conflict(Reason::DuplicateIdentity));
    }
}

#[test]
fn a_node_that_was_made_anew_needs_a_record_of_its_own() {
    let two = worker(2);
    let anew = two.clone().with(|anew| {
        anew.object.uid = "uid-2b".into();
        anew.seq = 6;
    });
    let mut directory = reader();
    directory.list(&[&worker(1), &two]);
    directory.drained();
    let mut bare = anew.object.clone();
    bare.annotations = two.shown().annotations;
    directory.hear(ClusterEvent::Applied(Box::new(bare)), 0);
    assert!(!directory.has(&two), "the old record is not this Node's");
    assert_eq!(directory.drained()[0], Event::Removed(two.id()));
    directory.apply(&anew);
    assert!(directory.has(&two));
    directory.delete(&two);
    assert!(directory.has(&two), "the Node that is gone is the old one");
    directory.delete(&anew);
    assert!(!directory.has(&two));
}

#[test]
fn a_record_that_is_rolled_back_changes_nothing() {
    let newer = worker(2).with(|newer| newer.seq = 9);
    let older = worker(2).with(|older| {
        older.seq = 8;
        older.key = wg(77);
    });
    let mut directory = reader();
    directory.list(&[&worker(1), &newer]);
    directory.apply(&older);
    assert_eq!(directory.of(&newer).key, wg(2));
    assert_eq!(directory.count(Reason::Stale), 1);
}

#[test]
fn a_newer_record_counts_by_gossip_and_is_passed_on_but_vouches_for_nobody() {
    let two = worker(2);
    let newer = two.clone().with(|newer| {
        newer.seq = 9;
        newer.key = wg(77);
    });
    let stranger = worker(3);
    let mut directory = reader();
    directory.list(&[&worker(1), &two]);
    directory.gossip(newer.record());
    directory.gossip(stranger.record());
    assert_eq!(directory.of(&two).key, wg(77));
    assert!(!directory.has(&stranger));
    let wanted = [two.node().identity.idx()];
    let answers = directory.answer_want(&wanted, None);
    assert_eq!(answers.len(), 1);
    assert_eq!(answers[0].announcements, [newer.record()]);
    assert!(answers[0].memberships.is_empty());
    directory.apply(&two);
    assert_eq!(directory.of(&two).key, wg(77), "the older one is Stale");
    assert_eq!(directory.count(Reason::Stale), 0, "it was known");
}

#[test]
fn gossip_that_came_before_its_node_is_taken_when_it_comes_again() {
    let three = worker(3).with(|three| three.seq = 9);
    let mut directory = reader();
    directory.list(&[&worker(1)]);
    directory.gossip(three.record());
    assert!(!directory.has(&three));
    directory.apply(&worker(3));
    directory.gossip(three.record());
    assert_eq!(directory.of(&three).seq, 9);
}

#[test]
fn a_record_that_a_person_spoilt_leaves_the_last_good_one() {
    let two = worker(2);
    let mut directory = reader();
    directory.list(&[&worker(1), &two]);
    let mut spoilt = two.shown();
    spoilt
        .annotations
        .insert("farspan.io/seq".into(), "many".into());
    directory.hear(ClusterEvent::Applied(Box::new(spoilt)), 0);
    assert!(directory.has(&two));
    let [(reason, node, sentence)] = directory.objections()[..] else {
        panic!("{:?}", directory.objections());
    };
    assert_eq!((reason, node), (Reason::Malformed, Some("n2")));
    assert_eq!(
        sentence,
        "the record on Node n2 is refused: annotation farspan.io/seq is \"many\", which is not a number; the record that it has shown before is kept"
    );
    directory.apply(&two);
    assert_eq!(directory.objections(), []);
    directory.hear(ClusterEvent::Applied(Box::new(two.object.clone())), 0);
    assert!(!directory.has(&two), "an agent that was removed is no peer");
}

#[test]
fn what_a_person_wishes_of_a_node_goes_before_what_it_says() {
    let two = worker(2)
        .wishing("region", "office")
        .wishing("force-endpoint", "203.0.113.9:4500");
    let mut directory = reader();
    directory.list(&[&worker(1), &two]);
    let peer = directory.of(&two);
    assert_eq!(peer.region.as_deref(), Some("office"));
    let forced = Candidate {
        kind: CandidateKind::Mapped,
        address: "203.0.113.9:4500".parse().expect("address"),
    };
    assert_eq!(peer.endpoints.first(), Some(&forced));
    assert!(peer.endpoints.len() > 1, "its own stay behind it");
}

#[test]
fn a_region_comes_from_people_and_never_from_the_agent() {
    let two = worker(2).with(|two| two.object.region = None);
    let mut directory = reader();
    directory.list(&[&worker(1), &two]);
    let mut claim = two.announce();
    claim.region = Some("elsewhere".into());
    claim.seq += 1;
    directory.gossip(Signed::sign(claim, &two.secret));
    assert_eq!(directory.of(&two).region, None);
}

#[test]
fn a_node_relays_if_it_is_willing_and_nobody_forbids_it() {
    let willing = |worker: Worker| {
        let mut record = worker.announce();
        record.features = Features::MAY_RELAY;
        record.seq += 1;
        (worker.clone(), Signed::sign(record, &worker.secret))
    };
    let allowed = |names: &[&str]| mesh_types::cluster::Policy {
        relays: Some(names.iter().map(ToString::to_string).collect()),
        ..Default::default()
    };
    // Wish, policy, may it relay?
    let table = [
        (None, None, true),
        (Some("true"), None, true),
        (Some("false"), None, false),
        (Some("perhaps"), None, false),
        (None, Some(allowed(&["n2"])), true),
        (Some("true"), Some(allowed(&["n3"])), false),
    ];
    for (wish, policy, expected) in table {
        let mut two = worker(2);
        if let Some(wish) = wish {
            two = two.wishing("relay", wish);
        }
        let (two, record) = willing(two);
        let mut directory = reader();
        directory.list(&[&worker(1), &two]);
        if let Some(policy) = policy.clone() {
            directory.allow(policy);
        }
        assert!(!directory.of(&two).may_relay, "it is not willing yet");
        directory.gossip(record);
        assert_eq!(
            directory.of(&two).may_relay,
            expected,
            "{wish:?} {policy:?}"
        );
    }
}

#[test]
fn wishes_that_cannot_be_read_are_named_and_ignored() {
    let table = [
        (
            "force-endpoint",
            "office",
            "annotation config.farspan.io/force-endpoint of Node n2 has \"office\", which is not ADDRESS:PORT; that is ignored",
        ),
        (
            "force-endpoint",
            "192.0.2.1:0",
            "annotation config.farspan.io/force-endpoint of Node n2 has \"192.0.2.1:0\", which is not ADDRESS:PORT; that is ignored",
        ),
        (
            "extra-cidrs",
            "10.0.0.0/33",
            "annotation config.farspan.io/extra-cidrs of Node n2 has \"10.0.0.0/33\", which is not an address range; that is ignored",
        ),
        (
            "relay",
            "\u{1b}]0;",
            "annotation config.farspan.io/relay of Node n2 has \"\\u{1b}]0;\", which is not true or false; that is ignored",
        ),
    ];
    for (key, value, expected) in table {
        let two = worker(2).wishing(key, value);
        let mut directory = reader();
        directory.list(&[&worker(1), &two]);
        assert!(directory.has(&two));
        assert_eq!(
            directory.objections(),
            [(Reason::Malformed, Some("n2"), expected)]
        );
    }
}

#[test]
fn a_node_of_a_later_protocol_is_a_peer_that_says_so() {
    let two = worker(2);
    let mut record = two.announce();
    (record.protocol_min, record.protocol_max) = (7, 9);
    let record = Signed::sign(record, &two.secret);
    let mut node = two.object.clone();
    let written = annotations::encode(&record).into_iter();
    node.annotations
        .extend(written.map(|(key, value)| (key.to_owned(), value)));
    let mut directory = reader();
    directory.hear(ClusterEvent::Listed(vec![worker(1).shown(), node]), 0);
    assert_eq!(directory.of(&two).protocol, (7, 9));
}

#[test]
fn the_own_record_on_the_own_node_is_told_and_never_a_peer() {
    let own = worker(1).with(|own| own.seq = 1_234);
    let mut directory = reader();
    directory.drained();
    directory.list(&[&own]);
    let events = directory.drained();
    assert!(events.contains(&Event::OwnRecordNewer(1_234)));
    assert!(events.contains(&Event::OwnMembership));
    let shown = directory.own_node().expect("the own Node");
    assert_eq!(shown, &own.shown(), "with all annotations");
}

#[test]
fn pod_ranges_that_come_later_change_the_own_membership() {
    let bare = worker(1).pods(&[]);
    let mut directory = reader();
    directory.list(&[&bare]);
    assert_eq!(directory.own_membership().and_then(|own| own.ipv4), None);
    directory.drained();
    directory.apply(&worker(1));
    assert!(directory.drained().contains(&Event::OwnMembership));
    let ipv4 = directory.own_membership().and_then(|own| own.ipv4);
    assert_eq!(ipv4, Some([10, 244, 1, 0].into()));
}

#[test]
fn the_last_good_state_is_a_mesh_before_the_api_server_is_asked() {
    let (own, two) = (worker(1), worker(2).wishing("region", "office"));
    let mut before = reader();
    before.protect(&["10.96.0.0/12"]);
    before.list(&[&own, &two]);
    let state = mesh_types::State {
        cluster: Some(before.saved()),
        announcements: before.announcements().cloned().collect(),
        ..Default::default()
    };
    let state = mesh_types::State::decode(&state.encode()).expect("a state file");

    let mut after = stranger_in(PodNetwork::Existing);
    after.restore_cluster(state.cluster.expect("a cluster"), at(0));
    for record in state.announcements {
        let fact = Fact::Announcement {
            record,
            spoken_by: None,
        };
        after.handle_observation(observed(Source::Disk, fact), at(0));
    }
    assert_eq!(after.of(&two), before.of(&two));
    assert_eq!(after.saved(), before.saved());
    assert_eq!(after.cluster_domain(), Some(CLUSTER));
    assert!(!after.drained().contains(&Event::Dirty), "nothing to write");

    after.hear(ClusterEvent::Domain(CLUSTER), 0);
    after.protect(&["10.96.0.0/12"]);
    after.list(&[&own, &two]);
    assert_eq!(after.of(&two), before.of(&two));
    after.wait(100 * 24 * 3600);
    assert!(after.has(&two), "silence ends nothing");
}

#[test]
fn nothing_is_believed_before_the_cluster_is_known_or_where_none_is_configured() {
    let mut directory = stranger_in(PodNetwork::Own);
    directory.list(&[&worker(1), &worker(2)]);
    assert_eq!(directory.cluster_nodes().count(), 0);
    let mut alone = crate::common::directory(1);
    alone.list(&[&worker(1), &worker(2)]);
    assert_eq!(alone.peers().count(), 0);
    assert_eq!(alone.count(Reason::Source), 1);
}

trait Carries {
    fn carries_of(&self, worker: &Worker, range: &str) -> bool;
}

impl Carries for peer_discovery::Directory {
    fn carries_of(&self, worker: &Worker, range: &str) -> bool {
        self.of(worker).allowed_ips.contains(&net(range))
    }
}
