//! One cell of the matrix of what must connect: two nodes behind NATs and a public relay; what must come of it, by
//! which figures, and how that is measured.

use std::fmt;
use std::net::{IpAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::lab::agent::PATIENCE;
use crate::lab::coturn::Coturn;
use crate::lab::netns::Namespace;
use crate::lab::traffic::{ECHO_PORT, Echo, udp_exchange};
use crate::lab::wait::{pause, wait_until};
use crate::lab::{Lab, LinkState, Nat, NatKind, Node, Site};
use crate::scene::{add_turn, relay_founder};

/// How often both ends are asked for the state of their path.
const GLANCE: Duration = Duration::from_millis(20);
/// Pace of the stream from pod to pod.
const PACE: Duration = Duration::from_millis(5);
/// A first packet, relayed or direct, must have been answered after so long (median).
pub const FIRST_PACKET: Duration = Duration::from_millis(300);
/// Datagrams of [`Pair::weigh`], answered each, and their length.
const LOAD: (u32, usize) = (500, 1000);
/// What a TURN server and those who may use it share.
const SECRET: &str = "north-by-northwest";

/// What lies before a node: rows and columns of the matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Endpoint-independent mapping, everybody let in.
    Open,
    /// Endpoint-independent mapping, filtered by address.
    Adf,
    /// Endpoint-independent mapping, filtered by address and port.
    Apdf,
    /// Mapping by address.
    Adm,
    /// Mapping by address and port, sequential.
    Seq,
    /// Mapping by address and port, in a block of 2048.
    Blk,
    /// Mapping by address and port, at random.
    Rand,
    /// No UDP at all; TCP is mapped endpoint-independently. A TURN server is reached over TCP.
    NoUdp,
}

/// How a pair must reach each other at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Over a direct path.
    Direct,
    /// Through a relay.
    Relay,
}

impl Class {
    /// Every class, in the order of the matrix.
    pub const ALL: [Self; 8] = [
        Self::Open,
        Self::Adf,
        Self::Apdf,
        Self::Adm,
        Self::Seq,
        Self::Blk,
        Self::Rand,
        Self::NoUdp,
    ];

    /// Every pair once.
    pub fn pairs() -> impl Iterator<Item = (Self, Self)> {
        let all = Self::ALL.into_iter();
        all.flat_map(|a| {
            let rest = Self::ALL.into_iter().filter(move |b| *b >= a);
            rest.map(move |b| (a, b))
        })
    }

    /// The router before it.
    pub const fn nat(self) -> Nat {
        Nat::new(match self {
            Self::Open => NatKind::Eif,
            Self::Adf => NatKind::Adf,
            Self::Apdf | Self::NoUdp => NatKind::Prc,
            Self::Adm => NatKind::ByAddress,
            Self::Seq => NatKind::Sequential,
            Self::Blk => NatKind::Block,
            Self::Rand => NatKind::Symmetric,
        })
    }

    const fn is_hard(self) -> bool {
        match self {
            Self::Open | Self::Adf | Self::Apdf | Self::NoUdp => false,
            Self::Adm | Self::Seq | Self::Blk | Self::Rand => true,
        }
    }

    /// What must come of a pair.
    pub fn way(self, other: Self) -> Way {
        let pair = (self.min(other), self.max(other));
        match pair {
            // A TCP connection.
            (Self::NoUdp, Self::NoUdp) => Way::Direct,
            (_, Self::NoUdp) => Way::Relay,
            (Self::Open | Self::Adf | Self::Apdf, _)
            | (Self::Seq, Self::Seq)
            | (Self::Blk, Self::Blk) => Way::Direct,
            (Self::Adm | Self::Seq | Self::Blk | Self::Rand | Self::NoUdp, _) => Way::Relay,
        }
    }

    /// From the start of the second agent to the direct path, where there must be one.
    pub fn figure(self, other: Self) -> Duration {
        let (easier, harder) = (self.min(other), self.max(other));
        match (easier, harder) {
            (_, Self::NoUdp) => Duration::from_secs(3),
            (Self::Blk, _) => Duration::from_secs(6),
            (Self::Seq, _) | (Self::Apdf, Self::Seq) => Duration::from_secs(2),
            (Self::Apdf, Self::Blk) => Duration::from_secs(3),
            (Self::Apdf, Self::Adm | Self::Rand) | (Self::Adm | Self::Rand | Self::NoUdp, _) => {
                Duration::from_secs(10)
            }
            (Self::Open | Self::Adf | Self::Apdf, _) => Duration::from_millis(500),
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "OPEN/EIF",
            Self::Adf => "ADF",
            Self::Apdf => "EIM+APDF",
            Self::Adm => "ADM",
            Self::Seq => "SEQ",
            Self::Blk => "BLK2048",
            Self::Rand => "RAND64k",
            Self::NoUdp => "NO-UDP",
        })
    }
}

