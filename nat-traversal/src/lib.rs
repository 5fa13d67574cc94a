//! How two nodes reach each other through whatever lies between

#![forbid(unsafe_code)]

mod api;
mod traversal;

pub use api::{
    CandidateReport, Config, Counters, Event, JoinRequest, Path, PathKind, PeerReport, PeerSpec,
    Refused,
};
pub use traversal::Traversal;
