//! `farspan doctor PEER`: why this node reaches a peer as it does, why not better, and what would change it.
//!
//! Everything is said from what is known: what either side has found out about its NAT, which addresses were
//! tried and which answered, what WireGuard counts.

use std::net::SocketAddr;
use std::time::Duration;

use mesh_types::consts::PERSISTENT_KEEPALIVE;
use mesh_types::{
    Allocation, Candidate, CandidateKind, Filtering, Mapping, NatReport, Now, PeerId,
};
use nat_traversal::{CandidateReport, Hairpin};

use crate::control::public;
use crate::netcheck::seconds;
use crate::overlay::Overlay;
use crate::snapshot::{Finding, PathKind, PeerSnapshot, PeerState, Severity};

/// Addresses named in one sentence.
const NAMED_MAX: usize = 6;

/// What is known of the way to one peer.
#[derive(Debug, Clone)]
pub struct Diagnosis {
    /// The peer as `status` shows it.
    pub peer: PeerSnapshot,
    /// Addresses at which it was tried, best first; those that it only announced come last.
    pub tried: Vec<Tried>,
    /// Findings about the pair: how it is connected, what lies before either side, what follows.
    pub findings: Vec<Finding>,
}

/// An address of a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tried {
    /// Where it is, and who says so.
    pub candidate: Candidate,
    /// The TURN server that packets to it go to.
    pub server: Option<SocketAddr>,
    /// Probes sent to it.
    pub sent: u64,
    /// Answers from it.
    pub answered: u64,
    /// Round trip, once it answered.
    pub rtt: Option<Duration>,
}

/// One side's network, as far as it matters for the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    /// Anybody can send to it.
    Open,
    /// One port for all; lets in whose address was sent to.
    Cone,
    /// One port for all; lets in who was sent to.
    PortCone,
    /// A port for each destination address.
    PerAddress,
    /// A port for each destination, counted up.
    Sequential,
    /// A port for each destination, from a small block.
    Block,
    /// A port for each destination, from all.
    Random,
    /// No UDP.
    Blocked,
}

/// A block up to this can be searched in seconds.
const BLOCK_SMALL: u16 = 4096;

/// `None` where too little is known.
fn class(nat: &NatReport, endpoints: &[Candidate]) -> Option<Class> {
    if nat.udp_blocked {
        return Some(Class::Blocked);
    }
    if public(nat, endpoints) {
        return Some(Class::Open);
    }
    match (nat.mapping, nat.filtering) {
        (Mapping::EndpointIndependent, Filtering::EndpointIndependent) => Some(Class::Open),
        (Mapping::EndpointIndependent, Filtering::AddressDependent) => Some(Class::Cone),
        // Nobody proved it more open: it counts as the strictest.
        (Mapping::EndpointIndependent, Filtering::AddressAndPortDependent | Filtering::Unknown) => {
            Some(Class::PortCone)
        }
        (Mapping::AddressDependent, _) => Some(Class::PerAddress),
        (Mapping::AddressAndPortDependent, _) => Some(match nat.allocation {
            Allocation::Sequential(_) => Class::Sequential,
            Allocation::Block(low, high) if high.saturating_sub(low) <= BLOCK_SMALL => Class::Block,
            Allocation::Block(..)
            | Allocation::Preserving
            | Allocation::Random
            | Allocation::Unknown => Class::Random,
        }),
        (Mapping::Unknown, _) => None,
    }
}

/// One public TCP port for all destinations: without UDP, two of this kind connect to each other at the same time.
fn keeps_tcp_port(endpoints: &[Candidate]) -> bool {
    endpoints.iter().any(|own| own.kind == CandidateKind::Tcp)
}

/// Can two such networks be crossed directly? Where neither lets UDP through, `by_tcp` decides.
fn direct_is_possible(a: Class, b: Class, by_tcp: bool) -> bool {
    use Class::{Block, Blocked, Cone, Open, PortCone, Sequential};
    match (a.min(b), a.max(b)) {
        (Blocked, Blocked) => by_tcp,
        (_, Blocked) => false,
        (Open | Cone | PortCone, _) => true,
        (Sequential, Sequential) | (Block, Block) => true,
        (Class::PerAddress | Sequential | Block | Class::Random | Blocked, _) => false,
    }
}

