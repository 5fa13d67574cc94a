//! What a NAT really does, measured by sockets on both sides of it, as RFC 5780 section 4 does by STUN.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::internet::{Host, Lab};
use super::wait::{pause, wait_until};

/// How the public address of one inside socket depends on the destination (RFC 4787 section 4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// Endpoint-independent.
    Eim,
    /// Address dependent.
    Adm,
    /// Address and port dependent.
    Apdm,
}

/// Whom a mapping admits (RFC 4787 section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filtering {
    /// Everybody.
    Eif,
    /// Addresses the inside socket has sent to.
    Adf,
    /// Addresses and ports the inside socket has sent to.
    Apdf,
}

/// What was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Behaviour {
    /// The mapping behaviour.
    pub mapping: Mapping,
    /// The filtering behaviour.
    pub filtering: Filtering,
    /// Whether the public port is the inside socket's.
    pub preserving: bool,
}

/// An answer inside a lab takes microseconds, on a busy machine longer.
const SILENCE: Duration = Duration::from_millis(300);
/// Silence is believed after as many.
const TRIES: u32 = 3;
/// A link that was just made drops packets until the kernel has noticed it, seconds on a busy machine.
const LINK_UP: u32 = 30;
/// Numbers packets, so that a late one is told from the one that is waited for.
static PACKETS: AtomicU32 = AtomicU32::new(0);

/// A server with two addresses and two ports, on a public host.
pub struct Server {
    sockets: [[UdpSocket; 2]; 2],
}

impl Server {
    /// Opens the four sockets.
    pub fn open(lab: &Lab, host: &Host) -> Self {
        let addresses = [host.ipv4, lab.second_address(host)];
        let sockets = addresses.map(|address| [3478, 3479].map(|port| bind(host, address, port)));
        Self { sockets }
    }

    /// Measures what lies between `client` and this server.
    pub fn measure(&self, client: &Host, port: u16) -> Behaviour {
        let socket = bind(client, client.ipv4, port);
        let first = self.mapped(&socket, 0, 0);
        let [stranger, other_port] = [&self.sockets[1][0], &self.sockets[0][1]]
            .map(|server| reaches(server, first, &socket));
        let filtering = match (stranger, other_port) {
            (true, _) => Filtering::Eif,
            (false, true) => Filtering::Adf,
            (false, false) => Filtering::Apdf,
        };
        let same_address = self.mapped(&socket, 0, 1);
        let other_address = self.mapped(&socket, 1, 0);
        let mapping = match (first == same_address, first == other_address) {
            (true, true) => Mapping::Eim,
            (true, false) => Mapping::Adm,
            (false, _) => Mapping::Apdm,
        };
        Behaviour {
            mapping,
            filtering,
            preserving: first.port() == port,
        }
    }

    /// Whether a packet of `other` to the public mapping of `client` comes back in through the NAT.
    pub fn hairpins(&self, client: &Host, other: &Host, port: u16) -> bool {
        let (inside, sender) = (
            bind(client, client.ipv4, port),
            bind(other, other.ipv4, port + 1),
        );
        let mapped = self.mapped(&inside, 0, 0);
        // The sender's own mapping must exist: a NAT knows nobody who never sent.
        self.mapped(&sender, 0, 0);
        reaches(&sender, mapped, &inside)
    }

    /// The public address of a port of `client`.
    pub fn public_address_of(&self, client: &Host, port: u16) -> SocketAddr {
        self.mapped(&bind(client, client.ipv4, port), 0, 0)
    }

    /// Sends a packet that nobody asked for, until the link has carried one.
    pub fn early(&self, to: SocketAddr) {
        for _ in 0..LINK_UP {
            self.sockets[0][0]
                .send_to(b"early", to)
                .unwrap_or_else(|error| panic!("send to {to}: {error}"));
            pause(SILENCE / 10);
        }
    }

    fn mapped(&self, client: &UdpSocket, address: usize, port: usize) -> SocketAddr {
        let server = &self.sockets[address][port];
        let destination = server.local_addr().expect("a bound socket has an address");
        delivered(client, destination, server, LINK_UP).expect("the NAT lets packets out")
    }
}

fn bind(host: &Host, address: Ipv4Addr, port: u16) -> UdpSocket {
    host.namespace.enter(|| {
        // A process that another test starts just now holds a copy of a closed socket until it executes.
        let (socket, _) = wait_until("the port is free", Duration::from_secs(5), || {
            UdpSocket::bind((address, port)).map_err(|error| error.to_string())
        });
        socket
            .set_read_timeout(Some(SILENCE))
            .expect("a timeout can be set");
        socket
    })
}

fn reaches(from: &UdpSocket, to: SocketAddr, at: &UdpSocket) -> bool {
    delivered(from, to, at, TRIES).is_some()
}

/// Sends until a packet arrives, and returns the source it arrives from.
fn delivered(from: &UdpSocket, to: SocketAddr, at: &UdpSocket, tries: u32) -> Option<SocketAddr> {
    let number = PACKETS.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    (0..tries).find_map(|_| {
        from.send_to(&number, to)
            .unwrap_or_else(|error| panic!("send to {to}: {error}"));
        let mut buffer = [0; 64];
        loop {
            match at.recv_from(&mut buffer) {
                Ok((length, source)) if buffer[..length] == number => return Some(source),
                // A late one of an earlier question.
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => panic!("receive: {error}"),
            }
        }
    })
}
