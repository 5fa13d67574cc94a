//! Links to TURN servers (RFC 8656), and TCP connections straight to peers; peers behind them as WireGuard sees them.
//!
//! Each link is a thread of its own: it connects, then carries between the server and one loopback socket a peer.
//! WireGuard, whichever it is, sends to the peer's loopback address; what comes in there goes out as ChannelData, and
//! the other way round. Who is where, and what a TURN message says, is not known here.
//!
//! A stream carries what is waiting in one write. What it cannot carry is dropped as a queue before a slow line drops
//! it, at `link::QUEUE` bytes: WireGuard's inner protocols slow down by it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::{fmt, io, thread};

use mesh_types::SocketId;
use mesh_types::plan::{Proxy, TurnLink};
use mesh_types::report::TurnLinkState;
use nix::sys::eventfd::{EfdFlags, EventFd};
use parking_lot::Mutex;
use tracing::debug;

use crate::engine::ControlDatagram;

pub mod frame;
mod link;
mod wire;

/// Messages waiting for one link's thread; more are dropped.
const SENDS_MAX: usize = 1024;

/// Something that came about on a link.
#[derive(Debug)]
pub enum TurnEvent {
    /// It came up, or ended.
    State {
        /// Number of the link.
        number: u32,
        /// What became of it.
        state: TurnLinkState,
    },
    /// A message for the agent, from [`SocketId::Turn`].
    Control(ControlDatagram),
}

type OnEvent = Arc<dyn Fn(TurnEvent) + Send + Sync>;

/// All links of a node. Dropping it ends their threads.
pub struct Turn {
    fwmark: u32,
    on_event: OnEvent,
    links: BTreeMap<u32, Link>,
}

struct Link {
    shared: Arc<Shared>,
    proxies: BTreeMap<u16, (SocketAddr, Arc<UdpSocket>)>,
}

/// What a link's thread and its owner share.
struct Shared {
    link: TurnLink,
    fwmark: u32,
    inbox: Mutex<Inbox>,
    wake: EventFd,
    stop: AtomicBool,
    /// The local port of a stream, once it is connected; else 0.
    port: AtomicU16,
    /// The port it is to leave from.
    from: Option<u16>,
    on_event: OnEvent,
}

#[derive(Default)]
struct Inbox {
    sends: Vec<Vec<u8>>,
    /// By channel; `Some` where they have changed.
    proxies: Option<BTreeMap<u16, Arc<UdpSocket>>>,
}

impl fmt::Debug for Turn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Turn({} links)", self.links.len())
    }
}

impl Turn {
    /// Opens none yet. `fwmark` lets connections escape the mesh's own routes. `on_event` is called by the links'
    /// threads, and must return soon.
    pub fn new(fwmark: u32, on_event: Box<dyn Fn(TurnEvent) + Send + Sync>) -> Self {
        Self {
            fwmark,
            on_event: Arc::from(on_event),
            links: BTreeMap::new(),
        }
    }

    /// Opens links that are new, closes those that are named no more, and gives peers behind them their loopback
    /// addresses. `port` is WireGuard's. Safe to repeat. Fails for what cannot be opened; the rest is.
    pub fn apply(
        &mut self,
        links: &BTreeSet<TurnLink>,
        proxies: &BTreeSet<Proxy>,
        port: u16,
    ) -> io::Result<()> {
        let named = |number: &u32| links.iter().any(|link| link.number == *number);
        self.links.retain(|number, _| named(number));
        let mut failure = None;
        for wanted in links {
            if !self.links.contains_key(&wanted.number) {
                match self.open(wanted) {
                    Ok(link) => {
                        self.links.insert(wanted.number, link);
                    }
                    Err(error) => failure = Some(error),
                }
            }
        }
        let tunnel = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        for (number, link) in &mut self.links {
            let own = proxies.iter().filter(|proxy| proxy.link == *number);
            if let Err(error) = link.set_proxies(own, tunnel) {
                failure = Some(error);
            }
        }
        failure.map_or(Ok(()), Err)
    }

