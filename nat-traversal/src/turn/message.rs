//! TURN messages (RFC 8656) and ChannelData: the few that a client needs, written and read byte by byte.
//!
//! `stun-rs` is not used here: it takes NONCE and REALM for quoted strings and refuses what is none, though a client
//! must give back whatever bytes it was given (RFC 8489 14.9, 14.10).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac_sha1::hmac_sha1;
use mesh_types::turn::TurnSecret;

const COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
const HEADER: usize = 20;
/// Longest REALM or NONCE (RFC 8489 14.9, 14.10).
const OPAQUE_MAX: usize = 763;
/// Of an error's reason so much is shown to people.
const REASON_MAX: usize = 80;

const USERNAME: u16 = 0x0006;
const MESSAGE_INTEGRITY: u16 = 0x0008;
const ERROR_CODE: u16 = 0x0009;
const CHANNEL_NUMBER: u16 = 0x000c;
const LIFETIME: u16 = 0x000d;
const XOR_PEER_ADDRESS: u16 = 0x0012;
const DATA: u16 = 0x0013;
const REALM: u16 = 0x0014;
const NONCE: u16 = 0x0015;
const XOR_RELAYED_ADDRESS: u16 = 0x0016;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;
const REQUESTED_TRANSPORT: u16 = 0x0019;
/// Length of MESSAGE-INTEGRITY with its header.
const INTEGRITY_LEN: usize = 24;
/// UDP, as the relayed transport (IANA protocol number).
const UDP: u8 = 17;

/// First channel number, and how many there are (RFC 8656 12).
pub(crate) const CHANNELS: (u16, u16) = (0x4000, 0x1000);

/// What a message is about (RFC 8656 17).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    Allocate,
    Refresh,
    Send,
    Data,
    ChannelBind,
}

impl Method {
    fn code(self) -> u16 {
        match self {
            Self::Allocate => 0x003,
            Self::Refresh => 0x004,
            Self::Send => 0x006,
            Self::Data => 0x007,
            Self::ChannelBind => 0x009,
        }
    }

    fn from_code(code: u16) -> Option<Self> {
        let all = [
            Self::Allocate,
            Self::Refresh,
            Self::Send,
            Self::Data,
            Self::ChannelBind,
        ];
        all.into_iter().find(|method| method.code() == code)
    }
}

/// Its class (RFC 8489 5), as the two bits of the type say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    Request,
    Indication,
    Success,
    Error,
}

impl Class {
    fn bits(self) -> u16 {
        match self {
            Self::Request => 0x000,
            Self::Indication => 0x010,
            Self::Success => 0x100,
            Self::Error => 0x110,
        }
    }
}

/// Name and password that a server accepts for a while: the TURN REST scheme
/// (draft-uberti-behave-turn-rest-00), `use-auth-secret` of coturn.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Credentials {
    pub(crate) username: String,
    password: String,
}

impl Credentials {
    /// Good until `expiry` (unix seconds), for whoever is called `name`.
    pub(crate) fn new(secret: &TurnSecret, name: &str, expiry: u64) -> Self {
        let username = format!("{expiry}:{name}");
        let password = BASE64.encode(hmac_sha1(secret.as_bytes(), username.as_bytes()));
        Self { username, password }
    }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").finish_non_exhaustive()
    }
}

/// Credentials with what the server has said of itself: fit to sign requests (RFC 8489 9.2).
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Session {
    username: String,
    realm: Vec<u8>,
    nonce: Vec<u8>,
    key: [u8; 16],
}

impl Session {
    pub(crate) fn new(credentials: &Credentials, realm: &[u8], nonce: &[u8]) -> Self {
        let Credentials { username, password } = credentials;
        let parts = [username.as_bytes(), realm, password.as_bytes()];
        Self {
            username: username.clone(),
            realm: realm.to_vec(),
            nonce: nonce.to_vec(),
            key: md5::compute(parts.join(&b':')).0,
        }
    }

