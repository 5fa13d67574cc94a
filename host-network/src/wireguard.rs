//! The kernel's WireGuard: a device that is created or taken over, and told only what differs.

mod delta;
mod device;

use std::io;
use std::time::Duration;

use defguard_wireguard_rs::key::Key;
use defguard_wireguard_rs::{Kernel, WGApi, WireguardInterfaceApi as _};
use mesh_types::plan::TunnelPlan;
use mesh_types::report::{TunnelReport, TunnelStats};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::time::{ClockId, clock_gettime};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkMessage};
use rtnetlink::{LinkUnspec, LinkWireguard};

use crate::HostError;
use crate::link::Link;
use crate::netlink::Channel;
use delta::{Asserted, delta, reassert};
use device::Connection;

/// A kernel WireGuard device of ours. Dropping it leaves the device, its sessions and its traffic as they are.
#[derive(Debug)]
pub struct Wireguard {
    name: String,
    connection: Connection,
    asserted: Asserted,
}

impl Wireguard {
    /// Has this kernel WireGuard, and may we use it? Creates a device and deletes it again, for there is no other way to know.
    pub fn probe() -> bool {
        let name = format!("fsprobe{}", std::process::id());
        let Ok(mut links) = Links::open() else {
            return false;
        };
        links.create(&name).is_ok() && links.delete(&name).is_ok() && Connection::open().is_ok()
    }

    /// The UDP port that the WireGuard device of that name holds: an earlier run's, to be taken over with it.
    pub fn port_of(name: &str) -> Option<u16> {
        let device = Connection::open().ok()?.read(name).ok()?;
        Some(device.listen_port).filter(|port| *port != 0)
    }

    /// Creates the device, or adopts the WireGuard device of that name and keeps its sessions; applies the plan and
    /// brings it up. Addresses and MTU come by [`crate::Host::converge`]. On failure a device created here is deleted again.
    pub fn open(name: &str, plan: &TunnelPlan) -> Result<Self, HostError> {
        let failed = |tried: String| move |error: io::Error| HostError::from_io(tried, &error);
        let mut links = Links::open().map_err(failed("open a netlink connection".to_owned()))?;
        let found = links
            .find(name)
            .map_err(failed(format!("look for the link {name}")))?;
        let created = match found {
            Some(link) if link.kind != InfoKind::Wireguard.to_string() => {
                return Err(HostError::ForeignDevice {
                    name: name.to_owned(),
                    kind: if link.kind.is_empty() {
                        "hardware".to_owned()
                    } else {
                        link.kind
                    },
                });
            }
            Some(_) => false,
            None => {
                create(&mut links, name)?;
                true
            }
        };
        let opened = Self::take(name, plan).and_then(|wireguard| {
            let tried = format!("bring {name} up");
            match links.up(name) {
                Err(error) if error.raw_os_error() == Some(libc::EADDRINUSE) => {
                    Err(HostError::PortInUse {
                        port: plan.listen_port,
                    })
                }
                result => result.map_err(failed(tried)).map(|()| wireguard),
            }
        });
        if created && opened.is_err() {
            let _ = links.delete(name);
        }
        opened
    }

    fn take(name: &str, plan: &TunnelPlan) -> Result<Self, HostError> {
        let connection = Connection::open().map_err(|error| {
            HostError::from_io("find WireGuard among the kernel's netlink families", &error)
        })?;
        let mut wireguard = Self {
            name: name.to_owned(),
            connection,
            asserted: Asserted::new(),
        };
        wireguard.apply(plan)?;
        Ok(wireguard)
    }

    /// Makes the device equal to the plan by per-peer deltas. Idempotent; returns the number of messages it took.
    ///
    /// `previous_key` is not used: the kernel goes on receiving in the sessions of its last private key by itself.
    pub fn apply(&mut self, plan: &TunnelPlan) -> Result<usize, HostError> {
        let device = self.read()?;
        let delta = delta(&device, plan, &mut self.asserted, wall_clock());
        let count = delta.messages.len() + delta.stale.len();
        for message in delta.messages {
            self.connection
                .write(&self.name, message)
                .map_err(|error| self.refused(plan, &error))?;
        }
        if !delta.stale.is_empty() {
            let api = WGApi::<Kernel>::new(self.name.clone())
                .map_err(|error| self.failed("open", &error))?;
            for key in delta.stale {
                api.remove_peer(&Key::new(key.0))
                    .map_err(|error| self.failed(&format!("remove the peer {key} from"), &error))?;
            }
        }
        Ok(count)
    }

