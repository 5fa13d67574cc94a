//! When to ask the gateway for what, and what to make of its answers. No socket, no clock.
//!
//! A round asks by each protocol in turn, that of the lease first, until one gives a port. A round that
//! succeeds is repeated before the lease is half over; one that fails is repeated after [`AGAIN`], the longer
//! the more of them failed. A lease counts until it expires, whatever renewals come to. Another gateway,
//! another address or another port of ours starts afresh at once.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use mesh_types::report::{HostReport, MappingProtocol, PortMapping};

/// Lifetime asked for (RFC 6886 3.3, RFC 6887 15).
pub const LIFETIME: Duration = Duration::from_secs(7200);
/// A gateway that restarts forgets its mappings and mostly does not say so: leases are renewed this often at
/// the latest, so that they come back within that time.
const RENEW_AT_THE_LATEST: Duration = Duration::from_secs(600);
/// However short the lease, the gateway is not asked more often.
const RENEW_APART: Duration = Duration::from_secs(20);
/// Pauses after failed rounds: a gateway that is starting comes soon, one that speaks no protocol never will.
const AGAIN: [Duration; 4] = [
    Duration::from_secs(15),
    Duration::from_secs(60),
    Duration::from_secs(300),
    Duration::from_secs(1800),
];
/// While a lease is held its renewal is worth more.
const AGAIN_HELD: Duration = Duration::from_secs(30);
/// The best first: PCP also tells the external address, UPnP is slow and its descriptions are big.
const PROTOCOLS: [MappingProtocol; 3] = [
    MappingProtocol::Pcp,
    MappingProtocol::NatPmp,
    MappingProtocol::Upnp,
];

/// The way to the gateway that is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Uplink {
    /// The next hop of the preferred IPv4 default route.
    pub gateway: Ipv4Addr,
    /// Our address on the way there.
    pub local: Ipv4Addr,
    /// Our port.
    pub port: u16,
}

/// A port that a gateway has given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// From whom, to which port of ours.
    pub uplink: Uplink,
    /// By which protocol.
    pub by: MappingProtocol,
    /// Where strangers reach us.
    pub external: SocketAddr,
    /// PCP's proof that the mapping is ours (RFC 6887 11.1).
    pub nonce: Option<[u32; 3]>,
    /// For how long; `None` is for ever.
    pub lifetime: Option<Duration>,
}

/// What is to be asked of a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// A port.
    Map {
        /// To be given back with the answer.
        question: u64,
        /// By which protocol.
        by: MappingProtocol,
        /// Of whom, for what.
        uplink: Uplink,
        /// The lease to renew; by another protocol it still says which port is wished for.
        renew: Option<Lease>,
    },
    /// To take a port back.
    Unmap(Lease),
}

/// See the module.
#[derive(Debug)]
pub struct Machine {
    on: bool,
    uplink: Option<Uplink>,
    why_none: &'static str,
    held: Option<Held>,
    /// What an earlier run of the agent held, or this one before the gateway was gone.
    remembered: Option<Lease>,
    round: Round,
    failed_rounds: usize,
    questions: u64,
    unmaps: VecDeque<Lease>,
    told: Option<PortMapping>,
    tell: Option<PortMapping>,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    lease: Lease,
    expires: Option<Instant>,
}

/// How far the asking has come.
#[derive(Debug)]
enum Round {
    /// Nothing to ask.
    Off,
    /// Begins then.
    Due(Instant),
    /// Asked by `by`, whose answer is awaited; then by the others, and what was said before.
    Asked {
        question: u64,
        by: MappingProtocol,
        next: VecDeque<MappingProtocol>,
        said: Vec<String>,
    },
    /// To be asked next.
    Next {
        next: VecDeque<MappingProtocol>,
        said: Vec<String>,
    },
}

impl Machine {
    /// Starts; `remembered` is the lease of an earlier run.
    pub fn new(on: bool, remembered: Option<Lease>) -> Self {
        let mut machine = Self {
            on,
            uplink: None,
            why_none: "",
            held: None,
            remembered,
            round: Round::Off,
            failed_rounds: 0,
            questions: 0,
            unmaps: VecDeque::new(),
            told: None,
            tell: None,
        };
        machine.say(if on {
            PortMapping::Asking
        } else {
            PortMapping::Off
        });
        machine
    }

