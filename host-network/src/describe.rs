//! A plan in words, for `--dry-run`.

use std::fmt::Write as _;

use mesh_types::HostPlan;
use mesh_types::cluster::Allowed;
use mesh_types::consts::SERVED_PORTS;
use mesh_types::plan::{Route, RouteKind, TunnelPeer};

/// Lines of text, one for each thing the host would hold. No secrets.
pub fn describe(plan: &HostPlan) -> String {
    let mut text = String::new();
    // Writing to a String does not fail.
    let _ = write(&mut text, plan);
    text
}

fn write(text: &mut String, plan: &HostPlan) -> std::fmt::Result {
    let device = &plan.device;
    writeln!(text, "device {} mtu {} up", device.name, device.mtu)?;
    for address in &device.addresses {
        writeln!(text, "address {address} dev {}", device.name)?;
    }
    let tunnel = &plan.tunnel;
    writeln!(
        text,
        "wireguard key {} listen-port {} fwmark {:#x}",
        tunnel.key.public(),
        tunnel.listen_port,
        tunnel.fwmark
    )?;
    for (key, peer) in &tunnel.peers {
        writeln!(text, "peer {key}{}", peer_words(peer))?;
    }
    for route in &plan.routes {
        writeln!(text, "{}", route_words(route, &device.name))?;
    }
    for rule in &plan.rules {
        let family = if rule.ipv6 { "ipv6" } else { "ipv4" };
        let packets = match rule.from {
            Some(from) => format!(
                "from {from} ipproto tcp sport {}-{}",
                SERVED_PORTS.0, SERVED_PORTS.1
            ),
            None => format!("not fwmark {:#x}/{:#x}", rule.mark, rule.mask),
        };
        writeln!(
            text,
            "rule {family} {packets} lookup {} priority {}",
            rule.table, rule.priority
        )?;
    }
    if plan.mss_clamp {
        writeln!(
            text,
            "nftables clamp the MSS of forwarded TCP on {}",
            device.name
        )?;
    }
    if plan.forward_accept {
        writeln!(
            text,
            "nftables accept forwarded packets of {} in the host's own filters",
            device.name
        )?;
    }
    for range in &plan.keep_source {
        writeln!(text, "nftables keep sources in {range} towards the mesh")?;
    }
    for (range, to) in &plan.filters {
        let to: Vec<String> = to.iter().map(allowed_words).collect();
        let to = if to.is_empty() {
            "nowhere".to_owned()
        } else {
            to.join(", ")
        };
        writeln!(text, "nftables let what comes from {range} go to {to}")?;
    }
    if plan.mark_input {
        writeln!(
            text,
            "nftables mark what comes to our ports {:#x}",
            tunnel.fwmark
        )?;
    }
    for adoption in &plan.adoptions {
        writeln!(
            text,
            "lend port {} to WireGuard towards {}",
            adoption.port, adoption.remote
        )?;
    }
    for alias in &plan.aliases {
        writeln!(
            text,
            "take what comes late from {} as of {}",
            alias.late, alias.path
        )?;
    }
    for (remote, limit) in &plan.narrow {
        writeln!(
            text,
            "send datagrams to {remote} in fragments of {limit} bytes"
        )?;
    }
    for link in &plan.turn_links {
        writeln!(
            text,
            "link {} to the TURN server {} at {} by {:?}",
            link.number, link.name, link.server, link.transport
        )?;
    }
    for proxy in &plan.proxies {
        writeln!(
            text,
            "take what goes to {} to link {}, channel {:#x}",
            proxy.loopback, proxy.link, proxy.channel
        )?;
    }
    for pair in &plan.relay_pairs {
        let ((first, at), (second, out)) = (pair.first, pair.second);
        writeln!(
            text,
            "relay {first} at port {at} and {second} at port {out}, {} bit/s, {} bit/s a node",
            pair.rate, pair.node_rate
        )?;
    }
    Ok(())
}

fn peer_words(peer: &TunnelPeer) -> String {
    let mut words = String::new();
    if let Some(endpoint) = peer.endpoint {
        let _ = write!(words, " endpoint {endpoint}");
    }
    if let Some(every) = peer.keepalive {
        let _ = write!(words, " keepalive {}s", every.as_secs());
    }
    if peer.preshared_key.is_some() {
        words.push_str(" preshared-key (hidden)");
    }
    if peer.passive {
        words.push_str(" passive");
    }
    if !peer.allowed_ips.is_empty() {
        let ranges: Vec<String> = peer.allowed_ips.iter().map(ToString::to_string).collect();
        let _ = write!(words, " allowed-ips {}", ranges.join(","));
    }
    words
}

fn allowed_words(to: &Allowed) -> String {
    let destination = to.destination;
    match to.ports {
        None => destination.to_string(),
        Some((first, last)) if first == last => format!("{destination} port {first}"),
        Some((first, last)) => format!("{destination} ports {first}-{last}"),
    }
}

