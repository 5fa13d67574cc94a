//! The lab itself: each NAT kind does what it is named for, measured from both sides.

use crate::lab::rfc5780::{Behaviour, Filtering, Mapping, Server};
use crate::lab::{Lab, Nat, NatKind};

const PORT: u16 = 21_000;

fn expected(kind: NatKind) -> Behaviour {
    let (mapping, filtering, preserving) = match kind {
        NatKind::Open | NatKind::Eif => (Mapping::Eim, Filtering::Eif, true),
        NatKind::Adf => (Mapping::Eim, Filtering::Adf, true),
        NatKind::Firewall | NatKind::Prc => (Mapping::Eim, Filtering::Apdf, true),
        NatKind::PrcNotPreserving => (Mapping::Eim, Filtering::Apdf, false),
        NatKind::Symmetric => (Mapping::Apdm, Filtering::Apdf, false),
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
