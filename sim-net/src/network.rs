//! The network: building it, sending, what arrives, and its faults.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Instant;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use mesh_types::report::HostAddress;

use crate::firewall::{Firewall, FirewallSpec};
use crate::link::{Counters, Direction, Link, LinkSpec, Tapped};
use crate::nat::{Nat, NatSpec};
use crate::random::Random;
use crate::router::{Passage, Router, RouterSpec, Site, Translation, Translator};
use crate::topology::{
    Families, Host, HostId, Interface, LinkId, Owner, RouterId, Segment, SegmentId,
};

/// Hops the core of the internet takes.
const CORE_HOPS: u8 = 4;
/// Hop limit unless given.
const TTL: u8 = 64;

/// A datagram that reached a bound port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// Whose port.
    pub host: HostId,
    /// To, as the host sees it.
    pub local: SocketAddr,
    /// From, as the host sees it.
    pub remote: SocketAddr,
    /// The payload.
    pub bytes: Vec<u8>,
    /// When.
    pub at: Instant,
}

/// The host has no address of that family, or not the source address asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unreachable;

#[derive(Debug, Clone)]
pub(crate) struct Packet {
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
    pub(crate) ttl: u8,
    pub(crate) bytes: Vec<u8>,
}

impl Packet {
    fn wire_len(&self) -> u64 {
        let header = if self.source.is_ipv4() { 28 } else { 48 };
        self.bytes.len() as u64 + header
    }
}

#[derive(Debug, Clone, Copy)]
enum Step {
    /// The packet has crossed a link into its segment.
    Entered(LinkId),
    /// The packet has crossed a link to its owner.
    Arrived(LinkId),
    /// The packet never left its host.
    Loopback(HostId),
}

/// A simulated internet.
#[derive(Debug)]
pub struct Network {
    now: Instant,
    sequence: u64,
    random: Random,
    events: BTreeMap<(Instant, u64), (Step, Packet)>,
    deliveries: VecDeque<Delivery>,
    segments: Vec<Segment>,
    links: Vec<Link>,
    routers: Vec<Router>,
    hosts: Vec<Host>,
    sites: u16,
    /// Pairs of links between which nothing passes, the lower first.
    severed: BTreeSet<(LinkId, LinkId)>,
    dropped: BTreeMap<&'static str, u64>,
}

impl Network {
    /// The core of the internet, with nothing attached: 5.0.0.0/8 and 2a00::/64.
    pub fn new(seed: u64, start: Instant) -> Self {
        let v4 = Ipv4Net::new_assert(Ipv4Addr::new(5, 0, 0, 0), 8);
        let v6 = Ipv6Net::new_assert(Ipv6Addr::new(0x2a00, 0, 0, 0, 0, 0, 0, 0), 64);
        Self {
            now: start,
            sequence: 0,
            random: Random::new(seed),
            events: BTreeMap::new(),
            deliveries: VecDeque::new(),
            segments: vec![Segment::new(v4, Some(v6), None)],
            links: Vec::new(),
            routers: Vec::new(),
            hosts: Vec::new(),
            sites: 0,
            severed: BTreeSet::new(),
            dropped: BTreeMap::new(),
        }
    }

    /// The segment of public addresses.
    pub fn core(&self) -> SegmentId {
        SegmentId(0)
    }

    /// Adds a router and the LAN behind it.
    pub fn add_router(&mut self, spec: RouterSpec) -> Site {
        let router = RouterId(self.routers.len());
        let lan = SegmentId(self.segments.len());
        let uplink = self.add_link(Owner::Router(router), spec.parent, spec.link);
        self.sites += 1;
        let v6 = (spec.ipv6 && self.segments[spec.parent.0].v6.is_some()).then(|| {
            Ipv6Net::new_assert(Ipv6Addr::new(0x2a00, 0x100, self.sites, 0, 0, 0, 0, 0), 64)
        });
        self.segments
            .push(Segment::new(spec.inside, v6, Some(router)));
        let translator = match spec.translation {
            Translation::None => Translator::None,
            Translation::OneToOne => Translator::OneToOne {
                outward: BTreeMap::new(),
            },
            Translation::Nat(nat) => Translator::Nat {
                external: self.external_address(uplink),
                nat: Nat::new(nat, &mut self.random),
            },
        };
        self.routers.push(Router {
            wan: uplink,
            lan,
            translator,
            firewall: spec.firewall.map(Firewall::new),
            udp_blocked: false,
        });
        let routed =
            matches!(spec.translation, Translation::None).then_some(IpNet::V4(spec.inside));
        for net in routed.into_iter().chain(v6.map(IpNet::V6)) {
            self.add_route(net, uplink);
        }
        Site {
            router,
            lan,
            uplink,
        }
    }

