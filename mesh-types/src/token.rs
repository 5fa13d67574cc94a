//! Invitations: what `farspan invite` prints and `farspan join` reads.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use minicbor::{Decode, Encode};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::key::{AuthorityKey, DomainId, IdentityKey, Idx, WgKey};
use crate::sealed::SealKey;
use crate::wire;

const PREFIX: &str = "fsp1_";
const TOKEN_MAX: usize = 2048;

/// Why a text is not an invitation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Does not start with `fsp1_`.
    #[error(
        "not a farspan token: it starts with \"fsp1_\"; copy the whole line that `farspan invite` printed"
    )]
    Prefix,
    /// Damaged, or cut off.
    #[error("the token is damaged or cut off; copy the whole line that `farspan invite` printed")]
    Damaged,
}

/// A single-use invitation. Its `Debug` and [`fmt::Display`] differ: only the latter shows the secret.
#[derive(Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Token {
    /// The mesh.
    #[n(0)]
    pub domain: DomainId,
    /// Whose word counts in it.
    #[n(1)]
    pub authority: AuthorityKey,
    /// Up to three members to ask, reachable ones first.
    #[n(2)]
    pub introducers: Vec<Introducer>,
    /// Names the ticket: idx of the inviter's identity, then 8 random bytes.
    #[n(3)]
    pub ticket: TicketId,
    /// Proves that the joiner was invited.
    #[cbor(n(4), with = "secret")]
    pub secret: [u8; 16],
    /// Unix seconds.
    #[n(5)]
    pub expiry: u64,
    /// The overlay IPv4 address offered.
    #[cbor(n(6), with = "wire::ipv4", has_nil)]
    pub ipv4: Option<Ipv4Addr>,
}

/// A member whom a joiner may ask.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Introducer {
    /// Its identity.
    #[n(0)]
    pub identity: IdentityKey,
    /// Its WireGuard key.
    #[n(1)]
    pub key: WgKey,
    /// Where it may be reached.
    #[cbor(n(2), with = "wire::addresses")]
    pub endpoints: Vec<SocketAddr>,
}

/// Names an invitation: 8 bytes idx of the inviter's identity, 8 random bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TicketId(pub [u8; 16]);

impl TicketId {
    /// Joins its halves.
    pub fn new(inviter: Idx, random: [u8; 8]) -> Self {
        let mut out = [0; 16];
        out[..8].copy_from_slice(&inviter.0);
        out[8..].copy_from_slice(&random);
        Self(out)
    }

    /// Who issued it.
    pub fn inviter(&self) -> Idx {
        let mut out = [0; 8];
        out.copy_from_slice(&self.0[..8]);
        Idx(out)
    }
}
impl fmt::Display for TicketId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
impl FromStr for TicketId {
    type Err = TokenError;
    fn from_str(text: &str) -> Result<Self, TokenError> {
        if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(TokenError::Damaged);
        }
        u128::from_str_radix(text, 16)
            .map(|v| Self(v.to_be_bytes()))
            .map_err(|_| TokenError::Damaged)
    }
}
impl<C> Encode<C> for TicketId {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut minicbor::Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.bytes(&self.0)?.ok()
    }
}
impl<'b, C> Decode<'b, C> for TicketId {
    fn decode(d: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        wire::fixed::<16>(d).map(Self)
    }
}

mod secret {
    use minicbor::encode::{Error, Write};
    pub fn encode<C, W: Write>(
        v: &[u8; 16],
        e: &mut minicbor::Encoder<W>,
        _: &mut C,
    ) -> Result<(), Error<W::Error>> {
        e.bytes(v)?.ok()
    }
    pub fn decode<C>(
        d: &mut minicbor::Decoder<'_>,
        _: &mut C,
    ) -> Result<[u8; 16], minicbor::decode::Error> {
        crate::wire::fixed::<16>(d)
    }
}

