//! Names and keys of probes.
//!
//! Two WireGuard keys make a [`Link`]: a STUN password, a key for sealed messages and the two names that
//! stand in USERNAME. A transaction id is the sender's epoch and a sequence that never repeats in it.

use mesh_types::sealed::SealKey;
use mesh_types::{Idx, WgKey, WgSecret};

use crate::stun::Password;

/// What one of our keys and one of a peer's keys have in common.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    /// Names our key.
    pub(crate) own: Idx,
    /// Names the peer's.
    pub(crate) peer: Idx,
    /// Of probes.
    pub(crate) password: Password,
    /// Of messages passed on by a neighbour.
    pub(crate) seal: SealKey,
}

impl Link {
    /// `None` where the peer's key contributes nothing (RFC 7748 6.1).
    pub(crate) fn new(own: &WgSecret, peer: &WgKey) -> Option<Self> {
        Some(Self {
            own: own.public().idx(),
            peer: peer.idx(),
            password: Password::new(&SealKey::between(own, peer, b"farspan probe v1")?)?,
            seal: SealKey::between(own, peer, b"farspan l1 v1")?,
        })
    }

    /// USERNAME of requests to the peer: receiver, then sender.
    pub(crate) fn username(&self) -> String {
        format!("{}:{}", self.peer, self.own)
    }
}

/// Receiver and sender in a USERNAME.
pub(crate) fn parse_username(name: &str) -> Option<(Idx, Idx)> {
    let (receiver, sender) = name.split_once(':')?;
    Some((receiver.parse().ok()?, sender.parse().ok()?))
}

/// A transaction id of ours.
pub(crate) fn transaction(epoch: u32, sequence: u64) -> [u8; 12] {
    let mut out = [0; 12];
    out[..4].copy_from_slice(&epoch.to_be_bytes());
    out[4..].copy_from_slice(&sequence.to_be_bytes());
    out
}

/// Epoch and sequence in a transaction id.
pub(crate) fn parse_transaction(id: [u8; 12]) -> (u32, u64) {
    let [a, b, c, d, sequence @ ..] = id;
    (
        u32::from_be_bytes([a, b, c, d]),
        u64::from_be_bytes(sequence),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_username_names_receiver_then_sender() {
        let (a, b) = (WgSecret::from_bytes([1; 32]), WgSecret::from_bytes([2; 32]));
        let link = Link::new(&a, &b.public()).unwrap();
        assert_eq!(
            parse_username(&link.username()),
            Some((b.public().idx(), a.public().idx()))
        );
        assert_eq!(parse_username("00112233445566778899aabbccddeeff"), None);
        assert!(Link::new(&a, &WgKey([0; 32])).is_none());
    }

    #[test]
    fn a_transaction_id_is_read_back() {
        assert_eq!(parse_transaction(transaction(9, 1 << 40)), (9, 1 << 40));
    }
}
