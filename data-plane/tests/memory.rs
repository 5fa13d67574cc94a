//! What a peer costs in memory, counted by the allocator.

use std::alloc::System;

use common::{Node, peer, secret, start};
use mesh_types::key::WgKey;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[expect(dead_code, reason = "other tests use more of it")]
mod common;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Bytes that are held afterwards and were not before.
fn held(what: impl FnOnce()) -> isize {
    let region = Region::new(ALLOCATOR);
    what();
    let change = region.change();
    change.bytes_allocated as isize - change.bytes_deallocated as isize
}

// One test: what runs beside it would be counted, too.
#[test]
fn a_peer_that_never_talked_takes_a_kilobyte_and_one_with_a_session_sixteen() {
    let now = start();
    let mut node = Node::new(&secret(1), "192.0.2.1:1000");
    for n in 0..1000u16 {
        let [high, low] = n.to_be_bytes();
        let key = WgKey([high, low].repeat(16).try_into().unwrap());
        let ranges = [
            format!("10.{high}.{low}.0/24"),
            format!("fd00::{high:x}:{low:x}/128"),
        ];
        let planned = peer(
            &[&ranges[0], &ranges[1]],
            Some("192.0.2.2:1".parse().unwrap()),
        );
        node.plan.peers.insert(key, planned);
    }
    let Node { core, plan, .. } = &mut node;
    let idle = held(|| core.apply(plan, now)) / 1000;
    assert!(idle <= 1024, "{idle} bytes a peer");

    let mut callers = Vec::new();
    for n in 10..60 {
        let range = format!("10.200.0.{n}/32");
        let mut caller = Node::new(&secret(n), &format!("198.51.100.{n}:1"));
        let planned = peer(&["10.0.0.1/32"], Some(node.address));
        caller.set_peer(secret(1).public(), planned, now);
        let known = peer(&[&range], Some(caller.address));
        node.plan.peers.insert(secret(n).public(), known);
        callers.push(caller);
    }
    node.apply(now);
    node.turn(now);
    let mut sessions = 0;
    for (n, caller) in callers.iter_mut().enumerate() {
        let source = format!("10.200.0.{}", n + 10);
        caller.send(&common::packet(&source, "10.0.0.1", 1000, 1), now);
        caller.turn(now);
        let (_, initiation) = caller.take().remove(0);
        let answered = held(|| {
            node.receive(caller.address, &initiation, now);
            node.turn(now);
        });
        caller.receive(node.address, &node.take().remove(0).1, now);
        caller.turn(now);
        let said = caller.take();
        let confirmed = held(|| {
            for (_, datagram) in &said {
                node.receive(caller.address, datagram, now);
            }
            node.received = Vec::new();
        });
        // The first fills the buffers that all share.
        if n > 0 {
            sessions += answered + confirmed;
        }
    }
    assert_eq!(node.count(data_plane::counters::Count::Handshakes), 50);
    let session = idle + sessions / 49;
    assert!(session <= 16 * 1024, "{session} bytes a peer");
}
