//! The inviter's side: makes invitations and answers those who come with one.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use ipnet::IpNet;
use mesh_types::consts::MESSAGE_MAX_EARLY;
use mesh_types::message::{Delta, Join, JoinRefused, Joined};
use mesh_types::observation::Fact;
use mesh_types::record::{Announcement, Membership, Record as _, Signed};
use mesh_types::sealed;
use mesh_types::state::Ticket;
use mesh_types::token::{Introducer, TicketId, TicketKeys, Token, secret_hash};
use mesh_types::{IdentitySecret, Message, NodeKey, Now, Observation, PeerId, Source};
use nat_traversal::JoinRequest;

use crate::announce::label;
use crate::control::public;
use crate::overlay::Overlay;

/// Introducers in a token.
const INTRODUCERS: usize = 3;
/// Addresses of each.
const INTRODUCER_ENDPOINTS: usize = 6;
/// Open invitations at one time.
const TICKETS_MAX: usize = 256;
/// A used or expired invitation is remembered so long, to say what is wrong with it.
const TICKET_KEPT: u64 = 7 * 24 * 3600;

/// Why somebody is not let in.
#[derive(Debug)]
pub(super) struct Refusal {
    /// One sentence.
    pub(super) reason: String,
    /// It may be let in later.
    pub(super) pending: bool,
}

impl Refusal {
    pub(super) fn final_word(reason: String) -> Self {
        Self {
            reason,
            pending: false,
        }
    }
}

impl From<String> for Refusal {
    fn from(reason: String) -> Self {
        Self::final_word(reason)
    }
}

impl Overlay {
    /// Makes an invitation.
    pub(crate) fn invite(
        &mut self,
        random: &[u8; 24],
        routes: &[IpNet],
        lifetime: Duration,
        now: Now,
    ) -> Result<Token, String> {
        let signer = self.signer().map(|signer| signer.authority());
        let Some(authority) = signer.or_else(|| self.awaited_authority()) else {
            return Err(
                "cannot invite: this machine is in no mesh; run `farspan invite` on a member, or make a mesh with `farspan init`".to_owned(),
            );
        };
        if let Some(all) = routes.iter().find(|net| net.prefix_len() == 0) {
            return Err(format!(
                "cannot invite with the range {all}: nobody may carry the whole internet; name the networks behind the new node"
            ));
        }
        let long_past = |ticket: &Ticket| ticket.expiry.saturating_add(TICKET_KEPT);
        self.state
            .tickets
            .retain(|ticket| long_past(ticket) > now.unix_secs());
        let open = |ticket: &&Ticket| ticket.used_by.is_none() && ticket.expiry > now.unix_secs();
        if self.state.tickets.iter().filter(open).count() >= TICKETS_MAX {
            return Err(format!(
                "cannot invite: {TICKETS_MAX} invitations are open already; wait until some are used or expire"
            ));
        }
        // Who only passes the wish on has no address to give.
        let ipv4 = signer.and_then(|_| self.free_ipv4());
        if signer.is_some() && ipv4.is_none() {
            return Err(
                "cannot invite: the mesh's IPv4 range has no free address; revoke nodes that are gone, or make the mesh with a larger `init --range`".to_owned(),
            );
        }
        let introducers = self.introducers(now);
        if introducers.iter().all(|one| one.endpoints.is_empty()) {
            return Err(
                "cannot invite: this node knows no address at which it or a connected member can be reached; check the network with `farspan netcheck`".to_owned(),
            );
        }
        let mut secret = [0; 16];
        secret.copy_from_slice(&random[..16]);
        let mut name = [0; 8];
        name.copy_from_slice(&random[16..]);
        let id = TicketId::new(self.own.identity.idx(), name);
        let expiry = now.unix_secs().saturating_add(lifetime.as_secs());
        self.state.tickets.push(Ticket {
            id,
            secret_hash: secret_hash(&secret),
            expiry,
            ranges: routes.iter().map(IpNet::trunc).collect(),
            ipv4,
            used_by: None,
        });
        self.persist_now();
        Ok(Token {
            domain: self.own.domain,
            authority,
            introducers,
            ticket: id,
            secret,
            expiry,
            ipv4,
        })
    }

    /// Members to ask, publicly reachable ones first; this node is always among them.
    fn introducers(&self, now: Now) -> Vec<Introducer> {
        let addresses = |endpoints: &[mesh_types::Candidate]| {
            let mut out: Vec<_> = endpoints.iter().map(|c| c.address).collect();
            // Addresses that route everywhere are worth more than private ones when the list is cut.
            out.sort_by_key(|address| !mesh_types::address::is_global(&address.ip()));
            out.dedup();
            out.truncate(INTRODUCER_ENDPOINTS);
            out
        };
        let own = Introducer {
            identity: self.own.identity,
            key: self.identity.key.public(),
            endpoints: addresses(self.traversal.endpoints()),
        };
        let own_public = public(&self.traversal.nat(), self.traversal.endpoints());
        let mut ranked = vec![(!own_public, 0, own)];
        for id in self.connected_peers(now) {
            let Some(peer) = self.directory.peer(&id) else {
                continue;
            };
            let member = matches!(peer.source, Source::Signed { .. });
            if let Some(identity) = peer.identity.filter(|_| member) {
                let introducer = Introducer {
                    identity,
                    key: peer.key,
                    endpoints: addresses(&peer.endpoints),
                };
                ranked.push((!public(&peer.nat, &peer.endpoints), 1, introducer));
            }
        }
        ranked.sort_by_key(|(private, other, _)| (*private, *other));
        ranked
            .into_iter()
            .take(INTRODUCERS)
            .map(|(_, _, introducer)| introducer)
            .collect()
    }

