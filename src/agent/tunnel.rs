//! The tunnel: the kernel's WireGuard or the in-process engine, behind one set of verbs. No policy here.

use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::path::Path;

use anyhow::{Result, anyhow, bail};
use data_plane::{Engine, EngineError, Settings};
use host_network::{Demux, Host, HostError, Initiations, Removed, Wireguard};
use mesh_types::address::next_port;
use mesh_types::plan::TunnelPlan;
use mesh_types::report::Backend;
use mesh_types::{HostPlan, SocketId, Transmit, TunnelReport};
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::ports::{Ports, pass};
use super::sockets::{Binding, Port};
use super::{Agent, Event};
use crate::cli::BackendChoice;
use crate::config::{ConfigError, sentence};

/// Ports tried one after another where the first is in use.
const PORTS_TRIED: usize = 16;

/// How often, and how far apart, the first port is tried before the next one is.
const FIRST_PORT_TRIES: usize = 10;
const PORT_AGAIN: std::time::Duration = std::time::Duration::from_millis(30);

/// What carries the tunnel.
pub enum Tunnel {
    /// The kernel's WireGuard; its port is lent to the agent's own socket by packet filter.
    Kernel {
        /// Name of the device.
        interface: String,
        /// The device, once a plan has made it.
        device: Option<Wireguard>,
        /// Shares the port.
        demux: Demux,
        /// The agent's own socket.
        main: Port,
        /// Whether another port will do where the plan's is taken.
        wish: PortWish,
        /// The port it was opened with.
        opened: u16,
        /// The port in use.
        port: u16,
        /// Tells of handshakes that begin, where the kernel logs packets.
        watch: Result<Watch, String>,
        /// Where they are told.
        events: mpsc::Sender<Event>,
    },
    /// The in-process engine, which owns the port.
    Userspace {
        /// With which it is started again where its device was deleted.
        settings: Settings,
        /// The engine.
        engine: Option<Engine>,
        /// Where control datagrams go.
        events: mpsc::Sender<Event>,
    },
}

/// What applying a plan came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// Nothing that needs a second look.
    Quiet,
    /// The kernel's device changed. Late packets of an old path make it roam back, so its report wants to be read soon.
    Unsettled,
}

/// Which port to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortWish {
    /// This one or none: it was configured.
    Exactly(u16),
    /// This one, or one of the next.
    From(u16),
}

impl PortWish {
    fn candidates(self) -> Vec<u16> {
        match self {
            Self::Exactly(port) => vec![port],
            Self::From(port) => std::iter::successors(Some(port), |port| Some(next_port(*port)))
                .take(PORTS_TRIED)
                .collect(),
        }
    }

    fn none_free(self) -> anyhow::Error {
        match self {
            Self::Exactly(port) => ConfigError(format!(
                "UDP port {port} is in use by another program; choose another listen-port, or leave it out and a free one is found"
            ))
            .into(),
            Self::From(port) => anyhow!(
                "UDP port {port} and the {} after it are in use; give a free one with --listen-port",
                PORTS_TRIED - 1
            ),
        }
    }
}

/// Turns a choice into a backend.
pub fn choose(choice: BackendChoice) -> Result<Backend> {
    match choice {
        BackendChoice::Userspace => Ok(Backend::Userspace),
        BackendChoice::Auto if Wireguard::probe() => Ok(Backend::Kernel),
        BackendChoice::Auto => Ok(Backend::Userspace),
        BackendChoice::Kernel if Wireguard::probe() => Ok(Backend::Kernel),
        BackendChoice::Kernel => bail!(
            "this kernel has no WireGuard; load its module with `modprobe wireguard`, or use --backend userspace"
        ),
    }
}

