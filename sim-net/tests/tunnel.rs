//! The model keeps what is known of the kernel's WireGuard (reference: its timers.c, noise.c, send.c).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mesh_types::plan::{TunnelPeer, TunnelPlan};
use mesh_types::report::Backend;
use mesh_types::{PresharedKey, WgKey, WgSecret};
use sim_net::tunnel::{Inner, STAGED_MAX, Tunnel, is_wireguard};

#[test]
fn the_first_packet_makes_a_handshake_and_arrives() {
    let mut pair = Pair::new();
    pair.say(0, 1);
    assert_eq!(pair.heard(1), [1]);
    assert_eq!(pair.sizes(), [148, 92, 32 + 32]);
    pair.say(1, 2);
    assert_eq!(pair.heard(0), [2]);
}

#[test]
fn a_keepalive_that_begins_makes_a_handshake_at_once() {
    let mut pair = Pair::new();
    pair.plan(0, |peer| peer.keepalive = Some(Duration::from_secs(25)));
    assert_eq!(pair.sizes(), [148, 92, 32]);
    assert!(pair.handshake_age(0).is_some());
    pair.pass(Duration::from_secs(60));
    assert_eq!(pair.sizes(), [32, 32], "one every 25 s");
}

#[test]
fn a_handshake_is_tried_again_after_5_seconds_and_given_up_after_90() {
    let mut pair = Pair::new();
    pair.open = false;
    pair.say(0, 1);
    pair.pass(Duration::from_secs(200));
    let tries = pair.sizes();
    assert!(tries.iter().all(|size| *size == 148));
    assert_eq!(tries.len(), 20, "the first, and 19 in 95 s");
    assert_eq!(pair.tunnels[0].staged(), 0);
}

#[test]
fn packets_wait_for_the_session_up_to_128_and_the_newest_stay() {
    let mut pair = Pair::new();
    pair.open = false;
    for n in 0..200 {
        pair.say(0, n);
    }
    assert_eq!(pair.tunnels[0].staged(), STAGED_MAX);
    pair.open = true;
    pair.pass(Duration::from_secs(6));
    assert_eq!(pair.heard(1), (72..200).collect::<Vec<_>>());
}

#[test]
fn both_ends_starting_at_once_end_with_a_session() {
    let mut pair = Pair::new();
    pair.open = false;
    pair.say(0, 1);
    pair.say(1, 2);
    pair.open = true;
    pair.pass(Duration::from_secs(7));
    assert_eq!((pair.heard(1), pair.heard(0)), (vec![1], vec![2]));
}

#[test]
fn a_session_is_renewed_by_its_initiator_after_120_seconds_without_loss() {
    let mut pair = Pair::new();
    for second in 0..400 {
        pair.say(second % 2, u16::try_from(second).expect("small"));
        pair.pass(Duration::from_secs(1));
    }
    let handshakes = pair.sizes().iter().filter(|size| **size == 148).count();
    assert!((3..=5).contains(&handshakes), "{handshakes}");
    assert_eq!(pair.heard(0).len() + pair.heard(1).len(), 400);
}

#[test]
fn an_unanswered_packet_makes_a_new_handshake_after_15_seconds() {
    let mut pair = Pair::new();
    pair.say(0, 1);
    pair.pass(Duration::from_secs(11));
    pair.sizes();
    pair.open = false;
    pair.say(0, 2);
    pair.pass(Duration::from_secs(16));
    assert_eq!(pair.sizes(), [64, 148]);
}

#[test]
fn a_receiver_that_says_nothing_sends_a_keepalive_after_10_seconds() {
    let mut pair = Pair::new();
    pair.say(0, 1);
    pair.sizes();
    pair.pass(Duration::from_secs(11));
    assert_eq!(pair.sizes(), [32]);
}

#[test]
fn the_endpoint_follows_the_source_of_any_authenticated_packet() {
    let mut pair = Pair::new();
    pair.say(0, 1);
    pair.addresses[0] = "5.0.0.99:999".parse().expect("an address");
    pair.say(0, 2);
    assert_eq!(pair.endpoint(1), Some(pair.addresses[0]));
    pair.say(1, 3);
    assert_eq!(pair.heard(0), [3]);
}

