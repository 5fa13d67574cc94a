//! What else a pair needs of TURN: TCP, no UDP at all, servers that die, refuse or cannot be trusted.

use std::net::IpAddr;
use std::time::Duration;

use serde_json::Value;

use crate::lab::agent::PATIENCE;
use crate::lab::coturn::Coturn;
use crate::lab::traffic::{Echo, ping_once, udp_exchange};
use crate::lab::wait::wait_until;
use crate::lab::{Lab, LinkState, Nat, NatKind, Node};
use crate::scene::{add_turn, assert_pods_meet, founder};
use crate::turn::{SECRET, Scene, one_sided, start, wait_kind};

/// A relayed pair is there again after this, coturn's own start included.
const BACK: Duration = Duration::from_secs(45);

#[test]
fn a_pair_that_never_meets_directly_is_relayed_by_turn_over_tcp() {
    one_sided("tcp");
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
