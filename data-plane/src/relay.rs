//! Relaying in userspace, where the kernel cannot: no nftables, no forwarding, a filter in the way, or two ends of
//! different families. One thread, datagrams in batches, no byte of a payload changed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Instant;
use std::{fmt, io};

use mesh_types::SocketId;
use mesh_types::plan::RelayPair;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use parking_lot::Mutex;
use quinn_udp::RecvMeta;

use crate::counters::{Count, Counters};
use crate::engine::ControlDatagram;
use crate::lent::{self, LentSocket, LentSockets};
use crate::outbox::{Destination, Outbox};
use crate::sender::Sender;
use crate::worker::now;
use table::{Table, Verdict};

pub mod table;

/// Bytes taken from one port before the others get their turn.
const TURN: usize = 256 * 1024;
/// Receive slots, each as large as the kernel coalesces.
const SLOTS: usize = 4;
const SLOT: usize = 65536;
/// A token that is no port.
const WAKE: u64 = 1 << 16;

/// A running relay. Dropping it ends its thread and gives the sockets back.
pub struct Relay {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    table: Mutex<Table>,
    sockets: Mutex<Arc<LentSockets>>,
    wake: EventFd,
    stop: AtomicBool,
    counters: Counters,
}

impl fmt::Debug for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Relay({} ports)", self.shared.sockets.lock().len())
    }
}

impl Relay {
    /// Starts the thread. `on_control` gets Binding indications that come to a relay port, on that thread: it must
    /// return soon.
    pub fn start(on_control: Box<dyn Fn(ControlDatagram) + Send + Sync>) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        epoll.add(&wake, EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?;
        let shared = Arc::new(Shared {
            table: Mutex::default(),
            sockets: Mutex::default(),
            wake,
            stop: AtomicBool::new(false),
            counters: Counters::default(),
        });
        let worker = Worker {
            shared: shared.clone(),
            sockets: Arc::default(),
            epoll,
            on_control,
            out: Outbox::new(),
            sender: Sender::default(),
            slots: vec![0; SLOTS * SLOT].into_boxed_slice(),
        };
        let thread = thread::Builder::new()
            .name("farspan-relay".into())
            .spawn(move || worker.run())?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Relays these pairs by these sockets, which are named by the ports they are bound to. Safe to repeat. Whoever
    /// lends a socket must not read it until it is named no more. Fails for a socket that cannot be used; the others
    /// are.
    pub fn apply(
        &self,
        sockets: &BTreeMap<u16, Arc<UdpSocket>>,
        pairs: &BTreeSet<RelayPair>,
    ) -> io::Result<()> {
        let before = self.shared.sockets.lock().clone();
        let mut lent = LentSockets::new();
        let mut failure = None;
        for (port, socket) in sockets {
            let id = SocketId::Relay(*port);
            let held = before.get(port).filter(|held| held.is(id, socket));
            match held {
                Some(held) => {
                    lent.insert(*port, held.clone());
                }
                None => match LentSocket::new(id, socket.clone()) {
                    Ok(new) => {
                        lent.insert(*port, Arc::new(new));
                    }
                    Err(error) => failure = Some(error),
                },
            }
        }
        self.shared.table.lock().apply(pairs, now());
        *self.shared.sockets.lock() = Arc::new(lent);
        self.wake();
        failure.map_or(Ok(()), Err)
    }

    /// Counters since the start, by name; all begin with `relay_`.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        let mut all = self.shared.counters.all();
        all.retain(|(label, _)| label.starts_with("relay_"));
        all
    }

