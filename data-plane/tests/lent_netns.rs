//! Lent sockets and the userspace relay, with real engines and packets. Needs root:
//! `cargo test -p data-plane --test lent_netns`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use data_plane::{Adopted, Offload, Relay};
use mesh_types::SocketId;
use mesh_types::plan::{Alias, RelayPair};
use netns::{Lab, PORT, Pair, counter, outer, peer, secret, until};
use nix::time::{ClockId, clock_gettime};
use socket2::{Domain, Protocol, Socket, Type};

#[expect(dead_code, reason = "the lab serves other tests too")]
mod netns;

const AT_A: u16 = 28_701;
const AT_B: u16 = 28_702;

/// A socket for both families, as the agent opens it.
fn socket(lab: &Lab, side: &str, port: u16) -> Arc<UdpSocket> {
    lab.inside(side, || {
        let socket = Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP)).expect("a socket");
        socket.set_only_v6(false).expect("both families");
        socket.set_nonblocking(true).expect("not blocking");
        let any: SocketAddr = ([0_u16; 8], port).into();
        socket.bind(&any.into()).expect("it is free");
        Arc::new(socket.into())
    })
}

fn learned(pair: &Pair) -> Option<SocketAddr> {
    let report = pair.b.report();
    report.peers[&secret(1).public()].endpoint
}

fn binding(kind: [u8; 2]) -> Vec<u8> {
    let mut bytes = vec![0; 20];
    bytes[..2].copy_from_slice(&kind);
    bytes[4..8].copy_from_slice(&0x2112_a442_u32.to_be_bytes());
    bytes
}

#[test]
fn a_lent_port_carries_a_session_both_ways_and_is_given_back() {
    for (tag, v6) in [("lent4", false), ("lent6", true)] {
        let lab = Lab::new(tag);
        let pair = lab.pair(v6, Offload::default());
        let lucky = socket(&lab, "a", 0);
        let port = lucky.local_addr().expect("an address").port();
        let adopted = Adopted {
            remote: outer("b", v6),
            id: SocketId::Extra(7),
            socket: lucky.clone(),
        };
        let none = BTreeSet::new();
        pair.a.lend(&[adopted.clone()], &none).expect("it is taken");
        pair.a.lend(&[adopted], &none).expect("again");
        let (door, side) = (outer("a", v6), SocketAddr::new(outer("a", v6).ip(), port));

        assert!(lab.ping("a", "-c 5 10.0.0.2"));
        assert!(lab.ping("b", "-c 5 fd00::1"));
        assert_eq!(learned(&pair), Some(side));
        assert!(lab.transfer("10.0.0.2", 16 << 20));
        assert!(lab.transfer("fd00::2", 4 << 20));
        assert_eq!(learned(&pair), Some(side));
        let (sends, sent) = (counter(&pair.a, "udp_sends"), counter(&pair.a, "udp_sent"));
        assert!(sends * 4 < sent, "segmented by the kernel: {sends} {sent}");

        let second = Duration::from_secs(2);
        let sent = pair.b.send_control(None, side, None, &binding([0, 1]));
        sent.expect("it is sent");
        let got = pair.control_a.recv_timeout(second).expect("it arrives");
        assert_eq!((got.socket, got.local), (SocketId::Extra(7), side));
        assert_eq!(got.remote, outer("b", v6));
        let sent = pair.b.send_control(None, door, None, &binding([0, 1]));
        sent.expect("it is sent");
        let got = pair.control_a.recv_timeout(second).expect("it arrives");
        assert_eq!((got.socket, got.local), (SocketId::Main, door));

        pair.a.lend(&[], &none).expect("given back");
        assert!(lab.ping("a", "-c 5 10.0.0.2"), "the session goes on");
        assert_eq!(learned(&pair), Some(door));
        assert_eq!(counter(&pair.a, "handshakes"), 1);
        let sent = pair.b.send_control(None, side, None, &binding([1, 1]));
        sent.expect("it is sent");
        assert!(until(|| lucky.recv_from(&mut [0; 64]).is_ok()));
        assert_eq!(Arc::strong_count(&lucky), 1, "nobody else holds it");
    }
}

#[test]
fn what_comes_late_does_not_move_the_endpoint() {
    let lab = Lab::new("alias");
    lab.ip("a", "addr add 192.0.2.77/24 dev v0");
    let pair = lab.pair(false, Offload::default());
    let path = SocketAddr::new("192.0.2.77".parse().expect("an address"), PORT);
    let late = outer("a", false);
    pair.b
        .lend(&[], &[Alias { late, path }].into())
        .expect("it is taken");
    assert!(lab.ping("a", "-c 5 10.0.0.2"));
    assert_eq!(learned(&pair), Some(path));
    let sent = pair.a.send_control(
        "192.0.2.1".parse().ok(),
        outer("b", false),
        None,
        &binding([0, 1]),
    );
    sent.expect("it is sent");
    let got = pair.control_b.recv_timeout(Duration::from_secs(2));
    assert_eq!(got.expect("it arrives").remote, late, "STUN as it is");
}

/// A third host between the two, who no longer reach each other but by it.
struct Between {
    name: String,
}

