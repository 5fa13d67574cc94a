//! What Prometheus reads, in OpenMetrics. Names and labels are listed in docs/metrics.md and are stable.
//!
//! A label that names peers would make N² series in a mesh of N nodes: aggregates by region and state are written
//! always, peers only where somebody asks for them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64};
use std::time::Duration;

use mesh_types::WgKey;
use overlay::{Finding, PeerSnapshot, PeerState, Snapshot};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

type Whole = Gauge<i64, AtomicI64>;
type Real = Gauge<f64, AtomicU64>;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    verb: &'static str,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByResult {
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByWatch {
    watch: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByReason {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByEvent {
    event: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByState {
    region: String,
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByKind {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByRegion {
    region: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByDirection {
    direction: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BySeverity {
    severity: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByCode {
    code: String,
    severity: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Plan {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Peer {
    peer: String,
    region: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateOfPeer {
    peer: String,
    region: String,
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PeerBytes {
    peer: String,
    region: String,
    direction: &'static str,
}

/// What the tasks that speak to the API server count. Clones count into the same.
#[derive(Debug, Clone, Default)]
pub struct Api {
    requests: Family<Request, Counter>,
    writes: Family<ByResult, Counter>,
    heard: Family<ByWatch, Real>,
    relists: Family<ByWatch, Counter>,
    events: Family<ByResult, Counter>,
    up: Whole,
    nodes: Whole,
}

impl Api {
    /// A request ended; `result` is `ok` or the kind of failure.
    pub fn request(&self, verb: &'static str, result: &'static str) {
        self.requests.get_or_create(&Request { verb, result }).inc();
    }

    /// An attempt to write the announcement ended.
    pub fn written(&self, result: &'static str) {
        self.writes.get_or_create(&ByResult { result }).inc();
    }

    /// A watch was heard of at this Unix time.
    pub fn heard(&self, watch: &'static str, unix: Duration) {
        self.heard
            .get_or_create(&ByWatch { watch })
            .set(unix.as_secs_f64());
    }

    /// A watch begins with a listing again.
    pub fn relisted(&self, watch: &'static str) {
        self.relists.get_or_create(&ByWatch { watch }).inc();
    }

    /// What became of an Event.
    pub fn event(&self, result: &'static str) {
        self.events.get_or_create(&ByResult { result }).inc();
    }

    /// Is the watch of the nodes connected?
    pub fn up(&self, up: bool) {
        self.up.set(up.into());
    }

    /// Node objects known.
    pub fn nodes(&self, count: usize) {
        self.nodes.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    fn register(&self, registry: &mut Registry) {
        registry.register(
            "farspan_kubernetes_requests",
            "Requests to the API server by verb and result",
            self.requests.clone(),
        );
        registry.register(
            "farspan_announcement_writes",
            "Attempts to write this node's annotations",
            self.writes.clone(),
        );
        registry.register(
            "farspan_kubernetes_watch_heard_timestamp_seconds",
            "Unix time at which a watch was last heard of",
            self.heard.clone(),
        );
        registry.register(
            "farspan_kubernetes_relists",
            "Complete listings after the first one",
            self.relists.clone(),
        );
        registry.register(
            "farspan_kubernetes_events",
            "Events about refused claims",
            self.events.clone(),
        );
        registry.register(
            "farspan_kubernetes_api_up",
            "1 while the watch of the nodes is connected",
            self.up.clone(),
        );
        registry.register(
            "farspan_kubernetes_nodes",
            "Node objects known",
            self.nodes.clone(),
        );
    }
}

/// What the loop itself counts.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Of the tasks beside the loop.
    pub api: Api,
    converge_failures: Counter,
    bytes: Bytes,
}

/// What one reading shows beside the counters.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// The core's own view.
    pub snapshot: &'a Snapshot,
    /// Findings of the shell.
    pub findings: &'a [Finding],
    /// Counters of sockets and backends.
    pub edge: &'a [(&'static str, u64)],
    /// Generation of the plan, wanted and applied.
    pub plan: (u64, Option<u64>),
    /// In mode own: is the CNI file written?
    pub cni: Option<bool>,
    /// Name the peers?
    pub per_peer: bool,
}

impl Metrics {
    /// So many changes were refused by the kernel.
    pub fn converge_failures(&self, count: usize) {
        self.converge_failures
            .inc_by(u64::try_from(count).unwrap_or_default());
    }

    /// OpenMetrics text.
    pub fn text(&mut self, view: View<'_>) -> String {
        self.bytes.count(&view.snapshot.peers);
        let mut registry = Registry::default();
        build(&mut registry);
        mesh(&mut registry, &view);
        let bytes = Family::<ByDirection, Counter>::default();
        for (direction, count) in [("rx", self.bytes.rx), ("tx", self.bytes.tx)] {
            bytes
                .get_or_create(&ByDirection { direction })
                .inc_by(count);
        }
        registry.register_with_unit(
            "farspan_tunnel",
            "Bytes inside the tunnel",
            Unit::Bytes,
            bytes,
        );
        registry.register(
            "farspan_converge_failures",
            "Changes of the host that the kernel refused",
            self.converge_failures.clone(),
        );
        if view.snapshot.cluster.is_some() {
            self.api.register(&mut registry);
            cluster(&mut registry, &view);
        }
        if view.per_peer {
            peers(&mut registry, &view.snapshot.peers);
        }
        text(&registry)
    }
}

/// While another agent owns the device on this host.
pub fn standby() -> String {
    let mut registry = Registry::default();
    build(&mut registry);
    standing_by(&mut registry, true);
    text(&registry)
}

fn text(registry: &Registry) -> String {
    let mut out = String::new();
    // Writing into a String does not fail.
    _ = encode(&mut out, registry);
    out
}

fn build(registry: &mut Registry) {
    let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
    registry.register("farspan_build", "This program", version);
}

fn standing_by(registry: &mut Registry, is: bool) {
    let standby = Whole::default();
    standby.set(is.into());
    registry.register(
        "farspan_standby",
        "1 while another agent owns the device on this host",
        standby,
    );
}

fn region(peer: &PeerSnapshot) -> String {
    peer.region.clone().unwrap_or_default()
}

fn mesh(registry: &mut Registry, view: &View<'_>) {
    let View {
        snapshot,
        findings,
        edge,
        plan,
        ..
    } = view;
    let states = Family::<ByState, Whole>::default();
    let mut regions: Vec<String> = snapshot.peers.iter().map(region).collect();
    if regions.is_empty() {
        regions.push(String::new());
    }
    regions.sort();
    regions.dedup();
    for region in &regions {
        for state in STATES {
            let region = region.clone();
            let state = state.kind();
            _ = states.get_or_create(&ByState { region, state });
        }
    }
    let paths = Family::<ByKind, Whole>::default();
    let mut rtts: BTreeMap<String, Vec<Duration>> = BTreeMap::new();
    for peer in &snapshot.peers {
        let labels = ByState {
            region: region(peer),
            state: peer.state.kind(),
        };
        states.get_or_create(&labels).inc();
        if let Some(path) = &peer.path {
            let kind = path.kind.kind();
            paths.get_or_create(&ByKind { kind }).inc();
        }
        if let Some(rtt) = peer.rtt {
            rtts.entry(region(peer)).or_default().push(rtt);
        }
    }
    registry.register("farspan_peers", "Peers by region and state", states);
    registry.register("farspan_paths", "Connected peers by kind of path", paths);
    let medians = Family::<ByRegion, Real>::default();
    for (region, mut rtts) in rtts {
        rtts.sort();
        let median = rtts[rtts.len() / 2].as_secs_f64();
        medians.get_or_create(&ByRegion { region }).set(median);
    }
    registry.register_with_unit(
        "farspan_region_rtt",
        "Median round trip to the connected peers of a region",
        Unit::Seconds,
        medians,
    );
    let (severities, codes) = counted(snapshot.findings.iter().chain(findings.iter()));
    registry.register("farspan_findings", "Findings by severity", severities);
    registry.register("farspan_finding", "1 for each finding that stands", codes);
    let events = Family::<ByEvent, Counter>::default();
    let named = snapshot
        .counters
        .iter()
        .map(|(name, count)| (*name, *count));
    for (event, count) in named.chain(edge.iter().copied()) {
        events.get_or_create(&ByEvent { event }).inc_by(count);
    }
    registry.register(
        "farspan_events",
        "Named counters of the core and its sockets",
        events,
    );
    let generations = Family::<Plan, Whole>::default();
    for (state, generation) in [("wanted", plan.0), ("applied", plan.1.unwrap_or_default())] {
        generations
            .get_or_create(&Plan { state })
            .set(i64::try_from(generation).unwrap_or(i64::MAX));
    }
    registry.register(
        "farspan_plan_generation",
        "Generation of the host plan",
        generations,
    );
    standing_by(registry, false);
}

const STATES: [PeerState; 5] = [
    PeerState::Direct,
    PeerState::Relayed,
    PeerState::Connecting,
    PeerState::Idle,
    PeerState::Down,
];

fn counted<'a>(
    findings: impl Iterator<Item = &'a Finding>,
) -> (Family<BySeverity, Whole>, Family<ByCode, Whole>) {
    let severities = Family::<BySeverity, Whole>::default();
    let codes = Family::<ByCode, Whole>::default();
    for severity in ["info", "warning", "error"] {
        _ = severities.get_or_create(&BySeverity { severity });
    }
    for finding in findings {
        let severity = finding.severity.kind();
        severities.get_or_create(&BySeverity { severity }).inc();
        let code = finding.code.to_string();
        codes.get_or_create(&ByCode { code, severity }).set(1);
    }
    (severities, codes)
}

fn cluster(registry: &mut Registry, view: &View<'_>) {
    let Some(cluster) = &view.snapshot.cluster else {
        return;
    };
    let refused = Family::<ByReason, Counter>::default();
    for (&reason, &count) in &cluster.refused {
        refused.get_or_create(&ByReason { reason }).inc_by(count);
    }
    registry.register(
        "farspan_refused_claims",
        "Claims of Node objects that this node does not believe",
        refused,
    );
    let seq = Whole::default();
    seq.set(i64::try_from(cluster.published_seq.unwrap_or_default()).unwrap_or(i64::MAX));
    registry.register(
        "farspan_announcement_seq",
        "The seq in this node's annotations",
        seq,
    );
    let pending = Whole::default();
    pending.set(cluster.pending_write.into());
    registry.register(
        "farspan_announcement_pending",
        "1 while a changed announcement waits to be written",
        pending,
    );
    registry.register(
        "farspan_pod_network",
        "Who owns pods' addresses on this node",
        Info::new([("mode", cluster.pod_network.kind())]),
    );
    if let Some(ready) = view.cni {
        let gauge = Whole::default();
        gauge.set(ready.into());
        registry.register(
            "farspan_cni_ready",
            "1 when the CNI file is written and everything it names exists",
            gauge,
        );
    }
}

fn peers(registry: &mut Registry, peers: &[PeerSnapshot]) {
    let states = Family::<StateOfPeer, Whole>::default();
    let (rtts, losses, ages) = (
        Family::<Peer, Real>::default(),
        Family::<Peer, Real>::default(),
        Family::<Peer, Real>::default(),
    );
    let mtus = Family::<Peer, Whole>::default();
    let bytes = Family::<PeerBytes, Counter>::default();
    for snapshot in peers {
        let (peer, region) = (snapshot.name.clone(), region(snapshot));
        let labels = Peer {
            peer: peer.clone(),
            region: region.clone(),
        };
        if let Some(rtt) = snapshot.rtt {
            rtts.get_or_create(&labels).set(rtt.as_secs_f64());
        }
        if let Some(age) = snapshot.last_handshake {
            ages.get_or_create(&labels).set(age.as_secs_f64());
        }
        if let Some(loss) = snapshot.loss {
            losses.get_or_create(&labels).set(loss);
        }
        mtus.get_or_create(&labels).set(snapshot.mtu.into());
        for (direction, count) in [("rx", snapshot.rx_bytes), ("tx", snapshot.tx_bytes)] {
            let labels = PeerBytes {
                peer: peer.clone(),
                region: region.clone(),
                direction,
            };
            bytes.get_or_create(&labels).inc_by(count);
        }
        let state = snapshot.state.kind();
        let labels = StateOfPeer {
            peer,
            region,
            state,
        };
        states.get_or_create(&labels).set(1);
    }
    registry.register("farspan_peer_state", "1 for a peer's state", states);
    registry.register_with_unit("farspan_peer_rtt", "Round trip", Unit::Seconds, rtts);
    registry.register("farspan_peer_loss_ratio", "Loss, 0 to 1", losses);
    registry.register_with_unit(
        "farspan_peer_mtu",
        "What fits into one packet inside the tunnel",
        Unit::Bytes,
        mtus,
    );
    registry.register_with_unit(
        "farspan_peer_handshake_age",
        "Time since the last handshake",
        Unit::Seconds,
        ages,
    );
    registry.register_with_unit(
        "farspan_peer",
        "Bytes inside the tunnel",
        Unit::Bytes,
        bytes,
    );
}

/// Sums over peers that only grow, although peers come and go and their counters begin anew.
#[derive(Debug, Default)]
struct Bytes {
    rx: u64,
    tx: u64,
    seen: BTreeMap<WgKey, (u64, u64)>,
}

impl Bytes {
    fn count(&mut self, peers: &[PeerSnapshot]) {
        let grown = |now: u64, before: u64| now.checked_sub(before).unwrap_or(now);
        let seen: BTreeMap<_, _> = peers
            .iter()
            .map(|peer| (peer.public_key, (peer.rx_bytes, peer.tx_bytes)))
            .collect();
        for (key, (rx, tx)) in &seen {
            let before = self.seen.get(key).copied().unwrap_or_default();
            self.rx = self.rx.wrapping_add(grown(*rx, before.0));
            self.tx = self.tx.wrapping_add(grown(*tx, before.1));
        }
        self.seen = seen;
    }
}

#[cfg(test)]
mod tests {
    use mesh_types::DomainId;
    use mesh_types::cluster::PodNetwork;
    use overlay::ClusterSnapshot;

    use super::*;
    use crate::agent::status::tests::snapshot;

    fn text(metrics: &mut Metrics, snapshot: &Snapshot, per_peer: bool) -> String {
        metrics.text(View {
            snapshot,
            findings: &[],
            edge: &[("tun-dropped", 1)],
            plan: (4, Some(3)),
            cni: Some(true),
            per_peer,
        })
    }

    fn in_cluster() -> Snapshot {
        let mut snapshot = snapshot();
        snapshot.cluster = Some(ClusterSnapshot {
            domain: Some(DomainId([3; 16])),
            node: "n1".into(),
            pod_network: PodNetwork::Own,
            nodes: 3,
            refused: BTreeMap::from([("outside-policy", 2)]),
            published_seq: Some(7),
            pending_write: false,
        });
        snapshot
    }

    /// Names of the families that a text holds.
    fn families(text: &str) -> Vec<&str> {
        text.lines()
            .filter_map(|line| line.strip_prefix("# TYPE "))
            .filter_map(|rest| rest.split(' ').next())
            .collect()
    }

    #[test]
    fn every_family_is_documented_and_every_documented_one_is_written() {
        let documented: std::collections::BTreeSet<&str> = include_str!("../../docs/metrics.md")
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
            .collect();
        let mut metrics = Metrics::default();
        let api = metrics.api.clone();
        api.request("get", "ok");
        api.written("ok");
        api.heard("nodes", Duration::ZERO);
        api.relisted("nodes");
        api.event("written");
        let text = text(&mut metrics, &in_cluster(), true);
        let written: std::collections::BTreeSet<String> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE "))
            .filter_map(|rest| rest.split_once(' '))
            .map(|(name, kind)| match kind {
                "counter" => format!("{name}_total"),
                "info" => format!("{name}_info"),
                _ => name.to_owned(),
            })
            .collect();
        let written: std::collections::BTreeSet<&str> =
            written.iter().map(String::as_str).collect();
        assert_eq!(written, documented);
    }

    #[test]
    fn aggregates_name_no_peer() {
        let text = text(&mut Metrics::default(), &in_cluster(), false);
        for line in [
            "farspan_peers{region=\"\",state=\"direct\"} 1\n",
            "farspan_peers{region=\"\",state=\"down\"} 0\n",
            "farspan_paths{kind=\"ipv4\"} 1\n",
            "farspan_events_total{event=\"probe-refused\"} 3\n",
            "farspan_events_total{event=\"tun-dropped\"} 1\n",
            "farspan_tunnel_bytes_total{direction=\"tx\"} 20\n",
            "farspan_findings{severity=\"warning\"} 1\n",
            "farspan_finding{code=\"clock\",severity=\"warning\"} 1\n",
            "farspan_refused_claims_total{reason=\"outside-policy\"} 2\n",
            "farspan_announcement_seq 7\n",
            "farspan_cni_ready 1\n",
            "farspan_pod_network_info{mode=\"own\"} 1\n",
        ] {
            assert!(text.contains(line), "{line}{text}");
        }
        assert!(!text.contains("peer=\""));
        assert!(text.ends_with("# EOF\n"));
        let standalone = tests::text(&mut Metrics::default(), &snapshot(), false);
        assert!(!standalone.contains("kubernetes"));
        let mut sorted = families(&text);
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), families(&text).len());
    }

    #[test]
    fn bytes_only_grow_although_peers_go() {
        let mut metrics = Metrics::default();
        let mut now = snapshot();
        assert!(text(&mut metrics, &now, false).contains("direction=\"rx\"} 10\n"));
        now.peers[0].rx_bytes = 15;
        assert!(text(&mut metrics, &now, false).contains("direction=\"rx\"} 15\n"));
        // A session begins anew.
        now.peers[0].rx_bytes = 1;
        assert!(text(&mut metrics, &now, false).contains("direction=\"rx\"} 16\n"));
        now.peers.clear();
        assert!(text(&mut metrics, &now, false).contains("direction=\"rx\"} 16\n"));
    }

    #[test]
    fn what_the_tasks_count_is_read_by_the_loop() {
        let mut metrics = Metrics::default();
        let api = metrics.api.clone();
        api.request("apply", "invalid");
        api.request("apply", "invalid");
        api.written("ok");
        api.heard("nodes", Duration::from_secs(1_795_341_600));
        api.up(true);
        api.nodes(3);
        let text = text(&mut metrics, &in_cluster(), false);
        for line in [
            "farspan_kubernetes_requests_total{verb=\"apply\",result=\"invalid\"} 2\n",
            "farspan_announcement_writes_total{result=\"ok\"} 1\n",
            "farspan_kubernetes_watch_heard_timestamp_seconds{watch=\"nodes\"} 1795341600.0\n",
            "farspan_kubernetes_api_up 1\n",
            "farspan_kubernetes_nodes 3\n",
        ] {
            assert!(text.contains(line), "{line}{text}");
        }
    }
}
