//! Nobody makes a node send to a victim more than the budgets allow.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::lab::wait::pause;
use crate::lab::wire::{Datagram, Wire};
use crate::lab::{Lab, Node};

/// Forged peers, and addresses of each.
const FORGED: (usize, usize) = (50, 20);
/// To one address that nobody confirmed, in any second, as the algorithm of `nat-traversal` says.
const A_SECOND: usize = 20;
/// To each candidate in a burst, and in each rendezvous by the clock.
const EACH: usize = 7 + 2 * 3;
/// Longer than the period of a rendezvous by the clock.
const WATCHED: Duration = Duration::from_secs(40);

#[test]
fn a_thousand_forged_candidates_at_one_victim_bring_it_no_more_than_the_budgets_allow() {
    let lab = Lab::new();
    let victim = lab.public_host("victim");
    let mut node = Node::new(&lab, lab.public_host("node"));
    let key = node.ok(&["key", "gen"]);
    std::fs::write(node.file("private.key"), key).expect("the node's directory is writable");
    crate::scene::set_mode_600(&node.file("private.key"));
    let mut config = format!(
        "[node]\naddresses = [\"10.77.0.1/32\"]\nprivate-key-file = \"{}\"\n",
        node.file("private.key").display()
    );
    for peer in 0..FORGED.0 {
        let ports = (0..FORGED.1).map(|port| 2000 + peer * FORGED.1 + port);
        let endpoints: Vec<String> = ports
            .map(|port| format!("\"{}:{port}\"", victim.ipv4))
            .collect();
        let _ = writeln!(
            config,
            "[[peer]]\nname = \"forged-{peer}\"\npublic-key = \"{}\"\nendpoints = [{}]\nallowed-ips = [\"10.77.1.{peer}/32\"]",
            public_key(&node),
            endpoints.join(", "),
        );
    }
    node.write_config(&config);
    let wire = {
        let address = victim.ipv4;
        let at_victim = move |one: &Datagram| one.to.ip() == address;
        Wire::start(&victim.namespace, Box::new(at_victim))
    };
    let start = Instant::now();
    node.up();
    while start.elapsed() < WATCHED {
        pause(Duration::from_millis(100));
    }
    let kept = wire.kept();
    let times: Vec<Instant> = kept.iter().map(|one| one.at).collect();
    let busiest = times
        .iter()
        .enumerate()
        .map(|(index, at)| {
            let within = |later: &&Instant| later.duration_since(*at) < Duration::from_secs(1);
            times[index..].iter().take_while(within).count()
        })
        .max()
        .unwrap_or_default();
    let mut targets: Vec<SocketAddr> = kept.iter().map(|one| one.to).collect();
    targets.sort();
    let most = targets.chunk_by(|a, b| a == b).map(<[_]>::len).max();
    println!(
        "{} datagrams in {WATCHED:?}, {busiest} in the busiest second, {most:?} to the busiest port",
        kept.len()
    );
    assert!(!kept.is_empty(), "the node tried");
    // Arrivals bunch where departures did not: one more for what was late.
    assert!(busiest <= A_SECOND + 1, "{busiest} in one second");
    assert!(most <= Some(EACH), "{most:?} to one candidate");
}

fn public_key(node: &Node) -> String {
    let key = node.ok(&["key", "gen"]);
    let public = node.verb(&["key", "public"], &key).stdout;
    String::from_utf8_lossy(&public).trim().to_owned()
}
