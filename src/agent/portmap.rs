//! A port of the gateway that leads to this node: PCP (RFC 6887), NAT-PMP (RFC 6886), UPnP-IGD.
//!
//! [`machine`] decides, `wire` speaks with the gateway in tasks of its own, and each answer comes back as an
//! event of the agent's loop. The lease is kept in the state folder: an agent that starts again renews it, and
//! `farspan down` gives it back even where no agent runs.

use std::fs;
use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mesh_types::HostReport;
use mesh_types::report::{MappingProtocol, PortMapping};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use super::{Agent, Event, state};

pub mod machine;
#[cfg_attr(not(feature = "port-mapping"), path = "portmap/unbuilt.rs")]
mod wire;

use machine::{Ask, Lease, Machine, Uplink};

/// The file of the lease in the state folder.
const FILE: &str = "port-mapping.json";
const FILE_MAX: u64 = 4096;
const BUILT: bool = cfg!(feature = "port-mapping");
/// `down` does not wait longer for a gateway.
const GIVE_BACK: Duration = Duration::from_secs(3);

/// A gateway's answer.
#[derive(Debug)]
pub struct Answer {
    question: u64,
    outcome: Result<Lease, String>,
}

/// See the module.
#[derive(Debug)]
pub struct Portmap {
    machine: Machine,
    file: PathBuf,
    kept: Option<Lease>,
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
            events,
        }
    }

    /// The configuration was read again.
    pub fn set_on(&mut self, on: bool, now: Instant) {
        self.machine.set_on(on && BUILT, now);
        if !on {
            self.keep(None);
        }
    }

    /// The host was looked at; `port` is the one strangers are to reach.
    pub fn handle_host(&mut self, report: &HostReport, port: u16, now: Instant) {
        self.machine.handle_host(report, port, now);
    }

    /// A gateway answered.
    pub fn handle_answer(&mut self, answer: Answer, now: Instant) {
        let Answer { question, outcome } = answer;
        match &outcome {
            Ok(lease) => debug!(?lease, "Gateway gave a port"),
            Err(reason) => debug!(%reason, "Gateway gave no port"),
        }
        self.machine.handle_mapped(question, outcome, now);
    }

    /// Asks what is due, each in a task of its own.
    pub fn run(&mut self, now: Instant) {
        while let Some(ask) = self.machine.poll_ask(now) {
            match ask {
                Ask::Map {
                    question,
                    by,
                    uplink,
                    renew,
                } => {
                    let events = self.events.clone();
                    // A task in the task: whatever goes wrong with a gateway's answer ends there.
                    let asking = tokio::spawn(wire::map(by, uplink, renew));
                    tokio::spawn(async move {
                        let outcome = asking
                            .await
                            .unwrap_or_else(|_| Err("its answer is not understood".to_owned()));
                        let answer = Answer { question, outcome };
                        _ = events.send(Event::PortMapped(answer)).await;
                    });
                }
                Ask::Unmap(lease) => {
                    tokio::spawn(async move {
                        if let Err(reason) = wire::unmap(lease).await {
                            debug!(external = %lease.external, %reason, "Gateway did not take a port back");
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

    /// Keeps the lease for the next run where it changed.
    pub fn persist(&mut self) {
        if let Some(lease) = self.machine.held() {
            self.keep(Some(lease));
        }
    }

    /// When [`Self::run`] is due.
    pub fn due(&self) -> Option<Instant> {
        self.machine.poll_timeout()
    }

    /// `down`: gives back what is held. Gives its name.
    pub async fn release(&mut self) -> Option<String> {
        let lease = self.machine.release();
        self.keep(None);
        give_back(lease?).await
    }

    fn keep(&mut self, lease: Option<Lease>) {
        if lease.map(Kept::from) == self.kept.map(Kept::from) {
            return;
        }
        let done = match lease {
            Some(lease) => serde_json::to_vec(&Kept::from(lease))
                .map_err(anyhow::Error::from)
                .and_then(|bytes| state::write_atomic(&self.file, &bytes, 0o600)),
            None => remove(&self.file),
        };
        match done {
            Ok(()) => self.kept = lease,
            // The mapping works all the same; a restart asks for a new one.
            Err(error) => {
                warn!(file = %self.file.display(), %error, "Failed to keep the port mapping")
            }
        }
    }
}

impl Agent {
    /// Asks the gateway what is due, and tells the core what it heard.
    pub(super) fn map_port(&mut self) {
        let now = self.clock.now();
        self.portmap.run(now.mono);
        self.portmap.persist();
        while let Some(mapping) = self.portmap.poll_news() {
            let answer = mesh_types::report::Answer::PortMapping(mapping);
            self.overlay.handle_answer(answer, now);
        }
    }
}

/// `down` without an agent: gives back what one has left behind. Gives its name.
pub async fn release_left(state_dir: &Path) -> Option<String> {
    let file = state_dir.join(FILE);
    let lease = read(&file)?;
    _ = remove(&file);
    give_back(lease).await
}

async fn give_back(lease: Lease) -> Option<String> {
    let name = format!("port mapping {} ({})", lease.external, lease.by.kind());
    match tokio::time::timeout(GIVE_BACK, wire::unmap(lease)).await {
        Ok(Ok(())) => Some(name),
        Ok(Err(reason)) => {
            warn!(%reason, "The gateway did not take back the {name}; it ends by itself");
            None
        }
        Err(_) => {
            warn!("The gateway did not answer; the {name} ends by itself");
            None
        }
    }
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

/// A lease on disk. How long it lasts is learned anew by renewing it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    protocol: String,
    gateway: Ipv4Addr,
    local: Ipv4Addr,
    port: u16,
    external: SocketAddr,
    nonce: Option<[u32; 3]>,
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
            lifetime: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_survives_a_restart_and_a_broken_file_is_as_good_as_none() {
        let folder = tempfile::tempdir().unwrap();
        let lease = Lease {
            uplink: Uplink {
                gateway: Ipv4Addr::new(192, 168, 1, 1),
                local: Ipv4Addr::new(192, 168, 1, 10),
                port: 22514,
            },
            by: MappingProtocol::Pcp,
            external: "203.0.113.9:22514".parse().unwrap(),
            nonce: Some([1, 2, u32::MAX]),
            lifetime: None,
        };
        let (events, _queue) = mpsc::channel(1);
        let mut portmap = Portmap::new(true, folder.path(), events);
        portmap.keep(Some(lease));
        let file = folder.path().join(FILE);
        assert_eq!(read(&file), Some(lease));
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
        portmap.keep(None);
        assert!(!file.exists());
    }
}
