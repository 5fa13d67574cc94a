//! What must be refused, and what must never be sent.

use std::net::SocketAddr;
use std::time::Duration;

use mesh_types::message::{CallMe, Echo, Message};
use mesh_types::token::{TicketId, TicketKeys};
use mesh_types::{Candidate, CandidateKind, Idx, PeerId, SocketId, WgSecret};
use nat_traversal::{Event, JoinRequest, PeerSpec, Refused};

use crate::net::{DELAY, Net, at};

const SECOND: Duration = Duration::from_secs(1);

/// Two public nodes that know each other.
fn pair() -> (Net, usize, usize) {
    let mut net = Net::new();
    let a = net.node("192.0.2.1", None);
    let b = net.node("198.51.100.1", None);
    net.introduce(a, b);
    (net, a, b)
}

/// How many datagrams a node has sent there.
fn sent_to(net: &Net, node: usize, to: SocketAddr) -> usize {
    let sent = net.nodes[node].sent.iter();
    sent.filter(|(_, destination, _)| *destination == to)
        .count()
}

fn main_of(net: &Net, node: usize) -> SocketAddr {
    SocketAddr::new(net.nodes[node].ip, net.nodes[node].port)
}

fn count(net: &Net, node: usize, name: &str) -> u64 {
    net.nodes[node].traversal.counters().value(name)
}

/// A request that `a` has sent to `b`, as an eavesdropper saw it.
fn overheard(net: &Net, a: usize, b: usize) -> Vec<u8> {
    let to = main_of(net, b);
    let is_request = |bytes: &[u8]| bytes[..2] == [0, 1];
    net.nodes[a]
        .sent
        .iter()
        .find(|(_, destination, bytes)| *destination == to && is_request(bytes))
        .map(|(.., bytes)| bytes.clone())
        .unwrap()
}

/// Gives bytes to a node as from `remote`, and says how many datagrams it sent to it.
fn give(net: &mut Net, node: usize, remote: SocketAddr, bytes: &[u8]) -> usize {
    let (local, now) = (main_of(net, node), net.now);
    net.nodes[node].sent.clear();
    net.nodes[node]
        .traversal
        .handle_datagram(SocketId::Main, local, remote, bytes, now);
    net.drain(node);
    let sent = &net.nodes[node].sent;
    sent.iter().filter(|(_, to, _)| *to == remote).count()
}

/// CRC-32 of RFC 8489 14.7.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

/// The message with only those attributes that `keep` wants, and a right FINGERPRINT.
fn rebuilt(bytes: &[u8], keep: impl Fn(u16) -> bool) -> Vec<u8> {
    let mut out = bytes[..20].to_vec();
    let mut rest = &bytes[20..];
    while rest.len() >= 4 {
        let kind = u16::from_be_bytes([rest[0], rest[1]]);
        let length = usize::from(u16::from_be_bytes([rest[2], rest[3]])).next_multiple_of(4) + 4;
        if kind != 0x8028 && keep(kind) {
            out.extend(&rest[..length]);
        }
        rest = &rest[length..];
    }
    let length = u16::try_from(out.len() + 8 - 20).unwrap();
    out[2..4].copy_from_slice(&length.to_be_bytes());
    let crc = crc32(&out) ^ 0x5354_554e;
    out.extend([0x80, 0x28, 0, 4]);
    out.extend(crc.to_be_bytes());
    out
}

#[test]
fn a_replayed_probe_is_refused_and_not_answered() {
    let (mut net, a, b) = pair();
    net.run(SECOND);
    let probe = overheard(&net, a, b);
    let thief = at("203.0.113.66:4444");
    for from in [main_of(&net, a), thief] {
        assert_eq!(give(&mut net, b, from, &probe), 0);
    }
    assert_eq!(count(&net, b, "refused-replay"), 2);
    assert_eq!(net.path(b, a), Some(main_of(&net, a)));
}

#[test]
fn a_probe_with_forged_or_missing_integrity_is_refused_and_not_answered() {
    let (mut net, a, b) = pair();
    net.run(SECOND);
    let probe = overheard(&net, a, b);
    let from = main_of(&net, a);
    let mut next = probe.clone();
    next[19] = next[19].wrapping_add(100);
    let forged = rebuilt(&next, |_| true);
    let without = rebuilt(&next, |kind| kind != 0x001c);
    for bytes in [forged, without] {
        assert_eq!(give(&mut net, b, from, &bytes), 0);
    }
    assert_eq!(count(&net, b, "refused-integrity"), 2);
    // The tool itself makes messages that pass: the same one, unchanged, is only a replay.
    assert_eq!(give(&mut net, b, from, &rebuilt(&probe, |_| true)), 0);
    assert_eq!(count(&net, b, "refused-replay"), 1);
}

