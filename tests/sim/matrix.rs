//! Which pairs must connect directly: the matrix as data, and how a node falls into it.

use sim_net::{Allocator, Filtering, Mapping};

use crate::world::{Access, Place, Seat};

/// How a node looks from outside, over IPv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// A public address, or a translator that lets anybody in.
    Open,
    /// Endpoint-independent mapping, filtered by address.
    Adf,
    /// Endpoint-independent mapping, filtered by address and port.
    Apdf,
    /// Mapping by address.
    Adm,
    /// By address and port, sequential.
    Seq,
    /// By address and port, in a block.
    Blk,
    /// By address and port, at random.
    Rand,
}

/// Row and column by class; what must connect without a relay.
const MUST: [[bool; 7]; 7] = [
    [true, true, true, true, true, true, true],
    [true, true, true, true, true, true, true],
    [true, true, true, true, true, true, true],
    [true, true, true, false, false, false, false],
    [true, true, true, false, true, false, false],
    [true, true, true, false, false, true, false],
    [true, true, true, false, false, false, false],
];

/// Must two nodes of these classes, at different sites, connect?
pub fn must(a: Class, b: Class) -> bool {
    MUST[a as usize][b as usize]
}

/// Must they connect within seconds? Not block against block, which goes by rounds of 33 s, each of which may
/// fail; nor a mapping by address, which nobody can tell who is seen by a single neighbour.
pub fn soon(a: Class, b: Class) -> bool {
    let pair = (a.min(b), a.max(b));
    must(a, b) && pair != (Class::Blk, Class::Blk) && pair != (Class::Apdf, Class::Adm)
}

/// Must they connect again within seconds however often they were torn apart? Not where that takes a search: its
/// budget is for ten minutes.
pub fn again(a: Class, b: Class) -> bool {
    let searched = |class| matches!(class, Class::Blk | Class::Rand);
    soon(a, b) && (a.min(b) < Class::Apdf || !searched(a.max(b)))
}

/// The class of a node: the strictest of what lies before it.
pub fn class(place: &Place, seat: &Seat) -> Class {
    let own = match place.access {
        Access::Public => Class::Open,
        Access::OneToOne { firewall: false } => Class::Open,
        Access::OneToOne { firewall: true } => Class::Apdf,
        Access::Nat(nat) => translated(nat.mapping, nat.filtering, nat.allocator),
        Access::Carrier { home, carrier } => {
            let home = translated(home.mapping, home.filtering, home.allocator);
            home.max(translated(
                carrier.mapping,
                carrier.filtering,
                carrier.allocator,
            ))
        }
    };
    if seat.firewall {
        own.max(Class::Apdf)
    } else {
        own
    }
}

fn translated(mapping: Mapping, filtering: Filtering, allocator: Allocator) -> Class {
    match mapping {
        Mapping::EndpointIndependent => match filtering {
            Filtering::EndpointIndependent => Class::Open,
            Filtering::AddressDependent => Class::Adf,
            Filtering::AddressAndPortDependent => Class::Apdf,
        },
        Mapping::AddressDependent => Class::Adm,
        Mapping::AddressAndPortDependent => match allocator {
            Allocator::Sequential(_) => Class::Seq,
            Allocator::Block(..) | Allocator::SharedBlock(..) => Class::Blk,
            Allocator::Preserving | Allocator::Random => Class::Rand,
        },
    }
}

#[test]
fn the_matrix_is_symmetric() {
    for (row, line) in MUST.iter().enumerate() {
        for (column, cell) in line.iter().enumerate() {
            assert_eq!(*cell, MUST[column][row]);
        }
    }
}