    /// The configuration was read again.
    pub fn set_on(&mut self, on: bool, now: Instant) {
        if on == self.on {
            return;
        }
        self.on = on;
        if on {
            self.begin(now);
        } else {
            self.unmaps
                .extend(self.held.take().map(|held| held.lease).or(self.remembered));
            self.remembered = None;
            self.round = Round::Off;
            self.say(PortMapping::Off);
        }
    }

    /// The host was looked at; `port` is our own.
    pub fn handle_host(&mut self, report: &HostReport, port: u16, now: Instant) {
        let (uplink, why_none) = match uplink(report, port) {
            Ok(uplink) => (Some(uplink), ""),
            Err(why) => (None, why),
        };
        if uplink == self.uplink && why_none == self.why_none {
            return;
        }
        let held = self.held.take().map(|held| held.lease);
        let same_way = |lease: &Lease, uplink: &Uplink| {
            lease.uplink.gateway == uplink.gateway && lease.uplink.local == uplink.local
        };
        match (held, &uplink) {
            (Some(lease), Some(uplink)) if same_way(&lease, uplink) => {
                self.unmaps.push_back(lease);
            }
            // A gateway that comes back knows it still, and whose it is by its nonce only.
            (Some(lease), _) => self.remembered = Some(lease),
            (None, _) => {}
        }
        self.uplink = uplink;
        self.why_none = why_none;
        self.failed_rounds = 0;
        if self.on {
            self.begin(now);
        }
    }

    /// A gateway's answer to [`Ask::Map`], or why there is none.
    pub fn handle_mapped(&mut self, answered: u64, outcome: Result<Lease, String>, now: Instant) {
        let reason = match outcome {
            Ok(lease) if self.on && Some(lease.uplink) == self.uplink => {
                return self.hold(lease, now);
            }
            // Nobody wants it any more.
            Ok(lease) => return self.unmaps.push_back(lease),
            Err(reason) => reason,
        };
        let Round::Asked {
            question,
            by,
            next,
            said,
        } = &mut self.round
        else {
            return;
        };
        if *question != answered {
            return;
        }
        said.push(format!("{}: {reason}", title(*by)));
        let (next, said) = (std::mem::take(next), std::mem::take(said));
        if next.is_empty() {
            self.round_failed(&said, now);
        } else {
            self.round = Round::Next { next, said };
        }
    }

    /// What is to be asked now; to be called until there is nothing. The next protocol comes after the answer.
    pub fn poll_ask(&mut self, now: Instant) -> Option<Ask> {
        if let Some(lease) = self.unmaps.pop_front() {
            return Some(Ask::Unmap(lease));
        }
        self.expire(now);
        let uplink = self.uplink?;
        if matches!(self.round, Round::Due(at) if at <= now) {
            let first = self.lease().map(|lease| lease.by);
            let mut next: VecDeque<_> = first.into_iter().collect();
            next.extend(PROTOCOLS.into_iter().filter(|by| Some(*by) != first));
            let said = Vec::new();
            self.round = Round::Next { next, said };
        }
        let Round::Next { next, said } = &mut self.round else {
            return None;
        };
        let by = next.pop_front()?;
        let (next, said) = (std::mem::take(next), std::mem::take(said));
        self.questions += 1;
        let question = self.questions;
        self.round = Round::Asked {
            question,
            by,
            next,
            said,
        };
        Some(Ask::Map {
            question,
            by,
            uplink,
            renew: self.lease(),
        })
    }

