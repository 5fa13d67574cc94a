//! The few expressions our rules are made of, as `nft --debug=netlink` shows them.

use std::net::IpAddr;

use netlink_packet_core::DefaultNla;
use netlink_packet_netfilter::nftables::{
    Bitwise, ChecksumFlags, ChecksumType, Cmp, DataAttribute, Expressions, Immediate, Lookup, Meta,
    MetaKey, Operator, Payload, Register, Verdict, VerdictAttribute,
};

/// `NFT_PAYLOAD_NETWORK_HEADER`.
const NETWORK: u32 = 1;
/// `NFT_PAYLOAD_TRANSPORT_HEADER`.
const TRANSPORT: u32 = 2;
/// Offset of the checksum in a UDP header (RFC 768).
const UDP_CHECKSUM: u32 = 6;
const REGISTER: Register = Register::Reg1;
const REGISTER_NUMBER: u32 = 1;

/// `tcp`.
pub(crate) const TCP: u8 = 6;
/// `udp`.
pub(crate) const UDP: u8 = 17;
/// Offset of a UDP header's source port.
pub(crate) const SOURCE_PORT: u32 = 0;
/// Offset of a UDP header's destination port.
pub(crate) const DESTINATION_PORT: u32 = 2;

fn equal(value: Vec<u8>) -> Expressions {
    compare(Operator::Equal, value)
}

fn compare(operator: Operator, value: Vec<u8>) -> Expressions {
    Expressions::Cmp(vec![
        Cmp::SourceRegister(REGISTER),
        Cmp::Op(operator),
        Cmp::Data(DataAttribute::Value(value)),
    ])
}

fn load_meta(key: MetaKey) -> Expressions {
    Expressions::Meta(vec![Meta::DestinationRegister(REGISTER), Meta::Key(key)])
}

fn load(offset: u32, len: u32) -> Expressions {
    Expressions::Payload(vec![
        Payload::DestinationRegister(REGISTER),
        Payload::Base(TRANSPORT),
        Payload::Offset(offset),
        Payload::Len(len),
    ])
}

fn mask(mask: &[u8]) -> Expressions {
    Expressions::Bitwise(vec![
        Bitwise::SourceRegister(REGISTER),
        Bitwise::DestinationRegister(REGISTER),
        Bitwise::Length(mask.len() as u32),
        Bitwise::Mask(DataAttribute::Value(mask.to_vec())),
        Bitwise::Xor(DataAttribute::Value(vec![0; mask.len()])),
    ])
}

fn other(name: &str, attributes: Vec<DefaultNla>) -> Expressions {
    Expressions::Other {
        expression_type: name.to_owned(),
        attributes,
    }
}

fn number(kind: u16, value: u32) -> DefaultNla {
    DefaultNla::new(kind, value.to_be_bytes().to_vec())
}

/// `meta l4proto PROTOCOL`.
pub(crate) fn protocol(protocol: u8) -> Vec<Expressions> {
    vec![load_meta(MetaKey::L4Proto), equal(vec![protocol])]
}

/// `iifname NAME` or `oifname NAME`.
pub(crate) fn interface(key: MetaKey, name: &str) -> Vec<Expressions> {
    // IFNAMSIZ; the whole register is compared, zeros included.
    let mut value = name.as_bytes().to_vec();
    value.resize(16, 0);
    vec![load_meta(key), equal(value)]
}

/// `iifname != NAME` or `oifname != NAME`.
pub(crate) fn other_interface(key: MetaKey, name: &str) -> Vec<Expressions> {
    let mut value = name.as_bytes().to_vec();
    value.resize(16, 0);
    vec![load_meta(key), compare(Operator::NotEqual, value)]
}

/// The bytes at an offset of the transport header are these.
pub(crate) fn bytes_at(offset: u32, value: &[u8]) -> Vec<Expressions> {
    vec![load(offset, value.len() as u32), equal(value.to_vec())]
}

/// The bytes at an offset of the transport header are these, where the mask has ones.
pub(crate) fn masked_bytes_at(offset: u32, bits: &[u8], value: &[u8]) -> Vec<Expressions> {
    vec![
        load(offset, value.len() as u32),
        mask(bits),
        equal(value.to_vec()),
    ]
}

