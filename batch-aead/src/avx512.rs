//! Sixteen messages in lockstep with AVX-512, in one pass over memory: each row of 64 bytes is encrypted by ChaCha20
//! with a message a 32-bit lane, and authenticated, still in registers, by Poly1305 with a message a 64-bit lane, in
//! two halves that hide each other's latency.
//!
//! Messages are taken in order. Shorter ones leave their lanes idle while the longest of their group goes on, and so do
//! missing ones in the last group; where lanes would mostly be idle, ring does the group instead.
//!
//! Secrets in arrays are wiped; what the compiler spills from registers to the stack is beyond us.

mod chacha20;
mod lanes;
mod poly1305;
#[cfg(test)]
mod tests;

use std::arch::x86_64::*;
use std::array::from_fn;

use zeroize::Zeroize;

use crate::{Aead, LANES, Message, TAG, one_by_one};
use chacha20::ChaCha20;
use lanes::{halves_of_rows, halves_of_words, place, rows_of_halves, words_of_halves};
use poly1305::{Block, Poly1305};

/// Bytes of a message that one step takes: a block of ChaCha20, four of Poly1305.
const ROW: usize = 64;

/// What ring spends on each message besides its rows, in units of the time that ring needs for a row. These three are
/// measured on Zen 4: the lanes win from 4 messages of 64 bytes on, 7 of 512, 9 of 1424 and 10 of 8192.
const RING_MESSAGE: usize = 6;
/// What a row of all lanes costs, and so how many messages there must be at the very least.
const LANES_ROW: usize = 10;
/// What the lanes spend on a group besides its rows.
const LANES_GROUP: usize = 15;

/// From so many full rows on, computing the powers of r is worth it.
const ROWS_FOR_POWERS: usize = 3;

/// Exists only where the processor has all that it needs: see [`Avx512::detect`].
#[derive(Debug)]
pub struct Avx512(());

impl Avx512 {
    pub fn detect() -> Option<&'static Self> {
        (is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512ifma")
            && is_x86_feature_detected!("avx512vbmi2"))
        .then_some(&Self(()))
    }

    #[expect(unsafe_code, reason = "calls code for this processor only")]
    fn crypt<const SEAL: bool>(&self, group: &mut [Message<'_>]) -> [[u8; TAG]; LANES] {
        // SAFETY: `self` exists, so `detect` found every feature.
        unsafe { crypt::<SEAL>(group) }
    }
}