/// Which networks a node reaches directly, and which only through a relay.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reach {
    /// Directly.
    pub direct: Vec<&'static str>,
    /// Through a relay.
    pub relay: Vec<&'static str>,
}

/// The words for what may stand before a peer.
const WORDS: [(Class, &str); 8] = [
    (Class::Open, "open"),
    (Class::Cone, "address-filtered"),
    (Class::PortCone, "port-filtered"),
    (Class::PerAddress, "address-dependent"),
    (Class::Sequential, "sequential"),
    (Class::Block, "small-block"),
    (Class::Random, "random"),
    (Class::Blocked, "udp-blocked"),
];

/// What stands before a node, to be read after "is behind".
fn described(class: Option<Class>) -> &'static str {
    match class {
        Some(Class::Open) => "nothing that keeps others out: it can be reached from everywhere",
        Some(Class::Cone) => {
            "a NAT with one public port for all destinations, which lets in whoever's address was sent to"
        }
        Some(Class::PortCone) => {
            "a NAT or firewall with one public port for all destinations, which lets in only whom it has sent to"
        }
        Some(Class::PerAddress) => "a NAT with another public port for each destination address",
        Some(Class::Sequential) => {
            "a symmetric NAT that counts up: another public port for each destination, which can be predicted"
        }
        Some(Class::Block) => {
            "a symmetric NAT with a small block: another public port for each destination, which can be searched for"
        }
        Some(Class::Random) => {
            "a random symmetric NAT: another public port for each destination, which nobody can predict"
        }
        Some(Class::Blocked) => "a network that lets no UDP through",
        None => "a network of which too little is known: no two others have answered it yet",
    }
}

/// The same in few words.
fn named(class: Class) -> &'static str {
    match class {
        Class::Open => "nothing that keeps others out",
        Class::Cone => "a NAT that filters by address",
        Class::PortCone => "a NAT or firewall that filters by port",
        Class::PerAddress => "an address-dependent NAT",
        Class::Sequential => "a symmetric NAT that counts up",
        Class::Block => "a symmetric NAT with a small block",
        Class::Random => "a random symmetric NAT",
        Class::Blocked => "a network that lets no UDP through",
    }
}

/// The pair in one sentence, where both sides are known.
fn summary(view: &PeerSnapshot, own: Option<Class>, theirs: Option<Class>) -> Option<Finding> {
    let (own, theirs) = own.zip(theirs)?;
    let ours = match (own == theirs, own) {
        (true, Class::Open) => "nothing either",
        (true, _) => "another",
        (false, own) => named(own),
    };
    let path = view.path.as_ref();
    let way = match (view.state, path.and_then(|path| path.via.as_deref())) {
        (PeerState::Relayed, Some(via)) => format!("relayed through {via}"),
        (PeerState::Relayed, None) => "relayed".to_owned(),
        (PeerState::Direct, _) if path.is_some_and(|path| path.kind == PathKind::Tcp) => {
            "direct over TCP".to_owned()
        }
        (PeerState::Direct, _) => "direct".to_owned(),
        (PeerState::Idle | PeerState::Connecting | PeerState::Down, _) => "no path".to_owned(),
    };
    let rtt = view.rtt.filter(|_| path.is_some());
    let rtt = rtt.map_or_else(String::new, |rtt| format!(", {} ms", rtt.as_millis()));
    let name = &view.name;
    Some(info(
        "pair",
        format!(
            "{name} is behind {} and this node behind {ours}: {way}{rtt}",
            named(theirs)
        ),
        "",
    ))
}

