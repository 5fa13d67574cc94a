//! UDP sockets beside the tunnel's own: one socket for both families each, IPv4 told apart at this edge.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket as StdUdpSocket};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::sync::Arc;

use mesh_types::{SocketId, Transmit, consts};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, SockaddrIn6, SockaddrStorage,
    recvmsg, sendmsg, setsockopt, sockopt,
};
use socket2::{Domain, Protocol, SockFilter, SockRef, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::{debug, trace};

use super::Event;

/// A datagram and where it came in.
#[derive(Debug)]
pub struct Datagram {
    /// Which socket.
    pub socket: SocketId,
    /// Our address it was sent to.
    pub local: SocketAddr,
    /// Who sent it.
    pub remote: SocketAddr,
    /// What.
    pub bytes: Vec<u8>,
}

/// An open socket; its reader stops when this is dropped.
#[derive(Debug)]
pub struct Port {
    id: SocketId,
    use_of: Use,
    port: u16,
    both: bool,
    events: mpsc::Sender<Event>,
}

/// Who reads a socket.
#[derive(Debug)]
enum Use {
    /// A task of ours.
    Own(Arc<UdpSocket>, JoinHandle<()>),
    /// Somebody it was lent to.
    Lent(Arc<StdUdpSocket>),
}

impl AsFd for Use {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Own(socket, _) => socket.as_fd(),
            Self::Lent(socket) => socket.as_fd(),
        }
    }
}

/// Where a socket is bound.
#[derive(Debug, Clone, Copy)]
pub enum Binding<'a> {
    /// To any address, on a port of the system's choice; its packets carry the mark that escapes the mesh.
    Underlay {
        /// The mark.
        fwmark: u32,
    },
    /// The same, on this port. Only Binding indications are read: the rest is other members' and not for us.
    Relay {
        /// The mark.
        fwmark: u32,
        /// The port.
        port: u16,
    },
    /// To the overlay device, on the control port.
    Overlay {
        /// The device.
        interface: &'a str,
    },
}

impl Port {
    /// Opens a socket and reads it in a task of its own.
    pub fn open(
        id: SocketId,
        binding: Binding<'_>,
        events: mpsc::Sender<Event>,
    ) -> io::Result<Self> {
        let (socket, both) = match bind(Domain::IPV6, binding) {
            Ok(socket) => (socket, true),
            // A kernel without IPv6.
            Err(error) if exhausted(&error) || error.kind() == io::ErrorKind::AddrInUse => {
                return Err(error);
            }
            Err(_) => (bind(Domain::IPV4, binding)?, false),
        };
        let port = socket.local_addr()?.port();
        Ok(Self {
            id,
            use_of: watch(id, socket, port, &events)?,
            port,
            both,
            events,
        })
    }

    /// Gives the socket to somebody who reads it from now on; it may still be sent from.
    pub fn lend(&mut self) -> io::Result<Arc<StdUdpSocket>> {
        match &self.use_of {
            Use::Lent(socket) => Ok(Arc::clone(socket)),
            Use::Own(socket, reader) => {
                let lent: StdUdpSocket = socket.as_fd().try_clone_to_owned()?.into();
                reader.abort();
                if let SocketId::Relay(_) = self.id {
                    // The filter is there unless attaching it failed.
                    _ = SockRef::from(&lent).detach_filter();
                }
                let lent = Arc::new(lent);
                self.use_of = Use::Lent(Arc::clone(&lent));
                Ok(lent)
            }
        }
    }

