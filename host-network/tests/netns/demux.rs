//! The shared port, with an ordinary socket in WireGuard's place, behind a firewall that opens that port only.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use host_network::Demux;
use nix::sched::{CloneFlags, unshare};
use nix::time::{ClockId, clock_gettime};

use crate::support::{carries, in_namespace, run, sh};

pub const PORT: u16 = 22000;
/// A Binding request and its answers, and what WireGuard sends.
const BINDING: [[u8; 2]; 4] = [[0, 1], [0, 0x11], [1, 1], [1, 0x11]];
const COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];

pub fn stun(kind: [u8; 2]) -> Vec<u8> {
    [&kind[..], &[0, 0], &COOKIE, &[7; 12]].concat()
}

pub fn wireguard(kind: u8) -> Vec<u8> {
    [&[kind, 0, 0, 0][..], &[9; 60]].concat()
}

pub fn receive(socket: &UdpSocket) -> Option<(Vec<u8>, SocketAddr)> {
    let mut buffer = [0; 2048];
    match socket.recv_from(&mut buffer) {
        Ok((len, from)) => Some((buffer[..len].to_vec(), from)),
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        Err(error) => panic!("{error}"),
    }
}

pub fn socket(ip: IpAddr, port: u16) -> UdpSocket {
    let socket = UdpSocket::bind((ip, port)).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    socket
}

/// A remote host behind a veth, which lends its sockets.
pub fn remote() -> (UdpSocket, UdpSocket) {
    let (send, receive) = mpsc::channel();
    run("ip link add fs-host-a type veth peer name fs-host-b");
    let (ready, go) = mpsc::channel::<()>();
    let (tid_send, tid) = mpsc::channel();
    thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        tid_send.send(nix::unistd::gettid()).unwrap();
        go.recv().unwrap();
        run("ip link set fs-host-b up");
        run("ip addr add 192.0.2.2/24 dev fs-host-b");
        run("ip addr add 2001:db8::2/64 dev fs-host-b nodad");
        carries("fs-host-b");
        let v4 = socket("192.0.2.2".parse().unwrap(), 5000);
        let v6 = socket("2001:db8::2".parse().unwrap(), 5000);
        send.send((v4, v6)).unwrap();
    });
    run(&format!(
        "ip link set fs-host-b netns {}",
        tid.recv().unwrap()
    ));
    run("ip addr add 192.0.2.1/24 dev fs-host-a");
    run("ip addr add 2001:db8::1/64 dev fs-host-a nodad");
    run("ip link set fs-host-a up");
    ready.send(()).unwrap();
    let sockets = receive.recv().unwrap();
    carries("fs-host-a");
    sockets
}

fn firewall() {
    run("nft add table inet fw");
    run("nft add chain inet fw in '{ type filter hook input priority 0; policy drop; }'");
    run("nft add chain inet fw out '{ type filter hook output priority 0; policy drop; }'");
    run(&format!("nft add rule inet fw in udp dport {PORT} accept"));
    run(&format!("nft add rule inet fw out udp sport {PORT} accept"));
    run("nft add rule inet fw in meta l4proto ipv6-icmp accept");
    run("nft add rule inet fw out meta l4proto ipv6-icmp accept");
}

#[test]
fn stun_reaches_the_agent_and_wireguard_keeps_the_rest_on_one_port() {
    in_namespace(|| async {
        let (v4, v6) = remote();
        firewall();
        let mut demux = Demux::new().unwrap();
        for (far, ours) in [(v4, "192.0.2.1"), (v6, "2001:db8::1")] {
            let ours: IpAddr = ours.parse().unwrap();
            let tunnel = socket(ours, PORT);
            let agent = socket(ours, 0);
            let agent_port = agent.local_addr().unwrap().port();
            demux.apply(PORT, agent_port).unwrap();
            let door = SocketAddr::new(ours, PORT);
            // The first packet of a pair waits for the neighbour to be resolved.
            for kind in BINDING {
                far.send_to(&stun(kind), door).unwrap();
                let (bytes, from) = receive(&agent).expect("Binding reaches the agent");
                assert_eq!((bytes, from), (stun(kind), far.local_addr().unwrap()));

                agent.send_to(&stun([1, 1]), from).unwrap();
                let (bytes, from) = receive(&far).expect("the answer arrives");
                assert_eq!((bytes, from), (stun([1, 1]), door), "from the shared port");
            }
            for kind in 1..=4 {
                far.send_to(&wireguard(kind), door).unwrap();
                let (bytes, from) = receive(&tunnel).expect("WireGuard's own reaches it");
                assert_eq!(bytes, wireguard(kind));
                tunnel.send_to(&wireguard(2), from).unwrap();
                assert_eq!(receive(&far).unwrap(), (wireguard(2), door));
            }
            let mut other = stun([0, 3]);
            far.send_to(&other, door).unwrap();
            assert_eq!(
                receive(&tunnel).unwrap().0,
                other,
                "Allocate is not Binding"
            );
            other = stun([0, 1]);
            other[4] ^= 1;
            far.send_to(&other, door).unwrap();
            assert_eq!(receive(&tunnel).unwrap().0, other, "no cookie, no STUN");
            assert_eq!(receive(&agent), None);
        }
    });
}

