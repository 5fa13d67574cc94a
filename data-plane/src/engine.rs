//! The handle other crates hold.

use std::io;
use std::net::{IpAddr, SocketAddr};

use mesh_types::plan::TunnelPlan;
use mesh_types::report::TunnelReport;

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
            tun_tcp: true,
            tun_udp: true,
            udp_send: true,
            udp_receive: true,
        }
    }
}

/// A datagram on the tunnel's port that is STUN, not WireGuard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlDatagram {
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
#[derive(Debug)]
pub struct Engine {}

impl Engine {
    /// Makes the TUN device (left down, without addresses) and the sockets, and starts the worker.
    /// `on_control` is called on the worker: it must return soon.
    pub fn start(
        settings: Settings,
        on_control: Box<dyn Fn(ControlDatagram) + Send + Sync>,
    ) -> Result<Self, EngineError> {
        let _ = (settings, on_control);
        Ok(Self {})
    }

    /// The UDP port in use.
    pub fn listen_port(&self) -> u16 {
        0
    }

    /// Makes peers, ranges, endpoints and keys as in the plan. Safe to repeat: only what changed since the last
    /// plan is touched, so an endpoint learned by roaming stays until the plan names another.
    pub fn apply(&self, plan: &TunnelPlan) {
        let _ = plan;
    }

    /// Sends a datagram from the tunnel's port: from `source` where given, with this TTL or hop limit.
    pub fn send_control(
        &self,
        source: Option<IpAddr>,
        destination: SocketAddr,
        ttl: Option<u8>,
        bytes: &[u8],
    ) -> io::Result<()> {
        let _ = (source, destination, ttl, bytes);
        Ok(())
    }

    /// What is known of peers there is a session or traffic for.
    pub fn report(&self) -> TunnelReport {
        TunnelReport::default()
    }

    /// Counters since the start, by name.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }

    /// Why the engine no longer carries packets, in one sentence; `None` while it does.
    pub fn failure(&self) -> Option<String> {
        None
    }
}
