//! A host that relays between two others behind veth pairs of their own, and a third that is nobody's peer.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use host_network::Host;
use mesh_types::plan::RelayPair;
use nix::sched::{CloneFlags, unshare};
use nix::time::{ClockId, clock_gettime};

use crate::support::{in_namespace, plan, run, sh};

/// The relay's ports: the first end sends to the one, the second to the other.
const AT_FIRST: u16 = 28_701;
const AT_SECOND: u16 = 28_702;
const AT_THIRD: u16 = 28_703;
const COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];

fn stun(kind: [u8; 2]) -> Vec<u8> {
    [&kind[..], &[0, 0], &COOKIE, &[7; 12]].concat()
}

fn data(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8).collect()
}

fn socket(ip: IpAddr, port: u16) -> UdpSocket {
    let socket = UdpSocket::bind((ip, port)).unwrap();
    let timeout = Some(Duration::from_millis(250));
    socket.set_read_timeout(timeout).unwrap();
    socket
}

fn receive(socket: &UdpSocket) -> Option<(Vec<u8>, SocketAddr)> {
    let mut buffer = [0; 2048];
    match socket.recv_from(&mut buffer) {
        Ok((len, from)) => Some((buffer[..len].to_vec(), from)),
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        Err(error) => panic!("{error}"),
    }
}

/// A host behind a veth pair of ours, number `n`: its sockets, one a family.
struct Far {
    v4: UdpSocket,
    v6: UdpSocket,
}

impl Far {
    fn new(n: u8) -> Self {
        let (send, sockets) = mpsc::channel();
        let (ready, go) = mpsc::channel::<()>();
        let (tid_send, tid) = mpsc::channel();
        run(&format!(
            "ip link add fs-edge-{n} type veth peer name fs-edge-{n}f"
        ));
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            tid_send.send(nix::unistd::gettid()).unwrap();
            go.recv().unwrap();
            run(&format!("ip addr add 192.0.{n}.2/24 dev fs-edge-{n}f"));
            run(&format!(
                "ip addr add 2001:db8:{n}::2/64 dev fs-edge-{n}f nodad"
            ));
            run(&format!("ip link set fs-edge-{n}f up"));
            run(&format!("ip route add default via 192.0.{n}.1"));
            run(&format!("ip -6 route add default via 2001:db8:{n}::1"));
            let v4 = socket(format!("192.0.{n}.2").parse().unwrap(), 5000);
            let v6 = socket(format!("2001:db8:{n}::2").parse().unwrap(), 5000);
            send.send(Self { v4, v6 }).unwrap();
        });
        let tid = tid.recv().unwrap();
        run(&format!("ip link set fs-edge-{n}f netns {tid}"));
        run(&format!("ip addr add 192.0.{n}.1/24 dev fs-edge-{n}"));
        run(&format!(
            "ip addr add 2001:db8:{n}::1/64 dev fs-edge-{n} nodad"
        ));
        run(&format!("ip link set fs-edge-{n} up"));
        ready.send(()).unwrap();
        sockets.recv().unwrap()
    }

    fn of(&self, v6: bool) -> &UdpSocket {
        if v6 { &self.v6 } else { &self.v4 }
    }

    fn address(&self, v6: bool) -> SocketAddr {
        self.of(v6).local_addr().unwrap()
    }
}

/// The relay as host number `n` reaches it.
fn relay(n: u8, v6: bool, port: u16) -> SocketAddr {
    let ip = if v6 {
        format!("2001:db8:{n}::1")
    } else {
        format!("192.0.{n}.1")
    };
    SocketAddr::new(ip.parse().unwrap(), port)
}

fn forwarding(on: bool) {
    let on = u8::from(on);
    run(&format!("sysctl -qw net.ipv4.ip_forward={on}"));
    run(&format!("sysctl -qw net.ipv6.conf.all.forwarding={on}"));
}

fn pair(first: &Far, second: &Far, v6: bool, rate: u64) -> RelayPair {
    RelayPair {
        first: (first.address(v6), AT_FIRST),
        second: (second.address(v6), AT_SECOND),
        rate,
        node_rate: 0,
    }
}

