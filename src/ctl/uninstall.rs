//! `farspan uninstall`: the way back from `farspan manifests`. What it takes away it says; what is gone already is fine.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, bail};
use mesh_types::annotations;
use serde_json::{Map, Value, json};

use super::cluster::{Cluster, Patch};
use super::{blocking_runtime, manifests, print};
use crate::cli::{Global, UninstallArgs};

mod cleanup;
mod this_node;

/// The agents' DaemonSet.
const AGENTS: &str = "farspan";
/// The one that cleans up behind them.
const CLEANUP: &str = "farspan-cleanup";
const ASK_EVERY: Duration = Duration::from_millis(500);
/// How often that Nodes are looked at beside it: there may be thousands.
const LOOK_AT_NODES: u32 = 10;

pub fn run(global: &Global, args: &UninstallArgs) -> Result<()> {
    if args.this_node {
        return this_node::run(global, args);
    }
    let removed = blocking_runtime()?.block_on(async {
        let cluster = Cluster::connect(&args.cluster).await?;
        Uninstall { cluster, args }.run().await
    })?;
    if removed == 0 {
        print("Nothing of farspan was left in this cluster.\n")?;
    }
    Ok(())
}

struct Uninstall<'a> {
    cluster: Cluster,
    args: &'a UninstallArgs,
}

/// Of a DaemonSet, as its controller tells it.
struct Progress {
    seen: bool,
    wanted: u64,
    ready: u64,
}

