//! One node of the mesh: discovery and traversal composed into a desired host state.

#![forbid(unsafe_code)]

mod config;
mod event;
mod overlay;
mod snapshot;

pub use config::{Config, Identity};
pub use event::{Event, Reply};
pub use overlay::Overlay;
pub use snapshot::{
    Finding, NetcheckSnapshot, NodeSnapshot, PathKind, PathSnapshot, PeerSnapshot, PeerState,
    Severity, Snapshot,
};