/// What both have in common where they are behind one NAT and do not meet inside.
fn shared(
    name: &str,
    own: &[Candidate],
    theirs: &[Candidate],
    hairpin: Hairpin,
) -> Option<Finding> {
    let seen = |all: &[Candidate]| -> Vec<_> {
        let outside = all
            .iter()
            .filter(|c| c.kind == CandidateKind::ServerReflexive);
        outside.map(|c| c.address.ip()).collect()
    };
    let ip = seen(theirs)
        .into_iter()
        .find(|ip| ip.is_ipv4() && seen(own).contains(ip))?;
    let both = format!("both are seen under {ip}: {name} and this node are behind one NAT");
    Some(match hairpin {
        Hairpin::Yes(_) => info(
            "one-nat",
            format!(
                "{both}, and it leads packets to that address back inside, so they can meet there"
            ),
            "",
        ),
        Hairpin::No(_) => info(
            "one-nat",
            format!(
                "{both}, and it does not lead packets to that address back inside: they can meet at their inner addresses only"
            ),
            "Let UDP between the two machines through inside that network (guest networks and client isolation forbid it), or switch on NAT loopback (hairpin) in the router.",
        ),
        Hairpin::Unknown(why) => info(
            "one-nat",
            format!(
                "{both}; whether it leads packets to that address back inside is not known: {why}"
            ),
            "",
        ),
    })
}

fn info(code: &str, message: String, remedy: &str) -> Finding {
    Finding {
        code: code.to_owned(),
        severity: Severity::Info,
        message,
        remedy: remedy.to_owned(),
    }
}

impl Overlay {
    /// Which kinds of networks this node will reach how; nothing where its own is not known yet.
    pub(crate) fn networks_reached(&self) -> Reach {
        let mut reach = Reach::default();
        let Some(own) = class(&self.traversal.nat(), self.traversal.endpoints()) else {
            return reach;
        };
        let by_tcp = keeps_tcp_port(self.traversal.endpoints());
        for (theirs, word) in WORDS {
            if direct_is_possible(own, theirs, by_tcp) {
                reach.direct.push(word);
            } else {
                reach.relay.push(word);
            }
        }
        reach
    }

    /// Explains how a peer, by name, address or key, is reached; one sentence where there is no such peer.
    pub fn diagnose(&self, peer: &str, now: Now) -> Result<Diagnosis, String> {
        let id = *self
            .directory
            .find(peer)
            .map_err(|error| format!("cannot examine the way to {peer}: {error}"))?;
        let (Some(known), Some(record)) = (self.directory.peer(&id), self.peers.get(&id)) else {
            return Err(format!(
                "cannot examine the way to {peer}: it has just left; see `farspan status`"
            ));
        };
        let view = self.peer_view(&id, known, record, now);
        let tried = self.tried(&id, &known.endpoints);
        let mut findings = vec![connection(&view)];
        if view.plain {
            findings.push(info(
                "plain",
                format!(
                    "{} is a plain WireGuard device: it has no agent, so nothing is probed and no relay helps; packets go where it last called from, or where the file says",
                    view.name
                ),
                "Give it an endpoint here, or a PersistentKeepalive there, if it is not reached.",
            ));
        } else if self.compatible(&id) {
            findings.extend(self.pair(&view, &known.nat, &known.endpoints));
            findings.extend(self.evidence(&id, &view, &tried, now));
        }
        findings.push(tunnel(&view));
        let mut about: Vec<Finding> = self
            .findings(now)
            .into_iter()
            .filter(|finding| {
                let wrong = finding.severity > Severity::Info;
                (wrong && ABOUT_HOST.contains(&finding.code.as_str()))
                    || (ABOUT_PEER.contains(&finding.code.as_str())
                        && finding.message.contains(&view.name))
            })
            .collect();
        findings.append(&mut about);
        Ok(Diagnosis {
            peer: view,
            tried,
            findings,
        })
    }

