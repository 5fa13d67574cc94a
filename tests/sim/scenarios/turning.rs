//! Pairs that a TURN server carries: where nothing else can, and only as long.

use std::collections::BTreeMap;
use std::time::Duration;

use mesh_types::report::Backend;
use mesh_types::turn::TurnTransport::{self, Tcp, Tls, Udp};
use overlay::{PathKind, PeerSnapshot, PeerState};
use sim_net::{Allocator, Filtering, NatSpec, RouterId};

use crate::world::{Access, FlowId, NodeId, Seat, World};

const SECOND: Duration = Duration::from_secs(1);
const STRICT: NatSpec = NatSpec::cone(Filtering::AddressAndPortDependent);
const HARD: NatSpec = NatSpec::symmetric(Allocator::Random);
const SECRET: &str = "north";

/// A member that introduces and does not relay, two others, and a TURN server.
struct Pair {
    world: World,
    hub: NodeId,
    a: NodeId,
    b: NodeId,
    /// Of both, where they are behind one.
    routers: BTreeMap<NodeId, RouterId>,
}

impl Pair {
    fn new(seed: u64, access: [Access; 2], turn: [&[TurnTransport]; 2], backend: Backend) -> Self {
        let mut world = World::new(seed);
        world.turn_server(SECRET);
        let core = world.place(Access::Public, false);
        let hub = world.member("hub", core, Seat::V4, &[]);
        let mut routers = BTreeMap::new();
        let [a, b] = [0, 1].map(|index| {
            let place = world.place(access[index], false);
            let seat = Seat {
                backend,
                ..Seat::V4
            };
            let id = world.member(["east", "west"][index], place, seat, &[hub]);
            let servers = turn[index].iter().map(|t| world.turn_config(*t, SECRET));
            world.nodes[id.0].config.turn = servers.collect();
            routers.extend(place.sites[0].map(|site| (id, site.router)));
            id
        });
        Self {
            world,
            hub,
            a,
            b,
            routers,
        }
    }

    fn hard(seed: u64, turn: [&[TurnTransport]; 2], backend: Backend) -> Self {
        Self::new(seed, [Access::Nat(HARD); 2], turn, backend)
    }

    /// No UDP gets through the router of a node.
    fn block_udp(&mut self, id: NodeId, blocked: bool) {
        self.world.net.set_udp_blocked(self.routers[&id], blocked);
    }

    fn meet(&mut self) -> Duration {
        self.world.boot_all();
        self.met()
    }

    fn met(&mut self) -> Duration {
        let met = self.world.meet(self.a, self.b, 30 * SECOND);
        met.unwrap_or_else(|| panic!("they never met\n{}", self.world.describe()))
    }

    fn flow(&mut self) -> FlowId {
        self.world.flow(self.a, self.b, Duration::from_millis(50))
    }

    fn shown(&self, id: NodeId, peer: NodeId) -> PeerSnapshot {
        self.world.shown(id, peer)
    }

    fn kind(&self, id: NodeId, peer: NodeId) -> Option<PathKind> {
        self.shown(id, peer).path.map(|path| path.kind)
    }

    fn relayed(&self) -> u64 {
        self.world.turn.as_ref().map_or(0, |turn| turn.relayed)
    }

    fn turn_findings(&self, id: NodeId) -> Vec<String> {
        let overlay = self.world.nodes[id.0].overlay.as_ref();
        let snapshot = overlay.expect("it is on").snapshot(self.world.clock(id));
        let findings = snapshot.findings.into_iter();
        let own = findings.filter(|finding| finding.code.starts_with("turn-"));
        own.map(|finding| finding.message).collect()
    }
}

