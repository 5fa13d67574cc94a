//! The node's side of it all: one [`Traversal`] per node.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use mesh_types::WgSecret;
use mesh_types::message::Forward;
use mesh_types::report::{HostAddress, TunnelStats};
use mesh_types::table::take_first;
use mesh_types::token::{TicketId, TicketKeys};
use mesh_types::{
    Candidate, CandidateKind, Idx, IpNet, Message, NatReport, Now, PeerId, SocketId, Table,
    Transmit,
};

use crate::agent::PathAgent;
use crate::api::{CandidateReport, Config, Counters, Event, Hairpin, JoinRequest, Lifetime};
use crate::api::{Path, PathKind, PeerReport, PeerSpec, Refused, Rest};
use crate::budget::Bucket;
use crate::candidate;
use crate::hairpin::HairpinTest;
use crate::hard::sampler::Sampler;
use crate::join::Joins;
use crate::lifetime::LifetimeTest;
use crate::nat_test::NatTest;
use crate::node::{Node, Purpose};
use crate::relay::client::Client;
use crate::relay::server::Server;
use crate::schedule::SUSPENDED;
use crate::seal;
use crate::servers::Servers;
use crate::standings::{Deadlines, Standings};

mod receive;
mod relay;
mod settle;
mod turn;

use relay::Meeting;

/// Reaches peers through whatever lies between. See the crate's documentation.
#[derive(Debug)]
pub struct Traversal {
    node: Node,
    agents: Table<PeerId, PathAgent>,
    /// Peers by the names of all their keys.
    by_idx: BTreeMap<Idx, PeerId>,
    servers: Servers,
    joins: Joins,
    nat_test: NatTest,
    sampler: Sampler,
    hairpin: HairpinTest,
    lifetime: LifetimeTest,
    refreshes: Bucket,
    client: Client,
    server: Server,
    meetings: BTreeMap<PeerId, Meeting>,
    /// When to look at them.
    meeting_times: Deadlines,
    /// When to see whether a peer is to be tried through a TURN server, or no longer.
    turning: BTreeMap<PeerId, Instant>,
    /// Members that relay and are in reach.
    in_reach: BTreeSet<PeerId>,
    /// Those that are announced, and since when they are out of reach.
    homes: BTreeMap<PeerId, Option<Instant>>,
    /// The host's addresses as last told, usable or not.
    addresses: (Vec<HostAddress>, bool),
    standings: Standings,
    /// Who else may be behind the own translator is to be counted anew.
    recount: bool,
    wake: Option<(Instant, &'static str)>,
    /// The last moment told.
    latest: Instant,
}

impl Traversal {
    /// Starts. `epoch` is already stored and higher than any used before; `seed` is random.
    pub fn new(config: Config, epoch: u32, seed: [u8; 32], now: Now) -> Self {
        let mut node = Node::new(config, epoch, seed, now.mono);
        let server = Server::new(node.random(), now.mono);
        let mut traversal = Self {
            node,
            agents: Table::default(),
            by_idx: BTreeMap::new(),
            servers: Servers::default(),
            joins: Joins::default(),
            nat_test: NatTest::default(),
            sampler: Sampler::default(),
            hairpin: HairpinTest::new(now.mono),
            lifetime: LifetimeTest::new(now.mono),
            refreshes: Bucket::default(),
            client: Client::default(),
            server,
            meetings: BTreeMap::new(),
            meeting_times: Deadlines::default(),
            turning: BTreeMap::new(),
            in_reach: BTreeSet::new(),
            homes: BTreeMap::new(),
            addresses: (Vec::new(), false),
            standings: Standings::default(),
            recount: true,
            wake: None,
            latest: now.mono,
        };
        let stun = traversal.node.config.stun.clone();
        traversal.servers.set(&stun, now.mono);
        traversal.nat_test.restart(now.mono);
        traversal.settle(now);
        traversal
    }

