//! A cluster: an API server with the project's manifests, Nodes as kubelets make them, tokens as kubelets project them.

use std::path::Path;

use serde_json::{Value, json};

use crate::lab::Lab;
use crate::lab::agent::PATIENCE;
use crate::lab::wait::wait_until;
use crate::server::ApiServer;
use crate::user::{Refusal, User};

/// Nodes.
pub const NODES: &str = "/api/v1/nodes";
/// Pods of the agents.
pub const PODS: &str = "/api/v1/namespaces/farspan/pods";

/// An API server in a lab, ready for agents.
pub struct Cluster {
    /// The API server, on the public host `control`.
    pub server: ApiServer,
    /// Who may do everything.
    pub admin: User,
    /// Dropped last.
    pub lab: Lab,
}

impl Cluster {
    /// Starts an API server with kubelets' tokens for nodes of these names, and applies the manifests.
    pub fn start(kubelets: &[&str]) -> Self {
        let lab = Lab::new();
        let host = lab.public_host("control");
        let server = ApiServer::start(host, lab.directory().join("control"), kubelets);
        let admin = server.admin();
        let cluster = Self { server, admin, lab };
        cluster.furnish(kubelets);
        cluster
    }

    /// The same server without its data, so another cluster, with the same tokens of kubelets.
    pub fn replace(&mut self, kubelets: &[&str]) {
        self.server.kill();
        self.server.forget();
        self.server.restart();
        self.furnish(kubelets);
    }

    fn furnish(&self, kubelets: &[&str]) {
        for file in ["namespace", "crds", "rbac", "admission"] {
            self.server.kubectl_ok(
                &["apply", "-f", &manifest(&format!("base/{file}.yaml"))],
                "",
            );
        }
        if let Some(kubelet) = kubelets.first() {
            self.wait_for_policies(kubelet);
        }
    }

    /// The same with a Node of each name, its addresses of no importance.
    pub fn with_nodes(names: &[&str]) -> Self {
        let cluster = Self::start(names);
        for (name, number) in names.iter().zip(1..) {
            cluster.add_node(name, number, &format!("192.0.2.{number}"));
        }
        cluster
    }

    /// Makes a Node: the kubelet registers, the controller manager gives it the ranges `10.244.N.0/24` and
    /// `fd10:244:N::/64`, the kubelet tells its address.
    pub fn add_node(&self, name: &str, number: u8, internal_ip: &str) {
        let kubelet = self.server.kubelet(name);
        let path = format!("{NODES}/{name}");
        let done = kubelet
            .create(NODES, &node(name))
            .and_then(|_| self.admin.merge(&path, &pod_cidrs(number)))
            .and_then(|_| kubelet.merge(&format!("{path}/status"), &addresses(name, internal_ip)));
        done.unwrap_or_else(|refusal| panic!("Node {name}: {refusal}"));
    }

    /// The object at a path, as admin.
    pub fn object(&self, path: &str) -> Value {
        let object = self.admin.get(path);
        object.unwrap_or_else(|refusal| panic!("GET {path}: {refusal}"))
    }

    /// Creates the pod of an agent on a node, and returns the token that the kubelet would project into it.
    pub fn pod_token(&self, pod: &str, node: &str) -> String {
        let container = json!({"name": "farspan", "image": "farspan"});
        let spec =
            json!({"nodeName": node, "serviceAccountName": "farspan", "containers": [container]});
        let object = json!({"metadata": {"name": pod}, "spec": spec});
        let created = self.admin.create(PODS, &object);
        let created = created.unwrap_or_else(|refusal| panic!("Pod {pod}: {refusal}"));
        self.token(json!({"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": created["metadata"]["uid"]}))
    }

    /// A token of the agents' account that is bound to a Node.
    pub fn node_token(&self, node: &str) -> String {
        let uid = self.object(&format!("{NODES}/{node}"))["metadata"]["uid"].clone();
        self.token(json!({"apiVersion": "v1", "kind": "Node", "name": node, "uid": uid}))
    }

    /// A token of the agents' account that is bound to an object, or to nothing (`null`).
    pub fn token(&self, bound: Value) -> String {
        let path = "/api/v1/namespaces/farspan/serviceaccounts/farspan/token";
        let mut spec = json!({"audiences": [], "expirationSeconds": 3600});
        if !bound.is_null() {
            spec["boundObjectRef"] = bound;
        }
        let request =
            json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec});
        let answer = self.admin.create(path, &request);
        let answer = answer.unwrap_or_else(|refusal| panic!("a token: {refusal}"));
        answer["status"]["token"]
            .as_str()
            .expect("a token is text")
            .to_owned()
    }

    /// Policies count a moment after they have been created.
    fn wait_for_policies(&self, kubelet: &str) {
        let probe = "policy-probe";
        let made = self.admin.create(NODES, &node(probe));
        made.unwrap_or_else(|refusal| panic!("Node {probe}: {refusal}"));
        let path = format!("{NODES}/{probe}");
        let stranger = self.server.user(&self.token(Value::Null));
        let annotation = json!({"metadata": {"annotations": {"farspan.io/seq": "1"}}});
        let mut configured = node(kubelet);
        configured["metadata"]["annotations"] = json!({"config.farspan.io/region": "mars"});
        let kubelet = self.server.kubelet(kubelet);
        wait_until("the policies are in force", PATIENCE, || {
            denied(stranger.merge(&format!("{path}?dryRun=All"), &annotation))?;
            denied(kubelet.create(&format!("{NODES}?dryRun=All"), &configured))
        });
        let gone = self.admin.delete(&path);
        gone.unwrap_or_else(|refusal| panic!("Node {probe}: {refusal}"));
    }
}

fn denied(answer: Result<Value, Refusal>) -> Result<(), String> {
    match answer {
        Err(refusal) if refusal.code == 422 => Ok(()),
        Err(refusal) => Err(refusal.to_string()),
        Ok(_) => Err("allowed".to_owned()),
    }
}

/// A Node as a kubelet registers it.
pub fn node(name: &str) -> Value {
    let labels = json!({"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"});
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}})
}

/// The ranges that the controller manager gives to a Node.
pub fn pod_cidrs(number: u8) -> Value {
    let ipv4 = format!("10.244.{number}.0/24");
    json!({"spec": {"podCIDR": ipv4, "podCIDRs": [ipv4, format!("fd10:244:{number}::/64")]}})
}

/// The addresses that a kubelet tells in its status.
pub fn addresses(name: &str, internal_ip: &str) -> Value {
    let internal = json!({"type": "InternalIP", "address": internal_ip});
    let hostname = json!({"type": "Hostname", "address": name});
    json!({"status": {"addresses": [internal, hostname]}})
}

/// A file of the folder `manifests`.
pub fn manifest(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("manifests")
        .join(name);
    path.display().to_string()
}