    pub(crate) fn nonce(&self) -> &[u8] {
        &self.nonce
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").finish_non_exhaustive()
    }
}

/// A message under construction.
pub(crate) struct Writer {
    bytes: Vec<u8>,
    transaction: [u8; 12],
}

impl Writer {
    pub(crate) fn new(method: Method, class: Class, transaction: [u8; 12]) -> Self {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend((method.code() | class.bits()).to_be_bytes());
        bytes.extend([0, 0]);
        bytes.extend(COOKIE);
        bytes.extend(transaction);
        Self { bytes, transaction }
    }

    fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(value.len()).unwrap_or(u16::MAX);
        self.bytes.extend(kind.to_be_bytes());
        self.bytes.extend(length.to_be_bytes());
        self.bytes.extend(value.iter().take(usize::from(length)));
        let padded = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(padded, 0);
        self
    }

    fn address(self, kind: u16, address: SocketAddr) -> Self {
        let value = xor(address, self.transaction);
        self.attribute(kind, &value)
    }

    pub(crate) fn transport_udp(self) -> Self {
        self.attribute(REQUESTED_TRANSPORT, &[UDP, 0, 0, 0])
    }

    pub(crate) fn lifetime(self, seconds: u32) -> Self {
        self.attribute(LIFETIME, &seconds.to_be_bytes())
    }

    pub(crate) fn channel(self, number: u16) -> Self {
        let [high, low] = number.to_be_bytes();
        self.attribute(CHANNEL_NUMBER, &[high, low, 0, 0])
    }

    pub(crate) fn peer(self, address: SocketAddr) -> Self {
        self.address(XOR_PEER_ADDRESS, address)
    }

    pub(crate) fn data(self, bytes: &[u8]) -> Self {
        self.attribute(DATA, bytes)
    }

    /// Signs it (RFC 8489 14.5) where there is somebody to sign for, and gives the bytes.
    pub(crate) fn finish(self, session: Option<&Session>) -> Vec<u8> {
        let Some(session) = session else {
            let mut bytes = self.bytes;
            set_length(&mut bytes, 0);
            return bytes;
        };
        let mut signed = self
            .attribute(USERNAME, session.username.as_bytes())
            .attribute(REALM, &session.realm)
            .attribute(NONCE, &session.nonce);
        set_length(&mut signed.bytes, INTEGRITY_LEN);
        let mac = hmac_sha1(&session.key, &signed.bytes);
        signed.attribute(MESSAGE_INTEGRITY, &mac).bytes
    }
}

/// Writes the length field: of what is there and `more` bytes.
fn set_length(bytes: &mut [u8], more: usize) {
    let length = u16::try_from(bytes.len() + more - HEADER).unwrap_or(u16::MAX);
    if let Some(field) = bytes.get_mut(2..4) {
        field.copy_from_slice(&length.to_be_bytes());
    }
}

/// A message that arrived; its attributes are read where they lie.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Message<'a> {
    pub(crate) method: Method,
    pub(crate) class: Class,
    pub(crate) transaction: [u8; 12],
    bytes: &'a [u8],
}

