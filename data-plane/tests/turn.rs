//! Links to a TURN server and the loopback addresses of peers behind it, with a stand-in for the server.
#![expect(
    clippy::unwrap_used,
    reason = "a failed step of the set-up shall end the test"
)]

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use data_plane::{Turn, TurnEvent};
use mesh_types::SocketId;
use mesh_types::plan::{Proxy, TurnLink};
use mesh_types::report::TurnLinkState;
use mesh_types::turn::TurnTransport;

const SOON: Duration = Duration::from_secs(10);

struct Bench {
    turn: Turn,
    events: Receiver<TurnEvent>,
    link: TurnLink,
    proxy: Proxy,
    wireguard: UdpSocket,
}

impl Bench {
    fn new(transport: TurnTransport, server: SocketAddr, last: u8) -> Self {
        let (sender, events) = channel();
        let wireguard = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        wireguard.set_read_timeout(Some(SOON)).unwrap();
        let mut bench = Self {
            turn: Turn::new(0, Box::new(move |event| _ = sender.send(event))),
            events,
            link: TurnLink {
                number: 7,
                server,
                transport,
                name: "turn".to_owned(),
                from: None,
            },
            proxy: Proxy {
                loopback: SocketAddr::from(([127, 128, 200, last], 20_479)),
                link: 7,
                channel: 0x4001,
            },
            wireguard,
        };
        bench.apply();
        bench
    }

    fn apply(&mut self) {
        let port = self.wireguard.local_addr().unwrap().port();
        let (links, proxies) = ([self.link.clone()].into(), [self.proxy].into());
        self.turn.apply(&links, &proxies, port).unwrap();
    }

    fn state(&self) -> TurnLinkState {
        match self.events.recv_timeout(SOON).unwrap() {
            TurnEvent::State { number: 7, state } => state,
            other @ (TurnEvent::State { .. } | TurnEvent::Control(_)) => panic!("{other:?}"),
        }
    }

    fn reason(&self) -> String {
        match self.state() {
            TurnLinkState::Down { reason, .. } => reason,
            TurnLinkState::Up => panic!("it came up"),
        }
    }

    fn control(&self) -> Vec<u8> {
        match self.events.recv_timeout(SOON).unwrap() {
            TurnEvent::Control(datagram) => {
                assert_eq!(datagram.socket, SocketId::Turn(7));
                datagram.bytes
            }
            other @ TurnEvent::State { .. } => panic!("{other:?}"),
        }
    }

    fn heard(&self) -> (Vec<u8>, SocketAddr) {
        let mut buffer = [0; 2048];
        let (length, from) = self.wireguard.recv_from(&mut buffer).unwrap();
        (buffer[..length].to_vec(), from)
    }

    fn say(&self, bytes: &[u8]) {
        self.wireguard.send_to(bytes, self.proxy.loopback).unwrap();
    }
}

fn binding() -> Vec<u8> {
    let mut bytes = vec![0; 20];
    bytes[..8].copy_from_slice(&[0x00, 0x01, 0, 0, 0x21, 0x12, 0xa4, 0x42]);
    bytes
}

fn framed(content: &[u8]) -> Vec<u8> {
    [&[0x40, 0x01, 0, content.len() as u8], content].concat()
}

#[test]
fn datagrams_of_the_tunnel_travel_as_channel_data_and_back_and_probes_go_up() {
    let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    server.set_read_timeout(Some(SOON)).unwrap();
    let mut bench = Bench::new(TurnTransport::Udp, server.local_addr().unwrap(), 1);
    assert_eq!(bench.state(), TurnLinkState::Up);
    let mut buffer = [0; 2048];

    bench.say(b"sealed");
    let (length, link) = server.recv_from(&mut buffer).unwrap();
    assert_eq!(buffer[..length], framed(b"sealed"));
    server.send_to(&framed(b"opened"), link).unwrap();
    assert_eq!(bench.heard(), (b"opened".to_vec(), bench.proxy.loopback));

    server.send_to(&framed(&binding()), link).unwrap();
    assert_eq!(bench.control(), framed(&binding()));
    server.send_to(&binding(), link).unwrap();
    assert_eq!(bench.control(), binding());
    assert!(bench.turn.send(7, b"as it is"));
    let (length, _) = server.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"as it is");

    // Nobody but the tunnel speaks for it.
    let other = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    _ = other.send_to(b"forged", bench.proxy.loopback);
    bench.say(b"next");
    let (length, _) = server.recv_from(&mut buffer).unwrap();
    assert_eq!(buffer[..length], framed(b"next"));

    // The tunnel has moved to another port.
    bench.wireguard = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    bench.wireguard.set_read_timeout(Some(SOON)).unwrap();
    bench.apply();
    bench.say(b"moved");
    let (length, _) = server.recv_from(&mut buffer).unwrap();
    assert_eq!(buffer[..length], framed(b"moved"));

    bench
        .turn
        .apply(&BTreeSet::new(), &BTreeSet::new(), 1)
        .unwrap();
    assert!(!bench.turn.send(7, b"gone"));
}

