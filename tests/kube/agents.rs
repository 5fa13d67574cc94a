//! Real agents with bound tokens, behind NATs, that know each other from annotations of their Nodes only.

use std::fs;
use std::net::IpAddr;
use std::time::Duration;

use serde_json::{Value, json};

use mesh_types::annotations::{KEYS, RECORD_MAX};

use crate::cluster::{Cluster, NODES, PODS};
use crate::lab::agent::PATIENCE;
use crate::lab::traffic::{Echo, tcp_source_seen};
use crate::lab::wait::{pause, wait_until};
use crate::lab::{Host, Nat, NatKind, Node};

/// Nodes of a mesh: one public, one behind a port-restricted NAT, one behind a symmetric one.
const NAMES: [&str; 3] = ["berlin", "paris", "tokyo"];
/// How long nothing is written: here for a minute, by `scripts/soak` for longer.
const STEADY: &str = "FARSPAN_STEADY_SECONDS";
/// A record may wait for its token bucket: one write a minute after the third.
const SETTLED: Duration = Duration::from_secs(240);

/// A cluster whose nodes run agents.
struct Mesh {
    nodes: Vec<Node>,
    /// Dropped last.
    cluster: Cluster,
}

impl Mesh {
    /// Makes machines, Nodes, pods and tokens, and starts the agents.
    fn start() -> Self {
        let cluster = Cluster::start(&NAMES);
        let [public, restricted, symmetric] = [
            cluster.lab.public_host(NAMES[0]),
            cluster
                .lab
                .site("west", Nat::new(NatKind::Prc))
                .host(NAMES[1]),
            cluster
                .lab
                .site("east", Nat::new(NatKind::Symmetric))
                .host(NAMES[2]),
        ];
        let hosts = [public, restricted, symmetric].into_iter().zip(1..);
        let nodes = hosts
            .map(|(host, number)| machine(&cluster, host, number))
            .collect();
        let mut mesh = Self { nodes, cluster };
        for node in &mut mesh.nodes {
            start(node);
        }
        mesh
    }

    /// Every node has a path to every other, and pods see each other's own address.
    fn wait_whole(&self) {
        for (from, to) in self.pairs() {
            from.wait_direct(to.name(), PATIENCE);
        }
        for (from, to) in self.pairs() {
            let (from, to) = (from.pod(), to.pod());
            let _echo = Echo::start(&to.namespace);
            for (source, server) in [
                (IpAddr::V4(from.ipv4), IpAddr::V4(to.ipv4)),
                (IpAddr::V6(from.ipv6), IpAddr::V6(to.ipv6)),
            ] {
                let check = || tcp_source_seen(&from.namespace, server);
                let (seen, _) = wait_until("pods meet", PATIENCE, check);
                assert_eq!(seen, source, "from pod to pod");
            }
        }
    }

    /// Waits until all agents follow the API server and none has anything left to write.
    fn wait_settled(&self) {
        for node in &self.nodes {
            wait_metric(node, "farspan_kubernetes_api_up", 1.0);
            wait_metric(node, "farspan_announcement_pending", 0.0);
        }
    }

    fn pairs(&self) -> impl Iterator<Item = (&Node, &Node)> {
        let all = self.nodes.iter();
        all.flat_map(|from| self.nodes.iter().map(move |to| (from, to)))
            .filter(|(from, to)| from.name() != to.name())
    }

    /// What agents have written so far, as `verb resource name`.
    fn writes(&self) -> Vec<String> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let writes = self.cluster.server.audit().into_iter().filter(|event| {
            let read = ["get", "list", "watch"].contains(&text(&event["verb"]).as_str());
            !read && !text(&event["requestURI"]).contains("dryRun")
        });
        writes
            .map(|event| {
                let object = &event["objectRef"];
                let words = [&event["verb"], &object["resource"], &object["name"]];
                words.map(text).join(" ")
            })
            .collect()
    }
}

#[test]
fn three_agents_meet_by_their_nodes_annotations_outlive_the_api_server_and_then_write_nothing() {
    let mut mesh = Mesh::start();
    mesh.wait_whole();
    for node in &mesh.nodes {
        let object = mesh.cluster.object(&format!("{NODES}/{}", node.name()));
        assert_announced(node, &object);
    }
    let domain = mesh.cluster.object("/api/v1/namespaces/kube-system")["metadata"]["uid"].clone();
    let told = mesh.nodes[0].status().expect("it runs")["node"]["domain"].clone();
    assert_eq!(
        told.as_str().map(|id| id.replace('-', "")),
        domain.as_str().map(|id| id.replace('-', ""))
    );

    // The API server is gone, and machines start.
    mesh.cluster.server.kill();
    for node in &mut mesh.nodes {
        node.kill();
    }
    for node in &mut mesh.nodes {
        start(node);
    }
    mesh.wait_whole();

    mesh.cluster.server.restart();
    mesh.wait_settled();
    mesh.wait_whole();
    let before = mesh.writes();
    let steady = std::env::var(STEADY)
        .ok()
        .and_then(|seconds| seconds.parse().ok())
        .unwrap_or(60);
    pause(Duration::from_secs(steady));
    let after = mesh.writes();
    assert_eq!(
        after.len(),
        before.len(),
        "written in steady state: {:?}",
        &after[before.len()..]
    );
    println!(
        "{} writes before {steady} s of steady state, none in it: {before:?}",
        before.len()
    );
    mesh.wait_whole();
}

