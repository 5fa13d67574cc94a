//! Nodes are not lost because an API server lost them.

use mesh_types::DomainId;
use mesh_types::cluster::{ClusterEvent, Policy};
use peer_discovery::{Directory, Event, Reason};

use crate::common::net;

use super::world::{Hear as _, Worker, reader, worker};

const OTHER: DomainId = DomainId([0xd2; 16]);

/// A directory with ten Nodes.
fn ten() -> (Directory, Vec<Worker>) {
    let workers: Vec<Worker> = (1..=10).map(worker).collect();
    let mut directory = reader();
    directory.list(&workers.iter().collect::<Vec<_>>());
    assert_eq!(directory.peers().count(), 9);
    directory.drained();
    (directory, workers)
}

fn list(directory: &mut Directory, workers: &[Worker], second: u64) -> usize {
    directory.list_at(&workers.iter().collect::<Vec<_>>(), second);
    directory.peers().count()
}

#[test]
fn a_listing_without_half_of_the_nodes_counts_at_once_and_with_less_only_when_it_comes_again() {
    let (mut directory, workers) = ten();
    assert_eq!(list(&mut directory, &workers[..5], 100), 4, "half");
    let (mut directory, workers) = ten();
    assert_eq!(list(&mut directory, &workers[..4], 100), 9, "doubted");
    assert_eq!(list(&mut directory, &workers[..4], 129), 9, "too early");
    assert_eq!(list(&mut directory, &workers[..4], 130), 3, "confirmed");
    assert_eq!(directory.objections(), []);
}

#[test]
fn a_doubted_listing_is_a_finding_and_another_is_asked_for_ever_more_rarely() {
    let (mut directory, workers) = ten();
    list(&mut directory, &workers[..1], 100);
    assert_eq!(
        directory.objections(),
        [(
            Reason::Doubted,
            None,
            "the API server lists 1 Nodes, and 9 that were there are missing; they stay until it says so again after 30 s"
        )]
    );
    let mut asked = Vec::new();
    for second in 101..1_000 {
        directory.wait(second);
        if directory.drained().contains(&Event::ListAgain) {
            asked.push(second - 100);
        }
    }
    assert_eq!(asked, [30, 60, 120, 240, 480, 780]);
    assert_eq!(directory.peers().count(), 9);
    assert_eq!(list(&mut directory, &workers, 1_000), 9, "they are back");
    assert_eq!(directory.objections(), []);
    let due = directory.poll_timeout();
    assert_eq!(due, None, "nothing to ask for");
}

#[test]
fn another_listing_does_not_confirm_the_first() {
    let (mut directory, workers) = ten();
    list(&mut directory, &workers[..4], 100);
    assert_eq!(list(&mut directory, &workers[..3], 140), 9);
    assert_eq!(list(&mut directory, &workers[..4], 160), 9);
    assert_eq!(list(&mut directory, &workers[..4], 190), 3);
}

#[test]
fn two_nodes_of_three_may_go_at_once() {
    let workers: Vec<Worker> = (1..=3).map(worker).collect();
    let mut directory = reader();
    list(&mut directory, &workers, 0);
    assert_eq!(list(&mut directory, &workers[..1], 1), 0);
}

#[test]
fn nodes_that_were_all_made_anew_are_a_mass_deletion_too() {
    let (mut directory, workers) = ten();
    let anew: Vec<Worker> = workers
        .iter()
        .map(|worker| {
            let uid = format!("{}b", worker.object.uid);
            worker.clone().with(|anew| anew.object.uid = uid)
        })
        .map(|worker| worker.with(|anew| anew.seq += 1))
        .collect();
    list(&mut directory, &anew, 100);
    let uids = |directory: &Directory| {
        let new = directory.cluster_nodes().filter(|n| n.uid.ends_with('b'));
        new.count()
    };
    assert_eq!(uids(&directory), 0);
    list(&mut directory, &anew, 130);
    assert_eq!(uids(&directory), 10);
    assert_eq!(directory.peers().count(), 9);
}

#[test]
fn what_a_doubted_listing_adds_counts_and_single_deletions_do() {
    let (mut directory, workers) = ten();
    let added = worker(20);
    let few = [workers[0].clone(), added.clone()];
    list(&mut directory, &few, 100);
    assert!(directory.has(&added));
    directory.delete(&workers[1]);
    assert!(!directory.has(&workers[1]));
    assert_eq!(directory.peers().count(), 9);
}

#[test]
fn another_cluster_is_not_believed_before_it_has_said_so_twice() {
    let (mut directory, workers) = ten();
    let there: Vec<Worker> = vec![worker(1), worker(30)];
    directory.hear(ClusterEvent::Domain(OTHER), 100);
    directory.apply(&worker(31));
    assert!(!directory.has(&worker(31)), "an event of another cluster");
    directory.delete(&workers[3]);
    assert!(directory.has(&workers[3]), "an event of another cluster");
    assert_eq!(directory.peers().count(), 9);
    assert_eq!(list(&mut directory, &there, 101), 9);
    assert_ne!(directory.cluster_domain(), Some(OTHER));
    list(&mut directory, &there, 131);
    assert_eq!(directory.cluster_domain(), Some(OTHER));
    assert_eq!(directory.cluster_nodes().count(), 2);
    assert_eq!(
        directory.peers().count(),
        0,
        "their records are of the first"
    );
}

#[test]
fn a_policy_counts_with_the_nodes_that_it_came_with() {
    let strict = Policy {
        pod_cidrs: vec![net("10.99.0.0/16")],
        ..Policy::default()
    };
    let told = || ClusterEvent::Policy(Some(Box::new(strict.clone())));
    // Another cluster's, whether its name or its listing was heard first.
    for named in [true, false] {
        let (mut directory, workers) = ten();
        if named {
            directory.hear(ClusterEvent::Domain(OTHER), 100);
        } else {
            list(&mut directory, &workers[..1], 100);
        }
        directory.hear(told(), 101);
        assert_eq!(directory.policy(), None);
        assert_eq!(directory.objections().len(), usize::from(!named));
        if named {
            list(&mut directory, &[worker(30)], 102);
            list(&mut directory, &[worker(30)], 132);
        } else {
            list(&mut directory, &workers[..1], 130);
        }
        assert_eq!(directory.policy(), Some(&strict), "with its Nodes");
    }
    // The last word counts where they turn out to be there.
    let (mut directory, workers) = ten();
    list(&mut directory, &workers[..1], 100);
    directory.hear(told(), 101);
    directory.hear(ClusterEvent::Policy(None), 102);
    assert_eq!(list(&mut directory, &workers, 103), 9);
    assert_eq!(directory.policy(), None);
}

#[test]
fn a_cluster_that_comes_back_is_believed_at_once() {
    let (mut directory, workers) = ten();
    directory.hear(ClusterEvent::Domain(OTHER), 100);
    list(&mut directory, &[worker(30)], 101);
    directory.hear(ClusterEvent::Domain(super::world::CLUSTER), 110);
    assert_eq!(list(&mut directory, &workers, 111), 9);
    assert_eq!(directory.objections(), []);
}
