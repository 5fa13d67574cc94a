//! A TURN server that went mad: whatever it says, the node speaks to it alone, and remembers little.

use std::net::SocketAddr;

use mesh_types::report::TurnLinkState;
use mesh_types::turn::{TurnAddress, TurnServer, TurnTransport};
use mesh_types::{Candidate, CandidateKind, PeerId, SocketId, Transmit};
use nat_traversal::{Config, PeerSpec, Traversal};

use crate::harness::{Clock, fuzz};
use crate::samples;

const SERVER: ([u8; 4], u16) = ([198, 51, 100, 1], 3478);
const STEPS: u64 = 48;

fn node(clock: Clock) -> Traversal {
    let now = clock.at(0);
    let mut out = Traversal::new(Config::default(), 1000, [1; 32], now);
    out.set_keys(&samples::wg_secret(1), None, now);
    let spec = PeerSpec {
        keys: vec![samples::wg(2)],
        candidates: vec![Candidate {
            kind: CandidateKind::ServerReflexive,
            address: samples::endpoint(2),
        }],
        announcement_seq: 1,
        ..PeerSpec::default()
    };
    out.upsert_peer(PeerId::Key(samples::wg(2)), spec, now);
    let server = TurnServer {
        address: TurnAddress {
            host: "198.51.100.1".into(),
            port: 3478,
            transport: TurnTransport::Udp,
        },
        secret: None,
    };
    out.set_turn_servers(vec![server], "fuzz", now);
    out
}

fn drain(node: &mut Traversal) -> Vec<Vec<u8>> {
    while node.poll_event().is_some() {}
    let all = std::iter::from_fn(|| node.poll_transmit());
    let links = all.filter(|Transmit { socket, .. }| matches!(socket, SocketId::Turn(_)));
    let sent: Vec<Transmit> = links.collect();
    for transmit in &sent {
        assert_eq!(transmit.destination, SocketAddr::from(SERVER));
    }
    assert!(sent.len() < 64, "{} messages at once", sent.len());
    sent.into_iter().map(|transmit| transmit.bytes).collect()
}

/// Opens the links that are wanted.
fn connect(node: &mut Traversal, clock: Clock, at: u64) {
    for link in node.turn_links() {
        node.handle_turn_link(link.number, &TurnLinkState::Up, clock.at(at));
    }
}

/// What grants any request: success, with all that one could want.
fn granted(request: &[u8]) -> Vec<u8> {
    let mut out = request.get(..20).unwrap_or_default().to_vec();
    out[0] = 0x01;
    // XOR-RELAYED-ADDRESS 198.51.100.1:50000, LIFETIME 600
    out.extend([0, 0x16, 0, 8, 0, 1, 0xe2, 0x42, 0xe7, 0x21, 0xc0, 0x43]);
    out.extend([0, 0x0d, 0, 4, 0, 0, 0x02, 0x58]);
    out[2..4].copy_from_slice(&[0, 20]);
    out
}

/// ChannelData and Data indications with a peer's probe inside.
fn carried(probe: &[u8]) -> Vec<Vec<u8>> {
    let length = (probe.len() as u16).to_be_bytes();
    let channel = [&[0x40, 0x00], length.as_slice(), probe].concat();
    let mut data = vec![0x00, 0x17, 0, 0, 0x21, 0x12, 0xa4, 0x42];
    data.extend([5; 12]);
    data.extend([0, 0x12, 0, 8, 0, 1, 0x9c, 0x32, 0xea, 0x12, 0xd5, 0x45]);
    data.extend([0, 0x13]);
    data.extend(length);
    data.extend(probe);
    let padded = data.len().next_multiple_of(4);
    data.resize(padded, 0);
    let body = (data.len() as u16 - 20).to_be_bytes();
    data[2..4].copy_from_slice(&body);
    vec![channel, data]
}

#[test]
fn a_turn_server_that_went_mad_does_no_harm() {
    let clock = Clock::new();
    // A probe of the peer, as it would send it.
    let mut peer = node(clock);
    peer.set_keys(&samples::wg_secret(2), None, clock.at(0));
    let spec = PeerSpec {
        keys: vec![samples::wg(1)],
        candidates: vec![Candidate {
            kind: CandidateKind::Host,
            address: samples::endpoint(1),
        }],
        announcement_seq: 2,
        ..PeerSpec::default()
    };
    peer.upsert_peer(PeerId::Key(samples::wg(1)), spec, clock.at(0));
    let probes = std::iter::from_fn(|| peer.poll_transmit());
    let wire: Vec<Vec<u8>> = probes.flat_map(|probe| carried(&probe.bytes)).collect();
    assert!(!wire.is_empty());
    let mut allocated = false;
    fuzz("a mad TURN server", |random| {
        let mut node = node(clock);
        node.handle_timeout(clock.at(1));
        let mut said = drain(&mut node);
        for step in 1..STEPS {
            let at = step * 100;
            connect(&mut node, clock, at);
            said.extend(drain(&mut node));
            let links: Vec<u32> = node.turn_links().iter().map(|link| link.number).collect();
            let mut samples = wire.clone();
            samples.extend(said.iter().map(|request| granted(request)));
            let honest = random.below(2) == 0;
            let bytes = match said.pop() {
                Some(request) if honest => granted(&request),
                Some(_) | None => random.input(&samples),
            };
            for link in links {
                let server = SocketAddr::from(SERVER);
                node.handle_datagram(SocketId::Turn(link), server, server, &bytes, clock.at(at));
            }
            node.handle_timeout(clock.at(at + 1));
            said.extend(drain(&mut node));
            said.truncate(16);
            allocated |= node
                .turn_report()
                .iter()
                .any(|report| report.relayed.is_some());
            assert!(node.turn_links().len() <= 2);
            assert!(node.proxies().len() <= 32);
        }
        true
    });
    assert!(allocated, "the samples are a working conversation");
}