/// Two nodes with pods, each behind a NAT, members of a mesh with a public node that relays.
pub struct Pair {
    /// Starts second.
    pub tokyo: Node,
    /// Starts first.
    pub paris: Node,
    /// Introducer, authority and relay.
    pub hub: Node,
    /// A second public node: who is seen by one address only cannot know that its ports depend on the address.
    _scout: Option<Node>,
    /// The NAT of paris.
    pub west: Site,
    /// The NAT of tokyo.
    pub east: Site,
    /// What relays for pairs that lack UDP.
    coturn: Option<Coturn>,
    hard: bool,
    /// What lies before paris, as far as it is known.
    first: Option<Class>,
    /// Dropped last.
    pub lab: Lab,
}

/// What came of one start of both nodes. Times count from the start of the second agent's process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trial {
    /// When the first datagram from pod to pod was answered.
    pub first: Option<Duration>,
    /// When both ends had a direct path.
    pub direct: Option<Duration>,
    /// Datagrams of the stream after the first answer, and how many of them were lost.
    pub stream: (u32, u32),
    /// Searches of the second until then.
    pub searches: u64,
}

impl Pair {
    /// Builds it and lets everybody join; waits until paris knows the relay.
    pub fn new(west: Class, east: Class) -> Self {
        Self::joined(west, east, "")
    }

    /// The same with settings of the relay.
    pub fn joined(west: Class, east: Class, relay: &str) -> Self {
        let two = [west, east].contains(&Class::Adm);
        let mut pair = Self::behind(west.nat(), east.nat(), two, relay);
        pair.hard = west.is_hard();
        pair.first = Some(west);
        if [west, east].contains(&Class::NoUdp) {
            pair.block_udp(west, east);
        }
        pair
    }

    /// From now on the NATs of one class or two let no UDP through, and there is a TURN server.
    fn block_udp(&mut self, west: Class, east: Class) {
        let coturn = Coturn::start(&self.lab, self.lab.public_host("turn"), SECRET);
        for (class, site, node) in [
            (west, &self.west, &mut self.paris),
            (east, &self.east, &mut self.tokyo),
        ] {
            if class == Class::NoUdp {
                assert!(node.stop());
                add_turn(node, &coturn, &["tcp"], SECRET);
                site.set_udp(LinkState::Cut);
                node.start();
            }
        }
        self.coturn = Some(coturn);
    }

    /// The same behind any NATs, with a second public node or without.
    pub fn behind(west: Nat, east: Nat, two: bool, relay: &str) -> Self {
        let lab = Lab::new();
        let (west, east) = (lab.site("west", west), lab.site("east", east));
        let mut hub = relay_founder(&lab, lab.public_host("hub"), relay);
        let mut scout = two.then(|| Node::new(&lab, lab.public_host("scout")));
        let mut paris = Node::new(&lab, west.host("paris")).with_pod(&lab, 1);
        let mut tokyo = Node::new(&lab, east.host("tokyo")).with_pod(&lab, 2);
        hub.up();
        for node in scout.iter_mut().chain([&mut paris, &mut tokyo]) {
            node.up();
            node.join(&hub);
        }
        let pair = Self {
            tokyo,
            paris,
            hub,
            _scout: scout,
            west,
            east,
            coturn: None,
            hard: false,
            first: None,
            lab,
        };
        for node in [&pair.paris, &pair.tokyo] {
            wait_until("the relay is known", PATIENCE, || {
                let report = node.ask("/netcheck")?;
                let relays = report["relays"].as_array().map_or(0, Vec::len);
                if relays > 0 {
                    Ok(())
                } else {
                    Err(report.to_string())
                }
            });
        }
        pair
    }

    /// Waits until both ends see the other as relayed.
    pub fn wait_relayed(&self) {
        self.paris.wait_peer("tokyo", "relayed", PATIENCE);
        self.tokyo.wait_peer("paris", "relayed", PATIENCE);
    }

