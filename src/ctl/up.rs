//! `farspan up`.

use std::process::Child;
use std::time::Duration;

use anyhow::{Result, bail};

use super::client::Client;
use super::{must_be_root, print, service, status};
use crate::api;
use crate::cli::{AgentArgs, Global, UpArgs};
use crate::config::Config;

/// A first plan takes milliseconds; key generation, module loading and a slow disk fit in as well.
const READY_WITHIN: Duration = Duration::from_secs(20);
const ASK_EVERY: Duration = Duration::from_millis(100);

pub fn run(global: &Global, args: &UpArgs) -> Result<()> {
    if args.foreground || args.agent.dry_run {
        return crate::agent::run(global, &args.agent);
    }
    let config = Config::load(global, &args.agent)?;
    must_be_root("up")?;
    let agent = Client::new(config.socket.clone());
    if agent.alive() {
        eprintln!("farspan: the agent runs already");
    } else {
        start(global, &args.agent, &config)?;
    }
    let status: api::Status = agent.get("/status")?;
    print(&status::table(&status))
}

/// How the agent was started.
#[derive(Debug)]
pub enum Started {
    /// As a unit.
    Unit,
    /// As a process of its own.
    Detached,
}

/// Starts the agent and waits for its first plan.
pub fn start(global: &Global, args: &AgentArgs, config: &Config) -> Result<Started> {
    let agent = Client::new(config.socket.clone());
    let special = global.config.is_some()
        || global.state_dir.is_some()
        || global.interface.is_some()
        || global.socket.is_some()
        || args.name.is_some()
        || args.region.is_some()
        || args.backend.is_some()
        || args.listen_port.is_some()
        || args.metrics_listen.is_some();
    // The unit runs the default agent; flags ask for another one.
    if service::has_unit() && !special {
        service::systemctl(&["enable", "--now"])?;
        wait(&agent, None, "journalctl -u farspan")?;
        return Ok(Started::Unit);
    }
    if service::has_unit() {
        eprintln!(
            "farspan: flags ask for another agent than {}: it runs detached and is not started at boot",
            service::UNIT
        );
    }
    let (mut child, log) = service::detach(global, args, config)?;
    wait(&agent, Some((&mut child, &log)), &log.display().to_string())?;
    Ok(Started::Detached)
}

fn wait(
    agent: &Client,
    mut child: Option<(&mut Child, &std::path::Path)>,
    log: &str,
) -> Result<()> {
    let mut left = READY_WITHIN;
    loop {
        if agent.alive() && agent.get::<api::Done>("/readyz").is_ok() {
            return Ok(());
        }
        if let Some((child, log)) = &mut child
            && child.try_wait().is_ok_and(|exit| exit.is_some())
        {
            bail!("{}", last_words(log));
        }
        let Some(rest) = left.checked_sub(ASK_EVERY) else {
            bail!(
                "the agent was started but made no plan within {} s; see {log}",
                READY_WITHIN.as_secs()
            );
        };
        left = rest;
        std::thread::sleep(ASK_EVERY);
    }
}

/// The sentence with which the agent gave up: the last line of its log.
fn last_words(log: &std::path::Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let last = text.lines().next_back().unwrap_or("");
    match last.strip_prefix("farspan: ") {
        Some(sentence) => sentence.to_owned(),
        None => format!("the agent stopped; see {}", log.display()),
    }
}
