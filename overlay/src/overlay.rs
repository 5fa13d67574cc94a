//! The node's verbs.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mesh_types::command::{Command, CommandId};
use mesh_types::observation::Fact;
use mesh_types::report::{Answer, PortMapping};
use mesh_types::table::take_first;
use mesh_types::{
    Applied, HostPlan, HostReport, Message, NodeKey, Now, Observation, PeerId, SocketId, Source,
    State, Transmit, TunnelReport, WgSecret,
};
use nat_traversal::{RelaySettings, Traversal};
use peer_discovery::Directory;
use rand_chacha::ChaCha12Rng;
use rand_core::{Rng as _, SeedableRng as _};

use crate::announce::Announcer;
use crate::authority::{Renewal, Revocation};
use crate::calls::CallQueue;
use crate::command::Pending;
use crate::gossip::Gossip;
use crate::join::Joining;
use crate::join::petition::Petitions;
use crate::kubernetes::Cluster;
use crate::peers::Peers;
use crate::plan::{Entries, Stale};
use crate::rotation::{Force, Rotation};
use crate::snapshot::Snapshot;
use crate::{Config, Event, Identity};

/// Rounds in which children are drained: each event of one may cause some of the other, never endlessly.
const DRAIN_ROUNDS: usize = 16;
/// Changes of the state that nobody waits for are written together.
const PERSIST_LATER: Duration = Duration::from_secs(1);
/// How soon a wall clock that was set is noticed, where anything happens at all.
const DIRECTORY_EVERY: Duration = Duration::from_secs(1);
/// A STUN server's name without a usable address is looked up again.
pub(crate) const RESOLVE_AGAIN: Duration = Duration::from_secs(60);

/// One node of the mesh.
pub struct Overlay {
    pub(crate) identity: Identity,
    pub(crate) config: Config,
    /// What survives a restart, except the records, which the directory holds.
    pub(crate) state: State,
    pub(crate) own: NodeKey,
    pub(crate) directory: Directory,
    pub(crate) traversal: Traversal,
    pub(crate) peers: Peers,
    /// When the directory was last told the time: each time it looks at all records.
    directory_at: Instant,
    /// When WireGuard's word of all peers was last taken in.
    pub(crate) looked_at: Option<Instant>,
    pub(crate) announcer: Announcer,
    pub(crate) gossip: Gossip,
    pub(crate) rotation: Rotation,
    pub(crate) joining: Joining,
    pub(crate) petitions: Petitions,
    pub(crate) renewal: Renewal,
    pub(crate) revocations: Vec<Revocation>,
    pub(crate) pending: Pending,
    pub(crate) cluster: Cluster,
    pub(crate) host: HostReport,
    /// What came of asking the gateway for a port, once it is known.
    pub(crate) port_mapping: Option<PortMapping>,
    pub(crate) host_known: bool,
    pub(crate) applied: Option<Applied>,
    /// Configured STUN servers and what they resolved to.
    pub(crate) stun: BTreeMap<String, Vec<SocketAddr>>,
    pub(crate) resolve_at: Option<Instant>,
    pub(crate) revoked: bool,
    /// How members are relayed through this node, where they may be, now.
    pub(crate) relays: Option<RelaySettings>,
    pub(crate) plan: HostPlan,
    /// What of the plan is to be made anew.
    pub(crate) stale: Stale,
    /// What of the plan's entries the plan itself does not say.
    pub(crate) entries: Entries,
    /// Generation of the plan that first holds the own addresses as they are.
    pub(crate) addresses_since: Option<u64>,
    /// Messages inside the tunnel that wait for the host to hold addresses and peers.
    pub(crate) held: VecDeque<(PeerId, Message)>,
    pub(crate) excluded_dirty: bool,
    /// Rises where a peer that was called in vain may be reached by now.
    pub(crate) ways: u32,
    pub(crate) events: VecDeque<Event>,
    pub(crate) transmits: VecDeque<Transmit>,
    pub(crate) persist_at: Option<Instant>,
    pub(crate) call_queue: CallQueue,
    pub(crate) counters: BTreeMap<&'static str, u64>,
    pub(crate) rng: ChaCha12Rng,
    pub(crate) started: Instant,
}

impl std::fmt::Debug for Overlay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Overlay")
            .field("own", &self.own)
            .field("peers", &self.peers.len())
            .finish_non_exhaustive()
    }
}

