//! One peer: its sessions, timers and queue.

use std::collections::{BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use mesh_types::plan::TunnelPeer;
use mesh_types::report::{Backend, TunnelStats};
use mesh_types::{Prefixes, PresharedKey, WgKey};

use super::wire::{Data, Initiation, Response, Wire};
use super::{
    HANDSHAKE_TRIES, Inner, KEEPALIVE_TIMEOUT, REJECT_AFTER, REKEY_AFTER, REKEY_TIMEOUT, STAGED_MAX,
};
use crate::random::Random;

/// Width of the window against replays, packets.
const REPLAY_WINDOW: u64 = 2048;
/// Timers are this much apart, at most.
const JITTER: Duration = Duration::from_millis(333);

/// What a peer needs of its device.
pub(super) struct Context<'a> {
    pub(super) own: WgKey,
    pub(super) epoch: Instant,
    pub(super) random: &'a mut Random,
    pub(super) transmits: &'a mut VecDeque<(SocketAddr, Vec<u8>)>,
    pub(super) now: Instant,
}

#[derive(Debug)]
struct Session {
    local: u32,
    remote: u32,
    secret: u64,
    initiator: bool,
    created: Instant,
    may_send: bool,
    /// Made under a private key that was replaced since.
    outdated: bool,
    counter: u64,
    seen: BTreeSet<u64>,
}

impl Session {
    fn usable(&self, now: Instant) -> bool {
        self.may_send && now < self.created + REJECT_AFTER
    }

    fn fresh(&mut self, counter: u64) -> bool {
        let newest = self.seen.last().copied().unwrap_or(0);
        if counter + REPLAY_WINDOW < newest || !self.seen.insert(counter) {
            return false;
        }
        if self.seen.len() as u64 > REPLAY_WINDOW {
            self.seen.pop_first();
        }
        true
    }
}

#[derive(Debug)]
struct Pending {
    local: u32,
    ephemeral: u64,
}

#[derive(Debug)]
pub(super) struct Peer {
    key: WgKey,
    planned: TunnelPeer,
    /// Ranges it had before it became passive.
    former: Prefixes,
    endpoint: Option<SocketAddr>,
    pending: Option<Pending>,
    /// Newest first, and how many may stay.
    previous: VecDeque<Session>,
    kept: usize,
    current: Option<Session>,
    next: Option<Session>,
    staged: VecDeque<Option<Inner>>,
    newest_timestamp: u64,
    last_initiation: Option<Instant>,
    last_handshake: Option<Instant>,
    tries: u32,
    retry_at: Option<Instant>,
    unanswered_at: Option<Instant>,
    passive_keepalive_at: Option<Instant>,
    another_keepalive: bool,
    persistent_at: Option<Instant>,
    rx_bytes: u64,
    tx_bytes: u64,
    drops: Vec<&'static str>,
}

impl Peer {
    pub(super) fn new(key: WgKey, backend: Backend) -> Self {
        Self {
            key,
            planned: TunnelPeer::default(),
            former: Prefixes::default(),
            endpoint: None,
            pending: None,
            previous: VecDeque::new(),
            kept: match backend {
                Backend::Kernel => 1,
                // boringtun has eight of all kinds.
                Backend::Userspace => 6,
            },
            current: None,
            next: None,
            staged: VecDeque::new(),
            newest_timestamp: 0,
            last_initiation: None,
            last_handshake: None,
            tries: 0,
            retry_at: None,
            unanswered_at: None,
            passive_keepalive_at: None,
            another_keepalive: false,
            persistent_at: None,
            rx_bytes: 0,
            tx_bytes: 0,
            drops: Vec::new(),
        }
    }

    pub(super) fn planned(&self) -> &TunnelPeer {
        &self.planned
    }

