//! How a machine becomes a member: the inviter's, the introducer's and the joiner's side.
//!
//! The joiner sends its wish, sealed with the ticket, in a Binding request to every introducer named in the
//! token. The inviter answers; an introducer that is not the inviter passes the datagram on inside the
//! tunnel and the answer back, and can read neither.

mod introducer;
mod inviter;
mod joiner;
pub(crate) mod petition;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mesh_types::Now;
use mesh_types::token::TicketId;

use crate::budget::Budget;

pub(crate) use joiner::Attempt;

/// Joins passed on to inviters, in a second.
const RELAYED_PER_SECOND: u32 = 10;

/// What is under way.
#[derive(Debug)]
pub(crate) struct Joining {
    /// This node's own attempt.
    pub(crate) attempt: Option<Attempt>,
    /// Joiners whose datagrams were passed on: until when an answer goes back, and for which ticket.
    relayed: BTreeMap<SocketAddr, (Instant, TicketId)>,
    budget: Budget,
    /// Refused joiners, newest last: when, and the sentence for findings.
    refused: VecDeque<(Duration, String)>,
}

/// Refused joiners in findings.
const REFUSED_MAX: usize = 8;
/// For so long.
const REFUSED_SHOWN: Duration = Duration::from_secs(15 * 60);

impl Default for Joining {
    fn default() -> Self {
        Self {
            attempt: None,
            relayed: BTreeMap::new(),
            budget: Budget::new(RELAYED_PER_SECOND),
            refused: VecDeque::new(),
        }
    }
}

impl Joining {
    /// Somebody with a ticket of ours was refused.
    fn note_refused(&mut self, remote: SocketAddr, reason: &str, now: Now) {
        let sentence = format!("a join from {remote} was refused: {reason}");
        self.refused.retain(|(_, known)| *known != sentence);
        if self.refused.len() >= REFUSED_MAX {
            self.refused.pop_front();
        }
        self.refused.push_back((now.unix, sentence));
    }

    /// Sentences of the last minutes.
    pub(crate) fn refused(&self, now: Now) -> impl Iterator<Item = String> {
        let fresh = move |at: &Duration| now.unix.saturating_sub(*at) < REFUSED_SHOWN;
        let refused = self.refused.iter().filter(move |(at, _)| fresh(at));
        refused.map(|(_, sentence)| sentence.clone())
    }

    /// When something is to be given up.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.attempt.as_ref().map(|attempt| attempt.deadline)
    }
}