impl Overlay {
    /// Starts from what the disk holds. `seed` is all the randomness the node uses.
    ///
    /// The first event is [`Event::Persist`]: the epoch of the probes must be on disk before one is sent.
    pub fn new(
        identity: Identity,
        config: Config,
        mut state: State,
        seed: [u8; 32],
        now: Now,
    ) -> Self {
        let mut rng = ChaCha12Rng::from_seed(seed);
        let mut traversal_seed = [0; 32];
        rng.fill_bytes(&mut traversal_seed);
        let seconds = u32::try_from(now.unix_secs()).unwrap_or(u32::MAX);
        state.epoch = state.epoch.saturating_add(1).max(seconds);
        state.listen_port = Some(config.listen_port);
        let own = NodeKey {
            domain: crate::state::domain(&identity, &config, &state),
            identity: identity.node.identity(),
        };
        let directory = Directory::new(
            peer_discovery::Config {
                own,
                own_key: identity.key.public(),
                authorities: crate::state::authorities(&identity, &config, &state),
                cluster: crate::state::cluster(&config),
            },
            now,
        );
        let traversal = Traversal::new(
            nat_traversal::Config {
                listen_port: config.listen_port,
                stun: Vec::new(),
                allow_loopback: false,
            },
            state.epoch,
            traversal_seed,
            now,
        );
        let plan = crate::state::empty_plan(&identity, &config);
        let mut node = Self {
            identity,
            config,
            state,
            own,
            directory,
            traversal,
            peers: Peers::default(),
            directory_at: now.mono,
            looked_at: None,
            announcer: Announcer::default(),
            gossip: Gossip::default(),
            rotation: Rotation::default(),
            joining: Joining::default(),
            petitions: Petitions::default(),
            renewal: Renewal::default(),
            revocations: Vec::new(),
            pending: Pending::default(),
            cluster: Cluster::new(now.mono),
            host: HostReport::default(),
            port_mapping: None,
            host_known: false,
            applied: None,
            stun: BTreeMap::new(),
            resolve_at: None,
            revoked: false,
            relays: None,
            plan,
            stale: Stale::default(),
            entries: Entries::default(),
            addresses_since: None,
            held: VecDeque::new(),
            excluded_dirty: true,
            ways: 0,
            events: VecDeque::new(),
            transmits: VecDeque::new(),
            persist_at: None,
            call_queue: CallQueue::default(),
            counters: BTreeMap::new(),
            rng,
            started: now.mono,
        };
        node.start(now);
        node
    }

    fn start(&mut self, now: Now) {
        self.stale.everything();
        self.persist_now();
        self.traversal.set_keys(&self.identity.key, None, now);
        self.traversal
            .set_alternate_port(self.config.alternate_port);
        self.traversal
            .set_birthday_search(self.config.birthday_search);
        self.tell_own_ranges(now);
        if self.state.only_turn {
            self.traversal.expect_turn();
        }
        self.load(now);
        self.directory.handle_observation(
            Observation {
                source: Source::Config,
                fact: Fact::Listed(self.config.peers.clone()),
            },
            now,
        );
        self.resolve_stun();
        self.tell_stun(now);
        self.tell_turn(now);
        self.settle(now);
        self.refresh_own_membership(now);
        self.wish_soon(now);
        self.renew_due(now);
        self.announcement_changed(now);
        if let Some(next) = self.identity.next.clone() {
            // The file names the key already where the last run stopped between the two.
            if next == self.identity.key {
                self.identity.next = None;
                let key = next;
                self.events.push_back(Event::KeyRotated { key });
            } else if let Err(_refused) = self.rotate(None, next, Force::Yes, now) {
                self.identity.next = None;
            }
        }
        self.settle(now);
    }

    /// Is it the WireGuard key in use, or the one that a rotation is about to change to?
    pub fn has_key(&self, key: &WgSecret) -> bool {
        self.identity.key == *key || self.identity.next.as_ref() == Some(key)
    }

    /// A source says something of a node.
    pub fn handle_observation(&mut self, observation: Observation, now: Now) {
        if let (Source::Config, Fact::Listed(peers)) = (&observation.source, &observation.fact) {
            self.config.peers.clone_from(peers);
        }
        self.directory.handle_observation(observation, now);
        self.settle(now);
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
        match socket {
            SocketId::Overlay => self.handle_control(remote, bytes, now),
            SocketId::Main
            | SocketId::Alternate
            | SocketId::Extra(_)
            | SocketId::Relay(_)
            | SocketId::Turn(_) => self
                .traversal
                .handle_datagram(socket, local, remote, bytes, now),
        }
        self.settle(now);
    }

    /// What WireGuard knows of its peers.
    pub fn handle_tunnel(&mut self, report: &TunnelReport, now: Now) {
        self.take_tunnel(report, now);
        self.settle(now);
    }

    /// What the host looks like.
    pub fn handle_host(&mut self, report: HostReport, now: Now) {
        self.take_host(report, now);
        self.settle(now);
    }

    /// What converging a plan came to.
    pub fn handle_applied(&mut self, applied: Applied, now: Now) {
        let current = applied.generation == self.plan.generation;
        if current {
            self.traversal.handle_sockets(&applied.sockets, now);
        }
        self.applied = Some(applied);
        self.send_held();
        self.rotation_due(now);
        self.greet_due(now);
        self.settle(now);
    }