    /// The datagram that answers a joiner; `None` where it proves no ticket of ours.
    pub(crate) fn answer_request(&mut self, request: &JoinRequest, now: Now) -> Option<Vec<u8>> {
        let known = self
            .state
            .tickets
            .iter()
            .find(|ticket| ticket.id == request.ticket)
            .cloned();
        let Some(ticket) = known else {
            self.count("join-unknown-ticket");
            return None;
        };
        let keys = TicketKeys::derive(&ticket.secret_hash);
        if !request.verify(&keys) {
            self.count("join-forged");
            return None;
        }
        let opened = keys.join.open(&ticket.id.0, &request.sealed);
        let Some(Ok(Message::Join(join))) = opened.map(|plain| Message::decode(&plain)) else {
            self.count("join-malformed");
            return None;
        };
        let verdict = match self.signer() {
            Some(signer) => self.admit(&ticket, &join, &signer, now),
            None if self.awaited_authority().is_some() => self.ask_authority(&ticket, &join, now),
            None => Err(Refusal::final_word("the inviter is no longer a member of the mesh; ask for a new invitation from one that is".to_owned())),
        };
        let answer: Message = match verdict {
            Ok(joined) => joined.into(),
            Err(Refusal { reason, pending }) => {
                if !pending {
                    self.count("join-refused");
                    self.joining.note_refused(request.remote, &reason, now);
                }
                JoinRefused { reason, pending }.into()
            }
        };
        let sealed = keys
            .joined
            .seal(self.nonce(), &ticket.id.0, &answer.encode());
        Some(self.traversal.answer_join(request, &keys, sealed))
    }

    fn admit(
        &mut self,
        ticket: &Ticket,
        join: &Join,
        signer: &IdentitySecret,
        now: Now,
    ) -> Result<Joined, Refusal> {
        let node = self.entitled(ticket, join, now)?;
        let membership = match self.standing(ticket, node) {
            Some(membership) => membership,
            None => {
                let signed = self.new_member(ticket, join, signer, now)?;
                self.vouch(signed.clone(), signer.authority(), now);
                signed
            }
        };
        Ok(self.welcome(membership, join, now))
    }

    /// The good news, once the joiner's record is known here and this node's own can be shown to it.
    pub(super) fn welcome(
        &mut self,
        membership: Signed<Membership>,
        join: &Join,
        now: Now,
    ) -> Joined {
        self.take_announcement(join.announcement.clone(), now);
        if self.announcer.current.is_none() {
            // This node has just started; without its record the joiner would know nobody.
            self.announce_now(now);
            self.announce_due(now);
        }
        self.joined(membership)
    }

    /// Who comes with an invitation, where it may.
    pub(super) fn entitled(
        &self,
        ticket: &Ticket,
        join: &Join,
        now: Now,
    ) -> Result<NodeKey, String> {
        let announcement = join.announcement.record();
        let node = announcement.node();
        if !join.announcement.verify_identity() || node.domain != self.own.domain {
            return Err("the request's announcement is not signed for this mesh; use the same farspan version on both machines".to_owned());
        }
        match ticket.used_by {
            Some(user) if user != node.identity => {
                return Err("this invitation was used by another machine already; run `farspan invite` again for a new one".to_owned());
            }
            // A late copy of a request must not undo a revocation.
            Some(_) if self.is_revoked(node) => {
                return Err("this machine was revoked after it had joined by this invitation; run `farspan invite` again for a new one".to_owned());
            }
            // The same machine again: its answer was lost.
            Some(_) => {}
            None if ticket.expiry <= now.unix_secs() => {
                return Err(
                    "this invitation has expired; run `farspan invite` again for a new one"
                        .to_owned(),
                );
            }
            None => {}
        }
        let allowed = |range: &IpNet| ticket.ranges.iter().any(|whole| whole.contains(range));
        if let Some(range) = join.ranges.iter().find(|range| !allowed(range)) {
            return Err(format!(
                "the invitation does not allow to carry {range}; invite again with `farspan invite --routes {range}`, or leave it out of [node] routes"
            ));
        }
        if node.identity == self.own.identity {
            return Err(
                "a machine cannot join by its own invitation; run `farspan join` on the other machine".to_owned(),
            );
        }
        Ok(node)
    }

