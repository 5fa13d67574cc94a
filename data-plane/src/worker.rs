//! The packet thread: waits, drains one side, sends on the other, and looks at timers.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use boringtun::noise::batch::REPLAY_WINDOW;
use mesh_types::SocketId;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::EventFd;
use parking_lot::Mutex;
use quinn_udp::RecvMeta;

use crate::core::{Core, PRESSURE_MAX, is_control};
use crate::counters::{Count, Counters};
use crate::engine::ControlDatagram;
use crate::inbox::{Inbox, Merged};
use crate::lent::{self, Lent, LentSocket};
use crate::outbox::{Destination, Message, Outbox};
use crate::segment::{SLACK, VnetHeader};
use crate::sender::Sender;
use crate::tun::Tun;
use crate::udp::Sockets;

/// Bytes taken from the TUN before the sockets get their turn.
const TURN: usize = 256 * 1024;
/// Datagrams after which a socket's turn is over, while it is not flooded. With those of one more call, of 64 a slot at
/// most, even a flood's are fewer than a replay window: what comes late by one socket is still taken after a turn of
/// the other.
const DATAGRAMS: usize = 480;
/// Receive slots, each as large as the kernel coalesces.
const SLOTS: usize = 8;
const _: () = assert!((DATAGRAMS << PRESSURE_MAX) - 1 + SLOTS * 64 < REPLAY_WINDOW);
const SLOT: usize = 65536;
/// Failed receives in a row after which the socket counts as dead.
const ERRORS: u32 = 64;

const WAKE: u64 = 0;
const TUN: u64 = 1;
const V4: u64 = 2;
const V6: u64 = 3;
/// And the port, of a lent socket.
const LENT: u64 = 1 << 16;

/// Where datagrams come in.
enum Source {
    V4,
    V6,
    /// A port that was lent to single peers.
    Lent(Arc<LentSocket>),
}

/// Takes the destination and the bytes of a handshake initiation.
pub(crate) type OnInitiation = Box<dyn Fn(SocketAddr, &[u8]) + Send + Sync>;

/// What the worker shares with the handle.
pub(crate) struct Shared {
    pub core: Mutex<Core>,
    pub sockets: Mutex<Arc<Sockets>>,
    pub lent: Mutex<Arc<Lent>>,
    pub wake: EventFd,
    pub stop: AtomicBool,
    pub failure: Mutex<Option<String>>,
    /// Told of each handshake initiation that goes out.
    pub initiations: OnceLock<OnInitiation>,
    pub counters: Arc<Counters>,
}

/// The engine's only look at the clock.
#[expect(
    clippy::disallowed_methods,
    reason = "the worker is an edge: its thread is where time comes from"
)]
pub(crate) fn now() -> Instant {
    Instant::now()
}

pub(crate) struct Worker {
    shared: Arc<Shared>,
    sockets: Arc<Sockets>,
    lent: Arc<Lent>,
    tun: Tun,
    interface: String,
    epoll: Epoll,
    on_control: Box<dyn Fn(ControlDatagram) + Send + Sync>,
    out: Outbox,
    inbox: Inbox,
    sender: Sender,
    tun_buffer: Box<[u8]>,
    slots: Box<[u8]>,
    errors: u32,
}

