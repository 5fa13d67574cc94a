//! A host that is no node and opens a new flow again and again: it takes ports from the translator before it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use sim_net::{HostId, Network};

#[derive(Debug)]
pub struct Noise {
    host: HostId,
    every: Duration,
    pub next: Instant,
    port: u16,
}

impl Noise {
    pub fn new(host: HostId, every: Duration, now: Instant) -> Self {
        Self {
            host,
            every,
            next: now,
            port: 1024,
        }
    }

    /// One new flow, where it is time.
    pub fn send(&mut self, net: &mut Network, now: Instant) {
        if self.next > now {
            return;
        }
        self.next = now + self.every;
        self.port = self.port.checked_add(1).unwrap_or(1024);
        let source = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), self.port);
        let server = SocketAddr::from(([5, 200, 0, 1], 53));
        let _ = net.send(self.host, source, server, vec![0; 40], None);
    }
}
