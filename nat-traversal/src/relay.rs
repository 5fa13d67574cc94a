//! Node relays: members that forward ciphertext for two others (`server`), the ends that bind to them
//! (`client`), and the choice among several (`choice`).
//!
//! A relay lends each member one port. To reach B through R, A sends to R's port for B; B sends to R's port for
//! A. Both bind in two steps: asked at its main port, R names the port and gives a nonce over A's address and the
//! time; shown the nonce from A's WireGuard port at the port itself, R knows A's mapping where data will flow.
//! What an attacker replays from elsewhere carries the nonce of another address. The data path is the host's
//! ([`mesh_types::plan::RelayPair`]); an end's probes travel it like data, so a relayed path is proven and
//! measured as every other is.

use std::time::Duration;

pub(crate) mod choice;
pub(crate) mod client;
pub(crate) mod server;

/// An end that is bound waits so long at least for the other one, then leaves the relay without a word.
pub(crate) const PATIENCE: Duration = Duration::from_secs(4);
