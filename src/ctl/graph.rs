//! `farspan graph`: who is connected to whom, and how. One node sees its own paths; what other nodes see
//! is added from their `status -o json`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Result, anyhow};

use super::{agent, print};
use crate::api;
use crate::cli::{Global, GraphArgs, GraphOutput};
use crate::config::{ConfigError, sentence};

/// A status of 5,000 peers is about 4 MiB.
const STATUS_MAX: u64 = 64 << 20;

pub fn run(global: &Global, args: &GraphArgs) -> Result<()> {
    let mut mesh = Mesh::default();
    mesh.add(&agent(global)?.get("/status")?);
    for path in &args.others {
        mesh.add(&read(path)?);
    }
    print(&match args.output {
        GraphOutput::Dot => mesh.dot(),
        GraphOutput::Svg => mesh.svg(),
        GraphOutput::Mermaid => mesh.mermaid(),
    })
}

fn read(path: &Path) -> Result<api::Status> {
    let shown = path.display();
    let mut text = String::new();
    let got = if path == Path::new("-") {
        std::io::stdin().take(STATUS_MAX).read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(STATUS_MAX).read_to_string(&mut text))
    };
    got.map_err(|error| anyhow!("cannot read {shown}: {}", sentence(&error)))?;
    serde_json::from_str(&text).map_err(|error| {
        ConfigError(format!(
            "{shown} is not what `farspan status -o json` prints: {error}"
        ))
        .into()
    })
}

/// By public key.
#[derive(Debug, Default)]
struct Mesh {
    nodes: BTreeMap<String, Node>,
    edges: BTreeMap<(String, String), Edge>,
}

#[derive(Debug, Default)]
struct Node {
    name: String,
    region: String,
    /// Known of nodes whose status was read.
    nat: Option<String>,
}

/// What the two ends say, lower key first; often only one is known.
#[derive(Debug, Default)]
struct Edge {
    labels: BTreeSet<String>,
    state: State,
}

/// How a pair is doing, worst first.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    #[default]
    Down,
    Idle,
    Relayed,
    Direct,
}

impl State {
    fn of(word: &str) -> Self {
        match word {
            "direct" => Self::Direct,
            "relayed" => Self::Relayed,
            "idle" => Self::Idle,
            _ => Self::Down,
        }
    }

    /// Line style of DOT, stroke pattern of SVG, arrow of mermaid, colour.
    fn style(self) -> (&'static str, &'static str, &'static str, &'static str) {
        match self {
            Self::Direct => ("solid", "", "---", "#2e7d32"),
            Self::Relayed => ("dashed", "8 4", "-.-", "#ef6c00"),
            Self::Idle => ("dotted", "2 4", "-.-", "#757575"),
            Self::Down => ("dotted", "2 4", "-.-", "#c62828"),
        }
    }
}

impl Mesh {
    fn add(&mut self, status: &api::Status) {
        let own = &status.node;
        let nat = format!("{}/{}", own.nat.mapping, own.nat.filtering);
        self.nodes.insert(
            own.public_key.clone(),
            Node {
                name: own.name.clone(),
                region: own.region.clone(),
                nat: Some(nat),
            },
        );
        for peer in &status.peers {
            self.nodes
                .entry(peer.public_key.clone())
                .or_insert_with(|| Node {
                    name: peer.name.clone(),
                    region: peer.region.clone(),
                    nat: None,
                });
            let mut ends = [own.public_key.clone(), peer.public_key.clone()];
            ends.sort();
            let [first, second] = ends;
            let edge = self.edges.entry((first, second)).or_default();
            edge.labels.insert(label(peer));
            edge.state = edge.state.max(State::of(&peer.state));
        }
    }

    /// Short names for keys.
    fn numbers(&self) -> BTreeMap<&str, usize> {
        let keys = self.nodes.keys().map(String::as_str);
        keys.zip(0..).collect()
    }

    /// Ends, text and state of every edge.
    fn lines(&self) -> impl Iterator<Item = (usize, usize, String, State)> {
        let numbers = self.numbers();
        self.edges.iter().filter_map(move |((a, b), edge)| {
            let labels: Vec<&str> = edge.labels.iter().map(String::as_str).collect();
            let ends = (*numbers.get(a.as_str())?, *numbers.get(b.as_str())?);
            Some((ends.0, ends.1, labels.join(" / "), edge.state))
        })
    }

