//! Names of parts of a network, segments and hosts.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::firewall::Firewall;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub(crate) usize);
    };
}
id!(
    /// A host.
    HostId
);
id!(
    /// A router.
    RouterId
);
id!(
    /// A LAN, or the core of the internet.
    SegmentId
);
id!(
    /// The attachment of a host or router to a segment.
    LinkId
);

/// Address families a host has on a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Families {
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
    /// Both, where the segment has both.
    Both,
}

impl Families {
    pub(crate) fn v4(self) -> bool {
        match self {
            Self::V4 | Self::Both => true,
            Self::V6 => false,
        }
    }

    pub(crate) fn v6(self) -> bool {
        match self {
            Self::V6 | Self::Both => true,
            Self::V4 => false,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    Host(HostId),
    Router(RouterId),
}

#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) v4: Ipv4Net,
    pub(crate) v6: Option<Ipv6Net>,
    pub(crate) owners: BTreeMap<IpAddr, LinkId>,
    pub(crate) routes: Vec<(IpNet, LinkId)>,
    pub(crate) uplink: Option<RouterId>,
    next: u32,
}

impl Segment {
    pub(crate) fn new(v4: Ipv4Net, v6: Option<Ipv6Net>, uplink: Option<RouterId>) -> Self {
        Self {
            v4,
            v6,
            owners: BTreeMap::new(),
            routes: Vec::new(),
            uplink,
            // .1 is the router's own.
            next: 2,
        }
    }

    pub(crate) fn contains(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(ip) => self.v4.contains(&ip),
            IpAddr::V6(ip) => self.v6.is_some_and(|net| net.contains(&ip)),
        }
    }

    /// Next free IPv4 address: never given twice.
    pub(crate) fn next_v4(&mut self) -> Ipv4Addr {
        let address = u32::from(self.v4.network()) + self.next;
        self.next += 1;
        Ipv4Addr::from(address)
    }

    /// Next free IPv6 address: never given twice.
    pub(crate) fn next_v6(&mut self) -> Option<Ipv6Addr> {
        let address = u128::from(self.v6?.network()) + u128::from(self.next);
        self.next += 1;
        Some(Ipv6Addr::from(address))
    }

    /// Who takes a packet: the owner of the address, else the most specific route.
    pub(crate) fn next_hop(&self, destination: IpAddr) -> Option<LinkId> {
        self.owners.get(&destination).copied().or_else(|| {
            self.routes
                .iter()
                .filter(|(net, _)| net.contains(&destination))
                .max_by_key(|(net, _)| net.prefix_len())
                .map(|(_, link)| *link)
        })
    }
}

#[derive(Debug)]
pub(crate) struct Interface {
    pub(crate) name: String,
    pub(crate) link: LinkId,
    pub(crate) families: Families,
    pub(crate) addresses: Vec<IpAddr>,
}

#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) name: String,
    pub(crate) interfaces: Vec<Interface>,
    pub(crate) ipv6_off: bool,
    pub(crate) firewall: Option<Firewall>,
    pub(crate) ports: BTreeSet<u16>,
}