    /// Sets the own WireGuard key, and the previous one during a rotation: both are answered to, probes
    /// go out under the current one.
    pub fn set_keys(&mut self, current: &WgSecret, previous: Option<&WgSecret>, now: Now) {
        self.node.keys = std::iter::once(current).chain(previous).cloned().collect();
        for agent in self.agents.values_mut() {
            agent.relink(&mut self.node, now);
            agent.rearm(&mut self.standings);
        }
        self.settle(now);
    }

    /// Sets the port of [`mesh_types::SocketId::Main`]. Takes effect with the next call that has a `now`.
    pub fn set_listen_port(&mut self, port: u16) {
        self.node.config.listen_port = port;
        self.node.nat.unjudged = true;
    }

    /// Sets the port of [`mesh_types::SocketId::Alternate`]: answers name it, and come from it where asked.
    pub fn set_alternate_port(&mut self, port: Option<u16>) {
        self.node.alternate_port = port;
    }

    /// Sets whether peers may be searched for from many sockets, or at many ports; they may at first. Prediction,
    /// which takes few of either, is not meant.
    pub fn set_birthday_search(&mut self, on: bool) {
        self.node.birthday_search = on;
    }

    /// Sets the host's addresses. A change of what is usable means the host has moved: all paths are
    /// probed anew at once, and the own NAT is learned afresh.
    pub fn set_host_addresses(&mut self, addresses: &[HostAddress], ipv6_off: bool, now: Now) {
        self.addresses = (addresses.to_vec(), ipv6_off);
        let hosts = candidate::usable(addresses, ipv6_off, &self.node.admission);
        if hosts != self.node.hosts {
            // The first addresses of a run are no move: translators may remember what an earlier run sent.
            if !self.node.hosts.is_empty() {
                self.node.nat.reset();
            }
            self.node.hosts = hosts;
            self.node.nat.unjudged = true;
            if self.agents.is_empty() {
                self.settle(now);
            } else {
                self.moved(now);
            }
        }
    }

    /// Sets where the gateway has mapped a port of its own to ours, as it says. Peers hear of it, and of its end.
    pub fn set_mapped(&mut self, mapped: Option<SocketAddr>, now: Now) {
        if mapped != self.node.mapped {
            self.node.mapped = mapped;
            self.node.nat.unjudged = true;
            self.settle(now);
        }
    }

    /// Sets mesh, pod and service ranges: never candidates, ours or theirs. Those of peers go at once, a
    /// path in use excepted; own ones with the next call that has a `now`.
    pub fn set_excluded(&mut self, ranges: Vec<IpNet>) {
        self.node.admission.exclude(ranges);
        self.node.nat.unjudged = true;
        let (addresses, ipv6_off) = &self.addresses;
        self.node.hosts = candidate::usable(addresses, *ipv6_off, &self.node.admission);
        for agent in self.agents.values_mut() {
            agent.readmit(&self.node);
            agent.rearm(&mut self.standings);
        }
    }

    /// Sets the STUN servers, resolved. New ones are asked at once.
    pub fn set_stun_servers(&mut self, servers: Vec<SocketAddr>, now: Now) {
        self.servers.set(&servers, now.mono);
        self.node.config.stun = servers;
        self.node.nat.unjudged = true;
        self.settle(now);
    }

    /// Adds a peer, or tells news of it. A first sight, a higher `announcement_seq` or a new address is
    /// probed at once.
    pub fn upsert_peer(&mut self, id: PeerId, peer: PeerSpec, now: Now) {
        self.forget_names(&id);
        let agent = self
            .agents
            .get_or_insert_with(id, || PathAgent::new(id, now));
        let relayed = agent.may_relay();
        agent.update(&mut self.node, peer, now);
        let relays = relayed || agent.may_relay();
        let names = agent.keys().iter().map(mesh_types::WgKey::idx);
        self.by_idx.extend(names.map(|name| (name, id)));
        if relays {
            self.note_relay_addresses();
        }
        self.recount = true;
        self.with(&id, now, |agent, node| agent.run(node, now));
    }