#[test]
fn strangers_get_no_answer() {
    let (mut net, a, b) = pair();
    net.run(SECOND);
    let plain = rebuilt(&overheard(&net, a, b), |_| false);
    let stranger = at("203.0.113.66:4444");
    assert_eq!(give(&mut net, b, stranger, &plain), 0);
    assert_eq!(count(&net, b, "refused-stranger"), 1);
    let probe = overheard_by_stranger();
    assert_eq!(give(&mut net, b, stranger, &probe), 0);
    assert_eq!(count(&net, b, "refused-unknown-sender"), 1);
}

fn overheard_by_stranger() -> Vec<u8> {
    let mut net = Net::new();
    let _ = (net.node("192.0.2.8", None), net.node("192.0.2.7", None));
    let (c, d) = (net.node("192.0.2.9", None), net.node("192.0.2.10", None));
    net.tell(c, d);
    overheard(&net, c, d)
}

#[test]
fn an_answer_from_another_address_than_the_one_asked_is_refused() {
    let (mut net, a, b) = pair();
    net.run(Duration::from_millis(30));
    let answer = |net: &Net| {
        let answers = net.nodes[b].sent.iter();
        let mut answers = answers.filter(|(_, _, bytes)| bytes[..2] == [1, 1]);
        answers.next().map(|(.., bytes)| bytes.clone()).unwrap()
    };
    let stolen = answer(&net);
    assert_eq!(net.path(a, b), None);
    give(&mut net, a, at("203.0.113.66:4444"), &stolen);
    assert_eq!(net.path(a, b), None);
    assert_eq!(count(&net, a, "refused-other-source"), 1);
    net.run(SECOND);
    assert_eq!(net.path(a, b), Some(main_of(&net, b)));
}

#[test]
fn a_node_whose_clock_and_disk_fell_back_goes_above_its_old_epoch() {
    let (mut net, a, b) = pair();
    net.run(SECOND);
    net.restart(a, 17);
    net.tell(a, b);
    let took = net.until(SECOND, |net| net.path(a, b).is_some());
    assert!(took.is_some());
    let raised = Event::EpochRaised(1_800_000_001);
    assert!(
        net.nodes[a]
            .events
            .iter()
            .any(|(_, event)| *event == raised)
    );
    net.run(60 * SECOND);
    assert!(net.connected(a, b));
    assert_eq!(count(&net, a, "epoch-raised"), 1);
}

#[test]
fn a_thousand_forged_candidates_make_no_weapon() {
    let (mut net, a, b) = pair();
    net.run(SECOND);
    let (victim, now) = (at("203.0.113.66:1024"), net.now);
    net.nodes[a].sent.clear();
    // A member calls with ever new ports of one victim, and announces them too.
    for round in 0..1000_u16 {
        let candidates: Vec<_> = (0..24)
            .map(|i| Candidate {
                kind: CandidateKind::Host,
                address: SocketAddr::new(victim.ip(), 2000 + round * 24 + i),
            })
            .collect();
        let call = Message::from(CallMe {
            seq: u64::from(round),
            candidates: candidates.clone(),
            nat: mesh_types::NatReport::default(),
            predicted: Vec::new(),
            start_ms: 0,
        });
        let id = net.nodes[b].id;
        let mut spec = net.spec(b, candidates);
        spec.announcement_seq = u64::from(round) + 2;
        let now = net.now;
        net.nodes[a].traversal.handle_message(&id, &call, now);
        net.nodes[a].traversal.upsert_peer(id, spec, now);
        net.drain(a);
        net.run(Duration::from_millis(20));
    }
    net.run(20 * SECOND);
    let at_victim: Vec<_> = net.nodes[a]
        .sent
        .iter()
        .filter(|(_, to, _)| to.ip() == victim.ip())
        .map(|(at, ..)| *at)
        .collect();
    assert!(!at_victim.is_empty());
    assert!(at_victim.windows(21).all(|w| w[20] - w[0] >= SECOND));
    assert!(at_victim.last().unwrap().duration_since(now.mono) < 30 * SECOND);
    let report = net.nodes[a]
        .traversal
        .peer_report(&net.nodes[b].id)
        .unwrap();
    assert!(report.candidates.len() <= 24);
    assert!(net.connected(a, b));
}

