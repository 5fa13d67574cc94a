//! The device itself: made, refused, and gone without a trace.

use std::net::UdpSocket;
use std::process::Command;

use host_network::{HostError, Wireguard};
use mesh_types::consts::INTERFACE;

use crate::harness::{Node, pair};

#[test]
fn the_probe_says_yes_and_leaves_nothing() {
    let node = Node::new(1);
    let before = node.namespace.everything();
    assert!(node.namespace.enter(Wireguard::probe));
    assert_eq!(node.namespace.everything(), before);
}

#[test]
fn down_leaves_the_host_as_it_was() {
    let (mut a, _b) = pair();
    a.remove();
    let before = a.namespace.everything();
    assert!(!before.contains("farspan"), "{before}");
    a.apply();
    assert_ne!(a.namespace.everything(), before);

    let gone = a.remove();

    assert_eq!(a.namespace.everything(), before);
    assert_eq!(gone.len(), 5, "{gone:?}");
}

#[test]
fn a_port_in_use_is_named_and_no_device_is_left() {
    let node = Node::new(1);
    let error = node.namespace.enter(|| {
        let _taken = UdpSocket::bind("0.0.0.0:22001").unwrap();
        Wireguard::open(INTERFACE, &node.plan.tunnel).unwrap_err()
    });
    assert!(
        matches!(error, HostError::PortInUse { port: 22001 }),
        "{error}"
    );
    assert!(
        !node
            .namespace
            .try_sh("ip link show farspan0")
            .status
            .success()
    );
}

#[test]
fn a_live_device_that_shall_move_to_a_port_in_use_says_so_and_goes_on() {
    let (mut a, _b) = pair();
    let (taken, error) = a.namespace.enter(|| {
        let taken = UdpSocket::bind("0.0.0.0:22077").unwrap();
        a.plan.tunnel.listen_port = 22077;
        let error = a.wireguard.as_mut().unwrap().apply(&a.plan.tunnel);
        (taken, error.unwrap_err())
    });
    assert!(
        matches!(error, HostError::PortInUse { port: 22077 }),
        "{error}"
    );
    drop(taken);
    a.apply();
    assert_eq!(a.namespace.sh("wg show farspan0 listen-port"), "22077\n");
}

#[test]
fn a_device_of_another_kind_is_not_taken_over() {
    let node = Node::new(1);
    node.namespace.sh("ip link add farspan0 type bridge");
    let error = node
        .namespace
        .enter(|| Wireguard::open(INTERFACE, &node.plan.tunnel))
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "failed to take over farspan0: it is a bridge device and not one of ours; choose another interface name or remove it"
    );
}

#[test]
fn a_device_that_somebody_deleted_is_one_sentence() {
    let (mut a, _b) = pair();
    a.namespace.sh("ip link del farspan0");
    let error = a
        .namespace
        .enter(|| a.wireguard.as_mut().unwrap().apply(&a.plan.tunnel))
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "failed to read the WireGuard device farspan0: No such device (os error 19)"
    );
    a.wireguard = None;
    a.apply();
}

/// What the child of the next test does.
const CHILD: &str = "FARSPAN_TEST_WITHOUT_PRIVILEGE";

#[test]
fn without_the_privilege_nothing_is_made_and_the_sentence_says_so() {
    if std::env::var_os(CHILD).is_some() {
        assert!(!Wireguard::probe());
        let error = Wireguard::open(INTERFACE, &Node::plan_of(1).tunnel).unwrap_err();
        assert!(matches!(error, HostError::NotPermitted { .. }), "{error}");
        return;
    }
    let output = Command::new("setpriv")
        .args(["--bounding-set=-all", "--inh-caps=-all"])
        .arg(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "device::without_the_privilege_nothing_is_made_and_the_sentence_says_so",
        ])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}"
    );
}
