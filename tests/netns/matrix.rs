//! The matrix of what must connect, one test a cell: real agents, a public relay, the NATs of both.
//!
//! Times are asserted within ten times the figures, because this runs on any machine beside other tests;
//! `scripts/reach` measures them.

use std::time::Duration;

use crate::cell::{Class, FIRST_PACKET, Pair, Way, entry};
use crate::lab::{Nat, NatKind};
use crate::scene::assert_pods_meet;

/// How much slower than on a quiet machine. Two blocks of ports miss each other in one of fifty rounds; the next one
/// fits in.
const SLACK: u32 = 10;
/// How long a relayed pair is watched.
const WATCHED: Duration = Duration::from_secs(10);

macro_rules! cells {
    ($($name:ident: $west:ident, $east:ident;)*) => {
        $(#[test]
        fn $name() {
            assert_cell(Class::$west, Class::$east);
        })*

        #[test]
        fn every_cell_of_the_matrix_has_a_test() {
            let tested = [$((Class::$west, Class::$east)),*];
            assert_eq!(tested.to_vec(), Class::pairs().collect::<Vec<_>>());
        }
    };
}

cells! {
    an_open_nat_and_an_open_one_meet_directly: Open, Open;
    an_open_nat_and_an_address_filtering_one_meet_directly: Open, Adf;
    an_open_nat_and_a_port_filtering_one_meet_directly: Open, Apdf;
    an_open_nat_and_one_that_maps_by_address_meet_directly: Open, Adm;
    an_open_nat_and_a_sequential_one_meet_directly: Open, Seq;
    an_open_nat_and_a_block_of_ports_meet_directly: Open, Blk;
    an_open_nat_and_random_ports_meet_directly: Open, Rand;
    an_open_nat_and_no_udp_on_the_other_side_are_relayed: Open, NoUdp;
    two_address_filtering_nats_meet_directly: Adf, Adf;
    an_address_filtering_nat_and_a_port_filtering_one_meet_directly: Adf, Apdf;
    an_address_filtering_nat_and_one_that_maps_by_address_meet_directly: Adf, Adm;
    an_address_filtering_nat_and_a_sequential_one_meet_directly: Adf, Seq;
    an_address_filtering_nat_and_a_block_of_ports_meet_directly: Adf, Blk;
    an_address_filtering_nat_and_random_ports_meet_directly: Adf, Rand;
    an_address_filtering_nat_and_no_udp_on_the_other_side_are_relayed: Adf, NoUdp;
    two_port_filtering_nats_meet_directly: Apdf, Apdf;
    a_port_filtering_nat_and_one_that_maps_by_address_meet_directly: Apdf, Adm;
    a_port_filtering_nat_and_a_sequential_one_meet_directly: Apdf, Seq;
    a_port_filtering_nat_and_a_block_of_ports_meet_directly: Apdf, Blk;
    a_port_filtering_nat_and_random_ports_meet_directly: Apdf, Rand;
    a_port_filtering_nat_and_no_udp_on_the_other_side_are_relayed: Apdf, NoUdp;
    two_nats_that_map_by_address_are_relayed: Adm, Adm;
    a_nat_that_maps_by_address_and_a_sequential_one_are_relayed: Adm, Seq;
    a_nat_that_maps_by_address_and_a_block_of_ports_are_relayed: Adm, Blk;
    a_nat_that_maps_by_address_and_random_ports_are_relayed: Adm, Rand;
    a_nat_that_maps_by_address_and_no_udp_on_the_other_side_are_relayed: Adm, NoUdp;
    two_sequential_nats_meet_directly: Seq, Seq;
    a_sequential_nat_and_a_block_of_ports_are_relayed: Seq, Blk;
    a_sequential_nat_and_random_ports_are_relayed: Seq, Rand;
    a_sequential_nat_and_no_udp_on_the_other_side_are_relayed: Seq, NoUdp;
    two_blocks_of_ports_meet_directly: Blk, Blk;
    a_block_of_ports_and_random_ports_are_relayed: Blk, Rand;
    a_block_of_ports_and_no_udp_on_the_other_side_are_relayed: Blk, NoUdp;
    random_ports_on_both_sides_are_relayed: Rand, Rand;
    random_ports_and_no_udp_on_the_other_side_are_relayed: Rand, NoUdp;
    without_udp_on_both_sides_a_pair_is_connected_by_tcp: NoUdp, NoUdp;
}

fn assert_cell(west: Class, east: Class) {
    let mut pair = Pair::new(west, east);
    let (way, figure) = (west.way(east), west.figure(east));
    let most = figure * SLACK;
    let trial = pair.trial(most, Some(way));
    println!("{west} with {east}: {trial:?}");
    let first = trial.first.expect("a first packet is answered");
    assert!(
        first < FIRST_PACKET * SLACK,
        "the first packet took {first:?}"
    );
    assert_pods_meet(&pair.paris, &pair.tokyo);
    match way {
        Way::Direct => {
            assert!(trial.direct.is_some(), "not direct within {most:?}");
            assert_off_relay(&pair);
        }
        Way::Relay => {
            let (silence, changes) = pair.watch(WATCHED);
            assert!(silence < Duration::from_secs(1), "silent for {silence:?}");
            assert_eq!(changes, Vec::<String>::new());
            for (node, peer) in [(&pair.paris, "tokyo"), (&pair.tokyo, "paris")] {
                let entry = entry(&node.ask("/status").expect("the agent answers"), peer);
                assert_eq!(entry["state"], "relayed", "{entry}");
                let kind = entry["path"]["kind"].as_str().unwrap_or_default();
                let by_turn = [west, east].contains(&Class::NoUdp);
                let expected = if by_turn { "turn-" } else { "node-relay" };
                assert!(kind.starts_with(expected), "{entry}");
            }
            let (sent, relayed) = pair.weigh();
            assert!(
                relayed > sent * 2,
                "{sent} bytes were sent, and {relayed} crossed the relay's link"
            );
        }
    }
}

#[test]
fn routers_that_take_early_packets_for_themselves_are_passed_by_openers() {
    let nat = Nat::new(NatKind::Prc).accepting();
    let mut pair = Pair::behind(nat, nat, false, "");
    // The second to start sends to the first's router while that does not expect it: a silence must pass, and where
    // the kernel has not swept its table meanwhile, a second one.
    let trial = pair.trial(Duration::from_secs(300), Some(Way::Direct));
    println!("port filtering, early packets accepted: {trial:?}");
    let first = trial.first.expect("a first packet is answered");
    assert!(
        first < FIRST_PACKET * SLACK,
        "the first packet took {first:?}"
    );
    assert!(trial.direct.is_some(), "not direct");
    assert_off_relay(&pair);
}

fn assert_off_relay(pair: &Pair) {
    let (sent, relayed) = pair.weigh();
    assert!(
        relayed < sent / 10,
        "of {sent} bytes {relayed} crossed the relay's link"
    );
}
