//! `farspan netcheck`: what the network around this node is, and what is not known of it and why.

use std::time::Duration;

use mesh_types::{Allocation, Filtering, Mapping, NatReport, Now};

use crate::overlay::Overlay;
use crate::snapshot::NetcheckSnapshot;

impl Overlay {
    pub(crate) fn netcheck(&self, now: Now) -> NetcheckSnapshot {
        let about_network = [
            "rp-filter",
            "forward-drop",
            "forwarding-off",
            "port-moved",
            "clock",
            "stun-unresolved",
            "turn-unresolved",
            "turn-unreachable",
            "turn-certificate",
            "turn-credentials",
            "turn-refused",
            "no-path",
        ];
        NetcheckSnapshot {
            nat: self.traversal.nat(),
            endpoints: self.traversal.endpoints().to_vec(),
            stun: self
                .stun
                .iter()
                .map(|(name, addresses)| (name.clone(), addresses.clone()))
                .collect(),
            relays: self
                .traversal
                .relays()
                .into_iter()
                .map(|(id, rtt)| (self.peer_name(&id), rtt))
                .collect(),
            turn: self
                .traversal
                .turn_report()
                .into_iter()
                .map(|report| (report.address.to_string(), report.rtt))
                .collect(),
            port_mapping: self.port_mapping.clone(),
            ipv6: !self.host.ipv6_off && self.host.default_route_v6,
            mtu: self.config.mtu,
            hairpin: self.traversal.hairpin(),
            lifetime: self.traversal.lifetime(),
            keepalive: self.traversal.keepalive(),
            reasons: self.verdict_reasons(),
            reach: self.networks_reached(),
            findings: self
                .findings(now)
                .into_iter()
                .filter(|finding| about_network.contains(&finding.code.as_str()))
                .collect(),
        }
    }

    /// What is to be said of verdicts, by their field in the JSON.
    fn verdict_reasons(&self) -> Vec<(&'static str, String)> {
        let connected = self
            .directory
            .peers()
            .filter(|(id, _)| self.traversal.path(id).is_some())
            .count();
        let servers = self.stun.values().flatten().count();
        let asked = format!("connected peers: {connected}, STUN servers: {servers}");
        let mut out = unknown(self.traversal.nat(), &asked);
        out.push(("hairpin", self.traversal.hairpin().why().to_owned()));
        out.push(("mapping_lifetime", self.traversal.lifetime().why.to_owned()));
        out
    }
}

/// Why verdicts are missing.
fn unknown(nat: NatReport, asked: &str) -> Vec<(&'static str, String)> {
    let mut out = Vec::new();
    if nat.udp_blocked {
        out.push((
            "udp_blocked",
            "three addresses or more were sent to, and none answered within 3 s".to_owned(),
        ));
    }
    if nat.mapping == Mapping::Unknown {
        out.push((
            "mapping",
            format!("two others, or two ports of one, must have told under which address they see this node ({asked})"),
        ));
    }
    if nat.filtering == Filtering::Unknown {
        out.push((
            "filtering",
            format!("a peer that strangers can reach must have tried from a port this node never sent to ({asked})"),
        ));
    }
    if nat.allocation == Allocation::Unknown {
        let why = match nat.mapping {
            Mapping::EndpointIndependent => {
                "the NAT keeps one port for all destinations, so how it chose that does not matter"
                    .to_owned()
            }
            Mapping::Unknown => "it is looked at once the mapping is known".to_owned(),
            Mapping::AddressDependent => {
                "it would take many addresses to ask from, and nothing follows from it".to_owned()
            }
            Mapping::AddressAndPortDependent => {
                format!("too few of 16 new sockets were seen from outside ({asked})")
            }
        };
        out.push(("allocation", why));
    }
    out
}

/// `8 s`; `2.5 s`.
pub(crate) fn seconds(time: Duration) -> String {
    format!("{} s", (time.as_secs_f64() * 10.0).round() / 10.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unknown_verdict_has_a_reason_and_no_other() {
        let fields = |nat| -> Vec<&str> { unknown(nat, "").iter().map(|(f, _)| *f).collect() };
        let blocked = NatReport {
            udp_blocked: true,
            ..NatReport::default()
        };
        assert_eq!(
            fields(blocked),
            ["udp_blocked", "mapping", "filtering", "allocation"]
        );
        let known = NatReport {
            mapping: Mapping::EndpointIndependent,
            filtering: Filtering::AddressDependent,
            allocation: Allocation::Preserving,
            udp_blocked: false,
        };
        assert_eq!(fields(known), [] as [&str; 0]);
        assert_eq!(seconds(Duration::from_millis(2540)), "2.5 s");
        assert_eq!(seconds(Duration::from_secs(30)), "30 s");
    }
}
