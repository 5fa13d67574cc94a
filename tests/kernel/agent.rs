//! Real agents whose tunnels the kernel carries.

use std::net::UdpSocket;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::lab::agent::{PATIENCE, timed};
use crate::lab::traffic::{PingReport, Pings, ping_once};
use crate::lab::wait::wait_until;
use crate::lab::{Lab, Nat, NatKind, Node};
use crate::scene::{TwoRegions, assert_pods_meet, founder, overlay_ipv4, static_pair};

/// For a first connection; emulation is slow.
const CONNECTED: Duration = Duration::from_secs(20);
/// Ten times the figure for healing (3 s).
const HEALED: Duration = Duration::from_secs(30);
/// Ten times the figure for repair (1 s).
const REPAIRED: Duration = Duration::from_secs(10);

const PRC: Nat = Nat::new(NatKind::Prc);

fn backend(node: &Node) -> String {
    let status = node.status().expect("the agent answers");
    status["node"]["backend"].as_str().unwrap_or("").to_owned()
}

fn wg(node: &Node, what: &str) -> String {
    node.host
        .namespace
        .output("wg", &["show", "farspan0", what])
}

fn index(node: &Node) -> String {
    node.host
        .namespace
        .output("cat", &["/sys/class/net/farspan0/ifindex"])
}

fn wait_ping(from: &Node, to: &Node) {
    let target = overlay_ipv4(to);
    wait_until("it answers", CONNECTED, || {
        ping_once(&from.host.namespace, target)
    });
}

/// Waits until some 20 pings have arrived through the tunnel.
fn wait_flow(node: &Node) {
    let received = || -> u64 {
        let transfer = wg(node, "transfer");
        let columns = transfer
            .lines()
            .filter_map(|line| line.split('\t').nth(1)?.parse::<u64>().ok());
        columns.sum()
    };
    let start = received();
    wait_until("pings flow", CONNECTED, || {
        let now = received();
        if now.saturating_sub(start) > 5000 {
            Ok(())
        } else {
            Err(format!("{now} bytes after {start}"))
        }
    });
}

/// Two nodes that list each other, connected.
fn connected_pair(lab: &Lab) -> (Node, Node) {
    let (mut a, mut b) = static_pair(lab);
    a.up();
    b.up();
    a.wait_direct("b", CONNECTED);
    b.wait_direct("a", CONNECTED);
    wait_ping(&a, &b);
    (a, b)
}

/// Drops all of a host's own traffic but the tunnel's one port, both ways.
fn firewall(node: &Node) {
    let status = node.status().expect("the agent answers");
    let port = &status["node"]["listen_port"];
    node.host.namespace.nft(&format!(
        "table inet fw {{
 chain in {{
  type filter hook input priority 0; policy drop;
  iifname {{ lo, farspan0, pod0 }} accept
  iifname eth0 udp dport {port} accept
  meta l4proto ipv6-icmp accept
 }}
 chain out {{
  type filter hook output priority 0; policy drop;
  oifname {{ lo, farspan0, pod0 }} accept
  oifname eth0 udp sport {port} accept
  meta l4proto ipv6-icmp accept
 }}
}}
"
    ));
}

#[test]
fn nodes_that_list_each_other_connect_in_the_kernel_which_auto_prefers() {
    let lab = Lab::new();
    let (mut a, mut b) = static_pair(&lab);
    a.up();
    b.start_by(&["env", "FARSPAN_BACKEND=auto"]);
    b.wait_answering();
    assert_eq!([backend(&a), backend(&b)], ["kernel", "kernel"]);
    let (peer, took) = a.wait_direct("b", CONNECTED);
    eprintln!("direct after {took:?}");
    assert_eq!(peer["source"], "config");
    b.wait_direct("a", CONNECTED);
    wait_ping(&a, &b);
    wait_ping(&b, &a);
    assert_eq!(wg(&a, "listen-port"), "22000\n");
    assert!(a.stop(), "it ends well");
    let left = Pings::start(
        &b.host.namespace,
        "10.77.0.1".parse().expect("an address"),
        20,
        Duration::from_millis(10),
    );
    assert_eq!(left.finish().lost(), 0, "a stopped agent's device goes on");
}

