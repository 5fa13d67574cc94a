use mesh_types::WgKey;

use super::*;
use crate::instant::start;

fn id(n: u16) -> PeerId {
    let [high, low] = n.to_be_bytes();
    let mut key = [low; 32];
    key[0] = high;
    PeerId::Key(WgKey(key))
}

fn at(n: u8, port: u16) -> SocketAddr {
    SocketAddr::from(([198, 51, 100, n], port))
}

fn server(ports: (u16, u16), now: Instant) -> Server {
    let mut server = Server::new([7; 32], now);
    server.set(Some(RelaySettings {
        ports,
        pair_rate: 1000,
        node_rate: 4000,
    }));
    server
}

fn ask(
    server: &mut Server,
    (from, to): (u16, u16),
    source: SocketAddr,
    shown: Option<(u16, &[u8])>,
    now: Instant,
) -> Result<Answer, Refusal> {
    let request = Request {
        from: id(from),
        to: id(to),
        source,
        port: shown.map(|(port, _)| port),
        nonce: shown.map(|(_, nonce)| nonce),
    };
    server.handle_bind(&request, now)
}

/// One asks, at the main port, to meet the other.
fn wish() -> Request<'static> {
    Request {
        from: id(1),
        to: id(2),
        source: at(1, 1000),
        port: None,
        nonce: None,
    }
}

/// Both steps of one end.
fn bind(
    server: &mut Server,
    pair: (u16, u16),
    main: SocketAddr,
    data: SocketAddr,
    now: Instant,
) -> u16 {
    let Ok(Answer::Come(port, nonce)) = ask(server, pair, main, None, now) else {
        panic!("the first step is answered with a port and a nonce");
    };
    let bound = ask(server, pair, data, Some((port, &nonce)), now);
    assert_eq!(bound, Ok(Answer::Bound(port)));
    port
}

#[test]
fn a_pair_is_forwarded_once_both_ends_are_bound_each_at_the_others_port() {
    let now = start();
    let mut server = server((28672, 29183), now);
    let to_b = bind(&mut server, (1, 2), at(1, 1000), at(1, 1001), now);
    assert_eq!(server.pairs(), BTreeSet::new(), "one end is no pair");
    let to_a = bind(&mut server, (2, 1), at(2, 2000), at(2, 2001), now);
    assert_ne!(to_a, to_b);
    let pair = RelayPair {
        first: (at(1, 1001), to_b),
        second: (at(2, 2001), to_a),
        rate: 1000,
        node_rate: 4000,
    };
    assert_eq!(server.pairs(), BTreeSet::from([pair]));
    assert_eq!(server.ports(), BTreeSet::from([to_a, to_b]));
    assert!(server.take_changed() && !server.take_changed());
}

#[test]
fn a_member_has_one_port_whoever_sends_to_it() {
    let now = start();
    let mut server = server((28672, 29183), now);
    let first = bind(&mut server, (1, 9), at(1, 1), at(1, 2), now);
    let second = bind(&mut server, (2, 9), at(2, 1), at(2, 2), now);
    assert_eq!(first, second);
}

#[test]
fn a_nonce_fits_its_pair_its_source_address_and_its_time_only() {
    let now = start();
    let mut server = server((28672, 29183), now);
    bind(&mut server, (1, 2), at(1, 1000), at(1, 1001), now);
    bind(&mut server, (2, 1), at(2, 2000), at(2, 2001), now);
    let before = server.pairs();
    let Ok(Answer::Come(port, nonce)) = ask(&mut server, (1, 2), at(1, 1000), None, now) else {
        panic!("a nonce");
    };
    let late = now + Duration::from_secs(61);
    let long = [&nonce[..], &[0]].concat();
    for (pair, source, shown, when) in [
        ((1, 2), at(3, 1001), (port, &nonce[..]), now),
        ((2, 1), at(1, 1001), (port, &nonce[..]), now),
        ((1, 2), at(1, 1002), (port + 1, &nonce[..]), now),
        ((1, 2), at(1, 1002), (port, &nonce[1..]), now),
        ((1, 2), at(1, 1002), (port, &long[..]), now),
        ((1, 2), at(1, 1002), (port, &[]), now),
        ((1, 2), at(1, 1002), (port, &nonce[..]), late),
    ] {
        let answer = ask(&mut server, pair, source, Some(shown), when);
        assert!(
            matches!(answer, Ok(Answer::Come(..))),
            "{source} {answer:?}"
        );
        assert_eq!(server.pairs(), before);
    }
    let soon = now + Duration::from_secs(29);
    let moved = ask(&mut server, (1, 2), at(1, 1002), Some((port, &nonce)), soon);
    assert_eq!(moved, Ok(Answer::Bound(port)));
    assert_ne!(server.pairs(), before, "the end itself may move");
}

