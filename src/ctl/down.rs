//! `farspan down`: removes everything farspan put on this host.

use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use serde_json::json;

use super::client::Client;
use super::{must_be_root, print, service};
use crate::agent::commands::lines_of_removal;
use crate::agent::{portmap, tunnel};
use crate::api;
use crate::cli::{AgentArgs, Global};
use crate::config::Config;

const STOP_WITHIN: Duration = Duration::from_secs(10);
const ASK_EVERY: Duration = Duration::from_millis(50);

pub fn run(global: &Global) -> Result<()> {
    must_be_root("down")?;
    let config = Config::load(global, &AgentArgs::default())?;
    let removed = remove(&config)?;
    if service::has_unit() && config.interface == mesh_types::consts::INTERFACE {
        service::systemctl(&["disable", "--now"])?;
    }
    if removed.is_empty() {
        return print("Nothing of farspan was left on this host.\n");
    }
    for line in removed {
        print(&format!("{line}\n"))?;
    }
    Ok(())
}

/// By the agent where one runs, else directly.
pub fn remove(config: &Config) -> Result<Vec<String>> {
    let agent = Client::new(config.socket.clone());
    if !agent.alive() {
        return tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("Failed to start the runtime")?
            .block_on(async {
                let removed = tunnel::remove(&config.interface).await?;
                let lines = Vec::from_iter(portmap::release_left(&config.state_dir).await);
                lines_of_removal(removed, lines).map_err(|error| anyhow!(error))
            });
    }
    let answer: api::Done = agent.post("/down", &json!({}))?;
    let mut left = STOP_WITHIN;
    while agent.alive() {
        let Some(rest) = left.checked_sub(ASK_EVERY) else {
            bail!(
                "the agent removed everything but has not stopped within {} s; see its log",
                STOP_WITHIN.as_secs()
            );
        };
        left = rest;
        std::thread::sleep(ASK_EVERY);
    }
    Ok(answer.notes)
}