fn elapsed() -> Duration {
    Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap())
}

#[test]
fn datagrams_of_two_members_cross_the_kernel_as_they_are_and_nobody_elses_do() {
    in_namespace(|| async {
        forwarding(true);
        let (a, b, c) = (Far::new(2), Far::new(3), Far::new(4));
        run("sysctl -qw net.ipv4.conf.all.rp_filter=1");
        let agent = socket("::".parse().unwrap(), AT_FIRST);
        let mut host = Host::new("farspan0").await.unwrap();
        let mut plan = plan();
        plan.relay_pairs = [false, true].map(|v6| pair(&a, &b, v6, 0)).into();

        let applied = host.converge(&plan).await;

        assert_eq!(applied.failures, Vec::<String>::new());
        assert_eq!(host.left_to_userspace(), &BTreeSet::new());
        for v6 in [false, true] {
            for (len, payload) in [
                (1, data(32)),
                (2, data(1400)),
                (3, stun([0, 1])),
                (4, stun([1, 1])),
            ] {
                let to = relay(2, v6, AT_FIRST);
                a.of(v6).send_to(&payload, to).unwrap();
                let got = receive(b.of(v6));
                let from = relay(3, v6, AT_SECOND);
                assert_eq!(got, Some((payload.clone(), from)), "{len}, IPv6 {v6}");
                b.of(v6).send_to(&payload, from).unwrap();
                assert_eq!(receive(a.of(v6)), Some((payload, to)), "back, IPv6 {v6}");
            }
            for (who, n, port) in [(&c, 4, AT_FIRST), (&c, 4, AT_SECOND), (&a, 2, AT_SECOND)] {
                let to = relay(n, v6, port);
                who.of(v6).send_to(&data(64), to).unwrap();
                assert_eq!(receive(b.of(v6)), None, "{to}");
            }
            a.of(v6)
                .send_to(&stun([0, 0x11]), relay(2, v6, AT_FIRST))
                .unwrap();
            // What strangers sent to that port is there too.
            let heard: Vec<_> = std::iter::from_fn(|| receive(&agent)).collect();
            let indication = heard.iter().any(|(bytes, from)| {
                let from = SocketAddr::new(from.ip().to_canonical(), from.port());
                *bytes == stun([0, 0x11]) && from == a.address(v6)
            });
            assert!(indication, "{heard:?}");
            assert_eq!(receive(b.of(v6)), None);
        }
        for (pair, packets, bytes) in host.relayed().unwrap() {
            let header = if pair.first.0.is_ipv6() { 48 } else { 28 };
            let payload = 2 * (32 + 1400 + 20 + 20);
            assert_eq!((packets, bytes), (8, payload + 8 * header), "{pair:?}");
        }
        assert_eq!(host.relayed().unwrap().len(), 2);
        let tracked = std::fs::read_to_string("/proc/thread-self/net/nf_conntrack");
        assert!(!tracked.unwrap_or_default().contains("192.0.3.2"));
    });
}

