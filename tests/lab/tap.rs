//! Listening on underlay links: does a marker appear, and who sent how much to whom.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use super::netns::Namespace;

/// A frame of segmentation offload is this long at most, with its headers.
const FRAME_MAX: usize = 80 * 1024;

/// A listener on every interface of one namespace.
pub struct Tap {
    name: String,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    hits: AtomicU64,
    frames: AtomicU64,
    flows: Mutex<BTreeMap<(IpAddr, IpAddr), u64>>,
}

impl Tap {
    /// Listens for `marker` on all interfaces of `namespace`.
    pub fn start(namespace: &Namespace, marker: &'static [u8]) -> Self {
        let mut socket = namespace.frames();
        let shared = Arc::new(Shared::default());
        let thread = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || listen(&mut socket, &shared, marker))
        };
        Self {
            name: namespace.name().to_owned(),
            shared,
            thread: Some(thread),
        }
    }

    /// Where it listens.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Frames that held the marker.
    pub fn hits(&self) -> u64 {
        self.shared.hits.load(Ordering::Relaxed)
    }

    /// Frames seen.
    pub fn frames(&self) -> u64 {
        self.shared.frames.load(Ordering::Relaxed)
    }

    /// Bytes of IP packets between two addresses, both ways. A packet counts once per interface it crosses.
    pub fn bytes_between(&self, a: IpAddr, b: IpAddr) -> u64 {
        let flows = self
            .shared
            .flows
            .lock()
            .expect("the listener does not panic");
        [(a, b), (b, a)]
            .iter()
            .filter_map(|pair| flows.get(pair))
            .sum()
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn listen(socket: &mut impl Read, shared: &Shared, marker: &[u8]) {
    let mut buffer = vec![0; FRAME_MAX];
    while !shared.stop.load(Ordering::Relaxed) {
        let length = match socket.read(&mut buffer) {
            Ok(length) => length,
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                continue;
            }
            // A link that goes away is reported once on a listening socket.
            Err(_) => continue,
        };
        let frame = &buffer[..length];
        shared.frames.fetch_add(1, Ordering::Relaxed);
        if contains(frame, marker) {
            shared.hits.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(pair) = addresses(frame) {
            let mut flows = shared
                .flows
                .lock()
                .expect("nobody panics with the lock held");
            *flows.entry(pair).or_default() += length as u64;
        }
    }
}

/// Whether `marker` is in `frame`: looks for its first byte, which is rare in a frame, then for the rest.
fn contains(frame: &[u8], marker: &[u8]) -> bool {
    let mut rest = frame;
    while let Some(at) = rest.iter().position(|&byte| byte == marker[0]) {
        if rest[at..].starts_with(marker) {
            return true;
        }
        rest = &rest[at + 1..];
    }
    false
}

/// Source and destination of the IP packet in an Ethernet frame.
fn addresses(frame: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let kind = u16::from_be_bytes(frame.get(12..14)?.try_into().ok()?);
    let packet = frame.get(14..)?;
    match kind {
        0x0800 => {
            let at = |offset: usize| {
                let bytes: [u8; 4] = packet.get(offset..offset + 4)?.try_into().ok()?;
                Some(IpAddr::V4(Ipv4Addr::from(bytes)))
            };
            Some((at(12)?, at(16)?))
        }
        0x86dd => {
            let at = |offset: usize| {
                let bytes: [u8; 16] = packet.get(offset..offset + 16)?.try_into().ok()?;
                Some(IpAddr::V6(Ipv6Addr::from(bytes)))
            };
            Some((at(8)?, at(24)?))
        }
        _ => None,
    }
}