    /// A peer's keys are no names of it any more.
    fn forget_names(&mut self, id: &PeerId) {
        for key in self.agents.get(id).map_or(&[][..], PathAgent::keys) {
            if self.by_idx.get(&key.idx()) == Some(id) {
                self.by_idx.remove(&key.idx());
            }
        }
    }

    /// Gives a peer another name; paths are kept. Where both names are known, the one with a path stays.
    pub fn rename_peer(&mut self, from: &PeerId, to: PeerId) {
        if *from == to {
            return;
        }
        self.forget_names(from);
        self.recount = true;
        let Some(mut agent) = self.agents.remove(from) else {
            return;
        };
        agent.disarm(&mut self.standings);
        agent.rename(to);
        let names: Vec<_> = agent.keys().iter().map(mesh_types::WgKey::idx).collect();
        let keep_old = agent.path().is_none()
            && self
                .agents
                .get(&to)
                .is_some_and(|known| known.path().is_some());
        if keep_old {
            agent.close(&mut self.node);
        } else {
            self.by_idx.extend(names.into_iter().map(|name| (name, to)));
            if let Some(mut other) = self.agents.remove(&to) {
                other.disarm(&mut self.standings);
                other.close(&mut self.node);
            }
            agent.rearm(&mut self.standings);
            self.agents.insert(to, agent);
        }
        self.node.searches.end(from);
        self.tell_sockets();
        for pending in self.node.pending.values_mut() {
            if pending.peer == *from {
                pending.peer = to;
            }
        }
        for agent in self.agents.values_mut() {
            agent.rename_relay(from, to);
        }
        self.forget_meetings(from);
        self.note_relay_addresses();
        self.node.turn.rename(from, to);
        self.turning.remove(from);
        self.node.meet.insert(to);
    }

    fn forget_meetings(&mut self, id: &PeerId) {
        self.client.remove_peer(id);
        self.server.remove_peer(id);
        self.meetings.remove(id);
        self.meeting_times.set(*id, None);
        self.homes.remove(id);
        self.in_reach.remove(id);
        let unbound = |purpose: Purpose| purpose != Purpose::Bind(*id);
        self.node
            .pending
            .retain(|_, pending| unbound(pending.purpose));
    }

    /// Forgets a peer.
    pub fn remove_peer(&mut self, id: &PeerId) {
        self.forget_names(id);
        self.recount = true;
        if let Some(mut agent) = self.agents.remove(id) {
            agent.disarm(&mut self.standings);
            agent.close(&mut self.node);
            self.tell_sockets();
        }
        self.node.pending.retain(|_, pending| pending.peer != *id);
        self.forget_meetings(id);
        self.note_relay_addresses();
        for agent in self.agents.values_mut() {
            agent.leave_relay(*id);
        }
        self.turning.remove(id);
        self.node.meet.insert(*id);
    }

    /// CallMe, CallMeAck or RelayOffer arrived, authenticated by the session or by its seal.
    pub fn handle_message(&mut self, from: &PeerId, message: &Message, now: Now) {
        self.check_suspended(now);
        if let Message::RelayOffer(offer) = message {
            return self.handle_offer(from, offer, now);
        }
        self.with(from, now, |agent, node| {
            agent.on_message(node, message, now);
        });
    }

    /// IPv4 addresses at which a peer has answered, that of the path first: what this node may tell others.
    pub fn seen(&self, id: &PeerId) -> Vec<Ipv4Addr> {
        self.agents.get(id).map_or_else(Vec::new, PathAgent::seen)
    }

    /// A third node, whom this message came through, says at which address it reaches a peer. Searches go to
    /// addresses that were seen so, and to no others.
    pub fn handle_seen(&mut self, id: &PeerId, ip: Ipv4Addr) {
        if let Some(agent) = self.agents.get_mut(id) {
            agent.vouched(ip);
        }
    }

