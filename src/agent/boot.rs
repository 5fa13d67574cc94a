//! How an agent comes up: its log, its rights, its owner's lock, then keys, sockets, the core and the loop.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use data_plane::{Offload, Settings};
use host_network::{Change, Host};
use mesh_types::address::derived_port;
use mesh_types::cluster::PodNetwork;
use mesh_types::report::Backend;
use mesh_types::{IdentitySecret, SocketId, WgSecret, consts};
use overlay::{Identity, Overlay};
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::clock::Clock;
use super::cluster::{self, Membership};
use super::control::Server;
use super::names::Names;
use super::portmap::Portmap;
use super::ports::{self, Ports};
use super::sockets::{Binding, Port};
use super::state::{self, Store};
use super::tunnel::{self, PortWish, Tunnel};
use super::{Agent, Due, Event, QUEUE, bench, control, finding, metrics, owner};
use crate::cli::{AgentArgs, Global, LogFormat};
use crate::config::Config;

/// `farspan agent`.
pub fn run(global: &Global, flags: &AgentArgs) -> Result<()> {
    let config = Config::load(global, flags)?;
    if flags.detached {
        nix::unistd::setsid().context("Failed to start a session")?;
    }
    log_to_stderr(global.log_format);
    for warning in &config.warnings {
        warn!("{warning}");
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("Failed to start the runtime")?;
    if flags.dry_run {
        return runtime.block_on(dry_run(&config));
    }
    must_have_net_admin()?;
    let result = runtime.block_on(async {
        let Some(_owner) = owner::become_owner(&config, flags).await? else {
            return Ok(());
        };
        let (mut agent, mut queue, mut server) = Agent::start(config, global, flags).await?;
        server.serve(agent.events.clone());
        if let Some(address) = flags.metrics_listen {
            control::serve_metrics(address, agent.events.clone()).await?;
        }
        agent.work(&mut queue).await
    });
    // A resolver that hangs must not hold the process.
    runtime.shutdown_timeout(Duration::from_millis(200));
    result
}

fn log_to_stderr(format: LogFormat) {
    use std::io::IsTerminal as _;
    let filter = tracing_subscriber::EnvFilter::try_from_env("FARSPAN_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_writer(std::io::stderr);
    // A second agent in one process exists only in tests, where the first log stays.
    _ = match format {
        LogFormat::Text => log.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => log.json().try_init(),
    };
}

/// Refuses early what would fail late.
pub fn must_have_net_admin() -> Result<()> {
    const NET_ADMIN: u64 = 1 << 12;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    match effective {
        Some(bits) if bits & NET_ADMIN == 0 => bail!(
            "this needs root or CAP_NET_ADMIN, to make a network device and routes; run it with sudo"
        ),
        Some(_) | None => Ok(()),
    }
}

/// The plan of the first moment, without touching keys, state, port or host.
async fn dry_run(config: &Config) -> Result<()> {
    let clock = Clock::start()?;
    let key = state::read_key(&config.private_key_file, WgSecret::from_base64)?;
    let node = state::read_key(
        &config.state_dir.join("identity.key"),
        IdentitySecret::from_base64,
    )?;
    let identity = Identity {
        node: match node {
            Some(node) => node,
            None => IdentitySecret::from_bytes(&state::random()?),
        },
        key: match key {
            Some(key) => key,
            None => WgSecret::from_bytes(state::random()?),
        },
        next: None,
        authority: None,
    };
    let saved = state::peek(&config.state_dir);
    let backend = tunnel::choose(config.backend)?;
    let port = config
        .listen_port
        .or(saved.listen_port)
        .unwrap_or_else(|| derived_port(&identity.node.identity()));
    let now = clock.now();
    let mode = mode(config)?;
    let core = core_config(config, &saved, mode, backend, (port, None));
    let mut overlay = Overlay::new(identity, core, saved, state::random()?, now);
    if let Ok(mut host) = Host::new(&config.interface).await {
        overlay.handle_host(host.report().await, now);
    }
    overlay.handle_timeout(now);
    print!("{}", host_network::describe(overlay.host_plan()));
    Ok(())
}

/// The core's view of the configuration.
fn core_config(
    config: &Config,
    saved: &mesh_types::State,
    mode: Option<PodNetwork>,
    backend: Backend,
    (listen_port, alternate_port): (u16, Option<u16>),
) -> overlay::Config {
    let mut authorities = config.authorities.clone();
    // A join whose configuration could not be written is remembered by the state.
    authorities.extend(
        saved
            .authority
            .filter(|key| !config.authorities.contains(key)),
    );
    overlay::Config {
        name: config.name.clone(),
        region: config.region.clone(),
        interface: config.interface.clone(),
        backend,
        listen_port,
        alternate_port,
        addresses: config.addresses.clone(),
        routes: config.routes.clone(),
        authorities,
        peers: config.peers.clone(),
        stun: config.stun.clone(),
        fwmark: config.fwmark,
        forward_accept: config.forward_accept,
        mtu: consts::MTU,
        may_relay: config.relay_serve,
        relay_ports: config.relay_ports,
        pair_rate: config.relay_pair_rate,
        node_rate: config.relay_node_rate,
        birthday_search: config.birthday_search,
        turn: config.turn.clone(),
        protocol: consts::PROTOCOL,
        kubernetes: config
            .kubernetes
            .as_ref()
            .zip(mode)
            .map(|(kubernetes, pod_network)| overlay::Kubernetes {
                node: kubernetes.node.clone(),
                pod_network,
                cluster_cidrs: kubernetes.cluster_cidrs.clone(),
                external: kubernetes.external,
            }),
    }
}

/// Which pod network the node has, where it is part of a cluster.
fn mode(config: &Config) -> Result<Option<PodNetwork>> {
    config
        .kubernetes
        .as_ref()
        .map(cluster::pod_network)
        .transpose()
}

impl Agent {
    pub(super) async fn start(
        config: Config,
        global: &Global,
        flags: &AgentArgs,
    ) -> Result<(Self, mpsc::Receiver<Event>, Server)> {
        let clock = Clock::start()?;
        let mode = mode(&config)?;
        let backend = tunnel::choose(config.backend)?;
        let store = Store::open(&config.state_dir, &config.private_key_file)?;
        let server = Server::bind(&config.socket)?;
        let identity = Identity {
            node: store.identity()?,
            key: store.private_key()?,
            next: store.next_key()?,
            authority: state::read_key(&config.authority_key_file, IdentitySecret::from_base64)?,
        };
        let (saved, unusable) = store.state();
        let mut findings = BTreeMap::new();
        if let Some(message) = unusable {
            warn!("{message}");
            findings.insert("state-file", finding("state-file", message, ""));
        }
        let mut host = Host::new(&config.interface).await?;
        if let Some(clash) = host.clash(config.fwmark).await {
            bail!("{clash}");
        }
        let (events, queue) = mpsc::channel(QUEUE);
        let wish = match (config.listen_port, saved.listen_port) {
            (Some(port), _) => PortWish::Exactly(port),
            (None, Some(port)) => PortWish::From(port),
            (None, None) => PortWish::From(derived_port(&identity.node.identity())),
        };
        let settings = Settings {
            interface: config.interface.clone(),
            mtu: consts::MTU,
            listen_port: 0,
            fwmark: config.fwmark.0,
            offload: Offload::default(),
        };
        let (tunnel, port) = Tunnel::open(backend, settings, wish, events.clone())?;
        let binding = Binding::Underlay {
            fwmark: config.fwmark.0,
        };
        let alternate = Port::open(SocketId::Alternate, binding, events.clone())
            .inspect_err(|error| warn!(%error, "Failed to open the alternate socket"))
            .ok();
        let alternate_port = alternate.as_ref().map(Port::port);
        let core = core_config(&config, &saved, mode, backend, (port, alternate_port));
        let known = saved.cluster.iter().flat_map(|cluster| &cluster.nodes);
        let known = known.map(|node| node.uid.clone()).collect();
        let now = clock.now();
        info!(name = %config.name, key = %identity.key.public(), port, backend = backend.kind(), "Agent starts");
        let overlay = Overlay::new(identity, core, saved, state::random()?, now);
        if let Some(port) = tunnel.filters_port() {
            host.change_filters_from(port);
        }
        let mut names = Names::default();
        names.set(config.names.clone(), now.mono);
        pass_on(host.changes(), events.clone());
        signals(&events)?;
        let portmap = Portmap::new(config.port_mapping, &config.state_dir, events.clone());
        let metrics = metrics::Metrics::default();
        let cluster = config.kubernetes.as_ref().zip(mode).map(|(config, mode)| {
            Membership::start(config, mode, known, metrics.api.clone(), events.clone())
        });
        let mut agent = Self {
            clock,
            overlay,
            store,
            tunnel: Some(tunnel),
            host,
            alternate,
            overlay_port: None,
            bench: bench::Desk::new(now.mono),
            ports: Ports::new(config.fwmark.0, events.clone()),
            waiting: BTreeMap::new(),
            last_command: 0,
            unwritten_key: None,
            names,
            portmap,
            due: Due {
                converge: now.mono,
                tunnel_report: now.mono,
                settled: now.mono,
                host_report: now.mono,
                persist: None,
            },
            sleepy: None,
            relayed: ports::Relayed::default(),
            converged: None,
            cluster,
            metrics,
            findings,
            events,
            config,
            global: global.clone(),
            flags: flags.clone(),
        };
        agent.let_idle_peers_sleep();
        Ok((agent, queue, server))
    }
}

fn pass_on(mut changes: mpsc::UnboundedReceiver<Change>, events: mpsc::Sender<Event>) {
    tokio::spawn(async move {
        while let Some(change) = changes.recv().await {
            if events.send(Event::HostChanged(change)).await.is_err() {
                return;
            }
        }
    });
}

/// Until somebody wants this process to end.
pub(super) fn stopped() -> Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).context("Failed to watch for signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("Failed to watch for signals")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

fn signals(events: &mpsc::Sender<Event>) -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    type Make = fn() -> Event;
    let kinds: [(SignalKind, Make); 3] = [
        (SignalKind::hangup(), || Event::Reload),
        (SignalKind::terminate(), || Event::Stop),
        (SignalKind::interrupt(), || Event::Stop),
    ];
    for (kind, event) in kinds {
        let mut signal = signal(kind).context("Failed to watch for signals")?;
        let events = events.clone();
        tokio::spawn(async move {
            while signal.recv().await.is_some() {
                if events.send(event()).await.is_err() {
                    return;
                }
            }
        });
    }
    Ok(())
}