    /// Reads the socket again, if it was lent.
    pub fn take_back(&mut self) -> io::Result<()> {
        if let Use::Lent(socket) = &self.use_of {
            self.use_of = watch(self.id, socket.try_clone()?, self.port, &self.events)?;
        }
        Ok(())
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Sends at once or not at all; control datagrams are repeated by those who send them.
    pub fn send(&self, transmit: &Transmit) -> io::Result<()> {
        let source = transmit.source.map(|ip| info(ip, self.both));
        let ttl = transmit.ttl.map(i32::from);
        let mut messages = Vec::new();
        match &source {
            Some(Info::V4(info)) => messages.push(ControlMessage::Ipv4PacketInfo(info)),
            Some(Info::V6(info)) => messages.push(ControlMessage::Ipv6PacketInfo(info)),
            None => {}
        }
        if let Some(ttl) = &ttl {
            messages.push(if transmit.destination.is_ipv4() {
                ControlMessage::Ipv4Ttl(ttl)
            } else {
                ControlMessage::Ipv6HopLimit(ttl)
            });
        }
        let to = match transmit.destination {
            SocketAddr::V4(to) if self.both => {
                SockaddrStorage::from(SocketAddr::new(to.ip().to_ipv6_mapped().into(), to.port()))
            }
            to @ (SocketAddr::V4(_) | SocketAddr::V6(_)) => SockaddrStorage::from(to),
        };
        // Not through the runtime: a fresh socket is not yet known to be writable there.
        sendmsg(
            self.use_of.as_fd().as_raw_fd(),
            &[IoSlice::new(&transmit.bytes)],
            &messages,
            MsgFlags::MSG_DONTWAIT,
            Some(&to),
        )?;
        Ok(())
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        match &self.use_of {
            Use::Own(_, reader) => reader.abort(),
            Use::Lent(_) => {}
        }
    }
}

/// Reads a socket in a task of its own.
fn watch(
    id: SocketId,
    socket: StdUdpSocket,
    port: u16,
    events: &mpsc::Sender<Event>,
) -> io::Result<Use> {
    if let SocketId::Relay(_) = id
        && let Err(error) = SockRef::from(&socket).attach_filter(&only_indications())
    {
        debug!(port, %error, "Failed to filter a relay port");
    }
    let socket = Arc::new(UdpSocket::from_std(socket)?);
    let reader = tokio::spawn(read(id, Arc::clone(&socket), port, events.clone()));
    Ok(Use::Own(socket, reader))
}

/// Has the process, or the system, no descriptors or memory for another socket?
pub fn exhausted(error: &io::Error) -> bool {
    use nix::libc::{EMFILE, ENFILE, ENOBUFS, ENOMEM};
    matches!(
        error.raw_os_error(),
        Some(EMFILE | ENFILE | ENOBUFS | ENOMEM)
    )
}

/// A Binding indication (RFC 8489 5), the UDP header before it: of all that comes to a relay port, only this is for
/// the agent, and a flood of the rest is not to wake it.
fn only_indications() -> [SockFilter; 6] {
    const LOAD_HALF: u16 = 0x28;
    const LOAD_WORD: u16 = 0x20;
    const JUMP_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    [
        SockFilter::new(LOAD_HALF, 0, 0, 8),
        SockFilter::new(JUMP_EQUAL, 0, 3, INDICATION.into()),
        SockFilter::new(LOAD_WORD, 0, 0, 12),
        SockFilter::new(JUMP_EQUAL, 0, 1, COOKIE),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
        SockFilter::new(RETURN, 0, 0, 0),
    ]
}

const INDICATION: u16 = 0x0011;
const COOKIE: u32 = 0x2112_a442;

fn is_indication(bytes: &[u8]) -> bool {
    bytes.len() >= 20
        && bytes[..2] == INDICATION.to_be_bytes()
        && bytes[4..8] == COOKIE.to_be_bytes()
}

enum Info {
    V4(nix::libc::in_pktinfo),
    V6(nix::libc::in6_pktinfo),
}

fn info(ip: IpAddr, both: bool) -> Info {
    match ip {
        IpAddr::V4(ip) if !both => Info::V4(nix::libc::in_pktinfo {
            ipi_ifindex: 0,
            ipi_spec_dst: nix::libc::in_addr {
                s_addr: u32::from_ne_bytes(ip.octets()),
            },
            ipi_addr: nix::libc::in_addr { s_addr: 0 },
        }),
        IpAddr::V4(ip) => info_v6(ip.to_ipv6_mapped()),
        IpAddr::V6(ip) => info_v6(ip),
    }
}

fn info_v6(ip: Ipv6Addr) -> Info {
    Info::V6(nix::libc::in6_pktinfo {
        ipi6_addr: nix::libc::in6_addr {
            s6_addr: ip.octets(),
        },
        ipi6_ifindex: 0,
    })
}

fn bind(domain: Domain, binding: Binding<'_>) -> io::Result<StdUdpSocket> {
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    let any: IpAddr = if domain == Domain::IPV6 {
        socket.set_only_v6(false)?;
        setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
        Ipv6Addr::UNSPECIFIED.into()
    } else {
        setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
        std::net::Ipv4Addr::UNSPECIFIED.into()
    };
    let port = match binding {
        Binding::Underlay { fwmark } => {
            socket.set_mark(fwmark)?;
            // All control datagrams are short, but for the probes of the path MTU.
            data_plane::forbid_fragments(socket.as_fd(), domain == Domain::IPV6)?;
            0
        }
        Binding::Relay { fwmark, port } => {
            socket.set_mark(fwmark)?;
            port
        }
        Binding::Overlay { interface } => {
            socket.bind_device(Some(interface.as_bytes()))?;
            consts::CONTROL_PORT
        }
    };
    socket.bind(&SocketAddr::new(any, port).into())?;
    Ok(socket.into())
}

async fn read(id: SocketId, socket: Arc<UdpSocket>, port: u16, events: mpsc::Sender<Event>) {
    let relay = matches!(id, SocketId::Relay(_));
    loop {
        let received = socket
            .async_io(Interest::READABLE, || receive(id, &socket, port))
            .await;
        match received {
            Ok(Some(datagram)) if relay && !is_indication(&datagram.bytes) => {}
            Ok(Some(datagram)) => {
                if events.send(Event::Datagram(datagram)).await.is_err() {
                    return;
                }
            }
            Ok(None) => trace!(?id, "Datagram too long"),
            // ICMP errors of what was sent before arrive here; the socket goes on.
            Err(error) => {
                debug!(?id, %error, "Failed to receive");
                if error.raw_os_error() == Some(nix::libc::EBADF) {
                    return;
                }
            }
        }
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the kernel's control messages are an open set"
)]
fn receive(id: SocketId, socket: &UdpSocket, port: u16) -> io::Result<Option<Datagram>> {
    let mut bytes = [0; 2048];
    let mut parts = [IoSliceMut::new(&mut bytes)];
    // Room for more than what is asked for: whom a socket was lent to may have asked for more.
    let mut space = nix::cmsg_space!([u8; 256]);
    let got = recvmsg::<SockaddrStorage>(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut space),
        MsgFlags::MSG_DONTWAIT,
    )?;
    let mut local = None;
    for message in got.cmsgs()? {
        match message {
            ControlMessageOwned::Ipv4PacketInfo(info) => {
                local = Some(IpAddr::from(info.ipi_addr.s_addr.to_ne_bytes()));
            }
            ControlMessageOwned::Ipv6PacketInfo(info) => {
                local = Some(IpAddr::from(info.ipi6_addr.s6_addr).to_canonical());
            }
            _ => {}
        }
    }
    let remote = got.address.as_ref().and_then(address);
    let (length, cut) = (got.bytes, got.flags.contains(MsgFlags::MSG_TRUNC));
    let (Some(local), Some(remote), false) = (local, remote, cut) else {
        return Ok(None);
    };
    Ok(Some(Datagram {
        socket: id,
        local: SocketAddr::new(local, port),
        remote,
        bytes: bytes[..length].to_vec(),
    }))
}

