//! What 500 announced Nodes weigh on the wire. Figures are printed: `--nocapture` shows them.

use std::thread;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use mesh_types::annotations::RECORD_MAX;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::agents::{machine, start};
use crate::cluster::{Cluster, NODES, addresses, node, pod_cidrs};
use crate::lab::agent::{PATIENCE, timed};
use crate::lab::wait::wait_until;
use crate::user::{APPLY, JSON, MERGE, METADATA, METADATA_LIST};

/// Nodes of the cluster.
const COUNT: usize = 500;
/// What a Node weighs at least on a cluster that is in use: its images, conditions and capacities.
const NODE_BYTES: usize = 15_000;

#[test]
fn five_hundred_announced_nodes_are_listed_and_watched_as_metadata_only() {
    let cluster = Cluster::start(&["reader"]);
    let admin = &cluster.admin;
    let names: Vec<_> = (0..COUNT)
        .map(|number| format!("node-{number:03}"))
        .collect();
    let each = |path: &dyn Fn(&str) -> String, body: &dyn Fn(usize, &str) -> Value| -> Vec<_> {
        let numbered = names.iter().enumerate();
        numbered
            .map(|(number, name)| (path(name), body(number, name)))
            .collect()
    };
    let status = |name: &str| format!("{NODES}/{name}/status?fieldManager=kubelet");
    let record = |name: &str| format!("{NODES}/{name}?fieldManager=farspan&force=true");

    admin.all(
        "POST",
        JSON,
        &each(&|_| NODES.to_owned(), &|number, name| {
            let mut object = node(name);
            object["spec"] = pod_cidrs_of(number);
            object
        }),
    );
    admin.all(
        "PATCH",
        MERGE,
        &each(&status, &|number, name| heartbeat(number, name, 0)),
    );
    let (_, took) = timed(|| {
        admin.all(
            "PATCH",
            APPLY,
            &each(&record, &|number, name| announced(number, name, 1)),
        )
    });
    println!("{COUNT} announcements applied in {took:.1?}");

    // The first sync of an agent.
    let list = format!("{NODES}?resourceVersion=0");
    let full = admin.bytes(&list, &[]);
    let (slim, took) = timed(|| admin.bytes(&list, &[("accept", METADATA_LIST)]));
    let gzip = ("accept-encoding", "gzip");
    let full_packed = admin.bytes(&list, &[gzip]);
    let packed = admin.bytes(&list, &[("accept", METADATA_LIST), gzip]);
    let listed: Value = serde_json::from_slice(&slim).expect("a list");
    let items = listed["items"].as_array().expect("a list has items");
    assert_eq!(items.len(), COUNT);
    for item in items {
        assert!(
            item["metadata"]["annotations"]["farspan.io/seq"].is_string() && item["spec"].is_null(),
            "{item}"
        );
    }
    println!(
        "LIST of {COUNT} Nodes: {} bytes whole, {} as metadata ({} a Node, {took:.1?}); with gzip {} and {}",
        full.len(),
        slim.len(),
        slim.len() / COUNT,
        full_packed.len(),
        packed.len()
    );
    assert!(
        full.len() > COUNT * NODE_BYTES,
        "the Nodes are smaller than real ones"
    );
    assert!(slim.len() < full.len() / 4 && packed.len() < slim.len() / 4);

    // All kubelets report.
    let version = listed["metadata"]["resourceVersion"]
        .as_str()
        .expect("a list has a version");
    let watch = format!("{NODES}?watch=1&resourceVersion={version}&timeoutSeconds=300");
    let observe = |what: &str, change: &dyn Fn()| {
        let lines = [METADATA, "application/json"].map(|accept| {
            let (server, watch) = (&cluster.server, &watch);
            move || server.admin().watch(watch, accept, COUNT)
        });
        let [slim, full] = thread::scope(|scope| {
            let running = lines.map(|watch| scope.spawn(watch));
            change();
            running.map(|thread| thread.join().expect("the watch goes on"))
        });
        for line in &slim {
            let event: Value = serde_json::from_str(line).expect("an event");
            assert_eq!(event["type"], "MODIFIED");
            assert!(event["object"]["status"].is_null(), "{event}");
        }
        let sum = |lines: &[String]| lines.iter().map(String::len).sum::<usize>() / COUNT;
        println!(
            "watch, {what}: {} bytes a Node whole, {} as metadata",
            sum(&full),
            sum(&slim)
        );
        slim
    };
    observe("a kubelet's report", &|| {
        admin.all(
            "PATCH",
            MERGE,
            &each(&status, &|number, name| heartbeat(number, name, 1)),
        );
    });

    // An agent reads whole objects first, and has them compressed.
    let mut reader = machine(&cluster, cluster.lab.public_host("reader"), 1);
    let address = reader.host.ipv4;
    let before = cluster.lab.uplink_bytes(address);
    start(&mut reader);
    let known = "farspan_kubernetes_nodes";
    wait_until("the agent knows all Nodes", PATIENCE, || {
        match reader.metric(known)? {
            Some(nodes) if nodes > COUNT as f64 => Ok(()),
            nodes => Err(format!("{nodes:?}")),
        }
    });
    let crossed = cluster.lab.uplink_bytes(address) - before;
    println!("an agent's wire until it knows all Nodes: {crossed} bytes");
    assert!(crossed < full.len() as u64 / 8, "{crossed} bytes");
}

