//! One UDP port for WireGuard's module and the agent's own socket, behind a firewall that knows of one port.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use host_network::Demux;

use crate::harness::{Node, key, pair};

const REQUEST: &[u8] = &[
    0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12,
];
const ANSWER: &[u8] = &[
    1, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12,
];

fn firewall(node: &Node) {
    let port = node.plan.tunnel.listen_port;
    node.namespace.sh(&format!(
        "nft add table inet fw
         nft add chain inet fw in '{{ type filter hook input priority 0; policy drop; }}'
         nft add rule inet fw in iifname farspan0 accept
         nft add rule inet fw in udp dport {port} accept
         nft add rule inet fw in meta l4proto ipv6-icmp accept
         nft add chain inet fw out '{{ type filter hook output priority 0; policy drop; }}'
         nft add rule inet fw out oifname farspan0 accept
         nft add rule inet fw out udp sport {port} accept
         nft add rule inet fw out meta l4proto ipv6-icmp accept"
    ));
}

/// The agent's socket of a family, and its port shared by the demux.
fn agent(node: &Node, ipv6: bool) -> (UdpSocket, Demux) {
    node.namespace.enter(|| {
        let any = if ipv6 { "[::]:0" } else { "0.0.0.0:0" };
        let socket = UdpSocket::bind(any).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(2)))
            .unwrap();
        let mut demux = Demux::new().unwrap();
        demux
            .apply(
                node.plan.tunnel.listen_port,
                socket.local_addr().unwrap().port(),
            )
            .unwrap();
        (socket, demux)
    })
}

fn receive(socket: &UdpSocket) -> Option<(Vec<u8>, SocketAddr)> {
    let mut buffer = [0; 2048];
    match socket.recv_from(&mut buffer) {
        Ok((len, from)) => Some((buffer[..len].to_vec(), from)),
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        Err(error) => panic!("{error}"),
    }
}

fn shares(ipv6: bool) {
    let (mut a, mut b) = pair();
    let far: IpAddr = if ipv6 { "2001:db8:2::2" } else { "192.0.2.2" }
        .parse()
        .unwrap();
    let near: IpAddr = if ipv6 { "2001:db8:2::1" } else { "192.0.2.1" }
        .parse()
        .unwrap();
    let (door_a, door_b) = (SocketAddr::new(near, 22001), SocketAddr::new(far, 22002));
    a.peer(2).endpoint = Some(door_b);
    a.apply();
    firewall(&a);
    firewall(&b);
    let (agent_a, _demux_a) = agent(&a, ipv6);
    let (agent_b, _demux_b) = agent(&b, ipv6);
    let ping = a
        .namespace
        .ping("10.77.0.2", 200, Duration::from_millis(10));

    for _ in 0..20 {
        agent_a.send_to(REQUEST, door_b).unwrap();
        assert_eq!(receive(&agent_b), Some((REQUEST.to_vec(), door_a)));
        agent_b.send_to(ANSWER, door_a).unwrap();
        assert_eq!(receive(&agent_a), Some((ANSWER.to_vec(), door_b)));
    }

    assert_eq!(ping.finish(), (200, 0));
    // A handshake made now, past the rules: the same port again.
    let before = b.stats(&key(1)).unwrap().rx_bytes;
    b.plan.tunnel.peers.clear();
    b.apply();
    b.plan_peer(1, Some(&door_a.to_string()));
    b.peer(1).keepalive = Some(Duration::from_secs(25));
    b.apply();
    b.await_session(1);
    assert!(before > 0);
    assert_eq!(b.stats(&key(1)).unwrap().endpoint, Some(door_a));
    let ping = b.namespace.ping("fd77::1", 20, Duration::from_millis(10));
    assert_eq!(ping.finish(), (20, 0));
}

#[test]
fn agent_and_module_share_a_port_over_ipv4() {
    shares(false);
}

#[test]
fn agent_and_module_share_a_port_over_ipv6() {
    shares(true);
}
