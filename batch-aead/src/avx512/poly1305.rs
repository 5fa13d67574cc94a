//! Poly1305 (RFC 8439 section 2.5) of eight messages, a message a lane of 64 bits: after Goll & Gueron, "Vectorization of
//! Poly1305 message authentication code" (2015), and with the multipliers of AVX-512 IFMA, which take 52 bits.
//!
//! A number modulo p = 2^130 - 5 is three limbs of 44, 44 and 42 bits. Between two steps h0 < 2^44, h1 < 2^44 + 2^11 and
//! h2 < 2^42, so that the limbs plus a block's are well below 2^52. A product of limbs at 2^132 and above comes
//! down by 2^132 = 4 * 2^130 = 20 modulo p.

use std::arch::x86_64::*;
use std::array::from_fn;

use zeroize::Zeroize;

const LIMB: i64 = (1 << 44) - 1;
const TOP_LIMB: i64 = (1 << 42) - 1;
/// What RFC 8439 section 2.5 clears in r, the lower and the upper half.
const CLAMP: [i64; 2] = [0x0fff_fffc_0fff_ffff, 0x0fff_fffc_0fff_fffc];

/// 16 bytes of each message: the lower and the upper 64 bits.
pub type Block = [__m512i; 2];

type Limbs = [__m512i; 3];

/// The state of eight messages.
pub struct Poly1305 {
    h: Limbs,
    r: Factor,
    s: Block,
}

/// What a number is multiplied with: its limbs, and 20 times the upper two.
#[derive(Clone, Copy)]
struct Factor {
    limbs: Limbs,
    by_20: [__m512i; 2],
}

/// The first four powers of r, highest first: with them, four blocks share one reduction.
pub struct Powers([Factor; 4]);

/// A sum of products, not reduced: the lower and the upper 52 bits of each are added up apart.
struct Sum {
    low: Limbs,
    high: Limbs,
}

impl Poly1305 {
    /// From r and s, not clamped yet.
    #[target_feature(enable = "avx512f,avx512vbmi2")]
    #[inline]
    pub fn new(r: Block, s: Block) -> Self {
        let r = from_fn(|half| _mm512_and_si512(r[half], _mm512_set1_epi64(CLAMP[half])));
        Self {
            h: [_mm512_setzero_si512(); 3],
            r: Factor::new(limbs(r)),
            s,
        }
    }

    #[target_feature(enable = "avx512f,avx512ifma")]
    #[inline]
    pub fn powers(&self) -> Powers {
        let r = self.r;
        let times_r = |power: &Factor| {
            let mut sum = Sum::zero();
            sum.add(power.limbs, &r);
            Factor::new(sum.reduce())
        };
        let r2 = times_r(&r);
        let r3 = times_r(&r2);
        Powers([times_r(&r3), r3, r2, r])
    }

    /// Four blocks of every message: ((((h + b0) r + b1) r + b2) r + b3) r, multiplied out.
    #[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
    #[inline]
    pub fn absorb_four(&mut self, blocks: [Block; 4], powers: &Powers) {
        let mut sum = Sum::zero();
        for (i, (block, power)) in blocks.into_iter().zip(&powers.0).enumerate() {
            let block = limbs_of_block(block);
            sum.add(if i == 0 { add(self.h, block) } else { block }, power);
        }
        self.h = sum.reduce();
    }

    /// A block of those messages that `lanes` has a bit for.
    #[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
    #[inline]
    pub fn absorb(&mut self, block: Block, lanes: __mmask8) {
        let mut sum = Sum::zero();
        sum.add(add(self.h, limbs_of_block(block)), &self.r);
        let h = sum.reduce();
        self.h = from_fn(|i| _mm512_mask_mov_epi64(self.h[i], lanes, h[i]));
    }

    /// As if what was absorbed had come to this.
    #[cfg(test)]
    #[target_feature(enable = "avx512f")]
    pub fn set(&mut self, limbs: [i64; 3]) {
        self.h = limbs.map(|limb| _mm512_set1_epi64(limb));
    }

    /// The tags of what was absorbed.
    #[target_feature(enable = "avx512f")]
    #[inline]
    pub fn tags(&self) -> Block {
        // All carries, and then at most p - 1: h, or h + 5 - 2^130 where that is not negative.
        let h = carry(carry(self.h));
        let five_more = carry_up([_mm512_add_epi64(h[0], _mm512_set1_epi64(5)), h[1], h[2]]);
        let beyond = _mm512_cmpgt_epu64_mask(five_more[2], _mm512_set1_epi64(TOP_LIMB));
        let [h0, h1, h2]: Limbs = from_fn(|i| _mm512_mask_mov_epi64(h[i], beyond, five_more[i]));
        let low = _mm512_or_si512(h0, _mm512_slli_epi64::<44>(h1));
        let high = _mm512_or_si512(_mm512_srli_epi64::<20>(h1), _mm512_slli_epi64::<24>(h2));
        let tag_low = _mm512_add_epi64(low, self.s[0]);
        let carried = _mm512_cmplt_epu64_mask(tag_low, low);
        let tag_high = _mm512_add_epi64(high, self.s[1]);
        [
            tag_low,
            _mm512_mask_add_epi64(tag_high, carried, tag_high, _mm512_set1_epi64(1)),
        ]
    }
}

