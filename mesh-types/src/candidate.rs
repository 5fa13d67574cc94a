//! Transport addresses at which a node may be reached, and what is known of the NATs before it.

use std::fmt;
use std::net::SocketAddr;

/// Where a candidate came from (RFC 8445 5.1.1). The order is the order of preference when a list must be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CandidateKind {
    /// Forced by the operator or given by a port mapping protocol.
    Mapped,
    /// An address of one of the host's own interfaces.
    Host,
    /// As a STUN server or a peer saw it.
    ServerReflexive,
    /// As a probe arrived from it.
    PeerReflexive,
    /// On a relay.
    Relayed,
    /// Of TCP: whoever is called from there, at the same time, may connect. Never a UDP address.
    Tcp,
}

impl CandidateKind {
    /// The word in annotations, JSON and metrics.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Mapped => "mapped",
            Self::Host => "host",
            Self::ServerReflexive => "srflx",
            Self::PeerReflexive => "prflx",
            Self::Relayed => "relay",
            Self::Tcp => "tcp",
        }
    }

    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Host => 0,
            Self::ServerReflexive => 1,
            Self::PeerReflexive => 2,
            Self::Mapped => 3,
            Self::Relayed => 4,
            Self::Tcp => 5,
        }
    }

    pub(crate) fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            0 => Self::Host,
            1 => Self::ServerReflexive,
            2 => Self::PeerReflexive,
            3 => Self::Mapped,
            4 => Self::Relayed,
            5 => Self::Tcp,
            _ => return None,
        })
    }
}

/// A transport address a node may be reached at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Candidate {
    /// Where it came from.
    pub kind: CandidateKind,
    /// Where it is.
    pub address: SocketAddr,
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.kind.kind())
    }
}

/// Mapping behaviour (RFC 4787 4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Mapping {
    /// One external port for all destinations.
    EndpointIndependent,
    /// One per destination address.
    AddressDependent,
    /// One per destination address and port.
    AddressAndPortDependent,
    /// Too few servers answered to tell.
    #[default]
    Unknown,
}

/// Filtering behaviour (RFC 4787 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Filtering {
    /// Anybody may answer.
    EndpointIndependent,
    /// Whoever's address was sent to.
    AddressDependent,
    /// Whoever's address and port were sent to.
    AddressAndPortDependent,
    /// Not told.
    #[default]
    Unknown,
}

/// How an address translator chooses external ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Allocation {
    /// The internal port where it is free.
    Preserving,
    /// The last one plus a step.
    Sequential(i16),
    /// At random from one block, lowest and highest port.
    Block(u16, u16),
    /// At random from all.
    Random,
    /// Not told.
    #[default]
    Unknown,
}

/// What is known of the translators and filters before a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NatReport {
    /// Mapping behaviour.
    pub mapping: Mapping,
    /// Filtering behaviour, the host's own firewall included.
    pub filtering: Filtering,
    /// Port allocation.
    pub allocation: Allocation,
    /// No UDP came back from anybody.
    pub udp_blocked: bool,
}

macro_rules! words {
    ($type:ty { $($variant:pat => $word:literal),+ $(,)? }) => {
        impl $type {
            /// The word in annotations, JSON and metrics.
            pub fn kind(self) -> &'static str {
                match self { $($variant => $word),+ }
            }
        }
    };
}
words!(Mapping { Self::EndpointIndependent => "eim", Self::AddressDependent => "adm", Self::AddressAndPortDependent => "apdm", Self::Unknown => "unknown" });
words!(Filtering { Self::EndpointIndependent => "eif", Self::AddressDependent => "adf", Self::AddressAndPortDependent => "apdf", Self::Unknown => "unknown" });
words!(Allocation { Self::Preserving => "preserving", Self::Sequential(_) => "sequential", Self::Block(..) => "block", Self::Random => "random", Self::Unknown => "unknown" });

impl NatReport {
    /// Four bytes of class and the allocator's numbers, for announcements.
    pub(crate) fn to_bytes(self) -> [u8; 8] {
        let mapping = match self.mapping {
            Mapping::Unknown => 0,
            Mapping::EndpointIndependent => 1,
            Mapping::AddressDependent => 2,
            Mapping::AddressAndPortDependent => 3,
        };
        let filtering = match self.filtering {
            Filtering::Unknown => 0,
            Filtering::EndpointIndependent => 1,
            Filtering::AddressDependent => 2,
            Filtering::AddressAndPortDependent => 3,
        };
        let (allocation, first, second) = match self.allocation {
            Allocation::Unknown => (0, 0, 0),
            Allocation::Preserving => (1, 0, 0),
            Allocation::Sequential(step) => (2, step.cast_unsigned(), 0),
            Allocation::Block(low, high) => (3, low, high),
            Allocation::Random => (4, 0, 0),
        };
        let [a, b] = first.to_be_bytes();
        let [c, d] = second.to_be_bytes();
        [
            mapping,
            filtering,
            allocation,
            u8::from(self.udp_blocked),
            a,
            b,
            c,
            d,
        ]
    }

    /// The reverse; codes of a newer version read as unknown.
    pub(crate) fn from_bytes(bytes: [u8; 8]) -> Self {
        let first = u16::from_be_bytes([bytes[4], bytes[5]]);
        let second = u16::from_be_bytes([bytes[6], bytes[7]]);
        Self {
            mapping: match bytes[0] {
                1 => Mapping::EndpointIndependent,
                2 => Mapping::AddressDependent,
                3 => Mapping::AddressAndPortDependent,
                _ => Mapping::Unknown,
            },
            filtering: match bytes[1] {
                1 => Filtering::EndpointIndependent,
                2 => Filtering::AddressDependent,
                3 => Filtering::AddressAndPortDependent,
                _ => Filtering::Unknown,
            },
            allocation: match bytes[2] {
                1 => Allocation::Preserving,
                2 => Allocation::Sequential(first.cast_signed()),
                3 if first <= second => Allocation::Block(first, second),
                4 => Allocation::Random,
                _ => Allocation::Unknown,
            },
            udp_blocked: bytes[3] == 1,
        }
    }
}