    fn open(&self, wanted: &TurnLink) -> io::Result<Link> {
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let shared = Arc::new(Shared {
            link: wanted.clone(),
            fwmark: self.fwmark,
            inbox: Mutex::default(),
            wake,
            stop: AtomicBool::new(false),
            port: AtomicU16::new(0),
            from: wanted.from.map(|other| self.port(other)),
            on_event: Arc::clone(&self.on_event),
        });
        let own = Arc::clone(&shared);
        // Not waited for: connecting may take seconds, and nothing depends on the thread's end.
        thread::Builder::new()
            .name("farspan-turn".into())
            .spawn(move || link::run(&own))?;
        Ok(Link {
            shared,
            proxies: BTreeMap::new(),
        })
    }

    /// The local port of a link's stream; 0 where there is none.
    fn port(&self, number: u32) -> u16 {
        let link = self.links.get(&number);
        link.map_or(0, |link| link.shared.port.load(Ordering::Relaxed))
    }

    /// Sends a message on a link as it is. False where there is no such link.
    pub fn send(&self, number: u32, bytes: &[u8]) -> bool {
        let Some(link) = self.links.get(&number) else {
            return false;
        };
        let mut inbox = link.shared.inbox.lock();
        if inbox.sends.len() < SENDS_MAX {
            inbox.sends.push(bytes.to_vec());
        }
        drop(inbox);
        link.shared.wake();
        true
    }
}

impl Link {
    fn set_proxies<'a>(
        &mut self,
        wanted: impl Iterator<Item = &'a Proxy>,
        tunnel: SocketAddr,
    ) -> io::Result<()> {
        let wanted: BTreeMap<u16, SocketAddr> = wanted.map(|p| (p.channel, p.loopback)).collect();
        let before = self.proxies.len();
        let mut changed = false;
        let mut failure = None;
        self.proxies.retain(|channel, (loopback, socket)| {
            // The tunnel may have moved to another port.
            let right = socket.peer_addr().is_ok_and(|peer| peer == tunnel);
            wanted.get(channel) == Some(loopback) && (right || socket.connect(tunnel).is_ok())
        });
        changed |= self.proxies.len() != before;
        for (channel, loopback) in wanted {
            if self.proxies.contains_key(&channel) {
                continue;
            }
            match proxy_socket(loopback, tunnel) {
                Ok(socket) => {
                    self.proxies.insert(channel, (loopback, Arc::new(socket)));
                    changed = true;
                }
                Err(error) => {
                    debug!(%loopback, %error, "Failed to open a loopback socket");
                    failure = Some(error);
                }
            }
        }
        if changed {
            let all = self.proxies.iter();
            let sockets = all.map(|(channel, (_, socket))| (*channel, Arc::clone(socket)));
            self.shared.inbox.lock().proxies = Some(sockets.collect());
            self.shared.wake();
        }
        failure.map_or(Ok(()), Err)
    }
}

/// Only the tunnel may send to it: other programs on this host are not to speak to the peer in its place.
fn proxy_socket(loopback: SocketAddr, tunnel: SocketAddr) -> io::Result<UdpSocket> {
    let local = match loopback.ip() {
        IpAddr::V4(ip) if ip.is_loopback() => loopback,
        IpAddr::V4(_) | IpAddr::V6(_) => return Err(io::ErrorKind::AddrNotAvailable.into()),
    };
    let socket = UdpSocket::bind(local)?;
    socket.set_nonblocking(true)?;
    let options = socket2::SockRef::from(&socket);
    // What the tunnel sends in a burst must fit.
    _ = options.set_recv_buffer_size(link::QUEUE);
    socket.connect(tunnel)?;
    Ok(socket)
}

impl Drop for Link {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.wake();
    }
}

impl Shared {
    fn wake(&self) {
        // Full means awake.
        _ = self.wake.write(1);
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn tell(&self, state: TurnLinkState) {
        if !self.is_stopped() {
            let number = self.link.number;
            (self.on_event)(TurnEvent::State { number, state });
        }
    }

    fn control(&self, bytes: &[u8]) {
        (self.on_event)(TurnEvent::Control(ControlDatagram {
            socket: SocketId::Turn(self.link.number),
            local: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            remote: self.link.server,
            bytes: bytes.to_vec(),
        }));
    }
}
