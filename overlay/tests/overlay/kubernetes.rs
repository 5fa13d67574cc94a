//! A node of a cluster: what it plans, tells and writes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use mesh_types::address::overlay_ipv6;
use mesh_types::annotations;
use mesh_types::cluster::{Allowed, ClusterEvent, Node, PodNetwork, Policy, PolicyFilter};
use mesh_types::observation::ConfigPeer;
use mesh_types::plan::{Route, RouteKind};
use mesh_types::record::{Announcement, Features, Signed};
use mesh_types::report::HostAddress;
use mesh_types::state::LastEndpoint;
use mesh_types::{
    Applied, Candidate, CandidateKind, DomainId, HostPlan, HostReport, IpNet, NatReport, NodeKey,
    Now, State,
};
use overlay::{CniPlan, Config, Event, Kubernetes, Overlay};

use crate::net::{config, entry, identity, net};

const DOMAIN: DomainId = DomainId(*b"kube-system-uid1");

/// Node number `n`: pods in 10.244.n.0/24, at 203.0.113.n.
fn node(n: u8) -> Node {
    let mut node = Node {
        name: format!("node-{n}"),
        uid: format!("uid-{n}"),
        created: 100 + u64::from(n),
        pod_cidrs: vec![
            net(&format!("10.244.{n}.0/24")),
            net(&format!("fd00:{n}::/64")),
        ],
        internal_ips: vec![IpAddr::from([203, 0, 113, n])],
        region: Some("east".to_owned()),
        annotations: BTreeMap::new(),
    };
    announce(&mut node, n, 1);
    node
}

/// The agent of machine `n` announces itself on a Node.
fn announce(node: &mut Node, n: u8, seq: u64) {
    let identity = identity(n);
    let announcement = Announcement {
        domain: DOMAIN,
        identity: identity.node.identity(),
        key: identity.key.public(),
        next_key: None,
        endpoints: vec![Candidate {
            kind: CandidateKind::Host,
            address: ([203, 0, 113, n], 22_000).into(),
        }],
        nat: NatReport::default(),
        relays: Vec::new(),
        region: None,
        features: Features::default(),
        protocol_min: 1,
        protocol_max: 1,
        seq,
        name: Some(node.name.clone()),
        node_uid: Some(node.uid.clone()),
    };
    let signed = Signed::sign(annotations::fit(announcement), &identity.node);
    let written = annotations::encode(&signed).into_iter();
    node.annotations = written
        .map(|(key, value)| (key.to_owned(), value))
        .collect();
}

/// Machine 1.
struct Machine {
    overlay: Overlay,
    now: Now,
    events: Vec<Event>,
    disk: State,
}

impl Machine {
    fn new(mode: PodNetwork, change: impl FnOnce(&mut Config, &mut HostReport)) -> Self {
        Self::with(mode, State::default(), change)
    }

