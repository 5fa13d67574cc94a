//! `farspan doctor`: the findings of this node, or why one peer is reached as it is.

use std::process::ExitCode;

use anyhow::Result;

use super::{agent, show, status};
use crate::api;
use crate::cli::{DoctorArgs, Global};

/// A fault was found.
const FAULT: u8 = 3;

pub fn run(global: &Global, args: &DoctorArgs) -> Result<ExitCode> {
    let agent = agent(global)?;
    let width = status::terminal_width();
    let findings = match &args.peer {
        Some(peer) => {
            let body = api::Doctor { peer: peer.clone() };
            let diagnosis: api::Diagnosis = agent.post("/doctor", &body)?;
            show(args.output, &diagnosis, || {
                sentences(&diagnosis.findings, width)
            })?;
            diagnosis.findings
        }
        None => {
            let status: api::Status = agent.get("/status")?;
            let all = api::Findings {
                findings: status.findings,
            };
            show(args.output, &all, || {
                if all.findings.is_empty() {
                    "Nothing is wrong with this node. About one peer: farspan doctor PEER\n".into()
                } else {
                    status::findings(&all.findings, width)
                        .trim_start()
                        .to_owned()
                }
            })?;
            all.findings
        }
    };
    let fault = findings.iter().any(|finding| finding.severity != "info");
    Ok(if fault {
        ExitCode::from(FAULT)
    } else {
        ExitCode::SUCCESS
    })
}

/// A story, one paragraph a finding; what is wrong is marked, and what would change it stands below it.
fn sentences(findings: &[api::Finding], width: usize) -> String {
    let mut out = String::new();
    for finding in findings {
        let api::Finding {
            code,
            severity,
            message,
            remedy,
        } = finding;
        let marked = match severity.as_str() {
            "info" => message.clone(),
            wrong => format!("{wrong} [{code}]: {message}"),
        };
        out.push_str(&status::wrapped(&marked, 0, width));
        if !remedy.is_empty() {
            out.push_str(&status::wrapped(remedy, 2, width));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_marked_and_what_helps_stands_below() {
        let finding = |severity: &str, remedy: &str| api::Finding {
            code: "connection".into(),
            severity: severity.into(),
            message: "b is not reached".into(),
            remedy: remedy.into(),
        };
        let text = sentences(&[finding("info", ""), finding("error", "Start it.")], 80);
        assert_eq!(
            text,
            "b is not reached\nerror [connection]: b is not reached\n  Start it.\n"
        );
    }
}
