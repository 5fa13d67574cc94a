//! The translators and filters before this node, told from what others see of it (RFC 4787, RFC 5780).
//!
//! Every answer says under which address it saw us. Those of peers are authenticated; those of STUN
//! servers are believed when two agree, or when the only configured one is all there is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use mesh_types::address::is_global;
use mesh_types::{Allocation, Filtering, Mapping, NatReport};

/// Answers kept.
const OBSERVATIONS_MAX: usize = 64;
/// Older answers say nothing of the mapping behaviour.
const FRESH: Duration = Duration::from_secs(60);
/// Every path is asked that often: an address that nobody has seen for so long, while others were seen, is gone.
const SEEN_AGAIN: Duration = Duration::from_secs(30);
/// Two answers contradict each other only when they are this close: a mapping may be lost in between.
const CLOSE: Duration = Duration::from_secs(3);
/// New sockets that were seen under one port each outweigh what seems to differ for so long.
const SETTLED: Duration = Duration::from_secs(300);
/// Addresses of one family told where as many remotes see each of them.
const TIED_MAX: usize = 2;
/// Silence of so many remotes...
const BLOCKED_REMOTES: usize = 3;
/// ...for so long means that UDP is blocked.
const BLOCKED_AFTER: Duration = Duration::from_secs(3);
/// Addresses remembered as sent to, for the filtering verdict.
const CONTACTED_MAX: usize = 4096;

/// Who saw us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Witness {
    /// A peer, authenticated.
    Peer,
    /// A STUN server.
    Server,
}

/// May several destinations see the same external port at once?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Sharing {
    #[default]
    Unknown,
    /// Samples are under way.
    Asked,
    /// As Linux does it: ports do not run out.
    Shared,
    /// As carriers do it: a mapping takes a port from all others.
    Single,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    mapped: SocketAddr,
    at: Instant,
    witness: Witness,
    /// Another remote has seen our address change since.
    stale: bool,
}

/// What is known of the own NAT.
#[derive(Debug)]
pub(crate) struct NatKind {
    seen: BTreeMap<SocketAddr, Seen>,
    contacted: BTreeSet<IpAddr>,
    silent: BTreeSet<IpAddr>,
    silent_since: Option<Instant>,
    report: NatReport,
    /// Tests in a row in which another port's answer did not arrive.
    silences: u8,
    /// How ports are allocated, as samples say, and how many a second others take.
    sampled: (Allocation, u32),
    /// Whether the ports of a block are shared.
    pub(crate) sharing: Sharing,
    /// Two ports of one address see us under different ones.
    pub(crate) torn: bool,
    /// When samples have last shown that mappings are independent of who looks, against appearances.
    independent: Option<Instant>,
    /// Something here has changed since it was last judged.
    pub(crate) unjudged: bool,
}

impl NatKind {
    pub(crate) fn new() -> Self {
        Self {
            seen: BTreeMap::new(),
            contacted: BTreeSet::new(),
            silent: BTreeSet::new(),
            silent_since: None,
            report: NatReport::default(),
            silences: 0,
            sampled: (Allocation::Unknown, 0),
            sharing: Sharing::Unknown,
            torn: false,
            independent: None,
            unjudged: true,
        }
    }

    pub(crate) fn report(&self) -> NatReport {
        self.report
    }

    /// The host has moved: nothing known holds.
    pub(crate) fn reset(&mut self) {
        *self = Self::new();
    }

    /// All is to be learned anew in the same network: what was sent to stays open.
    pub(crate) fn forget(&mut self) {
        *self = Self {
            contacted: std::mem::take(&mut self.contacted),
            ..Self::new()
        };
    }

    /// Something else than a probe was sent there, by the tunnel or by an earlier run, and the translator may let in what
    /// comes from there: it is no stranger.
    pub(crate) fn sent_before(&mut self, to: IpAddr) {
        if self.contacted.len() < CONTACTED_MAX {
            self.contacted.insert(to);
        }
    }

    /// Sixteen sockets were seen from outside: how ports are allocated, and how many a second others take.
    pub(crate) fn sampled(&mut self, allocation: Allocation, busy: u32) {
        self.unjudged |= self.sampled.0 != allocation;
        if !overlap(self.sampled.0, allocation) {
            self.sharing = Sharing::Unknown;
        }
        self.sampled = (allocation, busy);
    }

