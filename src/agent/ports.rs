//! The sockets that plans name beside the tunnel's own: opened, lent and closed as the plan says. No policy here.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;

use data_plane::{Adopted, ControlDatagram, Relay, Turn, TurnEvent};
use mesh_types::plan::{Adoption, RelayPair};
use mesh_types::report::Answer;
use mesh_types::{HostPlan, SocketId, Transmit};
use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::Event;
use super::sockets::{Binding, Datagram, Port, exhausted};

/// Most sockets at once: two searches of 512, what single peers have kept, and a relay's ports.
const OPEN_MAX: usize = 2048;
/// Descriptors wanted beside those, for everything else.
const FILES_BESIDE: u64 = 256;

/// Those of this agent.
#[derive(Debug)]
pub struct Ports {
    fwmark: u32,
    events: mpsc::Sender<Event>,
    open: BTreeMap<SocketId, Port>,
    busy: BTreeSet<u16>,
    relay: Option<Relay>,
    turn: Turn,
}

impl Ports {
    /// Opens none yet. Lets the process have as many descriptors as all of them need, where it may.
    pub fn new(fwmark: u32, events: mpsc::Sender<Event>) -> Self {
        allow_files(OPEN_MAX as u64 + FILES_BESIDE);
        Self {
            fwmark,
            turn: turn(fwmark, events.clone()),
            events,
            open: BTreeMap::new(),
            busy: BTreeSet::new(),
            relay: None,
        }
    }

    /// Opens what the plan names and closes what it does not. One sentence where sockets are refused; they are tried
    /// again with the next plan.
    pub fn converge(&mut self, sockets: &BTreeSet<SocketId>) -> Result<(), String> {
        self.open.retain(|id, _| sockets.contains(id));
        self.busy
            .retain(|port| sockets.contains(&SocketId::Relay(*port)));
        let mut refused = None;
        for id in sockets {
            if self.open.contains_key(id) {
                continue;
            }
            let binding = match *id {
                SocketId::Main | SocketId::Alternate | SocketId::Overlay | SocketId::Turn(_) => {
                    continue;
                }
                SocketId::Extra(_) => Binding::Underlay {
                    fwmark: self.fwmark,
                },
                SocketId::Relay(port) => Binding::Relay {
                    fwmark: self.fwmark,
                    port,
                },
            };
            if self.open.len() >= OPEN_MAX {
                refused = Some(format!("there are {OPEN_MAX} already"));
                continue;
            }
            match (Port::open(*id, binding, self.events.clone()), id) {
                (Ok(port), _) => {
                    if let SocketId::Relay(port) = id {
                        self.busy.remove(port);
                    }
                    self.open.insert(*id, port);
                }
                (Err(error), SocketId::Relay(port)) if error.kind() == io::ErrorKind::AddrInUse => {
                    self.busy.insert(*port);
                }
                (Err(error), _) => {
                    let end = exhausted(&error);
                    refused = Some(crate::config::sentence(&error));
                    if end {
                        break;
                    }
                }
            }
        }
        let Some(last) = refused else {
            return Ok(());
        };
        let wanted = sockets.len();
        Err(format!(
            "cannot open all sockets that searching for a path and relaying want ({} of {wanted} are open): {last}; \
             allow more with LimitNOFILE= in the unit, or `ulimit -n`",
            self.open.len()
        ))
    }

    /// Those of a plan that can be sent from.
    pub fn open(&self, sockets: &BTreeSet<SocketId>) -> BTreeSet<SocketId> {
        let is_open = |id: &&SocketId| match id {
            SocketId::Main | SocketId::Alternate | SocketId::Overlay | SocketId::Turn(_) => true,
            SocketId::Extra(_) | SocketId::Relay(_) => self.open.contains_key(id),
        };
        sockets.iter().filter(is_open).copied().collect()
    }

    /// Opens and closes links to TURN servers, and the loopback addresses of peers behind them. `port` is the tunnel's.
    pub fn turn(&mut self, plan: &HostPlan, port: u16) -> Result<(), String> {
        let done = self.turn.apply(&plan.turn_links, &plan.proxies, port);
        done.map_err(|error| {
            format!(
                "cannot open what reaching peers through a TURN server wants: {}; it is tried again",
                crate::config::sentence(&error)
            )
        })
    }

