//! What an agent keeps in memory for a peer with which nothing is exchanged.
//!
//! Counted is what is allocated while an agent without anything around it (no host, no tunnel, no client of the API server)
//! hears of Nodes, looks for them for ten minutes in vain and goes on: directory, path agents, records of peers and the
//! plan. Allocations are counted by thread, so other tests do not disturb.

use std::time::Duration;

use mesh_types::cluster::{ClusterEvent, Node};
use mesh_types::{Applied, Now, State};
use overlay::{Identity, Overlay};

use crate::world::{Access, NodeId, Seat, World};

/// Bytes a peer, at most: it must not grow unseen. docs/scale.md says where they are.
const MOST: usize = 9_600;

#[test]
fn an_idle_peer_costs_an_agent_little_memory() {
    let [listed, per_peer] = [1, 600].map(|seconds| {
        let time = Duration::from_secs(seconds);
        (held(1_100, time) - held(100, time)) / 1_000
    });
    println!("{per_peer} bytes for each idle peer, {listed} a second after the listing");
    assert!(per_peer <= MOST, "{per_peer} bytes for each idle peer");
}

/// Bytes that an agent holds among so many Nodes after that time.
fn held(count: u16, time: Duration) -> usize {
    let mut world = World::new(1);
    let place = world.place(Access::Public, false);
    let id = world.cluster_node("agent", place, Seat::V4);
    for number in 0..count {
        let node = world.stranger(number);
        world.api().apply(node);
    }
    world.update_host_report(id);
    let nodes: Vec<Node> = world.api().objects().cloned().collect();
    let mut agent = None;
    let counted = allocation_counter::measure(|| agent = Some(run(&world, id, &nodes, time)));
    drop(agent);
    usize::try_from(counted.bytes_current).expect("an agent holds something")
}

/// An agent that has looked for all of them so long.
fn run(world: &World, id: NodeId, nodes: &[Node], time: Duration) -> Overlay {
    let node = &world.nodes[id.0];
    let identity = Identity {
        node: node.disk.identity.clone(),
        key: node.disk.key.clone(),
        next: None,
        authority: None,
    };
    let mut now = world.clock(id);
    let end = now.mono + time;
    let (config, state) = (node.config.clone(), State::default());
    let mut agent = Overlay::new(identity, config, state, [7; 32], now);
    agent.handle_host(node.host_report.clone(), now);
    let domain = world.api.as_ref().expect("there is one").domain;
    agent.handle_cluster(ClusterEvent::Domain(domain), now);
    agent.handle_cluster(ClusterEvent::Policy(None), now);
    agent.handle_cluster(ClusterEvent::Listed(nodes.to_vec()), now);
    follow(&mut agent, now);
    while let Some((at, _)) = agent.poll_timeout().filter(|(at, _)| *at <= end) {
        let passed = at.saturating_duration_since(now.mono);
        now.mono += passed;
        now.unix += passed;
        agent.handle_timeout(now);
        follow(&mut agent, now);
    }
    agent
}

/// Does what a host does that always follows; what is sent leads nowhere.
fn follow(agent: &mut Overlay, now: Now) {
    let mut generation = None;
    while generation != Some(agent.host_plan().generation) {
        while agent.poll_event().is_some() {}
        while agent.poll_transmit().is_some() {}
        let plan = agent.host_plan();
        generation = Some(plan.generation);
        let applied = Applied {
            generation: plan.generation,
            failures: Vec::new(),
            sockets: plan.sockets.clone(),
        };
        agent.handle_applied(applied, now);
    }
}