    fn with(
        mode: PodNetwork,
        state: State,
        change: impl FnOnce(&mut Config, &mut HostReport),
    ) -> Self {
        #[expect(
            clippy::disallowed_methods,
            reason = "virtual time may start at any instant, and only this makes one"
        )]
        let mono = Instant::now();
        let now = Now {
            mono,
            unix: Duration::from_secs(1_800_000_000),
        };
        let mut config = Config {
            kubernetes: Some(Kubernetes {
                node: "node-1".to_owned(),
                pod_network: mode,
                cluster_cidrs: vec![net("10.244.0.0/16")],
                external: false,
            }),
            ..config(1)
        };
        let mut host = HostReport {
            addresses: vec![HostAddress {
                interface: "eth0".to_owned(),
                ip: IpAddr::from([203, 0, 113, 1]),
                prefix_len: 32,
                stable: true,
            }],
            default_route_v4: true,
            forwarding_v4: true,
            forwarding_v6: true,
            clock_synchronised: true,
            ..HostReport::default()
        };
        change(&mut config, &mut host);
        let mut overlay = Overlay::new(identity(1), config, state, [1; 32], now);
        overlay.handle_host(host, now);
        let mut machine = Self {
            overlay,
            now,
            events: Vec::new(),
            disk: State::default(),
        };
        machine.run(Duration::ZERO);
        machine
    }

    /// Machine 1 in a cluster with node 2 and node 3, which is in another region.
    fn in_cluster(mode: PodNetwork, change: impl FnOnce(&mut Config, &mut HostReport)) -> Self {
        let mut machine = Self::new(mode, change);
        let far = Node {
            region: Some("west".to_owned()),
            ..node(3)
        };
        machine.say(ClusterEvent::Domain(DOMAIN));
        machine.say(ClusterEvent::Listed(vec![own(), node(2), far]));
        machine.run(Duration::from_secs(3));
        machine
    }

    fn say(&mut self, event: ClusterEvent) {
        self.overlay.handle_cluster(event, self.now);
        self.run(Duration::from_millis(100));
    }

    fn run(&mut self, time: Duration) {
        let end = self.now.mono + time;
        loop {
            while let Some(event) = self.overlay.poll_event() {
                if let Event::Persist = event {
                    self.disk = self.overlay.state();
                }
                self.events.push(event);
            }
            while self.overlay.poll_transmit().is_some() {}
            let plan = self.overlay.host_plan();
            let applied = Applied {
                generation: plan.generation,
                failures: Vec::new(),
                sockets: plan.sockets.clone(),
            };
            self.overlay.handle_applied(applied, self.now);
            let Some((at, _)) = self.overlay.poll_timeout().filter(|(at, _)| *at <= end) else {
                break;
            };
            let passed = at.saturating_duration_since(self.now.mono);
            self.pass(passed);
            self.overlay.handle_timeout(self.now);
        }
        self.pass(end.saturating_duration_since(self.now.mono));
    }

    fn pass(&mut self, time: Duration) {
        self.now.mono += time;
        self.now.unix += time;
    }

    fn plan(&self) -> &HostPlan {
        self.overlay.host_plan()
    }

    fn kind(&self, prefix: &str) -> Vec<RouteKind> {
        let prefix = net(prefix);
        let routes = self.plan().routes.iter();
        routes
            .filter(|route| route.prefix == prefix)
            .map(|route: &Route| route.kind)
            .collect()
    }

    /// Does the prefix lead into the tunnel, with its twin?
    fn is_routed(&self, prefix: &str) -> bool {
        let kinds = self.kind(prefix);
        let unicast = |kind: &RouteKind| matches!(kind, RouteKind::Unicast { .. });
        kinds.iter().any(unicast) && kinds.contains(&RouteKind::Blackhole)
    }

    fn findings(&self) -> BTreeSet<String> {
        let findings = self.overlay.snapshot(self.now).findings.into_iter();
        findings.map(|finding| finding.code).collect()
    }

    /// Sequence numbers of what was to be written, and their answers.
    fn writes(&mut self) -> Vec<u64> {
        let events = std::mem::take(&mut self.events).into_iter();
        events
            .filter_map(|event| {
                let Event::Publish(publication) = event else {
                    return None;
                };
                Some(publication.seq)
            })
            .collect()
    }
}

/// The Node of machine 1, as its kubelet made it.
fn own() -> Node {
    Node {
        annotations: BTreeMap::new(),
        ..node(1)
    }
}

#[test]
fn pods_and_nodes_of_others_are_routed_and_the_own_pods_are_thrown_back() {
    let machine = Machine::in_cluster(PodNetwork::Own, |_, _| {});
    for routed in [
        "10.244.2.0/24",
        "fd00:3::/64",
        "203.0.113.2/32",
        "203.0.113.3/32",
    ] {
        assert!(
            machine.is_routed(routed),
            "{routed}: {:?}",
            machine.plan().routes
        );
    }
    assert_eq!(machine.kind("10.244.1.0/24"), [RouteKind::Throw]);
    assert_eq!(machine.kind("fd00:1::/64"), [RouteKind::Throw]);
    assert_eq!(machine.kind("10.244.0.0/16"), [RouteKind::Blackhole]);
    let own = IpAddr::from([10, 244, 1, 0]);
    let key = NodeKey {
        domain: DOMAIN,
        identity: identity(1).node.identity(),
    };
    let addresses = [own, IpAddr::V6(overlay_ipv6(&key))].map(IpNet::from);
    assert_eq!(machine.plan().device.addresses, addresses.into());
    let source = |kind: &RouteKind| match kind {
        RouteKind::Unicast { source, .. } => *source,
        RouteKind::Blackhole | RouteKind::Throw => None,
    };
    let sources: Vec<_> = machine
        .kind("10.244.2.0/24")
        .iter()
        .filter_map(source)
        .collect();
    assert_eq!(sources, [own]);
    assert!(
        machine.plan().mark_input,
        "peers are met where the tunnel leads"
    );
    let kept = &machine.plan().keep_source;
    for inside in [
        "10.244.1.7/32",
        "10.244.2.7/32",
        "203.0.113.2/32",
        "fd00:2::7/128",
    ] {
        assert!(
            kept.iter().any(|range| range.contains(&net(inside))),
            "{inside}: {kept:?}"
        );
    }
}

