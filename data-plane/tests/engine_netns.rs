//! Real engines, real packets. Needs root: `cargo test -p data-plane --test engine_netns`.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::thread;
use std::time::Duration;

use data_plane::{EngineError, Offload};
use netns::{DEVICE, Lab, PORT, counter, outer, peer, plan, secret, until};
use nix::sys::socket::{setsockopt, sockopt::UdpGsoSegment};

mod netns;

const ALL: Offload = Offload {
    tun_header: true,
    tun_tcp: true,
    tun_udp: true,
    udp_send: true,
    udp_receive: true,
};
const NONE: Offload = Offload {
    tun_header: true,
    tun_tcp: false,
    tun_udp: false,
    udp_send: false,
    udp_receive: false,
};

fn address(text: &str, port: u16) -> SocketAddr {
    SocketAddr::new(text.parse::<IpAddr>().expect("an address"), port)
}

/// A socket in a that sends to a socket in b which echoes; gone when the test ends.
fn echo(lab: &Lab, to: &str) -> UdpSocket {
    let server = lab.inside("b", || UdpSocket::bind(address(to, 0)).expect("b binds"));
    let target = server.local_addr().expect("an address");
    thread::spawn(move || {
        let mut bytes = [0; 2048];
        while let Ok((len, from)) = server.recv_from(&mut bytes) {
            let _ = server.send_to(&bytes[..len], from);
            if len == 0 {
                return;
            }
        }
    });
    let any = if target.is_ipv4() { "0.0.0.0" } else { "::" };
    let client = lab.inside("a", || UdpSocket::bind(address(any, 0)).expect("a binds"));
    client.connect(target).expect("a connects");
    let timeout = Some(Duration::from_secs(3));
    client.set_read_timeout(timeout).expect("a timeout");
    client
}

fn answered(client: &UdpSocket, n: u32) -> bool {
    let mut bytes = [0; 64];
    client.send(&n.to_be_bytes()).is_ok()
        && client
            .recv(&mut bytes)
            .is_ok_and(|len| bytes[..len] == n.to_be_bytes())
}

#[test]
fn both_inner_families_travel_over_both_outer_families() {
    for (tag, v6) in [("ping4", false), ("ping6", true)] {
        let lab = Lab::new(tag);
        let pair = lab.pair(v6, ALL);
        assert!(lab.ping("a", "-c 20 10.0.0.2"), "IPv4, outer IPv6 {v6}");
        assert!(lab.ping("a", "-c 20 fd00::2"), "IPv6, outer IPv6 {v6}");
        assert!(
            lab.ping("a", "-c 5 -s 1392 -M do 10.0.0.2"),
            "a full packet"
        );
        let report = pair.b.report();
        let stats = &report.peers[&secret(1).public()];
        assert_eq!(stats.endpoint, Some(outer("a", v6)));
        assert!(stats.handshake_age.is_some() && stats.rx_bytes > 45 * 100);
        assert_eq!(counter(&pair.a, "handshakes"), 1);
    }
}

#[test]
fn bulk_tcp_arrives_intact_with_and_without_each_offload() {
    let single = [
        ALL,
        Offload {
            tun_header: false,
            ..ALL
        },
        Offload {
            tun_tcp: false,
            ..ALL
        },
        Offload {
            tun_udp: false,
            ..ALL
        },
        Offload {
            udp_send: false,
            ..ALL
        },
        Offload {
            udp_receive: false,
            ..ALL
        },
        NONE,
    ];
    for offload in single {
        let lab = Lab::new("bulk");
        let pair = lab.pair(false, offload);
        assert!(lab.transfer("10.0.0.2", 16 << 20), "IPv4, {offload:?}");
        assert!(lab.transfer("fd00::2", 16 << 20), "IPv6, {offload:?}");
        let (sends, sent) = (counter(&pair.a, "udp_sends"), counter(&pair.a, "udp_sent"));
        assert_eq!(sends * 4 < sent, offload.udp_send, "{sends} {sent}");
        let (reads, read) = (
            counter(&pair.a, "tun_reads"),
            counter(&pair.a, "tun_packets"),
        );
        let tun_tcp = offload.tun_tcp && offload.tun_header;
        assert_eq!(reads * 4 < read, tun_tcp, "{reads} {read}");
        let writes = (
            counter(&pair.b, "tun_writes"),
            counter(&pair.b, "tun_written"),
        );
        assert!(offload != ALL || writes.0 * 4 < writes.1, "{writes:?}");
        assert!(tun_tcp || writes.0 == writes.1, "{writes:?}");
        assert_eq!(counter(&pair.b, "tun_merge_off"), 0);
    }
}