impl Tunnel {
    /// Takes a port and whatever else does not need a plan; gives the port taken.
    pub fn open(
        backend: Backend,
        mut settings: Settings,
        wish: PortWish,
        events: mpsc::Sender<Event>,
    ) -> Result<(Self, u16)> {
        match backend {
            Backend::Kernel => {
                let interface = settings.interface;
                // The device that an earlier agent left holds its port itself.
                let held = Wireguard::port_of(&interface);
                let candidates = wish.candidates();
                let port = held
                    .filter(|held| candidates.contains(held))
                    .or_else(|| candidates.into_iter().find(|port| is_free(*port)))
                    .ok_or_else(|| wish.none_free())?;
                let binding = Binding::Underlay {
                    fwmark: settings.fwmark,
                };
                let told = events.clone();
                let main = Port::open(SocketId::Main, binding, events)
                    .map_err(|error| anyhow!("cannot open a UDP socket: {}", sentence(&error)))?;
                let mut demux = Demux::new()?;
                // Before the first datagram: one that left from the socket's own port would lead peers there.
                demux.apply(port, main.port())?;
                let watch = Watch::start(&mut demux, port, &told);
                Ok((
                    Self::Kernel {
                        interface,
                        device: None,
                        demux,
                        main,
                        wish,
                        opened: port,
                        port,
                        watch,
                        events: told,
                    },
                    port,
                ))
            }
            Backend::Userspace => {
                if !Path::new("/dev/net/tun").exists() {
                    bail!(
                        "/dev/net/tun does not exist, and the userspace backend needs it; run: modprobe tun (in a container, pass the device in)"
                    );
                }
                for (at, port) in wish.candidates().into_iter().enumerate() {
                    settings.listen_port = port;
                    let tries = if at == 0 { FIRST_PORT_TRIES } else { 1 };
                    match start_patiently(&settings, &events, tries) {
                        Ok(engine) => {
                            let port = engine.listen_port();
                            let engine = Some(engine);
                            return Ok((
                                Self::Userspace {
                                    settings,
                                    engine,
                                    events,
                                },
                                port,
                            ));
                        }
                        Err(EngineError::PortInUse(_)) => {}
                        Err(error) => {
                            return Err(anyhow!("cannot start the userspace tunnel: {error}"));
                        }
                    }
                }
                Err(wish.none_free())
            }
        }
    }

    /// Makes keys, peers and port equal to the plan, and lends `ports` to the peers it says: before anything is sent to
    /// them, for the first datagram must come from there. Idempotent. One sentence for what failed.
    pub fn apply(&mut self, host: &HostPlan, ports: &mut Ports) -> Result<Done, String> {
        let plan = &host.tunnel;
        match self {
            Self::Kernel {
                interface,
                device,
                demux,
                main,
                wish,
                opened: _,
                port,
                watch,
                events,
            } => {
                demux
                    .lend(*port, &host.adoptions, &host.aliases)
                    .map_err(|error| error.to_string())?;
                let mut done = configure(interface, device, plan);
                let mut used = plan.listen_port;
                if let (Err(HostError::PortInUse { .. }), PortWish::From(_)) = (&done, *wish) {
                    let others = PortWish::From(next_port(used)).candidates();
                    for other in others.into_iter().filter(|port| is_free(*port)) {
                        let mut plan = plan.clone();
                        plan.listen_port = other;
                        done = configure(interface, device, &plan);
                        if done.is_ok() {
                            used = other;
                            break;
                        }
                    }
                }
                let done = done.and_then(|done| {
                    demux.apply(used, main.port())?;
                    if used != *port {
                        demux.lend(used, &host.adoptions, &host.aliases)?;
                        *port = used;
                    }
                    if !watch.as_ref().is_ok_and(|watch| watch.port == used) {
                        *watch = Watch::start(demux, used, events);
                    }
                    Ok(done)
                });
                done.map_err(|error: HostError| error.to_string())
            }
            Self::Userspace {
                settings,
                engine,
                events,
            } => {
                let gone = nix::net::if_::if_nametoindex(settings.interface.as_str()).is_err();
                if engine.is_none() || gone {
                    // The old one must let go of the port first.
                    *engine = None;
                    let started = start(settings, events).map_err(|error| {
                        format!("cannot start the userspace tunnel again: {error}")
                    })?;
                    *engine = Some(started);
                }
                let Some(engine) = engine else {
                    return Ok(Done::Quiet);
                };
                let lent = ports.lend_to(host, engine);
                engine.apply(plan);
                lent.map(|()| Done::Quiet)
            }
        }
    }

    /// The port in use where another program took the one it was opened with.
    pub fn port_moved(&self) -> Option<u16> {
        match self {
            Self::Kernel { opened, port, .. } => Some(*port).filter(|port| port != opened),
            Self::Userspace { .. } => None,
        }
    }

    /// Sends a control datagram from the tunnel's port.
    pub fn send(&self, transmit: &Transmit) -> std::io::Result<()> {
        match self {
            Self::Kernel { main, .. } => main.send(transmit),
            Self::Userspace { engine, .. } => match engine {
                Some(engine) => engine.send_control(
                    transmit.source,
                    transmit.destination,
                    transmit.ttl,
                    &transmit.bytes,
                ),
                None => Err(std::io::ErrorKind::NotConnected.into()),
            },
        }
    }

    /// Why handshakes that it begins are not told by [`Event::Initiation`], where they are not.
    pub fn initiations_untold(&self) -> Option<&str> {
        match self {
            Self::Kernel { watch, .. } => watch.as_ref().err().map(String::as_str),
            Self::Userspace { .. } => None,
        }
    }

    /// [`Event::Unwatched`] was told; the next plan that is applied begins anew.
    pub fn unwatch(&mut self) {
        match self {
            Self::Kernel { watch, .. } => *watch = Err("the packet log ended".to_owned()),
            Self::Userspace { .. } => {}
        }
    }

