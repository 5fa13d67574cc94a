//! The agent: one event loop that owns the core and every adapter around it.
//!
//! Sockets, the engine, the kernel's notices, the control socket and signals each put [`Event`]s into one
//! queue; the loop takes one, lets the core handle it, then drains the core: events first, then transmits,
//! so that what must be on disk is there before anything that depends on it leaves. The desired host state
//! is converged when it changed, when the kernel says something changed, and every [`CONVERGE_EVERY`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Result;
use host_network::{Change, Host};
use mesh_types::command::CommandId;
use mesh_types::observation::Fact;
use mesh_types::{Applied, Observation, SocketId, Source, WgKey, WgSecret};
use overlay::{Finding, Overlay, PeerState, Severity};
use tokio::sync::mpsc;
use tracing::{debug, error, info, warn};

use crate::cli::{AgentArgs, Global};
use crate::config::Config;
use crate::kube;

pub use boot::{must_have_net_admin, run};

pub mod bench;
mod boot;
pub mod clock;
mod cluster;
pub mod cni;
pub mod commands;
pub mod control;
pub mod metrics;
pub mod names;
mod owner;
mod persist;
pub mod portmap;
pub mod ports;
pub mod sockets;
pub mod state;
pub mod status;
pub mod tunnel;

use clock::{Alarm, Clock};
use control::Asked;
use names::Names;
use portmap::Portmap;
use ports::Ports;
use sockets::{Binding, Datagram, Port};
use state::Store;
use tunnel::{Done, Tunnel};

/// Repairs what no notice told of.
const CONVERGE_EVERY: Duration = Duration::from_secs(30);
/// Changes of the plan within this time are one change.
const CONVERGE_APART: Duration = Duration::from_millis(20);
/// How often the host is looked at without a notice.
const HOST_REPORT_EVERY: Duration = Duration::from_secs(60);
/// How soon, how often and for how long the kernel's device is looked at after it was changed: each look sets an
/// endpoint again that a late packet of the old path has moved back.
const SETTLE_EVERY: Duration = Duration::from_millis(500);
const SETTLE_FOR: Duration = Duration::from_secs(5);
/// Events waiting for the loop; a flood beyond is dropped at its source.
const QUEUE: usize = 1024;

/// What happens to an agent.
#[derive(Debug)]
pub enum Event {
    /// A control datagram arrived.
    Datagram(Datagram),
    /// The tunnel begins a handshake.
    Initiation {
        /// Where it sends to.
        remote: SocketAddr,
        /// What.
        bytes: Vec<u8>,
    },
    /// Handshakes are told no more.
    Unwatched,
    /// The kernel's view of the host changed.
    HostChanged(Change),
    /// A person or a script asks something.
    Asked(Asked),
    /// A STUN or TURN server's name was resolved, or a link to a TURN server has something to tell.
    Answered(mesh_types::report::Answer),
    /// A peer's name was looked up.
    Named {
        /// `host:port`.
        name: String,
        /// Its addresses, or why there are none.
        found: Result<Vec<SocketAddr>, String>,
    },
    /// Somebody connected inside the tunnel, to measure.
    Visitor(bench::Visitor),
    /// The gateway was asked for a port.
    PortMapped(portmap::Answer),
    /// The API server, or what speaks to it, has news.
    Cluster(kube::Told),
    /// SIGHUP.
    Reload,
    /// SIGTERM or SIGINT: stop, and leave what can go on without us.
    Stop,
}

/// Does the loop go on?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Go,
    Stop,
}

struct Agent {
    clock: Clock,
    config: Config,
    global: Global,
    flags: AgentArgs,
    overlay: Overlay,
    store: Store,
    tunnel: Option<Tunnel>,
    host: Host,
    events: mpsc::Sender<Event>,
    alternate: Option<Port>,
    overlay_port: Option<(u32, Port)>,
    bench: bench::Desk,
    ports: Ports,
    waiting: BTreeMap<CommandId, commands::Waiting>,
    last_command: CommandId,
    unwritten_key: Option<WgSecret>,
    names: Names,
    portmap: Portmap,
    due: Due,
    /// May idle peers sleep?
    sleepy: Option<bool>,
    relayed: ports::Relayed,
    converged: Option<u64>,
    cluster: Option<cluster::Membership>,
    metrics: metrics::Metrics,
    findings: BTreeMap<&'static str, Finding>,
}