#[test]
fn one_allocation_carries_a_hard_pair_within_two_seconds_and_it_never_flaps() {
    for backend in [Backend::Userspace, Backend::Kernel] {
        for (transport, kind) in [
            (Udp, PathKind::TurnUdp),
            (Tcp, PathKind::TurnTcp),
            (Tls, PathKind::TurnTls),
        ] {
            let mut pair = Pair::hard(900, [&[transport], &[]], backend);
            let took = pair.meet();
            assert!(took < 2 * SECOND, "{transport:?}: {took:?}");
            let since = pair.world.net.now();
            let flow = pair.flow();
            pair.world.seconds(120);
            let now = pair.world.net.now();
            let context = || format!("{transport:?} {backend:?}\n{}", pair.world.describe());
            assert_eq!(
                pair.world.flows[flow.0].lost(since, now),
                0,
                "{}",
                context()
            );
            assert_eq!(pair.kind(pair.a, pair.b), Some(kind), "{}", context());
            assert_eq!(
                pair.kind(pair.b, pair.a),
                Some(PathKind::TurnUdp),
                "{}",
                context()
            );
            for (id, peer) in [(pair.a, pair.b), (pair.b, pair.a)] {
                assert_eq!(
                    pair.shown(id, peer).state,
                    PeerState::Relayed,
                    "{}",
                    context()
                );
            }
        }
    }
}

#[test]
fn without_udp_on_both_sides_a_pair_meets_by_two_allocations() {
    for seed in 910..914 {
        let mut pair = Pair::hard(seed, [&[Udp, Tcp], &[Udp, Tls]], Backend::Userspace);
        let (a, b, hub) = (pair.a, pair.b, pair.hub);
        pair.block_udp(a, true);
        pair.block_udp(b, true);
        pair.meet();
        let flow = pair.flow();
        pair.world.seconds(60);
        let since = pair.world.net.now();
        pair.world.seconds(60);
        let now = pair.world.net.now();
        let lost = pair.world.flows[flow.0].lost(since, now);
        assert_eq!(lost, 0, "{}", pair.world.describe());
        assert_eq!(pair.kind(a, b), Some(PathKind::TurnTcp));
        assert_eq!(pair.kind(b, a), Some(PathKind::TurnTls));
        // A neighbour without any server sees a relayed peer, and does not take the server for its NAT.
        assert_eq!(
            pair.shown(hub, a).state,
            PeerState::Relayed,
            "{}",
            pair.world.describe()
        );
    }
}

#[test]
fn without_udp_on_both_sides_a_pair_is_soon_connected_by_tcp_and_stays_so() {
    for seed in 915..919 {
        let mut pair = Pair::hard(seed, [&[Udp, Tcp], &[Udp, Tls]], Backend::Userspace);
        let (a, b) = (pair.a, pair.b);
        pair.world.turn.as_mut().expect("a server").maps_tcp = true;
        pair.block_udp(a, true);
        pair.block_udp(b, true);
        pair.meet();
        let flow = pair.flow();
        pair.world.seconds(20);
        let (since, before) = (pair.world.net.now(), pair.relayed());
        pair.world.seconds(120);
        let now = pair.world.net.now();
        let context = || pair.world.describe();
        for (id, peer) in [(a, b), (b, a)] {
            let shown = pair.shown(id, peer);
            assert_eq!(shown.state, PeerState::Direct, "{}", context());
            assert!(
                shown.reason.contains("over TCP at 198.51."),
                "{}",
                shown.reason
            );
            assert_eq!(pair.kind(id, peer), Some(PathKind::Tcp), "{}", context());
        }
        assert_eq!(
            pair.world.flows[flow.0].lost(since, now),
            0,
            "{}",
            context()
        );
        // 20 datagrams of WireGuard a second and way do not cross the server.
        let crossed = pair.relayed() - before;
        assert!(
            crossed < 100_000,
            "{crossed} bytes were relayed\n{}",
            context()
        );
    }
}

