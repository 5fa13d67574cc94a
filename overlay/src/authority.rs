//! The authority's part, on the machine that holds its key: memberships, tombstones, renewal.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use ipnet::{IpNet, Ipv4Net};
use mesh_types::command::CommandId;
use mesh_types::consts::MESH_RANGE;
use mesh_types::message::Delta;
use mesh_types::observation::Fact;
use mesh_types::record::{Membership, Record as _, Signed, Tombstone};
use mesh_types::{
    AuthorityKey, DomainId, IdentityKey, IdentitySecret, NodeKey, Now, Observation, PeerId, Source,
};

use crate::announce::label;
use crate::event::Reply;
use crate::overlay::Overlay;

/// How often lifetimes are looked at.
const RENEWAL_CHECK: Duration = Duration::from_secs(60);

/// A revoked node is dropped so long after it was told: its tunnel must still be there.
const FAREWELL: Duration = Duration::from_millis(100);

/// A revocation under way.
#[derive(Debug)]
pub(crate) struct Revocation {
    id: CommandId,
    name: String,
    tombstone: Signed<Tombstone>,
    authority: AuthorityKey,
    /// When it takes effect here.
    pub(crate) at: Instant,
}

/// When to renew.
#[derive(Debug, Default)]
pub(crate) struct Renewal {
    /// Next look at the lifetimes.
    pub(crate) at: Option<Instant>,
}

impl Overlay {
    /// The key to sign with, where this machine has that of the node's own domain.
    pub(crate) fn signer(&self) -> Option<IdentitySecret> {
        self.identity
            .authority
            .clone()
            .filter(|key| DomainId::standalone(Some(&key.authority())) == self.own.domain)
    }

    /// Sees to it that this node's own membership says what the file says.
    pub(crate) fn refresh_own_membership(&mut self, now: Now) {
        let Some(signer) = self.signer() else {
            return;
        };
        if self.state.range.is_empty() {
            self.state.range = MESH_RANGE.parse().into_iter().collect();
            self.persist_soon(now);
        }
        let revoked = self
            .directory
            .tombstones()
            .any(|signed| signed.record().node() == self.own);
        let held = self.directory.own_signed_membership().cloned();
        if held.is_none() && revoked {
            return;
        }
        let held = held.map(|signed| signed.record().clone());
        let configured = self.config.addresses.iter().find_map(|net| match net {
            IpNet::V4(net) => Some(net.addr()),
            IpNet::V6(_) => None,
        });
        let ipv4 = configured
            .or_else(|| held.as_ref().and_then(|held| held.ipv4))
            .or_else(|| self.free_ipv4());
        let mut ranges: Vec<IpNet> = self.config.routes.iter().map(IpNet::trunc).collect();
        ranges.sort();
        ranges.dedup();
        let wanted = Membership {
            domain: self.own.domain,
            identity: self.own.identity,
            name: label(&self.config.name),
            ipv4,
            ranges,
            may_relay: self.config.may_relay,
            serial: held.as_ref().map_or(0, |held| held.serial),
            not_after: held.as_ref().and_then(|held| held.not_after),
        };
        if held.as_ref() == Some(&wanted) {
            return;
        }
        let signed = self.sign_membership(wanted, &signer, now);
        self.vouch(signed, signer.authority(), now);
    }

    /// Signs a membership under a serial above the one it carries.
    pub(crate) fn sign_membership(
        &self,
        mut membership: Membership,
        signer: &IdentitySecret,
        now: Now,
    ) -> Signed<Membership> {
        let tombstone = self
            .directory
            .tombstones()
            .map(Signed::record)
            .filter(|tombstone| tombstone.node() == membership.node())
            .map(|tombstone| tombstone.serial)
            .max()
            .unwrap_or(0);
        let above = membership.serial.max(tombstone).saturating_add(1);
        membership.serial = above.max(now.unix_millis());
        membership.not_after = self
            .state
            .lifetime
            .map(|lifetime| now.unix_secs().saturating_add(lifetime));
        Signed::sign(membership, signer)
    }

    /// Takes a membership signed here in, and tells all.
    pub(crate) fn vouch(
        &mut self,
        membership: Signed<Membership>,
        authority: AuthorityKey,
        now: Now,
    ) {
        let delta = Delta {
            memberships: vec![membership.clone()],
            ..Delta::default()
        };
        self.directory.handle_observation(
            Observation {
                source: Source::Signed { authority },
                fact: Fact::Membership(membership),
            },
            now,
        );
        self.persist_now();
        self.push(vec![delta], None, now);
    }

