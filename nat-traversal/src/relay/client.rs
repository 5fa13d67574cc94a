//! The relayed side: binds to relays' ports, step by step, and keeps them.
//!
//! ```text
//! want --> asking (main port) --offer--> binding (relay port, nonce) --bound--> refresh every 100 s
//!             |                             ^  |   `--fresh nonce-'
//!             '--------- no answer ------> failed <---- refused, or too many nonces
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mesh_types::PeerId;
use mesh_types::message::RelayOffer;

/// Between requests that bring no answer.
const RETRY: [Duration; 5] = [
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(400),
    Duration::from_millis(800),
    Duration::from_millis(1600),
];
/// Of these to a relay port that does not answer, before the main port is asked again.
const PORT_TRIES: usize = 2;
/// Three attempts in the lifetime at the relay.
const REFRESH: Duration = Duration::from_secs(100);
/// Nonces taken in a row without being bound: one suffices unless the own address changes meanwhile.
const NONCES_MAX: u8 = 4;
/// Relays at which one peer is met at once: the own choice, the peer's, and their successors.
const PER_PEER_MAX: usize = 4;
const BINDS_MAX: usize = 4096;

/// A request to send: from the WireGuard port, under the key shared with the relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) relay: PeerId,
    pub(crate) peer: PeerId,
    pub(crate) destination: SocketAddr,
    pub(crate) nonce: Option<Vec<u8>>,
}

/// What became of a bind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// The peer may be met at this address.
    Bound {
        peer: PeerId,
        relay: PeerId,
        address: SocketAddr,
    },
    /// The relay does not answer, or refuses.
    Failed {
        peer: PeerId,
        relay: PeerId,
        refused: bool,
    },
}

#[derive(Debug)]
struct Bind {
    /// The relay's main port, as this node reaches it.
    main: SocketAddr,
    port: Option<u16>,
    nonce: Option<Vec<u8>>,
    bound: Option<Instant>,
    /// Waiting for an answer.
    asking: bool,
    tries: usize,
    nonces: u8,
    next: Instant,
}

impl Bind {
    fn new(main: SocketAddr, now: Instant) -> Self {
        Self {
            main,
            port: None,
            nonce: None,
            bound: None,
            asking: true,
            tries: 0,
            nonces: 0,
            next: now,
        }
    }

    fn ask(&mut self, now: Instant) {
        self.asking = true;
        self.tries = 0;
        self.nonces = 0;
        self.next = now;
    }

