//! Sessions, routing and rotation, over two cores joined in memory.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use common::{Node, packet, peer, secret, settle, start};
use data_plane::counters::Count;
use mesh_types::key::{PresharedKey, WgKey};

mod common;

const A: &str = "192.0.2.1:1000";
const B: &str = "192.0.2.2:2000";

/// 10.0.0.1 and 10.0.0.2, each other's peer; only A knows where the other is.
fn pair(now: Instant) -> (Node, Node) {
    let (mut a, mut b) = (Node::new(&secret(1), A), Node::new(&secret(2), B));
    let endpoint = Some(b.address);
    a.set_peer(key(2), peer(&["10.0.0.2/32"], endpoint), now);
    b.set_peer(key(1), peer(&["10.0.0.1/32"], None), now);
    (a, b)
}

fn key(n: u8) -> WgKey {
    secret(n).public()
}

fn there(len: usize, filling: u8) -> Vec<u8> {
    packet("10.0.0.1", "10.0.0.2", len, filling)
}

fn back(len: usize, filling: u8) -> Vec<u8> {
    packet("10.0.0.2", "10.0.0.1", len, filling)
}

/// A pair with a session both ways.
fn connected(now: Instant) -> (Node, Node) {
    let (mut a, mut b) = pair(now);
    a.send(&there(100, 1), now);
    settle(&mut a, &mut b, now);
    assert_eq!(b.received.len(), 1, "no session came up");
    b.received.clear();
    a.sent.clear();
    b.sent.clear();
    (a, b)
}

#[test]
fn the_first_packets_wait_for_the_handshake_and_arrive_in_order() {
    let now = start();
    let (mut a, mut b) = pair(now);
    let packets: Vec<_> = (0..100).map(|n| there(100 + usize::from(n), n)).collect();
    for packet in &packets {
        a.send(packet, now);
    }
    settle(&mut a, &mut b, now);
    assert_eq!(b.received, packets);
    assert_eq!(a.count(Count::Handshakes), 1);
    assert_eq!(b.count(Count::Handshakes), 1);
    b.send(&back(60, 9), now);
    settle(&mut a, &mut b, now);
    assert_eq!(
        a.received,
        [back(60, 9)],
        "the responder learned the endpoint"
    );
}

#[test]
fn no_more_than_128_packets_wait_for_one_peer() {
    let now = start();
    let (mut a, mut b) = pair(now);
    for _ in 0..200 {
        a.send(&there(100, 1), now);
    }
    settle(&mut a, &mut b, now);
    assert_eq!(b.received.len(), 128);
    assert_eq!(a.count(Count::StagedFull), 72);
}

#[test]
fn plaintexts_are_padded_to_sixteen_bytes_up_to_the_mtu() {
    let now = start();
    let (mut a, mut b) = connected(now);
    for (len, sealed) in [(20, 64), (100, 144), (112, 144), (1409, 1452), (1420, 1452)] {
        a.send(&there(len, 7), now);
        let sent = a.take();
        assert_eq!(sent[0].1.len(), sealed, "a packet of {len}");
        b.receive(a.address, &sent[0].1, now);
        assert_eq!(b.received.pop().unwrap(), there(len, 7));
    }
}

#[test]
fn a_packet_beyond_the_mtu_is_carried_unpadded() {
    let now = start();
    let (mut a, mut b) = connected(now);
    a.send(&there(9001, 7), now);
    assert_eq!(a.sent.len(), 0);
    settle(&mut a, &mut b, now);
    assert_eq!(b.received, [there(9001, 7)]);
}

#[test]
fn a_packet_too_large_for_any_datagram_is_counted_and_dropped() {
    let now = start();
    let (mut a, _) = connected(now);
    a.send(&there(65500, 7), now);
    assert!(a.take().is_empty());
    assert_eq!(a.count(Count::Oversize), 1);
}