#[test]
fn rotating_keys_loses_no_packet_and_delays_none_for_long() {
    let lab = Lab::new("rotate");
    let mut pair = lab.pair(false, ALL);
    let client = echo(&lab, "10.0.0.2");
    assert!(answered(&client, 0));
    for n in 1..400 {
        match n {
            100 => {
                pair.plan_a.previous_key = Some(secret(1));
                pair.plan_a.key = secret(3);
                pair.a.apply(&pair.plan_a);
            }
            200 => {
                let mut new = peer(1, Some(outer("a", false)));
                new.keepalive = Some(Duration::from_secs(25));
                let mut old = peer(1, None);
                old.allowed_ips = [].into();
                old.passive = true;
                pair.plan_b = plan(2, &[(3, new), (1, old)]);
                pair.b.apply(&pair.plan_b);
            }
            300 => {
                pair.plan_a.previous_key = None;
                pair.a.apply(&pair.plan_a);
                pair.plan_b.peers.remove(&secret(1).public());
                pair.b.apply(&pair.plan_b);
            }
            _ => {}
        }
        assert!(answered(&client, n), "packet {n}");
    }
    let report = pair.b.report();
    assert_eq!(report.peers.len(), 1);
    assert!(report.peers[&secret(3).public()].rx_bytes > 100 * 48);
}

#[test]
fn a_host_that_changes_its_address_goes_on_without_a_new_plan() {
    let lab = Lab::new("roam");
    let pair = lab.pair(false, ALL);
    let client = echo(&lab, "10.0.0.2");
    assert!(answered(&client, 0));
    lab.ip("a", "addr add 192.0.2.77/24 dev v0");
    lab.ip("a", "addr del 192.0.2.1/24 dev v0");
    lab.ip("a", "addr add 192.0.2.77/24 dev v0");
    for n in 1..20 {
        assert!(
            answered(&client, n),
            "{n}: {:?} {:?}",
            pair.a.counters(),
            pair.b.counters()
        );
    }
    let report = pair.b.report();
    let learned = report.peers[&secret(1).public()].endpoint;
    assert_eq!(learned, Some(address("192.0.2.77", PORT)));
    pair.b.apply(&pair.plan_b);
    assert!(
        (20..30).all(|n| answered(&client, n)),
        "an idle plan undoes nothing"
    );
}

#[test]
fn answers_leave_from_the_address_that_was_asked() {
    let lab = Lab::new("source");
    lab.ip("b", "addr add 192.0.2.200/24 dev v0");
    let pair = lab.pair(false, ALL);
    let mut plan = pair.plan_a.clone();
    let there = Some(address("192.0.2.200", PORT));
    plan.peers.insert(secret(2).public(), peer(2, there));
    pair.a.apply(&plan);
    assert!(lab.ping("a", "-c 10 10.0.0.2"));
    let report = pair.a.report();
    assert_eq!(report.peers[&secret(2).public()].endpoint, there);
}

#[test]
fn a_path_with_a_smaller_mtu_is_served_unsegmented() {
    let lab = Lab::new("mtu");
    let pair = lab.pair(false, ALL);
    lab.ip("a", "link set v0 mtu 1400");
    lab.ip("b", "link set v0 mtu 1400");
    assert!(lab.transfer("10.0.0.2", 4 << 20));
    assert!(counter(&pair.a, "udp_unsegmented") > 0);
    assert_eq!(counter(&pair.a, "udp_refused"), 0);
}

#[test]
fn a_full_message_crosses_a_link_whole() {
    for (tag, v6) in [("whole4", false), ("whole6", true)] {
        let lab = Lab::new(tag);
        let pair = lab.pair(v6, ALL);
        assert!(lab.ping("a", "fd00::2 -c 1"));
        let before = (received(&lab), counter(&pair.b, "tun_written"));
        let socket = lab.inside("a", || {
            UdpSocket::bind(address("fd00::1", 0)).expect("a binds")
        });
        setsockopt(&socket, UdpGsoSegment, &1332).expect("a segments");
        // 48 datagrams of 1,424 bytes: 46 of them would fit a datagram's length, but no device.
        let sent = socket.send_to(&[7; 48 * 1332], address("fd00::2", 9));
        assert_eq!(sent.expect("a sends"), 48 * 1332);
        assert!(until(|| counter(&pair.b, "tun_written") >= before.1 + 48));
        let packets = received(&lab) - before.0;
        assert!(packets < 12, "{packets} packets crossed, outer IPv6 {v6}");
    }
}

/// Packets that b's end of the link has received.
fn received(lab: &Lab) -> u64 {
    let table = lab.inside("b", || std::fs::read_to_string("/proc/thread-self/net/dev"));
    let table = table.expect("the table of devices");
    let row = table
        .lines()
        .find_map(|row| row.trim_start().strip_prefix("v0:"));
    let packets = row.and_then(|row| row.split_whitespace().nth(1));
    packets
        .and_then(|text| text.parse().ok())
        .expect("a row of the link")
}

