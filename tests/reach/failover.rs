//! How long traffic stands still when something breaks under a connected pair: a datagram every 20 ms from pod to
//! pod, answered there. The gap is the time between the last answered one and the next.

use std::collections::BTreeSet;
use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, Instant};

use crate::lab::agent::PATIENCE;
use crate::lab::internet::LinkState;
use crate::lab::traffic::{ECHO_PORT, Echo};
use crate::lab::wait::{pause, wait_until};
use crate::lab::{Lab, Nat, NatKind, Node, Site};

const PACE: Duration = Duration::from_millis(20);
/// Before the fault: the pair counts as active by then, and a relay stands by.
const BEFORE: Duration = Duration::from_secs(2);
/// After it.
const AFTER: Duration = Duration::from_secs(4);
/// After the mending: looking for a direct path again.
const RETURN: Duration = Duration::from_secs(5);
/// The next trial begins with a direct path.
const RETRY: Duration = Duration::from_secs(150);
/// Answers take less.
const LATE: Duration = Duration::from_millis(500);

/// What breaks.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// Nothing passes between the two sites; the relay reaches both.
    Cut,
    /// One side's NAT forgets all mappings and gives other ports.
    Ports,
    /// The same, and its address is another.
    Address,
}

/// Prints a markdown table.
pub fn print(trials: usize) {
    println!(
        "| what breaks | trials | median gap | p95 | longest | back on the direct path: lost |"
    );
    println!("|---|---|---|---|---|---|");
    let scene = Scene::connected();
    let _echo = Echo::start(&scene.tokyo.pod().namespace);
    scene.ping(Duration::from_secs(12));
    for fault in [Fault::Cut, Fault::Ports, Fault::Address] {
        let mut gaps = Vec::new();
        let mut back = (0, 0);
        for _ in 0..trials {
            let (gap, lost, sent) = scene.trial(fault);
            eprintln!("{fault:?}: {gap:?}, then {lost} of {sent} lost");
            gaps.push(gap);
            back = (back.0 + lost, back.1 + sent);
        }
        report(fault, gaps, back);
    }
}

/// Two nodes behind NATs, and a public one that introduces and relays.
struct Scene {
    tokyo: Node,
    paris: Node,
    _hub: Node,
    west: Site,
    east: Site,
    lab: Lab,
}

impl Scene {
    fn connected() -> Self {
        let lab = Lab::new();
        let nat = Nat::new(NatKind::PrcNotPreserving);
        let (west, east) = (lab.site("west", nat), lab.site("east", nat));
        let mut hub = Node::new(&lab, lab.public_host("hub"));
        hub.write_config("[relay]\nserve = true\n");
        hub.ok(&["init"]);
        let mut paris = Node::new(&lab, west.host("paris")).with_pod(&lab, 1);
        let mut tokyo = Node::new(&lab, east.host("tokyo")).with_pod(&lab, 2);
        hub.up();
        for node in [&mut paris, &mut tokyo] {
            node.up();
            node.join(&hub);
        }
        paris.wait_direct("tokyo", PATIENCE);
        tokyo.wait_direct("paris", PATIENCE);
        Self {
            tokyo,
            paris,
            _hub: hub,
            west,
            east,
            lab,
        }
    }

    /// The gap; then lost and sent from the mending until the path is direct again.
    fn trial(&self, fault: Fault) -> (Duration, usize, usize) {
        let (west, east) = (self.west.public_address(), self.east.public_address());
        let (from, to) = (
            self.paris.pod().namespace.clone(),
            IpAddr::V4(self.tokyo.pod().ipv4),
        );
        let pings = std::thread::spawn(move || {
            let time = match fault {
                Fault::Cut => BEFORE + AFTER + RETURN,
                Fault::Ports | Fault::Address => BEFORE + AFTER,
            };
            from.enter(|| Pings::run(to, time))
        });
        pause(BEFORE);
        let broken = Instant::now();
        match fault {
            Fault::Cut => self.lab.set_between(west, east, LinkState::Cut),
            Fault::Ports => self.west.forget_mappings(),
            Fault::Address => self.lab.renumber(&self.west),
        }
        let mut mended = None;
        if let Fault::Cut = fault {
            pause(AFTER);
            let (relayed, _) = self.paris.wait_peer("tokyo", "relayed", PATIENCE);
            assert_eq!(relayed["path"]["kind"], "node-relay");
            self.lab.set_between(west, east, LinkState::Whole);
            mended = Some(Instant::now());
        }
        let pings = pings.join().expect("pings end");
        // Whoever was not met directly at once is tried again once a minute.
        self.paris.wait_direct("tokyo", RETRY);
        self.tokyo.wait_direct("paris", RETRY);
        let gap = pings.gap(broken, mended);
        let (lost, sent) = mended.map_or((0, 0), |since| pings.lost(since));
        (gap, lost, sent)
    }