    /// Sockets were seen under one port each, whoever looked: what seemed to differ was a lost mapping.
    pub(crate) fn sampled_as_independent(&mut self, now: Instant) {
        let old = |seen: &Seen| now.saturating_duration_since(seen.at) >= CLOSE;
        self.seen.retain(|_, seen| !old(seen) || !seen.stale);
        let newest = self.seen.values().map(|seen| seen.at).max();
        self.seen
            .values_mut()
            .filter(|seen| Some(seen.at) < newest)
            .for_each(|seen| seen.stale = true);
        self.report.mapping = Mapping::EndpointIndependent;
        self.independent = Some(now);
        self.unjudged = true;
    }

    /// Have samples outweighed what single remotes see? A router that has taken an early packet for itself gives
    /// the flow to its sender another port, and no other flow.
    fn is_settled(&self, now: Instant) -> bool {
        let lasts = |at| now.saturating_duration_since(at) < SETTLED;
        self.independent.is_some_and(lasts)
    }

    /// Ports a second that others take from a sequence.
    pub(crate) fn busy(&self) -> u32 {
        self.sampled.1
    }

    /// Does each destination see another port, or each address?
    pub(crate) fn is_hard(&self) -> bool {
        match self.report.mapping {
            Mapping::AddressDependent | Mapping::AddressAndPortDependent => true,
            Mapping::EndpointIndependent | Mapping::Unknown => false,
        }
    }

    /// Are the mapping or the filtering still to be told?
    pub(crate) fn wants_tests(&self) -> bool {
        self.report.mapping == Mapping::Unknown || self.report.filtering == Filtering::Unknown
    }

    /// An answer of `remote` says that it saw `mapped`. True where it saw another address before: the
    /// mapping was lost, or the host has moved.
    pub(crate) fn observe(
        &mut self,
        remote: SocketAddr,
        mapped: SocketAddr,
        witness: Witness,
        now: Instant,
    ) -> bool {
        let before = self.seen.get(&remote).map(|seen| seen.mapped);
        let before = before.filter(|before| *before != mapped);
        if let Some(before) = before {
            // Where each remote sees a port of its own, one that has gone says nothing of the others.
            let apart = self.is_hard();
            self.seen
                .values_mut()
                .filter(|seen| seen.mapped != mapped && seen.mapped.is_ipv4() == mapped.is_ipv4())
                .filter(|seen| !apart || seen.mapped.ip() != mapped.ip() || seen.mapped == before)
                .for_each(|seen| seen.stale = true);
        }
        if self.seen.len() >= OBSERVATIONS_MAX && !self.seen.contains_key(&remote) {
            let oldest = self.seen.iter().min_by_key(|(_, seen)| seen.at);
            if let Some(oldest) = oldest.map(|(remote, _)| *remote) {
                self.seen.remove(&oldest);
            }
        }
        let seen = Seen {
            mapped,
            at: now,
            witness,
            stale: false,
        };
        self.seen.insert(remote, seen);
        self.unjudged = true;
        before.is_some()
    }

    /// Answers that count for a family: those of the internet where there are any.
    fn counting(&self, ipv4: bool) -> Vec<(SocketAddr, Seen)> {
        let all: Vec<_> = self
            .seen
            .iter()
            .filter(|(remote, seen)| {
                !seen.stale && seen.mapped.is_ipv4() == ipv4 && remote.is_ipv4() == ipv4
            })
            .map(|(remote, seen)| (*remote, *seen))
            .collect();
        let (near, far): (Vec<_>, Vec<_>) = all
            .into_iter()
            .partition(|(remote, _)| !is_global(&remote.ip()));
        if far.is_empty() { near } else { far }
    }

