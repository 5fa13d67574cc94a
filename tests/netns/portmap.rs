//! Ports that a gateway gives: a node behind a NAT that lets nobody in is reached by strangers through them.

use std::time::Duration;

use serde_json::Value;

use crate::lab::agent::PATIENCE;
use crate::lab::gateway::{Gateway, Speaks, mappings};
use crate::lab::wait::wait_until;
use crate::lab::{Lab, Nat, NatKind, Node, Site};
use crate::scene::founder;

/// Where strangers reach a node, as its gateway said.
fn mapped(node: &Node) -> Option<String> {
    let status = node.status().ok()?;
    let endpoints = status["node"]["endpoints"].as_array()?.clone();
    let found = endpoints.iter().find(|one| one["kind"] == "mapped")?;
    Some(found["address"].as_str()?.to_owned())
}

fn wait_mapped(node: &Node, site: &Site) -> String {
    let at = format!("{}:", site.public_address());
    let check = || match mapped(node) {
        Some(address) if address.starts_with(&at) => Ok(address),
        other => Err(format!("{other:?}")),
    };
    wait_until("the gateway maps a port", PATIENCE, check).0
}

fn netcheck(node: &Node) -> String {
    let json: Value = serde_json::from_str(&node.ok(&["netcheck", "-o", "json"]))
        .expect("netcheck -o json prints JSON");
    json["port_mapping"].as_str().unwrap_or_default().to_owned()
}

/// Two nodes behind random symmetric NATs, which never reach each other unless one of them is open to strangers.
fn reached_by(speaks: Speaks, word: &str) {
    let lab = Lab::new();
    let home = lab.site("home", Nat::new(NatKind::Symmetric));
    let far = lab.site("far", Nat::new(NatKind::Symmetric));
    let gateway = Gateway::start(&lab, &home, speaks, 7200);
    let mut hub = founder(&lab, lab.public_host("hub"));
    let mut paris = Node::new(&lab, home.host("paris"));
    let mut tokyo = Node::new(&lab, far.host("tokyo"));
    hub.up();
    for node in [&mut paris, &mut tokyo] {
        node.up();
        node.join(&hub);
    }

    let address = wait_mapped(&paris, &home);
    let (peer, _) = tokyo.wait_direct("paris", PATIENCE);
    paris.wait_direct("tokyo", PATIENCE);
    assert_eq!(peer["path"]["remote"], address, "{peer:#}");
    assert_eq!(netcheck(&paris), format!("{word} {address}"));
    assert_eq!(gateway.mappings().len(), 1, "{:?}", gateway.mappings());

    let none = netcheck(&tokyo);
    assert!(none.starts_with("none: the gateway 192.168."), "{none}");
    assert!(netcheck(&hub).contains("public already"));

    let removed = paris.ok(&["down"]);
    assert!(
        removed.contains(&format!("port mapping {address} ({word})")),
        "{removed}"
    );
    assert_eq!(gateway.mappings(), Vec::<String>::new());
}

#[test]
fn strangers_reach_a_node_through_a_port_given_by_pcp() {
    reached_by(Speaks::Everything, "pcp");
}

#[test]
fn strangers_reach_a_node_through_a_port_given_by_nat_pmp() {
    reached_by(Speaks::NatPmp, "nat-pmp");
}

#[test]
fn strangers_reach_a_node_through_a_port_given_by_upnp() {
    reached_by(Speaks::Upnp, "upnp");
}

#[test]
fn a_mapping_outlives_the_agent_and_down_without_an_agent_gives_it_back() {
    for speaks in [Speaks::Everything, Speaks::Upnp] {
        let lab = Lab::new();
        let home = lab.site("home", Nat::new(NatKind::Prc));
        let gateway = Gateway::start(&lab, &home, speaks, 7200);
        let mut node = Node::new(&lab, home.host("paris"));
        node.ok(&["init"]);
        node.up();
        let first = wait_mapped(&node, &home);

        assert!(node.stop());
        assert_eq!(gateway.mappings().len(), 1, "{speaks:?}");
        node.up();
        assert_eq!(wait_mapped(&node, &home), first, "{speaks:?}");
        assert_eq!(gateway.mappings().len(), 1, "{speaks:?}");

        node.kill();
        assert_eq!(gateway.mappings().len(), 1, "{speaks:?}");
        let removed = node.ok(&["down"]);
        assert!(removed.contains("port mapping"), "{removed}");
        assert_eq!(gateway.mappings(), Vec::<String>::new(), "{speaks:?}");
    }
}

#[test]
fn a_gateway_that_forgets_is_asked_again_before_the_lease_is_over() {
    let lab = Lab::new();
    let home = lab.site("home", Nat::new(NatKind::Prc));
    let mut gateway = Gateway::start(&lab, &home, Speaks::Everything, 44);
    let mut node = Node::new(&lab, home.host("paris"));
    node.ok(&["init"]);
    node.up();
    let address = wait_mapped(&node, &home);
    gateway.reboot();
    assert_eq!(gateway.mappings(), Vec::<String>::new());
    wait_until("the mapping is back", Duration::from_secs(30), || {
        let found = gateway.mappings();
        (found.len() == 1).then_some(()).ok_or(format!("{found:?}"))
    });
    assert_eq!(
        mapped(&node),
        Some(address),
        "it was announced all the time"
    );
}

#[test]
fn after_a_move_the_new_gateway_is_asked_and_switched_off_nobody_is() {
    let lab = Lab::new();
    let (home, work) = (
        lab.site("home", Nat::new(NatKind::Prc)),
        lab.site("work", Nat::new(NatKind::Prc)),
    );
    let _gateways = [&home, &work].map(|site| Gateway::start(&lab, site, Speaks::Everything, 7200));
    let mut node = Node::new(&lab, home.host("paris"));
    node.ok(&["init"]);
    node.up();
    wait_mapped(&node, &home);
    node.host.unplug();
    work.plug(&mut node.host);
    wait_mapped(&node, &work);

    let text = std::fs::read_to_string(node.file("farspan.toml")).expect("init writes the file");
    node.write_config(&format!("{text}\n[nat]\nport-mapping = false\n"));
    node.signal(nix::sys::signal::Signal::SIGHUP);
    wait_until("the port is given back", PATIENCE, || {
        let found = mappings(&work);
        let off = found.is_empty() && mapped(&node).is_none();
        off.then_some(()).ok_or(format!("{found:?}"))
    });
    assert_eq!(netcheck(&node), "off");
}
