//! Stateful filters that translate nothing: IPv6 routers and hosts.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Instant;

use crate::flow::{Flow, Timeouts};
use crate::nat::Filtering;

/// A stateful filter: who may send in is decided by what was sent out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FirewallSpec {
    /// Whose packets are let in.
    pub filtering: Filtering,
    /// How long a flow is remembered.
    pub timeouts: Timeouts,
}

impl FirewallSpec {
    /// "Established only", with Linux' timeouts.
    pub const ESTABLISHED: Self = Self {
        filtering: Filtering::AddressAndPortDependent,
        timeouts: Timeouts::LINUX,
    };
}

/// Its state.
#[derive(Debug)]
pub(crate) struct Firewall {
    spec: FirewallSpec,
    flows: BTreeMap<(SocketAddr, SocketAddr), Flow>,
}

impl Firewall {
    pub(crate) fn new(spec: FirewallSpec) -> Self {
        Self {
            spec,
            flows: BTreeMap::new(),
        }
    }

    pub(crate) fn forget(&mut self) {
        self.flows.clear();
    }

    pub(crate) fn outbound(&mut self, local: SocketAddr, remote: SocketAddr, now: Instant) {
        let timeouts = self.spec.timeouts;
        match self.flows.get_mut(&(local, remote)) {
            Some(flow) if flow.alive(now, &timeouts) => flow.outbound(now),
            Some(_) | None => {
                if self.flows.len() > 256 {
                    self.flows.retain(|_, flow| flow.alive(now, &timeouts));
                }
                self.flows.insert((local, remote), Flow::new(now));
            }
        }
    }

    pub(crate) fn admits(&mut self, local: SocketAddr, remote: SocketAddr, now: Instant) -> bool {
        let timeouts = self.spec.timeouts;
        if let Some(flow) = self.flows.get_mut(&(local, remote))
            && flow.alive(now, &timeouts)
        {
            flow.inbound(now, &timeouts);
            return true;
        }
        let lowest = SocketAddr::new([0, 0, 0, 0].into(), 0);
        let mut live = self
            .flows
            .range((local, lowest)..)
            .take_while(|((from, _), _)| *from == local)
            .filter(|(_, flow)| flow.alive(now, &timeouts));
        match self.spec.filtering {
            Filtering::EndpointIndependent => live.next().is_some(),
            Filtering::AddressDependent => live.any(|((_, to), _)| to.ip() == remote.ip()),
            Filtering::AddressAndPortDependent => false,
        }
    }
}
