//! Who is in the mesh, and who says so.
//!
//! # Algorithm
//! Two kinds of record are held, each in its newest valid version per node: what authorities say
//! (memberships, tombstones) and what nodes say of themselves (announcements). Beside them stand the
//! `[[peer]]` entries of the local file and the identities pinned to them. Everything else is a *view*
//! that is computed from these: a record comes in, is admitted or refused by the rules of `records`, and
//! where anything changed `view` decides anew who is a peer, under which key, with which ranges.
//!
//! # Invariants
//! 1. A record counts by its signature, never by who carried it. Gossip and disk vouch for nothing.
//! 2. Ranges come from the file or from a membership, never from an announcement.
//! 3. No two peers share a key, and no two peers' ranges overlap. Precedence: this node's own ranges, then
//!    `[[peer]]` entries in the order of the file, then external peers of the cluster (outside of Nodes' ranges), then
//!    memberships by the order of the authorities in the configuration, then by serial (older first), then Nodes by age. What loses is refused and reported, never moved silently.
//! 4. A configured key gets an identity only from an announcement of that very key which came through that
//!    key's own session. From then on that identity alone may change the key.
//! 5. Versions only rise. A tombstone voids every membership up to its serial, however often it is shown.
//! 6. Memory is bounded by [`NODES_MAX`]; nobody without a membership or a `[[peer]]` entry takes any.
//!
//! # Clocks
//! Serials and seqs are Unix milliseconds at best: a node whose clock was wrong once goes on above its old
//! seq for ever. So a version from the future is believed (refusing it would lock that node out until
//! the day comes) and reported as [`Reason::Future`]: one of the two clocks is wrong. `not_after` is compared with our own wall
//! clock; a membership that looks expired is set aside, not forgotten, because clocks are set back.
//!
//! # Kubernetes
//! In a cluster the API server vouches: who has proven on a Node object to be that Node is a member, and what it may
//! carry follows from the object and the policy (`kubernetes`). Its announcement is a record like any other, and
//! gossip carries newer ones; the membership has no signature and is passed on by nobody.

#![forbid(unsafe_code)]

mod address;
mod describe;
mod directory;
mod gossip;
mod kubernetes;
mod peer;
mod ranges;
mod records;
mod refusal;
mod view;

pub use directory::{Config, Directory};
pub use kubernetes::ClusterConfig;
pub use peer::{Event, FindError, Peer};
pub use records::{NODES_MAX, RECORD_MAX};
pub use refusal::{Reason, Refusal};
