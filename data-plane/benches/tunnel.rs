//! Two engines in namespaces of this machine, under load: `cargo bench -p data-plane --bench tunnel`, as root.
//!
//! One line a run: TCP throughput, CPU time of both packet threads a gigabyte, and the round trip of small
//! datagrams beside it. With `TXQUEUE=n,m` the TUN's queue has these lengths, in turns; `ROUNDS` is 3 unless told.
//! Load and engines share the processors: compare lines of one run only.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use data_plane::Offload;
use measure::{cpu, now};
use netns::{DEVICE, Lab, Pair, counter};

#[expect(dead_code, reason = "another benchmark uses more of it")]
mod measure;
#[path = "../tests/netns/mod.rs"]
#[expect(dead_code, reason = "tests use more of it")]
mod netns;

/// How long one run loads the tunnel.
const RUN: Duration = Duration::from_secs(3);

fn main() {
    let rounds = number("ROUNDS").first().copied().unwrap_or(3);
    let mut queues = number("TXQUEUE");
    if queues.is_empty() {
        queues.push(0);
    }
    println!("txqueuelen  Gbit/s  CPU s/GB  RTT idle p50  loaded p50  p99, us  lost");
    for _ in 0..rounds {
        for &queue in &queues {
            run(queue);
        }
    }
}

fn number(name: &str) -> Vec<u32> {
    let text = std::env::var(name).unwrap_or_default();
    text.split(',').filter_map(|n| n.parse().ok()).collect()
}

/// Queue 0 leaves it as it is.
fn run(queue: u32) {
    let lab = Lab::new("tunnel");
    let pair = lab.pair(false, Offload::default());
    if queue > 0 {
        for side in ["a", "b"] {
            lab.ip(side, &format!("link set {DEVICE} txqueuelen {queue}"));
        }
    }
    let server = lab.inside("b", || UdpSocket::bind("10.0.0.2:7").expect("a free port"));
    let client = lab.inside("a", || UdpSocket::bind("10.0.0.1:0").expect("a free port"));
    client
        .connect("10.0.0.2:7")
        .expect("a UDP socket connects to anything");
    let wait = Some(Duration::from_millis(200));
    for socket in [&server, &client] {
        socket.set_read_timeout(wait).expect("a valid timeout");
    }
    let stop = AtomicBool::new(false);
    let bytes = AtomicU64::new(0);
    thread::scope(|scope| {
        scope.spawn(|| echo(&server, &stop));
        let (mut idle, _) = round_trips(&client, Duration::from_millis(500));
        let listener = lab.inside("b", || {
            TcpListener::bind("10.0.0.2:9").expect("a free port")
        });
        let to = SocketAddr::from(([10, 0, 0, 2], 9));
        let sender = lab.inside("a", || {
            TcpStream::connect(to).expect("the tunnel carries it")
        });
        let receiver = listener.accept().expect("somebody connects").0;
        scope.spawn(|| load(sender, &stop));
        scope.spawn(|| drain(receiver, &bytes, &stop));
        // Slow start is left out.
        round_trips(&client, Duration::from_millis(300));
        let (before, cpu, at) = (bytes.load(Ordering::Relaxed), cpu(), now());
        let (mut loaded, lost) = round_trips(&client, RUN);
        let gigabytes = (bytes.load(Ordering::Relaxed) - before) as f64 / 1e9;
        let (cpu, seconds) = (measure::cpu() - cpu, at.elapsed().as_secs_f64());
        stop.store(true, Ordering::Relaxed);
        println!(
            "{queue:>10}  {:>6.2}  {:>8.2}  {:>12}  {:>10}  {:>7}  {lost:>4}  {}",
            gigabytes * 8.0 / seconds,
            cpu / gigabytes,
            percentile(&mut idle, 50),
            percentile(&mut loaded, 50),
            percentile(&mut loaded, 99),
            oddities(&pair),
        );
    });
}

/// Counters that should be zero and are not.
fn oddities(pair: &Pair) -> String {
    let names = [
        "udp_busy",
        "udp_refused",
        "udp_unsegmented",
        "tun_refused",
        "replayed",
    ];
    let mut all = String::new();
    for (side, engine) in [("a", &pair.a), ("b", &pair.b)] {
        for name in names {
            let count = counter(engine, name);
            if count > 0 {
                all += &format!("{side}: {name} {count} ");
            }
        }
    }
    all
}

fn load(mut sender: TcpStream, stop: &AtomicBool) {
    let chunk = vec![0x5a; 128 * 1024];
    while !stop.load(Ordering::Relaxed) && sender.write_all(&chunk).is_ok() {}
}

fn drain(mut receiver: TcpStream, bytes: &AtomicU64, stop: &AtomicBool) {
    let mut chunk = vec![0; 256 * 1024];
    while !stop.load(Ordering::Relaxed) {
        match receiver.read(&mut chunk) {
            Ok(0) | Err(_) => return,
            Ok(len) => bytes.fetch_add(len as u64, Ordering::Relaxed),
        };
    }
}

fn echo(server: &UdpSocket, stop: &AtomicBool) {
    let mut bytes = [0; 64];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((len, from)) = server.recv_from(&mut bytes) {
            let _ = server.send_to(&bytes[..len], from);
        }
    }
}

/// Microseconds of each round trip of 64 bytes, one after the other, and how many got no answer.
fn round_trips(client: &UdpSocket, length: Duration) -> (Vec<u64>, usize) {
    let begun = now();
    let (mut all, mut lost) = (Vec::new(), 0);
    let mut number = 0u64;
    while begun.elapsed() < length {
        number += 1;
        let mut bytes = [0; 64];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        let at = now();
        let sent = client.send(&bytes).is_ok();
        let mut answer = [0; 64];
        loop {
            match client.recv(&mut answer) {
                Ok(_) if answer != bytes => {}
                Ok(_) => {
                    all.push(at.elapsed().as_micros() as u64);
                    break;
                }
                Err(_) => {
                    lost += usize::from(sent);
                    break;
                }
            }
        }
    }
    (all, lost)
}

fn percentile(all: &mut [u64], percent: usize) -> u64 {
    all.sort_unstable();
    all.get(all.len() * percent / 100).copied().unwrap_or(0)
}
