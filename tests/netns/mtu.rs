//! Underlays that carry less than most, where ICMP does not come back and fragments are dropped.

use std::net::IpAddr;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::lab::agent::PATIENCE;
use crate::lab::traffic::{Echo, udp_exchange};
use crate::lab::wait::wait_until;
use crate::lab::{Host, Lab, Node};
use crate::narrow::{narrow, refused_ping};
use crate::scene::{overlay_ipv4, static_pair};

/// The figure is 3 s.
const SOON: Duration = Duration::from_secs(10);

/// The host has IPv4 outside only, and its provider drops fragments.
fn without_fragments(host: &Host) {
    host.namespace
        .sysctl("net/ipv6/conf/eth0/disable_ipv6", "1");
    host.namespace.nft(
        "table inet whole {
 chain input { type filter hook prerouting priority -450; iifname eth0 ip frag-off & 0x3fff != 0 drop; }
}
",
    );
}

fn wait_mtu(node: &Node, peer: &str, mtu: u16) -> Duration {
    let start = Instant::now();
    let check = || {
        let found = node.peer(peer)?["mtu"].clone();
        (found == mtu).then_some(()).ok_or(format!("{found}"))
    };
    wait_until(
        &format!("{} knows the path's MTU", node.name()),
        SOON,
        check,
    );
    start.elapsed()
}

/// A packet of 1400 bytes and more that must not be fragmented is refused, and the refusal names the MTU.
fn assert_refused(host: &Host, to: IpAddr, mtu: u16) {
    let said = refused_ping(&host.namespace, to);
    assert!(said.contains(&mtu.to_string()), "{said}");
}

#[test]
fn what_a_silent_underlay_carries_is_found_and_nothing_falls_into_it() {
    // Outside by IPv4, 60 bytes longer than inside; inside by sixteen. A veth takes in four bytes more than it
    // sends out, for a VLAN's tag.
    for (link, out, into) in [(1400, 1344, 1328), (1300, 1232, 1232)] {
        let lab = Lab::new();
        let (mut a, mut b) = static_pair(&lab);
        narrow(&lab, &a.host, link);
        without_fragments(&a.host);
        without_fragments(&b.host);
        a.up();
        b.up();
        a.wait_direct("b", PATIENCE);
        b.wait_direct("a", PATIENCE);
        let found = wait_mtu(&a, "b", out).max(wait_mtu(&b, "a", into));
        eprintln!("{link} outside, {out} and {into} inside: found {found:?} after the path");

        let _echo = Echo::start(&b.host.namespace);
        let to: IpAddr = overlay_ipv4(&b);
        // Longer than the tunnel's own MTU and than the path's: in fragments inside.
        let answered = udp_exchange(&a.host.namespace, to, 200, 1400);
        assert!(answered >= 190, "{answered} of 200 answered over {link}");

        let mut server = b
            .host
            .namespace
            .command("iperf3")
            .args(["-s", "-1"])
            .stdout(Stdio::null())
            .spawn()
            .expect("ip is installed");
        assert_refused(&a.host, to, out);
        let to = to.to_string();
        let client = [
            "5",
            "iperf3",
            "-c",
            &to,
            "-n",
            "4M",
            "--connect-timeout",
            "1000",
        ];
        wait_until("4 MB get through by TCP", PATIENCE, || {
            let output = a.host.namespace.command("timeout").args(client).output();
            let output = output.map_err(|error| error.to_string())?;
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            let rate = said.lines().find(|line| line.ends_with("receiver"));
            eprintln!("{}", rate.unwrap_or_default());
            output.status.success().then_some(()).ok_or(said)
        });
        let _ = server.kill();
        let _ = server.wait();
    }
}

#[test]
fn a_path_that_narrows_under_way_is_noticed_while_packets_flow() {
    let lab = Lab::new();
    let (mut a, mut b) = static_pair(&lab);
    without_fragments(&a.host);
    without_fragments(&b.host);
    a.up();
    b.up();
    a.wait_direct("b", PATIENCE);
    b.wait_direct("a", PATIENCE);
    assert_eq!(a.peer("b").expect("a peer")["mtu"], 1420);
    let _echo = Echo::start(&b.host.namespace);
    let to: IpAddr = overlay_ipv4(&b);
    assert!(udp_exchange(&a.host.namespace, to, 100, 1200) >= 95);
    narrow(&lab, &a.host, 1400);
    let until = Instant::now() + SOON;
    while a.peer("b").expect("a peer")["mtu"] != 1344 {
        assert!(Instant::now() < until, "{:#}", a.peer("b").expect("a peer"));
        udp_exchange(&a.host.namespace, to, 50, 1000);
    }
    assert!(udp_exchange(&a.host.namespace, to, 200, 1400) >= 190);
}
