//! Keys and names. Three kinds of key are never mixed: the identity (Ed25519, for ever), the WireGuard
//! key (X25519, rotates) and the authority (Ed25519, vouches for members).

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};
use sha2::{Digest as _, Sha256};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::{Zeroize as _, Zeroizing};

/// Why a text or a byte string is not a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not 44 characters of base64.
    #[error("not a key: expected 44 characters of base64 (32 bytes)")]
    Encoding,
    /// Every bit is zero: WireGuard and Ed25519 have no such key.
    #[error("not a key: all bytes are zero")]
    Zero,
}

fn decode32(text: &str) -> Result<[u8; 32], KeyError> {
    let mut bytes = Zeroizing::new(BASE64.decode(text.trim()).map_err(|_| KeyError::Encoding)?);
    let key = <[u8; 32]>::try_from(bytes.as_slice()).map_err(|_| KeyError::Encoding)?;
    bytes.zeroize();
    if key == [0; 32] {
        Err(KeyError::Zero)
    } else {
        Ok(key)
    }
}

macro_rules! public_key {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 32]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&BASE64.encode(self.0))
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }
        impl FromStr for $name {
            type Err = KeyError;
            fn from_str(text: &str) -> Result<Self, KeyError> {
                decode32(text).map(Self)
            }
        }
        impl $name {
            /// The bytes.
            pub fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }
        }
    };
}
public_key!(
    /// A WireGuard public key (X25519), as `wg` shows it.
    WgKey
);
public_key!(
    /// The public half of a node's identity (Ed25519), made on first start and never rotated.
    IdentityKey
);
public_key!(
    /// The public half of a domain's authority (Ed25519), pinned in `[mesh] authorities`.
    AuthorityKey
);

/// First 8 bytes of a domain-separated hash; names a key in probes and forwarded messages.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Idx(pub [u8; 8]);

impl fmt::Display for Idx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
impl fmt::Debug for Idx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Idx({self})")
    }
}
impl FromStr for Idx {
    type Err = KeyError;
    fn from_str(text: &str) -> Result<Self, KeyError> {
        if text.len() != 16 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(KeyError::Encoding);
        }
        u64::from_str_radix(text, 16)
            .map(|v| Self(v.to_be_bytes()))
            .map_err(|_| KeyError::Encoding)
    }
}

impl WgKey {
    /// Names the key in probes: first 8 bytes of SHA-256("farspan idx v1" || key).
    pub fn idx(&self) -> Idx {
        idx(&self.0)
    }
}
impl IdentityKey {
    /// Names the identity in tickets and digests; same hash as [`WgKey::idx`].
    pub fn idx(&self) -> Idx {
        idx(&self.0)
    }

    /// Checks an Ed25519 signature (RFC 8032, strict: no small-order keys).
    pub fn verify(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        verify(&self.0, message, signature)
    }
}
impl AuthorityKey {
    /// Checks an Ed25519 signature (RFC 8032, strict: no small-order keys).
    pub fn verify(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        verify(&self.0, message, signature)
    }
}

fn idx(key: &[u8; 32]) -> Idx {
    let hash = Sha256::new()
        .chain_update(b"farspan idx v1")
        .chain_update(key)
        .finalize();
    let mut out = [0; 8];
    out.copy_from_slice(&hash[..8]);
    Idx(out)
}

fn verify(key: &[u8; 32], message: &[u8], signature: &[u8; 64]) -> bool {
    VerifyingKey::from_bytes(key).is_ok_and(|key| {
        key.verify_strict(message, &ed25519_dalek::Signature::from_bytes(signature))
            .is_ok()
    })
}

/// A WireGuard private key. Never printed, wiped on drop.
#[derive(Clone)]
pub struct WgSecret {
    secret: StaticSecret,
    /// Kept, because it is asked for far more often than a key is made.
    public: WgKey,
}

