//! Binding messages (RFC 8489), built and parsed with `stun-rs`; the only module that knows it.
//!
//! Cheap checks of the header come first and need no codec. `stun-rs` accepts a message without any
//! integrity attribute even when told to validate, so [`verify`] asks for MESSAGE-INTEGRITY-SHA256 and
//! FINGERPRINT by name, and reads nothing that stands after them.

use std::fmt;
use std::net::SocketAddr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use mesh_types::consts::DATAGRAM_MAX;
use mesh_types::sealed::SealKey;
use stun_rs::attributes::discovery::{
    ChangeRequest, ChangeRequestFlags, OtherAddress, ResponsePort,
};
use stun_rs::attributes::stun::{
    ErrorCode, Fingerprint, MessageIntegritySha256, UserName, XorMappedAddress,
};
use stun_rs::attributes::turn::Data;
use stun_rs::{
    DecoderContextBuilder, HMACKey, MessageClass, MessageDecoder, MessageDecoderBuilder,
    MessageEncoderBuilder, StunMessage, StunMessageBuilder, TransactionId, methods::BINDING,
};

/// "Stale Nonce" (RFC 8489 14.8): the epoch of the request is behind us.
pub(crate) const STALE_EPOCH: u16 = 438;

const COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
const HEADER: usize = 20;
/// Attribute type (RFC 8489 18.3).
const USERNAME: [u8; 2] = [0x00, 0x06];

/// What a Binding message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// 0x0001.
    Request,
    /// 0x0101.
    Success,
    /// 0x0111.
    Error,
    /// 0x0011: for a relay itself.
    Indication,
}

/// The fixed part of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) class: Class,
    pub(crate) transaction: [u8; 12],
}

/// Reads the header of a plausible Binding message; touches nothing else.
pub(crate) fn header(bytes: &[u8]) -> Option<Header> {
    if bytes.len() < HEADER || bytes.len() > DATAGRAM_MAX || bytes[4..8] != COOKIE {
        return None;
    }
    let class = match bytes[..2] {
        [0x00, 0x01] => Class::Request,
        [0x01, 0x01] => Class::Success,
        [0x01, 0x11] => Class::Error,
        [0x00, 0x11] => Class::Indication,
        _ => return None,
    };
    let length = usize::from(u16::from_be_bytes([bytes[2], bytes[3]]));
    if length != bytes.len() - HEADER || !length.is_multiple_of(4) {
        return None;
    }
    let mut transaction = [0; 12];
    transaction.copy_from_slice(&bytes[8..HEADER]);
    Some(Header { class, transaction })
}

/// The USERNAME of a message that [`header`] let pass, before anything else in it is read or believed.
pub(crate) fn username(bytes: &[u8]) -> Option<&str> {
    let mut rest = bytes.get(HEADER..)?;
    loop {
        let ([t0, t1, l0, l1], value) = rest.split_first_chunk()?;
        let length = usize::from(u16::from_be_bytes([*l0, *l1]));
        if [*t0, *t1] == USERNAME {
            return std::str::from_utf8(value.get(..length)?).ok();
        }
        rest = value.get(length.next_multiple_of(4)..)?;
    }
}

/// A short-term password (RFC 8489 9.1): base64url of 32 bytes.
#[derive(Clone)]
pub(crate) struct Password(HMACKey);

impl Password {
    pub(crate) fn new(key: &SealKey) -> Option<Self> {
        HMACKey::new_short_term(BASE64URL.encode(key.as_bytes()))
            .ok()
            .map(Self)
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(..)")
    }
}

/// A message to send. Everything absent is left out.
#[derive(Debug, Default)]
pub(crate) struct Outgoing<'a> {
    pub(crate) transaction: [u8; 12],
    pub(crate) username: Option<&'a str>,
    pub(crate) mapped: Option<SocketAddr>,
    pub(crate) other: Option<SocketAddr>,
    /// CHANGE-REQUEST with the change-port flag (RFC 5780 7.2).
    pub(crate) change_port: bool,
    /// RESPONSE-PORT (RFC 5780 7.5): the answer shall go to this port of the sender's address.
    pub(crate) response_port: Option<u16>,
    pub(crate) error: Option<u16>,
    pub(crate) data: Option<&'a [u8]>,
    pub(crate) password: Option<&'a Password>,
}