impl<'a> Message<'a> {
    /// `None` where it is no whole message of a method that a client knows.
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (header, rest) = bytes.split_first_chunk::<HEADER>()?;
        let kind = u16::from_be_bytes([header[0], header[1]]);
        let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
        if header[4..8] != COOKIE || length != rest.len() {
            return None;
        }
        let class = match kind & 0x110 {
            0x000 => Class::Request,
            0x010 => Class::Indication,
            0x100 => Class::Success,
            _ => Class::Error,
        };
        let mut transaction = [0; 12];
        transaction.copy_from_slice(&header[8..]);
        Some(Self {
            method: Method::from_code(kind & !0x110)?,
            class,
            transaction,
            bytes,
        })
    }

    /// Attributes before MESSAGE-INTEGRITY, and where that stands.
    fn find(&self, kind: u16) -> Option<(usize, &'a [u8])> {
        let mut at = HEADER;
        loop {
            let ([t0, t1, l0, l1], value) = self.bytes.get(at..)?.split_first_chunk()?;
            let length = usize::from(u16::from_be_bytes([*l0, *l1]));
            let value = value.get(..length)?;
            match u16::from_be_bytes([*t0, *t1]) {
                found if found == kind => return Some((at, value)),
                MESSAGE_INTEGRITY => return None,
                _ => at += 4 + length.next_multiple_of(4),
            }
        }
    }

    fn attribute(&self, kind: u16) -> Option<&'a [u8]> {
        self.find(kind).map(|(_, value)| value)
    }

    /// Is MESSAGE-INTEGRITY present and right?
    pub(crate) fn is_signed(&self, session: &Session) -> bool {
        let Some((at, mac)) = self.find(MESSAGE_INTEGRITY) else {
            return false;
        };
        let mut signed = self.bytes.get(..at).unwrap_or_default().to_vec();
        set_length(&mut signed, INTEGRITY_LEN);
        let right = hmac_sha1(&session.key, &signed);
        let differs = right.iter().zip(mac).fold(0, |all, (a, b)| all | (a ^ b));
        mac.len() == right.len() && differs == 0
    }

    /// ERROR-CODE: number and reason (RFC 8489 14.8), the reason fit to be shown.
    pub(crate) fn error(&self) -> Option<(u16, String)> {
        let ([_, _, class, number], reason) = self.attribute(ERROR_CODE)?.split_first_chunk()?;
        let code = u16::from(class & 7) * 100 + u16::from(*number);
        let reason = String::from_utf8_lossy(reason);
        let shown = |c: &char| c.is_ascii_graphic() || *c == ' ';
        Some((
            code,
            reason.chars().filter(shown).take(REASON_MAX).collect(),
        ))
    }

    pub(crate) fn realm(&self) -> Option<&'a [u8]> {
        self.attribute(REALM).filter(|v| v.len() <= OPAQUE_MAX)
    }

    pub(crate) fn nonce(&self) -> Option<&'a [u8]> {
        self.attribute(NONCE).filter(|v| v.len() <= OPAQUE_MAX)
    }

    /// Seconds.
    pub(crate) fn lifetime(&self) -> Option<u32> {
        let value = self.attribute(LIFETIME)?;
        value.try_into().ok().map(u32::from_be_bytes)
    }

    pub(crate) fn relayed(&self) -> Option<SocketAddr> {
        unxor(self.attribute(XOR_RELAYED_ADDRESS)?, self.transaction)
    }

    /// Where the server sees the client.
    pub(crate) fn mapped(&self) -> Option<SocketAddr> {
        unxor(self.attribute(XOR_MAPPED_ADDRESS)?, self.transaction)
    }

    pub(crate) fn peer(&self) -> Option<SocketAddr> {
        unxor(self.attribute(XOR_PEER_ADDRESS)?, self.transaction)
    }

    pub(crate) fn data(&self) -> Option<&'a [u8]> {
        self.attribute(DATA)
    }
}

/// The value of an XOR address attribute (RFC 8489 14.2).
fn xor(address: SocketAddr, transaction: [u8; 12]) -> Vec<u8> {
    let mask: Vec<u8> = COOKIE.into_iter().chain(transaction).collect();
    let (family, ip): (u8, Vec<u8>) = match address.ip() {
        IpAddr::V4(ip) => (1, ip.octets().to_vec()),
        IpAddr::V6(ip) => (2, ip.octets().to_vec()),
    };
    let port = address.port().to_be_bytes();
    [0, family]
        .into_iter()
        .chain(port.iter().zip(&mask).map(|(a, b)| a ^ b))
        .chain(ip.iter().zip(&mask).map(|(a, b)| a ^ b))
        .collect()
}

