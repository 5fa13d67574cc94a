//! A connection to a TURN server: datagrams, a stream, or a stream inside TLS. Or a stream to a peer.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use mesh_types::plan::TurnLink;
use mesh_types::report::TurnLinkState;
use mesh_types::turn::TurnTransport;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};

use super::Shared;
use super::frame::{self, Garbage};
use super::link::QUEUE;
use crate::worker::now;

/// A connection that is not there after this is not coming.
const CONNECT: Duration = Duration::from_secs(5);
/// Data that the other end has not confirmed for so long has not arrived.
const UNCONFIRMED: Duration = Duration::from_secs(15);
/// How long a peer is waited for that connects at the same time: it has heard of it a moment earlier or later...
const MEET: Duration = Duration::from_secs(4);
/// ...and what refuses meanwhile may have been too early.
const MEET_AGAIN: Duration = Duration::from_secs(1);
/// Read at once.
const READ: usize = 64 * 1024;

/// See the module.
pub(super) enum Wire {
    Udp(UdpSocket),
    Stream(Box<Stream>),
}

pub(super) struct Stream {
    tcp: TcpStream,
    tls: Option<ClientConnection>,
    /// Not yet written: in clear; what TLS has sealed waits inside `tls`.
    out: Vec<u8>,
    /// Read, and not yet a whole message.
    input: Vec<u8>,
    buffer: Box<[u8]>,
}

/// Connects; the end of the link, in words, where that fails.
pub(super) fn connect(link: &TurnLink, fwmark: u32) -> Result<Wire, TurnLinkState> {
    let plain = |error: io::Error| down(&error);
    match link.transport {
        TurnTransport::Udp => udp(link.server, fwmark).map(Wire::Udp).map_err(plain),
        TurnTransport::Tcp => {
            let tcp = tcp(link.server, 0, CONNECT, fwmark).map_err(plain)?;
            Stream::wire(tcp, None).map_err(plain)
        }
        TurnTransport::Tls => {
            let config = tls_config()?;
            let mut tcp = tcp(link.server, 0, CONNECT, fwmark).map_err(plain)?;
            let tls = handshake(&mut tcp, config, &link.name).map_err(plain)?;
            Stream::wire(tcp, Some(tls)).map_err(plain)
        }
    }
}

/// Connects to a peer from a port that a stream of ours has already, while the peer does the same: each takes the
/// other's SYN for the answer to its own. Nobody listens, so nobody else gets in.
pub(super) fn meet(shared: &Shared, port: u16) -> Result<Wire, TurnLinkState> {
    let peer = shared.link.server;
    let end = now() + MEET;
    loop {
        let left = end.saturating_duration_since(now());
        let tried = match port {
            0 => Err(io::ErrorKind::NotConnected.into()),
            _ => tcp(peer, port, left.max(MEET_AGAIN), shared.fwmark),
        };
        match tried {
            Ok(tcp) => return Stream::wire(tcp, None).map_err(|error| down(&error)),
            Err(error) => {
                let early = matches!(
                    error.kind(),
                    io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset
                );
                if !early || left <= MEET_AGAIN || shared.is_stopped() {
                    return Err(down(&error));
                }
                thread::sleep(MEET_AGAIN);
            }
        }
    }
}