fn accepted(listener: &TcpListener) -> TcpStream {
    let (stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

#[test]
fn a_stream_is_padded_and_cut_wherever_it_is_torn() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let bench = Bench::new(TurnTransport::Tcp, listener.local_addr().unwrap(), 2);
    let mut server = accepted(&listener);
    assert_eq!(bench.state(), TurnLinkState::Up);

    bench.say(b"sealed");
    let mut got = [0; 12];
    server.read_exact(&mut got).unwrap();
    assert_eq!(got[..10], framed(b"sealed"));
    let stream = [framed(b"opened").as_slice(), &[0; 2], &framed(&binding())].concat();
    for byte in &stream {
        server.write_all(&[*byte]).unwrap();
    }
    assert_eq!(bench.heard().0, b"opened");
    assert_eq!(bench.control(), framed(&binding()));

    drop(server);
    assert_eq!(bench.reason(), "it closed the connection");
}

#[test]
fn what_is_no_turn_server_ends_the_link() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let bench = Bench::new(TurnTransport::Tcp, listener.local_addr().unwrap(), 3);
    let mut server = accepted(&listener);
    assert_eq!(bench.state(), TurnLinkState::Up);
    server.write_all(&[0xc0; 64]).unwrap();
    assert_eq!(bench.reason(), "what it says is not TURN");

    let gone = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .unwrap()
        .local_addr()
        .unwrap();
    let bench = Bench::new(TurnTransport::Tcp, gone, 4);
    assert_eq!(bench.reason(), "nothing listens on that port");
}

#[test]
fn a_server_that_takes_nothing_loses_datagrams_and_holds_nobody_up() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let bench = Bench::new(TurnTransport::Tcp, listener.local_addr().unwrap(), 5);
    let mut server = accepted(&listener);
    assert_eq!(bench.state(), TurnLinkState::Up);
    for _ in 0..20_000 {
        bench.say(&[7; 1000]);
    }
    // The other way is open all the time.
    let stream = [framed(b"opened").as_slice(), &[0; 2]].concat();
    server.write_all(&stream).unwrap();
    assert_eq!(bench.heard().0, b"opened");
    let mut got = [0; 1004];
    server.read_exact(&mut got).unwrap();
    assert_eq!(got[..4], [0x40, 0x01, 0x03, 0xe8]);
}

#[test]
fn a_peer_is_connected_to_from_the_port_that_the_server_sees() {
    let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let peer = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let mut bench = Bench::new(TurnTransport::Tcp, server.local_addr().unwrap(), 6);
    let (_kept, seen) = server.accept().unwrap();
    assert_eq!(bench.state(), TurnLinkState::Up);
    let first = bench.link.clone();

    let link = |number, from| TurnLink {
        number,
        server: peer.local_addr().unwrap(),
        transport: TurnTransport::Tcp,
        name: String::new(),
        from: Some(from),
    };
    let proxy = Proxy {
        loopback: SocketAddr::from(([127, 128, 201, 6], 20_479)),
        link: 8,
        ..bench.proxy
    };
    bench.proxy = proxy;
    let port = bench.wireguard.local_addr().unwrap().port();
    let links = [first.clone(), link(8, 7)].into();
    bench.turn.apply(&links, &[proxy].into(), port).unwrap();
    let (mut stream, from) = peer.accept().unwrap();
    assert_eq!(from, seen);
    let event = bench.events.recv_timeout(SOON).unwrap();
    let up = TurnLinkState::Up;
    assert!(
        matches!(&event, TurnEvent::State { number: 8, state } if *state == up),
        "{event:?}"
    );
    stream.write_all(&framed(b"peer")).unwrap();
    assert_eq!(bench.heard(), (b"peer".to_vec(), proxy.loopback));
    bench.say(b"back");
    let mut got = [0; 8];
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.read_exact(&mut got).unwrap();
    assert_eq!(got[..], framed(b"back"));

    // Without the server's link there is no port that anybody has seen.
    let links = [first, link(9, 4)].into();
    bench.turn.apply(&links, &BTreeSet::new(), port).unwrap();
    let event = bench.events.recv_timeout(SOON).unwrap();
    assert!(
        matches!(&event, TurnEvent::State { number: 9, state } if *state != up),
        "{event:?}"
    );
}
