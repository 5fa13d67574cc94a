//! Change of the node's WireGuard key without a lost packet.
//!
//! 1. *Announcing*: the next key is on disk and announced; all connected peers confirm, or 5 s pass.
//! 2. *Switching*: the plan holds the next key, the old one as the previous. Until the host has taken that in,
//!    nobody may be told: a handshake towards a key that is not yet in use is lost for 5 s.
//! 3. *Proving*: probes go out under the new key. The first one makes each peer exchange the tunnel's entry in one
//!    step, with a handshake. A second later the announcement follows, for those who were away.
//! 4. 10 s after the switch the old key is forgotten.

use std::time::{Duration, Instant};

use mesh_types::command::CommandId;
use mesh_types::{Now, WgKey, WgSecret};

use crate::event::{Event, Reply};
use crate::overlay::Overlay;

/// How long confirmations are waited for.
const CONFIRM: Duration = Duration::from_secs(5);
/// How long the host is given to take the new key in.
const APPLY: Duration = Duration::from_millis(250);
/// From then to the announcement without the old key.
const PROVE: Duration = Duration::from_secs(1);
/// How long sessions under the old key are still received.
const KEEP: Duration = Duration::from_secs(10);

/// How far a rotation has come.
#[derive(Debug, Default)]
enum Stage {
    /// None is under way.
    #[default]
    Quiet,
    /// The next key is being announced.
    Announcing { next: WgSecret, since: Instant },
    /// The key was changed in the plan.
    Switching {
        previous: WgSecret,
        since: Instant,
        generation: Option<u64>,
    },
    /// Peers are shown the new key.
    Proving {
        previous: WgSecret,
        since: Instant,
        announced: bool,
    },
}

/// A rotation, if one is under way.
#[derive(Debug, Default)]
pub(crate) struct Rotation {
    stage: Stage,
    reply: Option<CommandId>,
}

impl Rotation {
    /// The key that is announced as the next one.
    pub(crate) fn next(&self) -> Option<WgKey> {
        match &self.stage {
            Stage::Announcing { next, .. } => Some(next.public()),
            Stage::Quiet | Stage::Switching { .. } | Stage::Proving { .. } => None,
        }
    }

    /// The key whose sessions are still received.
    pub(crate) fn previous(&self) -> Option<&WgSecret> {
        match &self.stage {
            Stage::Switching { previous, .. } | Stage::Proving { previous, .. } => Some(previous),
            Stage::Quiet | Stage::Announcing { .. } => None,
        }
    }

    /// Is one under way?
    pub(crate) fn under_way(&self) -> bool {
        match self.stage {
            Stage::Quiet => false,
            Stage::Announcing { .. } | Stage::Switching { .. } | Stage::Proving { .. } => true,
        }
    }

    /// The plan of this generation holds the key.
    pub(crate) fn planned(&mut self, generation: u64) {
        if let Stage::Switching {
            generation: planned,
            ..
        } = &mut self.stage
        {
            planned.get_or_insert(generation);
        }
    }

    /// When the next step is due.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match &self.stage {
            Stage::Quiet => None,
            Stage::Announcing { since, .. } => Some(*since + CONFIRM),
            Stage::Switching { since, .. } => Some(*since + APPLY),
            Stage::Proving {
                since, announced, ..
            } => Some(*since + if *announced { KEEP } else { PROVE }),
        }
    }
}

