//! The kernel's WireGuard does not say when it begins a handshake. The packet filter does: it logs each initiation
//! (`udp sport $WG @th,64,32 0x01000000 log group $WG`), and [`Initiations`] reads the log.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd as _;

use netlink_packet_core::{NetlinkDeserializable as _, NetlinkHeader};
use netlink_packet_netfilter::nflog::{ConfigCmd, ConfigMode, ConfigNla, PacketNla, ULogMessage};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_NETFILTER;
use tokio::io::unix::AsyncFd;

use crate::HostError;
use crate::netlink::{Channel, HEADER};

/// Bytes of a packet that are wanted: an initiation with the headers before it takes 196.
const COPY: u32 = 256;
/// Larger than any message of the log with so little of one packet.
const MESSAGE: usize = 4096;
const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const UDP_HEADER: usize = 8;
const UDP: u8 = 17;

/// Handshake initiations that leave a WireGuard port.
#[derive(Debug)]
pub struct Initiations {
    log: AsyncFd<Socket>,
}

impl Initiations {
    /// Reads the log of a WireGuard port, in the namespace of the calling thread. [`crate::Demux::log_initiations`]
    /// writes it. Fails where the kernel has no packet log or another program reads this one.
    pub fn open(wireguard_port: u16) -> Result<Self, HostError> {
        let tried = || format!("read the packet log {wireguard_port}");
        let failed = |error: io::Error| HostError::from_io(tried(), &error);
        let mut channel = Channel::open(NETLINK_NETFILTER).map_err(failed)?;
        let bind = vec![ConfigNla::Cmd(ConfigCmd::Bind)];
        // One packet is told at once, without waiting for more.
        let how = vec![
            ConfigNla::Mode(ConfigMode::new_packet(COPY)),
            ConfigNla::QThresh(1),
        ];
        for nlas in [bind, how] {
            let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, wireguard_port);
            let message = NetfilterMessage::new(header, ULogMessage::Config(nlas));
            channel.request(message, 0).map_err(failed)?;
        }
        let socket = channel.into_socket();
        socket.set_non_blocking(true).map_err(failed)?;
        #[expect(
            deprecated,
            reason = "its successor is unsafe; the socket is owned here and never replaced"
        )]
        let log = AsyncFd::new(socket).map_err(failed)?;
        tracing::debug!(fd = log.as_raw_fd(), "Packet log opened");
        Ok(Self { log })
    }

    /// Waits for the next: where it goes, and its bytes.
    pub async fn next(&mut self) -> io::Result<(SocketAddr, Vec<u8>)> {
        let mut buffer = Vec::with_capacity(MESSAGE);
        loop {
            let mut guard = self.log.readable().await?;
            buffer.clear();
            let read = |socket: &AsyncFd<Socket>| {
                let received = socket.get_ref().recv(&mut buffer, libc::MSG_DONTWAIT);
                received.map(|_| ())
            };
            match guard.try_io(read) {
                Ok(Ok(())) => {
                    if let Some(found) = packet(&buffer).as_deref().and_then(initiation) {
                        return Ok(found);
                    }
                }
                // The log overran: what was lost is repeated by WireGuard.
                Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
    }
}

/// The packet in a message of the log.
fn packet(datagram: &[u8]) -> Option<Vec<u8>> {
    let length = datagram.first_chunk().map(|l| u32::from_ne_bytes(*l))?;
    let kind = datagram.get(4..6)?;
    let payload = datagram.get(HEADER..usize::try_from(length).ok()?)?;
    let mut header = NetlinkHeader::default();
    header.message_type = u16::from_ne_bytes([kind[0], kind[1]]);
    header.length = length;
    let message = NetfilterMessage::deserialize(&header, payload).ok()?;
    let NetfilterMessageInner::ULog(ULogMessage::Packet(nlas)) = message.inner else {
        return None;
    };
    nlas.into_iter().find_map(|nla| match nla {
        PacketNla::Payload(bytes) => Some(bytes),
        _ => None,
    })
}

/// Destination and payload of a UDP packet that begins with its IP header.
fn initiation(packet: &[u8]) -> Option<(SocketAddr, Vec<u8>)> {
    let (ip, udp) = match packet.first()? >> 4 {
        4 if packet.get(9) == Some(&UDP) => {
            let header = usize::from(packet[0] & 0x0f) * 4;
            let ip: [u8; 4] = packet.get(16..IPV4_HEADER)?.try_into().ok()?;
            (IpAddr::V4(Ipv4Addr::from(ip)), packet.get(header..)?)
        }
        6 if packet.get(6) == Some(&UDP) => {
            let ip: [u8; 16] = packet.get(24..IPV6_HEADER)?.try_into().ok()?;
            (IpAddr::V6(Ipv6Addr::from(ip)), packet.get(IPV6_HEADER..)?)
        }
        _ => return None,
    };
    let port = u16::from_be_bytes([*udp.get(2)?, *udp.get(3)?]);
    Some((SocketAddr::new(ip, port), udp.get(UDP_HEADER..)?.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destination_and_payload_are_read_in_both_families_and_nonsense_is_not() {
        let mut v4 = vec![
            0x46, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 192, 0, 2, 7,
        ];
        // An option, then UDP.
        v4.extend([0; 4]);
        v4.extend([0x50, 0, 0x51, 0x0f, 0, 12, 0, 0, 1, 0, 0, 0]);
        let found = initiation(&v4);
        assert_eq!(
            found,
            Some(("192.0.2.7:20751".parse().unwrap(), vec![1, 0, 0, 0]))
        );
        let mut v6 = vec![0; 40];
        (v6[0], v6[6], v6[39]) = (0x60, 17, 9);
        v6.extend([0x50, 0, 0, 7, 0, 9, 0, 0, 4]);
        assert_eq!(initiation(&v6), Some(("[::9]:7".parse().unwrap(), vec![4])));
        for end in 0..v6.len() - 1 {
            assert_eq!(initiation(&v6[..end]), None);
        }
        assert_eq!(packet(&v6), None);
    }
}
