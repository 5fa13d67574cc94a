//! Peers, sessions and routing: bytes in, bytes out. It does no I/O and reads no clock of its own; only the
//! sessions (boringtun) keep their own time.
//!
//! A peer has up to two links. `current` is under our present private key; `old` under the one before, kept after
//! our rotation: it carries packets until `current` has a session, then it only receives, and goes when the plan
//! forgets the old key. A range has an owner and, after the owner's key changed, a fallback: the passive peer
//! that owned it before. Packets go by the first of these that has a live session: owner's current, owner's old,
//! fallback. Where none has, they are staged with the owner and start its handshake.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::x25519::{PublicKey, StaticSecret};
use mesh_types::key::{WgKey, WgSecret};
use mesh_types::report::{TunnelReport, TunnelStats};

use crate::counters::Counters;
use crate::outbox::Destination;
pub(crate) use crowd::PRESSURE_MAX;
pub use receive::is_control;

use crowd::Crowd;
use open::Opening;
use peer::{Age, Link, Peer};
use routes::Routes;
use shakes::Received;
use waiting::Waiting;

mod crowd;
mod open;
mod peer;
mod plan;
mod receive;
mod routes;
mod send;
mod shakes;
mod timer;
mod waiting;

/// How often sessions look at their timers. They do not say when they next need to.
const TICK: Duration = Duration::from_millis(200);
/// How long the old link outlives our rotation once the new one works.
const OLD_LINK: Duration = Duration::from_secs(10);
/// Packets that wait for one peer's session (the kernel: 128).
const STAGED_PER_PEER: usize = 128;
/// Packets that wait for sessions in all, to bound memory.
const STAGED: usize = 8192;
/// Packets that may wait for a peer even where there are so many.
const STAGED_LEAST: usize = 4;
/// Peers with sessions whose timers are looked at in one turn.
const TICKS_PER_TURN: usize = 256;

/// One of our private keys.
struct OwnKey {
    public: WgKey,
    secret: StaticSecret,
    /// Checks the first MAC of handshake messages, which is by key. Sessions use it too: how many messages are
    /// taken is settled before they see any.
    open: Arc<RateLimiter>,
    /// Wants the second MAC as well, and else makes a cookie.
    strict: RateLimiter,
    /// Tells links under this key from others.
    epoch: u32,
}

impl OwnKey {
    fn new(secret: &WgSecret, public: WgKey, epoch: u32) -> Self {
        let limiter = |limit| RateLimiter::new(&PublicKey::from(public.0), limit);
        Self {
            public,
            secret: StaticSecret::from(*secret.to_bytes()),
            open: Arc::new(limiter(u64::MAX)),
            strict: limiter(0),
            epoch,
        }
    }

    fn public_key(&self) -> PublicKey {
        PublicKey::from(self.public.0)
    }
}

/// Peers by receiver index. The indices are random and our own, so nothing is left for a hash to do but to spread
/// their bits; it is looked up for every datagram.
type Sessions = HashMap<u32, u32, BuildHasherDefault<Spread>>;

/// Multiplies by 2^64 over the golden ratio, as Fibonacci hashing does.
#[derive(Default)]
struct Spread(u64);

impl Hasher for Spread {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn write_u32(&mut self, word: u32) {
        self.0 = (self.0 ^ u64::from(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// The engine without its sockets.
pub struct Core {
    mtu: usize,
    own: Option<OwnKey>,
    previous: Option<OwnKey>,
    epoch: u32,
    peers: Vec<Option<Peer>>,
    free: Vec<u32>,
    by_key: BTreeMap<WgKey, u32>,
    /// Peer by the upper 24 bits of the receiver index of its links. Looked up, never iterated.
    sessions: Sessions,
    routes: Routes,
    /// Handshake messages that came.
    received: Waiting<Received>,
    /// Until when initiations need a cookie.
    loaded_until: Option<Instant>,
    /// Peers to which something is to be said.
    kicks: VecDeque<u32>,
    next_tick: Option<Instant>,
    /// The round of ticks that is under way: the next peer, and whether one of those before wants another.
    round: Option<(u32, bool)>,
    staged: usize,
    crowd: Crowd,
    /// Data packets of this turn that wait to be opened together.
    opening: Vec<Opening>,
    counters: Arc<Counters>,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Core({} peers, {} links)",
            self.by_key.len(),
            self.sessions.len()
        )
    }
}

impl Core {
    /// Without keys and peers. `mtu` is the TUN's, bytes.
    pub fn new(mtu: u16, counters: Arc<Counters>) -> Self {
        Self {
            mtu: usize::from(mtu),
            own: None,
            previous: None,
            epoch: 0,
            peers: Vec::new(),
            free: Vec::new(),
            by_key: BTreeMap::new(),
            sessions: Sessions::default(),
            routes: Routes::default(),
            received: Waiting::new(shakes::WAITING),
            loaded_until: None,
            kicks: VecDeque::new(),
            next_tick: None,
            round: None,
            staged: 0,
            crowd: Crowd::default(),
            opening: Vec::new(),
            counters,
        }
    }

