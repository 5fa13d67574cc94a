//! A model of WireGuard: timers, queues, sessions, roaming and cryptokey routing of the kernel's
//! implementation, driven by a [`TunnelPlan`].
//!
//! Messages have the real types and sizes and carry key ids instead of cryptography: a message under a
//! key, session or preshared key that the receiver does not hold is dropped, as in reality. A session
//! is three places, as in the kernel: `current` sends, `previous` still receives, `next` is the
//! responder's until the first packet under it arrives.
//!
//! What differs between the backends: after a change of the private key the kernel sends nothing under
//! old sessions (packets wait for the new handshake); the userspace engine sends under them as long as
//! the plan names the previous key, and lets a peer that became passive send from the ranges it had. Not modelled: cookies, load, the limit of messages per session.

mod peer;
mod wire;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use mesh_types::plan::TunnelPlan;
use mesh_types::report::{Backend, TunnelReport};
use mesh_types::{WgKey, WgSecret};

use crate::random::Random;
use peer::{Context, Peer};
use wire::Wire;

/// A UDP packet inside the tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inner {
    /// From.
    pub source: SocketAddr,
    /// To.
    pub destination: SocketAddr,
    /// What.
    pub payload: Vec<u8>,
}

/// Is this WireGuard's, on a port shared with STUN?
pub fn is_wireguard(bytes: &[u8]) -> bool {
    matches!(bytes, [1..=4, 0, 0, 0, ..])
}

/// Indices remembered for each peer: those of its sessions and a handshake, and some that are over.
const RECEIVERS_A_PEER: usize = 8;

/// One device.
#[derive(Debug)]
pub struct Tunnel {
    backend: Backend,
    epoch: Instant,
    random: Random,
    key: Option<WgSecret>,
    public: Option<WgKey>,
    previous: Option<WgKey>,
    peers: BTreeMap<WgKey, Peer>,
    /// Those with a timer, a session or a packet, and when the first timer fires: all that most questions are about,
    /// among thousands of peers.
    awake: BTreeMap<WgKey, Option<Instant>>,
    /// Whose an index was when it was last looked for.
    receivers: BTreeMap<u32, WgKey>,
    /// Whose ranges these are, and which lengths they have.
    ranges: BTreeMap<IpNet, WgKey>,
    lengths: BTreeSet<u8>,
    transmits: VecDeque<(SocketAddr, Vec<u8>)>,
    received: VecDeque<(WgKey, Inner)>,
    dropped: BTreeMap<&'static str, u64>,
}

impl Tunnel {
    /// A device without key or peers. `epoch` is the same for all devices of a run: handshakes carry the
    /// time since then, and must rise over a restart.
    pub fn new(backend: Backend, seed: u64, epoch: Instant) -> Self {
        Self {
            backend,
            epoch,
            random: Random::new(seed),
            key: None,
            public: None,
            previous: None,
            peers: BTreeMap::new(),
            awake: BTreeMap::new(),
            receivers: BTreeMap::new(),
            ranges: BTreeMap::new(),
            lengths: BTreeSet::new(),
            transmits: VecDeque::new(),
            received: VecDeque::new(),
            dropped: BTreeMap::new(),
        }
    }

    /// Makes the device as planned. Only what changed in the plan is touched: an endpoint that WireGuard
    /// learned since is kept until the plan names another.
    pub fn apply(&mut self, plan: &TunnelPlan, now: Instant) {
        let rekeyed = self.key.as_ref() != Some(&plan.key);
        if rekeyed {
            self.key = Some(plan.key.clone());
            self.public = Some(plan.key.public());
        }
        self.previous = plan.previous_key.as_ref().map(WgSecret::public);
        if rekeyed {
            let may_send = match self.backend {
                Backend::Kernel => false,
                Backend::Userspace => self.previous.is_some(),
            };
            self.peers
                .values_mut()
                .for_each(|peer| peer.own_key_changed(may_send));
        }
        let before = self.peers.len();
        self.peers.retain(|key, _| plan.peers.contains_key(key));
        let mut reranged = self.peers.len() != before;
        for (key, planned) in &plan.peers {
            let peer = self
                .peers
                .entry(*key)
                .or_insert_with(|| Peer::new(*key, self.backend));
            if peer.planned() == planned {
                continue;
            }
            reranged |= peer.planned().allowed_ips != planned.allowed_ips;
            let mut context = Context {
                own: plan.key.public(),
                epoch: self.epoch,
                random: &mut self.random,
                transmits: &mut self.transmits,
                now,
            };
            peer.configure(planned, self.backend, &mut context);
        }
        if reranged {
            let ranges = plan.peers.iter().flat_map(|(key, peer)| {
                let nets = peer.allowed_ips.iter();
                nets.map(|net| (net.trunc(), *key))
            });
            self.ranges = ranges.collect();
            self.lengths = self.ranges.keys().map(IpNet::prefix_len).collect();
        }
        let awake = self.peers.iter().filter(|(_, peer)| peer.is_awake());
        self.awake = awake.map(|(key, peer)| (*key, peer.deadline())).collect();
    }

    /// Sends a packet to the peer whose ranges hold its destination.
    pub fn send(&mut self, inner: &Inner, now: Instant) {
        let Some(key) = self.route(inner.destination.ip()) else {
            return self.drop("no peer for the destination");
        };
        self.with_peer(key, now, |peer, context| peer.send(inner, context));
    }

