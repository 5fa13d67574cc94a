//! The node's side of it all: one [`Traversal`] per node.

use std::net::SocketAddr;
use std::time::Instant;

use mesh_types::message::Forward;
use mesh_types::report::{HostAddress, TunnelStats};
use mesh_types::token::{TicketId, TicketKeys};
use mesh_types::{Candidate, IpNet, Message, NatReport, Now, PeerId, SocketId, Transmit, WgSecret};

use crate::api::{Config, Counters, Event, JoinRequest, Path, PeerReport, PeerSpec, Refused};

/// Reaches peers through whatever lies between.
#[derive(Debug)]
pub struct Traversal {
    config: Config,
    counters: Counters,
}

impl Traversal {
    /// Starts. `epoch` is already stored and higher than any used before; `seed` is random.
    pub fn new(config: Config, epoch: u32, seed: [u8; 32], now: Now) -> Self {
        let _ = (epoch, seed, now);
        Self {
            config,
            counters: Counters::default(),
        }
    }
    /// Sets the own WireGuard key, and the previous one during a rotation: both are answered to, probes
    /// go out under the current one.
    pub fn set_keys(&mut self, current: &WgSecret, previous: Option<&WgSecret>, now: Now) {
        let _ = (current, previous, now);
    }
    /// Sets the port of [`SocketId::Main`].
    pub fn set_listen_port(&mut self, port: u16) {
        self.config.listen_port = port;
    }
    /// Sets the port of [`SocketId::Alternate`].
    pub fn set_alternate_port(&mut self, port: Option<u16>) {
        let _ = port;
    }
    /// Sets the host's addresses. A change of what is usable means the host has moved: all paths are
    /// probed anew at once.
    pub fn set_host_addresses(&mut self, addresses: &[HostAddress], ipv6_off: bool, now: Now) {
        let _ = (addresses, ipv6_off, now);
    }
    /// Sets mesh, pod and service ranges: never candidates, ours or theirs.
    pub fn set_excluded(&mut self, ranges: Vec<IpNet>) {
        drop(ranges);
    }
    /// Sets the STUN servers, resolved.
    pub fn set_stun_servers(&mut self, servers: Vec<SocketAddr>, now: Now) {
        let _ = now;
        self.config.stun = servers;
    }
    /// Adds a peer, or tells news of it.
    pub fn upsert_peer(&mut self, id: PeerId, peer: PeerSpec, now: Now) {
        let _ = (id, peer, now);
    }
    /// Gives a peer another name; paths are kept.
    pub fn rename_peer(&mut self, from: &PeerId, to: PeerId) {
        let _ = (from, to);
    }
    /// Forgets a peer.
    pub fn remove_peer(&mut self, id: &PeerId) {
        let _ = id;
    }
    /// A control datagram arrived.
    pub fn handle_datagram(
        &mut self,
        socket: SocketId,
        local: SocketAddr,
        remote: SocketAddr,
        bytes: &[u8],
        now: Now,
    ) {
        let _ = (socket, local, remote, bytes, now);
    }
    /// CallMe or CallMeAck arrived, authenticated by the session or by its seal.
    pub fn handle_message(&mut self, from: &PeerId, message: &Message, now: Now) {
        let _ = (from, message, now);
    }
    /// What the tunnel knows of a peer.
    pub fn handle_tunnel(&mut self, id: &PeerId, stats: &TunnelStats, now: Now) {
        let _ = (id, stats, now);
    }
    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Now) {
        let _ = now;
    }
    /// When to call [`Self::handle_timeout`], and why.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        None
    }
    /// The next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        None
    }
    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        None
    }
    /// The path in use to a peer.
    pub fn path(&self, id: &PeerId) -> Option<&Path> {
        let _ = id;
        None
    }
    /// Own candidates to announce, sorted, at most [`mesh_types::consts::CANDIDATES_MAX`].
    pub fn endpoints(&self) -> &[Candidate] {
        &[]
    }
    /// What lies before this node.
    pub fn nat(&self) -> NatReport {
        NatReport::default()
    }
    /// What is known of the attempts to reach a peer.
    pub fn peer_report(&self, id: &PeerId) -> Option<PeerReport> {
        let _ = id;
        None
    }
    /// Numbers by name.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }
    /// Seals a message for a peer, to be passed on by a neighbour.
    pub fn seal(&mut self, to: &PeerId, message: &Message) -> Option<Forward> {
        let _ = (to, message);
        None
    }
    /// Opens a sealed message.
    pub fn open(&mut self, forward: &Forward, now: Now) -> Result<(PeerId, Message), Refused> {
        let _ = (forward, now);
        Err(Refused::NotForUs)
    }
    /// Sends a sealed Join to a member and repeats it at 100, 300, 700, 1500, 3100 and 6300 ms until it is
    /// answered ([`Event::JoinAnswer`]) or 10 s have passed, after which it is forgotten. Gives the
    /// transaction id.
    pub fn send_join(
        &mut self,
        ticket: TicketId,
        keys: &TicketKeys,
        remote: SocketAddr,
        sealed: Vec<u8>,
        now: Now,
    ) -> [u8; 12] {
        let _ = (ticket, keys, remote, sealed, now);
        [0; 12]
    }
    /// The datagram that answers a join request, to be sent to `request.remote` from [`SocketId::Main`].
    pub fn answer_join(
        &mut self,
        request: &JoinRequest,
        keys: &TicketKeys,
        sealed: Vec<u8>,
    ) -> Vec<u8> {
        let _ = (request, keys, sealed);
        Vec::new()
    }
    /// Learns the own NAT afresh (`farspan netcheck`).
    pub fn reprobe(&mut self, now: Now) {
        let _ = now;
    }
}

impl JoinRequest {
    /// Reads a joiner's datagram that an introducer has passed on; `local` is the introducer's.
    pub fn parse(datagram: &[u8], remote: SocketAddr, local: SocketAddr) -> Option<Self> {
        let _ = (datagram, remote, local);
        None
    }

    /// Is MESSAGE-INTEGRITY-SHA256 present and right under the ticket's key?
    pub fn verify(&self, keys: &TicketKeys) -> bool {
        let _ = keys;
        false
    }
}
