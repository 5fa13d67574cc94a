//! Configured STUN servers: asked at start, then as often as a mapping needs to live.

use std::net::SocketAddr;
use std::time::Instant;

use mesh_types::SocketId;

use crate::nat_kind::Witness;
use crate::node::Node;
use crate::schedule::{STUN_AGAIN, STUN_RETRY};
use crate::stun::{self, Class, Outgoing};

#[derive(Debug)]
struct Server {
    address: SocketAddr,
    /// Of the request that waits for its answer.
    transaction: Option<[u8; 12]>,
    tries: usize,
    next: Instant,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Servers(Vec<Server>);

impl Servers {
    /// Replaces the list; those that stay keep their turn.
    pub(crate) fn set(&mut self, addresses: &[SocketAddr], now: Instant) {
        let mut old = std::mem::take(&mut self.0);
        for address in addresses {
            let kept = old.iter().position(|server| server.address == *address);
            self.0.push(kept.map_or(
                Server {
                    address: *address,
                    transaction: None,
                    tries: 0,
                    next: now,
                },
                |index| old.swap_remove(index),
            ));
        }
    }

    /// Asks all of them now.
    pub(crate) fn refresh(&mut self, now: Instant) {
        for server in &mut self.0 {
            server.transaction = None;
            server.tries = 0;
            server.next = now;
        }
    }

    pub(crate) fn run(&mut self, node: &mut Node, now: Instant) {
        for server in self.0.iter_mut().filter(|server| server.next <= now) {
            if server.transaction.is_some() && server.tries > STUN_RETRY.len() {
                server.transaction = None;
                server.tries = 0;
                server.next = now + STUN_AGAIN;
                continue;
            }
            let transaction = *server.transaction.get_or_insert_with(|| node.random());
            server.next = now + STUN_RETRY[server.tries.min(STUN_RETRY.len() - 1)];
            server.tries += 1;
            let bytes = Outgoing {
                transaction,
                ..Outgoing::default()
            }
            .encode(Class::Request);
            node.nat.sent(server.address.ip(), !node.by_udp, now);
            node.transmit(SocketId::Main, None, server.address, bytes);
        }
    }

    /// True where the answer was to one of these.
    pub(crate) fn answer(
        &mut self,
        node: &mut Node,
        transaction: [u8; 12],
        remote: SocketAddr,
        bytes: &[u8],
        now: Instant,
    ) -> bool {
        let Some(server) = self
            .0
            .iter_mut()
            .find(|server| server.transaction == Some(transaction) && server.address == remote)
        else {
            return false;
        };
        server.transaction = None;
        server.tries = 0;
        server.next = now + node.keepalive();
        if let Some(mapped) = stun::parse(bytes).and_then(|message| message.mapped) {
            node.nat.heard();
            if node.nat.observe(remote, mapped, Witness::Server, now) {
                node.refresh = true;
            }
        }
        true
    }

    pub(crate) fn deadline(&self) -> Option<(Instant, &'static str)> {
        self.0
            .iter()
            .map(|server| server.next)
            .min()
            .map(|at| (at, "stun"))
    }
}