#[test]
fn replayed_and_corrupted_datagrams_are_refused() {
    let now = start();
    let (mut a, mut b) = connected(now);
    a.send(&there(100, 1), now);
    let (_, datagram) = a.take().remove(0);
    for at in 0..datagram.len() {
        let mut bad = datagram.clone();
        bad[at] ^= 0x10;
        b.receive(a.address, &bad, now);
    }
    assert!(b.received.is_empty());
    b.receive(a.address, &datagram, now);
    b.receive(a.address, &datagram, now);
    assert_eq!(b.received.len(), 1);
    assert_eq!(b.count(Count::Replayed), 1);
    assert!(b.count(Count::Undecryptable) > 100);
}

#[test]
fn a_datagram_cut_short_is_refused_at_every_length() {
    let now = start();
    let (mut a, mut b) = connected(now);
    a.send(&there(200, 1), now);
    let (_, datagram) = a.take().remove(0);
    for len in 0..datagram.len() {
        b.receive(a.address, &datagram[..len], now);
    }
    assert!(b.received.is_empty());
    b.receive(a.address, &datagram, now);
    assert_eq!(b.received, [there(200, 1)], "none of them used its number");
}

#[test]
fn datagrams_out_of_order_are_taken_once_within_the_window_and_never_beyond() {
    let now = start();
    let (mut a, mut b) = connected(now);
    let mut sent = Vec::new();
    for n in 0..8400u32 {
        a.send(&there(100, n as u8), now);
        sent.extend(a.take());
    }
    for (_, datagram) in sent.iter().rev().chain(&sent) {
        b.receive(a.address, datagram, now);
    }
    let window = 8192..8400;
    assert!(window.contains(&b.received.len()), "{}", b.received.len());
    let replayed = 2 * 8400 - b.received.len() as u64;
    assert_eq!(b.count(Count::Replayed), replayed);
}

#[test]
fn what_one_socket_lost_is_taken_after_a_turn_of_the_other_and_no_later() {
    let now = start();
    // A turn ends after 480 datagrams, or 16 times as many of a flood, and one more call, which brings 8 slots of 64.
    let turn = 16 * 480 - 1 + 8 * 64;
    for (ahead, taken) in [(turn, turn + 1), (turn + 1, turn + 1)] {
        let (mut a, mut b) = connected(now);
        let mut sent = Vec::new();
        for n in 0..=ahead {
            a.send(&there(100, n as u8), now);
            sent.extend(a.take());
        }
        let (by_one, by_other) = (&sent[1..], &sent);
        for (_, datagram) in by_one.iter().chain(by_other) {
            b.receive(a.address, datagram, now);
        }
        assert_eq!(b.received.len(), taken, "{ahead} in front");
    }
}

#[test]
fn a_source_outside_the_senders_ranges_is_refused() {
    let now = start();
    let (mut a, mut b) = connected(now);
    a.send(&packet("10.0.0.3", "10.0.0.2", 100, 1), now);
    a.send(&packet("10.0.0.1", "10.0.0.2", 100, 2), now);
    settle(&mut a, &mut b, now);
    assert_eq!(b.received, [there(100, 2)]);
    assert_eq!(b.count(Count::BadSource), 1);
}

#[test]
fn a_source_of_another_peer_is_refused() {
    let now = start();
    let (mut a, mut b) = connected(now);
    b.set_peer(key(3), peer(&["10.0.0.3/32"], None), now);
    a.send(&packet("10.0.0.3", "10.0.0.2", 100, 1), now);
    a.send(&there(100, 2), now);
    settle(&mut a, &mut b, now);
    assert_eq!(b.received, [there(100, 2)]);
    assert_eq!(b.count(Count::BadSource), 1);
}

