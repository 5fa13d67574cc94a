//! `farspan status`.

use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::Result;

use super::{agent, print, show, table::columns, watch};
use crate::api;
use crate::cli::{Global, Output, StatusArgs, StatusOutput};

/// `--check` found a fault.
const FAULT: u8 = 3;

pub fn run(global: &Global, args: &StatusArgs) -> Result<ExitCode> {
    let agent = agent(global)?;
    if args.watch {
        return watch::run(agent).map(|()| ExitCode::SUCCESS);
    }
    let status: api::Status = agent.get("/status")?;
    match args.output {
        StatusOutput::Table => print(&table(&status))?,
        StatusOutput::Wide => print(&wide(&status))?,
        StatusOutput::Json => show(Output::Json, &status, String::new)?,
        StatusOutput::Yaml => show(Output::Yaml, &status, String::new)?,
    }
    Ok(if args.check && faulty(&status) {
        ExitCode::from(FAULT)
    } else {
        ExitCode::SUCCESS
    })
}

/// Is something wrong, as against merely worth knowing?
fn faulty(status: &api::Status) -> bool {
    let bad_peer = |peer: &api::Peer| matches!(peer.state.as_str(), "down" | "connecting");
    status.peers.iter().any(bad_peer)
        || status
            .findings
            .iter()
            .any(|finding| finding.severity != "info")
}

/// The table for people, as wide as their terminal; whole where no terminal is.
pub fn table(status: &api::Status) -> String {
    table_within(status, terminal_width())
}

/// Columns of the terminal that standard output is; no limit where it is none.
pub fn terminal_width() -> usize {
    terminal_size::terminal_size_of(std::io::stdout())
        .map_or(usize::MAX, |(width, _)| usize::from(width.0).max(40))
}

/// The same for a terminal of so many columns.
pub fn table_within(status: &api::Status, width: usize) -> String {
    let mut out = title(&status.node);
    out.push_str(&cluster(status.cluster.as_ref()));
    out.push('\n');
    if status.peers.is_empty() {
        out.push_str(NO_PEERS);
    } else {
        out.push_str(&peers(&status.peers, width));
    }
    out.push_str(&findings(&status.findings, width));
    out
}

const NO_PEERS: &str =
    "No peers yet: `farspan invite` lets a machine in, `farspan peer add` adds a static one.\n";

fn title(node: &api::Node) -> String {
    let mut out = String::new();
    _ = writeln!(
        out,
        "{} ({}) on {}, UDP port {}, {} backend",
        node.name,
        if node.addresses.is_empty() {
            "no address".to_owned()
        } else {
            bare(&node.addresses)
        },
        node.interface,
        node.listen_port,
        node.backend,
    );
    out
}

/// One line about the cluster, where there is one.
fn cluster(cluster: Option<&api::Cluster>) -> String {
    let Some(cluster) = cluster else {
        return String::new();
    };
    let api::Cluster {
        domain,
        node,
        pod_network,
        nodes,
        refused,
        published_seq,
        pending_write,
    } = cluster;
    if domain.is_empty() {
        return format!("Node {node} of a Kubernetes cluster that was not heard of yet\n");
    }
    let announced = match (published_seq, pending_write) {
        (Some(seq), false) => format!("announced with seq {seq}"),
        (Some(seq), true) => format!("announced with seq {seq}, a newer one waits"),
        (None, _) => "not announced yet".to_owned(),
    };
    let count: u64 = refused.values().sum();
    let refused = if count > 0 {
        let reasons: Vec<_> = refused
            .iter()
            .map(|(reason, count)| format!("{reason} {count}"))
            .collect();
        format!(", refused claims: {}", reasons.join(", "))
    } else {
        String::new()
    };
    format!(
        "Node {node} of a Kubernetes cluster of {nodes}, pod network mode {pod_network}, {announced}{refused}\n"
    )
}

/// All there is to know, on lines of any length.
fn wide(status: &api::Status) -> String {
    let node = &status.node;
    let mut out = title(node);
    for (name, value) in [
        ("public key", &node.public_key),
        ("identity", &node.identity),
        ("domain", &node.domain),
        ("region", &node.region),
    ] {
        if !value.is_empty() {
            _ = writeln!(out, "{name} {value}");
        }
    }
    let api::Nat {
        mapping,
        filtering,
        allocation,
        udp_blocked,
    } = &node.nat;
    let blocked = if *udp_blocked { ", UDP blocked" } else { "" };
    _ = writeln!(
        out,
        "NAT mapping {mapping}, filtering {filtering}, ports {allocation}{blocked}"
    );
    let endpoints = node.endpoints.iter();
    let endpoints: Vec<_> = endpoints
        .map(|endpoint| format!("{} ({})", endpoint.address, endpoint.kind))
        .collect();
    _ = writeln!(out, "reached at {}", endpoints.join(", "));
    out.push_str(&cluster(status.cluster.as_ref()));
    out.push('\n');
    if status.peers.is_empty() {
        out.push_str(NO_PEERS);
    } else {
        let rows: Vec<_> = status.peers.iter().map(wide_row).collect();
        let head: Vec<_> = COLUMNS[..COLUMNS.len() - 1]
            .iter()
            .chain(&WIDE_COLUMNS)
            .copied()
            .collect();
        out.push_str(&columns(&head, &rows));
    }
    out.push_str(&findings(&status.findings, usize::MAX));
    out
}

