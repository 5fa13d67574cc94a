//! ChaCha20 (RFC 8439 section 2.3) of sixteen messages, a message a lane: after Goll & Gueron, "Vectorization on ChaCha
//! stream cipher" (2014).

use std::arch::x86_64::*;
use std::array::from_fn;

use zeroize::Zeroize;

/// The state before the first round for block 0, or for a lane that is ahead, a later one.
pub struct ChaCha20([__m512i; 16]);

/// Quarter rounds (RFC 8439 section 2.1) of these words, step by step together, as they do not wait for each other. A
/// macro, so that all indices are constants and the words stay in registers.
macro_rules! quarter_rounds {
    ($x:ident, $([$a:literal, $b:literal, $c:literal, $d:literal]),+) => {
        $(quarter_rounds!(@ $x, $a += $b, $d <<<= 16);)+
        $(quarter_rounds!(@ $x, $c += $d, $b <<<= 12);)+
        $(quarter_rounds!(@ $x, $a += $b, $d <<<= 8);)+
        $(quarter_rounds!(@ $x, $c += $d, $b <<<= 7);)+
    };
    (@ $x:ident, $a:literal += $b:literal, $d:literal <<<= $by:literal) => {
        $x[$a] = _mm512_add_epi32($x[$a], $x[$b]);
        $x[$d] = _mm512_rol_epi32::<$by>(_mm512_xor_si512($x[$d], $x[$a]));
    };
}

impl ChaCha20 {
    /// From the eight words of each message's key, the two of its counter, and by how many blocks it is ahead.
    #[target_feature(enable = "avx512f")]
    #[inline]
    pub fn new(key: [__m512i; 8], counter: [__m512i; 2], ahead: __m512i) -> Self {
        let [k0, k1, k2, k3, k4, k5, k6, k7] = key;
        let [c0, c1, c2, c3] = [0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574]
            .map(|word| _mm512_set1_epi32(word));
        let zero = _mm512_setzero_si512();
        Self([
            c0, c1, c2, c3, k0, k1, k2, k3, k4, k5, k6, k7, ahead, zero, counter[0], counter[1],
        ])
    }

    /// One 64-byte block of each message's key stream, as sixteen words.
    #[target_feature(enable = "avx512f")]
    #[inline]
    pub fn block(&self, number: u32) -> [__m512i; 16] {
        let mut start = self.0;
        start[12] = _mm512_add_epi32(start[12], _mm512_set1_epi32(number.cast_signed()));
        let mut x = start;
        for _ in 0..10 {
            // Columns, then diagonals.
            quarter_rounds!(
                x,
                [0, 4, 8, 12],
                [1, 5, 9, 13],
                [2, 6, 10, 14],
                [3, 7, 11, 15]
            );
            quarter_rounds!(
                x,
                [0, 5, 10, 15],
                [1, 6, 11, 12],
                [2, 7, 8, 13],
                [3, 4, 9, 14]
            );
        }
        from_fn(|word| _mm512_add_epi32(x[word], start[word]))
    }
}

impl Drop for ChaCha20 {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}
