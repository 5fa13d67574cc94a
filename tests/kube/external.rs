//! A machine that is no Node joins the cluster's mesh: an ExternalPeer object lets it in, a kubeconfig that may only read
//! shows it the Nodes.

use std::fs;
use std::net::IpAddr;

use serde_json::json;

use crate::agents::{machine, start};
use crate::cluster::Cluster;
use crate::lab::agent::PATIENCE;
use crate::lab::netns::Namespace;
use crate::lab::traffic::{Echo, tcp_source_seen};
use crate::lab::wait::wait_until;
use crate::lab::{Nat, NatKind, Node};

const EXTERNALS: &str = "/apis/farspan.io/v1alpha1/externalpeers";
const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/default/events";
const ADDRESS: &str = "10.77.0.9";

#[test]
fn a_laptop_and_the_network_behind_it_join_by_an_external_peer_and_write_nothing() {
    let cluster = Cluster::start(&["berlin", "paris", "king"]);
    let home = cluster.lab.site("home", Nat::new(NatKind::Symmetric));
    let west = cluster.lab.site("west", Nat::new(NatKind::Prc));
    let berlin = cluster.lab.public_host("berlin");
    let mut nodes = [
        machine(&cluster, berlin, 1),
        machine(&cluster, west.host("paris"), 2),
    ];
    nodes.iter_mut().for_each(start);

    // As docs/kubernetes.md tells it: a key, an account that reads, the object.
    let mut laptop = Node::new(&cluster.lab, home.host("laptop")).with_pod(&cluster.lab, 9);
    let routes = laptop.pod().ranges.clone();
    laptop.write_config(&format!(
        "[node]\naddresses = [\"{ADDRESS}/32\"]\nroutes = {routes:?}\n"
    ));
    for command in [
        "-n farspan create serviceaccount laptop",
        "create clusterrolebinding laptop --clusterrole=farspan-reader --serviceaccount=farspan:laptop",
    ] {
        let words: Vec<&str> = command.split(' ').collect();
        cluster.server.kubectl_ok(&words, "");
    }
    let create = ["-n", "farspan", "create", "token", "laptop"];
    let token = cluster.server.kubectl_ok(&create, "");
    // With the end of line that kubectl prints.
    fs::write(laptop.file("token"), token).expect("the laptop's directory is writable");
    let credentials = format!("tokenFile: \"{}\"", laptop.file("token").display());
    let kubeconfig = laptop.file("kubeconfig");
    fs::write(&kubeconfig, cluster.server.kubeconfig(&credentials))
        .expect("the laptop's directory is writable");
    let kubeconfig = kubeconfig.to_str().expect("an ASCII path");
    laptop.start_with(&["--kubernetes", "--external", "--kubeconfig", kubeconfig]);
    laptop.wait_answering();
    let key = laptop.ok(&["key", "public"]);
    let object = json!({"apiVersion": "farspan.io/v1alpha1", "kind": "ExternalPeer", "metadata": {"name": "laptop"},
        "spec": {"publicKey": key.trim(), "addresses": [format!("{ADDRESS}/32")], "routes": routes}});
    cluster
        .admin
        .create(EXTERNALS, &object)
        .expect("an ExternalPeer");

    let address: IpAddr = ADDRESS.parse().expect("an address");
    for node in &nodes {
        laptop.wait_direct(node.name(), PATIENCE);
        node.wait_direct("laptop", PATIENCE);
        let pod = node.pod();
        meets(
            &laptop.host.namespace,
            &pod.namespace,
            pod.ipv4.into(),
            Some(address),
        );
        meets(
            &pod.namespace,
            &laptop.host.namespace,
            address,
            Some(pod.ipv4.into()),
        );
        meets(&node.host.namespace, &laptop.host.namespace, address, None);
        // What is behind the laptop.
        let behind = laptop.pod();
        meets(
            &behind.namespace,
            &pod.namespace,
            pod.ipv6.into(),
            Some(behind.ipv6.into()),
        );
        meets(
            &pod.namespace,
            &behind.namespace,
            behind.ipv4.into(),
            Some(pod.ipv4.into()),
        );
    }

    // A claim that nobody believes, of which a Node's agent makes an Event.
    let api_server = cluster.server.host.ipv4.to_string();
    cluster.add_node("king", 7, &api_server);
    let refused = "farspan_refused_claims_total{reason=\"protected\"}";
    for reader in [&nodes[0], &laptop] {
        let what = format!("{} refuses the claim", reader.name());
        wait_until(&what, PATIENCE, || match reader.metric(refused)? {
            Some(count) if count > 0.0 => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }
    wait_until("the laptop writes no Event of it", PATIENCE, || {
        let log = fs::read_to_string(laptop.file("agent-1.log")).unwrap_or_default();
        match log.contains("No Event is made of a refused claim") {
            true => Ok(()),
            false => Err("it says nothing of that".to_owned()),
        }
    });
    wait_until("an Event tells of it", PATIENCE, || {
        let event = cluster
            .admin
            .get(&format!("{EVENTS}/king.farspan-protected"));
        event.map(drop).map_err(|refusal| refusal.to_string())
    });

    // It reads: neither its own name nor anything else was tried to be written.
    let audit = cluster.server.audit();
    let account = "system:serviceaccount:farspan:laptop";
    let mut by_laptop = audit
        .iter()
        .filter(|event| event["user"]["username"] == account);
    assert!(by_laptop.clone().count() > 3, "it has read");
    let written = by_laptop.find(|event| {
        let verb = event["verb"].as_str().unwrap_or_default();
        !["get", "list", "watch"].contains(&verb)
    });
    assert_eq!(written, None, "an external machine writes nothing");
    let denied = audit.iter().find(|event| {
        event["user"]["username"] == account && event["responseStatus"]["code"] == 403
    });
    assert_eq!(denied, None, "farspan-reader is enough");

    // The object was its membership.
    let gone = cluster.admin.delete(&format!("{EXTERNALS}/laptop"));
    gone.expect("the ExternalPeer goes");
    wait_until("the nodes know no laptop", PATIENCE, || {
        match nodes.iter().find(|node| node.peer("laptop").is_ok()) {
            Some(node) => Err(format!("{} does", node.name())),
            None => Ok(()),
        }
    });
}

/// TCP from one to the other, which sees this source.
fn meets(from: &Namespace, to: &Namespace, server: IpAddr, source: Option<IpAddr>) {
    let _echo = Echo::start(to);
    let what = format!("{} reaches {server}", from.name());
    let check = || tcp_source_seen(from, server);
    let (seen, _) = wait_until(&what, PATIENCE, check);
    if let Some(source) = source {
        assert_eq!(seen, source, "{what}");
    }
}
