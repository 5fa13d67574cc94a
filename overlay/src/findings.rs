//! What is wrong or worth knowing, from real state: each finding says what, how we know, and what to do.

mod cluster;

use std::collections::BTreeSet;
use std::time::Duration;

use ipnet::IpNet;
use mesh_types::plan::RouteKind;
use mesh_types::record::Signed;
use mesh_types::{Now, Source};
use peer_discovery::{Reason, Refusal};

use crate::overlay::Overlay;
use crate::snapshot::{Finding, PeerState, Severity};

/// 2024-01-01: no clock that is right shows less.
const CLOCK_MIN: Duration = Duration::from_secs(1_704_067_200);
/// Records further ahead than this come from a wrong clock, there or here.
const CLOCK_AHEAD: Duration = Duration::from_secs(300);
/// A peer without a path is worth a finding after this.
const NO_PATH_AFTER: Duration = Duration::from_secs(10);
/// Findings of one kind; the rest is counted in the last.
const LIKE_MAX: usize = 16;

/// A routine refusal is shown for so long, and so many of them.
const ROUTINE_SHOWN: Duration = Duration::from_secs(15 * 60);
const ROUTINE_MAX: usize = 4;

fn finding(code: &str, severity: Severity, message: String, remedy: &str) -> Finding {
    Finding {
        code: code.to_owned(),
        severity,
        message,
        remedy: remedy.to_owned(),
    }
}

/// What to do about a refusal.
fn remedy(reason: Reason) -> &'static str {
    match reason {
        Reason::Forged => {
            "find out which machine sends it, and revoke a member that passes it on: `farspan revoke NODE`"
        }
        Reason::Domain => {
            "nothing; if that mesh is meant to be trusted, name its authority in [mesh] authorities"
        }
        Reason::Stale => {
            "nothing: the newer one counts; a node that was restored from an old backup needs a restart of its agent"
        }
        Reason::Expired => {
            "renew it where the authority key is (`farspan up` there), or check this machine's clock"
        }
        Reason::Revoked => {
            "nothing if the node was revoked on purpose; else invite it again with `farspan invite`"
        }
        Reason::Unknown => "nothing if that node left; else invite it, or list it as a [[peer]]",
        Reason::PinMismatch | Reason::PinTwice => {
            "correct the [[peer]] entries, then reload: systemctl reload farspan"
        }
        Reason::DuplicateKey | Reason::OwnKey => {
            "give every machine a key of its own: `farspan key rotate` on one of the two"
        }
        Reason::Overlap | Reason::OwnRange => {
            "give each range to one node: change [node] routes, the [[peer]] entry, or the invitation"
        }
        Reason::Range => {
            "name the networks of the mesh only, not loopback, link-local or the whole internet"
        }
        Reason::Future => "set the clock right (chrony or systemd-timesyncd), there or here",
        Reason::Malformed | Reason::Source => {
            "run the same farspan version on both; else find out who sends it"
        }
        Reason::Policy => {
            "if the Node is right, allow it in the MeshPolicy; else find out who claims that"
        }
        Reason::Protected => {
            "nothing where the Node is the API server's machine; else find out who claims that"
        }
        Reason::DuplicateIdentity => {
            "give each machine an identity of its own: remove identity.key on the copy, and restart its agent"
        }
        Reason::Doubted => {
            "check that the kubeconfig names the right cluster, and whether its Nodes were deleted"
        }
        Reason::Full => "revoke nodes that are gone: `farspan revoke NODE`",
    }
}

impl Overlay {
    /// All findings, worst first.
    pub(crate) fn findings(&self, now: Now) -> Vec<Finding> {
        let mut out = Vec::new();
        self.peer_findings(&mut out, now);
        self.host_findings(&mut out);
        self.clock_findings(&mut out, now);
        self.record_findings(&mut out, now);
        self.own_findings(&mut out);
        self.turn_findings(&mut out);
        self.cluster_findings(&mut out);
        out.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
        out
    }

    fn peer_findings(&self, out: &mut Vec<Finding>, now: Now) {
        let mut without: usize = 0;
        for (id, peer) in self.directory.peers() {
            let Some(record) = self.peers.get(id) else {
                continue;
            };
            let name = &peer.name;
            let waited = now.mono.saturating_duration_since(record.since) >= NO_PATH_AFTER;
            let lacking = match record.state {
                PeerState::Down => true,
                PeerState::Connecting => waited,
                PeerState::Direct | PeerState::Relayed | PeerState::Idle => false,
            };
            if lacking && !peer.plain && record.path_since.is_some() {
                out.push(finding(
                    "no-handshake",
                    Severity::Warning,
                    format!("WireGuard does not connect to {name} although its agent answers on the path"),
                    "check that both sides have the same preshared key or none, and that no firewall passes STUN only",
                ));
            } else if lacking && !peer.plain {
                without += 1;
                if without <= LIKE_MAX {
                    let reason = self.reason(id, now);
                    out.push(finding(
                        "no-path",
                        Severity::Warning,
                        format!("no path to {name}: {reason}"),
                        "check that its agent runs; if both sit behind strict firewalls, open the UDP listen port on one of them",
                    ));
                }
            }
            if !self.compatible(id) {
                out.push(finding(
                    "protocol",
                    Severity::Error,
                    format!("{name} speaks no protocol version that this node knows"),
                    "run the same farspan version on both",
                ));
            }
            if peer.configured_key.is_some_and(|key| key != peer.key) {
                out.push(finding(
                    "key-in-file-stale",
                    Severity::Info,
                    format!("{name} has changed its key to {}; the [[peer]] entry still names the old one", peer.key),
                    "put the new public-key into the file; until then the node relies on its state",
                ));
            }
        }
        if without > LIKE_MAX {
            out.push(finding(
                "no-path",
                Severity::Warning,
                format!("no path to {} further peers", without - LIKE_MAX),
                "see `farspan status`",
            ));
        }
    }