#[test]
fn packets_without_a_route_or_an_endpoint_are_dropped_and_counted() {
    let now = start();
    let (mut a, mut b) = pair(now);
    a.send(&packet("10.0.0.1", "10.9.9.9", 100, 1), now);
    assert_eq!(a.count(Count::NoRoute), 1);
    b.send(&back(100, 1), now);
    assert_eq!(b.count(Count::NoEndpoint), 1);
    assert!(a.take().is_empty() && b.take().is_empty());
}

#[test]
fn a_peer_roams_with_its_packets_and_idle_plans_do_not_undo_it() {
    let now = start();
    let (mut a, mut b) = connected(now);
    let home = a.address;
    let away = "198.51.100.9:5555".parse().unwrap();
    b.plan.peers.get_mut(&key(1)).unwrap().endpoint = Some(home);
    b.apply(now);
    a.address = away;
    a.send(&there(100, 1), now);
    settle(&mut a, &mut b, now);
    b.apply(now);
    b.send(&back(100, 1), now);
    assert_eq!(b.take()[0].0, away);
    assert_eq!(b.core.report(now).peers[&key(1)].endpoint, Some(away));
    let planned = "198.51.100.10:1".parse().unwrap();
    b.plan.peers.get_mut(&key(1)).unwrap().endpoint = Some(planned);
    b.apply(now);
    b.send(&back(100, 1), now);
    assert_eq!(b.take()[0].0, planned, "a new endpoint in the plan counts");
    a.send(&there(100, 1), now);
    settle(&mut a, &mut b, now);
    assert_eq!(b.core.report(now).peers[&key(1)].endpoint, Some(away));
    b.plan.peers.get_mut(&key(1)).unwrap().insist += 1;
    b.apply(now);
    b.send(&back(100, 1), now);
    assert_eq!(b.take()[0].0, planned, "so does an old one it insists on");
}

#[test]
fn a_doubled_peer_gets_each_datagram_at_both_addresses_and_takes_it_once() {
    let now = start();
    let (mut a, mut b) = connected(now);
    let (home, second) = (b.address, "198.51.100.9:5555".parse().unwrap());
    a.plan.peers.get_mut(&key(2)).unwrap().also = Some(second);
    a.apply(now);
    a.send(&there(100, 1), now);
    let sent = a.take();
    let to: Vec<_> = sent.iter().map(|(to, _)| *to).collect();
    assert_eq!(to, [home, second]);
    for (_, datagram) in &sent {
        b.receive(a.address, datagram, now);
    }
    assert_eq!(b.received.len(), 1, "the same datagram, not another one");

    // Heard at the second address, it is sent to at the first as well.
    b.send(&back(100, 1), now);
    let (_, answer) = b.take().remove(0);
    a.receive(second, &answer, now);
    a.send(&there(100, 2), now);
    let to: Vec<_> = a.take().iter().map(|(to, _)| *to).collect();
    assert_eq!(to, [second, home]);

    a.plan.peers.get_mut(&key(2)).unwrap().also = None;
    a.apply(now);
    a.send(&there(100, 3), now);
    assert_eq!(a.take().len(), 1);
}

#[test]
fn a_forged_datagram_does_not_move_the_endpoint() {
    let now = start();
    let (mut a, mut b) = connected(now);
    a.send(&there(100, 1), now);
    let (_, mut datagram) = a.take().remove(0);
    let last = datagram.len() - 1;
    datagram[last] ^= 1;
    b.receive("203.0.113.66:6".parse().unwrap(), &datagram, now);
    b.send(&back(100, 1), now);
    assert_eq!(b.take()[0].0, a.address);
}

#[test]
fn a_new_keepalive_starts_the_handshake_at_once() {
    let now = start();
    let (mut a, mut b) = pair(now);
    a.plan.peers.get_mut(&key(2)).unwrap().keepalive = Some(Duration::from_secs(25));
    a.apply(now);
    assert!(a.core.poll_timeout(now).is_some_and(|(at, _)| at <= now));
    a.core.handle_timeout(now, &mut a.out);
    settle(&mut a, &mut b, now);
    let stats = b.core.report(now).peers[&key(1)];
    assert_eq!(stats.handshake_age, Some(Duration::ZERO));
    assert_eq!((stats.rx_bytes, stats.tx_bytes), (148 + 32, 92));
}

