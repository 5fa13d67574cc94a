//! A flood through a real socket, beside somebody who says little. Needs root:
//! `cargo test -p data-plane --test fairness_netns`.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use common::{Node, packet};
use data_plane::Offload;
use netns::{Lab, PORT, counter, outer, peer, plan, secret, until};
use quinn_udp::{Transmit, UdpSocketState};

#[expect(dead_code, reason = "other tests use more of it")]
mod common;
#[expect(dead_code, reason = "the lab serves other tests too")]
mod netns;

/// Datagrams in one message of the flood, and their length.
const FLOOD: (usize, usize) = (45, 1452);
/// Packets of the one who says little.
const SAID: u32 = 400;

/// A peer of the engine in namespace a: it has a socket in b and no device.
struct Remote {
    node: Node,
    socket: UdpSocket,
    n: u8,
}

impl Remote {
    fn new(lab: &Lab, n: u8) -> Self {
        let address = SocketAddr::new(outer("b", false).ip(), PORT + u16::from(n));
        let socket = lab.inside("b", || UdpSocket::bind(address).expect("it is free"));
        let soon = Some(Duration::from_secs(10));
        socket.set_read_timeout(soon).expect("a timeout");
        let mut node = Node::new(&secret(n), &address.to_string());
        let hub = peer(1, Some(outer("a", false)));
        node.set_peer(secret(1).public(), hub, common::start());
        let mut remote = Self { node, socket, n };
        remote.say();
        let mut answer = [0; 256];
        let (len, from) = remote.socket.recv_from(&mut answer).expect("an answer");
        remote.node.receive(from, &answer[..len], common::start());
        remote.flush();
        remote
    }

    fn flush(&mut self) {
        self.node.turn(common::start());
        for (to, datagram) in self.node.take() {
            self.socket.send_to(&datagram, to).expect("there is room");
        }
    }

    /// Sends a packet to 10.0.0.1.
    fn say(&mut self) {
        let packet = packet(&format!("10.0.0.{}", self.n), "10.0.0.1", 32, self.n);
        self.node.send(&packet, common::start());
        self.flush();
    }

    /// Sends what must be opened to see that it is forged, as fast as the socket takes it.
    fn flood(mut self, stop: &AtomicBool) {
        self.say();
        let sealed = self.node.sent.last().expect("it was sent");
        let mut forged = vec![0x5a; FLOOD.1];
        forged[..8].copy_from_slice(&sealed[..8]);
        forged[8..16].copy_from_slice(&(1_u64 << 40).to_le_bytes());
        let bytes = forged.repeat(FLOOD.0);
        let state = UdpSocketState::new((&self.socket).into()).expect("a UDP socket");
        let transmit = Transmit {
            destination: outer("a", false),
            ecn: None,
            contents: &bytes,
            segment_size: Some(FLOOD.1),
            src_ip: None,
        };
        while !stop.load(Ordering::Relaxed) {
            let _ = state.try_send((&self.socket).into(), &transmit);
        }
    }
}

#[test]
fn a_peer_that_floods_does_not_drown_one_that_says_little() {
    let lab = Lab::new("fair");
    let (hub, _control) = lab.start("a", Offload::default()).expect("it starts");
    lab.ip("a", "link set fsdp0 up");
    hub.apply(&plan(1, &[(2, peer(2, None)), (3, peer(3, None))]));
    let (flooder, mut quiet) = (Remote::new(&lab, 2), Remote::new(&lab, 3));
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| flooder.flood(&stop));
        let cut = until(|| counter(&hub, "over_share") > 0);
        for _ in 0..SAID {
            quiet.say();
            thread::park_timeout(Duration::from_millis(1));
        }
        stop.store(true, Ordering::Relaxed);
        assert!(cut, "it was no flood: {:?}", hub.counters());
    });
    // The first words of both, the flooder's second, and what was said in the midst of the flood: of that some is
    // lost where the engine gets no processor for so long that the buffer runs full. Uncut, it is nearly all.
    let most = u64::from(3 + SAID / 2);
    assert!(
        until(|| counter(&hub, "tun_written") >= most),
        "of {SAID}: {:?}",
        hub.counters()
    );
}
