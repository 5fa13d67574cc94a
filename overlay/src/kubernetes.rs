//! A node of a Kubernetes cluster: what the API server says comes in, the own Node's annotations go out.
//!
//! Who is a peer and what it may carry is the directory's to decide. Here stand the own Node (its pod ranges, what its
//! annotations carry), when to write to it, and what is told of refused claims.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use ipnet::IpNet;
use mesh_types::annotations;
use mesh_types::cluster::{ClusterEvent, Node, PodNetwork, Publication, Saved};
use mesh_types::record::Announcement;
use mesh_types::{DomainId, NodeKey, Now};

use crate::event::Event;
use crate::overlay::Overlay;
use crate::publish::{Carried, Publisher};
use crate::snapshot::{ClusterSnapshot, CniPlan};

/// What is known of the cluster beside its nodes, which the directory holds.
#[derive(Debug)]
pub(crate) struct Cluster {
    /// Which cluster it is, once known.
    pub(crate) domain: Option<DomainId>,
    /// The own Node object, as last seen.
    pub(crate) own: Option<Node>,
    /// Addresses that nobody may carry.
    pub(crate) protected: BTreeSet<IpNet>,
    /// When the own Node is written to.
    pub(crate) publisher: Publisher,
    /// Refused claims that the shell was told of and that still stand.
    told: BTreeSet<(&'static str, String)>,
    /// They may have changed.
    pub(crate) claims_changed: bool,
    /// How many there have been, by reason.
    refused: BTreeMap<&'static str, u64>,
}

impl Cluster {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            domain: None,
            own: None,
            protected: BTreeSet::new(),
            publisher: Publisher::new(now),
            told: BTreeSet::new(),
            claims_changed: false,
            refused: BTreeMap::new(),
        }
    }
}

impl Overlay {
    /// The API server says something. Without [`crate::Config::kubernetes`] nothing comes of it.
    pub fn handle_cluster(&mut self, event: ClusterEvent, now: Now) {
        if self.config.kubernetes.is_none() {
            return;
        }
        match event {
            ClusterEvent::Published(result) => {
                let publisher = &mut self.cluster.publisher;
                publisher.handle_result(result, now.mono, &mut self.rng);
            }
            event @ (ClusterEvent::Domain(_)
            | ClusterEvent::Listed(_)
            | ClusterEvent::Applied(_)
            | ClusterEvent::Deleted { .. }
            | ClusterEvent::Policy(_)
            | ClusterEvent::Externals(_)
            | ClusterEvent::Protected(_)) => {
                if let ClusterEvent::Protected(ranges) = &event {
                    // Routes to there are dropped now, whenever the claims are judged anew.
                    self.cluster.protected.clone_from(ranges);
                }
                let node = matches!(
                    event,
                    ClusterEvent::Applied(_) | ClusterEvent::Deleted { .. }
                );
                if !node {
                    self.stale.everything();
                }
                self.directory.handle_cluster(event, now);
                self.follow_cluster(now);
            }
        }
        self.settle(now);
    }

    /// Takes over what the disk holds, before the API server is asked.
    pub(crate) fn restore_cluster(&mut self, saved: Saved, now: Now) {
        if self.config.kubernetes.is_some() {
            self.cluster.protected.clone_from(&saved.protected);
            self.directory.restore_cluster(saved, now);
            self.follow_cluster(now);
        }
    }

    /// The node's name in the mesh follows from the cluster it is in, its ranges from its Node.
    fn follow_cluster(&mut self, now: Now) {
        if let Some(domain) = self.directory.cluster_domain()
            && self.cluster.domain != Some(domain)
        {
            self.cluster.domain = Some(domain);
            let own = NodeKey { domain, ..self.own };
            if own != self.own {
                self.own = own;
                let key = self.identity.key.public();
                self.directory.set_own(own, key, now);
                self.announce_now(now);
                self.excluded_dirty = true;
            }
            self.stale.everything();
        }
        let own = self.directory.own_node();
        if own == self.cluster.own.as_ref() {
            return;
        }
        let before = std::mem::replace(&mut self.cluster.own, own.cloned());
        self.read_own_annotations(now);
        let bare = |node: Option<&Node>| {
            node.map(|node| Node {
                annotations: BTreeMap::new(),
                ..node.clone()
            })
        };
        if bare(before.as_ref()) != bare(self.cluster.own.as_ref()) {
            self.announcement_changed(now);
            self.tell_own_ranges(now);
            self.tell_host_addresses(now);
            self.excluded_dirty = true;
        }
        self.stale.everything();
        // What the Node carries tells after a restart that there is nothing to write.
        self.persist_soon(now);
    }

    fn read_own_annotations(&mut self, now: Now) {
        let shown = self.cluster.own.as_ref().map(|node| {
            let carried = match annotations::decode(self.own.domain, node) {
                Ok(None) => Carried::Nothing,
                Ok(Some(signed)) if signed.record().identity == self.own.identity => {
                    Carried::Own(Box::new(signed.record().clone()))
                }
                Ok(Some(_)) | Err(_) => Carried::Foreign,
            };
            (node.uid.clone(), carried)
        });
        if let Some((_, Carried::Own(record))) = &shown {
            self.own_record_seen(record.seq, now);
        }
        let publisher = &mut self.cluster.publisher;
        publisher.handle_node(shown, now.mono, &mut self.rng);
    }