#[test]
fn an_endpoint_that_was_learned_is_kept_until_the_plan_names_another() {
    let mut pair = Pair::new();
    pair.say(0, 1);
    let roamed = "5.0.0.99:999".parse().expect("an address");
    pair.addresses[0] = roamed;
    pair.say(0, 2);
    pair.plan(1, |peer| peer.keepalive = Some(Duration::from_secs(25)));
    assert_eq!(pair.endpoint(1), Some(roamed));
    let planned = "5.0.0.7:7".parse().expect("an address");
    pair.plan(1, |peer| peer.endpoint = Some(planned));
    assert_eq!(pair.endpoint(1), Some(planned));
    pair.say(0, 3);
    assert_eq!(pair.endpoint(1), Some(roamed));
    pair.plan(1, |peer| peer.insist += 1);
    assert_eq!(pair.endpoint(1), Some(planned));
}

#[test]
fn a_source_outside_the_peers_ranges_is_dropped() {
    let mut pair = Pair::new();
    let stray = Inner {
        source: "10.9.9.9:1".parse().expect("an address"),
        destination: overlay(1),
        payload: vec![1, 0],
    };
    let now = pair.now;
    pair.tunnels[0].send(&stray, now);
    pair.carry();
    assert_eq!(pair.heard(1), Vec::<u16>::new());
    let dropped = pair.tunnels[1].dropped();
    assert_eq!(dropped.get("source not in the peer's ranges"), Some(&1));
}

#[test]
fn a_duplicate_is_dropped_and_counted() {
    let mut pair = Pair::new();
    pair.say(0, 1);
    pair.twice = true;
    pair.say(0, 2);
    assert_eq!(pair.heard(1), [1, 2]);
    assert_eq!(pair.tunnels[1].dropped().get("data replayed"), Some(&1));
}

#[test]
fn strangers_wrong_preshared_keys_and_stale_sessions_are_refused() {
    let mut pair = Pair::new();
    let psk = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    pair.plan(0, |peer| {
        peer.preshared_key = PresharedKey::from_base64(psk).ok();
    });
    pair.say(0, 1);
    assert_eq!(pair.heard(1), Vec::<u16>::new());
    let dropped = pair.tunnels[1].dropped();
    assert_eq!(dropped.get("another preshared key"), Some(&1));

    let mut pair = Pair::new();
    pair.say(0, 1);
    pair.restart(1);
    pair.say(0, 2);
    assert_eq!(pair.heard(1), Vec::<u16>::new());
    let dropped = pair.tunnels[1].dropped();
    assert_eq!(dropped.get("data of no session"), Some(&1));
    pair.say(1, 3);
    assert_eq!(pair.heard(0), [3], "its timestamps have risen");

    pair.plans[1].peers.clear();
    pair.restart(1);
    pair.pass(Duration::from_secs(200));
    pair.say(0, 4);
    let dropped = pair.tunnels[1].dropped();
    assert!(dropped.contains_key("initiation of a stranger"));
}

#[test]
fn a_passive_peer_answers_and_never_starts() {
    let mut pair = Pair::new();
    pair.plan(0, |peer| peer.passive = true);
    pair.say(0, 1);
    pair.pass(Duration::from_secs(30));
    assert_eq!(pair.sizes(), Vec::<usize>::new());
    pair.say(1, 2);
    assert_eq!((pair.heard(0), pair.heard(1)), (vec![2], vec![1]));
}

#[test]
fn after_a_change_of_key_old_sessions_receive_and_the_kernel_sends_nothing_under_them() {
    for backend in [Backend::Kernel, Backend::Userspace] {
        let mut pair = Pair::with(backend);
        pair.say(0, 1);
        let fresh = WgSecret::from_bytes([77; 32]);
        let old = std::mem::replace(&mut pair.plans[0].key, fresh.clone());
        pair.plans[0].previous_key = Some(old);
        pair.replan(0);
        pair.say(1, 2);
        assert_eq!(pair.heard(0), [2], "old sessions receive");
        pair.say(0, 3);
        let at_once = backend == Backend::Userspace;
        assert_eq!(pair.heard(1) == [1, 3], at_once, "{backend:?}");
        // The reader adds the new key in one step.
        let peers = &mut pair.plans[1].peers;
        let (_, peer) = peers.pop_first().expect("one peer");
        peers.insert(fresh.public(), peer);
        pair.replan(1);
        pair.pass(Duration::from_secs(6));
        pair.say(0, 4);
        assert_eq!(pair.heard(1), if at_once { vec![4] } else { vec![3, 4] });
    }
}

