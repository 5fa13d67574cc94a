//! Two nodes with a tunnel of one contender between them.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::Value;

use crate::namespace::Namespace;
use crate::processor::Snapshot;
use crate::record::{Cell, Family, Outcome, Pace};
use crate::{echo, flood, lossless};

/// Where `iperf3 -s` listens.
const IPERF_PORT: u16 = 5201;
/// How long a session, or iperf3's server, may take to come up.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long a TCP stream runs before round trips beside it are measured, and at least after that.
const SETTLE: Duration = Duration::from_millis(500);

/// The nodes' addresses in every tunnel.
fn inner(family: Family) -> [IpAddr; 2] {
    [1, 2].map(|node| match family {
        Family::Ipv4 => Ipv4Addr::new(10, 77, 0, node as u8).into(),
        Family::Ipv6 => Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, node).into(),
    })
}

/// A contender's pair for one family; its server ends when it is dropped.
pub struct Pair {
    pub contender: String,
    pub family: Family,
    nodes: [Namespace; 2],
    /// One a node, but where the kernel is the contender.
    daemons: Option<[i32; 2]>,
    server: Child,
}

/// What one cell gave.
pub struct Measured {
    pub daemons: [f64; 2],
    pub machine: f64,
    pub foreign: f64,
    pub outcome: Outcome,
}

impl Pair {
    /// A pair as scripts/bench has made it: in each namespace its daemon, if it has one, is the only process.
    pub fn open(lab: &str, contender: &str, family: Family, in_kernel: bool) -> Result<Self> {
        let digit = match family {
            Family::Ipv4 => 4,
            Family::Ipv6 => 6,
        };
        let node = |node| Namespace::open(&format!("{lab}-{contender}{digit}{node}"));
        let nodes = [node("a")?, node("b")?];
        let daemon = |node: &Namespace| {
            let processes = node.processes()?;
            let [daemon] = processes[..] else {
                bail!(
                    "{} holds {} processes, not its daemon alone",
                    node.name(),
                    processes.len()
                );
            };
            Ok(daemon)
        };
        let daemons = if in_kernel {
            None
        } else {
            Some([daemon(&nodes[0])?, daemon(&nodes[1])?])
        };
        let mut command = Command::new("iperf3");
        command
            .arg("-s")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            // It complains of a client that only looks whether it listens.
            .stderr(Stdio::null());
        let server = nodes[1].inside(|| command.spawn().context("Failed to start iperf3 -s"))?;
        let pair = Self {
            contender: contender.to_owned(),
            family,
            nodes,
            daemons,
            server,
        };
        let listening = pair.nodes[1].inside(|| {
            let end = clock() + PATIENCE;
            while clock() < end {
                if TcpStream::connect((inner(family)[1], IPERF_PORT)).is_ok() {
                    return Ok(true);
                }
                thread::park_timeout(Duration::from_millis(20));
            }
            Ok(false)
        })?;
        ensure!(listening, "iperf3 -s does not listen within {PATIENCE:?}");
        Ok(pair)
    }

    /// Daemons whose use of the processors is not foreign.
    pub fn daemons(&self) -> impl Iterator<Item = i32> {
        self.daemons.into_iter().flatten()
    }

    /// The kernel is measured with TCP only: what carrying costs without a cipher.
    pub fn takes_part_in(&self, cell: Cell) -> bool {
        self.daemons.is_some() || matches!(cell, Cell::Tcp { .. })
    }