#[test]
fn pairs_come_and_go_by_elements_and_removal_leaves_nothing() {
    in_namespace(|| async {
        forwarding(true);
        let (a, b) = (Far::new(2), Far::new(3));
        let mut host = Host::new("farspan0").await.unwrap();
        let mut plan = plan();
        plan.relay_pairs = [pair(&a, &b, false, 8_000_000)].into();
        host.converge(&plan).await;
        let rules = || {
            let text =
                run("nft list chain inet farspan relay_in; nft list chain inet farspan relay_out");
            assert!(text.contains("notrack"), "{text}");
            text
        };
        let first = (rules(), run("nft list table inet farspan"));
        let requests = host.requests();
        host.converge(&plan).await;
        assert_eq!(host.requests(), requests, "a second time nothing is sent");
        a.v4.send_to(&data(100), relay(2, false, AT_FIRST)).unwrap();
        assert!(receive(&b.v4).is_some());

        // Hundreds at once, and the first pair's counter goes on.
        for n in 0..700_u16 {
            plan.relay_pairs.insert(RelayPair {
                first: (
                    SocketAddr::new("198.51.100.1".parse().unwrap(), 1000 + n),
                    29_000,
                ),
                second: ("[2001:db8:77::1]:7000".parse().unwrap(), 29_001 + n),
                rate: 1_000_000,
                node_rate: 4_000_000,
            });
            plan.relay_pairs.insert(RelayPair {
                first: (
                    SocketAddr::new("192.0.2.77".parse().unwrap(), 1000 + n),
                    29_000,
                ),
                second: ("192.0.3.77:7000".parse().unwrap(), 29_001 + n),
                rate: 1_000_000,
                node_rate: 4_000_000,
            });
        }
        let applied = host.converge(&plan).await;
        assert_eq!(applied.failures, Vec::<String>::new());
        assert_eq!(host.left_to_userspace().len(), 700, "two families in one");
        assert_eq!(host.relayed().unwrap().len(), 701);
        assert_eq!(rules(), first.0);
        assert!(
            host.relayed()
                .unwrap()
                .iter()
                .any(|(_, packets, _)| *packets == 1)
        );
        let requests = host.requests();
        host.converge(&plan).await;
        assert_eq!(host.requests(), requests);

        // One end moves: its old address is nobody's any more.
        let mut other = pair(&a, &b, false, 8_000_000);
        other.first.0.set_port(5001);
        plan.relay_pairs = [other].into();
        host.converge(&plan).await;
        assert_eq!(host.relayed().unwrap(), [(other, 0, 0)]);
        a.v4.send_to(&data(100), relay(2, false, AT_FIRST)).unwrap();
        assert_eq!(receive(&b.v4), None);

        plan.relay_pairs = [pair(&a, &b, false, 8_000_000)].into();
        host.converge(&plan).await;
        assert_eq!(
            run("nft list table inet farspan").replace("packets 0 bytes 0", ""),
            first.1.replace("packets 0 bytes 0", "")
        );
        plan.relay_pairs.clear();
        host.converge(&plan).await;
        let left = run("nft list table inet farspan");
        assert!(
            !left.contains("relay") && !left.contains("count-"),
            "{left}"
        );
        plan.relay_pairs = [pair(&a, &b, false, 8_000_000)].into();
        host.converge(&plan).await;
        assert!(host.remove().await.failures.is_empty());
        assert_eq!(run("nft list ruleset"), "");
    });
}

#[test]
fn a_pair_gets_its_rate_and_its_probes_pass_beside_it() {
    in_namespace(|| async {
        forwarding(true);
        let (a, b) = (Far::new(2), Far::new(3));
        let mut host = Host::new("farspan0").await.unwrap();
        let mut plan = plan();
        let rate = 8_000_000;
        plan.relay_pairs = [pair(&a, &b, false, rate)].into();
        host.converge(&plan).await;
        let start = elapsed();

        for _ in 0..3000 {
            a.v4.send_to(&data(1400), relay(2, false, AT_FIRST))
                .unwrap();
            b.v4.send_to(&data(1400), relay(3, false, AT_SECOND))
                .unwrap();
        }
        let took = elapsed() - start;
        let (_, _, bytes) = host.relayed().unwrap()[0];
        let second = rate / 8;
        let most = second + 64 * 1024 + (took.as_secs_f64() * second as f64) as u64 + 3000;
        assert!(
            (second..=most).contains(&bytes),
            "{bytes} of 8400000 in {took:?}"
        );

        while receive(&b.v4).is_some() {}
        for _ in 0..2000 {
            a.v4.send_to(&data(1400), relay(2, false, AT_FIRST))
                .unwrap();
        }
        a.v4.send_to(&stun([0, 1]), relay(2, false, AT_FIRST))
            .unwrap();
        let mut heard = std::iter::from_fn(|| receive(&b.v4));
        assert!(heard.any(|(bytes, _)| bytes == stun([0, 1])));
        let before = host.relayed().unwrap()[0].1;
        for _ in 0..2000 {
            a.v4.send_to(&stun([0, 1]), relay(2, false, AT_FIRST))
                .unwrap();
        }
        let probes = host.relayed().unwrap()[0].1 - before;
        assert!((50..400).contains(&probes), "{probes} of 2000 probes");
    });
}

