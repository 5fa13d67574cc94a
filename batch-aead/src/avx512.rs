//! Many messages in lockstep with AVX-512, in one pass over memory: each row of 64 bytes is encrypted by ChaCha20 with a
//! row a 32-bit lane, and authenticated, still in registers, by Poly1305 with a message a 64-bit lane.
//!
//! Sixteen messages go a row at a time, in two halves that hide each other's latency; eight go two rows at a time.
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

/// What ring spends on each message besides its rows, in units of the time that ring needs for a row.
const RING_MESSAGE: usize = 6;

/// Messages that may also go two rows at a time, as half of the lanes would be idle otherwise.
const EIGHT: usize = LANES / 2;

/// From so many full rows on, computing the powers of r is worth it.
const ROWS_FOR_POWERS: usize = 3;

/// How a group is sealed or opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// One message at a time.
    Ring,
    /// At most eight messages, two rows of each at a time.
    Eight,
    /// At most sixteen messages, a row of each at a time.
    Sixteen,
}

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
    fn crypt_eight<const SEAL: bool>(&self, group: &mut [Message<'_>]) -> [[u8; TAG]; LANES] {
        // SAFETY: `self` exists, so `detect` found every feature.
        unsafe { crypt_eight::<SEAL>(group) }
    }

    #[expect(unsafe_code, reason = "calls code for this processor only")]
    fn crypt_sixteen<const SEAL: bool>(&self, group: &mut [Message<'_>]) -> [[u8; TAG]; LANES] {
        // SAFETY: `self` exists, so `detect` found every feature.
        unsafe { crypt_sixteen::<SEAL>(group) }
    }
}

impl Aead for Avx512 {
    fn name(&self) -> &'static str {
        "avx512"
    }

    fn seal(&self, mut messages: &mut [Message<'_>]) {
        while !messages.is_empty() {
            let (way, count) = next_group(messages);
            let (group, rest) = messages.split_at_mut(count);
            messages = rest;
            let tags = match way {
                Way::Ring => {
                    group.iter_mut().for_each(one_by_one::seal);
                    continue;
                }
                Way::Eight => self.crypt_eight::<true>(group),
                Way::Sixteen => self.crypt_sixteen::<true>(group),
            };
            for (message, tag) in group.iter_mut().zip(tags) {
                if let Some(room) = message.bytes.last_chunk_mut::<TAG>() {
                    *room = tag;
                }
            }
        }
    }

    fn open(&self, messages: &mut [Message<'_>], mut authentic: &mut [bool]) {
        let count = messages.len().min(authentic.len());
        let mut messages = &mut messages[..count];
        while !messages.is_empty() {
            let (way, count) = next_group(messages);
            let (group, rest) = messages.split_at_mut(count);
            messages = rest;
            let (answers, rest) = authentic.split_at_mut(count);
            authentic = rest;
            let mut tags = match way {
                Way::Ring => {
                    for (message, authentic) in group.iter_mut().zip(answers) {
                        *authentic = one_by_one::open(message);
                    }
                    continue;
                }
                Way::Eight => self.crypt_eight::<false>(group),
                Way::Sixteen => self.crypt_sixteen::<false>(group),
            };
            for ((message, authentic), tag) in group.iter_mut().zip(answers).zip(&tags) {
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

/// How many of the first messages form a group, and what is fastest for it.
fn next_group(messages: &[Message<'_>]) -> (Way, usize) {
    let messages = &messages[..messages.len().min(LANES)];
    let (first, second) = messages.split_at(messages.len().min(EIGHT));
    let eight_or_ring = |group| (cost(Way::Eight, group), cost(Way::Ring, group));
    let (eight, ring) = eight_or_ring(first);
    let (eight_more, ring_more) = eight_or_ring(second);
    if cost(Way::Sixteen, messages) < eight.min(ring) + eight_more.min(ring_more) {
        (Way::Sixteen, messages.len())
    } else if eight < ring {
        (Way::Eight, first.len())
    } else {
        (Way::Ring, first.len())
    }
}

/// In units of the time that ring needs for a row. All numbers are measured on Zen 4, where the lanes win from 3 messages
/// of 64 bytes on, 5 of 512 and 6 of 1424.
fn cost(way: Way, group: &[Message<'_>]) -> usize {
    let rows = group
        .iter()
        .map(|message| message.bytes.len().saturating_sub(TAG).div_ceil(ROW));
    match way {
        Way::Ring => rows.map(|rows| RING_MESSAGE + rows).sum(),
        // By steps of two blocks, the first of which is the key of Poly1305.
        Way::Eight => 4 + 13 * (rows.max().unwrap_or(0) / 2 + 1),
        Way::Sixteen => 15 + 10 * rows.max().unwrap_or(0),
    }
}

/// In a time that does not depend on where they differ.
fn equal(a: &[u8; TAG], b: &[u8; TAG]) -> bool {
    std::hint::black_box(u128::from_le_bytes(*a) ^ u128::from_le_bytes(*b)) == 0
}

/// Encrypts or decrypts the texts of at most [`EIGHT`] messages, and computes the tags of the ciphertexts.
///
/// Each message has a lane of ChaCha20 in the even half, and one in the odd half that is a block ahead. A step takes the
/// blocks 2k and 2k + 1 of the key stream, so the rows 2k - 1 and 2k; the very first is the key of Poly1305.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512ifma,avx512vbmi2")]
fn crypt_eight<const SEAL: bool>(messages: &mut [Message<'_>]) -> [[u8; TAG]; LANES] {
    let chacha20 = keyed(from_fn(|lane| messages.get(place(lane).1)), 1);
    let mut stream = halves_of_words(&chacha20.block(0));
    let [key, _] = &stream;
    let mut poly1305 = Poly1305::new([key[0], key[1]], [key[2], key[3]]);

    let count = messages.len();
    let mut left = messages.iter_mut().map(|message| text(message));
    let mut texts: [&mut [u8]; EIGHT] = from_fn(|_| left.next().unwrap_or_default());
    let lengths = load_words(&from_fn(|message| texts[message].len() as u64));
    let (full_rows, longest) = extent(&texts[..count]);
    let powers = (full_rows >= ROWS_FOR_POWERS).then(|| poly1305.powers());
    let rows = longest.div_ceil(ROW);
    for step in 0..=rows / 2 {
        if step > 0 {
            stream = halves_of_words(&chacha20.block(2 * step as u32));
        }
        let rows = [(2 * step).checked_sub(1), Some(2 * step)];
        let stream = rows_of_halves(&stream);
        let ciphertext = halves_of_rows(&from_fn(|lane| {
            let (half, message) = place(lane);
            let rest = rows[half].and_then(|row| texts[message].get_mut(row * ROW..));
            crypt_rest::<SEAL>(rest.unwrap_or_default(), stream[lane])
        }));
        for (row, words) in rows.iter().zip(&ciphertext) {
            let Some(row) = *row else {
                continue;
            };
            match &powers {
                Some(powers) if row < full_rows => poly1305.absorb_four(blocks(words), powers),
                Some(_) | None => {
                    for (i, start) in (row * ROW..longest).step_by(TAG).take(4).enumerate() {
                        let start = _mm512_set1_epi64(start as i64);
                        let going_on = _mm512_cmpgt_epu64_mask(lengths, start);
                        poly1305.absorb(blocks(words)[i], going_on);
                    }
                }
            }
        }
    }
    let mut words = ended(&mut poly1305, lengths);
    let tags = from_fn(|message| tag(&words, message % EIGHT));
    words.as_flattened_mut().zeroize();
    tags
}

/// Encrypts or decrypts the texts of at most [`LANES`] messages, and computes the tags of the ciphertexts.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512ifma,avx512vbmi2")]
fn crypt_sixteen<const SEAL: bool>(messages: &mut [Message<'_>]) -> [[u8; TAG]; LANES] {
    let chacha20 = keyed(from_fn(|lane| messages.get(lane)), 0);
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
    let (full_rows, longest) = extent(&texts[..count]);
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

/// The rows that are full in all texts, and the bytes of the longest.
fn extent(texts: &[&mut [u8]]) -> (usize, usize) {
    let lengths = texts.iter().map(|text| text.len());
    let shortest = lengths.clone().min().unwrap_or(0);
    (shortest / ROW, lengths.max().unwrap_or(0))
}

/// The text of a message, without its tag.
fn text<'a>(message: &'a mut Message<'_>) -> &'a mut [u8] {
    let length = message.bytes.len().saturating_sub(TAG);
    &mut message.bytes[..length]
}

/// ChaCha20 with the key and counter of each lane's message, and the odd half so many blocks ahead.
#[target_feature(enable = "avx512f")]
#[inline]
fn keyed(messages: [Option<&Message<'_>>; LANES], odd_ahead: u32) -> ChaCha20 {
    let rows = from_fn(|lane| {
        messages[lane].map_or(
            _mm512_setzero_si512(),
            |Message { key, counter, .. }| {
                let counter = _mm256_set_epi64x(0, 0, 0, counter.cast_signed());
                _mm512_inserti64x4::<1>(_mm512_castsi256_si512(load_key(&key.bytes)), counter)
            },
        )
    });
    let words = words_of_halves(&halves_of_rows(&rows));
    // Of each four lanes, the upper two are in the odd half.
    let ahead = odd_ahead.cast_signed();
    let ahead = _mm512_set4_epi32(ahead, ahead, 0, 0);
    ChaCha20::new(from_fn(|word| words[word]), [words[8], words[9]], ahead)
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
        crypt_rest::<SEAL>(rest, stream[lane])
    })
}

/// Encrypts or decrypts the first bytes, at most [`ROW`], and returns the ciphertext, then zeros.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn crypt_rest<const SEAL: bool>(rest: &mut [u8], stream: __m512i) -> __m512i {
    let (before, after);
    if let Some(row) = rest.first_chunk_mut() {
        before = load(row);
        after = _mm512_xor_si512(before, stream);
        store(row, after);
    } else if rest.is_empty() {
        // Masks that let nothing through are correct as well, but where they keep off a page that is not there, slow.
        return _mm512_setzero_si512();
    } else {
        before = load_some(rest);
        after = _mm512_maskz_mov_epi8(mask(rest.len()), _mm512_xor_si512(before, stream));
        store_some(rest, after);
    }
    if SEAL { after } else { before }
}

/// The four blocks of Poly1305 in a row.
#[target_feature(enable = "avx512f")]
#[inline]
fn blocks(words: &[__m512i; 8]) -> [Block; 4] {
    from_fn(|i| [words[2 * i], words[2 * i + 1]])
}

/// The tags of all messages of two halves.
#[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
#[inline]
fn tags(mut poly1305: [Poly1305; 2], lengths: [__m512i; 2]) -> [[u8; TAG]; LANES] {
    let mut words = [[[0; 8]; 2]; 2];
    for half in 0..2 {
        words[half] = ended(&mut poly1305[half], lengths[half]);
    }
    let tags = from_fn(|message| {
        let (half, lane) = place(message);
        tag(&words[half], lane)
    });
    words.as_flattened_mut().as_flattened_mut().zeroize();
    tags
}

/// Ends each message with the block of its lengths (RFC 8439 section 2.8): no additional data, and the text. The lower
/// and the upper words of the tags.
#[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
#[inline]
fn ended(poly1305: &mut Poly1305, lengths: __m512i) -> [[u64; 8]; 2] {
    poly1305.absorb([_mm512_setzero_si512(), lengths], !0);
    poly1305.tags().map(|vector| words_of(vector))
}

fn tag([low, high]: &[[u64; 8]; 2], lane: usize) -> [u8; TAG] {
    (u128::from(high[lane]) << 64 | u128::from(low[lane])).to_le_bytes()
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