    /// The sockets of [`Self::sockets`] that the host has opened.
    pub fn handle_sockets(&mut self, open: &BTreeSet<SocketId>, now: Now) {
        self.check_suspended(now);
        self.node.sockets.opened(open);
        for agent in self
            .agents
            .values_mut()
            .filter(|agent| agent.waits_for_sockets())
        {
            agent.run(&mut self.node, now);
            agent.rearm(&mut self.standings);
        }
        self.settle(now);
    }

    /// Sockets wanted beside the main and the alternate one, all of them [`SocketId::Extra`]: for searches, and
    /// those that paths leave from. A number is never used for two sockets.
    pub fn sockets(&self) -> impl Iterator<Item = SocketId> + '_ {
        self.node.sockets.wanted()
    }

    /// The tunnel has sent there by itself, from the port it shares with probes: whoever comes from there is no stranger.
    pub fn tunnel_sent(&mut self, to: IpAddr) {
        self.node.nat.sent_before(to);
    }

    /// What the tunnel knows of a peer: where it sends, what it moves. `upkeep` are the bytes of it, both ways
    /// and since ever, that are no use of the peer: what the mesh compares for itself.
    pub fn handle_tunnel(&mut self, id: &PeerId, stats: &TunnelStats, upkeep: u64, now: Now) {
        self.check_suspended(now);
        let Some(agent) = self.agents.get_mut(id) else {
            return;
        };
        let node = &mut self.node;
        let before = (agent.wake(), node.events.len(), node.transmits.len());
        agent.on_tunnel(node, (stats, upkeep), now.mono);
        agent.rearm(&mut self.standings);
        let after = (agent.wake(), node.events.len(), node.transmits.len());
        // Reports are many, and mostly nothing follows from them.
        if before != after || node.refresh || !node.meet.is_empty() {
            self.settle(now);
        }
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Now) {
        self.check_suspended(now);
        self.servers.run(&mut self.node, now.mono);
        self.joins.run(&mut self.node, now.mono);
        self.node.nat.handle_timeout(now.mono);
        for id in self.standings.due(now.mono) {
            if let Some(agent) = self.agents.get_mut(&id) {
                agent.run(&mut self.node, now);
                agent.rearm(&mut self.standings);
            }
        }
        self.settle(now);
    }