/// When each recurring duty is due.
#[derive(Debug)]
struct Due {
    converge: Instant,
    tunnel_report: Instant,
    /// Until then the tunnel is looked at often.
    settled: Instant,
    host_report: Instant,
    persist: Option<Instant>,
}

impl Agent {
    async fn work(&mut self, queue: &mut mpsc::Receiver<Event>) -> Result<()> {
        let mut alarm = Alarm::new(self.clock)?;
        self.host_report().await;
        self.persist();
        loop {
            self.duties().await;
            alarm.set(self.next_wake())?;
            let next = tokio::select! {
                event = queue.recv() => match event {
                    Some(event) => self.handle(event).await,
                    None => Next::Stop,
                },
                () = alarm.wait() => {
                    self.overlay.handle_timeout(self.clock.now());
                    Next::Go
                }
            };
            self.drain();
            if next == Next::Stop {
                return Ok(());
            }
        }
    }

    async fn handle(&mut self, event: Event) -> Next {
        let now = self.clock.now();
        match event {
            Event::Datagram(Datagram {
                socket,
                local,
                remote,
                bytes,
            }) => {
                self.overlay
                    .handle_datagram(socket, local, remote, &bytes, now);
            }
            Event::Initiation { remote, bytes } => {
                self.overlay.handle_initiation(remote, &bytes, now);
            }
            Event::Unwatched => {
                if let Some(tunnel) = &mut self.tunnel {
                    tunnel.unwatch();
                }
                self.let_idle_peers_sleep();
                self.due.converge = now.mono;
            }
            Event::HostChanged(change) => {
                debug!(?change, "Host changed");
                self.due.converge = now.mono;
                self.due.host_report = now.mono;
            }
            Event::Asked(asked) => return self.asked(asked, now).await,
            Event::Answered(answer) => self.overlay.handle_answer(answer, now),
            Event::Named { name, found } => {
                if self.names.answered(&name, found, now.mono) {
                    let observation = Observation {
                        source: Source::Config,
                        fact: Fact::Listed(self.names.resolve(&self.config.peers)),
                    };
                    self.overlay.handle_observation(observation, now);
                }
            }
            Event::Visitor(visitor) => {
                let name = self.overlay.speaker(visitor.remote.ip());
                self.bench.serve(visitor, name, now.mono);
            }
            Event::Cluster(told) => self.told(told, now),
            Event::PortMapped(answer) => self.portmap.handle_answer(answer, now.mono),
            Event::Reload => {
                if let Err(error) = self.reload(None) {
                    warn!("{error}");
                }
            }
            Event::Stop => {
                info!("Agent stops");
                self.persist();
                self.end_relaying().await;
                return Next::Stop;
            }
        }
        Next::Go
    }

    /// Everything that is due by the clock or by a changed plan.
    async fn duties(&mut self) {
        self.drain();
        if self.due.tunnel_report <= self.clock.now().mono {
            self.tunnel_report();
        }
        if self.due.host_report <= self.clock.now().mono {
            self.host_report().await;
        }
        if self
            .due
            .persist
            .is_some_and(|at| at <= self.clock.now().mono)
        {
            self.persist();
        }
        self.look_up_names();
        self.map_port();
        self.drain();
        let now = self.clock.now();
        if self.converged != Some(self.overlay.host_plan().generation) {
            self.due.converge = self.due.converge.min(now.mono + CONVERGE_APART);
        }
        if self.due.converge <= now.mono {
            self.converge().await;
            self.drain();
        }
    }

    fn next_wake(&self) -> Instant {
        let now = self.clock.now().mono;
        let changed = self.converged != Some(self.overlay.host_plan().generation);
        let mut at = self
            .due
            .converge
            .min(self.due.tunnel_report)
            .min(self.due.host_report);
        if changed {
            at = at.min(now + CONVERGE_APART);
        }
        if let Some(persist) = self.due.persist {
            at = at.min(persist);
        }
        if let Some((timeout, _why)) = self.overlay.poll_timeout() {
            at = at.min(timeout);
        }
        for due in self.names.due().into_iter().chain(self.portmap.due()) {
            at = at.min(due);
        }
        // A deadline that the core does not move on must not spin.
        at.max(now + Duration::from_millis(1))
    }