/// `log group GROUP`.
pub(crate) fn log(group: u16) -> Vec<Expressions> {
    /// `NFTA_LOG_GROUP`.
    const GROUP: u16 = 1;
    let group = DefaultNla::new(GROUP, group.to_be_bytes().to_vec());
    vec![other("log", vec![group])]
}

/// `udp sport set PORT` or `udp dport set PORT`, checksum kept right.
pub(crate) fn set_port(offset: u32, port: u16) -> Vec<Expressions> {
    vec![
        Expressions::Immediate(vec![
            Immediate::DestinationRegister(REGISTER),
            Immediate::Data(DataAttribute::Value(port.to_be_bytes().to_vec())),
        ]),
        Expressions::Payload(vec![
            Payload::SourceRegister(REGISTER),
            Payload::Base(TRANSPORT),
            Payload::Offset(offset),
            Payload::Len(2),
            Payload::CsumType(ChecksumType::Inet),
            Payload::CsumOffset(UDP_CHECKSUM),
            Payload::CsumFlags(ChecksumFlags::empty()),
        ]),
    ]
}

/// What a limit counts (`NFT_LIMIT_PKTS`, `NFT_LIMIT_PKT_BYTES`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Per {
    Packet = 0,
    Byte = 1,
}

/// `limit rate over RATE/second burst BURST packets`.
pub(crate) fn limit_over(rate: u64, burst: u32) -> Vec<Expressions> {
    vec![other("limit", limit(rate, burst, Per::Packet))]
}

/// What a limit that matches beyond its rate is made of, as an expression or an object.
pub(crate) fn limit(rate: u64, burst: u32, per: Per) -> Vec<DefaultNla> {
    const RATE: u16 = 1;
    const UNIT: u16 = 2;
    const BURST: u16 = 3;
    const TYPE: u16 = 4;
    const FLAGS: u16 = 5;
    let seconds = 1_u64;
    let inverted = 1;
    vec![
        DefaultNla::new(RATE, rate.to_be_bytes().to_vec()),
        DefaultNla::new(UNIT, seconds.to_be_bytes().to_vec()),
        number(BURST, burst),
        number(TYPE, per as u32),
        number(FLAGS, inverted),
    ]
}

/// A place in the 64 bytes of registers, in units of 4 bytes.
pub(crate) type Place = u8;

/// `NFT_REG32_00` and on.
fn place(at: Place) -> Register {
    Register::Other(8 + u32::from(at))
}

/// One of the fields by which endpoints are looked up, and which are rewritten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Source address of this family.
    Source(Family),
    /// Destination address of this family.
    Destination(Family),
    /// Source port.
    SourcePort,
    /// Destination port.
    DestinationPort,
}

/// IPv4 or IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    /// Of an address.
    pub(crate) fn of(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// `NFPROTO_IPV4` and `NFPROTO_IPV6`.
    fn number(self) -> u8 {
        match self {
            Self::V4 => 2,
            Self::V6 => 10,
        }
    }

    fn address_len(self) -> u32 {
        match self {
            Self::V4 => 4,
            Self::V6 => 16,
        }
    }
}

impl Part {
    /// Base of the header, offset in it, length.
    fn at(self) -> (u32, u32, u32) {
        match self {
            Self::Source(Family::V4) => (NETWORK, 12, 4),
            Self::Source(Family::V6) => (NETWORK, 8, 16),
            Self::Destination(Family::V4) => (NETWORK, 16, 4),
            Self::Destination(Family::V6) => (NETWORK, 24, 16),
            Self::SourcePort => (TRANSPORT, SOURCE_PORT, 2),
            Self::DestinationPort => (TRANSPORT, DESTINATION_PORT, 2),
        }
    }

    /// Bytes.
    pub(crate) fn len(self) -> u32 {
        self.at().2
    }

    /// Registers it takes.
    pub(crate) fn places(self) -> Place {
        match self {
            Self::Source(family) | Self::Destination(family) => (family.address_len() / 4) as Place,
            Self::SourcePort | Self::DestinationPort => 1,
        }
    }
}

/// `meta nfproto ipv4` or `ipv6`.
pub(crate) fn family(family: Family) -> Vec<Expressions> {
    vec![load_meta(MetaKey::Nfproto), equal(vec![family.number()])]
}