impl Uninstall<'_> {
    /// How many objects were changed or removed.
    async fn run(&self) -> Result<usize> {
        let mut removed = self.agents().await?;
        removed += self.annotations().await?;
        removed += self.objects().await?;
        Ok(removed)
    }

    /// The agents, and what they leave on their nodes.
    async fn agents(&self) -> Result<usize> {
        let agents = self.cluster.get(&self.daemon_set(AGENTS)).await?;
        let left = self.cluster.get(&self.daemon_set(CLEANUP)).await?;
        let image = self.args.image.clone().or_else(|| {
            let of = |set: &Value, list: &str| {
                let image = set.pointer(&format!("/spec/template/spec/{list}/0/image"))?;
                image.as_str().map(str::to_owned)
            };
            agents
                .as_ref()
                .or(left.as_ref())
                .and_then(|set| of(set, "containers"))
        });
        let Some(image) = image else {
            print(
                "There is no DaemonSet of agents: nothing is cleaned up on the nodes. `farspan uninstall --image IMAGE` does it on all of them, --this-node on one.\n",
            )?;
            return Ok(0);
        };
        let cleanup = cleanup::daemon_set(agents.as_ref().or(left.as_ref()), &image, self.args)?;
        let mut removed = self.remove(AGENTS).await?;
        if self.args.dry_run {
            print(&format!(
                "Would clean up on each node, by pods of {image}\n"
            ))?;
            return Ok(removed + 1);
        }
        let path = self.daemon_set(CLEANUP);
        let namespace = format!("/api/v1/namespaces/{}", self.args.namespace);
        if self.cluster.get(&namespace).await?.is_none() {
            bail!(
                "there is no namespace {} for pods that clean up; make it with `kubectl create namespace {}`, or give --namespace",
                self.args.namespace,
                self.args.namespace
            );
        }
        self.cluster.patch(&path, Patch::Apply, &cleanup).await?;
        let nodes = self.wait_for_nodes(&path).await?;
        print(&format!("Cleaned up on {nodes} nodes\n"))?;
        removed += self.remove(CLEANUP).await?;
        Ok(removed)
    }

    /// Until the cleanup is done on every node.
    async fn wait_for_nodes(&self, path: &str) -> Result<u64> {
        let done = async {
            loop {
                let progress = self.progress(path).await?;
                if progress.seen && progress.ready >= progress.wanted {
                    return Ok(progress.wanted);
                }
                tokio::time::sleep(ASK_EVERY).await;
            }
        };
        match tokio::time::timeout(self.args.timeout, done).await {
            Ok(done) => done,
            Err(_) => {
                let Progress { ready, wanted, .. } = self.progress(path).await?;
                let missing = self.not_ready().await?;
                bail!(
                    "after {} s the cleanup is done on {ready} of {wanted} nodes (missing: {missing}); it goes on there when they come back: run `farspan uninstall` again then, or after `kubectl delete node` where one is gone for good",
                    self.args.timeout.as_secs()
                )
            }
        }
    }

    async fn progress(&self, path: &str) -> Result<Progress> {
        let set = self.cluster.get(path).await?.unwrap_or_default();
        let status = |field: &str| set["status"][field].as_u64();
        Ok(Progress {
            seen: status("observedGeneration") >= set["metadata"]["generation"].as_u64(),
            wanted: status("desiredNumberScheduled").unwrap_or_default(),
            ready: status("numberReady").unwrap_or_default(),
        })
    }

    async fn not_ready(&self) -> Result<String> {
        let pods = self.pods(CLEANUP).await?;
        let names: Vec<&str> = pods
            .iter()
            .filter(|pod| !is_ready(pod))
            .filter_map(|pod| pod["spec"]["nodeName"].as_str())
            .collect();
        Ok(if names.is_empty() {
            "no pod was scheduled".to_owned()
        } else {
            names.join(", ")
        })
    }

    /// Deletes a DaemonSet and waits until its pods are gone.
    async fn remove(&self, name: &str) -> Result<usize> {
        let path = self.daemon_set(name);
        if self.args.dry_run {
            let there = self.cluster.get(&path).await?.is_some();
            if there {
                self.said("DaemonSet", &self.args.namespace, name)?;
            }
            return Ok(usize::from(there));
        }
        if !self.cluster.delete_last(&path).await? {
            return Ok(0);
        }
        let gone = async {
            for look in 1_u32.. {
                if self.cluster.get(&path).await?.is_none() {
                    break;
                }
                if look.is_multiple_of(LOOK_AT_NODES)
                    && let Some(nodes) = self.held_up(name).await?
                {
                    print(&format!(
                        "Nodes that are down keep their pods of DaemonSet {name}: {nodes}\n"
                    ))?;
                    break;
                }
                tokio::time::sleep(ASK_EVERY).await;
            }
            anyhow::Ok(())
        };
        let Ok(gone) = tokio::time::timeout(self.args.timeout, gone).await else {
            bail!(
                "pods of DaemonSet {name} are still there after {} s; see `kubectl -n {} get pods -o wide`, then run this again",
                self.args.timeout.as_secs(),
                self.args.namespace
            );
        };
        gone?;
        self.said("DaemonSet", &self.args.namespace, name)?;
        Ok(1)
    }

    /// Where the last pods of a DaemonSet are, if no kubelet there will end them.
    async fn held_up(&self, name: &str) -> Result<Option<String>> {
        let pods = self.pods(name).await?;
        let on: BTreeSet<&str> = pods
            .iter()
            .filter_map(|pod| pod["spec"]["nodeName"].as_str())
            .collect();
        let nodes = self.cluster.list("/api/v1/nodes").await?;
        let mut up = nodes.iter().filter(|node| is_ready(node));
        let down = !on.is_empty()
            && up.all(|node| {
                let name = node["metadata"]["name"].as_str();
                name.is_none_or(|name| !on.contains(name))
            });
        Ok(down.then(|| on.into_iter().collect::<Vec<_>>().join(", ")))
    }

    async fn pods(&self, name: &str) -> Result<Vec<Value>> {
        let path = format!(
            "/api/v1/namespaces/{}/pods?labelSelector=app.kubernetes.io%2Fname%3D{name}",
            self.args.namespace
        );
        self.cluster.list(&path).await
    }

    /// What the agents wrote on Nodes; with --purge what people wrote for them, too.
    async fn annotations(&self) -> Result<usize> {
        let (mut changed, mut kept) = (0, 0);
        for node in self.cluster.list("/api/v1/nodes").await? {
            let Some(name) = node["metadata"]["name"].as_str() else {
                continue;
            };
            let empty = Map::new();
            let found = node["metadata"]["annotations"]
                .as_object()
                .unwrap_or(&empty);
            let (ours, persons) = keys(found);
            kept += if self.args.purge { 0 } else { persons.len() };
            let gone: Map<String, Value> = ours
                .into_iter()
                .chain(persons.into_iter().filter(|_| self.args.purge))
                .map(|key| (key, Value::Null))
                .collect();
            if gone.is_empty() {
                continue;
            }
            if !self.args.dry_run {
                let body = json!({ "metadata": { "annotations": gone } });
                let path = format!("/api/v1/nodes/{name}");
                self.cluster.patch(&path, Patch::Merge, &body).await?;
            }
            changed += 1;
        }
        if changed > 0 {
            print(&format!("{} annotations of {changed} Nodes\n", self.verb()))?;
        }
        if kept > 0 {
            print(&format!(
                "{kept} annotations config.farspan.io/* that people set stay; --purge removes them\n"
            ))?;
        }
        Ok(changed)
    }

    /// Everything that `farspan manifests` applies, in the opposite order.
    async fn objects(&self) -> Result<usize> {
        let mut removed = 0;
        let mut ends = Vec::new();
        let all = manifests::every_object(&self.args.namespace)?;
        for object in all.iter().rev() {
            let Some(path) = path(object) else { continue };
            let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
            let kind = object["kind"].as_str().unwrap_or_default();
            if kind == "Namespace" && self.in_use(text("name")).await? {
                print(&format!(
                    "Namespace {} stays: other pods run in it\n",
                    text("name")
                ))?;
                continue;
            }
            let Some(now) = self.cluster.get(&path).await? else {
                continue;
            };
            let ending = !now["metadata"]["deletionTimestamp"].is_null();
            if kind == "CustomResourceDefinition" && !self.args.dry_run {
                ends.push((text("name"), path.clone()));
            }
            let there = self.args.dry_run || !ending && self.cluster.delete(&path).await?;
            if there {
                self.said(kind, text("namespace"), text("name"))?;
                removed += 1;
            }
        }
        self.wait_for_kinds(&ends).await?;
        Ok(removed)
    }

    /// Until kinds are gone: their objects are deleted first, and meanwhile nobody can install them again.
    async fn wait_for_kinds(&self, kinds: &[(&str, String)]) -> Result<()> {
        for (name, path) in kinds {
            let gone = async {
                while self.cluster.get(path).await?.is_some() {
                    tokio::time::sleep(ASK_EVERY).await;
                }
                anyhow::Ok(())
            };
            let Ok(gone) = tokio::time::timeout(self.args.timeout, gone).await else {
                bail!(
                    "CustomResourceDefinition {name} is still being deleted after {} s; see its conditions and finalizers with `kubectl get crd {name} -o yaml`, then run this again",
                    self.args.timeout.as_secs()
                );
            };
            gone?;
        }
        Ok(())
    }

    async fn in_use(&self, namespace: &str) -> Result<bool> {
        let pods = format!("/api/v1/namespaces/{namespace}/pods");
        Ok(!self.cluster.list(&pods).await?.is_empty())
    }

    fn daemon_set(&self, name: &str) -> String {
        format!(
            "/apis/apps/v1/namespaces/{}/daemonsets/{name}",
            self.args.namespace
        )
    }

    fn verb(&self) -> &'static str {
        if self.args.dry_run {
            "Would remove"
        } else {
            "Removed"
        }
    }

    fn said(&self, kind: &str, namespace: &str, name: &str) -> Result<()> {
        let place = if namespace.is_empty() {
            String::new()
        } else {
            format!("{namespace}/")
        };
        print(&format!("{} {kind} {place}{name}\n", self.verb()))
    }
}