/// Beside [`COLUMNS`] without its last, which stands at the end here too.
const WIDE_COLUMNS: [&str; 10] = [
    "VIA",
    "LOSS",
    "MTU",
    "SINCE",
    "CONNECTED IN",
    "SOURCE",
    "REGION",
    "ALLOWED IPS",
    "PUBLIC KEY",
    "REASON",
];

fn wide_row(peer: &api::Peer) -> Vec<String> {
    let dash = || "-".to_owned();
    let or_dash = |text: &String| {
        if text.is_empty() {
            dash()
        } else {
            text.clone()
        }
    };
    let mut cells = row(peer);
    let reason = cells.pop();
    cells.extend([
        peer.path
            .as_ref()
            .and_then(|path| path.via.clone())
            .unwrap_or_else(dash),
        peer.loss
            .map_or_else(dash, |loss| format!("{:.0} %", loss * 100.0)),
        peer.mtu.to_string(),
        seconds(peer.since_s),
        peer.connect_ms
            .map_or_else(dash, |time| format!("{time} ms")),
        peer.source.clone(),
        or_dash(&peer.region),
        or_dash(&peer.allowed_ips.join(", ")),
        peer.public_key.clone(),
    ]);
    cells.extend(reason);
    cells
}

const COLUMNS: [&str; 10] = [
    "NAME",
    "ADDRESS",
    "STATE",
    "PATH",
    "ENDPOINT",
    "RTT",
    "HANDSHAKE",
    "RX",
    "TX",
    "REASON",
];
/// What is shown where all does not fit, widest first. A reason then follows where a peer is not direct.
const NARROWER: [usize; 2] = [9, 6];

fn peers(peers: &[api::Peer], width: usize) -> String {
    let rows: Vec<_> = peers.iter().map(row).collect();
    let whole = columns(&COLUMNS, &rows);
    let fits = |text: &str| text.lines().all(|line| line.chars().count() <= width);
    if fits(&whole) {
        return whole;
    }
    let cut = |count: usize| {
        let rows: Vec<_> = rows.iter().map(|row| row[..count].to_vec()).collect();
        columns(&COLUMNS[..count], &rows)
    };
    let [_, narrowest] = NARROWER;
    let table = NARROWER.map(cut).into_iter().find(|table| fits(table));
    let table = table.unwrap_or_else(|| cut(narrowest));
    let mut lines = table.lines();
    let mut out = String::new();
    _ = writeln!(out, "{}", lines.next().unwrap_or_default());
    for (line, peer) in lines.zip(peers) {
        _ = writeln!(out, "{line}");
        if peer.state != "direct" && !peer.reason.is_empty() {
            out.push_str(&wrapped(&peer.reason, 2, width));
        }
    }
    out
}