#[test]
fn a_cni_file_is_wanted_in_own_mode_once_there_are_pod_ranges() {
    let mut machine = Machine::new(PodNetwork::Own, |_, _| {});
    machine.say(ClusterEvent::Domain(DOMAIN));
    let bare = Node {
        pod_cidrs: Vec::new(),
        ..own()
    };
    machine.say(ClusterEvent::Listed(vec![bare]));
    assert_eq!(machine.overlay.cni(), None);
    assert!(machine.findings().contains("no-pod-cidr"));
    machine.say(ClusterEvent::Applied(Box::new(own())));
    let expected = CniPlan {
        pod_cidrs: own().pod_cidrs,
        mtu: 1420,
    };
    assert_eq!(machine.overlay.cni(), Some(expected));
    assert!(!machine.findings().contains("no-pod-cidr"));
    let other = Machine::in_cluster(PodNetwork::Existing, |_, _| {});
    assert_eq!(other.overlay.cni(), None);
}

#[test]
fn beside_another_cni_the_pods_of_the_own_region_are_left_to_it() {
    let machine = Machine::in_cluster(PodNetwork::Existing, |_, _| {});
    assert_eq!(machine.kind("10.244.2.0/24"), [RouteKind::Throw]);
    assert!(
        machine.kind("fd00:2::/64").is_empty(),
        "no aggregate hides it"
    );
    assert!(machine.is_routed("203.0.113.2/32"));
    assert!(machine.is_routed("10.244.3.0/24") && machine.is_routed("fd00:3::/64"));
}

#[test]
fn under_a_cni_no_pod_range_is_touched() {
    let machine = Machine::in_cluster(PodNetwork::Nodes, |_, host| host.addresses.clear());
    let pods = net("10.244.0.0/16");
    let mut routes = machine.plan().routes.iter();
    assert!(!routes.any(|route| pods.contains(&route.prefix)));
    assert!(machine.is_routed("203.0.113.2/32"));
    assert!(machine.plan().keep_source.is_empty());
    // The kubelet's address lives on the device, unless another one has it.
    let address = net("203.0.113.1/32");
    assert!(machine.plan().device.addresses.contains(&address));
    let machine = Machine::in_cluster(PodNetwork::Nodes, |_, _| {});
    assert!(!machine.plan().device.addresses.contains(&address));
}

#[test]
fn protected_ranges_are_never_routed_and_spared_from_what_is_dropped_at_once() {
    let mut machine = Machine::in_cluster(PodNetwork::Own, |config, _| {
        if let Some(kubernetes) = &mut config.kubernetes {
            kubernetes.cluster_cidrs = vec![net("10.0.0.0/8")];
        }
    });
    assert!(machine.is_routed("203.0.113.2/32"));
    let services = net("10.96.0.0/12");
    let protected = BTreeSet::from([net("203.0.113.2/32"), services, net("10.244.3.0/25")]);
    let event = ClusterEvent::Protected(protected);
    machine.overlay.handle_cluster(event, machine.now);
    // No time passes.
    assert!(machine.kind("203.0.113.2/32").is_empty());
    assert_eq!(machine.kind("10.96.0.0/12"), [RouteKind::Throw]);
    assert_eq!(machine.kind("10.244.3.0/25"), [RouteKind::Throw]);
    machine.run(Duration::from_secs(1));
    assert_eq!(machine.kind("10.96.0.0/12"), [RouteKind::Throw]);
    assert!(machine.is_routed("10.244.2.0/24"));
}