    /// When to call [`Self::poll_ask`] next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let expires = self.held.and_then(|held| held.expires);
        let round = match self.round {
            Round::Due(at) => Some(at),
            Round::Off | Round::Asked { .. } | Round::Next { .. } => None,
        };
        expires.into_iter().chain(round).min()
    }

    /// What the mesh is to hear, once for each change.
    pub fn poll_news(&mut self) -> Option<PortMapping> {
        let news = self.tell.take()?;
        if self.told.as_ref() == Some(&news) {
            return None;
        }
        self.told = Some(news.clone());
        Some(news)
    }

    /// The lease held.
    pub fn held(&self) -> Option<Lease> {
        self.held.map(|held| held.lease)
    }

    /// The lease held, or one remembered where it is of the same way.
    fn lease(&self) -> Option<Lease> {
        let fits = |lease: &Lease| Some(lease.uplink) == self.uplink;
        self.held().or(self.remembered.filter(fits))
    }

    /// Everything is to be taken back: gives what was held.
    pub fn release(&mut self) -> Option<Lease> {
        let lease = self.held().or(self.remembered);
        self.held = None;
        self.on = false;
        self.remembered = None;
        self.round = Round::Off;
        lease
    }

    fn begin(&mut self, now: Instant) {
        if self.uplink.is_some() {
            self.round = Round::Due(now);
            self.say(PortMapping::Asking);
        } else {
            self.round = Round::Off;
            let reason = self.why_none.to_owned();
            self.say(PortMapping::Unmapped { reason });
        }
    }

    fn hold(&mut self, lease: Lease, now: Instant) {
        let renew = lease
            .lifetime
            .map_or(RENEW_AT_THE_LATEST, |lifetime| lifetime / 2)
            .clamp(RENEW_APART, RENEW_AT_THE_LATEST);
        self.held = Some(Held {
            lease,
            expires: lease.lifetime.map(|lifetime| now + lifetime),
        });
        self.remembered = None;
        self.failed_rounds = 0;
        self.round = Round::Due(now + renew);
        self.say(PortMapping::Mapped {
            by: lease.by,
            external: lease.external,
        });
    }

    fn round_failed(&mut self, said: &[String], now: Instant) {
        let pause = AGAIN[self.failed_rounds.min(AGAIN.len() - 1)];
        self.failed_rounds += 1;
        if self.held.is_some() {
            self.round = Round::Due(now + pause.min(AGAIN_HELD));
            return;
        }
        self.round = Round::Due(now + pause);
        let gateway = self.uplink.map_or(Ipv4Addr::UNSPECIFIED, |up| up.gateway);
        self.say(PortMapping::Unmapped {
            reason: format!("the gateway {gateway} gave no port ({})", said.join("; ")),
        });
    }

    fn expire(&mut self, now: Instant) {
        let over = |held: &Held| held.expires.is_some_and(|at| at <= now);
        if self.held.as_ref().is_some_and(over) {
            self.held = None;
            self.say(PortMapping::Asking);
        }
    }

    fn say(&mut self, news: PortMapping) {
        self.tell = Some(news);
    }
}

fn title(by: MappingProtocol) -> &'static str {
    match by {
        MappingProtocol::Pcp => "PCP",
        MappingProtocol::NatPmp => "NAT-PMP",
        MappingProtocol::Upnp => "UPnP",
    }
}

/// The way to the preferred IPv4 gateway, or why none is asked.
fn uplink(report: &HostReport, port: u16) -> Result<Uplink, &'static str> {
    let hops = report.gateways.iter().filter_map(|hop| match hop.ip {
        IpAddr::V4(ip) => Some((ip, hop.interface.as_str())),
        IpAddr::V6(_) => None,
    });
    let mut public = false;
    for (gateway, interface) in hops {
        let own = report
            .addresses
            .iter()
            .filter(|address| address.interface == interface)
            .filter_map(|address| match address.ip {
                IpAddr::V4(ip) => Some((on_link(ip, address.prefix_len, gateway), ip)),
                IpAddr::V6(_) => None,
            });
        // The address in the gateway's network, where there is one.
        let Some((_, local)) = own.max_by_key(|(on_link, _)| *on_link) else {
            continue;
        };
        if is_translated(local) {
            return Ok(Uplink {
                gateway,
                local,
                port,
            });
        }
        public = true;
    }
    Err(if public {
        "the address of this host is public already"
    } else {
        "there is no IPv4 gateway"
    })
}

fn on_link(own: Ipv4Addr, prefix_len: u8, other: Ipv4Addr) -> bool {
    ipnet::Ipv4Net::new(own, prefix_len).is_ok_and(|net| net.contains(&other))
}

/// Does an address need a translator to be reached from the internet?
fn is_translated(ip: Ipv4Addr) -> bool {
    let [a, b, ..] = ip.octets();
    ip.is_private() || ip.is_link_local() || (a == 100 && (64..128).contains(&b))
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
