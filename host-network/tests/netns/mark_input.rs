//! Peers' own addresses behind the tunnel, and reverse path filters.

use std::net::UdpSocket;

use mesh_types::HostPlan;
use mesh_types::consts::{BLACKHOLE_METRIC, INTERFACE, ROUTE_METRIC};
use mesh_types::plan::{Adoption, RouteKind};

use crate::bed::{Beside, at, hears, is_silent, pair};
use crate::support::{add_device, in_namespace, plan, route, run, takes};

const OURS: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
const PEER: [&str; 2] = ["192.0.2.2", "2001:db8::2"];
const LENT: u16 = 40_000;

/// The peer's own addresses are routed into the tunnel.
fn routed(mark_input: bool) -> HostPlan {
    let mut plan = plan();
    for peer in ["192.0.2.2/32", "2001:db8::2/128"] {
        let kind = RouteKind::Unicast {
            source: None,
            mtu: None,
        };
        plan.routes.insert(route(peer, ROUTE_METRIC, kind));
        plan.routes
            .insert(route(peer, BLACKHOLE_METRIC, RouteKind::Blackhole));
    }
    plan.mark_input = mark_input;
    plan.adoptions = [Adoption {
        remote: at(PEER[0], 5000),
        port: LENT,
    }]
    .into();
    plan
}

/// A peer on the link `wan`, on which nothing may come that would not be answered there.
fn peer() -> Beside {
    let peer = Beside::new();
    pair(&peer, "wan", "eth0", &OURS, &PEER);
    run("ip addr add 192.0.2.1/24 dev wan && ip addr add 2001:db8::1/64 dev wan nodad");
    OURS.into_iter().for_each(takes);
    peer.sh("ip route add 192.0.2.0/24 dev eth0 && ip route add 2001:db8::/64 dev eth0");
    run("echo 1 >/proc/sys/net/ipv4/conf/all/rp_filter");
    run("echo 1 >/proc/sys/net/ipv4/conf/wan/rp_filter");
    run("echo 1 >/proc/sys/net/ipv4/conf/wan/src_valid_mark");
    // firewalld's, for IPv6 has none of its own.
    run("nft 'add table inet firewalld; \
         add chain inet firewalld pre { type filter hook prerouting priority -290; }; \
         add rule inet firewalld pre icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept; \
         add rule inet firewalld pre meta nfproto ipv6 fib saddr . mark . iif oif missing drop'");
    peer
}

#[test]
fn outer_packets_of_a_peer_behind_the_tunnel_pass_a_strict_reverse_path_filter() {
    in_namespace(|| async {
        let peer = peer();
        add_device();
        let mut host = host_network::Host::new(INTERFACE).await.unwrap();
        let port = plan().tunnel.listen_port;
        let sockets: Vec<(UdpSocket, UdpSocket, &str)> =
            [(0, port), (1, port), (0, LENT), (1, LENT)]
                .into_iter()
                .map(|(family, port)| {
                    let ours = UdpSocket::bind(at(OURS[family], port)).unwrap();
                    let theirs = peer.udp(PEER[family], 0);
                    theirs.connect(at(OURS[family], port)).unwrap();
                    (ours, theirs, PEER[family])
                })
                .collect();
        for (ours, theirs, from) in &sockets {
            theirs.send(b"before").unwrap();
            assert_eq!(hears(ours).ip().to_string(), *from);
        }

        assert!(host.converge(&routed(false)).await.failures.is_empty());

        for (ours, theirs, from) in &sockets {
            theirs.send(b"lost").unwrap();
            assert!(is_silent(ours), "from {from}");
        }

        assert!(host.converge(&routed(true)).await.failures.is_empty());

        for (ours, theirs, from) in &sockets {
            theirs.send(b"marked").unwrap();
            assert_eq!(hears(ours).ip().to_string(), *from);
        }
        let other = UdpSocket::bind(at(OURS[0], port + 1)).unwrap();
        let theirs = peer.udp(PEER[0], 0);
        theirs.send_to(b"spoofed?", at(OURS[0], port + 1)).unwrap();
        assert!(is_silent(&other), "no other port is excused");
        host.own_ports([port + 1].into());
        assert!(host.converge(&routed(true)).await.failures.is_empty());
        theirs.send_to(b"marked", at(OURS[0], port + 1)).unwrap();
        assert_eq!(hears(&other).ip().to_string(), PEER[0]);
        let requests = host.requests();
        host.converge(&routed(true)).await;
        assert_eq!(host.requests(), requests);

        assert!(host.converge(&routed(false)).await.failures.is_empty());

        let (ours, theirs, _) = &sockets[0];
        theirs.send(b"lost again").unwrap();
        assert!(is_silent(ours));
        let listed = run("nft list table inet farspan");
        assert!(!listed.contains("input"), "{listed}");
    });
}

#[test]
fn what_comes_out_of_the_tunnel_is_not_marked() {
    in_namespace(|| async {
        let far = Beside::new();
        pair(&far, INTERFACE, "eth0", &["10.77.0.1"], &["10.77.0.2"]);
        far.sh("ip route add 10.77.0.1 dev eth0");
        let mut host = host_network::Host::new(INTERFACE).await.unwrap();
        assert!(host.converge(&routed(true)).await.failures.is_empty());
        takes("10.77.0.1");
        run("nft 'add table inet marks; \
             add chain inet marks in { type filter hook input priority 0; }; \
             add rule inet marks in meta mark and 0x2000 != 0 drop'");
        let port = plan().tunnel.listen_port;
        let ours = UdpSocket::bind(at("10.77.0.1", port)).unwrap();
        let theirs = far.udp("10.77.0.2", 0);
        theirs.send_to(b"inner", at("10.77.0.1", port)).unwrap();
        hears(&ours);
    });
}
