//! Pods behind links that carry less than most, where ICMP does not come back.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::lab::agent::PATIENCE;
use crate::lab::netns::{Namespace, run};
use crate::lab::traffic::{Echo, bulk, udp_exchange};
use crate::lab::{Host, Lab, Node};

/// For a download; generous, for machines that are busy or emulated.
const SOON: Duration = Duration::from_secs(20);
/// What a download takes, bytes.
const BULK: u64 = 4 << 20;

/// The link of a host carries packets up to `mtu`, and drops longer ones without a word.
pub fn narrow(lab: &Lab, host: &Host, mtu: u16) {
    let link = format!("w{}", host.ipv4.octets()[2]);
    lab.internet().ip(&format!("link set {link} mtu {mtu}"));
    let silent = format!(
        "table inet silent{mtu} {{
 chain output {{ type filter hook output priority 0; icmp type destination-unreachable drop; icmpv6 type packet-too-big drop; }}
}}
"
    );
    lab.internet().nft(&silent);
}

/// What is said of a ping of 1380 bytes that must not be fragmented, and is not answered.
pub fn refused_ping(from: &Namespace, to: IpAddr) -> String {
    let to = to.to_string();
    let ping = ["-c", "1", "-W", "1", "-M", "do", "-s", "1380", &to];
    let output = from.command("ping").args(ping).output();
    let output = output.expect("ip is installed");
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(!output.status.success(), "{said}");
    said
}

/// Two members with a pod each behind a narrow link of the first one, connected by one family outside.
fn pods(lab: &Lab, link: u16, outside: &str) -> [Node; 2] {
    let hosts = ["a", "b"].map(|name| lab.public_host(name));
    for host in &hosts {
        match outside {
            "IPv4" => host
                .namespace
                .sysctl("net/ipv6/conf/eth0/disable_ipv6", "1"),
            _ => host
                .namespace
                .ip("addr flush dev eth0 scope global to 0.0.0.0/0"),
        }
    }
    narrow(lab, &hosts[0], link);
    let [a, b] = hosts;
    let mut a = Node::new(lab, a).with_pod(lab, 1);
    a.ok(&["init"]);
    a.up();
    let mut b = Node::new(lab, b).with_pod(lab, 2);
    b.up();
    b.join(&a);
    a.wait_direct("b", PATIENCE);
    b.wait_direct("a", PATIENCE);
    [a, b]
}

#[test]
fn pods_behind_a_narrow_link_lose_nothing_whatever_the_families_inside_and_outside() {
    for (link, outside, bound) in [
        (1400, "IPv4", 1344),
        (1300, "IPv4", 1280),
        (1400, "IPv6", 1312),
        (1300, "IPv6", 1280),
    ] {
        let lab = Lab::new();
        let nodes = pods(&lab, link, outside);
        let connected = Instant::now();
        let [a, b] = nodes.each_ref().map(Node::pod);
        for to in [IpAddr::from(b.ipv4), b.ipv6.into()] {
            let took = bulk(&a.namespace, &b.namespace, to, BULK);
            let (of, all) = (BULK >> 20, connected.elapsed());
            eprintln!(
                "{link}, {outside} outside: {of} MiB to {to} in {took:?}, {all:?} after the path"
            );
            assert!(took < SOON, "{took:?}");
            let back = if to.is_ipv4() {
                IpAddr::from(a.ipv4)
            } else {
                a.ipv6.into()
            };
            bulk(&b.namespace, &a.namespace, back, BULK);
        }
        for (from, to) in [(a, b), (b, a)] {
            let _echo = Echo::start(&to.namespace);
            for to in [IpAddr::from(to.ipv4), to.ipv6.into()] {
                for size in [1400, 1232, 1220, 1190] {
                    let answered = udp_exchange(&from.namespace, to, 100, size);
                    assert!(
                        answered >= 95,
                        "{answered} of 100 datagrams of {size} bytes to {to} over {link}, {outside} outside"
                    );
                }
                // The host tells the pod, once and again.
                let mtu = if to.is_ipv4() { "mtu" } else { "too" };
                let said = refused_ping(&from.namespace, to);
                assert!(said.contains(mtu), "{said}");
            }
        }
        // What it was told while the path was being measured was less, and is remembered for minutes.
        run(a
            .namespace
            .command("ip")
            .args(["-6", "route", "flush", "cache"]));
        let said = refused_ping(&a.namespace, b.ipv6.into());
        assert!(said.contains(&bound.to_string()), "{bound}: {said}");
    }
}
