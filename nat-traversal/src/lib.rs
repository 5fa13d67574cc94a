//! How two nodes reach each other through whatever lies between

#![forbid(unsafe_code)]

mod activity;
mod agent;
mod api;
mod budget;
mod candidate;
mod flood;
mod join;
mod nat_kind;
mod nat_test;
mod node;
mod probe;
mod remote;
mod replay;
mod schedule;
mod score;
mod seal;
mod servers;
mod stun;
mod traversal;

pub use api::{
    CandidateReport, Config, Counters, Event, JoinRequest, Path, PathKind, PeerReport, PeerSpec,
    Refused,
};
pub use traversal::Traversal;
