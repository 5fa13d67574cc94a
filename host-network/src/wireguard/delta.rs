//! What must be said to a WireGuard device that holds one thing and shall hold another, and in which order,
//! so that no packet finds its range without an owner.
//!
//! The kernel gives a range to whoever claims it last, in one step. So a range is never taken away and then
//! given: its new owner claims it. A range that nobody shall own is claimed by a peer that exists only within
//! that message (removing one range from a peer, leaving the others alone, is not possible before Linux 6.16;
//! replacing the whole list leaves a moment without any).

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;
use mesh_types::key::WgKey;
use mesh_types::plan::{TunnelPeer, TunnelPlan};
use netlink_packet_wireguard::{
    WireguardAttribute, WireguardPeer, WireguardPeerAttribute, WireguardPeerFlags,
};

use super::device::{Device, Peer, allowed_ip, plain};

/// Ranges in one message: the list's length is 16 bits of bytes, and a range takes up to 40.
const CHUNK: usize = 500;
/// The key of the peer that takes ranges away. A point whose private half nobody knows; it never lives longer
/// than the message that names it, and it has no endpoint.
const BIN: [u8; 32] = *b"farspan: where old ranges end...";
/// A session older than this is dead (WireGuard's `REJECT_AFTER_TIME`).
const SESSION: Duration = Duration::from_secs(180);

/// How long an endpoint is insisted on. What was on its way by the old path when the endpoint was set makes the kernel
/// roam back to that path; after this time roaming is taken for the peer's own will.
const SETTLE: Duration = Duration::from_secs(5);

/// Endpoints as the plan last set them, with how often it insisted, by peer, and when (wall clock). The kernel roams by
/// itself; once it settled, an endpoint is said again only when the plan says another one, or insists.
pub(super) type Asserted = BTreeMap<WgKey, ((SocketAddr, u32), Duration)>;

/// The messages, each a list of attributes, and the peers to remove after them.
#[derive(Debug, Default)]
pub(super) struct Delta {
    pub(super) messages: Vec<Vec<WireguardAttribute>>,
    pub(super) stale: Vec<WgKey>,
}

/// Compares a device with a plan. `now` is the wall clock, by which the kernel dates handshakes.
pub(super) fn delta(
    device: &Device,
    plan: &TunnelPlan,
    asserted: &mut Asserted,
    now: Duration,
) -> Delta {
    let mut delta = Delta::default();
    let mut own = Vec::new();
    let key = clamped(plan);
    if device.private_key != Some(key) {
        own.push(WireguardAttribute::PrivateKey(key));
    }
    if device.listen_port != plan.listen_port {
        own.push(WireguardAttribute::ListenPort(plan.listen_port));
    }
    if device.fwmark != plan.fwmark {
        own.push(WireguardAttribute::Fwmark(plan.fwmark));
    }
    if !own.is_empty() {
        delta.messages.push(own);
    }

    asserted.retain(|key, _| plan.peers.contains_key(key));
    for (key, wanted) in &plan.peers {
        let held = device.peers.get(key);
        let endpoint = endpoint(*key, wanted, held, asserted, now);
        peer(&mut delta, key, wanted, held, endpoint);
    }

    let wanted: BTreeSet<IpNet> = plan.peers.values().flat_map(ranges).collect();
    let orphans: Vec<IpNet> = device
        .peers
        .iter()
        .filter(|(key, _)| plan.peers.contains_key(*key))
        .flat_map(|(_, held)| &held.allowed_ips)
        .filter(|range| !wanted.contains(*range))
        .copied()
        .collect();
    for chunk in orphans.chunks(CHUNK) {
        delta.messages.push(vec![WireguardAttribute::Peers(vec![
            WireguardPeer(vec![
                WireguardPeerAttribute::PublicKey(BIN),
                WireguardPeerAttribute::AllowedIps(chunk.iter().map(allowed_ip).collect()),
            ]),
            WireguardPeer(vec![
                WireguardPeerAttribute::PublicKey(BIN),
                WireguardPeerAttribute::Flags(WireguardPeerFlags::RemoveMe),
            ]),
        ])]);
    }
    delta.stale = device
        .peers
        .keys()
        .filter(|key| !plan.peers.contains_key(*key))
        .copied()
        .collect();
    delta
}

/// The private key as the kernel keeps it (RFC 7748 5). Any other form of it would look like a change to the kernel,
/// which then ends every session.
fn clamped(plan: &TunnelPlan) -> [u8; 32] {
    let mut key = *plan.key.to_bytes();
    key[0] &= 0b1111_1000;
    key[31] &= 0b0111_1111;
    key[31] |= 0b0100_0000;
    key
}

