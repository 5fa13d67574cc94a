//! `farspan bench`: TCP through the tunnel to the peer's agent, idle delay first, then each direction with the
//! delay beside it.

use std::fmt::Write as _;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use mesh_types::{IpNet, consts};
use serde::Serialize;

use super::{agent, show};
use crate::agent::bench::{CHUNK, ECHO, ECHOES_MAX, Mode, OPENING, Opening, SILENCE, Verdict};
use crate::agent::clock;
use crate::api;
use crate::cli::{BenchArgs, Global};

const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// Delays measured while nothing else flows.
const IDLE_ECHOES: usize = 20;
/// Under load one is measured this often.
const LOADED_APART: Duration = Duration::from_millis(50);
/// A direction may take so much longer than asked for: what is under way has to arrive.
const LEFTOVER: Duration = Duration::from_secs(2);

/// `farspan bench -o json`.
#[derive(Debug, Serialize)]
struct Bench {
    peer: String,
    address: String,
    path: Option<api::Path>,
    streams: u8,
    idle: Delay,
    upload: Direction,
    download: Direction,
}

/// Round trips, milliseconds.
#[derive(Debug, Serialize)]
struct Delay {
    samples: usize,
    min_ms: f64,
    median_ms: f64,
    max_ms: f64,
}

#[derive(Debug, Serialize)]
struct Direction {
    bytes: u64,
    seconds: f64,
    mbit_s: f64,
    /// Beside the traffic; `null` where no echo came back in time.
    delay: Option<Delay>,
}

pub fn run(global: &Global, args: &BenchArgs) -> Result<()> {
    let agent = agent(global)?;
    let body = api::Doctor {
        peer: args.peer.clone(),
    };
    let peer = agent.post::<api::Diagnosis>("/doctor", &body)?.peer;
    let address = overlay_address(&peer).ok_or_else(|| {
        anyhow!(
            "cannot measure to {}: it has no overlay address of its own; see `farspan status`",
            peer.name
        )
    })?;
    let target = SocketAddr::new(address, consts::CONTROL_PORT);
    let seconds = u8::try_from(args.time.as_secs()).context("Failed to read the time")?;
    let caller = Caller {
        target,
        seconds,
        name: peer.name.clone(),
    };
    let idle = caller.idle()?;
    let upload = caller.direction(Mode::Upload, args.streams)?;
    let download = caller.direction(Mode::Download, args.streams)?;
    // As it is after the load: an upgrade may have come meanwhile.
    let after = agent.post::<api::Diagnosis>("/doctor", &body)?.peer;
    let bench = Bench {
        peer: peer.name,
        address: address.to_string(),
        path: after.path,
        streams: args.streams,
        idle,
        upload,
        download,
    };
    show(args.output, &bench, || table(&bench))
}

/// The first single address: the peer's own.
fn overlay_address(peer: &api::Peer) -> Option<IpAddr> {
    let nets = peer.allowed_ips.iter().filter_map(|net| net.parse().ok());
    let mut single = nets.filter(|net: &IpNet| net.prefix_len() == net.max_prefix_len());
    single.next().map(|net| net.addr())
}

struct Caller {
    target: SocketAddr,
    seconds: u8,
    name: String,
}

