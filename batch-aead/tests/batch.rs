//! Every implementation against ring: the same bytes, whatever is mixed in one call, and nothing else touched.

use batch_aead::{Aead, Key, LANES, Message, TAG, available, best, reference};
use proptest::prelude::*;

#[test]
fn every_length_seals_and_opens_as_ring_does() {
    let lengths = (0..=2048).chain([4095, 4096, 9001, 16_384, 65_520, 65_535]);
    for length in lengths {
        let specs: Vec<_> = (0..LANES)
            .map(|i| Spec {
                key: i as u8,
                counter: i as u64,
                length,
                ..SPEC
            })
            .collect();
        assert_as_ring(&specs);
        assert_as_ring(&specs[..LANES / 2]);
    }
}

#[test]
fn every_alignment_seals_and_opens_as_ring_does() {
    for length in [0, 1, 15, 16, 48, 63, 64, 65, 200, 1424] {
        for alignment in 0..64 {
            let specs = [Spec {
                alignment,
                length,
                ..SPEC
            }; LANES];
            assert_as_ring(&specs);
            assert_as_ring(&specs[..LANES / 2]);
        }
    }
}

#[test]
fn every_number_of_messages_seals_and_opens_as_ring_does() {
    for count in 0..=40 {
        for length in [0, 64, 100, 300] {
            assert_as_ring(&vec![Spec { length, ..SPEC }; count]);
            let growing = (0..count).map(|i| Spec {
                length: length + 7 * i,
                ..SPEC
            });
            assert_as_ring(&growing.clone().collect::<Vec<_>>());
            assert_as_ring(&growing.rev().collect::<Vec<_>>());
        }
    }
}

#[test]
fn a_short_message_among_long_ones_is_like_any_other() {
    for short in 0..=200 {
        for (place, count) in [
            (0, LANES),
            (2, LANES),
            (5, LANES),
            (15, LANES),
            (0, 8),
            (3, 8),
            (6, 7),
        ] {
            let mut specs = [Spec {
                length: 260,
                ..SPEC
            }; LANES];
            specs[place].length = short;
            assert_as_ring(&specs[..count]);
        }
    }
}

#[test]
fn each_message_has_its_own_key_and_counter() {
    let counters = [
        0,
        1,
        u32::MAX as u64 - 1,
        u32::MAX as u64,
        u32::MAX as u64 + 1,
        u64::MAX - 1,
        u64::MAX,
    ];
    for shift in 0..counters.len() {
        let specs: Vec<_> = (0..2 * LANES)
            .map(|i| Spec {
                key: i as u8,
                counter: counters[(i + shift) % counters.len()],
                length: 90,
                ..SPEC
            })
            .collect();
        assert_as_ring(&specs);
    }
}

#[test]
fn the_key_stream_is_that_of_rfc_8439() {
    // Appendix A.1, test vectors 2 and 3 (block 1), and 4 (block 2).
    let ones = unhex(
        "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed\
         29b721769ce64e43d57133b074d839d531ed1f28510afb45ace10a1f4b794d6f",
    );
    let last_bit = unhex(
        "3aeb5224ecf849929b9d828db1ced4dd832025e8018b8160b82284f3c949aa5a\
         8eca00bbb4a73bdad192b5c42f73f2fd4e273644c8b36125a64addeb006c13a0",
    );
    let all_but_the_first_byte = unhex(
        "72d54dfbf12ec44b362692df94137f328fea8da73990265ec1bbbea1ae9af0ca\
         13b25aa26cb4a648cb9b9d1be65b2c0924a66c54d545ec1b7374f4872e99f096",
    );
    let zero = [0; 32];
    let mut one = zero;
    one[31] = 1;
    let mut ff = zero;
    ff[1] = 0xff;
    for aead in available() {
        for (key, row, expected) in [
            (zero, 0, &ones),
            (one, 0, &last_bit),
            (ff, 1, &all_but_the_first_byte),
        ] {
            let key = Key::new(&key);
            let mut texts = vec![[0; 128 + TAG]; LANES];
            let mut messages: Vec<_> = texts
                .iter_mut()
                .map(|bytes| Message {
                    key: &key,
                    counter: 0,
                    bytes: &mut bytes[..],
                })
                .collect();

            aead.seal(&mut messages);

            assert!(
                texts
                    .iter()
                    .all(|text| text[64 * row..][..64] == expected[..]),
                "{}",
                aead.name()
            );
        }
    }
}

#[test]
fn each_flipped_bit_is_refused_while_the_neighbours_open() {
    for aead in available() {
        for length in [1, 20, 64, 70] {
            for bit in 0..8 * (length + TAG) {
                let place = bit % LANES;
                let specs = [Spec { length, ..SPEC }; LANES];
                let mut sealed = Batch::new(&specs);
                sealed.seal(aead);
                sealed.bytes(place)[bit / 8] ^= 1 << (bit % 8);

                let authentic = sealed.open(aead);

                assert!(
                    (0..LANES).all(|i| authentic[i] == (i != place)),
                    "{}: {length} {bit}",
                    aead.name()
                );
                let plain = Batch::new(&specs);
                assert!(
                    (0..LANES).all(|i| (sealed.text(i) == plain.text(i)) == (i != place)),
                    "{}",
                    aead.name()
                );
            }
        }
    }
}

