//! Network address and port translation (RFC 4787), one external IPv4 address.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use crate::flow::{Flow, Timeouts};
use crate::random::Random;

/// Which destinations share an external port (RFC 4787 4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mapping {
    /// All.
    EndpointIndependent,
    /// Those of one address.
    AddressDependent,
    /// None: each address and port has its own.
    AddressAndPortDependent,
}

/// Whose packets are let in (RFC 4787 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Filtering {
    /// Anybody's.
    EndpointIndependent,
    /// Those of addresses that were sent to.
    AddressDependent,
    /// Those of addresses and ports that were sent to.
    AddressAndPortDependent,
}

/// How external ports are chosen. None is ever used twice at once, save where that is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Allocator {
    /// The internal port; a random one where that is in use.
    Preserving,
    /// The last one plus a step that is not 0.
    Sequential(i16),
    /// At random from lowest to highest; nothing is mapped once all are in use.
    Block(u16, u16),
    /// At random from lowest to highest, as Linux does it: each port once for each destination. Only for mapping by
    /// address and port.
    SharedBlock(u16, u16),
    /// At random from 1024 to 65535.
    Random,
}

/// A translator's behaviour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NatSpec {
    /// Which destinations share an external port.
    pub mapping: Mapping,
    /// Whose packets are let in.
    pub filtering: Filtering,
    /// How external ports are chosen.
    pub allocator: Allocator,
    /// Do two hosts behind it reach each other by its external address (RFC 4787 REQ-9, with the external
    /// source address)?
    pub hairpin: bool,
    /// Does the router itself take what nobody behind it awaits (nothing filters its own input)? As Linux does it
    /// then gives a flow to the same remote another port, as long as that remote goes on.
    pub takes_early: bool,
    /// How long a mapping that is forgotten still lends its port to the next one like it (Linux: until its table is
    /// swept, 60 s at most).
    pub lends_for: Duration,
    /// How long a mapping is remembered.
    pub timeouts: Timeouts,
}

impl NatSpec {
    /// Endpoint-independent mapping, ports preserved, no hairpin, Linux' timeouts.
    pub const fn cone(filtering: Filtering) -> Self {
        Self {
            mapping: Mapping::EndpointIndependent,
            filtering,
            allocator: Allocator::Preserving,
            hairpin: false,
            takes_early: false,
            lends_for: Duration::ZERO,
            timeouts: Timeouts::LINUX,
        }
    }

    /// Mapping and filtering by address and port.
    pub const fn symmetric(allocator: Allocator) -> Self {
        Self {
            mapping: Mapping::AddressAndPortDependent,
            filtering: Filtering::AddressAndPortDependent,
            allocator,
            hairpin: false,
            takes_early: false,
            lends_for: Duration::ZERO,
            timeouts: Timeouts::LINUX,
        }
    }
}

const PORT_MIN: u16 = 1024;
/// Entries beyond which the dead ones are swept before the next is made.
const SWEEP_ABOVE: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Toward {
    All,
    Address(Ipv4Addr),
    Endpoint(SocketAddrV4),
}

type Key = (SocketAddrV4, Toward);

/// An external port, and the destination that it is taken for where others may have it too.
type Slot = (u16, Option<SocketAddrV4>);

#[derive(Debug)]
struct Entry {
    port: u16,
    flows: BTreeMap<SocketAddrV4, Flow>,
}

impl Entry {
    fn alive(&self, now: Instant, timeouts: &Timeouts) -> bool {
        self.flows.values().any(|flow| flow.alive(now, timeouts))
    }

    /// Was it alive so lately that a new mapping gets its port?
    fn lends(&self, now: Instant, spec: &NatSpec) -> bool {
        now.checked_sub(spec.lends_for)
            .is_none_or(|before| self.alive(before, &spec.timeouts))
    }
}

/// A translator.
#[derive(Debug)]
pub(crate) struct Nat {
    spec: NatSpec,
    entries: BTreeMap<Key, Entry>,
    ports: BTreeMap<Slot, Key>,
    /// What the router took for itself, and when last.
    early: BTreeMap<(u16, SocketAddrV4), Instant>,
    cursor: u16,
}

