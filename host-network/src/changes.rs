//! Notices of change: rtnetlink's multicast groups and nftables', coalesced.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use mesh_types::consts::NFT_TABLE;
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_sys::{
    AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket, protocols::NETLINK_NETFILTER,
};
use rtnetlink::MulticastGroup;
use rtnetlink::packet_route::RouteNetlinkMessage;
use tokio::sync::mpsc;

/// How long notices are gathered before they are passed on: a burst is one notice, and repair stays well within a second.
const GATHER: Duration = Duration::from_millis(100);
/// `NFNLGRP_NFTABLES`.
const NFTABLES_GROUP: u32 = 7;
/// `NFNL_SUBSYS_NFTABLES`, the high byte of a message's type.
const NFTABLES_SUBSYSTEM: u8 = 10;
const GROUPS: &[MulticastGroup] = &[
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
];

/// Something changed in the kernel that our plan or our report may depend on. Coalesced: at most one in 100 ms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "a set of independent facts, each read by its name"
)]
pub struct Change {
    /// A link came, went, or changed.
    pub links: bool,
    /// An address did, and not by our own doing.
    pub addresses: bool,
    /// A route did, and not by our own doing.
    pub routes: bool,
    /// A policy rule did, and not by our own doing.
    pub rules: bool,
    /// Our nftables table did, and not by converging.
    pub filters: bool,
    /// Notices were lost: anything may have changed.
    pub overrun: bool,
}

/// The netlink addresses from which we change our table ourselves.
#[derive(Debug, Clone, Default)]
pub(crate) struct Own(Arc<Mutex<Vec<u32>>>);

impl Own {
    pub(crate) fn add(&self, port: u32) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(port);
    }

    fn has(&self, port: u32) -> bool {
        let ports = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ports.contains(&port)
    }
}

impl Change {
    fn merge(self, other: Self) -> Self {
        Self {
            links: self.links || other.links,
            addresses: self.addresses || other.addresses,
            routes: self.routes || other.routes,
            rules: self.rules || other.rules,
            filters: self.filters || other.filters,
            overrun: self.overrun || other.overrun,
        }
    }

    fn of(message: &NetlinkMessage<RouteNetlinkMessage>, own: u32) -> Option<Self> {
        let foreign = message.header.port_number != own;
        let none = Self::default();
        let change = match &message.payload {
            NetlinkPayload::Overrun(_) => Self {
                overrun: true,
                ..none
            },
            NetlinkPayload::InnerMessage(inner) => match inner {
                RouteNetlinkMessage::NewLink(_) | RouteNetlinkMessage::DelLink(_) => Self {
                    links: true,
                    ..none
                },
                RouteNetlinkMessage::NewAddress(_) | RouteNetlinkMessage::DelAddress(_) => Self {
                    addresses: foreign,
                    ..none
                },
                RouteNetlinkMessage::NewRoute(_) | RouteNetlinkMessage::DelRoute(_) => Self {
                    routes: foreign,
                    ..none
                },
                RouteNetlinkMessage::NewRule(_) | RouteNetlinkMessage::DelRule(_) => Self {
                    rules: foreign,
                    ..none
                },
                _ => none,
            },
            _ => none,
        };
        (change != none).then_some(change)
    }
}

/// Subscribes, in the namespace of the calling thread. `routing` and `filters` are the netlink addresses of our own
/// requests, whose effects are no news. The tasks end when the receiver is dropped.
pub(crate) fn watch(
    routing: u32,
    filters: Option<Own>,
) -> io::Result<mpsc::UnboundedReceiver<Change>> {
    let (raw, gathered) = mpsc::unbounded_channel();
    let (connection, handle, mut messages) = rtnetlink::new_multicast_connection(GROUPS)?;
    tokio::spawn(connection);
    let out = raw.clone();
    tokio::spawn(async move {
        // The connection lives as long as its handle.
        let _handle = handle;
        while let Some((message, _)) = messages.next().await {
            if let Some(change) = Change::of(&message, routing)
                && out.send(change).is_err()
            {
                break;
            }
        }
    });
    if let Some(own) = filters {
        let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
        socket
            .socket_mut()
            .bind(&SocketAddr::new(0, 1 << (NFTABLES_GROUP - 1)))?;
        tokio::spawn(watch_filters(socket, own, raw));
    }
    let (sender, receiver) = mpsc::unbounded_channel();
    tokio::spawn(gather(gathered, sender));
    Ok(receiver)
}

