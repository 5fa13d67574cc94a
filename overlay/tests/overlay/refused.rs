//! What a member may not say to another: refused, counted, told.

use std::net::Ipv4Addr;
use std::time::Duration;

use ipnet::IpNet;
use mesh_types::command::Command;
use mesh_types::message::{Delta, Forward, Join, Petition};
use mesh_types::record::{Announcement, Membership, Record as _, Signed};
use mesh_types::{IdentitySecret, Message, NodeKey, SocketId, WgSecret};

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

    /// Machine 2 says it to machine 1.
    fn tells(&mut self, message: &Message) {
        let (from, to) = ("10.77.0.2:22511", "10.77.0.1:22511");
        self.world.spoof(
            2,
            from.parse().expect("an address"),
            to.parse().expect("an address"),
            message.encode(),
        );
        self.world.run(Duration::from_millis(500));
    }

    /// Machine 2 says it to machine 1, which must find that kind of lie; how often 1 then counts it.
    fn says(&mut self, delta: Delta, kind: &str) -> u64 {
        let counted = self.world.counter(1, kind);
        self.tells(&delta.into());
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
fn what_a_member_carries_is_changed_at_its_own_wish_only() {
    let mut scene = Scene::new();
    let wish = |scene: &mut Scene, n: u8| Petition {
        join: Join {
            name: "node".to_owned(),
            announcement: Signed::sign(scene.announcement(n), &identity(n).node),
            ranges: vec![net("10.244.9.0/24")],
            may_relay: false,
        },
        expiry: u64::MAX,
    };
    let of_third = wish(&mut scene, 3);
    scene.tells(&of_third.into());
    assert_eq!(scene.world.counter(1, "petition-of-another"), 1);
    let now = scene.world.now;
    let overlay = &scene.world.machine(1).overlay;
    assert_eq!(overlay.petitions(now), Ok(Vec::new()));
    let own = wish(&mut scene, 2);
    scene.tells(&own.into());
    let overlay = &scene.world.machine(1).overlay;
    assert_eq!(overlay.petitions(now).map(|all| all.len()), Ok(1));
}

#[test]
fn where_a_member_is_heard_says_its_neighbour_and_not_itself_under_any_of_its_keys() {
    let mut scene = Scene::new();
    let next = WgSecret::from_bytes([56; 32]).public();
    let announced = scene.announcement(2);
    let with_next = Announcement {
        next_key: Some(next),
        seq: announced.seq + 1,
        ..announced
    };
    scene.tells(&announces(with_next, &identity(2).node).into());
    let (first, third) = [2, 3].map(|n| identity(n).key.public().idx()).into();
    let victim = Some(Ipv4Addr::new(203, 0, 113, 9));
    let now = scene.world.now;
    for from in [
        first,
        next.idx(),
        WgSecret::from_bytes([57; 32]).public().idx(),
    ] {
        let forward = Forward {
            to: third,
            from,
            ttl: 2,
            epoch: 1,
            sequence: 1,
            sealed: vec![0; 64],
            seen: victim,
        };
        let overlay = &mut scene.world.machine(1).overlay;
        let (local, remote) = ("10.77.0.1:22511", "10.77.0.2:22511");
        overlay.handle_datagram(
            SocketId::Overlay,
            local.parse().expect("an address"),
            remote.parse().expect("an address"),
            &Message::from(forward).encode(),
            now,
        );
        let passed = std::iter::from_fn(|| overlay.poll_transmit()).find_map(|sent| {
            match Message::decode(&sent.bytes) {
                Ok(Message::Forward(passed)) => Some(passed.seen),
                _ => None,
            }
        });
        assert!(passed.is_some_and(|seen| seen != victim), "{passed:?}");
    }
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
