//! Another cluster behind the API server's address: made anew without its etcd, or an address that leads elsewhere by now.

use std::time::Duration;

use crate::agents::{assert_announced, enrol, machine, start};
use crate::cluster::{Cluster, NODES};
use crate::lab::Node;
use crate::lab::agent::PATIENCE;
use crate::lab::wait::wait_until;

const NAMES: [&str; 2] = ["berlin", "paris"];
/// Who was refused for a while asks again after 30 s at most; a look every five minutes would be too late.
const NOTICED: Duration = Duration::from_secs(90);

#[test]
fn another_cluster_behind_the_address_is_noticed_when_it_answers_and_its_nodes_meet() {
    let mut cluster = Cluster::start(&NAMES);
    let mut nodes: Vec<Node> = NAMES
        .iter()
        .zip(1..)
        .map(|(name, number)| machine(&cluster, cluster.lab.public_host(name), number))
        .collect();
    nodes.iter_mut().for_each(start);
    let first = domain(&cluster);
    wait_whole(&cluster, &nodes, &first, PATIENCE);

    cluster.replace(&NAMES);
    for (node, number) in nodes.iter().zip(1..) {
        enrol(&cluster, node, number);
    }

    let second = domain(&cluster);
    assert_ne!(first, second);
    wait_whole(&cluster, &nodes, &second, NOTICED);
}

/// Every agent is a node of this cluster, announced there, and meets the other.
fn wait_whole(cluster: &Cluster, nodes: &[Node], domain: &str, deadline: Duration) {
    for node in nodes {
        let what = format!("{} is of cluster {domain}", node.name());
        wait_until(&what, deadline, || {
            let status = node.status()?;
            if status["node"]["domain"] == domain {
                Ok(())
            } else {
                Err(status["node"].to_string())
            }
        });
    }
    for [from, to] in [[0, 1], [1, 0]] {
        nodes[from].wait_direct(nodes[to].name(), deadline);
    }
    for node in nodes {
        let path = format!("{NODES}/{}", node.name());
        let what = format!("{} is announced", node.name());
        let (object, _) = wait_until(&what, deadline, || {
            let object = cluster.object(&path);
            match object["metadata"]["annotations"]["farspan.io/public-key"].is_string() {
                true => Ok(object),
                false => Err(object["metadata"].to_string()),
            }
        });
        assert_announced(node, &object);
    }
}

/// The cluster's name in the mesh.
fn domain(cluster: &Cluster) -> String {
    let system = cluster.object("/api/v1/namespaces/kube-system");
    let uid = system["metadata"]["uid"].as_str();
    uid.expect("a UID").replace('-', "")
}