    /// Lets the veth carry packets that are not yet cut to its MTU, or not.
    pub fn set_offloads(&self, on: bool) -> Result<()> {
        let value = if on { "on" } else { "off" };
        for node in &self.nodes {
            let features = ["tso", "gso", "tx-udp-segmentation"];
            let arguments = features.iter().flat_map(|feature| [*feature, value]);
            let mut command = Command::new("ethtool");
            command.args(["-K", "eth0"]).args(arguments);
            let output = node.inside(|| command.output().context("Failed to start ethtool"))?;
            let told = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "ethtool -K eth0: {}", told.trim());
        }
        Ok(())
    }

    /// Waits for a session, then measures a cell; a TCP stream runs this many seconds.
    pub fn measure(&self, cell: Cell, seconds: u64, ours: &BTreeSet<i32>) -> Result<Measured> {
        let (near, far) = self.sockets()?;
        echo::wait(&near, &far, PATIENCE)?;
        let (before, start) = (Snapshot::take()?, clock());
        let outcome = self.outcome(cell, seconds)?;
        let (after, elapsed) = (Snapshot::take()?, start.elapsed());
        let used = |daemons: [i32; 2]| daemons.map(|pid| before.used(&after, pid));
        let mut daemons = self.daemons.map_or([0.0; 2], used);
        if matches!(cell, Cell::Tcp { reverse: true, .. }) {
            daemons.reverse();
        }
        Ok(Measured {
            daemons,
            machine: before.busy(&after),
            foreign: before.foreign(&after, ours, elapsed),
            outcome,
        })
    }

    fn outcome(&self, cell: Cell, seconds: u64) -> Result<Outcome> {
        let (near, far) = self.sockets()?;
        // Datagrams need less time than streams for figures as steady.
        let flooded = Duration::from_secs(seconds.div_ceil(2));
        let asked = Duration::from_secs(seconds.div_ceil(3));
        let tried = Duration::from_millis(100 * seconds);
        match cell {
            Cell::Tcp { streams, reverse } => tcp(&self
                .iperf(seconds, streams, reverse)?
                .wait_with_output()?
                .stdout),
            Cell::Udp { payload } => {
                let flood = flood::flood(&near, &far, payload, None, flooded)?;
                Ok(Outcome::Udp {
                    sent: flood.sent,
                    delivered: flood.delivered,
                    late: flood.late,
                    seconds: flood.seconds,
                })
            }
            Cell::Lossless { payload } => Ok(Outcome::Lossless {
                packets_per_second: lossless::search(&near, &far, payload, tried)?,
            }),
            Cell::Rtt(Pace::BackToBack) => echo::round_trips(&near, &far, Duration::ZERO, asked),
            Cell::Rtt(Pace::Gaps) => echo::round_trips(&near, &far, GAP, asked),
            Cell::Rtt(Pace::Loaded) => self.loaded(&near, &far, flooded),
        }
    }

    fn loaded(&self, near: &UdpSocket, far: &UdpSocket, asked: Duration) -> Result<Outcome> {
        let load = self.iperf(asked.as_secs() + 1, 1, false)?;
        thread::park_timeout(SETTLE);
        let round_trips = echo::round_trips(near, far, GAP, asked);
        let load = tcp(&load.wait_with_output()?.stdout)?;
        let mut outcome = round_trips?;
        if let (
            Outcome::Rtt {
                load_bits_per_second,
                ..
            },
            Outcome::Tcp {
                bits_per_second, ..
            },
        ) = (&mut outcome, load)
        {
            *load_bits_per_second = Some(bits_per_second);
        }
        Ok(outcome)
    }

    fn iperf(&self, seconds: u64, streams: u8, reverse: bool) -> Result<Child> {
        let mut command = Command::new("iperf3");
        let [near, far] = inner(self.family).map(|address| address.to_string());
        command
            // farspan's device has an IPv6 address of its own too, which would be chosen and which nobody has allowed.
            .args(["-J", "-B", &near, "-c", &far])
            .args(["-t", &seconds.to_string(), "-P", &streams.to_string()])
            .args(reverse.then_some("-R"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        self.nodes[0].inside(|| command.spawn().context("Failed to start iperf3"))
    }

    /// A socket on the first node, connected to one on the second.
    fn sockets(&self) -> Result<(UdpSocket, UdpSocket)> {
        let [a, b] = inner(self.family);
        let open = |address: IpAddr| -> Result<UdpSocket> {
            let socket = socket2::Socket::new(
                socket2::Domain::for_address((address, 0).into()),
                socket2::Type::DGRAM,
                None,
            )?;
            // Losses are to be the tunnel's, not those of a receiver that had no processor for a moment.
            nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBufForce, &BUFFER)?;
            socket.bind(&SocketAddr::from((address, 0)).into())?;
            Ok(socket.into())
        };
        let far = self.nodes[1].inside(|| open(b))?;
        let near = self.nodes[0].inside(|| open(a))?;
        near.connect(far.local_addr()?)?;
        Ok((near, far))
    }
}

/// Receive buffers, bytes.
const BUFFER: usize = 8 << 20;
/// Between an answer and the next datagram, where there is a gap.
const GAP: Duration = Duration::from_millis(1);

impl Drop for Pair {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// What `iperf3 -J` says.
fn tcp(json: &[u8]) -> Result<Outcome> {
    let json: Value = serde_json::from_slice(json).context("Failed to read what iperf3 printed")?;
    if let Some(error) = json["error"].as_str() {
        bail!("iperf3: {error}");
    }
    let received = &json["end"]["sum_received"];
    let number = |key: &str| received[key].as_f64();
    let found = number("bits_per_second").zip(number("bytes"));
    let (bits_per_second, bytes) =
        found.ok_or_else(|| anyhow!("iperf3 printed no sum of what was received"))?;
    let retransmits = json["end"]["sum_sent"]["retransmits"].as_u64();
    Ok(Outcome::Tcp {
        bits_per_second,
        bytes,
        retransmits: retransmits.unwrap_or(0),
    })
}

#[expect(clippy::disallowed_methods, reason = "measures real time")]
fn clock() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_iperf3_prints_is_read_and_its_error_told() {
        let good = br#"{"end":{"sum_sent":{"retransmits":7},"sum_received":{"bytes":1000,"bits_per_second":8e9}}}"#;
        let expected = Outcome::Tcp {
            bits_per_second: 8e9,
            bytes: 1000.0,
            retransmits: 7,
        };
        assert_eq!(tcp(good).unwrap(), expected);
        let bad = tcp(br#"{"error":"unable to connect"}"#).unwrap_err();
        assert_eq!(bad.to_string(), "iperf3: unable to connect");
        assert!(tcp(b"{}").is_err() && tcp(b"").is_err());
    }
}
