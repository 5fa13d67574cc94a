//! The engine with one peer and with a thousand that live: `cargo bench -p data-plane --bench peers`, as root.
//!
//! A real engine, in a namespace of this machine, has a crowd of peers at the far end of a veth, each with its own key, address
//! and session. Super-packets of 44 datagrams go to ten of them in turn, every tenth one to the next of all. Out: UDP as
//! fast as the TUN takes it, counted as it arrives sealed. In: sealed beforehand, in ten flows, so that those of one peer
//! merge no better, sent as fast as they arrive but for a window; counted as a socket behind the TUN gets it. Then a thousand more begin their
//! handshakes at once, beside a flow each way, and the longest time in which nothing of a flow arrives is told. `ROUNDS`
//! is 3 unless told. Load and engine share the processors: compare lines of one run only.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use data_plane::core::Core;
use data_plane::inbox::Inbox;
use data_plane::outbox::Outbox;
use data_plane::segment::{SLACK, VnetHeader};
use data_plane::{Engine, Offload};
use measure::{cpu, now, pass};
use mesh_types::key::WgSecret;
use mesh_types::plan::{TunnelPeer, TunnelPlan};
use netns::{DEVICE, Lab, PORT, counter};
use nix::poll::{PollFd, PollFlags, poll};
use quinn_udp::{RecvMeta, Transmit, UdpSocketState};

mod measure;
#[path = "../tests/netns/mod.rs"]
#[expect(dead_code, reason = "tests use more of it")]
mod netns;

/// How long one direction is loaded.
const RUN: Duration = Duration::from_secs(2);
const WARM: Duration = Duration::from_millis(300);
/// Super-packets that are sealed beforehand, and how often.
const SEALED: usize = 4000;
const TIMES: usize = 6;
/// Payload under way, bytes: half of the engine's socket buffer, as the kernel accounts for it.
const WINDOW: u64 = 1 << 20;
/// What has not arrived by then is lost.
const LOST: Duration = Duration::from_millis(20);
/// Peers that most packets are for.
const ACTIVE: u16 = 10;
const MANY: u16 = 1000;
/// Of one super-packet, and the payload of each.
const DATAGRAMS: usize = 44;
const PAYLOAD: usize = 1332;
const HEADERS: usize = 28;
/// Where inner datagrams go to.
const INNER: u16 = 9;

fn main() {
    let rounds = std::env::var("ROUNDS").ok().and_then(|n| n.parse().ok());
    println!("peers  out Gbit/s  CPU s/GB  in Gbit/s  CPU s/GB");
    let mut ratios = [const { Vec::new() }; 4];
    for _ in 0..rounds.unwrap_or(3) {
        let (one, many) = (loaded(1), loaded(MANY));
        for ((all, one), many) in ratios.iter_mut().zip(one).zip(many) {
            all.push(many / one);
        }
        storm();
    }
    let names = ["out Gbit/s", "its CPU s/GB", "in Gbit/s", "its CPU s/GB"];
    for (name, ratios) in names.iter().zip(&mut ratios) {
        ratios.sort_by(f64::total_cmp);
        let (least, most) = (ratios[0], ratios[ratios.len() - 1]);
        let median = ratios[ratios.len() / 2];
        println!("{MANY} peers / 1 peer, {name}: {median:.3} ({least:.3}..{most:.3})");
    }
}

/// A namespace with an engine, and one with a crowd that it knows.
struct Meeting {
    lab: Lab,
    engine: Engine,
    plan: TunnelPlan,
}

impl Meeting {
    fn new() -> Self {
        let lab = Lab::new("peers");
        let (engine, _control) = lab.start("a", Offload::default()).expect("a starts");
        lab.address("a");
        lab.ip("a", &format!("route add 10.1.0.0/16 dev {DEVICE}"));
        lab.ip("a", "route add 198.18.0.0/16 via 192.0.2.2");
        lab.ip("b", "route add local 198.18.0.0/16 dev lo");
        let plan = netns::plan(1, &[]);
        Self { lab, engine, plan }
    }