    async fn converge(&mut self) {
        let plan = self.overlay.host_plan().clone();
        let mut applied = Applied {
            generation: plan.generation,
            failures: Vec::new(),
            sockets: BTreeSet::new(),
        };
        // The tunnel uses sockets, and routes need its device.
        let busy = self.ports.busy().clone();
        applied
            .failures
            .extend(self.ports.converge(&plan.sockets).err());
        applied.sockets = self.ports.open(&plan.sockets);
        if *self.ports.busy() != busy {
            self.due.host_report = self.clock.now().mono;
        }
        if let Some(tunnel) = &mut self.tunnel {
            let before = tunnel.port_moved();
            let port = before.unwrap_or(plan.tunnel.listen_port);
            applied.failures.extend(self.ports.turn(&plan, port).err());
            let now = self.clock.now().mono;
            match tunnel.apply(&plan, &mut self.ports) {
                Ok(Done::Quiet) => {}
                Ok(Done::Unsettled) => {
                    self.due.settled = now + SETTLE_FOR;
                    self.due.tunnel_report = self.due.tunnel_report.min(now + SETTLE_EVERY);
                }
                Err(failure) => applied.failures.push(failure),
            }
            if tunnel.port_moved() != before {
                self.due.host_report = now;
            }
        }
        self.let_idle_peers_sleep();
        let alternate = self.alternate.as_ref().map(Port::port);
        let own_ports = self.ports.searching().chain(alternate);
        self.host.own_ports(own_ports.collect());
        // Pairs that go now are counted to their end.
        self.relayed.take(self.host.relayed());
        applied
            .failures
            .extend(self.host.converge(&plan).await.failures);
        applied.failures.extend(self.relay().err());
        self.open_overlay_port();
        for failure in &applied.failures {
            warn!("{failure}");
        }
        self.metrics.converge_failures(applied.failures.len());
        let now = self.clock.now();
        self.converged = Some(plan.generation);
        self.due.converge = now.mono + CONVERGE_EVERY;
        self.overlay.handle_applied(applied, now);
        self.converge_cni();
    }

    /// What the kernel forwards, nobody would end for members that leave or are revoked from now on.
    async fn end_relaying(&mut self) {
        let mut plan = self.overlay.host_plan().clone();
        if !std::mem::take(&mut plan.relay_pairs).is_empty() {
            let applied = self.host.converge(&plan).await;
            for failure in applied.failures {
                warn!("{failure}");
            }
        }
    }

    /// Relays what the kernel does not, and says why it does not.
    fn relay(&mut self) -> Result<(), String> {
        let obstacles = self.host.relay_obstacles();
        if obstacles.is_empty() {
            self.findings.remove("relay-userspace");
        } else {
            let message = format!(
                "members are relayed by this process, which costs CPU time, not by the kernel: {}",
                obstacles.join("; and ")
            );
            let remedy = "Remove what is in the way; it is looked at again within 30 s.";
            let told = finding("relay-userspace", message, remedy);
            self.findings.insert("relay-userspace", told);
        }
        self.ports.relay(self.host.left_to_userspace())
    }

    /// The socket inside the tunnel is bound to the device, and is opened anew with it.
    fn open_overlay_port(&mut self) {
        let interface = self.config.interface.as_str();
        let index = nix::net::if_::if_nametoindex(interface).ok();
        if index == self.overlay_port.as_ref().map(|(index, _)| *index) {
            return;
        }
        self.overlay_port = None;
        self.bench.close();
        let Some(index) = index else { return };
        self.bench.open(interface, self.events.clone());
        let binding = Binding::Overlay { interface };
        match Port::open(SocketId::Overlay, binding, self.events.clone()) {
            Ok(port) => self.overlay_port = Some((index, port)),
            Err(error) => warn!(%error, "Failed to open the control socket inside the tunnel"),
        }
    }

    fn tunnel_report(&mut self) {
        let now = self.clock.now();
        if let Some(tunnel) = &mut self.tunnel {
            match tunnel.report() {
                Ok(report) => self.overlay.handle_tunnel(&report, now),
                Err(error) => debug!(%error, "Failed to read the tunnel's counters"),
            }
        }
        let mark = self.overlay.host_plan().tunnel.fwmark;
        if let Err(error) = self.host.hold_narrow(mark) {
            debug!(%error, "Failed to keep a narrow path's limit");
        }
        let mut every = self.overlay.host_plan().tunnel.report_every;
        if now.mono < self.due.settled {
            every = every.min(SETTLE_EVERY);
        }
        self.due.tunnel_report = now.mono + every.max(Duration::from_millis(100));
    }