#[test]
fn an_end_that_is_not_refreshed_is_forgotten_and_so_is_its_port() {
    let now = start();
    let mut server = server((28672, 29183), now);
    bind(&mut server, (1, 2), at(1, 1000), at(1, 1001), now);
    let later = now + Duration::from_secs(200);
    bind(&mut server, (2, 1), at(2, 2000), at(2, 2001), later);
    assert_eq!(server.poll_timeout(), Some((now + LIFETIME, "relay")));
    server.take_changed();
    server.handle_timeout(now + LIFETIME);
    assert_eq!(server.pairs(), BTreeSet::new());
    assert!(server.take_changed());
    server.handle_timeout(later + LIFETIME);
    assert_eq!(server.ports(), BTreeSet::new());
    assert_eq!(server.poll_timeout(), None);
}

#[test]
fn a_busy_port_is_skipped_and_given_up() {
    let now = start();
    let mut server = server((3000, 3002), now);
    let to_b = bind(&mut server, (1, 2), at(1, 1000), at(1, 1001), now);
    bind(&mut server, (2, 1), at(2, 2000), at(2, 2001), now);
    server.set_busy(&BTreeSet::from([to_b]), now);
    assert_eq!(server.pairs(), BTreeSet::new());
    let other = bind(&mut server, (1, 2), at(1, 1000), at(1, 1001), now);
    assert_ne!(other, to_b);
    assert!(!server.ports().contains(&to_b));
}

#[test]
fn a_port_that_was_busy_is_lent_again_after_an_hour_and_not_at_once() {
    let now = start();
    let mut server = server((3000, 3002), now);
    let port = bind(&mut server, (1, 2), at(1, 1000), at(1, 1001), now);
    server.set_busy(&BTreeSet::from([port]), now);
    server.set_busy(&BTreeSet::new(), now);
    let other = bind(&mut server, (1, 2), at(1, 1000), at(1, 1001), now);
    assert_ne!(other, port);
    let later = now + BUSY;
    server.handle_timeout(later);
    assert_eq!(server.ports(), BTreeSet::new());
    let again = bind(&mut server, (1, 2), at(1, 1000), at(1, 1001), later);
    assert_eq!(again, port);
}

#[test]
fn no_port_no_pair_and_caps_hold() {
    let now = start();
    let mut small = server((3000, 3001), now);
    bind(&mut small, (1, 2), at(1, 1), at(1, 2), now);
    let full = ask(&mut small, (1, 3), at(1, 1), None, now);
    assert_eq!(full, Err(Refusal::Full), "two ports serve two members");

    let mut large = server((20_000, 40_000), now);
    for n in 0..300 {
        let source = at(1, 1000 + n);
        let answer = ask(&mut large, (1, 1000 + n), source, None, now);
        let Ok(Answer::Come(port, nonce)) = answer else {
            assert!(usize::from(n) >= MEMBER_PAIRS_MAX);
            assert_eq!(answer, Err(Refusal::Full));
            continue;
        };
        assert!(usize::from(n) < MEMBER_PAIRS_MAX);
        let bound = ask(&mut large, (1, 1000 + n), source, Some((port, &nonce)), now);
        assert_eq!(bound, Ok(Answer::Bound(port)));
    }
    for n in 0..2000 {
        let pair = (2000 + n, 5000 + n);
        if let Ok(Answer::Come(port, nonce)) = ask(&mut large, pair, at(2, n), None, now) {
            let _ = ask(&mut large, pair, at(2, n), Some((port, &nonce)), now);
        }
    }
    assert_eq!(large.pairs.len(), PAIRS_MAX);
}

#[test]
fn a_mapping_that_a_translator_gives_to_another_pair_is_that_pairs_alone() {
    let now = start();
    let mut server = server((28672, 29183), now);
    bind(&mut server, (1, 9), at(1, 1000), at(1, 5000), now);
    bind(&mut server, (9, 1), at(9, 1000), at(9, 5000), now);
    bind(&mut server, (2, 9), at(1, 1001), at(1, 5000), now);
    bind(&mut server, (9, 2), at(9, 1000), at(9, 5001), now);
    let pairs = server.pairs();
    assert_eq!(pairs.len(), 1);
    assert!(pairs.iter().all(|pair| pair.rate == 1000));
}

