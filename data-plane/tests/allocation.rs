//! That packets cost no allocation, counted by the allocator.

use std::alloc::System;

use common::{Node, packet, peer, secret, settle, start};
use data_plane::segment::{SLACK, VnetHeader};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[expect(dead_code, reason = "other tests use more of it")]
mod common;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

// One test: what runs beside it would be counted, too.
#[test]
fn packets_cross_two_cores_without_an_allocation() {
    let now = start();
    let (mut a, mut b) = (
        Node::new(&secret(1), "192.0.2.1:1000"),
        Node::new(&secret(2), "192.0.2.2:2000"),
    );
    let endpoint = Some(b.address);
    a.set_peer(secret(2).public(), peer(&["10.0.0.2/32"], endpoint), now);
    b.set_peer(secret(1).public(), peer(&["10.0.0.1/32"], None), now);
    let plain = packet("10.0.0.1", "10.0.0.2", 1000, 1);
    a.send(&plain, now);
    settle(&mut a, &mut b, now);

    let mut buffer = plain.clone();
    buffer.resize(plain.len() + SLACK, 0);
    for packets in [200, 1, 44] {
        let mut turn = || {
            let region = Region::new(ALLOCATOR);
            for _ in 0..packets {
                buffer[..plain.len()].copy_from_slice(&plain);
                let header = VnetHeader::default();
                a.core
                    .handle_tun(&mut buffer, plain.len(), header, now, &mut a.out);
            }
            for message in a.out.messages() {
                for datagram in message.datagrams() {
                    let from = (a.address, None);
                    b.core
                        .handle_datagram(from, datagram, now, &mut b.inbox, &mut b.out);
                }
            }
            a.out.clear();
            b.core.open_waiting(now, &mut b.inbox, &mut b.out);
            let mut arrived = 0;
            b.inbox.drain(|_, _, count| arrived += count);
            assert_eq!(arrived, packets);
            let change = region.change();
            change.allocations + change.reallocations
        };
        // The first fills the buffers. The least of several: the thread that runs the test may allocate meanwhile.
        turn();
        let least = (0..10).map(|_| turn()).min();
        assert_eq!(least, Some(0), "for {packets} packets");
    }
}
