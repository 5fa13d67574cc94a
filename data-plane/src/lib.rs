//! The userspace WireGuard engine: one TUN device, one UDP port for both families, and one thread that
//! carries packets between them in batches.
//!
//! # How a packet travels
//!
//! *Out.* The TUN device hands over super-packets of up to 64 KiB (`vnet_hdr`, TSO and USO). The worker drains
//! it without blocking until it is empty or 256 KiB are read, looks up the peer by allowed-IPs once a
//! super-packet (`routes`), cuts the super-packet into segments in place (`segment`) and puts each straight
//! into the next segment of a UDP GSO message (`outbox`). The turn ends with one flush, which seals them all together
//! (`batch-aead`) and sends them.
//!
//! *In.* `recvmmsg` with UDP GRO fills fixed slots. Datagrams shaped like STUN go up; WireGuard messages find
//! their session by receiver index (`core`), are opened together in an arena, checked against the sender's ranges,
//! and merged with their neighbours of the same flow into super-packets (`inbox`) that are written to the TUN.
//!
//! *Handshakes* cost as much as hundreds of packets. Each turn does a message or two of them, after the packets
//! (`core::shakes`); the others wait, bounded, and those of one sender behind each other.
//!
//! *Too much.* Where buffers stay full, whoever sends most is dropped first: in `core::crowd` what comes, in
//! `sender` what goes.
//!
//! *Lent sockets.* A socket that somebody else opened can carry single peers: what goes to their addresses leaves
//! from it, what comes to it is opened as if it had come to the tunnel's port (`lent`).
//!
//! *Relayed.* [`Relay`] forwards between pairs of members on a thread of its own, where the kernel does not.
//!
//! *Behind TURN.* [`Turn`] keeps connections to TURN servers, each with a thread, and gives peers behind them
//! loopback addresses. Either tunnel sends there as anywhere.
//!
//! # Invariants
//!
//! - One loop owns all packets: no channel, lock, allocation or task a packet. `core::Core` sits behind one
//!   lock that the worker takes once a turn; `apply` and `report` take it between turns.
//! - Packets of one flow never overtake each other, and what is merged was verified by its inner checksum.
//! - A session belongs to one peer and one of our own keys. Sending prefers the newest key with a live session,
//!   so that neither our rotation nor a peer's loses packets.
//! - Every offload can be missing or fail at run time; the engine then goes on without it.
//! - No bytes from outside can panic, allocate without bound, or spin.
//!
//! # What is left out of WireGuard
//!
//! ECN is not copied between inner and outer headers (RFC 6040 compatibility mode: outer packets are Not-ECT).

pub mod core;
pub mod counters;
mod engine;
pub mod inbox;
mod lent;
pub mod outbox;
pub mod packet;
pub mod relay;
pub mod segment;
mod sender;
mod tun;
pub mod turn;
mod udp;
mod worker;

pub use engine::{ControlDatagram, Engine, EngineError, Offload, Settings};
pub use lent::Adopted;
pub use relay::Relay;
pub use turn::{Turn, TurnEvent};
pub use udp::forbid_fragments;
