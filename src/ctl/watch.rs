//! `farspan status --watch`: the table, drawn again every second on the terminal's other screen. However it
//! ends, the terminal is as it was.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use nix::sys::signal::{Signal, raise};
use tokio::signal::unix::{SignalKind, signal};

use super::client::Client;
use super::status;
use crate::agent::clock;
use crate::api;
use crate::config::{ConfigError, sentence};

const EVERY: Duration = Duration::from_secs(1);
/// Other screen, no cursor; lines are cut, not wrapped.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l";
const LEAVE: &str = "\x1b[?7h\x1b[?25h\x1b[?1049l";

/// The other screen of the terminal, while it lives.
struct Screen;

impl Screen {
    fn enter() -> Result<Self> {
        put(ENTER)?;
        Ok(Self)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        _ = put(LEAVE);
    }
}

pub fn run(agent: Client) -> Result<()> {
    if !std::io::stdout().is_terminal() {
        return Err(ConfigError(
            "`status --watch` draws on a terminal, and standard output is none; scripts use `status -o json`"
                .into(),
        )
        .into());
    }
    // Without an agent there is nothing to wait for.
    let first: api::Status = agent.get("/status")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("Failed to start the runtime")?;
    let result = runtime.block_on(watch(agent, first));
    // An agent that does not answer must not hold the terminal.
    runtime.shutdown_background();
    result
}

async fn watch(agent: Client, first: api::Status) -> Result<()> {
    let agent = std::sync::Arc::new(agent);
    let listen = |kind| signal(kind).context("Failed to watch for signals");
    let mut ends = [
        listen(SignalKind::interrupt())?,
        listen(SignalKind::terminate())?,
        listen(SignalKind::hangup())?,
        listen(SignalKind::quit())?,
    ];
    let mut resized = listen(SignalKind::window_change())?;
    let mut stopped = listen(SignalKind::from_raw(Signal::SIGTSTP as i32))?;
    let mut screen = Some(Screen::enter()?);
    let mut pace = tokio::time::interval(EVERY);
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut view = View::default();
    view.take(Ok(first), clock::instant());
    let mut asked = None;
    loop {
        put(&view.frame(size()))?;
        let [interrupted, terminated, hung_up, quit] = &mut ends;
        tokio::select! {
            _ = interrupted.recv() => break,
            _ = terminated.recv() => break,
            _ = hung_up.recv() => break,
            _ = quit.recv() => break,
            _ = resized.recv() => {}
            _ = stopped.recv() => {
                // Ctrl-Z: the shell gets its screen back until `fg`.
                drop(screen.take());
                _ = raise(Signal::SIGSTOP);
                screen = Some(Screen::enter()?);
            }
            _ = pace.tick(), if asked.is_none() => {
                let agent = std::sync::Arc::clone(&agent);
                asked = Some(tokio::task::spawn_blocking(move || agent.get("/status")));
            }
            answer = answered(&mut asked) => {
                asked = None;
                view.take(answer, clock::instant());
            }
        }
    }
    drop(screen);
    Ok(())
}

type Asked = tokio::task::JoinHandle<Result<api::Status>>;

async fn answered(asked: &mut Option<Asked>) -> Result<api::Status> {
    match asked {
        Some(handle) => handle.await.unwrap_or_else(|error| Err(error.into())),
        None => std::future::pending().await,
    }
}

/// Columns and rows of the terminal.
fn size() -> (usize, usize) {
    terminal_size::terminal_size_of(std::io::stdout()).map_or((80, 24), |(width, height)| {
        (usize::from(width.0).max(20), usize::from(height.0).max(4))
    })
}

fn put(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|error| anyhow!("cannot write to the terminal: {}", sentence(&error)))
}

/// What is on the screen.
#[derive(Default)]
struct View {
    status: Option<api::Status>,
    /// Why the last answer did not come.
    error: Option<String>,
    counted: Option<(Instant, u64, u64)>,
    /// Bytes a second, in and out, of all peers.
    rates: Option<(u64, u64)>,
}

