//! What comes from outside and is not a member's changes nothing, and is counted.

use std::io::{ErrorKind, Read};
use std::net::{IpAddr, SocketAddr, UdpSocket};

use socket2::{Domain, Protocol, Socket, Type};

use crate::lab::agent::PATIENCE;
use crate::lab::traffic::ping_once;
use crate::lab::wait::wait_until;
use crate::lab::{Lab, Nat, NatKind, Node};
use crate::scene::{founder, overlay_ipv4};

/// `ETH_P_ALL` in network byte order.
const EVERY_FRAME: i32 = 0x0003_u16.to_be() as i32;
/// Ethernet, IPv4 and UDP headers.
const HEADERS: usize = 14 + 20 + 8;
/// Datagrams of each sort.
const FLOOD: usize = 2000;

#[test]
fn garbage_and_probes_replayed_from_elsewhere_change_nothing_and_are_counted() {
    let lab = Lab::new();
    let mut hub = founder(&lab, lab.public_host("hub"));
    hub.start_with(&["--metrics-listen", "127.0.0.1:9100"]);
    hub.wait_answering();
    let mut home = Node::new(&lab, lab.site("home", Nat::new(NatKind::Prc)).host("home"));
    home.up();
    home.join(&hub);
    home.wait_direct("hub", PATIENCE);
    hub.wait_direct("home", PATIENCE);
    let port = hub.status().expect("a status")["node"]["listen_port"]
        .as_u64()
        .and_then(|port| u16::try_from(port).ok())
        .expect("a port");
    let target = SocketAddr::new(IpAddr::V4(hub.host.ipv4), port);

    let mut wire = lab.internet().enter(|| {
        Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(EVERY_FRAME)))
            .expect("root may listen")
    });
    wire.set_nonblocking(true).expect("a socket can be polled");
    // A restart makes the member probe at once.
    home.kill();
    home.up();
    let (probe, _) = wait_until("a probe of the member passes", PATIENCE, || {
        recorded(&mut wire, port).ok_or_else(|| "none yet".to_owned())
    });
    home.wait_direct("hub", PATIENCE);
    hub.wait_direct("home", PATIENCE);
    let before = view(&hub);
    let refused = refusals(&hub);

    let mallory = lab.public_host("mallory");
    mallory.namespace.enter(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a port is free");
        for number in 0..FLOOD {
            let mut forged = probe.clone();
            forged[8 + number % 12] ^= 0xff;
            let noise: Vec<u8> = (0..number % 1400)
                .map(|i| (i * 31 + number) as u8)
                .collect();
            for bytes in [&probe, &forged, &noise] {
                // A full queue refuses some; the rest is flood enough.
                let _ = socket.send_to(bytes, target);
            }
        }
    });
    wait_until("the refusals are counted", PATIENCE, || {
        let now = refusals(&hub);
        if now > refused + 100 {
            Ok(())
        } else {
            Err(format!("{refused} before, {now} after"))
        }
    });
    assert_eq!(view(&hub), before);
    home.wait_direct("hub", PATIENCE);
    wait_until("packets pass", PATIENCE, || {
        ping_once(&home.host.namespace, overlay_ipv4(&hub))
    });
}

/// Names, states and remotes of the peers.
fn view(node: &Node) -> Vec<String> {
    let status = node.status().expect("a status");
    let peers = status["peers"].as_array().cloned().unwrap_or_default();
    peers
        .iter()
        .map(|peer| {
            format!(
                "{} {} {}",
                peer["name"], peer["state"], peer["path"]["remote"]
            )
        })
        .collect()
}

/// The sum of all counters of refused datagrams.
fn refusals(node: &Node) -> u64 {
    let text = node
        .host
        .namespace
        .output("curl", &["-sf", "http://127.0.0.1:9100/metrics"]);
    text.lines()
        .filter(|line| line.contains("event=\"refused-"))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}

/// The payload of the next Binding request to `port` on the wire.
fn recorded(wire: &mut Socket, port: u16) -> Option<Vec<u8>> {
    let mut frame = [0; 2048];
    loop {
        match wire.read(&mut frame) {
            Ok(length) => {
                let udp = frame.get(..length).filter(|frame| {
                    frame.len() > HEADERS + 20
                        && frame[12..15] == [0x08, 0x00, 0x45]
                        && frame[23] == 17
                        && frame[36..38] == port.to_be_bytes()
                });
                let binding = udp.map(|frame| &frame[HEADERS..]).filter(|bytes| {
                    bytes[..2] == [0, 1] && bytes[4..8] == [0x21, 0x12, 0xa4, 0x42]
                });
                if let Some(bytes) = binding {
                    return Some(bytes.to_vec());
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
}
