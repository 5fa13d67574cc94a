//! The WireGuard device over generic netlink: what it holds, and messages that change one peer at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use mesh_types::key::WgKey;
use netlink_packet_core::NLM_F_ACK;
use netlink_packet_generic::GenlMessage;
use netlink_packet_generic::ctrl::nlas::GenlCtrlAttrs;
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd};
use netlink_packet_wireguard::{
    WireguardAddressFamily, WireguardAllowedIp, WireguardAllowedIpAttr, WireguardAttribute,
    WireguardCmd, WireguardMessage, WireguardPeer, WireguardPeerAttribute, WireguardTimeSpec,
};
use netlink_sys::protocols::NETLINK_GENERIC;

use crate::netlink::Channel;

/// What a device holds. The preshared and private keys are compared, never printed.
#[derive(Default)]
pub(super) struct Device {
    pub(super) private_key: Option<[u8; 32]>,
    pub(super) listen_port: u16,
    pub(super) fwmark: u32,
    pub(super) peers: BTreeMap<WgKey, Peer>,
}

/// What a device knows of a peer.
#[derive(Default)]
pub(super) struct Peer {
    pub(super) preshared_key: [u8; 32],
    pub(super) endpoint: Option<SocketAddr>,
    /// Seconds; 0 is off.
    pub(super) keepalive: u16,
    /// Since the Unix epoch; zero is never.
    pub(super) handshake: Duration,
    pub(super) rx_bytes: u64,
    pub(super) tx_bytes: u64,
    pub(super) allowed_ips: BTreeSet<IpNet>,
}

/// Generic netlink, and the number the kernel gave WireGuard's family.
#[derive(Debug)]
pub(super) struct Connection {
    channel: Channel,
    family: u16,
}

impl Connection {
    /// Loads the module where it is not loaded yet. `ENOENT`: this kernel has none.
    pub(super) fn open() -> io::Result<Self> {
        let mut channel = Channel::open(NETLINK_GENERIC)?;
        let request = GenlMessage::from_payload(GenlCtrl {
            cmd: GenlCtrlCmd::GetFamily,
            nlas: vec![GenlCtrlAttrs::FamilyName("wireguard".to_owned())],
        });
        let answers = channel.request(request, 0)?;
        let family = answers
            .iter()
            .flat_map(|answer| &answer.payload.nlas)
            .find_map(|attribute| match attribute {
                GenlCtrlAttrs::FamilyId(id) => Some(*id),
                _ => None,
            })
            .ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))?;
        Ok(Self { channel, family })
    }

    fn message(
        &self,
        cmd: WireguardCmd,
        attributes: Vec<WireguardAttribute>,
    ) -> GenlMessage<WireguardMessage> {
        let mut message = GenlMessage::from_payload(WireguardMessage { cmd, attributes });
        message.set_resolved_family_id(self.family);
        message
    }

    /// Reads all there is to know of a device.
    pub(super) fn read(&mut self, name: &str) -> io::Result<Device> {
        let name = vec![WireguardAttribute::IfName(name.to_owned())];
        let request = self.message(WireguardCmd::GetDevice, name);
        let mut device = Device::default();
        for part in self.channel.dump(&request)? {
            device.read_part(part.payload.attributes);
        }
        Ok(device)
    }

    /// Changes a device.
    pub(super) fn write(
        &mut self,
        name: &str,
        attributes: Vec<WireguardAttribute>,
    ) -> io::Result<()> {
        let mut all = vec![WireguardAttribute::IfName(name.to_owned())];
        all.extend(attributes);
        let request = self.message(WireguardCmd::SetDevice, all);
        self.channel.request(request, NLM_F_ACK).map(drop)
    }
}

impl Device {
    /// A device of many peers, and a peer of many ranges, comes in several messages.
    fn read_part(&mut self, attributes: Vec<WireguardAttribute>) {
        for attribute in attributes {
            match attribute {
                WireguardAttribute::PrivateKey(key) => self.private_key = Some(key),
                WireguardAttribute::ListenPort(port) => self.listen_port = port,
                WireguardAttribute::Fwmark(mark) => self.fwmark = mark,
                WireguardAttribute::Peers(peers) => {
                    for peer in peers {
                        self.read_peer(peer);
                    }
                }
                _ => {}
            }
        }
    }

    fn read_peer(&mut self, part: WireguardPeer) {
        let Some(key) = part.0.iter().find_map(|attribute| match attribute {
            WireguardPeerAttribute::PublicKey(key) => Some(WgKey(*key)),
            _ => None,
        }) else {
            return;
        };
        let peer = self.peers.entry(key).or_default();
        for attribute in part.0 {
            match attribute {
                WireguardPeerAttribute::PresharedKey(key) => peer.preshared_key = key,
                WireguardPeerAttribute::Endpoint(endpoint) => peer.endpoint = Some(endpoint),
                WireguardPeerAttribute::PersistentKeepalive(seconds) => peer.keepalive = seconds,
                WireguardPeerAttribute::LastHandshake(time) => peer.handshake = since_epoch(time),
                WireguardPeerAttribute::RxBytes(bytes) => peer.rx_bytes = bytes,
                WireguardPeerAttribute::TxBytes(bytes) => peer.tx_bytes = bytes,
                WireguardPeerAttribute::AllowedIps(ranges) => {
                    peer.allowed_ips.extend(ranges.iter().filter_map(range));
                }
                _ => {}
            }
        }
    }
}

fn since_epoch(time: WireguardTimeSpec) -> Duration {
    Duration::new(
        u64::try_from(time.seconds).unwrap_or(0),
        u32::try_from(time.nano_seconds)
            .unwrap_or(0)
            .min(999_999_999),
    )
}

fn range(allowed_ip: &WireguardAllowedIp) -> Option<IpNet> {
    let mut ip = None;
    let mut len = None;
    for attribute in &allowed_ip.0 {
        match attribute {
            WireguardAllowedIpAttr::IpAddr(address) => ip = Some(*address),
            WireguardAllowedIpAttr::Cidr(bits) => len = Some(*bits),
            _ => {}
        }
    }
    IpNet::new(ip?, len?).ok()
}

/// A range as the kernel wants it.
pub(super) fn allowed_ip(net: &IpNet) -> WireguardAllowedIp {
    let family = match net.addr() {
        IpAddr::V4(_) => WireguardAddressFamily::Ipv4,
        IpAddr::V6(_) => WireguardAddressFamily::Ipv6,
    };
    WireguardAllowedIp(vec![
        WireguardAllowedIpAttr::Family(family),
        WireguardAllowedIpAttr::IpAddr(net.network()),
        WireguardAllowedIpAttr::Cidr(net.prefix_len()),
    ])
}

/// The endpoint as the kernel gives it back: without what a socket address has beside address and port.
pub(super) fn plain(endpoint: SocketAddr) -> SocketAddr {
    match endpoint.ip() {
        IpAddr::V4(ip) => SocketAddr::from((Ipv4Addr::from(ip.octets()), endpoint.port())),
        IpAddr::V6(ip) => SocketAddr::from((Ipv6Addr::from(ip.octets()), endpoint.port())),
    }
}
