//! An ordinary WireGuard device takes part through the node that lists it.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Child, Stdio};

use crate::lab::agent::PATIENCE;
use crate::lab::netns::{Namespace, feed};
use crate::lab::traffic::ping_once;
use crate::lab::wait::wait_until;
use crate::lab::{Lab, Nat, NatKind, Node};
use crate::scene::overlay_ipv4;

/// Set by `scripts/test`: wireguard-go or boringtun-cli.
const PROGRAM: &str = "FARSPAN_PLAIN_WIREGUARD";

/// The phone's address in the mesh.
const PHONE: &str = "10.77.200.9";

struct Device {
    name: String,
    process: Child,
}

impl Device {
    fn start(namespace: &Namespace) -> Self {
        let program = std::env::var(PROGRAM).unwrap_or_else(|_| {
            panic!("{PROGRAM} names no WireGuard program: run this test by scripts/test, which builds one")
        });
        let name = format!("fs{}", std::process::id());
        let mut command = namespace.command(&program);
        if program.ends_with("boringtun-cli") {
            command.args(["--foreground", "--disable-drop-privileges"]);
        }
        command
            .arg(&name)
            .env("WG_PROCESS_FOREGROUND", "1")
            .env("LOG_LEVEL", "error");
        let process = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("the program can be started");
        let device = Self { name, process };
        wait_until("the plain device exists", PATIENCE, || {
            let links = namespace.output("ip", &["-o", "link"]);
            if links.contains(&device.name) && device.socket().exists() {
                Ok(())
            } else {
                Err(links)
            }
        });
        device
    }

    fn socket(&self) -> PathBuf {
        PathBuf::from(format!("/var/run/wireguard/{}.sock", self.name))
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_file(self.socket());
    }
}

#[test]
fn a_plain_wireguard_device_reaches_every_node_and_is_reached_by_all() {
    let lab = Lab::new();
    let mut hub = Node::new(&lab, lab.public_host("hub"));
    hub.host.namespace.sysctl("net/ipv4/ip_forward", "1");
    // The node that lists the phone carries its address for the others.
    hub.ok(&["init", "--routes", &format!("{PHONE}/32")]);
    hub.up();
    let mut paris =
        Node::new(&lab, lab.site("west", Nat::new(NatKind::Prc)).host("paris")).with_pod(&lab, 1);
    paris.up();
    paris.join(&hub);
    paris.wait_direct("hub", PATIENCE);

    let phone = lab.site("mobile", Nat::new(NatKind::Prc)).host("phone");
    let device = Device::start(&phone.namespace);
    let key = hub.ok(&["key", "gen"]);
    let public =
        String::from_utf8(hub.verb(&["key", "public"], &key).stdout).expect("keys are ASCII");
    let range = format!("{PHONE}/32");
    hub.ok(&[
        "peer",
        "add",
        "phone",
        "--public-key",
        public.trim(),
        "--allowed-ips",
        &range,
        "--plain",
    ]);
    let status = hub.status().expect("the hub answers");
    let hub_key = status["node"]["public_key"].as_str().unwrap_or_default();
    let endpoint = format!("{}:{}", hub.host.ipv4, status["node"]["listen_port"]);
    let config = format!(
        "[Interface]\nPrivateKey = {}\n[Peer]\nPublicKey = {hub_key}\nEndpoint = {endpoint}\n\
         AllowedIPs = 10.77.0.0/16, 10.244.0.0/16\nPersistentKeepalive = 25\n",
        key.trim()
    );
    let name = &device.name;
    feed(
        phone
            .namespace
            .command("wg")
            .args(["setconf", name, "/dev/stdin"]),
        &config,
    );
    phone.namespace.ip(&format!(
        "addr add {PHONE}/32 dev {name}\nlink set {name} mtu 1420 up\n\
         route add 10.77.0.0/16 dev {name}\nroute add 10.244.0.0/16 dev {name}"
    ));
    let nodes = [
        overlay_ipv4(&hub),
        overlay_ipv4(&paris),
        IpAddr::V4(paris.pod().ipv4),
    ];
    for address in nodes {
        wait_until(&format!("the phone reaches {address}"), PATIENCE, || {
            ping_once(&phone.namespace, address)
        });
    }
    let own = PHONE.parse().expect("an address");
    for place in [
        &hub.host.namespace,
        &paris.host.namespace,
        &paris.pod().namespace,
    ] {
        wait_until(
            &format!("{} reaches the phone", place.name()),
            PATIENCE,
            || ping_once(place, own),
        );
    }
}
