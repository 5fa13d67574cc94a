//! What a caller needs that seals and opens many packets at once.

use std::sync::Arc;

use batch_aead::Key;

use super::errors::WireGuardError;
use super::timers::TimerName;
use super::{Tunn, TunnResult, N_SESSIONS};

/// Packets behind the newest of a session that are still taken.
pub const REPLAY_WINDOW: usize = super::session::N_BITS as usize;

/// Where a packet stands among those that a session sends.
#[derive(Debug)]
pub struct Reserved<'a> {
    /// The peer's index of the session.
    pub receiver: u32,
    /// The packet's counter; no other has it.
    pub counter: u64,
    /// Seals it.
    pub key: &'a Arc<Key>,
}

impl Tunn {
    /// As [`Tunn::encapsulate`] of a packet of so many bytes, but leaves header and sealing to the caller. `None`
    /// where there is no session.
    pub fn reserve(&mut self, len: usize) -> Option<Reserved<'_>> {
        self.sessions[self.current % N_SESSIONS].as_ref()?;
        self.timer_tick(TimerName::TimeLastPacketSent);
        // Exclude Keepalive packets from timer update.
        if len > 0 {
            self.timer_tick(TimerName::TimeLastDataPacketSent);
        }
        self.tx_bytes += len;
        let session = self.sessions[self.current % N_SESSIONS].as_ref()?;
        let (receiver, counter, key) = session.reserve();
        Some(Reserved {
            receiver,
            counter,
            key,
        })
    }

    /// The key to open a data packet with, if its session is there and its counter can still be taken.
    pub fn key_to_open(&self, receiver: u32, counter: u64) -> Result<&Key, WireGuardError> {
        let session = self.sessions[receiver as usize % N_SESSIONS].as_ref();
        let session = session.ok_or(WireGuardError::NoCurrentSession)?;
        session.key_to_open(receiver, counter)
    }

    /// What [`Tunn::decapsulate`] does with a data packet after its tag was found right.
    pub fn opened<'a>(
        &mut self,
        receiver: u32,
        counter: u64,
        packet: &'a mut [u8],
    ) -> TunnResult<'a> {
        let session = self.sessions[receiver as usize % N_SESSIONS].as_ref();
        let marked = session
            .ok_or(WireGuardError::NoCurrentSession)
            .and_then(|session| session.opened(receiver, counter));
        if let Err(error) = marked {
            return TunnResult::Err(error);
        }
        self.set_current_session(receiver as usize);
        self.timer_tick(TimerName::TimeLastPacketReceived);
        self.validate_decapsulated_packet(packet)
    }
}