    /// The addresses under which others see us: what most remotes of a family see, two where as many see the one as
    /// the other. Of a hard NAT, where each may see another one, what was seen last.
    pub(crate) fn reflexive(&self, servers: usize) -> Vec<SocketAddr> {
        [true, false]
            .into_iter()
            .flat_map(|ipv4| {
                let mut groups: BTreeMap<SocketAddr, (usize, usize, Option<Instant>)> =
                    BTreeMap::new();
                for (_, seen) in self.counting(ipv4) {
                    let (peers, all, last) = groups.entry(seen.mapped).or_default();
                    *peers += usize::from(seen.witness == Witness::Peer);
                    *all += 1;
                    *last = (*last).max(Some(seen.at));
                }
                let newest = groups.values().filter_map(|(.., last)| *last).max();
                groups.retain(|_, (.., last)| last.map(|at| at + SEEN_AGAIN) >= newest);
                let peers_answered = groups.values().any(|(peers, ..)| *peers > 0);
                groups.retain(|_, (peers, all, _)| {
                    *peers > 0 || *all >= 2 || (servers == 1 && !peers_answered)
                });
                let most = groups.values().map(|(_, all, _)| *all).max();
                groups.retain(|_, (_, all, _)| Some(*all) == most);
                if self.is_hard() {
                    let newest = groups.values().filter_map(|(.., last)| *last).max();
                    groups.retain(|_, (.., last)| *last == newest);
                }
                // By address: which of three are left out must not depend on who was heard last.
                groups.into_keys().take(TIED_MAX)
            })
            .collect()
    }

    /// Does any remote see us under this address, as far as is known?
    pub(crate) fn shows(&self, address: SocketAddr) -> bool {
        let counting = self.counting(address.is_ipv4());
        let newest = counting.iter().map(|(_, seen)| seen.at).max();
        counting
            .iter()
            .any(|(_, seen)| seen.mapped == address && Some(seen.at + FRESH) > newest)
    }

    /// Judges mapping and allocation afresh, given the host's own addresses and port.
    pub(crate) fn judge(&mut self, hosts: &[IpAddr], port: u16, now: Instant) {
        let ipv4 = !self.counting(true).is_empty();
        let seen: Vec<_> = self
            .counting(ipv4)
            .into_iter()
            .filter(|(_, seen)| now.saturating_duration_since(seen.at) < FRESH)
            .collect();
        let is_own = |mapped: &SocketAddr| mapped.port() == port && hosts.contains(&mapped.ip());
        if !seen.is_empty() && seen.iter().all(|(_, seen)| is_own(&seen.mapped)) {
            self.report.mapping = Mapping::EndpointIndependent;
            self.report.allocation = Allocation::Preserving;
            return;
        }
        let mut agree = 0;
        let mut same_ip_agrees = false;
        let mut differ = false;
        let mut same_ip_differs = false;
        for (i, (a, first)) in seen.iter().enumerate() {
            for (b, second) in &seen[i + 1..] {
                let same_ip = a.ip() == b.ip();
                let apart = first.at.max(second.at) - first.at.min(second.at);
                if first.mapped == second.mapped {
                    agree += 1;
                    same_ip_agrees |= same_ip;
                } else if apart <= CLOSE {
                    differ = true;
                    same_ip_differs |= same_ip;
                }
            }
        }
        self.torn = same_ip_differs;
        if differ && !self.is_settled(now) {
            self.report.mapping = if same_ip_agrees && !same_ip_differs {
                Mapping::AddressDependent
            } else {
                Mapping::AddressAndPortDependent
            };
        } else if agree > 0 {
            self.report.mapping = Mapping::EndpointIndependent;
        }
        if self.is_hard() {
            self.report.allocation = self.sampled.0;
        } else if let Some((_, seen)) = seen.iter().max_by_key(|(_, seen)| seen.at) {
            self.report.allocation = if seen.mapped.port() == port {
                Allocation::Preserving
            } else {
                Allocation::Unknown
            };
        }
    }

    /// A datagram was sent; `watched` where silence says something (nobody is connected).
    pub(crate) fn sent(&mut self, to: IpAddr, watched: bool, now: Instant) {
        self.sent_before(to);
        if watched && self.silent.len() < BLOCKED_REMOTES {
            self.silent.insert(to);
            if self.silent.len() == BLOCKED_REMOTES {
                self.silent_since.get_or_insert(now);
            }
        }
    }

    /// Something authentic came from outside.
    pub(crate) fn heard(&mut self) {
        self.silent.clear();
        self.silent_since = None;
        self.unjudged |= std::mem::take(&mut self.report.udp_blocked);
    }