    async fn host_report(&mut self) {
        let mut report = self.host.report().await;
        let now = self.clock.now();
        report.port_moved = self.tunnel.as_ref().and_then(Tunnel::port_moved);
        report.busy_ports.clone_from(self.ports.busy());
        let port = report
            .port_moved
            .unwrap_or(self.overlay.host_plan().tunnel.listen_port);
        self.portmap.handle_host(&report, port, now.mono);
        self.overlay.handle_host(report, now);
        self.due.host_report = now.mono + HOST_REPORT_EVERY;
    }

    /// Drains the core: events, then what may be sent.
    fn drain(&mut self) {
        loop {
            let mut persist = false;
            while let Some(event) = self.overlay.poll_event() {
                match event {
                    overlay::Event::Persist => persist = true,
                    overlay::Event::Resolve { name } => self.resolve(name),
                    overlay::Event::Reply { id, reply } => {
                        // A reply may tell of what must not be lost again.
                        if persist {
                            self.persist();
                            persist = false;
                        }
                        self.replied(id, reply);
                    }
                    // The command that began the rotation has written it.
                    overlay::Event::NextKey { .. } => {}
                    overlay::Event::KeyRotated { key } => {
                        info!(key = %key.public(), "Key changed");
                        self.unwritten_key = Some(key);
                        self.persist_key();
                    }
                    overlay::Event::Joined { authority } => self.joined(&authority),
                    overlay::Event::Revoked => {
                        error!("This node's membership was revoked; it is out of the mesh");
                    }
                    overlay::Event::Publish(publication) => self.publish(publication),
                    overlay::Event::ListAgain => self.list_again(),
                    overlay::Event::Refused {
                        node,
                        reason,
                        sentence,
                    } => self.refused(node, reason, sentence),
                    overlay::Event::PeerUp { name } => info!(peer = %name, "Peer up"),
                    overlay::Event::PeerDown { name, reason } => {
                        info!(peer = %name, %reason, "Peer down");
                    }
                }
            }
            if persist {
                self.persist();
            }
            let mut sent = false;
            while let Some(transmit) = self.overlay.poll_transmit() {
                sent = true;
                self.send(&transmit);
            }
            if !sent {
                return;
            }
        }
    }

    fn send(&self, transmit: &mesh_types::Transmit) {
        let result = match transmit.socket {
            SocketId::Main => self.tunnel.as_ref().map(|tunnel| tunnel.send(transmit)),
            SocketId::Alternate => self.alternate.as_ref().map(|port| port.send(transmit)),
            SocketId::Overlay => self
                .overlay_port
                .as_ref()
                .map(|(_, port)| port.send(transmit)),
            SocketId::Extra(_) | SocketId::Relay(_) | SocketId::Turn(_) => {
                self.ports.send(transmit)
            }
        };
        if let Some(Err(error)) = result {
            debug!(to = %transmit.destination, socket = ?transmit.socket, %error, "Failed to send");
        }
    }

    /// Starts the lookups that are due; each comes back as an event.
    fn look_up_names(&mut self) {
        let now = self.clock.now();
        if self.names.due().is_none_or(|due| due > now.mono) {
            return;
        }
        let snapshot = self.overlay.snapshot(now);
        let connected = |key: &WgKey| {
            let mut peers = snapshot.peers.iter();
            peers.any(|peer| {
                let up = match peer.state {
                    PeerState::Direct | PeerState::Relayed => true,
                    PeerState::Connecting | PeerState::Idle | PeerState::Down => false,
                };
                up && peer.public_key == *key
            })
        };
        for name in self.names.take_due(now.mono, connected) {
            let events = self.events.clone();
            tokio::spawn(async move {
                let found = match tokio::net::lookup_host(&name).await {
                    Ok(found) => Ok(found.collect()),
                    Err(error) => Err(error.to_string()),
                };
                _ = events.send(Event::Named { name, found }).await;
            });
        }
    }

    fn resolve(&self, name: String) {
        let events = self.events.clone();
        tokio::spawn(async move {
            let addresses = match tokio::net::lookup_host(&name).await {
                Ok(addresses) => addresses.collect(),
                Err(error) => {
                    debug!(%name, %error, "Failed to resolve");
                    Vec::new()
                }
            };
            let answer = mesh_types::report::Answer::Resolved { name, addresses };
            _ = events.send(Event::Answered(answer)).await;
        });
    }
}

fn finding(code: &str, message: String, remedy: &str) -> Finding {
    Finding {
        code: code.into(),
        severity: Severity::Warning,
        message,
        remedy: remedy.to_owned(),
    }
}
