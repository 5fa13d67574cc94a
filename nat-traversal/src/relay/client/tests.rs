use mesh_types::{Idx, WgKey};

use super::*;
use crate::instant::start;

const PEER: PeerId = PeerId::Key(WgKey([1; 32]));
const RELAY: PeerId = PeerId::Key(WgKey([2; 32]));

fn main_port() -> SocketAddr {
    SocketAddr::from(([203, 0, 113, 1], 22000))
}

fn offer(port: u16, nonce: Option<u8>) -> RelayOffer {
    RelayOffer {
        peer: Idx([0; 8]),
        port,
        nonce: nonce.map(|byte| vec![byte; 16]),
    }
}

fn at(port: u16) -> SocketAddr {
    SocketAddr::new(main_port().ip(), port)
}

fn sent(client: &mut Client) -> Vec<(SocketAddr, Option<Vec<u8>>)> {
    std::iter::from_fn(|| client.poll_request())
        .map(|request| (request.destination, request.nonce))
        .collect()
}

/// Runs until nothing is due by `end`; what was sent.
fn run(client: &mut Client, end: Instant) -> Vec<(SocketAddr, Option<Vec<u8>>)> {
    let mut all = sent(client);
    while let Some((next, _)) = client.poll_timeout().filter(|(next, _)| *next <= end) {
        client.handle_timeout(next);
        all.extend(sent(client));
        if client
            .poll_timeout()
            .is_some_and(|(after, _)| after <= next)
        {
            panic!("it spins");
        }
    }
    all
}

fn bound(now: Instant) -> Client {
    let mut client = Client::default();
    client.want(PEER, RELAY, main_port(), now);
    client.handle_answer(PEER, RELAY, main_port(), &offer(3000, Some(1)), now);
    client.handle_answer(PEER, RELAY, at(3000), &offer(3000, None), now);
    assert_eq!(
        sent(&mut client),
        [(main_port(), None), (at(3000), Some(vec![1; 16]))]
    );
    let event = Event::Bound {
        peer: PEER,
        relay: RELAY,
        address: at(3000),
    };
    assert_eq!(client.poll_event(), Some(event));
    client
}

#[test]
fn a_bind_takes_two_requests_and_is_refreshed_with_the_same_nonce() {
    let now = start();
    let mut client = bound(now);
    assert_eq!(client.poll_timeout(), Some((now + REFRESH, "relay bind")));
    let refreshed = run(&mut client, now + REFRESH);
    assert_eq!(refreshed, [(at(3000), Some(vec![1; 16]))]);
    let later = now + REFRESH;
    client.handle_answer(PEER, RELAY, at(3000), &offer(3000, Some(2)), later);
    assert_eq!(sent(&mut client), [(at(3000), Some(vec![2; 16]))]);
    client.handle_answer(PEER, RELAY, at(3000), &offer(3000, None), later);
    assert!(matches!(client.poll_event(), Some(Event::Bound { .. })));
    assert_eq!(client.poll_timeout(), Some((later + REFRESH, "relay bind")));
}

#[test]
fn a_relay_that_never_answers_is_asked_five_times_and_given_up() {
    let now = start();
    let mut client = Client::default();
    client.want(PEER, RELAY, main_port(), now);
    client.want(PEER, RELAY, main_port(), now);
    let requests = run(&mut client, now + Duration::from_secs(60));
    assert_eq!(requests.len(), RETRY.len());
    let failed = Event::Failed {
        peer: PEER,
        relay: RELAY,
        refused: false,
    };
    assert_eq!(client.poll_event(), Some(failed));
    assert_eq!(client.poll_timeout(), None);
}

#[test]
fn where_a_relay_port_is_silent_the_main_port_is_asked_for_another() {
    let now = start();
    let mut client = bound(now);
    client.renew(PEER, RELAY, now);
    let requests = run(&mut client, now + Duration::from_secs(1));
    let (last, rest) = requests.split_last().expect("requests");
    assert_eq!(*last, (main_port(), None));
    assert!(rest.iter().any(|(to, _)| *to == at(3000)));
    client.handle_answer(PEER, RELAY, main_port(), &offer(3001, Some(9)), now);
    assert_eq!(sent(&mut client), [(at(3001), Some(vec![9; 16]))]);
}