impl Nat {
    pub(crate) fn new(spec: NatSpec, random: &mut Random) -> Self {
        Self {
            spec,
            entries: BTreeMap::new(),
            ports: BTreeMap::new(),
            early: BTreeMap::new(),
            cursor: random_port(random, PORT_MIN, u16::MAX),
        }
    }

    pub(crate) fn spec(&self) -> &NatSpec {
        &self.spec
    }

    pub(crate) fn set_spec(&mut self, spec: NatSpec) {
        self.spec = spec;
    }

    /// Live mappings.
    pub(crate) fn mappings(&self, now: Instant) -> usize {
        let timeouts = &self.spec.timeouts;
        self.entries
            .values()
            .filter(|entry| entry.alive(now, timeouts))
            .count()
    }

    pub(crate) fn forget(&mut self) {
        self.entries.clear();
        self.ports.clear();
        self.early.clear();
    }

    /// Forgets, and goes on elsewhere in the port space.
    pub(crate) fn reboot(&mut self, random: &mut Random) {
        self.forget();
        self.cursor = random_port(random, PORT_MIN, u16::MAX);
    }

    /// The external port of a packet on its way out; `None` where no port is free.
    pub(crate) fn outbound(
        &mut self,
        inside: SocketAddrV4,
        destination: SocketAddrV4,
        random: &mut Random,
        now: Instant,
    ) -> Option<u16> {
        let timeouts = self.spec.timeouts;
        let toward = match self.spec.mapping {
            Mapping::EndpointIndependent => Toward::All,
            Mapping::AddressDependent => Toward::Address(*destination.ip()),
            Mapping::AddressAndPortDependent => Toward::Endpoint(destination),
        };
        let usual = (inside, toward);
        let other = self.clashes(usual, destination, now);
        let key = if other {
            (inside, Toward::Endpoint(destination))
        } else {
            usual
        };
        if self
            .entries
            .get(&key)
            .is_some_and(|entry| !entry.lends(now, &self.spec))
        {
            self.remove(&key);
        }
        if !self.entries.contains_key(&key) {
            if self.entries.len() > SWEEP_ABOVE {
                self.sweep(now);
            }
            // No translator gives out port 0, so it stands for "another than the usual".
            let wanted = if other { 0 } else { inside.port() };
            let port = self.allocate(wanted, destination, random).or_else(|| {
                self.sweep(now);
                self.allocate(wanted, destination, random)
            })?;
            self.ports.insert(self.slot(port, destination), key);
            self.entries.insert(
                key,
                Entry {
                    port,
                    flows: BTreeMap::new(),
                },
            );
        }
        let entry = self.entries.get_mut(&key)?;
        match entry.flows.get_mut(&destination) {
            Some(flow) if flow.alive(now, &timeouts) => flow.outbound(now),
            Some(_) | None => {
                if entry.flows.len() > SWEEP_ABOVE {
                    entry.flows.retain(|_, flow| flow.alive(now, &timeouts));
                }
                entry.flows.insert(destination, Flow::new(now));
            }
        }
        Some(entry.port)
    }

    /// The inside address of a packet on its way in; `None` where it is not let in.
    pub(crate) fn inbound(
        &mut self,
        port: u16,
        remote: SocketAddrV4,
        now: Instant,
    ) -> Option<SocketAddrV4> {
        let inside = self.mapped(port, remote, now);
        if inside.is_none() && self.spec.takes_early {
            let unreplied = self.spec.timeouts.unreplied;
            self.early.retain(|_, at| now < *at + unreplied);
            self.early.insert((port, remote), now);
        }
        inside
    }

