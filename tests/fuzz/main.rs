//! Every parser that reads what others sent or stored, against arbitrary and against slightly wrong bytes.
//!
//! Each target runs for `FARSPAN_FUZZ_SECONDS` (5 unless set; `scripts/soak` raises it) from a seed that
//! differs every time; a failure prints the seed, and `FARSPAN_FUZZ_SEED=n` repeats exactly that input.

mod cluster;
mod codec;
mod datagrams;
mod harness;
mod node;
mod records;
mod samples;
mod turn;