    /// Was its membership voided, and no newer one given?
    fn is_revoked(&self, node: NodeKey) -> bool {
        let mut tombstones = self.directory.tombstones();
        let mut members = self.directory.memberships();
        tombstones.any(|signed| signed.record().node() == node)
            && !members.any(|signed| signed.record().node() == node)
    }

    /// The membership this very ticket gave earlier.
    fn standing(&self, ticket: &Ticket, node: NodeKey) -> Option<Signed<Membership>> {
        ticket.used_by?;
        self.membership_of(node)
    }

    fn new_member(
        &mut self,
        ticket: &Ticket,
        join: &Join,
        signer: &IdentitySecret,
        now: Now,
    ) -> Result<Signed<Membership>, String> {
        let node = join.announcement.record().node();
        let Some(membership) = self.membership_for(join, node, ticket.ipv4) else {
            return Err("the mesh's IPv4 range has no free address; revoke nodes that are gone, then invite again".to_owned());
        };
        if let Some(kept) = self.state.tickets.iter_mut().find(|t| t.id == ticket.id) {
            kept.used_by = Some(node.identity);
        }
        Ok(self.sign_membership(membership, signer, now))
    }

    /// What a node asks for, under a free name and address: those it has, else the offered one, else any. `None`
    /// where no address is free.
    pub(super) fn membership_for(
        &self,
        join: &Join,
        node: NodeKey,
        offered: Option<Ipv4Addr>,
    ) -> Option<Membership> {
        let held = self
            .membership_of(node)
            .map(|signed| signed.record().clone());
        let taken = |ip: &Ipv4Addr| {
            self.own_ipv4() == Some(*ip)
                || self
                    .directory
                    .by_address(IpAddr::V4(*ip))
                    .is_some_and(|id| *id != PeerId::Node(node))
        };
        let ipv4 = held
            .as_ref()
            .and_then(|held| held.ipv4)
            .or_else(|| offered.filter(|ip| !taken(ip)))
            .or_else(|| self.free_ipv4())?;
        Some(Membership {
            domain: node.domain,
            identity: node.identity,
            name: self.free_name(&join.name, node),
            ipv4: Some(ipv4),
            ranges: join.ranges.iter().map(IpNet::trunc).collect(),
            may_relay: join.may_relay,
            serial: held.map_or(0, |held| held.serial),
            not_after: None,
        })
    }

    /// The name wished for, with a number where another node has it.
    fn free_name(&self, wished: &str, node: NodeKey) -> String {
        let wished = match wished.trim() {
            "" => "node",
            name => name,
        };
        let taken = |name: &str| {
            let mut members = self.directory.memberships().map(Signed::record);
            members.any(|member| member.node() != node && member.name == name)
        };
        let base = label(wished);
        if !taken(&base) {
            return base;
        }
        let mut number: u32 = 2;
        loop {
            let mut short = base.clone();
            while short.len() > 52 {
                short.pop();
            }
            let name = format!("{short}-{number}");
            if !taken(&name) {
                return name;
            }
            number += 1;
        }
    }

    pub(super) fn take_announcement(&mut self, announcement: Signed<Announcement>, now: Now) {
        self.directory.handle_observation(
            Observation {
                source: Source::Gossip,
                fact: Fact::Announcement {
                    record: announcement.clone(),
                    spoken_by: None,
                },
            },
            now,
        );
        let delta = Delta {
            announcements: vec![announcement],
            ..Delta::default()
        };
        self.push(vec![delta], None, now);
    }

    /// The good news, with as many first peers as one datagram holds: the inviter, then the introducers.
    fn joined(&self, membership: Signed<Membership>) -> Joined {
        let joiner = membership.record().node();
        let mut out = Joined {
            membership,
            range: self.ipv4_range().map(IpNet::V4).into_iter().collect(),
            memberships: Vec::new(),
            announcements: Vec::new(),
        };
        let own = self
            .directory
            .own_signed_membership()
            .cloned()
            .zip(self.announcer.current.clone());
        let mut others: Vec<_> = self
            .directory
            .memberships()
            .filter(|signed| signed.record().node() != joiner)
            .filter_map(|signed| {
                let node = signed.record().node();
                let id = PeerId::Node(node);
                let announcement = self
                    .directory
                    .announcements()
                    .find(|a| a.record().node() == node)?;
                let record = self.peers.get(&id)?;
                record.path_since?;
                let peer = self.directory.peer(&id)?;
                let rank = !public(&peer.nat, &peer.endpoints);
                Some((rank, (signed.clone(), announcement.clone())))
            })
            .collect();
        others.sort_by_key(|(rank, (signed, _))| (*rank, signed.record().identity));
        let limit = MESSAGE_MAX_EARLY - sealed::OVERHEAD;
        for (membership, announcement) in own.into_iter().chain(others.into_iter().map(|(_, r)| r))
        {
            out.memberships.push(membership);
            out.announcements.push(announcement);
            if Message::from(out.clone()).encode().len() > limit {
                out.memberships.pop();
                out.announcements.pop();
            }
        }
        out
    }
}
