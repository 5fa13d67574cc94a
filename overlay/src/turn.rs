//! TURN servers: what the plan and people hear of them.

use mesh_types::turn::TurnTransport;
use nat_traversal::{Path, TurnProblem, TurnReport};

use crate::overlay::Overlay;
use crate::snapshot::{Finding, PathKind, PathSnapshot, Severity};

/// What is told of all servers that share it.
struct Trouble {
    code: &'static str,
    severity: Severity,
    /// Follows the servers' names.
    says: String,
    remedy: &'static str,
}

impl Overlay {
    pub(crate) fn turn_findings(&self, out: &mut Vec<Finding>) {
        let reports = self.traversal.turn_report();
        let served = reports.iter().any(|report| report.relayed.is_some());
        let mut told: Vec<(Trouble, Vec<String>)> = Vec::new();
        for TurnReport {
            address, problem, ..
        } in &reports
        {
            let Some(problem) = problem else { continue };
            let trouble = trouble(problem, served);
            let same = |(known, _): &&mut (Trouble, Vec<String>)| {
                known.code == trouble.code && known.says == trouble.says
            };
            match told.iter_mut().find(same) {
                Some((_, names)) => names.push(address.to_string()),
                None => told.push((trouble, vec![address.to_string()])),
            }
        }
        out.extend(told.into_iter().map(|(trouble, names)| {
            let (server, names) = match names.as_slice() {
                [one] => ("the TURN server", one.clone()),
                all => ("each of the TURN servers", all.join(", ")),
            };
            Finding {
                code: trouble.code.to_owned(),
                severity: trouble.severity,
                message: format!("{server} {names} {}", trouble.says),
                remedy: trouble.remedy.to_owned(),
            }
        }));
    }

    pub(crate) fn path_view(&self, path: &Path) -> PathSnapshot {
        let turn = path.turn.as_ref();
        PathSnapshot {
            kind: path_kind(path),
            remote: self.traversal.real_address(path.remote),
            via: match turn {
                Some(turn) => Some(turn.server.to_string()),
                None => path.via.map(|relay| self.peer_name(&relay)),
            },
        }
    }
}

/// The kind of a path, as people and scripts see it.
pub(crate) fn path_kind(path: &Path) -> PathKind {
    let transport = path.turn.as_ref().map(|turn| turn.server.transport);
    match path.kind {
        nat_traversal::PathKind::Lan => PathKind::Lan,
        nat_traversal::PathKind::Ipv6 => PathKind::Ipv6,
        nat_traversal::PathKind::Ipv4 => PathKind::Ipv4,
        nat_traversal::PathKind::NodeRelay => PathKind::NodeRelay,
        nat_traversal::PathKind::TurnUdp => PathKind::TurnUdp,
        nat_traversal::PathKind::Tcp => PathKind::Tcp,
        nat_traversal::PathKind::TurnTcp if transport == Some(TurnTransport::Tls) => {
            PathKind::TurnTls
        }
        nat_traversal::PathKind::TurnTcp => PathKind::TurnTcp,
    }
}

fn trouble(problem: &TurnProblem, served: bool) -> Trouble {
    // What another server makes up for is worth knowing, no more.
    let outage = if served {
        Severity::Info
    } else {
        Severity::Warning
    };
    match problem {
        TurnProblem::Unresolved => Trouble {
            code: "turn-unresolved",
            severity: outage,
            says: "has no usable address: its name was looked up in vain".to_owned(),
            remedy: "check its name in [relay] turn and this machine's resolver (/etc/resolv.conf)",
        },
        TurnProblem::Silent => Trouble {
            code: "turn-unreachable",
            severity: outage,
            says: "does not answer".to_owned(),
            remedy: "check that it runs, and that no firewall drops what goes to its port; where UDP is blocked, name one with ?transport=tcp or turns: too",
        },
        TurnProblem::Unreachable(reason) => Trouble {
            code: "turn-unreachable",
            severity: outage,
            says: format!("cannot be connected to: {reason}"),
            remedy: "check that it runs and listens on that port, and that no firewall is in the way",
        },
        TurnProblem::Certificate(reason) => Trouble {
            code: "turn-certificate",
            severity: Severity::Warning,
            says: format!("shows a certificate that this node does not trust: {reason}"),
            remedy: "give the server a certificate for the name in [relay] turn, or add the authority that signed it to this machine's trusted ones",
        },
        TurnProblem::Credentials(code) => Trouble {
            code: "turn-credentials",
            severity: Severity::Warning,
            says: format!("refuses the credentials made from its secret (error {code})"),
            remedy: "let secret-file in [relay] turn hold the server's own secret (coturn: static-auth-secret, with use-auth-secret), and check both clocks",
        },
        TurnProblem::NoCredentials => Trouble {
            code: "turn-credentials",
            severity: Severity::Warning,
            says: "wants credentials, and none are configured".to_owned(),
            remedy: "name the file with the server's secret as secret-file in [relay] turn",
        },
        TurnProblem::Refused(code, reason) => Trouble {
            code: "turn-refused",
            severity: outage,
            says: format!("refuses to relay for this node: {reason} (error {code})"),
            remedy: "see the server's log; quotas and lists of denied addresses are the usual causes",
        },
    }
}
