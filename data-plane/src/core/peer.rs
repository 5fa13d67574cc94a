//! A peer and its links.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use boringtun::noise::Tunn;
use boringtun::x25519::PublicKey;
use mesh_types::key::{PresharedKey, WgKey};

use super::crowd::Heard;
use super::{OwnKey, Sessions};
use crate::outbox::Destination;

/// Which of a peer's links.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Age {
    /// Under our present key.
    Current,
    /// Under the key before.
    Old,
}

/// A handshake or keepalive to be sent soon, because packets wait or the plan changed; the last counts most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kick {
    /// None.
    Idle,
    /// A handshake where there is no session under our present key and none is under way.
    Start,
    /// A keepalive, or a handshake where there is no session and none is under way.
    Hello,
    /// The same, but a handshake under way is begun afresh: its first message went elsewhere.
    Afresh,
}

/// A peer. Without links it costs a few hundred bytes.
pub(super) struct Peer {
    pub key: WgKey,
    pub preshared_key: Option<PresharedKey>,
    /// Where to send now.
    pub endpoint: Option<SocketAddr>,
    /// Our address the peer last sent to.
    pub local: Option<IpAddr>,
    /// Where to send everything too.
    pub also: Option<SocketAddr>,
    /// The endpoint of the last plan.
    pub planned: (Option<SocketAddr>, u32),
    pub keepalive: Option<Duration>,
    pub passive: bool,
    pub current: Option<Box<Link>>,
    pub old: Option<Box<Link>>,
    pub handshake_at: Option<Instant>,
    /// Last authenticated packet either way.
    pub traversed_at: Option<Instant>,
    pub rx: u64,
    pub tx: u64,
    pub heard: Heard,
    pub kick: Kick,
    /// Packets that wait for a session.
    pub staged: VecDeque<Box<[u8]>>,
}

impl Peer {
    pub fn new(key: WgKey) -> Self {
        Self {
            key,
            preshared_key: None,
            endpoint: None,
            local: None,
            also: None,
            planned: (None, 0),
            keepalive: None,
            passive: false,
            current: None,
            old: None,
            handshake_at: None,
            traversed_at: None,
            rx: 0,
            tx: 0,
            heard: Heard::default(),
            kick: Kick::Idle,
            staged: VecDeque::new(),
        }
    }

    /// The newest link with a live session.
    pub fn live(&self) -> Option<Age> {
        let lives = |link: &Option<Box<Link>>| link.as_ref().is_some_and(|link| link.live);
        if lives(&self.current) {
            Some(Age::Current)
        } else if lives(&self.old) {
            Some(Age::Old)
        } else {
            None
        }
    }

    pub fn link(&self, age: Age) -> Option<&Link> {
        match age {
            Age::Current => self.current.as_deref(),
            Age::Old => self.old.as_deref(),
        }
    }

    pub fn link_mut(&mut self, age: Age) -> Option<&mut Link> {
        match age {
            Age::Current => self.current.as_deref_mut(),
            Age::Old => self.old.as_deref_mut(),
        }
    }

    /// The link that handed out this index.
    pub fn age_of(&self, index: u32) -> Option<Age> {
        let is = |link: &Option<Box<Link>>| link.as_ref().is_some_and(|link| link.index == index);
        if is(&self.current) {
            Some(Age::Current)
        } else if is(&self.old) {
            Some(Age::Old)
        } else {
            None
        }
    }

    /// Where its datagrams go.
    pub fn destination(&self, index: u32) -> Option<Destination> {
        Some(Destination {
            peer: index,
            remote: self.endpoint?,
            local: self.local,
            also: self.also.and_then(|also| {
                if also == self.endpoint? {
                    // The peer was heard there: the first way is the second by now.
                    self.planned.0.filter(|planned| *planned != also)
                } else {
                    Some(also)
                }
            }),
        })
    }

    pub fn sent(&mut self, bytes: usize, now: Instant) {
        self.tx += bytes as u64;
        self.traversed_at = Some(now);
    }

    /// An authenticated datagram came from there: the peer roams (WireGuard 2.1).
    pub fn received(
        &mut self,
        remote: SocketAddr,
        local: Option<IpAddr>,
        bytes: usize,
        now: Instant,
    ) {
        self.endpoint = Some(remote);
        self.local = local;
        self.rx += bytes as u64;
        self.traversed_at = Some(now);
    }
}

/// Sessions with a peer under one of our keys.
pub(super) struct Link {
    pub tunn: Tunn,
    /// Upper 24 bits of all its receiver indices. Random, so that they tell nothing (boringtun counts only the
    /// lower 8).
    pub index: u32,
    /// Of the own key.
    pub epoch: u32,
    /// There is a session to send on.
    pub live: bool,
    /// Receiver index of a session that we answered and the peer has not used yet.
    pub unconfirmed: Option<u32>,
    /// Last look at its timers; sessions take their time from it.
    pub ticked_at: Instant,
}

impl Link {
    /// `None` where the system has no randomness.
    pub fn new(own: &OwnKey, peer: &Peer, taken: &Sessions, now: Instant) -> Option<Self> {
        let mut index = 0;
        while index == 0 || taken.contains_key(&index) {
            let mut random = [0; 3];
            getrandom::fill(&mut random).ok()?;
            index = u32::from_le_bytes([random[0], random[1], random[2], 0]);
        }
        let tunn = Tunn::new(
            own.secret.clone(),
            PublicKey::from(peer.key.0),
            peer.preshared_key.as_ref().map(|key| *key.as_bytes()),
            None,
            index,
            Some(own.open.clone()),
        );
        Some(Self {
            tunn,
            index,
            epoch: own.epoch,
            live: false,
            unconfirmed: None,
            ticked_at: now,
        })
    }
}
