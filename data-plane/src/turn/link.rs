//! The thread of one link.

use std::collections::BTreeMap;
use std::io;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use mesh_types::report::TurnLinkState;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use tracing::debug;

use super::Shared;
use super::frame::{self, CHANNEL_HEADER, Frame};
use super::wire::{self, Wire};

/// Bytes that wait at most, each way.
pub const QUEUE: usize = 512 * 1024;
/// Datagrams taken from one peer before the others get their turn.
const TURN: usize = 64;
/// Largest datagram of WireGuard that is passed on.
const DATAGRAM: usize = 2048;
/// Tokens that are no channel.
const WAKE: u64 = 1 << 16;
const SERVER: u64 = 1 << 17;

struct Worker<'a> {
    shared: &'a Shared,
    wire: Wire,
    epoll: Epoll,
    proxies: BTreeMap<u16, Arc<UdpSocket>>,
    writing: bool,
}

/// Connects, and carries until the link ends.
pub(super) fn run(shared: &Shared) {
    let (number, transport) = (shared.link.number, shared.link.transport.kind());
    debug!(number, server = %shared.link.server, transport, from = ?shared.from, "Connecting a link");
    let connected = match shared.from {
        Some(port) => wire::meet(shared, port),
        None => wire::connect(&shared.link, shared.fwmark),
    };
    let end = match connected {
        Ok(wire) if !shared.is_stopped() => {
            shared.port.store(wire.port(), Ordering::Relaxed);
            shared.tell(TurnLinkState::Up);
            match carry(shared, wire) {
                Ok(()) => return,
                Err(error) => wire::down(&error),
            }
        }
        Ok(_) => return,
        Err(end) => end,
    };
    debug!(number, ?end, "A link has ended");
    shared.tell(end);
}

fn carry(shared: &Shared, wire: Wire) -> io::Result<()> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(&shared.wake, EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?;
    epoll.add(wire.fd(), EpollEvent::new(EpollFlags::EPOLLIN, SERVER))?;
    let mut worker = Worker {
        shared,
        wire,
        epoll,
        proxies: BTreeMap::new(),
        writing: false,
    };
    let mut events = [EpollEvent::empty(); 64];
    worker.take_inbox()?;
    while !shared.is_stopped() {
        worker.finish_turn()?;
        let ready = match worker.epoll.wait(&mut events, EpollTimeout::NONE) {
            Ok(ready) => ready,
            Err(nix::errno::Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
        };
        for event in &events[..ready] {
            match event.data() {
                WAKE => {
                    _ = shared.wake.read();
                    worker.take_inbox()?;
                }
                SERVER => worker.take_from_server()?,
                channel => worker.take_from_tunnel(u16::try_from(channel).unwrap_or_default())?,
            }
        }
    }
    // What was said last: the allocation is given back.
    worker.take_inbox()?;
    worker.wire.flush()
}

impl Worker<'_> {
    /// Takes what the owner has left.
    fn take_inbox(&mut self) -> io::Result<()> {
        let (sends, proxies) = {
            let mut inbox = self.shared.inbox.lock();
            (std::mem::take(&mut inbox.sends), inbox.proxies.take())
        };
        if let Some(fresh) = proxies {
            for socket in self.proxies.values() {
                _ = self.epoll.delete(socket);
            }
            for (channel, socket) in &fresh {
                let event = EpollEvent::new(EpollFlags::EPOLLIN, u64::from(*channel));
                self.epoll.add(socket, event)?;
            }
            self.proxies = fresh;
        }
        sends.iter().try_for_each(|bytes| self.wire.send(bytes))
    }

    fn take_from_server(&mut self) -> io::Result<()> {
        let Self {
            shared,
            wire,
            proxies,
            ..
        } = self;
        wire.receive(&mut |message| match frame::sort(message) {
            Frame::Control(bytes) => shared.control(bytes),
            Frame::Data(channel, content) => {
                if let Some(socket) = proxies.get(&channel) {
                    // A tunnel that is not there, or has no room, loses datagrams as it would otherwise.
                    _ = socket.send(content);
                }
            }
            Frame::Other => {}
        })
    }

    fn take_from_tunnel(&mut self, channel: u16) -> io::Result<()> {
        let Some(socket) = self.proxies.get(&channel) else {
            return Ok(());
        };
        let mut buffer = [0; CHANNEL_HEADER + DATAGRAM];
        buffer[..2].copy_from_slice(&channel.to_be_bytes());
        for _ in 0..TURN {
            let Ok(length) = socket.recv(&mut buffer[CHANNEL_HEADER..]) else {
                // Nothing more, or the echo of an earlier datagram that found no tunnel.
                return Ok(());
            };
            let Ok(field) = u16::try_from(length) else {
                continue;
            };
            buffer[2..CHANNEL_HEADER].copy_from_slice(&field.to_be_bytes());
            self.wire.send(&buffer[..CHANNEL_HEADER + length])?;
        }
        Ok(())
    }

    /// Writes, and asks to be told when there is room for the rest.
    fn finish_turn(&mut self) -> io::Result<()> {
        self.wire.flush()?;
        let writing = self.wire.wants_write();
        if writing != self.writing {
            let mut flags = EpollFlags::EPOLLIN;
            flags.set(EpollFlags::EPOLLOUT, writing);
            let mut event = EpollEvent::new(flags, SERVER);
            self.epoll.modify(self.wire.fd(), &mut event)?;
            self.writing = writing;
        }
        Ok(())
    }
}
