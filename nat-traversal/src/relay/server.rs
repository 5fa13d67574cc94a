//! The relaying side: which port belongs to whom, who is bound where, and what follows for the host.
//!
//! Nothing is remembered of a first request but the member's port; a pair comes into being with the second.
//! The caller has authenticated the sender and found both ends among the members.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use mesh_types::PeerId;
use mesh_types::plan::RelayPair;
use sha2::{Digest as _, Sha256};

use super::PATIENCE;
use crate::api::RelaySettings;

/// An end that is not refreshed is forgotten after this; so is a port that nobody uses.
pub(crate) const LIFETIME: Duration = Duration::from_secs(300);
/// Pairs of a node in all: elements of a map in the kernel.
pub(crate) const PAIRS_MAX: usize = 1024;
/// Pairs of one member: a member must not use up what is there for all.
pub(crate) const MEMBER_PAIRS_MAX: usize = 256;
/// A port that somebody else on this host holds is lent again after this at the earliest.
pub(crate) const BUSY: Duration = Duration::from_secs(3600);
/// A nonce is taken for this long to twice as long.
const NONCE_PERIOD: Duration = Duration::from_secs(30);
const NONCE: usize = 16;
/// Who asks again makes the other end be told again after this, doubled each time as long as neither comes.
const OFFER_EVERY: Duration = Duration::from_millis(500);
const OFFER_DOUBLINGS: u32 = 7;
/// An end that was told and does not come is told again after these, one after the other: the message may be lost.
const OFFER_AGAIN: [Duration; 3] = [
    Duration::from_millis(200),
    Duration::from_millis(400),
    Duration::from_millis(800),
];

/// Why a bind is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// This node does not relay.
    Off,
    /// The other end is no member, or the sender itself.
    Peer,
    /// The other end is not in reach of this node.
    Absent,
    /// No port is free, or a cap is reached.
    Full,
}

impl Refusal {
    /// The code on the wire: RFC 8489 14.8 and RFC 8656 19 where they have a fitting one.
    pub(crate) fn code(self) -> u16 {
        match self {
            Self::Off | Self::Peer => 403,
            Self::Absent => 404,
            Self::Full => 486,
        }
    }

    /// The word in counters.
    pub(crate) fn kind(self) -> &'static str {
        match self {
            Self::Off => "refused-relay-off",
            Self::Peer => "refused-relay-peer",
            Self::Absent => "refused-relay-absent",
            Self::Full => "refused-relay-full",
        }
    }
}

/// A bind request, authenticated.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Request<'a> {
    pub(crate) from: PeerId,
    /// The other end.
    pub(crate) to: PeerId,
    /// Where it came from.
    pub(crate) source: SocketAddr,
    /// The relay port it came to; `None` is the main port.
    pub(crate) port: Option<u16>,
    pub(crate) nonce: Option<&'a [u8]>,
}

/// What a bind request is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Come to this port with this nonce.
    Come(u16, Vec<u8>),
    /// Bound at this port.
    Bound(u16),
}

#[derive(Debug, Clone, Copy)]
struct Port {
    number: u16,
    used: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct End {
    address: SocketAddr,
    until: Instant,
}

/// An end was told of the other's wish.
#[derive(Debug, Clone, Copy)]
struct Told {
    /// The last time.
    at: Instant,
    /// How often.
    times: usize,
    /// How often the wish was told before, in vain.
    vain: u32,
}

impl Told {
    fn again(&self) -> Option<Instant> {
        let wait = OFFER_AGAIN.get(self.times.checked_sub(1)?)?;
        Some(self.at + *wait)
    }