#[test]
fn nothing_is_due_while_no_peer_has_a_session_or_a_keepalive() {
    let now = start();
    let (mut a, _) = pair(now);
    a.core.handle_timeout(now, &mut a.out);
    assert_eq!(a.core.poll_timeout(now), None);
    assert!(a.core.report(now).peers.is_empty());
}

#[test]
fn a_persistent_keepalive_goes_out_when_nothing_else_did() {
    let now = start();
    let (mut a, mut b) = connected(now);
    a.plan.peers.get_mut(&key(2)).unwrap().keepalive = Some(Duration::from_secs(25));
    a.apply(now);
    a.core.handle_timeout(now, &mut a.out);
    assert_eq!(a.take().len(), 1, "at once");
    a.core
        .handle_timeout(now + Duration::from_secs(24), &mut a.out);
    assert_eq!(a.take().len(), 0, "not yet");
    a.core
        .handle_timeout(now + Duration::from_secs(26), &mut a.out);
    let sent = a.take();
    assert_eq!((sent.len(), sent[0].1.len()), (1, 32), "then again");
    b.receive(a.address, &sent[0].1, now);
}

#[test]
fn another_preshared_key_makes_a_new_session_and_only_equal_ones_connect() {
    let now = start();
    let (mut a, mut b) = connected(now);
    let psk = PresharedKey::from_base64("AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=").unwrap();
    a.plan.peers.get_mut(&key(2)).unwrap().preshared_key = Some(psk.clone());
    a.apply(now);
    a.core.handle_timeout(now, &mut a.out);
    settle(&mut a, &mut b, now);
    a.send(&there(100, 1), now);
    settle(&mut a, &mut b, now);
    assert!(b.received.is_empty());
    b.plan.peers.get_mut(&key(1)).unwrap().preshared_key = Some(psk);
    b.apply(now);
    b.core.handle_timeout(now, &mut b.out);
    settle(&mut a, &mut b, now);
    assert!(b.received.contains(&there(100, 1)));
}

#[test]
fn our_own_rotation_loses_nothing_either_way() {
    let now = start();
    let (mut a, mut b) = connected(now);
    // A takes key 3; B learns of it later.
    a.plan.previous_key = Some(secret(1));
    a.plan.key = secret(3);
    a.apply(now);
    for n in 0..20 {
        a.send(&there(100, n), now);
        b.send(&back(100, n), now);
        settle(&mut a, &mut b, now);
    }
    assert_eq!((a.received.len(), b.received.len()), (20, 20));
    assert_eq!(
        b.count(Count::UnknownPeer),
        1,
        "A tried its new key on demand"
    );
    // B learns the new key; the old peer is passive.
    let mut planned = peer(&["10.0.0.1/32"], Some(a.address));
    planned.keepalive = Some(Duration::from_secs(25));
    b.plan.peers.insert(key(3), planned);
    let mut old = peer(&[], None);
    old.passive = true;
    b.plan.peers.insert(key(1), old);
    b.apply(now);
    for n in 20..40 {
        a.send(&there(100, n), now);
        b.send(&back(100, n), now);
    }
    let sent = b.take();
    let data = sent.iter().filter(|(_, datagram)| datagram[0] == 4);
    assert_eq!(data.count(), 20, "the old session carries them meanwhile");
    for (_, datagram) in sent {
        a.receive(b.address, &datagram, now);
    }
    b.core.handle_timeout(now, &mut b.out);
    settle(&mut a, &mut b, now);
    for n in 40..60 {
        a.send(&there(100, n), now);
        b.send(&back(100, n), now);
        settle(&mut a, &mut b, now);
    }
    assert_eq!(
        a.received,
        (0..60).map(|n| back(100, n)).collect::<Vec<_>>()
    );
    assert_eq!(
        b.received,
        (0..60).map(|n| there(100, n)).collect::<Vec<_>>()
    );
    assert!(
        b.core.report(now).peers[&key(3)].rx_bytes > 20 * 144,
        "by the new session"
    );
    // Both forget the old key.
    b.plan.peers.remove(&key(1));
    b.apply(now);
    a.plan.previous_key = None;
    a.apply(now);
    a.core
        .handle_timeout(now + Duration::from_secs(1), &mut a.out);
    a.send(&there(100, 99), now);
    b.send(&back(100, 99), now);
    settle(&mut a, &mut b, now);
    assert_eq!(a.received.last(), Some(&back(100, 99)));
    assert_eq!(b.received.last(), Some(&there(100, 99)));
}

