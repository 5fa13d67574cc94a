//! Datagrams as they pass a machine: to whom, when, and what was in them.

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use super::netns::Namespace;

/// Ethernet and IPv4 headers without options.
const UDP: usize = 14 + 20;

/// A UDP datagram over IPv4.
#[derive(Clone, Debug)]
pub struct Datagram {
    /// When it was seen.
    pub at: Instant,
    /// Its source.
    pub from: SocketAddr,
    /// Its destination.
    pub to: SocketAddr,
    /// What it carries.
    pub payload: Vec<u8>,
}

/// Which datagrams are kept.
pub type Wanted = Box<dyn Fn(&Datagram) -> bool + Send>;

/// A listener on every interface of one namespace that keeps what is wanted.
pub struct Wire {
    stop: Arc<AtomicBool>,
    kept: Arc<Mutex<Vec<Datagram>>>,
    thread: Option<JoinHandle<()>>,
}

impl Wire {
    /// Listens in `namespace`.
    pub fn start(namespace: &Namespace, wanted: Wanted) -> Self {
        let mut socket = namespace.frames();
        let (stop, kept) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let thread = {
            let (stop, kept): (_, Arc<Mutex<Vec<Datagram>>>) =
                (Arc::clone(&stop), Arc::clone(&kept));
            thread::spawn(move || {
                let mut frame = vec![0; 80 * 1024];
                while !stop.load(Ordering::Relaxed) {
                    // Nothing within the timeout, or a link that went away.
                    let Ok(length) = socket.read(&mut frame) else {
                        continue;
                    };
                    if let Some(datagram) = datagram(&frame[..length]).filter(|one| wanted(one)) {
                        kept.lock().expect("nobody panics with it").push(datagram);
                    }
                }
            })
        };
        Self {
            stop,
            kept,
            thread: Some(thread),
        }
    }

    /// What was kept so far.
    pub fn kept(&self) -> Vec<Datagram> {
        self.kept.lock().expect("nobody panics with it").clone()
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The datagram in an Ethernet frame.
fn datagram(frame: &[u8]) -> Option<Datagram> {
    let udp = frame.get(UDP..).filter(|udp| udp.len() >= 8)?;
    if frame[12..15] != [0x08, 0x00, 0x45] || frame[23] != 17 {
        return None;
    }
    let ip = |at: usize| {
        let bytes: [u8; 4] = frame[at..at + 4].try_into().expect("four bytes");
        IpAddr::V4(Ipv4Addr::from(bytes))
    };
    let port = |at: usize| u16::from_be_bytes([udp[at], udp[at + 1]]);
    Some(Datagram {
        at: Instant::now(),
        from: SocketAddr::new(ip(26), port(0)),
        to: SocketAddr::new(ip(30), port(2)),
        payload: udp[8..].to_vec(),
    })
}
