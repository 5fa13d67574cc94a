//! Which relayed pairs the kernel can carry, and why it does not carry the others. Those are left to userspace:
//! slower, but nothing on the host is in its way.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;

use mesh_types::plan::RelayPair;
use nix::sys::socket::{setsockopt, sockopt};

use crate::HostError;
use crate::facts::{legacy_forward_drop, sysctl};
use crate::nft::{self, Link, Tables};

/// What becomes of a plan's relayed pairs.
#[derive(Debug, Default)]
pub(crate) struct Relaying {
    /// Carried by the kernel.
    pub(crate) links: BTreeSet<Link>,
    /// Left to userspace.
    pub(crate) left: BTreeSet<RelayPair>,
    /// Why any is left, one sentence each.
    pub(crate) obstacles: Vec<String>,
    /// The kernel holds, or may still hold, rules for them.
    held: bool,
}

impl Relaying {
    /// Before the first plan: an agent that was killed may have left rules.
    pub(crate) fn new() -> Self {
        Self {
            held: true,
            ..Self::default()
        }
    }

    /// Carries what can be carried in the kernel. `accepted`: the host's filters are made to let relayed packets
    /// through. A pair that the kernel refused is left to userspace as well.
    pub(crate) fn converge(
        &mut self,
        tables: &mut Result<Tables, HostError>,
        pairs: &BTreeSet<RelayPair>,
        mark: u32,
        accepted: bool,
    ) -> Result<(), HostError> {
        self.left.clear();
        self.obstacles.clear();
        let before = std::mem::take(&mut self.links);
        if pairs.is_empty() && !self.held {
            return Ok(());
        }
        let obstacles = [false, true].map(|ipv6| {
            let any = pairs.iter().any(|pair| is_of(pair, ipv6));
            any.then(|| obstacle(tables, ipv6, accepted)).flatten()
        });
        self.obstacles.extend(obstacles.iter().flatten().cloned());
        for pair in pairs {
            let blocked = obstacles[usize::from(pair.first.0.is_ipv6())].is_some();
            // Without a route for the moment a pair stays where it is.
            let known = || before.iter().find(|link| link.pair == *pair).copied();
            match link(pair, mark).or_else(known) {
                Some(link) if !blocked => {
                    self.links.insert(link);
                }
                Some(_) | None => {
                    self.left.insert(*pair);
                }
            }
        }
        let Ok(tables) = tables else {
            return Ok(());
        };
        let links: Vec<Link> = self.links.iter().copied().collect();
        match nft::carry(tables, &links, mark) {
            Ok(_) => {
                self.held = !links.is_empty();
                Ok(())
            }
            Err(error) => {
                self.held = true;
                self.left = pairs.clone();
                self.links.clear();
                self.obstacles.push(error.to_string());
                Err(error)
            }
        }
    }
}

/// Are both ends of this family?
fn is_of(pair: &RelayPair, ipv6: bool) -> bool {
    [pair.first, pair.second]
        .iter()
        .all(|(end, _)| end.is_ipv6() == ipv6)
}

/// What keeps the kernel from forwarding in a family.
fn obstacle(tables: &mut Result<Tables, HostError>, ipv6: bool, accepted: bool) -> Option<String> {
    let tables = match tables {
        Ok(tables) => tables,
        Err(error) => return Some(format!("this kernel has no nftables ({error})")),
    };
    let switch = if ipv6 {
        "ipv6/conf/all/forwarding"
    } else {
        "ipv4/ip_forward"
    };
    if sysctl(switch) != Some(1) {
        let name = switch.replace('/', ".");
        return Some(format!(
            "net.{name} is off; switch it on with `sysctl -w net.{name}=1`"
        ));
    }
    let blocks = |label: &String| {
        let of = |word: &str| label.starts_with(word);
        of("inet") || of("ip6") == ipv6
    };
    let nftables = nft::dropping_chains(tables).unwrap_or_default();
    let nftables = nftables.into_iter().filter(|_| !accepted);
    let chain = nftables.chain(legacy_forward_drop()).find(blocks)?;
    Some(format!(
        "the chain {chain} drops forwarded packets; let them pass, or set forward-accept under [host]"
    ))
}

/// A pair with the addresses from which its ends are reached; `None` where the kernel can not carry it.
fn link(pair: &RelayPair, mark: u32) -> Option<Link> {
    if pair.first.0.is_ipv6() != pair.second.0.is_ipv6() {
        return None;
    }
    Some(Link {
        pair: *pair,
        first_local: source_towards(pair.first.0, mark).ok()?,
        second_local: source_towards(pair.second.0, mark).ok()?,
    })
}

/// The address that the routing table chooses for marked datagrams to there. Sends nothing.
fn source_towards(remote: SocketAddr, mark: u32) -> io::Result<IpAddr> {
    let any: IpAddr = match remote {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    setsockopt(&socket.as_fd(), sockopt::Mark, &mark)?;
    socket.connect(remote)?;
    Ok(socket.local_addr()?.ip())
}
