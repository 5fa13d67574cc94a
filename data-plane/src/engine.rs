//! The handle other crates hold.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::{fmt, io};

use mesh_types::SocketId;
use mesh_types::plan::{Alias, TunnelPlan};
use mesh_types::report::TunnelReport;
use nix::sys::eventfd::{EfdFlags, EventFd};
use parking_lot::Mutex;

use crate::core::Core;
use crate::counters::{Count, Counters};
use crate::lent::{Adopted, Lent};
use crate::tun::Tun;
use crate::udp::Sockets;
use crate::worker::{self, Shared, Worker};

/// What is fixed for an engine's life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Name of the TUN device that is made; at most 15 bytes.
    pub interface: String,
    /// Its MTU, bytes.
    pub mtu: u16,
    /// UDP port for both families; 0 takes a free one.
    pub listen_port: u16,
    /// `SO_MARK` of all outer packets; 0 is none.
    pub fwmark: u32,
    /// Which offloads may be used.
    pub offload: Offload,
}

/// Offloads, all on by default. One that the kernel refuses turns itself off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offload {
    /// A header before each packet from and to the TUN (`IFF_VNET_HDR`); without it no super-packets cross the TUN.
    pub tun_header: bool,
    /// TCP super-packets from and to the TUN (TSO).
    pub tun_tcp: bool,
    /// UDP super-packets from and to the TUN (USO, Linux 6.2).
    pub tun_udp: bool,
    /// Many datagrams a send (`UDP_SEGMENT`).
    pub udp_send: bool,
    /// Many datagrams a receive (`UDP_GRO`).
    pub udp_receive: bool,
}

impl Default for Offload {
    fn default() -> Self {
        Self {
            tun_header: true,
            tun_tcp: true,
            tun_udp: true,
            udp_send: true,
            udp_receive: true,
        }
    }
}

/// A datagram that is STUN, not WireGuard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlDatagram {
    /// Which socket it came to.
    pub socket: SocketId,
    /// Where it arrived.
    pub local: SocketAddr,
    /// Who sent it.
    pub remote: SocketAddr,
    /// Its payload.
    pub bytes: Vec<u8>,
}

/// Why an engine did not start.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Somebody else has the UDP port, in one family at least.
    #[error("UDP port {0} is in use; stop the other program or choose another listen port")]
    PortInUse(u16),
    /// A UDP socket could not be made.
    #[error("opening UDP port {port} failed: {source}; it needs CAP_NET_ADMIN for the mark")]
    Udp {
        /// The port asked for.
        port: u16,
        /// What the kernel said.
        source: io::Error,
    },
    /// The TUN device could not be made.
    #[error(
        "creating the TUN device {name} failed: {source}; it needs /dev/net/tun, CAP_NET_ADMIN and a free name"
    )]
    Tun {
        /// The name asked for.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The worker could not be started.
    #[error("starting the packet thread failed: {0}")]
    Thread(io::Error),
}

/// A running engine. Dropping it ends its thread and removes the TUN device.
pub struct Engine {
    shared: Arc<Shared>,
    offload: Offload,
    fwmark: AtomicU32,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Engine(port {})", self.listen_port())
    }
}

