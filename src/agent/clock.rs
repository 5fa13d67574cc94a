//! The only clock. Time counts through suspend, and so does the alarm.

use std::os::fd::{AsFd as _, AsRawFd, RawFd};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use mesh_types::Now;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::time::clock_gettime;
use tokio::io::unix::AsyncFd;

/// Maps `CLOCK_BOOTTIME` onto [`Instant`]: a suspended laptop sees it jump on resume.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    start: Instant,
    start_boot: Duration,
}

/// A moment, for verbs and threads that measure time themselves.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the one file that reads the clock"
)]
pub fn instant() -> Instant {
    Instant::now()
}

/// Time since 1970 by the host's clock.
pub fn wall() -> Duration {
    read(nix::time::ClockId::CLOCK_REALTIME).unwrap_or_default()
}

impl Clock {
    /// Starts the mapping.
    pub fn start() -> Result<Self> {
        Ok(Self {
            #[expect(
                clippy::disallowed_methods,
                reason = "this is the one place that reads the clock"
            )]
            start: Instant::now(),
            start_boot: read(nix::time::ClockId::CLOCK_BOOTTIME)?,
        })
    }

    /// Reads both clocks.
    pub fn now(&self) -> Now {
        let boot = read(nix::time::ClockId::CLOCK_BOOTTIME).unwrap_or(self.start_boot);
        Now {
            mono: self.start + boot.saturating_sub(self.start_boot),
            unix: read(nix::time::ClockId::CLOCK_REALTIME).unwrap_or_default(),
        }
    }
}

fn read(clock: nix::time::ClockId) -> Result<Duration> {
    let time = clock_gettime(clock).context("Failed to read the clock")?;
    Ok(Duration::from(time))
}

/// An alarm that goes off at a moment of the [`Clock`], at once on resume where that has passed.
#[derive(Debug)]
pub struct Alarm {
    clock: Clock,
    timer: AsyncFd<Timer>,
    set: Option<Instant>,
}

#[derive(Debug)]
struct Timer(TimerFd);

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Alarm {
    /// Opens the timer, inside a tokio runtime.
    pub fn new(clock: Clock) -> Result<Self> {
        let timer = TimerFd::new(
            ClockId::CLOCK_BOOTTIME,
            TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC,
        )
        .context("Failed to open a timer")?;
        #[expect(
            deprecated,
            reason = "its successor is unsafe; the timer owns its descriptor and is never replaced"
        )]
        let timer = AsyncFd::new(Timer(timer)).context("Failed to watch a timer")?;
        Ok(Self {
            clock,
            timer,
            set: None,
        })
    }

    /// Moves the alarm.
    pub fn set(&mut self, at: Instant) -> Result<()> {
        if self.set == Some(at) {
            return Ok(());
        }
        // A time of zero would disarm it.
        let rest = at.saturating_duration_since(self.clock.now().mono);
        let time = rest.max(Duration::from_nanos(1));
        self.timer
            .get_ref()
            .0
            .set(
                Expiration::OneShot(TimeSpec::from(time)),
                TimerSetTimeFlags::empty(),
            )
            .context("Failed to set a timer")?;
        self.set = Some(at);
        Ok(())
    }

    /// Waits for the alarm. Cancel-safe.
    pub async fn wait(&mut self) {
        match self.timer.readable().await {
            Ok(mut ready) => {
                // Reading clears the expiration; EAGAIN only means that it was moved meanwhile.
                _ = self.timer.get_ref().0.wait();
                ready.clear_ready();
                self.set = None;
            }
            // Only a runtime that shuts down reports an error here.
            Err(_) => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_alarm_in_the_past_goes_off_at_once() {
        let clock = Clock::start().unwrap();
        let mut alarm = Alarm::new(clock).unwrap();
        alarm.set(clock.now().mono).unwrap();
        alarm.wait().await;
    }

    #[test]
    fn time_goes_forward() {
        let clock = Clock::start().unwrap();
        let (a, b) = (clock.now(), clock.now());
        assert!(a.mono <= b.mono);
        assert!(a.unix.as_secs() > 1_700_000_000);
    }
}