#[test]
fn an_agent_uses_a_rotated_token_and_writes_again_what_somebody_removed() {
    let mut mesh = Mesh::start();
    mesh.wait_settled();
    let name = NAMES[1];
    let old = mesh.cluster.admin.delete(&format!("{PODS}/farspan-{name}"));
    old.unwrap_or_else(|refusal| panic!("the pod of {name}: {refusal}"));
    let token = mesh.cluster.pod_token("farspan-next", name);
    fs::write(mesh.nodes[1].file("token"), token).expect("the node's directory is writable");

    // Connections end, and no verdict on a token is remembered.
    mesh.cluster.server.kill();
    wait_metric(&mesh.nodes[1], "farspan_kubernetes_api_up", 0.0);
    mesh.cluster.server.restart();
    mesh.wait_settled();

    let path = format!("{NODES}/{name}");
    let before = mesh.cluster.object(&path);
    for spoilt in [
        json!({"farspan.io/proof": null}),
        json!({"farspan.io/nat": "map=eim,filter=eif", "farspan.io/relay": "somebody"}),
    ] {
        let writes = mesh.writes().len();
        let edit = json!({"metadata": {"annotations": spoilt}});
        let edited = mesh.cluster.admin.merge(&path, &edit);
        edited.unwrap_or_else(|refusal| panic!("{name} with {spoilt}: {refusal}"));
        wait_until("the record is whole again", SETTLED, || {
            let node = mesh.cluster.object(&path);
            let shown = &node["metadata"]["annotations"];
            let keys = spoilt.as_object().expect("annotations");
            match keys.iter().find(|(key, edit)| shown[key] == **edit) {
                None => Ok(()),
                Some((key, _)) => Err(format!("{key} is {}", shown[key])),
            }
        });
        assert_announced(&mesh.nodes[1], &mesh.cluster.object(&path));
        assert!(
            mesh.writes().len() > writes,
            "written by {name}, as the audit log shows"
        );
    }
    assert_eq!(
        before["metadata"]["labels"],
        mesh.cluster.object(&path)["metadata"]["labels"]
    );
}

fn wait_metric(node: &Node, metric: &str, value: f64) {
    let what = format!("{metric} of {} is {value}", node.name());
    wait_until(&what, SETTLED, || match node.metric(metric)? {
        Some(seen) if seen == value => Ok(()),
        seen => Err(format!("{seen:?}")),
    });
}

/// Makes a Node of the cluster on this machine, and its files.
pub fn machine(cluster: &Cluster, host: Host, number: u8) -> Node {
    let node = Node::new(&cluster.lab, host).with_pod(&cluster.lab, number);
    // Its ranges are the API server's word.
    node.write_config("");
    enrol(cluster, &node, number);
    let credentials = format!("tokenFile: \"{}\"", node.file("token").display());
    let kubeconfig = cluster.server.kubeconfig(&credentials);
    fs::write(node.file("kubeconfig"), kubeconfig).expect("the node's directory is writable");
    node
}

/// Makes the Node of this machine, and the token of its agent.
pub fn enrol(cluster: &Cluster, node: &Node, number: u8) {
    let name = node.name();
    cluster.add_node(name, number, &node.host.ipv4.to_string());
    let token = cluster.pod_token(&format!("farspan-{name}"), name);
    fs::write(node.file("token"), token).expect("the node's directory is writable");
}

pub fn start(node: &mut Node) {
    let (name, kubeconfig) = (node.name().to_owned(), node.file("kubeconfig"));
    let kubeconfig = kubeconfig.to_str().expect("an ASCII path");
    node.start_with(&[
        "--kubernetes",
        "--node-name",
        &name,
        "--kubeconfig",
        kubeconfig,
        "--pod-network",
        "existing",
    ]);
}

/// The Node carries a whole record of this agent.
pub fn assert_announced(node: &Node, object: &Value) {
    let annotations = object["metadata"]["annotations"]
        .as_object()
        .expect("annotations");
    let status = node.status().expect("it runs");
    assert_eq!(
        annotations["farspan.io/public-key"],
        status["node"]["public_key"]
    );
    assert_eq!(
        annotations["farspan.io/identity"],
        status["node"]["identity"]
    );
    let own = annotations
        .iter()
        .filter(|(key, _)| key.starts_with("farspan.io/"));
    let size: usize = own
        .inspect(|(key, _)| assert!(KEYS.contains(&key.as_str()), "{key}"))
        .map(|(key, value)| key.len() + value.as_str().map_or(0, str::len))
        .sum();
    assert!(
        size <= RECORD_MAX,
        "the record of {} has {size} bytes",
        node.name()
    );
}
