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
mod engine;
mod failover;
mod harness;
mod initiations;
#[expect(dead_code, reason = "programs are met where they are built")]
#[path = "../../data-plane/tests/interop/mod.rs"]
mod interop;
mod matrix;
#[path = "../netns/narrow.rs"]
mod narrow;
#[expect(
    dead_code,
    reason = "the rest of the lab serves the engine's own tests"
)]
#[path = "../../data-plane/tests/netns/mod.rs"]
mod netns;
mod ranges;
mod session;
mod shared_port;
#[expect(dead_code, reason = "the rest of the scene serves the other tests")]
#[path = "../netns/turn.rs"]
mod turn;