    pub(super) fn configure(
        &mut self,
        planned: &TunnelPeer,
        backend: Backend,
        context: &mut Context<'_>,
    ) {
        let said = |planned: &TunnelPeer| (planned.endpoint, planned.insist);
        if planned.endpoint.is_some() && said(planned) != said(&self.planned) {
            let elsewhere = self.endpoint != planned.endpoint;
            self.endpoint = planned.endpoint;
            let lives = self.sessions().any(|session| session.usable(context.now));
            if elsewhere && backend == Backend::Userspace && self.pending.is_some() && !lives {
                // The kernel waits until it is time for the next one.
                self.last_initiation = None;
                self.initiate_anew(context);
            }
        }
        let keepalive_began = self.planned.keepalive.is_none() && planned.keepalive.is_some();
        if self.planned == *planned {
            return;
        }
        if !planned.passive {
            self.former = Prefixes::default();
        } else if !self.planned.passive {
            self.former.clone_from(&self.planned.allowed_ips);
        }
        self.planned = planned.clone();
        if planned.keepalive.is_none() {
            self.persistent_at = None;
        }
        if keepalive_began {
            self.keepalive(context);
        }
        self.flush(context);
    }

    /// Sessions made under the old key still receive; the userspace engine sends under them too.
    pub(super) fn own_key_changed(&mut self, may_send: bool) {
        self.pending = None;
        self.last_initiation = None;
        self.retry_at = None;
        for session in [&mut self.current, &mut self.next].into_iter().flatten() {
            session.may_send &= may_send;
            session.outdated = true;
        }
    }

    pub(super) fn covered(&self, ip: IpAddr) -> bool {
        self.former.iter().any(|net| net.contains(&ip))
    }

    pub(super) fn awaits(&self, receiver: u32) -> bool {
        self.pending
            .as_ref()
            .is_some_and(|pending| pending.local == receiver)
    }

    pub(super) fn has_session(&self, receiver: u32, secret: u64) -> bool {
        self.sessions()
            .any(|session| session.local == receiver && session.secret == secret)
    }

    fn sessions(&self) -> impl Iterator<Item = &Session> {
        let newer = [&self.current, &self.next].into_iter().flatten();
        newer.chain(&self.previous)
    }

    /// One that is not sent on any more still receives.
    fn retire(&mut self, session: Option<Session>) {
        if let Some(session) = session {
            self.previous.push_front(session);
            self.previous.truncate(self.kept);
        }
    }

    /// Has it a timer, a session or a packet?
    pub(super) fn is_awake(&self) -> bool {
        let waits = self.pending.is_some() || !self.staged.is_empty();
        waits || self.deadline().is_some() || self.sessions().next().is_some()
    }

    pub(super) fn staged(&self) -> usize {
        self.staged.len()
    }