    /// How the announcement of a Node differs from others: it names the object, and fits into annotations.
    pub(crate) fn as_node(&self, announcement: Announcement) -> Announcement {
        match &self.config.kubernetes {
            Some(kubernetes) if !kubernetes.external => annotations::fit(Announcement {
                name: Some(kubernetes.node.clone()),
                node_uid: self.cluster.own.as_ref().map(|node| node.uid.clone()),
                ..announcement
            }),
            Some(_) | None => announcement,
        }
    }

    /// The announcement was made anew.
    pub(crate) fn announced(&mut self, now: Now) {
        let external = self.config.kubernetes.as_ref().map(|k| k.external);
        if let (Some(false), Some(signed)) = (external, &self.announcer.current) {
            let record = signed.record().clone();
            let publisher = &mut self.cluster.publisher;
            publisher.handle_announcement(record, now.mono, &mut self.rng);
        }
    }

    /// Writes to the own Node where that is due.
    pub(crate) fn publish_due(&mut self, now: Now) {
        if !self
            .cluster
            .publisher
            .handle_timeout(now.mono, &mut self.rng)
        {
            return;
        }
        let current = self.announcer.current.as_ref();
        let named = current.and_then(|signed| Some((signed, signed.record().node_uid.clone()?)));
        if let Some((signed, uid)) = named {
            let publication = Publication {
                uid,
                seq: signed.record().seq,
                annotations: annotations::encode(signed),
            };
            self.events.push_back(Event::Publish(publication));
            self.count("node-writes");
        }
    }

    /// Tells the shell of claims that are refused since the last time.
    pub(crate) fn tell_refused(&mut self) {
        let changed = std::mem::take(&mut self.cluster.claims_changed);
        if !changed || self.config.kubernetes.is_none() {
            return;
        }
        let standing = self.directory.conflicts().iter();
        let standing = standing.filter(|refusal| refusal.node.is_some());
        let mut now_told = BTreeSet::new();
        let mut fresh = Vec::new();
        for refusal in standing {
            let name = (refusal.reason.kind(), refusal.sentence.clone());
            if !self.cluster.told.contains(&name) {
                fresh.push((refusal.node.clone(), name.clone()));
            }
            now_told.insert(name);
        }
        self.cluster.told = now_told;
        for (node, (reason, sentence)) in fresh {
            *self.cluster.refused.entry(reason).or_default() += 1;
            self.events.push_back(Event::Refused {
                node,
                reason,
                sentence,
            });
        }
    }

    /// The own pod ranges, where the mesh carries pods.
    pub(crate) fn own_pod_cidrs(&self) -> &[IpNet] {
        match (&self.config.kubernetes, &self.cluster.own) {
            (Some(kubernetes), Some(own)) if kubernetes.pod_network.carries_pods() => {
                &own.pod_cidrs
            }
            (_, _) => &[],
        }
    }

    /// The overlay IPv4 address that the cluster gives this node: the network address of its first pod range, or in
    /// `nodes` mode the address of the Node object.
    pub(crate) fn cluster_ipv4(&self) -> Option<Ipv4Addr> {
        let kubernetes = self.config.kubernetes.as_ref()?;
        if kubernetes.pod_network.carries_pods() {
            return self.own_pod_cidrs().iter().find_map(|net| match net {
                IpNet::V4(net) => Some(net.network()),
                IpNet::V6(_) => None,
            });
        }
        let own = self.cluster.own.as_ref()?;
        own.internal_ips.iter().find_map(|ip| match ip {
            IpAddr::V4(ip) => Some(*ip),
            IpAddr::V6(_) => None,
        })
    }

    /// The own region, as others see it: what a person has set on the Node, its label, else the configuration's.
    pub(crate) fn own_region(&self) -> Option<String> {
        let key = format!("{}region", annotations::CONFIG_PREFIX);
        let own = self.cluster.own.as_ref();
        let set = own.and_then(|node| node.annotations.get(&key).or(node.region.as_ref()));
        set.or(self.config.region.as_ref()).cloned()
    }

    /// What a CNI configuration needs, once the own Node has pod ranges and the device has its addresses; only where
    /// farspan is the cluster's CNI.
    pub fn cni(&self) -> Option<CniPlan> {
        let kubernetes = self.config.kubernetes.as_ref()?;
        let own = kubernetes.pod_network == PodNetwork::Own;
        let pod_cidrs = self.own_pod_cidrs();
        let applied = self.applied.as_ref().map(|applied| applied.generation);
        let ready = self.addresses_since.is_some() && applied >= self.addresses_since;
        (own && ready && !pod_cidrs.is_empty()).then(|| CniPlan {
            pod_cidrs: pod_cidrs.to_vec(),
            mtu: self.config.mtu,
        })
    }

    pub(crate) fn cluster_view(&self) -> Option<ClusterSnapshot> {
        let kubernetes = self.config.kubernetes.as_ref()?;
        let cluster = &self.cluster;
        Some(ClusterSnapshot {
            domain: cluster.domain,
            node: kubernetes.node.clone(),
            pod_network: kubernetes.pod_network,
            nodes: self.directory.cluster_nodes().count(),
            refused: cluster.refused.clone(),
            published_seq: cluster.publisher.carried_seq(),
            pending_write: cluster.publisher.is_pending(),
        })
    }
}
