//! Elements of sets and maps, and whatever else is nested, as the kernel tells it.

use std::collections::BTreeSet;

use netlink_packet_core::NLA_F_NESTED;

use super::map::{Attributes, Elements, Entry, Map, Value};
use super::range;
use crate::netlink::Raw;

/// Length of `struct nfgenmsg`, before a message's attributes.
const HEADER: usize = 4;
/// `NFTA_SET_ELEM_LIST_ELEMENTS`.
const ELEMENTS: u16 = 3;
/// `NFTA_SET_ELEM_*`.
const KEY: u16 = 1;
const DATA: u16 = 2;
const FLAGS: u16 = 3;
const OBJECT: u16 = 9;
const KEY_END: u16 = 10;
/// `NFTA_DATA_VALUE`.
const VALUE: u16 = 1;
/// `NFT_SET_ELEM_INTERVAL_END`.
const INTERVAL_END: u32 = 1;

/// What these messages say of a map's elements.
pub(super) fn read(map: &Map, messages: &[Raw]) -> Elements {
    let (mut elements, mut ends) = (Elements::new(), BTreeSet::new());
    for message in messages {
        let attributes = attributes(message);
        let lists = attributes.iter().filter(|(kind, _)| *kind == ELEMENTS);
        for (_, element) in lists.flat_map(|(_, list)| attributes_of(list)) {
            let Some(Element { key, entry, is_end }) = Element::parse(&element) else {
                continue;
            };
            if is_end {
                ends.insert(key);
            } else {
                elements.insert(key, entry);
            }
        }
    }
    if map.value == Value::Ranges && !map.is_concatenation() {
        range::close(&mut elements, &ends);
    }
    elements
}

/// The attributes of a message of nftables.
pub(super) fn attributes(message: &Raw) -> Attributes {
    attributes_of(message.body.get(HEADER..).unwrap_or(&[]))
}

struct Element {
    key: Vec<u8>,
    entry: Entry,
    /// Of a range of one field.
    is_end: bool,
}

impl Element {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let (mut key, mut entry, mut is_end) = (None, Entry::None, false);
        for (kind, value) in attributes_of(bytes) {
            match kind {
                KEY => key = data(&value),
                DATA => entry = data(&value).map_or(Entry::None, Entry::Fields),
                KEY_END => entry = data(&value).map_or(Entry::None, Entry::UpTo),
                OBJECT => {
                    let name = value.strip_suffix(&[0]).unwrap_or(&value);
                    entry = Entry::Object(String::from_utf8_lossy(name).into_owned());
                }
                FLAGS => {
                    let flags = u32::from_be_bytes(*value.first_chunk()?);
                    is_end = flags & INTERVAL_END != 0;
                }
                _ => {}
            }
        }
        let key = key?;
        Some(Self { key, entry, is_end })
    }
}

/// The value in a nested attribute.
fn data(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut attributes = attributes_of(bytes).into_iter();
    attributes.find_map(|(kind, value)| (kind == VALUE).then_some(value))
}

/// The attributes in a nested one: kind and value. What is cut short is left out.
pub(super) fn attributes_of(mut bytes: &[u8]) -> Attributes {
    let mut found = Vec::new();
    while let Some(&[a, b, c, d]) = bytes.first_chunk() {
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let Some(value) = bytes.get(4..length) else {
            break;
        };
        let kind = u16::from_ne_bytes([c, d]) & !NLA_F_NESTED;
        found.push((kind, value.to_vec()));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_attributes_are_read_and_what_is_cut_short_is_left_out() {
        let whole = [8, 0, 1, 0, 1, 2, 3, 4, 6, 0, 2, 0x80, 5, 6, 0, 0];
        let both = vec![(1, vec![1, 2, 3, 4]), (2, vec![5, 6])];
        assert_eq!(attributes_of(&whole), both);
        for end in 0..whole.len() {
            assert!(attributes_of(&whole[..end]).len() <= both.len());
        }
        assert_eq!(attributes_of(&[0; 8]), [], "a length of zero does not loop");
    }
}
