//! Keeping state and key on disk, whatever the disk does.

use std::time::Duration;

use tracing::{info, warn};

use super::{Agent, finding};

/// A full disk is tried again.
pub(super) const PERSIST_AGAIN: Duration = Duration::from_secs(5);

impl Agent {
    /// Writes the state. A disk that refuses it is told of and tried again; the agent goes on.
    pub(super) fn persist(&mut self) {
        match self.store.save(&self.overlay.state()) {
            Ok(()) => {
                self.due.persist = None;
                self.persist_key();
                if self.findings.remove("state-write").is_some() {
                    info!("State is written again");
                }
            }
            Err(error) => {
                let message = format!("{error:#}");
                if self.due.persist.is_none() {
                    warn!(
                        "{message}; going on, and trying again every {} s",
                        PERSIST_AGAIN.as_secs()
                    );
                }
                self.due.persist = Some(self.clock.now().mono + PERSIST_AGAIN);
                let remedy = "Free space or make the folder writable; until then a restart forgets what was learned since.";
                self.findings
                    .insert("state-write", finding("state-write", message, remedy));
            }
        }
    }

    /// Writes the key in use where it belongs; until that succeeds a restart finds it as the next key.
    pub(super) fn persist_key(&mut self) {
        let Some(key) = &self.unwritten_key else {
            return;
        };
        match self.store.adopt_next_key(key) {
            Ok(()) => {
                self.unwritten_key = None;
                self.findings.remove("private-key");
            }
            Err(error) => {
                let message = format!("the key in use is kept in next.key only: {error:#}");
                if !self.findings.contains_key("private-key") {
                    warn!(
                        "{message}; trying again every {} s",
                        PERSIST_AGAIN.as_secs()
                    );
                }
                self.due.persist = Some(self.clock.now().mono + PERSIST_AGAIN);
                let remedy =
                    "Free space or make the folder writable; the agent tries again by itself.";
                self.findings
                    .insert("private-key", finding("private-key", message, remedy));
            }
        }
    }
}
