//! What the control plane of one agent costs beside many peers: time of the processor, packets, bytes, as docs/scale.md
//! tells. The peers are whole agents that know this one and nobody else. `FARSPAN_SCALE_NODES` is their number, up to
//! 1,000: 40 unless given.

use std::net::IpAddr;
use std::time::Duration;

use crate::world::{Access, NodeId, Place, Seat, World};

const PEERS: usize = 40;
/// More take too long.
const MOST: usize = 1_000;
const MINUTE: Duration = Duration::from_secs(60);
/// Packets a second that an agent says to an idle peer, at most: one in twenty seconds keeps a mapping, and is answered.
const IDLE: f64 = 0.2;
/// The same in bytes a second with all headers: a short probe each time, for gossip is no use of it.
const IDLE_BYTES: f64 = 25.0;
/// Packets a second to a peer in use: a probe in two seconds, and its answer to the peer's.
const ACTIVE: f64 = 1.5;
/// The same to a peer that is away.
const AWAY: f64 = 0.1;

#[test]
fn an_agent_says_little_to_idle_peers_and_less_to_those_that_are_away() {
    let count = std::env::var("FARSPAN_SCALE_NODES").ok();
    let count = count.map_or(PEERS, |text| text.parse().expect("a number of peers"));
    let count = count.min(MOST);
    let mut world = World::new(3);
    let place = world.place(Access::Public, false);
    let hub = node(&mut world, "hub", place);
    let spokes: Vec<NodeId> = (0..count)
        .map(|n| {
            let spoke = node(&mut world, &format!("spoke-{n}"), place);
            world.list(hub, spoke, true);
            world.list(spoke, hub, true);
            spoke
        })
        .collect();
    world.boot_all();
    world.run(3 * MINUTE);
    println!("| {count} peers | processor, a minute | packets a second | bytes a second |");
    println!("|---|---|---|---|");

    let idle = row(&mut world, hub, "idle", 5 * MINUTE);
    let flows: Vec<_> = spokes
        .iter()
        .map(|spoke| world.flow(hub, *spoke, Duration::from_millis(500)))
        .collect();
    world.run(MINUTE / 2);
    let active = row(&mut world, hub, "in use", MINUTE);
    for flow in flows {
        assert!(world.answered_since(flow, world.net.now() - MINUTE));
        world.stop(flow);
    }
    for spoke in &spokes {
        world.power_off(*spoke);
    }
    world.run(15 * MINUTE);
    let away = row(&mut world, hub, "away", 5 * MINUTE);
    for ((packets, _), most) in [(idle, IDLE), (active, ACTIVE), (away, AWAY)] {
        let each = packets / count as f64;
        assert!(each <= most, "{each} packets a second for each peer");
    }
    let each = idle.1 / count as f64;
    assert!(
        each <= IDLE_BYTES,
        "{each} bytes a second for each idle peer"
    );
}

/// A node with the address that [`World::list`] gives it.
fn node(world: &mut World, name: &str, place: Place) -> NodeId {
    let id = world.node(name, place, Seat::V4);
    let number = u16::try_from(id.0 + 1).expect("few nodes");
    let [high, low] = number.to_be_bytes();
    world.nodes[id.0].config.addresses = vec![IpAddr::from([10, 77, high, low]).into()];
    id
}

/// Lets time pass; the packets and bytes a second that the agent has sent.
fn row(world: &mut World, hub: NodeId, what: &str, time: Duration) -> (f64, f64) {
    let node = &mut world.nodes[hub.0];
    node.spent = Some(Duration::ZERO);
    let said = node.said;
    world.run(time);
    let node = &mut world.nodes[hub.0];
    let spent = node.spent.take().unwrap_or_default();
    let each = |total: u64, before: u64| (total - before) as f64 / time.as_secs_f64();
    let packets = each(node.said.0, said.0);
    let bytes = each(node.said.1, said.1);
    println!(
        "| {what} | {:.1} ms | {packets:.1} | {bytes:.0} |",
        spent.as_secs_f64() * 1e3 * MINUTE.as_secs_f64() / time.as_secs_f64(),
    );
    (packets, bytes)
}