    /// What is known of peers there is a session or traffic for.
    pub fn report(&self, now: Instant) -> TunnelReport {
        let mut report = TunnelReport::default();
        for peer in self.peers.iter().flatten() {
            if peer.current.is_none() && peer.old.is_none() && peer.rx + peer.tx == 0 {
                continue;
            }
            let stats = TunnelStats {
                endpoint: peer.endpoint,
                handshake_age: peer
                    .handshake_at
                    .map(|at| now.saturating_duration_since(at)),
                rx_bytes: peer.rx,
                tx_bytes: peer.tx,
            };
            report.peers.insert(peer.key, stats);
        }
        report
    }

    /// When [`Core::handle_timeout`] wants to be called, and why. A time that is past means at once.
    pub fn poll_timeout(&self, now: Instant) -> Option<(Instant, &'static str)> {
        if !self.kicks.is_empty() || self.received.len() > 0 {
            Some((now, "handshakes"))
        } else if self.round.is_some() {
            Some((now, "session timers"))
        } else {
            self.next_tick.map(|at| (at, "session timers"))
        }
    }

    /// Bytes a peer without a session costs, apart from its ranges.
    pub const IDLE_PEER_BYTES: usize = size_of::<Option<Peer>>() + size_of::<(WgKey, u32)>();

    /// Bytes to receive from a socket before others get their turn.
    pub fn receive_limit(&self) -> usize {
        self.crowd.limit()
    }

    /// So much was received in this turn, and the socket's buffer is still more than half full: others lose what
    /// they send, if it goes on.
    pub fn socket_is_full(&mut self) {
        self.crowd.is_full();
    }

    /// The local address of a message no longer exists: let the kernel choose.
    pub fn forget_local(&mut self, to: Destination) {
        if let Some(peer) = self.peer_mut(to.peer)
            && peer.local == to.local
        {
            peer.local = None;
        }
    }

    fn peer(&self, index: u32) -> Option<&Peer> {
        self.peers.get(index as usize)?.as_ref()
    }

    fn peer_mut(&mut self, index: u32) -> Option<&mut Peer> {
        self.peers.get_mut(index as usize)?.as_mut()
    }

    /// The link under our present key, made where it is missing.
    fn current_link(&mut self, index: u32, now: Instant) -> Option<&mut Link> {
        let own = self.own.as_ref()?;
        let peer = self.peers.get_mut(index as usize)?.as_mut()?;
        if peer.current.is_none() {
            let link = Link::new(own, peer, &self.sessions, now)?;
            self.sessions.insert(link.index, index);
            peer.current = Some(Box::new(link));
        }
        self.next_tick.get_or_insert(now + TICK);
        peer.current.as_deref_mut()
    }

    /// The link under our previous key, made where it is missing: the peer may not know the new one yet.
    fn previous_link(&mut self, index: u32, now: Instant) -> Option<&mut Link> {
        let own = self.previous.as_ref()?;
        let peer = self.peers.get_mut(index as usize)?.as_mut()?;
        if peer.old.as_ref().is_none_or(|link| link.epoch != own.epoch) {
            let link = Link::new(own, peer, &self.sessions, now)?;
            self.sessions.insert(link.index, index);
            if let Some(gone) = peer.old.replace(Box::new(link)) {
                self.sessions.remove(&gone.index);
            }
        }
        self.next_tick.get_or_insert(now + TICK);
        peer.old.as_deref_mut()
    }

    fn drop_link(&mut self, index: u32, age: Age) {
        let Some(peer) = self.peers.get_mut(index as usize).and_then(Option::as_mut) else {
            return;
        };
        let link = match age {
            Age::Current => peer.current.take(),
            Age::Old => peer.old.take(),
        };
        if let Some(link) = link {
            self.sessions.remove(&link.index);
        }
    }

    /// Packets for which no session came.
    fn drop_staged(&mut self, index: u32) {
        if let Some(peer) = self.peers.get_mut(index as usize).and_then(Option::as_mut) {
            self.staged -= peer.staged.len().min(self.staged);
            peer.staged = VecDeque::new();
        }
    }
}