#[test]
fn the_other_end_is_told_once_in_a_while_until_it_is_bound() {
    let now = start();
    let mut server = server((28672, 29183), now);
    let port = bind(&mut server, (1, 2), at(1, 1000), at(1, 1001), now);
    let ip = at(2, 0).ip();
    let (offered, nonce) = server.offer(&wish(), ip, now).expect("an offer");
    assert_ne!(offered, port);
    assert_eq!(server.offer(&wish(), ip, now), None, "just told");
    let again = now + Duration::from_secs(1);
    assert!(server.offer(&wish(), ip, again).is_some());
    let bound = ask(
        &mut server,
        (2, 1),
        at(2, 2001),
        Some((offered, &nonce)),
        now,
    );
    assert_eq!(bound, Ok(Answer::Bound(offered)), "its nonce spares a step");
    let later = now + PATIENCE - Duration::from_millis(1);
    assert_eq!(server.offer(&wish(), ip, later), None);
}

#[test]
fn an_end_that_may_have_left_is_told_of_a_wish_and_not_of_a_refresh() {
    let now = start();
    let mut server = server((28672, 29183), now);
    let port = bind(&mut server, (1, 2), at(1, 1000), at(1, 1001), now);
    bind(&mut server, (2, 1), at(2, 1000), at(2, 1001), now);
    let later = now + PATIENCE;
    let refresh = Request {
        port: Some(port),
        ..wish()
    };
    assert_eq!(server.offer(&refresh, at(2, 0).ip(), later), None);
    assert!(server.offer(&wish(), at(2, 0).ip(), later).is_some());
    let later = later + Duration::from_millis(200);
    assert_eq!(server.offers_due(later), [(id(1), id(2))]);
    let again = server.offer_again(id(1), id(2), Some(at(2, 0).ip()), later);
    assert!(again.is_some(), "the first message may be lost");
    bind(&mut server, (2, 1), at(2, 1000), at(2, 1001), later);
    assert_eq!(server.offers_due(later + PATIENCE), []);
}

#[test]
fn an_end_that_does_not_come_is_told_a_few_times_more() {
    let told = |comes: bool| {
        let mut now = start();
        let mut server = server((28672, 29183), now);
        bind(&mut server, (1, 2), at(1, 1000), at(1, 1001), now);
        let ip = at(2, 0).ip();
        assert!(server.offer(&wish(), ip, now).is_some());
        let first = now;
        let mut times = Vec::new();
        while let Some((next, _)) = server
            .poll_timeout()
            .filter(|(at, _)| *at < first + LIFETIME)
        {
            now = next;
            server.handle_timeout(now);
            for (from, to) in server.offers_due(now) {
                if server.offer_again(from, to, Some(ip), now).is_some() {
                    times.push((now - first).as_millis());
                }
            }
            if comes {
                bind(&mut server, (2, 1), at(2, 2000), at(2, 2001), now);
            }
        }
        times
    };
    assert_eq!(told(false), [200, 600, 1400]);
    assert_eq!(told(true), [200]);
}

#[test]
fn a_wish_that_nobody_follows_is_told_ever_more_rarely() {
    let now = start();
    let mut server = server((28672, 29183), now);
    let mut told = 0;
    for tenths in 0..6000 {
        let now = now + Duration::from_millis(100) * tenths;
        server.handle_timeout(now);
        for (from, to) in server.offers_due(now) {
            told += u32::from(
                server
                    .offer_again(from, to, Some(at(2, 0).ip()), now)
                    .is_some(),
            );
        }
        told += u32::from(server.offer(&wish(), at(2, 0).ip(), now).is_some());
    }
    assert!((10..30).contains(&told), "{told} in ten minutes");
}

#[test]
fn an_end_out_of_reach_is_not_told_again() {
    let now = start();
    let mut server = server((28672, 29183), now);
    bind(&mut server, (1, 2), at(1, 1000), at(1, 1001), now);
    assert!(server.offer(&wish(), at(2, 0).ip(), now).is_some());
    let later = now + Duration::from_millis(200);
    assert_eq!(server.offers_due(later), [(id(1), id(2))]);
    assert_eq!(server.offer_again(id(1), id(2), None, later), None);
    assert_eq!(server.offers_due(later), []);
}

#[test]
fn a_node_that_does_not_relay_refuses_and_stopping_forgets_all() {
    let now = start();
    let mut server = server((28672, 29183), now);
    bind(&mut server, (1, 2), at(1, 1000), at(1, 1001), now);
    assert_eq!(
        ask(&mut server, (1, 1), at(1, 1), None, now),
        Err(Refusal::Peer)
    );
    server.set(None);
    assert_eq!(server.ports(), BTreeSet::new());
    assert_eq!(server.poll_timeout(), None);
    assert_eq!(
        ask(&mut server, (1, 2), at(1, 1), None, now),
        Err(Refusal::Off)
    );
}