#[test]
fn a_rotated_key_is_still_used_for_sending_after_the_plan_forgot_it() {
    let now = start();
    let (mut a, mut b) = connected(now);
    a.plan.previous_key = Some(secret(1));
    a.plan.key = secret(3);
    a.apply(now);
    a.plan.previous_key = None;
    a.apply(now);
    a.core
        .handle_timeout(now + Duration::from_millis(300), &mut a.out);
    a.send(&there(100, 5), now);
    settle(&mut a, &mut b, now);
    assert_eq!(b.received, [there(100, 5)]);
}

#[test]
fn a_passive_peer_answers_handshakes_and_starts_none() {
    let now = start();
    let (mut a, mut b) = pair(now);
    let planned = b.plan.peers.get_mut(&key(1)).unwrap();
    planned.passive = true;
    planned.keepalive = Some(Duration::from_secs(25));
    planned.endpoint = Some(a.address);
    b.apply(now);
    b.core.handle_timeout(now, &mut b.out);
    b.send(&back(100, 1), now);
    assert!(b.take().is_empty());
    a.send(&there(100, 1), now);
    settle(&mut a, &mut b, now);
    assert_eq!(b.received, [there(100, 1)]);
}

#[test]
fn a_removed_peer_is_forgotten_at_once() {
    let now = start();
    let (mut a, mut b) = connected(now);
    b.plan.peers.clear();
    b.apply(now);
    a.send(&there(100, 1), now);
    settle(&mut a, &mut b, now);
    assert!(b.received.is_empty());
    assert_eq!(b.count(Count::UnknownSession), 1);
    assert!(b.core.report(now).peers.is_empty());
}

/// Initiations of A to B, each another one.
fn initiations(count: u16, now: Instant) -> Vec<Vec<u8>> {
    let (mut a, _) = pair(now);
    let begin = |n: u16| {
        let mut planned = peer(&["10.0.0.2/32"], Some(([192, 0, 2, 2], 2001 + n).into()));
        planned.keepalive = Some(Duration::from_secs(25));
        // A new endpoint begins the handshake afresh.
        a.set_peer(key(2), planned, now);
        a.turn(now);
        a.take().remove(0).1
    };
    (0..count).map(begin).collect()
}

