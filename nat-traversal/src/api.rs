//! What goes in and what comes out of [`crate::Traversal`].

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mesh_types::token::TicketId;
use mesh_types::turn::TurnAddress;
use mesh_types::{Candidate, Idx, Message, NatReport, PeerId, WgKey};

/// Settings of a node's traversal.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// UDP port of [`mesh_types::SocketId::Main`]; host candidates carry it.
    pub listen_port: u16,
    /// STUN servers, resolved. None by default: peers are each other's servers.
    pub stun: Vec<SocketAddr>,
    /// Admit loopback addresses as candidates, own and others'. For tests on one machine.
    pub allow_loopback: bool,
}

/// What is known of a peer before it was reached.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PeerSpec {
    /// Its WireGuard keys: the current one, then the announced next one.
    pub keys: Vec<WgKey>,
    /// Where it says it can be reached.
    pub candidates: Vec<Candidate>,
    /// What lies before it, as it says.
    pub nat: NatReport,
    /// Where it was reached last (state file, tunnel).
    pub last_endpoint: Option<SocketAddr>,
    /// May it relay for others?
    pub relay_capable: bool,
    /// Ids of its home relays, as it says: their identities' [`mesh_types::IdentityKey::idx`].
    pub relays: Vec<Idx>,
    /// Of the announcement the candidates come from; a higher one probes anew.
    pub announcement_seq: u64,
}

/// How this node relays for others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelaySettings {
    /// Lowest and highest port to lend, one a member.
    pub ports: (u16, u16),
    /// Bits a second of a pair, both directions together; 0 is no limit.
    pub pair_rate: u64,
    /// Bits a second of all pairs of one node, sent and received together; 0 is no limit.
    pub node_rate: u64,
}

/// Tier of a path, the better the lower.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PathKind {
    /// An address of the same site: private, or of a network this host is in.
    Lan,
    /// IPv6 across the internet.
    Ipv6,
    /// IPv4 across the internet.
    Ipv4,
    /// Through a member that forwards ciphertext.
    NodeRelay,
    /// Through a TURN server, by datagrams on this side; how the peer reaches its own server is not known.
    TurnUdp,
    /// A TCP connection straight to the peer.
    Tcp,
    /// Through a TURN server that is spoken to over TCP or TLS.
    TurnTcp,
}

impl PathKind {
    /// The word in JSON and metrics.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Lan => "lan",
            Self::Ipv6 => "ipv6",
            Self::Ipv4 => "ipv4",
            Self::NodeRelay => "node-relay",
            Self::TurnUdp => "turn-udp",
            Self::Tcp => "tcp",
            Self::TurnTcp => "turn-tcp",
        }
    }

    /// Does somebody else carry it?
    pub fn is_relayed(self) -> bool {
        match self {
            Self::Lan | Self::Ipv6 | Self::Ipv4 | Self::Tcp => false,
            Self::NodeRelay | Self::TurnUdp | Self::TurnTcp => true,
        }
    }

    /// Do datagrams go straight to the peer?
    pub fn is_direct_udp(self) -> bool {
        self < Self::NodeRelay
    }
}

/// A path through an own TURN server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TurnPath {
    /// The server.
    pub server: TurnAddress,
    /// The peer's address, as the server sees it.
    pub peer: SocketAddr,
}

/// A configured TURN server, and how it does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TurnReport {
    /// Where it is.
    pub address: TurnAddress,
    /// Where peers send to, where there is an allocation.
    pub relayed: Option<SocketAddr>,
    /// Round trip time, where it was asked lately.
    pub rtt: Option<Duration>,
    /// Why there is no allocation, where the last attempt failed.
    pub problem: Option<TurnProblem>,
}

/// Why a TURN server is of no use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TurnProblem {
    /// Its name has no usable address.
    Unresolved,
    /// It does not answer.
    Silent,
    /// No connection to it, for this reason.
    Unreachable(String),
    /// Its certificate is refused, for this reason.
    Certificate(String),
    /// It refuses the credentials, with this code.
    Credentials(u16),
    /// It wants credentials, and no secret is configured.
    NoCredentials,
    /// It refuses with this code and reason.
    Refused(u16, String),
}

