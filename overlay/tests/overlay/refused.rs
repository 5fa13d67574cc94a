//! What a member may not say to another: refused, counted, told.

use std::time::Duration;

use ipnet::IpNet;
use mesh_types::command::Command;
use mesh_types::message::Delta;
use mesh_types::record::{Announcement, Membership, Record as _, Signed};
use mesh_types::{IdentitySecret, Message, NodeKey};

use crate::net::{Net, founder, identity, net};

/// Machines 1 (the authority's), 2 (who lies) and 3.
struct Scene {
    world: Net,
}

impl Scene {
    fn new() -> Self {
        let mut world = Net::with_authority();
        world.invite_and_join(2).expect("joined");
        world.invite_and_join(3).expect("joined");
        world.run(Duration::from_secs(5));
        Self { world }
    }

    fn node(&mut self, n: u8) -> NodeKey {
        self.membership(n).node()
    }

    fn membership(&mut self, n: u8) -> Membership {
        let wanted = identity(n).node.identity();
        let state = self.world.machine(1).overlay.state();
        let mut records = state.memberships.iter().map(Signed::record);
        let found = records.find(|record| record.identity == wanted);
        found.expect("a member").clone()
    }

    fn announcement(&mut self, n: u8) -> Announcement {
        let wanted = identity(n).node.identity();
        let state = self.world.machine(1).overlay.state();
        let mut records = state.announcements.iter().map(Signed::record);
        let found = records.find(|record| record.identity == wanted);
        found.expect("announced").clone()
    }

    /// Machine 2 says it to machine 1, which must find that kind of lie; how often 1 then counts it.
    fn says(&mut self, delta: Delta, kind: &str) -> u64 {
        let counted = self.world.counter(1, kind);
        let (from, to) = ("10.77.0.2:22511", "10.77.0.1:22511");
        self.world.spoof(
            2,
            from.parse().expect("an address"),
            to.parse().expect("an address"),
            Message::from(delta).encode(),
        );
        self.world.run(Duration::from_millis(500));
        let findings = self.world.findings(1);
        assert!(
            findings.contains(&format!("refused-{kind}")),
            "{kind}: {findings:?}"
        );
        self.world.counter(1, kind) - counted
    }

    /// It is counted once, and no membership changes.
    fn is_refused(&mut self, delta: Delta, kind: &str) {
        let before = self.world.machine(1).overlay.state().memberships;
        assert_eq!(self.says(delta, kind), 1, "{kind}");
        assert_eq!(self.world.machine(1).overlay.state().memberships, before);
    }
}

fn announces(announcement: Announcement, signer: &IdentitySecret) -> Delta {
    Delta {
        announcements: vec![Signed::sign(announcement, signer)],
        ..Delta::default()
    }
}

fn vouches(membership: Membership, signer: &IdentitySecret) -> Delta {
    Delta {
        memberships: vec![Signed::sign(membership, signer)],
        ..Delta::default()
    }
}

fn authority() -> IdentitySecret {
    founder().authority.expect("the founder has it")
}

#[test]
fn every_lie_about_a_key_or_an_address_is_refused_counted_and_found() {
    let mut scene = Scene::new();
    let third = scene.announcement(3);
    let newer = Announcement {
        seq: third.seq + 1,
        ..third.clone()
    };
    scene.is_refused(announces(newer, &identity(2).node), "forged");

    let older = Announcement {
        seq: third.seq - 1,
        endpoints: Vec::new(),
        ..third.clone()
    };
    scene.is_refused(announces(older, &identity(3).node), "stale");

    let second = scene.announcement(2);
    let copied = Announcement {
        key: third.key,
        seq: second.seq + 1,
        ..second
    };
    scene.is_refused(announces(copied, &identity(2).node), "duplicate-key");
    assert!(scene.world.is_direct(1, "node-3"));
}

#[test]
fn every_membership_that_does_not_count_is_refused_counted_and_found() {
    let mut scene = Scene::new();
    let second = scene.membership(2);
    let newer = Membership {
        serial: second.serial + 1,
        ..second
    };
    let wider = Membership {
        ranges: vec![net("10.244.9.0/24")],
        ..newer.clone()
    };
    scene.is_refused(vouches(wider, &identity(2).node), "forged");

    let past = scene.world.now.unix.as_secs() - 1;
    let expired = Membership {
        not_after: Some(past),
        ..newer
    };
    scene.is_refused(vouches(expired, &authority()), "expired");

    let third = scene.membership(3);
    let node = scene.node(3);
    let revoke = Command::Revoke {
        node: "node-3".to_owned(),
    };
    scene.world.command(1, revoke).expect("revoked");
    scene.world.run(Duration::from_secs(2));
    scene.is_refused(vouches(third, &authority()), "revoked");
    let state = scene.world.machine(1).overlay.state();
    assert!(state.memberships.iter().all(|m| m.record().node() != node));
}

#[test]
fn a_range_that_is_ours_or_everything_is_carried_by_nobody_else() {
    let own: IpNet = net("10.77.0.1/32");
    for (range, kind) in [(own, "own-range"), (net("0.0.0.0/0"), "range")] {
        let mut scene = Scene::new();
        let mut wider = scene.membership(2);
        wider.serial += 1;
        wider.ranges = vec![range];
        assert!(scene.says(vouches(wider, &authority()), kind) > 0, "{kind}");
        let plan = scene.world.machine(1).plan.clone();
        assert_eq!(plan.tunnel.peers.len(), 2);
        let mut peers = plan.tunnel.peers.values();
        assert!(peers.all(|peer| !peer.allowed_ips.contains(&range)));
    }
}