#[test]
fn a_flood_of_stun_is_cut_and_wireguard_does_not_notice() {
    in_namespace(|| async {
        let (far, _) = remote();
        let ours: IpAddr = "192.0.2.1".parse().unwrap();
        let (tunnel, agent) = (socket(ours, PORT), socket(ours, 0));
        let mut demux = Demux::new().unwrap();
        demux
            .apply(PORT, agent.local_addr().unwrap().port())
            .unwrap();
        let door = SocketAddr::new(ours, PORT);
        // Counts what passes the limit, not what a slow reader's buffer can hold.
        run("nft add table inet after");
        run(
            "nft add chain inet after count '{ type filter hook input priority 311; policy accept; }'",
        );
        run("nft add rule inet after count udp dport != 22000 counter");
        let start = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap());

        for _ in 0..30_000 {
            far.send_to(&stun([0, 1]), door).unwrap();
        }
        far.send_to(&wireguard(4), door).unwrap();

        let took = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap()) - start;
        let listed = run("nft list chain inet after count");
        let passed: u64 = listed
            .split("packets ")
            .nth(1)
            .and_then(|rest| rest.split(' ').next())
            .unwrap()
            .parse()
            .unwrap();
        let most = 1_000 + (took.as_secs_f64() * 5_000.0) as u64 + 100;
        assert!(
            passed >= 1_000 && passed <= most,
            "{passed} of 30000 in {took:?}"
        );
        assert_eq!(receive(&tunnel).unwrap().0, wireguard(4));
    });
}

#[test]
fn applying_again_changes_nothing_and_a_new_port_changes_the_rules() {
    in_namespace(|| async {
        let mut demux = Demux::new().unwrap();
        assert!(demux.apply(PORT, 40000).unwrap());
        let rules = run("nft list ruleset");
        assert!(!demux.apply(PORT, 40000).unwrap());
        assert!(
            !Demux::new().unwrap().apply(PORT, 40000).unwrap(),
            "a restart"
        );
        assert!(demux.apply(PORT, 40001).unwrap());
        assert!(run("nft list ruleset").contains("udp dport set 40001"));
        assert!(!run("nft list ruleset").contains("40000"));
        demux.apply(PORT, 40000).unwrap();
        assert_eq!(run("nft list ruleset"), rules);
        run("nft flush ruleset");
        assert!(demux.apply(PORT, 40000).unwrap(), "repaired");
        assert_eq!(run("nft list ruleset"), rules);
        demux.remove().unwrap();
        demux.remove().unwrap();
        assert_eq!(run("nft list ruleset"), "");
    });
}

#[test]
fn demux_and_clamp_share_a_table_and_leave_each_other_alone() {
    in_namespace(|| async {
        let mut demux = Demux::new().unwrap();
        demux.apply(PORT, 40000).unwrap();
        let mut host = host_network::Host::new("farspan0").await.unwrap();
        let mut plan = crate::support::plan();
        host.converge(&plan).await;
        assert!(run("nft list table inet farspan").contains("maxseg"));
        assert!(!demux.apply(PORT, 40000).unwrap());
        plan.mss_clamp = false;
        host.converge(&plan).await;
        assert!(!run("nft list table inet farspan").contains("maxseg"));
        assert!(!demux.apply(PORT, 40000).unwrap());
        plan.mss_clamp = true;
        host.converge(&plan).await;
        demux.remove().unwrap();
        assert!(run("nft list table inet farspan").contains("maxseg"));
        assert!(host.remove().await.failures.is_empty());
        assert!(!sh("nft list table inet farspan").status.success());
    });
}
