//! Many runs with random faults: what can connect does, nothing flaps, nobody is flooded.

use std::collections::BTreeMap;
use std::time::Duration;

use nat_traversal::Event;

use crate::net::{Net, Payload, host};

const SECOND: Duration = Duration::from_secs(1);

struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % below
    }
}

fn ordered_pairs(count: usize) -> Vec<(usize, usize)> {
    (0..count)
        .flat_map(|a| (0..count).filter(move |b| *b != a).map(move |b| (a, b)))
        .collect()
}

fn all_pass(net: &mut Net) -> bool {
    ordered_pairs(net.nodes.len())
        .into_iter()
        .all(|(a, b)| net.passes(a, b))
}

#[test]
fn whatever_happens_all_pairs_come_together_again_and_then_stay() {
    for seed in 0..20 {
        let mut dice = Dice(seed);
        let mut net = Net::new();
        net.node("192.0.2.1", None);
        for index in 0..2 + dice.roll(4) {
            let site = net.nat(&format!("203.0.113.{}", index + 1));
            net.nats[site].filtering = dice.roll(3) > 0;
            for inner in 0..=dice.roll(2) {
                net.node(&format!("10.{index}.0.{}", inner + 2), Some(site));
            }
        }
        let pairs = ordered_pairs(net.nodes.len());
        for (a, b) in &pairs {
            net.tell(*a, *b);
            net.run(Duration::from_millis(u64::try_from(dice.roll(50)).unwrap()));
            if a < b {
                net.traffic.push((*a, *b));
            }
        }
        // A tenth is lost while things happen.
        net.drop = Some(|packet| match &packet.payload {
            Payload::Control(bytes) => bytes.last().is_some_and(|byte| byte % 10 == 0),
            Payload::Tunnel(..) => false,
        });
        let connected = net.until(40 * SECOND, all_pass);
        assert!(connected.is_some(), "seed {seed}: never connected");
        for fault in 0..5 {
            match dice.roll(4) {
                0 => {
                    let nat = dice.roll(net.nats.len());
                    net.forget_mappings(nat);
                }
                1 => {
                    for nat in 0..net.nats.len() {
                        net.forget_mappings(nat);
                    }
                }
                2 => {
                    let node = 1 + dice.roll(net.nodes.len() - 1);
                    let site = net.nat(&format!("198.51.100.{}", net.nats.len()));
                    net.nodes[node].ip =
                        format!("10.{}.7.7", 100 + net.nats.len()).parse().unwrap();
                    net.nodes[node].site = Some(site);
                    let (now, moved) = (net.now, [host(net.nodes[node].ip)]);
                    net.nodes[node]
                        .traversal
                        .set_host_addresses(&moved, false, now);
                    net.drain(node);
                }
                _ => {
                    let node = dice.roll(net.nodes.len());
                    net.restart(node, 1_800_000_000 + fault * 100);
                    for peer in (0..net.nodes.len()).filter(|peer| *peer != node) {
                        net.tell(node, peer);
                    }
                }
            }
            net.run(Duration::from_millis(
                u64::try_from(dice.roll(5000)).unwrap(),
            ));
        }
        let healed = net.until(60 * SECOND, all_pass);
        assert!(healed.is_some(), "seed {seed}: never healed");
        net.drop = None;
        net.run(60 * SECOND);
        for node in &mut net.nodes {
            node.events.clear();
            node.sent.clear();
        }
        net.run(120 * SECOND);
        assert!(all_pass(&mut net), "seed {seed}: broke by itself");
        for (index, node) in net.nodes.iter().enumerate() {
            let flaps = node.events.iter();
            let flaps = flaps
                .filter(|(_, e)| matches!(e, Event::PathChanged { .. }))
                .count();
            assert_eq!(flaps, 0, "seed {seed}: node {index} flaps");
            let mut seconds = BTreeMap::new();
            for (at, ..) in &node.sent {
                *seconds.entry((*at - net.start).as_secs()).or_insert(0) += 1;
            }
            let most = seconds.values().max().copied().unwrap_or_default();
            assert!(
                most <= 10 * net.nodes.len(),
                "seed {seed}: {most} packets in a second"
            );
        }
    }
}
