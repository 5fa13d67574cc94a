//! Each behaviour is told from outside, by the tests of RFC 5780 4.3 and 4.4.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use sim_net::{
    Allocator, Delivery, Families, Filtering, FirewallSpec, HostId, LinkSpec, Mapping, NatSpec,
    Network, RouterSpec, SegmentId, Site, Timeouts, Translation,
};

const MAPPINGS: [Mapping; 3] = [
    Mapping::EndpointIndependent,
    Mapping::AddressDependent,
    Mapping::AddressAndPortDependent,
];
const FILTERINGS: [Filtering; 3] = [
    Filtering::EndpointIndependent,
    Filtering::AddressDependent,
    Filtering::AddressAndPortDependent,
];
const ALLOCATORS: [Allocator; 4] = [
    Allocator::Preserving,
    Allocator::Sequential(1),
    Allocator::Block(40000, 42047),
    Allocator::Random,
];
const PORT: u16 = 5000;
const SERVER: u16 = 3478;
const OTHER: u16 = 3479;

#[test]
fn every_mapping_filtering_and_allocator_is_told_from_outside() {
    for mapping in MAPPINGS {
        for filtering in FILTERINGS {
            for allocator in ALLOCATORS {
                let spec = NatSpec {
                    mapping,
                    filtering,
                    allocator,
                    ..NatSpec::cone(filtering)
                };
                let mut lab = Lab::behind(Translation::Nat(spec), None);
                assert_eq!(
                    (lab.mapping(), lab.filtering()),
                    (mapping, filtering),
                    "{spec:?}"
                );
            }
        }
    }
}

#[test]
fn an_address_of_ones_own_is_independent_of_endpoints_and_keeps_its_ports() {
    let mut lab = Lab::behind(Translation::OneToOne, None);
    assert_eq!(lab.mapping(), Mapping::EndpointIndependent);
    assert_eq!(lab.filtering(), Filtering::EndpointIndependent);
    assert_eq!(lab.seen_by(0, SERVER).port(), PORT);
}

#[test]
fn a_firewall_before_an_address_of_ones_own_filters_by_address_and_port() {
    let mut lab = Lab::behind(Translation::OneToOne, Some(FirewallSpec::ESTABLISHED));
    assert_eq!(lab.mapping(), Mapping::EndpointIndependent);
    assert_eq!(lab.filtering(), Filtering::AddressAndPortDependent);
}

#[test]
fn a_preserving_allocator_keeps_the_port_where_it_is_free() {
    let mut lab = Lab::behind(Translation::Nat(NatSpec::cone(FILTERINGS[2])), None);
    assert_eq!(lab.seen_by(0, SERVER).port(), PORT);
    let second = lab.neighbour();
    let seen = lab.exchange(second, lab.servers[0], SERVER);
    assert_ne!(seen.port(), PORT, "two hosts, one port");
}

#[test]
fn a_sequential_allocator_goes_on_by_its_step() {
    let mut lab = Lab::behind(
        Translation::Nat(NatSpec::symmetric(Allocator::Sequential(3))),
        None,
    );
    let ports = [
        lab.seen_by(0, SERVER).port(),
        lab.seen_by(1, SERVER).port(),
        lab.seen_by(1, OTHER).port(),
    ];
    let steps = [
        ports[1].wrapping_sub(ports[0]),
        ports[2].wrapping_sub(ports[1]),
    ];
    assert_eq!(steps, [3, 3]);
}

#[test]
fn a_block_is_never_left_and_maps_nothing_more_once_it_is_full() {
    let mut lab = Lab::behind(
        Translation::Nat(NatSpec::symmetric(Allocator::Block(40000, 40001))),
        None,
    );
    let ports = [lab.seen_by(0, SERVER).port(), lab.seen_by(1, SERVER).port()];
    assert!(ports.iter().all(|port| (40000..=40001).contains(port)));
    assert_ne!(ports[0], ports[1]);
    assert_eq!(lab.reach(lab.client, lab.servers[1], OTHER), None);
}

