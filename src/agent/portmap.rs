//! A port of the gateway that leads to this node: PCP (RFC 6887), NAT-PMP (RFC 6886), UPnP-IGD.
//!
//! [`machine`] decides, `wire` speaks with the gateway in tasks of its own, and each answer comes back as an
//! event of the agent's loop. The lease is kept in the state folder: an agent that starts again renews it, and
//! `farspan down` gives it back even where no agent runs.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mesh_types::HostReport;
use mesh_types::report::{MappingProtocol, PortMapping};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::{debug, info, warn};

use super::persist::PERSIST_AGAIN;
use super::{Agent, Event, state};

pub mod machine;
#[cfg_attr(not(feature = "port-mapping"), path = "portmap/unbuilt.rs")]
mod wire;

use machine::{Ask, LIFETIME, Lease, Machine, Uplink};

/// The file of the lease in the state folder.
const FILE: &str = "port-mapping.json";
const FILE_MAX: u64 = 4096;
const BUILT: bool = cfg!(feature = "port-mapping");
/// `down` does not wait longer for a gateway.
const GIVE_BACK: Duration = Duration::from_secs(3);

/// A gateway's answer.
#[derive(Debug)]
pub enum Answer {
    /// To the wish for a port.
    Mapped {
        /// Which.
        question: u64,
        /// The port, or why there is none.
        outcome: Result<Lease, String>,
    },
    /// It took a port back.
    TakenBack(Lease),
}

/// See the module.
#[derive(Debug)]
pub struct Portmap {
    machine: Machine,
    file: PathBuf,
    /// What the file holds.
    kept: Option<Lease>,
    /// When a file that could not be written is tried again.
    keep_again: Option<Instant>,
    /// Questions whose answers are awaited, and what they will have brought.
    asking: BTreeMap<u64, JoinHandle<Option<Lease>>>,
    events: mpsc::Sender<Event>,
}

impl Portmap {
    /// Starts with what an earlier run has left.
    pub fn new(on: bool, state_dir: &Path, events: mpsc::Sender<Event>) -> Self {
        let file = state_dir.join(FILE);
        let kept = read(&file);
        Self {
            machine: Machine::new(on && BUILT, kept),
            file,
            kept,
            keep_again: None,
            asking: BTreeMap::new(),
            events,
        }
    }

    /// The configuration was read again.
    pub fn set_on(&mut self, on: bool, now: Instant) {
        self.machine.set_on(on && BUILT, now);
    }

    /// The host was looked at; `port` is the one strangers are to reach.
    pub fn handle_host(&mut self, report: &HostReport, port: u16, now: Instant) {
        self.machine.handle_host(report, port, now);
    }

    /// A gateway answered.
    pub fn handle_answer(&mut self, answer: Answer, now: Instant) {
        match answer {
            Answer::Mapped { question, outcome } => {
                match &outcome {
                    Ok(lease) => debug!(?lease, "Gateway gave a port"),
                    Err(reason) => debug!(%reason, "Gateway gave no port"),
                }
                self.asking.remove(&question);
                self.machine.handle_mapped(question, outcome, now);
                self.keep(now);
            }
            Answer::TakenBack(lease) => {
                let is = |other: Lease| is_same(&other, &lease);
                if self.kept.is_some_and(is) && !self.machine.held().is_some_and(is) {
                    self.forget();
                }
            }
        }
    }

    /// Asks what is due, each in a task of its own.
    pub fn run(&mut self, now: Instant) {
        if self.keep_again.is_some_and(|at| at <= now) {
            self.keep(now);
        }
        while let Some(ask) = self.machine.poll_ask(now) {
            let events = self.events.clone();
            match ask {
                Ask::Map {
                    question,
                    by,
                    uplink,
                    renew,
                } => {
                    // A task in the task: whatever goes wrong with a gateway's answer ends there.
                    let asked = tokio::spawn(wire::map(by, uplink, renew));
                    let asking = tokio::spawn(async move {
                        let outcome = asked
                            .await
                            .unwrap_or_else(|_| Err("its answer is not understood".to_owned()));
                        let lease = outcome.as_ref().ok().copied();
                        let answer = Answer::Mapped { question, outcome };
                        _ = events.send(Event::PortMapped(answer)).await;
                        lease
                    });
                    self.asking.insert(question, asking);
                }
                Ask::Unmap(lease) => {
                    tokio::spawn(async move {
                        match wire::unmap(lease).await {
                            Ok(()) => {
                                let answer = Answer::TakenBack(lease);
                                _ = events.send(Event::PortMapped(answer)).await;
                            }
                            Err(reason) => {
                                debug!(external = %lease.external, %reason, "Gateway did not take a port back");
                            }
                        }
                    });
                }
            }
        }
    }

    /// What the mesh is to hear.
    pub fn poll_news(&mut self) -> Option<PortMapping> {
        let news = self.machine.poll_news()?;
        match &news {
            PortMapping::Mapped { by, external } => {
                info!(by = by.kind(), %external, "Gateway maps a port to this node");
            }
            PortMapping::Unmapped { reason } => info!(%reason, "No port mapping"),
            PortMapping::Off | PortMapping::Asking => {}
        }
        Some(news)
    }

