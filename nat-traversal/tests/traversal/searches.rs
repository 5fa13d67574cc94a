//! Searches for a peer's port: only where a third node has seen the peer and the peer has just called, and
//! never more than the budgets allow.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use mesh_types::message::{CallMe, Message};
use mesh_types::{Allocation, Candidate, CandidateKind, Filtering, Mapping, NatReport, SocketId};

use crate::net::Net;

const SECOND: Duration = Duration::from_secs(1);
const VICTIM: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);

/// A node with one port for all behind a strict NAT, a public neighbour, and a peer that is called for but
/// never answers.
struct Scene {
    net: Net,
    node: usize,
    peers: Vec<usize>,
    calls: u64,
}

impl Scene {
    fn new(peers: u8) -> Self {
        let mut net = Net::new();
        let neighbour = net.node("192.0.2.1", None);
        let nat = net.nat("198.51.100.1");
        let node = net.node("10.0.0.5", Some(nat));
        net.introduce(neighbour, node);
        let peers = (0..peers)
            .map(|index| {
                let peer = net.node(&format!("10.9.0.{index}"), None);
                net.nodes[peer].up = false;
                net.tell_of(node, peer, Vec::new());
                peer
            })
            .collect();
        net.run(5 * SECOND);
        assert_eq!(
            net.nodes[node].traversal.nat().mapping,
            Mapping::EndpointIndependent
        );
        net.nodes[node].sent.clear();
        Self {
            net,
            node,
            peers,
            calls: 0,
        }
    }

    fn address(&self, peer: usize) -> Ipv4Addr {
        let last = VICTIM.octets()[3] + u8::try_from(peer).unwrap();
        Ipv4Addr::new(203, 0, 113, last)
    }

    fn seen(&mut self, peer: usize, ip: Ipv4Addr) {
        let id = self.net.nodes[self.peers[peer]].id;
        self.net.nodes[self.node].traversal.handle_seen(&id, ip);
    }

    /// A peer calls: it is behind a translator of this kind.
    fn call(&mut self, peer: usize, allocation: Allocation, predicted: Vec<u16>) {
        self.calls += 1;
        let ip = IpAddr::V4(self.address(peer));
        let message = Message::from(CallMe {
            seq: self.calls,
            candidates: vec![Candidate {
                kind: CandidateKind::ServerReflexive,
                address: SocketAddr::new(ip, 5000),
            }],
            nat: NatReport {
                mapping: Mapping::AddressAndPortDependent,
                filtering: Filtering::AddressAndPortDependent,
                allocation,
                udp_blocked: false,
            },
            predicted,
            start_ms: 0,
            relays: Vec::new(),
            relay: None,
        });
        let id = self.net.nodes[self.peers[peer]].id;
        let now = self.net.now;
        self.net.nodes[self.node]
            .traversal
            .handle_message(&id, &message, now);
        self.net.drain(self.node);
    }

    /// What went to the peers' translators, beside the port they named, and when. The neighbour and the own
    /// translator are no peers of a search.
    fn searched(&self) -> Vec<(Instant, SocketAddr)> {
        let others = [
            IpAddr::from([192, 0, 2, 1]),
            IpAddr::from([198, 51, 100, 1]),
        ];
        let sent = self.net.nodes[self.node].sent.iter();
        sent.map(|(at, to, _)| (*at, *to))
            .filter(|(_, to)| to.port() != 5000 && !others.contains(&to.ip()))
            .collect()
    }

    fn refused(&self, name: &str) -> u64 {
        let counters = self.net.nodes[self.node].traversal.counters();
        counters.value(name)
    }
}

#[test]
fn a_call_alone_starts_no_search() {
    let mut scene = Scene::new(1);
    for _ in 0..10 {
        scene.call(0, Allocation::Random, Vec::new());
        scene.call(0, Allocation::Sequential(1), vec![2000, 2001]);
        scene.net.run(3 * SECOND);
    }
    assert_eq!(scene.searched(), []);
    assert!(scene.refused("refused-search-unconfirmed") > 0);
}

#[test]
fn a_third_nodes_word_for_another_address_starts_no_search() {
    let mut scene = Scene::new(1);
    scene.seen(0, Ipv4Addr::new(203, 0, 113, 77));
    scene.call(0, Allocation::Random, Vec::new());
    scene.net.run(10 * SECOND);
    assert_eq!(scene.searched(), []);
}

