//! Wishes that wait for the machine with the authority's key.
//!
//! A member without the key may invite too. Whoever comes with such an invitation is queued: the inviter sends
//! the wish to all members it is connected to, again and again, and the one that holds the key shows it to a
//! person. What that person signs spreads as any membership does, and the joiner, who goes on asking, is
//! answered by the inviter. A member that wants to carry more than it may asks for itself in the same way.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use mesh_types::message::{Delta, Join, Joined, Petition};
use mesh_types::record::{Membership, Record as _, Signed};
use mesh_types::state::Ticket;
use mesh_types::{AuthorityKey, IdentityKey, NodeKey, Now, PeerId, Source};

use peer_discovery::Directory;

use super::inviter::Refusal;
use crate::announce::label;
use crate::event::Reply;
use crate::overlay::Overlay;
use crate::snapshot::PetitionSnapshot;

/// Wishes that one inviter keeps.
const KEPT_MAX: usize = 32;
/// Wishes that wait at the authority.
const QUEUED_MAX: usize = 256;
/// Of one member among them: it must not keep others out.
const QUEUED_BY_MAX: usize = 16;
/// Identities that a person has refused, newest kept.
const REFUSED_MAX: usize = 256;
/// A wish is repeated so often: the machine with the key may have been away.
const REPEAT: Duration = Duration::from_secs(60);
/// The first own wish waits until somebody is connected.
const FIRST: Duration = Duration::from_secs(5);
/// A joiner that asks again does not cause more than this.
const AGAIN: Duration = Duration::from_secs(15);
/// A member's own wish is void so long after it was last said, seconds.
const OWN_EXPIRY: u64 = 3600;

/// What waits, on either side.
#[derive(Debug, Default)]
pub(crate) struct Petitions {
    /// At the authority: who waits.
    queued: BTreeMap<IdentityKey, Waiting>,
    /// At the authority: who was refused, the newest last.
    refused: VecDeque<IdentityKey>,
    /// At the inviter: when to say it again.
    pub(crate) at: Option<Instant>,
    said: Option<Instant>,
}

/// A wish that waits for a person's word.
#[derive(Debug)]
struct Waiting {
    petition: Petition,
    /// The member that vouches for it.
    by: PeerId,
    since: Instant,
    /// Another wish than the one that was there first: nobody may have looked at it yet.
    changed: bool,
}

impl Overlay {
    /// Does this node sign by itself those whom it invites?
    pub fn signs(&self) -> bool {
        self.signer().is_some()
    }

    /// For a member that cannot sign: whose word its invitations wait for.
    pub(super) fn awaited_authority(&self) -> Option<AuthorityKey> {
        self.directory.own_membership()?;
        self.state.authority
    }

    /// Somebody came with an invitation of this node, which cannot sign.
    pub(super) fn ask_authority(
        &mut self,
        ticket: &Ticket,
        join: &Join,
        now: Now,
    ) -> Result<Joined, Refusal> {
        let node = self.entitled(ticket, join, now)?;
        if let Some(kept) = self.state.tickets.iter_mut().find(|t| t.id == ticket.id) {
            kept.used_by = Some(node.identity);
        }
        if let Some(membership) = self.membership_of(node) {
            self.state.petitions.retain(|kept| wisher(kept) != node);
            self.persist_now();
            return Ok(self.welcome(membership, join, now));
        }
        let known = self
            .state
            .petitions
            .iter()
            .position(|kept| wisher(kept) == node);
        if known.is_none() && self.state.petitions.len() >= KEPT_MAX {
            return Err(Refusal::final_word(format!(
                "{KEPT_MAX} machines wait for approval already; try again when some were approved"
            )));
        }
        let petition = Petition {
            join: join.clone(),
            expiry: ticket.expiry,
        };
        match known.and_then(|at| self.state.petitions.get_mut(at)) {
            Some(kept) => *kept = petition,
            None => self.state.petitions.push(petition),
        }
        self.persist_now();
        let lately = |at: Instant| now.mono.saturating_duration_since(at) < AGAIN;
        if !self.petitions.said.is_some_and(lately) {
            self.petitions.at = Some(now.mono);
            self.petitions_due(now);
        }
        Err(Refusal {
            reason: format!(
                "this request waits for approval: run `farspan approve {}` on the machine that holds the mesh's authority key",
                label(&join.name)
            ),
            pending: true,
        })
    }

