//! Sockets beside the main one: asked for through the plan, used once the host has opened them.

use std::collections::BTreeSet;

use mesh_types::SocketId;

/// At most so many at once: two searches of 256, and what single peers have kept.
const SOCKETS_MAX: usize = 1024;

/// Those of a node. A number is never used twice: a new number is a new local port.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    next: u32,
    wanted: BTreeSet<u32>,
    open: BTreeSet<u32>,
    changed: bool,
}

impl Sockets {
    /// Asks for so many new ones. `None` where that would be too many.
    pub(crate) fn request(&mut self, count: usize) -> Option<Vec<u32>> {
        if self.wanted.len() + count > SOCKETS_MAX {
            return None;
        }
        let first = self.next;
        self.next = first.checked_add(u32::try_from(count).ok()?)?;
        let new: Vec<u32> = (first..self.next).collect();
        self.wanted.extend(&new);
        self.changed = true;
        Some(new)
    }

    /// Gives one back.
    pub(crate) fn release(&mut self, socket: u32) {
        self.changed |= self.wanted.remove(&socket);
        self.open.remove(&socket);
    }

    /// May all of these be used?
    pub(crate) fn are_open(&self, sockets: &[u32]) -> bool {
        sockets.iter().all(|socket| self.open.contains(socket))
    }

    /// The host has opened these.
    pub(crate) fn opened(&mut self, sockets: &BTreeSet<SocketId>) {
        self.open = sockets
            .iter()
            .filter_map(|socket| socket.extra())
            .filter(|number| self.wanted.contains(number))
            .collect();
    }

    pub(crate) fn wanted(&self) -> impl Iterator<Item = SocketId> + '_ {
        self.wanted.iter().map(|number| SocketId::Extra(*number))
    }

    /// Has the list changed since this was asked last?
    pub(crate) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }
}
