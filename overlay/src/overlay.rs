//! The node's verbs.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mesh_types::command::{Command, CommandId};
use mesh_types::plan::{DevicePlan, TunnelPlan};
use mesh_types::report::Answer;
use mesh_types::{
    Applied, DomainId, HostPlan, HostReport, Now, Observation, SocketId, State, Transmit,
    TunnelReport,
};

use crate::{Config, Event, Identity, NodeSnapshot, Snapshot};

/// One node of the mesh.
pub struct Overlay {
    identity: Identity,
    config: Config,
    state: State,
    plan: HostPlan,
    events: VecDeque<Event>,
    transmits: VecDeque<Transmit>,
}

impl Overlay {
    /// Starts from what the disk holds; `seed` is all the randomness the node uses.
    pub fn new(
        identity: Identity,
        config: Config,
        state: State,
        _seed: [u8; 32],
        _now: Now,
    ) -> Self {
        let plan = HostPlan {
            generation: 1,
            device: DevicePlan {
                name: config.interface.clone(),
                mtu: config.mtu,
                addresses: BTreeSet::new(),
            },
            tunnel: TunnelPlan {
                key: identity.key.clone(),
                previous_key: None,
                listen_port: config.listen_port,
                fwmark: config.fwmark.0,
                peers: BTreeMap::new(),
                report_every: Duration::from_secs(2),
            },
            routes: BTreeSet::new(),
            rules: BTreeSet::new(),
            sockets: BTreeSet::new(),
            mss_clamp: true,
            forward_accept: config.forward_accept,
            adoptions: BTreeSet::new(),
            relay_pairs: BTreeSet::new(),
            proxies: BTreeSet::new(),
            filters: BTreeSet::new(),
        };
        Self {
            identity,
            config,
            state,
            plan,
            events: VecDeque::new(),
            transmits: VecDeque::new(),
        }
    }
    /// A source says something of a node.
    pub fn handle_observation(&mut self, _observation: Observation, _now: Now) {}
    /// A control datagram arrived.
    pub fn handle_datagram(
        &mut self,
        _socket: SocketId,
        _local: SocketAddr,
        _remote: SocketAddr,
        _bytes: &[u8],
        _now: Now,
    ) {
    }
    /// What WireGuard knows of its peers.
    pub fn handle_tunnel(&mut self, _report: &TunnelReport, _now: Now) {}
    /// What the host looks like.
    pub fn handle_host(&mut self, _report: HostReport, _now: Now) {}
    /// What converging a plan came to.
    pub fn handle_applied(&mut self, _applied: Applied, _now: Now) {}
    /// The answer to a question asked by an event.
    pub fn handle_answer(&mut self, _answer: Answer, _now: Now) {}
    /// A person asks something; exactly one [`Event::Reply`] follows.
    pub fn handle_command(&mut self, _id: CommandId, _command: Command, _now: Now) {}
    /// Time has come.
    pub fn handle_timeout(&mut self, _now: Now) {}
    /// When to call [`Overlay::handle_timeout`], and why.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        None
    }
    /// The next datagram to send. Poll events first.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }
    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }
    /// What the host should hold.
    pub fn host_plan(&self) -> &HostPlan {
        &self.plan
    }
    /// What to persist.
    pub fn state(&self) -> State {
        self.state.clone()
    }
    /// A view for people and metrics.
    pub fn snapshot(&self, _now: Now) -> Snapshot {
        Snapshot {
            node: NodeSnapshot {
                name: self.config.name.clone(),
                public_key: self.identity.key.public(),
                identity: self.identity.node.identity(),
                domain: DomainId::standalone(self.state.authority.as_ref()),
                backend: self.config.backend,
                interface: self.config.interface.clone(),
                listen_port: self.config.listen_port,
                region: self.config.region.clone(),
                addresses: Vec::new(),
                nat: mesh_types::NatReport::default(),
                endpoints: Vec::new(),
            },
            peers: Vec::new(),
            findings: Vec::new(),
            counters: BTreeMap::new(),
        }
    }
}
