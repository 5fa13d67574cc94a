//! What a caller needs that seals and opens many packets at once.

// Ours, so the silence of the crate is not for it.
#![deny(unused, clippy::all)]

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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use batch_aead::Message;
    use rand_core::OsRng;

    use super::*;
    use crate::x25519::{PublicKey, StaticSecret};

    fn written(result: TunnResult) -> Vec<u8> {
        match result {
            TunnResult::WriteToNetwork(bytes) => bytes.to_vec(),
            other => panic!("{:?}", other),
        }
    }

    /// With a session, seven seconds ago.
    fn connected() -> (Tunn, Tunn) {
        let secrets = [0, 1].map(|_| StaticSecret::random_from_rng(OsRng));
        let publics = [0, 1].map(|n| PublicKey::from(&secrets[n]));
        let [one, two] = secrets;
        let mut a = Tunn::new(one, publics[1], None, None, 1, None);
        let mut b = Tunn::new(two, publics[0], None, None, 2, None);
        let mut room = [0; 256];
        let initiation = written(a.format_handshake_initiation(&mut room, false));
        let response = written(b.decapsulate(None, &initiation, &mut room));
        let keepalive = written(a.decapsulate(None, &response, &mut room));
        assert!(matches!(
            b.decapsulate(None, &keepalive, &mut room),
            TunnResult::Done
        ));
        for tunn in [&mut a, &mut b] {
            tunn.timers[TimerName::TimeCurrent] = Duration::from_secs(7);
        }
        (a, b)
    }

    /// Sends a packet of a to b, by the halves or not.
    fn carry(a: &mut Tunn, b: &mut Tunn, packet: &[u8], halves: bool) -> String {
        let (mut datagram, mut room) = (vec![0; packet.len() + 148], [0; 256]);
        if !halves {
            let datagram = written(a.encapsulate(packet, &mut datagram));
            return format!("{:?}", b.decapsulate(None, &datagram, &mut room));
        }
        let place = a.reserve(packet.len()).expect("a session");
        let mut bytes = [packet, &[0; 16]].concat();
        let (receiver, counter) = (place.receiver, place.counter);
        let key = place.key.clone();
        batch_aead::reference().seal(&mut [Message {
            key: &key,
            counter,
            bytes: &mut bytes,
        }]);
        let key = b.key_to_open(receiver, counter).expect("its session");
        let mut authentic = [false];
        let message = Message {
            key,
            counter,
            bytes: &mut bytes,
        };
        batch_aead::reference().open(&mut [message], &mut authentic);
        assert!(authentic[0]);
        format!(
            "{:?}",
            b.opened(receiver, counter, &mut bytes[..packet.len()])
        )
    }

    /// All but the moment it began.
    fn state(tunn: &Tunn) -> (String, usize, usize, usize) {
        let timers = format!("{:?}", tunn.timers);
        let (start, rest) = timers.split_once("time_started").unwrap();
        let (_, rest) = rest.split_once("timers").unwrap();
        (
            format!("{}{}", start, rest),
            tunn.tx_bytes,
            tunn.rx_bytes,
            tunn.current,
        )
    }

    #[test]
    fn the_halves_do_what_the_whole_does_to_packets_timers_and_counts() {
        let mut packet = [0; 40];
        packet[0] = 0x45;
        packet[3] = 40;
        for packet in [&packet[..], &[], &[1, 2, 3]] {
            let [whole, halves] = [false, true].map(|halves| {
                let (mut a, mut b) = connected();
                let got = carry(&mut a, &mut b, packet, halves);
                (got, state(&a), state(&b))
            });
            assert_eq!(whole, halves);
        }
    }
}
