//! Paths that carry less than IPv6 asks for.
//!
//! WireGuard's datagrams are as long as what they carry, and a packet of IPv6 may always have 1280 bytes. Where
//! the path outside carries less, they have to travel in fragments, which the kernel makes for a destination of
//! which ICMP has told a lower path MTU (RFC 1191, RFC 8201). A network that drops what is too long without a
//! word tells nothing, so the host tells itself what probes have found, by the message that should have come. The
//! kernel forgets it after ten minutes, and with the route; it is asked often. What holds no more is taken back,
//! because not every network lets fragments pass.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, sendto, setsockopt,
    socket, sockopt,
};

use tracing::debug;

use crate::netlink::Routing;
use crate::{HostError, route, sys};

/// Where the sockets that are asked by would send to (discard, RFC 863); nothing is sent.
const PORT: u16 = 9;
const UDP: u8 = 17;
const HOPS: u8 = 64;

/// Empties the kernel's cache of IPv4 routes, and what it has learned of each. It has no other way.
const FORGET_V4: &str = "/proc/sys/net/ipv4/route/flush";

/// What the kernel was told.
#[derive(Debug, Default)]
pub(crate) struct Underlay {
    told: BTreeMap<IpAddr, u16>,
}

impl Underlay {
    /// Makes the kernel send datagrams that are longer than these limits (bytes of IP) in fragments. `mark` leads
    /// past the mesh's own routes.
    pub(crate) async fn converge(
        &mut self,
        routing: &mut Routing,
        limits: &BTreeMap<IpAddr, u16>,
        mark: u32,
    ) -> Result<(), HostError> {
        let holds = |remote, told| limits.get(remote).is_some_and(|limit| limit <= told);
        let gone = self
            .told
            .iter()
            .filter(|(remote, told)| !holds(*remote, *told));
        for (remote, _) in gone {
            match remote {
                IpAddr::V4(_) => {
                    if let Err(error) = std::fs::write(FORGET_V4, "1") {
                        debug!(%remote, %error, "The kernel keeps a path MTU until it expires");
                    }
                }
                IpAddr::V6(remote) => route::forget(routing, *remote, mark).await?,
            }
        }
        self.told.clone_from(limits);
        self.hold(mark)
    }

    /// Repeats what the kernel has forgotten.
    pub(crate) fn hold(&self, mark: u32) -> Result<(), HostError> {
        hold(&self.told, mark)
    }
}

fn hold(limits: &BTreeMap<IpAddr, u16>, mark: u32) -> Result<(), HostError> {
    let mut result = Ok(());
    for (remote, limit) in limits {
        match tell(*remote, *limit, mark) {
            Ok(()) => {}
            Err(error) if is_off(&error) => {}
            Err(error) => {
                let tried =
                    format!("have datagrams to {remote} sent in fragments of {limit} bytes");
                // Whoever got as far as this has CAP_NET_ADMIN.
                result = Err(HostError::from_raw(tried, &error));
            }
        }
    }
    result
}

/// There is no way to there for the moment, so nothing can get lost on it.
fn is_off(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EADDRNOTAVAIL | libc::EAFNOSUPPORT)
    )
}

fn tell(remote: IpAddr, limit: u16, mark: u32) -> io::Result<()> {
    let any: IpAddr = match remote {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let asked = UdpSocket::bind((any, 0))?;
    setsockopt(&asked.as_fd(), sockopt::Mark, &mark)?;
    asked.connect((remote, PORT))?;
    let known = sys::path_mtu(&asked, remote.is_ipv6())?;
    if known <= u32::from(limit) {
        return Ok(());
    }
    let own = asked.local_addr()?;
    let (family, protocol, message) = match (own.ip(), remote) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let message = fragmentation_needed(from, to, own.port(), limit);
            (AddressFamily::Inet, SockProtocol::Icmp, message)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let message = packet_too_big(from, to, own.port(), limit);
            (AddressFamily::Inet6, SockProtocol::IcmpV6, message)
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return Ok(()),
    };
    let raw = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
    let to = SockaddrStorage::from(SocketAddr::new(own.ip(), 0));
    // It is delivered, and finds the socket it is about, before this returns.
    sendto(raw.as_raw_fd(), &message, &to, MsgFlags::empty())?;
    Ok(())
}

/// RFC 792 and RFC 1191 4, about a datagram from `port` there. The kernel leaves the checksum to the sender.
fn fragmentation_needed(from: Ipv4Addr, to: Ipv4Addr, port: u16, limit: u16) -> Vec<u8> {
    let mut bytes = vec![3, 4, 0, 0, 0, 0];
    bytes.extend(limit.to_be_bytes());
    bytes.extend([0x45, 0]);
    bytes.extend(limit.saturating_add(1).to_be_bytes());
    // "Don't fragment".
    bytes.extend([0, 0, 0x40, 0, HOPS, UDP, 0, 0]);
    bytes.extend(from.octets());
    bytes.extend(to.octets());
    bytes.extend(udp(port));
    let sum = checksum(&bytes);
    bytes[2..4].copy_from_slice(&sum.to_be_bytes());
    bytes
}

/// RFC 4443 3.2; the kernel fills the checksum in.
fn packet_too_big(from: Ipv6Addr, to: Ipv6Addr, port: u16, limit: u16) -> Vec<u8> {
    let mut bytes = vec![2, 0, 0, 0, 0, 0];
    bytes.extend(limit.to_be_bytes());
    bytes.extend([0x60, 0, 0, 0]);
    bytes.extend(limit.to_be_bytes());
    bytes.extend([UDP, HOPS]);
    bytes.extend(from.octets());
    bytes.extend(to.octets());
    bytes.extend(udp(port));
    bytes
}

fn udp(port: u16) -> [u8; 8] {
    let ([a, b], [c, d]) = (port.to_be_bytes(), PORT.to_be_bytes());
    [a, b, c, d, 0, 8, 0, 0]
}

/// RFC 1071, of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks_exact(2);
    let sum: u32 = words
        .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_with_its_checksum_sums_up_to_nothing() {
        let [from, to] = ["192.0.2.1", "198.51.100.255"].map(|ip| ip.parse().unwrap());
        for limit in [1260, 1300, 0xffff] {
            let message = fragmentation_needed(from, to, 40_000, limit);
            assert_eq!(message.len(), 36);
            assert_eq!(checksum(&message), 0, "{limit}");
        }
    }
}
