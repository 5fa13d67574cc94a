//! Key rotation: what happens in which order.

use std::time::Duration;

use mesh_types::command::Command;
use mesh_types::{State, WgSecret};
use overlay::{Config, Event};

use crate::net::{Net, config, entry, identity, net};

fn next() -> WgSecret {
    WgSecret::from_bytes([55; 32])
}

#[test]
fn a_rotation_exchanges_the_key_everywhere_without_a_moment_without_one() {
    let mut world = Net::with_authority();
    world.invite_and_join(2).expect("joined");
    world.invite_and_join(3).expect("joined");
    world.run(Duration::from_secs(4));
    let (old, new) = (identity(2).key.public(), next().public());
    let seen: Vec<usize> = [1, 3].map(|n| world.machines[&n].plans.len()).to_vec();
    let rotate = Command::Rotate {
        next: next(),
        force: false,
    };
    let now = world.now;
    world.machine(2).overlay.handle_command(1_000, rotate, now);
    // Probes show the new key; the announcement that would too comes a second later.
    world.run(Duration::from_millis(200));
    for n in [1, 3] {
        assert!(world.machines[&n].plan.tunnel.peers.contains_key(&new));
    }
    world.run(Duration::from_secs(15));
    assert!(world.machines[&2].replies[&1_000].is_ok());

    // The rotating node: next key to disk, then the key; the old one as the previous for 10 s.
    let machine = &world.machines[&2];
    let next_key = |event: &Event| matches!(event, Event::NextKey { .. });
    let rotated = |event: &Event| matches!(event, Event::KeyRotated { .. });
    let first = machine.events.iter().position(next_key);
    let second = machine.events.iter().position(rotated);
    assert!(first.is_some() && first < second);
    assert_eq!(machine.plan.tunnel.key.public(), new);
    assert_eq!(machine.plan.tunnel.previous_key, None);
    let both = |plan: &mesh_types::HostPlan| {
        plan.tunnel.key.public() == new
            && plan.tunnel.previous_key.as_ref().map(WgSecret::public) == Some(old)
    };
    assert!(machine.plans.iter().any(both));

    // Readers: in one step the new key gets endpoint, ranges and keepalive, the old one becomes passive.
    for (n, seen) in [1, 3].into_iter().zip(seen) {
        let plans = &world.machines[&n].plans[seen..];
        let first = plans
            .iter()
            .find(|plan| plan.tunnel.peers.contains_key(&new))
            .expect("the new key");
        let fresh = &first.tunnel.peers[&new];
        assert!(fresh.endpoint.is_some() && fresh.keepalive.is_some());
        assert!(!fresh.allowed_ips.is_empty());
        let stale = &first.tunnel.peers[&old];
        assert!(stale.passive && stale.allowed_ips.is_empty());
        for plan in plans {
            let carries = |peer: &&mesh_types::plan::TunnelPeer| {
                peer.allowed_ips.contains(&net("10.77.0.2/32"))
            };
            assert_eq!(plan.tunnel.peers.values().filter(carries).count(), 1);
        }
        let last = plans.last().expect("a plan");
        assert!(!last.tunnel.peers.contains_key(&old));
        assert!(world.is_direct(n, "node-2"));
    }
}

#[test]
fn a_rotation_is_refused_while_plain_devices_would_be_lost() {
    let mut world = Net::new();
    let mut phone = entry(9);
    phone.plain = true;
    phone.name = Some("phone".to_owned());
    let lists = Config {
        peers: vec![phone],
        ..config(1)
    };
    world.start(1, identity(1), lists, State::default());
    world.run(Duration::from_secs(1));
    let rotate = |force| Command::Rotate {
        next: next(),
        force,
    };
    let error = world.command(1, rotate(false)).expect_err("a phone");
    assert!(
        error.contains("phone") && error.contains("--force"),
        "{error}"
    );
    world.command(1, rotate(true)).expect("forced");
    assert_eq!(world.machine(1).plan.tunnel.key, next());
}

#[test]
fn a_rotation_that_a_restart_interrupted_is_finished() {
    let mut world = Net::new();
    let mut interrupted = identity(1);
    interrupted.next = Some(next());
    world.start(1, interrupted, config(1), State::default());
    world.run(Duration::from_secs(15));
    assert_eq!(world.machine(1).plan.tunnel.key, next());
    let rotated = |event: &Event| matches!(event, Event::KeyRotated { key } if *key == next());
    assert!(world.machine(1).events.iter().any(rotated));
}