    /// When [`Self::run`] is due.
    pub fn due(&self) -> Option<Instant> {
        let asking = self.machine.poll_timeout();
        asking.into_iter().chain(self.keep_again).min()
    }

    /// `down`: gives back what is held, and what a question under way brings. One line for each.
    pub async fn release(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut leases = Vec::from_iter(self.machine.release().or(self.kept));
        for asking in std::mem::take(&mut self.asking).into_values() {
            match tokio::time::timeout(GIVE_BACK, asking).await {
                Ok(answer) => {
                    let Ok(Some(lease)) = answer else { continue };
                    leases.retain(|held| !is_same(held, &lease));
                    leases.push(lease);
                }
                Err(_) => lines.push(
                    "the gateway was being asked for a port and has not answered; it may still give one"
                        .to_owned(),
                ),
            }
        }
        for lease in leases {
            lines.push(match give_back(lease).await {
                Ok(line) => {
                    if self.kept.is_some_and(|kept| is_same(&kept, &lease)) {
                        self.forget();
                    }
                    line
                }
                Err(line) => line,
            });
        }
        lines
    }

    /// Keeps the lease held for the next run, where it is another one.
    fn keep(&mut self, now: Instant) {
        let again = self.keep_again.take().is_some();
        let Some(lease) = self.machine.held() else {
            return;
        };
        if self.kept == Some(lease) {
            return;
        }
        let done = serde_json::to_vec(&Kept::from(lease))
            .map_err(anyhow::Error::from)
            .and_then(|bytes| state::write_atomic(&self.file, &bytes, 0o600));
        match done {
            Ok(()) => self.kept = Some(lease),
            // The mapping works all the same; a restart asks for a new one.
            Err(error) => {
                self.keep_again = Some(now + PERSIST_AGAIN);
                if !again {
                    warn!(file = %self.file.display(), %error, "Failed to keep the port mapping");
                }
            }
        }
    }

    fn forget(&mut self) {
        match remove(&self.file) {
            Ok(()) => self.kept = None,
            Err(error) => debug!(%error, "Failed to forget the port mapping"),
        }
    }
}

impl Agent {
    /// Asks the gateway what is due, and tells the core what it heard.
    pub(super) fn map_port(&mut self) {
        let now = self.clock.now();
        self.portmap.run(now.mono);
        while let Some(mapping) = self.portmap.poll_news() {
            let answer = mesh_types::report::Answer::PortMapping(mapping);
            self.overlay.handle_answer(answer, now);
        }
    }
}

/// `down` without an agent: gives back what one has left behind. One line, where there was something.
pub async fn release_left(state_dir: &Path) -> Option<String> {
    let file = state_dir.join(FILE);
    let lease = read(&file)?;
    Some(match give_back(lease).await {
        Ok(line) => {
            _ = remove(&file);
            line
        }
        Err(line) => line,
    })
}

/// Of the same way, whatever was granted.
fn is_same(one: &Lease, other: &Lease) -> bool {
    (one.uplink, one.by) == (other.uplink, other.by)
}

/// Says what came of it. Where the gateway did not take it back, the file is to stay, so that it can be tried again.
async fn give_back(lease: Lease) -> Result<String, String> {
    let name = format!("port mapping {} ({})", lease.external, lease.by.kind());
    let why = match tokio::time::timeout(GIVE_BACK, wire::unmap(lease)).await {
        Ok(Ok(())) => return Ok(format!("removed {name}")),
        Ok(Err(reason)) => reason,
        Err(_) => "no answer".to_owned(),
    };
    let end = match lease.lifetime {
        Some(_) => "it ends by itself",
        None => "it does not end by itself: run `farspan down` again, or remove it at the gateway",
    };
    Err(format!(
        "the gateway did not take back the {name}: {why}; {end}"
    ))
}

fn remove(file: &Path) -> anyhow::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// A file that is not understood is as good as none.
fn read(file: &Path) -> Option<Lease> {
    let mut text = String::new();
    fs::File::open(file)
        .ok()?
        .take(FILE_MAX)
        .read_to_string(&mut text)
        .ok()?;
    serde_json::from_str::<Kept>(&text).ok()?.lease()
}

/// A lease on disk. How long one lasts that ends is learned anew by renewing it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    protocol: String,
    gateway: Ipv4Addr,
    local: Ipv4Addr,
    port: u16,
    external: SocketAddr,
    nonce: Option<[u32; 3]>,
    #[serde(default)]
    permanent: bool,
}

impl From<Lease> for Kept {
    fn from(lease: Lease) -> Self {
        let Uplink {
            gateway,
            local,
            port,
        } = lease.uplink;
        Self {
            protocol: lease.by.kind().to_owned(),
            gateway,
            local,
            port,
            external: lease.external,
            nonce: lease.nonce,
            permanent: lease.lifetime.is_none(),
        }
    }
}

