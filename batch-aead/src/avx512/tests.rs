//! Poly1305 alone, where texts cannot be chosen through ChaCha20: at the limits of its limbs.

use proptest::prelude::*;

use super::{Avx512, TAG};

#[test]
fn the_edge_cases_of_rfc_8439_have_their_tags() {
    let Some(avx512) = Avx512::detect() else {
        return;
    };
    // Appendix A.3, test vectors 1 and 7 to 11: r, s, text, tag.
    let vectors = [
        ("", "", "00".repeat(64), String::new()),
        ("02", "", "ff".repeat(16), "03".into()),
        ("02", &"ff".repeat(16), ["02", &"00".repeat(15)].concat(), "03".into()),
        ("01", "", ["ff".repeat(16), ["f0", &"ff".repeat(15), "11", &"00".repeat(15)].concat()].concat(), "05".into()),
        ("01", "", ["ff".repeat(16), ["fb", &"fe".repeat(15), &"01".repeat(16)].concat()].concat(), String::new()),
        ("02", "", ["fd", &"ff".repeat(15)].concat(), ["fa", &"ff".repeat(15)].concat()),
        (
            "010000000000000004",
            "",
            "e33594d7505e43b900000000000000003394d7505e4379cd01000000000000000000000000000000000000000000000001".into(),
            "140000000000000055".into(),
        ),
        ("010000000000000004", "", "e33594d7505e43b900000000000000003394d7505e4379cd01".into(), "13".into()),
    ];
    for (i, (r, s, text, tag)) in vectors.iter().enumerate() {
        let mut text = unhex(text);
        // The last two are written without the zeros at their end.
        text.resize([64, 16, 16, 48, 48, 16, 64, 48][i], 0);
        let blocks: Vec<_> = text.chunks(TAG).map(block).collect();

        assert_eq!(
            avx512.poly1305(block(&unhex(r)), block(&unhex(s)), &blocks),
            block(&unhex(tag)),
            "{i}"
        );
        assert_eq!(
            simple(block(&unhex(r)), block(&unhex(s)), &blocks),
            block(&unhex(tag)),
            "{i}"
        );
    }
}

#[test]
fn the_largest_of_all_numbers_do_not_overflow_a_limb() {
    let Some(avx512) = Avx512::detect() else {
        return;
    };
    let most = [0xff; TAG];
    for count in 0..100 {
        let blocks = vec![most; count];
        assert_eq!(
            avx512.poly1305(most, most, &blocks),
            simple(most, most, &blocks),
            "{count}"
        );
    }
}

#[test]
fn what_is_not_below_p_is_reduced_whatever_the_limbs() {
    let Some(avx512) = Avx512::detect() else {
        return;
    };
    let (limb, top) = ((1 << 44) - 1, (1 << 42) - 1);
    // p is 2^130 - 5.
    assert_eq!(
        avx512.tag_of_limbs([limb - 5, limb, top]),
        u128::MAX - 5,
        "p - 1"
    );
    assert_eq!(avx512.tag_of_limbs([limb - 4, limb, top]), 0, "p");
    assert_eq!(avx512.tag_of_limbs([limb - 3, limb, top]), 1, "p + 1");
    assert_eq!(avx512.tag_of_limbs([limb, limb, top]), 4, "2^130 - 1");
    assert_eq!(avx512.tag_of_limbs([0, limb + 1, top]), 5, "2^130");
    assert_eq!(
        avx512.tag_of_limbs([limb, limb + 2, top]),
        (1 << 45) + 4,
        "2^130 + 2^45 - 1"
    );
}

proptest! {
    #[test]
    fn extreme_and_common_numbers_have_their_tags(r in number(), s in number(), blocks in proptest::collection::vec(number(), 0..24)) {
        if let Some(avx512) = Avx512::detect() {
            prop_assert_eq!(avx512.poly1305(r, s, &blocks), simple(r, s, &blocks));
        }
    }
}

/// Mostly bytes of all zeros or ones.
fn number() -> impl Strategy<Value = [u8; TAG]> {
    prop_oneof![
        any::<[u8; TAG]>(),
        any::<[bool; TAG]>().prop_map(|bits| bits.map(|bit| if bit { 0xff } else { 0 })),
        (0..8_u8, any::<bool>()).prop_map(|(by, up)| {
            (if up {
                u128::from(by)
            } else {
                u128::MAX - u128::from(by)
            })
            .to_le_bytes()
        }),
    ]
}

/// Poly1305 bit by bit: a number is its upper and its lower 128 bits.
fn simple(r: [u8; TAG], s: [u8; TAG], blocks: &[[u8; TAG]]) -> [u8; TAG] {
    fn add(a: (u64, u128), b: (u64, u128)) -> (u64, u128) {
        let (low, carried) = a.1.overflowing_add(b.1);
        let high = a.0 + b.0 + u64::from(carried);
        let (low, carried) = low.overflowing_add(u128::from(high >> 2) * 5);
        ((high & 3) + u64::from(carried), low)
    }
    let r = u128::from_le_bytes(r) & 0x0fff_fffc_0fff_fffc_0fff_fffc_0fff_ffff;
    let h = blocks.iter().fold((0, 0), |h, block| {
        let h = add(h, (1, u128::from_le_bytes(*block)));
        (0..128).rev().fold((0, 0), |product, bit| {
            let twice = add(product, product);
            if r >> bit & 1 == 1 {
                add(twice, h)
            } else {
                twice
            }
        })
    });
    // At most 2^130 + 4: p or more exactly where five more reach 2^130.
    let (low, carried) = h.1.overflowing_add(5);
    let reduced = if h.0 + u64::from(carried) >= 4 {
        low
    } else {
        h.1
    };
    reduced.wrapping_add(u128::from_le_bytes(s)).to_le_bytes()
}

/// These bytes, then zeros.
fn block(bytes: &[u8]) -> [u8; TAG] {
    let mut block = [0; TAG];
    block[..bytes.len()].copy_from_slice(bytes);
    block
}

fn unhex(digits: &str) -> Vec<u8> {
    (0..digits.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&digits[i..i + 2], 16).expect("hexadecimal"))
        .collect()
}