impl Engine {
    /// Makes the TUN device (left down, without addresses) and the sockets, and starts the worker.
    /// `on_control` is called on the worker: it must return soon, and not drop the engine.
    pub fn start(
        settings: Settings,
        on_control: Box<dyn Fn(ControlDatagram) + Send + Sync>,
    ) -> Result<Self, EngineError> {
        let Settings {
            interface,
            mtu,
            listen_port,
            fwmark,
            offload,
        } = settings;
        let sockets = bind(listen_port, fwmark, offload)?;
        let tun = Tun::create(&interface, mtu, offload).map_err(|source| EngineError::Tun {
            name: interface.clone(),
            source,
        })?;
        let counters = Arc::new(Counters::default());
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|error| EngineError::Thread(error.into()))?;
        let shared = Arc::new(Shared {
            core: Mutex::new(Core::new(mtu, counters.clone())),
            sockets: Mutex::new(Arc::new(sockets)),
            lent: Mutex::default(),
            wake,
            stop: AtomicBool::new(false),
            failure: Mutex::new(None),
            initiations: OnceLock::new(),
            counters,
        });
        let cipher = batch_aead::best().name();
        tracing::info!(interface, cipher, "Tunnel is made in userspace");
        let worker =
            Worker::new(shared.clone(), tun, interface, on_control).map_err(EngineError::Thread)?;
        let thread = thread::Builder::new()
            .name("farspan-packets".into())
            .spawn(move || worker.run())
            .map_err(EngineError::Thread)?;
        Ok(Self {
            shared,
            offload,
            fwmark: AtomicU32::new(fwmark),
            thread: Some(thread),
        })
    }

    /// The UDP port in use.
    pub fn listen_port(&self) -> u16 {
        self.shared.sockets.lock().port()
    }

    /// Makes peers, ranges, endpoints and keys as in the plan. Safe to repeat: only what changed since the last
    /// plan is touched, so an endpoint learned by roaming stays until the plan names another.
    pub fn apply(&self, plan: &TunnelPlan) {
        self.apply_sockets(plan);
        self.shared.core.lock().apply(plan, worker::now());
        self.wake();
    }

    /// Another port or mark. If the port cannot be had the present one stays, and
    /// [`Engine::listen_port`] says so.
    fn apply_sockets(&self, plan: &TunnelPlan) {
        let before = self.fwmark.swap(plan.fwmark, Ordering::Relaxed);
        if plan.listen_port != 0 && plan.listen_port != self.listen_port() {
            match bind(plan.listen_port, plan.fwmark, self.offload) {
                Ok(sockets) => *self.shared.sockets.lock() = Arc::new(sockets),
                Err(error) => {
                    tracing::warn!(port = plan.listen_port, %error, "Kept the old UDP port");
                    self.shared.counters.add(Count::RebindFailed, 1);
                }
            }
        }
        if before != plan.fwmark
            && let Err(error) = self.shared.sockets.lock().set_mark(plan.fwmark)
        {
            tracing::warn!(mark = plan.fwmark, %error, "Setting the mark failed");
        }
    }

    /// Lends sockets to single peers, and shows what an alias calls late as if it came by the path in use; what is not
    /// named any more is given back. Safe to repeat. Whoever lends a socket must not read it meanwhile; its control
    /// datagrams come by the engine, and it may be sent from. A socket that cannot be used is left out, and told of.
    pub fn lend(&self, adopted: &[Adopted], aliases: &BTreeSet<Alias>) -> Result<(), String> {
        let before = self.shared.lent.lock().clone();
        let (lent, failure) = Lent::new(&before, adopted, aliases);
        if lent != *before {
            *self.shared.lent.lock() = Arc::new(lent);
            self.wake();
        }
        failure.map_or(Ok(()), Err)
    }

    /// Sends a datagram from the tunnel's port: from `source` where given, with this TTL or hop limit.
    pub fn send_control(
        &self,
        source: Option<IpAddr>,
        destination: SocketAddr,
        ttl: Option<u8>,
        bytes: &[u8],
    ) -> io::Result<()> {
        let sockets = self.shared.sockets.lock().clone();
        sockets.send_control(source, destination, ttl, bytes)
    }

    /// Tells of every handshake initiation from now on: where it goes, and its bytes. Called on the worker, before it
    /// is sent: it must return soon, and not drop the engine. Only the first call counts.
    pub fn tell_initiations(&self, told: impl Fn(SocketAddr, &[u8]) + Send + Sync + 'static) {
        let _ = self.shared.initiations.set(Box::new(told));
    }

    /// What is known of peers there is a session or traffic for.
    pub fn report(&self) -> TunnelReport {
        self.shared.core.lock().report(worker::now())
    }

    /// Counters since the start, by name. `udp_overrun` is the kernel's: what was lost because the port's receive buffers
    /// were full, since it was bound.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        let mut all = self.shared.counters.all();
        all.retain(|(label, _)| !label.starts_with("relay_"));
        all.push(("udp_overrun", self.shared.sockets.lock().overrun()));
        all
    }

    /// Why the engine no longer carries packets, in one sentence; `None` while it does.
    pub fn failure(&self) -> Option<String> {
        self.shared.failure.lock().clone()
    }

    fn wake(&self) {
        // Fails only when 2^64 - 2 wake-ups are pending, and then the worker wakes anyway.
        let _ = self.shared.wake.write(1);
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn bind(port: u16, fwmark: u32, offload: Offload) -> Result<Sockets, EngineError> {
    Sockets::bind(port, fwmark, offload.udp_send, offload.udp_receive)
}
