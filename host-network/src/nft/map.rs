//! Sets and maps of our table: what changes from peer to peer stands in their elements, so that a change touches
//! an element and never a rule.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};

use mesh_types::consts::NFT_TABLE;
use netlink_packet_core::{DefaultNla, NLA_F_NESTED, NLM_F_CREATE};
use netlink_packet_netfilter::NetfilterProtoFamily;
use netlink_packet_netfilter::nftables::{
    DataAttribute, ListAttribute, NfTablesMessage, SetAttribute, SetElementAttribute,
    SetElementList, SetElementMessage, SetFlags, SetMessage,
};

use super::expression::{Family, Part};
use super::{Tables, element, range};
use crate::HostError;

/// A set or map: which fields lead to what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Map {
    pub(crate) name: &'static str,
    pub(crate) key: &'static [Part],
    pub(crate) value: Value,
}

/// What an element has beside its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Value {
    /// Nothing: a set.
    None,
    /// The upper end: a set of ranges, which do not overlap.
    Ranges,
    /// Fields to be written.
    Fields(&'static [Part]),
    /// A stateful object of this kind.
    Object(ObjectKind),
}

/// Stateful objects (`NFT_OBJECT_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ObjectKind {
    Counter = 1,
    Limit = 4,
}

/// An element's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Entry {
    None,
    /// The last key of a range that begins with the element's. With several fields: of each field.
    UpTo(Vec<u8>),
    Fields(Vec<u8>),
    Object(String),
}

/// The elements of one map, by key.
pub(crate) type Elements = BTreeMap<Vec<u8>, Entry>;

/// Attributes of netlink: kind and value.
pub(crate) type Attributes = Vec<(u16, Vec<u8>)>;

/// A stateful object to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Object {
    pub(crate) name: String,
    pub(crate) kind: ObjectKind,
    /// Attributes, as the expression of that name has them.
    pub(crate) data: Vec<DefaultNla>,
}

/// Adds an address as it stands in keys and values.
pub(crate) fn put_ip(bytes: &mut Vec<u8>, ip: IpAddr) {
    match ip {
        IpAddr::V4(ip) => bytes.extend(ip.octets()),
        IpAddr::V6(ip) => bytes.extend(ip.octets()),
    }
}

/// Adds a port as it stands beside other fields: a register each.
pub(crate) fn put_port(bytes: &mut Vec<u8>, port: u16) {
    bytes.extend(port.to_be_bytes());
    bytes.extend([0; 2]);
}

/// A port where it is the only field.
pub(crate) fn lone_port(port: u16) -> Vec<u8> {
    port.to_be_bytes().to_vec()
}

/// An address and a port.
pub(crate) fn put_address(bytes: &mut Vec<u8>, address: SocketAddr) {
    put_ip(bytes, address.ip());
    put_port(bytes, address.port());
}

impl Map {
    /// Are keys of several fields?
    pub(super) fn is_concatenation(&self) -> bool {
        self.key.len() > 1
    }

    /// What the kernel is told of it, and what it says again: both lengths, flags and the kind of object.
    fn shape(&self) -> (u32, u32, u32, u32) {
        let (data, flags, object) = match self.value {
            Value::None => (0, SetFlags::empty(), 0),
            Value::Ranges if self.is_concatenation() => {
                (0, SetFlags::Interval | SetFlags::Concat, 0)
            }
            Value::Ranges => (0, SetFlags::Interval, 0),
            Value::Fields(fields) => (length(fields), SetFlags::Map, 0),
            Value::Object(kind) => (0, SetFlags::Object, kind as u32),
        };
        (length(self.key), data, flags.bits(), object)
    }

    fn message(&self, id: u32) -> SetMessage {
        let (key_len, data_len, flags, object) = self.shape();
        let mut attributes = vec![
            SetAttribute::Table(NFT_TABLE.to_owned()),
            SetAttribute::Name(self.name.to_owned()),
            SetAttribute::Id(id),
            SetAttribute::Flags(SetFlags::from_bits_retain(flags)),
            SetAttribute::KeyType(kinds(self.key)),
            SetAttribute::KeyLen(key_len),
        ];
        match self.value {
            Value::Ranges if self.is_concatenation() => {
                attributes.push(SetAttribute::Description(vec![range::fields(self.key)]));
            }
            Value::None | Value::Ranges => {}
            Value::Fields(fields) => attributes.extend([
                SetAttribute::DataType(kinds(fields)),
                SetAttribute::DataLen(data_len),
            ]),
            Value::Object(_) => attributes.push(SetAttribute::ObjectType(object)),
        }
        SetMessage { attributes }
    }

