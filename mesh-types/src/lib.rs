//! The vocabulary of the mesh: every noun that more than one crate speaks of.
//!
//! Nothing here does I/O or reads a clock. Values are parsed at the border into types whose invalid
//! states cannot exist; what crosses a network or a disk is encoded by [`message`], [`record`],
//! [`token`] and [`state`], all of it CBOR with integer keys (RFC 8949 4.2.1), all of it fuzzed.
//!
//! Two records are never mixed: a [`record::Membership`] is said by an authority (who may be here and
//! carry what), a [`record::Announcement`] is said by the node itself (where it can be reached).

#![forbid(unsafe_code)]

pub mod address;
pub mod annotations;
pub mod candidate;
pub mod cluster;
pub mod command;
pub mod consts;
pub mod datagram;
pub mod key;
pub mod message;
pub mod observation;
pub mod plan;
mod prefixes;
pub mod record;
pub mod report;
pub mod sealed;
pub mod state;
pub mod table;
pub mod token;
pub mod turn;
mod wire;

pub use candidate::{Allocation, Candidate, CandidateKind, Filtering, Mapping, NatReport};
pub use datagram::{Now, SocketId, Transmit};
pub use ipnet::{IpNet, Ipv4Net, Ipv6Net};
pub use key::{
    AuthorityKey, DomainId, IdentityKey, IdentitySecret, Idx, NodeKey, PeerId, PresharedKey, WgKey,
    WgSecret,
};
pub use message::Message;
pub use observation::{ConfigPeer, Observation, Source};
pub use plan::HostPlan;
pub use prefixes::Prefixes;
pub use record::{Announcement, Membership, Signed, Tombstone};
pub use report::{Applied, HostReport, TunnelReport};
pub use state::State;
pub use table::Table;