#[test]
fn the_way_to_the_api_server_may_be_a_peer_of_the_file() {
    let listed = ConfigPeer {
        allowed_ips: vec![net("10.77.0.5/32")],
        ..entry(5)
    };
    let mut machine = Machine::in_cluster(PodNetwork::Nodes, |config, _| {
        config.peers = vec![listed];
    });
    let protected = ["10.77.0.5/32", "203.0.113.2/32"].map(net);
    machine.say(ClusterEvent::Protected(protected.into()));
    assert!(machine.is_routed("10.77.0.5/32"));
    assert!(machine.kind("203.0.113.2/32").is_empty());
}

#[test]
fn neighbours_of_a_node_are_no_foreign_routes_and_stale_copies_no_findings() {
    let own_lan = (net("203.0.113.0/24"), "eth0".to_owned());
    let foreign = (net("10.244.3.0/24"), "eth1".to_owned());
    for (routes, told) in [
        (vec![own_lan.clone()], false),
        (vec![own_lan, foreign], true),
    ] {
        let mut machine = Machine::in_cluster(PodNetwork::Existing, |_, host| {
            host.foreign_routes = routes;
        });
        assert!(machine.is_routed("203.0.113.2/32"));
        assert_eq!(machine.findings().contains("foreign-route"), told);
        let mut newer = node(2);
        announce(&mut newer, 2, 7);
        machine.say(ClusterEvent::Applied(Box::new(newer)));
        machine.say(ClusterEvent::Applied(Box::new(node(2))));
        let counted = machine.overlay.snapshot(machine.now).counters;
        assert_eq!(counted.get("stale"), Some(&1));
        let findings = machine.findings();
        assert!(!findings.contains("refused-stale"), "{findings:?}");
    }
}

#[test]
fn the_api_server_answers_by_the_way_it_was_asked_although_the_asker_is_routed() {
    let mut machine = Machine::in_cluster(PodNetwork::Own, |_, _| {});
    let from = |machine: &Machine| -> Vec<(IpAddr, u32)> {
        let rules = machine.plan().rules.iter();
        rules
            .filter_map(|rule| Some((rule.from?, rule.table)))
            .collect()
    };
    assert_eq!(from(&machine), []);
    // This is the API server's machine; the other address is not here.
    let protected = BTreeSet::from([net("203.0.113.1/32"), net("203.0.113.9/32")]);
    machine.say(ClusterEvent::Protected(protected));
    assert!(machine.is_routed("203.0.113.2/32"));
    assert_eq!(from(&machine), [(IpAddr::from([203, 0, 113, 1]), 254)]);
}

#[test]
fn networks_that_the_host_is_connected_to_are_spared_from_what_is_dropped() {
    let machine = Machine::in_cluster(PodNetwork::Own, |config, host| {
        if let Some(kubernetes) = &mut config.kubernetes {
            kubernetes.cluster_cidrs = vec![net("10.0.0.0/8")];
        }
        host.addresses.push(HostAddress {
            interface: "eth1".to_owned(),
            ip: IpAddr::from([10, 1, 2, 3]),
            prefix_len: 24,
            stable: true,
        });
    });
    assert_eq!(machine.kind("10.0.0.0/8"), [RouteKind::Blackhole]);
    assert_eq!(machine.kind("10.1.2.0/24"), [RouteKind::Throw]);
}

#[test]
fn an_address_that_a_neighbour_of_this_host_may_have_is_left_to_it() {
    let machine = Machine::in_cluster(PodNetwork::Own, |_, host| {
        // 203.0.113.2 is in this network, and so is whoever has it here.
        host.addresses[0].prefix_len = 24;
        host.addresses[0].ip = IpAddr::from([203, 0, 113, 200]);
    });
    assert!(machine.kind("203.0.113.2/32").is_empty());
    assert!(machine.is_routed("10.244.2.0/24"));
    assert!(machine.findings().contains("node-address-left-out"));
    let peers = machine.plan().tunnel.peers.values();
    let mut taken = peers.flat_map(|peer| &peer.allowed_ips);
    assert!(!taken.any(|range| range.contains(&net("203.0.113.2/32"))));
}

