//! The cluster: a plain index of what the API server says, from which follows whom it vouches for.
//!
//! Nodes come in by [`Cluster::handle`], one by one or as a listing; [`Cluster::verdict`] says which identities are
//! Nodes and what each may carry. The order in which Nodes came does not matter, with two exceptions: a record that
//! is void does not take the place of a good one that the same Node has shown, and a listing without most of the Nodes is
//! doubted (`guard`). Nothing here ends because the API server is silent.

mod guard;
mod judge;
mod wishes;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use mesh_types::annotations::{self, AnnotationError, CONFIG_PREFIX, IDENTITY};
use mesh_types::cluster::{ClusterEvent, Node, PodNetwork, Policy, Saved};
use mesh_types::record::{Announcement, Record as _};
use mesh_types::{ConfigPeer, DomainId, IdentityKey, IpNet, NodeKey, Now, PeerId, Signed, Table};

use crate::records::NODES_MAX;
use crate::refusal::Reason;
use guard::Doubt;
use judge::Judge;
pub(crate) use judge::{Refused, Verdict, Vouched};

/// This node's place in a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterConfig {
    /// Name of its own Node; a machine that only reads the cluster has none that exists.
    pub node: String,
    /// What the mesh carries.
    pub pod_network: PodNetwork,
}

/// What the API server has said.
#[derive(Debug)]
pub(crate) struct Cluster {
    config: ClusterConfig,
    /// Whose Nodes are held.
    domain: Option<DomainId>,
    /// Whose events come now. Differs where the API server became another cluster's, until a listing of that counts.
    told: Option<DomainId>,
    nodes: Table<String, Held>,
    policy: Option<Policy>,
    protected: BTreeSet<IpNet>,
    externals: Vec<ConfigPeer>,
    doubt: Option<Doubt>,
    /// What came of the rest while that is not believed: the last of each kind.
    aside: Vec<ClusterEvent>,
    /// Nodes for which there was no room.
    crowd: usize,
    /// Records shown since they were last taken, by the Node's name.
    shown: BTreeMap<String, Signed<Announcement>>,
    /// The verdict may differ.
    changed: bool,
}

/// A Node, and what its annotations came to.
#[derive(Debug)]
struct Held {
    /// Without the agent's annotations, but for this node's own.
    node: Node,
    /// Who has proven to be this Node.
    identity: Option<IdentityKey>,
    /// Names the annotations that were read last.
    fingerprint: Option<[u8; 32]>,
    /// Why they are no record.
    flaw: Option<AnnotationError>,
}

impl Cluster {
    pub(crate) fn new(config: ClusterConfig) -> Self {
        Self {
            config,
            domain: None,
            told: None,
            nodes: Table::default(),
            policy: None,
            protected: BTreeSet::new(),
            externals: Vec::new(),
            doubt: None,
            aside: Vec::new(),
            crowd: 0,
            shown: BTreeMap::new(),
            changed: false,
        }
    }

    /// Takes in what the API server says.
    pub(crate) fn handle(&mut self, event: ClusterEvent, now: Now) {
        match event {
            ClusterEvent::Domain(domain) => {
                self.told = Some(domain);
                // With at most two Nodes there is nothing to guard.
                if self.domain != self.told && self.nodes.len() <= guard::FEW {
                    self.move_to(domain);
                }
            }
            ClusterEvent::Listed(nodes) => self.reset(nodes, now),
            ClusterEvent::Applied(node) => {
                if self.is_believed() {
                    self.apply(*node);
                }
            }
            ClusterEvent::Deleted { name, uid } => {
                if self.is_believed() {
                    self.delete(&name, &uid);
                }
            }
            ClusterEvent::Policy(_) | ClusterEvent::Externals(_) | ClusterEvent::Protected(_) => {
                let kind = std::mem::discriminant(&event);
                self.aside
                    .retain(|held| std::mem::discriminant(held) != kind);
                self.aside.push(event);
            }
            ClusterEvent::Published(_) => {}
        }
        // What an unbelieved cluster says of ranges and rights must not count before its Nodes do.
        if self.doubt.is_none() && (self.domain.is_none() || self.is_believed()) {
            std::mem::take(&mut self.aside)
                .into_iter()
                .for_each(|event| self.follow(event));
        }
    }

