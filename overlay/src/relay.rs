//! This node as a relay for others: whether it is one, and what that means for the host.
//!
//! It relays where its operator wants it to, its membership allows it, and strangers reach it: a probe that
//! nobody asked for has arrived. What the host's kernel does not forward is forwarded by the agent.

use std::collections::BTreeSet;

use mesh_types::address::is_global;
use mesh_types::plan::Alias;
use mesh_types::report::Backend;
use mesh_types::{CandidateKind, Filtering, Mapping, NatReport, Now, SocketId};
use nat_traversal::RelaySettings;

use crate::overlay::Overlay;

/// Do strangers reach this node?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Yes,
    No,
    /// Not told yet, or being told afresh: nothing changes.
    Unknown,
}

impl Overlay {
    /// Starts and stops relaying as wishes and verdicts change.
    pub(crate) fn refresh_relay(&mut self, now: Now) {
        let membership = self.directory.own_membership();
        let allowed = membership.is_none_or(|member| member.may_relay);
        let wanted = self.config.may_relay && allowed && !self.revoked;
        let serves = wanted
            && match self.reachable() {
                Verdict::Yes => true,
                Verdict::No => false,
                Verdict::Unknown => self.relays.is_some(),
            };
        let relays = serves.then_some(RelaySettings {
            ports: self.config.relay_ports,
            pair_rate: self.config.pair_rate,
            node_rate: self.config.node_rate,
        });
        if relays == self.relays {
            return;
        }
        self.relays = relays;
        self.traversal.set_relay(relays, now);
        self.announcement_changed(now);
        self.stale.frame();
    }

    /// A stranger's probe proves it. So does an answer from a port that was never asked, where the host has an
    /// address of the internet itself: a host's own firewall that is closed lets only the port asked answer.
    fn reachable(&self) -> Verdict {
        let NatReport {
            mapping, filtering, ..
        } = self.traversal.nat();
        let own = || {
            let endpoints = self.traversal.endpoints().iter();
            let mut hosts = endpoints.filter(|own| own.kind == CandidateKind::Host);
            hosts.any(|own| own.address.is_ipv4() && is_global(&own.address.ip()))
        };
        match (mapping, filtering) {
            (Mapping::AddressDependent | Mapping::AddressAndPortDependent, _)
            | (_, Filtering::AddressAndPortDependent) => Verdict::No,
            (Mapping::Unknown, _) | (_, Filtering::Unknown) => Verdict::Unknown,
            (Mapping::EndpointIndependent, Filtering::EndpointIndependent) => Verdict::Yes,
            (Mapping::EndpointIndependent, Filtering::AddressDependent) => {
                if own() {
                    Verdict::Yes
                } else {
                    Verdict::No
                }
            }
        }
    }

    /// Sockets of the ports that are lent to members.
    pub(crate) fn relay_sockets(&self) -> impl Iterator<Item = SocketId> {
        self.traversal
            .relay_ports()
            .into_iter()
            .map(SocketId::Relay)
    }

    /// Datagrams of peers that may still be on their way through relays.
    pub(crate) fn aliases(&self) -> BTreeSet<Alias> {
        let kernel = self.config.backend == Backend::Kernel;
        let mut out = BTreeSet::new();
        for id in self.peers.met() {
            let Some(record) = self.peers.get(id) else {
                continue;
            };
            let path = self.traversal.path(id).map(|path| path.remote);
            let late = self.traversal.late(id).into_iter();
            let all = late.filter_map(|late| Some(Alias { late, path: path? }));
            out.extend(all.filter(|alias| {
                let drops = kernel && alias.late.is_ipv4() != alias.path.is_ipv4();
                !drops || record.late_until.is_none()
            }));
        }
        out
    }
}