    /// The netlink address of its own changes to the packet filter.
    pub fn filters_port(&self) -> Option<u32> {
        match self {
            Self::Kernel { demux, .. } => Some(demux.netlink_port()),
            Self::Userspace { .. } => None,
        }
    }

    /// What the tunnel knows of its peers.
    pub fn report(&mut self) -> Result<TunnelReport, String> {
        match self {
            Self::Kernel { device, .. } => match device {
                Some(device) => device.report().map_err(|error| error.to_string()),
                None => Ok(TunnelReport::default()),
            },
            Self::Userspace { engine, .. } => {
                Ok(engine.as_ref().map(Engine::report).unwrap_or_default())
            }
        }
    }

    /// Named counters, for metrics.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        match self {
            Self::Kernel { .. } => Vec::new(),
            Self::Userspace { engine, .. } => {
                engine.as_ref().map(Engine::counters).unwrap_or_default()
            }
        }
    }
}

/// Reads the log of handshake initiations until it is dropped.
#[derive(Debug)]
pub struct Watch {
    port: u16,
    task: tokio::task::JoinHandle<()>,
}

impl Watch {
    /// Fails where the kernel has no packet log, or another program reads this one.
    fn start(demux: &mut Demux, port: u16, events: &mpsc::Sender<Event>) -> Result<Self, String> {
        let opened = demux
            .log_initiations(port)
            .and_then(|_| Initiations::open(port));
        let mut initiations = opened.map_err(|error| error.to_string())?;
        let events = events.clone();
        let task = tokio::spawn(async move {
            while let Ok((remote, bytes)) = initiations.next().await {
                _ = events.try_send(Event::Initiation { remote, bytes });
            }
            _ = events.send(Event::Unwatched).await;
        });
        Ok(Self { port, task })
    }
}

impl Agent {
    /// Idle peers sleep only while handshakes to them are told of: nothing else wakes them.
    pub(super) fn let_idle_peers_sleep(&mut self) {
        let untold = self.tunnel.as_ref().and_then(Tunnel::initiations_untold);
        let may = untold.is_none();
        if self.sleepy == Some(may) {
            return;
        }
        match untold {
            Some(why) if self.sleepy.is_some() => warn!(%why, "Idle peers are kept awake"),
            Some(why) => info!(%why, "Idle peers are kept awake"),
            None => {}
        }
        self.sleepy = Some(may);
        let now = self.clock.now();
        self.overlay.let_idle_peers_sleep(may, now);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Opens the device where there is none, else makes it equal to the plan.
fn configure(
    interface: &str,
    device: &mut Option<Wireguard>,
    plan: &TunnelPlan,
) -> Result<Done, HostError> {
    let gone = nix::net::if_::if_nametoindex(interface).is_err();
    match device {
        Some(device) if !gone => Ok(match device.apply(plan)? {
            0 => Done::Quiet,
            _ => Done::Unsettled,
        }),
        Some(_) | None => {
            *device = Some(Wireguard::open(interface, plan)?);
            Ok(Done::Unsettled)
        }
    }
}

/// Removes what an agent that no longer runs left behind.
pub async fn remove(interface: &str) -> Result<Removed> {
    super::must_have_net_admin()?;
    Ok(Host::new(interface).await?.remove().await)
}

/// An agent that was killed holds its port and device a moment longer than its lock.
fn start_patiently(
    settings: &Settings,
    events: &mpsc::Sender<Event>,
    tries: usize,
) -> Result<Engine, EngineError> {
    for _ in 1..tries {
        match start(settings, events) {
            Ok(engine) => return Ok(engine),
            Err(error) => tracing::debug!(%error, "Tunnel is tried again"),
        }
        std::thread::sleep(PORT_AGAIN);
    }
    start(settings, events)
}

fn start(settings: &Settings, events: &mpsc::Sender<Event>) -> Result<Engine, EngineError> {
    let controls = events.clone();
    let engine = Engine::start(
        settings.clone(),
        Box::new(move |datagram| {
            pass(&controls, datagram);
        }),
    )?;
    let events = events.clone();
    engine.tell_initiations(move |remote, bytes| {
        let bytes = bytes.to_vec();
        _ = events.try_send(Event::Initiation { remote, bytes });
    });
    Ok(engine)
}

/// Can both families be bound? WireGuard in the kernel binds both.
fn is_free(port: u16) -> bool {
    let taken = |error: std::io::Error| error.kind() == std::io::ErrorKind::AddrInUse;
    let v4 = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port));
    let v4 = v4.err().is_some_and(taken);
    let v6 = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port));
    !v4 && !v6.err().is_some_and(taken)
}
