use std::net::SocketAddr;

use mesh_types::{PresharedKey, WgSecret};
use netlink_packet_core::Emitable as _;

use super::*;

const NOW: Duration = Duration::from_secs(1_800_000_000);

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn peer_of(ranges: &[&str]) -> TunnelPeer {
    TunnelPeer {
        endpoint: Some("192.0.2.2:22002".parse().unwrap()),
        allowed_ips: ranges.iter().map(|range| net(range)).collect(),
        keepalive: Some(Duration::from_secs(25)),
        preshared_key: None,
        insist: 0,
        also: None,
        passive: false,
    }
}

fn plan(peers: impl IntoIterator<Item = (u8, TunnelPeer)>) -> TunnelPlan {
    TunnelPlan {
        key: WgSecret::from_bytes([0xff; 32]),
        previous_key: None,
        listen_port: 22001,
        fwmark: 0x2000,
        peers: peers
            .into_iter()
            .map(|(number, peer)| (WgKey([number; 32]), peer))
            .collect(),
        report_every: Duration::from_secs(10),
    }
}

/// A device with what the plan says, as the kernel would hold it.
fn device(plan: &TunnelPlan) -> Device {
    Device {
        private_key: Some(clamped(plan)),
        listen_port: plan.listen_port,
        fwmark: plan.fwmark,
        peers: plan
            .peers
            .iter()
            .map(|(key, peer)| {
                let held = Peer {
                    endpoint: peer.endpoint,
                    keepalive: keepalive(peer),
                    allowed_ips: ranges(peer).collect(),
                    ..Peer::default()
                };
                (*key, held)
            })
            .collect(),
    }
}

fn apply(device: &Device, plan: &TunnelPlan, asserted: &mut Asserted) -> Delta {
    delta(device, plan, asserted, NOW)
}

/// The peers a message speaks of, in order.
fn peers(message: &[WireguardAttribute]) -> Vec<&[WireguardPeerAttribute]> {
    message
        .iter()
        .flat_map(|attribute| match attribute {
            WireguardAttribute::Peers(peers) => peers.iter().map(|peer| &peer.0[..]).collect(),
            _ => vec![],
        })
        .collect()
}

#[test]
fn a_device_that_holds_the_plan_hears_nothing() {
    let plan = plan([(2, peer_of(&["10.77.0.2/32", "fd77::2/128"]))]);
    let delta = apply(&device(&plan), &plan, &mut Asserted::new());
    assert!(delta.messages.is_empty() && delta.stale.is_empty());
}

#[test]
fn a_new_peer_comes_whole_in_one_message() {
    let plan = plan([(2, peer_of(&["10.77.0.2/32"]))]);
    let mut bare = device(&plan);
    bare.peers.clear();
    let delta = apply(&bare, &plan, &mut Asserted::new());
    assert_eq!(delta.messages.len(), 1);
    let [peer] = peers(&delta.messages[0])[..] else {
        panic!("one peer");
    };
    assert_eq!(
        peer,
        [
            WireguardPeerAttribute::PublicKey([2; 32]),
            WireguardPeerAttribute::Endpoint("192.0.2.2:22002".parse().unwrap()),
            WireguardPeerAttribute::PersistentKeepalive(25),
            WireguardPeerAttribute::AllowedIps(vec![allowed_ip(&net("10.77.0.2/32"))]),
        ]
    );
}

