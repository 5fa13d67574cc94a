//! Datagrams on the shared port: from strangers, and from a peer that is authenticated and mad.

use std::net::SocketAddr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use mesh_types::consts::DATAGRAM_MAX;
use mesh_types::report::HostAddress;
use mesh_types::sealed::SealKey;
use mesh_types::{Candidate, CandidateKind, Message, Now, PeerId, SocketId, Transmit};
use nat_traversal::{Config, PeerSpec, RelaySettings, Traversal};
use sha2::{Digest as _, Sha256};

use crate::harness::{Clock, Random, fuzz};
use crate::samples;

const INTEGRITY: u16 = 0x001c;
const FINGERPRINT: u16 = 0x8028;
const EPOCH: u32 = 1000;
/// A port that is lent.
const RELAY: u16 = 28_672;
/// Inputs one node gets.
const STEPS: u64 = 32;

/// Number `own` with number `other` as its peer, `other` being where its candidate says.
fn traversal(own: u8, other: u8, clock: Clock) -> Traversal {
    let now = clock.at(0);
    let config = Config {
        listen_port: 22_000,
        ..Config::default()
    };
    let mut out = Traversal::new(config, EPOCH, [own; 32], now);
    out.set_keys(&samples::wg_secret(own), None, now);
    let address = HostAddress {
        interface: "eth0".into(),
        ip: samples::endpoint(own).ip(),
        prefix_len: 24,
        stable: true,
    };
    out.set_host_addresses(&[address], true, now);
    let spec = PeerSpec {
        keys: vec![samples::wg(other)],
        candidates: vec![Candidate {
            kind: CandidateKind::Host,
            address: samples::endpoint(other),
        }],
        announcement_seq: 1,
        ..PeerSpec::default()
    };
    out.upsert_peer(PeerId::Key(samples::wg(other)), spec, now);
    let relay = RelaySettings {
        ports: (RELAY, RELAY + 8),
        pair_rate: 0,
        node_rate: 0,
    };
    out.set_relay(Some(relay), now);
    out.handle_timeout(now);
    out
}

fn drain(traversal: &mut Traversal) -> Vec<Transmit> {
    while traversal.poll_event().is_some() {}
    let sent: Vec<Transmit> = std::iter::from_fn(|| traversal.poll_transmit()).collect();
    for transmit in &sent {
        assert!(transmit.bytes.len() <= DATAGRAM_MAX);
    }
    assert!(sent.len() < 64, "{} datagrams at once", sent.len());
    sent
}

/// Probes of 2 to 1 and the answers, as they are on the wire.
fn conversation(clock: Clock) -> Vec<Vec<u8>> {
    let (mut a, mut b) = (traversal(1, 2, clock), traversal(2, 1, clock));
    let mut out = Vec::new();
    for step in 0..40 {
        pass(&mut b, 2, &mut a, clock.at(step * 50), &mut out);
        pass(&mut a, 1, &mut b, clock.at(step * 50), &mut out);
    }
    assert!(
        a.path(&PeerId::Key(samples::wg(2))).is_some(),
        "the samples are a working conversation"
    );
    out
}

/// What `from`, which is number `number`, has to send arrives at `to`.
fn pass(from: &mut Traversal, number: u8, to: &mut Traversal, now: Now, out: &mut Vec<Vec<u8>>) {
    from.handle_timeout(now);
    for Transmit {
        destination, bytes, ..
    } in drain(from)
    {
        let remote = samples::endpoint(number);
        to.handle_datagram(SocketId::Main, destination, remote, &bytes, now);
        out.push(bytes);
    }
}

#[test]
fn datagrams_of_strangers_do_no_harm_and_get_at_most_one_answer() {
    let clock = Clock::new();
    let wire = conversation(clock);
    fuzz("stun of strangers", |random| {
        let mut node = traversal(1, 2, clock);
        drain(&mut node);
        for step in 0..STEPS {
            let host = random.below(250) as u8;
            let remote: SocketAddr = ([203, 0, 113, host], 1 + random.below(60_000) as u16).into();
            let sockets = [SocketId::Main, SocketId::Alternate, SocketId::Relay(RELAY)];
            let socket = *random.pick(&sockets);
            let bytes = random.input(&wire);
            let now = clock.at(step * 20);
            node.handle_datagram(socket, samples::endpoint(1), remote, &bytes, now);
            let sizes: Vec<usize> = drain(&mut node)
                .iter()
                .filter(|t| t.destination == remote)
                .map(|t| t.bytes.len())
                .collect();
            // Who copied a peer's own datagram gets the answer, and the probe that a new address of a peer
            // is worth; all else is worth one at most.
            let most = 1 + usize::from(wire.contains(&bytes));
            assert!(sizes.len() <= most, "{sizes:?} for {}", bytes.len());
            let size: usize = sizes.iter().sum();
            assert!(size <= 3 * bytes.len(), "{size} for {}", bytes.len());
        }
        true
    });
}