/// Two devices joined by a wire.
struct Pair {
    now: Instant,
    epoch: Instant,
    backend: Backend,
    plans: [TunnelPlan; 2],
    tunnels: [Tunnel; 2],
    addresses: [SocketAddr; 2],
    sizes: Vec<usize>,
    open: bool,
    twice: bool,
}

impl Pair {
    fn new() -> Self {
        Self::with(Backend::Kernel)
    }

    fn with(backend: Backend) -> Self {
        let epoch = sim_net::start();
        let keys = [1, 2].map(|n| WgSecret::from_bytes([n; 32]));
        let addresses: [SocketAddr; 2] =
            ["5.0.0.1:1", "5.0.0.2:2"].map(|a| a.parse().expect("an address"));
        let plans = [0, 1].map(|side: usize| TunnelPlan {
            key: keys[side].clone(),
            previous_key: None,
            listen_port: addresses[side].port(),
            fwmark: 0,
            peers: BTreeMap::from([(
                keys[1 - side].public(),
                TunnelPeer {
                    endpoint: Some(addresses[1 - side]),
                    allowed_ips: [overlay(1 - side).ip().into()].into(),
                    ..TunnelPeer::default()
                },
            )]),
            report_every: Duration::from_secs(1),
        });
        let mut pair = Self {
            now: epoch,
            epoch,
            backend,
            plans,
            tunnels: [0, 1].map(|seed| Tunnel::new(backend, seed, epoch)),
            addresses,
            sizes: Vec::new(),
            open: true,
            twice: false,
        };
        pair.replan(0);
        pair.replan(1);
        pair
    }

    fn restart(&mut self, side: usize) {
        self.tunnels[side] = Tunnel::new(self.backend, 9, self.epoch);
        self.replan(side);
    }

    fn plan(&mut self, side: usize, change: impl FnOnce(&mut TunnelPeer)) {
        let mut peers = self.plans[side].peers.values_mut();
        change(peers.next().expect("one peer"));
        drop(peers);
        self.replan(side);
    }

    fn replan(&mut self, side: usize) {
        self.tunnels[side].apply(&self.plans[side], self.now);
        self.carry();
    }

    fn say(&mut self, side: usize, number: u16) {
        let inner = Inner {
            source: overlay(side),
            destination: overlay(1 - side),
            payload: number.to_le_bytes().to_vec(),
        };
        self.tunnels[side].send(&inner, self.now);
        self.carry();
    }

    fn heard(&mut self, side: usize) -> Vec<u16> {
        std::iter::from_fn(|| self.tunnels[side].poll_received())
            .map(|(_, inner)| u16::from_le_bytes([inner.payload[0], inner.payload[1]]))
            .collect()
    }

    /// Sizes of what crossed the wire since the last call.
    fn sizes(&mut self) -> Vec<usize> {
        std::mem::take(&mut self.sizes)
    }

    fn carry(&mut self) {
        loop {
            let sent = [0, 1].map(|side: usize| {
                std::iter::from_fn(|| self.tunnels[side].poll_transmit()).collect::<Vec<_>>()
            });
            if sent.iter().all(Vec::is_empty) {
                return;
            }
            for (side, batch) in sent.into_iter().enumerate() {
                for (_, bytes) in batch {
                    assert!(is_wireguard(&bytes));
                    self.sizes.push(bytes.len());
                    for _ in 0..=usize::from(self.twice) * usize::from(self.open) {
                        if self.open {
                            let from = self.addresses[side];
                            self.tunnels[1 - side].handle_datagram(from, &bytes, self.now);
                        }
                    }
                }
            }
        }
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let next = self.tunnels.iter().filter_map(Tunnel::poll_timeout).min();
            let Some(next) = next.filter(|next| *next <= end) else {
                break;
            };
            self.now = self.now.max(next);
            for tunnel in &mut self.tunnels {
                tunnel.handle_timeout(self.now);
            }
            self.carry();
        }
        self.now = end;
    }

    fn endpoint(&self, side: usize) -> Option<SocketAddr> {
        self.stats(side).endpoint
    }

    fn handshake_age(&self, side: usize) -> Option<Duration> {
        self.stats(side).handshake_age
    }

    fn stats(&self, side: usize) -> mesh_types::report::TunnelStats {
        let report = self.tunnels[side].report(self.now);
        let peer: WgKey = self.plans[1 - side].key.public();
        report.peers[&peer]
    }
}

fn overlay(side: usize) -> SocketAddr {
    ["10.77.0.1:22511", "10.77.0.2:22511"][side]
        .parse()
        .expect("an address")
}
