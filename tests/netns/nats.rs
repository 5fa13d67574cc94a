//! The lab itself: each NAT kind does what it is named for, measured from both sides.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::lab::internet::LinkState;
use crate::lab::nat::BLOCK;
use crate::lab::rfc5780::{Behaviour, Filtering, Mapping, Server};
use crate::lab::tap::Tap;
use crate::lab::traffic::{self, Echo, MarkedStream, Pings};
use crate::lab::wait::wait_until;
use crate::lab::{Lab, Nat, NatKind};

const PORT: u16 = 21_000;
const SOON: Duration = Duration::from_secs(5);

fn expected(kind: NatKind) -> Behaviour {
    let (mapping, filtering, preserving) = match kind {
        NatKind::Open | NatKind::Eif => (Mapping::Eim, Filtering::Eif, true),
        NatKind::Adf => (Mapping::Eim, Filtering::Adf, true),
        NatKind::Firewall | NatKind::Prc => (Mapping::Eim, Filtering::Apdf, true),
        NatKind::PrcNotPreserving => (Mapping::Eim, Filtering::Apdf, false),
        NatKind::ByAddress => (Mapping::Adm, Filtering::Apdf, false),
        NatKind::Sequential | NatKind::Block | NatKind::Symmetric => {
            (Mapping::Apdm, Filtering::Apdf, false)
        }
    };
    Behaviour {
        mapping,
        filtering,
        preserving,
    }
}

#[test]
fn every_nat_kind_of_the_lab_behaves_as_it_is_named() {
    let lab = Lab::new();
    let server = Server::open(&lab, &lab.public_host("server"));
    for kind in NatKind::ALL {
        let client = lab
            .site(&format!("{kind:?}"), Nat::new(kind))
            .host(&format!("client-{kind:?}"));
        assert_eq!(server.measure(&client, PORT), expected(kind), "{kind:?}");
    }
}

#[test]
fn hard_nats_take_the_next_port_any_of_a_block_or_any_at_all() {
    let lab = Lab::new();
    let server = Server::open(&lab, &lab.public_host("server"));
    let ports = |kind: NatKind| -> Vec<u16> {
        let client = lab
            .site(&format!("{kind:?}"), Nat::new(kind))
            .host(&format!("client-{kind:?}"));
        (0..16)
            .map(|index| server.public_address_of(&client, PORT + index).port())
            .collect()
    };
    let sequence = ports(NatKind::Sequential);
    // A first packet that a new link swallowed has used up a port.
    assert!(
        sequence[4..].windows(2).all(|pair| pair[1] == pair[0] + 1),
        "{sequence:?}"
    );
    let block = ports(NatKind::Block);
    assert!(
        block.iter().all(|port| (BLOCK.0..=BLOCK.1).contains(port)),
        "{block:?}"
    );
    for kind in [NatKind::Symmetric, NatKind::ByAddress] {
        let random = ports(kind);
        let (low, high) = (random.iter().min(), random.iter().max());
        assert!(
            high.unwrap_or(&0) - low.unwrap_or(&0) > 20_000,
            "{kind:?}: {random:?}"
        );
    }
}

#[test]
fn an_early_packet_takes_the_port_where_the_router_accepts_it() {
    for (nat, keeps) in [
        (Nat::new(NatKind::Prc), true),
        (Nat::new(NatKind::Prc).accepting(), false),
    ] {
        let lab = Lab::new();
        let server = Server::open(&lab, &lab.public_host("server"));
        let site = lab.site("home", nat);
        let client = site.host("client");
        server.early(SocketAddr::new(site.public_address().into(), PORT));
        assert_eq!(
            server.public_address_of(&client, PORT).port() == PORT,
            keeps,
            "{nat:?}"
        );
    }
}

#[test]
fn a_gateway_that_blocks_udp_lets_tcp_through() {
    let lab = Lab::new();
    let host = lab.public_host("server");
    let site = lab.site("office", Nat::new(NatKind::Prc));
    let client = site.host("client");
    let _echo = Echo::start(&host.namespace);
    let (server, own) = (host.ipv4.into(), Ok(site.public_address().into()));
    wait_until("UDP passes", SOON, || {
        traffic::udp_source_seen(&client.namespace, server)
    });
    site.set_udp(LinkState::Cut);
    assert!(traffic::udp_source_seen(&client.namespace, server).is_err());
    assert_eq!(traffic::tcp_source_seen(&client.namespace, server), own);
    site.set_udp(LinkState::Whole);
    assert_eq!(traffic::udp_source_seen(&client.namespace, server), own);
}