impl Aead for Avx512 {
    fn name(&self) -> &'static str {
        "avx512"
    }

    fn seal(&self, messages: &mut [Message<'_>]) {
        for group in messages.chunks_mut(LANES) {
            if !worth_it(group) {
                group.iter_mut().for_each(one_by_one::seal);
                continue;
            }
            let tags = self.crypt::<true>(group);
            for (message, tag) in group.iter_mut().zip(tags) {
                if let Some(room) = message.bytes.last_chunk_mut::<TAG>() {
                    *room = tag;
                }
            }
        }
    }

    fn open(&self, messages: &mut [Message<'_>], authentic: &mut [bool]) {
        let count = messages.len().min(authentic.len());
        let groups = messages[..count].chunks_mut(LANES);
        for (group, authentic) in groups.zip(authentic[..count].chunks_mut(LANES)) {
            if !worth_it(group) {
                for (message, authentic) in group.iter_mut().zip(authentic) {
                    *authentic = one_by_one::open(message);
                }
                continue;
            }
            let mut tags = self.crypt::<false>(group);
            for ((message, authentic), tag) in group.iter_mut().zip(authentic).zip(&tags) {
                let Some((text, claimed)) = message.bytes.split_last_chunk_mut::<TAG>() else {
                    *authentic = false;
                    continue;
                };
                *authentic = equal(tag, claimed);
                if !*authentic {
                    text.fill(0);
                }
            }
            // What a forger would have to guess.
            tags.as_flattened_mut().zeroize();
        }
    }
}

/// Whether the lanes do this group faster than ring.
fn worth_it(group: &[Message<'_>]) -> bool {
    let rows = group
        .iter()
        .map(|message| message.bytes.len().saturating_sub(TAG).div_ceil(ROW));
    let ring: usize = rows.clone().map(|rows| RING_MESSAGE + rows).sum();
    ring >= LANES_GROUP + LANES_ROW * rows.max().unwrap_or(0)
}

/// In a time that does not depend on where they differ.
fn equal(a: &[u8; TAG], b: &[u8; TAG]) -> bool {
    std::hint::black_box(u128::from_le_bytes(*a) ^ u128::from_le_bytes(*b)) == 0
}

/// Encrypts or decrypts the texts of at most [`LANES`] messages, and computes the tags of the ciphertexts.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512ifma,avx512vbmi2")]
fn crypt<const SEAL: bool>(messages: &mut [Message<'_>]) -> [[u8; TAG]; LANES] {
    let chacha20 = keyed(messages);
    let mut poly1305 = halves_of_words(&chacha20.block(0))
        .map(|key| Poly1305::new([key[0], key[1]], [key[2], key[3]]));

    let count = messages.len();
    let mut left = messages.iter_mut().map(|message| text(message));
    let mut texts: [&mut [u8]; LANES] = from_fn(|_| left.next().unwrap_or_default());
    let mut lengths = [[0; 8]; 2];
    for (message, text) in texts.iter().enumerate() {
        let (half, lane) = place(message);
        lengths[half][lane] = text.len() as u64;
    }
    let lengths = [load_words(&lengths[0]), load_words(&lengths[1])];
    let shortest = texts[..count]
        .iter()
        .map(|text| text.len())
        .min()
        .unwrap_or(0);
    let longest = texts.iter().map(|text| text.len()).max().unwrap_or(0);

    let full_rows = shortest / ROW;
    let powers =
        (full_rows >= ROWS_FOR_POWERS).then(|| [poly1305[0].powers(), poly1305[1].powers()]);
    for row in 0..longest.div_ceil(ROW) {
        let stream = rows_of_halves(&halves_of_words(&chacha20.block(1 + row as u32)));
        let ciphertext = halves_of_rows(&crypt_row::<SEAL>(&mut texts, row * ROW, &stream));
        match &powers {
            Some(powers) if row < full_rows => {
                for half in 0..2 {
                    poly1305[half].absorb_four(blocks(&ciphertext[half]), &powers[half]);
                }
            }
            Some(_) | None => {
                for (i, start) in (row * ROW..longest).step_by(TAG).take(4).enumerate() {
                    let start = _mm512_set1_epi64(start as i64);
                    for half in 0..2 {
                        let going_on = _mm512_cmpgt_epu64_mask(lengths[half], start);
                        poly1305[half].absorb(blocks(&ciphertext[half])[i], going_on);
                    }
                }
            }
        }
    }
    tags(poly1305, lengths)
}

/// The text of a message, without its tag.
fn text<'a>(message: &'a mut Message<'_>) -> &'a mut [u8] {
    let length = message.bytes.len().saturating_sub(TAG);
    &mut message.bytes[..length]
}

/// ChaCha20 with the key and counter of each message.
#[target_feature(enable = "avx512f")]
#[inline]
fn keyed(messages: &[Message<'_>]) -> ChaCha20 {
    let rows = from_fn(|lane| {
        messages.get(lane).map_or(
            _mm512_setzero_si512(),
            |Message { key, counter, .. }| {
                let counter = _mm256_set_epi64x(0, 0, 0, counter.cast_signed());
                _mm512_inserti64x4::<1>(_mm512_castsi256_si512(load_key(&key.bytes)), counter)
            },
        )
    });
    let words = words_of_halves(&halves_of_rows(&rows));
    ChaCha20::new(from_fn(|word| words[word]), [words[8], words[9]])
}

/// Encrypts or decrypts the bytes of all texts from `start` on, at most [`ROW`], and returns the ciphertext, then zeros.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn crypt_row<const SEAL: bool>(
    texts: &mut [&mut [u8]; LANES],
    start: usize,
    stream: &[__m512i; LANES],
) -> [__m512i; LANES] {
    from_fn(|lane| {
        let rest = texts[lane].get_mut(start..).unwrap_or_default();
        let (before, after);
        if let Some(row) = rest.first_chunk_mut() {
            before = load(row);
            after = _mm512_xor_si512(before, stream[lane]);
            store(row, after);
        } else if rest.is_empty() {
            // Masks that let nothing through are correct as well, but where they keep off a page that is not there, slow.
            return _mm512_setzero_si512();
        } else {
            before = load_some(rest);
            after = _mm512_maskz_mov_epi8(mask(rest.len()), _mm512_xor_si512(before, stream[lane]));
            store_some(rest, after);
        }
        if SEAL { after } else { before }
    })
}

/// The four blocks of Poly1305 in a row.
#[target_feature(enable = "avx512f")]
#[inline]
fn blocks(words: &[__m512i; 8]) -> [Block; 4] {
    from_fn(|i| [words[2 * i], words[2 * i + 1]])
}

/// Ends each message with the block of its lengths (RFC 8439 section 2.8): no additional data, and the text.
#[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
#[inline]
fn tags(mut poly1305: [Poly1305; 2], lengths: [__m512i; 2]) -> [[u8; TAG]; LANES] {
    let mut words = [[[0; 8]; 2]; 2];
    for half in 0..2 {
        poly1305[half].absorb([_mm512_setzero_si512(), lengths[half]], !0);
        words[half] = poly1305[half].tags().map(|vector| words_of(vector));
    }
    let tags = from_fn(|message| {
        let (half, lane) = place(message);
        (u128::from(words[half][1][lane]) << 64 | u128::from(words[half][0][lane])).to_le_bytes()
    });
    words.as_flattened_mut().as_flattened_mut().zeroize();
    tags
}

#[cfg(test)]
impl Avx512 {
    /// The tag, with an s of zero, where the blocks have come to these limbs.
    #[expect(unsafe_code, reason = "calls code for this processor only")]
    fn tag_of_limbs(&self, limbs: [i64; 3]) -> u128 {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512ifma,avx512vbmi2")]
        fn tag(limbs: [i64; 3]) -> u128 {
            let zero = [_mm512_setzero_si512(); 2];
            let mut poly1305 = Poly1305::new(zero, zero);
            poly1305.set(limbs);
            let [low, high] = poly1305.tags().map(|vector| words_of(vector));
            u128::from(high[0]) << 64 | u128::from(low[0])
        }
        // SAFETY: `self` exists, so `detect` found every feature.
        unsafe { tag(limbs) }
    }

    /// The tag of these blocks, computed one by one and, as far as they go, by four.
    #[expect(unsafe_code, reason = "calls code for this processor only")]
    fn poly1305(&self, r: [u8; TAG], s: [u8; TAG], text: &[[u8; TAG]]) -> [u8; TAG] {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512ifma,avx512vbmi2")]
        fn tag(r: [u8; TAG], s: [u8; TAG], text: &[[u8; TAG]], by_four: bool) -> [u8; TAG] {
            let everywhere = |block: [u8; TAG]| {
                let number = u128::from_le_bytes(block);
                [number as i64, (number >> 64) as i64].map(|word| _mm512_set1_epi64(word))
            };
            let mut poly1305 = Poly1305::new(everywhere(r), everywhere(s));
            let powers = poly1305.powers();
            let (fours, rest) = if by_four {
                text.as_chunks::<4>()
            } else {
                (&[][..], text)
            };
            fours
                .iter()
                .for_each(|four| poly1305.absorb_four(four.map(everywhere), &powers));
            rest.iter()
                .for_each(|one| poly1305.absorb(everywhere(*one), !0));
            let [low, high] = poly1305.tags().map(|vector| words_of(vector));
            assert!(
                low.iter()
                    .chain(&high)
                    .enumerate()
                    .all(|(i, word)| *word == [low[0], high[0]][i / 8])
            );
            (u128::from(high[0]) << 64 | u128::from(low[0])).to_le_bytes()
        }
        // SAFETY: `self` exists, so `detect` found every feature.
        let tags = unsafe { [tag(r, s, text, false), tag(r, s, text, true)] };
        assert_eq!(tags[0], tags[1]);
        tags[0]
    }
}

/// A bit for each of the first `length` bytes, fewer than [`ROW`].
fn mask(length: usize) -> __mmask64 {
    (1 << length) - 1
}

#[expect(unsafe_code, reason = "loads by pointer")]
#[target_feature(enable = "avx512f")]
#[inline]
fn load(row: &[u8; ROW]) -> __m512i {
    // SAFETY: the array is readable and as long as the vector; no alignment is needed.
    unsafe { _mm512_loadu_si512(row.as_ptr().cast()) }
}

#[expect(unsafe_code, reason = "stores by pointer")]
#[target_feature(enable = "avx512f")]
#[inline]
fn store(row: &mut [u8; ROW], bytes: __m512i) {
    // SAFETY: the array is ours to write and as long as the vector; no alignment is needed.
    unsafe { _mm512_storeu_si512(row.as_mut_ptr().cast(), bytes) }
}

/// Fewer than [`ROW`] bytes, then zeros.
#[expect(unsafe_code, reason = "loads by pointer")]
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn load_some(bytes: &[u8]) -> __m512i {
    assert!(bytes.len() < ROW);
    // SAFETY: the mask has bits for the bytes of the slice only, and others are not read.
    unsafe { _mm512_maskz_loadu_epi8(mask(bytes.len()), bytes.as_ptr().cast()) }
}

/// As many bytes as the slice has, fewer than [`ROW`].
#[expect(unsafe_code, reason = "stores by pointer")]
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn store_some(bytes: &mut [u8], row: __m512i) {
    assert!(bytes.len() < ROW);
    // SAFETY: the mask has bits for the bytes of the slice only, and others are not written.
    unsafe { _mm512_mask_storeu_epi8(bytes.as_mut_ptr().cast(), mask(bytes.len()), row) }
}

#[expect(unsafe_code, reason = "loads by pointer")]
#[target_feature(enable = "avx512f")]
#[inline]
fn load_key(key: &[u8; 32]) -> __m256i {
    // SAFETY: the array is readable and as long as the vector; no alignment is needed.
    unsafe { _mm256_loadu_si256(key.as_ptr().cast()) }
}

#[expect(unsafe_code, reason = "loads by pointer")]
#[target_feature(enable = "avx512f")]
#[inline]
fn load_words(words: &[u64; 8]) -> __m512i {
    // SAFETY: the array is readable and as long as the vector; no alignment is needed.
    unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
}

#[expect(unsafe_code, reason = "stores by pointer")]
#[target_feature(enable = "avx512f")]
#[inline]
fn words_of(vector: __m512i) -> [u64; 8] {
    let mut words = [0; 8];
    // SAFETY: the array is ours to write and as long as the vector; no alignment is needed.
    unsafe { _mm512_storeu_si512(words.as_mut_ptr().cast(), vector) };
    words
}