impl Worker {
    pub fn new(
        shared: Arc<Shared>,
        tun: Tun,
        interface: String,
        on_control: Box<dyn Fn(ControlDatagram) + Send + Sync>,
    ) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let readable = |token| EpollEvent::new(EpollFlags::EPOLLIN, token);
        epoll.add(&shared.wake, readable(WAKE))?;
        epoll.add(tun.as_fd(), readable(TUN))?;
        let sockets = shared.sockets.lock().clone();
        watch(&epoll, &sockets)?;
        Ok(Self {
            inbox: Inbox::new(tun.tcp, tun.udp),
            shared,
            sockets,
            lent: Arc::default(),
            tun,
            interface,
            epoll,
            on_control,
            out: Outbox::new(),
            sender: Sender::default(),
            tun_buffer: vec![0; VnetHeader::LEN + 65536 + SLACK].into_boxed_slice(),
            slots: vec![0; SLOTS * SLOT].into_boxed_slice(),
            errors: 0,
        })
    }

    pub fn run(mut self) {
        if let Err(failure) = self.turns() {
            tracing::warn!(interface = self.interface, failure, "Tunnel stopped");
            *self.shared.failure.lock() = Some(failure);
        }
    }

    fn turns(&mut self) -> Result<(), String> {
        let mut events = [EpollEvent::empty(); 8];
        while !self.shared.stop.load(Ordering::Acquire) {
            let due = self.shared.core.lock().poll_timeout(now());
            let timeout = due.map_or(EpollTimeout::NONE, |(at, _)| timeout(at));
            let ready = match self.epoll.wait(&mut events, timeout) {
                Ok(ready) => ready,
                Err(nix::Error::EINTR) => 0,
                Err(error) => return Err(format!("waiting for packets failed: {error}")),
            };
            for event in &events[..ready] {
                match event.data() {
                    WAKE => self.woken()?,
                    TUN => self.drain_tun()?,
                    V4 => self.drain_udp(&Source::V4)?,
                    V6 => self.drain_udp(&Source::V6)?,
                    token => {
                        let port = u16::try_from(token - LENT).unwrap_or_default();
                        if let Some(socket) = self.lent.socket(port).cloned() {
                            self.drain_udp(&Source::Lent(socket))?;
                        }
                    }
                }
            }
            let now = now();
            self.shared.core.lock().handle_timeout(now, &mut self.out);
            self.flush(now);
        }
        Ok(())
    }

    fn woken(&mut self) -> Result<(), String> {
        let _ = self.shared.wake.read();
        let sockets = self.shared.sockets.lock().clone();
        if !Arc::ptr_eq(&sockets, &self.sockets) {
            for fd in self.sockets.fds().into_iter().flatten() {
                let _ = self.epoll.delete(fd);
            }
            watch(&self.epoll, &sockets)
                .map_err(|error| format!("watching the UDP port failed: {error}"))?;
            self.sockets = sockets;
            self.errors = 0;
        }
        let lent = self.shared.lent.lock().clone();
        if !Arc::ptr_eq(&lent, &self.lent) {
            lent::watch(&self.epoll, self.lent.sockets(), lent.sockets(), LENT);
            self.lent = lent;
        }
        Ok(())
    }

    fn drain_tun(&mut self) -> Result<(), String> {
        let now = now();
        let mut taken = 0;
        let mut reads = 0;
        while taken < TURN {
            let room = self.tun_buffer.len() - SLACK;
            let len = match self.tun.read(&mut self.tun_buffer[..room]) {
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.tun_gone(&error)),
            };
            taken += len.max(1);
            reads += 1;
            let Some((header, packet)) = self.tun_buffer.split_first_chunk_mut() else {
                break;
            };
            let Some(len) = len.checked_sub(VnetHeader::LEN) else {
                self.shared.counters.add(Count::TunMalformed, 1);
                continue;
            };
            let header = VnetHeader::decode(header);
            let mut core = self.shared.core.lock();
            core.handle_tun(packet, len, header, now, &mut self.out);
            drop(core);
            if self.out.is_full() {
                self.flush(now);
            }
        }
        self.shared.counters.add(Count::TunReads, reads);
        self.flush(now);
        Ok(())
    }

    fn tun_gone(&self, error: &io::Error) -> String {
        format!(
            "reading from the device {} failed: {error}; was it deleted? restart to make it anew",
            self.interface
        )
    }

    fn drain_udp(&mut self, source: &Source) -> Result<(), String> {
        let now = now();
        let most = self.shared.core.lock().receive_limit();
        let (mut taken, mut datagrams) = (0, 0);
        let mut control = Vec::new();
        let mut emptied = false;
        while taken < most && datagrams < DATAGRAMS * (most / TURN) {
            let mut meta = [RecvMeta::default(); SLOTS];
            let mut slots = self.slots.chunks_exact_mut(SLOT).map(IoSliceMut::new);
            let mut buffers: [IoSliceMut<'_>; SLOTS] =
                std::array::from_fn(|_| slots.next().unwrap_or_else(|| IoSliceMut::new(&mut [])));
            let received = match source {
                Source::V4 => self.sockets.receive(false, &mut buffers, &mut meta),
                Source::V6 => self.sockets.receive(true, &mut buffers, &mut meta),
                Source::Lent(socket) => socket.family().receive(&mut buffers, &mut meta),
            };
            let filled = match received {
                Ok(filled) => filled,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    emptied = true;
                    break;
                }
                Err(error) if matches!(source, Source::Lent(_)) => {
                    tracing::debug!(%error, "Receiving on a lent port failed");
                    break;
                }
                Err(error) => {
                    self.errors += 1;
                    if self.errors >= ERRORS {
                        return Err(format!(
                            "receiving on UDP port {} failed {ERRORS} times in a row, last: {error}; restart",
                            self.sockets.port()
                        ));
                    }
                    break;
                }
            };
            self.errors = 0;
            let took = self.take(now, source, &meta[..filled], &mut control);
            taken += took.0;
            datagrams += took.1;
            if filled < SLOTS {
                // It is empty; what comes meanwhile is told of again.
                emptied = true;
                break;
            }
        }
        if !emptied && self.is_full(source) {
            self.shared.core.lock().socket_is_full();
        }
        self.write_inbox();
        self.flush(now);
        for datagram in control {
            (self.on_control)(datagram);
        }
        Ok(())
    }

    /// Is a socket's buffer more than half full of what was not received yet?
    fn is_full(&self, source: &Source) -> bool {
        let family = match source {
            Source::V4 => self.sockets.of(false),
            Source::V6 => self.sockets.of(true),
            Source::Lent(socket) => Some(socket.family()),
        };
        let memory = family.and_then(|family| family.memory().ok());
        memory.is_some_and(|memory| memory.received > memory.receive_buffer / 2)
    }

    /// Opens what was received; says how many bytes and datagrams that was.
    fn take(
        &mut self,
        now: Instant,
        source: &Source,
        meta: &[RecvMeta],
        control: &mut Vec<ControlDatagram>,
    ) -> (usize, usize) {
        let shared = self.shared.clone();
        let mut core = shared.core.lock();
        let (mut taken, mut datagrams, before) = (0, 0, control.len());
        let (socket, port) = match source {
            Source::V4 | Source::V6 => (SocketId::Main, self.sockets.port()),
            Source::Lent(socket) => (socket.id(), socket.port()),
        };
        for (slot, meta) in meta.iter().enumerate() {
            taken += meta.len;
            let at = slot * SLOT;
            // A socket for both families shows IPv4 as mapped.
            let addr = SocketAddr::new(meta.addr.ip().to_canonical(), meta.addr.port());
            let local = meta.dst_ip.map(|ip| ip.to_canonical());
            let remote = match source {
                Source::V4 | Source::V6 => self.lent.path(addr),
                Source::Lent(_) => addr,
            };
            for range in (0..meta.len).step_by(meta.stride.max(1)) {
                let end = (range + meta.stride).min(meta.len);
                let bytes = &self.slots[at + range..at + end];
                datagrams += 1;
                if is_control(bytes) {
                    let any = match addr {
                        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
                    };
                    control.push(ControlDatagram {
                        socket,
                        local: SocketAddr::new(local.unwrap_or(any), port),
                        remote: addr,
                        bytes: bytes.to_vec(),
                    });
                    continue;
                }
                let from = (remote, local);
                core.handle_datagram(from, bytes, now, &mut self.inbox, &mut self.out);
                if self.inbox.is_full() {
                    write(&self.tun, &mut self.inbox, &shared.counters);
                }
            }
        }
        core.open_waiting(now, &mut self.inbox, &mut self.out);
        drop(core);
        shared.counters.add(Count::UdpReceives, 1);
        shared.counters.add(Count::UdpReceived, datagrams as u64);
        let new = control.len() - before;
        shared.counters.add(Count::Control, new as u64);
        if self.out.is_full() {
            self.flush(now);
        }
        // Empty ones take time too.
        (taken, datagrams.max(meta.len()))
    }

    fn write_inbox(&mut self) {
        if !self.inbox.is_empty() {
            write(&self.tun, &mut self.inbox, &self.shared.counters);
        }
    }

    fn flush(&mut self, now: Instant) {
        if self.out.is_empty() {
            return;
        }
        let shared = &self.shared;
        if let Some(tell) = shared.initiations.get() {
            let begins = |message: &&Message| message.bytes().starts_with(&[1, 0, 0, 0]);
            for message in self.out.messages().iter().filter(begins) {
                for datagram in message.datagrams().take(1) {
                    tell(message.to.remote, datagram);
                }
            }
        }
        let family = |to: &Destination| match self.lent.family(to.remote) {
            Some(family) => Ok(family),
            None => self.sockets.family(to.remote),
        };
        self.sender.flush(
            (family, self.sockets.segment()),
            &mut self.out,
            now,
            &shared.counters,
            |to| shared.core.lock().forget_local(to),
        );
    }
}

