//! `farspan netcheck`.

use std::fmt::Write as _;

use anyhow::Result;

use super::{agent, show, status};
use crate::api;
use crate::cli::{Global, Output};

pub fn run(global: &Global, output: Output) -> Result<()> {
    let netcheck: api::Netcheck = agent(global)?.get("/netcheck")?;
    show(output, &netcheck, || table(&netcheck))
}

fn table(netcheck: &api::Netcheck) -> String {
    let api::Netcheck {
        nat,
        endpoints,
        stun,
        relays,
        port_mapping,
        ipv6,
        mtu,
        reach,
        findings,
    } = netcheck;
    let mut out = String::new();
    let mapping = match nat.mapping.as_str() {
        "eim" => {
            "endpoint-independent: one public port for all destinations; direct paths are easy"
        }
        "adm" => "address-dependent: another public port for each destination address",
        "apdm" => {
            "address- and port-dependent: another public port for each destination; direct paths are hard"
        }
        _ => "unknown: too few peers or STUN servers have answered to tell",
    };
    let filtering = match nat.filtering.as_str() {
        "eif" => "endpoint-independent: anybody may answer",
        "adf" => "address-dependent: whoever's address was sent to may answer",
        "apdf" => "address- and port-dependent: only whoever was sent to may answer",
        _ => "unknown: nobody has tried from another address",
    };
    _ = writeln!(out, "NAT mapping    {mapping}");
    _ = writeln!(out, "NAT filtering  {filtering}");
    _ = writeln!(out, "NAT ports      {}", nat.allocation);
    _ = writeln!(
        out,
        "UDP            {}",
        if nat.udp_blocked {
            "blocked: no answer came back from anybody"
        } else {
            "passes"
        }
    );
    _ = writeln!(
        out,
        "Port mapping   {}",
        port_mapping_in_words(port_mapping)
    );
    _ = writeln!(out, "IPv6           {}", if *ipv6 { "yes" } else { "no" });
    _ = writeln!(out, "MTU            {mtu}");
    for (at, endpoint) in endpoints.iter().enumerate() {
        let title = if at == 0 { "Reached at" } else { "" };
        _ = writeln!(out, "{title:<14} {} ({})", endpoint.address, endpoint.kind);
    }
    if endpoints.is_empty() {
        _ = writeln!(out, "Reached at     no address is known yet");
    }
    for server in stun {
        let addresses = if server.addresses.is_empty() {
            "its name could not be resolved".to_owned()
        } else {
            server.addresses.join(", ")
        };
        _ = writeln!(out, "STUN server    {}: {addresses}", server.name);
    }
    for relay in relays {
        let far = relay
            .rtt_ms
            .map_or_else(|| "not measured".to_owned(), |ms| format!("{ms:.1} ms"));
        _ = writeln!(out, "Relay          {}: {far}", relay.name);
    }
    for (title, kinds) in [("Direct to", &reach.direct), ("By relay to", &reach.relay)] {
        if !kinds.is_empty() {
            _ = writeln!(out, "{title:<14} {}", kinds.join(", "));
        }
    }
    out.push_str(&status::findings(findings, status::terminal_width()));
    out
}

/// The JSON's word and what follows it, for people.
fn port_mapping_in_words(text: &str) -> String {
    let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
    let by = match word {
        "pcp" => "PCP",
        "nat-pmp" => "NAT-PMP",
        "upnp" => "UPnP",
        "off" => return "off (`port-mapping = false`)".to_owned(),
        "asking" => return "the gateway is being asked".to_owned(),
        _ => return text.to_owned(),
    };
    format!("{rest} by {by}: strangers reach this node there")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_gateway_said_is_told_in_words() {
        let told = |text| port_mapping_in_words(text);
        assert_eq!(
            told("nat-pmp 203.0.113.9:22514"),
            "203.0.113.9:22514 by NAT-PMP: strangers reach this node there"
        );
        assert_eq!(
            told("none: there is no gateway"),
            "none: there is no gateway"
        );
        assert_eq!(told("off"), "off (`port-mapping = false`)");
    }
}