    /// What WireGuard knows of its peers.
    ///
    /// For 5 s after an endpoint was set this also sets it again where the kernel roamed back: packets that were still on
    /// their way by the old path do that. So ask some 500 ms after an [`Self::apply`] that moved a peer in use.
    pub fn report(&mut self) -> Result<TunnelReport, HostError> {
        let now = wall_clock();
        let mut device = self.read()?;
        for (key, endpoint, message) in reassert(&device, &self.asserted, now) {
            let tried = format!("set an endpoint of {} again", self.name);
            self.connection
                .write(&self.name, message)
                .map_err(|error| HostError::from_io(tried, &error))?;
            if let Some(peer) = device.peers.get_mut(&key) {
                peer.endpoint = Some(endpoint);
            }
        }
        let peers = device.peers.into_iter().map(|(key, peer)| {
            let stats = TunnelStats {
                endpoint: peer.endpoint.map(device::plain),
                handshake_age: (peer.handshake != Duration::ZERO)
                    .then(|| now.saturating_sub(peer.handshake)),
                rx_bytes: peer.rx_bytes,
                tx_bytes: peer.tx_bytes,
            };
            (key, stats)
        });
        Ok(TunnelReport {
            peers: peers.collect(),
        })
    }

    /// The UDP port the device listens on.
    pub fn listen_port(&mut self) -> Result<u16, HostError> {
        Ok(self.read()?.listen_port)
    }

    /// Deletes the device. One that is gone already counts as deleted.
    pub fn delete(self) -> Result<(), HostError> {
        let name = self.name;
        Links::open()
            .and_then(|mut links| links.delete(&name))
            .map_err(|error| HostError::from_io(format!("delete the link {name}"), &error))
    }

    fn read(&mut self) -> Result<device::Device, HostError> {
        self.connection.read(&self.name).map_err(|error| {
            HostError::from_io(format!("read the WireGuard device {}", self.name), &error)
        })
    }

    fn refused(&self, plan: &TunnelPlan, error: &io::Error) -> HostError {
        if error.raw_os_error() == Some(libc::EADDRINUSE) {
            HostError::PortInUse {
                port: plan.listen_port,
            }
        } else {
            let tried = format!("configure the WireGuard device {}", self.name);
            HostError::from_io(tried, error)
        }
    }

    fn failed(
        &self,
        verb: &str,
        error: &defguard_wireguard_rs::error::WireguardInterfaceError,
    ) -> HostError {
        HostError::Refused {
            tried: format!("{verb} the WireGuard device {}", self.name),
            answer: error.to_string(),
        }
    }
}

/// Creates the device. Whether this kernel can is asked first, for the answer of a name that exists is the same as of success.
fn create(links: &mut Links, name: &str) -> Result<(), HostError> {
    links
        .create(name)
        .map_err(|error| match error.raw_os_error() {
            Some(libc::EOPNOTSUPP) => HostError::NoWireguard {
                name: name.to_owned(),
            },
            Some(_) | None => {
                HostError::from_io(format!("create the WireGuard device {name}"), &error)
            }
        })
}

fn wall_clock() -> Duration {
    clock_gettime(ClockId::CLOCK_REALTIME).map_or(Duration::ZERO, Duration::from)
}

/// rtnetlink without a task: the few requests about links that come before everything else.
struct Links(Channel);

impl Links {
    fn open() -> io::Result<Self> {
        Channel::open(NETLINK_ROUTE).map(Self)
    }

    fn find(&mut self, name: &str) -> io::Result<Option<Link>> {
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::IfName(name.to_owned())];
        match self.0.request(RouteNetlinkMessage::GetLink(message), 0) {
            Ok(answers) => Ok(answers.iter().find_map(|answer| match answer {
                RouteNetlinkMessage::NewLink(link) => Some(Link::parse(link)),
                _ => None,
            })),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn create(&mut self, name: &str) -> io::Result<()> {
        let message = RouteNetlinkMessage::NewLink(LinkWireguard::new(name).build());
        self.0.request(message, NLM_F_CREATE | NLM_F_EXCL).map(drop)
    }

    fn up(&mut self, name: &str) -> io::Result<()> {
        let message = LinkUnspec::new_with_name(name).up().build();
        self.0
            .request(RouteNetlinkMessage::SetLink(message), 0)
            .map(drop)
    }

    fn delete(&mut self, name: &str) -> io::Result<()> {
        let Some(link) = self.find(name)? else {
            return Ok(());
        };
        let mut message = LinkMessage::default();
        message.header.index = link.index;
        self.0
            .request(RouteNetlinkMessage::DelLink(message), 0)
            .map(drop)
    }
}
