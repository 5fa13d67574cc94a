//! Places for nodes, their keys and their papers.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use mesh_types::cluster::{self, PodNetwork};
use mesh_types::consts::{
    FWMARK, FWMARK_MASK, INTERFACE, MTU, RELAY_NODE_PAIRS, RELAY_PAIR_RATE, RELAY_PORTS,
};
use mesh_types::observation::ConfigPeer;
use mesh_types::record::Features;
use mesh_types::report::Backend;
use mesh_types::{
    Announcement, Candidate, CandidateKind, DomainId, IdentitySecret, IpNet, Ipv4Net, Membership,
    NatReport, NodeKey, Signed, State, WgSecret, address,
};
use overlay::{Config, Kubernetes};
use sim_net::{
    Families, FirewallSpec, HostId, LinkSpec, NatSpec, RouterSpec, SegmentId, Site, Translation,
};

use super::{Disk, Node, NodeId, World};

/// What lies between a LAN and the core.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Access {
    /// Nothing: a public address.
    Public,
    /// A translator.
    Nat(NatSpec),
    /// An elastic address, and a firewall that admits established flows where asked for.
    OneToOne { firewall: bool },
    /// A translator behind a carrier's.
    Carrier { home: NatSpec, carrier: NatSpec },
}

/// A LAN, or the core.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    pub segment: SegmentId,
    /// The router at the LAN, the core's side last.
    pub sites: [Option<Site>; 2],
    pub access: Access,
}

/// How a node sits in its place.
#[derive(Debug, Clone, Copy)]
pub struct Seat {
    pub families: Families,
    pub link: LinkSpec,
    pub backend: Backend,
    /// Its host admits established flows only.
    pub firewall: bool,
}

impl Seat {
    /// IPv4 on a wire, in userspace, nothing filtered.
    pub const V4: Self = Self {
        families: Families::V4,
        link: LinkSpec::LAN,
        backend: Backend::Userspace,
        firewall: false,
    };
}

impl World {
    /// A LAN behind some access, with IPv6 (firewalled) where asked for.
    pub fn place(&mut self, access: Access, ipv6: bool) -> Place {
        self.place_with(access, ipv6, LinkSpec::UPLINK)
    }

