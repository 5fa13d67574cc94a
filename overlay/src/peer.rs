//! What the node remembers of a peer beside what the directory and the traversal know, and how a peer's
//! state follows from it.
//!
//! ```text
//! learned --> Connecting --path and session--> Direct, or Relayed
//!               |  ^  ^                          |
//!   patience    v  |  '---- path or session lost-'
//!             Down-'
//!         path found
//! ```
//! A plain device is Direct while it has a session, else Idle: nobody looks for it. A node that is not used is Idle
//! once its session has ended; the path it had is kept.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mesh_types::Message;
use mesh_types::report::TunnelStats;
use mesh_types::{Idx, WgKey};

use crate::budget::Budget;
use crate::calls::Calls;
use crate::plan::NOWHERE;
use crate::sleep::Initiation;
use crate::snapshot::PeerState;

/// WireGuard drops a session that old (REJECT_AFTER_TIME), so a younger handshake means a live session.
pub(crate) const SESSION_LIFETIME: Duration = Duration::from_secs(180);
/// How long a peer without a path counts as connecting: the traversal's first schedules end by then.
const PATIENCE: Duration = Duration::from_secs(35);
/// A peer that moves more than this in [`ACTIVITY_WINDOW`] is active: keepalives and handshakes stay below.
const ACTIVITY_BYTES: u64 = 1024;
/// See [`ACTIVITY_BYTES`].
const ACTIVITY_WINDOW: Duration = Duration::from_secs(10);
/// The side with the higher idx waits so long before it starts a handshake of its own.
pub(crate) const SECOND_SIDE_DELAY: Duration = Duration::from_secs(1);
/// WireGuard follows any authentic packet, be it a late one by a path that is gone. Where it sends into silence for so
/// long while probes prove another path, it is put back there.
const ASTRAY: Duration = Duration::from_millis(750);
/// In-flight datagrams of a relay and both ends' switch take less than this.
pub(crate) const LATE: Duration = Duration::from_secs(1);
/// How long handshakes under a rotated peer's old key are still taken.
pub(crate) const RETIRE_AFTER: Duration = Duration::from_secs(5);
/// Messages taken from one peer in a second; a digest of 5,000 nodes arrives in less.
const MESSAGES_PER_SECOND: u32 = 500;
/// Forwarded messages taken from one peer in a second.
pub(crate) const FORWARDS_PER_SECOND: u32 = 10;

/// First words on a path are repeated so long after they were said first, until the peer has compared
/// records: any of them may be lost while addresses, routes and sessions are still being made.
const GREET_AGAIN: [Duration; 6] = [
    Duration::from_millis(200),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
];

/// Where WireGuard has the peer, if anywhere.
pub(crate) fn at(stats: &TunnelStats) -> Option<SocketAddr> {
    stats.endpoint.filter(|at| *at != NOWHERE)
}

/// First words on a path. They wait for the plan that holds the path, else the tunnel would drop them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Greeting {
    /// Generation of the plan that holds the path, once built.
    pub(crate) generation: Option<u64>,
    /// With records, not only Hello.
    pub(crate) records: bool,
    /// The peer confirms by this number that it has compared.
    pub(crate) seq: u64,
    /// When they were said first.
    pub(crate) said: Option<Instant>,
    /// When they are said again.
    pub(crate) again: Option<Instant>,
}

impl Greeting {
    pub(crate) fn new(records: bool, seq: u64) -> Self {
        Self {
            generation: None,
            records,
            seq,
            said: None,
            again: None,
        }
    }

    /// They are said now. `None` where that is all there is to say.
    pub(crate) fn next(self, now: Instant) -> Option<Self> {
        let said = self.said.unwrap_or(now);
        let again = GREET_AGAIN.into_iter().map(|after| said + after);
        let again = again.filter(|at| *at > now).min()?;
        Some(Self {
            said: Some(said),
            again: Some(again),
            ..self
        })
    }
}