impl Caller {
    fn open(&self, mode: Mode) -> Result<TcpStream> {
        let name = &self.name;
        let connected = TcpStream::connect_timeout(&self.target, CONNECT_WITHIN);
        let mut stream = connected.map_err(|error| {
            let why = if error.kind() == ErrorKind::ConnectionRefused {
                "nobody listens there: its agent is of a version without bench".to_owned()
            } else {
                format!("{error}: is it reached (`farspan ping {name}`), and does its firewall let TCP in from the mesh?")
            };
            anyhow!("cannot connect to {name} at {}: {why}", self.target)
        })?;
        let seconds = self.seconds;
        let mut verdict = [0];
        stream
            .set_nodelay(true)
            .and_then(|()| stream.set_read_timeout(Some(SILENCE)))
            .and_then(|()| stream.set_write_timeout(Some(SILENCE)))
            .and_then(|()| stream.write_all(&Opening { mode, seconds }.encode()[..OPENING]))
            .and_then(|()| stream.read_exact(&mut verdict))
            .map_err(|error| {
                anyhow!("{name} accepted the connection and closed it ({error}): it does not know this node's address as a peer's own")
            })?;
        match Verdict::from_code(verdict[0]) {
            Verdict::Go => Ok(stream),
            Verdict::Busy => bail!(
                "{name} has measured enough for now: it grants 10 minutes of streams in 10 minutes; try again later, or with fewer --streams or less --time"
            ),
            Verdict::Malformed => {
                bail!(
                    "{name} does not understand the request; use the same farspan version on both machines"
                )
            }
        }
    }

    fn idle(&self) -> Result<Delay> {
        let mut stream = self.open(Mode::Echo)?;
        let mut times = Vec::new();
        for _ in 0..IDLE_ECHOES {
            times.push(echo(&mut stream).map_err(|error| self.lost(&error))?);
        }
        delay(times).context("no echo came back")
    }

    /// All streams of one direction, and the delay beside them.
    fn direction(&self, mode: Mode, streams: u8) -> Result<Direction> {
        let mut open = Vec::new();
        for _ in 0..streams {
            open.push(self.open(mode)?);
        }
        let mut beside = self.open(Mode::Echo)?;
        let over = AtomicBool::new(false);
        let time = Duration::from_secs(self.seconds.into());
        let (measured, times) = std::thread::scope(|scope| {
            let echoes = scope.spawn(|| {
                let mut times = Vec::new();
                while !over.load(Ordering::Relaxed) && times.len() < ECHOES_MAX {
                    match echo(&mut beside) {
                        Ok(time) => times.push(time),
                        Err(_) => break,
                    }
                    std::thread::sleep(LOADED_APART);
                }
                times
            });
            let threads: Vec<_> = open
                .into_iter()
                .map(|stream| {
                    scope.spawn(move || match mode {
                        Mode::Upload => upload(stream, time),
                        Mode::Download | Mode::Echo => download(stream, time),
                    })
                })
                .collect();
            let measured: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
            over.store(true, Ordering::Relaxed);
            (measured, echoes.join().unwrap_or_default())
        });
        let (mut bytes, mut longest) = (0_u64, Duration::ZERO);
        for result in measured {
            let (some, time) = result
                .map_err(|_| anyhow!("a measuring thread has failed"))?
                .map_err(|error| self.lost(&error))?;
            bytes += some;
            longest = longest.max(time);
        }
        Ok(Direction {
            bytes,
            seconds: longest.as_secs_f64(),
            mbit_s: rate(bytes, longest),
            delay: delay(times),
        })
    }

    fn lost(&self, error: &std::io::Error) -> anyhow::Error {
        anyhow!(
            "the connection to {} was lost while measuring: {error}; see `farspan doctor {0}`",
            self.name
        )
    }
}

fn echo(stream: &mut TcpStream) -> std::io::Result<Duration> {
    let mut bytes = [0; ECHO];
    let start = clock::instant();
    stream.write_all(&bytes)?;
    stream.read_exact(&mut bytes)?;
    Ok(start.elapsed())
}

/// Bytes that arrived, and the time the other side took for them.
fn upload(mut stream: TcpStream, time: Duration) -> std::io::Result<(u64, Duration)> {
    let buffer = vec![0; CHUNK];
    let start = clock::instant();
    while start.elapsed() < time {
        stream.write_all(&buffer)?;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut answer = [0; 16];
    stream.read_exact(&mut answer)?;
    let number = |bytes: &[u8]| {
        bytes
            .iter()
            .fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte))
    };
    let (bytes, nanos) = answer.split_at(8);
    Ok((number(bytes), Duration::from_nanos(number(nanos))))
}