impl Overlay {
    /// Begins a rotation, or says why not.
    pub(crate) fn rotate(
        &mut self,
        id: Option<CommandId>,
        next: WgSecret,
        force: Force,
        now: Now,
    ) -> Result<(), String> {
        if self.rotation.under_way() {
            return Err("a key rotation is under way already; try again in 15 seconds".to_owned());
        }
        if next == self.identity.key {
            return Err("the next key is the one in use; make another one".to_owned());
        }
        let plain: Vec<&str> = self
            .directory
            .peers()
            .filter(|(_, peer)| peer.plain)
            .map(|(_, peer)| peer.name.as_str())
            .collect();
        if force == Force::No && !plain.is_empty() {
            return Err(format!(
                "plain WireGuard devices would lose this node until their files name its new key: {}; use --force to rotate all the same",
                plain.join(", ")
            ));
        }
        self.identity.next = Some(next.clone());
        self.events.push_back(Event::NextKey { key: next.clone() });
        self.rotation = Rotation {
            stage: Stage::Announcing {
                next,
                since: now.mono,
            },
            reply: id,
        };
        self.announce_now(now);
        Ok(())
    }

    /// Takes the next step where it is due.
    pub(crate) fn rotation_due(&mut self, now: Now) {
        let passed = |since: Instant| now.mono.saturating_duration_since(since);
        let published = self
            .announcer
            .current
            .as_ref()
            .is_some_and(|current| current.record().next_key == self.rotation.next());
        let confirmed = self.gossip.all_confirmed();
        let applied = self.applied.as_ref().map(|applied| applied.generation);
        self.rotation.stage = match std::mem::take(&mut self.rotation.stage) {
            Stage::Quiet => Stage::Quiet,
            Stage::Announcing { next, since, .. }
                if published && (confirmed || passed(since) >= CONFIRM) =>
            {
                self.switch_key(next, now)
            }
            announcing @ Stage::Announcing { .. } => announcing,
            Stage::Switching {
                previous,
                since,
                generation,
            } => {
                let taken = generation.is_some_and(|generation| applied >= Some(generation));
                if taken || passed(since) >= APPLY {
                    self.traversal
                        .set_keys(&self.identity.key, Some(&previous), now);
                    Stage::Proving {
                        previous,
                        since: now.mono,
                        announced: false,
                    }
                } else {
                    Stage::Switching {
                        previous,
                        since,
                        generation,
                    }
                }
            }
            Stage::Proving {
                previous,
                since,
                announced: false,
            } if passed(since) >= PROVE => {
                self.announce_now(now);
                if let Some(id) = self.rotation.reply.take() {
                    let key = self.identity.key.public();
                    self.reply(id, Ok(Reply::Done(format!("the key is now {key}"))));
                }
                Stage::Proving {
                    previous,
                    since,
                    announced: true,
                }
            }
            Stage::Proving { since, .. } if passed(since) >= KEEP => {
                self.traversal.set_keys(&self.identity.key, None, now);
                self.stale.everything();
                Stage::Quiet
            }
            proving @ Stage::Proving { .. } => proving,
        };
    }

    fn switch_key(&mut self, next: WgSecret, now: Now) -> Stage {
        let previous = std::mem::replace(&mut self.identity.key, next);
        self.identity.next = None;
        self.directory
            .set_own(self.own, self.identity.key.public(), now);
        self.events.push_back(Event::KeyRotated {
            key: self.identity.key.clone(),
        });
        self.stale.everything();
        // The announcement waits for the proof.
        self.announcer.due = None;
        Stage::Switching {
            previous,
            since: now.mono,
            generation: None,
        }
    }

    /// A peer that announced its next key has probed under it: exchange the tunnel's entry in one step.
    pub(crate) fn peer_key_seen(&mut self, id: &mesh_types::PeerId, key: WgKey, now: Now) {
        let Some(peer) = self.directory.peer(id) else {
            return;
        };
        let known = peer.key == key || peer.next_key == Some(key);
        let Some(record) = self.peers.get_mut(id).filter(|_| known) else {
            return;
        };
        if record.key == key {
            return;
        }
        record.adopted = (peer.key != key).then_some(key);
        record.change_key(key, now.mono);
        if record.path_since.is_some() {
            record.open_at = Some(now.mono);
        }
        self.stale.everything();
        self.tell_traversal(id, now);
    }
}

/// Rotate although plain peers will lose this node?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Force {
    /// Yes.
    Yes,
    /// No.
    No,
}