/// Writes all packets to the TUN. If the kernel takes no merged ones after all (some refuse them with EINVAL),
/// merging of that kind ends; the packets of that one write are lost, as they would be on a wire.
fn write(tun: &Tun, inbox: &mut Inbox, counters: &Counters) {
    let (mut tcp, mut udp) = (inbox.merge_tcp, inbox.merge_udp);
    let (mut packets, mut writes) = (0, 0);
    inbox.drain(|parts, merged, count| {
        let error = loop {
            match tun.write(parts) {
                Ok(_) => break None,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Some(error),
            }
        };
        let Some(error) = error else {
            packets += count as u64;
            writes += 1;
            return;
        };
        counters.add(Count::TunRefused, count as u64);
        let merges = match merged {
            Merged::Tcp => &mut tcp,
            Merged::Udp => &mut udp,
            Merged::No => return,
        };
        // Others of this write may be merged already, and are refused too.
        if error.raw_os_error() == Some(libc::EINVAL) && std::mem::replace(merges, false) {
            counters.add(Count::TunMergeOff, 1);
        }
    });
    inbox.merge_tcp = tcp;
    inbox.merge_udp = udp;
    counters.add(Count::TunWritten, packets);
    counters.add(Count::TunWrites, writes);
}

fn watch(epoll: &Epoll, sockets: &Sockets) -> nix::Result<()> {
    for (fd, token) in sockets.fds().into_iter().zip([V4, V6]) {
        if let Some(fd) = fd {
            epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, token))?;
        }
    }
    Ok(())
}

/// Rounded up: a timeout of 0 for something due in 0.5 ms would spin.
fn timeout(at: Instant) -> EpollTimeout {
    let left = at.saturating_duration_since(now()) + Duration::from_nanos(999_999);
    let millis = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
    let millis = if at <= now() { 0 } else { millis };
    EpollTimeout::try_from(millis).unwrap_or(EpollTimeout::ZERO)
}