#[test]
fn a_peer_met_in_one_network_of_a_device_has_its_addresses_in_the_others() {
    let state = State {
        endpoints: vec![LastEndpoint {
            key: identity(2).key.public(),
            address: "[2001:db8::2]:22000".parse().expect("an address"),
        }],
        ..State::default()
    };
    let mut machine = Machine::with(PodNetwork::Own, state, |_, host| {
        host.addresses[0].prefix_len = 24;
        host.addresses[0].ip = IpAddr::from([203, 0, 113, 200]);
        host.addresses.push(HostAddress {
            interface: "eth0".to_owned(),
            ip: "2001:db8::200".parse().expect("an address"),
            prefix_len: 64,
            stable: true,
        });
    });
    machine.say(ClusterEvent::Domain(DOMAIN));
    machine.say(ClusterEvent::Listed(vec![own(), node(2), node(3)]));
    machine.run(Duration::from_secs(1));
    assert!(machine.is_routed("203.0.113.2/32"));
    assert!(!machine.is_routed("203.0.113.3/32"), "seen nowhere");
}

#[test]
fn strict_reverse_path_filters_keep_addresses_out_of_the_tunnel_where_peers_are_met() {
    let machine = Machine::in_cluster(PodNetwork::Own, |_, host| {
        host.strict_rp_filter = vec!["eth0".to_owned()];
    });
    assert!(machine.kind("203.0.113.2/32").is_empty());
    assert!(!machine.plan().mark_input);
    assert!(machine.findings().contains("node-address-left-out"));
    assert!(machine.is_routed("10.244.2.0/24"));
}

#[test]
fn the_policy_filters_peers_and_lets_agents_speak() {
    let mut machine = Machine::in_cluster(PodNetwork::Own, |_, _| {});
    assert!(machine.plan().filters.is_empty());
    let web = Allowed {
        destination: net("10.244.1.0/24"),
        ports: Some((443, 443)),
    };
    let policy = Policy {
        pod_cidrs: vec![net("10.244.0.0/15"), net("fd00::/16")],
        filters: vec![PolicyFilter {
            regions: BTreeSet::from(["west".to_owned()]),
            to: vec![web],
            ..PolicyFilter::default()
        }],
        ..Policy::default()
    };
    machine.say(ClusterEvent::Policy(Some(Box::new(policy))));
    let filters = &machine.plan().filters;
    let allowed = &filters[&net("10.244.3.0/24")];
    assert!(allowed.contains(&web));
    let agents = |to: &Allowed| to.ports == Some((22511, 22511));
    assert_eq!(allowed.iter().filter(|to| agents(to)).count(), 2);
    assert!(!filters.contains_key(&net("10.244.2.0/24")), "east is free");
    assert_eq!(machine.kind("10.244.0.0/15"), [RouteKind::Blackhole]);
    machine.say(ClusterEvent::Policy(None));
    assert!(machine.plan().filters.is_empty());
}

#[test]
fn the_mesh_is_planned_from_disk_before_the_api_server_is_asked() {
    let mut before = Machine::in_cluster(PodNetwork::Own, |_, _| {});
    let protected = BTreeSet::from([net("203.0.113.3/32")]);
    before.say(ClusterEvent::Protected(protected));
    before.run(Duration::from_secs(10));
    let bytes = before.disk.encode();
    let state = State::decode(&bytes).expect("it is read back");
    let after = Machine::with(PodNetwork::Own, state, |_, _| {});
    assert!(after.is_routed("10.244.2.0/24") && after.is_routed("203.0.113.2/32"));
    assert!(after.kind("203.0.113.3/32").is_empty());
    assert_eq!(after.plan().tunnel.peers.len(), 2);
    assert_eq!(after.plan().device, before.plan().device);
    let cluster = after
        .overlay
        .snapshot(after.now)
        .cluster
        .expect("a cluster");
    assert_eq!((cluster.domain, cluster.nodes), (Some(DOMAIN), 3));
}

