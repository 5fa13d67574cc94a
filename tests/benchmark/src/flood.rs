//! Datagrams as fast as they can be sent, or so many a second, and who counts them at the other end.

use std::io::{ErrorKind, IoSlice};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, sendmmsg};

/// Datagrams a system call.
const BATCH: usize = 64;
/// Bytes at the start of each: the flood it belongs to, its number.
const HEADER: usize = 16;
/// When nothing has come for so long after the last was sent, nothing more comes.
const QUIET: Duration = Duration::from_millis(100);
/// How long who sends at a rate sleeps when nothing is due.
const TICK: Duration = Duration::from_micros(100);
/// And this is waited for at most.
const DRAIN: Duration = Duration::from_secs(3);

/// What arrived of a flood.
#[derive(Debug, Default)]
struct Tally {
    /// A bit for each number.
    seen: Vec<u64>,
    delivered: u64,
    late: u64,
    next: u64,
}

impl Tally {
    fn note(&mut self, number: u64) {
        let (word, bit) = ((number / 64) as usize, 1 << (number % 64));
        if self.seen.len() <= word {
            self.seen.resize(word + 1, 0);
        }
        if self.seen[word] & bit != 0 {
            return;
        }
        self.seen[word] |= bit;
        self.delivered += 1;
        if number < self.next {
            self.late += 1;
        }
        self.next = self.next.max(number + 1);
    }
}

/// A flood that has ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Flood {
    pub sent: u64,
    /// Each counted once.
    pub delivered: u64,
    /// Arrived after a later one.
    pub late: u64,
    /// From the first arrival to the last.
    pub seconds: f64,
}

/// Floods so far: each has a number.
static FLOODS: AtomicU32 = AtomicU32::new(0);

/// Sends from a connected socket to the other one for a while, with `payload` bytes a datagram; so many a second, or as
/// fast as it can.
pub fn flood(
    from: &UdpSocket,
    to: &UdpSocket,
    payload: usize,
    rate: Option<f64>,
    duration: Duration,
) -> Result<Flood> {
    let number = FLOODS.fetch_add(1, Ordering::Relaxed);
    let id = [std::process::id(), number].map(u32::to_be_bytes).concat();
    let sent_all = AtomicBool::new(false);
    thread::scope(|scope| {
        let receiver = scope.spawn(|| receive(to, &id, &sent_all));
        let sent = send(from, &id, payload, rate, duration);
        sent_all.store(true, Ordering::Release);
        let received = receiver
            .join()
            .map_err(|_| anyhow!("The receiver panicked"))?;
        let (sent, (tally, span)) = (sent?, received?);
        Ok(Flood {
            sent,
            delivered: tally.delivered,
            late: tally.late,
            seconds: span.as_secs_f64(),
        })
    })
}

fn send(
    socket: &UdpSocket,
    id: &[u8],
    payload: usize,
    rate: Option<f64>,
    duration: Duration,
) -> Result<u64> {
    let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(BATCH, None);
    let mut packets = vec![vec![0; payload.max(HEADER)]; BATCH];
    for packet in &mut packets {
        packet[..8].copy_from_slice(id);
    }
    let (mut sent, start) = (0_u64, clock());
    while start.elapsed() < duration {
        let due = rate.map_or(BATCH, |rate| {
            let all = (start.elapsed().as_secs_f64() * rate) as u64;
            all.saturating_sub(sent).min(BATCH as u64) as usize
        });
        if due == 0 {
            thread::park_timeout(TICK);
            continue;
        }
        for (number, packet) in (sent..).zip(&mut packets[..due]) {
            packet[8..HEADER].copy_from_slice(&number.to_be_bytes());
        }
        let slices: Vec<_> = packets[..due]
            .iter()
            .map(|packet| [IoSlice::new(packet)])
            .collect();
        let destinations = [None; BATCH];
        let flags = MsgFlags::empty();
        let fd = socket.as_raw_fd();
        match sendmmsg(fd, &mut headers, &slices, destinations, [], flags) {
            Ok(results) => sent += results.count() as u64,
            // The device's queue is full: as with a card that is slower than the program.
            Err(Errno::ENOBUFS | Errno::EAGAIN | Errno::EINTR) => {}
            Err(error) => return Err(error).context("Failed to send datagrams through the tunnel"),
        }
    }
    Ok(sent)
}

/// Counts what belongs to the flood, and the time from its first to its last.
fn receive(socket: &UdpSocket, id: &[u8], sent_all: &AtomicBool) -> Result<(Tally, Duration)> {
    socket.set_read_timeout(Some(QUIET))?;
    let (mut tally, mut buffer) = (Tally::default(), [0; 2048]);
    let (mut first, mut last, mut deadline) = (None, None, None);
    loop {
        match socket.recv(&mut buffer) {
            Ok(length) if length >= HEADER && &buffer[..8] == id => {
                let mut number = [0; 8];
                number.copy_from_slice(&buffer[8..HEADER]);
                tally.note(u64::from_be_bytes(number));
                last = Some(clock());
                first = first.or(last);
            }
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if sent_all.load(Ordering::Acquire) {
                    break;
                }
            }
            Err(error) => return Err(error).context("Failed to receive from the tunnel"),
        }
        if deadline.is_none() && sent_all.load(Ordering::Acquire) {
            deadline = Some(clock() + DRAIN);
        }
        if deadline.is_some_and(|deadline| clock() > deadline) {
            break;
        }
    }
    let span = first.zip(last).map(|(first, last)| last - first);
    Ok((tally, span.unwrap_or_default()))
}

#[expect(clippy::disallowed_methods, reason = "measures real time")]
fn clock() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_arrives_twice_counts_once_and_what_was_overtaken_is_late() {
        let mut tally = Tally::default();
        for number in [0, 1, 3, 2, 3, 200, 64] {
            tally.note(number);
        }
        assert_eq!((tally.delivered, tally.late), (6, 2));
    }

    #[test]
    fn a_flood_over_loopback_arrives_and_what_belongs_to_another_is_not_counted() {
        let to = UdpSocket::bind("127.0.0.1:0").unwrap();
        let from = UdpSocket::bind("127.0.0.1:0").unwrap();
        from.connect(to.local_addr().unwrap()).unwrap();
        from.send(&[0; 64]).unwrap();
        let flood = flood(&from, &to, 64, None, Duration::from_millis(20)).unwrap();
        assert!(
            flood.delivered > 0 && flood.delivered <= flood.sent,
            "{flood:?}"
        );
        assert_eq!(flood.late, 0);
        assert!(flood.seconds > 0.0 && flood.seconds < 10.0, "{flood:?}");
    }

    #[test]
    fn no_more_are_sent_than_the_rate_asks_for() {
        let to = UdpSocket::bind("127.0.0.1:0").unwrap();
        let from = UdpSocket::bind("127.0.0.1:0").unwrap();
        from.connect(to.local_addr().unwrap()).unwrap();
        let duration = Duration::from_millis(50);
        let sent = flood(&from, &to, 64, Some(2000.0), duration).unwrap().sent;
        assert!(sent <= 100, "{sent} in {duration:?}");
    }
}