    fn elements(&self, elements: &[(&Vec<u8>, &Entry)]) -> SetElementMessage {
        let list = elements
            .iter()
            .flat_map(|(key, entry)| {
                let value = |bytes: &Vec<u8>| DataAttribute::Value(bytes.clone());
                let mut attributes = vec![SetElementAttribute::Key(value(key))];
                let mut end = None;
                match entry {
                    Entry::None => {}
                    Entry::UpTo(last) if self.is_concatenation() => {
                        attributes.push(range::last(last));
                    }
                    Entry::UpTo(last) => end = range::end(last),
                    Entry::Fields(fields) => {
                        attributes.push(SetElementAttribute::Data(value(fields)));
                    }
                    Entry::Object(name) => {
                        attributes.push(SetElementAttribute::ObjectRefrence(name.clone()));
                    }
                }
                [Some(attributes), end].into_iter().flatten()
            })
            .map(ListAttribute::Element)
            .collect();
        SetElementMessage {
            attributes: vec![
                SetElementList::Table(NFT_TABLE.to_owned()),
                SetElementList::Set(self.name.to_owned()),
                SetElementList::Elements(list),
            ],
        }
    }
}

/// One field is as long as it is; several fill registers.
fn length(parts: &[Part]) -> u32 {
    match parts {
        [part] => part.len(),
        parts => parts.iter().map(|part| 4 * u32::from(part.places())).sum(),
    }
}

/// The datatypes of nft(8), by which it knows how to show elements: six bits each.
fn kinds(parts: &[Part]) -> u32 {
    parts.iter().fold(0, |kinds, part| {
        let kind = match part {
            Part::Source(Family::V4) | Part::Destination(Family::V4) => 7,
            Part::Source(Family::V6) | Part::Destination(Family::V6) => 8,
            Part::SourcePort | Part::DestinationPort => 13,
        };
        (kinds << 6) | kind
    })
}

/// Changes to be carried out in one step.
pub(crate) type Batch = Vec<(NfTablesMessage, u16)>;

/// Makes a map; the number tells those of one batch apart.
pub(crate) fn create(batch: &mut Batch, map: &Map, id: u32) {
    batch.push((NfTablesMessage::NewSet(map.message(id)), NLM_F_CREATE));
}

/// Deletes a map with its elements. No rule may name it any more.
pub(crate) fn delete(batch: &mut Batch, name: &str) {
    let attributes = vec![
        SetAttribute::Table(NFT_TABLE.to_owned()),
        SetAttribute::Name(name.to_owned()),
    ];
    batch.push((NfTablesMessage::DeleteSet(SetMessage { attributes }), 0));
}

/// Elements a message: an attribute holds 64 KiB.
const ELEMENTS: usize = 256;

/// Adds elements.
pub(crate) fn insert(batch: &mut Batch, map: &Map, elements: &Elements) {
    let elements: Vec<_> = elements.iter().collect();
    for part in elements.chunks(ELEMENTS) {
        let message = NfTablesMessage::NewSetElement(map.elements(part));
        batch.push((message, NLM_F_CREATE));
    }
}

/// Takes elements away.
pub(crate) fn withdraw(batch: &mut Batch, map: &Map, elements: &Elements) {
    let elements: Vec<_> = elements.iter().collect();
    for part in elements.chunks(ELEMENTS) {
        let message = NfTablesMessage::DeleteSetElement(map.elements(part));
        batch.push((message, 0));
    }
}

/// The elements that are not among others as they are.
pub(crate) fn without(elements: &Elements, others: &Elements) -> Elements {
    elements
        .iter()
        .filter(|(key, entry)| others.get(*key) != Some(*entry))
        .map(|(key, entry)| (key.clone(), entry.clone()))
        .collect()
}

/// `NFTA_OBJ_*`.
const OBJECT_TABLE: u16 = 1;
const OBJECT_NAME: u16 = 2;
const OBJECT_TYPE: u16 = 3;
const OBJECT_DATA: u16 = 4;

/// Makes an object.
pub(crate) fn create_object(batch: &mut Batch, object: &Object) {
    let mut data = Vec::new();
    for attribute in &object.data {
        put_attribute(&mut data, attribute);
    }
    let mut attributes = object_name(&object.name, object.kind);
    attributes.push(DefaultNla::new(OBJECT_DATA | NLA_F_NESTED, data));
    batch.push((NfTablesMessage::NewObject(attributes), NLM_F_CREATE));
}

/// Deletes an object. No element may name it any more.
pub(crate) fn delete_object(batch: &mut Batch, name: &str, kind: ObjectKind) {
    let attributes = object_name(name, kind);
    batch.push((NfTablesMessage::DeleteObject(attributes), 0));
}

fn object_name(name: &str, kind: ObjectKind) -> Vec<DefaultNla> {
    vec![
        text(OBJECT_TABLE, NFT_TABLE),
        text(OBJECT_NAME, name),
        DefaultNla::new(OBJECT_TYPE, (kind as u32).to_be_bytes().to_vec()),
    ]
}