    fn wake(&self) {
        // Fails only when 2^64 - 2 wake-ups are pending, and then the worker wakes anyway.
        let _ = self.shared.wake.write(1);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Worker {
    shared: Arc<Shared>,
    sockets: Arc<LentSockets>,
    epoll: Epoll,
    on_control: Box<dyn Fn(ControlDatagram) + Send + Sync>,
    out: Outbox,
    sender: Sender,
    slots: Box<[u8]>,
}

impl Worker {
    fn run(mut self) {
        let mut events = [EpollEvent::empty(); 16];
        while !self.shared.stop.load(Ordering::Acquire) {
            let ready = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
                Ok(ready) => ready,
                Err(nix::Error::EINTR) => 0,
                Err(error) => {
                    tracing::warn!(%error, "Relay stopped");
                    return;
                }
            };
            for event in &events[..ready] {
                match u16::try_from(event.data()) {
                    Ok(port) => self.drain(port),
                    Err(_) => self.woken(),
                }
            }
        }
    }

    fn woken(&mut self) {
        let _ = self.shared.wake.read();
        let sockets = self.shared.sockets.lock().clone();
        lent::watch(&self.epoll, &self.sockets, &sockets, 0);
        self.sockets = sockets;
    }

    fn drain(&mut self, port: u16) {
        let Some(socket) = self.sockets.get(&port).cloned() else {
            return;
        };
        let now = now();
        let mut taken = 0;
        while taken < TURN {
            let mut meta = [RecvMeta::default(); SLOTS];
            let mut slots = self.slots.chunks_exact_mut(SLOT).map(io::IoSliceMut::new);
            let mut buffers: [io::IoSliceMut<'_>; SLOTS] = std::array::from_fn(|_| {
                slots.next().unwrap_or_else(|| io::IoSliceMut::new(&mut []))
            });
            let filled = match socket.family().receive(&mut buffers, &mut meta) {
                Ok(filled) => filled,
                Err(error) => {
                    if error.kind() != io::ErrorKind::WouldBlock {
                        tracing::debug!(port, %error, "Receiving on a relay port failed");
                    }
                    break;
                }
            };
            taken += self.take(&socket, now, &meta[..filled]);
        }
        self.flush(now);
    }

    /// Judges what was received; says how many bytes that was.
    fn take(&mut self, socket: &LentSocket, now: Instant, meta: &[RecvMeta]) -> usize {
        let shared = self.shared.clone();
        let mut taken = 0;
        for (slot, meta) in meta.iter().enumerate() {
            taken += meta.len;
            let remote = SocketAddr::new(meta.addr.ip().to_canonical(), meta.addr.port());
            let local = meta.dst_ip.map(|ip| ip.to_canonical());
            for start in (0..meta.len).step_by(meta.stride.max(1)) {
                let end = (start + meta.stride).min(meta.len);
                let (start, end) = (slot * SLOT + start, slot * SLOT + end);
                let bytes = &self.slots[start..end];
                let mut table = shared.table.lock();
                let verdict = table.handle(remote, socket.port(), local, bytes, now);
                drop(table);
                match verdict {
                    Verdict::Up => {
                        let any = match remote {
                            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
                        };
                        (self.on_control)(ControlDatagram {
                            socket: socket.id(),
                            local: SocketAddr::new(local.unwrap_or(any), socket.port()),
                            remote,
                            bytes: bytes.to_vec(),
                        });
                    }
                    Verdict::Drop(reason) => shared.counters.add(reason, 1),
                    Verdict::Forward { to, port, local } => {
                        self.forward((to, port, local), start..end, now);
                    }
                }
            }
        }
        taken.max(1)
    }

    fn forward(
        &mut self,
        (remote, port, local): (SocketAddr, u16, Option<IpAddr>),
        bytes: std::ops::Range<usize>,
        now: Instant,
    ) {
        let to = Destination {
            peer: u32::from(port),
            remote,
            local,
            also: None,
        };
        let bytes = &self.slots[bytes];
        let len = bytes.len();
        let added = self.out.write(to, len, |room| {
            room[..len].copy_from_slice(bytes);
            Some(len)
        });
        let counters = &self.shared.counters;
        if added {
            counters.add(Count::RelayForwarded, 1);
            counters.add(Count::RelayBytes, len as u64);
        }
        if self.out.is_full() {
            self.flush(now);
        }
    }

    fn flush(&mut self, now: Instant) {
        if self.out.is_empty() {
            return;
        }
        let family = |to: &Destination| {
            let port = u16::try_from(to.peer).unwrap_or_default();
            let socket = self.sockets.get(&port);
            let socket = socket.ok_or(io::ErrorKind::NotConnected)?;
            Ok(socket.family())
        };
        // The table hears of the other end's next datagram where it is reached.
        let lost = |_| {};
        let shared = &self.shared;
        self.sender
            .flush((family, true), &mut self.out, now, &shared.counters, lost);
    }
}