    /// Adds a host with one interface, `eth0`.
    pub fn add_host(
        &mut self,
        name: &str,
        segment: SegmentId,
        families: Families,
        link: LinkSpec,
    ) -> HostId {
        let host = HostId(self.hosts.len());
        self.hosts.push(Host {
            name: name.to_owned(),
            interfaces: Vec::new(),
            ipv6_off: false,
            firewall: None,
            ports: BTreeSet::new(),
        });
        self.attach(host, segment, families, link);
        host
    }

    /// Adds an interface to a host.
    pub fn attach(
        &mut self,
        host: HostId,
        segment: SegmentId,
        families: Families,
        link: LinkSpec,
    ) -> LinkId {
        let link = self.add_link(Owner::Host(host), segment, link);
        let interface = Interface {
            name: format!("eth{}", self.hosts[host.0].interfaces.len()),
            link,
            families,
            addresses: Vec::new(),
        };
        self.hosts[host.0].interfaces.push(interface);
        self.readdress_host(host);
        link
    }

    /// Opens a port for all addresses of a host.
    pub fn bind(&mut self, host: HostId, port: u16) {
        self.hosts[host.0].ports.insert(port);
    }

    /// Closes a port.
    pub fn unbind(&mut self, host: HostId, port: u16) {
        self.hosts[host.0].ports.remove(&port);
    }

    /// Sends a datagram. A source address that is unspecified is chosen as by a routing table: that of the
    /// interface whose network holds the destination, else the first of that family.
    pub fn send(
        &mut self,
        host: HostId,
        source: SocketAddr,
        destination: SocketAddr,
        bytes: Vec<u8>,
        ttl: Option<u8>,
    ) -> Result<(), Unreachable> {
        let (link, ip) = self.route(host, source.ip(), destination.ip())?;
        let source = SocketAddr::new(ip, source.port());
        let packet = Packet {
            source,
            destination,
            ttl: ttl.unwrap_or(TTL),
            bytes,
        };
        if self.owns(host, destination.ip()) {
            self.schedule(self.now, Step::Loopback(host), packet);
            return Ok(());
        }
        let now = self.now;
        if let Some(firewall) = &mut self.hosts[host.0].firewall {
            firewall.outbound(source, destination, now);
        }
        self.leave(link, packet);
        Ok(())
    }

    /// The next datagram that arrived, in the order of arrival.
    pub fn poll(&mut self) -> Option<Delivery> {
        self.deliveries.pop_front()
    }

    /// When the next packet moves.
    pub fn next_event_at(&self) -> Option<Instant> {
        self.events.first_key_value().map(|((at, _), _)| *at)
    }

    /// Lets time pass up to `to`, at most up to the first arrival; returns the time that is reached.
    pub fn advance_to(&mut self, to: Instant) -> Instant {
        while self.deliveries.is_empty()
            && let Some(entry) = self.events.first_entry()
            && entry.key().0 <= to
        {
            let ((at, _), (step, packet)) = entry.remove_entry();
            self.now = self.now.max(at);
            self.step(step, packet);
        }
        if self.deliveries.is_empty() {
            self.now = self.now.max(to);
        }
        self.now
    }

    /// Virtual time.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// A host's name.
    pub fn name(&self, host: HostId) -> &str {
        &self.hosts[host.0].name
    }

    /// A host's addresses as its kernel shows them; those of a link that is down are gone.
    pub fn addresses(&self, host: HostId) -> Vec<HostAddress> {
        let host = &self.hosts[host.0];
        let mut out = Vec::new();
        for interface in host.interfaces.iter().filter(|i| self.links[i.link.0].up) {
            let id = self.links[interface.link.0].segment;
            let segment = &self.segments[id.0];
            for ip in interface.addresses.iter().copied() {
                // Nobody in the core is a neighbour.
                let prefix_len = match ip {
                    IpAddr::V6(_) if host.ipv6_off => continue,
                    IpAddr::V4(_) if id == self.core() => 32,
                    IpAddr::V6(_) if id == self.core() => 128,
                    IpAddr::V4(_) => segment.v4.prefix_len(),
                    IpAddr::V6(_) => 64,
                };
                out.push(HostAddress {
                    interface: interface.name.clone(),
                    ip,
                    prefix_len,
                    stable: true,
                });
            }
        }
        out
    }

