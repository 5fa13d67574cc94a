//! Traffic of pods: echo servers that tell whom they see, senders that carry a marker, pings that count.

use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, ChildStdout, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::netns::Namespace;
use super::wait::{pause, wait_until};

/// What the eavesdropper looks for; 16 bytes, as many as `ping -p` takes.
pub const MARKER: &[u8; 16] = b"FS~plain~marker!";
/// Where echo servers listen.
pub const ECHO_PORT: u16 = 7007;
/// Where [`bulk`] listens.
const BULK_PORT: u16 = 7008;
/// How often a blocked thread looks whether it should stop.
const GLANCE: Duration = Duration::from_millis(50);
/// How long the port of an echo server may still be held.
const PATIENCE: Duration = Duration::from_secs(5);

/// UDP and TCP servers on [`ECHO_PORT`] that answer with the address they see, then the request.
pub struct Echo {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Echo {
    /// Serves both families in `namespace`.
    pub fn start(namespace: &Namespace) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (udp, tcp) = namespace.enter(|| {
            // What another test has just forked holds a copy of the sockets of an earlier server until it executes.
            let free = wait_until("the echo port is free", PATIENCE, || {
                let udp = UdpSocket::bind(("::", ECHO_PORT));
                let both = udp.and_then(|udp| Ok((udp, TcpListener::bind(("::", ECHO_PORT))?)));
                both.map_err(|error| error.to_string())
            });
            free.0
        });
        udp.set_read_timeout(Some(GLANCE))
            .expect("a timeout can be set");
        tcp.set_nonblocking(true).expect("a listener can be polled");
        let datagrams = {
            let stop = Arc::clone(&stop);
            thread::spawn(move || {
                let mut buffer = [0; 2048];
                while !stop.load(Ordering::Relaxed) {
                    if let Ok((length, from)) = udp.recv_from(&mut buffer) {
                        let mut answer = seen(from).into_bytes();
                        answer.extend_from_slice(&buffer[..length]);
                        let _ = udp.send_to(&answer, from);
                    }
                }
            })
        };
        let streams = {
            let stop = Arc::clone(&stop);
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    match tcp.accept() {
                        Ok((stream, from)) => {
                            let stop = Arc::clone(&stop);
                            thread::spawn(move || echo_stream(stream, from, &stop));
                        }
                        Err(_) => pause(GLANCE),
                    }
                }
            })
        };
        Self {
            stop,
            threads: vec![datagrams, streams],
        }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// The source address a UDP echo server at `server` sees for a sender in `namespace`, if it answers.
pub fn udp_source_seen(namespace: &Namespace, server: IpAddr) -> Result<IpAddr, String> {
    namespace.enter(|| {
        let socket = connected(server)?;
        socket
            .send(MARKER)
            .map_err(|error| format!("send to {server}: {error}"))?;
        let mut buffer = [0; 256];
        let length = socket
            .recv(&mut buffer)
            .map_err(|error| format!("no answer of {server}: {error}"))?;
        parse_seen(&buffer[..length])
    })
}

/// The source address a TCP echo server at `server` sees for a client in `namespace`, if it answers.
pub fn tcp_source_seen(namespace: &Namespace, server: IpAddr) -> Result<IpAddr, String> {
    namespace.enter(|| {
        let address = SocketAddr::new(server, ECHO_PORT);
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))
            .map_err(|error| format!("connect to {address}: {error}"))?;
        stream
            .set_read_timeout(Some(Duration::from_secs(1)))
            .map_err(|error| error.to_string())?;
        stream
            .write_all(MARKER)
            .map_err(|error| format!("write to {address}: {error}"))?;
        let mut buffer = [0; 256];
        let length = stream
            .read(&mut buffer)
            .map_err(|error| format!("no answer of {address}: {error}"))?;
        parse_seen(&buffer[..length])
    })
}

/// Sends datagrams of `size` bytes to the echo server, at most `count`, and returns how many were answered.
pub fn udp_exchange(namespace: &Namespace, server: IpAddr, count: u32, size: usize) -> u32 {
    namespace.enter(|| {
        let Ok(socket) = connected(server) else {
            return 0;
        };
        let payload: Vec<u8> = MARKER.iter().copied().cycle().take(size).collect();
        let mut buffer = [0; 4096];
        (0..count)
            .filter(|_| socket.send(&payload).is_ok() && socket.recv(&mut buffer).is_ok())
            .count() as u32
    })
}

