//! A path that breaks under traffic, and comes back: in which order the kernel's endpoint moves, and what that loses.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cell::{Class, Pair};
use crate::lab::Node;
use crate::lab::agent::PATIENCE;
use crate::lab::internet::LinkState;
use crate::lab::traffic::Pings;
use crate::lab::wait::{pause, wait_until};

const EVERY: Duration = Duration::from_millis(50);
/// More pings than a test has time for.
const MANY: u32 = 100_000;
/// By then the pair counts as active, and is met at the relay as well.
const STANDING_BY: Duration = Duration::from_secs(20);
/// Looking for a direct path again takes up to a minute; emulation is slow.
const HEALED: Duration = Duration::from_secs(150);
/// Pings between two looks.
const BATCH: u32 = 40;
/// Looks after the way back: what was late by the relay has arrived.
const SETTLED: u32 = 4;

#[test]
fn a_path_that_is_cut_goes_on_by_the_relay_and_comes_back_direct_without_loss() {
    let pair = Pair::new(Class::Apdf, Class::Apdf);
    pair.paris.wait_direct("tokyo", PATIENCE);
    pair.tokyo.wait_direct("paris", PATIENCE);
    let (west, east) = (pair.west.public_address(), pair.east.public_address());
    let (hub, from) = (pair.hub.host.ipv4, &pair.paris.pod().namespace);
    let to = IpAddr::V4(pair.tokyo.pod().ipv4);
    assert_endpoints(&pair, [east, west].map(IpAddr::V4));

    let pings = Pings::start(from, to, MANY, EVERY);
    pause(STANDING_BY);
    pair.lab.set_between(west, east, LinkState::Cut);
    pair.wait_relayed();
    assert_endpoints(&pair, [hub, hub].map(IpAddr::V4));
    pings.stop();

    pair.lab.set_between(west, east, LinkState::Whole);
    let mended = Instant::now();
    let mut batches = 0;
    while batches < SETTLED {
        let report = Pings::start(from, to, BATCH, EVERY).finish();
        assert_eq!(report.lost(), 0, "after {:?}: {report:?}", mended.elapsed());
        let states = [pair.paris.peer("tokyo"), pair.tokyo.peer("paris")];
        let direct = |peer: &Result<Value, String>| {
            peer.as_ref().is_ok_and(|peer| peer["state"] == "direct")
        };
        if states.iter().all(direct) {
            batches += 1;
        }
        assert!(mended.elapsed() < HEALED, "{states:?}");
    }
    println!(
        "direct again, and no ping lost, after {:?}",
        mended.elapsed()
    );
    assert_endpoints(&pair, [east, west].map(IpAddr::V4));
}

/// Where the kernel of paris sends what is for tokyo, and the other way about.
fn assert_endpoints(pair: &Pair, wanted: [IpAddr; 2]) {
    let ends = [(&pair.paris, "tokyo"), (&pair.tokyo, "paris")];
    for ((node, peer), wanted) in ends.into_iter().zip(wanted) {
        wait_until(
            &format!("{} sends by {wanted}", node.name()),
            PATIENCE,
            || {
                let found = endpoint(node, peer)?;
                let there = found.starts_with(&format!("{wanted}:"));
                there.then_some(()).ok_or(found)
            },
        );
    }
}

fn endpoint(node: &Node, peer: &str) -> Result<String, String> {
    let key = node.peer(peer)?["public_key"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let all = node
        .host
        .namespace
        .output("wg", &["show", "farspan0", "endpoints"]);
    let line = all.lines().find_map(|line| line.strip_prefix(&key));
    line.map(|end| end.trim().to_owned()).ok_or(all)
}