impl Outgoing<'_> {
    /// The bytes; empty where the content fits no datagram, which the callers' bounds exclude.
    pub(crate) fn encode(&self, class: Class) -> Vec<u8> {
        let class = match class {
            Class::Request => MessageClass::Request,
            Class::Success => MessageClass::SuccessResponse,
            Class::Error => MessageClass::ErrorResponse,
            Class::Indication => MessageClass::Indication,
        };
        let mut message = StunMessageBuilder::new(BINDING, class)
            .with_transaction_id(TransactionId::from(self.transaction));
        if let Some(name) = self.username.and_then(|name| UserName::new(name).ok()) {
            message = message.with_attribute(name);
        }
        if let Some(error) = self
            .error
            .and_then(|code| stun_rs::ErrorCode::new(code, "").ok())
        {
            message = message.with_attribute(ErrorCode::new(error));
        }
        if let Some(mapped) = self.mapped {
            message = message.with_attribute(XorMappedAddress::from(mapped));
        }
        if let Some(other) = self.other {
            message = message.with_attribute(OtherAddress::from(other));
        }
        if self.change_port {
            message = message.with_attribute(ChangeRequest::new(Some(
                ChangeRequestFlags::ChangePort.into(),
            )));
        }
        if let Some(port) = self.response_port {
            message = message.with_attribute(ResponsePort::from(port));
        }
        if let Some(data) = self.data {
            message = message.with_attribute(Data::new(data));
        }
        if let Some(password) = self.password {
            message = message.with_attribute(MessageIntegritySha256::new(password.0.clone()));
        }
        let message = message.with_attribute(Fingerprint::default()).build();
        let mut bytes = vec![0; DATAGRAM_MAX];
        let length = MessageEncoderBuilder::default()
            .build()
            .encode(&mut bytes, &message)
            .unwrap_or_default();
        bytes.truncate(length);
        bytes
    }
}

/// A message that arrived.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Incoming {
    pub(crate) username: Option<String>,
    pub(crate) mapped: Option<SocketAddr>,
    pub(crate) other: Option<SocketAddr>,
    pub(crate) change_port: bool,
    pub(crate) response_port: Option<u16>,
    pub(crate) error: Option<u16>,
    pub(crate) data: Option<Vec<u8>>,
}

/// Reads a message without asking who sent it.
pub(crate) fn parse(bytes: &[u8]) -> Option<Incoming> {
    decode(&MessageDecoder::default(), bytes).map(|message| read(&message))
}

/// Reads a message whose MESSAGE-INTEGRITY-SHA256 and FINGERPRINT are present and right.
pub(crate) fn verify(bytes: &[u8], password: &Password) -> Option<Incoming> {
    let context = DecoderContextBuilder::default()
        .with_key(password.0.clone())
        .with_validation()
        .build();
    let decoder = MessageDecoderBuilder::default()
        .with_context(context)
        .build();
    let message = decode(&decoder, bytes)?;
    message.get::<MessageIntegritySha256>()?;
    message.get::<Fingerprint>()?;
    Some(read(&message))
}

fn decode(decoder: &MessageDecoder, bytes: &[u8]) -> Option<StunMessage> {
    header(bytes)?;
    decoder.decode(bytes).ok().map(|(message, _)| message)
}