/// Sends `bytes` by TCP from one namespace to another and returns how long it took until all had arrived.
pub fn bulk(from: &Namespace, to: &Namespace, server: impl Into<IpAddr>, bytes: u64) -> Duration {
    let server = server.into();
    let listener = to.enter(|| TcpListener::bind(("::", BULK_PORT)).expect("the port is free"));
    let sink = thread::spawn(move || {
        let (mut stream, _) = listener.accept()?;
        let mut buffer = vec![0; 1 << 18];
        let mut count = 0;
        loop {
            match stream.read(&mut buffer)? {
                0 => break,
                length => count += length as u64,
            }
        }
        stream.write_all(&count.to_be_bytes())
    });
    let start = Instant::now();
    let arrived = from.enter(|| -> std::io::Result<u64> {
        let mut stream = TcpStream::connect((server, BULK_PORT))?;
        let block = vec![0x5a; 1 << 18];
        let mut left = bytes;
        while left > 0 {
            let length = left.min(block.len() as u64);
            stream.write_all(&block[..length as usize])?;
            left -= length;
        }
        stream.shutdown(Shutdown::Write)?;
        let mut count = [0; 8];
        stream.read_exact(&mut count)?;
        Ok(u64::from_be_bytes(count))
    });
    assert_eq!(arrived.ok(), Some(bytes), "all bytes arrive");
    let took = start.elapsed();
    let ended = sink.join().expect("the sink does not panic");
    ended.expect("the sink ends well");
    took
}

/// Senders that carry the marker by UDP and TCP until they are dropped, whatever happens to the path.
pub struct MarkedStream {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl MarkedStream {
    /// Starts sending from `namespace` to the echo server at `server`, every 5 ms by each protocol.
    pub fn start(namespace: &Namespace, server: IpAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicU64::new(0));
        let send: [fn(IpAddr, &AtomicBool, &AtomicU64); 2] = [send_datagrams, send_streams];
        let threads = send.map(|send| {
            let (stop, answered, namespace) =
                (Arc::clone(&stop), Arc::clone(&answered), namespace.clone());
            thread::spawn(move || {
                namespace.join_thread();
                send(server, &stop, &answered);
            })
        });
        Self {
            stop,
            answered,
            threads: Vec::from(threads),
        }
    }

    /// Answers that came back so far, of both protocols.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }
}

impl Drop for MarkedStream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// A running `ping` whose payload is the marker.
pub struct Pings {
    child: Child,
    out: BufReader<ChildStdout>,
    /// What was read of it.
    text: String,
    interval: Duration,
}

/// What a `ping` came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PingReport {
    /// Requests sent.
    pub sent: u32,
    /// Answers received.
    pub received: u32,
    /// The longest run of unanswered requests, in time.
    pub longest_gap: Duration,
}

impl PingReport {
    /// Requests without an answer.
    pub fn lost(self) -> u32 {
        self.sent - self.received
    }
}

impl Pings {
    /// Starts `count` pings every `interval` (2 ms at least) from `namespace`.
    pub fn start(namespace: &Namespace, target: IpAddr, count: u32, interval: Duration) -> Self {
        let pattern: String = MARKER.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut child = namespace
            .command("ping")
            .args([
                "-n",
                "-i",
                &format!("{}", interval.as_secs_f64()),
                "-c",
                &count.to_string(),
            ])
            .args(["-W", "2", "-s", "200", "-p", &pattern, &target.to_string()])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("ping is installed");
        let out = child.stdout.take().expect("its output is a pipe");
        Self {
            child,
            out: BufReader::new(out),
            text: String::new(),
            interval,
        }
    }

    /// Waits until so many were answered.
    pub fn wait_answered(&mut self, count: usize) {
        while self.text.matches("icmp_seq=").count() < count {
            let read = self.out.read_line(&mut self.text);
            let read = read.expect("what ping prints is text");
            assert!(read > 0, "ping has ended: {}", self.text);
        }
    }