/// Loads fields one after another, as the key of a map has them.
pub(crate) fn key(parts: &[Part]) -> Vec<Expressions> {
    let mut at = 0;
    parts
        .iter()
        .map(|part| {
            let (base, offset, len) = part.at();
            let load = Expressions::Payload(vec![
                Payload::DestinationRegister(place(at)),
                Payload::Base(base),
                Payload::Offset(offset),
                Payload::Len(len),
            ]);
            at += part.places();
            load
        })
        .collect()
}

/// The key is an element of a set.
pub(crate) fn is_in(set: &str) -> Vec<Expressions> {
    vec![Expressions::Lookup(vec![
        Lookup::Set(set.to_owned()),
        Lookup::SourceRegister(place(0)),
    ])]
}

/// The key is no element of a set.
pub(crate) fn is_not_in(set: &str) -> Vec<Expressions> {
    const INVERT: u32 = 1;
    vec![Expressions::Lookup(vec![
        Lookup::Set(set.to_owned()),
        Lookup::SourceRegister(place(0)),
        Lookup::Flags(INVERT),
    ])]
}

/// Loads what a map has for the key; the rule ends where it has nothing.
pub(crate) fn find(map: &str, to: Place) -> Vec<Expressions> {
    vec![Expressions::Lookup(vec![
        Lookup::Set(map.to_owned()),
        Lookup::SourceRegister(place(0)),
        Lookup::DestinationRegister(place(to)),
    ])]
}

/// Asks the limit or counter that a map has for the key; the rule ends where it has none, or the limit says so.
pub(crate) fn ask(map: &str) -> Vec<Expressions> {
    const SOURCE: u16 = 3;
    const NAME: u16 = 4;
    let mut name = map.as_bytes().to_vec();
    name.push(0);
    vec![other(
        "objref",
        vec![number(SOURCE, place(0).into()), DefaultNla::new(NAME, name)],
    )]
}

/// Writes a field of a datagram that this host receives or sends, checksums kept right.
pub(crate) fn set_part(part: Part, from: Place) -> Vec<Expressions> {
    match part {
        Part::Source(_) | Part::Destination(_) => set_forwarded_part(part, from),
        Part::SourcePort | Part::DestinationPort => {
            let none = ChecksumFlags::empty();
            vec![write(part, from, (ChecksumType::Inet, UDP_CHECKSUM), none)]
        }
    }
}

/// Writes a field of a datagram that is forwarded, checksums kept right. An IPv4 datagram without a checksum stays
/// without (RFC 768): ports are written as if they were part of the pseudo-header, for only that looks whether there
/// is one. Where the datagram is received here, the network card's own sum would then no longer hold.
pub(crate) fn set_forwarded_part(part: Part, from: Place) -> Vec<Expressions> {
    /// Offset of the checksum in an IPv4 header.
    const IPV4_CHECKSUM: u32 = 10;
    let header = match part {
        Part::Source(Family::V4) | Part::Destination(Family::V4) => {
            (ChecksumType::Inet, IPV4_CHECKSUM)
        }
        Part::Source(Family::V6)
        | Part::Destination(Family::V6)
        | Part::SourcePort
        | Part::DestinationPort => (ChecksumType::None, 0),
    };
    vec![write(part, from, header, ChecksumFlags::L4PseudoHeader)]
}

fn write(
    part: Part,
    from: Place,
    (kind, checksum): (ChecksumType, u32),
    flags: ChecksumFlags,
) -> Expressions {
    let (base, offset, len) = part.at();
    Expressions::Payload(vec![
        Payload::SourceRegister(place(from)),
        Payload::Base(base),
        Payload::Offset(offset),
        Payload::Len(len),
        Payload::CsumType(kind),
        Payload::CsumOffset(checksum),
        Payload::CsumFlags(flags),
    ])
}

/// The bytes at an offset of the transport header are others.
pub(crate) fn other_bytes_at(offset: u32, value: &[u8]) -> Vec<Expressions> {
    vec![
        load(offset, value.len() as u32),
        compare(Operator::NotEqual, value.to_vec()),
    ]
}

/// `meta l4proto != PROTOCOL`.
pub(crate) fn other_protocol(protocol: u8) -> Vec<Expressions> {
    vec![
        load_meta(MetaKey::L4Proto),
        compare(Operator::NotEqual, vec![protocol]),
    ]
}

/// `meta mark and MARK == MARK`.
pub(crate) fn marked(mark: u32) -> Vec<Expressions> {
    let bits = mark.to_ne_bytes();
    vec![load_meta(MetaKey::Mark), mask(&bits), equal(bits.to_vec())]
}

