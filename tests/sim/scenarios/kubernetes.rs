//! A mesh that knows itself from annotations of Node objects, on an API server that lags, breaks and goes away.

use std::time::Duration;

use mesh_types::annotations::RECORD_MAX;
use mesh_types::command::Command;
use mesh_types::report::Backend;
use mesh_types::{WgKey, WgSecret};
use overlay::Event;
use sim_net::{Allocator, Filtering, NatSpec};

use crate::world::{Access, NodeId, Place, Seat, World};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const EASY: NatSpec = NatSpec::cone(Filtering::EndpointIndependent);
const STRICT: NatSpec = NatSpec::cone(Filtering::AddressAndPortDependent);

/// Nodes behind translators of their own, but for the first, which is public.
pub(super) struct Cluster {
    pub(super) world: World,
    pub(super) ids: Vec<NodeId>,
    pub(super) places: Vec<Place>,
}

impl Cluster {
    pub(super) fn of(seed: u64, count: usize) -> Self {
        let mut world = World::new(seed);
        let (mut ids, mut places) = (Vec::new(), Vec::new());
        for index in 0..count {
            let access = match index {
                0 => Access::Public,
                odd if odd % 2 == 1 => Access::Nat(STRICT),
                _ => Access::Nat(EASY),
            };
            let place = world.place(access, false);
            let name = format!("node-{index}");
            ids.push(world.cluster_node(&name, place, Seat::V4));
            places.push(place);
        }
        Self { world, ids, places }
    }

    /// All of them run and are connected.
    pub(super) fn connected(seed: u64, count: usize) -> Self {
        let mut cluster = Self::of(seed, count);
        cluster.world.boot_all();
        cluster.all_meet(30 * SECOND);
        cluster
    }

    pub(super) fn all_meet(&mut self, most: Duration) {
        for (index, a) in self.ids.iter().enumerate() {
            for b in &self.ids[..index] {
                let met = self.world.meet(*a, *b, most);
                assert!(met.is_some(), "{a:?} {b:?}\n{}", self.world.describe());
            }
        }
    }

    fn name(&self, index: usize) -> String {
        self.world.nodes[self.ids[index].0].name.clone()
    }

    /// WireGuard keys of a node's peers.
    fn keys(&self, index: usize) -> Vec<WgKey> {
        let overlay = self.world.nodes[self.ids[index].0].overlay.as_ref();
        let plan = overlay.expect("it runs").host_plan();
        plan.tunnel.peers.keys().copied().collect()
    }

    fn restart(&mut self, index: usize) {
        self.world.kill(self.ids[index]);
        self.world.seconds(1);
        self.world.boot(self.ids[index]);
    }
}

#[test]
fn a_mesh_comes_up_from_annotations_alone() {
    for count in [3, 8, 20] {
        let mut cluster = Cluster::connected(count as u64, count);
        cluster.world.seconds(120);
        let api = cluster.world.api();
        assert!(api.writes.len() <= 2 * count, "{} writes", api.writes.len());
        for node in api.objects() {
            let size = |(key, value): (&String, &String)| key.len() + value.len();
            let record: usize = node.annotations.iter().map(size).sum();
            assert!((100..=RECORD_MAX).contains(&record), "{record} bytes");
        }
    }
}

#[test]
fn a_mesh_comes_up_though_watches_lag_by_five_seconds_and_often_break() {
    let mut cluster = Cluster::of(1, 6);
    cluster.world.api().lag = 5 * SECOND;
    cluster.world.api().breaks = 200_000;
    cluster.world.boot_all();
    cluster.all_meet(60 * SECOND);
    cluster.world.seconds(300);
    let writes = cluster.world.api().writes.len();
    assert!(writes <= 12, "{writes} writes");
}

#[test]
fn nodes_that_restart_while_the_api_server_is_away_mesh_up_from_disk() {
    let mut cluster = Cluster::connected(2, 4);
    cluster.world.seconds(60);
    cluster.world.api().go_down();
    cluster.world.seconds(10);
    for index in 0..4 {
        cluster.world.power_off(cluster.ids[index]);
    }
    cluster.world.seconds(30);
    cluster.world.boot_all();
    cluster.all_meet(20 * SECOND);
    cluster.world.seconds(3_600);
    cluster.all_meet(SECOND);
    let now = cluster.world.net.now();
    cluster.world.api().come_up(now);
    cluster.world.seconds(600);
    cluster.all_meet(SECOND);
    let writes = cluster.world.api().writes_since(now).len();
    assert_eq!(
        writes,
        0,
        "nothing has changed\n{}",
        cluster.world.describe()
    );
}

