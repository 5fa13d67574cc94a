//! A whole node, fed through its tunnel by a peer that is vouched for and went mad.

use std::net::SocketAddr;
use std::time::Duration;

use mesh_types::consts::{CONTROL_PORT, DATAGRAM_MAX, FWMARK, FWMARK_MASK, INTERFACE, MTU};
use mesh_types::observation::ConfigPeer;
use mesh_types::report::{Backend, TunnelReport, TunnelStats};
use mesh_types::{Message, SocketId, State};
use overlay::{Config, Identity, Overlay};

use crate::harness::{Clock, fuzz};
use crate::samples;

/// Messages one node gets.
const STEPS: u64 = 24;

#[test]
fn no_message_of_a_peer_takes_the_node_or_its_other_peer_down() {
    let clock = Clock::new();
    let kinds: Vec<Vec<u8>> = samples::messages().iter().map(Message::encode).collect();
    let files = [samples::state(), State::default()];
    fuzz("node", |random| {
        let mut state = random.pick(&files).clone();
        state.authority = Some(samples::authority().authority());
        let mut node = node(state, clock);
        let mut accepted = false;
        for step in 0..STEPS {
            let millis = step * 1000;
            let bytes = random.input(&kinds);
            accepted |= Message::decode(&bytes).is_ok();
            let mad: SocketAddr = ([10, 9, 0, 2], CONTROL_PORT).into();
            let own = ([10, 9, 0, 1], CONTROL_PORT).into();
            node.handle_datagram(SocketId::Overlay, own, mad, &bytes, clock.at(millis));
            drain(&mut node);
            node.handle_timeout(clock.at(millis + 500));
            drain(&mut node);
        }
        let end = clock.at(STEPS * 1000);
        let snapshot = node.snapshot(end);
        assert!(!snapshot.peers.is_empty());
        let plan = node.host_plan();
        let quiet = plan.tunnel.peers.get(&samples::wg(50));
        let quiet = quiet.expect("the other peer is still there");
        assert!(quiet.allowed_ips.contains(&samples::net("10.9.0.50/32")));
        let mut owners: Vec<_> = plan
            .tunnel
            .peers
            .values()
            .flat_map(|p| &p.allowed_ips)
            .collect();
        let all = owners.len();
        owners.sort();
        owners.dedup();
        assert_eq!(owners.len(), all, "a range of two peers");
        let stored = node.state();
        assert_eq!(State::decode(&stored.encode()), Ok(stored));
        accepted
    });
}

fn node(state: State, clock: Clock) -> Overlay {
    let identity = Identity {
        node: samples::identity(1),
        key: samples::wg_secret(1),
        next: None,
        authority: Some(samples::authority()),
    };
    let config = Config {
        name: "fuzzed".into(),
        region: None,
        interface: INTERFACE.into(),
        backend: Backend::Userspace,
        listen_port: 22_000,
        alternate_port: Some(22_001),
        addresses: vec![samples::net("10.9.0.1/32")],
        routes: Vec::new(),
        authorities: vec![samples::authority().authority()],
        peers: vec![entry(2), entry(50)],
        stun: Vec::new(),
        fwmark: (FWMARK, FWMARK_MASK),
        forward_accept: false,
        mtu: MTU,
        may_relay: true,
        relay_ports: (28672, 29183),
        pair_rate: 0,
        node_rate: 0,
        birthday_search: true,
        turn: Vec::new(),
        protocol: mesh_types::consts::PROTOCOL,
        kubernetes: None,
    };
    let mut node = Overlay::new(identity, config, state, [9; 32], clock.at(0));
    let session = TunnelStats {
        endpoint: Some(samples::endpoint(2)),
        handshake_age: Some(Duration::from_secs(1)),
        rx_bytes: 1000,
        tx_bytes: 1000,
    };
    let report = TunnelReport {
        peers: [(samples::wg(2), session)].into(),
    };
    node.handle_tunnel(&report, clock.at(0));
    drain(&mut node);
    node
}

fn entry(number: u8) -> ConfigPeer {
    ConfigPeer {
        name: Some(format!("peer-{number}")),
        key: samples::wg(number),
        endpoints: vec![samples::endpoint(number)],
        allowed_ips: vec![samples::net(&format!("10.9.0.{number}/32"))],
        plain: false,
        preshared_key: None,
        persistent_keepalive: None,
    }
}

fn drain(node: &mut Overlay) {
    while node.poll_event().is_some() {}
    let mut count = 0;
    while let Some(transmit) = node.poll_transmit() {
        assert!(transmit.bytes.len() <= DATAGRAM_MAX);
        count += 1;
        assert!(count < 1000, "one message gives no flood");
    }
}