/// What the node remembers of a peer.
#[derive(Debug, Clone)]
pub(crate) struct PeerRecord {
    /// The WireGuard key the tunnel uses.
    pub(crate) key: WgKey,
    /// Names that key.
    pub(crate) idx: Idx,
    /// The key before a rotation, and when it goes.
    pub(crate) retired: Option<(WgKey, Instant)>,
    /// A key proven by a probe before its announcement came.
    pub(crate) adopted: Option<WgKey>,
    /// Its label.
    pub(crate) name: String,
    /// What the plan was made of: session and activity.
    pub(crate) planned: (bool, bool),
    /// Where it was last reached.
    pub(crate) last_endpoint: Option<SocketAddr>,
    /// Until when its datagrams are taken from relays that its path has left, whatever their family.
    pub(crate) late_until: Option<Instant>,
    /// Its path leads through a relay.
    pub(crate) relayed: bool,
    /// WireGuard was made to send nothing to it, and there has been no path since.
    pub(crate) hushed: bool,
    /// Since when there is a path.
    pub(crate) path_since: Option<Instant>,
    /// From when on this side starts handshakes (keepalive in the plan).
    pub(crate) open_at: Option<Instant>,
    /// The plan knows that it does.
    pub(crate) opened: bool,
    /// What is to be said to it soon.
    pub(crate) greeting: Option<Greeting>,
    /// Generation of the plan that first holds its key and ranges as they are.
    pub(crate) held_since: Option<u64>,
    /// Overlay IPv4 address where its messages come from.
    pub(crate) ipv4: Option<std::net::Ipv4Addr>,
    /// The same where nobody is to be looked for there, because it lies inside the mesh.
    pub(crate) excluded: Option<std::net::Ipv4Addr>,
    /// Last word of WireGuard.
    pub(crate) stats: TunnelStats,
    /// When that came.
    pub(crate) stats_at: Option<Instant>,
    /// Bytes of gossip (digests and records) to and from it since ever, as WireGuard counts them: they are no use of the peer.
    pub(crate) gossip_bytes: u64,
    /// Bytes at the start of the activity window, those of gossip, and that start.
    window: Option<(u64, u64, Instant)>,
    /// Since when WireGuard hears nothing where it has roamed to, and bytes it had sent by then.
    astray: Option<(Instant, u64)>,
    /// A handshake that waits for a way.
    pub(crate) initiation: Option<Initiation>,
    /// How often it was put back: [`mesh_types::plan::TunnelPeer::insist`].
    pub(crate) insist: u32,
    /// When it was last active.
    pub(crate) active_at: Option<Instant>,
    /// When a message of it last came through the tunnel.
    pub(crate) heard: Option<Instant>,
    /// Its last message came by IPv4.
    pub(crate) speaks_ipv4: bool,
    /// Protocol versions it says it speaks.
    pub(crate) protocol: Option<(u8, u8)>,
    /// The deadline that the index of all peers has of it.
    pub(crate) armed: Option<Instant>,
    /// State and since when.
    pub(crate) state: PeerState,
    /// See [`PeerRecord::state`].
    pub(crate) since: Instant,
    /// Limits its messages.
    pub(crate) messages: Budget,
    /// Calls that it has not answered.
    pub(crate) calls: Calls,
    /// Limits what it wants forwarded.
    pub(crate) forwards: Budget,
}

impl PeerRecord {
    pub(crate) fn new(key: WgKey, now: Instant) -> Self {
        Self {
            key,
            idx: key.idx(),
            retired: None,
            adopted: None,
            name: String::new(),
            planned: (false, false),
            last_endpoint: None,
            late_until: None,
            relayed: false,
            hushed: false,
            path_since: None,
            open_at: None,
            opened: false,
            greeting: None,
            held_since: None,
            ipv4: None,
            excluded: None,
            stats: TunnelStats::default(),
            stats_at: None,
            gossip_bytes: 0,
            window: None,
            astray: None,
            initiation: None,
            insist: 0,
            active_at: None,
            heard: None,
            speaks_ipv4: false,
            protocol: None,
            armed: None,
            state: PeerState::Connecting,
            since: now,
            calls: Calls::default(),
            messages: Budget::new(MESSAGES_PER_SECOND),
            forwards: Budget::new(FORWARDS_PER_SECOND),
        }
    }

    /// The plan is made of how it is now.
    pub(crate) fn plan(&mut self, now: Instant) {
        self.planned = (self.session(now), self.active(now));
        self.opened = self.open(now);
    }

