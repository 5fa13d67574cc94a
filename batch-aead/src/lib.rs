//! Seals and opens many short messages at once: ChaCha20-Poly1305 (RFC 8439 section 2.8) with empty additional data, and
//! the nonce of WireGuard (5.4.6): four zero bytes and a 64-bit counter, little-endian.
//!
//! One short message keeps few of a wide processor's units busy, and pays its fixed costs alone. Eight or sixteen messages
//! go through AVX-512 in lockstep, so that nothing is left over between them: see `avx512.rs`. Whatever does not fill
//! enough of the lanes, and every other processor, is served by ring, a message at a time: the [`reference()`].
//!
//! Invariants: all implementations write the same bytes, however the messages of a call are mixed; nothing outside the
//! messages is written; no branch and no address depends on a key, a text or a tag, only on lengths.

#[cfg(target_arch = "x86_64")]
mod avx512;
mod one_by_one;

use std::fmt;

use ring::aead::{CHACHA20_POLY1305, LessSafeKey, UnboundKey};
use zeroize::Zeroizing;

/// Bytes of a tag, which follow the text.
pub const TAG: usize = 16;

/// Most messages that one call gains from; callers may pass any number.
pub const LANES: usize = 16;

/// A key of ChaCha20-Poly1305. Its bytes are wiped on drop; ring has a copy, which it does not wipe.
pub struct Key {
    #[cfg_attr(
        not(target_arch = "x86_64"),
        expect(dead_code, reason = "ring has its own")
    )]
    bytes: Zeroizing<[u8; 32]>,
    ring: LessSafeKey,
}

impl Key {
    /// A key of these 32 bytes.
    pub fn new(bytes: &[u8; 32]) -> Self {
        let ring = UnboundKey::new(&CHACHA20_POLY1305, bytes)
            .expect("32 bytes, as this algorithm has them");
        Self {
            bytes: Zeroizing::new(*bytes),
            ring: LessSafeKey::new(ring),
        }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").finish_non_exhaustive()
    }
}

/// One message of a call.
#[derive(Debug)]
pub struct Message<'a> {
    /// The key, which other messages of the call may have too.
    pub key: &'a Key,
    /// The nonce as a number. Sealing two texts under one key and counter breaks both.
    pub counter: u64,
    /// The text, and [`TAG`] bytes for its tag. Fewer bytes than that are not touched, and never authentic.
    pub bytes: &'a mut [u8],
}

/// An implementation of ChaCha20-Poly1305 for many messages.
pub trait Aead: Sync + fmt::Debug {
    /// What logs and metrics call it.
    fn name(&self) -> &'static str;

    /// Encrypts each text in place and writes the tag behind it.
    fn seal(&self, messages: &mut [Message<'_>]);

    /// Decrypts each text in place; `authentic` says, message by message, whether its tag was right.
    ///
    /// Where it was not, no plaintext is left behind, and what is left must not be used. The slices are of one length:
    /// messages beyond a shorter `authentic` are not opened.
    fn open(&self, messages: &mut [Message<'_>], authentic: &mut [bool]);
}

/// ring, one message at a time: on every processor, and what the others are compared with.
pub fn reference() -> &'static dyn Aead {
    &one_by_one::Ring
}

/// All that this processor can run, the reference first.
pub fn available() -> Vec<&'static dyn Aead> {
    [reference()].into_iter().chain(in_lanes()).collect()
}

/// The fastest that this processor can run, which is asked once per process.
pub fn best() -> &'static dyn Aead {
    in_lanes().unwrap_or(reference())
}

/// The implementation that takes many messages together, where there is one for this processor.
fn in_lanes() -> Option<&'static dyn Aead> {
    #[cfg(target_arch = "x86_64")]
    let found = avx512::Avx512::detect().map(|avx512| avx512 as &dyn Aead);
    #[cfg(not(target_arch = "x86_64"))]
    let found = None;
    found
}
