//! Between rows (a vector holds 64 bytes of one message) and lanes (a vector holds one word of all sixteen).
//!
//! Both forms meet in the middle, where a vector holds one 64-bit word of eight messages: the *even* half are the
//! messages 0, 1, 4, 5, 8, 9, 12 and 13, the *odd* half the others. That is the order in which `vpunpck` leaves them.

use std::arch::x86_64::*;
use std::array::from_fn;

/// Eight 64-bit words each of the even and of the odd half of the messages.
pub type Halves = [[__m512i; 8]; 2];

/// The half, and the lane in it, of a message.
pub const fn place(message: usize) -> (usize, usize) {
    (message / 2 % 2, message / 4 * 2 + message % 2)
}

/// Sixteen 32-bit words of each message, lane by lane, as 64-bit words.
#[target_feature(enable = "avx512f")]
#[inline]
pub fn halves_of_words(words: &[__m512i; 16]) -> Halves {
    [
        from_fn(|k| _mm512_unpacklo_epi32(words[2 * k], words[2 * k + 1])),
        from_fn(|k| _mm512_unpackhi_epi32(words[2 * k], words[2 * k + 1])),
    ]
}

/// The way back from [`halves_of_words`].
#[target_feature(enable = "avx512f")]
#[inline]
pub fn words_of_halves([even, odd]: &Halves) -> [__m512i; 16] {
    from_fn(|word| {
        let (even, odd) = (
            _mm512_castsi512_ps(even[word / 2]),
            _mm512_castsi512_ps(odd[word / 2]),
        );
        _mm512_castps_si512(if word % 2 == 0 {
            _mm512_shuffle_ps::<0b10_00_10_00>(even, odd)
        } else {
            _mm512_shuffle_ps::<0b11_01_11_01>(even, odd)
        })
    })
}

/// Sixteen rows of 64 bytes, one of each message.
#[target_feature(enable = "avx512f")]
#[inline]
pub fn rows_of_halves(halves: &Halves) -> [__m512i; 16] {
    // Block k of the messages q, q + 4, q + 8 and q + 12.
    let blocks: [[__m512i; 4]; 4] = from_fn(|q| {
        from_fn(|k| {
            let (low, high) = (halves[q / 2][2 * k], halves[q / 2][2 * k + 1]);
            if q % 2 == 0 {
                _mm512_unpacklo_epi64(low, high)
            } else {
                _mm512_unpackhi_epi64(low, high)
            }
        })
    });
    let rows: [[__m512i; 4]; 4] = from_fn(|q| transpose_blocks(blocks[q]));
    from_fn(|message| rows[message % 4][message / 4])
}

/// The way back from [`rows_of_halves`].
#[target_feature(enable = "avx512f")]
#[inline]
pub fn halves_of_rows(rows: &[__m512i; 16]) -> Halves {
    let blocks: [[__m512i; 4]; 4] = from_fn(|q| transpose_blocks(from_fn(|i| rows[q + 4 * i])));
    from_fn(|half| {
        from_fn(|word| {
            let (first, second) = (blocks[2 * half][word / 2], blocks[2 * half + 1][word / 2]);
            if word % 2 == 0 {
                _mm512_unpacklo_epi64(first, second)
            } else {
                _mm512_unpackhi_epi64(first, second)
            }
        })
    })
}

/// Four vectors of four 16-byte blocks, rows for columns.
#[target_feature(enable = "avx512f")]
#[inline]
fn transpose_blocks([a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
    let (ab_even, ab_odd) = (
        _mm512_shuffle_i64x2::<0b10_00_10_00>(a, b),
        _mm512_shuffle_i64x2::<0b11_01_11_01>(a, b),
    );
    let (cd_even, cd_odd) = (
        _mm512_shuffle_i64x2::<0b10_00_10_00>(c, d),
        _mm512_shuffle_i64x2::<0b11_01_11_01>(c, d),
    );
    [
        _mm512_shuffle_i64x2::<0b10_00_10_00>(ab_even, cd_even),
        _mm512_shuffle_i64x2::<0b10_00_10_00>(ab_odd, cd_odd),
        _mm512_shuffle_i64x2::<0b11_01_11_01>(ab_even, cd_even),
        _mm512_shuffle_i64x2::<0b11_01_11_01>(ab_odd, cd_odd),
    ]
}
