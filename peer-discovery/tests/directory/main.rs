//! The directory against every attack that it must answer.

mod common;
mod configured;
mod gossip;
mod increments;
mod kubernetes;
mod members;