#[test]
fn an_authenticated_peer_that_went_mad_does_no_harm() {
    let clock = Clock::new();
    let wire = conversation(clock);
    let requests: Vec<Vec<u8>> = wire
        .into_iter()
        .filter(|bytes| bytes[..2] == [0, 1])
        .collect();
    let key = SealKey::between(&samples::wg_secret(2), &samples::wg(1), b"farspan probe v1");
    let password = BASE64URL.encode(key.expect("contributory").as_bytes());
    let messages: Vec<Vec<u8>> = samples::messages().iter().map(Message::encode).collect();
    fuzz("stun of a peer", |random| {
        let mut node = traversal(1, 2, clock);
        drain(&mut node);
        let mut answered = false;
        for step in 0..STEPS {
            let mut request = random.pick(&requests).clone();
            if random.below(3) == 0 {
                // Binding indications are how a relay is asked.
                request[1] = 0x11;
            }
            request[8..12].copy_from_slice(&EPOCH.to_be_bytes());
            request[12..20].copy_from_slice(&(step + (1 << 32)).to_be_bytes());
            let mut attributes = attributes(&request);
            attributes.retain(|(kind, _)| ![INTEGRITY, FINGERPRINT].contains(kind));
            for _ in 0..random.below(4) {
                change(random, &mut attributes, &messages);
            }
            let bytes = signed(&request[..20], &attributes, &password);
            let now = clock.at(step * 20);
            let (local, remote) = (samples::endpoint(1), samples::endpoint(2));
            let socket = *random.pick(&[SocketId::Main, SocketId::Main, SocketId::Relay(RELAY)]);
            node.handle_datagram(socket, local, remote, &bytes, now);
            answered |= drain(&mut node)
                .iter()
                .any(|t| t.bytes.get(8..20) == bytes.get(8..20));
            if random.below(8) == 0 {
                node.handle_timeout(now);
                drain(&mut node);
            }
        }
        answered
    });
}

#[test]
fn messages_of_a_peer_that_went_mad_do_no_harm() {
    let clock = Clock::new();
    let id = PeerId::Key(samples::wg(2));
    let kinds: Vec<Vec<u8>> = samples::messages().iter().map(Message::encode).collect();
    fuzz("traversal messages", |random| {
        let mut node = traversal(1, 2, clock);
        let mut peer = traversal(2, 1, clock);
        let mut accepted = false;
        for step in 0..STEPS {
            let now = clock.at(step * 100);
            let Ok(message) = Message::decode(&random.input(&kinds)) else {
                continue;
            };
            accepted = true;
            node.handle_message(&id, &message, now);
            drain(&mut node);
            // Sealed by the real peer, changed on the way or not.
            if let Some(mut forward) = peer.seal(&PeerId::Key(samples::wg(1)), &message) {
                let whole = random.below(2) == 0;
                if !whole {
                    let at = random.below(forward.sealed.len());
                    forward.sealed[at] ^= 1 << random.below(8);
                }
                let opened = node.open(&forward, now);
                assert_eq!(opened.is_ok(), whole, "{opened:?}");
                assert!(node.open(&forward, now).is_err(), "replayed");
            }
            node.handle_timeout(clock.at(step * 100 + 50));
            drain(&mut node);
        }
        accepted
    });
}

type Attribute = (u16, Vec<u8>);

/// RFC 8489 14.
fn attributes(message: &[u8]) -> Vec<Attribute> {
    let mut out = Vec::new();
    let mut rest = &message[20..];
    while let [a, b, c, d, tail @ ..] = rest {
        let length = usize::from(u16::from_be_bytes([*c, *d]));
        out.push((u16::from_be_bytes([*a, *b]), tail[..length].to_vec()));
        rest = &tail[length.next_multiple_of(4).min(tail.len())..];
    }
    out
}

fn change(random: &mut Random, attributes: &mut Vec<Attribute>, messages: &[Vec<u8>]) {
    /// USERNAME, ERROR-CODE, XOR-MAPPED-ADDRESS, DATA, CHANGE-REQUEST, OTHER-ADDRESS, and strangers.
    const KINDS: [u16; 9] = [
        0x0006, 0x0009, 0x0020, 0x0013, 0x0003, 0x802c, 0x0008, 0x7fff, 0xffff,
    ];
    match random.below(4) {
        // Another value where no name depends on it, so that the request stays the peer's.
        0 => {
            if let Some((kind, value)) = attributes.last_mut()
                && *kind != 0x0006
            {
                *value = random.input(std::slice::from_ref(value));
                value.truncate(600);
            }
        }
        1 => {
            let value = random.bytes(40);
            attributes.push((*random.pick(&KINDS), value));
        }
        2 => {
            let mut value = random.input(messages);
            value.truncate(900);
            attributes.push((0x0013, value));
        }
        _ => {
            let value = random.bytes(4);
            attributes.push((0x0003, value));
        }
    }
}

/// Puts a message together, MESSAGE-INTEGRITY-SHA256 (RFC 8489 14.6) and FINGERPRINT (14.7) right.
fn signed(header: &[u8], attributes: &[Attribute], password: &str) -> Vec<u8> {
    let mut out = header.to_vec();
    for (kind, value) in attributes {
        append(&mut out, *kind, value);
    }
    set_length(&mut out, 36);
    let integrity = hmac_sha256(password.as_bytes(), &out);
    append(&mut out, INTEGRITY, &integrity);
    set_length(&mut out, 8);
    let fingerprint = crc32(&out) ^ 0x5354_554e;
    append(&mut out, FINGERPRINT, &fingerprint.to_be_bytes());
    out
}

fn append(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(value.len()).expect("short");
    out.extend(kind.to_be_bytes());
    out.extend(length.to_be_bytes());
    out.extend_from_slice(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

fn set_length(message: &mut [u8], more: usize) {
    let length = u16::try_from(message.len() - 20 + more).expect("short");
    message[2..4].copy_from_slice(&length.to_be_bytes());
}

/// RFC 2104, for keys up to the block of 64 bytes.
fn hmac_sha256(key: &[u8], message: &[u8]) -> [u8; 32] {
    let pad = |with: u8| {
        let mut out = [with; 64];
        out.iter_mut().zip(key).for_each(|(o, k)| *o ^= k);
        out
    };
    let inner = Sha256::new()
        .chain_update(pad(0x36))
        .chain_update(message)
        .finalize();
    Sha256::new()
        .chain_update(pad(0x5c))
        .chain_update(inner)
        .finalize()
        .into()
}

/// ITU V.42, as FINGERPRINT wants it.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    })
}
