//! The kernel backend against the real module. Runs inside the virtual machine (`scripts/vm`), as root:
//! `scripts/vm "$(cargo test --test kernel --no-run --message-format=json | ...executable)" --test-threads=1`.

mod device;
mod harness;
mod ranges;
mod session;
mod shared_port;