    pub(super) fn take_drops(&mut self) -> Vec<&'static str> {
        std::mem::take(&mut self.drops)
    }

    pub(super) fn stats(&self, now: Instant) -> TunnelStats {
        TunnelStats {
            endpoint: self.endpoint,
            handshake_age: self.last_handshake.map(|at| now.duration_since(at)),
            rx_bytes: self.rx_bytes,
            tx_bytes: self.tx_bytes,
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        [
            self.retry_at,
            self.unanswered_at,
            self.passive_keepalive_at,
            self.persistent_at,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    pub(super) fn expire(&mut self, context: &mut Context<'_>) {
        let due = |at: &mut Option<Instant>| at.take_if(|at| *at <= context.now).is_some();
        let retry = due(&mut self.retry_at);
        let unanswered = due(&mut self.unanswered_at);
        let passive = due(&mut self.passive_keepalive_at);
        let persistent = due(&mut self.persistent_at);
        if retry {
            if self.tries > HANDSHAKE_TRIES {
                self.pending = None;
                let lost = self.staged.drain(..).flatten().count();
                self.drops
                    .extend(std::iter::repeat_n("handshake given up", lost));
            } else {
                self.tries += 1;
                self.initiate(context);
            }
        }
        if unanswered {
            self.initiate_anew(context);
        }
        if passive {
            self.keepalive(context);
            if std::mem::take(&mut self.another_keepalive) {
                self.passive_keepalive_at = Some(context.now + KEEPALIVE_TIMEOUT);
            }
        }
        if persistent {
            self.keepalive(context);
            // Without a session nothing was sent that would set the timer again.
            if self.persistent_at.is_none() {
                self.persistent_at = self.planned.keepalive.map(|every| context.now + every);
            }
        }
    }

    pub(super) fn send(&mut self, inner: &Inner, context: &mut Context<'_>) {
        if self.endpoint.is_none() {
            self.drops.push("no endpoint");
            return;
        }
        if self.staged.len() >= STAGED_MAX {
            self.staged.pop_front();
            self.drops.push("queue full");
        }
        self.staged.push_back(Some(inner.clone()));
        self.flush(context);
    }

    pub(super) fn initiation(
        &mut self,
        message: &Initiation,
        remote: SocketAddr,
        len: usize,
        context: &mut Context<'_>,
    ) {
        if message.timestamp <= self.newest_timestamp {
            return self.drops.push("initiation replayed");
        }
        if message.preshared != preshared(self.planned.preshared_key.as_ref()) {
            return self.drops.push("another preshared key");
        }
        self.newest_timestamp = message.timestamp;
        self.endpoint = Some(remote);
        self.rx_bytes += len as u64;
        let local = context.random.word() as u32;
        let secret = context.random.word();
        self.next = Some(Session {
            local,
            remote: message.sender,
            secret,
            initiator: false,
            created: context.now,
            may_send: true,
            outdated: false,
            counter: 0,
            seen: BTreeSet::new(),
        });
        self.previous.truncate(self.kept - 1);
        self.traversed(context.now);
        self.passive_keepalive_at = None;
        let response = Wire::Response(Response {
            sender: local,
            receiver: message.sender,
            secret,
            ephemeral: message.ephemeral,
        });
        self.transmit(&response, context);
    }

    pub(super) fn response(
        &mut self,
        message: &Response,
        remote: SocketAddr,
        len: usize,
        context: &mut Context<'_>,
    ) {
        let Some(pending) = self
            .pending
            .take_if(|pending| pending.ephemeral == message.ephemeral)
        else {
            return self.drops.push("response to another handshake");
        };
        self.endpoint = Some(remote);
        self.rx_bytes += len as u64;
        self.unanswered_at = None;
        self.traversed(context.now);
        let (current, next) = (self.current.take(), self.next.take());
        self.retire(current);
        self.retire(next);
        self.current = Some(Session {
            local: pending.local,
            remote: message.sender,
            secret: message.secret,
            initiator: true,
            created: context.now,
            may_send: true,
            outdated: false,
            counter: 0,
            seen: BTreeSet::new(),
        });
        self.completed(context.now);
        // Confirms the session to the responder, where nothing waits to do so.
        self.keepalive(context);
    }

    pub(super) fn data(
        &mut self,
        message: &Data,
        remote: SocketAddr,
        len: usize,
        context: &mut Context<'_>,
    ) -> Option<Inner> {
        let now = context.now;
        let newer = [&mut self.current, &mut self.next].into_iter().flatten();
        let session = newer
            .chain(&mut self.previous)
            .find(|s| s.local == message.receiver && s.secret == message.secret)?;
        if now >= session.created + REJECT_AFTER {
            self.drops.push("session too old");
            return None;
        }
        if !session.fresh(message.counter) {
            self.drops.push("data replayed");
            return None;
        }
        let renew = session.initiator
            && session.may_send
            && now >= session.created + REJECT_AFTER - KEEPALIVE_TIMEOUT - REKEY_TIMEOUT;
        if self
            .next
            .as_ref()
            .is_some_and(|next| next.local == message.receiver)
        {
            let current = self.current.take();
            self.retire(current);
            self.current = self.next.take();
            self.completed(now);
            self.flush(context);
        }
        self.endpoint = Some(remote);
        self.rx_bytes += len as u64;
        self.unanswered_at = None;
        self.traversed(now);
        if renew {
            self.initiate_anew(context);
        }
        if message.inner.is_some() {
            if self.passive_keepalive_at.is_none() {
                self.passive_keepalive_at = Some(now + KEEPALIVE_TIMEOUT);
            } else {
                self.another_keepalive = true;
            }
        }
        message.inner.clone()
    }

    fn completed(&mut self, now: Instant) {
        self.last_handshake = Some(now);
        self.retry_at = None;
        self.tries = 0;
    }

    /// Any authenticated packet, either way, puts off the persistent keepalive.
    fn traversed(&mut self, now: Instant) {
        self.persistent_at = self.planned.keepalive.map(|every| now + every);
    }

    fn keepalive(&mut self, context: &mut Context<'_>) {
        if self.staged.is_empty() {
            self.staged.push_back(None);
        }
        self.flush(context);
    }

    /// Sends what waits, where there is a session; else makes one.
    fn flush(&mut self, context: &mut Context<'_>) {
        if self.staged.is_empty() {
            return;
        }
        let now = context.now;
        let Some(session) = self.current.as_mut().filter(|s| s.usable(now)) else {
            return self.initiate_anew(context);
        };
        let (remote, secret) = (session.remote, session.secret);
        let first = session.counter;
        session.counter += self.staged.len() as u64;
        let renew = session.outdated || session.initiator && now >= session.created + REKEY_AFTER;
        let packets: Vec<_> = self.staged.drain(..).collect();
        for (counter, inner) in (first..).zip(packets) {
            let carries = inner.is_some();
            self.transmit(
                &Wire::Data(Data {
                    receiver: remote,
                    counter,
                    secret,
                    inner,
                }),
                context,
            );
            self.passive_keepalive_at = None;
            self.traversed(now);
            if carries && self.unanswered_at.is_none() {
                self.unanswered_at =
                    Some(now + KEEPALIVE_TIMEOUT + REKEY_TIMEOUT + context.random.time(JITTER));
            }
        }
        if renew {
            self.initiate_anew(context);
        }
    }

    fn initiate_anew(&mut self, context: &mut Context<'_>) {
        self.tries = 0;
        self.initiate(context);
    }

    fn initiate(&mut self, context: &mut Context<'_>) {
        let now = context.now;
        let recent = self
            .last_initiation
            .is_some_and(|at| now < at + REKEY_TIMEOUT);
        if self.planned.passive || recent {
            return;
        }
        self.last_initiation = Some(now);
        let pending = Pending {
            local: context.random.word() as u32,
            ephemeral: context.random.word(),
        };
        let since = now.duration_since(context.epoch).as_nanos();
        let initiation = Wire::Initiation(Initiation {
            sender: pending.local,
            initiator: context.own,
            responder: self.key,
            ephemeral: pending.ephemeral,
            timestamp: u64::try_from(since).unwrap_or(u64::MAX).saturating_add(1),
            preshared: preshared(self.planned.preshared_key.as_ref()),
        });
        self.pending = Some(pending);
        self.passive_keepalive_at = None;
        self.traversed(now);
        self.retry_at = Some(now + REKEY_TIMEOUT + context.random.time(JITTER));
        self.transmit(&initiation, context);
    }

    /// The second way; the first where WireGuard has roamed to the second.
    fn also(&self, endpoint: SocketAddr) -> Option<SocketAddr> {
        let also = self.planned.also?;
        if also == endpoint {
            self.planned.endpoint.filter(|planned| *planned != endpoint)
        } else {
            Some(also)
        }
    }

    fn transmit(&mut self, message: &Wire, context: &mut Context<'_>) {
        let Some(endpoint) = self.endpoint else {
            return;
        };
        let bytes = message.encode();
        self.tx_bytes += bytes.len() as u64;
        if let Some(also) = self.also(endpoint) {
            context.transmits.push_back((also, bytes.clone()));
        }
        context.transmits.push_back((endpoint, bytes));
    }
}

/// Stands for the preshared key on the wire.
fn preshared(key: Option<&PresharedKey>) -> u64 {
    key.map_or(0, |key| {
        key.as_bytes()
            .chunks_exact(8)
            .filter_map(|chunk| chunk.try_into().ok())
            .map(u64::from_le_bytes)
            .fold(1, |sum, word| sum.rotate_left(7) ^ word)
    })
}
