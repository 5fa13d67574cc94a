//! Messages sealed end to end: XChaCha20-Poly1305 under a key from HKDF-SHA256.
//!
//! Used where no session exists: between nodes that share a neighbour (key from static-static X25519)
//! and between a joiner and the inviter (key from the ticket's secret).

use chacha20poly1305::aead::{Aead as _, KeyInit as _, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::key::{WgKey, WgSecret};

/// Bytes that sealing adds: nonce and tag.
pub const OVERHEAD: usize = 24 + 16;

/// A symmetric key for one purpose. Wiped on drop, never printed.
#[derive(Clone)]
pub struct SealKey(Zeroizing<[u8; 32]>);

impl std::fmt::Debug for SealKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SealKey(..)")
    }
}

impl SealKey {
    /// HKDF-SHA256 of a secret for a purpose (RFC 5869).
    pub fn derive(secret: &[u8], purpose: &[u8]) -> Self {
        let mut key = Zeroizing::new([0; 32]);
        // 32 bytes are always a valid HKDF-SHA256 output length (RFC 5869 2.3: at most 255 * 32).
        if Hkdf::<Sha256>::new(None, secret)
            .expand(purpose, key.as_mut())
            .is_err()
        {
            key.fill(0);
        }
        Self(key)
    }

    /// The key two WireGuard keys share for a purpose: X25519 static-static, then HKDF over the purpose and
    /// both public keys in ascending order. `None` where the peer's key contributes nothing.
    pub fn between(own: &WgSecret, peer: &WgKey, purpose: &[u8]) -> Option<Self> {
        let shared = own.agree(peer)?;
        let public = own.public();
        let (low, high) = if public < *peer {
            (public, *peer)
        } else {
            (*peer, public)
        };
        Some(Self::derive(
            shared.as_slice(),
            &[purpose, &low.0, &high.0].concat(),
        ))
    }

    /// The bytes, for use as a STUN password.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Nonce || ciphertext || tag. The nonce must be random (24 bytes make collisions negligible).
    pub fn seal(&self, nonce: [u8; 24], associated: &[u8], plain: &[u8]) -> Vec<u8> {
        let mut out = nonce.to_vec();
        let payload = Payload {
            msg: plain,
            aad: associated,
        };
        // Fails only for messages beyond 256 GiB.
        out.extend(
            self.cipher()
                .encrypt(&XNonce::from(nonce), payload)
                .unwrap_or_default(),
        );
        out
    }

    /// The plain text, where the key and the associated data are right.
    pub fn open(&self, associated: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, cipher) = sealed.split_first_chunk::<24>()?;
        let payload = Payload {
            msg: cipher,
            aad: associated,
        };
        self.cipher().decrypt(&XNonce::from(*nonce), payload).ok()
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new(&(*self.0).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_derive_one_key_and_a_changed_byte_is_refused() {
        let (a, b) = (WgSecret::from_bytes([1; 32]), WgSecret::from_bytes([2; 32]));
        let there = SealKey::between(&a, &b.public(), b"test").expect("contributory");
        let here = SealKey::between(&b, &a.public(), b"test").expect("contributory");
        let mut sealed = there.seal([7; 24], b"to b", b"hello");
        assert_eq!(
            here.open(b"to b", &sealed).as_deref(),
            Some(b"hello".as_slice())
        );
        assert_eq!(here.open(b"to c", &sealed), None);
        sealed[30] ^= 1;
        assert_eq!(here.open(b"to b", &sealed), None);
    }

    #[test]
    fn a_key_that_contributes_nothing_gives_no_key() {
        assert!(
            SealKey::between(&WgSecret::from_bytes([1; 32]), &WgKey([0; 32]), b"test").is_none()
        );
    }
}
