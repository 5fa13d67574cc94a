//! The few expressions our rules are made of, as `nft --debug=netlink` shows them.

use netlink_packet_core::DefaultNla;
use netlink_packet_netfilter::nftables::{
    Bitwise, ChecksumFlags, ChecksumType, Cmp, DataAttribute, Expressions, Immediate, Meta,
    MetaKey, Operator, Payload, Register, Verdict, VerdictAttribute,
};

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

/// `limit rate over RATE/second burst BURST packets`.
pub(crate) fn limit_over(rate: u64, burst: u32) -> Vec<Expressions> {
    const RATE: u16 = 1;
    const UNIT: u16 = 2;
    const BURST: u16 = 3;
    const TYPE: u16 = 4;
    const FLAGS: u16 = 5;
    let seconds = 1_u64;
    let packets = 0;
    let inverted = 1;
    vec![other(
        "limit",
        vec![
            DefaultNla::new(RATE, rate.to_be_bytes().to_vec()),
            DefaultNla::new(UNIT, seconds.to_be_bytes().to_vec()),
            number(BURST, burst),
            number(TYPE, packets),
            number(FLAGS, inverted),
        ],
    )]
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
