//! How two nodes reach each other through whatever lies between: a pure state machine.
//!
//! # The algorithm
//!
//! One [`Traversal`] per node; inside it one path agent per peer, what all agents share (keys, epoch,
//! budgets, the own NAT), the STUN servers, joins under way.
//!
//! **Probes** are STUN Binding requests (RFC 8489) under a key that two WireGuard keys share. Whoever holds
//! that key may ask and is answered; everybody else hears nothing. Every answer says under which address
//! the request arrived, so every peer is a STUN server for its peers. A transaction id is an epoch that
//! rises with every start and a sequence; a receiver takes each once (RFC 6479), and answers an earlier
//! epoch with error 438 whose DATA is the highest epoch seen, four bytes: a node whose disk and clock fell
//! back goes above it ([`Event::EpochRaised`]).
//!
//! **Getting connected.** Each candidate address of a peer gets a burst of seven probes in 640 ms; those
//! that ever answered are tried on, ever more slowly. A probe that arrives from an unknown address makes
//! that a candidate and is probed back at once. Two NATs that filter open to each other when both sides
//! send: [`Event::Signal`] carries CallMe with fresh candidates through any node that reaches both; its
//! receiver probes at once and answers with its own. Where nothing connects the two, both burst in the
//! same three seconds of every thirty, by the wall clock.
//!
//! **Hard translators** give each destination another port. Once peers' views differ, sixteen samples from
//! new sockets tell how ports are allocated ([`Allocation`](mesh_types::Allocation)): in sequence, in a block, or at random.
//! What follows depends on both sides, and is told in calls: ports are predicted between two samples, or
//! searched for at random by the side whose own port is one for all, while the other opens many sockets
//! ([`Traversal::sockets`]); two sequences try each other's next ports, two blocks each other's blocks. The
//! socket that gets through stays with the path, and the tunnel leaves from its port ([`Path::local_port`]).
//!
//! **Choosing.** The first address that answers is used at once, by either side. The side with the lower
//! idx is the controlling one: it tells the other by PathReady in the DATA of a probe on the path itself,
//! the other follows and says Ack in the answer. Later changes are the controlling side's alone, by tier
//! ([`PathKind`]), then round trip time, with hysteresis. An address is followed only after it answered a
//! probe, because integrity does not cover addresses.
//!
//! **Keeping.** A heartbeat of 2 s while the tunnel is active, else a keepalive of 20 to 25 s. An active path that
//! brings nothing for 500 ms is asked, and suspect where it does not answer in two round trips: three fast probes on
//! it and on the second way, which stands by at a relay ([`Traversal::spare`]: the tunnel may use both); when the first brings nothing, all other addresses get bursts, the
//! own reflexive address is asked of two other peers, and the peer is called. Without an answer the path
//! is gone, and what answered meanwhile takes its place. A changed host address, and a wake-up much later
//! than asked for (the machine slept), make every path suspect at once.
//!
//! **Sleeping.** A pair that is not used for ten minutes sends nothing ([`Traversal::rest`]), if both ends can be called
//! through relays that stay awake. [`Traversal::wake_peer`], a call or a doubt of the peer wakes it: the path is asked,
//! everything else gets bursts, and the peer is called.
//!
//! **Relays.** A pair without a direct path meets at a member that forwards ciphertext (`relay`): both ends bind
//! there, and its port for the peer is one more candidate address, proven by the same probes, of a tier below all
//! direct ones. So it is used as long as nothing better answers, and calls and bursts for something better go on.
//! Both ends choose alike by rendezvous hash until CallMe has told them the distances; an end that binds makes the
//! relay call the other.
//!
//! **Path MTU.** Probes on the path in use, padded until they are as long as WireGuard's packets, find what it
//! carries without ICMP (RFC 8899); [`Traversal::path_mtu`] tells.
//!
//! **TURN** (`turn`). A node with TURN servers keeps an allocation on one of them and announces its relayed address,
//! where others send to as to any other. It tries the peer's addresses through the server too, as soon as a pair is
//! without a path. An address behind a server has a loopback address of its own, which the tunnel and all of this
//! crate take for the address: probed, chosen, watched and left like others, of the last tiers.
//!
//! **The own NAT** is judged from what others see: mapping from two remotes or two ports of one (answers
//! name the peer's alternate port in OTHER-ADDRESS), filtering by asking a peer to answer from its
//! alternate port (CHANGE-REQUEST). A reflexive address counts when a peer confirms it, when two servers
//! agree, or when the only configured server is all there is to ask. With spare sockets it is tested whether
//! packets to the own external address come back (`hairpin`), and how long a silent mapping lives (`lifetime`):
//! a peer is asked to answer to a socket that has been silent, by RESPONSE-PORT, for ever closer lengths of
//! silence. Keepalives come often enough for what was found. All of it is repeated every 5 min.
//!
//! # Invariants
//!
//! - An address that never answered gets 7 packets per announcement or call (calls are limited to 6 and
//!   one more in 10 s), 3 per wall-clock slot, 20 a second together with all others at its IP address; all
//!   of them together get 500 a second. At most 24 addresses per peer are tried.
//! - Ports that nobody named are searched only at an address that the peer names and a third node has seen
//!   ([`Traversal::handle_seen`]), within 10 s after a call of the peer: 1000 a second, two peers at once, per
//!   peer and ten minutes 2,048 probes, 9,000 block against block.
//! - A datagram causes at most one answer, to its source or (where a peer asks so, four and one more a second) to
//!   another port of its address, and none to unknown senders.
//! - [`Traversal::poll_timeout`] is later than the `now` of the last [`Traversal::handle_timeout`].
//! - Equal seeds and equal inputs give equal outputs.
//!
//! # What differs from ICE (RFC 8445)
//!
//! There are no candidate pairs: one socket sends to remote addresses and the host routes. Roles follow from
//! keys, so there are no role conflicts. Nomination (PathReady) may change at any time, and either side
//! starts to use what works before it is nominated.

#![forbid(unsafe_code)]

mod activity;
mod agent;
mod api;
mod budget;
mod candidate;
mod flood;
mod hairpin;
mod hard;
#[cfg(test)]
mod instant;
mod join;
mod lifetime;
mod nat_kind;
mod nat_test;
mod node;
mod path_mtu;
mod probe;
mod relay;
mod remote;
mod replay;
mod schedule;
mod score;
mod seal;
mod servers;
mod standings;
mod stun;
mod traversal;
mod turn;

pub use api::{
    CandidateReport, Config, Counters, Event, Hairpin, JoinRequest, Lifetime, Path, PathKind,
    PeerReport, PeerSpec, Refused, RelaySettings, Rest, TurnPath, TurnProblem, TurnReport,
};
pub use traversal::Traversal;