    /// Changes the key in use; the old one stays for stragglers.
    pub(crate) fn change_key(&mut self, key: WgKey, now: Instant) {
        if key == self.key {
            return;
        }
        self.retired = Some((self.key, now + RETIRE_AFTER));
        self.key = key;
        self.idx = key.idx();
        self.stats.handshake_age = None;
        self.window = None;
    }

    /// A message of so many bytes goes to the peer or came from it. Records are compared and passed on whether anybody
    /// uses the peer or not; all others follow from something that happened. WireGuard counts the packet, filled up to a
    /// multiple of 16, and 32 bytes of its own.
    pub(crate) fn count_gossip(&mut self, message: &Message, len: usize, v4: bool) {
        if matches!(message, Message::Digest(_) | Message::Delta(_)) {
            let headers = if v4 { 28 } else { 48 };
            self.gossip_bytes += ((len + headers).next_multiple_of(16) + 32) as u64;
        }
    }

    /// May anything follow from this word of WireGuard, beside what time alone changes?
    pub(crate) fn is_news(&self, stats: &TunnelStats, now: Instant) -> bool {
        let told = |stats: &TunnelStats| (stats.rx_bytes, stats.tx_bytes, at(stats));
        self.active(now) || told(stats) != told(&self.stats)
    }

    /// Takes WireGuard's word in; `path` is the one that probes prove.
    pub(crate) fn handle_stats(
        &mut self,
        stats: TunnelStats,
        path: Option<SocketAddr>,
        now: Instant,
    ) {
        self.look_astray(&stats, path, now);
        self.stats = stats;
        self.stats_at = Some(now);
        let bytes = stats.rx_bytes.saturating_add(stats.tx_bytes);
        let fresh = Some((bytes, self.gossip_bytes, now));
        match self.window {
            Some((start, digests, since)) if bytes >= start => {
                // What was just said may not have left yet.
                let used = (bytes - start).saturating_sub(self.gossip_bytes - digests);
                if used > ACTIVITY_BYTES {
                    self.active_at = Some(now);
                    self.window = fresh;
                } else if now.saturating_duration_since(since) >= ACTIVITY_WINDOW {
                    self.window = fresh;
                }
            }
            // The counters began anew: another device, or the key changed.
            Some(_) | None => self.window = fresh,
        }
    }

    fn look_astray(&mut self, stats: &TunnelStats, path: Option<SocketAddr>, now: Instant) {
        let elsewhere = stats
            .endpoint
            .zip(path)
            .is_some_and(|(at, path)| at != path);
        let since = self
            .astray
            .filter(|_| elsewhere && stats.rx_bytes == self.stats.rx_bytes);
        self.astray = match since {
            Some((since, sent))
                if now.saturating_duration_since(since) >= ASTRAY && stats.tx_bytes > sent =>
            {
                self.insist = self.insist.wrapping_add(1);
                Some((now, stats.tx_bytes))
            }
            Some(since) => Some(since),
            None => elsewhere.then_some((now, stats.tx_bytes)),
        };
    }

    /// Has it moved data lately?
    pub(crate) fn active(&self, now: Instant) -> bool {
        self.active_at
            .is_some_and(|at| now.saturating_duration_since(at) < ACTIVITY_WINDOW)
    }

    /// Is there a path, or was there ever a session? [`Self::session`] says whether it lives.
    pub(crate) fn met(&self) -> bool {
        self.path_since.is_some() || self.heard.is_some() || self.stats.handshake_age.is_some()
    }

    /// Is there a WireGuard session, as far as anybody can tell?
    pub(crate) fn session(&self, now: Instant) -> bool {
        let reported = self
            .stats
            .handshake_age
            .zip(self.stats_at)
            .is_some_and(|(age, at)| age + now.saturating_duration_since(at) < SESSION_LIFETIME);
        let heard = self
            .heard
            .is_some_and(|at| now.saturating_duration_since(at) < SESSION_LIFETIME);
        reported || heard
    }

    /// Age of the last handshake.
    pub(crate) fn handshake_age(&self, now: Instant) -> Option<Duration> {
        let (age, at) = self.stats.handshake_age.zip(self.stats_at)?;
        Some(age + now.saturating_duration_since(at))
    }

    /// Does this side start handshakes by now?
    pub(crate) fn open(&self, now: Instant) -> bool {
        self.open_at.is_some_and(|at| at <= now)
    }

