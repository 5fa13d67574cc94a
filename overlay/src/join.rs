//! How a machine becomes a member: the inviter's, the introducer's and the joiner's side.
//!
//! The joiner sends its wish, sealed with the ticket, in a Binding request to every introducer named in the
//! token. The inviter answers; an introducer that is not the inviter passes the datagram on inside the
//! tunnel and the answer back, and can read neither.

mod introducer;
mod inviter;
mod joiner;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Instant;

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
}

impl Default for Joining {
    fn default() -> Self {
        Self {
            attempt: None,
            relayed: BTreeMap::new(),
            budget: Budget::new(RELAYED_PER_SECOND),
        }
    }
}

impl Joining {
    /// When something is to be given up.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.attempt.as_ref().map(|attempt| attempt.deadline)
    }
}