    /// The answer to a question asked by an event.
    pub fn handle_answer(&mut self, answer: Answer, now: Now) {
        match answer {
            Answer::Resolved { name, addresses } => self.take_resolved(name, addresses, now),
            Answer::PortMapping(mapping) => self.take_port_mapping(mapping, now),
            Answer::TurnLink { number, state } => {
                self.traversal.handle_turn_link(number, &state, now);
            }
        }
        self.settle(now);
    }

    /// A person asks something; exactly one [`Event::Reply`] follows, at once or later.
    pub fn handle_command(&mut self, id: CommandId, command: Command, now: Now) {
        self.dispatch(id, command, now);
        self.settle(now);
    }

    /// Time has come.
    pub fn handle_timeout(&mut self, now: Now) {
        let directory = self.directory.poll_timeout();
        let due = directory.is_some_and(|(at, _)| at <= now.mono);
        if due || now.mono >= self.directory_at + DIRECTORY_EVERY {
            self.directory_at = now.mono;
            self.directory.handle_timeout(now);
        }
        self.publish_due(now);
        self.traversal.handle_timeout(now);
        self.drain(now);
        self.peers_due(now);
        self.announce_due(now);
        self.rotation_due(now);
        self.greet_due(now);
        self.gossip_due(now);
        self.join_due(now);
        self.petitions_due(now);
        self.renew_due(now);
        self.revocations_due(now);
        self.commands_due(now);
        self.resolve_due(now);
        self.calls_due(now);
        if self.persist_at.is_some_and(|at| at <= now.mono) {
            self.persist_now();
        }
        self.settle(now);
    }

    /// When to call [`Overlay::handle_timeout`], and why.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let peers = self.peers.deadline();
        let revocation = self.revocations.iter().map(|one| one.at).min();
        let own = [
            (peers, "peers"),
            (self.rotation.deadline(), "key rotation"),
            (self.announcer.due, "announcement"),
            (self.cluster.publisher.poll_timeout(), "write to the Node"),
            (self.gossip.deadline(), "gossip"),
            (self.joining.deadline(), "join"),
            (self.petitions.at, "petition"),
            (self.renewal.at, "membership renewal"),
            (revocation, "revocation"),
            (self.pending.deadline(), "command"),
            (self.resolve_at, "name lookup"),
            (self.persist_at, "state"),
            (self.call_queue.at, "call"),
        ];
        own.into_iter()
            .filter_map(|(at, why)| Some((at?, why)))
            .chain(self.directory.poll_timeout())
            .chain(self.traversal.poll_timeout())
            .min()
    }

    /// The next datagram to send. Poll all events first: an [`Event::Persist`] among them comes before it.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        take_first(&mut self.transmits).or_else(|| self.traversal.poll_transmit())
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        take_first(&mut self.events)
    }

    /// What the host should hold.
    pub fn host_plan(&self) -> &HostPlan {
        &self.plan
    }

    /// A view for people and metrics.
    pub fn snapshot(&self, now: Now) -> Snapshot {
        self.view(now)
    }

    /// Takes in what the children have to say and makes the plan follow.
    pub(crate) fn settle(&mut self, now: Now) {
        self.drain(now);
        if std::mem::take(&mut self.excluded_dirty) {
            self.tell_excluded();
            self.drain(now);
        }
        self.tell_refused();
        self.refresh_plan(now);
        self.peers.follow();
    }

    fn drain(&mut self, now: Now) {
        for _ in 0..DRAIN_ROUNDS {
            let mut quiet = true;
            while let Some(event) = self.directory.poll_event() {
                quiet = false;
                self.handle_directory(&event, now);
            }
            // A start touches all, and each call below asks who was met.
            self.peers.follow();
            while let Some(event) = self.traversal.poll_event() {
                quiet = false;
                self.handle_traversal(event, now);
            }
            if quiet {
                return;
            }
        }
    }

    /// One more of something.
    pub(crate) fn count(&mut self, name: &'static str) {
        *self.counters.entry(name).or_default() += 1;
    }

    /// The state must be on disk before anything queued from now on is sent.
    pub(crate) fn persist_now(&mut self) {
        self.persist_at = None;
        let queued = |event: &Event| matches!(event, Event::Persist);
        if !self.events.iter().any(queued) {
            self.events.push_back(Event::Persist);
        }
    }

    /// The state should be on disk soon.
    pub(crate) fn persist_soon(&mut self, now: Now) {
        self.persist_at.get_or_insert(now.mono + PERSIST_LATER);
    }

    /// 24 random bytes.
    pub(crate) fn nonce(&mut self) -> [u8; 24] {
        let mut nonce = [0; 24];
        self.rng.fill_bytes(&mut nonce);
        nonce
    }

    /// The port in use.
    pub(crate) fn listen_port(&self) -> u16 {
        self.host.port_moved.unwrap_or(self.config.listen_port)
    }
}
