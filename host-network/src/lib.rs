//! What Linux must be told: links, addresses, routes, rules, WireGuard, nftables.
//!
//! [`Host`] makes the kernel equal to a [`mesh_types::HostPlan`], again and again: it reads what is
//! there, compares, and sends only what differs, so a crash, a missed event or a foreign change heals
//! the same way. [`Wireguard`] does so for the kernel's WireGuard device and never drops a session it
//! can keep; [`Demux`] lends the WireGuard port to the agent's own socket, and other ports to WireGuard.
//!
//! Everything is netlink; no other program is started. All of it works in the network namespace of the
//! thread that opens it. Nothing is touched that is not ours: routes of our protocol in our table, rules
//! with our priority, table and mark, the nftables table of our name, the device of our name.
//!
//! [`Wireguard`] and [`Demux`] are synchronous: the kernel answers configuration requests before the
//! system call that carries them returns.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "the kernel's messages are read for the few attributes that matter; the enums are open"
)]

mod address;
mod changes;
mod clash;
mod converge;
mod describe;
mod error;
mod facts;
mod host;
mod initiations;
mod link;
mod netlink;
mod nft;
mod relay;
mod remove;
mod route;
mod rule;
mod sys;
mod underlay;
mod wireguard;

pub use changes::Change;
pub use describe::describe;
pub use error::HostError;
pub use host::Host;
pub use initiations::Initiations;
pub use nft::Demux;
pub use remove::Removed;
pub use wireguard::Wireguard;
