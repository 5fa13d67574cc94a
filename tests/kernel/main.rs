//! The kernel backend against the real module, inside the virtual machine, as root:
//! `cargo test --test kernel --no-run`, then `scripts/vm` with the binary it names and `--test-threads=1`.

mod device;
mod harness;
mod ranges;
mod session;
mod shared_port;
