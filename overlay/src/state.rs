//! What the node is before anything happens, and what it leaves on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mesh_types::observation::Fact;
use mesh_types::plan::{DevicePlan, TunnelPlan};
use mesh_types::state::LastEndpoint;
use mesh_types::{AuthorityKey, DomainId, HostPlan, NodeKey, Now, Observation, Source, State};

use peer_discovery::ClusterConfig;

use crate::overlay::Overlay;
use crate::{Config, Identity};

/// Endpoints kept on disk.
const ENDPOINTS_MAX: usize = 10_000;

impl Overlay {
    /// What to persist.
    pub fn state(&self) -> State {
        let reached = self.peers.values().filter_map(|record| {
            Some(LastEndpoint {
                key: record.key,
                address: record.last_endpoint?,
            })
        });
        State {
            memberships: self.directory.memberships().cloned().collect(),
            announcements: self.directory.announcements().cloned().collect(),
            tombstones: self.directory.tombstones().cloned().collect(),
            pins: self.directory.pins().collect(),
            endpoints: reached.take(ENDPOINTS_MAX).collect(),
            cluster: self.directory.saved_cluster(),
            listen_port: Some(self.listen_port()),
            only_turn: self
                .traversal
                .reaches_by_turn_only()
                .unwrap_or(self.state.only_turn),
            ..self.state.clone()
        }
    }

    /// Takes over what the disk holds; every record is worth its signature only.
    pub(crate) fn load(&mut self, now: Now) {
        // Whom the cluster vouches for comes before what they say of themselves.
        if let Some(saved) = self.state.cluster.take() {
            self.restore_cluster(saved, now);
        }
        let facts = std::mem::take(&mut self.state.pins)
            .into_iter()
            .map(Fact::Pinned)
            .chain(
                std::mem::take(&mut self.state.tombstones)
                    .into_iter()
                    .map(Fact::Tombstone),
            )
            .chain(
                std::mem::take(&mut self.state.memberships)
                    .into_iter()
                    .map(Fact::Membership),
            )
            .chain(
                std::mem::take(&mut self.state.announcements)
                    .into_iter()
                    .map(|record| Fact::Announcement {
                        record,
                        spoken_by: None,
                    }),
            );
        let observations: Vec<Observation> = facts
            .map(|fact| Observation {
                source: Source::Disk,
                fact,
            })
            .collect();
        self.directory.handle_observations(observations, now);
    }

    /// The authorities may have changed, and with them the domain this node is in.
    pub(crate) fn adopt_authorities(&mut self, now: Now) {
        let list = authorities(&self.identity, &self.config, &self.state);
        self.directory.set_authorities(list, now);
        let own = NodeKey {
            domain: self
                .cluster
                .domain
                .unwrap_or_else(|| domain(&self.identity, &self.config, &self.state)),
            identity: self.own.identity,
        };
        if own != self.own {
            self.own = own;
            self.directory.set_own(own, self.identity.key.public(), now);
            self.announce_now(now);
            self.excluded_dirty = true;
            self.stale.everything();
        }
    }
}

/// The domain: of the cluster, where the disk names one, else of the mesh this machine joined or made, else of the
/// first authority in the file, else of static files.
pub(crate) fn domain(identity: &Identity, config: &Config, state: &State) -> DomainId {
    let cluster = state
        .cluster
        .as_ref()
        .filter(|_| config.kubernetes.is_some());
    if let Some(saved) = cluster {
        return saved.domain;
    }
    DomainId::standalone(authorities(identity, config, state).first())
}

/// Whose memberships count: the joined mesh's authority, the one on this machine, those in the file.
pub(crate) fn authorities(
    identity: &Identity,
    config: &Config,
    state: &State,
) -> Vec<AuthorityKey> {
    let mut out = Vec::new();
    let local = identity.authority.as_ref().map(|key| key.authority());
    let all = state.authority.into_iter().chain(local);
    for authority in all.chain(config.authorities.iter().copied()) {
        if !out.contains(&authority) {
            out.push(authority);
        }
    }
    out
}

/// The node's place in a cluster, as the directory needs it.
pub(crate) fn cluster(config: &Config) -> Option<ClusterConfig> {
    config.kubernetes.as_ref().map(|kubernetes| ClusterConfig {
        // A machine that is no Node must not be taken for one that has its name.
        node: match kubernetes.external {
            true => String::new(),
            false => kubernetes.node.clone(),
        },
        pod_network: kubernetes.pod_network,
    })
}

/// A plan that holds nothing yet.
pub(crate) fn empty_plan(identity: &Identity, config: &Config) -> HostPlan {
    HostPlan {
        generation: 0,
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
            report_every: Duration::ZERO,
        },
        routes: BTreeSet::new(),
        rules: BTreeSet::new(),
        sockets: BTreeSet::new(),
        mss_clamp: true,
        forward_accept: config.forward_accept,
        adoptions: BTreeSet::new(),
        relay_pairs: BTreeSet::new(),
        aliases: BTreeSet::new(),
        narrow: BTreeMap::new(),
        turn_links: BTreeSet::new(),
        proxies: BTreeSet::new(),
        filters: BTreeMap::new(),
        keep_source: BTreeSet::new(),
        mark_input: false,
    }
}