#[test]
fn control_datagrams_share_the_port_both_ways() {
    let lab = Lab::new("control");
    lab.ip("a", "addr add 192.0.2.201/24 dev v0");
    let pair = lab.pair(false, ALL);
    assert!(lab.ping("a", "-c 2 10.0.0.2"));
    let second = Duration::from_secs(2);
    for (v6, source) in [(false, "192.0.2.201"), (true, "2001:db8::1")] {
        let mut request = vec![0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42];
        request.extend_from_slice(&[9; 12]);
        let from = source.parse().ok();
        let sent = pair.a.send_control(from, outer("b", v6), Some(3), &request);
        sent.expect("it is sent");
        let got = pair.control_b.recv_timeout(second).expect("it arrives");
        assert_eq!(got.remote, address(source, PORT));
        assert_eq!(got.local, outer("b", v6));
        assert_eq!(got.bytes, request);
        request[0] = 1;
        let sent = pair
            .b
            .send_control(Some(got.local.ip()), got.remote, None, &request);
        sent.expect("it is answered");
        let answer = pair
            .control_a
            .recv_timeout(second)
            .expect("the answer arrives");
        assert_eq!((answer.local, answer.remote), (got.remote, got.local));
    }
    let wrong = pair
        .a
        .send_control("::1".parse().ok(), outer("b", false), None, &[0; 20]);
    assert!(wrong.is_err(), "source and destination of two families");
}

#[test]
fn a_host_without_ipv6_takes_part_by_ipv4() {
    let lab = Lab::new("no6");
    lab.inside("a", || {
        for which in ["all", "default"] {
            let path = format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6");
            std::fs::write(path, "1").expect("root may write it");
        }
    });
    let (a, _up) = lab.start("a", ALL).expect("a starts");
    let (b, _up) = lab.start("b", ALL).expect("b starts");
    lab.address("b");
    lab.ip("a", &format!("addr add 10.0.0.1/32 dev {DEVICE}"));
    lab.ip("a", &format!("link set {DEVICE} up"));
    lab.ip("a", &format!("route add 10.0.0.2/32 dev {DEVICE}"));
    a.apply(&plan(1, &[(2, peer(2, Some(outer("b", false))))]));
    b.apply(&plan(2, &[(1, peer(1, None))]));
    assert!(lab.ping("a", "-c 5 10.0.0.2"));
    assert!(
        a.send_control(None, outer("b", true), None, &[0; 20])
            .is_err()
    );
}

#[test]
fn a_taken_port_and_a_taken_name_are_told_apart() {
    let lab = Lab::new("taken");
    let other = lab.inside("a", || {
        UdpSocket::bind(address("::", PORT)).expect("it is free")
    });
    let refused = lab.start("a", ALL).map(drop);
    assert!(
        matches!(refused, Err(EngineError::PortInUse(PORT))),
        "{refused:?}"
    );
    drop(other);
    // A child that another test has just forked holds copies of all sockets until it executes its program.
    let mut engine = None;
    assert!(until(|| {
        engine = lab.start("a", ALL).ok();
        engine.is_some()
    }));
    lab.inside("a", || {
        let settings = data_plane::Settings {
            interface: DEVICE.into(),
            mtu: 1420,
            listen_port: 0,
            fwmark: 0,
            offload: ALL,
        };
        let refused = data_plane::Engine::start(settings, Box::new(|_| {})).map(drop);
        assert!(
            matches!(refused, Err(EngineError::Tun { .. })),
            "{refused:?}"
        );
    });
    drop(engine);
    assert!(
        until(|| lab.start("a", ALL).is_ok()),
        "a dropped engine leaves nothing behind"
    );
}

#[test]
fn a_deleted_device_is_a_failure_that_can_be_read() {
    let lab = Lab::new("gone");
    let pair = lab.pair(false, ALL);
    assert_eq!(pair.a.failure(), None);
    lab.ip("a", &format!("link del {DEVICE}"));
    assert!(until(|| pair.a.failure().is_some()));
    let failure = pair.a.failure().unwrap();
    assert!(
        failure.contains(DEVICE) && failure.contains("deleted"),
        "{failure}"
    );
}

#[test]
fn another_port_in_the_plan_is_taken_at_run_time() {
    let lab = Lab::new("rebind");
    let mut pair = lab.pair(false, ALL);
    assert!(lab.ping("a", "-c 2 10.0.0.2"));
    pair.plan_a.listen_port = PORT + 7;
    lab.inside("a", || pair.a.apply(&pair.plan_a));
    assert_eq!(pair.a.listen_port(), PORT + 7);
    assert!(lab.ping("a", "-c 5 10.0.0.2"));
    let report = pair.b.report();
    let learned = report.peers[&secret(1).public()].endpoint;
    assert_eq!(learned, Some(address("192.0.2.1", PORT + 7)));
}