    /// Tells the engine of peers.
    fn expect(&mut self, peers: std::ops::Range<u16>, port: u16) {
        for n in peers {
            let peer = TunnelPeer {
                endpoint: Some(SocketAddr::new(outside(n), port)),
                allowed_ips: [IpAddr::V4(inside(n)).into()].into(),
                ..TunnelPeer::default()
            };
            self.plan.peers.insert(secret(n).public(), peer);
        }
        self.engine.apply(&self.plan);
    }

    /// Peers with a session. Counters are asked, for a report of all peers takes the engine's time.
    fn met(&self) -> usize {
        counter(&self.engine, "handshakes") as usize
    }

    /// A socket behind the engine's TUN.
    fn inner(&self, port: u16) -> Wire {
        self.lab
            .inside("a", || Wire::bind(([10, 0, 0, 1], port).into()))
    }
}

/// Gbit/s and CPU s/GB out, the same in.
fn loaded(peers: u16) -> [f64; 4] {
    let mut meeting = Meeting::new();
    meeting.expect(0..peers, PORT);
    let mut crowd = Crowd::new(&meeting.lab, 0..peers, PORT);
    crowd.prepare();
    crowd.begin();
    crowd.serve(now() + Duration::from_secs(20), || {
        meeting.met() == usize::from(peers)
    });
    assert_eq!(meeting.met(), usize::from(peers), "not all have a session");

    let source = meeting.inner(0);
    let out = measured(
        |stop| flood(&source, peers, stop),
        |bytes, stop| arrivals(&crowd.wire, bytes, stop),
    );
    let into = received(&mut crowd, peers, &meeting.inner(INNER));
    println!(
        "{peers:>5}  {:>10.2}  {:>8.2}  {:>9.2}  {:>8.2}",
        out[0], out[1], into[0], into[1]
    );
    [out[0], out[1], into[0], into[1]]
}

/// Gbit/s that arrive, and seconds of the packet thread a gigabyte.
fn measured(
    load: impl FnOnce(&AtomicBool) + Send,
    count: impl FnOnce(&AtomicU64, &AtomicBool) + Send,
) -> [f64; 2] {
    let (stop, bytes) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        scope.spawn(|| load(&stop));
        scope.spawn(|| count(&bytes, &stop));
        pass(WARM);
        let (before, used, at) = (bytes.load(Ordering::Relaxed), cpu(), now());
        pass(RUN);
        let gigabytes = (bytes.load(Ordering::Relaxed) - before) as f64 / 1e9;
        let (used, seconds) = (cpu() - used, at.elapsed().as_secs_f64());
        stop.store(true, Ordering::Relaxed);
        [gigabytes * 8.0 / seconds, used / gigabytes]
    })
}

/// The same of what was sealed beforehand.
fn received(crowd: &mut Crowd, peers: u16, sink: &Wire) -> [f64; 2] {
    let (stop, bytes) = (AtomicBool::new(false), AtomicU64::new(0));
    let (mut seconds, mut used) = (0.0, 0.0);
    let mut order = order(peers).enumerate();
    thread::scope(|scope| {
        scope.spawn(|| arrivals(sink, &bytes, &stop));
        for _ in 0..TIMES {
            let sealed: Vec<_> = order
                .by_ref()
                .take(SEALED)
                .map(|(turn, n)| crowd.seal(n, (turn % usize::from(ACTIVE)) as u16, DATAGRAMS))
                .collect();
            let (before, at) = (cpu(), now());
            let (mut sent, mut arrived) = (bytes.load(Ordering::Relaxed), now());
            for (n, message, segment) in &sealed {
                crowd.put(*n, message, Some(*segment));
                sent += (DATAGRAMS * PAYLOAD) as u64;
                arrived = now();
                while sent > bytes.load(Ordering::Relaxed) + WINDOW {
                    if arrived.elapsed() > LOST {
                        sent = bytes.load(Ordering::Relaxed);
                    }
                    thread::yield_now();
                }
            }
            while sent > bytes.load(Ordering::Relaxed) && arrived.elapsed() < LOST {
                thread::yield_now();
            }
            seconds += at.elapsed().as_secs_f64();
            used += cpu() - before;
        }
        stop.store(true, Ordering::Relaxed);
    });
    let gigabytes = bytes.load(Ordering::Relaxed) as f64 / 1e9;
    [gigabytes * 8.0 / seconds, used / gigabytes]
}

