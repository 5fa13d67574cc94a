//! What the path in use carries: probes of its sizes, see [`crate::path_mtu`].

use std::net::SocketAddr;
use std::time::Instant;

use tracing::debug;

use super::PathAgent;
use crate::api::Event;
use crate::node::{Node, Purpose};

impl PathAgent {
    /// The largest packet inside the tunnel that the path carries, where that is less than the device's MTU.
    pub(crate) fn path_mtu(&self) -> Option<u16> {
        self.mtu.limit()
    }

    /// The same as a search of this path found it, unmoved by the next one until it ends.
    pub(crate) fn firm_path_mtu(&self) -> Option<u16> {
        self.mtu.firm_limit()
    }

    pub(super) fn run_mtu(&mut self, node: &mut Node, now: Instant) {
        if self.is_suspect() {
            return;
        }
        // Datagrams of a port that was lent to the tunnel may be fragmented: its probes would tell nothing.
        let own = self.path().filter(|path| path.local_port.is_none());
        let Some((remote, rtt)) = own.map(|path| (path.remote, path.rtt)) else {
            return;
        };
        let before = self.mtu_limits();
        self.mtu.set_active(self.activity.is_active(now));
        for size in self.mtu.run(rtt, now) {
            node.counters.add("mtu-probes-sent");
            self.send_probe(node, remote, Purpose::Mtu(size), now);
        }
        self.tell_mtu(node, before);
    }

    /// A padded probe was answered.
    pub(crate) fn on_mtu_answer(
        &mut self,
        node: &mut Node,
        address: SocketAddr,
        size: u16,
        now: Instant,
    ) {
        self.heard(node, address, now);
        self.probes_answered += 1;
        if self.path().is_some_and(|path| path.remote == address) {
            let before = self.mtu_limits();
            self.mtu.answered(size, now);
            self.tell_mtu(node, before);
        }
    }

    pub(super) fn mtu_deadline(&self) -> Option<(Instant, &'static str)> {
        let lent = self.path().is_none_or(|path| path.local_port.is_some());
        let at = self
            .mtu
            .deadline()
            .filter(|_| !lent && !self.is_suspect())?;
        Some((at, "path MTU"))
    }

    fn mtu_limits(&self) -> [Option<u16>; 2] {
        [self.mtu.limit(), self.mtu.firm_limit()]
    }

    fn tell_mtu(&self, node: &mut Node, before: [Option<u16>; 2]) {
        let limits = self.mtu_limits();
        if limits != before {
            let [limit, firm] = limits;
            debug!(peer = %self.id, ?limit, ?firm, "Path MTU changed");
            node.counters.add("path-mtu-changes");
            node.events
                .push_back(Event::PathMtuChanged { peer: self.id });
        }
    }
}
