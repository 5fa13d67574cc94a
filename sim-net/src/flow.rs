//! How long a translator or filter remembers a flow.

use std::time::{Duration, Instant};

/// Lifetimes of state in a middlebox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// Until traffic has gone both ways for 2 s (Linux: 30 s).
    pub unreplied: Duration,
    /// From then on (Linux: 120 s; RFC 4787 REQ-5: at least 2 min).
    pub stream: Duration,
    /// Does inbound traffic refresh too? Outbound always does (RFC 4787 REQ-6).
    pub refresh_inbound: bool,
}

impl Timeouts {
    /// Those of Linux' connection tracking, refreshed by outbound traffic only.
    pub const LINUX: Self = Self {
        unreplied: Duration::from_secs(30),
        stream: Duration::from_secs(120),
        refresh_inbound: false,
    };
}

/// Linux promotes a flow once it has been two-way for so long.
const STREAM_AFTER: Duration = Duration::from_secs(2);

/// One remembered flow.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flow {
    first: Instant,
    refreshed: Instant,
    replied: bool,
    stream: bool,
}

impl Flow {
    /// Opened by an outbound packet.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            first: now,
            refreshed: now,
            replied: false,
            stream: false,
        }
    }

    /// When it is forgotten.
    pub(crate) fn expires(&self, timeouts: &Timeouts) -> Instant {
        let life = if self.stream {
            timeouts.stream
        } else {
            timeouts.unreplied
        };
        self.refreshed + life
    }

    pub(crate) fn alive(&self, now: Instant, timeouts: &Timeouts) -> bool {
        now < self.expires(timeouts)
    }

    pub(crate) fn outbound(&mut self, now: Instant) {
        self.refreshed = now;
        self.promote(now);
    }

    pub(crate) fn inbound(&mut self, now: Instant, timeouts: &Timeouts) {
        self.replied = true;
        self.promote(now);
        if timeouts.refresh_inbound {
            self.refreshed = now;
        }
    }

    fn promote(&mut self, now: Instant) {
        if self.replied && now.duration_since(self.first) > STREAM_AFTER {
            self.stream = true;
        }
    }
}
