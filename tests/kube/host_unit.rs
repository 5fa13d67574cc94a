//! The agent as a unit of the host, below a kubelet and another network: a Node whose only way to the API server is the
//! overlay, and one owner of the host's device.

use std::fs;
use std::net::IpAddr;

use crate::cluster::{Cluster, NODES, addresses, manifest, node};
use crate::lab::agent::PATIENCE;
use crate::lab::traffic::{Echo, tcp_source_seen};
use crate::lab::wait::wait_until;
use crate::lab::{Host, Nat, NatKind, Node};
use crate::server::PORT;
use crate::user::User;

/// Overlay addresses, which kubelets give as those of their Nodes.
const CONTROL: &str = "10.77.0.1";
const PARIS: &str = "10.77.0.2";
const TOKYO: &str = "10.77.0.3";

#[test]
fn a_node_reaches_the_api_server_by_the_overlay_alone_and_its_address_is_there_before_the_kubelet()
{
    let mut cluster = Cluster::start(&["control", "paris", "tokyo"]);
    let west = cluster.lab.site("west", Nat::new(NatKind::Prc));
    let east = cluster.lab.site("east", Nat::new(NatKind::Symmetric));
    // Nothing but WireGuard's port gets from there to the API server's machine.
    let wall = format!(
        "add table ip wall\nadd chain ip wall input {{ type filter hook input priority 0; }}\n\
         add rule ip wall input ip saddr {} meta l4proto != udp drop",
        west.public_address()
    );
    let host = cluster.server.host.clone();
    host.namespace.nft(&wall);

    // The Node of paris is made before its kubelet has run.
    for name in ["control", "paris", "tokyo"] {
        let made = cluster.admin.create(NODES, &node(name));
        made.unwrap_or_else(|refusal| panic!("Node {name}: {refusal}"));
    }
    let mut control = unit(&cluster, host, CONTROL);
    let mut paris = unit(&cluster, west.host("paris"), PARIS);
    let mut tokyo = unit(&cluster, east.host("tokyo"), TOKYO);
    let direct = cluster.server.url();
    start(&mut control, &direct);
    control.wait_answering();
    let port = control.status().expect("it runs")["node"]["listen_port"].clone();
    // Each of the two is told of the other by its file; everybody else knows paris by its Node.
    let key = |node: &Node| node.ok(&["key", "public"]).trim().to_owned();
    let first = format!(
        "[[peer]]\nname = \"control\"\npublic-key = \"{}\"\nendpoints = [\"{}:{port}\"]\nallowed-ips = [\"{CONTROL}/32\"]\n",
        key(&control),
        control.host.ipv4
    );
    configure(&paris, PARIS, &first);
    start(&mut paris, &format!("https://{CONTROL}:{PORT}"));
    paris.wait_answering();
    let range = format!("{PARIS}/32");
    let known = ["--public-key", &key(&paris), "--allowed-ips", &range];
    control.ok(&[&["peer", "add", "paris"][..], &known].concat());
    start(&mut tokyo, &direct);

    // Through the tunnel, and the kubelet finds its address.
    let kubeconfig = through(&cluster, CONTROL, "token: kubelet-paris");
    let kubelet = User::new(paris.host.namespace.clone(), &kubeconfig);
    let (_, _) = wait_until(
        "the kubelet of paris reaches the API server",
        PATIENCE,
        || {
            let status = addresses("paris", PARIS);
            let told = kubelet.merge(&format!("{NODES}/paris/status"), &status);
            told.map_err(|refusal| refusal.to_string())
        },
    );
    assert!(held(&paris).contains(PARIS), "{}", held(&paris));
    for (name, address) in [("control", CONTROL), ("tokyo", TOKYO)] {
        let path = format!("{NODES}/{name}/status");
        let told = cluster
            .server
            .kubelet(name)
            .merge(&path, &addresses(name, address));
        told.unwrap_or_else(|refusal| panic!("{name}: {refusal}"));
    }
    wait_metric(&paris, "farspan_kubernetes_api_up", 1.0);
    wait_until("the Node of paris is announced", PATIENCE, || {
        let node = cluster.object(&format!("{NODES}/paris"));
        match node["metadata"]["annotations"]["farspan.io/public-key"].as_str() {
            Some(_) => Ok(()),
            None => Err(node["metadata"]["annotations"].to_string()),
        }
    });
    tokyo.wait_direct("paris", PATIENCE);
    meets(&tokyo, &paris, PARIS, TOKYO);
    meets(&paris, &tokyo, TOKYO, PARIS);
    // The API server calls the kubelet: logs, exec.
    meets(&control, &paris, PARIS, CONTROL);

    // A machine that starts while nobody answers has its address and its peers from disk.
    paris.kill();
    cluster.server.kill();
    let link = paris.host.namespace.output("ip", &["-br", "link"]);
    if link.contains("farspan0") {
        paris.host.namespace.ip("link del farspan0");
    }
    start(&mut paris, &format!("https://{CONTROL}:{PORT}"));
    wait_until("the address is there again", PATIENCE, || {
        let held = held(&paris);
        if held.contains(PARIS) {
            Ok(())
        } else {
            Err(held)
        }
    });
    meets(&tokyo, &paris, PARIS, TOKYO);
    cluster.server.restart();
    wait_metric(&paris, "farspan_kubernetes_api_up", 1.0);
}

