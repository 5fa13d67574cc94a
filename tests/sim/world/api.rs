//! A small API server: Node objects in the order of their versions, watches that lag, break and list again, outages.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use mesh_types::cluster::{ClusterEvent, Node, Publication};
use mesh_types::{DomainId, Now};
use sim_net::Random;

use super::{NodeId, World};

/// An agent whose watch broke lists again after this, and as much again at random.
const RECONNECT: Duration = Duration::from_secs(1);
/// A request takes so long, there or back.
const WAY: Duration = Duration::from_millis(20);

/// A write that the server took.
#[derive(Debug, Clone)]
pub struct Write {
    pub at: Instant,
    pub node: NodeId,
    /// What it changed: keys with the values before and after.
    pub changed: BTreeMap<String, [Option<String>; 2]>,
}

pub struct Api {
    pub domain: DomainId,
    pub up: bool,
    /// How long an event takes to an agent, at most.
    pub lag: Duration,
    /// How often a watch breaks instead of giving an event, in a million.
    pub breaks: u32,
    /// All writes of announcements that were taken.
    pub writes: Vec<Write>,
    /// Nodes in all listings that were given.
    pub listed: u64,
    /// Events of Nodes that watches were told.
    pub told: u64,
    /// Requests that failed because the server was away.
    pub missed: u64,
    /// What listings show in place of the truth: a stale cache.
    pub stale: Option<Vec<Node>>,
    objects: BTreeMap<String, Node>,
    log: Vec<ClusterEvent>,
    watches: BTreeMap<NodeId, Watch>,
    requests: VecDeque<(Instant, NodeId, Publication)>,
    answers: Vec<(Instant, NodeId, Result<u64, String>)>,
    made: u64,
    random: Random,
}

/// One agent's view of the log.
struct Watch {
    /// Index of the next event, where the agent has listed.
    next: Option<usize>,
    /// When it is given, or the agent lists.
    at: Instant,
}

impl Api {
    pub fn new(random: &mut Random) -> Self {
        Self {
            domain: DomainId(*b"kube-system-uid1"),
            up: true,
            lag: Duration::from_millis(200),
            breaks: 0,
            writes: Vec::new(),
            listed: 0,
            told: 0,
            missed: 0,
            stale: None,
            objects: BTreeMap::new(),
            log: Vec::new(),
            watches: BTreeMap::new(),
            requests: VecDeque::new(),
            answers: Vec::new(),
            made: 0,
            random: random.fork(),
        }
    }

    /// A kubelet, or a person, makes or changes a Node.
    pub fn apply(&mut self, node: Node) {
        if self.objects.get(&node.name) != Some(&node) {
            self.log.push(ClusterEvent::Applied(Box::new(node.clone())));
            self.objects.insert(node.name.clone(), node);
        }
    }

    pub fn delete(&mut self, name: &str) {
        if let Some(Node { name, uid, .. }) = self.objects.remove(name) {
            self.log.push(ClusterEvent::Deleted { name, uid });
        }
    }

    /// Events of all Nodes that change nothing the mesh reads, as kubelets' heartbeats are.
    pub fn touch_all(&mut self) {
        let nodes = self.objects.values().cloned();
        self.log
            .extend(nodes.map(|node| ClusterEvent::Applied(Box::new(node))));
    }

    pub fn object(&self, name: &str) -> &Node {
        &self.objects[name]
    }

    pub fn objects(&self) -> impl Iterator<Item = &Node> {
        self.objects.values()
    }

    /// A UID that no object has had.
    pub fn uid(&mut self) -> String {
        self.made += 1;
        format!("00000000-0000-4000-8000-{:012}", self.made)
    }

    /// Counts writes and what is read from now on.
    pub fn forget_traffic(&mut self) {
        self.writes.clear();
        (self.listed, self.told) = (0, 0);
    }

    /// Writes since then.
    pub fn writes_since(&self, since: Instant) -> Vec<Write> {
        let late = self.writes.iter().filter(|write| write.at >= since);
        late.cloned().collect()
    }

    /// The server goes away, and with it all watches.
    pub fn go_down(&mut self) {
        self.up = false;
        for watch in self.watches.values_mut() {
            watch.next = None;
        }
    }

    pub fn come_up(&mut self, now: Instant) {
        self.up = true;
        for watch in self.watches.values_mut() {
            watch.at = now + RECONNECT + self.random.time(RECONNECT);
        }
    }

    /// All watches break; agents list again.
    pub fn break_watches(&mut self, now: Instant) {
        for watch in self.watches.values_mut() {
            watch.next = None;
            watch.at = now + RECONNECT + self.random.time(RECONNECT);
        }
    }

    pub(super) fn due(&self) -> Option<Instant> {
        let watches = self.watches.values().filter(|_| self.up);
        let watches = watches.filter(|watch| watch.next != Some(self.log.len()));
        let requests = self.requests.front().map(|(at, ..)| *at);
        let answers = self.answers.iter().map(|(at, ..)| *at);
        watches
            .map(|watch| watch.at)
            .chain(requests)
            .chain(answers)
            .min()
    }

