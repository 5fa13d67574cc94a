//! What a Node may carry, and what it may not.

use mesh_types::ConfigPeer;
use mesh_types::cluster::{PodNetwork, Policy};
use peer_discovery::Reason;

use super::world::{CLUSTER, Hear as _, Worker, reader, reader_in, worker};
use crate::common::{Say as _, machine, net, wg};

/// Who claims it, what, and why and with which sentence it is refused.
type Case = (Worker, &'static str, Reason, &'static str);

#[test]
fn claims_that_nobody_may_make_are_refused_with_a_sentence_and_the_nodes_name() {
    let policy = || Policy {
        node_cidrs: vec![net("192.0.2.0/24"), net("2001:db8::/32")],
        pod_cidrs: vec![net("10.244.0.0/16"), net("2001:db8:244::/48")],
        extra_cidrs: [("n2".to_owned(), vec![net("172.16.0.0/16")])].into(),
        ..Policy::default()
    };
    let two = || worker(2);
    let three = |text| worker(3).wishing("extra-cidrs", text);
    let table: [Case; 12] = [
        (
            two().at(&["192.0.2.200"]),
            "192.0.2.200/32",
            Reason::Protected,
            "InternalIP 192.0.2.200/32 of Node n2 meets 192.0.2.200/32, which is the API server's, DNS' or the Services', and is not routed; on the API server's own machine that is as it should be",
        ),
        (
            two().pods(&["10.96.4.0/24"]),
            "10.96.4.0/24",
            Reason::Protected,
            "podCIDR 10.96.4.0/24 of Node n2 meets 10.96.0.0/12, which is the API server's, DNS' or the Services', and is not routed; on the API server's own machine that is as it should be",
        ),
        (
            two().wishing("extra-cidrs", "10.0.0.0/8"),
            "10.0.0.0/8",
            Reason::Protected,
            "extra-cidrs range 10.0.0.0/8 of Node n2 meets 10.96.0.0/12, which is the API server's, DNS' or the Services', and is not routed; on the API server's own machine that is as it should be",
        ),
        (
            two().at(&["198.51.100.2"]),
            "198.51.100.2/32",
            Reason::Policy,
            "InternalIP 198.51.100.2/32 of Node n2 is outside of the MeshPolicy's nodeCIDRs and is not routed",
        ),
        (
            two().pods(&["10.245.2.0/24"]),
            "10.245.2.0/24",
            Reason::Policy,
            "podCIDR 10.245.2.0/24 of Node n2 is outside of the MeshPolicy's podCIDRs and is not routed",
        ),
        (
            two().wishing("extra-cidrs", "172.17.0.0/24"),
            "172.17.0.0/24",
            Reason::Policy,
            "extra-cidrs range 172.17.0.0/24 of Node n2 is outside of the MeshPolicy's extraCIDRs and is not routed",
        ),
        (
            three("172.16.3.0/24"),
            "172.16.3.0/24",
            Reason::Policy,
            "extra-cidrs range 172.16.3.0/24 of Node n3 is outside of the MeshPolicy's extraCIDRs and is not routed",
        ),
        (
            two().pods(&["0.0.0.0/1"]),
            "0.0.0.0/1",
            Reason::Range,
            "podCIDR 0.0.0.0/1 of Node n2 is a range that no peer may carry; it is not routed",
        ),
        (
            two().at(&["127.0.0.1"]),
            "127.0.0.1/32",
            Reason::Range,
            "InternalIP 127.0.0.1/32 of Node n2 is a range that no peer may carry; it is not routed",
        ),
        (
            two().pods(&["10.244.1.128/25"]),
            "10.244.1.128/25",
            Reason::OwnRange,
            "podCIDR 10.244.1.128/25 of Node n2 overlaps a range of this node and is not routed; change one of the two",
        ),
        (
            two().at(&["10.244.1.7"]),
            "10.244.1.7/32",
            Reason::Policy,
            "InternalIP 10.244.1.7/32 of Node n2 is outside of the MeshPolicy's nodeCIDRs and is not routed",
        ),
        (
            worker(3).pods(&["10.244.2.0/25"]),
            "10.244.2.0/25",
            Reason::Overlap,
            "podCIDR 10.244.2.0/25 of Node n3 overlaps a range of Node n2, which keeps it; change one of the two",
        ),
    ];
    for (claimant, range, reason, sentence) in table {
        let other = match claimant.number {
            2 => worker(3),
            _ => worker(2),
        };
        let mut directory = reader();
        directory.protect(&["192.0.2.200/32", "10.96.0.0/12"]);
        directory.allow(policy());
        directory.list(&[&worker(1), &claimant, &other]);
        let name = claimant.object.name.as_str();
        assert_eq!(directory.objections(), [(reason, Some(name), sentence)]);
        assert!(
            !directory.carried(&claimant).contains(&net(range)),
            "{range}"
        );
        assert_eq!(directory.carried(&other).len(), 5, "others keep theirs");
        assert_eq!(directory.count(reason), 1);
        directory.wait(10);
        assert_eq!(directory.count(reason), 1, "it is counted once");
    }
}