#[test]
fn a_pair_that_meets_by_udp_does_not_connect_by_tcp() {
    let mut pair = Pair::new(
        919,
        [Access::Nat(STRICT); 2],
        [&[Tcp], &[Tcp]],
        Backend::Userspace,
    );
    pair.world.turn.as_mut().expect("a server").maps_tcp = true;
    pair.meet();
    pair.flow();
    pair.world.seconds(60);
    for (id, peer) in [(pair.a, pair.b), (pair.b, pair.a)] {
        assert_eq!(
            pair.kind(id, peer),
            Some(PathKind::Ipv4),
            "{}",
            pair.world.describe()
        );
        assert_eq!(pair.world.connections(id), 0, "{}", pair.world.describe());
    }
}

#[test]
fn without_udp_on_one_side_anybody_is_met() {
    for (seed, other) in [Access::Public, Access::Nat(STRICT), Access::Nat(HARD)]
        .into_iter()
        .enumerate()
    {
        let accesses = [Access::Nat(STRICT), other];
        let mut pair = Pair::new(
            920 + seed as u64,
            accesses,
            [&[Udp, Tcp], &[]],
            Backend::Kernel,
        );
        let a = pair.a;
        pair.block_udp(a, true);
        pair.meet();
        pair.flow();
        pair.world.seconds(20);
        assert_eq!(
            pair.kind(a, pair.b),
            Some(PathKind::TurnTcp),
            "{}",
            pair.world.describe()
        );
    }
}

#[test]
fn a_pair_that_meets_directly_leaves_the_server_without_loss() {
    for backend in [Backend::Userspace, Backend::Kernel] {
        let mut pair = Pair::new(930, [Access::Nat(STRICT); 2], [&[Udp, Tcp], &[]], backend);
        let a = pair.a;
        pair.block_udp(a, true);
        pair.meet();
        let flow = pair.flow();
        pair.world.seconds(30);
        let since = pair.world.net.now();
        pair.block_udp(a, false);
        pair.world.seconds(330);
        let now = pair.world.net.now();
        assert_eq!(
            pair.shown(a, pair.b).state,
            PeerState::Direct,
            "{}",
            pair.world.describe()
        );
        let lost = pair.world.flows[flow.0].lost(since, now);
        assert!(lost <= 2, "{lost} lost\n{}", pair.world.describe());
        let before = pair.relayed();
        pair.world.seconds(60);
        let carried = pair.relayed() - before;
        // The flow alone is a hundred times that.
        assert!(
            carried < 2_000,
            "{carried} bytes still go through the server"
        );
    }
}

#[test]
fn a_server_that_dies_and_comes_back_carries_the_pair_again() {
    for (seed, transport) in [(940, Udp), (941, Tcp)] {
        let mut pair = Pair::hard(seed, [&[transport], &[]], Backend::Userspace);
        pair.meet();
        let flow = pair.flow();
        pair.world.seconds(20);
        for down in [1, 20, 300] {
            pair.world.set_turn(false);
            pair.world.seconds(down);
            let since = pair.world.net.now();
            pair.world.set_turn(true);
            pair.world.seconds(60);
            let gap = pair.world.flows[flow.0].longest_gap(since);
            assert!(
                gap < 45 * SECOND,
                "down for {down} s: {gap:?}\n{}",
                pair.world.describe()
            );
            let now = pair.world.net.now();
            let answered = pair.world.answered_since(flow, now - SECOND);
            assert!(answered, "down for {down} s\n{}", pair.world.describe());
            assert_eq!(pair.turn_findings(pair.a), Vec::<String>::new());
        }
    }
}

#[test]
fn a_server_that_only_restarts_costs_a_few_seconds() {
    for transport in [Udp, Tcp] {
        let mut pair = Pair::hard(950, [&[transport], &[]], Backend::Userspace);
        pair.meet();
        let flow = pair.flow();
        pair.world.seconds(20);
        let since = pair.world.net.now();
        pair.world.set_turn(false);
        pair.world.set_turn(true);
        pair.world.seconds(30);
        let gap = pair.world.flows[flow.0].longest_gap(since);
        assert!(
            gap < 6 * SECOND,
            "{transport:?}: {gap:?}\n{}",
            pair.world.describe()
        );
    }
}

