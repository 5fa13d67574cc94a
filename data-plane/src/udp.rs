//! The UDP port: one socket a family, both on the same port.
#![expect(unsafe_code, reason = "two socket options have no safe wrapper")]

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;

use mesh_types::consts::MTU_PROBE_MIN;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{self, ControlMessage, MsgFlags, SockaddrStorage, setsockopt, sockopt};
use parking_lot::{Mutex, MutexGuard};
use quinn_udp::{RecvMeta, Transmit, UdpSocketState};
use socket2::{Domain, Protocol, Socket, Type};

use crate::engine::EngineError;
use crate::outbox::Destination;
use crate::sender::Port;

/// Socket buffers, bytes: a few turns of 256 KiB each way, and bursts while the worker sleeps.
const BUFFER: usize = 4 * 1024 * 1024;
/// How long a full socket buffer may hold the worker, in each flush.
const BUSY_WAIT_MS: u16 = 5;

/// A socket, and what it can do.
pub(crate) struct Family {
    v6: bool,
    socket: Arc<UdpSocket>,
    state: UdpSocketState,
    /// The kernel knows segmentation offload. One that does not takes the request for none, and sends all segments
    /// as one datagram.
    segments: bool,
}

/// A socket's memory, bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    /// What came and was not received yet.
    pub received: u32,
    /// The most of it.
    pub receive_buffer: u32,
    /// What was sent and has not left yet.
    pub sent: u32,
    /// The most of it.
    pub send_buffer: u32,
    /// What was lost because the receive buffer was full, messages.
    pub dropped: u32,
}

/// The bound port.
pub(crate) struct Sockets {
    port: u16,
    v4: Family,
    v6: Option<Family>,
    segment: bool,
    /// Held while a socket does not fragment.
    whole: Mutex<()>,
}

impl Sockets {
    /// Binds both families; 0 takes a port that is free in both. Without IPv6 there is only one socket.
    pub fn bind(
        port: u16,
        fwmark: u32,
        segment: bool,
        coalesce: bool,
    ) -> Result<Self, EngineError> {
        let failed = |source: io::Error| {
            if source.kind() == io::ErrorKind::AddrInUse {
                EngineError::PortInUse(port)
            } else {
                EngineError::Udp { port, source }
            }
        };
        let mut tries = if port == 0 { 16 } else { 1 };
        loop {
            tries -= 1;
            let v4 = Family::bind(Domain::IPV4, port, fwmark, coalesce).map_err(failed)?;
            let got = v4.socket.local_addr().map_err(failed)?.port();
            let v6 = match Family::bind(Domain::IPV6, got, fwmark, coalesce) {
                Ok(family) => Some(family),
                Err(error) if no_ipv6(&error) => None,
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries > 0 => continue,
                Err(error) => return Err(failed(error)),
            };
            return Ok(Self {
                port: got,
                v4,
                v6,
                segment,
                whole: Mutex::new(()),
            });
        }
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The sockets, IPv4 first.
    pub fn fds(&self) -> [Option<BorrowedFd<'_>>; 2] {
        let v6 = self.v6.as_ref().map(|family| family.socket.as_fd());
        [Some(self.v4.socket.as_fd()), v6]
    }

    /// Marks all datagrams sent from now on.
    pub fn set_mark(&self, fwmark: u32) -> io::Result<()> {
        for family in [Some(&self.v4), self.v6.as_ref()].into_iter().flatten() {
            socket2::SockRef::from(&*family.socket).set_mark(fwmark)?;
        }
        Ok(())
    }

    /// Receives what is there, several datagrams a buffer where the kernel coalesced them.
    pub fn receive(
        &self,
        v6: bool,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> io::Result<usize> {
        let family = self.of(v6).ok_or(io::ErrorKind::WouldBlock)?;
        family.receive(buffers, meta)
    }

    /// The socket of a family.
    pub fn of(&self, v6: bool) -> Option<&Family> {
        if v6 { self.v6.as_ref() } else { Some(&self.v4) }
    }

    /// Messages of the kernel that were lost because a receive buffer was full, since the port was bound. It
    /// counts those modulo 2^32.
    pub fn overrun(&self) -> u64 {
        let families = [Some(&self.v4), self.v6.as_ref()];
        let memory = families.into_iter().flatten().map(Family::memory);
        memory
            .flatten()
            .map(|memory| u64::from(memory.dropped))
            .sum()
    }

    /// May messages be segmented by the kernel?
    pub fn segment(&self) -> bool {
        self.segment
    }

    /// The socket for a destination.
    pub fn family(&self, remote: SocketAddr) -> io::Result<&Family> {
        if remote.is_ipv4() {
            Ok(&self.v4)
        } else {
            self.v6.as_ref().ok_or_else(|| {
                io::Error::new(
                    io::ErrorKind::Unsupported,
                    "this host has no IPv6, so nothing can be sent to an IPv6 address",
                )
            })
        }
    }

    /// Sends one datagram from any thread.
    pub fn send_control(
        &self,
        source: Option<IpAddr>,
        destination: SocketAddr,
        ttl: Option<u8>,
        bytes: &[u8],
    ) -> io::Result<()> {
        let family = self.family(destination)?;
        if source.is_some_and(|source| source.is_ipv4() != destination.is_ipv4()) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "source and destination are of different address families",
            ));
        }
        let ttl = ttl.map(libc::c_int::from);
        let info4 = |ip: Ipv4Addr| libc::in_pktinfo {
            ipi_ifindex: 0,
            ipi_spec_dst: libc::in_addr {
                s_addr: u32::from_ne_bytes(ip.octets()),
            },
            ipi_addr: libc::in_addr { s_addr: 0 },
        };
        let info6 = |ip: Ipv6Addr| libc::in6_pktinfo {
            ipi6_addr: libc::in6_addr {
                s6_addr: ip.octets(),
            },
            ipi6_ifindex: 0,
        };
        let (v4, v6) = match source {
            Some(IpAddr::V4(ip)) => (Some(info4(ip)), None),
            Some(IpAddr::V6(ip)) => (None, Some(info6(ip))),
            None => (None, None),
        };
        let mut options = Vec::with_capacity(2);
        options.extend(v4.as_ref().map(ControlMessage::Ipv4PacketInfo));
        options.extend(v6.as_ref().map(ControlMessage::Ipv6PacketInfo));
        // Fragments of a probe would pass where whole packets do not. Data packets that are sent meanwhile go
        // whole too, which harms none that is not too long.
        let _whole = if bytes.len() >= MTU_PROBE_MIN {
            Some(Whole::set(family, &self.whole)?)
        } else {
            None
        };
        options.extend(ttl.as_ref().map(|ttl| {
            if destination.is_ipv4() {
                ControlMessage::Ipv4Ttl(ttl)
            } else {
                ControlMessage::Ipv6HopLimit(ttl)
            }
        }));
        socket::sendmsg(
            family.socket.as_raw_fd(),
            &[IoSlice::new(bytes)],
            &options,
            MsgFlags::MSG_DONTWAIT,
            Some(&SockaddrStorage::from(destination)),
        )?;
        Ok(())
    }
}