#[test]
fn extra_ranges_inside_the_policy_are_carried_and_without_one_none_are() {
    let two = worker(2).wishing("extra-cidrs", "172.16.2.0/24, 172.16.9.1/32");
    let mut directory = reader();
    directory.list(&[&worker(1), &two]);
    assert_eq!(directory.count(Reason::Policy), 2);
    directory.allow(Policy {
        extra_cidrs: [("n2".to_owned(), vec![net("172.16.0.0/16")])].into(),
        ..Policy::default()
    });
    assert_eq!(directory.objections(), []);
    let carried = directory.carried(&two);
    assert!(carried.contains(&net("172.16.2.0/24")));
    assert!(carried.contains(&net("172.16.9.1/32")));
}

#[test]
fn a_policy_that_goes_takes_its_limits_with_it() {
    let two = worker(2);
    let mut directory = reader();
    directory.list(&[&worker(1), &two]);
    directory.allow(Policy {
        node_cidrs: vec![net("198.51.100.0/24")],
        ..Policy::default()
    });
    assert!(directory.of(&two).node_ips.is_empty());
    assert!(directory.own_membership().is_some());
    directory.hear(mesh_types::cluster::ClusterEvent::Policy(None), 0);
    assert_eq!(directory.of(&two).node_ips, [net("192.0.2.2/32")]);
    assert!(directory.policy().is_none());
}

#[test]
fn a_range_of_two_nodes_is_the_olders_and_goes_to_the_younger_when_that_is_gone() {
    let older = worker(2);
    let younger = worker(3).pods(&["10.244.2.0/24"]);
    for order in [[&older, &younger], [&younger, &older]] {
        let mut directory = reader();
        directory.list(&[&worker(1)]);
        order.iter().for_each(|worker| directory.apply(worker));
        assert!(directory.carried(&older).contains(&net("10.244.2.0/24")));
        assert!(!directory.carried(&younger).contains(&net("10.244.2.0/24")));
        let refused = directory.objections();
        assert_eq!(refused.len(), 1);
        assert_eq!((refused[0].0, refused[0].1), (Reason::Overlap, Some("n3")));
        directory.delete(&older);
        assert!(directory.carried(&younger).contains(&net("10.244.2.0/24")));
        assert_eq!(directory.objections(), []);
    }
}

#[test]
fn an_address_inside_anothers_pod_range_is_refused_however_old_its_node_is() {
    let older = worker(2).at(&["10.244.3.7"]);
    for pod_network in [PodNetwork::Own, PodNetwork::Nodes] {
        let mut directory = reader_in(pod_network);
        directory.list(&[&worker(1), &older, &worker(3)]);
        assert!(directory.of(&older).node_ips.is_empty());
        let refused = directory.objections();
        assert_eq!(refused.len(), 1, "{refused:?}");
        assert_eq!((refused[0].0, refused[0].1), (Reason::Overlap, Some("n2")));
    }
}

