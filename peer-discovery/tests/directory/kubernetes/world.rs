//! A small cluster, and a directory that reads it.

use std::collections::BTreeSet;

use mesh_types::annotations;
use mesh_types::cluster::{ClusterEvent, Node, PodNetwork, Policy, Saved};
use mesh_types::{
    Announcement, ConfigPeer, DomainId, IdentitySecret, IpNet, NodeKey, PeerId, Signed, WgKey,
};
use peer_discovery::{ClusterConfig, Config, Directory, Event, Peer, Reason};

use crate::common::{START, at, machine, net, wg};

pub(super) const CLUSTER: DomainId = DomainId([0xc1; 16]);

/// A Node, and the keys of its agent.
#[derive(Clone)]
pub(super) struct Worker {
    pub secret: IdentitySecret,
    pub key: WgKey,
    pub number: u8,
    pub seq: u64,
    pub object: Node,
}

/// Node `n{number}`: created in the order of the numbers, 10.244.{number}.0/24, 192.0.2.{number}.
pub(super) fn worker(number: u8) -> Worker {
    Worker {
        secret: IdentitySecret::from_bytes(&[number; 32]),
        key: wg(number),
        number,
        seq: 5,
        object: Node {
            name: format!("n{number}"),
            uid: format!("uid-{number}"),
            created: START + u64::from(number),
            pod_cidrs: vec![
                net(&format!("10.244.{number}.0/24")),
                net(&format!("2001:db8:244:{number:x}::/64")),
            ],
            internal_ips: vec![format!("192.0.2.{number}").parse().expect("address")],
            region: Some(format!("r{}", number % 2)),
            annotations: Default::default(),
        },
    }
}

impl Worker {
    pub(super) fn node(&self) -> NodeKey {
        NodeKey {
            domain: CLUSTER,
            identity: self.secret.identity(),
        }
    }

    pub(super) fn id(&self) -> PeerId {
        PeerId::Node(self.node())
    }

    pub(super) fn announce(&self) -> Announcement {
        Announcement {
            domain: CLUSTER,
            identity: self.secret.identity(),
            key: self.key,
            name: Some(self.object.name.clone()),
            node_uid: Some(self.object.uid.clone()),
            ..machine(self.number).announce(self.seq)
        }
    }

    pub(super) fn record(&self) -> Signed<Announcement> {
        Signed::sign(annotations::fit(self.announce()), &self.secret)
    }

    /// The object with its agent's annotations.
    pub(super) fn shown(&self) -> Node {
        let mut out = self.object.clone();
        let written = annotations::encode(&self.record()).into_iter();
        out.annotations
            .extend(written.map(|(key, value)| (key.to_owned(), value)));
        out
    }

    pub(super) fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// With an annotation of a person.
    pub(super) fn wishing(self, key: &str, value: &str) -> Self {
        self.with(|worker| {
            let key = format!("{}{key}", annotations::CONFIG_PREFIX);
            worker.object.annotations.insert(key, value.into());
        })
    }

    /// With these pod ranges.
    pub(super) fn pods(self, ranges: &[&str]) -> Self {
        self.with(|worker| {
            worker.object.pod_cidrs = ranges.iter().map(|text| net(text)).collect();
        })
    }

    /// With these InternalIPs.
    pub(super) fn at(self, addresses: &[&str]) -> Self {
        self.with(|worker| {
            let addresses = addresses.iter().map(|text| text.parse().expect("address"));
            worker.object.internal_ips = addresses.collect();
        })
    }
}

/// The directory of Node n1 in `existing` mode, which knows the cluster's domain.
pub(super) fn reader() -> Directory {
    reader_in(PodNetwork::Existing)
}

pub(super) fn reader_in(pod_network: PodNetwork) -> Directory {
    let mut directory = stranger_in(pod_network);
    directory.hear(ClusterEvent::Domain(CLUSTER), 0);
    directory
}

/// The same, before it has heard anything.
pub(super) fn stranger_in(pod_network: PodNetwork) -> Directory {
    let own = worker(1);
    let config = Config {
        own: own.node(),
        own_key: own.key,
        authorities: vec![crate::common::authority().authority()],
        cluster: Some(ClusterConfig {
            node: own.object.name,
            pod_network,
        }),
    };
    Directory::new(config, at(0))
}

/// Short names for what the API server says.
pub(super) trait Hear {
    /// Takes it in, and waits until it counts.
    fn hear(&mut self, event: ClusterEvent, second: u64);
    fn wait(&mut self, second: u64);
    fn list(&mut self, workers: &[&Worker]);
    fn list_at(&mut self, workers: &[&Worker], second: u64);
    fn apply(&mut self, worker: &Worker);
    fn delete(&mut self, worker: &Worker);
    fn allow(&mut self, policy: Policy);
    fn protect(&mut self, ranges: &[&str]);
    fn externals(&mut self, peers: Vec<ConfigPeer>);
    fn has(&self, worker: &Worker) -> bool;
    fn of(&self, worker: &Worker) -> &Peer;
    fn carried(&self, worker: &Worker) -> BTreeSet<IpNet>;
    fn objections(&self) -> Vec<(Reason, Option<&str>, &str)>;
    fn saved(&self) -> Saved;
    fn drained(&mut self) -> Vec<Event>;
}

impl Hear for Directory {
    fn hear(&mut self, event: ClusterEvent, second: u64) {
        self.handle_cluster(event, at(second));
        self.wait(second + 1);
    }

    fn wait(&mut self, second: u64) {
        self.handle_timeout(at(second));
    }

    fn list(&mut self, workers: &[&Worker]) {
        self.list_at(workers, 0);
    }

    fn list_at(&mut self, workers: &[&Worker], second: u64) {
        let nodes = workers.iter().map(|worker| worker.shown()).collect();
        self.hear(ClusterEvent::Listed(nodes), second);
    }

    fn apply(&mut self, worker: &Worker) {
        self.hear(ClusterEvent::Applied(Box::new(worker.shown())), 0);
    }

    fn delete(&mut self, worker: &Worker) {
        let Node { name, uid, .. } = worker.object.clone();
        self.hear(ClusterEvent::Deleted { name, uid }, 0);
    }

    fn allow(&mut self, policy: Policy) {
        self.hear(ClusterEvent::Policy(Some(Box::new(policy))), 0);
    }

    fn protect(&mut self, ranges: &[&str]) {
        let ranges = ranges.iter().map(|text| net(text)).collect();
        self.hear(ClusterEvent::Protected(ranges), 0);
    }

    fn externals(&mut self, peers: Vec<ConfigPeer>) {
        self.hear(ClusterEvent::Externals(peers), 0);
    }

    fn has(&self, worker: &Worker) -> bool {
        self.peer(&worker.id()).is_some()
    }

    fn of(&self, worker: &Worker) -> &Peer {
        self.peer(&worker.id()).expect("a peer")
    }

    fn carried(&self, worker: &Worker) -> BTreeSet<IpNet> {
        self.of(worker).allowed_ips.iter().copied().collect()
    }

    fn objections(&self) -> Vec<(Reason, Option<&str>, &str)> {
        let all = self.conflicts().iter();
        all.map(|c| (c.reason, c.node.as_deref(), c.sentence.as_str()))
            .collect()
    }

    fn saved(&self) -> Saved {
        self.saved_cluster().expect("a known cluster")
    }

    fn drained(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.poll_event()).collect()
    }
}