impl WgSecret {
    /// Takes 32 random bytes and clamps them (RFC 7748 5).
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        let secret = StaticSecret::from(bytes);
        let public = WgKey(PublicKey::from(&secret).to_bytes());
        Self { secret, public }
    }

    /// Reads base64, as `wg genkey` prints it.
    pub fn from_base64(text: &str) -> Result<Self, KeyError> {
        decode32(text).map(Self::from_bytes)
    }

    /// The bytes, for the tunnel backend and the key file.
    pub fn to_bytes(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.secret.to_bytes())
    }

    /// Base64, as `wg genkey` prints it; for the key file.
    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(BASE64.encode(*self.to_bytes()))
    }

    /// The public key.
    pub fn public(&self) -> WgKey {
        self.public
    }

    /// X25519 with another key; `None` where that key contributes nothing (RFC 7748 6.1).
    pub fn agree(&self, other: &WgKey) -> Option<Zeroizing<[u8; 32]>> {
        let shared = self.secret.diffie_hellman(&PublicKey::from(other.0));
        shared
            .was_contributory()
            .then(|| Zeroizing::new(shared.to_bytes()))
    }
}
impl fmt::Debug for WgSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WgSecret(of {})", self.public())
    }
}
impl PartialEq for WgSecret {
    fn eq(&self, other: &Self) -> bool {
        self.public() == other.public()
    }
}
impl Eq for WgSecret {}

/// An Ed25519 private key: a node's identity or a domain's authority. Never printed, wiped on drop.
#[derive(Clone)]
pub struct IdentitySecret(SigningKey);

impl IdentitySecret {
    /// Takes 32 random bytes.
    pub fn from_bytes(bytes: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(bytes))
    }

    /// Reads base64 from a key file.
    pub fn from_base64(text: &str) -> Result<Self, KeyError> {
        decode32(text).map(|bytes| Self::from_bytes(&bytes))
    }

    /// Base64, for the key file.
    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(BASE64.encode(self.0.to_bytes()))
    }

    /// The public half, as a node's identity.
    pub fn identity(&self) -> IdentityKey {
        IdentityKey(self.0.verifying_key().to_bytes())
    }

    /// The public half, as an authority.
    pub fn authority(&self) -> AuthorityKey {
        AuthorityKey(self.0.verifying_key().to_bytes())
    }

    /// Signs (RFC 8032).
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }
}
impl fmt::Debug for IdentitySecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IdentitySecret(of {})", self.identity())
    }
}

/// A preshared key, mixed into the WireGuard handshake. Never printed, wiped on drop.
#[derive(Clone, PartialEq, Eq)]
pub struct PresharedKey(Zeroizing<[u8; 32]>);

impl PresharedKey {
    /// Reads base64, as `wg genpsk` prints it.
    pub fn from_base64(text: &str) -> Result<Self, KeyError> {
        decode32(text).map(|bytes| Self(Zeroizing::new(bytes)))
    }

    /// The bytes, for the tunnel backend.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Base64, for `config export`.
    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(BASE64.encode(*self.0))
    }
}
impl fmt::Debug for PresharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PresharedKey(..)")
    }
}

/// One set of nodes under one authority.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainId(pub [u8; 16]);

impl DomainId {
    /// SHA-256("farspan domain v1" || authority)[..16]; static files have no authority at all.
    pub fn standalone(authority: Option<&AuthorityKey>) -> Self {
        let mut hash = Sha256::new().chain_update(b"farspan domain v1");
        if let Some(authority) = authority {
            hash.update(authority.0);
        }
        let mut out = [0; 16];
        out.copy_from_slice(&hash.finalize()[..16]);
        Self(out)
    }
}
impl fmt::Display for DomainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
impl fmt::Debug for DomainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DomainId({self})")
    }
}

/// A node: its domain and its identity. Names are labels only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeKey {
    /// The domain.
    pub domain: DomainId,
    /// The identity.
    pub identity: IdentityKey,
}

/// A peer: a node, or a bare WireGuard key until its identity is known (a plain device: for ever).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PeerId {
    /// Its identity is known.
    Node(NodeKey),
    /// Only its WireGuard key is.
    Key(WgKey),
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(node) => write!(f, "node {}", node.identity),
            Self::Key(key) => write!(f, "key {key}"),
        }
    }
}