    /// The state that follows from what is known.
    pub(crate) fn current_state(&self, plain: bool, resting: bool, now: Instant) -> PeerState {
        let session = self.session(now);
        if plain {
            return if session {
                PeerState::Direct
            } else {
                PeerState::Idle
            };
        }
        match (self.path_since, session) {
            (Some(_), true) if self.relayed => PeerState::Relayed,
            (Some(_), true) => PeerState::Direct,
            (Some(_), false) if resting => PeerState::Idle,
            (Some(_), false) => PeerState::Connecting,
            (None, _) => {
                let began = match self.state {
                    PeerState::Connecting => self.since,
                    PeerState::Down => return PeerState::Down,
                    PeerState::Direct | PeerState::Relayed | PeerState::Idle => now,
                };
                if now.saturating_duration_since(began) >= PATIENCE {
                    PeerState::Down
                } else {
                    PeerState::Connecting
                }
            }
        }
    }

    /// When its state, key or keepalive changes by time alone.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let patience = (self.path_since.is_none() && self.state == PeerState::Connecting)
            .then(|| self.since + PATIENCE);
        let retired = self.retired.map(|(_, until)| until);
        let late = self.late_until;
        let greeting = self.greeting.and_then(|greeting| greeting.again);
        let open = self.open_at.filter(|_| !self.opened);
        [patience, retired, greeting, open, late]
            .into_iter()
            .flatten()
            .min()
    }
}

#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "a test's clock has to start somewhere"
)]
mod tests {
    use mesh_types::message::{Ack, Digest};

    use super::*;

    #[test]
    fn wireguard_is_put_back_on_the_proven_path_only_where_it_sends_into_silence() {
        let start = Instant::now();
        let path: SocketAddr = "203.0.113.1:1".parse().expect("an address");
        let gone: SocketAddr = "203.0.113.2:2".parse().expect("an address");
        let mut record = PeerRecord::new(WgKey([1; 32]), start);
        let mut said = |tenth: u64, endpoint, rx_bytes, tx_bytes| {
            let stats = TunnelStats {
                endpoint: Some(endpoint),
                handshake_age: None,
                rx_bytes,
                tx_bytes,
            };
            let now = start + Duration::from_millis(tenth * 100);
            record.handle_stats(stats, Some(path), now);
            record.insist
        };
        assert_eq!(said(0, gone, 0, 0), 0);
        assert_eq!(said(20, gone, 0, 0), 0, "nothing was sent");
        assert_eq!(said(21, gone, 0, 148), 1, "sent, and nothing came back");
        assert_eq!(said(25, gone, 0, 296), 1, "time to answer");
        assert_eq!(said(29, gone, 0, 296), 2);
        assert_eq!(said(40, gone, 0, 296), 2, "nothing more was sent");
        assert_eq!(said(48, gone, 92, 444), 2, "the peer has moved there");
        assert_eq!(said(50, gone, 92, 592), 2);
        assert_eq!(said(60, path, 92, 999), 2, "it is where it should be");
    }

    #[test]
    fn a_peer_with_which_only_gossip_is_exchanged_is_not_in_use() {
        let start = Instant::now();
        let mut record = PeerRecord::new(WgKey([1; 32]), start);
        let mut moved = 0;
        let mut tell = |record: &mut PeerRecord, second, bytes| {
            moved += bytes;
            let stats = TunnelStats {
                rx_bytes: moved,
                ..TunnelStats::default()
            };
            let now = start + Duration::from_secs(second);
            record.handle_stats(stats, None, now);
            record.active(now)
        };
        assert!(!tell(&mut record, 0, 0));
        // 48 of IPv6 and UDP, filled up to 1264, and 32 of WireGuard.
        let digest = Digest {
            from: Idx([0; 8]),
            to: Idx([255; 8]),
            entries: Vec::new(),
            seq: 0,
        };
        for _ in 0..3 {
            record.count_gossip(&digest.clone().into(), 1201, false);
        }
        record.count_gossip(&Ack { seq: 1 }.into(), 1201, false);
        assert!(!tell(&mut record, 1, 0), "said, and not sent yet");
        assert!(!tell(&mut record, 2, 3 * 1296));
        assert!(!tell(&mut record, 3, ACTIVITY_BYTES));
        assert!(tell(&mut record, 4, 1));
    }
}