    /// Voids a node's membership, here and everywhere. The node itself is told first, as long as there is a
    /// tunnel to it; the reply follows when it is done.
    pub(crate) fn revoke(&mut self, id: CommandId, node: &str, now: Now) -> Result<(), String> {
        let Some(signer) = self.signer() else {
            return Err(format!(
                "cannot revoke {node:?}: this machine does not hold the mesh's authority key; run `farspan revoke` where `farspan init` was run"
            ));
        };
        let (target, name) = self.member_called(node)?;
        if target == self.own {
            return Err(
                "cannot revoke this node itself: it holds the authority key; run `farspan down` to leave the mesh".to_owned(),
            );
        }
        let held = self
            .directory
            .memberships()
            .map(Signed::record)
            .find(|record| record.node() == target)
            .cloned();
        let tombstone = Tombstone {
            domain: target.domain,
            identity: target.identity,
            serial: held
                .as_ref()
                .map_or(0, |held| held.serial)
                .max(now.unix_millis()),
            not_after: held.and_then(|held| held.not_after),
        };
        let signed = Signed::sign(tombstone, &signer);
        let peer = PeerId::Node(target);
        let mut at = now.mono;
        if self.connected(&peer, now) {
            let delta = Delta {
                tombstones: vec![signed.clone()],
                ..Delta::default()
            };
            self.send_message(&peer, &delta.into());
            at += FAREWELL;
        }
        self.revocations.push(Revocation {
            id,
            name,
            tombstone: signed,
            authority: signer.authority(),
            at,
        });
        self.revocations_due(now);
        Ok(())
    }

    /// Drops revoked nodes here and tells all others.
    pub(crate) fn revocations_due(&mut self, now: Now) {
        let (due, waiting): (Vec<_>, Vec<_>) = std::mem::take(&mut self.revocations)
            .into_iter()
            .partition(|revocation| revocation.at <= now.mono);
        self.revocations = waiting;
        for revocation in due {
            let Revocation {
                id,
                name,
                tombstone,
                authority,
                at: _,
            } = revocation;
            let delta = Delta {
                tombstones: vec![tombstone.clone()],
                ..Delta::default()
            };
            self.directory.handle_observation(
                Observation {
                    source: Source::Signed { authority },
                    fact: Fact::Tombstone(tombstone),
                },
                now,
            );
            self.settle(now);
            self.persist_now();
            self.push(vec![delta], None, now);
            let done =
                format!("revoked {name}: connected nodes drop it now, others when they hear of it");
            self.reply(id, Ok(Reply::Done(done)));
        }
    }

    /// A member of the own domain by name, key, address or identity.
    fn member_called(&self, node: &str) -> Result<(NodeKey, String), String> {
        let found = match self.directory.find(node) {
            Ok(PeerId::Node(found)) => *found,
            Ok(PeerId::Key(_)) => {
                return Err(format!(
                    "cannot revoke {node:?}: it stands in this machine's file, not in the mesh; remove it with `farspan peer remove {node}`"
                ));
            }
            Err(error) => {
                // A member that has not announced itself yet is no peer, and may be revoked all the same.
                let identity: Option<IdentityKey> = node.parse().ok();
                let mut members = self.directory.memberships().map(Signed::record);
                let member = members.find(|m| Some(m.identity) == identity || m.name == node);
                match member {
                    Some(member) => member.node(),
                    None => return Err(format!("cannot revoke {node:?}: {error}")),
                }
            }
        };
        let member = self
            .directory
            .memberships()
            .map(Signed::record)
            .find(|record| record.node() == found);
        match member {
            Some(member) => Ok((found, member.name.clone())),
            None => Err(format!(
                "cannot revoke {node:?}: no authority vouches for it, it stands in this machine's file; remove it with `farspan peer remove {node}`"
            )),
        }
    }

    /// Renews what has passed half of its lifetime.
    pub(crate) fn renew_due(&mut self, now: Now) {
        if self.renewal.at.is_some_and(|at| at > now.mono) {
            return;
        }
        let Some((signer, lifetime)) = self.signer().zip(self.state.lifetime) else {
            self.renewal.at = None;
            return;
        };
        self.renewal.at = Some(now.mono + RENEWAL_CHECK);
        let half = now.unix_secs().saturating_add(lifetime / 2);
        let due: Vec<Membership> = self
            .directory
            .memberships()
            .map(Signed::record)
            .filter(|record| record.domain == self.own.domain)
            .filter(|record| record.not_after.is_none_or(|end| end < half))
            .cloned()
            .collect();
        for membership in due {
            let signed = self.sign_membership(membership, &signer, now);
            self.vouch(signed, signer.authority(), now);
        }
    }

    /// The mesh's IPv4 range.
    pub(crate) fn ipv4_range(&self) -> Option<Ipv4Net> {
        self.state.range.iter().find_map(|net| match net {
            IpNet::V4(net) => Some(*net),
            IpNet::V6(_) => None,
        })
    }

    /// The lowest free overlay address, those held for invited nodes left out.
    pub(crate) fn free_ipv4(&self) -> Option<Ipv4Addr> {
        let own = self.own_ipv4();
        let held: Vec<Ipv4Addr> = self
            .state
            .tickets
            .iter()
            .filter(|ticket| ticket.used_by.is_none())
            .filter_map(|ticket| ticket.ipv4)
            .chain(own)
            .collect();
        self.directory.free_ipv4(self.ipv4_range()?, &held)
    }
}