impl TurnProblem {
    /// Must a person change something before it goes away?
    pub(crate) fn is_lasting(&self) -> bool {
        match self {
            Self::Certificate(_) | Self::Credentials(_) | Self::NoCredentials => true,
            Self::Unresolved | Self::Silent | Self::Unreachable(_) | Self::Refused(..) => false,
        }
    }
}

/// The path in use to a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path {
    /// Where the tunnel sends. Behind an own TURN server, and over TCP, that is the peer's loopback address
    /// ([`mesh_types::plan::Proxy`]); [`crate::Traversal::real_address`] tells the other one.
    pub remote: SocketAddr,
    /// Its tier.
    pub kind: PathKind,
    /// Smoothed round trip time (RFC 6298 2, alpha 1/8).
    pub rtt: Duration,
    /// Since when it is in use.
    pub since: Instant,
    /// Both ends have agreed on it (PathReady and Ack).
    pub confirmed: bool,
    /// The relay that carries it.
    pub via: Option<PeerId>,
    /// The own TURN server that carries it.
    pub turn: Option<TurnPath>,
    /// The local port it leaves from where that is not the listen port: one of [`crate::Traversal::sockets`]
    /// got through, and the tunnel's data must leave from its port ([`mesh_types::plan::Adoption`]).
    pub local_port: Option<u16>,
    /// A search has found it: the other end may be about to lend its tunnel a port, and hears no tunnel before.
    pub searched: bool,
}

/// How much is sent to a peer that is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rest {
    /// All that keeps path and session alive.
    Awake,
    /// Keepalives of the path. The tunnel's own should end, and nothing that can wait be sent through it.
    Resting,
    /// Nothing. A handshake that the tunnel begins must be told by [`crate::Traversal::wake_peer`].
    Asleep,
}

/// Do packets to the own external address come back, as those of two hosts behind one NAT must (RFC 4787 REQ-9)?
/// Each with one sentence: how that is known, or why it is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hairpin {
    /// They do.
    Yes(&'static str),
    /// They do not: such hosts meet inside their site only.
    No(&'static str),
    /// Nobody knows.
    Unknown(&'static str),
}

impl Hairpin {
    /// The word in JSON.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Yes(_) => "yes",
            Self::No(_) => "no",
            Self::Unknown(_) => "unknown",
        }
    }

    /// The sentence.
    pub fn why(self) -> &'static str {
        match self {
            Self::Yes(why) | Self::No(why) | Self::Unknown(why) => why,
        }
    }
}

/// How long a NAT or firewall remembers a flow that is silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetime {
    /// So much silence was survived.
    pub at_least: Option<Duration>,
    /// So much was not.
    pub below: Option<Duration>,
    /// One sentence: how that is known, or why nothing is.
    pub why: &'static str,
}

/// Something the owner must do or know.
#[expect(
    clippy::large_enum_variant,
    reason = "events are few and taken out one by one"
)]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// [`crate::Traversal::path`] or [`crate::Traversal::is_silent`] of this peer changed.
    PathChanged {
        /// Whose.
        peer: PeerId,
    },
    /// [`crate::Traversal::rest`] of this peer changed.
    RestChanged {
        /// Whose.
        peer: PeerId,
    },
    /// A peer that was woken answers on the path that it had before. Otherwise the path changes.
    Woken {
        /// Who.
        peer: PeerId,
    },
    /// [`crate::Traversal::spare`] of this peer changed.
    SpareChanged {
        /// Whose.
        peer: PeerId,
    },
    /// [`crate::Traversal::relay_pairs`], [`crate::Traversal::relay_ports`] or [`crate::Traversal::late`] changed.
    RelayChanged,
    /// [`crate::Traversal::path_mtu`] or [`crate::Traversal::firm_path_mtu`] of this peer changed.
    PathMtuChanged {
        /// Whose.
        peer: PeerId,
    },
    /// To be delivered inside the tunnel where there is a session, else sealed through a neighbour.
    /// Dropped without harm where neither is possible: it is repeated while needed.
    Signal {
        /// To whom.
        peer: PeerId,
        /// CallMe, CallMeAck or RelayOffer.
        message: Message,
    },
    /// [`crate::Traversal::turn_links`] or [`crate::Traversal::proxies`] changed.
    TurnChanged,
    /// A TURN server's name is to be looked up, `host:port`; [`crate::Traversal::handle_turn_resolved`] takes the answer.
    TurnResolve(String),
    /// [`crate::Traversal::sockets`] changed. Once the host has opened them, [`crate::Traversal::handle_sockets`].
    SocketsChanged,
    /// [`crate::Traversal::endpoints`], [`crate::Traversal::nat`] or [`crate::Traversal::home_relays`] changed.
    EndpointsChanged,
    /// [`crate::Traversal::keepalive`] changed.
    KeepaliveChanged,
    /// An authenticated probe arrived under another key of the peer than its first.
    PeerKeySeen {
        /// Whose.
        peer: PeerId,
        /// Under which.
        key: WgKey,
    },
    /// A Binding request with a ticket for a user name; not verified yet.
    JoinRequest(JoinRequest),
    /// The verified answer to [`crate::Traversal::send_join`].
    JoinAnswer {
        /// Of the request.
        ticket: TicketId,
        /// Joined or JoinRefused, sealed.
        sealed: Vec<u8>,
        /// Who answered.
        remote: SocketAddr,
    },
    /// A peer has seen a higher epoch of ours: to be stored before anything polled after this is sent.
    EpochRaised(u32),
}

