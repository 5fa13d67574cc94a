//! One message at a time, by ring: the reference, and what becomes of messages that would not fill the lanes.

use ring::aead::{Aad, Nonce, Tag};

use crate::{Aead, Message, TAG};

#[derive(Debug)]
pub struct Ring;

impl Aead for Ring {
    fn name(&self) -> &'static str {
        "ring"
    }

    fn seal(&self, messages: &mut [Message<'_>]) {
        messages.iter_mut().for_each(seal);
    }

    fn open(&self, messages: &mut [Message<'_>], authentic: &mut [bool]) {
        for (message, authentic) in messages.iter_mut().zip(authentic) {
            *authentic = open(message);
        }
    }
}

pub fn seal(message: &mut Message<'_>) {
    let Message {
        key,
        counter,
        bytes,
    } = message;
    let Some((text, room)) = bytes.split_last_chunk_mut::<TAG>() else {
        return;
    };
    match key
        .ring
        .seal_in_place_separate_tag(nonce(*counter), Aad::empty(), text)
    {
        Ok(tag) => room.copy_from_slice(tag.as_ref()),
        // More than 256 GB under one nonce.
        Err(ring::error::Unspecified) => text.fill(0),
    }
}

pub fn open(message: &mut Message<'_>) -> bool {
    let Message {
        key,
        counter,
        bytes,
    } = message;
    let Some((text, tag)) = bytes.split_last_chunk_mut::<TAG>() else {
        return false;
    };
    let tag = Tag::from(*tag);
    let opened = key
        .ring
        .open_in_place_separate_tag(nonce(*counter), Aad::empty(), tag, text, 0..)
        .is_ok();
    if !opened {
        text.fill(0);
    }
    opened
}

/// Of WireGuard, 5.4.6: four zero bytes, then the counter.
fn nonce(counter: u64) -> Nonce {
    let mut nonce = [0; ring::aead::NONCE_LEN];
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}