impl Kept {
    fn lease(self) -> Option<Lease> {
        let all = [
            MappingProtocol::Pcp,
            MappingProtocol::NatPmp,
            MappingProtocol::Upnp,
        ];
        Some(Lease {
            uplink: Uplink {
                gateway: self.gateway,
                local: self.local,
                port: self.port,
            },
            by: all.into_iter().find(|by| by.kind() == self.protocol)?,
            external: self.external,
            nonce: self.nonce,
            lifetime: (!self.permanent).then_some(LIFETIME),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A gateway on which nobody listens.
    fn lease(lifetime: Option<Duration>) -> Lease {
        Lease {
            uplink: Uplink {
                gateway: Ipv4Addr::LOCALHOST,
                local: Ipv4Addr::new(192, 168, 1, 10),
                port: 22514,
            },
            by: MappingProtocol::NatPmp,
            external: "203.0.113.9:22514".parse().unwrap(),
            nonce: Some([1, 2, u32::MAX]),
            lifetime,
        }
    }

    fn start() -> Instant {
        #[expect(
            clippy::disallowed_methods,
            reason = "tests need some instant to start from"
        )]
        Instant::now()
    }

    /// One whose machine waits for the answer to a question.
    fn asking(folder: &Path, now: Instant) -> (Portmap, u64) {
        let (events, _queue) = mpsc::channel(1);
        let mut portmap = Portmap::new(true, folder, events);
        let Uplink { local, port, .. } = lease(None).uplink;
        let interface = "eth0".to_owned();
        let report = HostReport {
            addresses: vec![mesh_types::report::HostAddress {
                interface: interface.clone(),
                ip: local.into(),
                prefix_len: 24,
                stable: true,
            }],
            gateways: vec![mesh_types::report::Gateway {
                interface,
                ip: Ipv4Addr::LOCALHOST.into(),
            }],
            ..HostReport::default()
        };
        portmap.handle_host(&report, port, now);
        match portmap.machine.poll_ask(now) {
            Some(Ask::Map { question, .. }) => (portmap, question),
            other => panic!("{other:?}"),
        }
    }

    fn mapped(question: u64, lease: Lease) -> Answer {
        let outcome = Ok(lease);
        Answer::Mapped { question, outcome }
    }

    #[test]
    fn a_lease_survives_a_restart_and_a_broken_file_is_as_good_as_none() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(FILE);
        let now = start();
        for lifetime in [None, Some(LIFETIME)] {
            let (mut portmap, question) = asking(folder.path(), now);
            portmap.handle_answer(mapped(question, lease(lifetime)), now);
            assert_eq!(read(&file), Some(lease(lifetime)));
        }
        for broken in [
            "",
            "{}",
            "null",
            "\u{0}",
            "{\"protocol\":\"carrier pigeon\"}",
        ] {
            fs::write(&file, broken).unwrap();
            assert_eq!(read(&file), None, "{broken:?}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_written_is_tried_again_after_a_pause() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing");
        let now = start();
        let (mut portmap, question) = asking(&missing, now);
        portmap.handle_answer(mapped(question, lease(None)), now);
        fs::create_dir(&missing).unwrap();
        portmap.run(now);
        assert_eq!(read(&missing.join(FILE)), None, "not at every turn");
        assert_eq!(portmap.due(), Some(now + PERSIST_AGAIN));
        portmap.run(now + PERSIST_AGAIN);
        assert_eq!(read(&missing.join(FILE)), Some(lease(None)));
        assert_ne!(portmap.due(), Some(now + PERSIST_AGAIN));
    }

    #[test]
    fn a_lease_is_on_file_until_the_gateway_has_taken_it_back() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(FILE);
        let now = start();
        let (mut portmap, question) = asking(folder.path(), now);
        portmap.handle_answer(mapped(question, lease(None)), now);
        portmap.set_on(false, now);
        assert_eq!(read(&file), Some(lease(None)));
        portmap.handle_answer(Answer::TakenBack(lease(None)), now);
        assert!(!file.exists());
    }

    #[cfg(feature = "port-mapping")]
    #[tokio::test]
    async fn what_the_gateway_does_not_take_back_is_told_of_and_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let now = start();
        let (mut portmap, question) = asking(folder.path(), now);
        portmap.handle_answer(mapped(question, lease(None)), now);
        let late = Lease {
            by: MappingProtocol::Pcp,
            external: "203.0.113.9:40000".parse().unwrap(),
            ..lease(Some(LIFETIME))
        };
        let answer = tokio::spawn(async move { Some(late) });
        portmap.asking.insert(question + 1, answer);
        let lines = portmap.release().await;
        let [first, second] = &lines[..] else {
            panic!("{lines:?}");
        };
        assert!(
            first.contains("did not take back the port mapping 203.0.113.9:22514")
                && first.contains("does not end by itself"),
            "{first}"
        );
        assert!(
            second.contains("203.0.113.9:40000") && second.contains("it ends by itself"),
            "{second}"
        );
        let left = release_left(folder.path()).await.unwrap();
        assert!(left.contains("203.0.113.9:22514"), "{left}");
    }
}