#[test]
fn what_is_this_nodes_own_is_not_an_older_nodes() {
    let own = worker(1).with(|own| own.object.created += 1_000);
    let older = worker(2).pods(&["10.244.1.0/25"]);
    let mut directory = reader();
    directory.list(&[&own, &older]);
    let sentence = "podCIDR 10.244.1.0/25 of Node n2 overlaps a range of this node and is not routed; change one of the two";
    assert_eq!(
        directory.objections(),
        [(Reason::OwnRange, Some("n2"), sentence)]
    );
    let held = directory.own_membership().expect("a Node");
    assert!(held.ranges.contains(&net("10.244.1.0/24")));
    assert!(directory.of(&older).pod_cidrs.is_empty());
}

#[test]
fn a_pod_range_that_the_policy_routes_nowhere_is_still_its_nodes() {
    let thief = worker(4)
        .at(&["10.244.1.7", "2001:db8::4"])
        .wishing("extra-cidrs", "10.244.3.0/24");
    let mut directory = reader();
    directory.allow(Policy {
        pod_cidrs: vec![net("10.250.0.0/16")],
        extra_cidrs: [("n4".to_owned(), vec![net("10.0.0.0/8")])].into(),
        ..Policy::default()
    });
    directory.list(&[&worker(1), &worker(3), &thief]);
    let expected = [net("2001:db8::4/128")];
    assert_eq!(directory.of(&thief).node_ips, expected);
    assert_eq!(directory.carried(&thief).len(), 2);
    assert_eq!(directory.count(Reason::OwnRange), 1);
    assert_eq!(directory.count(Reason::Overlap), 1);
}

#[test]
fn nodes_without_an_agent_keep_what_is_theirs() {
    let silent = worker(2);
    let thief = worker(3).at(&["192.0.2.2"]);
    let mut directory = reader();
    let nodes = vec![worker(1).shown(), silent.object, thief.shown()];
    directory.hear(mesh_types::cluster::ClusterEvent::Listed(nodes), 0);
    assert!(directory.of(&thief).node_ips.is_empty());
    let refused = directory.objections();
    assert_eq!((refused[0].0, refused[0].1), (Reason::Overlap, Some("n3")));
}

#[test]
fn what_the_file_gives_to_a_peer_no_node_has() {
    let two = worker(2);
    let mut directory = reader();
    let mut listed = machine(9).entry();
    listed.allowed_ips = vec![net("192.0.2.2/32")];
    directory.listed(vec![listed]);
    directory.list(&[&worker(1), &two]);
    assert!(directory.of(&two).node_ips.is_empty());
    let refused = directory.objections();
    assert_eq!((refused[0].0, refused[0].1), (Reason::Overlap, Some("n2")));
    assert!(directory.of(&two).pod_cidrs.contains(&net("10.244.2.0/24")));
}

