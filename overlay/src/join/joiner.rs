//! The joiner's side: asks every introducer at once and takes the first answer.

use std::time::{Duration, Instant};

use ipnet::IpNet;
use mesh_types::command::CommandId;
use mesh_types::message::{Join, JoinRefused, Joined};
use mesh_types::observation::Fact;
use mesh_types::record::Record as _;
use mesh_types::token::{TicketId, TicketKeys, Token, secret_hash};
use mesh_types::{Message, Now, Observation, Source};

use crate::announce::label;
use crate::event::{Event, Reply};
use crate::overlay::Overlay;

/// How long an answer is waited for.
const GIVE_UP: Duration = Duration::from_secs(10);

/// Own addresses in the request, at most.
const JOIN_ENDPOINTS: usize = 12;

/// An attempt to join.
#[derive(Debug)]
pub(crate) struct Attempt {
    id: CommandId,
    token: Token,
    keys: TicketKeys,
    /// When to give up.
    pub(crate) deadline: Instant,
}

impl Overlay {
    /// Asks to become a member; the reply follows when somebody answers, or nobody did.
    pub(crate) fn join(&mut self, id: CommandId, token: Token, now: Now) -> Result<(), String> {
        if self.joining.attempt.is_some() {
            return Err("another join is under way; try again in 10 seconds".to_owned());
        }
        let elsewhere = self
            .directory
            .own_membership()
            .is_some_and(|held| held.domain != token.domain);
        let keeper = self.identity.authority.as_ref().map(|key| key.authority());
        let mut authorities = self.state.authority.into_iter().chain(keeper);
        if elsewhere || authorities.any(|held| held != token.authority) {
            return Err(
                "this machine is in a mesh already; leave it first: `farspan down`, then remove its state folder".to_owned(),
            );
        }
        if self.directory.own_membership().is_some() {
            self.reply(
                id,
                Ok(Reply::Done("this machine is a member already".to_owned())),
            );
            return Ok(());
        }
        if token.expiry <= now.unix_secs() {
            return Err(
                "the invitation has expired (or this machine's clock is ahead); run `farspan invite` again for a new one".to_owned(),
            );
        }
        let keys = TicketKeys::derive(&secret_hash(&token.secret));
        let mut announcement = self.announcement(token.domain);
        // The full list follows by gossip; this one has to leave room for the rest.
        announcement.endpoints.truncate(JOIN_ENDPOINTS);
        let join = Join {
            name: label(&self.config.name),
            announcement: self.sign_announcement(announcement, now),
            ranges: self.config.routes.iter().map(IpNet::trunc).collect(),
            may_relay: self.config.may_relay,
        };
        let plain = Message::from(join).encode();
        let sealed = keys.join.seal(self.nonce(), &token.ticket.0, &plain);
        if sealed.len() > mesh_types::consts::MESSAGE_MAX_EARLY {
            return Err(
                "cannot join: too many ranges for one datagram; join with fewer [node] routes"
                    .to_owned(),
            );
        }
        let remotes = token.introducers.iter().flat_map(|one| &one.endpoints);
        for remote in remotes {
            self.traversal
                .send_join(token.ticket, &keys, *remote, sealed.clone(), now);
        }
        self.joining.attempt = Some(Attempt {
            id,
            token,
            keys,
            deadline: now.mono + GIVE_UP,
        });
        Ok(())
    }

    /// Gives up where nobody answered.
    pub(crate) fn join_due(&mut self, now: Now) {
        let over = |attempt: &mut Attempt| attempt.deadline <= now.mono;
        if let Some(attempt) = self.joining.attempt.take_if(over) {
            let tried: Vec<String> = attempt
                .token
                .introducers
                .iter()
                .flat_map(|one| &one.endpoints)
                .map(ToString::to_string)
                .collect();
            self.reply(
                attempt.id,
                Err(format!(
                    "no member answered within 10 s at {}; open a UDP port on one of the two machines, or name a STUN server ([nat] stun) on both, then try again",
                    tried.join(", ")
                )),
            );
        }
    }

    /// Somebody answered.
    pub(crate) fn handle_join_answer(&mut self, ticket: TicketId, sealed: &[u8], now: Now) {
        let ours = |attempt: &mut Attempt| attempt.token.ticket == ticket;
        let Some(attempt) = self.joining.attempt.take_if(ours) else {
            return self.count("join-late-answer");
        };
        let opened = attempt.keys.joined.open(&ticket.0, sealed);
        match opened.map(|plain| Message::decode(&plain)) {
            Some(Ok(Message::Joined(joined))) => {
                let result = self.take_membership(&attempt, joined, now);
                self.reply(attempt.id, result.map(Reply::Done));
            }
            Some(Ok(Message::JoinRefused(JoinRefused {
                reason,
                pending: true,
            }))) => {
                self.reply(attempt.id, Ok(Reply::Pending(reason)));
            }
            Some(Ok(Message::JoinRefused(JoinRefused { reason, .. }))) => {
                self.reply(attempt.id, Err(format!("the inviter refused: {reason}")));
            }
            Some(Ok(_) | Err(_)) | None => {
                self.count("join-malformed");
                self.joining.attempt = Some(attempt);
            }
        }
    }

    fn take_membership(
        &mut self,
        attempt: &Attempt,
        joined: Joined,
        now: Now,
    ) -> Result<String, String> {
        let authority = attempt.token.authority;
        let record = joined.membership.record().clone();
        let ours = record.node().identity == self.own.identity;
        if !ours || !joined.membership.verify_authority(&authority) {
            return Err(
                "the answer is not a membership of this machine signed by the mesh's authority; ask for a new invitation".to_owned(),
            );
        }
        self.state.authority = Some(authority);
        self.state.range = joined.range;
        self.adopt_authorities(now);
        let source = Source::Signed { authority };
        let memberships = std::iter::once(joined.membership)
            .chain(joined.memberships)
            .map(Fact::Membership);
        let announcements = joined
            .announcements
            .into_iter()
            .map(|record| Fact::Announcement {
                record,
                spoken_by: None,
            });
        let observations: Vec<Observation> = memberships
            .map(|fact| Observation { source, fact })
            .chain(announcements.map(|fact| Observation {
                source: Source::Gossip,
                fact,
            }))
            .collect();
        self.directory.handle_observations(observations, now);
        self.persist_now();
        self.events.push_back(Event::Joined { authority });
        self.announce_now(now);
        self.stale.everything();
        let address = match record.ipv4 {
            Some(ip) => ip.to_string(),
            None => self.own_ipv6().to_string(),
        };
        Ok(format!("joined as {} with address {address}", record.name))
    }
}