    fn address(&self) -> Option<SocketAddr> {
        self.port.map(|port| SocketAddr::new(self.main.ip(), port))
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Client {
    /// By peer, then relay.
    binds: BTreeMap<(PeerId, PeerId), Bind>,
    requests: VecDeque<Request>,
    events: VecDeque<Event>,
}

impl Client {
    /// The peer is to be met at this relay, whose main port is `main`. Keeps a bind that exists.
    pub(crate) fn want(&mut self, peer: PeerId, relay: PeerId, main: SocketAddr, now: Instant) {
        if let Some(bind) = self.binds.get_mut(&(peer, relay)) {
            if bind.main != main {
                *bind = Bind::new(main, now);
            }
        } else if self.has_room(&peer) {
            self.binds.insert((peer, relay), Bind::new(main, now));
        }
        self.handle_timeout(now);
    }

    /// The own mapping may have changed: shows it to the relay.
    pub(crate) fn renew(&mut self, peer: PeerId, relay: PeerId, now: Instant) {
        if let Some(bind) = self.binds.get_mut(&(peer, relay))
            && !bind.asking
        {
            bind.ask(now);
        }
        self.handle_timeout(now);
    }

    /// The host has moved: all mappings are gone.
    pub(crate) fn moved(&mut self, now: Instant) {
        for bind in self.binds.values_mut() {
            bind.ask(now);
        }
        self.handle_timeout(now);
    }

    /// The relay tells, inside the tunnel, that the peer waits there.
    pub(crate) fn handle_offer(
        &mut self,
        peer: PeerId,
        relay: PeerId,
        main: SocketAddr,
        offer: &RelayOffer,
        now: Instant,
    ) {
        if !self.binds.contains_key(&(peer, relay)) && !self.has_room(&peer) {
            return;
        }
        let bind = self
            .binds
            .entry((peer, relay))
            .or_insert_with(|| Bind::new(main, now));
        bind.main = main;
        if bind.asking && bind.tries > 0 {
            // Two ends whose requests make the relay tell each other would else go on for ever.
            if bind.nonce.is_none() && bind.tries < PORT_TRIES {
                bind.port = Some(offer.port);
                bind.nonce.clone_from(&offer.nonce);
                bind.next = now;
            }
        } else {
            bind.port = Some(offer.port);
            bind.nonce.clone_from(&offer.nonce);
            bind.ask(now);
        }
        self.handle_timeout(now);
    }

    /// The relay's answer to a request that went to `destination`.
    pub(crate) fn handle_answer(
        &mut self,
        peer: PeerId,
        relay: PeerId,
        destination: SocketAddr,
        offer: &RelayOffer,
        now: Instant,
    ) {
        let Some(bind) = self.binds.get_mut(&(peer, relay)).filter(|b| b.asking) else {
            return;
        };
        if let Some(nonce) = &offer.nonce {
            // An answer to an earlier request of the same step says nothing new.
            if destination == bind.main && bind.nonce.is_some() && bind.port == Some(offer.port) {
                return;
            }
            bind.nonces += 1;
            if bind.nonces > NONCES_MAX {
                self.fail(peer, relay, false);
                return;
            }
            bind.port = Some(offer.port);
            bind.nonce = Some(nonce.clone());
            bind.tries = 0;
            bind.next = now;
        } else if bind.address() == Some(destination) {
            bind.asking = false;
            bind.bound = Some(bind.bound.unwrap_or(now));
            bind.next = now + REFRESH;
            self.events.push_back(Event::Bound {
                peer,
                relay,
                address: destination,
            });
        }
        self.handle_timeout(now);
    }

    /// The relay refuses.
    pub(crate) fn handle_refusal(&mut self, peer: PeerId, relay: PeerId) {
        if self.binds.contains_key(&(peer, relay)) {
            self.fail(peer, relay, true);
        }
    }

    fn fail(&mut self, peer: PeerId, relay: PeerId, refused: bool) {
        self.binds.remove(&(peer, relay));
        self.events.push_back(Event::Failed {
            peer,
            relay,
            refused,
        });
    }

    /// The peer is no longer met at this relay, which forgets by itself.
    pub(crate) fn release(&mut self, peer: PeerId, relay: PeerId) {
        self.binds.remove(&(peer, relay));
    }

    /// Forgets a peer, as an end and as a relay.
    pub(crate) fn remove_peer(&mut self, id: &PeerId) {
        self.binds
            .retain(|(peer, relay), _| peer != id && relay != id);
    }

    /// Relays at which a peer is met or about to be, and since when it is bound there.
    pub(crate) fn relays_of(
        &self,
        peer: PeerId,
    ) -> impl Iterator<Item = (PeerId, Option<Instant>)> + '_ {
        self.binds
            .iter()
            .filter(move |((of, _), _)| *of == peer)
            .map(|((_, relay), bind)| (*relay, bind.bound))
    }

    /// Asks, asks again, refreshes, gives up.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        let mut failed = Vec::new();
        for ((peer, relay), bind) in &mut self.binds {
            if bind.next > now {
                continue;
            }
            if !bind.asking {
                bind.ask(now);
            }
            let Some(wait) = RETRY.get(bind.tries) else {
                failed.push((*peer, *relay));
                continue;
            };
            bind.tries += 1;
            bind.next = now + *wait;
            if bind.tries > PORT_TRIES {
                // It may lend the peer another port by now.
                bind.nonce = None;
            }
            let destination = bind.address().filter(|_| bind.nonce.is_some());
            self.requests.push_back(Request {
                relay: *relay,
                peer: *peer,
                destination: destination.unwrap_or(bind.main),
                nonce: bind.nonce.clone(),
            });
        }
        for (peer, relay) in failed {
            self.fail(peer, relay, false);
        }
    }

    pub(crate) fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let next = self.binds.values().map(|bind| bind.next).min()?;
        Some((next, "relay bind"))
    }

    pub(crate) fn poll_request(&mut self) -> Option<Request> {
        self.requests.pop_front()
    }

    pub(crate) fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    fn has_room(&self, peer: &PeerId) -> bool {
        self.binds.len() < BINDS_MAX && self.relays_of(*peer).count() < PER_PEER_MAX
    }
}

#[cfg(test)]
mod tests;
