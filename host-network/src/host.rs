//! The host beside WireGuard: device, addresses, routes, rules, packet filters.

use std::collections::BTreeSet;

use mesh_types::plan::RelayPair;
use mesh_types::{Applied, HostPlan, HostReport};
use tokio::sync::mpsc;

use crate::changes::{Change, Own, watch};
use crate::facts::Ranges;
use crate::netlink::Routing;
use crate::nft::Tables;
use crate::relay::Relaying;
use crate::remove::Removed;
use crate::underlay::Underlay;
use crate::{HostError, clash, converge, facts, nft, remove};

/// The host's network in one namespace.
#[derive(Debug)]
pub struct Host {
    interface: String,
    routing: Routing,
    /// A kernel without nftables is an error only where a plan wants rules.
    tables: Result<Tables, HostError>,
    ranges: Ranges,
    relaying: Relaying,
    underlay: Underlay,
    own_filters: Own,
    own_ports: BTreeSet<u16>,
    notices: Option<mpsc::UnboundedReceiver<Change>>,
}

impl Host {
    /// Opens the netlink connections, in the namespace of the calling thread, inside a tokio runtime. Fails in one
    /// sentence where the privilege to change anything is missing.
    pub async fn new(interface: &str) -> Result<Self, HostError> {
        let routing = Routing::open()?;
        may_change(&routing).await?;
        let tables = Tables::open();
        let own_filters = Own::default();
        let filters = tables.as_ref().ok().map(|tables| {
            own_filters.add(tables.port());
            own_filters.clone()
        });
        let notices = watch(routing.port, filters)
            .map_err(|error| HostError::from_io("subscribe to netlink notices", &error))?;
        Ok(Self {
            interface: interface.to_owned(),
            routing,
            tables,
            ranges: Ranges::default(),
            relaying: Relaying::new(),
            underlay: Underlay::default(),
            own_filters,
            own_ports: BTreeSet::new(),
            notices: Some(notices),
        })
    }

    /// Makes the kernel equal to the plan. Idempotent: a second time nothing is sent that changes anything. Works
    /// without the device as well: then its routes are missing and their blackhole twins are used.
    pub async fn converge(&mut self, plan: &HostPlan) -> Applied {
        self.ranges = converge::ranges(plan);
        let Self {
            routing,
            tables,
            relaying,
            underlay,
            own_ports,
            ..
        } = self;
        let mut failures = converge::filters(tables, plan, own_ports);
        failures.extend(converge::converge(routing, tables, relaying, underlay, plan).await);
        Applied {
            generation: plan.generation,
            failures: failures.iter().map(HostError::to_string).collect(),
            sockets: BTreeSet::new(),
        }
    }

    /// Repeats what the kernel has forgotten of the last plan's `narrow` paths; `mark` is that of outer packets.
    /// Cheap where it has not, and free without any.
    pub fn hold_narrow(&self, mark: u32) -> Result<(), HostError> {
        self.underlay.hold(mark)
    }

    /// What the host looks like beside our own work. `port_moved` is left to the caller.
    pub async fn report(&mut self) -> HostReport {
        let tables = self.tables.as_mut().ok();
        facts::report(&self.routing, tables, &self.interface, &self.ranges).await
    }

    /// Relayed pairs of the last plan that the kernel does not carry, for userspace to carry them. Why any is here
    /// that the kernel could carry elsewhere, [`Host::relay_obstacles`] says.
    pub fn left_to_userspace(&self) -> &BTreeSet<RelayPair> {
        &self.relaying.left
    }

    /// Why pairs are left to userspace, one sentence each.
    pub fn relay_obstacles(&self) -> &[String] {
        &self.relaying.obstacles
    }

    /// Datagrams, and bytes of IP, that the kernel forwarded for each pair since the pair came, both directions
    /// together; `None` where that cannot be read.
    pub fn relayed(&mut self) -> Option<Vec<(RelayPair, u64, u64)>> {
        let links: Vec<_> = self.relaying.links.iter().copied().collect();
        match &mut self.tables {
            Ok(tables) if !links.is_empty() => nft::traffic(tables, &links).ok(),
            Ok(_) | Err(_) => Some(Vec::new()),
        }
    }

    /// Notices of changes, from the moment the host was opened. The receiver can be taken once; later calls return
    /// a closed one.
    pub fn changes(&mut self) -> mpsc::UnboundedReceiver<Change> {
        self.notices
            .take()
            .unwrap_or_else(|| mpsc::unbounded_channel().1)
    }

    /// Changes to our table that come from this netlink address are our own as well, and no news.
    pub fn change_filters_from(&mut self, port: u32) {
        self.own_filters.add(port);
    }

    /// UDP ports of the caller's sockets beside those that a plan names: where [`HostPlan::mark_input`] is set, what comes
    /// to them is marked as well, from the next [`Self::converge`] on.
    pub fn own_ports(&mut self, ports: BTreeSet<u16>) {
        self.own_ports = ports;
    }

    /// Takes away everything of ours, and says what it was.
    pub async fn remove(&mut self) -> Removed {
        let tables = self.tables.as_mut().ok();
        remove::remove(&mut self.routing, tables, &self.interface).await
    }

    /// Says in one sentence who else uses our table or mark bits (`mark`, `mask`), if anybody does.
    pub async fn clash(&mut self, fwmark: (u32, u32)) -> Option<String> {
        clash::clash(&self.routing, fwmark).await
    }

    /// Requests that change something, sent since the host was opened.
    pub fn requests(&self) -> u64 {
        let batches = self.tables.as_ref().map_or(0, |tables| tables.changes);
        self.routing.changes + batches
    }
}

/// Asks for a change that changes nothing: the kernel checks the privilege first.
async fn may_change(routing: &Routing) -> Result<(), HostError> {
    let result = routing.handle.link().del(u32::MAX >> 1).execute().await;
    match result {
        Err(rtnetlink::Error::NetlinkError(message))
            if message.to_io().raw_os_error() == Some(libc::EPERM) =>
        {
            Err(HostError::NotPermitted {
                tried: "change the host's network".to_owned(),
                capability: "CAP_NET_ADMIN",
            })
        }
        _ => Ok(()),
    }
}