    /// The links of a host's interfaces.
    pub fn links(&self, host: HostId) -> Vec<LinkId> {
        let interfaces = &self.hosts[host.0].interfaces;
        interfaces.iter().map(|interface| interface.link).collect()
    }

    /// What has crossed a link.
    pub fn counters(&self, link: LinkId, direction: Direction) -> Counters {
        self.links[link.0].counters[direction as usize]
    }

    /// Records from now on every packet that enters a link.
    pub fn tap(&mut self, link: LinkId) {
        self.links[link.0].tap.get_or_insert_default();
    }

    /// What a tap has recorded.
    pub fn tapped(&self, link: LinkId) -> &[Tapped] {
        self.links[link.0].tap.as_deref().unwrap_or_default()
    }

    /// Packets dropped, by reason.
    pub fn dropped(&self) -> &BTreeMap<&'static str, u64> {
        &self.dropped
    }

    /// Mappings that a router holds; 0 where it does not translate.
    pub fn mappings(&self, router: RouterId) -> usize {
        match &self.routers[router.0].translator {
            Translator::Nat { nat, .. } => nat.mappings(self.now),
            Translator::None | Translator::OneToOne { .. } => 0,
        }
    }

    /// A router's external address, where it has a single one.
    pub fn external(&self, router: RouterId) -> Option<Ipv4Addr> {
        match &self.routers[router.0].translator {
            Translator::Nat { external, .. } => Some(*external),
            Translator::None | Translator::OneToOne { .. } => None,
        }
    }

    /// What a router's translator is like, where it has one.
    pub fn nat(&self, router: RouterId) -> Option<NatSpec> {
        match &self.routers[router.0].translator {
            Translator::Nat { nat, .. } => Some(*nat.spec()),
            Translator::None | Translator::OneToOne { .. } => None,
        }
    }
}

/// Faults.
impl Network {
    /// Changes how a link treats packets.
    pub fn set_link(&mut self, link: LinkId, spec: LinkSpec) {
        self.links[link.0].spec = spec;
    }

    /// How a link treats packets.
    pub fn link(&self, link: LinkId) -> LinkSpec {
        self.links[link.0].spec
    }

    /// Packets longer than this, IP header included, are lost on a link without a word, as where ICMP is filtered.
    pub fn set_link_mtu(&mut self, link: LinkId, mtu: u16) {
        self.links[link.0].mtu = mtu.into();
    }

    /// Cuts a link: packets vanish, and a host loses its addresses.
    pub fn cut(&mut self, link: LinkId) {
        self.links[link.0].up = false;
    }

    /// Mends a link.
    pub fn mend(&mut self, link: LinkId) {
        self.links[link.0].up = true;
    }

    /// Nothing passes from one link of a segment to another of it, either way; both still reach all others.
    pub fn sever(&mut self, a: LinkId, b: LinkId) {
        self.severed.insert((a.min(b), a.max(b)));
    }

    /// Undoes [`Self::sever`].
    pub fn rejoin(&mut self, a: LinkId, b: LinkId) {
        self.severed.remove(&(a.min(b), a.max(b)));
    }

    /// A router loses its mappings and flows.
    pub fn forget(&mut self, router: RouterId) {
        self.routers[router.0].forget();
    }

    /// A router starts anew: it forgets, and allocates other ports.
    pub fn reboot(&mut self, router: RouterId) {
        self.routers[router.0].forget();
        if let Translator::Nat { nat, .. } = &mut self.routers[router.0].translator {
            nat.reboot(&mut self.random);
        }
    }

    /// A translating router starts anew with another external address.
    pub fn readdress_router(&mut self, router: RouterId) {
        self.reboot(router);
        let wan = self.routers[router.0].wan;
        let address = match &self.routers[router.0].translator {
            Translator::Nat { external, .. } => *external,
            Translator::None | Translator::OneToOne { .. } => return,
        };
        let segment = self.links[wan.0].segment;
        self.segments[segment.0].owners.remove(&IpAddr::V4(address));
        let fresh = self.external_address(wan);
        if let Translator::Nat { external, .. } = &mut self.routers[router.0].translator {
            *external = fresh;
        }
    }

    /// A translating router behaves otherwise from now on, and keeps its mappings.
    pub fn set_nat(&mut self, router: RouterId, spec: NatSpec) {
        if let Translator::Nat { nat, .. } = &mut self.routers[router.0].translator {
            nat.set_spec(spec);
        }
    }

