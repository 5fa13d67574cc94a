//! Events about claims that this node does not believe, so that `kubectl describe node` shows them.
//!
//! All agents of a mesh refuse the same claim: the Event's name follows from node and reason, and the first one makes it.
//! Each agent writes ten in a burst and one in half a minute; what is more waits as one number.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::mpsc;
use tracing::debug;

use super::client::{Api, Kind, by_chance, path};
use crate::agent::clock;

const BURST: u32 = 10;
const EVERY: Duration = Duration::from_secs(30);
/// The API server's bound.
const NOTE_MAX: usize = 1024;
/// Who is first among all agents goes by chance within this time.
const SPREAD: Duration = Duration::from_secs(2);

/// A claim that is not believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The Node that makes it; the own one where no Node does.
    pub node: String,
    /// Why, as a word.
    pub reason: &'static str,
    /// Why, as a sentence.
    pub sentence: String,
}

/// Writes them in a task of its own; what does not fit into the queue is lost.
pub fn start(api: Api, node: String, mut refused: mpsc::Receiver<Refused>) {
    tokio::spawn(async move {
        let mut bucket = Bucket::new(clock::instant());
        let mut held = 0;
        while let Some(refused) = refused.recv().await {
            if !bucket.take(clock::instant()) {
                held += 1;
                api.metrics().event("held-back");
                continue;
            }
            tokio::time::sleep(by_chance(SPREAD)).await;
            let time = jiff::Timestamp::from_second(clock::wall().as_secs().cast_signed());
            let event = event(&refused, &node, time.unwrap_or_default(), held);
            let result = match api.create(path::EVENTS, &event).await {
                Ok(()) => "written",
                Err(failure) if failure.kind == Kind::Conflict => "exists",
                Err(failure) => {
                    debug!(%failure, "Failed to write an Event");
                    "failed"
                }
            };
            if result == "written" {
                held = 0;
            }
            api.metrics().event(result);
        }
    });
}

#[derive(Debug)]
struct Bucket {
    tokens: u32,
    filled: Instant,
}

impl Bucket {
    fn new(now: Instant) -> Self {
        Self {
            tokens: BURST,
            filled: now,
        }
    }

    fn take(&mut self, now: Instant) -> bool {
        while self.tokens < BURST && now.saturating_duration_since(self.filled) >= EVERY {
            self.filled += EVERY;
            self.tokens += 1;
        }
        if self.tokens == BURST {
            self.filled = now;
        }
        self.tokens = match self.tokens.checked_sub(1) {
            Some(left) => left,
            None => return false,
        };
        true
    }
}

fn event(refused: &Refused, reporter: &str, time: jiff::Timestamp, held: u32) -> Value {
    let Refused {
        node,
        reason,
        sentence,
    } = refused;
    let mut note = sentence.clone();
    if held > 0 {
        note.push_str(&format!(
            " ({held} more were not written one by one; `farspan status` counts them)"
        ));
    }
    let end = note.floor_char_boundary(NOTE_MAX);
    note.truncate(end);
    let mut instance = reporter.to_owned();
    instance.truncate(128);
    json!({
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": { "name": name(node, reason), "namespace": "default" },
        "eventTime": format!("{}", time.strftime("%Y-%m-%dT%H:%M:%S.000000Z")),
        "reportingController": "farspan.io/agent",
        "reportingInstance": instance,
        "action": "RefuseClaim",
        "reason": camel(reason),
        "type": "Warning",
        "note": note,
        // As kubelets do: `kubectl describe node` looks for a Node's Events by its name in place of a UID, too.
        "regarding": { "apiVersion": "v1", "kind": "Node", "name": node, "uid": node },
    })
}

/// The same in every agent.
fn name(node: &str, reason: &str) -> String {
    let end = node.floor_char_boundary(150);
    let node = node[..end].trim_end_matches(['.', '-']);
    format!("{node}.farspan-{reason}")
}

/// `outside-policy` as `OutsidePolicy`.
fn camel(reason: &str) -> String {
    reason
        .split('-')
        .flat_map(|word| {
            let mut letters = word.chars();
            let first = letters.next().map(|c| c.to_ascii_uppercase());
            first.into_iter().chain(letters)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused() -> Refused {
        Refused {
            node: "n2".into(),
            reason: "outside-policy",
            sentence: "10.9.0.0/24 of n2 is outside of podCIDRs".into(),
        }
    }

    #[test]
    fn every_agent_gives_the_event_the_same_name() {
        let time = jiff::Timestamp::from_second(1_795_341_600).unwrap();
        let one = event(&refused(), "n1", time, 0);
        let other = event(&refused(), "n3", time, 3);
        assert_eq!(one["metadata"]["name"], "n2.farspan-outside-policy");
        assert_eq!(one["metadata"]["name"], other["metadata"]["name"]);
        assert_eq!(one["reason"], "OutsidePolicy");
        assert_eq!(one["eventTime"], "2026-11-22T10:00:00.000000Z");
        assert_eq!(one["regarding"]["uid"], "n2");
        assert!(other["note"].as_str().unwrap().contains("3 more"));
    }

    #[test]
    fn a_flood_of_refusals_is_held_back() {
        let start = clock::instant();
        let mut bucket = Bucket::new(start);
        assert_eq!((0..100).filter(|_| bucket.take(start)).count(), 10);
        assert!(!bucket.take(start + EVERY - Duration::from_secs(1)));
        assert!(bucket.take(start + EVERY));
        assert!(!bucket.take(start + EVERY));
        let later = start + EVERY * 1000;
        assert_eq!((0..100).filter(|_| bucket.take(later)).count(), 10);
    }
}