#[test]
fn a_relay_that_gives_nonce_after_nonce_is_given_up() {
    let now = start();
    let mut client = Client::default();
    client.want(PEER, RELAY, main_port(), now);
    client.handle_answer(PEER, RELAY, main_port(), &offer(3000, Some(0)), now);
    for nonce in 1..20 {
        client.handle_answer(PEER, RELAY, at(3000), &offer(3000, Some(nonce)), now);
    }
    assert!(sent(&mut client).len() <= 2 + usize::from(NONCES_MAX));
    assert!(matches!(client.poll_event(), Some(Event::Failed { .. })));
}

#[test]
fn bound_is_believed_only_from_the_port_that_was_asked() {
    let now = start();
    let mut client = Client::default();
    client.want(PEER, RELAY, main_port(), now);
    client.handle_answer(PEER, RELAY, main_port(), &offer(3000, None), now);
    client.handle_answer(PEER, RELAY, at(3000), &offer(3000, None), now);
    assert_eq!(client.poll_event(), None);
    client.handle_answer(PEER, RELAY, main_port(), &offer(3000, Some(1)), now);
    client.handle_answer(PEER, RELAY, main_port(), &offer(3000, None), now);
    client.handle_answer(PEER, RELAY, at(3001), &offer(3001, None), now);
    assert_eq!(client.poll_event(), None);
}

#[test]
fn an_offer_spares_the_first_step_and_its_copies_start_nothing_anew() {
    let now = start();
    let mut client = Client::default();
    for _ in 0..3 {
        client.handle_offer(PEER, RELAY, main_port(), &offer(3000, Some(5)), now);
    }
    assert_eq!(sent(&mut client), [(at(3000), Some(vec![5; 16]))]);
    client.handle_answer(PEER, RELAY, at(3000), &offer(3000, None), now);
    assert!(matches!(client.poll_event(), Some(Event::Bound { .. })));
    client.handle_offer(PEER, RELAY, main_port(), &offer(3000, Some(6)), now);
    let rebinds = [(at(3000), Some(vec![6; 16]))];
    assert_eq!(sent(&mut client), rebinds, "the relay has forgotten it");
}

#[test]
fn offer_upon_offer_does_not_keep_a_relay_whose_port_is_silent() {
    let now = start();
    let mut client = Client::default();
    let mut requests = 0;
    for step in 0..100 {
        let now = now + Duration::from_millis(50) * step;
        client.handle_timeout(now);
        if client.poll_event().is_some() {
            break;
        }
        client.handle_offer(PEER, RELAY, main_port(), &offer(3000, Some(5)), now);
        for (to, _) in sent(&mut client) {
            requests += 1;
            if to == main_port() {
                client.handle_answer(PEER, RELAY, to, &offer(3000, Some(5)), now);
            }
        }
        assert!(step < 99, "it ends");
    }
    assert!(
        requests <= RETRY.len() + 3 * usize::from(NONCES_MAX),
        "{requests}"
    );
}

#[test]
fn one_peer_is_met_at_few_relays_and_a_refusal_ends_a_bind() {
    let now = start();
    let mut client = Client::default();
    for n in 0..20 {
        let relay = PeerId::Key(WgKey([100 + n; 32]));
        client.want(PEER, relay, main_port(), now);
    }
    assert_eq!(client.relays_of(PEER).count(), PER_PEER_MAX);
    let relay = PeerId::Key(WgKey([100; 32]));
    client.handle_refusal(PEER, relay);
    assert_eq!(client.relays_of(PEER).count(), PER_PEER_MAX - 1);
    client.release(PEER, PeerId::Key(WgKey([101; 32])));
    client.remove_peer(&PEER);
    assert_eq!(client.poll_timeout(), None);
}

#[test]
fn a_moved_host_binds_anew_with_what_it_has() {
    let now = start();
    let mut client = bound(now);
    client.moved(now);
    assert_eq!(sent(&mut client), [(at(3000), Some(vec![1; 16]))]);
    client.renew(PEER, RELAY, now);
    assert_eq!(sent(&mut client), [], "it is being asked already");
}