/// `meta mark and MARK == 0`.
pub(crate) fn unmarked(mark: u32) -> Vec<Expressions> {
    let bits = mark.to_ne_bytes();
    vec![load_meta(MetaKey::Mark), mask(&bits), equal(vec![0; 4])]
}

/// `ct state established,related ct direction reply`: not sent by who began.
pub(crate) fn answer() -> Vec<Expressions> {
    /// `NFTA_CT_DREG`, `NFTA_CT_KEY`.
    const TO: u16 = 1;
    const KEY: u16 = 2;
    /// `NFT_CT_STATE`, `NFT_CT_DIRECTION`.
    const STATE: u32 = 0;
    const DIRECTION: u32 = 1;
    /// Bits of established and related.
    const KNOWN: u32 = 2 | 4;
    /// `IP_CT_DIR_REPLY`.
    const REPLY: u8 = 1;
    let load = |what| other("ct", vec![number(TO, REGISTER_NUMBER), number(KEY, what)]);
    vec![
        load(STATE),
        mask(&KNOWN.to_ne_bytes()),
        compare(Operator::NotEqual, vec![0; 4]),
        load(DIRECTION),
        equal(vec![REPLY]),
    ]
}

/// `snat to` the address in a register.
pub(crate) fn snat(family: Family, from: Place) -> Vec<Expressions> {
    const TYPE: u16 = 1;
    const FAMILY: u16 = 2;
    const ADDRESS: u16 = 3;
    /// `NFT_NAT_SNAT`.
    const SOURCE: u32 = 0;
    vec![other(
        "nat",
        vec![
            number(TYPE, SOURCE),
            number(FAMILY, family.number().into()),
            number(ADDRESS, 8 + u32::from(from)),
        ],
    )]
}

/// `meta mark set meta mark or MARK`.
pub(crate) fn add_mark(mark: u32) -> Vec<Expressions> {
    vec![
        load_meta(MetaKey::Mark),
        Expressions::Bitwise(vec![
            Bitwise::SourceRegister(REGISTER),
            Bitwise::DestinationRegister(REGISTER),
            Bitwise::Length(4),
            Bitwise::Mask(DataAttribute::Value((!mark).to_ne_bytes().to_vec())),
            Bitwise::Xor(DataAttribute::Value(mark.to_ne_bytes().to_vec())),
        ]),
        Expressions::Meta(vec![
            Meta::Key(MetaKey::Mark),
            Meta::SourceRegister(REGISTER),
        ]),
    ]
}

/// `notrack`.
pub(crate) fn notrack() -> Vec<Expressions> {
    vec![other("notrack", Vec::new())]
}

/// `drop`.
pub(crate) fn drop() -> Vec<Expressions> {
    verdict(0)
}

/// `accept`.
pub(crate) fn accept() -> Vec<Expressions> {
    verdict(1)
}

fn verdict(code: u32) -> Vec<Expressions> {
    vec![Expressions::Immediate(vec![
        Immediate::DestinationRegister(Register::Verdict),
        Immediate::Data(DataAttribute::Verdict(vec![VerdictAttribute::Code(
            Verdict::Other(code),
        )])),
    ])]
}

/// `tcp flags syn`.
pub(crate) fn syn() -> Vec<Expressions> {
    const FLAGS: u32 = 13;
    const SYN: u8 = 2;
    vec![
        load(FLAGS, 1),
        mask(&[SYN]),
        compare(Operator::NotEqual, vec![0]),
    ]
}

/// `tcp option maxseg size set rt mtu`; the kernel only ever lowers the value.
pub(crate) fn clamp_mss() -> Vec<Expressions> {
    let route_mss = 3;
    let hton = 1;
    let (option_maxseg, size_offset, size_len) = (2, 2, 2);
    let tcp_option = 1;
    vec![
        other("rt", vec![number(1, REGISTER_NUMBER), number(2, route_mss)]),
        other(
            "byteorder",
            vec![
                number(1, REGISTER_NUMBER),
                number(2, REGISTER_NUMBER),
                number(3, hton),
                number(4, 2),
                number(5, 2),
            ],
        ),
        other(
            "exthdr",
            vec![
                number(7, REGISTER_NUMBER),
                DefaultNla::new(2, vec![option_maxseg]),
                number(3, size_offset),
                number(4, size_len),
                number(6, tcp_option),
            ],
        ),
    ]
}