#[test]
fn a_day_at_rest_writes_nothing() {
    let mut cluster = Cluster::of(3, 3);
    // Behind a translator whose ports say something else to everybody.
    let hard = Access::Nat(NatSpec::symmetric(Allocator::Random));
    let place = cluster.world.place(hard, false);
    let odd = cluster.world.cluster_node("odd", place, Seat::V4);
    cluster.world.boot_all();
    cluster.all_meet(30 * SECOND);
    cluster
        .world
        .meet(odd, cluster.ids[0], 30 * SECOND)
        .expect("they meet");
    cluster.world.run(10 * MINUTE);
    let since = cluster.world.net.now();
    for hour in 0..24 {
        cluster.world.run(HOUR);
        // Kubelets renew what the mesh does not read, and connections to the server end.
        cluster.world.api().touch_all();
        if hour % 4 == 0 {
            let now = cluster.world.net.now();
            cluster.world.api().break_watches(now);
        }
    }
    let late = cluster.world.api().writes_since(since);
    assert!(late.is_empty(), "{late:?}");
    cluster.all_meet(2 * SECOND);
}

#[test]
fn another_external_address_is_written_once_after_ten_seconds() {
    let mut cluster = Cluster::connected(4, 3);
    cluster.world.seconds(120);
    let router = cluster.places[2].sites[0].expect("a router").router;
    let since = cluster.world.net.now();
    cluster.world.net.readdress_router(router);
    cluster.world.seconds(600);
    let writes = cluster.world.api().writes_since(since);
    let [write] = &writes[..] else {
        panic!("{writes:?}\n{}", cluster.world.describe());
    };
    let after = write.at - since;
    assert!(after >= 10 * SECOND && after < 60 * SECOND, "{after:?}");
    assert_eq!(write.node, cluster.ids[2]);
}

#[test]
fn a_translator_that_changes_its_address_all_the_time_costs_a_write_a_minute_at_most() {
    let mut cluster = Cluster::connected(5, 3);
    cluster.world.seconds(120);
    let router = cluster.places[2].sites[0].expect("a router").router;
    let since = cluster.world.net.now();
    for _ in 0..60 {
        cluster.world.net.readdress_router(router);
        cluster.world.seconds(30);
    }
    let writes = cluster.world.api().writes_since(since).len();
    assert!(writes <= 33, "{writes} writes in 30 minutes");
    cluster.all_meet(20 * SECOND);
}

#[test]
fn a_stale_cache_without_most_of_the_nodes_takes_no_peer_away() {
    let mut cluster = Cluster::connected(6, 8);
    cluster.world.seconds(60);
    let some = cluster.world.api().objects().take(2).cloned().collect();
    cluster.world.api().stale = Some(some);
    let now = cluster.world.net.now();
    cluster.world.api().break_watches(now);
    cluster.world.seconds(20);
    cluster.world.api().stale = None;
    for second in 0..120 {
        cluster.world.seconds(1);
        for index in 0..8 {
            assert_eq!(cluster.keys(index).len(), 7, "after {second} s");
        }
    }
    cluster.all_meet(SECOND);

    // What a listing says again and again is so.
    for index in 3..8 {
        let name = cluster.name(index);
        cluster.world.api().delete(&name);
    }
    cluster.world.seconds(120);
    for index in 0..3 {
        assert_eq!(cluster.keys(index).len(), 2);
    }
}

#[test]
fn a_rolling_restart_cuts_nobody_off_and_writes_nothing() {
    let mut cluster = Cluster::of(7, 4);
    for id in &cluster.ids {
        cluster.world.nodes[id.0].config.backend = Backend::Kernel;
    }
    cluster.world.boot_all();
    cluster.all_meet(30 * SECOND);
    cluster.world.seconds(60);
    let since = cluster.world.net.now();
    let every = Duration::from_millis(100);
    let flow = cluster.world.flow(cluster.ids[1], cluster.ids[2], every);
    for index in 0..4 {
        cluster.restart(index);
        cluster.world.seconds(20);
    }
    cluster.world.seconds(60);
    let gap = cluster.world.flows[flow.0].longest_gap(since);
    assert!(gap < 2 * SECOND, "{gap:?}");
    cluster.all_meet(SECOND);
    let writes = cluster.world.api().writes_since(since).len();
    assert_eq!(writes, 0, "{}", cluster.world.describe());
}

#[test]
fn a_mass_restart_with_unchanged_facts_writes_nothing() {
    let mut cluster = Cluster::connected(12, 24);
    cluster.world.seconds(120);
    for id in &cluster.ids {
        cluster.world.power_off(*id);
    }
    cluster.world.seconds(1);
    let since = cluster.world.net.now();
    cluster.world.boot_all();
    cluster.all_meet(30 * SECOND);
    cluster.world.seconds(300);
    let writes = cluster.world.api().writes_since(since).into_iter();
    let changed: Vec<_> = writes.map(|write| (write.node, write.changed)).collect();
    assert!(changed.is_empty(), "{changed:#?}");
}