fn read(message: &StunMessage) -> Incoming {
    Incoming {
        username: message
            .get::<UserName>()
            .and_then(|a| a.as_user_name().ok())
            .map(|name| name.as_str().to_owned()),
        mapped: message
            .get::<XorMappedAddress>()
            .and_then(|a| a.as_xor_mapped_address().ok())
            .map(|a| *a.socket_address()),
        other: message
            .get::<OtherAddress>()
            .and_then(|a| a.as_other_address().ok())
            .map(|a| *a.socket_address()),
        change_port: message
            .get::<ChangeRequest>()
            .and_then(|a| a.as_change_request().ok())
            .is_some_and(|a| a.flags().contains(ChangeRequestFlags::ChangePort)),
        response_port: message
            .get::<ResponsePort>()
            .and_then(|a| a.as_response_port().ok())
            .map(|a| a.as_u16()),
        error: message
            .get::<ErrorCode>()
            .and_then(|a| a.as_error_code().ok())
            .map(|a| a.error_code().error_code()),
        data: message
            .get::<Data>()
            .and_then(|a| a.as_data().ok())
            .map(|a| a.as_bytes().to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(byte: u8) -> Password {
        Password::new(&SealKey::derive(&[byte; 32], b"test")).unwrap()
    }

    fn message(password: Option<&Password>) -> Vec<u8> {
        Outgoing {
            transaction: [7; 12],
            username: Some("0011223344556677:8899aabbccddeeff"),
            mapped: Some("203.0.113.7:22514".parse().unwrap()),
            other: Some("[2001:db8::1]:40000".parse().unwrap()),
            change_port: true,
            response_port: Some(40_001),
            error: None,
            data: Some(b"hello"),
            password,
        }
        .encode(Class::Request)
    }

    #[test]
    fn a_message_is_read_back_and_verified() {
        let bytes = message(Some(&password(1)));
        let incoming = verify(&bytes, &password(1)).unwrap();
        assert_eq!(parse(&bytes).as_ref(), Some(&incoming));
        assert_eq!(incoming.data.as_deref(), Some(b"hello".as_slice()));
        assert_eq!(incoming.mapped, Some("203.0.113.7:22514".parse().unwrap()));
        assert_eq!(incoming.other, Some("[2001:db8::1]:40000".parse().unwrap()));
        assert!(incoming.change_port);
        assert_eq!(incoming.response_port, Some(40_001));
        assert_eq!(username(&bytes), incoming.username.as_deref());
        for cut in 0..bytes.len() {
            let _ = username(&bytes[..cut]);
        }
        assert_eq!(header(&bytes).unwrap().transaction, [7; 12]);
    }

    #[test]
    fn a_message_without_integrity_or_with_another_key_is_refused() {
        assert_eq!(verify(&message(None), &password(1)), None);
        assert_eq!(verify(&message(Some(&password(2))), &password(1)), None);
    }

    #[test]
    fn any_changed_byte_is_refused() {
        let bytes = message(Some(&password(1)));
        for index in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[index] ^= 0x01;
            assert_eq!(verify(&changed, &password(1)), None, "byte {index}");
        }
    }

    #[test]
    fn a_thousand_bytes_of_data_fit() {
        let bytes = Outgoing {
            data: Some(&[9; mesh_types::consts::MESSAGE_MAX_EARLY]),
            username: Some("00112233445566778899aabbccddeeff"),
            password: Some(&password(1)),
            ..Outgoing::default()
        }
        .encode(Class::Request);
        assert_eq!(
            verify(&bytes, &password(1)).unwrap().data.unwrap().len(),
            1000
        );
    }

    #[test]
    fn an_error_answer_carries_its_code() {
        let bytes = Outgoing {
            error: Some(STALE_EPOCH),
            data: Some(&[0, 0, 0, 9]),
            password: Some(&password(1)),
            ..Outgoing::default()
        }
        .encode(Class::Error);
        assert_eq!(header(&bytes).unwrap().class, Class::Error);
        assert_eq!(
            verify(&bytes, &password(1)).unwrap().error,
            Some(STALE_EPOCH)
        );
    }

    #[test]
    fn nothing_that_is_no_binding_message_passes_the_header() {
        let bytes = message(None);
        assert_eq!(header(&bytes[..19]), None);
        assert_eq!(header(&bytes[..bytes.len() - 4]), None);
        for (index, value) in [(0, 0x40), (1, 0x03), (1, 0x10), (4, 0), (3, 1)] {
            let mut changed = bytes.clone();
            changed[index] = value;
            assert_eq!(header(&changed), None, "byte {index}");
        }
        assert_eq!(header(&[0; 2000]), None);
    }
}