impl Family {
    fn bind(domain: Domain, port: u16, fwmark: u32, coalesce: bool) -> io::Result<Self> {
        let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
        let v6 = domain == Domain::IPV6;
        let any = if v6 {
            socket.set_only_v6(true)?;
            IpAddr::V6(Ipv6Addr::UNSPECIFIED)
        } else {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED)
        };
        if fwmark != 0 {
            socket.set_mark(fwmark)?;
        }
        enlarge(&socket);
        socket.bind(&SocketAddr::new(any, port).into())?;
        let socket = Arc::new(UdpSocket::from(socket));
        let state = UdpSocketState::new((&*socket).into())?;
        if !coalesce {
            let _ = setsockopt(&socket, sockopt::UdpGroSegment, &false);
        }
        set_fragments(socket.as_fd(), v6, Fragments::Allowed)?;
        Ok(Self::new(v6, socket, state))
    }

    fn new(v6: bool, socket: Arc<UdpSocket>, state: UdpSocketState) -> Self {
        Self {
            v6,
            socket,
            segments: state.max_gso_segments() > 1,
            state,
        }
    }

    /// Of a socket that somebody else has bound, for both families or for IPv4.
    pub fn of(socket: Arc<UdpSocket>) -> io::Result<Self> {
        let state = UdpSocketState::new((&*socket).into())?;
        enlarge(&socket2::SockRef::from(&*socket));
        let v6 = socket.local_addr()?.is_ipv6();
        if v6 {
            set_fragments(socket.as_fd(), true, Fragments::Allowed)?;
        }
        set_fragments(socket.as_fd(), false, Fragments::Allowed)?;
        Ok(Self::new(v6, socket, state))
    }

    /// The socket.
    pub fn socket(&self) -> &Arc<UdpSocket> {
        &self.socket
    }

    /// Lets no datagrams be coalesced any more: who reads the socket next wants one at a time.
    pub fn leave(&self) {
        let _ = setsockopt(&self.socket, sockopt::UdpGroSegment, &false);
    }

    /// How full its buffers are.
    pub fn memory(&self) -> io::Result<Memory> {
        // sock(7): SO_MEMINFO, in the order of linux/sock_diag.h.
        let mut values = [0_u32; 9];
        let mut len = size_of_val(&values) as libc::socklen_t;
        // SAFETY: the descriptor is open for the call's length, and the kernel writes at most the stated size.
        let result = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_MEMINFO,
                values.as_mut_ptr().cast(),
                &raw mut len,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Memory {
            received: values[0],
            receive_buffer: values[1],
            sent: values[2],
            send_buffer: values[3],
            dropped: values[8],
        })
    }

    /// Receives what is there, several datagrams a buffer where the kernel coalesced them.
    pub fn receive(
        &self,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> io::Result<usize> {
        self.state.recv((&*self.socket).into(), buffers, meta)
    }
}

