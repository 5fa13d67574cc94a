//! `farspan revoke`.

use anyhow::Result;

use super::{agent, print};
use crate::api;
use crate::cli::Global;

pub fn run(global: &Global, node: String) -> Result<()> {
    let answer: api::Done = agent(global)?.post("/revoke", &api::Revoke { node })?;
    print(&format!("{}\n", answer.message))
}
