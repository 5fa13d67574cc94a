//! The host plan, to the letter.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use mesh_types::address::{mesh_prefix, overlay_ipv6};
use mesh_types::observation::ConfigPeer;
use mesh_types::plan::{Route, RouteKind, Rule};
use mesh_types::{DomainId, HostReport, IpNet, NodeKey, SocketId, State};
use overlay::Config;

use crate::net::{Net, config, entry, identity, net};

fn carrier() -> Config {
    let mut remote = entry(2);
    remote.allowed_ips.push(net("10.244.2.0/24"));
    remote.allowed_ips.push(net("fd00:2::/64"));
    let phone = ConfigPeer {
        name: Some("phone".to_owned()),
        endpoints: Vec::new(),
        allowed_ips: vec![net("10.77.0.50/32")],
        plain: true,
        persistent_keepalive: Some(Duration::from_secs(15)),
        ..entry(9)
    };
    Config {
        addresses: vec![net("10.77.0.1/32")],
        routes: vec![net("10.244.1.0/24"), net("10.77.0.50/32")],
        peers: vec![remote, phone],
        ..config(1)
    }
}

fn unicast(prefix: &str, source: IpAddr) -> Route {
    Route {
        prefix: net(prefix),
        metric: 100,
        kind: RouteKind::Unicast {
            source: Some(source),
            mtu: None,
        },
    }
}

fn blackhole(prefix: IpNet) -> Route {
    Route {
        prefix,
        metric: 4096,
        kind: RouteKind::Blackhole,
    }
}

#[test]
fn every_prefix_has_its_twin_and_own_routes_are_thrown_unless_a_phone_has_them() {
    let mut world = Net::new();
    let state = State {
        range: vec![net("10.77.0.0/16")],
        ..State::default()
    };
    world.start(1, identity(1), carrier(), state);
    world.run(Duration::from_secs(1));
    let domain = DomainId::standalone(None);
    let own = NodeKey {
        domain,
        identity: identity(1).node.identity(),
    };
    let v4: IpAddr = "10.77.0.1".parse().expect("address");
    let v6 = IpAddr::V6(overlay_ipv6(&own));
    let expected = BTreeSet::from([
        unicast("10.77.0.2/32", v4),
        blackhole(net("10.77.0.2/32")),
        unicast("10.244.2.0/24", v4),
        blackhole(net("10.244.2.0/24")),
        unicast("fd00:2::/64", v6),
        blackhole(net("fd00:2::/64")),
        unicast("10.77.0.50/32", v4),
        blackhole(net("10.77.0.50/32")),
        blackhole(net("10.77.0.0/16")),
        blackhole(IpNet::V6(mesh_prefix(&domain))),
        Route {
            prefix: net("10.244.1.0/24"),
            metric: 100,
            kind: RouteKind::Throw,
        },
    ]);
    let plan = &world.machine(1).plan;
    assert_eq!(plan.routes, expected);
    let rule = |ipv6| Rule {
        ipv6,
        priority: 5300,
        table: 22512,
        mark: 0x2000,
        mask: 0x2000,
        from: None,
    };
    assert_eq!(plan.rules, BTreeSet::from([rule(false), rule(true)]));
    assert_eq!(
        plan.device.addresses,
        BTreeSet::from([net("10.77.0.1/32"), IpNet::from(v6)])
    );
    assert_eq!(
        plan.sockets,
        BTreeSet::from([SocketId::Main, SocketId::Alternate, SocketId::Overlay])
    );
    assert!(plan.mss_clamp);
    assert_eq!(plan.device.mtu, 1420);
}

#[test]
fn the_source_towards_a_peer_of_the_file_is_the_files_address_in_both_families() {
    let mut world = Net::new();
    let with_ipv6 = Config {
        addresses: vec![net("10.77.0.1/32"), net("fd77::1/128")],
        ..carrier()
    };
    world.start(1, identity(1), with_ipv6, State::default());
    world.run(Duration::from_secs(1));
    let plan = &world.machine(1).plan;
    let source = |text: &str| text.parse::<IpAddr>().expect("address");
    for (prefix, own) in [("10.244.2.0/24", "10.77.0.1"), ("fd00:2::/64", "fd77::1")] {
        let route = unicast(prefix, source(own));
        assert!(plan.routes.contains(&route), "{prefix}: {:?}", plan.routes);
    }
    assert!(plan.device.addresses.contains(&net("fd77::1/128")));
}

