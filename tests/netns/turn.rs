//! Pairs that a real coturn relays: over UDP, TCP and TLS, with one allocation or two, and when it dies.

use std::net::IpAddr;
use std::time::Duration;

use serde_json::Value;

use crate::lab::agent::PATIENCE;
use crate::lab::coturn::Coturn;
use crate::lab::traffic::{Echo, ping_once, udp_exchange};
use crate::lab::wait::wait_until;
use crate::lab::{Lab, LinkState, Nat, NatKind, Node, Site};
use crate::scene::{add_turn, assert_pods_meet, founder};

const SECRET: &str = "north-by-northwest";
/// A relayed pair is there again after this, coturn's own start included.
const BACK: Duration = Duration::from_secs(45);

/// Two regions behind NATs that never meet directly, a hub that does not relay, and a coturn.
struct Scene {
    paris: Node,
    tokyo: Node,
    hub: Node,
    west: Site,
    east: Site,
    coturn: Coturn,
    /// Dropped last.
    lab: Lab,
}

impl Scene {
    /// Everybody has joined. Who has TURN servers, and by which transports, say the last two arguments.
    fn joined(paris_turn: &[&str], tokyo_turn: &[&str]) -> Self {
        Self::behind(NatKind::Symmetric, paris_turn, tokyo_turn)
    }

    fn behind(kind: NatKind, paris_turn: &[&str], tokyo_turn: &[&str]) -> Self {
        let lab = Lab::new();
        let coturn = Coturn::start(&lab, lab.public_host("turn"), SECRET);
        let [west, east] = ["west", "east"].map(|name| lab.site(name, Nat::new(kind)));
        let mut hub = founder(&lab, lab.public_host("hub"));
        let mut paris = Node::new(&lab, west.host("paris")).with_pod(&lab, 1);
        let mut tokyo = Node::new(&lab, east.host("tokyo")).with_pod(&lab, 2);
        hub.up();
        for (node, transports) in [(&mut paris, paris_turn), (&mut tokyo, tokyo_turn)] {
            add_turn(node, &coturn, transports, SECRET);
            start(node, &coturn);
            node.join(&hub);
        }
        Self {
            paris,
            tokyo,
            hub,
            west,
            east,
            coturn,
            lab,
        }
    }
}

/// Starts an agent that trusts the authority of the coturn.
fn start(node: &mut Node, coturn: &Coturn) {
    let trust = format!("SSL_CERT_FILE={}", coturn.authority().display());
    node.start_by(&["env", &trust]);
    node.wait_answering();
}

fn wait_kind(node: &Node, peer: &str, kind: &str) -> Value {
    let check = || {
        let peer = node.peer(peer)?;
        if peer["state"] == "relayed" && peer["path"]["kind"] == kind {
            Ok(peer)
        } else {
            Err(format!(
                "{} {}: {}",
                peer["state"], peer["path"], peer["reason"]
            ))
        }
    };
    wait_until(
        &format!("{} reaches {peer} by {kind}", node.name()),
        PATIENCE,
        check,
    )
    .0
}

fn netcheck(node: &Node) -> Value {
    serde_json::from_str(&node.ok(&["netcheck", "-o", "json"])).expect("netcheck prints JSON")
}