#[test]
fn two_protocol_versions_make_one_mesh_where_they_overlap() {
    let mut cluster = Cluster::of(8, 3);
    for (index, protocol) in [(0, (1, 2)), (1, (1, 1)), (2, (2, 2))] {
        cluster.world.nodes[cluster.ids[index].0].config.protocol = protocol;
    }
    cluster.world.boot_all();
    let [both, old, new] = cluster.ids[..] else {
        panic!("three nodes");
    };
    for other in [old, new] {
        let met = cluster.world.meet(both, other, 30 * SECOND);
        assert!(met.is_some(), "{}", cluster.world.describe());
    }
    cluster.world.seconds(30);
    for (id, code) in [(both, None), (old, Some("node-2")), (new, Some("node-1"))] {
        let findings = cluster.world.snapshot(id).findings.into_iter();
        let protocol = findings.filter(|finding| finding.code == "protocol");
        let said: Vec<String> = protocol.map(|finding| finding.message).collect();
        match code {
            None => assert!(said.is_empty(), "{said:?}"),
            Some(name) => assert!(said.len() == 1 && said[0].contains(name), "{said:?}"),
        }
    }
}

#[test]
fn versions_roll_through_a_mesh_and_all_pairs_stay_connected() {
    let mut cluster = Cluster::of(12, 4);
    for id in &cluster.ids {
        cluster.world.nodes[id.0].config.protocol = (1, 1);
    }
    cluster.world.boot_all();
    cluster.all_meet(30 * SECOND);
    // One release speaks both, the next has left the older behind.
    for protocol in [(1, 2), (2, 2)] {
        for index in 0..4 {
            cluster.world.nodes[cluster.ids[index].0].config.protocol = protocol;
            cluster.restart(index);
            cluster.all_meet(20 * SECOND);
        }
        cluster.world.seconds(30);
        for id in &cluster.ids {
            let findings = cluster.world.snapshot(*id).findings;
            let told = findings.iter().find(|finding| finding.code == "protocol");
            assert_eq!(told, None, "{protocol:?}");
        }
    }
}

#[test]
fn a_key_that_changed_while_a_peer_was_off_is_learned_from_the_annotation_alone() {
    let mut cluster = Cluster::connected(9, 3);
    cluster.world.seconds(60);
    let (rotating, away) = (cluster.ids[1], cluster.ids[2]);
    let old = cluster.world.nodes[rotating.0].disk.key.public();
    cluster.world.power_off(away);
    let since = cluster.world.net.now();
    let clock = cluster.world.clock(rotating);
    let rotate = Command::Rotate {
        next: WgSecret::from_bytes([99; 32]),
        force: false,
    };
    cluster.world.nodes[rotating.0].command(rotate, clock);
    cluster.world.pump(rotating);
    cluster.world.seconds(30);
    let fresh = cluster.world.nodes[rotating.0].disk.key.public();
    assert_ne!(old, fresh);
    let (writes, name) = (
        cluster.world.api().writes_since(since).len(),
        cluster.name(1),
    );
    assert!((1..=2).contains(&writes), "{writes} writes");
    let shown = cluster.world.api().object(&name).annotations["farspan.io/public-key"].clone();
    assert_eq!(shown, fresh.to_string());

    // Nobody is there to gossip.
    cluster.world.power_off(cluster.ids[0]);
    cluster.world.boot(away);
    let met = cluster.world.meet(rotating, away, 30 * SECOND);
    assert!(met.is_some(), "{}", cluster.world.describe());
    cluster.world.seconds(10);
    let keys = cluster.keys(2);
    assert!(keys.contains(&fresh) && !keys.contains(&old));
}

#[test]
fn a_node_that_was_deleted_and_made_anew_is_back_under_its_new_uid() {
    let mut cluster = Cluster::connected(10, 4);
    cluster.world.seconds(60);
    let name = cluster.name(2);
    let mut node = cluster.world.api().object(&name).clone();
    cluster.world.api().delete(&name);
    cluster.world.seconds(10);
    assert_eq!(cluster.keys(1).len(), 2, "a deleted Node is no peer");
    let since = cluster.world.net.now();
    node.uid = cluster.world.api().uid();
    node.created = 1_000;
    node.annotations.clear();
    cluster.world.api().apply(node);
    cluster.all_meet(30 * SECOND);
    let writes = cluster.world.api().writes_since(since);
    assert!(
        writes.len() == 1 && writes[0].node == cluster.ids[2],
        "{writes:?}"
    );
}

#[test]
fn annotations_copied_to_another_node_are_refused_and_told_once() {
    let mut cluster = Cluster::connected(11, 3);
    cluster.world.seconds(60);
    let victim = cluster.name(1);
    let mut thief = cluster.world.api().object(&victim).clone();
    thief.name = "thief".to_owned();
    thief.uid = cluster.world.api().uid();
    thief.pod_cidrs.clear();
    thief.internal_ips.clear();
    cluster.world.api().apply(thief);
    cluster.world.seconds(300);
    cluster.all_meet(SECOND);
    for (index, id) in cluster.ids.iter().enumerate() {
        assert_eq!(cluster.keys(index).len(), 2);
        let events = cluster.world.nodes[id.0].events.iter();
        let refused = events.filter(
            |event| matches!(event, Event::Refused { node: Some(node), .. } if node == "thief"),
        );
        assert_eq!(refused.count(), 1);
    }
}