/// Ten in turn, every tenth time the next of all.
fn order(peers: u16) -> impl Iterator<Item = u16> {
    (0_u64..).map(move |n| {
        let some = if n % 10 == 9 {
            n / 10 % u64::from(peers)
        } else {
            n % u64::from(ACTIVE.min(peers))
        };
        some as u16
    })
}

fn flood(source: &Wire, peers: u16, stop: &AtomicBool) {
    let bytes = vec![0x5a; DATAGRAMS * PAYLOAD];
    for n in order(peers).take_while(|_| !stop.load(Ordering::Relaxed)) {
        let to = (inside(n), INNER).into();
        source.send(None, to, &bytes, Some(PAYLOAD));
    }
}

fn arrivals(sink: &Wire, bytes: &AtomicU64, stop: &AtomicBool) {
    let mut room = Room::default();
    while !stop.load(Ordering::Relaxed) {
        sink.receive(&mut room, |_, datagram| {
            bytes.fetch_add(datagram.len() as u64, Ordering::Relaxed);
        });
    }
}

/// A thousand handshakes at once beside a flow each way.
fn storm() {
    let mut meeting = Meeting::new();
    meeting.expect(0..1, PORT);
    let mut active = Crowd::new(&meeting.lab, 0..1, PORT);
    active.prepare();
    active.begin();
    active.serve(now() + Duration::from_secs(20), || meeting.met() == 1);
    meeting.expect(1..MANY + 1, PORT + 1);
    let mut crowd = Crowd::new(&meeting.lab, 1..MANY + 1, PORT + 1);
    crowd.prepare();

    let (source, sink) = (meeting.inner(0), meeting.inner(INNER));
    let far = active.wire.again();
    let (stop, calm) = (AtomicBool::new(false), AtomicBool::new(true));
    let bytes = vec![0x5a; DATAGRAMS * PAYLOAD];
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                source.send(None, (inside(0), INNER).into(), &bytes, Some(PAYLOAD));
                pass(Duration::from_millis(1));
            }
        });
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                active.send(0, 0, 2);
                pass(Duration::from_millis(1));
            }
        });
        let out = scope.spawn(|| longest_gap(&far, &calm, &stop));
        let into = scope.spawn(|| longest_gap(&sink, &calm, &stop));
        pass(WARM);
        let at = now();
        calm.store(false, Ordering::Relaxed);
        crowd.begin();
        let all = usize::from(MANY) + 1;
        crowd.serve(at + Duration::from_secs(1), || meeting.met() == all);
        let soon = meeting.met() - 1;
        crowd.serve(at + Duration::from_secs(20), || meeting.met() == all);
        let took = at.elapsed();
        stop.store(true, Ordering::Relaxed);
        let [out, into] = [out, into].map(|thread| thread.join().expect("it counts"));
        println!(
            "storm of {MANY}: {soon} within 1 s, {} within {took:.2?}; longest gap out {:.1?} (before: {:.1?}), in {:.1?} (before: {:.1?})",
            meeting.met() - 1,
            out[1],
            out[0],
            into[1],
            into[0]
        );
    });
}

/// The longest time without a datagram, while it was calm and afterwards.
fn longest_gap(sink: &Wire, calm: &AtomicBool, stop: &AtomicBool) -> [Duration; 2] {
    let mut room = Room::default();
    let mut longest = [Duration::ZERO; 2];
    let mut last = None;
    while !stop.load(Ordering::Relaxed) {
        let mut arrived = false;
        sink.receive(&mut room, |_, _| arrived = true);
        if arrived {
            let at = now();
            if let Some(last) = last.replace(at) {
                let which = usize::from(!calm.load(Ordering::Relaxed));
                longest[which] = longest[which].max(at.duration_since(last));
            }
        }
    }
    longest
}

/// Peers that share a socket, each at its own address.
struct Crowd {
    first: u16,
    cores: Vec<Core>,
    out: Outbox,
    /// Initiations that were made and not sent.
    prepared: Vec<(u16, Vec<u8>)>,
    inbox: Inbox,
    wire: Wire,
    room: Room,
    packet: Vec<u8>,
}

