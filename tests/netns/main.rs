//! Real agents in network namespaces, behind real NATs. Needs root, and the tools `scripts/test` installs.
#![expect(clippy::disallowed_methods, reason = "these tests measure real time")]

#[expect(dead_code, reason = "the lab serves other tests, too")]
#[path = "../lab/lab.rs"]
mod lab;

/// What carries the tunnels of these tests.
pub const BACKEND: &str = "userspace";

mod cell;
mod closed;
mod host;
mod matrix;
mod membership;
mod mtu;
mod narrow;
mod nats;
mod netcheck;
mod paths;
mod plain;
mod portmap;
mod refusals;
mod relayed;
mod rotation;
mod scene;
mod strangers;
mod turn;
mod turn_cases;
mod verbs;
mod weapon;
