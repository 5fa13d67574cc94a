//! Routers: what lies between two segments.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Instant;

use ipnet::Ipv4Net;

use crate::firewall::{Firewall, FirewallSpec};
use crate::link::LinkSpec;
use crate::nat::{Nat, NatSpec};
use crate::network::Packet;
use crate::random::Random;
use crate::topology::{LinkId, RouterId, SegmentId};

/// What a router does with IPv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Translation {
    /// Routes it unchanged.
    None,
    /// Each host inside has an external address of its own, ports unchanged (a cloud's elastic address).
    OneToOne,
    /// Many hosts share one address.
    Nat(NatSpec),
}

/// A router to add.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouterSpec {
    /// The segment outside: the core or another router's LAN.
    pub parent: SegmentId,
    /// What it does with IPv4.
    pub translation: Translation,
    /// Its LAN. Different sites may use the same range.
    pub inside: Ipv4Net,
    /// Gives its LAN public IPv6 addresses, where the parent has IPv6.
    pub ipv6: bool,
    /// Filters what it does not translate: IPv6, and IPv4 unless [`Translation::Nat`].
    pub firewall: Option<FirewallSpec>,
    /// Its uplink.
    pub link: LinkSpec,
}

/// A router and what is inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Site {
    /// The router.
    pub router: RouterId,
    /// Its LAN.
    pub lan: SegmentId,
    /// Its uplink.
    pub uplink: LinkId,
}

#[derive(Debug)]
pub(crate) enum Translator {
    None,
    OneToOne {
        /// External address by inside address.
        outward: BTreeMap<Ipv4Addr, Ipv4Addr>,
    },
    Nat {
        external: Ipv4Addr,
        nat: Nat,
    },
}

#[derive(Debug)]
pub(crate) struct Router {
    pub(crate) wan: LinkId,
    pub(crate) lan: SegmentId,
    pub(crate) translator: Translator,
    pub(crate) firewall: Option<Firewall>,
    pub(crate) udp_blocked: bool,
}

/// Where a packet goes after a router.
#[derive(Debug)]
pub(crate) enum Passage {
    Out(Packet),
    In(Packet),
    Dropped(&'static str),
}

impl Router {
    pub(crate) fn forget(&mut self) {
        if let Translator::Nat { nat, .. } = &mut self.translator {
            nat.forget();
        }
        if let Some(firewall) = &mut self.firewall {
            firewall.forget();
        }
    }

    /// A packet from the LAN.
    pub(crate) fn outward(
        &mut self,
        mut packet: Packet,
        random: &mut Random,
        now: Instant,
    ) -> Passage {
        if let Some(refused) = self.hop(&mut packet) {
            return Passage::Dropped(refused);
        }
        match (&mut self.translator, packet.source, packet.destination) {
            (
                Translator::Nat { external, nat },
                SocketAddr::V4(source),
                SocketAddr::V4(destination),
            ) => {
                if destination.ip() == external && !nat.spec().hairpin {
                    return Passage::Dropped("no hairpin");
                }
                let Some(port) = nat.outbound(source, destination, random, now) else {
                    return Passage::Dropped("no free port");
                };
                packet.source = SocketAddr::new(IpAddr::V4(*external), port);
                if destination.ip() == external {
                    return self.inward_translated(packet, now);
                }
            }
            (Translator::OneToOne { outward }, SocketAddr::V4(source), SocketAddr::V4(_)) => {
                self.firewall
                    .iter_mut()
                    .for_each(|f| f.outbound(packet.source, packet.destination, now));
                let Some(external) = outward.get(source.ip()) else {
                    return Passage::Dropped("no external address");
                };
                packet.source.set_ip(IpAddr::V4(*external));
                if outward
                    .values()
                    .any(|ip| IpAddr::V4(*ip) == packet.destination.ip())
                {
                    return self.inward_translated(packet, now);
                }
            }
            (Translator::None | Translator::OneToOne { .. } | Translator::Nat { .. }, _, _) => {
                self.firewall
                    .iter_mut()
                    .for_each(|f| f.outbound(packet.source, packet.destination, now));
            }
        }
        Passage::Out(packet)
    }

    /// A packet from outside.
    pub(crate) fn inward(&mut self, mut packet: Packet, now: Instant) -> Passage {
        if let Some(refused) = self.hop(&mut packet) {
            return Passage::Dropped(refused);
        }
        self.inward_translated(packet, now)
    }

    fn inward_translated(&mut self, mut packet: Packet, now: Instant) -> Passage {
        match (&mut self.translator, packet.source, packet.destination) {
            (Translator::Nat { nat, .. }, SocketAddr::V4(source), SocketAddr::V4(destination)) => {
                let Some(inside) = nat.inbound(destination.port(), source, now) else {
                    return Passage::Dropped("filtered by a NAT");
                };
                packet.destination = SocketAddr::V4(inside);
                return Passage::In(packet);
            }
            (Translator::OneToOne { outward }, _, SocketAddr::V4(destination)) => {
                let Some((inside, _)) = outward.iter().find(|(_, out)| *out == destination.ip())
                else {
                    return Passage::Dropped("no such address inside");
                };
                packet.destination.set_ip(IpAddr::V4(*inside));
            }
            (Translator::None | Translator::OneToOne { .. } | Translator::Nat { .. }, _, _) => {}
        }
        if let Some(firewall) = &mut self.firewall
            && !firewall.admits(packet.destination, packet.source, now)
        {
            return Passage::Dropped("filtered by a firewall");
        }
        Passage::In(packet)
    }

    fn hop(&self, packet: &mut Packet) -> Option<&'static str> {
        if self.udp_blocked {
            return Some("UDP blocked");
        }
        packet.ttl = packet.ttl.saturating_sub(1);
        (packet.ttl == 0).then_some("TTL exceeded")
    }
}