    fn tried(&self, id: &PeerId, announced: &[Candidate]) -> Vec<Tried> {
        let reports = self
            .traversal
            .peer_report(id)
            .map(|report| report.candidates);
        let reports = reports.unwrap_or_default();
        let known: Vec<SocketAddr> = reports.iter().map(|r| r.candidate.address).collect();
        let untried = announced
            .iter()
            .filter(|candidate| !known.contains(&candidate.address))
            .map(|candidate| Tried {
                candidate: *candidate,
                server: None,
                sent: 0,
                answered: 0,
                rtt: None,
            });
        let server = |address| {
            let proxy = self.plan.proxies.iter().find(|p| p.loopback == address)?;
            let mut links = self.plan.turn_links.iter();
            Some(links.find(|link| link.number == proxy.link)?.server)
        };
        let reported = reports.iter().map(|report: &CandidateReport| Tried {
            candidate: Candidate {
                address: self.traversal.real_address(report.candidate.address),
                ..report.candidate
            },
            server: server(report.candidate.address),
            sent: report.sent,
            answered: report.answered,
            rtt: report.rtt,
        });
        reported.chain(untried).collect()
    }

    /// What lies before both sides, and what follows from it.
    fn pair(&self, view: &PeerSnapshot, nat: &NatReport, endpoints: &[Candidate]) -> Vec<Finding> {
        let own = class(&self.traversal.nat(), self.traversal.endpoints());
        let theirs = class(nat, endpoints);
        let name = &view.name;
        let mut out: Vec<_> = summary(view, own, theirs).into_iter().collect();
        out.extend([
            info(
                "nat-here",
                format!("this node is behind {}", described(own)),
                "",
            ),
            info(
                "nat-there",
                if endpoints.is_empty() && *nat == NatReport::default() {
                    format!(
                        "{name} has not said what it is behind: its announcement has not arrived"
                    )
                } else {
                    format!("{name} is behind {}", described(theirs))
                },
                "",
            ),
        ]);
        out.extend(self.forgetful());
        let inside = view
            .path
            .as_ref()
            .is_some_and(|path| path.kind == PathKind::Lan);
        if !inside {
            let (own, hairpin) = (self.traversal.endpoints(), self.traversal.hairpin());
            out.extend(shared(name, own, endpoints, hairpin));
        }
        let by_tcp = keeps_tcp_port(self.traversal.endpoints()) && keeps_tcp_port(endpoints);
        let possible = own
            .zip(theirs)
            .map(|(own, theirs)| direct_is_possible(own, theirs, by_tcp));
        let direct = view.state == PeerState::Direct;
        out.extend(match (direct, possible) {
            (true, _) => Some(info("why-direct", why_direct(view, own, theirs), "")),
            (false, Some(true)) => Some(Finding {
                severity: match view.state {
                    PeerState::Idle => Severity::Info,
                    PeerState::Relayed => Severity::Info,
                    PeerState::Connecting | PeerState::Down | PeerState::Direct => {
                        Severity::Warning
                    }
                },
                ..info(
                    "direct-possible",
                    format!("the two networks allow a direct path to {name}, but none is proven now"),
                    "Wait half a minute; if it stays, a firewall on one of the two machines drops UDP to the listen port, or no member that both reach introduces them: see the addresses tried.",
                )
            }),
            (false, Some(false)) => Some(info(
                "direct-impossible",
                match (own, theirs) {
                    (Some(Class::Blocked), _) | (_, Some(Class::Blocked)) => format!(
                        "without UDP on both sides there is no direct UDP path to {name}, and a direct TCP connection needs two networks without UDP that each keep one public TCP port"
                    ),
                    _ => format!(
                        "neither side can know which public port the other's NAT will choose, so packets to {name} need a relay"
                    ),
                },
                if view.state == PeerState::Relayed { TO_DIRECT } else { TO_RELAY },
            )),
            (false, None) => Some(info(
                "direct-unknown",
                format!("whether a direct path to {name} is possible cannot be told yet"),
                "Let each side reach one more member, or name a STUN server in [nat] stun, then ask again.",
            )),
        });
        out
    }