#[test]
fn all_pairs_of_a_node_share_its_rate() {
    in_namespace(|| async {
        forwarding(true);
        let (a, b, c) = (Far::new(2), Far::new(3), Far::new(4));
        let mut host = Host::new("farspan0").await.unwrap();
        let mut plan = plan();
        let node_rate = 8_000_000;
        // The first one's port is AT_SECOND in both: the others send to it.
        let mut other = pair(&a, &c, false, 0);
        other.first.1 = AT_THIRD;
        plan.relay_pairs = [pair(&a, &b, false, 0), other]
            .map(|pair| RelayPair { node_rate, ..pair })
            .into();
        assert_eq!(host.converge(&plan).await.failures, Vec::<String>::new());
        let start = elapsed();
        for _ in 0..2000 {
            for (from, to) in [
                (&a, relay(2, false, AT_FIRST)),
                (&a, relay(2, false, AT_THIRD)),
                (&b, relay(3, false, AT_SECOND)),
                (&c, relay(4, false, AT_SECOND)),
            ] {
                from.v4.send_to(&data(1400), to).unwrap();
            }
        }
        let took = elapsed() - start;
        let bytes: u64 = host
            .relayed()
            .unwrap()
            .iter()
            .map(|(_, _, bytes)| bytes)
            .sum();
        let second = node_rate / 8;
        let most = second + 64 * 1024 + (took.as_secs_f64() * second as f64) as u64 + 3000;
        assert!(
            (second..=most).contains(&bytes),
            "{bytes} of 11200000 in {took:?}"
        );
        // A pair goes, and what the node has used up stays used up, but for what has come since.
        let start = start + took;
        plan.relay_pairs.pop_last();
        host.converge(&plan).await;
        let before = host.relayed().unwrap()[0].2;
        for _ in 0..200 {
            b.v4.send_to(&data(1400), relay(3, false, AT_SECOND))
                .unwrap();
            a.v4.send_to(&data(1400), relay(2, false, AT_FIRST))
                .unwrap();
        }
        let more = host.relayed().unwrap()[0].2 - before;
        let took = elapsed() - start;
        let most = (took.as_secs_f64() * second as f64) as u64 + 64 * 1024;
        assert!(more <= most, "{more} of 560000 in {took:?}");
    });
}

#[test]
fn what_stands_in_the_kernels_way_is_named_and_the_pair_left_to_userspace() {
    in_namespace(|| async {
        forwarding(false);
        let (a, b) = (Far::new(2), Far::new(3));
        let mut host = Host::new("farspan0").await.unwrap();
        let mut plan = plan();
        let wanted = pair(&a, &b, false, 0);
        plan.relay_pairs = [wanted].into();
        let passes = || {
            a.v4.send_to(&data(100), relay(2, false, AT_FIRST)).unwrap();
            receive(&b.v4).is_some()
        };

        assert_eq!(host.converge(&plan).await.failures, Vec::<String>::new());
        assert_eq!(host.left_to_userspace(), &[wanted].into());
        let said = host.relay_obstacles().join("; ");
        assert!(said.contains("sysctl -w net.ipv4.ip_forward=1"), "{said}");
        assert!(!passes());

        forwarding(true);
        run("nft add table ip other");
        run("nft add chain ip other gate '{ type filter hook forward priority 0; policy drop; }'");
        host.converge(&plan).await;
        assert_eq!(host.left_to_userspace(), &[wanted].into());
        let said = host.relay_obstacles().join("; ");
        assert!(
            said.contains("ip other gate") && said.contains("forward-accept"),
            "{said}"
        );

        plan.forward_accept = true;
        host.converge(&plan).await;
        assert_eq!(host.relay_obstacles(), Vec::<String>::new());
        assert!(host.left_to_userspace().is_empty());
        assert!(passes());
        a.v4.send_to(&data(100), b.address(false)).unwrap();
        assert_eq!(receive(&b.v4), None, "nothing else is let through");

        plan.relay_pairs.clear();
        host.converge(&plan).await;
        assert!(!run("nft list chain ip other gate").contains("relayed"));
        assert!(!passes());
        assert!(sh("nft list chain inet farspan relay_in").stdout.is_empty());
    });
}