/// One side has a server, the other does not need one.
fn one_sided(transport: &str) {
    let scene = Scene::joined(&[transport], &[]);
    let kind = format!("turn-{transport}");
    let peer = wait_kind(&scene.paris, "tokyo", &kind);
    let url = scene.coturn.url(transport);
    assert_eq!(peer["path"]["via"], url.as_str(), "{peer:#}");
    let reason = peer["reason"].as_str().unwrap_or_default().to_owned();
    assert!(reason.contains(&format!("over {transport}")), "{reason}");
    // The other side sends to the relayed address, as to any other.
    let there = wait_kind(&scene.tokyo, "paris", "turn-udp");
    let remote = there["path"]["remote"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    assert!(
        remote.starts_with(&scene.coturn.host.ipv4.to_string()),
        "{there:#}"
    );
    assert_pods_meet(&scene.paris, &scene.tokyo);
    let (from, to) = (scene.paris.pod(), scene.tokyo.pod());
    let _echo = Echo::start(&to.namespace);
    let answered = udp_exchange(&from.namespace, IpAddr::V4(to.ipv4), 500, 1200);
    assert!(answered >= 495, "{answered} of 500 answered");

    let relays = netcheck(&scene.paris)["relays"].clone();
    let listed = relays
        .as_array()
        .into_iter()
        .flatten()
        .find(|relay| relay["name"] == url.as_str());
    assert!(
        listed.is_some_and(|relay| relay["rtt_ms"].is_number()),
        "{relays}"
    );
    assert!(scene.hub.peer("paris").is_ok());
}

#[test]
fn a_pair_that_never_meets_directly_is_relayed_by_turn_over_udp() {
    one_sided("udp");
}

#[test]
fn a_pair_that_never_meets_directly_is_relayed_by_turn_over_tcp() {
    one_sided("tcp");
}

#[test]
fn a_pair_that_never_meets_directly_is_relayed_by_turn_over_tls() {
    one_sided("tls");
}

#[test]
fn without_udp_on_both_sides_a_pair_meets_by_tls_and_reaches_the_hub() {
    let mut scene = Scene::joined(&["udp", "tls"], &["udp", "tls"]);
    for node in [&mut scene.paris, &mut scene.tokyo] {
        assert!(node.stop());
    }
    scene.west.set_udp(LinkState::Cut);
    scene.east.set_udp(LinkState::Cut);
    for node in [&mut scene.paris, &mut scene.tokyo] {
        start(node, &scene.coturn);
    }
    wait_kind(&scene.paris, "hub", "turn-tls");
    wait_kind(&scene.tokyo, "hub", "turn-tls");
    wait_kind(&scene.paris, "tokyo", "turn-tls");
    wait_kind(&scene.tokyo, "paris", "turn-tls");
    assert_pods_meet(&scene.paris, &scene.tokyo);
}

#[test]
fn without_udp_behind_endpoint_independent_nats_a_pair_ends_on_direct_tcp() {
    let mut scene = Scene::behind(NatKind::Prc, &["udp", "tcp"], &["udp", "tls"]);
    for node in [&mut scene.paris, &mut scene.tokyo] {
        assert!(node.stop());
    }
    scene.west.set_udp(LinkState::Cut);
    scene.east.set_udp(LinkState::Cut);
    for node in [&mut scene.paris, &mut scene.tokyo] {
        start(node, &scene.coturn);
    }
    let pairs = [
        (&scene.paris, "tokyo", &scene.east),
        (&scene.tokyo, "paris", &scene.west),
    ];
    for (node, peer, site) in pairs {
        let (entry, _) = wait_until("the path is direct TCP", PATIENCE, || {
            let entry = node.peer(peer)?;
            let direct = entry["state"] == "direct" && entry["path"]["kind"] == "tcp";
            direct.then_some(entry.clone()).ok_or(entry.to_string())
        });
        let remote = entry["path"]["remote"].to_string();
        assert!(
            remote.contains(&site.public_address().to_string()),
            "{entry:#}"
        );
        let reason = entry["reason"].to_string();
        assert!(reason.contains("direct over TCP at"), "{reason}");
        let doctor = node.verb(&["doctor", peer], "");
        let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
        assert!(said.contains("it is direct over TCP"), "{said}");
    }
    assert_pods_meet(&scene.paris, &scene.tokyo);
    let server = scene.coturn.host.ipv4;
    let before = scene.lab.uplink_bytes(server);
    let (from, to) = (scene.paris.pod(), scene.tokyo.pod());
    let _echo = Echo::start(&to.namespace);
    let answered = udp_exchange(&from.namespace, IpAddr::V4(to.ipv4), 500, 1000);
    assert!(answered >= 495, "{answered} of 500 answered");
    let crossed = scene.lab.uplink_bytes(server) - before;
    assert!(
        crossed < 100_000,
        "{crossed} bytes crossed the server's link"
    );
}

#[test]
fn without_udp_on_one_side_a_pair_meets_by_tcp() {
    let mut scene = Scene::joined(&["udp", "tcp"], &[]);
    assert!(scene.paris.stop());
    scene.west.set_udp(LinkState::Cut);
    start(&mut scene.paris, &scene.coturn);
    wait_kind(&scene.paris, "tokyo", "turn-tcp");
    assert_pods_meet(&scene.paris, &scene.tokyo);
}

#[test]
fn a_node_whose_network_lets_no_udp_out_joins_by_tls() {
    let lab = Lab::new();
    let coturn = Coturn::start(&lab, lab.public_host("turn"), SECRET);
    let west = lab.site("west", Nat::new(NatKind::Symmetric));
    west.set_udp(LinkState::Cut);
    let mut hub = founder(&lab, lab.public_host("hub"));
    let mut paris = Node::new(&lab, west.host("paris")).with_pod(&lab, 1);
    hub.up();
    add_turn(&paris, &coturn, &["udp", "tls"], SECRET);
    start(&mut paris, &coturn);
    wait_allocated(&paris);
    paris.join(&hub);
    wait_kind(&paris, "hub", "turn-tls");
    wait_kind(&hub, "paris", "turn-udp");
    let target = crate::scene::overlay_ipv4(&hub);
    wait_until("the hub answers", PATIENCE, || {
        ping_once(&paris.host.namespace, target)
    });
}

#[test]
fn a_server_that_is_killed_and_started_again_carries_the_pair_again() {
    for transport in ["udp", "tcp"] {
        let mut scene = Scene::joined(&[transport], &[]);
        wait_kind(&scene.paris, "tokyo", &format!("turn-{transport}"));
        assert_pods_meet(&scene.paris, &scene.tokyo);
        scene.coturn.kill();
        let lost = || match scene.paris.peer("tokyo")? {
            peer if peer["state"] == "relayed" => Err(peer["reason"].to_string()),
            _ => Ok(()),
        };
        wait_until("paris has noticed", PATIENCE, lost);
        let finding = scene.paris.wait_finding("turn-unreachable", PATIENCE);
        assert!(
            finding["message"]
                .to_string()
                .contains(&scene.coturn.url(transport)),
            "{finding}"
        );
        scene.coturn.run();
        let again = || match scene.paris.peer("tokyo")? {
            peer if peer["state"] == "relayed" => Ok(()),
            peer => Err(peer["reason"].to_string()),
        };
        wait_until("coturn carries the pair again", BACK, again);
        assert_pods_meet(&scene.paris, &scene.tokyo);
        assert!(findings(&scene.paris, "turn-").is_empty());
    }
}

fn findings(node: &Node, prefix: &str) -> Vec<Value> {
    let status = node.status().expect("the agent runs");
    let all = status["findings"].as_array().cloned().unwrap_or_default();
    let like = |finding: &Value| {
        finding["code"]
            .as_str()
            .is_some_and(|code| code.starts_with(prefix))
    };
    all.into_iter().filter(like).collect()
}

#[test]
fn a_wrong_secret_is_one_finding_and_the_right_one_is_taken_by_reload() {
    let lab = Lab::new();
    let coturn = Coturn::start(&lab, lab.public_host("turn"), SECRET);
    let mut hub = founder(&lab, lab.public_host("hub"));
    add_turn(&hub, &coturn, &["udp", "tcp", "tls"], "south");
    start(&mut hub, &coturn);
    hub.wait_finding("turn-credentials", PATIENCE);
    wait_until("all three have refused", PATIENCE, || {
        let told = findings(&hub, "turn-");
        let all = told
            .first()
            .map(|finding| finding["message"].to_string())
            .unwrap_or_default();
        all.contains("turns:").then_some(()).ok_or(all)
    });
    let told = findings(&hub, "turn-");
    assert_eq!(told.len(), 1, "{told:?}");
    let message = told[0]["message"].to_string();
    assert!(message.contains("refuses the credentials"), "{message}");
    assert!(!hub.status().expect("it runs").to_string().contains("south"));

    std::fs::write(hub.file("turn.secret"), SECRET).expect("the node's directory is writable");
    hub.signal(nix::sys::signal::Signal::SIGHUP);
    wait_allocated(&hub);
    assert_eq!(findings(&hub, "turn-"), Vec::<Value>::new());
    assert!(coturn.log().contains("ALLOCATE processed, success"));
}

fn wait_allocated(node: &Node) {
    wait_until("there is an allocation", PATIENCE, || {
        let status = node.status()?;
        let endpoints = status["node"]["endpoints"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let relayed = endpoints.iter().any(|endpoint| endpoint["kind"] == "relay");
        relayed.then_some(()).ok_or(format!("{endpoints:?}"))
    });
}

#[test]
fn a_certificate_that_nobody_trusts_is_a_finding() {
    let lab = Lab::new();
    let coturn = Coturn::start(&lab, lab.public_host("turn"), SECRET);
    let mut hub = founder(&lab, lab.public_host("hub"));
    add_turn(&hub, &coturn, &["tls"], SECRET);
    hub.up();
    let finding = hub.wait_finding("turn-certificate", PATIENCE);
    assert!(
        finding["message"].to_string().contains("does not trust"),
        "{finding}"
    );
}