    pub fn place_with(&mut self, access: Access, ipv6: bool, link: LinkSpec) -> Place {
        let core = self.net.core();
        self.sites += 1;
        // Many homes use the same range.
        let home = Ipv4Net::new_assert(Ipv4Addr::new(192, 168, self.sites % 2, 0), 24);
        let router = |parent, translation, inside, firewall| RouterSpec {
            parent,
            translation,
            inside,
            ipv6,
            firewall,
            link,
        };
        let established = Some(FirewallSpec::ESTABLISHED);
        let (segment, sites) = match access {
            Access::Public => (core, [None, None]),
            Access::Nat(nat) => {
                let spec = router(core, Translation::Nat(nat), home, established);
                let site = self.net.add_router(spec);
                (site.lan, [Some(site), None])
            }
            Access::OneToOne { firewall } => {
                let firewall = firewall.then_some(FirewallSpec::ESTABLISHED);
                let spec = router(core, Translation::OneToOne, home, firewall);
                let site = self.net.add_router(spec);
                (site.lan, [Some(site), None])
            }
            Access::Carrier { home: nat, carrier } => {
                let range = Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 10);
                let outer =
                    self.net
                        .add_router(router(core, Translation::Nat(carrier), range, None));
                let spec = router(outer.lan, Translation::Nat(nat), home, established);
                let inner = self.net.add_router(spec);
                (inner.lan, [Some(inner), Some(outer)])
            }
        };
        Place {
            segment,
            sites,
            access,
        }
    }

    /// A STUN server at a public address: its host, and what nodes have in their configuration.
    pub fn stun_server(&mut self, name: &str) -> (HostId, String) {
        let core = self.net.core();
        let host = self.net.add_host(name, core, Families::V4, LinkSpec::LAN);
        self.net.bind(host, super::stun::PORT);
        self.stun.insert(host);
        let ip = self.net.addresses(host)[0].ip;
        (host, SocketAddr::new(ip, super::stun::PORT).to_string())
    }

    /// A home behind a carrier's network that exists already.
    pub fn place_inside(&mut self, carrier: Site, nat: NatSpec) -> Place {
        self.sites += 1;
        let inside = Ipv4Net::new_assert(Ipv4Addr::new(192, 168, self.sites % 2, 0), 24);
        let site = self.net.add_router(RouterSpec {
            parent: carrier.lan,
            translation: Translation::Nat(nat),
            inside,
            ipv6: false,
            firewall: None,
            link: LinkSpec::UPLINK,
        });
        Place {
            segment: site.lan,
            sites: [Some(site), Some(carrier)],
            access: Access::Nat(nat),
        }
    }

    /// Adds a node, switched off, that knows nobody and belongs to nothing.
    pub fn node(&mut self, name: &str, place: Place, seat: Seat) -> NodeId {
        let host = self
            .net
            .add_host(name, place.segment, seat.families, seat.link);
        if seat.firewall {
            self.net
                .set_host_firewall(host, Some(FirewallSpec::ESTABLISHED));
        }
        let id = NodeId(self.nodes.len());
        let [high, low] = number(id);
        let disk = Disk {
            identity: IdentitySecret::from_bytes(&self.random.bytes()),
            key: WgSecret::from_bytes(self.random.bytes()),
            next: None,
            state: None,
        };
        let pods = IpNet::V4(Ipv4Net::new_assert(
            Ipv4Addr::new(10, 244 + high, low, 0),
            24,
        ));
        let config = Config {
            name: name.to_owned(),
            region: None,
            interface: INTERFACE.to_owned(),
            backend: seat.backend,
            listen_port: address::derived_port(&disk.identity.identity()),
            alternate_port: None,
            addresses: Vec::new(),
            routes: vec![pods],
            authorities: Vec::new(),
            peers: Vec::new(),
            stun: Vec::new(),
            fwmark: (FWMARK, FWMARK_MASK),
            forward_accept: false,
            mtu: MTU,
            may_relay: self.relays,
            relay_ports: RELAY_PORTS,
            pair_rate: RELAY_PAIR_RATE,
            node_rate: RELAY_PAIR_RATE * RELAY_NODE_PAIRS,
            birthday_search: true,
            turn: Vec::new(),
            protocol: mesh_types::consts::PROTOCOL,
            kubernetes: None,
        };
        let pod = IpAddr::V4(Ipv4Addr::new(10, 244 + high, low, 7));
        let mut node = Node::new(name, host, config, disk, pod, self.start);
        node.config.alternate_port = Some(node.alternate_port());
        self.net.bind(host, node.config.listen_port);
        self.net.bind(host, node.alternate_port());
        self.nodes.push(node);
        self.by_host.insert(host, id);
        id
    }

    /// Adds a node and signs its membership; it knows the members given and they know it, as after a join
    /// through them.
    pub fn member(&mut self, name: &str, place: Place, seat: Seat, knows: &[NodeId]) -> NodeId {
        let id = self.node(name, place, seat);
        let authority = self.authority.authority();
        self.nodes[id.0].config.authorities = vec![authority];
        let mut state = State {
            memberships: vec![self.membership(id, 1)],
            authority: Some(authority),
            ..State::default()
        };
        for known in knows {
            state.memberships.push(self.membership(*known, 1));
            state.announcements.push(self.announcement(*known));
            let mut theirs = self.nodes[known.0].state();
            theirs.memberships.push(self.membership(id, 1));
            theirs.announcements.push(self.announcement(id));
            self.nodes[known.0].disk.state = Some(theirs.encode());
        }
        self.nodes[id.0].disk.state = Some(state.encode());
        id
    }

    /// Adds a node of the cluster, with a Node object as its kubelet would make it.
    pub fn cluster_node(&mut self, name: &str, place: Place, seat: Seat) -> NodeId {
        let id = self.node(name, place, seat);
        let pods = std::mem::take(&mut self.nodes[id.0].config.routes);
        self.nodes[id.0].config.kubernetes = Some(Kubernetes {
            node: name.to_owned(),
            pod_network: PodNetwork::Own,
            cluster_cidrs: vec![IpNet::V4(Ipv4Net::new_assert(
                Ipv4Addr::new(10, 244, 0, 0),
                16,
            ))],
            external: false,
        });
        let addresses = self.net.addresses(self.nodes[id.0].host);
        let created = self.elapsed().as_secs();
        let uid = self.api().uid();
        self.api().apply(cluster::Node {
            name: name.to_owned(),
            uid,
            created,
            pod_cidrs: pods,
            internal_ips: addresses.iter().map(|address| address.ip).collect(),
            region: None,
            annotations: BTreeMap::new(),
        });
        id
    }

    pub fn domain(&self) -> DomainId {
        DomainId::standalone(Some(&self.authority.authority()))
    }

    pub fn node_key(&self, id: NodeId) -> NodeKey {
        NodeKey {
            domain: self.domain(),
            identity: self.nodes[id.0].disk.identity.identity(),
        }
    }

    pub fn membership(&self, id: NodeId, serial: u64) -> Signed<Membership> {
        let node = &self.nodes[id.0];
        let [high, low] = number(id);
        let membership = Membership {
            domain: self.domain(),
            identity: node.disk.identity.identity(),
            name: node.name.clone(),
            ipv4: Some(Ipv4Addr::new(10, 77, high, low)),
            ranges: node.config.routes.clone(),
            may_relay: node.config.may_relay,
            serial,
            not_after: None,
        };
        Signed::sign(membership, &self.authority)
    }

    /// What a node would say of itself with only its own addresses known.
    pub fn announcement(&self, id: NodeId) -> Signed<Announcement> {
        let node = &self.nodes[id.0];
        let endpoints = self
            .net
            .addresses(node.host)
            .iter()
            .map(|address| Candidate {
                kind: CandidateKind::Host,
                address: SocketAddr::new(address.ip, node.config.listen_port),
            })
            .collect();
        self.announce(id, endpoints, 1)
    }

    pub fn announce(
        &self,
        id: NodeId,
        endpoints: Vec<Candidate>,
        seq: u64,
    ) -> Signed<Announcement> {
        let node = &self.nodes[id.0];
        let addresses = self.net.addresses(node.host);
        let features = if addresses.iter().any(|address| address.ip.is_ipv6()) {
            Features::default()
        } else {
            Features::NO_IPV6
        };
        let announcement = Announcement {
            domain: self.domain(),
            identity: node.disk.identity.identity(),
            key: node.disk.key.public(),
            next_key: None,
            endpoints,
            nat: NatReport::default(),
            relays: Vec::new(),
            region: None,
            features,
            protocol_min: 1,
            protocol_max: 1,
            seq,
            name: None,
            node_uid: None,
        };
        Signed::sign(announcement, &node.disk.identity)
    }

    /// Lists one node in another's file, with its address where it has a public one.
    pub fn list(&mut self, id: NodeId, peer: NodeId, with_endpoint: bool) {
        let node = &self.nodes[peer.0];
        let addresses = self.net.addresses(node.host);
        let endpoints = addresses
            .iter()
            .filter(|_| with_endpoint)
            .map(|address| SocketAddr::new(address.ip, node.config.listen_port))
            .collect();
        let [high, low] = number(peer);
        let own = IpNet::from(IpAddr::from(Ipv4Addr::new(10, 77, high, low)));
        let entry = ConfigPeer {
            name: Some(node.name.clone()),
            key: node.disk.key.public(),
            endpoints,
            allowed_ips: node.config.routes.iter().copied().chain([own]).collect(),
            plain: false,
            preshared_key: None,
            persistent_keepalive: None,
        };
        self.nodes[id.0].config.peers.push(entry);
    }

    /// Switches a node on.
    pub fn boot(&mut self, id: NodeId) {
        let seed = self.random.bytes();
        self.update_host_report(id);
        let clock = self.clock(id);
        let node = &mut self.nodes[id.0];
        if let Some(port) = node.state().listen_port {
            node.config.listen_port = port;
        }
        node.start(seed, clock);
        self.watch(id);
        self.pump(id);
    }

    pub fn boot_all(&mut self) {
        for index in 0..self.nodes.len() {
            self.boot(NodeId(index));
        }
    }

    /// Kills a node's agent (`kill -9`). A kernel's tunnel lives on.
    pub fn kill(&mut self, id: NodeId) {
        self.nodes[id.0].kill();
        let now = self.net.now();
        self.nodes[id.0].schedule(now);
    }

    /// Switches a node's machine off.
    pub fn power_off(&mut self, id: NodeId) {
        self.nodes[id.0].power_off();
    }

    pub fn is_on(&self, id: NodeId) -> bool {
        self.nodes[id.0].overlay.is_some()
    }

    /// A machine sleeps: nothing runs, nothing is received, its clocks go on.
    pub fn suspend(&mut self, id: NodeId) {
        self.nodes[id.0].paused = true;
        self.nodes[id.0].wake = None;
    }

    pub fn resume(&mut self, id: NodeId) {
        self.nodes[id.0].paused = false;
        let now = self.net.now();
        self.nodes[id.0].schedule(now);
    }

    /// Tells a node what its host looks like now.
    pub fn report_host(&mut self, id: NodeId) {
        self.update_host_report(id);
        let clock = self.clock(id);
        let node = &mut self.nodes[id.0];
        let report = node.host_report.clone();
        if let Some(overlay) = &mut node.overlay {
            overlay.handle_host(report, clock);
        }
        self.pump(id);
    }

    /// Looks up what a node's host looks like now.
    pub fn update_host_report(&mut self, id: NodeId) {
        let addresses = self.net.addresses(self.nodes[id.0].host);
        let has = |ipv4| addresses.iter().any(|address| address.ip.is_ipv4() == ipv4);
        let (v4, v6) = (has(true), has(false));
        let report = &mut self.nodes[id.0].host_report;
        report.default_route_v4 = v4;
        report.default_route_v6 = v6;
        report.ipv6_off = !v6;
        report.forwarding_v4 = true;
        report.forwarding_v6 = true;
        report.clock_synchronised = true;
        report.addresses = addresses;
    }

    /// A node's host gets other addresses, and its agent is told.
    pub fn readdress(&mut self, id: NodeId) {
        self.net.readdress_host(self.nodes[id.0].host);
        self.report_host(id);
    }

    /// A node's host moves to another place, and its agent is told.
    pub fn move_to(&mut self, id: NodeId, place: Place) {
        self.net.move_host(self.nodes[id.0].host, place.segment);
        self.report_host(id);
    }

    /// A line per node for a failure's message.
    pub fn describe(&self) -> String {
        let mut lines = Vec::new();
        for (index, node) in self.nodes.iter().enumerate() {
            let id = NodeId(index);
            let Some(overlay) = &node.overlay else {
                lines.push(format!("{}: off", node.name));
                continue;
            };
            let snapshot = overlay.snapshot(self.clock(id));
            lines.push(format!(
                "{} key {} endpoints {:?} counters {:?}",
                node.name, snapshot.node.public_key, snapshot.node.endpoints, snapshot.counters
            ));
            for peer in snapshot.peers {
                lines.push(format!(
                    "  -> {} {:?} {} path {:?} handshake {:?}",
                    peer.name,
                    peer.state,
                    peer.reason,
                    peer.path.map(|path| path.remote),
                    peer.last_handshake
                ));
            }
        }
        let dropped: &BTreeMap<_, _> = self.net.dropped();
        lines.push(format!("dropped {dropped:?}"));
        lines.join("\n")
    }

    /// Time passes in steps, so that a caller can look between.
    pub fn seconds(&mut self, count: u64) {
        self.run(Duration::from_secs(count));
    }
}

/// A node's number in its addresses, in two bytes.
fn number(id: NodeId) -> [u8; 2] {
    let number = u16::try_from(id.0 + 1).ok().filter(|n| *n < 12 * 256);
    number.expect("fewer than 3,000 nodes").to_be_bytes()
}