#[test]
fn an_address_nobody_confirms_gets_seven_packets_and_three_a_slot() {
    let (mut net, a, b) = pair();
    net.nodes[b].up = false;
    net.run(Duration::from_millis(900));
    let to = main_of(&net, b);
    let sent = |net: &Net| sent_to(net, a, to);
    assert!(sent(&net) <= 7 + 3);
    net.run(300 * SECOND);
    assert!(
        (7 + 9 * 3..=7 + 11 * 3).contains(&sent(&net)),
        "{}",
        sent(&net)
    );
}

/// A call of `b` that names its own address, as it arrives at `a`.
fn call(net: &mut Net, a: usize, b: usize, seq: u64) {
    let call = Message::from(CallMe {
        seq,
        candidates: vec![net.host_candidate(b)],
        nat: mesh_types::NatReport::default(),
        predicted: Vec::new(),
        start_ms: 0,
    });
    let (id, now) = (net.nodes[b].id, net.now);
    net.nodes[a].traversal.handle_message(&id, &call, now);
    net.drain(a);
}

#[test]
fn a_call_renews_the_attempts_and_many_calls_do_not() {
    let (mut net, a, b) = pair();
    net.nodes[b].up = false;
    net.run(100 * SECOND);
    net.nodes[a].sent.clear();
    call(&mut net, a, b, 0);
    net.run(SECOND);
    let to = main_of(&net, b);
    let sent = |net: &Net| sent_to(net, a, to);
    assert!(sent(&net) >= 7);
    for seq in 1..100 {
        call(&mut net, a, b, seq);
        net.run(Duration::from_millis(100));
    }
    // Six calls count, one more in ten seconds; a slot of three may pass.
    assert!(sent(&net) <= 7 * 8 + 3, "{}", sent(&net));
    // The same call on two ways counts once.
    net.nodes[a].events.clear();
    call(&mut net, a, b, 99);
    assert!(net.nodes[a].events.is_empty());
}

#[test]
fn a_peer_that_claims_forbidden_addresses_is_not_believed() {
    let mut net = Net::new();
    let (a, b) = (net.node("192.0.2.1", None), net.node("192.0.2.2", None));
    let excluded = vec!["10.77.0.0/16".parse().unwrap()];
    net.nodes[a].traversal.set_excluded(excluded);
    let claims = [
        "127.0.0.1:5000",
        "169.254.169.254:5000",
        "10.77.1.1:5000",
        "192.0.2.2:53",
    ];
    let candidates = claims.map(|claim| Candidate {
        kind: CandidateKind::Host,
        address: at(claim),
    });
    net.tell_of(a, b, candidates.to_vec());
    net.run(60 * SECOND);
    assert_eq!(net.nodes[a].sent, []);
    let report = net.nodes[a]
        .traversal
        .peer_report(&net.nodes[b].id)
        .unwrap();
    assert!(report.error.unwrap().contains("no usable address"));
}

#[test]
fn garbage_is_never_answered_and_never_hurts() {
    let (mut net, a, b) = pair();
    net.run(SECOND);
    let probe = overheard(&net, a, b);
    let from = main_of(&net, a);
    let mut state = 1_u64;
    let mut random = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        usize::try_from(state >> 40).unwrap()
    };
    let mut answered = 0;
    for _ in 0..20_000 {
        let mut bytes = probe.clone();
        for _ in 0..=random() % 4 {
            let index = random() % bytes.len();
            bytes[index] = u8::try_from(random() % 256).unwrap();
        }
        bytes.truncate(bytes.len() - random() % 3 * (random() % 30));
        answered += give(&mut net, b, from, &bytes);
    }
    assert_eq!(answered, 0);
    net.run(60 * SECOND);
    assert!(net.connected(a, b));
}

