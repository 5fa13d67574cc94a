//! Messages with the types and sizes of the real protocol.

use std::net::{IpAddr, SocketAddr};

use mesh_types::WgKey;

use super::Inner;

/// Bytes of a data message beside what it carries.
const DATA_OVERHEAD: usize = 32;
const INITIATION_LEN: usize = 148;
const RESPONSE_LEN: usize = 92;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Initiation {
    pub(super) sender: u32,
    pub(super) initiator: WgKey,
    pub(super) responder: WgKey,
    pub(super) ephemeral: u64,
    pub(super) timestamp: u64,
    pub(super) preshared: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Response {
    pub(super) sender: u32,
    pub(super) receiver: u32,
    /// Stands for the secret both ends derive.
    pub(super) secret: u64,
    /// Proves that the responder knew what was sent to it.
    pub(super) ephemeral: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Data {
    pub(super) receiver: u32,
    pub(super) counter: u64,
    pub(super) secret: u64,
    /// `None`: a keepalive.
    pub(super) inner: Option<Inner>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wire {
    Initiation(Initiation),
    Response(Response),
    Data(Data),
}

impl Wire {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(INITIATION_LEN);
        match self {
            Self::Initiation(m) => {
                out.extend([1, 0, 0, 0]);
                out.extend(m.sender.to_le_bytes());
                out.extend(m.initiator.0);
                out.extend(m.responder.0);
                out.extend(m.ephemeral.to_le_bytes());
                out.extend(m.timestamp.to_le_bytes());
                out.extend(m.preshared.to_le_bytes());
                out.resize(INITIATION_LEN, 0);
            }
            Self::Response(m) => {
                out.extend([2, 0, 0, 0]);
                out.extend(m.sender.to_le_bytes());
                out.extend(m.receiver.to_le_bytes());
                out.extend(m.secret.to_le_bytes());
                out.extend(m.ephemeral.to_le_bytes());
                out.resize(RESPONSE_LEN, 0);
            }
            Self::Data(m) => {
                out.extend([4, 0, 0, 0]);
                out.extend(m.receiver.to_le_bytes());
                out.extend(m.counter.to_le_bytes());
                out.extend(m.secret.to_le_bytes());
                out.resize(DATA_OVERHEAD, 0);
                if let Some(inner) = &m.inner {
                    put_address(&mut out, inner.source);
                    put_address(&mut out, inner.destination);
                    out.extend(
                        u16::try_from(inner.payload.len())
                            .unwrap_or(0)
                            .to_le_bytes(),
                    );
                    out.extend(&inner.payload);
                    // WireGuard pads what it encrypts to 16 bytes.
                    out.resize(out.len().next_multiple_of(16), 0);
                }
            }
        }
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        match reader.array::<4>()? {
            [1, 0, 0, 0] if bytes.len() == INITIATION_LEN => Some(Self::Initiation(Initiation {
                sender: reader.u32()?,
                initiator: WgKey(reader.array()?),
                responder: WgKey(reader.array()?),
                ephemeral: reader.u64()?,
                timestamp: reader.u64()?,
                preshared: reader.u64()?,
            })),
            [2, 0, 0, 0] if bytes.len() == RESPONSE_LEN => Some(Self::Response(Response {
                sender: reader.u32()?,
                receiver: reader.u32()?,
                secret: reader.u64()?,
                ephemeral: reader.u64()?,
            })),
            [4, 0, 0, 0] if bytes.len() >= DATA_OVERHEAD => {
                let (receiver, counter, secret) = (reader.u32()?, reader.u64()?, reader.u64()?);
                reader.array::<8>()?;
                let inner = if reader.0.is_empty() {
                    None
                } else {
                    let (source, destination) = (reader.address()?, reader.address()?);
                    let len = usize::from(u16::from_le_bytes(reader.array()?));
                    Some(Inner {
                        source,
                        destination,
                        payload: reader.0.get(..len)?.to_vec(),
                    })
                };
                Some(Self::Data(Data {
                    receiver,
                    counter,
                    secret,
                    inner,
                }))
            }
            _ => None,
        }
    }
}

fn put_address(out: &mut Vec<u8>, address: SocketAddr) {
    match address.ip() {
        IpAddr::V4(ip) => {
            out.push(4);
            out.extend(ip.octets());
        }
        IpAddr::V6(ip) => {
            out.push(6);
            out.extend(ip.octets());
        }
    }
    out.extend(address.port().to_le_bytes());
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn address(&mut self) -> Option<SocketAddr> {
        let ip = match self.array::<1>()? {
            [4] => IpAddr::from(self.array::<4>()?),
            [6] => IpAddr::from(self.array::<16>()?),
            _ => return None,
        };
        Some(SocketAddr::new(ip, u16::from_le_bytes(self.array()?)))
    }
}