    fn host_findings(&self, out: &mut Vec<Finding>) {
        let host = &self.host;
        if !host.strict_rp_filter.is_empty() {
            out.push(finding(
                "rp-filter",
                Severity::Warning,
                format!(
                    "rp_filter is strict on {}: the kernel may drop replies from peers",
                    host.strict_rp_filter.join(", ")
                ),
                "set net.ipv4.conf.IFACE.rp_filter=2, or net.ipv4.conf.all.src_valid_mark=1",
            ));
        }
        let carries = |ipv4: bool| {
            self.config
                .routes
                .iter()
                .any(|net| net.addr().is_ipv4() == ipv4)
        };
        if !host.forward_drop.is_empty()
            && !self.config.forward_accept
            && (carries(true) || carries(false))
        {
            out.push(finding(
                "forward-drop",
                Severity::Warning,
                format!("forwarded packets are dropped by policy of {}", host.forward_drop.join(", ")),
                "set forward-accept = true in [host], or accept forwarding from and to the overlay device in that firewall",
            ));
        }
        let off = [
            (carries(true) && !host.forwarding_v4, "net.ipv4.ip_forward"),
            (
                carries(false) && !host.forwarding_v6 && !host.ipv6_off,
                "net.ipv6.conf.all.forwarding",
            ),
        ];
        for (_, sysctl) in off.iter().filter(|(off, _)| *off && self.host_known) {
            out.push(finding(
                "forwarding-off",
                Severity::Warning,
                format!("this node carries routes for others, but {sysctl} is 0"),
                "set it to 1 with sysctl",
            ));
        }
        if let Some(port) = host.port_moved {
            out.push(finding(
                "port-moved",
                Severity::Info,
                format!("UDP port {} was taken, {port} is used instead", self.config.listen_port),
                "free the port or set listen-port in [node]; port forwardings must name the new one",
            ));
        }
        let foreign = host.foreign_routes.iter();
        let foreign = foreign.filter(|(prefix, _)| !self.is_neighbourhood(prefix));
        for (prefix, interface) in foreign.take(LIKE_MAX) {
            out.push(finding(
                "foreign-route",
                Severity::Warning,
                format!("the host has a route of its own to {prefix} by {interface}, inside the mesh's ranges"),
                "remove that route, or choose another range for the mesh; the mesh's route wins for its peers",
            ));
        }
        let failures = self.applied.iter().flat_map(|applied| &applied.failures);
        for failure in failures.take(LIKE_MAX) {
            out.push(finding(
                "apply-failed",
                Severity::Error,
                failure.clone(),
                "the agent tries again by itself; if it persists, see the agent's log",
            ));
        }
    }

    /// Does the mesh take nothing of a host's network but single addresses of Nodes in it? Those are the neighbours'.
    fn is_neighbourhood(&self, network: &IpNet) -> bool {
        let nodes = self.directory.peers().flat_map(|(_, peer)| &peer.node_ips);
        let nodes: BTreeSet<&IpNet> = nodes.collect();
        let taken = self.plan.routes.iter().filter(|route| match route.kind {
            RouteKind::Unicast { .. } | RouteKind::Blackhole => true,
            RouteKind::Throw => false,
        });
        let taken = taken.map(|route| &route.prefix);
        let mut met = taken.filter(|net| network.contains(*net) || net.contains(network));
        met.all(|net| network != net && nodes.contains(net))
    }

    /// Does every start of an agent bring refusals of this kind? In a cluster the API server says who is a Node, before
    /// or after members tell of it, and its copies of records are older than theirs.
    fn is_expected(&self, reason: Reason) -> bool {
        self.config.kubernetes.is_some() && matches!(reason, Reason::Stale | Reason::Unknown)
    }