impl Between {
    fn new(lab: &Lab) -> Self {
        let between = Self {
            name: lab.name("r"),
        };
        let name = between.name.as_str();
        let _ = Command::new("ip").args(["netns", "del", name]).output();
        between.run(&format!("netns add {name}"));
        between.run(&format!("-n {name} link set lo up"));
        for (side, net) in [("a", 1), ("b", 2)] {
            let of = lab.name(side);
            between.run(&format!(
                "-n {name} link add to-{side} type veth peer name r netns {of}"
            ));
            between.run(&format!(
                "-n {name} addr add 198.18.{net}.1/24 dev to-{side}"
            ));
            between.run(&format!(
                "-n {name} addr add 2001:db8:{net}::1/64 dev to-{side} nodad"
            ));
            between.run(&format!("-n {name} link set to-{side} up"));
            lab.ip(side, &format!("addr add 198.18.{net}.2/24 dev r"));
            lab.ip(side, &format!("addr add 2001:db8:{net}::2/64 dev r nodad"));
            lab.ip(side, "link set r up");
            lab.ip(side, "link set v0 down");
        }
        between
    }

    fn run(&self, arguments: &str) {
        let output = Command::new("ip").args(arguments.split(' ')).output();
        let output = output.expect("ip runs");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "ip {arguments}: {error}");
    }
}

impl Drop for Between {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["netns", "del", &self.name])
            .output();
    }
}

/// Host 2 of net `net`, or the relay, host 1.
fn at(net: u8, host: u8, v6: bool, port: u16) -> SocketAddr {
    let ip = if v6 {
        format!("2001:db8:{net}::{host}")
    } else {
        format!("198.18.{net}.{host}")
    };
    SocketAddr::new(ip.parse().expect("an address"), port)
}

#[test]
fn two_who_do_not_reach_each_other_are_relayed_in_userspace() {
    for (tag, a6, b6) in [
        ("rel4", false, false),
        ("rel6", true, true),
        ("rel46", false, true),
    ] {
        let lab = Lab::new(tag);
        let pair = lab.pair(false, Offload::default());
        let _between = Between::new(&lab);
        let ends = [socket(&lab, "r", AT_A), socket(&lab, "r", AT_B)];
        let (up, heard) = channel();
        let relay =
            Relay::start(Box::new(move |datagram| drop(up.send(datagram)))).expect("it starts");
        let sockets: BTreeMap<u16, _> = [(AT_A, ends[0].clone()), (AT_B, ends[1].clone())].into();
        let pairs = |rate| {
            let first = (at(1, 2, a6, PORT), AT_A);
            let second = (at(2, 2, b6, PORT), AT_B);
            BTreeSet::from([RelayPair {
                first,
                second,
                rate,
                node_rate: 0,
            }])
        };
        relay
            .apply(&sockets, &pairs(0))
            .expect("the sockets are good");
        let (mut plan_a, mut plan_b) = (pair.plan_a.clone(), pair.plan_b.clone());
        let to_b = peer(2, Some(at(1, 1, a6, AT_A)));
        plan_a.peers.insert(secret(2).public(), to_b);
        pair.a.apply(&plan_a);
        let to_a = peer(1, Some(at(2, 1, b6, AT_B)));
        plan_b.peers.insert(secret(1).public(), to_a);
        pair.b.apply(&plan_b);

        assert!(lab.ping("a", "-c 20 10.0.0.2"), "{tag}");
        assert!(lab.ping("b", "-c 20 fd00::1"), "{tag}");
        assert_eq!(learned(&pair), Some(at(2, 1, b6, AT_B)));
        assert!(lab.transfer("10.0.0.2", 16 << 20), "{tag}");
        let count = |name: &str| {
            let all = relay.counters();
            all.iter()
                .find(|(label, _)| *label == name)
                .expect("a known counter")
                .1
        };
        assert!(count("relay_bytes") > 16 << 20 && count("relay_forwarded") > 10_000);
        assert_eq!((count("relay_stranger"), count("relay_over_rate")), (0, 0));

        // From the right host but another port, and to the other end's port.
        let stranger = lab.inside("a", || UdpSocket::bind(at(1, 2, a6, 0)).expect("it binds"));
        let sent = stranger.send_to(&[4; 64], at(1, 1, a6, AT_A));
        sent.expect("it is sent");
        let sent = stranger.send_to(&binding([0, 0x11]), at(1, 1, a6, AT_A));
        sent.expect("it is sent");
        let got = heard
            .recv_timeout(Duration::from_secs(2))
            .expect("it arrives");
        assert_eq!(
            (got.socket, got.local),
            (SocketId::Relay(AT_A), at(1, 1, a6, AT_A))
        );
        assert_eq!(got.remote, stranger.local_addr().expect("an address"));
        assert_eq!(count("relay_stranger"), 1);

        relay.apply(&sockets, &pairs(16_000_000)).expect("again");
        let start = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).expect("a clock"));
        assert!(lab.transfer("10.0.0.2", 4 << 20));
        let took =
            Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).expect("a clock")) - start;
        assert!(
            took > Duration::from_millis(1800) && count("relay_over_rate") > 0,
            "{took:?}"
        );

        relay
            .apply(&BTreeMap::new(), &BTreeSet::new())
            .expect("no more");
        assert!(!lab.ping("a", "-c 2 10.0.0.2"), "{tag}");
        assert!(until(|| ends.iter().all(|end| Arc::strong_count(end) == 2)));
        drop(relay);
    }
}
