//! Idle peers: what the node sends no more, and how a packet for one of them gets through all the same.
//!
//! A sleeping peer has no session, so its next packet makes WireGuard send a handshake initiation, into mappings that
//! are gone. Whoever carries the tunnel tells of it, with its bytes: the traversal opens the path, and the same
//! initiation goes out once more. WireGuard itself would repeat it after five seconds only; the packet waits in its
//! queue meanwhile.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mesh_types::{Now, PeerId, SocketId, Transmit};
use nat_traversal::Rest;

use crate::overlay::Overlay;
use crate::peer::SECOND_SIDE_DELAY;

/// WireGuard makes another initiation after this (REKEY_TIMEOUT), and answers none to this one.
const LIFETIME: Duration = Duration::from_secs(5);
/// Types and length of an initiation.
const INITIATION: ([u8; 4], usize) = ([1, 0, 0, 0], 148);

/// An initiation that may have come to nothing.
#[derive(Debug, Clone)]
pub(crate) struct Initiation {
    at: Instant,
    bytes: Vec<u8>,
}

impl Overlay {
    /// May idle peers sleep, where both ends can be called? Only while [`Self::handle_initiation`] is called; where that
    /// ends, those that sleep are woken.
    pub fn let_idle_peers_sleep(&mut self, may: bool, now: Now) {
        self.traversal.set_lazy(may, self.own.identity.idx());
        if !may {
            let asleep = |id: &PeerId| self.traversal.rest(id) == Rest::Asleep;
            let asleep: Vec<PeerId> = self.peers.keys().copied().filter(asleep).collect();
            for id in &asleep {
                self.traversal.wake_peer(id, now);
            }
        }
        self.settle(now);
    }

    /// The tunnel has sent a handshake initiation to `remote`.
    pub fn handle_initiation(&mut self, remote: SocketAddr, bytes: &[u8], now: Now) {
        self.traversal.tunnel_sent(remote.ip());
        let (kind, len) = INITIATION;
        let there = |id: &&PeerId| {
            let path = self.traversal.path(id).map(|path| path.remote);
            let last = self.peers.get(id).and_then(|record| record.stats.endpoint);
            path == Some(remote) || last == Some(remote)
        };
        let found = self.peers.met().find(there).copied();
        if let Some(id) = found
            && bytes.len() == len
            && bytes.starts_with(&kind)
            && self.traversal.rest(&id) == Rest::Asleep
        {
            if let Some(record) = self.peers.get_mut(&id) {
                record.initiation = Some(Initiation {
                    at: now.mono,
                    bytes: bytes.to_vec(),
                });
            }
            self.traversal.wake_peer(&id, now);
            self.count("woken-by-packet");
        }
        self.settle(now);
    }

    /// Says again what came too early, now that there is a way.
    pub(crate) fn send_initiation(&mut self, id: &PeerId, now: Now) {
        let Some(initiation) = self.peers.get_mut(id).and_then(|r| r.initiation.take()) else {
            return;
        };
        let Some(path) = self.traversal.path(id) else {
            return;
        };
        // From another port than the main one it would need the host to have lent that port by now.
        let lent = path.local_port.is_some();
        if !lent && now.mono.saturating_duration_since(initiation.at) < LIFETIME {
            self.transmits.push_back(Transmit {
                socket: SocketId::Main,
                source: None,
                destination: path.remote,
                ttl: None,
                bytes: initiation.bytes,
            });
            self.count("initiations-repeated");
        }
    }

    pub(crate) fn rest_changed(&mut self, id: &PeerId, now: Now) {
        self.stale.peer(*id);
        if self.traversal.rest(id) == Rest::Awake
            && let Some(record) = self.peers.get_mut(id)
            && !record.session(now.mono)
            && record.path_since.is_some()
        {
            // Whoever has a packet makes the handshake; two that cross cost a retry.
            record.open_at = Some(now.mono + SECOND_SIDE_DELAY);
            record.opened = false;
        }
        self.refresh_peer(id, now);
    }

    /// Does it hear of what is new by itself, without being woken for it?
    pub(crate) fn is_resting(&self, id: &PeerId) -> bool {
        self.traversal.rest(id) != Rest::Awake
    }
}
