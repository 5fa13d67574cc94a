//! Whom a relay refuses. What it does for those it serves is shown in the simulated mesh.

use std::time::Duration;

use crate::net::Net;
use nat_traversal::{PeerSpec, RelaySettings};

const SETTINGS: RelaySettings = RelaySettings {
    ports: (28_672, 29_183),
    pair_rate: 0,
    node_rate: 0,
};

/// A node, a relay that it reaches, and a peer that is not there. The relay knows of the peer where asked for.
fn trio(serves: bool, knows: bool) -> (Net, usize, usize) {
    let mut net = Net::new();
    let a = net.node("192.0.2.1", None);
    let r = net.node("192.0.2.2", None);
    let b = net.node("192.0.2.3", None);
    net.nodes[b].up = false;
    let spec = PeerSpec {
        relay_capable: true,
        ..net.spec(r, vec![net.host_candidate(r)])
    };
    let (id, now) = (net.nodes[r].id, net.now);
    net.nodes[a].traversal.upsert_peer(id, spec, now);
    net.tell(r, a);
    net.tell(a, b);
    if knows {
        net.tell(r, b);
    }
    let settings = serves.then_some(SETTINGS);
    net.nodes[r].traversal.set_relay(settings, now);
    (net, a, r)
}

#[test]
fn a_relay_serves_members_only_and_only_for_peers_it_reaches() {
    for (serves, knows, refused) in [
        (true, false, "refused-relay-peer"),
        (true, true, "refused-relay-absent"),
        (false, false, "refused-relay-off"),
        (false, true, "refused-relay-off"),
    ] {
        let (mut net, a, r) = trio(serves, knows);
        net.run(Duration::from_secs(60));
        let relay = &net.nodes[r].traversal;
        let times = relay.counters().value(refused);
        assert!((1..=12).contains(&times), "{refused}: {times} in a minute");
        assert!(relay.relay_ports().is_empty() && relay.relay_pairs().is_empty());
        let asking = &net.nodes[a].traversal;
        assert_eq!(asking.counters().value("relay-bound"), 0);
        assert_eq!(asking.relays().len(), 1);
        assert_eq!(asking.home_relays().len(), 1);
    }
}
