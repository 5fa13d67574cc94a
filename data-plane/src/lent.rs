//! Sockets that somebody else opened, lent to single peers, and addresses that stand for others.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;
use std::sync::Arc;

use mesh_types::SocketId;
use mesh_types::plan::Alias;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};

use crate::udp::Family;

/// A peer's packets leave from and arrive at this socket.
#[derive(Debug, Clone)]
pub struct Adopted {
    /// The peer's address.
    pub remote: SocketAddr,
    /// What the socket is called.
    pub id: SocketId,
    /// The socket, not blocking, bound for both families or for IPv4.
    pub socket: Arc<UdpSocket>,
}

/// A lent socket in use. Given back as it was when dropped.
pub(crate) struct LentSocket {
    id: SocketId,
    port: u16,
    family: Family,
}

impl LentSocket {
    pub fn new(id: SocketId, socket: Arc<UdpSocket>) -> io::Result<Self> {
        Ok(Self {
            id,
            port: socket.local_addr()?.port(),
            family: Family::of(socket)?,
        })
    }

    pub fn id(&self) -> SocketId {
        self.id
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn family(&self) -> &Family {
        &self.family
    }

    /// Is it this very socket?
    pub fn is(&self, id: SocketId, socket: &Arc<UdpSocket>) -> bool {
        self.id == id && Arc::ptr_eq(self.family.socket(), socket)
    }
}

impl Drop for LentSocket {
    fn drop(&mut self) {
        self.family.leave();
    }
}

/// Lent sockets by port.
pub(crate) type LentSockets = BTreeMap<u16, Arc<LentSocket>>;

/// All that was lent, and all aliases.
#[derive(Default)]
pub(crate) struct Lent {
    sockets: LentSockets,
    by_remote: BTreeMap<SocketAddr, u16>,
    aliases: BTreeMap<SocketAddr, SocketAddr>,
}

impl PartialEq for Lent {
    fn eq(&self, other: &Self) -> bool {
        let same = |(a, b): (&Arc<LentSocket>, &Arc<LentSocket>)| Arc::ptr_eq(a, b);
        self.sockets.len() == other.sockets.len()
            && self.sockets.values().zip(other.sockets.values()).all(same)
            && self.by_remote == other.by_remote
            && self.aliases == other.aliases
    }
}

impl Lent {
    /// What is to be lent. Sockets that were lent before are used on. Says what failed.
    pub fn new(
        before: &Self,
        adopted: &[Adopted],
        aliases: &BTreeSet<Alias>,
    ) -> (Self, Option<String>) {
        let aliases = aliases.iter().map(|alias| (alias.late, alias.path));
        let mut lent = Self {
            aliases: aliases.collect(),
            ..Self::default()
        };
        let mut failure = None;
        for Adopted { remote, id, socket } in adopted {
            match lent.take(before, *id, socket) {
                Ok(port) => {
                    lent.by_remote.insert(*remote, port);
                }
                Err(error) => {
                    failure = Some(format!("cannot use another port towards {remote}: {error}"));
                }
            }
        }
        (lent, failure)
    }

    fn take(&mut self, before: &Self, id: SocketId, socket: &Arc<UdpSocket>) -> io::Result<u16> {
        let held = self.sockets.values().chain(before.sockets.values());
        let socket = match held.clone().find(|held| held.is(id, socket)) {
            Some(held) => held.clone(),
            None => Arc::new(LentSocket::new(id, socket.clone())?),
        };
        let port = socket.port();
        self.sockets.insert(port, socket);
        Ok(port)
    }

    /// The sockets.
    pub fn sockets(&self) -> &LentSockets {
        &self.sockets
    }

    /// The one on a port.
    pub fn socket(&self, port: u16) -> Option<&Arc<LentSocket>> {
        self.sockets.get(&port)
    }

    /// The one that was lent to a peer.
    pub fn family(&self, remote: SocketAddr) -> Option<&Family> {
        if self.by_remote.is_empty() {
            return None;
        }
        let port = self.by_remote.get(&remote)?;
        Some(self.sockets.get(port)?.family())
    }

    /// Where what came from there counts as come from.
    pub fn path(&self, remote: SocketAddr) -> SocketAddr {
        if self.aliases.is_empty() {
            return remote;
        }
        self.aliases.get(&remote).copied().unwrap_or(remote)
    }
}

/// Waits for datagrams of the new sockets and no longer for those of the old; tokens are `base` and the port.
pub(crate) fn watch(epoll: &Epoll, old: &LentSockets, new: &LentSockets, base: u64) {
    let among = |socket: &Arc<LentSocket>, sockets: &LentSockets| {
        let found = sockets.get(&socket.port());
        found.is_some_and(|found| Arc::ptr_eq(found, socket))
    };
    for socket in old.values().filter(|socket| !among(socket, new)) {
        let _ = epoll.delete(socket.family().socket().as_fd());
    }
    for (port, socket) in new.iter().filter(|(_, socket)| !among(socket, old)) {
        let readable = EpollEvent::new(EpollFlags::EPOLLIN, base + u64::from(*port));
        if let Err(error) = epoll.add(socket.family().socket().as_fd(), readable) {
            tracing::warn!(port, %error, "Failed to watch a lent port");
        }
    }
}