/// Ranges of node `number`: more than fit into [`pod_cidrs`].
fn pod_cidrs_of(number: usize) -> Value {
    let (high, low) = (number / 256, number % 256);
    let mut spec = pod_cidrs(0)["spec"].take();
    spec["podCIDR"] = json!(format!("10.{}.{low}.0/24", 245 + high));
    spec["podCIDRs"] = json!([
        spec["podCIDR"],
        format!("fd10:{:x}:{low:x}::/64", 0x245 + high)
    ]);
    spec
}

/// A kubelet's report: as much of it as real ones have.
fn heartbeat(number: usize, name: &str, minute: u32) -> Value {
    let mut report = addresses(
        name,
        &format!("192.168.{}.{}", number / 250, number % 250 + 1),
    );
    let images: Vec<_> = (0..50)
        .map(|image| {
            let digest = format!(
                "registry.example.org/department/team-{image}/service-{image}@sha256:{image:064x}"
            );
            let tag = format!(
                "registry.example.org/department/team-{image}/service-{image}:v1.{image}.0"
            );
            json!({"names": [digest, tag], "sizeBytes": 100_000_000 + image})
        })
        .collect();
    let conditions: Vec<_> = ["MemoryPressure", "DiskPressure", "PIDPressure", "Ready"]
        .into_iter()
        .map(|kind| {
            json!({"type": kind, "status": "False", "reason": format!("KubeletHasNo{kind}"), "message": format!("kubelet has no {kind}"),
                "lastHeartbeatTime": format!("2026-01-01T00:{minute:02}:00Z"), "lastTransitionTime": "2026-01-01T00:00:00Z"})
        })
        .collect();
    report["status"]["images"] = json!(images);
    report["status"]["conditions"] = json!(conditions);
    report
}

/// An announcement as large as it may be.
fn announced(number: usize, name: &str, seq: usize) -> Value {
    // What does not shrink by compression.
    let random = |what: &str| Sha256::digest(format!("{what} {number}"));
    let mut pairs = json!({
        "farspan.io/identity": BASE64.encode(random("identity")),
        "farspan.io/public-key": BASE64.encode(random("key")),
        "farspan.io/nat": "map=eim,filter=apdf",
        "farspan.io/features": "kernel,relay",
        "farspan.io/protocol": "1-1",
        "farspan.io/seq": format!("{}", 1_790_000_000_000 + seq),
        "farspan.io/proof": BASE64.encode([random("proof"), random("more")].concat()),
    });
    let size = |pairs: &Value| -> usize {
        let pairs = pairs.as_object().expect("pairs");
        pairs
            .iter()
            .map(|(key, value)| key.len() + value.as_str().map_or(0, str::len))
            .sum()
    };
    let key = "farspan.io/endpoints";
    let rest = RECORD_MAX - size(&pairs) - key.len();
    let endpoints: Vec<_> = (0..30)
        .map(|port| format!("203.0.113.{}:{}/srflx", number % 250, 20_000 + port))
        .collect();
    pairs[key] = json!(endpoints.join(",").chars().take(rest).collect::<String>());
    assert_eq!(size(&pairs), RECORD_MAX);
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "annotations": pairs}})
}
