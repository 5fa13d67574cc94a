//! `farspan ping`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;

use super::{agent, print};
use crate::api;
use crate::cli::{Global, PingArgs};

pub fn run(global: &Global, args: &PingArgs) -> Result<ExitCode> {
    let agent = agent(global)?;
    let mut answered = 0;
    let mut silent = 0;
    for round in 0..args.count {
        if round > 0 {
            std::thread::sleep(Duration::from_secs(1));
        }
        let body = api::Ping {
            peer: args.peer.clone(),
        };
        match agent.post::<api::Pong>("/ping", &body) {
            Ok(pong) => {
                answered += 1;
                print(&sentence(&pong))?;
            }
            // Silence may end; a refusal, such as of a name nobody has, will not.
            Err(error) if error.to_string().starts_with(SILENCE) => {
                silent += 1;
                if round + 1 == args.count && answered == 0 {
                    return Err(error);
                }
                print(&format!("{error}\n"))?;
            }
            Err(error) => return Err(error),
        }
    }
    if silent > 0 {
        print(&format!("{answered} of {} answered\n", args.count))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// How the agent begins to say that nothing came back.
const SILENCE: &str = "no answer from";

fn sentence(pong: &api::Pong) -> String {
    let address = pong
        .address
        .as_ref()
        .map(|ip| format!(" ({ip})"))
        .unwrap_or_default();
    let path = match (&pong.remote, &pong.path) {
        (Some(remote), Some(path)) => format!(" via {remote} direct {path}"),
        (Some(remote), None) => format!(" via {remote}"),
        (None, Some(path)) => format!(" direct {path}"),
        (None, None) => String::new(),
    };
    let time = if pong.rtt_ms < 10.0 {
        format!("{:.1}", pong.rtt_ms)
    } else {
        format!("{:.0}", pong.rtt_ms)
    };
    format!("pong from {}{address}{path} in {time} ms\n", pong.peer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pong_says_where_it_came_along() {
        let pong = api::Pong {
            peer: "B".into(),
            address: Some("10.77.0.2".into()),
            rtt_ms: 12.2,
            path: Some("ipv4".into()),
            remote: Some("203.0.113.9:22514".into()),
        };
        assert_eq!(
            sentence(&pong),
            "pong from B (10.77.0.2) via 203.0.113.9:22514 direct ipv4 in 12 ms\n"
        );
    }
}