#[test]
fn a_flood_of_handshakes_is_answered_with_cookies_and_who_shows_one_gets_in() {
    let now = start();
    let (mut a, mut b) = pair(now);
    for initiation in initiations(1024, now) {
        b.receive("203.0.113.66:6".parse().unwrap(), &initiation, now);
    }
    assert!(b.take().is_empty(), "so many may wait");
    a.send(&there(100, 1), now);
    a.turn(now);
    let (_, initiation) = a.take().remove(0);
    b.receive(a.address, &initiation, now);
    let (to, cookie) = b.take().remove(0);
    assert_eq!((to, cookie[0], cookie.len()), (a.address, 3, 64));
    assert_eq!(b.count(Count::CookieSent), 1);

    // With it the next one gets in, but not from elsewhere.
    a.receive(b.address, &cookie, now);
    let again = Some("192.0.2.2:2001".parse().unwrap());
    a.plan.peers.get_mut(&key(2)).unwrap().endpoint = again;
    a.apply(now);
    a.turn(now);
    let (_, initiation) = a.take().remove(0);
    b.receive("203.0.113.66:6".parse().unwrap(), &initiation, now);
    assert_eq!(b.take()[0].1[0], 3);
    b.receive(a.address, &initiation, now);
    assert!(b.take().is_empty(), "it waits");
    b.core.handle_timeout(now, &mut b.out);
    b.core.handle_timeout(now, &mut b.out);
    let answers = b.take();
    let answer = answers.iter().find(|(to, _)| *to == a.address);
    assert_eq!(answer.unwrap().1[0], 2, "and not behind the flood");

    // A second after the last of them waited nobody needs one.
    b.turn(now);
    let later = now + Duration::from_secs(2);
    b.take();
    b.receive(a.address, &initiations(1, now)[0], later);
    assert!(b.take().is_empty());
}

#[test]
fn a_thousand_peers_at_once_need_no_cookies() {
    let now = start();
    let (_, mut b) = pair(now);
    for (n, initiation) in (0..1000u16).zip(initiations(1000, now)) {
        let [high, low] = n.to_be_bytes();
        b.receive(
            SocketAddr::from(([198, 18, high, low], 1)),
            &initiation,
            now,
        );
    }
    assert!(b.take().is_empty());
    assert_eq!(
        b.count(Count::CookieSent) + b.count(Count::HandshakesFull),
        0
    );
}

#[test]
fn a_storm_of_handshakes_takes_a_turn_each_and_packets_go_between() {
    let now = start();
    let (mut a, mut b) = connected(now);
    let callers: Vec<Node> = (10..110)
        .map(|n| Node::new(&secret(n), &format!("198.51.100.{n}:1000")))
        .collect();
    for (n, caller) in (10..).zip(&callers) {
        let range = format!("10.1.0.{n}/32");
        let planned = peer(&[&range], Some(caller.address));
        b.plan.peers.insert(caller.plan.key.public(), planned);
    }
    b.apply(now);
    b.turn(now);
    for mut caller in callers {
        let planned = peer(&["10.0.0.2/32"], Some(b.address));
        caller.set_peer(key(2), planned, now);
        caller.send(&there(100, 1), now);
        caller.turn(now);
        let (_, initiation) = caller.take().remove(0);
        b.receive(caller.address, &initiation, now);
    }
    assert!(b.take().is_empty(), "they wait");
    for n in 0..100 {
        a.send(&there(100, n), now);
        let (_, datagram) = a.take().remove(0);
        b.receive(a.address, &datagram, now);
        assert_eq!(b.received.pop(), Some(there(100, n)), "no packet waits");
        b.core.handle_timeout(now, &mut b.out);
        let answers = b.take();
        assert_eq!(answers.len(), 1, "turn {n}");
        assert_eq!(answers[0].1[0], 2, "a response");
    }
    assert!(b.core.poll_timeout(now).is_none_or(|(at, _)| at > now));
}

#[test]
fn handshakes_that_a_plan_asks_for_begin_one_a_turn() {
    let now = start();
    let mut a = Node::new(&secret(1), A);
    for n in 10..60 {
        let range = format!("10.1.0.{n}/32");
        let mut planned = peer(&[&range], Some(B.parse().unwrap()));
        planned.keepalive = Some(Duration::from_secs(25));
        a.plan.peers.insert(key(n), planned);
    }
    a.apply(now);
    let mut begun = 0;
    for _ in 0..50 {
        assert!(a.core.poll_timeout(now).is_some_and(|(at, _)| at <= now));
        a.core.handle_timeout(now, &mut a.out);
        let sent = a.take().len();
        assert!(sent <= 1, "{sent} at once");
        begun += sent;
    }
    assert_eq!(begun, 50);
}

