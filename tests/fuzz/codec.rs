//! Messages, records, tokens and state files: what is accepted is read back equal, nothing panics, and no
//! length prefix is believed before the bytes are there.

use std::fmt::{Debug, Display};
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use mesh_types::consts::MESSAGE_MAX;
use mesh_types::record::Record;
use mesh_types::token::{TicketId, Token};
use mesh_types::{
    Announcement, IdentityKey, Idx, Membership, Message, Signed, State, Tombstone, WgKey,
};
use sha2::{Digest as _, Sha256};

use crate::harness::{Random, fuzz};
use crate::samples;

#[test]
fn a_message_that_is_accepted_survives_the_wire() {
    let samples: Vec<Vec<u8>> = samples::messages().iter().map(Message::encode).collect();
    fuzz("message", |random| {
        let bytes = random.input(&samples);
        let Ok(message) = Message::decode(&bytes) else {
            return false;
        };
        assert!(bytes.len() <= MESSAGE_MAX);
        let again = message.encode();
        // What the sender wrote shortest does not grow; absent optional fields may be written as null.
        assert!(
            again.len() <= bytes.len() + 32,
            "{} from {}",
            again.len(),
            bytes.len()
        );
        if again.len() <= MESSAGE_MAX {
            assert_eq!(Message::decode(&again), Ok(message));
        }
        true
    });
}

#[test]
fn a_record_is_kept_verbatim_and_only_its_own_signature_fits() {
    let authority = samples::authority();
    let membership = Signed::sign(samples::membership(2, 7), &authority);
    let announcement = Signed::sign(samples::announcement(2, 8), &samples::identity(2));
    let tombstone = Signed::sign(samples::tombstone(2, 9), &authority);
    let samples = [
        membership.bytes().to_vec(),
        announcement.bytes().to_vec(),
        tombstone.bytes().to_vec(),
    ];
    fuzz("record", |random| {
        let bytes = random.input(&samples);
        let signature = *random.pick(&[
            *membership.signature(),
            *announcement.signature(),
            *tombstone.signature(),
        ]);
        let key = authority.authority();
        let mut accepted = false;
        if let Some(record) = verbatim::<Membership>(&bytes, signature) {
            assert!(!record.verify_authority(&key) || record == membership);
            accepted = true;
        }
        if let Some(record) = verbatim::<Tombstone>(&bytes, signature) {
            assert!(!record.verify_authority(&key) || record == tombstone);
            accepted = true;
        }
        if let Some(record) = verbatim::<Announcement>(&bytes, signature) {
            assert!(!record.verify_identity() || record == announcement);
            accepted = true;
        }
        accepted
    });
}

fn verbatim<T: Record + Clone + PartialEq + Debug>(
    bytes: &[u8],
    signature: [u8; 64],
) -> Option<Signed<T>> {
    let record = Signed::<T>::parse(bytes.to_vec(), signature).ok()?;
    assert_eq!(record.bytes(), bytes);
    let wire = minicbor::to_vec(&record).expect("encodes");
    assert!(wire.len() <= record.encoded_len());
    assert_eq!(
        minicbor::decode::<Signed<T>>(&wire).ok().as_ref(),
        Some(&record)
    );
    let own = minicbor::to_vec(record.record()).expect("encodes");
    let again = Signed::<T>::parse(own, signature).expect("what we encode we accept");
    assert_eq!(again.record(), record.record());
    Some(record)
}

#[test]
fn a_token_that_is_accepted_is_printed_and_read_back_equal() {
    let text = samples::token().to_string();
    let encoded = text.strip_prefix("fsp1_").expect("prefix");
    let mut cbor = BASE64URL.decode(encoded).expect("base64");
    cbor.truncate(cbor.len() - 4);
    let (texts, cbors) = ([text.into_bytes()], [cbor]);
    fuzz("token", |random| {
        if random.below(2) == 0 {
            let bytes = random.input(&texts);
            return read_back::<Token>(&String::from_utf8_lossy(&bytes));
        }
        // Behind the checksum.
        let mut bytes = random.input(&cbors);
        let check = Sha256::digest(&bytes);
        bytes.extend_from_slice(&check[..4]);
        read_back::<Token>(&format!("fsp1_{}", BASE64URL.encode(bytes)))
    });
}

