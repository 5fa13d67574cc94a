//! Pairs that a real coturn relays: the scene, and one server for both ends over UDP and TLS.

use std::net::IpAddr;

use serde_json::Value;

use crate::lab::agent::PATIENCE;
use crate::lab::coturn::Coturn;
use crate::lab::traffic::{Echo, udp_exchange};
use crate::lab::wait::wait_until;
use crate::lab::{Lab, Nat, NatKind, Node, Site};
use crate::scene::{add_turn, assert_pods_meet, founder};

pub const SECRET: &str = "north-by-northwest";

/// Two regions behind NATs that never meet directly, a hub that does not relay, and a coturn.
pub struct Scene {
    pub paris: Node,
    pub tokyo: Node,
    pub hub: Node,
    pub west: Site,
    pub east: Site,
    pub coturn: Coturn,
    /// Dropped last.
    pub lab: Lab,
}

impl Scene {
    /// Everybody has joined. Who has TURN servers, and by which transports, say the last two arguments.
    pub fn joined(paris_turn: &[&str], tokyo_turn: &[&str]) -> Self {
        Self::behind(NatKind::Symmetric, paris_turn, tokyo_turn)
    }

    pub fn behind(kind: NatKind, paris_turn: &[&str], tokyo_turn: &[&str]) -> Self {
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
pub fn start(node: &mut Node, coturn: &Coturn) {
    let trust = format!("SSL_CERT_FILE={}", coturn.authority().display());
    node.start_by(&["env", &trust]);
    node.wait_answering();
}

pub fn wait_kind(node: &Node, peer: &str, kind: &str) -> Value {
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
pub fn one_sided(transport: &str) {
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
fn a_pair_that_never_meets_directly_is_relayed_by_turn_over_tls() {
    one_sided("tls");
}
