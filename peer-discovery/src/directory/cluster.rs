//! What the directory learns from a cluster.

use std::time::Duration;

use mesh_types::cluster::{ClusterEvent, Node, Policy, Saved};
use mesh_types::record::{Announcement, Membership, Record as _, Signed};
use mesh_types::{DomainId, NodeKey, Now};

use super::{Directory, Effect, Said};
use crate::kubernetes::{Cluster, Refused};
use crate::peer::Event;
use crate::records::Checked;
use crate::refusal::{Reason, Refusal};

/// Events come in bursts: so long they are gathered before anything is decided.
const GATHER: Duration = Duration::from_millis(50);

impl Directory {
    /// Takes in what the API server says; it counts 50 ms later ([`Self::poll_timeout`]), together with what comes
    /// meanwhile. [`ClusterEvent::Domain`] comes first, before what is said of its Nodes.
    pub fn handle_cluster(&mut self, event: ClusterEvent, now: Now) {
        let Some(cluster) = &mut self.cluster else {
            self.refusals.count(Reason::Source);
            return;
        };
        cluster.handle(event, now);
        if cluster.has_news() {
            self.cluster_due.get_or_insert(now.mono + GATHER);
        }
    }

    /// Takes back what the disk holds of the cluster, at once. To be called before anything else is taken in: it vouches
    /// for the announcements on disk, and lists external peers whose identities were pinned.
    pub fn restore_cluster(&mut self, saved: Saved, now: Now) {
        let Some(cluster) = &mut self.cluster else {
            return;
        };
        cluster.restore(saved);
        let mut effect = Effect::default();
        self.judge(&mut effect, now);
        effect.dirty = false;
        self.settle(&effect, now);
    }

    /// What the disk should hold of the cluster, once it is known which one it is.
    pub fn saved_cluster(&self) -> Option<Saved> {
        self.cluster.as_ref()?.saved()
    }

    /// Which cluster's Nodes are believed.
    pub fn cluster_domain(&self) -> Option<DomainId> {
        self.cluster.as_ref()?.domain()
    }

    /// This machine's own Node, with all of its annotations.
    pub fn own_node(&self) -> Option<&Node> {
        self.cluster.as_ref()?.own_node()
    }

    /// All Nodes, by name. Of others' annotations, only what people wish is kept.
    pub fn cluster_nodes(&self) -> impl Iterator<Item = &Node> {
        self.cluster.iter().flat_map(Cluster::nodes)
    }

    /// What the cluster's administrators allow; `None`: everything.
    pub fn policy(&self) -> Option<&Policy> {
        self.cluster.as_ref()?.policy()
    }

    /// What is vouched for of a node, by an authority or by the cluster.
    pub fn member(&self, node: &NodeKey) -> Option<&Membership> {
        let member = self.records.members.get(node)?;
        (!member.expired).then(|| member.record())
    }

    /// What has been gathered counts now, where it is due.
    pub(super) fn gather(&mut self, effect: &mut Effect, now: Now) {
        if self.cluster_due.is_some_and(|due| due <= now.mono) {
            self.judge(effect, now);
        }
        if let Some(cluster) = &mut self.cluster
            && cluster.wants_listing(now)
        {
            self.moves.push_back(Event::ListAgain);
        }
    }

    /// Decides anew whom the cluster vouches for, where that may have changed, and hears them.
    pub(super) fn judge(&mut self, effect: &mut Effect, now: Now) {
        self.cluster_due = None;
        let own = self.records.own.identity;
        let Some(cluster) = &mut self.cluster else {
            return;
        };
        let shown = cluster.take_shown();
        if cluster.take_changed() {
            let verdict = cluster.verdict(own);
            self.records.cluster = cluster.domain();
            let changed = self.records.vouch(verdict.vouched);
            for node in &changed {
                self.unwanted.remove(&node.identity.idx());
            }
            let unlisted = self.records.list_externals(verdict.externals);
            self.set_unlisted(unlisted, now);
            self.objections = objections(verdict.refused, now);
            effect.decisive = true;
            effect.dirty = true;
        }
        for (name, record) in shown {
            self.hear(name, &record, effect, now);
        }
    }

    fn hear(&mut self, name: String, record: &Signed<Announcement>, effect: &mut Effect, now: Now) {
        let admitted = self
            .records
            .admit_announcement(record, None, Checked::Before);
        let what = Said {
            node: record.record().node(),
            version: record.record().seq,
            what: "announcement",
            by: Some(name),
        };
        self.conclude(what, admitted, effect, now);
    }
}

fn objections(refused: Vec<Refused>, now: Now) -> Vec<Refusal> {
    let refused = refused.into_iter();
    refused
        .map(|refused| Refusal {
            reason: refused.reason,
            peer: refused.peer,
            node: refused.node,
            sentence: refused.sentence,
            at: now.unix,
            count: 1,
        })
        .collect()
}