#[test]
fn packets_to_many_sleeping_peers_begin_one_handshake_a_turn() {
    let now = start();
    let mut a = Node::new(&secret(1), A);
    for n in 10..60 {
        let range = format!("10.1.0.{n}/32");
        a.plan
            .peers
            .insert(key(n), peer(&[&range], Some(B.parse().unwrap())));
    }
    a.apply(now);
    a.turn(now);
    for n in 10..60 {
        a.send(&packet("10.0.0.1", &format!("10.1.0.{n}"), 100, 1), now);
    }
    assert!(a.take().is_empty());
    for _ in 0..50 {
        a.core.handle_timeout(now, &mut a.out);
        assert_eq!(a.take().len(), 1);
    }
}

#[test]
fn no_more_than_4096_handshake_messages_wait() {
    let now = start();
    let (mut a, _) = pair(now);
    a.send(&there(100, 1), now);
    a.turn(now);
    let (_, initiation) = a.take().remove(0);
    let mut response = vec![0; 92];
    response[0] = 2;
    response[8..12].copy_from_slice(&initiation[4..8]);
    for _ in 0..4100 {
        a.receive(B.parse().unwrap(), &response, now);
    }
    assert_eq!(a.count(Count::HandshakesFull), 4);
    a.turn(now);
    assert_eq!(a.count(Count::BadMac), 4096);
}

#[test]
fn packets_that_wait_are_forgotten_with_their_peer() {
    let now = start();
    let (mut a, mut b) = pair(now);
    let planned = a.plan.peers[&key(2)].clone();
    for _ in 0..100 {
        for n in 0..100 {
            a.send(&there(100, n), now);
        }
        a.plan.peers.clear();
        a.apply(now);
        a.set_peer(key(2), planned.clone(), now);
    }
    assert_eq!(a.count(Count::StagedFull), 0, "none is counted as waiting");
    settle(&mut a, &mut b, now);
    assert!(b.received.is_empty());
}

#[test]
fn a_thousand_idle_peers_cost_less_than_a_kilobyte_each_and_apply_is_idempotent() {
    let now = start();
    let mut a = Node::new(&secret(1), A);
    for n in 0..1000u16 {
        let [high, low] = n.to_be_bytes();
        let mut bytes = [7; 32];
        bytes[..2].copy_from_slice(&[high, low]);
        let range = format!("10.{high}.{low}.0/24");
        let planned = peer(&[&range], Some(B.parse().unwrap()));
        a.plan.peers.insert(WgKey(bytes), planned);
    }
    a.apply(now);
    a.apply(now);
    a.core.handle_timeout(now, &mut a.out);
    assert_eq!(a.core.poll_timeout(now), None);
    const { assert!(data_plane::core::Core::IDLE_PEER_BYTES < 1024 - 128) };
}

#[test]
fn no_bytes_from_outside_panic() {
    let now = start();
    let (mut a, mut b) = connected(now);
    a.send(&there(100, 1), now);
    let (_, good) = a.take().remove(0);
    let mut seed = 1u32;
    for _ in 0..20_000 {
        let mut bytes = good.clone();
        let mut random = || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 8) as usize
        };
        bytes.truncate(random() % (bytes.len() + 1));
        bytes.resize(bytes.len() + [0, 16, 60][random() % 3], 3);
        for _ in 0..random() % 4 {
            let at = random() % bytes.len().max(1);
            if let Some(byte) = bytes.get_mut(at) {
                *byte = random() as u8;
            }
        }
        if let Some(first) = bytes.first_mut() {
            *first = (random() % 6) as u8;
        }
        b.receive(a.address, &bytes, now);
        b.take();
    }
    a.send(&there(100, 2), now);
    settle(&mut a, &mut b, now);
    assert_eq!(b.received.last(), Some(&there(100, 2)));
}