    /// Says again what nobody has signed yet.
    pub(crate) fn petitions_due(&mut self, now: Now) {
        if self.petitions.at.is_none_or(|at| at > now.mono) {
            return;
        }
        self.petitions.at = None;
        let before = self.state.petitions.len();
        let mut kept = std::mem::take(&mut self.state.petitions);
        kept.retain(|one| {
            one.expiry > now.unix_secs() && self.membership_of(wisher(one)).is_none()
        });
        if kept.len() != before {
            self.persist_soon(now);
        }
        let wishes: Vec<Petition> = kept.iter().cloned().chain(self.own_wish(now)).collect();
        self.state.petitions = kept;
        if wishes.is_empty() {
            return;
        }
        for id in self.connected_peers(now) {
            for wish in &wishes {
                self.send_message(&id, &wish.clone().into());
            }
        }
        self.petitions.said = Some(now.mono);
        self.petitions.at = Some(now.mono + REPEAT);
    }

    /// There may be something to wish for: the node has started, or its configuration has changed.
    pub(crate) fn wish_soon(&mut self, now: Now) {
        self.petitions.at.get_or_insert(now.mono + FIRST);
    }

    /// What this member would carry beyond its membership.
    fn own_wish(&self, now: Now) -> Option<Petition> {
        if self.signer().is_some() {
            return None;
        }
        let held = self.directory.own_membership()?;
        let mut ranges: Vec<IpNet> = self.config.routes.iter().map(IpNet::trunc).collect();
        ranges.sort();
        ranges.dedup();
        if satisfied(held, &ranges, self.config.may_relay) {
            return None;
        }
        Some(Petition {
            join: Join {
                name: held.name.clone(),
                announcement: self.announcer.current.clone()?,
                ranges,
                may_relay: self.config.may_relay,
            },
            expiry: now.unix_secs().saturating_add(OWN_EXPIRY),
        })
    }

    /// A member asks for somebody, or for itself.
    pub(crate) fn handle_petition(&mut self, from: &PeerId, petition: Petition, now: Now) {
        if self.signer().is_none() {
            return self.count("petition-not-here");
        }
        let source = self.directory.peer(from).map(|peer| peer.source);
        let member = matches!(source, Some(Source::Signed { .. }));
        let in_domain = matches!(from, PeerId::Node(node) if node.domain == self.own.domain);
        if !member || !in_domain {
            return self.count("petition-stranger");
        }
        let node = wisher(&petition);
        let join = &petition.join;
        let sound = join.announcement.verify_identity()
            && node.domain == self.own.domain
            && node != self.own
            && petition.expiry > now.unix_secs()
            && join.ranges.iter().all(|range| range.prefix_len() > 0);
        if !sound {
            return self.count("petition-malformed");
        }
        if self.petitions.refused.contains(&node.identity) {
            return self.count("petition-refused");
        }
        if let Some(held) = self.membership_of(node) {
            if satisfied(held.record(), &join.ranges, join.may_relay) {
                // Signed before, and lost on the way.
                self.petitions.queued.remove(&node.identity);
                let delta = Delta {
                    memberships: vec![held],
                    ..Delta::default()
                };
                self.send_message(from, &delta.into());
                return;
            }
            // What a member carries is changed at its own wish only.
            if *from != PeerId::Node(node) {
                return self.count("petition-of-another");
            }
        }
        // Whoever was asked for by a node that was revoked since goes with it.
        let directory = &self.directory;
        let queued = &mut self.petitions.queued;
        queued.retain(|_, one| one.is_open(directory, now));
        if let Some(known) = queued.get_mut(&node.identity) {
            if known.by != *from && *from != PeerId::Node(node) {
                return self.count("petition-of-another");
            }
            known.by = *from;
            let (old, new) = (&known.petition.join, &petition.join);
            let wish = |join: &Join| (join.name.clone(), join.ranges.clone(), join.may_relay);
            known.changed |= wish(old) != wish(new);
            known.petition = petition;
            return;
        }
        let of_one = queued.values().filter(|one| one.by == *from).count();
        if of_one >= QUEUED_BY_MAX || queued.len() >= QUEUED_MAX {
            return self.count("petition-full");
        }
        let waiting = Waiting {
            petition,
            by: *from,
            since: now.mono,
            changed: false,
        };
        queued.insert(node.identity, waiting);
    }

