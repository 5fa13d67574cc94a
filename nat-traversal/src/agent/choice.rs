//! The controlling side's choice, told on the path itself.
//!
//! PathReady travels in a request, Ack in its answer. Every probe the controlling side sends on its path
//! repeats the choice, so both sides come to agree whatever was lost.

use std::net::SocketAddr;
use std::time::Instant;

use super::PathAgent;
use crate::node::{Node, Purpose};
use crate::remote::Local;
use crate::schedule::{NOMINATE_RETRY, NOMINATE_TRIES};

/// A choice of the controlling side on its way to the other.
#[derive(Debug, Clone)]
pub(super) struct Nomination {
    pub(super) remote: SocketAddr,
    /// The socket that reaches it, where that is not the main one.
    pub(super) local: Option<Local>,
    pub(super) seq: u64,
    pub(super) next: Instant,
    tries: u32,
}

impl PathAgent {
    /// Tells the other side of a choice.
    pub(super) fn nominate(&mut self, node: &mut Node, address: SocketAddr, now: Instant) {
        let seq = node.next_choice();
        if let Some(in_use) = self.in_use.as_mut().filter(|u| u.path.remote == address) {
            in_use.seq = seq;
        }
        self.nomination = Some(Nomination {
            remote: address,
            local: self.remotes.get(&address).and_then(|remote| remote.local),
            seq,
            next: now,
            tries: 0,
        });
        self.run_nomination(node, now);
    }

    pub(super) fn run_nomination(&mut self, node: &mut Node, now: Instant) {
        let Some(nomination) = self.nomination.as_mut().filter(|n| n.next <= now) else {
            return;
        };
        if nomination.tries == NOMINATE_TRIES {
            let given_up = nomination.remote;
            self.nomination = None;
            // The other side may have followed without our hearing of it: call it back.
            let current = self.path().map(|path| path.remote);
            if let Some(current) = current.filter(|current| *current != given_up) {
                self.nominate(node, current, now);
            }
            return;
        }
        nomination.next = now + NOMINATE_RETRY * 2_u32.pow(nomination.tries);
        nomination.tries += 1;
        let (remote, seq) = (nomination.remote, nomination.seq);
        self.send_probe(node, remote, Purpose::Ready(seq), now);
    }

    /// The controlled side uses our choice.
    pub(super) fn on_ack(&mut self, node: &mut Node, address: SocketAddr, seq: u64, now: Instant) {
        if self
            .nomination
            .take_if(|n| n.seq == seq && n.remote == address)
            .is_some()
            && self.path().is_none_or(|path| path.remote != address)
        {
            self.take(node, address, now);
        }
        if let Some(in_use) = self.in_use.as_mut().filter(|u| u.path.remote == address) {
            in_use.seq = seq;
            in_use.path.confirmed = true;
        }
    }

    /// The controlling side's choice arrived on `address`. True where it is followed.
    pub(super) fn on_ready(
        &mut self,
        node: &mut Node,
        (address, lucky): (SocketAddr, Option<Local>),
        seq: u64,
        now: Instant,
    ) -> bool {
        if self.controlling() || seq < self.last_ready {
            return false;
        }
        if let Some(remote) = self.remotes.get_mut(&address)
            && lucky.is_some()
        {
            // Of the sockets that got through the other side has chosen this one.
            remote.local = lucky;
        }
        self.last_ready = seq;
        if self.remotes.get(&address).is_some_and(|r| r.confirmed) {
            self.follow(node, address, seq, now);
            true
        } else {
            // Integrity does not cover addresses: it must answer there before it is sent to.
            self.awaited_ready = Some((address, seq));
            self.check(node, address, now);
            false
        }
    }

    pub(super) fn follow(&mut self, node: &mut Node, address: SocketAddr, seq: u64, now: Instant) {
        if seq < self.last_ready {
            return;
        }
        let local = self.remotes.get(&address).and_then(|remote| remote.local);
        let port = local.map(|local| local.port);
        if self
            .path()
            .is_none_or(|path| path.remote != address || path.local_port != port)
        {
            self.take(node, address, now);
        }
        if let Some(in_use) = &mut self.in_use {
            in_use.path.confirmed = true;
        }
    }
}