impl View {
    fn take(&mut self, answer: Result<api::Status>, now: Instant) {
        let status = match answer {
            Ok(status) => status,
            Err(error) => {
                self.error = Some(format!("{error:#}"));
                self.counted = None;
                self.rates = None;
                return;
            }
        };
        let sum = |pick: fn(&api::Peer) -> u64| {
            status.peers.iter().map(pick).fold(0_u64, u64::wrapping_add)
        };
        let (rx, tx) = (sum(|peer| peer.rx_bytes), sum(|peer| peer.tx_bytes));
        if let Some((at, rx_before, tx_before)) = self.counted {
            let millis = u64::try_from(now.duration_since(at).as_millis())
                .unwrap_or(u64::MAX)
                .max(1);
            let rate =
                |now: u64, before: u64| now.saturating_sub(before).saturating_mul(1000) / millis;
            self.rates = Some((rate(rx, rx_before), rate(tx, tx_before)));
        }
        self.counted = Some((now, rx, tx));
        self.error = None;
        self.status = Some(status);
    }

    /// One screen, drawn over the last one.
    fn frame(&self, (width, height): (usize, usize)) -> String {
        let mut text = String::new();
        if let Some(status) = &self.status {
            text.push_str(&status::table_within(status, width));
        }
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        if let Some((rx, tx)) = self.rates
            && let Some(gap) = lines.get_mut(1)
        {
            *gap = format!("now {}/s in, {}/s out", status::size(rx), status::size(tx));
        }
        let last = match &self.error {
            Some(error) => format!("as it was last; {error}"),
            None => "every second; Ctrl-C ends".to_owned(),
        };
        let room = height.saturating_sub(1);
        if lines.len() > room {
            let hidden = lines.len() - room + 1;
            lines.truncate(room.saturating_sub(1));
            lines.push(format!("... {hidden} more lines; see `farspan status`"));
        }
        lines.push(last);
        let mut out = String::from("\x1b[H");
        for (at, line) in lines.iter().enumerate() {
            if at > 0 {
                out.push_str("\r\n");
            }
            // A label may hold anything, and a terminal obeys some of it.
            out.extend(line.chars().filter(|c| !c.is_control()).take(width));
            out.push_str("\x1b[K");
        }
        out.push_str("\x1b[J");
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(peers: usize, rx_bytes: u64) -> api::Status {
        let peer = |number: usize| {
            serde_json::json!({
                "name": format!("peer-{number}\u{1b}[2J"), "public_key": "", "region": "", "source": "config",
                "state": "direct", "identity": "", "reason": "", "path": null, "rtt_ms": null, "loss": null,
                "mtu": 1420, "last_handshake_s": null, "rx_bytes": rx_bytes, "tx_bytes": 0,
                "allowed_ips": [], "since_s": 0, "connect_ms": null
            })
        };
        let nat = serde_json::json!({"mapping": "", "filtering": "", "allocation": "", "udp_blocked": false});
        serde_json::from_value(serde_json::json!({
            "node": { "name": "a", "public_key": "", "identity": "", "domain": "", "backend": "kernel",
                      "interface": "farspan0", "listen_port": 1, "region": "", "addresses": [], "nat": nat, "endpoints": [] },
            "peers": (0..peers).map(peer).collect::<Vec<_>>(),
            "findings": []
        }))
        .unwrap()
    }

    #[test]
    fn a_frame_fills_one_screen_at_most_and_obeys_no_label() {
        let mut view = View::default();
        view.take(Ok(status(100, 0)), clock::instant());
        let frame = view.frame((60, 10));
        assert_eq!(frame.matches("\r\n").count(), 9);
        assert!(frame.contains("more lines"), "{frame}");
        assert!(!frame.contains("\x1b[2J"), "{frame}");
    }

    #[test]
    fn a_lost_agent_is_told_of_below_the_last_view() {
        let mut view = View::default();
        view.take(Ok(status(1, 0)), clock::instant());
        view.take(Err(anyhow!("no agent runs here")), clock::instant());
        let frame = view.frame((80, 24));
        assert!(frame.contains("peer-0") && frame.contains("as it was last; no agent runs here"));
    }

    #[test]
    fn rates_follow_from_two_answers() {
        let mut view = View::default();
        let start = clock::instant();
        view.take(Ok(status(2, 0)), start);
        assert!(!view.frame((80, 24)).contains("/s in"));
        view.take(Ok(status(2, 1 << 20)), start + Duration::from_secs(2));
        assert!(view.frame((80, 24)).contains("now 1.0 MiB/s in, 0 B/s out"));
    }
}