#[test]
fn an_external_peer_has_the_ranges_that_neither_the_file_nor_a_node_has() {
    let laptop = ConfigPeer {
        name: Some("laptop".into()),
        allowed_ips: [
            "10.9.0.50/32",
            "10.244.2.9/32",
            "10.96.0.1/32",
            "10.244.1.0/24",
            "0.0.0.0/0",
            "10.9.0.9/32",
        ]
        .map(net)
        .to_vec(),
        ..machine(50).entry()
    };
    let second = ConfigPeer {
        name: Some("second".into()),
        allowed_ips: vec![net("10.9.0.50/32"), net("10.9.0.51/32")],
        ..machine(51).entry()
    };
    let mut directory = reader();
    directory.listed(vec![machine(9).entry()]);
    directory.protect(&["10.96.0.0/12"]);
    directory.externals(vec![laptop, second]);
    directory.list(&[&worker(1), &worker(2)]);
    let peer = |directory: &peer_discovery::Directory, key| {
        let id = *directory.by_key(&key).expect("a peer");
        directory.peer(&id).expect("a peer").clone()
    };
    let laptop = peer(&directory, wg(50));
    assert_eq!(laptop.name, "laptop");
    assert_eq!(
        laptop.source,
        mesh_types::Source::Kubernetes { domain: CLUSTER }
    );
    assert_eq!(laptop.allowed_ips, [net("10.9.0.50/32")].into());
    assert_eq!(
        peer(&directory, wg(51)).allowed_ips,
        [net("10.9.0.51/32")].into()
    );
    let sentences: Vec<&str> = directory.objections().iter().map(|o| o.2).collect();
    assert_eq!(sentences.len(), 6, "{sentences:?}");
    assert!(sentences.contains(&"10.244.2.9/32 of ExternalPeer laptop overlaps a range of Node n2, which keeps it; change one of the two"));
    assert_eq!(directory.carried(&worker(2)).len(), 5);
    directory.externals(Vec::new());
    assert_eq!(directory.by_key(&wg(50)), None);
    assert!(directory.by_key(&wg(9)).is_some());
}

#[test]
fn an_external_peer_with_a_key_that_is_taken_is_refused() {
    let mut directory = reader();
    directory.listed(vec![machine(9).entry()]);
    directory.list(&[&worker(1), &worker(2)]);
    directory.externals(vec![
        machine(9).entry(),
        machine(1).entry(),
        machine(50).entry(),
    ]);
    let named: Vec<(Reason, &str)> = directory.objections().iter().map(|o| (o.0, o.2)).collect();
    assert_eq!(named.len(), 2, "{named:?}");
    assert_eq!(
        (named[0].0, named[1].0),
        (Reason::DuplicateKey, Reason::OwnKey)
    );
    let source = |key| directory.peer(directory.by_key(&key)?).map(|p| p.source);
    assert_eq!(source(wg(9)), Some(mesh_types::Source::Config));
}

#[test]
fn a_pinned_external_peer_is_known_by_its_identity_after_a_restart() {
    let laptop = machine(50).without_authority();
    let mut before = reader();
    before.listed(Vec::new());
    before.externals(vec![laptop.entry()]);
    before.spoken(laptop.announcement(5), laptop.key);
    assert!(before.peer(&laptop.id()).is_some());
    let pins: Vec<_> = before.pins().collect();
    assert_eq!(pins.len(), 1);

    let mut after = super::world::stranger_in(PodNetwork::Existing);
    after.restore_cluster(before.saved(), crate::common::at(0));
    for pin in pins {
        let fact = mesh_types::observation::Fact::Pinned(pin);
        let pinned = crate::common::observed(mesh_types::Source::Disk, fact);
        after.handle_observation(pinned, crate::common::at(0));
    }
    after.listed(Vec::new());
    assert!(after.peer(&laptop.id()).is_some());
}

#[test]
fn a_node_with_thousands_of_extra_ranges_is_cut_short() {
    let many: Vec<String> = (0..5_000)
        .map(|n| format!("172.{}.{}.0/24", 16 + n / 256 % 16, n % 256))
        .collect();
    let two = worker(2).wishing("extra-cidrs", &many.join(","));
    let mut directory = reader();
    directory.allow(Policy {
        extra_cidrs: [("n2".to_owned(), vec![net("172.16.0.0/12")])].into(),
        ..Policy::default()
    });
    directory.list(&[&worker(1), &two]);
    assert_eq!(directory.carried(&two).len(), 5 + 256);
    assert_eq!(
        directory.objections(),
        [(
            Reason::Malformed,
            Some("n2"),
            "annotation config.farspan.io/extra-cidrs of Node n2 names 5000 ranges; the first 256 count"
        )]
    );
}