async fn gather(mut raw: mpsc::UnboundedReceiver<Change>, sender: mpsc::UnboundedSender<Change>) {
    while let Some(mut change) = raw.recv().await {
        tokio::time::sleep(GATHER).await;
        while let Ok(more) = raw.try_recv() {
            change = change.merge(more);
        }
        if sender.send(change).is_err() {
            break;
        }
    }
}

async fn watch_filters(socket: TokioSocket, own: Own, out: mpsc::UnboundedSender<Change>) {
    let mut buffer = Vec::with_capacity(64 * 1024);
    loop {
        buffer.clear();
        let change = match socket.recv_from(&mut buffer).await {
            Ok(_) if touches_our_table(&buffer, &own) => Change {
                filters: true,
                ..Change::default()
            },
            Ok(_) => continue,
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Change {
                filters: true,
                overrun: true,
                ..Change::default()
            },
            Err(_) => break,
        };
        if out.send(change).is_err() {
            break;
        }
    }
}

/// Does a datagram of nftables notices name our table, and come of somebody else's doing?
fn touches_our_table(datagram: &[u8], own: &Own) -> bool {
    const HEADER: usize = 16;
    const FAMILY: usize = 4;
    let name = [NFT_TABLE.as_bytes(), &[0]].concat();
    let mut rest = datagram;
    while let Some(header) = rest.first_chunk::<HEADER>() {
        let [a, b, c, d, _, subsystem, _, _, _, _, _, _, e, f, g, h] = *header;
        let length = u32::from_ne_bytes([a, b, c, d]) as usize;
        let sender = u32::from_ne_bytes([e, f, g, h]);
        let Some(message) = rest.get(HEADER..length) else {
            return false;
        };
        // Tables, chains and rules all name their table in the first attribute, of type 1.
        let named = message.get(FAMILY + 4..FAMILY + 4 + name.len());
        if subsystem == NFTABLES_SUBSYSTEM
            && !own.has(sender)
            && message.get(FAMILY + 2..FAMILY + 4) == Some(&1_u16.to_ne_bytes()[..])
            && named == Some(name.as_slice())
        {
            return true;
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(port: u32) -> Own {
        let own = Own::default();
        own.add(1);
        own.add(port);
        own
    }

    fn notice(sender: u32, name: &str) -> Vec<u8> {
        let text = [name.as_bytes(), &[0]].concat();
        let mut attribute = ((4 + text.len()) as u16).to_ne_bytes().to_vec();
        attribute.extend(1_u16.to_ne_bytes());
        attribute.extend(&text);
        attribute.resize(attribute.len().next_multiple_of(4), 0);
        let mut message = ((20 + attribute.len()) as u32).to_ne_bytes().to_vec();
        message.extend([2, NFTABLES_SUBSYSTEM, 0, 0, 0, 0, 0, 0]);
        message.extend(sender.to_ne_bytes());
        message.extend([1, 0, 0, 0]);
        message.extend(attribute);
        message
    }

    #[test]
    fn a_notice_of_our_table_is_told_from_those_of_others_and_our_own() {
        assert!(touches_our_table(&notice(7, "farspan"), &own(8)));
        assert!(!touches_our_table(&notice(7, "farspan"), &own(7)));
        assert!(!touches_our_table(&notice(7, "farspan2"), &own(8)));
        assert!(!touches_our_table(&notice(7, "filter"), &own(8)));
        let second = [notice(7, "filter"), notice(7, "farspan")].concat();
        assert!(touches_our_table(&second, &own(8)));
    }

    #[test]
    fn no_cut_or_garbled_notice_panics() {
        let whole = notice(7, "farspan");
        for end in 0..whole.len() {
            assert!(!touches_our_table(&whole[..end], &own(8)));
        }
        for at in 0..whole.len() {
            let mut garbled = whole.clone();
            garbled[at] ^= 0xff;
            let _ = touches_our_table(&garbled, &own(8));
        }
    }
}