    /// Ports of the sockets that paths are searched from.
    pub fn searching(&self) -> impl Iterator<Item = u16> {
        let open = self.open.iter();
        let extra = open.filter(|(id, _)| matches!(id, SocketId::Extra(_)));
        extra.map(|(_, held)| held.port())
    }

    /// Relay ports that another process holds.
    pub fn busy(&self) -> &BTreeSet<u16> {
        &self.busy
    }

    /// Sends from a socket of the plan; `None` where it is not open.
    pub fn send(&self, transmit: &Transmit) -> Option<io::Result<()>> {
        if let SocketId::Turn(number) = transmit.socket {
            return self.turn.send(number, &transmit.bytes).then_some(Ok(()));
        }
        let port = self.open.get(&transmit.socket)?;
        Some(port.send(transmit))
    }

    /// Gives adopted sockets to the userspace backend's engine, and reads those again that are adopted no more; kernel
    /// WireGuard gets them by packet filter. One that fails is left out, and told of.
    pub fn lend_to(&mut self, plan: &HostPlan, engine: &data_plane::Engine) -> Result<(), String> {
        let mut adopted = Vec::new();
        let mut kept = BTreeSet::new();
        let mut failed = None;
        for Adoption { remote, port } in &plan.adoptions {
            let found = self
                .open
                .iter_mut()
                .find(|(id, held)| matches!(id, SocketId::Extra(_)) && held.port() == *port);
            let Some((id, held)) = found else {
                debug!(%remote, port, "No socket to adopt");
                continue;
            };
            match held.lend() {
                Ok(socket) => {
                    kept.insert(*id);
                    adopted.push(Adopted {
                        remote: *remote,
                        id: *id,
                        socket,
                    });
                }
                Err(error) => failed = Some(unlent(&error)),
            }
        }
        let lent = engine.lend(&adopted, &plan.aliases);
        for (id, port) in &mut self.open {
            if matches!(id, SocketId::Extra(_)) && !kept.contains(id) {
                failed = port.take_back().err().map(|e| unlent(&e)).or(failed);
            }
        }
        lent.and(failed.map_or(Ok(()), Err))
    }

    /// Relays these pairs in userspace, and reads the other relay ports again.
    pub fn relay(&mut self, pairs: &BTreeSet<RelayPair>) -> Result<(), String> {
        if pairs.is_empty() && self.relay.is_none() {
            return Ok(());
        }
        let failed = |error: io::Error| format!("cannot relay in userspace: {error}");
        let relay = match &self.relay {
            Some(relay) => relay,
            None => {
                let events = self.events.clone();
                let started = Relay::start(Box::new(move |datagram| pass(&events, datagram)));
                self.relay.insert(started.map_err(failed)?)
            }
        };
        let wanted: BTreeSet<u16> = pairs
            .iter()
            .flat_map(|pair| [pair.first.1, pair.second.1])
            .collect();
        let mut sockets = BTreeMap::new();
        let mut missed = None;
        for port in &wanted {
            match self.open.get_mut(&SocketId::Relay(*port)) {
                Some(held) => match held.lend() {
                    Ok(socket) => _ = sockets.insert(*port, socket),
                    Err(error) => missed = Some(failed(error)),
                },
                None => warn!(port, "A relayed pair's port is not open"),
            }
        }
        let result = relay.apply(&sockets, pairs).map_err(failed);
        for (id, port) in &mut self.open {
            if let SocketId::Relay(number) = id
                && !wanted.contains(number)
            {
                missed = port.take_back().err().map(failed).or(missed);
            }
        }
        result.and(missed.map_or(Ok(()), Err))
    }

    /// Named counters, for metrics.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        self.relay.as_ref().map(Relay::counters).unwrap_or_default()
    }
}

/// What the kernel has relayed, also for pairs that are gone.
#[derive(Debug, Default)]
pub struct Relayed {
    /// Datagrams and bytes, by ends and ports: a pair whose rate changes is counted on.
    pairs: BTreeMap<[(SocketAddr, u16); 2], [u64; 2]>,
    gone: [u64; 2],
}