/// Is this pod, or this Node, ready?
fn is_ready(object: &Value) -> bool {
    let conditions = object["status"]["conditions"].as_array();
    conditions
        .into_iter()
        .flatten()
        .any(|one| one["type"] == "Ready" && one["status"] == "True")
}

/// The agent's keys, and those that people set for it.
fn keys(annotations: &Map<String, Value>) -> (Vec<String>, Vec<String>) {
    annotations
        .keys()
        .filter(|key| {
            annotations::KEYS.contains(&key.as_str()) || key.starts_with(annotations::CONFIG_PREFIX)
        })
        .cloned()
        .partition(|key| annotations::KEYS.contains(&key.as_str()))
}

/// Where an object of `farspan manifests` is.
fn path(object: &Value) -> Option<String> {
    let name = object["metadata"]["name"].as_str()?;
    let version = object["apiVersion"].as_str()?;
    let plural = match object["kind"].as_str()? {
        "ValidatingAdmissionPolicy" => "validatingadmissionpolicies".to_owned(),
        kind => format!("{}s", kind.to_ascii_lowercase()),
    };
    let group = if version.contains('/') { "apis" } else { "api" };
    Some(match object["metadata"]["namespace"].as_str() {
        Some(namespace) => format!("/{group}/{version}/namespaces/{namespace}/{plural}/{name}"),
        None => format!("/{group}/{version}/{plural}/{name}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_object_has_its_path() {
        let all = manifests::every_object("net").unwrap();
        let paths: Vec<String> = all.iter().filter_map(path).collect();
        assert_eq!(paths.len(), all.len());
        for expected in [
            "/api/v1/namespaces/net",
            "/api/v1/namespaces/net/serviceaccounts/farspan",
            "/apis/apps/v1/namespaces/net/daemonsets/farspan",
            "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/meshpolicies.farspan.io",
            "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/farspan-own-node",
            "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings/farspan-config",
            "/apis/rbac.authorization.k8s.io/v1/namespaces/kube-system/roles/farspan",
            "/apis/monitoring.coreos.com/v1/namespaces/net/podmonitors/farspan",
        ] {
            assert!(
                paths.iter().any(|path| path == expected),
                "{expected}: {paths:#?}"
            );
        }
    }

    #[test]
    fn annotations_of_others_are_nobodys() {
        let found = json!({
            "farspan.io/seq": "1", "config.farspan.io/region": "eu", "farspan.io/else": "x", "example.org/a": "b"
        });
        let (ours, persons) = keys(found.as_object().unwrap());
        assert_eq!(ours, ["farspan.io/seq"]);
        assert_eq!(persons, ["config.farspan.io/region"]);
    }
}