    /// Takes over what is said beside the Nodes.
    fn follow(&mut self, event: ClusterEvent) {
        match event {
            ClusterEvent::Policy(policy) => {
                let policy = policy.map(|policy| *policy);
                self.changed |= self.policy != policy;
                self.policy = policy;
            }
            ClusterEvent::Externals(externals) => {
                self.changed |= self.externals != externals;
                self.externals = externals;
            }
            ClusterEvent::Protected(protected) => {
                self.changed |= self.protected != protected;
                self.protected = protected;
            }
            ClusterEvent::Domain(_)
            | ClusterEvent::Listed(_)
            | ClusterEvent::Applied(_)
            | ClusterEvent::Deleted { .. }
            | ClusterEvent::Published(_) => {}
        }
    }

    /// Takes back what the disk holds.
    pub(crate) fn restore(&mut self, saved: Saved) {
        self.domain = Some(saved.domain);
        self.policy = saved.policy;
        self.protected = saved.protected;
        self.externals = saved.externals;
        self.nodes.clear();
        for mut node in saved.nodes.into_iter().take(NODES_MAX) {
            let identity = node.annotations.get(IDENTITY);
            let identity = identity.and_then(|text| text.parse().ok());
            if node.name != self.config.node {
                node.annotations.remove(IDENTITY);
            }
            let held = Held {
                identity,
                fingerprint: None,
                flaw: None,
                node,
            };
            self.nodes.insert(held.node.name.clone(), held);
        }
        self.changed = true;
    }

    /// What the disk should hold; `None` as long as nothing is known.
    pub(crate) fn saved(&self) -> Option<Saved> {
        Some(Saved {
            domain: self.domain?,
            nodes: self.nodes.values().map(|held| self.kept(held)).collect(),
            policy: self.policy.clone(),
            protected: self.protected.clone(),
            externals: self.externals.clone(),
        })
    }

    /// A Node as the disk holds it: of others' agents the identity only.
    fn kept(&self, held: &Held) -> Node {
        let mut node = held.node.clone();
        if node.name != self.config.node
            && let Some(identity) = held.identity
        {
            let identity = identity.to_string();
            node.annotations.insert(IDENTITY.to_owned(), identity);
        }
        node
    }

    pub(crate) fn domain(&self) -> Option<DomainId> {
        self.domain
    }

    pub(crate) fn policy(&self) -> Option<&Policy> {
        self.policy.as_ref()
    }

    pub(crate) fn own_node(&self) -> Option<&Node> {
        self.nodes.get(&self.config.node).map(|held| &held.node)
    }