#[test]
fn down_leaves_the_host_as_it_was_with_and_without_an_agent() {
    let lab = Lab::new();
    let (mut a, mut b) = static_pair(&lab);
    let before = [a.kernel_state(), b.kernel_state()];
    a.up();
    b.up();
    a.wait_direct("b", CONNECTED);
    let said = a.ok(&["down"]);
    assert!(a.wait_ended(), "the agent ends well after down");
    assert_eq!(a.kernel_state(), before[0], "{said}");
    b.kill();
    assert_ne!(b.kernel_state(), before[1]);
    let said = b.ok(&["down"]);
    assert_eq!(b.kernel_state(), before[1], "{said}");
}

#[test]
fn what_others_delete_is_put_back() {
    let lab = Lab::new();
    let (a, b) = connected_pair(&lab);
    let node = &a.host.namespace;
    for (what, deletion, look, expected) in [
        (
            "a route",
            "ip route del 10.77.0.2 dev farspan0 table 22512",
            "ip route show table 22512",
            "10.77.0.2 dev farspan0",
        ),
        ("the rule", "ip rule del priority 5300", "ip rule", "5300:"),
        (
            "the packet filter",
            "nft delete table inet farspan",
            "nft list ruleset",
            "chain demux_in",
        ),
        (
            "the state of the device",
            "ip link set farspan0 down",
            "ip link show up",
            "farspan0",
        ),
        (
            "the device",
            "ip link del farspan0",
            "wg show farspan0; ip addr; ip route show table 22512",
            "10.77.0.2 dev farspan0",
        ),
    ] {
        let look = || node.output("sh", &["-c", &format!("{look} 2>&1; true")]);
        assert!(look().contains(expected), "{what} is there: {}", look());
        node.output("sh", &["-c", deletion]);
        let ((), took) = wait_until(&format!("{what} is put back"), REPAIRED, || {
            let now = look();
            if now.contains(expected) {
                Ok(())
            } else {
                Err(now)
            }
        });
        eprintln!("{what}: put back after {took:?}");
        wait_ping(&a, &b);
    }
    a.wait_direct("b", HEALED);
    let filter = node.output("nft", &["list", "table", "inet", "farspan"]);
    assert!(filter.contains("demux_out"), "{filter}");
}

#[test]
fn a_port_that_is_taken_while_the_device_is_gone_is_replaced_by_another() {
    let lab = Lab::new();
    let mut hub = founder(&lab, lab.public_host("hub"));
    hub.up();
    let port = |node: &Node| {
        node.status()
            .map(|status| status["node"]["listen_port"].as_u64())
    };
    let first = port(&hub).ok().flatten().expect("a port");
    let node = &hub.host.namespace;
    hub.signal(Signal::SIGSTOP);
    node.ip("link del farspan0");
    let _taken = node.enter(|| UdpSocket::bind(("::", first as u16)).expect("the port is free"));
    hub.signal(Signal::SIGCONT);
    hub.wait_finding("port-moved", REPAIRED);
    let second = port(&hub).ok().flatten().expect("a port");
    assert_ne!(second, first);
    assert_eq!(wg(&hub, "listen-port"), format!("{second}\n"));
    let filter = node.output("nft", &["list", "table", "inet", "farspan"]);
    assert!(
        filter.contains(&format!("udp sport set {second}")),
        "{filter}"
    );
}

#[test]
fn regions_behind_nats_and_firewalls_of_one_port_meet_and_heal_when_the_nats_forget() {
    let lab = Lab::new();
    let (west, east) = (lab.site("west", PRC), lab.site("east", PRC));
    let mut hub = founder(&lab, lab.public_host("hub"));
    hub.up();
    firewall(&hub);
    let mut paris = Node::new(&lab, west.host("paris")).with_pod(&lab, 1);
    let mut tokyo = Node::new(&lab, east.host("tokyo")).with_pod(&lab, 2);
    for node in [&mut paris, &mut tokyo] {
        node.up();
        firewall(node);
        node.join(&hub);
    }
    let scene = TwoRegions {
        tokyo,
        paris,
        hub,
        west,
        east,
        lab,
    };
    let (peer, took) = scene.paris.wait_direct("tokyo", PATIENCE);
    eprintln!("direct after {took:?}");
    scene.tokyo.wait_direct("paris", PATIENCE);
    let remote = peer["path"]["remote"].as_str().unwrap_or("").to_owned();
    assert!(
        remote.starts_with(&scene.east.public_address().to_string()),
        "{peer}"
    );
    assert_pods_meet(&scene.paris, &scene.tokyo);

    let (from, to) = (scene.paris.pod(), scene.tokyo.pod());
    let pings = Pings::start(
        &from.namespace,
        to.ipv4.into(),
        1500,
        Duration::from_millis(10),
    );
    wait_flow(&scene.tokyo);
    scene.west.forget_mappings();
    scene.east.forget_mappings();
    let report = pings.finish();
    eprintln!("mappings forgotten: {report:?}");
    assert!(report.longest_gap < HEALED, "{report:?}");
    assert_pods_meet(&scene.paris, &scene.tokyo);
}

