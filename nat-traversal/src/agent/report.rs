//! What status shows of one peer.

use std::time::{Duration, Instant};

use super::PathAgent;
use super::path::InUse;
use crate::api::{CandidateReport, PeerReport};

impl PathAgent {
    /// For status.
    pub(crate) fn report(&self, now: Instant) -> PeerReport {
        let mut candidates: Vec<_> = self
            .remotes
            .values()
            .map(|remote| CandidateReport {
                candidate: remote.candidate,
                kind: remote.kind,
                sent: remote.sent,
                answered: remote.answered,
                rtt: remote.rtt,
            })
            .collect();
        candidates.sort_by_key(|report| {
            let rtt = report.rtt.unwrap_or(Duration::MAX);
            (report.rtt.is_none(), report.kind, rtt, report.candidate)
        });
        PeerReport {
            path: self.path().cloned(),
            suspect: self.is_suspect(),
            active: self.activity.is_active(now),
            candidates,
            probes_sent: self.probes_sent,
            probes_answered: self.probes_answered,
            loss: self.in_use.as_ref().map_or(0, InUse::loss),
            last_heard: self.last_heard,
            connect: self.connect,
            error: self.error(),
        }
    }

    fn error(&self) -> Option<String> {
        if self.in_use.is_some() {
            return None;
        }
        let addresses = self.remotes.len() as u64;
        Some(if self.current.is_none() {
            "not tried: its WireGuard key makes no shared secret with ours; check the key"
                .to_owned()
        } else if addresses == 0 {
            "not tried: no usable address is known; give it an endpoint, or reach a node both know"
                .to_owned()
        } else if self.remotes.values().all(|remote| remote.sent == 0) {
            format!(
                "about to probe {}",
                count(addresses, "address", "addresses")
            )
        } else if self.last_heard.is_none() {
            format!(
                "{} to {} brought no answer; is the node up, does a firewall drop its UDP port, \
                 can a node both know introduce them?",
                count(self.probes_sent, "probe", "probes"),
                count(addresses, "address", "addresses")
            )
        } else {
            format!(
                "the path broke and no answer comes from {}; trying on",
                count(addresses, "known address", "known addresses")
            )
        })
    }
}

fn count(number: impl Into<u64>, one: &str, many: &str) -> String {
    match number.into() {
        1 => format!("1 {one}"),
        number => format!("{number} {many}"),
    }
}