#[test]
fn what_the_own_node_lacks_is_written_and_what_others_alter_is_written_again() {
    let mut machine = Machine::in_cluster(PodNetwork::Own, |_, _| {});
    let published = machine.events.iter().find_map(|event| {
        let Event::Publish(publication) = event else {
            return None;
        };
        Some(publication.clone())
    });
    let published = published.expect("the first write");
    assert_eq!(published.uid, "uid-1");
    let mut shown = own();
    let written = published.annotations.iter();
    shown.annotations = written
        .map(|(key, value)| ((*key).to_owned(), value.clone()))
        .collect();
    let read = annotations::decode(DOMAIN, &shown)
        .expect("valid")
        .expect("a record");
    assert_eq!(read.record().identity, identity(1).node.identity());
    assert_eq!(machine.writes(), [published.seq]);
    machine.say(ClusterEvent::Published(Ok(published.seq)));
    machine.say(ClusterEvent::Applied(Box::new(shown.clone())));
    machine.run(Duration::from_secs(24 * 3600));
    assert!(machine.writes().is_empty());
    let snapshot = machine.overlay.snapshot(machine.now);
    let cluster = snapshot.cluster.expect("a cluster");
    assert_eq!(
        (cluster.published_seq, cluster.pending_write),
        (Some(published.seq), false)
    );

    let endpoints = "farspan.io/endpoints".to_owned();
    shown
        .annotations
        .insert(endpoints, "198.51.100.1:1/host".to_owned());
    machine.say(ClusterEvent::Applied(Box::new(shown)));
    assert!(machine.findings().contains("node-contested"));
    machine.run(Duration::from_secs(20));
    let again = machine.writes();
    assert_eq!(again.len(), 1);
    let refusal = "403: the admission policy denied it".to_owned();
    machine.say(ClusterEvent::Published(Err(refusal)));
    assert!(machine.findings().contains("publish-failed"));
    machine.run(Duration::from_secs(3));
    assert_eq!(machine.writes().len(), 1, "it is tried again");
}

#[test]
fn a_machine_that_only_reads_the_cluster_writes_nothing() {
    let mut machine = Machine::in_cluster(PodNetwork::Existing, |config, _| {
        if let Some(kubernetes) = &mut config.kubernetes {
            kubernetes.external = true;
            kubernetes.node = "laptop".to_owned();
        }
        config.addresses = vec![net("10.77.0.9/32")];
        config.region = Some("east".to_owned());
    });
    machine.run(Duration::from_secs(600));
    assert!(machine.writes().is_empty());
    for pods in ["10.244.2.0/24", "10.244.3.0/24"] {
        assert!(
            machine.is_routed(pods),
            "near or far, it has no CNI: {pods}"
        );
    }
    assert!(!machine.findings().contains("no-node"));
}

#[test]
fn a_refused_claim_is_told_once_and_again_when_it_comes_back() {
    let mut machine = Machine::in_cluster(PodNetwork::Own, |_, _| {});
    let told = |machine: &mut Machine| {
        let events = std::mem::take(&mut machine.events).into_iter();
        events
            .filter(|event| {
                matches!(event, Event::Refused { node: Some(node), .. } if node == "node-4")
            })
            .count()
    };
    let mut greedy = node(4);
    greedy.pod_cidrs = vec![net("10.244.2.128/25")];
    machine.say(ClusterEvent::Applied(Box::new(greedy.clone())));
    machine.run(Duration::from_secs(60));
    assert_eq!(told(&mut machine), 1);
    announce(&mut greedy, 4, 2);
    machine.say(ClusterEvent::Applied(Box::new(greedy.clone())));
    assert_eq!(told(&mut machine), 0);
    machine.say(ClusterEvent::Applied(Box::new(node(4))));
    machine.say(ClusterEvent::Applied(Box::new(greedy)));
    assert_eq!(told(&mut machine), 1);
    let cluster = machine
        .overlay
        .snapshot(machine.now)
        .cluster
        .expect("a cluster");
    assert_eq!(cluster.refused.get("overlap"), Some(&2));
}
