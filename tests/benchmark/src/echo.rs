//! Datagrams that go and come back, one at a time.

use std::io::{self, ErrorKind};
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::record::Outcome;
use crate::statistics::percentile;

/// Bytes of payload.
const SIZE: usize = 64;
/// What has not come back by then is lost.
const LOST: Duration = Duration::from_millis(500);
/// How often the far end looks whether it is over.
const LOOK: Duration = Duration::from_millis(20);

/// Round trips between a connected socket and one whose peer sends back, for a while, each followed by a gap.
pub fn round_trips(
    near: &UdpSocket,
    far: &UdpSocket,
    gap: Duration,
    duration: Duration,
) -> Result<Outcome> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| send_back(far, &over));
        let result = ask(near, gap, duration);
        over.store(true, Ordering::Release);
        result
    })
}

/// Waits until a datagram comes back, `patience` at most: the tunnel is up.
pub fn wait(near: &UdpSocket, far: &UdpSocket, patience: Duration) -> Result<()> {
    let (over, end) = (AtomicBool::new(false), clock() + patience);
    thread::scope(|scope| {
        scope.spawn(|| send_back(far, &over));
        let answer = (u64::MAX / 2..).find_map(|number| match round_trip(near, number) {
            Ok(None) if clock() < end => None,
            result => Some(result),
        });
        over.store(true, Ordering::Release);
        match answer {
            Some(Ok(Some(_))) => Ok(()),
            Some(Err(error)) => Err(error).context("Failed to send through the tunnel"),
            _ => bail!("Nothing came back through the tunnel within {patience:?}"),
        }
    })
}

fn ask(near: &UdpSocket, gap: Duration, duration: Duration) -> Result<Outcome> {
    let (mut times, mut lost, end) = (Vec::new(), 0, clock() + duration);
    for number in 0.. {
        match round_trip(near, number).context("Failed to send through the tunnel")? {
            Some(time) => times.push(time.as_secs_f64() * 1e6),
            None => lost += 1,
        }
        if clock() >= end {
            break;
        }
        if !gap.is_zero() {
            thread::park_timeout(gap);
        }
    }
    summary(times, lost)
}

fn summary(mut times: Vec<f64>, lost: u64) -> Result<Outcome> {
    times.sort_by(f64::total_cmp);
    let Some((p50, p99)) = percentile(&times, 0.5).zip(percentile(&times, 0.99)) else {
        bail!("None of {lost} datagrams came back through the tunnel");
    };
    Ok(Outcome::Rtt {
        p50,
        p99,
        answered: times.len() as u64,
        lost,
        load_bits_per_second: None,
    })
}

/// `None` when it does not come back in time. What comes back late is skipped.
fn round_trip(near: &UdpSocket, number: u64) -> io::Result<Option<Duration>> {
    let (mut packet, mut answer) = ([0; SIZE], [0; 2048]);
    packet[..8].copy_from_slice(&number.to_be_bytes());
    let start = clock();
    near.send(&packet)?;
    loop {
        let Some(left) = LOST
            .checked_sub(start.elapsed())
            .filter(|left| !left.is_zero())
        else {
            return Ok(None);
        };
        near.set_read_timeout(Some(left))?;
        match near.recv(&mut answer) {
            Ok(length) if answer[..length] == packet => return Ok(Some(start.elapsed())),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        }
    }
}

/// Ends early only when the socket fails, and then nothing comes back.
fn send_back(far: &UdpSocket, over: &AtomicBool) {
    let mut buffer = [0; 2048];
    if far.set_read_timeout(Some(LOOK)).is_err() {
        return;
    }
    while !over.load(Ordering::Acquire) {
        match far.recv_from(&mut buffer) {
            Ok((length, source)) => {
                // A full queue is a lost answer.
                let _ = far.send_to(&buffer[..length], source);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "measures real time")]
fn clock() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (UdpSocket, UdpSocket) {
        let far = UdpSocket::bind("127.0.0.1:0").unwrap();
        let near = UdpSocket::bind("127.0.0.1:0").unwrap();
        near.connect(far.local_addr().unwrap()).unwrap();
        (near, far)
    }

    #[test]
    fn round_trips_over_loopback_are_counted_and_measured() {
        let (near, far) = pair();
        wait(&near, &far, Duration::from_secs(10)).unwrap();
        let outcome = round_trips(&near, &far, Duration::ZERO, Duration::from_millis(20)).unwrap();
        let Outcome::Rtt {
            p50, p99, answered, ..
        } = outcome
        else {
            panic!("{outcome:?}");
        };
        assert!(answered > 0 && 0.0 < p50 && p50 <= p99, "{outcome:?}");
    }

    #[test]
    fn what_never_comes_back_is_lost_and_not_in_the_percentiles() {
        let times = (1..=100).rev().map(f64::from).collect();
        let outcome = summary(times, 3).unwrap();
        let expected = Outcome::Rtt {
            p50: 50.0,
            p99: 99.0,
            answered: 100,
            lost: 3,
            load_bits_per_second: None,
        };
        assert_eq!(outcome, expected);
        assert!(summary(Vec::new(), 3).is_err());
    }

    #[test]
    fn a_late_answer_to_an_earlier_datagram_is_not_taken_for_this_one() {
        let (near, far) = pair();
        far.send_to(&[9; SIZE], near.local_addr().unwrap()).unwrap();
        // Nobody sends back: only what was sent before this question is there.
        assert_eq!(round_trip(&near, 1).unwrap(), None);
    }
}
