//! Real agents in network namespaces, behind real NATs. Needs root.
#![expect(clippy::disallowed_methods, reason = "these tests measure real time")]

#[path = "../lab/lab.rs"]
mod lab;

mod nats;