/// The keys that follow from a ticket's secret. The inviter keeps only the hash they are derived from.
#[derive(Debug, Clone)]
pub struct TicketKeys {
    /// Password of the Binding message's MESSAGE-INTEGRITY-SHA256.
    pub integrity: SealKey,
    /// Seals the Join.
    pub join: SealKey,
    /// Seals the answer.
    pub joined: SealKey,
}

/// SHA-256 of the ticket's secret, which is what the inviter stores.
pub fn secret_hash(secret: &[u8; 16]) -> [u8; 32] {
    Sha256::digest(secret).into()
}

impl TicketKeys {
    /// HKDF-SHA256 of the stored hash.
    pub fn derive(secret_hash: &[u8; 32]) -> Self {
        Self {
            integrity: SealKey::derive(secret_hash, b"farspan join v1 integrity"),
            join: SealKey::derive(secret_hash, b"farspan join v1 request"),
            joined: SealKey::derive(secret_hash, b"farspan join v1 answer"),
        }
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = Zeroizing::new(minicbor::to_vec(self).unwrap_or_default());
        let check = Sha256::digest(bytes.as_slice());
        bytes.extend_from_slice(&check[..4]);
        write!(f, "{PREFIX}{}", BASE64URL.encode(bytes.as_slice()))
    }
}
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token(ticket {})", self.ticket)
    }
}
impl FromStr for Token {
    type Err = TokenError;
    fn from_str(text: &str) -> Result<Self, TokenError> {
        let body = text.trim().strip_prefix(PREFIX).ok_or(TokenError::Prefix)?;
        if body.len() > TOKEN_MAX {
            return Err(TokenError::Damaged);
        }
        let bytes = Zeroizing::new(BASE64URL.decode(body).map_err(|_| TokenError::Damaged)?);
        let (cbor, check) = bytes.split_last_chunk::<4>().ok_or(TokenError::Damaged)?;
        if Sha256::digest(cbor)[..4] != *check {
            return Err(TokenError::Damaged);
        }
        let token: Self = minicbor::decode(cbor).map_err(|_| TokenError::Damaged)?;
        if token.domain != DomainId::standalone(Some(&token.authority))
            || token.introducers.len() > 3
        {
            return Err(TokenError::Damaged);
        }
        Ok(token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::IdentitySecret;

    fn token() -> Token {
        let authority = IdentitySecret::from_bytes(&[5; 32]).authority();
        Token {
            domain: DomainId::standalone(Some(&authority)),
            authority,
            introducers: vec![Introducer {
                identity: IdentityKey([1; 32]),
                key: WgKey([2; 32]),
                endpoints: vec!["203.0.113.1:22000".parse().expect("address")],
            }],
            ticket: TicketId::new(Idx([3; 8]), [4; 8]),
            secret: [6; 16],
            expiry: 1_800_000_000,
            ipv4: Some(Ipv4Addr::new(10, 77, 0, 2)),
        }
    }

    #[test]
    fn a_token_is_read_back_from_its_text() {
        assert_eq!(token().to_string().parse(), Ok(token()));
    }

    #[test]
    fn a_token_with_a_changed_or_missing_character_is_damaged() {
        let text = token().to_string();
        assert_eq!(
            text[..text.len() - 1].parse::<Token>(),
            Err(TokenError::Damaged)
        );
        let changed = text.replacen('A', "B", 1);
        assert_eq!(changed.parse::<Token>(), Err(TokenError::Damaged));
    }

    #[test]
    fn a_name_has_one_spelling_and_a_sign_is_none_of_it() {
        let plus = format!("+{}", "0".repeat(31));
        assert_eq!(plus.parse::<TicketId>(), Err(TokenError::Damaged));
        assert!("+00000000000000f".parse::<Idx>().is_err());
        assert!("000000000000000f".parse::<Idx>().is_ok());
    }

    #[test]
    fn debugging_a_token_does_not_show_its_secret() {
        assert!(!format!("{:?}", token()).contains("6, 6"));
    }
}