    /// An authenticated request came from an address of the internet.
    pub(crate) fn request_from(&mut self, remote: IpAddr) {
        let uncontacted = self.contacted.len() < CONTACTED_MAX && !self.contacted.contains(&remote);
        if uncontacted && is_global(&remote) {
            self.report.filtering = Filtering::EndpointIndependent;
            self.unjudged = true;
        }
    }

    /// An answer came from another port than the one asked.
    pub(crate) fn other_port_answered(&mut self) {
        self.silences = 0;
        if self.report.filtering != Filtering::EndpointIndependent {
            self.report.filtering = Filtering::AddressDependent;
            self.unjudged = true;
        }
    }

    /// No answer came from another port, though the peer is there. What was known to be let in is given up only
    /// after a second silence: the first may be another's fault.
    pub(crate) fn other_port_silent(&mut self) {
        self.silences = self.silences.saturating_add(1);
        let known = self.report.filtering;
        if known == Filtering::Unknown
            || (self.silences > 1 && known != Filtering::AddressAndPortDependent)
        {
            self.report.filtering = Filtering::AddressAndPortDependent;
            self.unjudged = true;
        }
    }

    /// When silence becomes a verdict.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.silent_since
            .filter(|_| !self.report.udp_blocked)
            .map(|since| since + BLOCKED_AFTER)
    }

    /// Time has passed.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        if self.deadline().is_some_and(|at| at <= now) {
            self.report.udp_blocked = true;
            self.unjudged = true;
        }
    }
}