#[test]
fn a_name_or_key_that_is_accepted_is_printed_and_read_back_equal() {
    let samples = [
        samples::wg(1).to_string(),
        samples::wg(1).idx().to_string(),
        samples::token().ticket.to_string(),
    ]
    .map(String::into_bytes);
    fuzz("text", |random| {
        let bytes = random.input(&samples);
        let text = String::from_utf8_lossy(&bytes);
        let accepted = [
            read_back::<WgKey>(&text),
            read_back::<IdentityKey>(&text),
            read_back::<Idx>(&text),
            read_back::<TicketId>(&text),
        ];
        accepted.contains(&true)
    });
}

fn read_back<T: FromStr + Display + PartialEq>(text: &str) -> bool {
    let Ok(value) = text.parse::<T>() else {
        return false;
    };
    let again = value.to_string().parse::<T>();
    assert!(again.is_ok_and(|again| again == value), "{text:?}");
    true
}

#[test]
fn a_state_file_that_is_accepted_is_written_and_read_back_equal() {
    let file = samples::state().encode();
    let (files, bodies) = ([file.clone()], [file[42..].to_vec()]);
    fuzz("state", |random| {
        let bytes = match random.below(4) {
            0 => random.input(&files),
            // Behind the checksum, as somebody who may write the file would do it.
            _ => sealed_state(&random.input(&bodies)),
        };
        let Ok(state) = State::decode(&bytes) else {
            return false;
        };
        assert_eq!(State::decode(&state.encode()), Ok(state));
        true
    });
}

fn sealed_state(body: &[u8]) -> Vec<u8> {
    let mut out = b"farspanS".to_vec();
    out.extend(mesh_types::state::VERSION.to_be_bytes());
    out.extend_from_slice(&Sha256::digest(body));
    out.extend_from_slice(body);
    out
}

#[test]
fn a_length_prefix_takes_no_memory_before_its_bytes_are_there() {
    let before = peak_kib();
    let mut count = 0;
    let heads: [&[u8]; 6] = [
        &[0x5b, 0, 0, 0, 0x10, 0, 0, 0, 0],
        &[0x7b, 0, 0, 0, 0x10, 0, 0, 0, 0],
        &[0x9b, 0, 0, 0, 0x10, 0, 0, 0, 0],
        &[0xbb, 0, 0, 0, 0x10, 0, 0, 0, 0],
        &[0x9a, 0xff, 0xff, 0xff, 0xff],
        &[0x5a, 0xff, 0xff, 0xff, 0xff],
    ];
    let state = samples::state().encode();
    let messages = samples::messages();
    let inputs = messages.iter().map(Message::encode);
    for sample in inputs.chain([state[42..].to_vec()]) {
        for at in 0..sample.len() {
            for head in heads {
                // In place of one byte, which is the head of a list, map or string somewhere.
                let mut bytes = sample.clone();
                bytes.splice(at..=at, head.iter().copied());
                let _ = Message::decode(&bytes);
                let _ = State::decode(&sealed_state(&bytes));
                count += 1;
            }
        }
    }
    let grown = peak_kib() - before;
    println!("{count} inputs, {grown} KiB more address space at the peak");
    // One believed prefix is 4 GiB at least; threads of other tests reserve far less.
    assert!(grown < 2 * 1024 * 1024, "{grown} KiB");
}

/// Largest address space this process ever had.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("procfs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmPeak:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.and_then(|text| text.parse().ok()).expect("VmPeak")
}

#[test]
fn mutations_reach_behind_the_door() {
    let samples = [vec![1, 2, 3, 4, 5, 6, 7, 8]];
    let mut random = Random::new(1);
    let same = (0..1000)
        .filter(|_| random.input(&samples) == samples[0])
        .count();
    assert!((50..500).contains(&same), "{same}");
}
