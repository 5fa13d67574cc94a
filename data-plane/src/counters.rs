//! What happened to packets, by reason.

use std::sync::atomic::{AtomicU64, Ordering};

use boringtun::noise::errors::WireGuardError;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident = $label:literal,)*) => {
        /// A reason. Its label is fixed: it ends up in metrics.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Count { $($(#[$doc])* $name,)* }

        const LABELS: &[&str] = &[$($label,)*];
    };
}

counters! {
    /// Packets read from the TUN, after cutting.
    TunPackets = "tun_packets",
    /// Reads from the TUN.
    TunReads = "tun_reads",
    /// Packets written to the TUN, before merging.
    TunWritten = "tun_written",
    /// Writes to the TUN.
    TunWrites = "tun_writes",
    /// The TUN refused a packet: it is down, or out of memory.
    TunRefused = "tun_refused",
    /// A super-packet from the TUN was not what its headers say.
    TunMalformed = "tun_malformed",
    /// Merging was switched off because the kernel refused it.
    TunMergeOff = "tun_merge_off",
    /// No peer owns the destination.
    NoRoute = "no_route",
    /// The peer has no endpoint yet.
    NoEndpoint = "no_endpoint",
    /// Waiting for a session, and too many wait already.
    StagedFull = "staged_full",
    /// Too large for a datagram, or too many messages in one turn.
    Oversize = "oversize",
    /// Datagrams sent.
    UdpSent = "udp_sent",
    /// Send calls.
    UdpSends = "udp_sends",
    /// The socket's buffer was full, or what is left of it is for peers that send less.
    UdpBusy = "udp_busy",
    /// The kernel refused to send: unreachable, filtered, no such source.
    UdpRefused = "udp_refused",
    /// A message was sent without segmentation offload after it failed.
    UdpUnsegmented = "udp_unsegmented",
    /// Datagrams received.
    UdpReceived = "udp_received",
    /// Receive calls that returned something.
    UdpReceives = "udp_receives",
    /// A peer's packet that was not opened, because more came than could be and it had had its share.
    OverShare = "over_share",
    /// Control datagrams passed up.
    Control = "control",
    /// Neither WireGuard nor control.
    Foreign = "foreign_datagram",
    /// A message for a session we do not have.
    UnknownSession = "unknown_session",
    /// A handshake of a key that is no peer.
    UnknownPeer = "unknown_peer",
    /// A handshake whose first MAC is not for our key.
    BadMac = "bad_mac",
    /// Cookies sent because many handshakes waited.
    CookieSent = "cookie_sent",
    /// A packet that does not decrypt.
    Undecryptable = "undecryptable",
    /// A packet seen before, or too old.
    Replayed = "replayed",
    /// A handshake older than the last.
    StaleHandshake = "stale_handshake",
    /// Decrypted, but no IP packet.
    BadInner = "bad_inner",
    /// Decrypted, but its source is not the sender's.
    BadSource = "bad_source",
    /// Refused by the protocol for another reason.
    Protocol = "protocol",
    /// A handshake message that was dropped because too many waited for their turn.
    HandshakesFull = "handshakes_full",
    /// Handshakes completed.
    Handshakes = "handshakes",
    /// Sessions or handshakes given up.
    Expired = "expired",
    /// A plan named a port that could not be bound.
    RebindFailed = "rebind_failed",
    /// Datagrams of others forwarded in userspace.
    RelayForwarded = "relay_forwarded",
    /// Their payload, bytes.
    RelayBytes = "relay_bytes",
    /// Beyond the rate of their pair.
    RelayOverRate = "relay_over_rate",
    /// To a relay port, from none of those who are relayed by it.
    RelayStranger = "relay_stranger",
}

/// All counters. Shared by the worker and whoever reads them.
#[derive(Debug)]
pub struct Counters(Box<[AtomicU64]>);

impl Default for Counters {
    fn default() -> Self {
        Self(LABELS.iter().map(|_| AtomicU64::new(0)).collect())
    }
}

impl Counters {
    /// Adds.
    pub fn add(&self, count: Count, n: u64) {
        self.0[count as usize].fetch_add(n, Ordering::Relaxed);
    }

    /// The value now.
    pub fn get(&self, count: Count) -> u64 {
        self.0[count as usize].load(Ordering::Relaxed)
    }

    /// All of them, by label.
    pub fn all(&self) -> Vec<(&'static str, u64)> {
        let values = self.0.iter().map(|value| value.load(Ordering::Relaxed));
        LABELS.iter().copied().zip(values).collect()
    }
}

/// Why boringtun refused.
pub(crate) fn reason(error: &WireGuardError) -> Count {
    use WireGuardError as E;
    match error {
        E::InvalidAeadTag | E::WrongKey => Count::Undecryptable,
        E::InvalidCounter | E::DuplicateCounter => Count::Replayed,
        E::InvalidTai64nTimestamp | E::WrongTai64nTimestamp => Count::StaleHandshake,
        E::InvalidMac => Count::BadMac,
        E::NoCurrentSession | E::WrongIndex => Count::UnknownSession,
        E::InvalidPacket | E::IncorrectPacketLength => Count::BadInner,
        E::ConnectionExpired => Count::Expired,
        E::DestinationBufferTooSmall
        | E::UnexpectedPacket
        | E::WrongPacketType
        | E::LockFailed
        | E::UnderLoad => Count::Protocol,
    }
}
