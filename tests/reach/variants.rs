//! What else stands before nodes: pairs without any relay, until the first datagram from pod to pod is answered. It
//! travelled the direct path, for there is no other; that `status` says so too is asserted after each pair.

use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, Instant};

use crate::lab::agent::PATIENCE;
use crate::lab::traffic::{ECHO_PORT, Echo};
use crate::lab::{Lab, Nat, NatKind, Node, Site};
use crate::scene::{TwoRegions, founder};

/// How long after a try without an answer the next one follows.
const PACE: Duration = Duration::from_millis(5);

/// Prints the table.
pub fn print(trials: usize) {
    println!("| first node behind | second node behind | path | trials | median | p95 | slowest |");
    println!("|---|---|---|---|---|---|---|");
    let prc = Nat::new(NatKind::Prc);
    let np = Nat::new(NatKind::PrcNotPreserving);
    for (west, east) in [
        (Nat::new(NatKind::Open), prc),
        (prc, np),
        (np, np),
        (Nat::new(NatKind::Firewall), prc),
        (prc.behind(NatKind::Prc), prc),
        (prc.ipv6(), prc.ipv6()),
    ] {
        let mut scene = TwoRegions::connected(west, east);
        let site = &scene.east;
        let times = restarts(trials, &scene.paris, &mut scene.tokyo, site);
        report(&words(west), &words(east), &scene.paris, "tokyo", times);
    }
    for nat in [prc, prc.hairpin()] {
        let lab = Lab::new();
        let site = lab.site("home", nat);
        let mut hub = founder(&lab, lab.public_host("hub"));
        hub.up();
        let [attic, mut cellar] = [("attic", 1), ("cellar", 2)].map(|(name, number)| {
            let mut node = Node::new(&lab, site.host(name)).with_pod(&lab, number);
            node.up();
            node.join(&hub);
            node
        });
        attic.wait_direct("cellar", PATIENCE);
        let times = restarts(trials, &attic, &mut cellar, &site);
        report(&words(nat), "the same NAT", &attic, "cellar", times);
    }
}

/// Seconds from each start of `second` to the first answer.
fn restarts(trials: usize, first: &Node, second: &mut Node, site: &Site) -> Vec<Duration> {
    let _echo = Echo::start(&second.pod().namespace);
    let (from, to) = (first.pod().namespace.clone(), IpAddr::V4(second.pod().ipv4));
    let mut times = Vec::new();
    for _ in 0..trials {
        second.kill();
        site.forget_mappings();
        let start = Instant::now();
        second.start();
        times.push(from.enter(|| answered_after(start, to)));
        second.wait_answering();
    }
    times
}

fn answered_after(start: Instant, server: IpAddr) -> Duration {
    let socket = UdpSocket::bind(("0.0.0.0", 0)).expect("a socket");
    socket
        .connect((server, ECHO_PORT))
        .expect("an address to send to");
    socket
        .set_read_timeout(Some(PACE))
        .expect("a timeout can be set");
    let mut buffer = [0; 512];
    while start.elapsed() < PATIENCE {
        // An error is an answer too late or the blackhole's: try again, as a person's program would.
        if socket.send(b"?").is_err() {
            crate::lab::wait::pause(PACE);
        } else if socket.recv(&mut buffer).is_ok() {
            return start.elapsed();
        }
    }
    panic!("{server} did not answer within {PATIENCE:?}");
}

fn report(west: &str, east: &str, node: &Node, peer: &str, mut times: Vec<Duration>) {
    let (status, _) = node.wait_direct(peer, PATIENCE);
    times.sort();
    let at = |share: f64| {
        let index = ((times.len() - 1) as f64 * share).round() as usize;
        format!("{:.2} s", times[index].as_secs_f64())
    };
    println!(
        "| {west} | {east} | {} | {} | {} | {} | {} |",
        status["path"]["kind"].as_str().unwrap_or("none"),
        times.len(),
        at(0.5),
        at(0.95),
        at(1.0)
    );
}

fn words(nat: Nat) -> String {
    let kind = match nat.kind {
        NatKind::Open => "1:1 NAT",
        NatKind::Firewall => "1:1 NAT with firewall",
        NatKind::Eif => "EIM, EIF",
        NatKind::Adf => "EIM, ADF",
        NatKind::Prc => "EIM, APDF",
        NatKind::PrcNotPreserving => "EIM, APDF, ports not kept",
        NatKind::ByAddress => "ADM, APDF",
        NatKind::Sequential => "APDM, APDF, ports in sequence",
        NatKind::Block => "APDM, APDF, ports of a block",
        NatKind::Symmetric => "APDM, APDF, any port",
    };
    let mut out = kind.to_owned();
    if nat.carrier.is_some() {
        out.push_str(", behind a carrier's");
    }
    if nat.accepts {
        out.push_str(", router accepts early packets");
    }
    if nat.hairpin {
        out.push_str(", hairpin");
    }
    if nat.ipv6 {
        out.push_str("; IPv6 behind a firewall");
    }
    out
}