#[test]
fn no_plaintext_is_left_where_the_tag_was_wrong() {
    for aead in available() {
        let specs = [Spec {
            length: 500,
            ..SPEC
        }; LANES];
        let mut sealed = Batch::new(&specs);
        sealed.seal(aead);
        sealed.bytes(3)[500] ^= 1;

        sealed.open(aead);

        let plain = Batch::new(&specs);
        let same = sealed
            .text(3)
            .iter()
            .zip(plain.text(3))
            .filter(|(a, b)| a == b)
            .count();
        assert!(same < 20, "{}: {same} of 500 bytes", aead.name());
    }
}

#[test]
fn another_counter_or_key_is_refused() {
    for aead in available() {
        for wrong in [
            Spec {
                counter: SPEC.counter + 1,
                ..SPEC
            },
            Spec {
                counter: SPEC.counter ^ 1 << 32,
                ..SPEC
            },
            Spec {
                counter: SPEC.counter ^ 1 << 63,
                ..SPEC
            },
            Spec {
                key: SPEC.key + 1,
                ..SPEC
            },
        ] {
            let mut batch = Batch::new(&[SPEC; LANES]);
            batch.seal(aead);
            batch.specs[9] = wrong;

            let authentic = batch.open(aead);

            assert!(
                (0..LANES).all(|i| authentic[i] == (i != 9)),
                "{}: {wrong:?}",
                aead.name()
            );
        }
    }
}

#[test]
fn what_is_shorter_than_a_tag_is_left_alone_and_never_authentic() {
    let key = Key::new(&[1; 32]);
    for aead in available() {
        for length in 0..TAG {
            let mut short = [7; TAG];
            let mut others = vec![[8; 100]; LANES];
            let mut messages: Vec<_> = others
                .iter_mut()
                .map(|bytes| Message {
                    key: &key,
                    counter: 1,
                    bytes: &mut bytes[..],
                })
                .collect();
            messages[length].bytes = &mut short[..length];
            let mut authentic = [true; LANES];

            aead.seal(&mut messages);
            aead.open(&mut messages, &mut authentic);

            assert!(
                (0..LANES).all(|i| authentic[i] == (i != length)),
                "{}",
                aead.name()
            );
            assert_eq!(short, [7; TAG], "{}", aead.name());
        }
    }
}

#[test]
fn messages_without_room_for_the_answer_stay_sealed() {
    for aead in available() {
        for room in [0, 1, 15, 16, 17, 31] {
            let specs = [Spec { length: 80, ..SPEC }; 2 * LANES];
            let mut batch = Batch::new(&specs);
            batch.seal(aead);
            let mut authentic = vec![false; room];

            batch.with_messages(|messages| aead.open(messages, &mut authentic));

            assert!(authentic.iter().all(|authentic| *authentic));
            let mut sealed = Batch::new(&specs);
            sealed.seal(aead);
            assert!(
                (room..2 * LANES).all(|i| batch.text(i) == sealed.text(i)),
                "{}",
                aead.name()
            );
        }
    }
}

#[test]
fn answers_without_a_message_stay_as_they_are() {
    for aead in available() {
        let mut batch = Batch::new(&[SPEC; 20]);
        batch.seal(aead);
        let mut authentic = [false; 50];

        batch.with_messages(|messages| aead.open(messages, &mut authentic));

        assert!((0..50).all(|i| authentic[i] == (i < 20)), "{}", aead.name());
    }
}

#[test]
fn the_best_is_the_last_of_the_available() {
    assert_eq!(available()[0].name(), reference().name());
    assert_eq!(best().name(), available()[available().len() - 1].name());
}

#[test]
fn debug_output_has_no_secret() {
    assert_eq!(format!("{:?}", Key::new(&[0x5a; 32])), "Key { .. }");
}

proptest! {
    #[test]
    fn any_mix_is_sealed_and_opened_as_ring_does(specs in mixes()) {
        assert_as_ring(&specs);
    }

    #[test]
    fn in_any_mix_just_the_forged_are_refused(
        specs in mixes(),
        forged in proptest::collection::vec(any::<(bool, u32)>(), 48),
    ) {
        for aead in available() {
            let mut batch = Batch::new(&specs);
            batch.seal(aead);
            for (i, (forged, bit)) in forged.iter().take(specs.len()).enumerate() {
                let bytes = batch.bytes(i);
                let bit = *bit as usize % (8 * bytes.len());
                bytes[bit / 8] ^= u8::from(*forged) << (bit % 8);
            }

            let authentic = batch.open(aead);

            prop_assert!(authentic.iter().zip(&forged).all(|(authentic, (forged, _))| authentic != forged));
        }
    }
}