#[test]
fn an_agent_killed_and_restarted_takes_device_and_sessions_over_and_no_ping_is_lost() {
    let mut scene = TwoRegions::connected(PRC, PRC);
    let (from, to) = (scene.tokyo.pod().clone(), scene.paris.pod().clone());
    wait_until("pods meet", PATIENCE, || {
        ping_once(&from.namespace, to.ipv4.into())
    });
    let before = (index(&scene.paris), wg(&scene.paris, "latest-handshakes"));
    let pings = Pings::start(
        &from.namespace,
        to.ipv4.into(),
        1000,
        Duration::from_millis(10),
    );
    wait_flow(&scene.tokyo);
    scene.paris.kill();
    scene.paris.start();
    let (_, took) = scene.paris.wait_direct("tokyo", PATIENCE);
    eprintln!("direct {took:?} after the restart");
    wait_flow(&scene.tokyo);
    let after = (index(&scene.paris), wg(&scene.paris, "latest-handshakes"));
    let report = pings.finish();
    eprintln!("kill -9 and restart: {report:?}");
    assert_eq!((report.sent, report.lost()), (1000, 0), "{report:?}");
    assert_eq!(after, before, "device and sessions are the same");
    let report = Pings::start(
        &from.namespace,
        to.ipv4.into(),
        500,
        Duration::from_millis(10),
    )
    .finish();
    assert_eq!(report.lost(), 0, "after the restart: {report:?}");
    assert_pods_meet(&scene.paris, &scene.tokyo);
}

#[test]
fn a_key_is_rotated_under_pings_to_three_peers_without_losing_one() {
    let lab = Lab::new();
    let mut hub = founder(&lab, lab.public_host("hub"));
    hub.up();
    let mut node = Node::new(&lab, lab.site("home", PRC).host("node"));
    let mut others = ["east", "west"].map(|name| Node::new(&lab, lab.public_host(name)));
    for node in std::iter::once(&mut node).chain(&mut others) {
        node.up();
        node.join(&hub);
    }
    let peers: Vec<&Node> = std::iter::once(&hub).chain(&others).collect();
    for peer in &peers {
        node.wait_direct(peer.name(), PATIENCE);
        wait_ping(&node, peer);
    }
    let old = wg(&node, "public-key").trim().to_owned();
    let pings: Vec<_> = peers
        .iter()
        .map(|peer| {
            Pings::start(
                &node.host.namespace,
                overlay_ipv4(peer),
                1000,
                Duration::from_millis(5),
            )
        })
        .collect();
    wait_flow(&node);
    let (_, took) = timed(|| node.ok(&["key", "rotate"]));
    eprintln!("rotated in {took:?}");
    wait_flow(&node);
    let reports: Vec<PingReport> = pings.into_iter().map(Pings::finish).collect();
    eprintln!("rotation: {reports:?}");
    for (peer, report) in peers.iter().zip(&reports) {
        let counted = (report.sent, report.lost());
        assert_eq!(counted, (1000, 0), "to {}: {reports:?}", peer.name());
    }
    let new = wg(&node, "public-key").trim().to_owned();
    assert_ne!(new, old);
    for peer in &peers {
        wait_until("no reader holds the old key", PATIENCE, || {
            let held = wg(peer, "peers") + &peer.status()?.to_string();
            if held.contains(&new) && !held.contains(&old) {
                Ok(())
            } else {
                Err(held)
            }
        });
        wait_ping(&node, peer);
    }
}