impl Relayed {
    /// Takes the counters of the pairs there are, where they could be read, and gives the sums of all there ever were.
    pub fn take(
        &mut self,
        counted: Option<Vec<(RelayPair, u64, u64)>>,
    ) -> [(&'static str, u64); 2] {
        if let Some(counted) = counted {
            let pairs = counted
                .into_iter()
                .map(|(pair, datagrams, bytes)| ([pair.first, pair.second], [datagrams, bytes]));
            let before = std::mem::replace(&mut self.pairs, pairs.collect());
            for (pair, last) in before {
                let began_anew = |now: &[u64; 2]| now[0] < last[0];
                if self.pairs.get(&pair).is_none_or(began_anew) {
                    add(&mut self.gone, last);
                }
            }
        }
        let mut all = self.gone;
        for pair in self.pairs.values() {
            add(&mut all, *pair);
        }
        let [datagrams, bytes] = all;
        [
            ("relay_kernel_datagrams", datagrams),
            ("relay_kernel_bytes", bytes),
        ]
    }
}

fn add(sums: &mut [u64; 2], more: [u64; 2]) {
    for (sum, more) in sums.iter_mut().zip(more) {
        *sum += more;
    }
}

fn unlent(error: &io::Error) -> String {
    format!("cannot hand a socket over to the tunnel: {error}")
}

/// A full queue drops it, as a network would; what matters is repeated.
pub fn pass(events: &mpsc::Sender<Event>, datagram: ControlDatagram) {
    let ControlDatagram {
        socket,
        local,
        remote,
        bytes,
    } = datagram;
    _ = events.try_send(Event::Datagram(Datagram {
        socket,
        local,
        remote,
        bytes,
    }));
}

fn turn(fwmark: u32, events: mpsc::Sender<Event>) -> Turn {
    Turn::new(
        fwmark,
        Box::new(move |event| match event {
            // It must not be lost, and its thread has nothing else to do meanwhile.
            TurnEvent::State { number, state } => {
                let answer = Answer::TurnLink { number, state };
                _ = events.blocking_send(Event::Answered(answer));
            }
            TurnEvent::Control(datagram) => pass(&events, datagram),
        }),
    )
}

/// Raises the process's own limit of descriptors, as far as the system lets it.
fn allow_files(wanted: u64) {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let Ok((now, most)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return;
    };
    if now < wanted
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, wanted.min(most), most)
    {
        debug!(%error, "Failed to raise the limit of descriptors");
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

    use super::*;

    fn ports() -> (Ports, mpsc::Receiver<Event>) {
        let (events, received) = mpsc::channel(64);
        // No mark: setting one needs rights that these tests must not need.
        (Ports::new(0, events), received)
    }

    async fn next(received: &mut mpsc::Receiver<Event>) -> Datagram {
        match received.recv().await {
            Some(Event::Datagram(datagram)) => datagram,
            other => panic!("{other:?}"),
        }
    }

    fn transmit(socket: SocketId, destination: SocketAddr) -> Transmit {
        Transmit {
            socket,
            source: None,
            destination,
            ttl: Some(7),
            bytes: b"hello".to_vec(),
        }
    }

    fn binding(kind: [u8; 2]) -> Vec<u8> {
        let mut bytes = vec![0; 20];
        bytes[..2].copy_from_slice(&kind);
        bytes[4..8].copy_from_slice(&0x2112_a442_u32.to_be_bytes());
        bytes
    }

    #[tokio::test]
    async fn hundreds_of_sockets_open_and_close_as_the_plan_names_them() {
        let (mut ports, mut received) = ports();
        let many: BTreeSet<SocketId> = (0..600).map(SocketId::Extra).collect();
        ports.converge(&many).unwrap();
        let numbers: BTreeSet<u16> = ports.open.values().map(Port::port).collect();
        assert_eq!(numbers.len(), 600, "each has a port of its own");

        let far = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let there = far.local_addr().unwrap();
        ports
            .send(&transmit(SocketId::Extra(599), there))
            .unwrap()
            .unwrap();
        let mut buffer = [0; 64];
        let (_, from) = far.recv_from(&mut buffer).unwrap();
        assert_eq!(from.port(), ports.open[&SocketId::Extra(599)].port());
        far.send_to(b"back", from).unwrap();
        let datagram = next(&mut received).await;
        assert_eq!(datagram.socket, SocketId::Extra(599));
        assert_eq!(datagram.local, from);

        let kept = ports.open[&SocketId::Extra(3)].port();
        ports
            .converge(&[SocketId::Main, SocketId::Extra(3)].into())
            .unwrap();
        assert_eq!(ports.open.len(), 1);
        assert_eq!(ports.open[&SocketId::Extra(3)].port(), kept);
        assert!(ports.send(&transmit(SocketId::Extra(599), there)).is_none());
    }

    #[tokio::test]
    async fn more_than_the_bound_is_refused_in_one_sentence() {
        let (mut ports, _received) = ports();
        let many: BTreeSet<SocketId> = (0..4000).map(SocketId::Extra).collect();
        let refused = ports.converge(&many).unwrap_err();
        assert!(refused.contains("of 4000 are open") && refused.contains("LimitNOFILE"));
        assert!(ports.open.len() <= OPEN_MAX);
        let open: BTreeSet<SocketId> = ports.open.keys().copied().collect();
        assert_eq!(ports.open(&many), open);
        ports.converge(&BTreeSet::new()).unwrap();
    }

    #[test]
    fn what_was_relayed_for_a_pair_counts_after_it_is_gone() {
        let pair = |port, rate| RelayPair {
            first: ("203.0.113.1:1".parse().unwrap(), port),
            second: ("203.0.113.2:1".parse().unwrap(), port + 1),
            rate,
            node_rate: 0,
        };
        let mut relayed = Relayed::default();
        let mut sums = |counted| relayed.take(counted).map(|(_, sum)| sum);
        let two = vec![(pair(1, 0), 5, 500), (pair(3, 0), 7, 700)];
        assert_eq!(sums(Some(two)), [12, 1200]);
        assert_eq!(sums(None), [12, 1200], "not read this time");
        assert_eq!(sums(Some(vec![(pair(3, 9), 8, 800)])), [13, 1300]);
        assert_eq!(sums(Some(Vec::new())), [13, 1300]);
        assert_eq!(sums(Some(vec![(pair(3, 0), 1, 100)])), [14, 1400]);
    }

    #[tokio::test]
    async fn a_relay_port_hears_indications_only_and_a_taken_one_is_told_of() {
        let (mut ports, mut received) = ports();
        let taken = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let free = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let (busy, port) = (
            taken.local_addr().unwrap().port(),
            free.local_addr().unwrap().port(),
        );
        drop(free);
        let sockets: BTreeSet<SocketId> = [SocketId::Relay(busy), SocketId::Relay(port)].into();
        ports.converge(&sockets).unwrap();
        assert_eq!(ports.busy(), &[busy].into());

        let far = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let there = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        far.send_to(&[4; 100], there).unwrap();
        far.send_to(&binding([0, 1]), there).unwrap();
        far.send_to(&binding([0, 0x11]), there).unwrap();
        let datagram = next(&mut received).await;
        assert_eq!(
            (datagram.socket, datagram.local),
            (SocketId::Relay(port), there)
        );
        assert_eq!(datagram.bytes, binding([0, 0x11]));

        drop(taken);
        ports.converge(&sockets).unwrap();
        assert_eq!(ports.busy(), &BTreeSet::new(), "it is free now");
    }

    #[tokio::test]
    async fn relayed_datagrams_go_on_and_the_ports_are_read_again_afterwards() {
        let (mut ports, mut received) = ports();
        let ends = [0, 1].map(|_| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
        let [first, second] = [0, 1].map(|_| {
            let free = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
            free.local_addr().unwrap().port()
        });
        let sockets = [SocketId::Relay(first), SocketId::Relay(second)].into();
        ports.converge(&sockets).unwrap();
        let pair = RelayPair {
            first: (ends[0].local_addr().unwrap(), first),
            second: (ends[1].local_addr().unwrap(), second),
            rate: 0,
            node_rate: 0,
        };
        ports.relay(&[pair].into()).unwrap();
        let there = SocketAddr::from((Ipv4Addr::LOCALHOST, first));
        let mut buffer = [0; 64];
        // The relay's thread may still be about to watch the port.
        ends[0].send_to(&[4; 40], there).unwrap();
        let (len, from) = ends[1].recv_from(&mut buffer).unwrap();
        assert_eq!((len, from.port()), (40, second));
        ends[0].send_to(&binding([0, 0x11]), there).unwrap();
        assert_eq!(next(&mut received).await.socket, SocketId::Relay(first));

        ports.relay(&BTreeSet::new()).unwrap();
        ends[0].send_to(&binding([0, 0x11]), there).unwrap();
        assert_eq!(next(&mut received).await.socket, SocketId::Relay(first));
        assert!(ports.counters().contains(&("relay_forwarded", 1)));
    }
}