/// A joiner's Binding request, as it arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinRequest {
    /// Which invitation it claims.
    pub ticket: TicketId,
    /// Where it came from.
    pub remote: SocketAddr,
    /// Where it arrived.
    pub local: SocketAddr,
    /// Of the Binding request; the answer carries it again.
    pub transaction: [u8; 12],
    /// The DATA attribute: Join, sealed with the ticket.
    pub sealed: Vec<u8>,
    /// The whole datagram, to verify or to pass on.
    pub datagram: Vec<u8>,
}

/// What is known of the attempts to reach a peer.
#[derive(Debug, Clone, PartialEq)]
pub struct PeerReport {
    /// The path in use.
    pub path: Option<Path>,
    /// The path in use does not answer at the moment.
    pub suspect: bool,
    /// It moves at least 1 KiB beyond keepalives in 10 s.
    pub active: bool,
    /// All addresses tried, best first.
    pub candidates: Vec<CandidateReport>,
    /// Probes sent to it.
    pub probes_sent: u64,
    /// Of these answered.
    pub probes_answered: u64,
    /// Share of the last 32 probes on the path that stayed unanswered, percent.
    pub loss: u8,
    /// Last authenticated datagram from it.
    pub last_heard: Option<Instant>,
    /// From learning of it, or from losing it, to the first direct path.
    pub connect: Option<Duration>,
    /// Why there is no path, one sentence.
    pub error: Option<String>,
}

/// An address at which a peer was tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CandidateReport {
    /// The address and where it came from.
    pub candidate: Candidate,
    /// Its tier.
    pub kind: PathKind,
    /// Probes sent to it.
    pub sent: u64,
    /// Answers that came from it.
    pub answered: u64,
    /// Smoothed round trip time, once it answered.
    pub rtt: Option<Duration>,
}

/// Numbers by name: what was sent, what was refused and why.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Counters(BTreeMap<&'static str, u64>);

impl Counters {
    /// One more.
    pub(crate) fn add(&mut self, name: &'static str) {
        *self.0.entry(name).or_default() += 1;
    }

    /// A number by its name, 0 where nothing was counted.
    pub fn value(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or_default()
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.0.iter().map(|(name, value)| (*name, *value))
    }
}

/// Why a sealed message was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Not for a key of ours.
    #[error("addressed to another key")]
    NotForUs,
    /// From a key we do not know.
    #[error("from an unknown key")]
    UnknownSender,
    /// The seal does not fit.
    #[error("seal broken")]
    Seal,
    /// Seen before, or too old to tell.
    #[error("replayed")]
    Replayed,
    /// From an earlier epoch of the sender.
    #[error("of an earlier epoch")]
    OldEpoch,
    /// The content is not a message.
    #[error("malformed content")]
    Malformed,
}

impl Refused {
    /// The word in counters.
    pub fn kind(self) -> &'static str {
        match self {
            Self::NotForUs => "not-for-us",
            Self::UnknownSender => "unknown-sender",
            Self::Seal => "seal",
            Self::Replayed => "replayed",
            Self::OldEpoch => "old-epoch",
            Self::Malformed => "malformed",
        }
    }
}