    /// No new wish is told before.
    fn rests(&self) -> Instant {
        self.at + OFFER_EVERY * 2_u32.pow(self.vain.min(OFFER_DOUBLINGS))
    }
}

/// Lower id first.
type Names = (PeerId, PeerId);

/// See the module.
#[derive(Debug)]
pub(crate) struct Server {
    settings: Option<RelaySettings>,
    secret: [u8; 32],
    /// Nonces count time from here.
    epoch: Instant,
    ports: BTreeMap<PeerId, Port>,
    /// Ports that somebody else holds, and until when they are left alone.
    busy: BTreeMap<u16, Instant>,
    pairs: BTreeMap<Names, [Option<End>; 2]>,
    /// By who wishes, then who was told.
    offers: BTreeMap<(PeerId, PeerId), Told>,
    changed: bool,
    /// When something expires, where nothing has changed since that was computed.
    due: Option<Instant>,
    stale: bool,
}

impl Server {
    pub(crate) fn new(secret: [u8; 32], now: Instant) -> Self {
        Self {
            settings: None,
            secret,
            epoch: now,
            ports: BTreeMap::new(),
            busy: BTreeMap::new(),
            pairs: BTreeMap::new(),
            offers: BTreeMap::new(),
            changed: false,
            due: None,
            stale: false,
        }
    }

    /// Serves, or stops and forgets all.
    pub(crate) fn set(&mut self, settings: Option<RelaySettings>) {
        if settings == self.settings {
            return;
        }
        let ports = |settings: &Option<RelaySettings>| settings.map(|s| s.ports);
        if ports(&settings) != ports(&self.settings) {
            self.ports.clear();
            self.pairs.clear();
        }
        self.settings = settings;
        self.changed = true;
        self.stale = true;
    }

    pub(crate) fn is_on(&self) -> bool {
        self.settings.is_some()
    }

    /// Ports that somebody else on this host holds. Their members get others; their pairs bind anew.
    pub(crate) fn set_busy(&mut self, busy: &BTreeSet<u16>, now: Instant) {
        self.busy.retain(|_, until| *until > now);
        self.busy
            .extend(busy.iter().map(|port| (*port, now + BUSY)));
        let lost: Vec<PeerId> = self
            .ports
            .iter()
            .filter(|(_, port)| busy.contains(&port.number))
            .map(|(member, _)| *member)
            .collect();
        for member in lost {
            self.remove_peer(&member);
        }
    }

    pub(crate) fn remove_peer(&mut self, id: &PeerId) {
        self.stale = true;
        self.changed |= self.ports.remove(id).is_some();
        self.pairs.retain(|(a, b), _| a != id && b != id);
        self.offers.retain(|(a, b), _| a != id && b != id);
    }

    /// Takes a bind request. Nothing changes unless the nonce fits where it comes from.
    pub(crate) fn handle_bind(
        &mut self,
        request: &Request<'_>,
        now: Instant,
    ) -> Result<Answer, Refusal> {
        if self.settings.is_none() {
            return Err(Refusal::Off);
        }
        self.stale = true;
        let Request { from, to, .. } = *request;
        if from == to {
            return Err(Refusal::Peer);
        }
        let names = names(from, to);
        if !self.pairs.contains_key(&names) && !self.has_room(from, to) {
            return Err(Refusal::Full);
        }
        let port = self.port(to, now).ok_or(Refusal::Full)?;
        self.port(from, now).ok_or(Refusal::Full)?;
        let ip = request.source.ip();
        let shown = request.nonce.filter(|_| request.port == Some(port));
        if !shown.is_some_and(|nonce| self.fits(nonce, from, to, ip, now)) {
            return Ok(Answer::Come(port, self.nonce(from, to, ip, now)));
        }
        // A translator may have given a mapping to another pair since; whoever proved it last has it.
        for (other, ends) in &mut self.pairs {
            for (side, end) in ends.iter_mut().enumerate() {
                let target = if side == 0 { other.1 } else { other.0 };
                let same = target == to && end.is_some_and(|end| end.address == request.source);
                if same && *other != names {
                    *end = None;
                    self.changed = true;
                }
            }
        }
        let end = End {
            address: request.source,
            until: now + LIFETIME,
        };
        let place = &mut self.pairs.entry(names).or_default()[usize::from(from != names.0)];
        self.changed |= place.is_none_or(|old| old.address != end.address);
        *place = Some(end);
        self.offers.remove(&(to, from));
        if let Some(told) = self.offers.get_mut(&(from, to)) {
            told.vain = 0;
        }
        Ok(Answer::Bound(port))
    }