fn unxor(value: &[u8], transaction: [u8; 12]) -> Option<SocketAddr> {
    let mask: Vec<u8> = COOKIE.into_iter().chain(transaction).collect();
    let ([_, family, p0, p1], ip) = value.split_first_chunk()?;
    let port = u16::from_be_bytes([p0 ^ COOKIE[0], p1 ^ COOKIE[1]]);
    let ip: Vec<u8> = ip.iter().zip(&mask).map(|(a, b)| a ^ b).collect();
    let ip = match (family, ip.len()) {
        (1, 4) => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(ip).ok()?)),
        (2, 16) => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(ip).ok()?)),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// ChannelData (RFC 8656 12.4), unpadded: streams are padded where they are written.
pub(crate) fn channel_data(channel: u16, bytes: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(bytes.len()).ok()?;
    let mut out = Vec::with_capacity(4 + bytes.len());
    out.extend(channel.to_be_bytes());
    out.extend(length.to_be_bytes());
    out.extend(bytes);
    Some(out)
}

/// Channel and content of ChannelData; what follows the content is padding.
pub(crate) fn parse_channel_data(bytes: &[u8]) -> Option<(u16, &[u8])> {
    let ([c0, c1, l0, l1], rest) = bytes.split_first_chunk()?;
    let channel = u16::from_be_bytes([*c0, *c1]);
    let length = usize::from(u16::from_be_bytes([*l0, *l1]));
    let (first, count) = CHANNELS;
    (first..first + count)
        .contains(&channel)
        .then(|| rest.get(..length))?
        .map(|content| (channel, content))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// What a server says, for the tests of those who listen.
    pub(crate) struct Says(Writer);

    impl Says {
        pub(crate) fn new(method: Method, class: Class, transaction: [u8; 12]) -> Self {
            Self(Writer::new(method, class, transaction))
        }

        pub(crate) fn error(self, code: u16) -> Self {
            let value = [0, 0, (code / 100) as u8, (code % 100) as u8, b'N', b'o'];
            Self(self.0.attribute(ERROR_CODE, &value))
        }

        pub(crate) fn challenge(self, realm: &[u8], nonce: &[u8]) -> Self {
            Self(self.0.attribute(REALM, realm).attribute(NONCE, nonce))
        }

        pub(crate) fn relayed(self, address: SocketAddr) -> Self {
            Self(self.0.address(XOR_RELAYED_ADDRESS, address))
        }

        pub(crate) fn lifetime(self, seconds: u32) -> Self {
            Self(self.0.lifetime(seconds))
        }

        pub(crate) fn peer(self, address: SocketAddr, data: &[u8]) -> Self {
            Self(self.0.peer(address).data(data))
        }

        pub(crate) fn end(self, session: Option<&Session>) -> Vec<u8> {
            self.0.finish(session)
        }
    }

    impl Message<'_> {
        pub(crate) fn username(&self) -> Option<&str> {
            std::str::from_utf8(self.attribute(USERNAME)?).ok()
        }

        pub(crate) fn channel(&self) -> Option<u16> {
            let [high, low, ..] = self.attribute(CHANNEL_NUMBER)? else {
                return None;
            };
            Some(u16::from_be_bytes([*high, *low]))
        }
    }

    const TRANSACTION: [u8; 12] = [9; 12];

    fn session() -> Session {
        let credentials = Credentials::new(&TurnSecret::new(" north \n"), "paris-1", 1_800_000_000);
        Session::new(&credentials, b"example.org", b"any \x01 bytes")
    }

    #[test]
    fn credentials_are_those_of_the_rest_scheme() {
        // printf 1800000000:paris-1 | openssl dgst -sha1 -hmac north -binary | base64
        let made = Credentials::new(&TurnSecret::new(" north \n"), "paris-1", 1_800_000_000);
        assert_eq!(made.username, "1800000000:paris-1");
        assert_eq!(made.password, PASSWORD);
        assert!(!format!("{made:?} {:?}", session()).contains("paris"));
    }
    const PASSWORD: &str = "ZYzD3OT2Urq4TfCd7t5N/CquOVQ=";

    #[test]
    fn a_signed_request_is_read_back_and_any_changed_byte_breaks_it() {
        let peer: SocketAddr = "203.0.113.7:4000".parse().unwrap();
        let bytes = Writer::new(Method::ChannelBind, Class::Request, TRANSACTION)
            .channel(0x4001)
            .peer(peer)
            .finish(Some(&session()));
        let message = Message::parse(&bytes).unwrap();
        assert!(message.is_signed(&session()));
        assert_eq!(message.method, Method::ChannelBind);
        assert_eq!(
            (message.peer(), message.channel()),
            (Some(peer), Some(0x4001))
        );
        assert_eq!(message.nonce(), Some(b"any \x01 bytes".as_slice()));
        assert_eq!(message.username(), Some("1800000000:paris-1"));
        for index in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[index] ^= 1;
            let signed = Message::parse(&changed).is_some_and(|m| m.is_signed(&session()));
            // The padding of attributes before the signature is covered too.
            assert!(!signed, "byte {index}");
        }
    }

    #[test]
    fn addresses_of_both_families_survive() {
        for text in ["203.0.113.7:22514", "[2001:db8::7]:443"] {
            let address = text.parse().unwrap();
            assert_eq!(
                unxor(&xor(address, TRANSACTION), TRANSACTION),
                Some(address)
            );
        }
        assert_eq!(unxor(&[0, 1, 0, 0, 1, 2, 3], TRANSACTION), None);
        assert_eq!(unxor(&[0, 3, 0, 0, 1, 2, 3, 4], TRANSACTION), None);
    }

    #[test]
    fn nothing_that_is_cut_short_is_read_and_no_bytes_panic() {
        let bytes = Says::new(Method::Allocate, Class::Error, TRANSACTION)
            .error(401)
            .challenge(b"r", b"n")
            .end(None);
        let message = Message::parse(&bytes).unwrap();
        assert_eq!(message.error(), Some((401, "No".to_owned())));
        for cut in 0..bytes.len() {
            assert!(Message::parse(&bytes[..cut]).is_none(), "{cut} bytes");
        }
        for index in HEADER..bytes.len() {
            for value in [0, 0x7f, 0xff] {
                let mut changed = bytes.clone();
                changed[index] = value;
                let message = Message::parse(&changed).unwrap();
                _ = (
                    message.error(),
                    message.realm(),
                    message.nonce(),
                    message.peer(),
                );
                _ = message.is_signed(&session());
            }
        }
    }

    #[test]
    fn what_follows_the_signature_does_not_count() {
        let mut bytes =
            Says::new(Method::Allocate, Class::Success, TRANSACTION).end(Some(&session()));
        let relayed = Says::new(Method::Allocate, Class::Success, TRANSACTION)
            .relayed("203.0.113.7:1".parse().unwrap())
            .end(None);
        bytes.extend(&relayed[HEADER..]);
        set_length(&mut bytes, 0);
        assert_eq!(Message::parse(&bytes).unwrap().relayed(), None);
    }

    #[test]
    fn channel_data_survives_and_padding_is_no_content() {
        let mut bytes = channel_data(0x4fff, b"hello").unwrap();
        bytes.extend([0; 3]);
        assert_eq!(
            parse_channel_data(&bytes),
            Some((0x4fff, b"hello".as_slice()))
        );
        assert_eq!(parse_channel_data(&bytes[..8]), None);
        assert_eq!(parse_channel_data(&[0x50, 0, 0, 0]), None);
        assert_eq!(channel_data(0x4000, &[0; 70_000]), None);
    }
}
