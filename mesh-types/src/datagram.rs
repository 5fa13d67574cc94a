//! Time and control datagrams: what every state machine takes in and gives out.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// A moment, as both clocks show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Counts through suspend (`CLOCK_BOOTTIME`): a laptop that wakes sees it jump.
    pub mono: Instant,
    /// Wall clock since the Unix epoch; may jump in both directions.
    pub unix: Duration,
}

impl Now {
    /// Wall clock in whole seconds.
    pub fn unix_secs(&self) -> u64 {
        self.unix.as_secs()
    }

    /// Wall clock in milliseconds.
    pub fn unix_millis(&self) -> u64 {
        u64::try_from(self.unix.as_millis()).unwrap_or(u64::MAX)
    }
}

/// Names a socket of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SocketId {
    /// The WireGuard port, shared by WireGuard, STUN and probes.
    Main,
    /// A second port of the same host, from which mapping behaviour is told (RFC 5780 4.3).
    Alternate,
    /// [`crate::consts::CONTROL_PORT`] on the overlay device: messages inside the tunnel.
    Overlay,
    /// A further socket named in the plan: birthday search.
    Extra(u32),
    /// This very UDP port, on all addresses of both families: members that are relayed through this node send to it.
    /// Only Binding indications are passed up from it; what becomes of the rest says
    /// [`crate::plan::RelayPair`]. Where another process holds the port,
    /// [`crate::report::HostReport::busy_ports`] names it, and the next plan another one.
    Relay(u16),
    /// The link of this number to a TURN server ([`crate::plan::TurnLink`]). What is sent goes out as it is, whatever
    /// the destination says: the core frames. What comes up is a STUN message of the server, or ChannelData
    /// (RFC 8656 12.4) with the header and without padding whose content is a control datagram.
    Turn(u32),
}

impl SocketId {
    /// The number of a [`SocketId::Extra`].
    pub fn extra(self) -> Option<u32> {
        match self {
            SocketId::Extra(number) => Some(number),
            SocketId::Main
            | SocketId::Alternate
            | SocketId::Overlay
            | SocketId::Relay(_)
            | SocketId::Turn(_) => None,
        }
    }
}

/// A datagram to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// From which socket.
    pub socket: SocketId,
    /// From which local address; `None` leaves it to the routing table.
    pub source: Option<IpAddr>,
    /// To whom.
    pub destination: SocketAddr,
    /// Hop limit where it differs from the system's (TTL-limited openers).
    pub ttl: Option<u8>,
    /// What.
    pub bytes: Vec<u8>,
}