fn download(mut stream: TcpStream, time: Duration) -> std::io::Result<(u64, Duration)> {
    let mut buffer = vec![0; CHUNK];
    let mut bytes = 0;
    let start = clock::instant();
    let mut last = Duration::ZERO;
    while start.elapsed() < time + LEFTOVER {
        match stream.read(&mut buffer)? {
            0 => break,
            read => bytes += read as u64,
        }
        last = start.elapsed();
    }
    Ok((bytes, last))
}

#[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
fn rate(bytes: u64, time: Duration) -> f64 {
    bytes as f64 * 8.0 / time.as_secs_f64().max(1e-6) / 1e6
}

fn delay(mut times: Vec<Duration>) -> Option<Delay> {
    times.sort();
    let ms = |time: &Duration| (time.as_secs_f64() * 1e6).round() / 1e3;
    Some(Delay {
        samples: times.len(),
        min_ms: ms(times.first()?),
        median_ms: ms(times.get(times.len() / 2)?),
        max_ms: ms(times.last()?),
    })
}

fn table(bench: &Bench) -> String {
    let mut out = String::new();
    let path = match &bench.path {
        Some(api::Path {
            kind,
            remote,
            via: Some(via),
        }) => format!("{kind} by {via} at {remote}"),
        Some(path) => format!("{} {}", path.kind, path.remote),
        None => "unknown".to_owned(),
    };
    let streams = match bench.streams {
        1 => "1 stream".to_owned(),
        many => format!("{many} streams"),
    };
    _ = writeln!(
        out,
        "{} ({}), path {path}, {streams}",
        bench.peer, bench.address
    );
    _ = writeln!(out, "idle      {}", words(&bench.idle));
    for (title, direction) in [("upload", &bench.upload), ("download", &bench.download)] {
        let delay = direction
            .delay
            .as_ref()
            .map_or_else(|| "no echo beside it".to_owned(), words);
        _ = writeln!(
            out,
            "{title:<9} {:.0} Mbit/s for {:.1} s, {delay}",
            direction.mbit_s, direction.seconds
        );
    }
    out
}

fn words(delay: &Delay) -> String {
    format!(
        "{:.1} ms (min {:.1}, max {:.1})",
        delay.median_ms, delay.min_ms, delay.max_ms
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_says_what_was_measured_on_which_path() {
        let delay = |ms: f64| Delay {
            samples: 20,
            min_ms: ms - 1.0,
            median_ms: ms,
            max_ms: ms + 5.0,
        };
        let direction = |delay| Direction {
            bytes: 125_000_000,
            seconds: 3.0,
            mbit_s: rate(125_000_000, Duration::from_secs(1)),
            delay,
        };
        let bench = Bench {
            peer: "b".into(),
            address: "10.77.0.2".into(),
            path: Some(api::Path {
                kind: "node-relay".into(),
                remote: "203.0.113.9:28672".into(),
                via: Some("hub".into()),
            }),
            streams: 1,
            idle: delay(12.0),
            upload: direction(Some(delay(30.0))),
            download: direction(None),
        };
        assert_eq!(
            table(&bench),
            "b (10.77.0.2), path node-relay by hub at 203.0.113.9:28672, 1 stream\n\
             idle      12.0 ms (min 11.0, max 17.0)\n\
             upload    1000 Mbit/s for 3.0 s, 30.0 ms (min 29.0, max 35.0)\n\
             download  1000 Mbit/s for 3.0 s, no echo beside it\n"
        );
    }

    #[test]
    fn the_median_stands_in_the_middle() {
        let times = [9, 1, 5].map(Duration::from_millis).to_vec();
        let found = delay(times).unwrap();
        assert_eq!(
            (found.min_ms, found.median_ms, found.max_ms),
            (1.0, 5.0, 9.0)
        );
        assert!(delay(Vec::new()).is_none());
    }
}