    /// A NAT that forgets sooner than others costs packets.
    fn forgetful(&self) -> Option<Finding> {
        let (lifetime, keepalive) = (self.traversal.lifetime(), self.traversal.keepalive());
        let below = lifetime
            .below
            .filter(|_| keepalive < PERSISTENT_KEEPALIVE)?;
        Some(info(
            "mapping-lifetime",
            format!(
                "the NAT or firewall of this node forgets a flow after less than {} of silence, so a packet goes out every {} at least",
                seconds(below),
                seconds(keepalive)
            ),
            "A longer UDP timeout in the router saves these packets (RFC 4787 asks for 2 minutes).",
        ))
    }

    /// What was tried and what came of it.
    fn evidence(
        &self,
        id: &PeerId,
        view: &PeerSnapshot,
        tried: &[Tried],
        now: Now,
    ) -> Vec<Finding> {
        let mut out = Vec::new();
        let name = &view.name;
        let report = self.traversal.peer_report(id);
        if let Some(report) = &report {
            let heard = report.last_heard.map_or_else(
                || "nothing was ever heard from it on the outside".to_owned(),
                |at| {
                    let age = now.mono.saturating_duration_since(at).as_secs();
                    format!("it was last heard {age} s ago")
                },
            );
            out.push(info(
                "probes",
                format!(
                    "{} of {} probes to {name} were answered, {heard}",
                    report.probes_answered, report.probes_sent
                ),
                "",
            ));
        }
        if tried.is_empty() {
            out.push(Finding {
                severity: Severity::Warning,
                ..info(
                    "no-address",
                    format!("no address of {name} is known"),
                    "It is learned from the peer's announcement: check that its agent runs and reaches a member that this node reaches too, or give endpoints in its [[peer]] entry.",
                )
            });
        } else {
            let named: Vec<String> = tried.iter().take(NAMED_MAX).map(sentence_of).collect();
            let more = tried.len().saturating_sub(NAMED_MAX);
            let more = if more > 0 {
                format!(", and {more} more")
            } else {
                String::new()
            };
            out.push(info(
                "addresses",
                format!("addresses of {name}: {}{more}", named.join("; ")),
                "",
            ));
        }
        let (Some(path), true) = (&view.path, report.is_some_and(|report| report.suspect)) else {
            return out;
        };
        out.push(Finding {
            severity: Severity::Warning,
            ..info(
                "suspect",
                format!("{} has stopped answering a moment ago", path.remote),
                "Nothing: other addresses are being tried; ask again in a few seconds.",
            )
        });
        out
    }
}

/// What helps where two NATs cannot be crossed and a relay is in use,
const TO_DIRECT: &str = "Any one of these makes it direct: a port forwarding or port mapping (PCP, NAT-PMP, UPnP) to the listen port on either side, IPv6 on both, or a router on either side whose NAT keeps one port for all destinations.";
/// and where none is.
const TO_RELAY: &str = "No relay is in use: set serve = true in [relay] on a member that both reach and that can be reached from outside. Or make it direct by a port forwarding or port mapping (PCP, NAT-PMP, UPnP) to the listen port on either side, IPv6 on both, or a router on either side whose NAT keeps one port for all destinations.";
/// Findings of the host that may keep a peer away.
const ABOUT_HOST: [&str; 6] = [
    "rp-filter",
    "forward-drop",
    "forwarding-off",
    "apply-failed",
    "clock",
    "revoked",
];
/// Findings about a peer, which name it.
const ABOUT_PEER: [&str; 3] = ["no-handshake", "protocol", "key-in-file-stale"];