    /// When to call [`Self::handle_timeout`], and why.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        self.wake
    }

    /// The next datagram to send. Events come first: [`Event::EpochRaised`] must be stored before.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        take_first(&mut self.node.transmits)
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        take_first(&mut self.node.events)
    }

    /// The path in use to a peer.
    pub fn path(&self, id: &PeerId) -> Option<&Path> {
        self.agents.get(id)?.path()
    }

    /// Must nothing be sent to this peer for now, by the tunnel neither? Routers on the way are to forget it: what
    /// one of them took for itself spoils the flow as long as more of it comes. A path goes on being used.
    pub fn is_silent(&self, id: &PeerId) -> bool {
        let silent = |agent: &PathAgent| agent.is_silent() && agent.path().is_none();
        self.agents.get(id).is_some_and(silent)
    }

    /// The largest packet inside the tunnel that the path to a peer carries, bytes, where that is less than
    /// [`mesh_types::consts::MTU`]; found by probes, without ICMP. It may be less than IPv6 asks for
    /// ([`mesh_types::consts::MTU_MIN`]).
    pub fn path_mtu(&self, id: &PeerId) -> Option<u16> {
        self.agents.get(id)?.path_mtu()
    }

    /// The same, but only as a search of the path in use came to it, and until the next search of it has ended.
    pub fn firm_path_mtu(&self, id: &PeerId) -> Option<u16> {
        self.agents.get(id)?.firm_path_mtu()
    }

    /// May idle peers sleep, where both ends can be called? Only if each handshake that the tunnel begins is told by
    /// [`Self::wake_peer`]. `name` is this node's as a relay: its identity's.
    pub fn set_lazy(&mut self, lazy: bool, name: Idx) {
        self.node.lazy = lazy;
        self.node.name = Some(name);
    }

    /// How much is sent to a peer; its changes are told by [`Event::RestChanged`].
    pub fn rest(&self, id: &PeerId) -> Rest {
        self.agents.get(id).map_or(Rest::Awake, PathAgent::rest)
    }

    /// A packet waits for this peer.
    pub fn wake_peer(&mut self, id: &PeerId, now: Now) {
        self.check_suspended(now);
        self.with(id, now, |agent, node| agent.wake_up(node, now.mono));
    }

    /// Where the tunnel's packets to a peer should go too, because the path in use is suspect; its changes are told
    /// by [`Event::SpareChanged`].
    pub fn spare(&self, id: &PeerId) -> Option<SocketAddr> {
        self.agents.get(id)?.spare()
    }

    /// Own candidates to announce, sorted, at most [`mesh_types::consts::CANDIDATES_MAX`].
    pub fn endpoints(&self) -> &[Candidate] {
        &self.node.endpoints
    }

    /// What lies before this node.
    pub fn nat(&self) -> NatReport {
        self.node.nat.report()
    }

    /// Does the NAT lead packets to this node's public address back to it? Tested every 5 min.
    pub fn hairpin(&self) -> Hairpin {
        self.hairpin.verdict()
    }

    /// How long the NAT or firewall remembers a flow that is silent. The first test takes half a minute, the
    /// exact number some minutes.
    pub fn lifetime(&self) -> Lifetime {
        self.lifetime.verdict()
    }

    /// The most time between two packets that keeps a mapping: 25 s, less where mappings are known to be forgotten
    /// sooner than others' are. [`Event::KeepaliveChanged`] tells of changes.
    pub fn keepalive(&self) -> Duration {
        self.node.keepalive.1
    }

    /// Was a peer heard of in the last minute, by itself or through others?
    pub fn is_alive(&self, id: &PeerId, now: Now) -> bool {
        self.agents
            .get(id)
            .is_some_and(|agent| agent.is_alive(now.mono))
    }

    /// What is known of the attempts to reach a peer.
    pub fn peer_report(&self, id: &PeerId) -> Option<PeerReport> {
        let agent = self.agents.get(id)?;
        let mut report = agent.report(self.node.nat.report(), self.latest);
        let tcp = |tried: &&mut CandidateReport| tried.kind == PathKind::Tcp;
        for tried in report.candidates.iter_mut().filter(tcp) {
            tried.candidate.kind = CandidateKind::Tcp;
            tried.candidate.address = self.real_address(tried.candidate.address);
        }
        Some(report)
    }

    /// Numbers by name: what was sent, what was refused and why.
    pub fn counters(&self) -> &Counters {
        &self.node.counters
    }

    /// Seals a message for a peer, to be passed on by neighbours; two hops at most. `None` where no key is
    /// shared with the peer or the message is too long.
    pub fn seal(&mut self, to: &PeerId, message: &Message) -> Option<Forward> {
        seal::seal(&mut self.node, self.agents.get(to)?.link()?, message)
    }

    /// Opens a sealed message.
    pub fn open(&mut self, forward: &Forward, now: Now) -> Result<(PeerId, Message), Refused> {
        self.check_suspended(now);
        let opened = self.open_sealed(forward);
        if let Err(refused) = opened {
            self.node.counters.add(match refused {
                Refused::NotForUs => "refused-forward-not-for-us",
                Refused::UnknownSender => "refused-forward-unknown-sender",
                Refused::Seal => "refused-forward-seal",
                Refused::Replayed => "refused-forward-replayed",
                Refused::OldEpoch => "refused-forward-old-epoch",
                Refused::Malformed => "refused-forward-malformed",
            });
        }
        opened
    }

    fn open_sealed(&mut self, forward: &Forward) -> Result<(PeerId, Message), Refused> {
        if !self
            .node
            .keys
            .iter()
            .any(|key| key.public().idx() == forward.to)
        {
            return Err(Refused::NotForUs);
        }
        let id = *self
            .by_idx
            .get(&forward.from)
            .ok_or(Refused::UnknownSender)?;
        let agent = self.agents.get_mut(&id).ok_or(Refused::UnknownSender)?;
        seal::open(agent, forward).map(|message| (id, message))
    }

    /// The peer one of whose WireGuard keys has this idx.
    pub fn by_idx(&self, idx: Idx) -> Option<PeerId> {
        self.by_idx.get(&idx).copied()
    }

    /// Sends a sealed Join to a member and repeats it at 100, 300, 700, 1500, 3100 and 6300 ms until it is
    /// answered ([`Event::JoinAnswer`]; one answer ends all of this ticket) or 10 s have passed, after which it is forgotten. Gives the
    /// transaction id.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "callers have no use for the sealed bytes afterwards"
    )]
    pub fn send_join(
        &mut self,
        ticket: TicketId,
        keys: &TicketKeys,
        remote: SocketAddr,
        sealed: Vec<u8>,
        now: Now,
    ) -> [u8; 12] {
        let Self { joins, node, .. } = self;
        let transaction = joins.send(node, ticket, keys, remote, &sealed, now.mono);
        self.settle(now);
        transaction
    }

    /// The datagram that answers a join request, to be sent to `request.remote` from [`mesh_types::SocketId::Main`].
    /// Empty where `sealed` is longer than [`mesh_types::consts::MESSAGE_MAX_EARLY`] by far.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "callers have no use for the sealed bytes afterwards"
    )]
    pub fn answer_join(
        &mut self,
        request: &JoinRequest,
        keys: &TicketKeys,
        sealed: Vec<u8>,
    ) -> Vec<u8> {
        request.answer(keys, &sealed)
    }

    /// Learns the own NAT afresh (`farspan netcheck`): forgets what is told from answers, asks servers and peers.
    /// What takes a test of its own ([`Self::hairpin`], [`Self::lifetime`]) is known until a new one is over.
    pub fn reprobe(&mut self, now: Now) {
        self.node.nat.forget();
        self.servers.refresh(now.mono);
        self.nat_test.repeat(now.mono);
        self.sampler.restart(&mut self.node);
        self.node.turn.survey(now.mono);
        self.hairpin.restart(&mut self.node, false, now.mono);
        for agent in self.agents.values_mut() {
            agent.heartbeat(&mut self.node, now.mono);
            agent.rearm(&mut self.standings);
        }
        self.settle(now);
    }

    /// The host has moved or slept.
    fn moved(&mut self, now: Now) {
        self.node.counters.add("moved");
        self.node.nat.forget();
        self.node.validated.clear();
        self.servers.refresh(now.mono);
        self.nat_test.restart(now.mono);
        self.sampler.restart(&mut self.node);
        self.hairpin.restart(&mut self.node, true, now.mono);
        self.lifetime.restart(&mut self.node, now.mono);
        for agent in self.agents.values_mut() {
            agent.moved(&mut self.node, now);
            agent.run(&mut self.node, now);
            agent.rearm(&mut self.standings);
        }
        self.client.moved(now.mono);
        self.node.turn.moved(now.mono);
        self.settle(now);
    }

    /// A wake-up that comes much later than asked for means that the machine slept.
    fn check_suspended(&mut self, now: Now) {
        if self.wake.is_some_and(|(at, _)| now.mono >= at + SUSPENDED) {
            self.node.nat.reset();
            self.moved(now);
        }
    }

    /// Does something with one agent, and then what follows from it.
    fn with(&mut self, id: &PeerId, now: Now, act: impl FnOnce(&mut PathAgent, &mut Node)) {
        if let Some(agent) = self.agents.get_mut(id) {
            act(agent, &mut self.node);
            agent.rearm(&mut self.standings);
        }
        self.settle(now);
    }
}