#[test]
fn predicted_ports_are_probed_and_no_others() {
    let mut scene = Scene::new(1);
    scene.seen(0, VICTIM);
    scene.call(0, Allocation::Sequential(1), vec![2000, 2001, 80]);
    scene.net.run(10 * SECOND);
    let ports: Vec<u16> = scene.searched().iter().map(|(_, to)| to.port()).collect();
    assert_eq!(
        ports,
        [2000, 2001].repeat(4),
        "first, and three times again"
    );
}

#[test]
fn where_birthday_search_is_off_ports_are_predicted_and_none_are_searched_for() {
    let mut scene = Scene::new(1);
    scene.seen(0, VICTIM);
    let node = &mut scene.net.nodes[scene.node].traversal;
    node.set_birthday_search(false);
    for allocation in [Allocation::Random, Allocation::Block(40_000, 42_047)] {
        scene.call(0, allocation, Vec::new());
        scene.net.run(10 * SECOND);
        assert_eq!(scene.searched(), []);
    }
    scene.call(0, Allocation::Sequential(1), vec![2000]);
    scene.net.run(10 * SECOND);
    assert!(!scene.searched().is_empty());
}

#[test]
fn a_search_tries_each_port_once_and_ends_with_its_share() {
    let mut scene = Scene::new(1);
    scene.seen(0, VICTIM);
    let first = scene.net.now.mono;
    for _ in 0..580 {
        scene.call(0, Allocation::Random, Vec::new());
        scene.net.run(SECOND);
    }
    let searched = scene.searched();
    assert_eq!(searched.len(), 2048);
    let mut ports: Vec<u16> = searched.iter().map(|(_, to)| to.port()).collect();
    assert!(ports.iter().all(|port| *port >= 1024));
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports.len(), 2048, "no port twice");
    assert!(searched[0].0 - first >= Duration::from_millis(800));
    assert!(searched.iter().all(|(_, to)| to.ip() == IpAddr::V4(VICTIM)));
    let second = |w: &[(Instant, SocketAddr)]| w[1000].0 - w[0].0 >= SECOND;
    assert!(searched.windows(1001).all(second));
    for _ in 0..60 {
        scene.call(0, Allocation::Random, Vec::new());
        scene.net.run(SECOND);
    }
    assert!(
        scene.searched().len() > 2048,
        "ten minutes later there is more"
    );
}

#[test]
fn ten_seconds_after_the_last_call_nothing_is_searched_for() {
    let mut scene = Scene::new(3);
    for peer in 0..3 {
        let ip = scene.address(peer);
        scene.seen(peer, ip);
        scene.call(peer, Allocation::Random, Vec::new());
    }
    let last = scene.net.now.mono;
    scene.net.run(60 * SECOND);
    let searched = scene.searched();
    assert!(searched.iter().all(|(at, _)| *at - last <= 10 * SECOND));
    let mut of: BTreeMap<IpAddr, (Instant, Instant)> = BTreeMap::new();
    for (at, to) in &searched {
        of.entry(to.ip()).or_insert((*at, *at)).1 = *at;
    }
    assert_eq!(of.len(), 3);
    let most = searched
        .iter()
        .map(|(at, _)| {
            of.values()
                .filter(|(from, to)| from <= at && at <= to)
                .count()
        })
        .max();
    assert_eq!(most, Some(2), "two at once");
    let second = |w: &[(Instant, SocketAddr)]| w[1000].0 - w[0].0 >= SECOND;
    assert!(searched.windows(1001).all(second));
}

#[test]
fn no_socket_is_asked_for_where_none_is_needed() {
    let mut scene = Scene::new(1);
    let sockets = |scene: &Scene| -> Vec<SocketId> {
        let sockets = scene.net.nodes[scene.node].traversal.sockets();
        sockets.collect()
    };
    let tests = sockets(&scene);
    assert_eq!(tests.len(), 2, "the own NAT is tested with two");
    scene.seen(0, VICTIM);
    scene.call(0, Allocation::Block(2000, 4000), Vec::new());
    scene.net.run(5 * SECOND);
    let ports: Vec<u16> = scene.searched().iter().map(|(_, to)| to.port()).collect();
    assert_eq!(ports.len(), 1150);
    assert!(ports.iter().all(|port| (2000..=4000).contains(port)));
    assert_eq!(sockets(&scene), tests);
}