    pub(crate) fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values().map(|held| &held.node)
    }

    /// Whom the cluster vouches for, and what it refuses; `own` is this node's identity.
    pub(crate) fn verdict(&self, own: IdentityKey) -> Verdict {
        let Some(domain) = self.domain else {
            return Verdict::default();
        };
        let judge = Judge {
            own_node: &self.config.node,
            own: NodeKey {
                domain,
                identity: own,
            },
            pod_network: self.config.pod_network,
            policy: self.policy.as_ref(),
            protected: &self.protected,
            crowd: self.crowd,
            doubt: self.doubt.as_ref().map(Doubt::sentence),
        };
        judge.verdict(self.nodes.values(), &self.externals)
    }

    /// May anything differ since it was last taken?
    pub(crate) fn has_news(&self) -> bool {
        self.changed || !self.shown.is_empty()
    }

    /// May the verdict differ since this was last asked?
    pub(crate) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// Records shown since this was last asked, by the Node's name.
    pub(crate) fn take_shown(&mut self) -> BTreeMap<String, Signed<Announcement>> {
        std::mem::take(&mut self.shown)
    }

    /// When to ask for another listing, because the last one is doubted.
    pub(crate) fn doubted_until(&self) -> Option<Instant> {
        self.doubt.as_ref().map(Doubt::ask_at)
    }

    /// Is another listing wanted now?
    pub(crate) fn wants_listing(&mut self, now: Now) -> bool {
        self.doubt.as_mut().is_some_and(|doubt| doubt.asks(now))
    }

    /// Do single events belong to the Nodes that are held?
    fn is_believed(&self) -> bool {
        self.domain.is_some() && self.told.is_none_or(|told| Some(told) == self.domain)
    }

    /// Another cluster's Nodes from now on.
    fn move_to(&mut self, domain: DomainId) {
        self.domain = Some(domain);
        self.nodes.clear();
        self.shown.clear();
        self.changed = true;
    }

    fn reset(&mut self, nodes: Vec<Node>, now: Now) {
        let Some(told) = self.told.or(self.domain) else {
            return;
        };
        let foreign = self.domain != Some(told);
        let uids: BTreeSet<String> = nodes.iter().map(|node| node.uid.clone()).collect();
        let is_there = |held: &Held| !foreign && uids.contains(&held.node.uid);
        let gone = self.nodes.values().filter(|held| !is_there(held)).count();
        let doubted = guard::is_mass(gone, self.nodes.len()) && {
            let doubt = self.doubt.take().filter(|doubt| doubt.is_of(told, &uids));
            let doubt = doubt.unwrap_or_else(|| Doubt::new(told, uids.clone(), gone, now));
            let confirmed = doubt.is_confirmed(now);
            self.doubt = (!confirmed).then_some(doubt);
            self.changed = true;
            !confirmed
        };
        match (doubted, foreign) {
            (true, true) => return,
            (true, false) => {}
            (false, true) => self.move_to(told),
            (false, false) => {
                self.nodes.retain(|_, held| uids.contains(&held.node.uid));
                self.changed |= gone > 0;
            }
        }
        if !doubted {
            self.changed |= self.doubt.take().is_some();
        }
        self.crowd = 0;
        for node in nodes {
            // In a doubted listing a Node that was made anew counts as missing, too.
            let held = self.nodes.get(&node.name);
            if !doubted || held.is_none_or(|held| held.node.uid == node.uid) {
                self.apply(node);
            }
        }
    }

    fn apply(&mut self, mut node: Node) {
        let Some(domain) = self.domain else {
            return;
        };
        if self.nodes.len() >= NODES_MAX && !self.nodes.contains_key(&node.name) {
            self.crowd += 1;
            self.changed = true;
            return;
        }
        let before = self.nodes.remove(&node.name);
        let same = before.filter(|held| held.node.uid == node.uid);
        let fingerprint = annotations::fingerprint(&node);
        let known = same
            .as_ref()
            .filter(|held| fingerprint.is_some() && held.fingerprint == fingerprint);
        let (identity, flaw) = match known {
            Some(held) => (held.identity, held.flaw.clone()),
            None => match annotations::decode(domain, &node) {
                Ok(Some(record)) => {
                    let identity = record.record().node().identity;
                    self.shown.insert(node.name.clone(), record);
                    (Some(identity), None)
                }
                Ok(None) => (None, None),
                Err(flaw) => (same.as_ref().and_then(|held| held.identity), Some(flaw)),
            },
        };
        if node.name != self.config.node {
            node.annotations
                .retain(|key, _| key.starts_with(CONFIG_PREFIX));
        }
        self.changed |= same.as_ref().is_none_or(|held| {
            held.identity != identity || held.flaw != flaw || !alike(&held.node, &node)
        });
        let held = Held {
            identity,
            fingerprint,
            flaw,
            node,
        };
        self.nodes.insert(held.node.name.clone(), held);
    }

    fn delete(&mut self, name: &str, uid: &str) {
        if self
            .nodes
            .get(name)
            .is_some_and(|held| held.node.uid == uid)
        {
            self.nodes.remove(name);
            self.shown.remove(name);
            self.changed = true;
        }
    }
}

impl Held {
    fn id(&self, domain: DomainId) -> Option<PeerId> {
        let identity = self.identity?;
        Some(PeerId::Node(NodeKey { domain, identity }))
    }

    /// Why the annotations are refused.
    fn flaw(&self) -> Option<(Reason, String)> {
        let flaw = self.flaw.as_ref()?;
        let reason = match flaw {
            AnnotationError::Missing(_)
            | AnnotationError::Value { .. }
            | AnnotationError::TooLarge(_) => Reason::Malformed,
            AnnotationError::Proof => Reason::Forged,
        };
        let kept = match self.identity {
            Some(_) => "the record that it has shown before is kept",
            None => "it is no peer until its agent publishes a good one",
        };
        let name = &self.node.name;
        Some((
            reason,
            format!("the record on Node {name} is refused: {flaw}; {kept}"),
        ))
    }
}

/// Do both say the same, whatever the agent's own annotations are?
fn alike(a: &Node, b: &Node) -> bool {
    fn wishes(node: &Node) -> impl Iterator<Item = (&String, &String)> {
        let all = node.annotations.iter();
        all.filter(|(key, _)| key.starts_with(CONFIG_PREFIX))
    }
    a.created == b.created
        && a.pod_cidrs == b.pod_cidrs
        && a.internal_ips == b.internal_ips
        && a.region == b.region
        && wishes(a).eq(wishes(b))
}
