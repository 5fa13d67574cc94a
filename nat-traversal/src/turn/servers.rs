//! Which servers there are, and where.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Instant;

use mesh_types::turn::TurnServer;

use super::{AGAIN_MAX, Event, Slot, Turn};
use crate::api::TurnProblem;

/// Servers taken from the configuration.
const SERVERS_MAX: usize = 8;
/// Addresses of one server.
const ADDRESSES_MAX: usize = 4;

impl Turn {
    /// The configured servers, and the name that this node has in its credentials. What stays the same goes on.
    pub(crate) fn set_servers(&mut self, servers: Vec<TurnServer>, name: &str, now: Instant) {
        let fit = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        self.name = name.chars().filter(fit).take(64).collect();
        let mut servers = servers;
        servers.truncate(SERVERS_MAX);
        // The sort is stable: among equals the file's order counts.
        servers.sort_by_key(|server| server.address.transport);
        if self.slots.iter().map(|slot| &slot.server).eq(&servers) {
            return;
        }
        let mut old: Vec<Option<Slot>> = std::mem::take(&mut self.slots)
            .into_iter()
            .map(Some)
            .collect();
        let mut moved = BTreeMap::new();
        for (index, server) in servers.into_iter().enumerate() {
            let same = |slot: &Option<Slot>| slot.as_ref().is_some_and(|s| s.server == server);
            let known = old.iter().position(same);
            let kept = known.and_then(|at| {
                moved.insert(at, index);
                old[at].take()
            });
            let slot = kept.unwrap_or_else(|| {
                let authority = server.address.authority();
                let literal = authority.parse().ok();
                if literal.is_none() {
                    self.events.push_back(Event::Resolve(authority));
                }
                Slot {
                    server,
                    addresses: literal.into_iter().collect(),
                    next: 0,
                    failures: 0,
                    retry: None,
                    problem: None,
                    rtt: None,
                }
            });
            self.slots.push(slot);
        }
        let all: Vec<u32> = self.links.keys().copied().collect();
        for number in all {
            let slot = self.links.get(&number).map(|link| link.slot);
            match slot.and_then(|slot| moved.get(&slot)) {
                Some(index) => {
                    if let Some(link) = self.links.get_mut(&number) {
                        link.slot = *index;
                    }
                }
                None => self.drop_link(number),
            }
        }
        self.seeking = Some(now);
    }

    /// A name was looked up.
    pub(crate) fn resolved(&mut self, name: &str, addresses: &[SocketAddr], now: Instant) {
        for slot in &mut self.slots {
            if slot.server.address.authority() != name {
                continue;
            }
            let mut usable: Vec<SocketAddr> = addresses
                .iter()
                .map(|at| SocketAddr::new(at.ip().to_canonical(), at.port()))
                .filter(|at| !at.ip().is_unspecified() && !at.ip().is_multicast())
                .collect();
            // IPv4 first: the relayed address is of that family, and ChannelData then fits packets of 1500 bytes.
            usable.sort_by_key(|at| (at.is_ipv6(), *at));
            usable.dedup();
            usable.truncate(ADDRESSES_MAX);
            if usable.is_empty() {
                slot.failures += 1;
                slot.retry = Some(now + AGAIN_MAX);
                // What was known goes on being tried.
                if slot.addresses.is_empty() {
                    slot.problem = Some(TurnProblem::Unresolved);
                }
            } else if usable != slot.addresses {
                slot.next = 0;
                slot.retry = None;
                slot.addresses = usable;
            }
        }
    }
}