    /// Starts both anew, as after a power cut: the NATs have forgotten them, their budgets are whole. The first has
    /// long been up when the second starts. Ends when a packet was answered and the pair is met as it must be, or
    /// after `most`; without a way it always lasts `most`.
    pub fn trial(&mut self, most: Duration, way: Option<Way>) -> Trial {
        self.tokyo.kill();
        self.paris.kill();
        self.west.forget_mappings();
        self.east.forget_mappings();
        self.paris.start();
        self.settled();
        let _echo = Echo::start(&self.tokyo.pod().namespace);
        let start = Instant::now();
        self.tokyo.start();
        let (from, to) = (self.paris.pod(), self.tokyo.pod());
        let stream = Stream::start(&from.namespace, to.ipv4.into(), start);
        let mut trial = Trial::default();
        while start.elapsed() < most {
            let states = [self.paris.ask("/status"), self.tokyo.ask("/status")];
            let [there, back] = states.map(|status| status.unwrap_or_default());
            let direct = state(&there, "tokyo") == "direct" && state(&back, "paris") == "direct";
            if direct && trial.direct.is_none() {
                trial.direct = Some(start.elapsed());
            }
            let enough = match way {
                Some(Way::Direct) => trial.direct.is_some() && stream.answered(),
                Some(Way::Relay) => stream.answered(),
                None => false,
            };
            if enough {
                break;
            }
            pause(GLANCE);
        }
        let (first, sent) = stream.end();
        trial.first = first;
        trial.stream = sent;
        trial.searches = self.tokyo.counted("searches").unwrap_or_default();
        trial
    }

    /// Waits until the node that starts first knows its relay and its NAT.
    fn settled(&self) {
        let blocked = self.first == Some(Class::NoUdp);
        wait_until("paris is settled", PATIENCE, || {
            // Not `netcheck`, which would test the NAT anew.
            let status = self.paris.ask("/status")?;
            let nat = &status["node"]["nat"];
            let known = nat["mapping"] != "unknown"
                && nat["filtering"] != "unknown"
                && (!self.hard || nat["mapping"] == "adm" || nat["allocation"] != "unknown");
            let hub = state(&status, "hub");
            if known && hub == "direct" || blocked && hub == "relayed" {
                Ok(())
            } else {
                Err(nat.to_string())
            }
        });
    }

    /// Exchanges datagrams from pod to pod and returns how many bytes were sent in all, both ways, and how many of
    /// whatever crossed the relay's link meanwhile.
    pub fn weigh(&self) -> (u64, u64) {
        let (from, to) = (self.paris.pod(), self.tokyo.pod());
        let _echo = Echo::start(&to.namespace);
        let relay = self
            .coturn
            .as_ref()
            .map_or(&self.hub.host, |turn| &turn.host)
            .ipv4;
        let before = self.lab.uplink_bytes(relay);
        let answered = udp_exchange(&from.namespace, to.ipv4.into(), LOAD.0, LOAD.1);
        let after = self.lab.uplink_bytes(relay);
        assert!(answered * 100 >= LOAD.0 * 99, "{answered} of {}", LOAD.0);
        (u64::from(answered) * 2 * LOAD.1 as u64, after - before)
    }

    /// Watches a relayed pair for `time`: how long the longest silence of a stream was, and every change of the path that
    /// one of the ends told of.
    pub fn watch(&self, time: Duration) -> (Duration, Vec<String>) {
        // The first answer may be ahead of what `status` has heard of the handshake.
        self.wait_relayed();
        let (from, to) = (self.paris.pod(), self.tokyo.pod());
        let _echo = Echo::start(&to.namespace);
        let start = Instant::now();
        let stream = Stream::start(&from.namespace, to.ipv4.into(), start);
        let mut seen = [String::new(), String::new()];
        let mut changes = Vec::new();
        while start.elapsed() < time {
            for (index, (node, peer)) in [(&self.paris, "tokyo"), (&self.tokyo, "paris")]
                .into_iter()
                .enumerate()
            {
                let now = node.ask("/status").map_or_else(
                    |error| error,
                    |status| {
                        let entry = entry(&status, peer);
                        format!("{} {}", entry["state"], entry["path"])
                    },
                );
                if now != seen[index] {
                    if !seen[index].is_empty() {
                        let at = start.elapsed();
                        changes.push(format!(
                            "{} after {at:?}: {} -> {now}",
                            node.name(),
                            seen[index]
                        ));
                    }
                    seen[index] = now;
                }
            }
            pause(GLANCE * 5);
        }
        (stream.longest_silence(), changes)
    }
}