#[test]
fn a_wrong_secret_is_one_finding_and_asks_seldom() {
    let mut pair = Pair::hard(960, [&[Udp], &[]], Backend::Userspace);
    let a = pair.a;
    let servers = [Udp, Tcp].map(|transport| pair.world.turn_config(transport, "south"));
    pair.world.nodes[a.0].config.turn = servers.to_vec();
    pair.world.boot_all();
    pair.world.seconds(30);
    let told = pair.turn_findings(a);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("refuses the credentials"), "{told:?}");
    let before = pair.world.sent(a);
    pair.world.seconds(60);
    let sent = pair.world.sent(a) - before;
    assert!(sent < 200, "{sent} packets in a minute");
}

#[test]
fn an_idle_node_with_a_server_says_little() {
    let mut pair = Pair::new(
        970,
        [Access::Nat(STRICT); 2],
        [&[Udp], &[Udp]],
        Backend::Userspace,
    );
    pair.meet();
    pair.world.seconds(120);
    let before = pair.world.sent(pair.a);
    pair.world.seconds(100);
    let sent = pair.world.sent(pair.a) - before;
    assert!(sent <= 100, "{sent} packets in 100 s");
    assert_eq!(pair.shown(pair.a, pair.b).state, PeerState::Direct);
}

#[test]
fn credentials_are_replaced_long_before_they_expire_and_no_packet_is_lost() {
    const HOUR: u64 = 3600;
    // Once the side that decides on paths has the server, once the other.
    for servers in [[&[Udp][..], &[]], [&[], &[Udp]]] {
        let mut pair = Pair::hard(980, servers, Backend::Userspace);
        pair.meet();
        let flow = pair.world.flow(pair.a, pair.b, 5 * SECOND);
        pair.world.seconds(60);
        let since = pair.world.net.now();
        let server = |pair: &Pair| {
            let turn = pair.world.turn.as_ref().expect("there is a server");
            (turn.made, turn.refused)
        };
        assert_eq!(server(&pair), (1, 0));
        pair.world.seconds(12 * HOUR - 120);
        assert_eq!(server(&pair), (1, 0));
        // The first allocation's credentials expire after 24 hours, the second one's after 36.
        pair.world.seconds(13 * HOUR);
        assert_eq!(server(&pair), (3, 0));
        let now = pair.world.net.now();
        let lost = pair.world.flows[flow.0].lost(since, now);
        assert_eq!(lost, 0, "{}", pair.world.describe());
        assert_eq!(pair.kind(pair.a, pair.b), Some(PathKind::TurnUdp));
        for node in [pair.a, pair.b] {
            assert_eq!(pair.turn_findings(node), Vec::<String>::new());
        }
    }
}

#[test]
fn a_node_that_reached_nobody_by_udp_uses_its_server_at_once_after_a_restart() {
    let access = [Access::Nat(STRICT); 2];
    let mut pair = Pair::new(990, access, [&[Tcp], &[]], Backend::Userspace);
    pair.block_udp(pair.a, true);
    // A connection, an allocation and a channel on a line of 40 ms, and a probe through it.
    let soon = Duration::from_millis(230);
    pair.world.boot_all();
    pair.world.run(soon);
    assert_eq!(pair.kind(pair.a, pair.hub), None, "UDP had its time first");
    pair.met();
    pair.world.seconds(60);
    pair.world.kill(pair.a);
    pair.world.seconds(10);
    pair.world.boot(pair.a);
    pair.world.run(soon);
    assert_eq!(pair.kind(pair.a, pair.hub), Some(PathKind::TurnTcp));
    let took = pair.met();
    assert!(took < SECOND, "{took:?}");
}
