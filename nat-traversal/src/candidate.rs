//! Own candidates: what to announce (RFC 8445 5.1.1).

use std::net::SocketAddr;

use mesh_types::consts::{CANDIDATES_MAX, NOT_UNDERLAY};
use mesh_types::report::HostAddress;
use mesh_types::{Candidate, CandidateKind};

use crate::budget::Admission;

/// The host's addresses that may be candidates, sorted: not those of tunnels, bridges and dummies, none
/// that is temporary or deprecated, none of the mesh itself.
pub(crate) fn usable(
    addresses: &[HostAddress],
    ipv6_off: bool,
    admission: &Admission,
) -> Vec<HostAddress> {
    let mut usable: Vec<_> = addresses
        .iter()
        .filter(|address| address.stable && !(ipv6_off && address.ip.is_ipv6()))
        .filter(|address| admission.admits_ip(&address.ip))
        .filter(|address| {
            is_underlay(&address.interface)
                || (admission.allow_loopback && address.ip.is_loopback())
        })
        .cloned()
        .collect();
    usable.sort();
    usable.dedup();
    usable
}

fn is_underlay(interface: &str) -> bool {
    interface != "lo"
        && !NOT_UNDERLAY
            .iter()
            .any(|prefix| *prefix != "lo" && interface.starts_with(prefix))
}

/// Mapped, host and reflexive candidates, sorted, the best kinds kept; an address counts once.
pub(crate) fn endpoints(
    mapped: Option<SocketAddr>,
    hosts: &[HostAddress],
    port: u16,
    reflexive: &[SocketAddr],
) -> Vec<Candidate> {
    let mut all: Vec<Candidate> = Vec::new();
    let mapped = mapped
        .into_iter()
        .map(|address| (CandidateKind::Mapped, address));
    let host = hosts
        .iter()
        .map(|host| (CandidateKind::Host, SocketAddr::new(host.ip, port)));
    let reflexive = reflexive
        .iter()
        .map(|address| (CandidateKind::ServerReflexive, *address));
    for (kind, address) in mapped.chain(host).chain(reflexive) {
        if address.port() != 0 && all.iter().all(|known| known.address != address) {
            all.push(Candidate { kind, address });
        }
    }
    all.sort();
    all.truncate(CANDIDATES_MAX);
    all
}

/// What a peer says of an address, or others say of it: that it was heard from there, only this node can know.
pub(crate) fn claimed(mut candidate: Candidate) -> Candidate {
    if candidate.kind == CandidateKind::PeerReflexive {
        candidate.kind = CandidateKind::ServerReflexive;
    }
    candidate
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(interface: &str, ip: &str, stable: bool) -> HostAddress {
        HostAddress {
            interface: interface.to_owned(),
            ip: ip.parse().unwrap(),
            prefix_len: 24,
            stable,
        }
    }

    #[test]
    fn only_underlay_addresses_become_candidates() {
        let mut admission = Admission::new(false);
        admission.exclude(vec!["10.244.0.0/16".parse().unwrap()]);
        let hosts = [
            host("eth0", "192.0.2.5", true),
            host("eth0", "2001:db8::5", true),
            host("eth0", "2001:db8::bad", false),
            host("eth0", "fe80::1", true),
            host("lo", "127.0.0.1", true),
            host("long0", "192.0.2.6", true),
            host("farspan0", "10.77.0.1", true),
            host("docker0", "172.17.0.1", true),
            host("eth1", "10.244.1.0", true),
        ];
        let ips = |v6_off| {
            usable(&hosts, v6_off, &admission)
                .iter()
                .map(|h| h.ip.to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(ips(false), ["192.0.2.5", "2001:db8::5", "192.0.2.6"]);
        assert_eq!(ips(true), ["192.0.2.5", "192.0.2.6"]);
    }

    #[test]
    fn a_reflexive_address_that_is_the_hosts_own_counts_once() {
        let hosts = [host("eth0", "192.0.2.5", true)];
        let reflexive = ["192.0.2.5:22000", "203.0.113.9:1024"].map(|a| a.parse().unwrap());
        let all = endpoints(None, &hosts, 22000, &reflexive);
        assert_eq!(
            all.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["192.0.2.5:22000/host", "203.0.113.9:1024/srflx"]
        );
    }

    #[test]
    fn a_mapped_address_comes_first_and_is_not_told_as_reflexive_again() {
        let hosts = [host("eth0", "192.168.1.5", true)];
        let mapped: SocketAddr = "203.0.113.9:22000".parse().unwrap();
        let all = endpoints(Some(mapped), &hosts, 22000, &[mapped]);
        assert_eq!(
            all.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["203.0.113.9:22000/mapped", "192.168.1.5:22000/host"]
        );
    }
}
