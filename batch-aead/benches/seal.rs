//! What a call costs, for each implementation that this processor can run.

use batch_aead::{Aead, Key, Message, TAG, available};
use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};

const MESSAGES: [usize; 5] = [1, 4, 8, 16, 44];

fn main() {
    divan::main();
}

/// Each implementation with each length of text.
fn cases() -> Vec<Case> {
    let lengths = [64, 512, 1424];
    available()
        .into_iter()
        .flat_map(|aead| lengths.map(|length| Case { aead, length }))
        .collect()
}

#[derive(Clone, Copy)]
struct Case {
    aead: &'static dyn Aead,
    length: usize,
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} B", self.aead.name(), self.length)
    }
}

#[divan::bench(args = cases(), consts = MESSAGES)]
fn seal<const N: usize>(bencher: Bencher<'_, '_>, Case { aead, length }: Case) {
    let key = Key::new(&[7; 32]);
    let mut texts = vec![vec![1; length + TAG]; N];
    bencher
        .counter(ItemsCount::new(N))
        .counter(BytesCount::new(N * length))
        .bench_local(|| {
            let mut messages = messages(&key, &mut texts);
            aead.seal(black_box(&mut messages));
        });
}

/// A text can be opened once, so each time has a copy of its own, made outside of what is measured.
#[divan::bench(args = cases(), consts = MESSAGES)]
fn open<const N: usize>(bencher: Bencher<'_, '_>, Case { aead, length }: Case) {
    let key = Key::new(&[7; 32]);
    let mut texts = vec![vec![1; length + TAG]; N];
    aead.seal(&mut messages(&key, &mut texts));
    bencher
        .counter(ItemsCount::new(N))
        .counter(BytesCount::new(N * length))
        .with_inputs(|| texts.clone())
        .bench_local_refs(|texts| {
            let mut authentic = [false; N];
            aead.open(black_box(&mut messages(&key, texts)), &mut authentic);
            assert_eq!(authentic, [true; N]);
        });
}

fn messages<'a>(key: &'a Key, texts: &'a mut [Vec<u8>]) -> Vec<Message<'a>> {
    texts
        .iter_mut()
        .zip(0..)
        .map(|(bytes, counter)| Message {
            key,
            counter,
            bytes,
        })
        .collect()
}
