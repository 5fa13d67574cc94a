//! CBOR shapes of foreign types, for `#[cbor(with = ..)]`, and of keys.
//!
//! Lists skip elements of unknown kind, so that a newer version's candidates do not void a record.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use minicbor::decode::Error as DecodeError;
use minicbor::encode::{Error as EncodeError, Write};
use minicbor::{Decode, Decoder, Encode, Encoder};

use crate::candidate::{Candidate, CandidateKind, NatReport};
use crate::key::{AuthorityKey, DomainId, IdentityKey, Idx, WgKey};

macro_rules! bytes_newtype {
    ($($type:ident [$len:literal]),+) => {$(
        impl<C> Encode<C> for $type {
            fn encode<W: Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), EncodeError<W::Error>> {
                e.bytes(&self.0)?.ok()
            }
        }
        impl<'b, C> Decode<'b, C> for $type {
            fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, DecodeError> {
                fixed::<$len>(d).map(Self)
            }
        }
    )+};
}
bytes_newtype!(
    WgKey[32],
    IdentityKey[32],
    AuthorityKey[32],
    Idx[8],
    DomainId[16]
);

/// A byte string of exactly `N` bytes.
pub(crate) fn fixed<const N: usize>(d: &mut Decoder<'_>) -> Result<[u8; N], DecodeError> {
    let position = d.position();
    <[u8; N]>::try_from(d.bytes()?)
        .map_err(|_| DecodeError::message("byte string of wrong length").at(position))
}

/// A definite-length list, at most `max` long; `item` gives `None` for an element to skip.
pub(crate) fn list<'b, T>(
    d: &mut Decoder<'b>,
    max: u64,
    mut item: impl FnMut(&mut Decoder<'b>) -> Result<Option<T>, DecodeError>,
) -> Result<Vec<T>, DecodeError> {
    let position = d.position();
    let len = d
        .array()?
        .ok_or_else(|| DecodeError::message("indefinite length").at(position))?;
    if len > max {
        return Err(DecodeError::message("list too long").at(position));
    }
    let mut out = Vec::new();
    for _ in 0..len {
        out.extend(item(d)?);
    }
    Ok(out)
}

fn address_bytes(address: &SocketAddr) -> Vec<u8> {
    let mut out = match address.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    out.extend(address.port().to_be_bytes());
    out
}

fn parse_address(bytes: &[u8]) -> Option<SocketAddr> {
    let (ip, port) = bytes.split_last_chunk::<2>()?;
    Some(SocketAddr::new(parse_ip(ip)?, u16::from_be_bytes(*port)))
}