/// Lines of words, indented.
pub fn wrapped(text: &str, indent: usize, width: usize) -> String {
    let mut out = String::new();
    let mut column: usize = 0;
    for word in text.split_whitespace() {
        let length = word.chars().count();
        if column > 0 && column.saturating_add(1 + length) > width {
            out.push('\n');
            column = 0;
        }
        if column == 0 {
            out.extend(std::iter::repeat_n(' ', indent));
            column = indent;
        } else {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += length;
    }
    out.push('\n');
    out
}

fn row(peer: &api::Peer) -> Vec<String> {
    let dash = || "-".to_owned();
    vec![
        peer.name.clone(),
        peer.allowed_ips
            .first()
            .map_or_else(dash, |net| bare(std::slice::from_ref(net))),
        peer.state.clone(),
        peer.path
            .as_ref()
            .map_or_else(dash, |path| path.kind.clone()),
        peer.path
            .as_ref()
            .map_or_else(dash, |path| path.remote.clone()),
        peer.rtt_ms.map_or_else(dash, |rtt| format!("{rtt:.1} ms")),
        peer.last_handshake_s
            .map_or_else(dash, |age| format!("{} ago", seconds(age))),
        size(peer.rx_bytes),
        size(peer.tx_bytes),
        peer.reason.clone(),
    ]
}

/// Findings below a table; nothing where there are none.
pub fn findings(findings: &[api::Finding], width: usize) -> String {
    let mut out = String::new();
    for finding in findings {
        let api::Finding {
            code,
            severity,
            message,
            remedy,
        } = finding;
        out.push('\n');
        out.push_str(&wrapped(
            &format!("{severity} [{code}]: {message}"),
            0,
            width,
        ));
        if !remedy.is_empty() {
            out.push_str(&wrapped(remedy, 2, width));
        }
    }
    out
}

/// Addresses without the prefix length that every host address has.
fn bare(nets: &[String]) -> String {
    let strip = |net: &String| {
        net.strip_suffix("/32")
            .or_else(|| net.strip_suffix("/128"))
            .unwrap_or(net)
            .to_owned()
    };
    nets.iter().map(strip).collect::<Vec<_>>().join(", ")
}

pub fn seconds(age: u64) -> String {
    match age {
        0..60 => format!("{age} s"),
        60..3600 => format!("{} min", age / 60),
        3600..86_400 => format!("{} h", age / 3600),
        _ => format!("{} d", age / 86_400),
    }
}

#[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{bytes} B")
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(state: &str) -> api::Peer {
        api::Peer {
            name: "b".into(),
            public_key: String::new(),
            region: String::new(),
            source: "config".into(),
            state: state.into(),
            identity: String::new(),
            reason: "probed both ways".into(),
            path: None,
            rtt_ms: Some(12.34),
            loss: None,
            mtu: 1420,
            last_handshake_s: Some(75),
            rx_bytes: 2048,
            tx_bytes: 7,
            allowed_ips: vec!["10.77.0.2/32".into()],
            since_s: 0,
            connect_ms: None,
        }
    }

    fn status(peers: Vec<api::Peer>, severity: Option<&str>) -> api::Status {
        api::Status {
            cluster: None,
            node: api::Node {
                name: "a".into(),
                public_key: String::new(),
                identity: String::new(),
                domain: String::new(),
                backend: "userspace".into(),
                interface: "farspan0".into(),
                listen_port: 22000,
                region: String::new(),
                addresses: vec!["10.77.0.1/32".into()],
                nat: api::Nat {
                    mapping: "eim".into(),
                    filtering: "apdf".into(),
                    allocation: "unknown".into(),
                    udp_blocked: false,
                },
                endpoints: vec![],
            },
            peers,
            findings: severity
                .map(|severity| api::Finding {
                    code: "rp-filter".into(),
                    severity: severity.into(),
                    message: "m".into(),
                    remedy: "do this".into(),
                })
                .into_iter()
                .collect(),
        }
    }

    #[test]
    fn a_peer_is_one_line() {
        let text = table(&status(vec![peer("direct")], Some("warning")));
        assert!(text.starts_with("a (10.77.0.1) on farspan0, UDP port 22000, userspace backend\n"));
        assert!(
            text.contains("b     10.77.0.2  direct  -     -         12.3 ms  1 min ago  2.0 KiB  7 B  probed both ways\n"),
            "{text}"
        );
        assert!(text.ends_with("warning [rp-filter]: m\n  do this\n"));
    }

    #[test]
    fn a_narrow_terminal_gets_fewer_columns_and_reasons_on_lines_of_their_own() {
        let mut lost = peer("connecting");
        lost.reason = "no address answers now, neither inside the local network nor outside".into();
        let mut finding = status(vec![peer("direct"), lost], Some("warning"));
        finding.findings[0].message = "rp_filter is strict ".repeat(6);
        let text = table_within(&finding, 60);
        assert!(
            text.lines().skip(1).all(|line| line.chars().count() <= 60),
            "{text}"
        );
        assert!(!text.contains("probed both ways"), "{text}");
        assert!(
            text.contains(
                "\n  no address answers now, neither inside the local network\n  nor outside\n"
            ),
            "{text}"
        );
        assert!(!text.contains("HANDSHAKE"), "{text}");
        assert!(table_within(&finding, 400).contains("HANDSHAKE"));
    }

    #[test]
    fn the_wide_table_leaves_nothing_out() {
        let mut relayed = peer("relayed");
        relayed.path = Some(api::Path {
            kind: "node-relay".into(),
            remote: "203.0.113.5:28672".into(),
            via: Some("hub".into()),
        });
        relayed.loss = Some(0.05);
        relayed.connect_ms = Some(230);
        let text = wide(&status(vec![relayed], None));
        for part in [
            "NAT mapping eim, filtering apdf, ports unknown\n",
            "node-relay  203.0.113.5:28672",
            "hub  5 %   1420  0 s    230 ms",
            "10.77.0.2/32",
            "probed both ways\n",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn the_check_fails_on_what_is_wrong_only() {
        assert!(!faulty(&status(
            vec![peer("direct"), peer("idle")],
            Some("info")
        )));
        assert!(faulty(&status(vec![peer("down")], None)));
        assert!(faulty(&status(vec![], Some("warning"))));
    }
}