#[test]
fn one_agent_owns_a_hosts_device_a_second_is_refused_and_a_pods_stands_by() {
    let cluster = Cluster::start(&["berlin"]);
    let made = cluster.admin.create(NODES, &node("berlin"));
    made.expect("a Node");
    let mut unit = unit(&cluster, cluster.lab.public_host("berlin"), CONTROL);
    start(&mut unit, &cluster.server.url());
    unit.wait_answering();

    // A person starts another.
    let refused = unit.verb(&["agent"], "");
    let sentence = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{sentence}");
    assert!(
        sentence.contains("is held by an agent on the host, process "),
        "{sentence}"
    );
    assert!(sentence.contains("farspan down"), "{sentence}");

    // The DaemonSet's pod on this host waits until the unit is gone, and has the device then.
    let mut pod = Node::new(&cluster.lab, unit.host.clone());
    start(&mut pod, &cluster.server.url());
    let log = pod.file("agent-2.log");
    let stands_by = || {
        let text = fs::read_to_string(pod.file("agent-1.log")).unwrap_or_default();
        let text = text + &fs::read_to_string(&log).unwrap_or_default();
        if text.contains("standing by until it ends") {
            Ok(())
        } else {
            Err(text)
        }
    };
    wait_until("the pod stands by", PATIENCE, stands_by);
    let key = unit.status().expect("the owner answers")["node"]["public_key"].clone();
    unit.kill();
    wait_until("the pod has taken over", PATIENCE, || {
        let status = pod.status()?;
        if status["node"]["public_key"] == key {
            Ok(())
        } else {
            Err(status.to_string())
        }
    });
}

/// A machine with files as docs/kubernetes.md has them, but for the peers of `farspan.toml`.
fn unit(cluster: &Cluster, host: Host, address: &str) -> Node {
    let unit = Node::new(&cluster.lab, host);
    configure(&unit, address, "");
    let bound = [
        "--bound-object-kind",
        "Node",
        "--bound-object-name",
        unit.name(),
    ];
    let create = ["-n", "farspan", "create", "token", "farspan"];
    let token = cluster
        .server
        .kubectl_ok(&[&create[..], &bound].concat(), "");
    fs::write(unit.file("token"), token).expect("the machine's directory is writable");
    let credentials = format!("tokenFile: \"{}\"", unit.file("token").display());
    let kubeconfig = cluster.server.kubeconfig(&credentials);
    fs::write(unit.file("kubeconfig"), kubeconfig).expect("the machine's directory is writable");
    unit
}

fn configure(unit: &Node, address: &str, peers: &str) {
    unit.write_config(&format!("[node]\naddresses = [\"{address}/32\"]\n{peers}"));
}

/// Starts the agent in the environment of the shipped drop-in.
fn start(unit: &mut Node, api_server: &str) {
    let file = manifest("systemd/farspan.service.d/50-kubernetes-nodes.conf");
    let drop_in = fs::read_to_string(file).expect("the drop-in is shipped");
    let kubeconfig = unit.file("kubeconfig").display().to_string();
    let mut words = vec!["env".to_owned()];
    let set = drop_in
        .lines()
        .filter_map(|line| line.strip_prefix("Environment="));
    words.extend(set.map(|set| set.replace("/etc/farspan/kubeconfig", &kubeconfig)));
    assert!(
        words.contains(&"FARSPAN_POD_NETWORK=nodes".to_owned()),
        "{words:?}"
    );
    words.push(format!("FARSPAN_NODE_NAME={}", unit.name()));
    words.push(format!("FARSPAN_API_SERVER={api_server}"));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    unit.start_by(&words);
}

/// A kubeconfig with another address of the API server.
fn through(cluster: &Cluster, address: &str, credentials: &str) -> String {
    let kubeconfig = cluster.server.kubeconfig(credentials);
    let kubeconfig = kubeconfig.replace(&cluster.server.host.ipv4.to_string(), address);
    // Its certificate does not name the address; it always names the Service.
    let authority = "certificate-authority:";
    kubeconfig.replace(
        authority,
        &format!("tls-server-name: kubernetes.default.svc, {authority}"),
    )
}

/// TCP from one to the other, which sees this source.
fn meets(from: &Node, to: &Node, server: &str, source: &str) {
    let _echo = Echo::start(&to.host.namespace);
    let server: IpAddr = server.parse().expect("an address");
    let what = format!("{} reaches {}", from.name(), to.name());
    let check = || tcp_source_seen(&from.host.namespace, server);
    let (seen, _) = wait_until(&what, PATIENCE, check);
    assert_eq!(seen.to_string(), source, "{what}");
}

/// Addresses of its device.
fn held(unit: &Node) -> String {
    let arguments = ["-o", "addr", "show", "type", "tun"];
    unit.host.namespace.output("ip", &arguments)
}

fn wait_metric(node: &Node, metric: &str, value: f64) {
    let what = format!("{metric} of {} is {value}", node.name());
    wait_until(&what, PATIENCE * 2, || match node.metric(metric)? {
        Some(seen) if seen == value => Ok(()),
        seen => Err(format!("{seen:?}")),
    });
}