#[test]
fn a_phone_keeps_what_its_entry_says_and_is_never_probed() {
    let mut world = Net::new();
    world.start(1, identity(1), carrier(), State::default());
    world.run(Duration::from_secs(3));
    let plan = &world.machine(1).plan;
    let phone = &plan.tunnel.peers[&identity(9).key.public()];
    assert_eq!(phone.endpoint, None);
    assert_eq!(phone.keepalive, Some(Duration::from_secs(15)));
    assert_eq!(phone.allowed_ips, [net("10.77.0.50/32")].into());
    let view = world.peer(1, "phone").expect("a peer");
    assert!(view.plain);
    assert!(view.reason.contains("plain"), "{}", view.reason);
}

#[test]
fn a_host_without_ipv6_gets_nothing_of_it() {
    let mut world = Net::new();
    world.start(1, identity(1), carrier(), State::default());
    let now = world.now;
    let host = HostReport {
        ipv6_off: true,
        ..HostReport::default()
    };
    world.machine(1).overlay.handle_host(host, now);
    world.run(Duration::from_secs(3));
    let plan = &world.machine(1).plan;
    let is_v4 = |net: &IpNet| net.addr().is_ipv4();
    assert!(plan.routes.iter().all(|route| is_v4(&route.prefix)));
    assert!(plan.device.addresses.iter().all(is_v4));
    assert!(plan.rules.iter().all(|rule| !rule.ipv6));
    let mut ranges = plan.tunnel.peers.values().flat_map(|p| &p.allowed_ips);
    assert!(ranges.all(is_v4));
}

#[test]
fn without_an_ipv4_address_ipv4_is_blackholed_and_a_finding_says_so() {
    let mut world = Net::new();
    let mut lacking = carrier();
    lacking.addresses.clear();
    world.start(1, identity(1), lacking, State::default());
    world.run(Duration::from_secs(1));
    assert!(world.findings(1).contains(&"no-ipv4-address".to_owned()));
    let plan = &world.machine(1).plan;
    let to_peer = plan
        .routes
        .iter()
        .filter(|route| route.prefix == net("10.77.0.2/32"));
    let kinds: Vec<RouteKind> = to_peer.map(|route| route.kind).collect();
    assert_eq!(kinds, [RouteKind::Blackhole]);
}

#[test]
fn the_generation_rises_only_when_the_plan_differs() {
    let mut world = Net::new();
    world.start(1, identity(1), carrier(), State::default());
    world.run(Duration::from_secs(60));
    let plans = &world.machine(1).plans;
    for pair in plans.windows(2) {
        assert!(pair[1].generation > pair[0].generation);
        let mut same = pair[1].clone();
        same.generation = pair[0].generation;
        assert_ne!(same, pair[0]);
    }
}

#[test]
fn findings_follow_what_the_host_reports() {
    let mut world = Net::new();
    world.start(1, identity(1), carrier(), State::default());
    let now = world.now;
    let host = HostReport {
        strict_rp_filter: vec!["eth0".to_owned()],
        forward_drop: vec!["DOCKER-USER".to_owned()],
        foreign_routes: vec![(net("10.77.0.0/24"), "eth1".to_owned())],
        port_moved: Some(22002),
        ..HostReport::default()
    };
    world.machine(1).overlay.handle_host(host, now);
    world.run(Duration::from_secs(15));
    let found = world.findings(1);
    for code in [
        "rp-filter",
        "forward-drop",
        "forwarding-off",
        "foreign-route",
        "port-moved",
        "clock",
        "no-path",
    ] {
        assert!(found.contains(&code.to_owned()), "{code} in {found:?}");
    }
    assert_eq!(world.machine(1).plan.tunnel.listen_port, 22002);
}