#[test]
fn a_new_endpoint_is_said_alone_and_only_once() {
    let mut plan = plan([(2, peer_of(&["10.77.0.2/32"]))]);
    let mut held = device(&plan);
    let mut asserted = Asserted::new();
    apply(&held, &plan, &mut asserted);
    let there: SocketAddr = "[2001:db8::2]:22002".parse().unwrap();
    plan.peers.get_mut(&WgKey([2; 32])).unwrap().endpoint = Some(there);

    let delta = apply(&held, &plan, &mut asserted);

    assert_eq!(
        peers(&delta.messages[0]),
        [[
            WireguardPeerAttribute::PublicKey([2; 32]),
            WireguardPeerAttribute::Flags(WireguardPeerFlags::UpdateOnly),
            WireguardPeerAttribute::Endpoint(there),
        ]]
    );
    // Late packets of the old path made the kernel roam back: said again, until it settled.
    let late = NOW + Duration::from_secs(1);
    assert_eq!(reassert(&held, &asserted, late).len(), 1);
    assert_eq!(
        super::delta(&held, &plan, &mut asserted, late)
            .messages
            .len(),
        1
    );
    held.peers.get_mut(&WgKey([2; 32])).unwrap().endpoint = Some(there);
    assert!(reassert(&held, &asserted, late).is_empty());
    // Later the peer roams; nobody said it should be called back.
    held.peers.get_mut(&WgKey([2; 32])).unwrap().endpoint = Some("198.51.100.9:9".parse().unwrap());
    let settled = NOW + SETTLE;
    assert!(reassert(&held, &asserted, settled).is_empty());
    assert!(
        super::delta(&held, &plan, &mut asserted, settled)
            .messages
            .is_empty()
    );
    // Nothing comes from there, and the plan insists.
    plan.peers.get_mut(&WgKey([2; 32])).unwrap().insist = 1;
    assert_eq!(
        super::delta(&held, &plan, &mut asserted, settled)
            .messages
            .len(),
        1
    );
}

#[test]
fn after_a_restart_a_live_session_keeps_its_endpoint_and_a_dead_one_takes_the_plan_s() {
    let plan = plan([(2, peer_of(&["10.77.0.2/32"]))]);
    for (age, said) in [(10, 0), (179, 0), (181, 1), (0, 1)] {
        let mut held = device(&plan);
        let peer = held.peers.get_mut(&WgKey([2; 32])).unwrap();
        peer.endpoint = Some("198.51.100.9:9".parse().unwrap());
        if age > 0 {
            peer.handshake = NOW - Duration::from_secs(age);
        }
        let delta = apply(&held, &plan, &mut Asserted::new());
        assert_eq!(delta.messages.len(), said, "age {age}");
    }
}

#[test]
fn an_endpoint_the_plan_does_not_know_is_left_alone() {
    let mut plan = plan([(2, peer_of(&["10.77.0.2/32"]))]);
    let held = device(&plan);
    plan.peers.get_mut(&WgKey([2; 32])).unwrap().endpoint = None;
    assert!(
        apply(&held, &plan, &mut Asserted::new())
            .messages
            .is_empty()
    );
}

#[test]
fn a_range_moves_by_its_new_owner_s_claim() {
    let before = plan([
        (2, peer_of(&["10.77.0.2/32", "10.201.0.0/16"])),
        (3, peer_of(&["10.77.0.3/32"])),
    ]);
    let after = plan([
        (2, peer_of(&["10.77.0.2/32"])),
        (3, peer_of(&["10.77.0.3/32", "10.201.0.0/16"])),
    ]);
    let delta = apply(&device(&before), &after, &mut Asserted::new());
    assert_eq!(delta.messages.len(), 1);
    let [peer] = peers(&delta.messages[0])[..] else {
        panic!("one peer");
    };
    assert_eq!(peer[0], WireguardPeerAttribute::PublicKey([3; 32]));
    assert_eq!(
        peer[2],
        WireguardPeerAttribute::AllowedIps(vec![allowed_ip(&net("10.201.0.0/16"))])
    );
}

#[test]
fn a_range_nobody_shall_own_ends_with_a_peer_that_ends_in_the_same_message() {
    let before = plan([(2, peer_of(&["10.77.0.2/32", "10.201.0.0/16"]))]);
    let after = plan([(2, peer_of(&["10.77.0.2/32"]))]);
    let delta = apply(&device(&before), &after, &mut Asserted::new());
    assert_eq!(delta.messages.len(), 1);
    let [taker, end] = peers(&delta.messages[0])[..] else {
        panic!("two peers");
    };
    assert_eq!(taker[0], WireguardPeerAttribute::PublicKey(BIN));
    assert_eq!(
        end[1],
        WireguardPeerAttribute::Flags(WireguardPeerFlags::RemoveMe)
    );
}

