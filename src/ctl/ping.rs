//! `farspan ping`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;

use super::client::Client;
use super::{agent, print};
use crate::api;
use crate::cli::{Global, PingArgs};

/// Pings are so far apart,
const APART: Duration = Duration::from_secs(1);
/// and the path is looked at so often in between.
const LOOK_EVERY: Duration = Duration::from_millis(200);

pub fn run(global: &Global, args: &PingArgs) -> Result<ExitCode> {
    let agent = agent(global)?;
    let mut watched = Watched::default();
    let mut answered = 0;
    let mut silent = 0;
    for round in 0..args.count {
        if round > 0 {
            let mut left = APART;
            while let Some(rest) = left.checked_sub(LOOK_EVERY) {
                left = rest;
                std::thread::sleep(LOOK_EVERY);
                if let Some(change) = watched.look(&agent) {
                    print(&change)?;
                }
            }
        }
        let body = api::Ping {
            peer: args.peer.clone(),
        };
        match agent.post::<api::Pong>("/ping", &body) {
            Ok(pong) => {
                answered += 1;
                watched.name = Some(pong.peer.clone());
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

/// The path as it was last seen.
#[derive(Debug, Default)]
struct Watched {
    /// The peer's label, once it is known.
    name: Option<String>,
    state: String,
    path: Option<api::Path>,
}

impl Watched {
    /// A line where the path has changed since the last look.
    fn look(&mut self, agent: &Client) -> Option<String> {
        let peer = self.name.clone()?;
        // An agent that is gone is told of by the next ping.
        let diagnosis: api::Diagnosis = agent.post("/doctor", &api::Doctor { peer }).ok()?;
        self.take(diagnosis.peer)
    }

    fn take(&mut self, peer: api::Peer) -> Option<String> {
        let name = self.name.as_ref()?;
        let first = self.state.is_empty();
        let same = self.state == peer.state && self.path == peer.path;
        let before = std::mem::replace(&mut self.state, peer.state);
        let line = format!(
            "path to {name}: was {}, is {}\n",
            way(&before, self.path.as_ref()),
            way(&self.state, peer.path.as_ref())
        );
        self.path = peer.path;
        (!first && !same).then_some(line)
    }
}

/// `direct ipv4 203.0.113.9:22514`, `relayed node-relay by hub at 203.0.113.5:28672`, or a state.
fn way(state: &str, path: Option<&api::Path>) -> String {
    let Some(api::Path { kind, remote, via }) = path else {
        return state.to_owned();
    };
    match via {
        Some(via) => format!("{state} {kind} by {via} at {remote}"),
        None => format!("{state} {kind} {remote}"),
    }
}

/// How the agent begins to say that nothing came back.
const SILENCE: &str = "no answer from";

fn sentence(pong: &api::Pong) -> String {
    let address = pong
        .address
        .as_ref()
        .map(|ip| format!(" ({ip})"))
        .unwrap_or_default();
    let relayed = pong.path.as_deref().is_some_and(|path| {
        pong.via.is_some() || matches!(path, "node-relay" | "turn-udp" | "turn-tcp" | "turn-tls")
    });
    let path = match (&pong.remote, &pong.path) {
        (Some(remote), Some(path)) if relayed => {
            let via = pong.via.as_ref();
            let via = via.map(|via| format!(" {via} at")).unwrap_or_default();
            format!(" via{via} {remote} relayed {path}")
        }
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
            via: None,
        };
        assert_eq!(
            sentence(&pong),
            "pong from B (10.77.0.2) via 203.0.113.9:22514 direct ipv4 in 12 ms\n"
        );
        let relayed = api::Pong {
            path: Some("node-relay".into()),
            via: Some("hub".into()),
            ..pong
        };
        assert_eq!(
            sentence(&relayed),
            "pong from B (10.77.0.2) via hub at 203.0.113.9:22514 relayed node-relay in 12 ms\n"
        );
    }

    #[test]
    fn an_upgrade_is_told_once() {
        let peer = |state: &str, kind: &str, via: Option<&str>| -> api::Peer {
            serde_json::from_value(serde_json::json!({
                "name": "b", "public_key": "", "region": "", "source": "", "state": state, "identity": "",
                "reason": "", "path": { "kind": kind, "remote": "203.0.113.9:1", "via": via }, "rtt_ms": null,
                "loss": null, "mtu": 1420, "last_handshake_s": null, "rx_bytes": 0, "tx_bytes": 0,
                "allowed_ips": [], "since_s": 0, "connect_ms": null
            }))
            .unwrap()
        };
        let mut watched = Watched {
            name: Some("b".into()),
            ..Watched::default()
        };
        let relayed = || peer("relayed", "node-relay", Some("hub"));
        assert_eq!(watched.take(relayed()), None);
        assert_eq!(watched.take(relayed()), None);
        assert_eq!(
            watched.take(peer("direct", "ipv4", None)).as_deref(),
            Some(
                "path to b: was relayed node-relay by hub at 203.0.113.9:1, is direct ipv4 203.0.113.9:1\n"
            )
        );
        assert_eq!(watched.take(peer("direct", "ipv4", None)), None);
    }
}