    /// Traffic whose loss does not matter.
    fn ping(&self, time: Duration) {
        let (from, to) = (&self.paris.pod().namespace, self.tokyo.pod().ipv4);
        wait_until("the pair is connected", PATIENCE, || {
            let pings = from.enter(|| Pings::run(IpAddr::V4(to), PACE * 5));
            (!pings.answered.is_empty())
                .then_some(())
                .ok_or("no answer".to_owned())
        });
        from.enter(|| Pings::run(IpAddr::V4(to), time));
    }
}

/// Numbered datagrams to an echo server.
#[derive(Default)]
struct Pings {
    sent: Vec<Instant>,
    answered: BTreeSet<usize>,
}

impl Pings {
    /// In the namespace of the calling thread.
    fn run(server: IpAddr, time: Duration) -> Self {
        let socket = UdpSocket::bind(("0.0.0.0", 0)).expect("a socket");
        let server = (server, ECHO_PORT);
        let start = Instant::now();
        let mut pings = Self::default();
        let mut next = start;
        let mut buffer = [0; 512];
        while start.elapsed() < time {
            let now = Instant::now();
            if now >= next {
                next += PACE;
                let number = (pings.sent.len() as u64).to_be_bytes();
                pings.sent.push(now);
                // While there is no way at all the kernel says so; that is a lost one like others.
                let _ = socket.send_to(&number, server);
            }
            let left = next.saturating_duration_since(Instant::now());
            let wait = left.max(Duration::from_micros(100));
            socket
                .set_read_timeout(Some(wait))
                .expect("a timeout can be set");
            if let Ok((length, _)) = socket.recv_from(&mut buffer)
                && let Some(number) = buffer[..length].last_chunk()
            {
                let number = u64::from_be_bytes(*number);
                pings.answered.extend(usize::try_from(number));
            }
        }
        pings
    }

    /// The longest time without an answered one that begins between two moments.
    fn gap(&self, since: Instant, until: Option<Instant>) -> Duration {
        let answered: Vec<Instant> = self.answered.iter().map(|n| self.sent[*n]).collect();
        answered
            .windows(2)
            .filter(|pair| pair[1] >= since && until.is_none_or(|until| pair[0] < until))
            .map(|pair| pair[1] - pair[0])
            .max()
            .unwrap_or(AFTER)
    }

    /// Lost and sent since a moment, those apart that might still be answered.
    fn lost(&self, since: Instant) -> (usize, usize) {
        let end = self.sent.last().copied().unwrap_or(since);
        let all = self.sent.iter().enumerate();
        let counted: Vec<usize> = all
            .filter(|(_, at)| **at >= since && **at + LATE < end)
            .map(|(number, _)| number)
            .collect();
        let lost = counted.iter().filter(|n| !self.answered.contains(n));
        (lost.count(), counted.len())
    }
}

fn report(fault: Fault, mut gaps: Vec<Duration>, (lost, sent): (usize, usize)) {
    gaps.sort();
    let at = |share: f64| {
        let index = ((gaps.len() - 1) as f64 * share).round() as usize;
        format!("{:.2} s", gaps[index].as_secs_f64())
    };
    let (what, back) = match fault {
        Fault::Cut => (
            "the direct path is cut; a relay stands by",
            format!("{lost} of {sent}"),
        ),
        Fault::Ports => ("one NAT restarts with other ports", "-".to_owned()),
        Fault::Address => ("one NAT restarts with another address", "-".to_owned()),
    };
    println!(
        "| {what} | {} | {} | {} | {} | {back} |",
        gaps.len(),
        at(0.5),
        at(0.95),
        at(1.0)
    );
}