/// Messages of about one length, which go through the lanes, or of any.
fn mixes() -> impl Strategy<Value = Vec<Spec>> {
    let length = prop_oneof![0..=100_usize, 0..=1500_usize, Just(1424)];
    (
        length,
        prop_oneof![Just(1_usize), Just(2), Just(100), Just(1500)],
    )
        .prop_flat_map(|(longest, spread)| {
            let shorter_by = (0..spread).prop_map(move |by| longest.saturating_sub(by));
            let counter = prop_oneof![any::<u64>(), 0..3_u64, u64::MAX - 2..=u64::MAX];
            let spec = (0..4_u8, counter, 0..64_usize, shorter_by).prop_map(
                |(key, counter, alignment, length)| Spec {
                    key,
                    counter,
                    alignment,
                    length,
                },
            );
            proptest::collection::vec(spec, 0..48)
        })
}

/// What a message is made from.
#[derive(Debug, Clone, Copy)]
struct Spec {
    key: u8,
    counter: u64,
    /// Its address modulo 64.
    alignment: usize,
    length: usize,
}

const SPEC: Spec = Spec {
    key: 3,
    counter: 0x0102_0304_0506_0708,
    alignment: 0,
    length: 100,
};

/// Bytes before and after each message that nobody may write.
const GUARD: usize = 64;

/// Messages of deterministic texts, each in a buffer of its own between guards.
struct Batch {
    specs: Vec<Spec>,
    keys: Vec<Key>,
    buffers: Vec<Vec<u8>>,
}

impl Batch {
    fn new(specs: &[Spec]) -> Self {
        let buffers = specs.iter().enumerate().map(|(i, spec)| {
            let mut buffer = vec![0; spec.length + TAG + 2 * GUARD + 128];
            let start = start(&buffer, spec) - GUARD;
            let mut seed = (i + 1) as u32;
            for byte in &mut buffer[start..] {
                // The generator of "Numerical Recipes"; its upper bits are good enough.
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                *byte = (seed >> 24) as u8;
            }
            buffer
        });
        Self {
            specs: specs.to_vec(),
            keys: (0..=255).map(|key| Key::new(&[key; 32])).collect(),
            buffers: buffers.collect(),
        }
    }

    fn with_messages(&mut self, call: impl FnOnce(&mut [Message<'_>])) {
        let messages = self
            .buffers
            .iter_mut()
            .zip(&self.specs)
            .map(|(buffer, spec)| {
                let bytes = message(buffer, spec);
                Message {
                    key: &self.keys[usize::from(spec.key)],
                    counter: spec.counter,
                    bytes,
                }
            });
        call(&mut messages.collect::<Vec<_>>());
    }

    fn seal(&mut self, aead: &dyn Aead) {
        self.with_messages(|messages| aead.seal(messages));
    }

    fn open(&mut self, aead: &dyn Aead) -> Vec<bool> {
        let mut authentic = vec![false; self.specs.len()];
        self.with_messages(|messages| aead.open(messages, &mut authentic));
        authentic
    }

    fn bytes(&mut self, i: usize) -> &mut [u8] {
        message(&mut self.buffers[i], &self.specs[i])
    }

    fn text(&self, i: usize) -> &[u8] {
        &self.buffers[i][start(&self.buffers[i], &self.specs[i])..][..self.specs[i].length]
    }

    /// A message with its guards.
    fn guarded(&self, i: usize) -> &[u8] {
        let start = start(&self.buffers[i], &self.specs[i]) - GUARD;
        &self.buffers[i][start..][..self.specs[i].length + TAG + 2 * GUARD]
    }
}

/// Where a message starts in its buffer.
fn start(buffer: &[u8], spec: &Spec) -> usize {
    GUARD + spec.alignment + (64 - buffer.as_ptr().addr() % 64) % 64
}

fn message<'a>(buffer: &'a mut [u8], spec: &Spec) -> &'a mut [u8] {
    let start = start(buffer, spec);
    &mut buffer[start..][..spec.length + TAG]
}

/// Each implementation seals what ring seals, and opens it again.
fn assert_as_ring(specs: &[Spec]) {
    let plain = Batch::new(specs);
    let mut expected = Batch::new(specs);
    expected.seal(reference());
    for aead in available() {
        let mut batch = Batch::new(specs);
        batch.seal(aead);
        for (i, spec) in specs.iter().enumerate() {
            assert!(
                batch.guarded(i) == expected.guarded(i),
                "{} seals {i} of {}: {spec:?}",
                aead.name(),
                specs.len()
            );
        }

        let authentic = batch.open(aead);

        for (i, spec) in specs.iter().enumerate() {
            assert!(
                authentic[i],
                "{} does not open {i} of {}: {spec:?}",
                aead.name(),
                specs.len()
            );
            assert!(
                batch.text(i) == plain.text(i),
                "{} opens {i} of {}: {spec:?}",
                aead.name(),
                specs.len()
            );
            let end = GUARD + spec.length;
            assert!(
                batch.guarded(i)[..GUARD] == plain.guarded(i)[..GUARD],
                "before {i}: {spec:?}"
            );
            assert!(
                batch.guarded(i)[end + TAG..] == plain.guarded(i)[end + TAG..],
                "behind {i}: {spec:?}"
            );
        }
    }
}

fn unhex(digits: &str) -> Vec<u8> {
    (0..digits.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&digits[i..i + 2], 16).expect("hexadecimal"))
        .collect()
}