impl Crowd {
    fn new(lab: &Lab, peers: std::ops::Range<u16>, port: u16) -> Self {
        let first = peers.start;
        let cores = peers.map(|n| {
            let hub = TunnelPeer {
                endpoint: Some(netns::outer("a", false)),
                allowed_ips: [IpAddr::from([10, 0, 0, 1]).into()].into(),
                keepalive: Some(Duration::from_secs(25)),
                ..TunnelPeer::default()
            };
            let mut plan = netns::plan(2, &[(1, hub)]);
            plan.key = secret(n);
            let mut core = Core::new(1420, std::sync::Arc::default());
            core.apply(&plan, now());
            core
        });
        Self {
            first,
            cores: cores.collect(),
            out: Outbox::new(),
            prepared: Vec::new(),
            inbox: Inbox::new(false, false),
            wire: lab.inside("b", || Wire::bind(([0, 0, 0, 0], port).into())),
            room: Room::default(),
            packet: Vec::new(),
        }
    }

    /// Makes everybody's initiation.
    fn prepare(&mut self) {
        for (n, core) in (self.first..).zip(&mut self.cores) {
            core.handle_timeout(now(), &mut self.out);
            for message in self.out.messages() {
                self.prepared.push((n, message.bytes().to_vec()));
            }
            self.out.clear();
        }
    }

    /// Sends them.
    fn begin(&mut self) {
        for (n, initiation) in self.prepared.drain(..) {
            let to = netns::outer("a", false);
            self.wire.send(Some(outside(n)), to, &initiation, None);
        }
    }

    fn flush(&mut self, n: u16) {
        flush(&self.wire, n, &mut self.out);
    }

    /// Seals and sends a super-packet of one of a peer's flows.
    fn send(&mut self, n: u16, flow: u16, datagrams: usize) {
        self.pack(n, flow, datagrams);
        self.flush(n);
    }

    /// Seals it only: whose it is, its datagrams, and the length of each.
    fn seal(&mut self, n: u16, flow: u16, datagrams: usize) -> (u16, Vec<u8>, usize) {
        self.pack(n, flow, datagrams);
        let [message] = self.out.messages() else {
            panic!("one message, for there is a session");
        };
        assert_eq!(message.count, datagrams);
        let sealed = (n, message.bytes().to_vec(), message.segment);
        self.out.clear();
        sealed
    }

    /// Sends what a peer has sealed.
    fn put(&self, n: u16, message: &[u8], segment: Option<usize>) {
        self.wire
            .send(Some(outside(n)), netns::outer("a", false), message, segment);
    }

    fn pack(&mut self, n: u16, flow: u16, datagrams: usize) {
        let len = super_packet(&mut self.packet, (inside(n), 1000 + flow), datagrams);
        let header = VnetHeader {
            flags: 1,
            gso_type: if datagrams > 1 { 5 } else { 0 },
            header_len: HEADERS as u16,
            gso_size: if datagrams > 1 { PAYLOAD as u16 } else { 0 },
            csum_start: 20,
            csum_offset: 6,
        };
        let core = &mut self.cores[usize::from(n - self.first)];
        core.handle_tun(&mut self.packet, len, header, now(), &mut self.out);
    }

    /// Answers what comes until then, or until it is done.
    fn serve(&mut self, until: Instant, done: impl Fn() -> bool) {
        let hub = netns::outer("a", false);
        while now() < until && !done() {
            let Self {
                first,
                cores,
                out,
                inbox,
                wire,
                room,
                ..
            } = self;
            wire.receive(room, |local, datagram| {
                let Some(n) = number(local).filter(|n| *n >= *first) else {
                    return;
                };
                let Some(core) = cores.get_mut(usize::from(n - *first)) else {
                    return;
                };
                core.handle_datagram((hub, Some(local)), datagram, now(), inbox, out);
                core.open_waiting(now(), inbox, out);
                core.handle_timeout(now(), out);
                inbox.drain(|_, _, _| ());
                flush(wire, n, out);
            });
        }
    }
}

