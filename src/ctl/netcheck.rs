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
        hairpin,
        mapping_lifetime,
        keepalive_s,
        reasons,
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
        _ => "unknown",
    };
    let filtering = match nat.filtering.as_str() {
        "eif" => "endpoint-independent: anybody may answer",
        "adf" => "address-dependent: whoever's address was sent to may answer",
        "apdf" => "address- and port-dependent: only whoever was sent to may answer",
        _ => "unknown",
    };
    // What is known well needs no reason; what is not does.
    let because = |text: &str, field: &str| match reasons.get(field) {
        Some(why) => format!("{text}: {why}"),
        None => text.to_owned(),
    };
    let hairpin = match hairpin.as_str() {
        "yes" => "yes",
        "no" => "no",
        _ => "unknown",
    };
    let lifetime = lifetime_in_words(mapping_lifetime);
    let lifetime = match &lifetime {
        Some(known) => format!("{known}; one packet every {keepalive_s} s at least keeps it"),
        None => because("unknown", "mapping_lifetime"),
    };
    for (title, text) in [
        ("NAT mapping", because(mapping, "mapping")),
        ("NAT filtering", because(filtering, "filtering")),
        ("NAT ports", because(&nat.allocation, "allocation")),
        ("NAT hairpin", because(hairpin, "hairpin")),
        ("NAT memory", lifetime),
    ] {
        _ = writeln!(out, "{title:<14} {text}");
    }
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

/// `None` where nothing is known.
fn lifetime_in_words(lifetime: &api::MappingLifetime) -> Option<String> {
    Some(match (lifetime.at_least_s, lifetime.below_s) {
        (Some(alive), Some(dead)) => {
            format!("a silent flow is remembered for {alive} s, and forgotten after {dead} s")
        }
        (Some(alive), None) => format!("a silent flow is remembered for {alive} s or longer"),
        (None, Some(dead)) => format!("a silent flow is forgotten after less than {dead} s"),
        (None, None) => return None,
    })
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
    fn the_table_says_why_where_a_verdict_is_missing() {
        let json = serde_json::json!({
            "nat": { "mapping": "eim", "filtering": "unknown", "allocation": "preserving", "udp_blocked": false },
            "endpoints": [], "stun": [], "relays": [], "port_mapping": "off", "ipv6": false, "mtu": 1420,
            "hairpin": "no", "mapping_lifetime": { "at_least_s": 7.5, "below_s": 9.4 }, "keepalive_s": 5.0,
            "reasons": { "filtering": "nobody tried", "hairpin": "nothing came back" }, "findings": []
        });
        let netcheck = serde_json::from_value(json).expect("the contract's JSON");
        let said = table(&netcheck);
        for line in [
            "NAT filtering  unknown: nobody tried\n",
            "NAT ports      preserving\n",
            "NAT hairpin    no: nothing came back\n",
            "NAT memory     a silent flow is remembered for 7.5 s, and forgotten after 9.4 s; one packet every 5 s at least keeps it\n",
        ] {
            assert!(said.contains(line), "{line}{said}");
        }
    }

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