impl Factor {
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn new(limbs: Limbs) -> Self {
        let by_20 =
            |limb| _mm512_add_epi64(_mm512_slli_epi64::<4>(limb), _mm512_slli_epi64::<2>(limb));
        Self {
            limbs,
            by_20: [by_20(limbs[1]), by_20(limbs[2])],
        }
    }
}

impl Zeroize for Factor {
    fn zeroize(&mut self) {
        self.limbs.zeroize();
        self.by_20.zeroize();
    }
}

impl Drop for Poly1305 {
    fn drop(&mut self) {
        self.r.zeroize();
        self.s.zeroize();
    }
}

impl Drop for Powers {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl Sum {
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn zero() -> Self {
        Self {
            low: [_mm512_setzero_si512(); 3],
            high: [_mm512_setzero_si512(); 3],
        }
    }

    /// Adds the product of `a`, whose limbs are below 2^52, and `b`.
    #[target_feature(enable = "avx512f,avx512ifma")]
    #[inline]
    fn add(&mut self, [a0, a1, a2]: Limbs, b: &Factor) {
        let ([b0, b1, b2], [b1_20, b2_20]) = (b.limbs, b.by_20);
        let columns = [
            [(a0, b0), (a1, b2_20), (a2, b1_20)],
            [(a0, b1), (a1, b0), (a2, b2_20)],
            [(a0, b2), (a1, b1), (a2, b0)],
        ];
        for term in 0..3 {
            for (limb, column) in columns.iter().enumerate() {
                let (a, b) = column[term];
                self.low[limb] = _mm512_madd52lo_epu64(self.low[limb], a, b);
                self.high[limb] = _mm512_madd52hi_epu64(self.high[limb], a, b);
            }
        }
    }

    /// The sum of at most twelve products modulo p, in limbs as between two steps.
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn reduce(self) -> Limbs {
        // 2^52 of one limb are 2^8 of the next; above the last, 2^140 = 2^10 * 2^130 = 5 * 2^10.
        let [low0, low1, low2] = self.low;
        let [high0, high1, high2] = self.high;
        let middle = _mm512_add_epi64(low1, _mm512_slli_epi64::<8>(high0));
        let top = _mm512_add_epi64(low2, _mm512_slli_epi64::<8>(high1));
        let [h0, h1, h2] = carry_up([low0, middle, top]);
        let over = _mm512_add_epi64(_mm512_srli_epi64::<42>(h2), _mm512_slli_epi64::<10>(high2));
        let h0 = _mm512_add_epi64(h0, times_5(over));
        let h1 = _mm512_add_epi64(h1, _mm512_srli_epi64::<44>(h0));
        [
            _mm512_and_si512(h0, _mm512_set1_epi64(LIMB)),
            h1,
            _mm512_and_si512(h2, _mm512_set1_epi64(TOP_LIMB)),
        ]
    }
}

/// The 128 bits of a block and the bit above them, as limbs.
#[target_feature(enable = "avx512f,avx512vbmi2")]
#[inline]
fn limbs_of_block(block: Block) -> Limbs {
    let [low, middle, high] = limbs(block);
    [
        low,
        middle,
        _mm512_or_si512(high, _mm512_set1_epi64(1 << 40)),
    ]
}

#[target_feature(enable = "avx512f,avx512vbmi2")]
#[inline]
fn limbs([low, high]: Block) -> Limbs {
    let limb = _mm512_set1_epi64(LIMB);
    [
        _mm512_and_si512(low, limb),
        _mm512_and_si512(_mm512_shrdi_epi64::<44>(low, high), limb),
        _mm512_srli_epi64::<24>(high),
    ]
}

#[target_feature(enable = "avx512f")]
#[inline]
fn add(a: Limbs, b: Limbs) -> Limbs {
    from_fn(|i| _mm512_add_epi64(a[i], b[i]))
}

#[target_feature(enable = "avx512f")]
#[inline]
fn times_5(a: __m512i) -> __m512i {
    _mm512_add_epi64(a, _mm512_slli_epi64::<2>(a))
}

/// Carries from limb to limb, and leaves what is too much in the last.
#[target_feature(enable = "avx512f")]
#[inline]
fn carry_up([h0, h1, h2]: Limbs) -> Limbs {
    let limb = _mm512_set1_epi64(LIMB);
    let h1 = _mm512_add_epi64(h1, _mm512_srli_epi64::<44>(h0));
    let h2 = _mm512_add_epi64(h2, _mm512_srli_epi64::<44>(h1));
    [_mm512_and_si512(h0, limb), _mm512_and_si512(h1, limb), h2]
}

/// Carries all around, from the last limb to the first too.
#[target_feature(enable = "avx512f")]
#[inline]
fn carry(h: Limbs) -> Limbs {
    let [h0, h1, h2] = carry_up(h);
    let over = times_5(_mm512_srli_epi64::<42>(h2));
    [
        _mm512_add_epi64(h0, over),
        h1,
        _mm512_and_si512(h2, _mm512_set1_epi64(TOP_LIMB)),
    ]
}
