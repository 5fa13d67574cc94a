//! A simulated internet in virtual time: one seed, one run.
//!
//! A [`Network`] is a set of segments (LANs, and the core of the internet) joined by routers. Hosts
//! attach to segments by links; a link has latency, jitter, loss, reordering and duplication, counts
//! what passes and can be tapped: these counts, not what an agent says of itself, are the oracle of a
//! test. A router translates by any RFC 4787 behaviour, filters statefully, or merely routes; routers
//! chain, so a home NAT behind a carrier's is two of them. Datagrams are carried hop by hop through one
//! event queue ordered by `(Instant, sequence)`, so crossing packets meet NAT state as it is at that
//! moment.
//!
//! [`tunnel::Tunnel`] models WireGuard driven by a [`mesh_types::plan::TunnelPlan`]: real timers, queues,
//! sessions and cryptokey routing, with message types and sizes of the real protocol and no
//! cryptography.
//!
//! Invariants: nothing here reads a clock (but [`start`]), draws ambient randomness or iterates a hash
//! map; equal seeds and equal calls give equal runs.
//!
//! Not modelled: bandwidth, fragmentation, ICMP, port overloading (RFC 4787 REQ-3 forbids it).

#![forbid(unsafe_code)]

mod firewall;
mod flow;
mod link;
mod nat;
mod network;
mod random;
mod router;
mod topology;
pub mod tunnel;

pub use firewall::FirewallSpec;
pub use flow::Timeouts;
pub use link::{Counters, Direction, LinkSpec, Tapped};
pub use nat::{Allocator, Filtering, Mapping, NatSpec};
pub use network::{Delivery, Network, Unreachable};
pub use random::Random;
pub use router::{RouterSpec, Site, Translation};
pub use topology::{Families, HostId, LinkId, RouterId, SegmentId};

/// An origin for virtual time. [`std::time::Instant`] has no constant, so one real reading is taken; only
/// differences to it matter.
#[expect(
    clippy::disallowed_methods,
    reason = "an Instant cannot be made otherwise"
)]
pub fn start() -> std::time::Instant {
    std::time::Instant::now()
}