#[test]
fn a_shared_block_gives_a_port_to_several_destinations_and_to_each_once() {
    let shared = NatSpec::symmetric(Allocator::SharedBlock(40000, 40001));
    let mut lab = Lab::behind(Translation::Nat(shared), None);
    let second = lab.neighbour();
    for server in [0, 1] {
        let first = lab.seen_by(server, SERVER);
        let seen = lab.exchange(second, lab.servers[server], SERVER);
        assert_ne!(first, seen, "one destination");
        assert!(
            [first, seen]
                .iter()
                .all(|a| (40000..=40001).contains(&a.port()))
        );
        assert!(lab.answers(server, SERVER, first));
    }
}

#[test]
fn a_hairpin_shows_the_external_source_and_is_absent_unless_asked_for() {
    for hairpin in [false, true] {
        let spec = NatSpec {
            hairpin,
            ..NatSpec::cone(Filtering::EndpointIndependent)
        };
        let mut lab = Lab::behind(Translation::Nat(spec), None);
        let external = lab.seen_by(0, SERVER);
        let second = lab.neighbour();
        lab.send(second, external, b"hairpin");
        let arrived = lab.arrival(lab.client);
        assert_eq!(arrived.is_some(), hairpin);
        assert!(arrived.is_none_or(|d| d.remote.ip() == external.ip()));
    }
}

#[test]
fn an_unreplied_mapping_lives_30_seconds_and_a_stream_120() {
    let mut lab = Lab::behind(Translation::Nat(NatSpec::cone(FILTERINGS[2])), None);
    let seen = lab.seen_by(0, SERVER);
    lab.pass(Duration::from_secs(30));
    assert!(!lab.answers(0, SERVER, seen), "forgotten");

    let seen = lab.seen_by(0, SERVER);
    lab.pass(Duration::from_secs(3));
    assert!(lab.answers(0, SERVER, seen));
    lab.seen_by(0, SERVER);
    lab.pass(Duration::from_secs(100));
    assert!(lab.answers(0, SERVER, seen), "two-way for more than 2 s");
    lab.pass(Duration::from_secs(30));
    assert!(
        !lab.answers(0, SERVER, seen),
        "inbound packets refresh nothing"
    );
}

#[test]
fn inbound_packets_refresh_a_mapping_where_the_translator_says_so() {
    let timeouts = Timeouts {
        refresh_inbound: true,
        ..Timeouts::LINUX
    };
    let spec = NatSpec {
        timeouts,
        ..NatSpec::cone(FILTERINGS[2])
    };
    let mut lab = Lab::behind(Translation::Nat(spec), None);
    let seen = lab.seen_by(0, SERVER);
    for _ in 0..10 {
        lab.pass(Duration::from_secs(25));
        assert!(lab.answers(0, SERVER, seen));
    }
}

#[test]
fn a_translator_that_forgets_lets_nothing_in_until_it_is_passed_again() {
    let mut lab = Lab::behind(Translation::Nat(NatSpec::cone(FILTERINGS[0])), None);
    let seen = lab.seen_by(0, SERVER);
    lab.net.forget(lab.site.router);
    assert!(!lab.answers(0, SERVER, seen));
    assert_eq!(lab.seen_by(0, SERVER), seen, "the port is preserved");
    assert!(lab.answers(1, OTHER, seen));
}

#[test]
fn a_rebooted_translator_hands_out_other_ports_and_a_renumbered_one_another_address() {
    let spec = NatSpec {
        allocator: Allocator::Random,
        ..NatSpec::cone(FILTERINGS[2])
    };
    let mut lab = Lab::behind(Translation::Nat(spec), None);
    let first = lab.seen_by(0, SERVER);
    lab.net.reboot(lab.site.router);
    let second = lab.seen_by(0, SERVER);
    assert_eq!(first.ip(), second.ip());
    assert_ne!(first.port(), second.port());
    lab.net.readdress_router(lab.site.router);
    let third = lab.seen_by(0, SERVER);
    assert_ne!(second.ip(), third.ip());
    assert!(!lab.answers(0, SERVER, second), "the old address is gone");
}