fn udp(server: SocketAddr, fwmark: u32) -> io::Result<UdpSocket> {
    let socket = Socket::new(
        Domain::for_address(server),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    mark(&socket, fwmark)?;
    socket.bind(&unspecified(server, 0).into())?;
    socket.connect(&server.into())?;
    socket.set_nonblocking(true)?;
    _ = socket.set_recv_buffer_size(QUEUE);
    Ok(socket.into())
}

/// Every address of the family of `of`.
fn unspecified(of: SocketAddr, port: u16) -> SocketAddr {
    let any: IpAddr = match of {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    SocketAddr::new(any, port)
}

/// A stream from a port that others may leave from too, 0 for any that is free.
fn tcp(server: SocketAddr, port: u16, patience: Duration, fwmark: u32) -> io::Result<TcpStream> {
    let socket = Socket::new(
        Domain::for_address(server),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    mark(&socket, fwmark)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(UNCONFIRMED))?;
    socket.set_tcp_user_timeout(Some(UNCONFIRMED))?;
    socket.set_reuse_address(true)?;
    socket.bind(&unspecified(server, port).into())?;
    socket.connect_timeout(&server.into(), patience)?;
    Ok(socket.into())
}

fn mark(socket: &Socket, fwmark: u32) -> io::Result<()> {
    match fwmark {
        0 => Ok(()),
        mark => socket.set_mark(mark),
    }
}

/// The authorities that this machine trusts, read anew each time: an operator may have added one.
fn tls_config() -> Result<Arc<ClientConfig>, TurnLinkState> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err(TurnLinkState::Down {
            reason: "this machine trusts no certificate authorities; install ca-certificates"
                .to_owned(),
            certificate: true,
        });
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = versions.map_err(|error| refused(&error))?;
    Ok(Arc::new(
        config.with_root_certificates(roots).with_no_client_auth(),
    ))
}

fn handshake(
    tcp: &mut TcpStream,
    config: Arc<ClientConfig>,
    name: &str,
) -> io::Result<ClientConnection> {
    let name = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
    let mut tls = ClientConnection::new(config, name).map_err(io::Error::other)?;
    let deadline = now() + CONNECT;
    while tls.is_handshaking() {
        let left = deadline.saturating_duration_since(now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        tcp.set_read_timeout(Some(left))?;
        tcp.set_write_timeout(Some(left))?;
        tls.complete_io(tcp)?;
    }
    tls.set_buffer_limit(Some(QUEUE));
    Ok(tls)
}

fn refused(error: &rustls::Error) -> TurnLinkState {
    let certificate = matches!(error, rustls::Error::InvalidCertificate(_));
    TurnLinkState::Down {
        reason: error.to_string().trim_end_matches('.').to_owned(),
        certificate,
    }
}

/// An error as the end of a link.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the kinds of errors are an open set"
)]
pub(super) fn down(error: &io::Error) -> TurnLinkState {
    let inner = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    if let Some(error) = inner {
        return refused(error);
    }
    let reason = match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => "no answer within 5 s".to_owned(),
        io::ErrorKind::ConnectionRefused => "nothing listens on that port".to_owned(),
        io::ErrorKind::UnexpectedEof => "it closed the connection".to_owned(),
        io::ErrorKind::ConnectionReset => "it reset the connection".to_owned(),
        io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable => {
            "there is no route to it".to_owned()
        }
        _ => error.to_string(),
    };
    TurnLinkState::Down {
        reason,
        certificate: false,
    }
}

impl Wire {
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Udp(socket) => socket.as_fd(),
            Self::Stream(stream) => stream.tcp.as_fd(),
        }
    }

    /// Its local port, where it is a stream.
    pub(super) fn port(&self) -> u16 {
        match self {
            Self::Udp(_) => 0,
            Self::Stream(stream) => stream.tcp.local_addr().map_or(0, |at| at.port()),
        }
    }

    /// Does something wait to be written?
    pub(super) fn wants_write(&self) -> bool {
        match self {
            Self::Udp(_) => false,
            Self::Stream(stream) => {
                !stream.out.is_empty() || stream.tls.as_ref().is_some_and(|tls| tls.wants_write())
            }
        }
    }

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the kinds of errors are an open set"
    )]
    /// Sends a message, or lets it wait for [`Self::flush`]; drops it where too much waits already. An error is the
    /// end of the link.
    pub(super) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Udp(socket) => match socket.send(bytes) {
                Ok(_) => Ok(()),
                Err(error) => match error.kind() {
                    io::ErrorKind::ConnectionRefused
                    | io::ErrorKind::InvalidInput
                    | io::ErrorKind::AddrNotAvailable => Err(error),
                    // Full queues, filters, routes that are being changed: datagrams get lost.
                    _ => Ok(()),
                },
            },
            Self::Stream(stream) => {
                if stream.out.len() + bytes.len() <= QUEUE {
                    stream.out.extend(bytes);
                    // RFC 8656 12.5: ChannelData in a stream is padded, messages are of that length anyway.
                    let padded = stream.out.len() + (bytes.len().next_multiple_of(4) - bytes.len());
                    stream.out.resize(padded, 0);
                }
                Ok(())
            }
        }
    }

    /// Writes as much as the network takes.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Udp(_) => Ok(()),
            Self::Stream(stream) => stream.flush(),
        }
    }

    /// Reads what is there and hands over each whole message.
    pub(super) fn receive(&mut self, each: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        match self {
            Self::Udp(socket) => {
                let mut buffer = [0; 2048];
                for _ in 0..64 {
                    match socket.recv(&mut buffer) {
                        Ok(length) => each(&buffer[..length]),
                        Err(error) => return blocked(error),
                    }
                }
                Ok(())
            }
            Self::Stream(stream) => stream.receive(each),
        }
    }
}