/// The entry of a peer in a status.
pub fn entry(status: &Value, peer: &str) -> Value {
    let peers = status["peers"].as_array().into_iter().flatten();
    let mut found = peers.filter(|entry| entry["name"] == peer);
    found.next().cloned().unwrap_or_default()
}

fn state(status: &Value, peer: &str) -> String {
    entry(status, peer)["state"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

/// Numbered datagrams from pod to pod, one every [`PACE`] whether answered or not.
struct Stream {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicBool>,
    thread: JoinHandle<Vec<(Duration, bool)>>,
}

impl Stream {
    /// Times count from `start`.
    fn start(namespace: &Namespace, server: IpAddr, start: Instant) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicBool::new(false));
        let thread = {
            let (stop, answered, namespace) =
                (Arc::clone(&stop), Arc::clone(&answered), namespace.clone());
            thread::spawn(move || {
                namespace.join_thread();
                send(server, start, &stop, &answered)
            })
        };
        Self {
            stop,
            answered,
            thread,
        }
    }

    /// Has anything been answered yet?
    fn answered(&self) -> bool {
        self.answered.load(Ordering::Relaxed)
    }

    /// When the first answer came; how many were sent after it and how many of these were lost. The last ones do not
    /// count: their answers may be on the way.
    fn end(self) -> (Option<Duration>, (u32, u32)) {
        let log = self.log();
        let answers = |entry: &&(Duration, bool)| entry.1;
        let Some((first, _)) = log.iter().find(answers) else {
            return (None, (0, 0));
        };
        let after: Vec<bool> = log
            .iter()
            .filter(|(at, _)| at > first)
            .map(|(_, answered)| *answered)
            .collect();
        let counted = &after[..after.len().saturating_sub(20)];
        let lost = counted.iter().filter(|answered| !**answered).count();
        (Some(*first), (counted.len() as u32, lost as u32))
    }

    fn longest_silence(self) -> Duration {
        let log = self.log();
        let answers = log
            .iter()
            .filter(|(_, answered)| *answered)
            .map(|(at, _)| *at);
        let end = log.last().map_or(Duration::ZERO, |(at, _)| *at);
        let edges: Vec<Duration> = std::iter::once(Duration::ZERO)
            .chain(answers)
            .chain(std::iter::once(end))
            .collect();
        let gaps = edges.windows(2).map(|pair| pair[1].saturating_sub(pair[0]));
        gaps.max().unwrap_or(end)
    }

    fn log(self) -> Vec<(Duration, bool)> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("a sender does not panic")
    }
}

/// When each datagram was sent, or if it was answered when that was; and whether it was.
fn send(
    server: IpAddr,
    start: Instant,
    stop: &AtomicBool,
    answered: &AtomicBool,
) -> Vec<(Duration, bool)> {
    let socket = UdpSocket::bind(("0.0.0.0", 0)).expect("a socket");
    socket
        .connect((server, ECHO_PORT))
        .expect("an address to send to");
    socket
        .set_read_timeout(Some(PACE))
        .expect("a timeout can be set");
    let mut log: Vec<(Duration, bool)> = Vec::new();
    let mut buffer = [0; 512];
    while !stop.load(Ordering::Relaxed) {
        let number = log.len() as u32;
        let sent = start.elapsed();
        log.push((sent, false));
        // An error is the blackhole's: try again, as a person's program would.
        let _ = socket.send(&number.to_be_bytes());
        let next = sent + PACE;
        while let Some(left) = next
            .checked_sub(start.elapsed())
            .filter(|left| !left.is_zero())
        {
            socket
                .set_read_timeout(Some(left.max(Duration::from_micros(100))))
                .expect("a timeout can be set");
            // The echo server puts the address it sees before what it got.
            match socket.recv(&mut buffer) {
                Ok(length) if length >= 4 => {
                    let tail: [u8; 4] = buffer[length - 4..length].try_into().expect("four bytes");
                    if let Some(entry) = log.get_mut(u32::from_be_bytes(tail) as usize) {
                        *entry = (start.elapsed(), true);
                        answered.store(true, Ordering::Relaxed);
                    }
                }
                Ok(_) => {}
                Err(error)
                    if matches!(
                        error.kind(),
                        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                    ) => {}
                Err(_) => pause(PACE / 2),
            }
        }
    }
    log
}