    /// Port and nonce for the other end of a request that was taken, unless it is there or was just told.
    /// `at` is where this node reaches it.
    pub(crate) fn offer(
        &mut self,
        request: &Request<'_>,
        at: IpAddr,
        now: Instant,
    ) -> Option<(u16, Vec<u8>)> {
        self.stale = true;
        let Request { from, to, port, .. } = *request;
        let last = self.offers.get(&(from, to));
        // Who asks at the main port is not met here yet, and the other end may have left since it was bound.
        let there = match self.end(to, from) {
            Some(end) => port.is_some() || end.until + PATIENCE > now + LIFETIME,
            None => false,
        };
        if there || last.is_some_and(|told| told.rests() > now) {
            return None;
        }
        let vain = last.map_or(0, |told| told.vain + 1);
        if last.is_none() && self.offers.len() >= PAIRS_MAX {
            return None;
        }
        let told = Told {
            at: now,
            times: 1,
            vain,
        };
        self.offers.insert((from, to), told);
        let port = self.port(from, now)?;
        Some((port, self.nonce(to, from, at, now)))
    }

    /// Who wishes, and who was told and did not come yet.
    pub(crate) fn offers_due(&self, now: Instant) -> Vec<(PeerId, PeerId)> {
        let due = |told: &Told| told.again().is_some_and(|at| at <= now);
        let offers = self.offers.iter().filter(|(_, told)| due(told));
        offers.map(|(names, _)| *names).collect()
    }

    /// The same as [`Self::offer`] for one that is due; `at` is `None` where the end is out of reach.
    pub(crate) fn offer_again(
        &mut self,
        from: PeerId,
        to: PeerId,
        at: Option<IpAddr>,
        now: Instant,
    ) -> Option<(u16, Vec<u8>)> {
        self.stale = true;
        // It is no longer due once the other end has bound.
        let waits = self.end(from, to).is_some();
        let told = self.offers.get_mut(&(from, to))?;
        let Some(at) = at.filter(|_| waits) else {
            told.times = usize::MAX;
            return None;
        };
        told.at = now;
        told.times += 1;
        let port = self.port(from, now)?;
        Some((port, self.nonce(to, from, at, now)))
    }

    /// An end of a pair, where it is bound.
    fn end(&self, end: PeerId, other: PeerId) -> Option<End> {
        let names = names(end, other);
        self.pairs.get(&names)?[usize::from(end != names.0)]
    }

    fn has_room(&self, from: PeerId, to: PeerId) -> bool {
        let of = |id: PeerId| self.pairs.keys().filter(move |(a, b)| *a == id || *b == id);
        self.pairs.len() < PAIRS_MAX
            && of(from).count() < MEMBER_PAIRS_MAX
            && of(to).count() < MEMBER_PAIRS_MAX
    }

    /// A member's port, the same as long as it is in use and mostly the same ever after: it follows from the name.
    fn port(&mut self, member: PeerId, now: Instant) -> Option<u16> {
        if let Some(port) = self.ports.get_mut(&member) {
            port.used = now;
            return Some(port.number);
        }
        let (low, high) = self.settings?.ports;
        let span = u32::from(high.checked_sub(low)?) + 1;
        let taken: BTreeSet<u16> = self.ports.values().map(|port| port.number).collect();
        let [a, b, ..]: [u8; 32] = Sha256::new()
            .chain_update(b"farspan relay port v1")
            .chain_update(bytes(&member))
            .finalize()
            .into();
        let start = u32::from(u16::from_be_bytes([a, b]));
        let number = (0..span)
            .filter_map(|step| u16::try_from(u32::from(low) + (start + step) % span).ok())
            .find(|port| {
                let busy = self.busy.get(port).is_some_and(|until| *until > now);
                !busy && !taken.contains(port)
            })?;
        self.ports.insert(member, Port { number, used: now });
        self.changed = true;
        Some(number)
    }