#[test]
fn blocked_udp_comes_through_neither_way() {
    let mut lab = Lab::behind(Translation::Nat(NatSpec::cone(FILTERINGS[0])), None);
    let seen = lab.seen_by(0, SERVER);
    lab.net.set_udp_blocked(lab.site.router, true);
    assert_eq!(lab.reach(lab.client, lab.servers[0], SERVER), None);
    assert!(!lab.answers(0, SERVER, seen));
}

#[test]
fn behind_two_translators_the_stricter_behaviour_is_seen() {
    let home = NatSpec::cone(Filtering::EndpointIndependent);
    let carrier = NatSpec {
        filtering: Filtering::AddressDependent,
        ..NatSpec::symmetric(Allocator::Random)
    };
    let mut lab = Lab::chained(&[Translation::Nat(carrier), Translation::Nat(home)], None);
    assert_eq!(lab.mapping(), Mapping::AddressAndPortDependent);
    let seen = lab.seen_by(0, SERVER);
    assert!(lab.answers(0, OTHER, seen));
    assert!(!lab.answers(1, SERVER, seen));
}

#[test]
fn a_host_that_lets_in_established_flows_only_makes_any_translator_strict() {
    let mut lab = Lab::behind(Translation::Nat(NatSpec::cone(FILTERINGS[0])), None);
    lab.net
        .set_host_firewall(lab.client, Some(FirewallSpec::ESTABLISHED));
    assert_eq!(lab.filtering(), Filtering::AddressAndPortDependent);
    assert_eq!(lab.mapping(), Mapping::EndpointIndependent);
}

#[test]
fn ipv6_is_filtered_but_not_translated() {
    for (firewall, open) in [(None, true), (Some(FirewallSpec::ESTABLISHED), false)] {
        let mut lab = Lab::behind(Translation::Nat(NatSpec::cone(FILTERINGS[2])), firewall);
        let own = lab.address(lab.client, false);
        assert_eq!(lab.answers(1, OTHER, SocketAddr::new(own, PORT)), open);
        let server = lab.address(lab.servers[0], false);
        lab.send(lab.client, SocketAddr::new(server, SERVER), b"out");
        let seen = lab.arrival(lab.servers[0]).expect("arrives").remote;
        assert_eq!(
            seen,
            SocketAddr::new(own, PORT),
            "the host's own address and port"
        );
        assert!(lab.answers(0, SERVER, seen), "an answer comes through");
    }
}

#[test]
fn a_packet_whose_hops_are_spent_opens_its_own_translator_only() {
    let mut lab = Lab::behind(Translation::Nat(NatSpec::cone(FILTERINGS[2])), None);
    let server = SocketAddr::new(lab.address(lab.servers[0], true), SERVER);
    let any = SocketAddr::new([0, 0, 0, 0].into(), PORT);
    lab.net
        .send(lab.client, any, server, b"low".to_vec(), Some(3))
        .expect("sent");
    assert_eq!(lab.arrival(lab.servers[0]), None);
    let external = lab.net.external(lab.site.router).expect("translates");
    assert!(lab.answers(0, SERVER, SocketAddr::new(external.into(), PORT)));
}

/// A client behind translators, and two servers with two ports each in the core.
struct Lab {
    net: Network,
    site: Site,
    client: HostId,
    servers: [HostId; 2],
}

impl Lab {
    fn behind(translation: Translation, firewall: Option<FirewallSpec>) -> Self {
        Self::chained(&[translation], firewall)
    }