fn address(storage: &SockaddrStorage) -> Option<SocketAddr> {
    let from_v4 = |v4: &SockaddrIn| SocketAddr::new(v4.ip().into(), v4.port());
    let from_v6 = |v6: &SockaddrIn6| SocketAddr::new(IpAddr::V6(v6.ip()).to_canonical(), v6.port());
    storage
        .as_sockaddr_in()
        .map(from_v4)
        .or_else(|| storage.as_sockaddr_in6().map(from_v6))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn both_families_arrive_as_what_they_are() {
        let (events, mut received) = mpsc::channel(4);
        // No mark: setting one needs rights that this test must not need.
        let socket = Port::open(
            SocketId::Main,
            Binding::Underlay { fwmark: 0 },
            events.clone(),
        );
        let Ok(socket) = socket else { return };
        let other =
            Port::open(SocketId::Alternate, Binding::Underlay { fwmark: 0 }, events).unwrap();
        let mut targets = vec![IpAddr::from([127, 0, 0, 1])];
        if other.both {
            targets.push(Ipv6Addr::LOCALHOST.into());
        }
        for ip in targets {
            let destination = SocketAddr::new(ip, other.port());
            let transmit = Transmit {
                socket: SocketId::Main,
                source: Some(ip),
                destination,
                ttl: Some(9),
                bytes: b"hello".to_vec(),
            };
            if socket.send(&transmit).is_err() && ip.is_ipv6() {
                continue; // no IPv6 on this host
            }
            let Some(Event::Datagram(datagram)) = received.recv().await else {
                panic!()
            };
            assert_eq!(datagram.socket, SocketId::Alternate);
            assert_eq!(datagram.local, destination);
            assert_eq!(datagram.remote, SocketAddr::new(ip, socket.port()));
            assert_eq!(datagram.bytes, b"hello");
        }
    }
}