    /// Ends it before the last one.
    pub fn stop(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits for the last one.
    pub fn finish(mut self) -> PingReport {
        let read = self.out.read_to_string(&mut self.text);
        read.expect("what ping prints is text");
        let _ = self.child.wait();
        let text = self.text;
        let mut answered: Vec<u32> = text
            .lines()
            .filter_map(|line| number_after(line, "icmp_seq="))
            .collect();
        answered.sort_unstable();
        answered.dedup();
        let sent = text
            .lines()
            .find(|line| line.contains("packets transmitted"))
            .and_then(|line| line.split_whitespace().next()?.parse().ok())
            .unwrap_or_else(|| panic!("ping printed no summary: {text}"));
        let edges = std::iter::once(0)
            .chain(answered.iter().copied())
            .chain(std::iter::once(sent + 1));
        let gaps = edges
            .clone()
            .zip(edges.skip(1))
            .map(|(before, after)| after.saturating_sub(before + 1));
        let longest = gaps.max().unwrap_or(sent);
        PingReport {
            sent,
            received: answered.len() as u32,
            longest_gap: self.interval * longest,
        }
    }
}

/// Whether one ping of a new `ping` gets through.
pub fn ping_once(namespace: &Namespace, target: IpAddr) -> Result<(), String> {
    let report = Pings::start(namespace, target, 1, Duration::from_secs(1)).finish();
    if report.received == 1 {
        Ok(())
    } else {
        Err(format!("no answer of {target}"))
    }
}

fn connected(server: IpAddr) -> Result<UdpSocket, String> {
    let any = if server.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    };
    let socket = UdpSocket::bind(any).map_err(|error| error.to_string())?;
    socket
        .set_read_timeout(Some(Duration::from_millis(500)))
        .map_err(|error| error.to_string())?;
    socket
        .connect((server, ECHO_PORT))
        .map_err(|error| format!("no route to {server}: {error}"))?;
    Ok(socket)
}

fn send_datagrams(server: IpAddr, stop: &AtomicBool, answered: &AtomicU64) {
    let mut socket = None;
    let mut buffer = [0; 2048];
    while !stop.load(Ordering::Relaxed) {
        pause(Duration::from_millis(5));
        let Some(open) = socket.as_ref() else {
            socket = connected(server).ok();
            continue;
        };
        let sent = open.send(&MARKER.repeat(8));
        if sent.is_err() {
            socket = None;
        } else if open.recv(&mut buffer).is_ok() {
            answered.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn send_streams(server: IpAddr, stop: &AtomicBool, answered: &AtomicU64) {
    let address = SocketAddr::new(server, ECHO_PORT);
    let mut buffer = [0; 2048];
    while !stop.load(Ordering::Relaxed) {
        pause(GLANCE);
        let Ok(mut stream) = TcpStream::connect_timeout(&address, Duration::from_millis(500))
        else {
            continue;
        };
        let _ = stream.set_read_timeout(Some(Duration::from_millis(500)));
        while !stop.load(Ordering::Relaxed) && stream.write_all(&MARKER.repeat(8)).is_ok() {
            match stream.read(&mut buffer) {
                Ok(1..) => answered.fetch_add(1, Ordering::Relaxed),
                Ok(0) | Err(_) => break,
            };
            pause(Duration::from_millis(5));
        }
    }
}

fn echo_stream(mut stream: TcpStream, from: SocketAddr, stop: &AtomicBool) {
    let mut buffer = [0; 65536];
    let _ = stream.set_nonblocking(false);
    let _ = stream.set_read_timeout(Some(GLANCE));
    let mut greeted = false;
    while !stop.load(Ordering::Relaxed) {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(length) => {
                let greeting = if greeted { String::new() } else { seen(from) };
                greeted = true;
                if stream
                    .write_all(greeting.as_bytes())
                    .and_then(|()| stream.write_all(&buffer[..length]))
                    .is_err()
                {
                    return;
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

fn seen(from: SocketAddr) -> String {
    format!("{} ", from.ip().to_canonical())
}

fn parse_seen(answer: &[u8]) -> Result<IpAddr, String> {
    let text = String::from_utf8_lossy(answer);
    let word = text.split(' ').next().unwrap_or_default();
    word.parse()
        .map_err(|_| format!("the echo server answered {text:?}"))
}

fn number_after(line: &str, label: &str) -> Option<u32> {
    let rest = &line[line.find(label)? + label.len()..];
    let end = rest
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(rest.len());
    rest[..end].parse().ok()
}