fn parse_ip(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(IpAddr::from(v4));
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

fn parse_prefix(bytes: &[u8]) -> Option<IpNet> {
    let (len, ip) = bytes.split_last()?;
    IpNet::new(parse_ip(ip)?, *len).ok().map(|net| net.trunc())
}

fn prefix_bytes(net: &IpNet) -> Vec<u8> {
    let mut out = match net.addr() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    out.push(net.prefix_len());
    out
}

/// A socket address: 4 or 16 address bytes, then the port.
pub(crate) mod address {
    use super::*;
    pub fn encode<C, W: Write>(
        v: &SocketAddr,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        e.bytes(&address_bytes(v))?.ok()
    }
    pub fn decode<C>(d: &mut Decoder<'_>, _: &mut C) -> Result<SocketAddr, DecodeError> {
        let position = d.position();
        parse_address(d.bytes()?)
            .ok_or_else(|| DecodeError::message("not a socket address").at(position))
    }
}

/// Elements of a list of addresses, at most.
const ADDRESSES_MAX: usize = 64;
/// Elements of a list of prefixes, at most.
const PREFIXES_MAX: usize = 1024;

/// A list of socket addresses; of more than 64 the first.
pub(crate) mod addresses {
    use super::*;
    pub fn encode<C, W: Write>(
        v: &[SocketAddr],
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        let v = &v[..v.len().min(ADDRESSES_MAX)];
        e.array(v.len() as u64)?;
        v.iter()
            .try_for_each(|a| e.bytes(&address_bytes(a)).map(|_| ()))
    }
    pub fn decode<C>(d: &mut Decoder<'_>, _: &mut C) -> Result<Vec<SocketAddr>, DecodeError> {
        list(d, ADDRESSES_MAX as u64, |d| Ok(parse_address(d.bytes()?)))
    }
}

/// An optional IPv4 address.
pub(crate) mod ipv4 {
    use super::*;
    use std::net::Ipv4Addr;
    pub fn encode<C, W: Write>(
        v: &Option<Ipv4Addr>,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        match v {
            Some(ip) => e.bytes(&ip.octets())?.ok(),
            None => e.null()?.ok(),
        }
    }
    pub fn decode<C>(d: &mut Decoder<'_>, _: &mut C) -> Result<Option<Ipv4Addr>, DecodeError> {
        if d.datatype()? == minicbor::data::Type::Null {
            d.null()?;
            return Ok(None);
        }
        fixed::<4>(d).map(|octets| Some(Ipv4Addr::from(octets)))
    }
    pub fn is_nil(v: &Option<Ipv4Addr>) -> bool {
        v.is_none()
    }
    pub fn nil() -> Option<Option<Ipv4Addr>> {
        Some(None)
    }
}

/// A list of prefixes: address bytes, then the length; host bits are cleared. Of more than 1,024 the first.
pub(crate) mod prefixes {
    use super::*;
    pub fn encode<C, W: Write>(
        v: &[IpNet],
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        let v = &v[..v.len().min(PREFIXES_MAX)];
        e.array(v.len() as u64)?;
        v.iter()
            .try_for_each(|net| e.bytes(&prefix_bytes(net)).map(|_| ()))
    }
    pub fn decode<C>(d: &mut Decoder<'_>, c: &mut C) -> Result<Vec<IpNet>, DecodeError> {
        list(d, PREFIXES_MAX as u64, |d| prefix::decode(d, c).map(Some))
    }
}

/// A set of prefixes, as a list.
pub(crate) mod prefix_set {
    use super::*;
    use std::collections::BTreeSet;
    pub fn encode<C, W: Write>(
        v: &BTreeSet<IpNet>,
        e: &mut Encoder<W>,
        c: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        prefixes::encode(&v.iter().copied().collect::<Vec<_>>(), e, c)
    }
    pub fn decode<C>(d: &mut Decoder<'_>, c: &mut C) -> Result<BTreeSet<IpNet>, DecodeError> {
        prefixes::decode(d, c).map(BTreeSet::from_iter)
    }
}

/// Lists of prefixes by name.
pub(crate) mod prefix_lists {
    use super::*;
    use std::collections::BTreeMap;
    type Lists = BTreeMap<String, Vec<IpNet>>;
    pub fn encode<C, W: Write>(
        v: &Lists,
        e: &mut Encoder<W>,
        c: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        e.map(v.len() as u64)?;
        v.iter().try_for_each(|(name, list)| {
            e.str(name)?;
            prefixes::encode(list, e, c)
        })
    }
    pub fn decode<C>(d: &mut Decoder<'_>, c: &mut C) -> Result<Lists, DecodeError> {
        let position = d.position();
        let len = d
            .map()?
            .ok_or_else(|| DecodeError::message("indefinite length").at(position))?;
        let mut out = Lists::new();
        for _ in 0..len {
            let name = d.str()?.to_owned();
            out.insert(name, prefixes::decode(d, c)?);
        }
        Ok(out)
    }
}

/// One prefix.
pub(crate) mod prefix {
    use super::*;
    pub fn encode<C, W: Write>(
        v: &IpNet,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        e.bytes(&prefix_bytes(v))?.ok()
    }
    pub fn decode<C>(d: &mut Decoder<'_>, _: &mut C) -> Result<IpNet, DecodeError> {
        let position = d.position();
        parse_prefix(d.bytes()?).ok_or_else(|| DecodeError::message("not a prefix").at(position))
    }
}

/// A list of addresses without port; of more than 64 the first.
pub(crate) mod ips {
    use super::*;
    pub fn encode<C, W: Write>(
        v: &[IpAddr],
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        let v = &v[..v.len().min(ADDRESSES_MAX)];
        e.array(v.len() as u64)?;
        v.iter().try_for_each(|ip| {
            match ip {
                IpAddr::V4(ip) => e.bytes(&ip.octets())?,
                IpAddr::V6(ip) => e.bytes(&ip.octets())?,
            };
            Ok(())
        })
    }
    pub fn decode<C>(d: &mut Decoder<'_>, _: &mut C) -> Result<Vec<IpAddr>, DecodeError> {
        list(d, ADDRESSES_MAX as u64, |d| Ok(parse_ip(d.bytes()?)))
    }
}

/// A preshared key, which may be absent.
pub(crate) mod preshared_key {
    use super::*;
    use crate::key::PresharedKey;
    pub fn encode<C, W: Write>(
        v: &Option<PresharedKey>,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        match v {
            Some(key) => e.str(&key.to_base64())?.ok(),
            None => e.null()?.ok(),
        }
    }
    pub fn decode<C>(d: &mut Decoder<'_>, _: &mut C) -> Result<Option<PresharedKey>, DecodeError> {
        let position = d.position();
        if d.datatype()? == minicbor::data::Type::Null {
            d.null()?;
            return Ok(None);
        }
        PresharedKey::from_base64(d.str()?)
            .map(Some)
            .map_err(|_| DecodeError::message("not a preshared key").at(position))
    }
    pub fn is_nil(v: &Option<PresharedKey>) -> bool {
        v.is_none()
    }
    pub fn nil() -> Option<Option<PresharedKey>> {
        Some(None)
    }
}

/// A list of candidates: kind byte, then the address; unknown kinds are skipped.
pub(crate) mod candidates {
    use super::*;
    pub fn encode<C, W: Write>(
        v: &[Candidate],
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        e.array(v.len() as u64)?;
        for candidate in v {
            let mut bytes = vec![candidate.kind.code()];
            bytes.extend(address_bytes(&candidate.address));
            e.bytes(&bytes)?;
        }
        Ok(())
    }
    pub fn decode<C>(d: &mut Decoder<'_>, _: &mut C) -> Result<Vec<Candidate>, DecodeError> {
        list(d, 256, |d| {
            let Some((kind, address)) = d.bytes()?.split_first() else {
                return Ok(None);
            };
            Ok(CandidateKind::from_code(*kind)
                .zip(parse_address(address))
                .map(|(kind, address)| Candidate { kind, address }))
        })
    }
}

/// A NAT class in eight bytes.
pub(crate) mod nat {
    use super::*;
    pub fn encode<C, W: Write>(
        v: &NatReport,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        e.bytes(&v.to_bytes())?.ok()
    }
    pub fn decode<C>(d: &mut Decoder<'_>, _: &mut C) -> Result<NatReport, DecodeError> {
        fixed::<8>(d).map(NatReport::from_bytes)
    }
}