/// Sends what one of them has to say.
fn flush(wire: &Wire, n: u16, out: &mut Outbox) {
    for message in out.messages() {
        let segment = (message.count > 1).then_some(message.segment);
        wire.send(
            Some(outside(n)),
            message.to.remote,
            message.bytes(),
            segment,
        );
    }
    out.clear();
}

/// A UDP super-packet to the engine's socket; its length without the slack.
fn super_packet(packet: &mut Vec<u8>, (from, port): (Ipv4Addr, u16), datagrams: usize) -> usize {
    let len = HEADERS + datagrams * PAYLOAD;
    packet.clear();
    packet.resize(len + SLACK, 0x5a);
    packet[..HEADERS].fill(0);
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
    packet[6] = 0x40;
    packet[8] = 64;
    packet[9] = 17;
    packet[12..16].copy_from_slice(&from.octets());
    packet[16..20].copy_from_slice(&[10, 0, 0, 1]);
    packet[20..22].copy_from_slice(&port.to_be_bytes());
    packet[22..24].copy_from_slice(&INNER.to_be_bytes());
    packet[24..26].copy_from_slice(&((len - 20) as u16).to_be_bytes());
    len
}

/// A socket with segmentation and coalescing.
struct Wire {
    socket: UdpSocket,
    state: UdpSocketState,
}

/// Where datagrams are received.
struct Room(Vec<u8>);

impl Default for Room {
    fn default() -> Self {
        Self(vec![0; 8 * 65536])
    }
}

impl Wire {
    fn bind(to: SocketAddr) -> Self {
        Self::of(UdpSocket::bind(to).expect("a free port"))
    }

    fn of(socket: UdpSocket) -> Self {
        let state = UdpSocketState::new((&socket).into()).expect("a UDP socket");
        let _ = state.set_recv_buffer_size((&socket).into(), 4 << 20);
        Self { socket, state }
    }

    /// The same socket for another thread.
    fn again(&self) -> Self {
        Self::of(self.socket.try_clone().expect("descriptors are left"))
    }

    /// What finds no room is lost.
    fn send(&self, source: Option<IpAddr>, to: SocketAddr, bytes: &[u8], segment: Option<usize>) {
        let transmit = Transmit {
            destination: to,
            ecn: None,
            contents: bytes,
            segment_size: segment,
            src_ip: source,
        };
        let _ = self.state.try_send((&self.socket).into(), &transmit);
    }

    /// Waits 20 ms at most; gives the address that was sent to and the bytes of each datagram.
    fn receive(&self, room: &mut Room, mut each: impl FnMut(IpAddr, &[u8])) {
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut fds, 20_u8);
        let mut buffers: Vec<_> = room
            .0
            .chunks_mut(65536)
            .map(std::io::IoSliceMut::new)
            .collect();
        let mut meta = [RecvMeta::default(); 8];
        let received = self
            .state
            .recv((&self.socket).into(), &mut buffers, &mut meta);
        for (meta, slot) in meta
            .iter()
            .zip(room.0.chunks(65536))
            .take(received.unwrap_or(0))
        {
            let local = meta.dst_ip.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
            for datagram in slot[..meta.len].chunks(meta.stride.max(1)) {
                each(local, datagram);
            }
        }
    }
}

fn secret(n: u16) -> WgSecret {
    let [high, low] = n.to_be_bytes();
    let mut bytes = [7; 32];
    // Not the first byte: X25519 leaves its lower bits out.
    bytes[1..3].copy_from_slice(&[high, low]);
    WgSecret::from_bytes(bytes)
}

/// A peer's address outside.
fn outside(n: u16) -> IpAddr {
    let [high, low] = n.to_be_bytes();
    IpAddr::from([198, 18, high, low])
}

/// A peer's address inside.
fn inside(n: u16) -> Ipv4Addr {
    let [high, low] = n.to_be_bytes();
    Ipv4Addr::from([10, 1, high, low])
}

/// Whose address that is.
fn number(outside: IpAddr) -> Option<u16> {
    match outside {
        IpAddr::V4(ip) => match ip.octets() {
            [198, 18, high, low] => Some(u16::from_be_bytes([high, low])),
            _ => None,
        },
        IpAddr::V6(_) => None,
    }
}
