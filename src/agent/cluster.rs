//! The loop's side of Kubernetes: what the tasks tell goes to the core, what the core wants goes to the tasks, and in
//! mode own the CNI file follows the plan.

use std::collections::BTreeSet;

use anyhow::{Result, bail};
use mesh_types::Now;
use mesh_types::cluster::PodNetwork;
use overlay::{Finding, Snapshot};
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::cni::{self, Cni};
use super::{Agent, Event, metrics};
use crate::config::kubernetes::Kubernetes;
use crate::kube::{Cluster, Told};

/// The agent's part in a cluster.
#[derive(Debug)]
pub struct Membership {
    tasks: Cluster,
    cni: Option<Cni>,
}

/// The mode that was asked for, or the one that fits what is found.
pub fn pod_network(config: &Kubernetes) -> Result<PodNetwork> {
    if config.external {
        // It has no pods; it reaches those of others.
        return Ok(config.pod_network.unwrap_or(PodNetwork::Existing));
    }
    let found = cni::detect(&config.cni_conf_dir);
    let Some(asked) = config.pod_network else {
        let file = found.file.as_deref().unwrap_or("none");
        info!(mode = found.mode.kind(), %file, plugin = %found.plugin, "Pod network mode by the CNI files");
        return Ok(found.mode);
    };
    if asked == PodNetwork::Existing
        && let Some(sentence) = cni::unfit(&found)
    {
        bail!("{sentence}");
    }
    Ok(asked)
}

impl Membership {
    /// Starts the tasks. `known`: UIDs of the Nodes of the state file.
    pub fn start(
        config: &Kubernetes,
        mode: PodNetwork,
        known: BTreeSet<String>,
        metrics: metrics::Api,
        events: mpsc::Sender<Event>,
    ) -> Self {
        let own = mode == PodNetwork::Own && !config.external;
        if !own && !config.external {
            // Left by an agent of another mode; the network that is there now must have the pods.
            match cni::remove(&config.cni_conf_dir) {
                Ok(true) => info!(
                    file = cni::FILE,
                    mode = mode.kind(),
                    "CNI configuration of mode own removed"
                ),
                Ok(false) => {}
                Err(error) => {
                    warn!(file = cni::FILE, %error, "Failed to remove the CNI configuration of mode own")
                }
            }
        }
        Self {
            tasks: Cluster::start(config, mode, known, metrics, events),
            cni: own.then(|| {
                let auto = config.pod_network.is_none();
                Cni::new(&config.cni_conf_dir, &config.cni_bin_dir, auto)
            }),
        }
    }

    /// In mode own: does the CNI file stand?
    pub fn cni_ready(&self) -> Option<bool> {
        self.cni.as_ref().map(Cni::ready)
    }

    /// What is wrong with the CNI.
    pub fn findings(&self) -> &[Finding] {
        self.cni.as_ref().map_or(&[], Cni::findings)
    }
}

impl Agent {
    /// Something came from the API server.
    pub(super) fn told(&mut self, told: Told, now: Now) {
        match told {
            Told::Cluster(event) => self.overlay.handle_cluster(event, now),
            Told::Finding { code, finding } => {
                match finding {
                    Some(finding) => self.findings.insert(code, finding),
                    None => self.findings.remove(code),
                };
            }
        }
    }

    /// The core wants its announcement written.
    pub(super) fn publish(&self, publication: mesh_types::cluster::Publication) {
        if let Some(cluster) = &self.cluster {
            cluster.tasks.publish(publication);
        }
    }

    /// The core does not believe the last listing of Nodes.
    pub(super) fn list_again(&self) {
        if let Some(cluster) = &self.cluster {
            cluster.tasks.list_again();
        }
    }

    /// The core does not believe a claim.
    pub(super) fn refused(&self, node: Option<String>, reason: &'static str, sentence: String) {
        warn!(
            node = node.as_deref().unwrap_or_default(),
            reason, "{sentence}"
        );
        if let Some(cluster) = &self.cluster {
            cluster.tasks.refused(node, reason, sentence);
        }
    }

    /// Keeps the CNI file as the plan wants it, once the plan is on the host.
    pub(super) fn converge_cni(&mut self) {
        let plan = self.overlay.cni();
        if let Some(cni) = self
            .cluster
            .as_mut()
            .and_then(|cluster| cluster.cni.as_mut())
        {
            let before: Vec<Finding> = cni.findings().to_vec();
            cni.converge(plan.as_ref());
            for finding in cni.findings().iter().filter(|now| !before.contains(now)) {
                warn!("{}", finding.message);
            }
        }
    }

    /// Takes the CNI file away, so that no pod is connected to a mesh that is gone; says what was removed.
    pub(super) fn remove_cni(&mut self) -> Option<String> {
        match self.cluster.as_mut()?.cni.as_mut()?.remove() {
            Ok(true) => Some(format!("removed {}", cni::FILE)),
            Ok(false) => None,
            Err(error) => Some(format!("could not remove {}: {error}", cni::FILE)),
        }
    }

    /// Is everything there that the first pods need?
    pub(super) fn ready(&self) -> Result<(), String> {
        if self.converged.is_none() {
            return Err("no plan has been applied yet".to_owned());
        }
        match self.cluster.as_ref().and_then(Membership::cni_ready) {
            Some(false) => {
                Err("the CNI file is not written yet; `farspan status` says why".to_owned())
            }
            Some(true) | None => Ok(()),
        }
    }

    /// All findings of the shell.
    pub(super) fn own_findings(&self) -> Vec<Finding> {
        let cni = self.cluster.as_ref().map(Membership::findings);
        self.findings
            .values()
            .cloned()
            .chain(self.names.findings())
            .chain(cni.unwrap_or_default().iter().cloned())
            .collect()
    }

    /// `GET /metrics`.
    pub(super) fn metrics_text(&mut self, snapshot: &Snapshot) -> String {
        let tunnel = self.tunnel.as_ref().map(super::Tunnel::counters);
        let mut edge = tunnel.unwrap_or_default();
        edge.extend(self.ports.counters());
        edge.extend(self.relayed.take(self.host.relayed()));
        let findings = self.own_findings();
        let view = metrics::View {
            snapshot,
            findings: &findings,
            edge: &edge,
            plan: (self.overlay.host_plan().generation, self.converged),
            cni: self.cluster.as_ref().and_then(Membership::cni_ready),
            per_peer: self.flags.metrics_per_peer,
        };
        self.metrics.text(view)
    }
}