/// The ranges a peer shall own; a passive one owns none.
fn ranges(peer: &TunnelPeer) -> impl Iterator<Item = IpNet> {
    peer.allowed_ips
        .iter()
        .filter(|_| !peer.passive)
        .map(|range| range.trunc())
}

/// Seconds; 0 is off.
fn keepalive(peer: &TunnelPeer) -> u16 {
    match peer.keepalive {
        Some(every) if !peer.passive => u16::try_from(every.as_secs().max(1)).unwrap_or(u16::MAX),
        Some(_) | None => 0,
    }
}

/// The endpoint to set, if one must be.
fn endpoint(
    key: WgKey,
    wanted: &TunnelPeer,
    held: Option<&Peer>,
    asserted: &mut Asserted,
    now: Duration,
) -> Option<SocketAddr> {
    let Some(endpoint) = wanted.endpoint.map(plain) else {
        asserted.remove(&key);
        return None;
    };
    let said = (endpoint, wanted.insist);
    let before = asserted
        .get(&key)
        .copied()
        .filter(|(before, _)| *before == said);
    let known = asserted.contains_key(&key);
    let since = before.map_or(now, |(_, since)| since);
    asserted.insert(key, (said, since));
    let Some(held) = held else {
        return Some(endpoint);
    };
    let at = held.endpoint.map(plain);
    let alive = held.handshake != Duration::ZERO && now.saturating_sub(held.handshake) < SESSION;
    if !known && alive && at.is_some() {
        // Adopted from an earlier run: where its session lives, the kernel knows better than our memory.
        asserted.insert(key, (said, Duration::ZERO));
        return None;
    }
    let settled = before.is_some() && now.saturating_sub(since) >= SETTLE;
    (at != Some(endpoint) && !settled).then_some(endpoint)
}

/// Messages that set the endpoints again which the kernel left before they settled.
pub(super) fn reassert(
    device: &Device,
    asserted: &Asserted,
    now: Duration,
) -> Vec<(WgKey, SocketAddr, Vec<WireguardAttribute>)> {
    asserted
        .iter()
        .filter(|(_, (_, since))| now.saturating_sub(*since) < SETTLE)
        .filter(|(key, ((endpoint, _), _))| {
            let held = device.peers.get(*key);
            held.is_some_and(|held| held.endpoint.map(plain) != Some(*endpoint))
        })
        .map(|(key, ((endpoint, _), _))| {
            let attributes = vec![WireguardPeerAttribute::Endpoint(*endpoint)];
            (*key, *endpoint, one_peer(key, attributes, true))
        })
        .collect()
}

/// What a peer needs to hear: all of it in one message, but for ranges beyond the first chunk.
fn peer(
    delta: &mut Delta,
    key: &WgKey,
    wanted: &TunnelPeer,
    held: Option<&Peer>,
    endpoint: Option<SocketAddr>,
) {
    let none = Peer::default();
    let before = held.unwrap_or(&none);
    let mut attributes = Vec::new();
    let preshared_key = wanted
        .preshared_key
        .as_ref()
        .map_or([0; 32], |key| *key.as_bytes());
    if before.preshared_key != preshared_key {
        attributes.push(WireguardPeerAttribute::PresharedKey(preshared_key));
    }
    attributes.extend(endpoint.map(WireguardPeerAttribute::Endpoint));
    if before.keepalive != keepalive(wanted) {
        attributes.push(WireguardPeerAttribute::PersistentKeepalive(keepalive(
            wanted,
        )));
    }
    let gained: Vec<IpNet> = ranges(wanted)
        .filter(|range| !before.allowed_ips.contains(range))
        .collect();
    let mut chunks = gained.chunks(CHUNK);
    if let Some(first) = chunks.next() {
        attributes.push(WireguardPeerAttribute::AllowedIps(
            first.iter().map(allowed_ip).collect(),
        ));
    }
    if held.is_none() || !attributes.is_empty() {
        delta
            .messages
            .push(one_peer(key, attributes, held.is_some()));
    }
    for chunk in chunks {
        let ranges = chunk.iter().map(allowed_ip).collect();
        let attributes = vec![WireguardPeerAttribute::AllowedIps(ranges)];
        delta.messages.push(one_peer(key, attributes, true));
    }
}

fn one_peer(
    key: &WgKey,
    attributes: Vec<WireguardPeerAttribute>,
    exists: bool,
) -> Vec<WireguardAttribute> {
    let mut all = vec![WireguardPeerAttribute::PublicKey(key.0)];
    if exists {
        all.push(WireguardPeerAttribute::Flags(
            WireguardPeerFlags::UpdateOnly,
        ));
    }
    all.extend(attributes);
    vec![WireguardAttribute::Peers(vec![WireguardPeer(all)])]
}

#[cfg(test)]
mod tests;