#[test]
fn a_rotated_peer_s_new_key_takes_all_at_once_and_the_old_one_falls_silent() {
    let before = plan([(2, peer_of(&["10.77.0.2/32"]))]);
    let mut after = plan([(2, peer_of(&[])), (9, peer_of(&["10.77.0.2/32"]))]);
    let old = after.peers.get_mut(&WgKey([2; 32])).unwrap();
    old.passive = true;
    let delta = apply(&device(&before), &after, &mut Asserted::new());
    assert_eq!(delta.messages.len(), 2);
    assert_eq!(
        peers(&delta.messages[0])[0][2..],
        [WireguardPeerAttribute::PersistentKeepalive(0)]
    );
    assert_eq!(
        peers(&delta.messages[1])[0].len(),
        4,
        "endpoint, keepalive, ranges"
    );
    assert!(delta.stale.is_empty());
}

#[test]
fn a_peer_that_is_no_longer_planned_goes_last_and_takes_its_ranges_along() {
    let before = plan([
        (2, peer_of(&["10.77.0.2/32"])),
        (3, peer_of(&["10.77.0.3/32"])),
    ]);
    let after = plan([(2, peer_of(&["10.77.0.2/32"]))]);
    let delta = apply(&device(&before), &after, &mut Asserted::new());
    assert!(delta.messages.is_empty());
    assert_eq!(delta.stale, [WgKey([3; 32])]);
}

#[test]
fn a_preshared_key_is_cleared_by_zeros() {
    let mut plan = plan([(2, peer_of(&["10.77.0.2/32"]))]);
    let mut held = device(&plan);
    held.peers.get_mut(&WgKey([2; 32])).unwrap().preshared_key = [5; 32];
    let delta = apply(&held, &plan, &mut Asserted::new());
    assert_eq!(
        peers(&delta.messages[0])[0][2..],
        [WireguardPeerAttribute::PresharedKey([0; 32])]
    );
    let key = PresharedKey::from_base64(&WgSecret::from_bytes([5; 32]).to_base64()).unwrap();
    plan.peers.get_mut(&WgKey([2; 32])).unwrap().preshared_key = Some(key);
    assert!(
        apply(&held, &plan, &mut Asserted::new())
            .messages
            .is_empty()
    );
}

#[test]
fn the_private_key_is_compared_as_the_kernel_keeps_it() {
    let plan = plan([]);
    let mut held = device(&plan);
    assert_ne!(
        held.private_key,
        Some(*plan.key.to_bytes()),
        "not clamped yet"
    );
    assert!(
        apply(&held, &plan, &mut Asserted::new())
            .messages
            .is_empty()
    );
    held.private_key = Some([1; 32]);
    assert_eq!(
        apply(&held, &plan, &mut Asserted::new()).messages,
        [vec![WireguardAttribute::PrivateKey(clamped(&plan))]]
    );
}

#[test]
fn no_message_outgrows_what_a_nested_attribute_can_say() {
    let mut many = peer_of(&[]);
    for n in 0..3000_u32 {
        let (high, low) = (n / 250, n % 250);
        let ipv4 = net(&format!("10.{}.{low}.0/24", 100 + high));
        let ipv6 = net(&format!("fd77:{high:x}:{low:x}::/64"));
        many.allowed_ips.extend([ipv4, ipv6]);
    }
    let full = plan([(2, many)]);
    let empty = plan([(2, peer_of(&[]))]);
    for (before, after) in [(&empty, &full), (&full, &empty)] {
        let delta = apply(&device(before), after, &mut Asserted::new());
        assert_eq!(delta.messages.len(), 12);
        for message in &delta.messages {
            assert!(message.as_slice().buffer_len() < 32 * 1024);
        }
    }
}