#[test]
fn a_carrier_nat_in_front_makes_the_filtering_the_stricter_of_both() {
    let lab = Lab::new();
    let server = Server::open(&lab, &lab.public_host("server"));
    let client = lab
        .site("home", Nat::new(NatKind::Eif).behind(NatKind::Prc))
        .host("client");
    assert_eq!(server.measure(&client, PORT), expected(NatKind::Prc));
}

#[test]
fn only_a_hairpinning_nat_lets_its_hosts_meet_at_their_public_addresses() {
    let lab = Lab::new();
    let server = Server::open(&lab, &lab.public_host("server"));
    for (name, nat, meets) in [
        ("prc-hairpin", Nat::new(NatKind::Prc).hairpin(), true),
        ("eif-hairpin", Nat::new(NatKind::Eif).hairpin(), true),
        ("prc-plain", Nat::new(NatKind::Prc), false),
        ("eif-plain", Nat::new(NatKind::Eif), false),
    ] {
        let site = lab.site(name, nat);
        let (a, b) = (
            site.host(&format!("{name}-a")),
            site.host(&format!("{name}-b")),
        );
        assert_eq!(server.hairpins(&a, &b, PORT), meets, "{name}");
    }
}

#[test]
fn two_inside_hosts_with_one_source_port_get_different_public_ports() {
    let lab = Lab::new();
    let server = Server::open(&lab, &lab.public_host("server"));
    let site = lab.site("home", Nat::new(NatKind::Prc));
    let (a, b) = (site.host("a"), site.host("b"));
    assert!(server.measure(&a, PORT).preserving);
    assert!(!server.measure(&b, PORT).preserving);
}

#[test]
fn the_eavesdropper_hears_what_is_sent_in_clear_and_pings_count_what_is_lost() {
    let lab = Lab::new();
    let (a, b) = (lab.public_host("a"), lab.public_host("b"));
    let (target, tap) = (
        IpAddr::V4(b.ipv4),
        Tap::start(lab.internet(), traffic::MARKER),
    );
    let hears = |what: &str, send: &dyn Fn()| {
        let before = tap.hits();
        send();
        wait_until(&format!("{what} is heard"), SOON, || {
            (tap.hits() > before)
                .then_some(())
                .ok_or_else(|| format!("{} frames", tap.frames()))
        });
    };
    let _echo = Echo::start(&b.namespace);

    hears("ICMP", &|| {
        let report = Pings::start(&a.namespace, target, 20, Duration::from_millis(5)).finish();
        assert_eq!(
            (report.sent, report.lost(), report.longest_gap),
            (20, 0, Duration::ZERO)
        );
    });
    hears("UDP", &|| {
        assert_eq!(
            traffic::udp_source_seen(&a.namespace, target),
            Ok(a.ipv4.into())
        )
    });
    hears("TCP", &|| {
        assert_eq!(
            traffic::tcp_source_seen(&a.namespace, target),
            Ok(a.ipv4.into())
        )
    });
    let streams = MarkedStream::start(
        &a.namespace,
        IpAddr::V6(b.ipv6.expect("public hosts have one")),
    );
    wait_until("marked streams are answered", SOON, || {
        (streams.answered() > 20)
            .then_some(())
            .ok_or_else(|| format!("{} answers", streams.answered()))
    });
    drop(streams);
    assert!(tap.bytes_between(a.ipv4.into(), target) > 20 * 200);
    let before = lab.uplink_bytes(b.ipv4);
    assert_eq!(traffic::udp_exchange(&a.namespace, target, 100, 1000), 100);
    assert!((200_000..300_000).contains(&(lab.uplink_bytes(b.ipv4) - before)));

    lab.set_uplink(b.ipv4, LinkState::Cut);
    let report = Pings::start(&a.namespace, target, 10, Duration::from_millis(5)).finish();
    assert_eq!(
        (report.lost(), report.longest_gap),
        (10, Duration::from_millis(50))
    );
    lab.set_uplink(b.ipv4, LinkState::Whole);
    assert_eq!(traffic::ping_once(&a.namespace, target), Ok(()));
}

#[test]
fn a_router_that_forgets_its_mappings_or_its_address_gives_new_ones() {
    let lab = Lab::new();
    let server = Server::open(&lab, &lab.public_host("server"));
    let site = lab.site("home", Nat::new(NatKind::PrcNotPreserving));
    let client = site.host("client");
    let first = server.public_address_of(&client, PORT);
    assert_eq!(server.public_address_of(&client, PORT), first);
    site.forget_mappings();
    assert_ne!(server.public_address_of(&client, PORT).port(), first.port());
    lab.renumber(&site);
    assert_eq!(
        server.public_address_of(&client, PORT).ip(),
        IpAddr::V4(site.public_address())
    );
    assert_ne!(first.ip(), IpAddr::V4(site.public_address()));
}