    fn nonce(&self, from: PeerId, to: PeerId, ip: IpAddr, now: Instant) -> Vec<u8> {
        self.nonce_of(self.period(now), from, to, ip)
    }

    fn fits(&self, nonce: &[u8], from: PeerId, to: PeerId, ip: IpAddr, now: Instant) -> bool {
        let period = self.period(now);
        [period, period.wrapping_sub(1)]
            .into_iter()
            .any(|period| nonce == self.nonce_of(period, from, to, ip))
    }

    fn period(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.epoch);
        since.as_secs() / NONCE_PERIOD.as_secs()
    }

    fn nonce_of(&self, period: u64, from: PeerId, to: PeerId, ip: IpAddr) -> Vec<u8> {
        let ip = match ip {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        Sha256::new()
            .chain_update(b"farspan relay nonce v1")
            .chain_update(self.secret)
            .chain_update(period.to_be_bytes())
            .chain_update(bytes(&from))
            .chain_update(bytes(&to))
            .chain_update(ip)
            .finalize()[..NONCE]
            .to_vec()
    }

    /// Forgets what has expired.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        if !self.stale && self.due.is_none_or(|at| at > now) {
            return;
        }
        // As long again: else who asks at the end of each rest would be new each time.
        let rest = |told: &Told| told.rests().saturating_duration_since(told.at);
        self.offers
            .retain(|_, told| told.again().is_some() || told.rests() + rest(told) > now);
        for ends in self.pairs.values_mut() {
            for end in ends {
                self.changed |= end.take_if(|end| end.until <= now).is_some();
            }
        }
        self.pairs
            .retain(|_, ends| ends.iter().any(Option::is_some));
        let pairs = &self.pairs;
        let before = self.ports.len();
        self.ports.retain(|member, port| {
            port.used + LIFETIME > now || pairs.keys().any(|(a, b)| a == member || b == member)
        });
        self.changed |= self.ports.len() != before;
        self.due = self.expires();
        self.stale = false;
    }

    pub(crate) fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let due = if self.stale { self.expires() } else { self.due };
        due.map(|at| (at, "relay"))
    }

    fn expires(&self) -> Option<Instant> {
        let ends = self.pairs.values().flatten().flatten().map(|end| end.until);
        let in_pairs: BTreeSet<PeerId> = self.pairs.keys().flat_map(|(a, b)| [*a, *b]).collect();
        let ports = self
            .ports
            .iter()
            .filter(|(member, _)| !in_pairs.contains(member))
            .map(|(_, port)| port.used + LIFETIME);
        let offers = self.offers.values().filter_map(Told::again);
        ends.chain(ports).chain(offers).min()
    }

    /// Has what the host must hold changed since this was last asked?
    pub(crate) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// Ports to listen on.
    pub(crate) fn ports(&self) -> BTreeSet<u16> {
        self.ports.values().map(|port| port.number).collect()
    }

    /// Pairs of which both ends are bound.
    pub(crate) fn pairs(&self) -> BTreeSet<RelayPair> {
        let Some(settings) = self.settings else {
            return BTreeSet::new();
        };
        let port = |member: &PeerId| self.ports.get(member).map(|port| port.number);
        self.pairs
            .iter()
            .filter_map(|((a, b), ends)| {
                Some(RelayPair {
                    first: (ends[0]?.address, port(b)?),
                    second: (ends[1]?.address, port(a)?),
                    rate: settings.pair_rate,
                    node_rate: settings.node_rate,
                })
            })
            .collect()
    }
}

fn names(a: PeerId, b: PeerId) -> Names {
    (a.min(b), a.max(b))
}

fn bytes(id: &PeerId) -> Vec<u8> {
    match id {
        PeerId::Node(node) => [&node.domain.0[..], &node.identity.0[..]].concat(),
        PeerId::Key(key) => key.0.to_vec(),
    }
}

#[cfg(test)]
mod tests;