    /// A router lets no UDP through, or does again.
    pub fn set_udp_blocked(&mut self, router: RouterId, blocked: bool) {
        self.routers[router.0].udp_blocked = blocked;
    }

    /// A host filters what comes in, or no longer.
    pub fn set_host_firewall(&mut self, host: HostId, spec: Option<FirewallSpec>) {
        self.hosts[host.0].firewall = spec.map(Firewall::new);
    }

    /// Takes IPv6 from a host (`disable_ipv6`), or gives it back.
    pub fn set_ipv6_off(&mut self, host: HostId, off: bool) {
        self.hosts[host.0].ipv6_off = off;
        self.readdress_host(host);
    }

    /// A host gets other addresses on all its links.
    pub fn readdress_host(&mut self, host: HostId) {
        for index in 0..self.hosts[host.0].interfaces.len() {
            let (link, families) = {
                let interface = &mut self.hosts[host.0].interfaces[index];
                (interface.link, interface.families)
            };
            self.drop_addresses(host, index);
            let ipv6_off = self.hosts[host.0].ipv6_off;
            let segment = self.links[link.0].segment;
            let v4 = families
                .v4()
                .then(|| IpAddr::V4(self.segments[segment.0].next_v4()));
            let v6 = (families.v6() && !ipv6_off)
                .then(|| self.segments[segment.0].next_v6().map(IpAddr::V6))
                .flatten();
            for ip in v4.into_iter().chain(v6) {
                self.segments[segment.0].owners.insert(ip, link);
                self.hosts[host.0].interfaces[index].addresses.push(ip);
                self.map_one_to_one(segment, ip);
            }
        }
    }

    /// A host's first interface moves to another segment, where it gets other addresses.
    pub fn move_host(&mut self, host: HostId, segment: SegmentId) {
        self.drop_addresses(host, 0);
        let link = self.hosts[host.0].interfaces[0].link;
        self.links[link.0].segment = segment;
        self.readdress_host(host);
    }
}

impl Network {
    fn add_link(&mut self, owner: Owner, segment: SegmentId, spec: LinkSpec) -> LinkId {
        self.links.push(Link::new(owner, segment, spec));
        LinkId(self.links.len() - 1)
    }

    /// Routes a range to a router's uplink, from its segment up to the core.
    fn add_route(&mut self, net: IpNet, mut via: LinkId) {
        loop {
            let segment = &mut self.segments[self.links[via.0].segment.0];
            segment.routes.push((net, via));
            let Some(router) = segment.uplink else { return };
            via = self.routers[router.0].wan;
        }
    }

    fn external_address(&mut self, wan: LinkId) -> Ipv4Addr {
        let segment = self.links[wan.0].segment;
        let address = self.segments[segment.0].next_v4();
        self.segments[segment.0]
            .owners
            .insert(IpAddr::V4(address), wan);
        self.map_one_to_one(segment, IpAddr::V4(address));
        address
    }

    fn map_one_to_one(&mut self, segment: SegmentId, ip: IpAddr) {
        let (Some(router), IpAddr::V4(inside)) = (self.segments[segment.0].uplink, ip) else {
            return;
        };
        if !matches!(
            self.routers[router.0].translator,
            Translator::OneToOne { .. }
        ) {
            return;
        }
        let external = self.external_address(self.routers[router.0].wan);
        if let Translator::OneToOne { outward } = &mut self.routers[router.0].translator {
            outward.insert(inside, external);
        }
    }

    fn drop_addresses(&mut self, host: HostId, interface: usize) {
        let interface = &mut self.hosts[host.0].interfaces[interface];
        let segment = self.links[interface.link.0].segment;
        for ip in interface.addresses.drain(..) {
            self.segments[segment.0].owners.remove(&ip);
        }
    }

    fn owns(&self, host: HostId, ip: IpAddr) -> bool {
        self.hosts[host.0]
            .interfaces
            .iter()
            .any(|interface| interface.addresses.contains(&ip))
    }

    fn route(
        &self,
        host: HostId,
        source: IpAddr,
        destination: IpAddr,
    ) -> Result<(LinkId, IpAddr), Unreachable> {
        let host = &self.hosts[host.0];
        let mut first = None;
        for interface in host.interfaces.iter().filter(|i| self.links[i.link.0].up) {
            let address = interface.addresses.iter().copied().find(|ip| {
                ip.is_ipv4() == destination.is_ipv4() && (source.is_unspecified() || *ip == source)
            });
            let Some(address) = address else { continue };
            let segment = self.links[interface.link.0].segment;
            if self.segments[segment.0].contains(destination) {
                return Ok((interface.link, address));
            }
            first.get_or_insert((interface.link, address));
        }
        first.ok_or(Unreachable)
    }

