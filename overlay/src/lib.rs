//! One node of the mesh: discovery and traversal composed into a desired host state.
//!
//! # What a node is
//! A node knows *who* is in the mesh ([`peer_discovery::Directory`]) and *how* to reach them
//! ([`nat_traversal::Traversal`]). This crate lets the two speak, and derives from both what the host must
//! hold: a [`mesh_types::HostPlan`] with the device, WireGuard's peers, routes and rules. The plan is desired
//! state, never a list of commands; its generation rises only when it differs.
//!
//! Beside the plan a node speaks with other nodes inside the tunnel (`control`, `gossip`), announces itself
//! (`announce`), vouches for others where it holds the authority's key (`authority`, `join`), changes its own
//! key (`rotation`), relays for others where it may (`relay`), and answers people (`command`, `findings`, `view`).
//!
//! # Order
//! Every verb hands its input to the child or module it concerns, then *settles*: events of the directory are
//! taken first (who is a peer decides whom the traversal may know), then those of the traversal, until both are
//! quiet; then the plan is built anew if anything it depends on changed. Nothing a child says is passed
//! upwards as such. The shell polls events before transmits: what must be on disk first is an event.
//!
//! # Invariants
//! 1. A peer's ranges in the plan are the directory's, which come from an authority or the file.
//! 2. Every prefix of a peer has a blackhole twin; a peer that is down never makes packets go out in clear.
//! 3. A message inside the tunnel counts only from the very overlay address of a peer, port 22511.
//! 4. A seq, an epoch, a used ticket is on disk before anything that depends on it is sent.
//! 5. No clock, no sockets, no ambient randomness: one seed, one run.

#![forbid(unsafe_code)]

mod announce;
mod authority;
mod budget;
mod calls;
mod children;
mod command;
mod config;
mod control;
mod doctor;
mod event;
mod findings;
mod gossip;
mod join;
mod kubernetes;
mod netcheck;
mod overlay;
mod peer;
mod peers;
mod plan;
mod publish;
mod relay;
mod rotation;
mod sleep;
mod snapshot;
mod state;
mod turn;
mod view;

pub use config::{Config, Identity, Kubernetes};
pub use doctor::{Diagnosis, Reach, Tried};
pub use event::{Event, Reply};
pub use nat_traversal::{Hairpin, Lifetime};
pub use overlay::Overlay;
pub use snapshot::{
    ClusterSnapshot, CniPlan, Finding, NetcheckSnapshot, NodeSnapshot, PathKind, PathSnapshot,
    PeerSnapshot, PeerState, PetitionSnapshot, Severity, Snapshot,
};
