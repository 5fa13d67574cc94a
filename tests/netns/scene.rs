//! Scenes that tests share: who stands where, and what counts as connected.

use std::net::IpAddr;
use std::time::Duration;

use crate::lab::agent::PATIENCE;
use crate::lab::coturn::Coturn;
use crate::lab::traffic::{Echo, tcp_source_seen, udp_source_seen};
use crate::lab::wait::wait_until;
use crate::lab::{Host, Lab, Nat, Node, Site};

/// Two regions behind NATs, a public node that introduces them, and a pod behind each.
pub struct TwoRegions {
    /// Behind [`TwoRegions::east`].
    pub tokyo: Node,
    /// Behind [`TwoRegions::west`].
    pub paris: Node,
    /// The introducer and authority.
    pub hub: Node,
    /// The NAT of paris.
    pub west: Site,
    /// The NAT of tokyo.
    pub east: Site,
    /// Dropped last.
    pub lab: Lab,
}

impl TwoRegions {
    /// Builds it and lets everybody join; waits until the two see each other as direct.
    pub fn connected(west: Nat, east: Nat) -> Self {
        let scene = Self::joined(west, east);
        scene.paris.wait_direct("tokyo", PATIENCE);
        scene.tokyo.wait_direct("paris", PATIENCE);
        scene
    }

    /// Builds it and lets everybody join.
    pub fn joined(west: Nat, east: Nat) -> Self {
        let lab = Lab::new();
        let (west, east) = (lab.site("west", west), lab.site("east", east));
        let mut hub = founder(&lab, lab.public_host("hub"));
        let mut paris = Node::new(&lab, west.host("paris")).with_pod(&lab, 1);
        let mut tokyo = Node::new(&lab, east.host("tokyo")).with_pod(&lab, 2);
        hub.up();
        for node in [&mut paris, &mut tokyo] {
            node.up();
            node.join(&hub);
        }
        Self {
            tokyo,
            paris,
            hub,
            west,
            east,
            lab,
        }
    }
}

/// A node that made a mesh; its agent does not run yet.
pub fn founder(lab: &Lab, host: Host) -> Node {
    let node = Node::new(lab, host);
    node.ok(&["init"]);
    node
}

/// A founder that relays for its members, by its kernel, as `more` of `[relay]` says.
pub fn relay_founder(lab: &Lab, host: Host, more: &str) -> Node {
    host.namespace.sysctl("net/ipv4/ip_forward", "1");
    let node = Node::new(lab, host);
    node.write_config(&format!("[relay]\nserve = true\n{more}\n"));
    node.ok(&["init"]);
    node
}

/// Asserts that the pods behind two nodes reach each other by UDP and TCP, both families, and see each
/// other's own address.
pub fn assert_pods_meet(a: &Node, b: &Node) {
    for (from, to) in [(a, b), (b, a)] {
        let (from, to) = (from.pod(), to.pod());
        let _echo = Echo::start(&to.namespace);
        for (source, server) in [
            (IpAddr::V4(from.ipv4), IpAddr::V4(to.ipv4)),
            (IpAddr::V6(from.ipv6), IpAddr::V6(to.ipv6)),
        ] {
            let udp = wait_until("a datagram is answered", Duration::from_secs(5), || {
                udp_source_seen(&from.namespace, server)
            });
            assert_eq!(udp.0, source, "UDP from pod to pod");
            let tcp = wait_until("a connection is answered", Duration::from_secs(5), || {
                tcp_source_seen(&from.namespace, server)
            });
            assert_eq!(tcp.0, source, "TCP from pod to pod");
        }
    }
}

/// Two public nodes that list each other in their files, with addresses `10.77.0.1` and `10.77.0.2`.
pub fn static_pair(lab: &Lab) -> (Node, Node) {
    let nodes = ["a", "b"].map(|name| Node::new(lab, lab.public_host(name)));
    let keys = nodes.each_ref().map(|node| {
        let key = node.ok(&["key", "gen"]);
        let public =
            String::from_utf8(node.verb(&["key", "public"], &key).stdout).expect("keys are ASCII");
        std::fs::write(node.file("private.key"), key).expect("the node's directory is writable");
        public.trim().to_owned()
    });
    for (index, node) in nodes.iter().enumerate() {
        let other = 1 - index;
        set_mode_600(&node.file("private.key"));
        node.write_config(&format!(
            "[node]\naddresses = [\"10.77.0.{}/32\"]\nlisten-port = 22000\nprivate-key-file = \"{}\"\n\
             [[peer]]\nname = \"{}\"\npublic-key = \"{}\"\nendpoints = [\"{}:22000\"]\nallowed-ips = [\"10.77.0.{}/32\"]\n",
            index + 1,
            node.file("private.key").display(),
            nodes[other].name(),
            keys[other],
            nodes[other].host.ipv4,
            other + 1
        ));
    }
    let [a, b] = nodes;
    (a, b)
}

/// The address of a node of [`static_pair`], or the first IPv4 one of any node.
pub fn overlay_ipv4(node: &Node) -> IpAddr {
    let found = node.overlay().into_iter().find(IpAddr::is_ipv4);
    found.unwrap_or_else(|| panic!("{} has no overlay IPv4 address", node.name()))
}

/// Adds TURN servers to a node's file.
pub fn add_turn(node: &Node, coturn: &Coturn, transports: &[&str], secret: &str) {
    let file = node.file("turn.secret");
    std::fs::write(&file, format!("{secret}\n")).expect("the node's directory is writable");
    set_mode_600(&file);
    let servers: Vec<String> = transports
        .iter()
        .map(|transport| {
            format!(
                "{{ url = \"{}\", secret-file = \"{}\" }}",
                coturn.url(transport),
                file.display()
            )
        })
        .collect();
    let text = std::fs::read_to_string(node.file("farspan.toml")).unwrap_or_default();
    node.write_config(&format!(
        "{text}\n[relay]\nturn = [{}]\n",
        servers.join(", ")
    ));
}

/// Gives a file to its owner alone.
pub fn set_mode_600(file: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600)).expect("an own file");
}
