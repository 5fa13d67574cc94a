//! Lent ports and late datagrams, with an ordinary socket in WireGuard's place, behind a firewall that lets in what
//! was asked for and that one port.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use host_network::Demux;
use mesh_types::plan::{Adoption, Alias};

use crate::demux::{PORT, receive, remote, socket, stun, wireguard};
use crate::support::{in_namespace, run};

const LUCKY: u16 = 40_404;

fn firewall() {
    run("nft add table inet fw");
    run("nft add chain inet fw in '{ type filter hook input priority 0; policy drop; }'");
    run("nft add rule inet fw in ct state established accept");
    run(&format!("nft add rule inet fw in udp dport {PORT} accept"));
    run("nft add rule inet fw in meta l4proto ipv6-icmp accept");
}

#[test]
fn towards_one_peer_wireguard_speaks_from_the_lent_port_and_stun_stays_where_it_is() {
    in_namespace(|| async {
        let (v4, v6) = remote();
        firewall();
        let mut demux = Demux::new().unwrap();
        for (far, ours) in [(&v4, "192.0.2.1"), (&v6, "2001:db8::1")] {
            let ours: IpAddr = ours.parse().unwrap();
            let tunnel = socket(ours, PORT);
            let lucky = socket(ours, LUCKY);
            let agent = socket(ours, 0);
            let peer = far.local_addr().unwrap();
            let (door, side) = (SocketAddr::new(ours, PORT), SocketAddr::new(ours, LUCKY));
            demux
                .apply(PORT, agent.local_addr().unwrap().port())
                .unwrap();
            let lent = [Adoption {
                remote: peer,
                port: LUCKY,
            }]
            .into();
            assert!(demux.lend(PORT, &lent, &BTreeSet::new()).unwrap());
            assert!(!demux.lend(PORT, &lent, &BTreeSet::new()).unwrap());

            tunnel.send_to(&wireguard(1), peer).unwrap();
            assert_eq!(receive(far), Some((wireguard(1), side)));
            far.send_to(&wireguard(2), side).unwrap();
            assert_eq!(receive(&tunnel), Some((wireguard(2), peer)));

            lucky.send_to(&stun([0, 1]), peer).unwrap();
            assert_eq!(receive(far), Some((stun([0, 1]), side)));
            far.send_to(&stun([1, 1]), side).unwrap();
            assert_eq!(receive(&lucky), Some((stun([1, 1]), peer)));
            agent.send_to(&stun([0, 1]), peer).unwrap();
            assert_eq!(receive(far), Some((stun([0, 1]), door)));
            far.send_to(&stun([1, 1]), door).unwrap();
            assert_eq!(receive(&agent), Some((stun([1, 1]), peer)));

            // Another address of the same host is another peer.
            let other = SocketAddr::new(peer.ip(), 5001);
            tunnel.send_to(&wireguard(3), other).unwrap();
            let changes = BTreeSet::new();
            assert!(demux.lend(PORT, &changes, &BTreeSet::new()).unwrap());
            tunnel.send_to(&wireguard(4), peer).unwrap();
            assert_eq!(receive(far), Some((wireguard(4), door)), "given back");
            assert_eq!(receive(&lucky), None);
        }
        assert!(!run("nft list table inet farspan").contains("adopt"));
        demux.remove().unwrap();
        assert!(!run("nft list ruleset").contains("farspan"));
    });
}

#[test]
fn what_comes_late_by_a_relay_counts_as_of_the_path_in_use() {
    in_namespace(|| async {
        let (v4, v6) = remote();
        let mut demux = Demux::new().unwrap();
        for (far, ours, path) in [
            (&v4, "192.0.2.1", "198.51.100.7:7000"),
            (&v6, "2001:db8::1", "[2001:db8:7::7]:7000"),
        ] {
            let ours: IpAddr = ours.parse().unwrap();
            let tunnel = socket(ours, PORT);
            let agent = socket(ours, 0);
            let path: SocketAddr = path.parse().unwrap();
            let late = far.local_addr().unwrap();
            demux
                .apply(PORT, agent.local_addr().unwrap().port())
                .unwrap();
            let aliases: BTreeSet<Alias> = [Alias { late, path }].into();
            assert!(demux.lend(PORT, &BTreeSet::new(), &aliases).unwrap());
            assert!(!demux.lend(PORT, &BTreeSet::new(), &aliases).unwrap());
            let door = SocketAddr::new(ours, PORT);

            far.send_to(&wireguard(4), door).unwrap();
            assert_eq!(receive(&tunnel), Some((wireguard(4), path)));
            far.send_to(&stun([0, 1]), door).unwrap();
            assert_eq!(receive(&agent), Some((stun([0, 1]), late)), "STUN as it is");

            let other = if path.is_ipv4() {
                "[2001:db8:7::8]:1"
            } else {
                "198.51.100.8:1"
            };
            let path = other.parse().unwrap();
            let aliases = [Alias { late, path }].into();
            demux.lend(PORT, &BTreeSet::new(), &aliases).unwrap();
            far.send_to(&wireguard(4), door).unwrap();
            assert_eq!(receive(&tunnel), None, "it cannot be shown as of there");

            demux
                .lend(PORT, &BTreeSet::new(), &BTreeSet::new())
                .unwrap();
            far.send_to(&wireguard(4), door).unwrap();
            assert_eq!(receive(&tunnel), Some((wireguard(4), late)));
        }
        demux.remove().unwrap();
        assert_eq!(run("nft list ruleset"), "");
    });
}
