//! `farspan preflight`: what a cluster is like, and what farspan would do in it. It changes nothing.

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use serde::Serialize;

use super::cluster::Cluster;
use super::{blocking_runtime, show, status};
use crate::api;
use crate::cli::PreflightArgs;

mod facts;
mod judge;
mod local;

use facts::Facts;
use local::Local;

/// Something is in the way.
const FAULT: u8 = 3;

/// What is known, and what follows from it.
#[derive(Debug, Serialize)]
struct Report {
    cluster: Facts,
    this_node: Option<Local>,
    /// The mode that the agents would take, or were told to.
    pod_network: String,
    /// What would be done, one sentence each.
    plan: Vec<String>,
    /// What installs it.
    command: String,
    findings: Vec<api::Finding>,
}

pub fn run(args: &PreflightArgs) -> Result<ExitCode> {
    let cluster = blocking_runtime()?.block_on(async {
        let cluster = Cluster::connect(&args.cluster).await?;
        facts::gather(&cluster).await
    })?;
    let this_node = args
        .this_node
        .then(|| local::look(Path::new(&args.cni_conf_dir)));
    let report = judge::judge(cluster, this_node, args.pod_network);
    show(args.output, &report, || table(&report))?;
    Ok(if blocked(&report) {
        ExitCode::from(FAULT)
    } else {
        ExitCode::SUCCESS
    })
}

fn blocked(report: &Report) -> bool {
    report.findings.iter().any(|one| one.severity == "error")
}

fn table(report: &Report) -> String {
    let facts = &report.cluster;
    let list = |values: &[String]| {
        if values.is_empty() {
            "unknown".to_owned()
        } else {
            values.join(", ")
        }
    };
    let marks: Vec<String> = facts
        .marks
        .iter()
        .map(|mark| format!("{:#x}/{:#x} ({})", mark.mark, mark.mask, mark.owner))
        .collect();
    let mut rows = vec![
        (
            "API server",
            format!("{}, {}", facts.api_server, facts.version),
        ),
        ("  reached at", list(&facts.api_addresses)),
        ("Nodes", nodes_in_words(facts)),
        ("CNI", facts.cni.clone()),
        ("IPAM", facts.ipam.in_words()),
        ("kube-proxy", facts.kube_proxy.clone()),
        ("Marks in use", list(&marks)),
        (
            "MTU of pods",
            facts
                .mtu
                .map_or_else(|| "not configured".to_owned(), |mtu| mtu.to_string()),
        ),
        ("Pod ranges", list(&facts.pod_cidrs)),
        ("Service ranges", list(&facts.service_cidrs)),
    ];
    if let Some(local) = &report.this_node {
        rows.extend(local.rows());
    }
    rows.push(("Pod network", report.pod_network.clone()));
    let mut out = String::new();
    for (title, text) in rows {
        _ = writeln!(out, "{title:<14} {text}");
    }
    out.push_str("\nWhat would be done:\n");
    let width = status::terminal_width();
    for sentence in &report.plan {
        out.push_str(&status::wrapped(&format!("- {sentence}"), 2, width));
    }
    out.push_str(&status::findings(&report.findings, width));
    let when = if blocked(report) {
        "Install, once the errors are mended"
    } else {
        "Install"
    };
    _ = writeln!(out, "\n{when}:\n  {}", report.command);
    out
}

fn nodes_in_words(facts: &Facts) -> String {
    let ready = facts.nodes.iter().filter(|node| node.ready).count();
    let mut regions: Vec<&str> = facts
        .nodes
        .iter()
        .filter_map(|node| node.region.as_deref())
        .collect();
    regions.sort_unstable();
    regions.dedup();
    let where_ = if regions.is_empty() {
        "no regions".to_owned()
    } else {
        format!("regions {}", regions.join(", "))
    };
    format!("{}, {ready} ready, {where_}", facts.nodes.len())
}

#[cfg(test)]
mod tests;
