//! `farspan invite`: only the token goes to standard output.

use anyhow::Result;

use super::{agent, print};
use crate::api;
use crate::cli::{Global, InviteArgs};
use crate::config::{ConfigError, value};

pub fn run(global: &Global, args: &InviteArgs) -> Result<()> {
    let routes = args
        .routes
        .iter()
        .map(|route| value::range(&route.to_string()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|why| ConfigError(format!("--routes: {why}")))?;
    let body = api::Invite {
        routes,
        lifetime_s: args.lifetime.as_secs(),
    };
    let answer: api::Token = agent(global)?.post("/invite", &body)?;
    print(&format!("{}\n", answer.token))?;
    if answer.approval {
        eprintln!(
            "This machine does not hold the mesh's authority key: whoever comes with the token waits until `farspan approve` is run on the machine that does."
        );
    }
    eprintln!(
        "Valid once, for {}. On the other machine: sudo farspan join, and paste it.",
        words(args.lifetime.as_secs())
    );
    Ok(())
}

fn words(seconds: u64) -> String {
    match seconds {
        s if s % 86_400 == 0 && s > 86_400 => format!("{} days", s / 86_400),
        s if s % 3600 == 0 => format!("{} hours", s / 3600),
        s if s % 60 == 0 => format!("{} minutes", s / 60),
        s => format!("{s} seconds"),
    }
}