/// Nothing to do now is no error.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the kinds of errors are an open set"
)]
fn blocked(error: io::Error) -> io::Result<()> {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(()),
        _ => Err(error),
    }
}

impl Stream {
    fn wire(tcp: TcpStream, tls: Option<ClientConnection>) -> io::Result<Wire> {
        tcp.set_nonblocking(true)?;
        Ok(Wire::Stream(Box::new(Self {
            tcp,
            tls,
            out: Vec::new(),
            input: Vec::new(),
            buffer: vec![0; READ].into_boxed_slice(),
        })))
    }

    fn flush(&mut self) -> io::Result<()> {
        loop {
            let wrote = match &mut self.tls {
                None if self.out.is_empty() => return Ok(()),
                None => self.tcp.write(&self.out).inspect(|n| {
                    self.out.drain(..*n);
                }),
                Some(tls) => {
                    if !tls.wants_write() && self.out.is_empty() {
                        return Ok(());
                    }
                    let taken = tls.writer().write(&self.out)?;
                    self.out.drain(..taken);
                    tls.write_tls(&mut self.tcp)
                }
            };
            match wrote {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(error) => return blocked(error),
            }
        }
    }

    fn receive(&mut self, each: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        let got = match &mut self.tls {
            None => self.tcp.read(&mut self.buffer),
            Some(tls) => match tls.read_tls(&mut self.tcp) {
                Ok(0) => Ok(0),
                Err(error) => Err(error),
                Ok(_) => {
                    let state = tls.process_new_packets().map_err(io::Error::other)?;
                    if state.plaintext_bytes_to_read() == 0 {
                        if state.peer_has_closed() {
                            return Err(io::ErrorKind::UnexpectedEof.into());
                        }
                        return Ok(());
                    }
                    return self.take_plaintext(each);
                }
            },
        };
        match got {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                self.input.extend(&self.buffer[..n]);
                self.cut(each)
            }
            Err(error) => blocked(error),
        }
    }

    fn take_plaintext(&mut self, each: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        while let Some(tls) = &mut self.tls {
            match tls.reader().read(&mut self.buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => {
                    self.input.extend(&self.buffer[..n]);
                    self.cut(each)?;
                }
                Err(error) => return blocked(error),
            }
        }
        Ok(())
    }

    /// Takes whole messages off what was read. A message is at most 64 KiB, so little is left.
    fn cut(&mut self, each: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        let mut at = 0;
        loop {
            let rest = &self.input[at..];
            match frame::length(rest) {
                Ok(Some(length)) if length <= rest.len() => {
                    each(&rest[..length]);
                    at += length;
                }
                Ok(_) => break,
                Err(Garbage) => {
                    return Err(io::Error::other("what it says is not TURN"));
                }
            }
        }
        self.input.drain(..at);
        Ok(())
    }
}