/// The first sentence: how it is.
fn connection(view: &PeerSnapshot) -> Finding {
    let name = &view.name;
    let since = view.since.as_secs();
    let measured = match (view.rtt, view.loss) {
        (Some(rtt), Some(loss)) => format!(
            ", {:.1} ms, {:.0} % of probes lost",
            rtt.as_secs_f64() * 1e3,
            loss * 100.0
        ),
        (Some(rtt), None) => format!(", {:.1} ms", rtt.as_secs_f64() * 1e3),
        (None, _) => String::new(),
    };
    let (severity, message) = match view.state {
        PeerState::Direct => (
            Severity::Info,
            format!(
                "{name} is reached directly{measured}, for {since} s: {}",
                view.reason
            ),
        ),
        PeerState::Relayed => {
            let via = view.path.as_ref().and_then(|path| path.via.as_deref());
            let via = via.map(|via| format!(" by {via}")).unwrap_or_default();
            (
                Severity::Info,
                format!(
                    "{name} is relayed{via}{measured}, for {since} s: {}",
                    view.reason
                ),
            )
        }
        PeerState::Idle => (
            Severity::Info,
            format!("{name} is idle, for {since} s: {}", view.reason),
        ),
        PeerState::Connecting => (
            Severity::Warning,
            format!(
                "a path to {name} is being looked for, for {since} s: {}",
                view.reason
            ),
        ),
        PeerState::Down => (
            Severity::Error,
            format!("{name} is not reached, for {since} s: {}", view.reason),
        ),
    };
    Finding {
        code: "connection".to_owned(),
        severity,
        message,
        remedy: match view.connect {
            Some(time) if view.state == PeerState::Direct => {
                format!("Nothing; the path was found in {} ms.", time.as_millis())
            }
            Some(_) | None => String::new(),
        },
    }
}

/// What WireGuard has counted.
fn tunnel(view: &PeerSnapshot) -> Finding {
    let (sent, received) = (view.tx_bytes, view.rx_bytes);
    let counted = format!("WireGuard has sent {sent} bytes and received {received}");
    match view.last_handshake {
        Some(age) => info(
            "tunnel",
            format!("{counted}; its last handshake is {} s old", age.as_secs()),
            "",
        ),
        None if sent > 0 && received == 0 => info(
            "tunnel",
            format!("{counted}: no handshake was answered yet"),
            "",
        ),
        None => info("tunnel", format!("{counted}; there is no session"), ""),
    }
}

fn why_direct(view: &PeerSnapshot, own: Option<Class>, theirs: Option<Class>) -> String {
    let name = &view.name;
    match view.path.as_ref().map(|path| path.kind) {
        Some(PathKind::Lan) => {
            return format!(
                "it is direct because both are in one network: no NAT lies between this node and {name}"
            );
        }
        Some(PathKind::Ipv6) => {
            return "it is direct by IPv6, where no NAT changes ports: both sides sent first, so both firewalls let the answers in".to_owned();
        }
        Some(PathKind::Tcp) => {
            return format!(
                "it is direct over TCP: no UDP gets through, but the NATs of this node and {name} keep one public TCP port, and both connected at the same time"
            );
        }
        Some(_) | None => {}
    }
    let opener = match (own, theirs) {
        (Some(Class::Open), _) => "this node can be reached from everywhere".to_owned(),
        (_, Some(Class::Open)) => format!("{name} can be reached from everywhere"),
        (Some(own), Some(theirs)) if direct_is_possible(own, theirs, false) => {
            if own.max(theirs) <= Class::PortCone {
                "both NATs keep one public port, and both sides sent at the same time".to_owned()
            } else {
                "the public port of the harder NAT was predicted or found by search".to_owned()
            }
        }
        (Some(_), Some(_)) => {
            "the port was found by luck, or one of the NATs is kinder than it looked".to_owned()
        }
        (None, _) | (_, None) => "both sides answered each other's probes".to_owned(),
    };
    format!("it is direct because {opener}")
}