    fn dot(&self) -> String {
        let mut out = String::from(
            "graph farspan {\n  overlap=false;\n  splines=true;\n  node [shape=box, style=rounded, fontname=sans];\n  edge [fontname=sans, fontsize=10];\n",
        );
        let regions: BTreeSet<&str> = self
            .nodes
            .values()
            .map(|node| node.region.as_str())
            .collect();
        for (cluster, region) in regions.into_iter().enumerate() {
            let named = !region.is_empty();
            if named {
                _ = writeln!(
                    out,
                    "  subgraph cluster_{cluster} {{\n  label={};",
                    dot_string(&[region])
                );
            }
            for (number, node) in self.nodes.values().enumerate() {
                if node.region == region {
                    let mut lines = vec![node.name.as_str()];
                    lines.extend(node.nat.as_deref());
                    _ = writeln!(out, "  n{number} [label={}];", dot_string(&lines));
                }
            }
            if named {
                out.push_str("  }\n");
            }
        }
        for (a, b, text, state) in self.lines() {
            let (style, _, _, colour) = state.style();
            _ = writeln!(
                out,
                "  n{a} -- n{b} [label={}, style={style}, color=\"{colour}\"];",
                dot_string(&[&text])
            );
        }
        out.push_str("}\n");
        out
    }

    fn mermaid(&self) -> String {
        let mut out = String::from("graph LR\n");
        for (number, node) in self.nodes.values().enumerate() {
            let nat = node.nat.as_ref().map(|nat| format!("<br/>{nat}"));
            _ = writeln!(
                out,
                "  n{number}[\"{}{}\"]",
                escaped(&node.name, '#'),
                nat.unwrap_or_default()
            );
        }
        for (a, b, text, state) in self.lines() {
            let (_, _, arrow, _) = state.style();
            _ = writeln!(out, "  n{a} {arrow}|\"{}\"| n{b}", escaped(&text, '#'));
        }
        out
    }

    /// All nodes on a circle: no layout to argue with, and good up to some fifty nodes.
    #[expect(
        clippy::cast_precision_loss,
        reason = "a picture of so many nodes shows nothing anyway"
    )]
    fn svg(&self) -> String {
        let count = self.nodes.len().max(1) as f64;
        let radius = (count * 22.0).max(220.0);
        let centre = radius + 130.0;
        let side = centre * 2.0;
        let place = |number: usize| {
            let angle = std::f64::consts::TAU * number as f64 / count;
            (centre + radius * angle.sin(), centre - radius * angle.cos())
        };
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {side:.0} {side:.0}\" font-family=\"sans-serif\" font-size=\"12\" text-anchor=\"middle\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
        );
        for (a, b, text, state) in self.lines() {
            let (_, pattern, _, colour) = state.style();
            let ((x1, y1), (x2, y2)) = (place(a), place(b));
            // Off the middle, where the lines of a full mesh cross.
            let (x, y) = (x1 * 0.6 + x2 * 0.4, y1 * 0.6 + y2 * 0.4);
            _ = writeln!(
                out,
                "<line x1=\"{x1:.0}\" y1=\"{y1:.0}\" x2=\"{x2:.0}\" y2=\"{y2:.0}\" stroke=\"{colour}\" stroke-width=\"1.5\" stroke-dasharray=\"{pattern}\"/>\n<text x=\"{x:.0}\" y=\"{y:.0}\" fill=\"{colour}\" font-size=\"10\">{}</text>",
                entities(&text)
            );
        }
        for (number, node) in self.nodes.values().enumerate() {
            let (x, y) = place(number);
            let below = [Some(node.region.as_str()), node.nat.as_deref()]
                .into_iter()
                .flatten()
                .filter(|text| !text.is_empty());
            let below: Vec<&str> = below.collect();
            _ = writeln!(
                out,
                "<rect x=\"{:.0}\" y=\"{:.0}\" width=\"120\" height=\"36\" rx=\"6\" fill=\"white\" stroke=\"black\"/>\n<text x=\"{x:.0}\" y=\"{:.0}\">{}</text>\n<text x=\"{x:.0}\" y=\"{:.0}\" font-size=\"9\">{}</text>",
                x - 60.0,
                y - 18.0,
                y - 2.0,
                entities(&node.name),
                y + 12.0,
                entities(&below.join(", "))
            );
        }
        out.push_str("</svg>\n");
        out
    }
}