    fn schedule(&mut self, at: Instant, step: Step, packet: Packet) {
        self.sequence += 1;
        self.events.insert((at, self.sequence), (step, packet));
    }

    fn step(&mut self, step: Step, packet: Packet) {
        match step {
            Step::Entered(link) => self.forward(Some(link), self.links[link.0].segment, packet),
            Step::Arrived(link) => match self.links[link.0].owner {
                Owner::Host(host) => self.receive(host, packet, true),
                Owner::Router(router) => {
                    let passage = self.routers[router.0].inward(packet, self.now);
                    self.pass(router, passage);
                }
            },
            Step::Loopback(host) => self.receive(host, packet, false),
        }
    }

    /// A packet leaves a host or router by its link.
    fn leave(&mut self, link: LinkId, packet: Packet) {
        self.cross(link, Direction::Out, packet);
    }

    /// A packet is in a segment.
    fn forward(&mut self, from: Option<LinkId>, segment: SegmentId, mut packet: Packet) {
        if segment == self.core() {
            packet.ttl = packet.ttl.saturating_sub(CORE_HOPS);
            if packet.ttl == 0 {
                return self.drop("TTL exceeded");
            }
        }
        let here = &self.segments[segment.0];
        match here.next_hop(packet.destination.ip()) {
            Some(link) if Some(link) == from => self.drop("returned to sender"),
            Some(link) if from.is_some_and(|from| self.is_severed(from, link)) => {
                self.drop("severed");
            }
            Some(link) => self.cross(link, Direction::In, packet),
            None if here.contains(packet.destination.ip()) => self.drop("no such address"),
            None => match here.uplink {
                Some(router) if from != Some(self.routers[router.0].wan) => {
                    let now = self.now;
                    let passage = self.routers[router.0].outward(packet, &mut self.random, now);
                    self.pass(router, passage);
                }
                Some(_) | None => self.drop("no such address"),
            },
        }
    }

    fn is_severed(&self, a: LinkId, b: LinkId) -> bool {
        self.severed.contains(&(a.min(b), a.max(b)))
    }

    fn pass(&mut self, router: RouterId, passage: Passage) {
        match passage {
            Passage::Out(packet) => self.leave(self.routers[router.0].wan, packet),
            Passage::In(packet) => self.forward(None, self.routers[router.0].lan, packet),
            Passage::Dropped(reason) => self.drop(reason),
        }
    }

    fn cross(&mut self, id: LinkId, direction: Direction, packet: Packet) {
        let now = self.now;
        let link = &mut self.links[id.0];
        let counters = &mut link.counters[direction as usize];
        counters.packets += 1;
        counters.bytes += packet.wire_len();
        if let Some(tap) = &mut link.tap {
            tap.push(Tapped {
                at: now,
                direction,
                source: packet.source,
                destination: packet.destination,
                bytes: packet.bytes.clone(),
            });
        }
        if packet.wire_len() > link.mtu {
            return self.drop("longer than the link's MTU");
        }
        let [once, twice] = link.cross(direction, &mut self.random, now);
        let step = match direction {
            Direction::Out => Step::Entered(id),
            Direction::In => Step::Arrived(id),
        };
        let Some(once) = once else {
            return self.drop("lost on a link");
        };
        if let Some(twice) = twice {
            self.schedule(twice, step, packet.clone());
        }
        self.schedule(once, step, packet);
    }

    fn receive(&mut self, id: HostId, packet: Packet, filtered: bool) {
        let now = self.now;
        if !self.owns(id, packet.destination.ip()) {
            return self.drop("address has moved");
        }
        let host = &mut self.hosts[id.0];
        if filtered
            && let Some(firewall) = &mut host.firewall
            && !firewall.admits(packet.destination, packet.source, now)
        {
            return self.drop("filtered by a host");
        }
        if !host.ports.contains(&packet.destination.port()) {
            return self.drop("port closed");
        }
        self.deliveries.push_back(Delivery {
            host: id,
            local: packet.destination,
            remote: packet.source,
            bytes: packet.bytes,
            at: now,
        });
    }

    fn drop(&mut self, reason: &'static str) {
        *self.dropped.entry(reason).or_default() += 1;
    }
}