    /// Has the router taken a packet of this flow's remote, before the flow was there?
    fn clashes(&self, usual: Key, destination: SocketAddrV4, now: Instant) -> bool {
        let timeouts = self.spec.timeouts;
        let alive = |key: &Key| self.entries.get(key).filter(|e| e.alive(now, &timeouts));
        if !self.spec.takes_early || matches!(usual.1, Toward::Endpoint(_)) {
            return false;
        }
        let odd = self.entries.get(&(usual.0, Toward::Endpoint(destination)));
        if odd.is_some_and(|entry| entry.lends(now, &self.spec)) {
            return true;
        }
        let entry = alive(&usual);
        let flow = entry.and_then(|entry| entry.flows.get(&destination));
        let port = entry.map_or(usual.0.port(), |entry| entry.port);
        let taken = self.early.get(&(port, destination));
        !flow.is_some_and(|flow| flow.alive(now, &timeouts))
            && taken.is_some_and(|at| now < *at + timeouts.unreplied)
    }

    fn mapped(&mut self, port: u16, remote: SocketAddrV4, now: Instant) -> Option<SocketAddrV4> {
        let timeouts = self.spec.timeouts;
        let key = *self.ports.get(&self.slot(port, remote))?;
        let entry = self.entries.get_mut(&key)?;
        if !entry.alive(now, &timeouts) {
            return None;
        }
        let exact = entry
            .flows
            .get(&remote)
            .is_some_and(|f| f.alive(now, &timeouts));
        let admitted = match self.spec.filtering {
            Filtering::EndpointIndependent => true,
            Filtering::AddressDependent => entry
                .flows
                .iter()
                .any(|(to, flow)| to.ip() == remote.ip() && flow.alive(now, &timeouts)),
            Filtering::AddressAndPortDependent => exact,
        };
        if !admitted {
            return None;
        }
        if exact && let Some(flow) = entry.flows.get_mut(&remote) {
            flow.inbound(now, &timeouts);
        }
        Some(key.0)
    }

    fn remove(&mut self, key: &Key) {
        if self.entries.remove(key).is_some() {
            self.ports.retain(|_, of| of != key);
        }
    }

    fn slot(&self, port: u16, remote: SocketAddrV4) -> Slot {
        match self.spec.allocator {
            Allocator::SharedBlock(..) => (port, Some(remote)),
            Allocator::Preserving
            | Allocator::Sequential(_)
            | Allocator::Block(..)
            | Allocator::Random => (port, None),
        }
    }

    fn is_free(&self, port: u16, destination: SocketAddrV4) -> bool {
        !self.ports.contains_key(&self.slot(port, destination))
    }

    fn sweep(&mut self, now: Instant) {
        let timeouts = self.spec.timeouts;
        self.entries.retain(|_, entry| entry.alive(now, &timeouts));
        let entries = &self.entries;
        self.ports.retain(|_, key| entries.contains_key(key));
    }

    fn allocate(
        &mut self,
        inside: u16,
        destination: SocketAddrV4,
        random: &mut Random,
    ) -> Option<u16> {
        let (low, high) = match self.spec.allocator {
            Allocator::Preserving if inside >= PORT_MIN && self.is_free(inside, destination) => {
                return Some(inside);
            }
            Allocator::Preserving | Allocator::Random => (PORT_MIN, u16::MAX),
            Allocator::Block(low, high) | Allocator::SharedBlock(low, high) => (low, high),
            Allocator::Sequential(step) => {
                for _ in 0..=u16::MAX {
                    let span = i32::from(u16::MAX - PORT_MIN) + 1;
                    let offset = i32::from(self.cursor) - i32::from(PORT_MIN) + i32::from(step);
                    self.cursor = PORT_MIN + u16::try_from(offset.rem_euclid(span)).unwrap_or(0);
                    if self.is_free(self.cursor, destination) {
                        return Some(self.cursor);
                    }
                }
                return None;
            }
        };
        let first = random_port(random, low, high);
        (first..=high)
            .chain(low..first)
            .find(|port| self.is_free(*port, destination))
    }
}

fn random_port(random: &mut Random, low: u16, high: u16) -> u16 {
    u16::try_from(random.between(u64::from(low), u64::from(high))).unwrap_or(high)
}
