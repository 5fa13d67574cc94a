//! The kernel backend against the real module, inside the virtual machine, as root:
//! `cargo test --test kernel --no-run`, then `scripts/vm` with the binary it names and `--test-threads=1`.
#![expect(
    clippy::unwrap_used,
    reason = "a failed step of the set-up shall end the test"
)]
#![expect(clippy::disallowed_methods, reason = "these tests measure real time")]

#[expect(dead_code, reason = "the rest of the cells serves the other tests")]
#[path = "../netns/cell.rs"]
mod cell;
#[expect(dead_code, reason = "the rest of the lab serves the other tests")]
#[path = "../lab/lab.rs"]
mod lab;
#[expect(dead_code, reason = "the rest of the scenes serves the other tests")]
#[path = "../netns/scene.rs"]
mod scene;

/// What carries the tunnels of these tests.
pub const BACKEND: &str = "kernel";

mod agent;
mod device;
mod failover;
mod harness;
mod initiations;
mod matrix;
#[path = "../netns/narrow.rs"]
mod narrow;
mod ranges;
mod session;
mod shared_port;
#[expect(dead_code, reason = "the rest of the scene serves the other tests")]
#[path = "../netns/turn.rs"]
mod turn;