fn route_words(route: &Route, device: &str) -> String {
    let (prefix, metric) = (route.prefix, route.metric);
    match route.kind {
        RouteKind::Unicast { source, mtu } => {
            let mut words = format!("route {prefix} dev {device} metric {metric}");
            if let Some(source) = source {
                let _ = write!(words, " src {source}");
            }
            if let Some(mtu) = mtu {
                let _ = write!(words, " mtu {mtu}");
            }
            words
        }
        RouteKind::Blackhole => format!("route blackhole {prefix} metric {metric}"),
        RouteKind::Throw => format!("route throw {prefix} metric {metric}"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::time::Duration;

    use mesh_types::plan::{DevicePlan, Rule, TunnelPlan};
    use mesh_types::{PresharedKey, WgKey, WgSecret};

    use super::*;

    #[test]
    fn every_part_of_a_plan_is_named_and_no_secret_is() {
        let secret = WgSecret::from_bytes([7; 32]);
        let preshared =
            PresharedKey::from_base64(&WgSecret::from_bytes([9; 32]).to_base64()).unwrap();
        let peer = TunnelPeer {
            endpoint: Some("203.0.113.7:22514".parse().unwrap()),
            allowed_ips: ["10.77.0.2/32".parse().unwrap()].into(),
            keepalive: Some(Duration::from_secs(25)),
            preshared_key: Some(preshared.clone()),
            insist: 0,
            also: None,
            passive: false,
        };
        let plan = HostPlan {
            generation: 1,
            device: DevicePlan {
                name: "farspan0".to_owned(),
                mtu: 1420,
                addresses: ["10.77.0.1/32".parse().unwrap()].into(),
            },
            tunnel: TunnelPlan {
                key: secret.clone(),
                previous_key: None,
                listen_port: 22514,
                fwmark: 0x2000,
                peers: BTreeMap::from([(WgKey([3; 32]), peer)]),
                report_every: Duration::from_secs(10),
            },
            routes: [
                Route {
                    prefix: "10.77.0.2/32".parse().unwrap(),
                    metric: 100,
                    kind: RouteKind::Unicast {
                        source: Some("10.77.0.1".parse().unwrap()),
                        mtu: Some(1300),
                    },
                },
                Route {
                    prefix: "10.77.0.0/16".parse().unwrap(),
                    metric: 4096,
                    kind: RouteKind::Blackhole,
                },
            ]
            .into(),
            rules: [Rule {
                ipv6: false,
                priority: 5300,
                table: 22512,
                mark: 0x2000,
                mask: 0x2000,
                from: None,
            }]
            .into(),
            sockets: BTreeSet::new(),
            mss_clamp: true,
            forward_accept: false,
            adoptions: BTreeSet::new(),
            relay_pairs: BTreeSet::new(),
            aliases: BTreeSet::new(),
            narrow: [([192, 0, 2, 7].into(), 1292)].into(),
            turn_links: BTreeSet::new(),
            proxies: BTreeSet::new(),
            filters: [
                (
                    "10.77.0.2/32".parse().unwrap(),
                    [
                        Allowed {
                            destination: "10.201.1.0/24".parse().unwrap(),
                            ports: Some((80, 90)),
                        },
                        Allowed {
                            destination: "10.201.1.9/32".parse().unwrap(),
                            ports: None,
                        },
                    ]
                    .into(),
                ),
                ("fd77::2/128".parse().unwrap(), BTreeSet::new()),
            ]
            .into(),
            keep_source: ["10.201.0.0/16".parse().unwrap()].into(),
            mark_input: true,
        };

        let text = describe(&plan);

        for line in [
            "device farspan0 mtu 1420 up",
            "address 10.77.0.1/32 dev farspan0",
            "endpoint 203.0.113.7:22514 keepalive 25s preshared-key (hidden) allowed-ips 10.77.0.2/32",
            "route 10.77.0.2/32 dev farspan0 metric 100 src 10.77.0.1 mtu 1300",
            "route blackhole 10.77.0.0/16 metric 4096",
            "rule ipv4 not fwmark 0x2000/0x2000 lookup 22512 priority 5300",
            "nftables clamp the MSS",
            "datagrams to 192.0.2.7 in fragments of 1292 bytes",
            "keep sources in 10.201.0.0/16 towards the mesh",
            "from 10.77.0.2/32 go to 10.201.1.0/24 ports 80-90, 10.201.1.9/32\n",
            "from fd77::2/128 go to nowhere",
            "mark what comes to our ports 0x2000",
        ] {
            assert!(text.contains(line), "{line} is missing in:\n{text}");
        }
        assert!(!text.contains(secret.to_base64().as_str()));
        assert!(!text.contains(preshared.to_base64().as_str()));
    }
}