    /// A datagram from the underlay.
    pub fn handle_datagram(&mut self, remote: SocketAddr, bytes: &[u8], now: Instant) {
        let Some(message) = Wire::decode(bytes) else {
            return self.drop("malformed");
        };
        match message {
            Wire::Initiation(initiation) => {
                let ours = [self.public, self.previous]
                    .into_iter()
                    .flatten()
                    .any(|key| key == initiation.responder);
                if !ours {
                    return self.drop("initiation under another key");
                }
                let from = initiation.initiator;
                if !self.peers.contains_key(&from) {
                    return self.drop("initiation of a stranger");
                }
                self.with_peer(from, now, |peer, context| {
                    peer.initiation(&initiation, remote, bytes.len(), context)
                });
            }
            Wire::Response(response) => {
                let Some(key) = self.find(response.receiver, |peer| peer.awaits(response.receiver))
                else {
                    return self.drop("response to nothing");
                };
                self.with_peer(key, now, |peer, context| {
                    peer.response(&response, remote, bytes.len(), context)
                });
            }
            Wire::Data(data) => {
                let Some(key) = self.find(data.receiver, |peer| {
                    peer.has_session(data.receiver, data.secret)
                }) else {
                    return self.drop("data of no session");
                };
                let mut inner = None;
                self.with_peer(key, now, |peer, context| {
                    inner = peer.data(&data, remote, bytes.len(), context);
                });
                match inner {
                    Some(inner) if self.may_come_from(key, inner.source.ip()) => {
                        self.received.push_back((key, inner));
                    }
                    Some(_) => self.drop("source not in the peer's ranges"),
                    None => {}
                }
            }
        }
    }

    /// Lets timers fire.
    pub fn handle_timeout(&mut self, now: Instant) {
        let awake = self.awake.iter();
        let due = awake.filter(|(_, deadline)| deadline.is_some_and(|at| at <= now));
        let due: Vec<WgKey> = due.map(|(key, _)| *key).collect();
        for key in due {
            self.with_peer(key, now, |peer, context| peer.expire(context));
        }
    }

    /// When the next timer fires.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.awake.values().flatten().min().copied()
    }

    /// What is to be sent, and where to.
    pub fn poll_transmit(&mut self) -> Option<(SocketAddr, Vec<u8>)> {
        self.transmits.pop_front()
    }

    /// What arrived, and whose session carried it.
    pub fn poll_received(&mut self) -> Option<(WgKey, Inner)> {
        self.received.pop_front()
    }

    /// Per peer.
    pub fn report(&self, now: Instant) -> TunnelReport {
        TunnelReport {
            peers: self
                .peers
                .iter()
                .map(|(key, peer)| (*key, peer.stats(now)))
                .collect(),
        }
    }

    /// Packets dropped, by reason.
    pub fn dropped(&self) -> &BTreeMap<&'static str, u64> {
        &self.dropped
    }

    /// Packets that wait for a session, for the longest time first.
    pub fn staged(&self) -> usize {
        self.awake().map(|(_, peer)| peer.staged()).sum()
    }

    fn may_come_from(&self, key: WgKey, source: IpAddr) -> bool {
        let former = match self.backend {
            Backend::Kernel => false,
            Backend::Userspace => self.peers.get(&key).is_some_and(|p| p.covered(source)),
        };
        former || self.route(source) == Some(key)
    }

    fn route(&self, ip: IpAddr) -> Option<WgKey> {
        let mut lengths = self.lengths.iter().rev();
        lengths.find_map(|length| {
            let net = IpNet::new(ip, *length).ok()?;
            self.ranges.get(&net.trunc()).copied()
        })
    }

    fn awake(&self) -> impl Iterator<Item = (&WgKey, &Peer)> {
        let peers = self.awake.keys();
        peers.filter_map(|key| self.peers.get_key_value(key))
    }

    /// Whose index that is, if the peer agrees.
    fn find(&mut self, receiver: u32, wanted: impl Fn(&Peer) -> bool) -> Option<WgKey> {
        let last = self.receivers.get(&receiver).copied();
        let last = last.filter(|key| self.peers.get(key).is_some_and(&wanted));
        if last.is_some() {
            return last;
        }
        let key = *self.awake().find(|(_, peer)| wanted(peer))?.0;
        if self.receivers.len() > RECEIVERS_A_PEER * self.peers.len() {
            self.receivers.clear();
        }
        self.receivers.insert(receiver, key);
        Some(key)
    }

    fn with_peer(
        &mut self,
        key: WgKey,
        now: Instant,
        act: impl FnOnce(&mut Peer, &mut Context<'_>),
    ) {
        let (Some(own), Some(peer)) = (self.public, self.peers.get_mut(&key)) else {
            return;
        };
        let mut context = Context {
            own,
            epoch: self.epoch,
            random: &mut self.random,
            transmits: &mut self.transmits,
            now,
        };
        act(peer, &mut context);
        if peer.is_awake() {
            self.awake.insert(key, peer.deadline());
        } else {
            self.awake.remove(&key);
        }
        for reason in peer.take_drops() {
            self.drop(reason);
        }
    }

    fn drop(&mut self, reason: &'static str) {
        *self.dropped.entry(reason).or_default() += 1;
    }
}

/// WireGuard's `REKEY_AFTER_TIME`.
pub const REKEY_AFTER: Duration = Duration::from_secs(120);
/// WireGuard's `REJECT_AFTER_TIME`.
pub const REJECT_AFTER: Duration = Duration::from_secs(180);
/// WireGuard's `REKEY_TIMEOUT`.
pub const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
/// WireGuard's `KEEPALIVE_TIMEOUT`.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Retries of a handshake before its packets are dropped (`MAX_TIMER_HANDSHAKES`).
pub const HANDSHAKE_TRIES: u32 = 18;
/// Packets that wait for a session (`MAX_STAGED_PACKETS`).
pub const STAGED_MAX: usize = 128;
