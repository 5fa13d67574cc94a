//! Sets of ranges, as netlink has them. Where the key is one field, a range is two elements: its first key, and the
//! one after its last, which is flagged as an end and missing at the top. Where the key is several fields, it is one
//! element with two keys, the second one inclusive.

use std::collections::BTreeSet;

use netlink_packet_core::{DefaultNla, Emitable as _, NLA_F_NESTED};
use netlink_packet_netfilter::nftables::{
    DataAttribute, SetDescription, SetElementAttribute, SetElementFlags,
};

use super::expression::Part;
use super::map::{Elements, Entry};

/// `NFTA_LIST_ELEM`.
const LIST_ELEMENT: u16 = 1;
/// `NFTA_SET_FIELD_LEN`.
const FIELD_LENGTH: u16 = 1;
/// `NFTA_DATA_VALUE`.
const VALUE: u16 = 1;

/// How long the fields of a key are.
pub(super) fn fields(parts: &[Part]) -> SetDescription {
    let field = |part: &Part| {
        let length = DefaultNla::new(FIELD_LENGTH, part.len().to_be_bytes().to_vec());
        let mut bytes = vec![0; length.buffer_len()];
        length.emit(&mut bytes);
        DefaultNla::new(LIST_ELEMENT | NLA_F_NESTED, bytes)
    };
    SetDescription::Concat(parts.iter().map(field).collect())
}

/// The second key of an element of several fields.
pub(super) fn last(key: &[u8]) -> SetElementAttribute {
    SetElementAttribute::KeyEnd(vec![DefaultNla::new(VALUE, key.to_vec())])
}

/// The element after a range of one field; `None` at the top.
pub(super) fn end(last: &[u8]) -> Option<Vec<SetElementAttribute>> {
    Some(vec![
        SetElementAttribute::Key(DataAttribute::Value(after(last)?)),
        SetElementAttribute::Flags(SetElementFlags::IntervalEnd),
    ])
}

/// Gives each first key its last one.
pub(super) fn close(elements: &mut Elements, ends: &BTreeSet<Vec<u8>>) {
    for (first, entry) in elements {
        let end = ends.range(first.clone()..).find(|end| *end != first);
        let last = end.map_or_else(|| vec![u8::MAX; first.len()], |end| before(end));
        *entry = Entry::UpTo(last);
    }
}

fn after(key: &[u8]) -> Option<Vec<u8>> {
    let mut key = key.to_vec();
    for byte in key.iter_mut().rev() {
        *byte = byte.wrapping_add(1);
        if *byte != 0 {
            return Some(key);
        }
    }
    None
}

fn before(key: &[u8]) -> Vec<u8> {
    let mut key = key.to_vec();
    for byte in key.iter_mut().rev() {
        *byte = byte.wrapping_sub(1);
        if *byte != u8::MAX {
            break;
        }
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_after_the_last_key_and_read_back_as_it() {
        for (last, end) in [
            (vec![10, 0, 0, 255], Some(vec![10, 0, 1, 0])),
            (vec![10, 255, 255, 255], Some(vec![11, 0, 0, 0])),
            (vec![255; 4], None),
            (vec![0; 4], Some(vec![0, 0, 0, 1])),
        ] {
            assert_eq!(after(&last), end);
            if let Some(end) = end {
                assert_eq!(before(&end), last);
            }
        }
    }

    #[test]
    fn each_range_is_closed_by_the_next_end_and_the_last_one_by_the_top() {
        let mut elements =
            Elements::from([[10, 0], [10, 8], [200, 0]].map(|first| (first.to_vec(), Entry::None)));
        let ends = BTreeSet::from([vec![0, 0], vec![10, 8], vec![10, 16]]);

        close(&mut elements, &ends);

        let lasts: Vec<_> = elements.into_values().collect();
        assert_eq!(
            lasts,
            [[10, 7], [10, 15], [255, 255]].map(|last| Entry::UpTo(last.to_vec()))
        );
    }
}