    fn chained(translations: &[Translation], firewall: Option<FirewallSpec>) -> Self {
        let mut net = Network::new(7, sim_net::start());
        let mut parent = net.core();
        let mut site = None;
        for (index, translation) in translations.iter().enumerate() {
            let spec = RouterSpec {
                parent,
                translation: *translation,
                inside: inside(index),
                ipv6: true,
                firewall,
                link: LinkSpec::UPLINK,
            };
            let built = net.add_router(spec);
            parent = built.lan;
            site = Some(built);
        }
        let client = host(&mut net, "client", parent);
        let core = net.core();
        let servers = ["first", "second"].map(|name| host(&mut net, name, core));
        for server in servers {
            net.bind(server, SERVER);
            net.bind(server, OTHER);
        }
        Self {
            net,
            site: site.expect("one translator at least"),
            client,
            servers,
        }
    }

    fn neighbour(&mut self) -> HostId {
        host(&mut self.net, "neighbour", self.site.lan)
    }

    fn address(&self, host: HostId, ipv4: bool) -> IpAddr {
        let addresses = self.net.addresses(host);
        addresses
            .iter()
            .find(|a| a.ip.is_ipv4() == ipv4)
            .expect("has it")
            .ip
    }

    fn send(&mut self, from: HostId, to: SocketAddr, bytes: &[u8]) {
        self.send_from(from, PORT, to, bytes);
    }

    fn send_from(&mut self, from: HostId, port: u16, to: SocketAddr, bytes: &[u8]) {
        let any = SocketAddr::new([0, 0, 0, 0].into(), port);
        self.net
            .send(from, any, to, bytes.to_vec(), None)
            .expect("has an address");
    }

    /// What arrives at a host within a second.
    fn arrival(&mut self, host: HostId) -> Option<Delivery> {
        let end = self.net.now() + Duration::from_secs(1);
        let mut found = None;
        while self.net.now() < end {
            self.net.advance_to(end);
            while let Some(delivery) = self.net.poll() {
                found = found.or((delivery.host == host).then_some(delivery));
            }
        }
        found
    }

    fn reach(&mut self, from: HostId, server: HostId, port: u16) -> Option<SocketAddr> {
        let to = SocketAddr::new(self.address(server, true), port);
        self.send(from, to, b"request");
        self.arrival(server).map(|delivery| delivery.remote)
    }

    fn exchange(&mut self, from: HostId, server: HostId, port: u16) -> SocketAddr {
        self.reach(from, server, port).expect("servers are open")
    }

    fn seen_by(&mut self, server: usize, port: u16) -> SocketAddr {
        self.exchange(self.client, self.servers[server], port)
    }

    /// Does a packet from a server's port reach the client?
    fn answers(&mut self, server: usize, port: u16, to: SocketAddr) -> bool {
        self.send_from(self.servers[server], port, to, b"response");
        self.arrival(self.client).is_some()
    }

    fn pass(&mut self, time: Duration) {
        let end: Instant = self.net.now() + time;
        while self.net.advance_to(end) < end {
            self.net.poll();
        }
    }

    fn mapping(&mut self) -> Mapping {
        let first = self.seen_by(0, SERVER);
        let second = self.seen_by(1, SERVER);
        let third = self.seen_by(1, OTHER);
        if first == second {
            Mapping::EndpointIndependent
        } else if second == third {
            Mapping::AddressDependent
        } else {
            Mapping::AddressAndPortDependent
        }
    }

    fn filtering(&mut self) -> Filtering {
        self.pass(Duration::from_secs(300));
        let seen = self.seen_by(0, SERVER);
        if self.answers(1, OTHER, seen) {
            Filtering::EndpointIndependent
        } else if self.answers(0, OTHER, seen) {
            Filtering::AddressDependent
        } else {
            Filtering::AddressAndPortDependent
        }
    }
}

fn inside(index: usize) -> Ipv4Net {
    ["100.64.0.0/10", "192.168.1.0/24"][usize::from(index > 0)]
        .parse()
        .expect("a range")
}

fn host(net: &mut Network, name: &str, segment: SegmentId) -> HostId {
    let host = net.add_host(name, segment, Families::Both, LinkSpec::LAN);
    net.bind(host, PORT);
    host
}