/// Can these be the same block?
fn overlap(a: Allocation, b: Allocation) -> bool {
    match (a, b) {
        (Allocation::Block(low, high), Allocation::Block(from, to)) => low <= to && from <= high,
        (_, _) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instant::start;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn judged(seen: &[(&str, &str)]) -> NatKind {
        let (mut nat, now) = (NatKind::new(), start());
        for (remote, mapped) in seen {
            nat.observe(at(remote), at(mapped), Witness::Peer, now);
        }
        nat.judge(&["192.168.1.5".parse().unwrap()], 22000, now);
        nat
    }

    #[test]
    fn addresses_that_as_many_remotes_see_are_both_told_and_do_not_take_turns() {
        let (mut nat, mut now) = (NatKind::new(), start());
        let seen = [
            ("198.51.100.1:5000", "203.0.113.1:1025"),
            ("198.51.100.2:5000", "203.0.113.1:1026"),
        ];
        for (remote, mapped) in seen.into_iter().cycle().take(8) {
            now += CLOSE;
            nat.observe(at(remote), at(mapped), Witness::Peer, now);
            nat.sampled_as_independent(now);
        }
        nat.observe(at(seen[0].0), at(seen[0].1), Witness::Peer, now);
        let mut both = nat.reflexive(0);
        both.sort();
        assert_eq!(both, seen.map(|(_, mapped)| at(mapped)));
    }

    #[test]
    fn mapping_is_told_from_what_remotes_see() {
        let kind = |seen: &[(&str, &str)]| judged(seen).report().mapping;
        let (a, b, c) = (
            "198.51.100.1:5000",
            "198.51.100.2:5000",
            "198.51.100.1:6000",
        );
        assert_eq!(kind(&[(a, "203.0.113.1:22000")]), Mapping::Unknown);
        assert_eq!(
            kind(&[(a, "203.0.113.1:22000"), (b, "203.0.113.1:22000")]),
            Mapping::EndpointIndependent
        );
        assert_eq!(
            kind(&[(a, "203.0.113.1:1025"), (c, "203.0.113.1:1026")]),
            Mapping::AddressAndPortDependent
        );
        assert_eq!(
            kind(&[
                (a, "203.0.113.1:1025"),
                (c, "203.0.113.1:1025"),
                (b, "203.0.113.1:1026")
            ]),
            Mapping::AddressDependent
        );
        assert_eq!(
            kind(&[(a, "192.168.1.5:22000")]),
            Mapping::EndpointIndependent
        );
        assert_eq!(
            kind(&[
                ("192.168.1.9:5000", "192.168.1.5:22000"),
                (a, "203.0.113.1:1025")
            ]),
            Mapping::Unknown
        );
    }

    #[test]
    fn a_lost_mapping_is_not_taken_for_a_dependent_one() {
        let mut nat = judged(&[
            ("198.51.100.1:5000", "203.0.113.1:1025"),
            ("198.51.100.2:5000", "203.0.113.1:1025"),
        ]);
        let now = start() + Duration::from_secs(1);
        assert!(nat.observe(
            at("198.51.100.1:5000"),
            at("203.0.113.1:1030"),
            Witness::Peer,
            now
        ));
        nat.judge(&[], 22000, now);
        assert_eq!(nat.report().mapping, Mapping::EndpointIndependent);
        assert_eq!(nat.reflexive(0), [at("203.0.113.1:1030")]);
    }

    #[test]
    fn an_address_that_is_seen_no_more_gives_way_however_many_saw_it() {
        let (mut nat, start) = (NatKind::new(), start());
        for remote in ["198.51.100.1:1", "198.51.100.2:1", "198.51.100.3:1"] {
            nat.observe(at(remote), at("203.0.113.1:40001"), Witness::Peer, start);
        }
        let new = at("203.0.113.1:41007");
        for (after, seen) in [(20, at("203.0.113.1:40001")), (31, new)] {
            let now = start + Duration::from_secs(after);
            nat.observe(at("198.51.100.4:1"), new, Witness::Peer, now);
            assert_eq!(nat.reflexive(0), [seen]);
        }
    }

    #[test]
    fn a_servers_word_needs_a_second_unless_it_is_the_only_one() {
        let (mut nat, now) = (NatKind::new(), start());
        let mapped = at("203.0.113.1:1025");
        nat.observe(at("198.51.100.1:3478"), mapped, Witness::Server, now);
        assert_eq!(nat.reflexive(2), []);
        assert_eq!(nat.reflexive(1), [mapped]);
        nat.observe(at("198.51.100.2:3478"), mapped, Witness::Server, now);
        assert_eq!(nat.reflexive(2), [mapped]);
        let lie = at("192.0.2.66:53000");
        nat.observe(at("198.51.100.3:3478"), lie, Witness::Server, now);
        assert_eq!(nat.reflexive(3), [mapped]);
    }

    #[test]
    fn filtering_that_has_become_stricter_is_noticed_at_the_second_silence() {
        let mut nat = NatKind::new();
        nat.other_port_answered();
        nat.other_port_silent();
        assert_eq!(nat.report().filtering, Filtering::AddressDependent);
        nat.other_port_answered();
        nat.other_port_silent();
        assert_eq!(nat.report().filtering, Filtering::AddressDependent);
        nat.other_port_silent();
        assert_eq!(nat.report().filtering, Filtering::AddressAndPortDependent);
    }

    #[test]
    fn what_is_known_of_a_block_is_forgotten_with_it() {
        let mut nat = NatKind::new();
        nat.sampled(Allocation::Block(40_000, 41_900), 0);
        nat.sharing = Sharing::Shared;
        nat.sampled(Allocation::Block(40_100, 42_047), 0);
        assert_eq!(
            nat.sharing,
            Sharing::Shared,
            "the same, seen by other samples"
        );
        nat.sampled(Allocation::Block(50_000, 52_047), 0);
        assert_eq!(nat.sharing, Sharing::Unknown);
    }

    #[test]
    fn who_was_sent_to_before_proves_nothing_by_getting_in() {
        let mut nat = NatKind::new();
        let (known, stranger) = (at("203.0.113.1:1").ip(), at("203.0.113.2:1").ip());
        nat.sent_before(known);
        nat.request_from(known);
        assert_eq!(nat.report().filtering, Filtering::Unknown);
        nat.forget();
        nat.request_from(known);
        assert_eq!(nat.report().filtering, Filtering::Unknown);
        nat.request_from(stranger);
        assert_eq!(nat.report().filtering, Filtering::EndpointIndependent);
    }

    #[test]
    fn three_silent_remotes_mean_blocked_until_somebody_answers() {
        let (mut nat, now) = (NatKind::new(), start());
        for last in 1..=3 {
            nat.sent(IpAddr::from([198, 51, 100, last]), true, now);
        }
        let at = nat.deadline().unwrap();
        nat.handle_timeout(at);
        assert!(nat.report().udp_blocked);
        assert_eq!(nat.deadline(), None);
        nat.heard();
        assert!(!nat.report().udp_blocked);
    }
}
