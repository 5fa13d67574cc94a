//! A STUN server that is no node: says under which address a Binding request arrived.

use std::net::SocketAddr;

use sim_net::{Delivery, Network};

/// Where it listens.
pub const PORT: u16 = 3478;
const COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];

/// Answers a Binding request (RFC 8489) of IPv4.
pub fn answer(net: &mut Network, delivery: &Delivery) {
    let SocketAddr::V4(remote) = delivery.remote else {
        return;
    };
    let Some(transaction) = delivery.bytes.get(8..20) else {
        return;
    };
    if !delivery.bytes.starts_with(&[0x00, 0x01]) || delivery.bytes[4..8] != COOKIE {
        return;
    }
    let mut bytes = vec![0x01, 0x01, 0, 12];
    bytes.extend(COOKIE);
    bytes.extend(transaction);
    bytes.extend([0x00, 0x20, 0, 8, 0, 1]);
    let port = remote.port().to_be_bytes();
    bytes.extend(port.iter().zip(COOKIE).map(|(byte, mask)| byte ^ mask));
    let ip = remote.ip().octets();
    bytes.extend(ip.iter().zip(COOKIE).map(|(byte, mask)| byte ^ mask));
    let _ = net.send(delivery.host, delivery.local, delivery.remote, bytes, None);
}