    fn clock_findings(&self, out: &mut Vec<Finding>, now: Now) {
        let remedy =
            "set the clock right (chrony or systemd-timesyncd), on this node and on the other";
        if now.unix < CLOCK_MIN {
            out.push(finding(
                "clock",
                Severity::Error,
                "this machine's clock shows a date before 2024".to_owned(),
                remedy,
            ));
            return;
        }
        let limit = (now.unix + CLOCK_AHEAD).as_millis();
        let ahead = |version: u64| u128::from(version) > limit;
        let announcements = self.directory.announcements().map(Signed::record);
        let memberships = self.directory.memberships().map(Signed::record);
        let from_future = announcements
            .filter(|record| ahead(record.seq))
            .map(|record| record.identity)
            .chain(
                memberships
                    .filter(|record| ahead(record.serial))
                    .map(|record| record.identity),
            )
            .next();
        if let Some(identity) = from_future {
            out.push(finding(
                "clock",
                Severity::Warning,
                format!("a valid record of the node with identity {identity} is dated more than 5 minutes ahead: its clock or ours was wrong"),
                remedy,
            ));
        } else if self.host_known && !self.host.clock_synchronised {
            out.push(finding(
                "clock",
                Severity::Info,
                "the kernel says that its clock is not synchronised".to_owned(),
                remedy,
            ));
        }
    }

    fn record_findings(&self, out: &mut Vec<Finding>, now: Now) {
        let add = |out: &mut Vec<Finding>, refusal: &Refusal, severity| {
            out.push(Finding {
                code: format!("refused-{}", refusal.reason.kind()),
                severity,
                message: match refusal.count {
                    0 | 1 => refusal.sentence.clone(),
                    count => format!("{} ({count} times)", refusal.sentence),
                },
                remedy: remedy(refusal.reason).to_owned(),
            });
        };
        for refusal in self.directory.conflicts().iter().take(LIKE_MAX) {
            add(out, refusal, Severity::Warning);
        }
        let newest = || self.directory.refusals().iter().rev();
        let telling = newest().filter(|refusal| !refusal.reason.is_routine());
        for refusal in telling.take(LIKE_MAX) {
            add(out, refusal, Severity::Warning);
        }
        // Nodes that left are ordinary: worth a line while that is fresh.
        let routine = newest().filter(|refusal| {
            let fresh = now.unix.saturating_sub(refusal.at) < ROUTINE_SHOWN;
            refusal.reason.is_routine() && fresh && !self.is_expected(refusal.reason)
        });
        for refusal in routine.take(ROUTINE_MAX) {
            add(out, refusal, Severity::Info);
        }
        for waiting in self
            .petitions(now)
            .unwrap_or_default()
            .iter()
            .take(LIKE_MAX)
        {
            let wants = if waiting.member {
                "wishes to carry more than its membership says"
            } else {
                "waits to be let in"
            };
            out.push(finding(
                "waits-for-approval",
                Severity::Info,
                format!("{} {wants}, by {}", waiting.name, waiting.by),
                "see what it would carry with `farspan approve`, then approve or refuse it",
            ));
        }
        for refused in self.joining.refused(now) {
            out.push(finding(
                "refused-join",
                Severity::Warning,
                refused,
                "if you expected this machine, make it a new invitation with `farspan invite`; else a token has leaked, and was of no use",
            ));
        }
    }

    fn own_findings(&self, out: &mut Vec<Finding>) {
        if self.own_ipv4().is_none() && self.config.kubernetes.is_none() {
            out.push(finding(
                "no-ipv4-address",
                Severity::Warning,
                "this node has no overlay IPv4 address, so it sends no IPv4 to peers".to_owned(),
                "join a mesh, or set addresses in [node]",
            ));
        }
        if self.revoked {
            out.push(finding(
                "revoked",
                Severity::Error,
                "the mesh's authority has revoked this node".to_owned(),
                "ask for a new invitation, or remove farspan with `farspan down`",
            ));
        }
        if let Some(key) = self.rotation.next() {
            out.push(finding(
                "next-key",
                Severity::Info,
                format!("a key rotation is under way; the next key is {key}"),
                "nothing; it ends within 15 seconds",
            ));
        }
        let membership = self.directory.own_membership();
        let vouched = |net: &IpNet| {
            membership.is_none_or(|member| member.ranges.iter().any(|range| range.contains(net)))
        };
        for net in self.config.routes.iter().filter(|net| !vouched(net)) {
            out.push(finding(
                "route-not-vouched",
                Severity::Warning,
                format!("[node] routes names {net}, but the authority does not vouch for it: other members refuse it"),
                "run `farspan approve` on the machine with the authority key, where this node's wish waits, or drop the route",
            ));
        }
        let unresolved = self
            .stun
            .iter()
            .filter(|(_, addresses)| addresses.is_empty());
        for (name, _) in unresolved.take(LIKE_MAX) {
            out.push(finding(
                "stun-unresolved",
                Severity::Warning,
                format!("the STUN server {name} has no usable address"),
                "check its name in [nat] stun and the resolver; private addresses count only when given as such",
            ));
        }
        let only_config = self
            .directory
            .peers()
            .all(|(_, peer)| peer.source == Source::Config);
        if membership.is_none() && self.state.authority.is_some() && only_config && !self.revoked {
            out.push(finding(
                "not-a-member",
                Severity::Warning,
                "an authority is known, but this node holds no valid membership".to_owned(),
                "join with a new invitation",
            ));
        }
    }
}
