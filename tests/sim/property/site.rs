//! Random places and seats.

use std::time::Duration;

use mesh_types::report::Backend;
use sim_net::{Allocator, Families, Filtering, LinkSpec, Mapping, NatSpec, Random, Timeouts};

use crate::world::{Access, Place, Seat, World};

/// A place, IPv6 in it, and its name for the table.
pub struct Site {
    pub place: Place,
    pub ipv6: bool,
    pub kind: String,
}

pub fn site(world: &mut World, random: &mut Random) -> Site {
    let (access, kind) = access(random);
    let ipv6 = random.below(4) == 0 || matches!(access, Access::Public);
    let link = uplink(random);
    Site {
        place: world.place_with(access, ipv6, link),
        ipv6,
        kind,
    }
}

pub fn seat(random: &mut Random, site: &Site) -> Seat {
    let both = site.ipv6 && random.below(4) > 0;
    // A public host has the whole way to others as its link.
    let link = match site.place.access {
        Access::Public => uplink(random),
        Access::Nat(_) | Access::OneToOne { .. } | Access::Carrier { .. } => LinkSpec::LAN,
    };
    Seat {
        families: if both { Families::Both } else { Families::V4 },
        link,
        backend: *random.pick(&[Backend::Kernel, Backend::Userspace]),
        firewall: random.below(8) == 0,
    }
}

fn access(random: &mut Random) -> (Access, String) {
    match random.below(16) {
        0 | 1 => (Access::Public, "public".to_owned()),
        2 => {
            let firewall = random.below(2) == 0;
            let kind = if firewall { "1:1, firewalled" } else { "1:1" };
            (Access::OneToOne { firewall }, kind.to_owned())
        }
        3 | 4 => {
            let (home, _) = cone(random);
            let (carrier, kind) = if random.below(3) == 0 {
                symmetric(random)
            } else {
                cone(random)
            };
            (
                Access::Carrier { home, carrier },
                format!("home behind a carrier: {kind}"),
            )
        }
        5..=7 => {
            let (spec, kind) = symmetric(random);
            (Access::Nat(spec), kind)
        }
        _ => {
            let (spec, kind) = cone(random);
            (Access::Nat(spec), kind)
        }
    }
}

fn cone(random: &mut Random) -> (NatSpec, String) {
    let filtering = *random.pick(&[
        Filtering::EndpointIndependent,
        Filtering::AddressDependent,
        Filtering::AddressAndPortDependent,
        Filtering::AddressAndPortDependent,
    ]);
    let allocator = allocator(random, Allocator::Preserving);
    let spec = NatSpec {
        allocator,
        hairpin: random.below(2) == 0,
        timeouts: timeouts(random),
        ..NatSpec::cone(filtering)
    };
    let filtering = match filtering {
        Filtering::EndpointIndependent => "EIF",
        Filtering::AddressDependent => "ADF",
        Filtering::AddressAndPortDependent => "APDF",
    };
    (spec, format!("EIM {filtering} {}", word(allocator)))
}

fn symmetric(random: &mut Random) -> (NatSpec, String) {
    let allocator = allocator(random, Allocator::Random);
    let by_address = random.below(4) == 0;
    let mapping = if by_address {
        Mapping::AddressDependent
    } else {
        Mapping::AddressAndPortDependent
    };
    let spec = NatSpec {
        mapping,
        timeouts: timeouts(random),
        ..NatSpec::symmetric(allocator)
    };
    let mapping = if by_address { "ADM" } else { "APDM" };
    (spec, format!("{mapping} APDF {}", word(allocator)))
}

fn allocator(random: &mut Random, usual: Allocator) -> Allocator {
    match random.below(6) {
        0 => Allocator::Sequential(if random.below(2) == 0 { 1 } else { -2 }),
        1 => Allocator::Block(40_000, 42_047),
        2 => Allocator::Random,
        _ => usual,
    }
}

fn word(allocator: Allocator) -> &'static str {
    match allocator {
        Allocator::Preserving => "preserving",
        Allocator::Sequential(_) => "sequential",
        Allocator::Block(..) => "block",
        Allocator::SharedBlock(..) => "shared block",
        Allocator::Random => "random",
    }
}

fn timeouts(random: &mut Random) -> Timeouts {
    Timeouts {
        stream: Duration::from_secs(*random.pick(&[120, 180, 300])),
        refresh_inbound: random.below(3) == 0,
        ..Timeouts::LINUX
    }
}

fn uplink(random: &mut Random) -> LinkSpec {
    let rough = random.below(3) == 0;
    let rate = |random: &mut Random, most| {
        let rate = u32::try_from(random.below(most)).unwrap_or(0);
        if rough { rate } else { 0 }
    };
    LinkSpec {
        latency: Duration::from_millis(random.between(2, 60)),
        jitter: Duration::from_millis(random.below(5)),
        loss: rate(random, 10_000),
        reordered: rate(random, 10_000),
        duplicated: rate(random, 5_000),
    }
}