#[test]
fn a_sealed_message_is_opened_once_and_by_its_receiver_only() {
    let (mut net, a, b) = pair();
    let (now, message) = (
        net.now,
        Message::from(Echo {
            token: 7,
            reply: false,
        }),
    );
    let (id_a, id_b) = (net.nodes[a].id, net.nodes[b].id);
    let forward = net.nodes[a].traversal.seal(&id_b, &message).unwrap();
    let mut changed = forward.clone();
    changed.sealed[30] ^= 1;
    let traversal = &mut net.nodes[b].traversal;
    assert_eq!(traversal.open(&changed, now), Err(Refused::Seal));
    assert_eq!(traversal.open(&forward, now), Ok((id_a, message)));
    assert_eq!(traversal.open(&forward, now), Err(Refused::Replayed));
    let mut renamed = forward.clone();
    renamed.from = Idx([9; 8]);
    assert_eq!(traversal.open(&renamed, now), Err(Refused::UnknownSender));
    let traversal = &mut net.nodes[a].traversal;
    assert_eq!(traversal.open(&forward, now), Err(Refused::NotForUs));
}

#[test]
fn a_joiner_is_heard_before_it_is_a_peer_and_gets_its_answer() {
    let (mut net, inviter, _) = pair();
    let joiner = net.node("203.0.113.50", None);
    let (to, now) = (main_of(&net, inviter), net.now);
    let ticket = TicketId::new(Idx([3; 8]), [4; 8]);
    let keys = TicketKeys::derive(&[5; 32]);
    let transaction = net.nodes[joiner]
        .traversal
        .send_join(ticket, &keys, to, vec![1; 900], now);
    net.drain(joiner);
    net.run(SECOND);
    let request = net.nodes[inviter]
        .events
        .iter()
        .find_map(|(_, event)| match event {
            Event::JoinRequest(request) => Some(request.clone()),
            Event::PathChanged { .. }
            | Event::Signal { .. }
            | Event::EndpointsChanged
            | Event::PeerKeySeen { .. }
            | Event::JoinAnswer { .. }
            | Event::EpochRaised(_) => None,
        });
    let request = request.unwrap();
    assert_eq!((request.ticket, request.transaction), (ticket, transaction));
    assert_eq!(request.sealed, vec![1; 900]);
    assert!(request.verify(&keys));
    assert!(!request.verify(&TicketKeys::derive(&[6; 32])));
    let passed_on = JoinRequest::parse(&request.datagram, request.remote, request.local);
    assert_eq!(passed_on.as_ref(), Some(&request));
    let answer = net.nodes[inviter]
        .traversal
        .answer_join(&request, &keys, vec![2; 900]);
    net.inject(to, request.remote, answer);
    net.run(SECOND);
    let (_, event) = net.nodes[joiner].events.last().unwrap();
    let sealed = vec![2; 900];
    assert_eq!(
        *event,
        Event::JoinAnswer {
            ticket,
            sealed,
            remote: to
        }
    );
    let sent = net.nodes[joiner].sent.len();
    net.run(20 * SECOND);
    assert_eq!(net.nodes[joiner].sent.len(), sent);
}

#[test]
fn a_rotated_key_is_seen_by_the_first_probe_under_it() {
    let (mut net, a, b) = pair();
    net.run(SECOND);
    let next = WgSecret::from_bytes([77; 32]);
    let (id_a, now) = (net.nodes[a].id, net.now);
    let old = net.nodes[a].secret.clone();
    let spec = PeerSpec {
        keys: vec![old.public(), next.public()],
        announcement_seq: 2,
        ..PeerSpec::default()
    };
    net.nodes[b].traversal.upsert_peer(id_a, spec, now);
    net.nodes[a].traversal.set_keys(&next, Some(&old), now);
    net.drain(a);
    net.run(DELAY + Duration::from_millis(1));
    let seen = Event::PeerKeySeen {
        peer: id_a,
        key: next.public(),
    };
    assert!(net.nodes[b].events.iter().any(|(_, event)| *event == seen));
    net.run(120 * SECOND);
    assert!(net.connected(a, b));
}

#[test]
fn a_renamed_peer_keeps_its_path() {
    let (mut net, a, b) = pair();
    net.run(SECOND);
    let from = net.nodes[b].id;
    let to = PeerId::Node(mesh_types::NodeKey {
        domain: mesh_types::DomainId([1; 16]),
        identity: mesh_types::IdentityKey([2; 32]),
    });
    net.nodes[a].traversal.rename_peer(&from, to);
    assert!(net.nodes[a].traversal.path(&to).is_some());
    assert!(net.nodes[a].traversal.path(&from).is_none());
    net.run(60 * SECOND);
    assert!(net.nodes[a].traversal.path(&to).is_some());
    assert_eq!(count(&net, a, "paths-lost"), 0);
    net.nodes[a].traversal.remove_peer(&to);
    assert!(net.nodes[a].traversal.peer_report(&to).is_none());
}