    /// Who waits here for a person's word.
    pub fn petitions(&self, now: Now) -> Result<Vec<PetitionSnapshot>, String> {
        if self.signer().is_none() {
            return Err(not_here("see who waits"));
        }
        let queued = self.petitions.queued.iter();
        let open = queued.filter(|(_, one)| one.is_open(&self.directory, now));
        Ok(open
            .map(|(identity, one)| {
                let petition = &one.petition;
                let node = wisher(petition);
                PetitionSnapshot {
                    name: label(&petition.join.name),
                    identity: *identity,
                    by: self.peer_name(&one.by),
                    ranges: petition.join.ranges.clone(),
                    may_relay: petition.join.may_relay,
                    member: self.membership_of(node).is_some(),
                    revoked: self
                        .directory
                        .tombstones()
                        .any(|signed| signed.record().node() == node),
                    waits: now.mono.saturating_duration_since(one.since),
                }
            })
            .collect())
    }

    /// Signs what waits, or forgets it.
    pub(crate) fn approve(&mut self, who: &str, refuse: bool, now: Now) -> Result<Reply, String> {
        let Some(signer) = self.signer() else {
            return Err(not_here(&format!("approve {who:?}")));
        };
        let waiting = self.petitions(now)?;
        let identity: Option<IdentityKey> = who.trim().parse().ok();
        let mut found = waiting
            .iter()
            .filter(|one| Some(one.identity) == identity || one.name == who);
        let one = match (found.next(), found.next()) {
            (Some(one), None) => one.identity,
            (None, _) => {
                return Err(format!(
                    "nobody called {who:?} waits for approval; see `farspan approve`"
                ));
            }
            (Some(_), Some(_)) => {
                return Err(format!(
                    "several machines called {who:?} wait for approval; give the identity, as `farspan approve` shows it"
                ));
            }
        };
        let Some(mut waiting) = self.petitions.queued.remove(&one) else {
            return Err(format!("{who:?} waits no longer; see `farspan approve`"));
        };
        if refuse {
            if self.petitions.refused.len() >= REFUSED_MAX {
                self.petitions.refused.pop_front();
            }
            self.petitions.refused.push_back(one);
            return Ok(Reply::Done(format!("{who} was refused")));
        }
        if std::mem::take(&mut waiting.changed) {
            self.petitions.queued.insert(one, waiting);
            return Err(format!(
                "{who} asks for something else than at first; look at it by `farspan approve`, then approve again"
            ));
        }
        let join = &waiting.petition.join;
        let node = wisher(&waiting.petition);
        let Some(membership) = self.membership_for(join, node, None) else {
            self.petitions.queued.insert(one, waiting);
            return Err("the mesh's IPv4 range has no free address; revoke nodes that are gone, then approve again".to_owned());
        };
        let address = membership.ipv4;
        let name = membership.name.clone();
        let signed = self.sign_membership(membership, &signer, now);
        self.vouch(signed, signer.authority(), now);
        self.take_announcement(waiting.petition.join.announcement, now);
        let address = address.map(|ip| format!(" with address {ip}"));
        Ok(Reply::Done(format!(
            "approved {name}{}; it is told within seconds",
            address.unwrap_or_default()
        )))
    }

    /// The membership of a node that counts now.
    pub(super) fn membership_of(&self, node: NodeKey) -> Option<Signed<Membership>> {
        let mut members = self.directory.memberships();
        members
            .find(|signed| signed.record().node() == node)
            .cloned()
    }
}

impl Waiting {
    /// Not too late, and who vouches is still a member.
    fn is_open(&self, directory: &Directory, now: Now) -> bool {
        self.petition.expiry > now.unix_secs() && directory.peer(&self.by).is_some()
    }
}

fn wisher(petition: &Petition) -> NodeKey {
    petition.join.announcement.record().node()
}

/// Does a membership hold all that is wished for?
fn satisfied(held: &Membership, ranges: &[IpNet], may_relay: bool) -> bool {
    let vouched = |range: &IpNet| held.ranges.iter().any(|whole| whole.contains(range));
    ranges.iter().all(vouched) && (held.may_relay || !may_relay)
}

fn not_here(what: &str) -> String {
    format!(
        "cannot {what}: this machine does not hold the mesh's authority key; run `farspan approve` where `farspan init` was run"
    )
}