    /// An agent starts: it lists, then it watches.
    fn connect(&mut self, node: NodeId, at: Instant) {
        self.watches.insert(node, Watch { next: None, at });
    }

    fn request(&mut self, node: NodeId, publication: Publication, now: Instant) {
        self.requests.push_back((now + WAY, node, publication));
    }

    fn write(
        &mut self,
        node: NodeId,
        publication: &Publication,
        now: Instant,
    ) -> Result<u64, String> {
        if !self.up {
            self.missed += 1;
            return Err("the API server is away".to_owned());
        }
        let held = self
            .objects
            .values()
            .find(|held| held.uid == publication.uid);
        let Some(mut object) = held.cloned() else {
            return Err("no Node has that UID".to_owned());
        };
        let before = object.annotations.clone();
        object
            .annotations
            .retain(|key, _| !key.starts_with("farspan.io/"));
        let annotations = publication.annotations.iter();
        let annotations = annotations.map(|(key, value)| ((*key).to_owned(), value.clone()));
        object.annotations.extend(annotations);
        let seq = publication.seq;
        let changed = changes(&before, &object.annotations);
        self.writes.push(Write {
            at: now,
            node,
            changed,
        });
        self.apply(object);
        Ok(seq)
    }

    /// What agents are told now.
    fn step(&mut self, now: Instant) -> Vec<(NodeId, ClusterEvent)> {
        let mut out = Vec::new();
        while let Some((at, node, publication)) = self.requests.pop_front_if(|(at, ..)| *at <= now)
        {
            let result = self.write(node, &publication, at);
            self.answers.push((at + WAY, node, result));
        }
        let (due, later) = self.answers.drain(..).partition(|(at, ..)| *at <= now);
        self.answers = later;
        let due: Vec<(Instant, NodeId, Result<u64, String>)> = due;
        let due = due.into_iter();
        out.extend(due.map(|(_, node, result)| (node, ClusterEvent::Published(result))));
        if !self.up {
            return out;
        }
        for (node, watch) in &mut self.watches {
            if watch.at > now {
                continue;
            }
            match watch.next {
                None => {
                    out.push((*node, ClusterEvent::Domain(self.domain)));
                    out.push((*node, ClusterEvent::Policy(None)));
                    let nodes = || self.objects.values().cloned().collect();
                    let nodes = self.stale.clone().unwrap_or_else(nodes);
                    self.listed += nodes.len() as u64;
                    out.push((*node, ClusterEvent::Listed(nodes)));
                    watch.next = Some(self.log.len());
                }
                Some(next) if next < self.log.len() => {
                    if self.random.chance(self.breaks) {
                        watch.next = None;
                        watch.at = now + RECONNECT + self.random.time(RECONNECT);
                        continue;
                    }
                    self.told += 1;
                    out.push((*node, self.log[next].clone()));
                    watch.next = Some(next + 1);
                }
                Some(_) => continue,
            }
            watch.at = now + self.random.time(self.lag);
        }
        out
    }
}

fn changes(
    before: &BTreeMap<String, String>,
    after: &BTreeMap<String, String>,
) -> BTreeMap<String, [Option<String>; 2]> {
    let keys = before.keys().chain(after.keys());
    let both = keys.map(|key| {
        let values = [before, after].map(|all| all.get(key).cloned());
        (key.clone(), values)
    });
    both.filter(|(_, [old, new])| old != new).collect()
}

impl World {
    /// The API server.
    pub fn api(&mut self) -> &mut Api {
        let random = &mut self.random;
        self.api.get_or_insert_with(|| Api::new(random))
    }

    pub(super) fn api_due(&self) -> Option<Instant> {
        self.api.as_ref().and_then(Api::due)
    }

    pub(super) fn run_api(&mut self, now: Instant) {
        let Some(api) = &mut self.api else {
            return;
        };
        for (id, event) in api.step(now) {
            let clock: Now = self.clock(id);
            if let Some(overlay) = &mut self.nodes[id.0].overlay {
                overlay.handle_cluster(event, clock);
                self.pump(id);
            }
        }
    }

    /// An agent of the cluster begins to watch.
    pub(super) fn watch(&mut self, id: NodeId) {
        let now = self.net.now();
        if self.nodes[id.0].config.kubernetes.is_some() {
            self.api().connect(id, now + WAY);
        }
    }

    /// Carries what a node wants of the API server.
    pub(super) fn call_api(&mut self, id: NodeId) {
        let now = self.net.now();
        let node = &mut self.nodes[id.0];
        let (publications, list) = (
            std::mem::take(&mut node.publications),
            std::mem::take(&mut node.list_nodes),
        );
        if list {
            let wait = self.api().random.time(5 * RECONNECT);
            self.api().connect(id, now + wait);
        }
        for publication in publications {
            self.api().request(id, publication, now);
        }
    }
}
