//! Making the core as a plan says, touching only what differs.

use std::collections::BTreeMap;
use std::time::Instant;

use ipnet::IpNet;
use mesh_types::key::WgKey;
use mesh_types::plan::{TunnelPeer, TunnelPlan};

use super::peer::{Age, Kick, Peer};
use super::{Core, OwnKey};

impl Core {
    /// Makes keys, peers, ranges and endpoints as planned. Handshakes it asks for follow in
    /// [`Core::handle_timeout`].
    pub fn apply(&mut self, plan: &TunnelPlan, now: Instant) {
        self.apply_keys(plan, now);
        let gone: Vec<WgKey> = self
            .by_key
            .keys()
            .filter(|key| !plan.peers.contains_key(key))
            .copied()
            .collect();
        for (key, planned) in &plan.peers {
            self.apply_peer(*key, planned);
        }
        let mut ranges: BTreeMap<IpNet, u32> = BTreeMap::new();
        for (key, planned) in &plan.peers {
            let Some(&index) = self.by_key.get(key) else {
                continue;
            };
            ranges.extend(
                planned
                    .allowed_ips
                    .iter()
                    .map(|range| (range.trunc(), index)),
            );
        }
        let passive = |index: u32| {
            let peer = self.peers.get(index as usize).and_then(Option::as_ref);
            peer.is_some_and(|peer| peer.passive && plan.peers.contains_key(&peer.key))
        };
        self.routes.update(&ranges, passive);
        for key in gone {
            if let Some(index) = self.by_key.remove(&key) {
                self.drop_link(index, Age::Current);
                self.drop_link(index, Age::Old);
                self.drop_staged(index);
                self.peers[index as usize] = None;
                self.free.push(index);
            }
        }
        let Self { peers, kicks, .. } = self;
        kicks.retain(|&index| peers.get(index as usize).is_some_and(Option::is_some));
    }

    fn apply_keys(&mut self, plan: &TunnelPlan, now: Instant) {
        let public = plan.key.public();
        let previous = plan
            .previous_key
            .as_ref()
            .map(|secret| (secret, secret.public()))
            .filter(|(_, key)| *key != public);
        if self.own.as_ref().is_none_or(|own| own.public != public) {
            self.epoch += 1;
            let own = match self.previous.take_if(|key| key.public == public) {
                Some(own) => own,
                None => OwnKey::new(&plan.key, public, self.epoch),
            };
            let before = self.own.replace(own);
            let kept = previous.as_ref().map(|(_, key)| *key);
            self.previous = before.filter(|before| Some(before.public) == kept);
            self.age_links();
        }
        match previous {
            None => self.previous = None,
            Some((secret, key)) => {
                if self.previous.as_ref().is_none_or(|own| own.public != key) {
                    self.epoch += 1;
                    self.previous = Some(OwnKey::new(secret, key, self.epoch));
                }
            }
        }
        if !self.by_key.is_empty() {
            self.next_tick.get_or_insert(now);
        }
    }

    /// Our key changed: links under it become the old ones, unless an older one is the only one alive.
    fn age_links(&mut self) {
        let kept = self.previous.is_some();
        for index in 0..self.peers.len() as u32 {
            let Some(peer) = self.peer(index) else {
                continue;
            };
            match peer.live() {
                _ if !kept => {
                    self.drop_link(index, Age::Current);
                    self.drop_link(index, Age::Old);
                }
                Some(Age::Old) => self.drop_link(index, Age::Current),
                Some(Age::Current) | None => {
                    self.drop_link(index, Age::Old);
                    if let Some(peer) = self.peer_mut(index) {
                        peer.old = peer.current.take();
                    }
                }
            }
        }
    }

    fn apply_peer(&mut self, key: WgKey, planned: &TunnelPeer) {
        let index = match self.by_key.get(&key) {
            Some(&index) => index,
            None => self.add_peer(key),
        };
        let Some(peer) = self.peer_mut(index) else {
            return;
        };
        let mut kick = Kick::Idle;
        peer.passive = planned.passive;
        if planned.keepalive.is_some() && peer.keepalive.is_none() {
            kick = Kick::Hello;
        }
        peer.keepalive = planned.keepalive;
        peer.also = planned.also;
        let moved =
            planned.endpoint.is_some() && (planned.endpoint, planned.insist) != peer.planned;
        if moved {
            let elsewhere = peer.endpoint != planned.endpoint;
            peer.endpoint = planned.endpoint;
            if elsewhere {
                peer.local = None;
            }
            if elsewhere
                && peer.live().is_none()
                && (peer.current.is_some() || peer.keepalive.is_some())
            {
                kick = Kick::Afresh;
            }
        }
        peer.planned = (planned.endpoint, planned.insist);
        let rekeyed = peer.preshared_key != planned.preshared_key;
        if rekeyed {
            peer.preshared_key.clone_from(&planned.preshared_key);
            if peer.current.is_some() || peer.keepalive.is_some() {
                kick = Kick::Hello;
            }
        }
        if kick != Kick::Idle {
            self.begin(index, kick);
        }
        if rekeyed {
            self.drop_link(index, Age::Current);
            self.drop_link(index, Age::Old);
        }
    }

    fn add_peer(&mut self, key: WgKey) -> u32 {
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                self.peers.push(None);
                (self.peers.len() - 1) as u32
            }
        };
        self.peers[index as usize] = Some(Peer::new(key));
        self.by_key.insert(key, index);
        index
    }
}