impl Port for Family {
    fn segments(&self) -> bool {
        self.segments
    }

    fn send(&self, to: Destination, bytes: &[u8], segment: Option<usize>) -> io::Result<()> {
        let transmit = Transmit {
            destination: to.remote,
            ecn: None,
            contents: bytes,
            segment_size: segment,
            src_ip: to.local,
        };
        self.state.try_send((&*self.socket).into(), &transmit)
    }

    fn wait(&self) {
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLOUT)];
        // Whatever comes of it, sending shows.
        let _ = poll(&mut fds, PollTimeout::from(BUSY_WAIT_MS));
    }

    fn is_half_full(&self) -> bool {
        let memory = self.memory();
        memory.is_ok_and(|memory| memory.sent > memory.send_buffer / 2)
    }
}

/// Beyond the system's limit only with CAP_NET_ADMIN; smaller buffers lose packets in bursts, no more.
fn enlarge(socket: &Socket) {
    if setsockopt(socket, sockopt::RcvBufForce, &BUFFER).is_err() {
        let _ = socket.set_recv_buffer_size(BUFFER);
    }
    if setsockopt(socket, sockopt::SndBufForce, &BUFFER).is_err() {
        let _ = socket.set_send_buffer_size(BUFFER);
    }
}

fn no_ipv6(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL | libc::EPROTONOSUPPORT)
    )
}

/// While this lives, a socket sends no fragments.
struct Whole<'a> {
    socket: BorrowedFd<'a>,
    v6: bool,
    _held: MutexGuard<'a, ()>,
}

impl<'a> Whole<'a> {
    fn set(family: &'a Family, held: &'a Mutex<()>) -> io::Result<Self> {
        let whole = Self {
            socket: family.socket.as_fd(),
            v6: family.v6,
            _held: held.lock(),
        };
        set_fragments(whole.socket, whole.v6, Fragments::Forbidden)?;
        Ok(whole)
    }
}

impl Drop for Whole<'_> {
    fn drop(&mut self) {
        let _ = set_fragments(self.socket, self.v6, Fragments::Allowed);
    }
}

/// May a datagram that is too long for the path travel in pieces?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fragments {
    /// As with the kernel's WireGuard: the sender of the inner packet never learns the outer path's MTU. Undoes
    /// quinn-udp's ban.
    Allowed,
    /// Never, and whatever path MTU the kernel has heard of does not count (RFC 8899 4.5).
    Forbidden,
}

/// Sends no datagram of this socket in fragments, of neither family; longer ones than the link's MTU are
/// refused. For sockets of probes.
pub fn forbid_fragments(socket: BorrowedFd<'_>, v6: bool) -> io::Result<()> {
    if v6 {
        set_fragments(socket, true, Fragments::Forbidden)?;
    }
    // An IPv6 socket sends IPv4 too.
    set_fragments(socket, false, Fragments::Forbidden)
}

fn set_fragments(socket: BorrowedFd<'_>, v6: bool, fragments: Fragments) -> io::Result<()> {
    let forbidden = fragments == Fragments::Forbidden;
    let (level, name) = if v6 {
        setsockopt(&socket, sockopt::Ipv6DontFrag, &forbidden)?;
        (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER)
    } else {
        (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER)
    };
    // The numbers are those of IPv6 too.
    let value: libc::c_int = match fragments {
        Fragments::Allowed => libc::IP_PMTUDISC_DONT,
        Fragments::Forbidden => libc::IP_PMTUDISC_PROBE,
    };
    // SAFETY: the descriptor is open for the call's length, and the pointer is to an int of the stated size.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