fn text(kind: u16, text: &str) -> DefaultNla {
    let mut value = text.as_bytes().to_vec();
    value.push(0);
    DefaultNla::new(kind, value)
}

fn put_attribute(bytes: &mut Vec<u8>, attribute: &DefaultNla) {
    use netlink_packet_core::Emitable as _;
    let start = bytes.len();
    bytes.resize(start + attribute.buffer_len(), 0);
    attribute.emit(&mut bytes[start..]);
}

impl Tables {
    /// The maps of our table: name and shape, as [`Map::shape`] gives it.
    fn held_maps(&mut self) -> io::Result<BTreeMap<String, (u32, u32, u32, u32)>> {
        let request = NfTablesMessage::GetSet(SetMessage {
            attributes: vec![SetAttribute::Table(NFT_TABLE.to_owned())],
        });
        let mut maps = BTreeMap::new();
        for (_, message) in self.dump(NetfilterProtoFamily::Inet, request)? {
            let NfTablesMessage::NewSet(set) = message else {
                continue;
            };
            let (mut name, mut ours) = (String::new(), false);
            let mut shape = (0, 0, 0, 0);
            for attribute in set.attributes {
                match attribute {
                    SetAttribute::Table(table) => ours = table == NFT_TABLE,
                    SetAttribute::Name(text) => name = text,
                    SetAttribute::KeyLen(len) => shape.0 = len,
                    SetAttribute::DataLen(len) => shape.1 = len,
                    SetAttribute::Flags(flags) => shape.2 = flags.bits(),
                    SetAttribute::ObjectType(kind) => shape.3 = kind,
                    _ => {}
                }
            }
            if ours {
                maps.insert(name, shape);
            }
        }
        Ok(maps)
    }

    /// Which of these maps there are, as they are to be: name and whether its shape is right.
    pub(super) fn maps_of(&mut self, maps: &[Map]) -> io::Result<BTreeMap<&'static str, bool>> {
        if maps.is_empty() {
            return Ok(BTreeMap::new());
        }
        let held = self.held_maps()?;
        Ok(maps
            .iter()
            .filter_map(|map| Some((map.name, *held.get(map.name)? == map.shape())))
            .collect())
    }

    /// The elements of a map; none where there is no such map.
    pub(crate) fn elements(&mut self, map: &Map) -> io::Result<Elements> {
        let request = NfTablesMessage::GetSetElement(SetElementMessage {
            attributes: vec![
                SetElementList::Table(NFT_TABLE.to_owned()),
                SetElementList::Set(map.name.to_owned()),
            ],
        });
        match self.ask(NetfilterProtoFamily::Inet, request) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(Elements::new()),
            answers => Ok(element::read(map, &answers?)),
        }
    }

    /// Makes the elements of a map equal to `wanted`, in one step; says whether anything had to be changed.
    pub(crate) fn fill(&mut self, map: &Map, wanted: &Elements) -> Result<bool, HostError> {
        let failed = |error: io::Error| {
            HostError::from_io(format!("fill the nftables map {}", map.name), &error)
        };
        let held = self.elements(map).map_err(failed)?;
        let (gone, new) = (without(&held, wanted), without(wanted, &held));
        if gone.is_empty() && new.is_empty() {
            return Ok(false);
        }
        let mut batch = Batch::new();
        withdraw(&mut batch, map, &gone);
        insert(&mut batch, map, &new);
        self.batches(batch).map_err(failed)?;
        Ok(true)
    }

    /// Names of the objects of our table, and what they hold: the attributes of the expression of that name.
    pub(crate) fn objects(&mut self, kind: ObjectKind) -> io::Result<BTreeMap<String, Attributes>> {
        let request = NfTablesMessage::GetObject(vec![
            text(OBJECT_TABLE, NFT_TABLE),
            DefaultNla::new(OBJECT_TYPE, (kind as u32).to_be_bytes().to_vec()),
        ]);
        let mut objects = BTreeMap::new();
        for (_, message) in self.dump(NetfilterProtoFamily::Inet, request)? {
            let NfTablesMessage::NewObject(attributes) = message else {
                continue;
            };
            let value = |wanted: u16| {
                use netlink_packet_core::Nla as _;
                let found = attributes
                    .iter()
                    .find(|attribute| attribute.kind() & !NLA_F_NESTED == wanted)?;
                let mut bytes = vec![0; found.value_len()];
                found.emit_value(&mut bytes);
                Some(bytes)
            };
            let string = |kind| {
                let mut bytes = value(kind)?;
                bytes.pop_if(|last| *last == 0);
                String::from_utf8(bytes).ok()
            };
            if string(OBJECT_TABLE).as_deref() == Some(NFT_TABLE)
                && let (Some(name), Some(data)) = (string(OBJECT_NAME), value(OBJECT_DATA))
            {
                objects.insert(name, element::attributes_of(&data));
            }
        }
        Ok(objects)
    }
}