/// How one end sees the path.
fn label(peer: &api::Peer) -> String {
    let Some(path) = &peer.path else {
        return peer.state.clone();
    };
    let mut out = path.kind.clone();
    if let Some(via) = &path.via {
        _ = write!(out, " via {via}");
    }
    if let Some(rtt) = peer.rtt_ms {
        _ = write!(out, " {rtt:.1} ms");
    }
    out
}

/// A quoted string of DOT with centred lines.
fn dot_string(lines: &[&str]) -> String {
    let quoted: Vec<String> = lines
        .iter()
        .map(|line| {
            let shown = line.chars().filter(|c| !c.is_control());
            shown
                .flat_map(|c| {
                    let escape = matches!(c, '"' | '\\').then_some('\\');
                    escape.into_iter().chain([c])
                })
                .collect()
        })
        .collect();
    format!("\"{}\"", quoted.join("\\n"))
}

/// Text in XML.
fn entities(text: &str) -> String {
    escaped(text, '&')
}

/// Text where `"<>&` and the mark itself are written as entities that begin with the mark.
fn escaped(text: &str, mark: char) -> String {
    let mut out = String::new();
    for c in text.chars().filter(|c| !c.is_control()) {
        let entity = match c {
            '&' => "amp;",
            '<' => "lt;",
            '>' => "gt;",
            '"' => "quot;",
            c if c == mark => "35;",
            c => {
                out.push(c);
                continue;
            }
        };
        out.push(mark);
        out.push_str(entity);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(key: &str, state: &str, kind: &str, via: Option<&str>) -> serde_json::Value {
        serde_json::json!({
            "name": format!("peer \"{key}\""), "public_key": key, "region": "eu", "source": "config", "state": state,
            "identity": "", "reason": "", "path": { "kind": kind, "remote": "203.0.113.1:1", "via": via },
            "rtt_ms": 12.34, "loss": null, "mtu": 1420, "last_handshake_s": null, "rx_bytes": 0, "tx_bytes": 0,
            "allowed_ips": [], "since_s": 0, "connect_ms": null
        })
    }

    fn status(key: &str, peers: &[serde_json::Value]) -> api::Status {
        let nat = serde_json::json!({"mapping": "eim", "filtering": "apdf", "allocation": "", "udp_blocked": false});
        serde_json::from_value(serde_json::json!({
            "node": { "name": key, "public_key": key, "identity": "", "domain": "", "backend": "kernel",
                      "interface": "farspan0", "listen_port": 1, "region": "", "addresses": [], "nat": nat, "endpoints": [] },
            "peers": peers, "findings": []
        }))
        .unwrap()
    }

    fn mesh() -> Mesh {
        let mut mesh = Mesh::default();
        mesh.add(&status(
            "a",
            &[
                peer("b", "direct", "ipv4", None),
                peer("c", "relayed", "node-relay", Some("b")),
            ],
        ));
        mesh.add(&status("b", &[peer("a", "direct", "ipv4", None)]));
        mesh
    }

    #[test]
    fn paths_of_several_views_are_one_line_each() {
        let dot = mesh().dot();
        assert!(
            dot.contains("n0 -- n1 [label=\"ipv4 12.3 ms\", style=solid"),
            "{dot}"
        );
        assert!(
            dot.contains("n0 -- n2 [label=\"node-relay via b 12.3 ms\", style=dashed"),
            "{dot}"
        );
        assert_eq!(dot.matches(" -- ").count(), 2, "{dot}");
        assert!(dot.contains("label=\"b\\neim/apdf\""), "{dot}");
        assert!(dot.contains("label=\"peer \\\"c\\\"\""), "{dot}");
        assert_eq!(dot.matches('{').count(), dot.matches('}').count());
    }

    #[test]
    fn names_do_not_break_out_of_pictures() {
        let mut mesh = mesh();
        if let Some(node) = mesh.nodes.get_mut("c") {
            node.name = "</text><script>\"&\u{1b}".into();
        }
        for (text, expected) in [
            (mesh.svg(), "&lt;script&gt;&quot;&amp;"),
            (mesh.mermaid(), "#lt;script#gt;#quot;#amp;"),
        ] {
            assert!(!text.contains("<script>"), "{text}");
            assert!(text.contains(expected), "{text}");
            assert!(text.contains("node-relay via b"), "{text}");
        }
    }
}
