//! The node's own announcement: made anew when something material changed, under a seq that only rises and
//! is on disk before anybody sees it.

use std::time::{Duration, Instant};

use mesh_types::record::{Announcement, Features, Signed};
use mesh_types::report::Backend;
use mesh_types::{DomainId, Now};

use crate::overlay::Overlay;

/// A node that has just started waits so long for its first addresses.
const SETTLE_AT_START: Duration = Duration::from_millis(50);
/// Later changes wait so long, so that a flapping address makes one announcement, not ten.
const SETTLE_LATER: Duration = Duration::from_secs(1);
/// How long a node counts as having just started.
const START: Duration = Duration::from_secs(1);

/// What is published and what is due.
#[derive(Debug, Default)]
pub(crate) struct Announcer {
    /// The newest announcement.
    pub(crate) current: Option<Signed<Announcement>>,
    /// When to look whether it needs to be made anew.
    pub(crate) due: Option<Instant>,
    /// Make it anew even if nothing changed: a newer one of ours was seen.
    forced: bool,
}

impl Announcer {
    /// Seq of the newest announcement.
    pub(crate) fn seq(&self) -> Option<u64> {
        self.current.as_ref().map(|signed| signed.record().seq)
    }
}

impl Overlay {
    /// Something changed that may be worth announcing.
    pub(crate) fn announcement_changed(&mut self, now: Now) {
        let settle = if now.mono.saturating_duration_since(self.started) < START {
            SETTLE_AT_START
        } else {
            SETTLE_LATER
        };
        self.announcer.due.get_or_insert(now.mono + settle);
    }

    /// Announces at once, changed or not.
    pub(crate) fn announce_now(&mut self, now: Now) {
        self.announcer.forced = true;
        self.announcer.due = Some(now.mono);
    }

    /// Makes and sends the announcement where it is due.
    pub(crate) fn announce_due(&mut self, now: Now) {
        if self.announcer.due.is_none_or(|at| at > now.mono) {
            return;
        }
        self.announcer.due = None;
        let forced = std::mem::take(&mut self.announcer.forced);
        let wanted = self.announcement(self.own.domain);
        let same = self.announcer.current.as_ref().is_some_and(|current| {
            let record = current.record();
            Announcement {
                seq: record.seq,
                ..wanted.clone()
            } == *record
        });
        if same && !forced {
            return;
        }
        let signed = self.sign_announcement(wanted, now);
        self.announcer.current = Some(signed);
        self.announced(now);
        self.push_announcement(now);
    }

    /// Signs under a seq that was never used before; it is persisted before anything is sent.
    pub(crate) fn sign_announcement(
        &mut self,
        mut announcement: Announcement,
        now: Now,
    ) -> Signed<Announcement> {
        self.state.seq = (self.state.seq + 1).max(now.unix_millis());
        announcement.seq = self.state.seq;
        self.persist_now();
        Signed::sign(announcement, &self.identity.node)
    }

    /// A valid announcement of this very node was shown. Above our own seq it comes from before a loss of
    /// our state: go on above it.
    pub(crate) fn own_record_seen(&mut self, seq: u64, now: Now) {
        // Whatever is said first goes above it anyway.
        let lower = self.announcer.seq().is_some_and(|own| own < seq);
        self.state.seq = self.state.seq.max(seq);
        if lower {
            self.announce_now(now);
        }
    }

    /// What there is to say in a domain, seq left open.
    pub(crate) fn announcement(&self, domain: DomainId) -> Announcement {
        let mut features = Features::default();
        if self.host.ipv6_off {
            features = features.with(Features::NO_IPV6);
        }
        if self.config.backend == Backend::Kernel {
            features = features.with(Features::KERNEL);
        }
        if self.relays.is_some() {
            features = features.with(Features::MAY_RELAY);
        }
        self.as_node(Announcement {
            domain,
            identity: self.own.identity,
            key: self.identity.key.public(),
            next_key: self.rotation.next(),
            endpoints: self.traversal.endpoints().to_vec(),
            nat: self.traversal.nat(),
            relays: self.traversal.home_relays(),
            region: self.config.region.as_deref().map(label),
            features,
            protocol_min: self.config.protocol.0,
            protocol_max: self.config.protocol.1,
            seq: 0,
            name: Some(label(&self.config.name)),
            node_uid: None,
        })
    }
}

/// Labels in records are short: at most 63 bytes.
pub(crate) fn label(text: &str) -> String {
    let mut end = text.len().min(63);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}