fn sentence_of(tried: &Tried) -> String {
    let said = match tried.candidate.kind {
        CandidateKind::Mapped => "forwarded or mapped",
        CandidateKind::Host => "its own",
        CandidateKind::ServerReflexive => "seen by others",
        CandidateKind::PeerReflexive => "seen here",
        CandidateKind::Relayed => "on a relay",
        CandidateKind::Tcp => "of TCP",
    };
    let outcome = match (tried.sent, tried.answered, tried.rtt) {
        (0, 0, _) => "not tried".to_owned(),
        (sent, 0, _) => format!("{sent} probes, no answer"),
        (sent, answered, Some(rtt)) => format!(
            "{answered} of {sent} answered, {:.1} ms",
            rtt.as_secs_f64() * 1e3
        ),
        (sent, answered, None) => format!("{answered} of {sent} answered"),
    };
    format!("{} ({said}; {outcome})", tried.candidate.address)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLASSES: [Class; 8] = [
        Class::Open,
        Class::Cone,
        Class::PortCone,
        Class::PerAddress,
        Class::Sequential,
        Class::Block,
        Class::Random,
        Class::Blocked,
    ];

    #[test]
    fn the_matrix_is_the_one_of_the_design() {
        // Rows and columns as in CLASSES; upper half.
        let matrix = [
            "DDDDDDDR", "DDDDDDR", "DDDDDR", "RRRRR", "DRRR", "DRR", "RR", "R",
        ];
        for (row, line) in matrix.iter().enumerate() {
            for (offset, cell) in line.chars().enumerate() {
                let (a, b) = (CLASSES[row], CLASSES[row + offset]);
                assert_eq!(
                    direct_is_possible(a, b, false),
                    cell == 'D',
                    "{a:?} x {b:?}"
                );
                assert_eq!(
                    direct_is_possible(b, a, false),
                    cell == 'D',
                    "{b:?} x {a:?}"
                );
            }
        }
    }

    #[test]
    fn tcp_connects_two_networks_without_udp_and_changes_nothing_for_others() {
        for a in CLASSES {
            for b in CLASSES {
                let both = (a, b) == (Class::Blocked, Class::Blocked);
                let by_udp = direct_is_possible(a, b, false);
                assert_eq!(direct_is_possible(a, b, true), by_udp || both);
            }
        }
    }

    #[test]
    fn nodes_behind_one_nat_hear_whether_they_can_meet_at_its_outer_address() {
        let seen = |ip: &str| {
            [Candidate {
                kind: CandidateKind::ServerReflexive,
                address: format!("{ip}:5000").parse().expect("an address"),
            }]
        };
        let (here, there) = (seen("203.0.113.1"), seen("203.0.113.2"));
        let said = |theirs, hairpin| shared("b", &here, theirs, hairpin).map(|f| f.message);
        assert_eq!(said(&there, Hairpin::No("")), None);
        let no = said(&here, Hairpin::No("")).expect("one NAT");
        assert!(no.contains("inner addresses only"), "{no}");
        let yes = said(&here, Hairpin::Yes("")).expect("one NAT");
        assert!(yes.contains("can meet there"), "{yes}");
        let unknown = said(&here, Hairpin::Unknown("nobody asked")).expect("one NAT");
        assert!(unknown.ends_with("not known: nobody asked"), "{unknown}");
    }

    #[test]
    fn a_report_is_classified_by_what_it_proves() {
        let nat = |mapping, filtering, allocation| NatReport {
            mapping,
            filtering,
            allocation,
            udp_blocked: false,
        };
        let symmetric = |allocation| {
            nat(
                Mapping::AddressAndPortDependent,
                Filtering::Unknown,
                allocation,
            )
        };
        let cases = [
            (NatReport::default(), None),
            (
                nat(
                    Mapping::EndpointIndependent,
                    Filtering::Unknown,
                    Allocation::Unknown,
                ),
                Some(Class::PortCone),
            ),
            (
                symmetric(Allocation::Sequential(1)),
                Some(Class::Sequential),
            ),
            (symmetric(Allocation::Block(2048, 4095)), Some(Class::Block)),
            (
                symmetric(Allocation::Block(1024, 65535)),
                Some(Class::Random),
            ),
            (symmetric(Allocation::Unknown), Some(Class::Random)),
        ];
        for (report, expected) in cases {
            assert_eq!(class(&report, &[]), expected, "{report:?}");
        }
        let forwarded = Candidate {
            kind: CandidateKind::Mapped,
            address: "203.0.113.1:22000".parse().expect("an address"),
        };
        let hard = symmetric(Allocation::Random);
        assert_eq!(class(&hard, &[forwarded]), Some(Class::Open));
    }
}
