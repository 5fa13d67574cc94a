//! Twenty whole agents that each see many announced Nodes: what that costs, as docs/scale.md tells.
//!
//! The agents are real and most of them stand behind translators; the other Nodes are objects with valid records of
//! machines that never answer. `FARSPAN_SCALE_NODES` is the number of all Nodes: 100 unless given.

use std::time::{Duration, Instant};

use sim_net::{Filtering, NatSpec};

use crate::world::{Access, NodeId, Seat, World};

const SECOND: Duration = Duration::from_secs(1);
const AGENTS: usize = 20;
/// Where nothing else is said: what a test may take that always runs.
const NODES: u16 = 100;
/// How long agents may take to plan for all Nodes, and to meet each other.
const PLANNED: Duration = Duration::from_secs(30);
const MET: Duration = Duration::from_secs(120);
/// Kubelets write each Node's status so often though nothing changes.
const HEARTBEAT: Duration = Duration::from_secs(300);
/// Bytes of a Node in use and of its metadata, as tests/kube has measured them on a real API server.
const WHOLE: u64 = 15_299;
const METADATA: u64 = 3_036;

#[test]
fn twenty_agents_among_many_nodes_meet_again_after_a_mass_restart_and_write_nothing() {
    let count = std::env::var("FARSPAN_SCALE_NODES").ok();
    let count = count.map_or(NODES, |text| text.parse().expect("a number of Nodes"));
    let mut world = World::new(7);
    // One event comes after the other; all of a round of heartbeats come well before the next.
    world.api().lag = Duration::from_millis(20);
    let ids = agents(&mut world);
    for number in 0..count - AGENTS as u16 {
        let node = world.stranger(number);
        world.api().apply(node);
    }
    println!(
        "| {count} Nodes, {AGENTS} agents | all plan for all | all have met all | writes | read by each agent |"
    );
    println!("|---|---|---|---|---|");

    let first = start(&mut world, &ids, count);
    row("first start", Some(first), &mut world);
    nothing_asked_in_vain(&world, &ids);
    let changed = changed(&mut world);
    // Among thousands that are gone some learn their translator's kind in two steps.
    let each = if count > NODES { 3 } else { 2 };
    assert!(changed.len() <= each * AGENTS, "{changed:#?}");

    for id in &ids {
        world.power_off(*id);
    }
    world.run(SECOND);
    world.api().forget_traffic();
    let second = start(&mut world, &ids, count);
    row("all restart at once", Some(second), &mut world);
    nothing_written(&mut world);

    world.api().forget_traffic();
    world.api().touch_all();
    world.run(HEARTBEAT);
    row("five minutes at rest", None, &mut world);
    nothing_written(&mut world);
    for pair in ids.windows(2) {
        let met = world.meet(pair[0], pair[1], SECOND);
        assert!(met.is_some(), "{pair:?}");
    }
}

fn agents(world: &mut World) -> Vec<NodeId> {
    (0..AGENTS)
        .map(|index| {
            let access = match index % 4 {
                0 => Access::Public,
                1 => Access::Nat(NatSpec::cone(Filtering::AddressAndPortDependent)),
                2 => Access::Nat(NatSpec::cone(Filtering::AddressDependent)),
                _ => Access::Nat(NatSpec::cone(Filtering::EndpointIndependent)),
            };
            let place = world.place(access, false);
            world.cluster_node(&format!("agent-{index}"), place, Seat::V4)
        })
        .collect()
}

/// How long a start took until all agents planned for all Nodes, and until all had met.
struct Start {
    planned: Duration,
    met: Duration,
}

/// Starts all agents, and lets a minute pass in which a change would be written.
fn start(world: &mut World, ids: &[NodeId], count: u16) -> Start {
    let since = world.net.now();
    for id in ids {
        world.boot(*id);
    }
    let knows = |world: &World, id: &NodeId| {
        let overlay = world.nodes[id.0].overlay.as_ref();
        let peers = overlay.map(|overlay| overlay.host_plan().tunnel.peers.len());
        peers.is_some_and(|peers| peers + 1 >= usize::from(count))
    };
    let planned = world.wait(PLANNED, |world| ids.iter().all(|id| knows(world, id)));
    let planned = planned.expect("all Nodes are planned for");
    let met = all_meet(world, ids, since + MET) - since;
    world.run(60 * SECOND);
    Start { planned, met }
}

/// When all agents had met.
fn all_meet(world: &mut World, ids: &[NodeId], until: Instant) -> Instant {
    for (index, a) in ids.iter().enumerate() {
        for b in &ids[..index] {
            let left = until.saturating_duration_since(world.net.now());
            let met = world.meet(*a, *b, left.max(SECOND));
            assert!(met.is_some(), "{a:?} {b:?}");
        }
    }
    world.net.now()
}

/// What agents asked others to pass on was passed on, but for what came when a second was over here and not there.
fn nothing_asked_in_vain(world: &World, ids: &[NodeId]) {
    let sum = |name: &str| -> u64 {
        let counters = ids.iter().map(|id| world.snapshot(*id).counters);
        let each = counters.filter_map(|counters| counters.get(name).copied());
        each.sum()
    };
    let (asked, refused) = (sum("forwards-asked"), sum("forward-refused"));
    assert!(asked > 0 && refused * 20 <= asked, "{refused} of {asked}");
}

/// Nothing has changed that a Node should tell.
fn nothing_written(world: &mut World) {
    let changed = changed(world);
    assert!(changed.is_empty(), "{changed:#?}");
}

/// Whose writes there were, and of what.
fn changed(world: &mut World) -> Vec<String> {
    let writes = world.api().writes.iter();
    writes
        .map(|write| format!("{:?} {:?}", write.node, write.changed))
        .collect()
}

fn row(what: &str, start: Option<Start>, world: &mut World) {
    let seconds = |time: Duration| format!("{:.1} s", time.as_secs_f64());
    let [planned, met] = match start {
        Some(start) => [start.planned, start.met].map(seconds),
        None => ["-", "-"].map(str::to_owned),
    };
    let api = world.api();
    let agents = AGENTS as u64;
    let (listed, events) = (api.listed / agents, api.told / agents);
    // A listing of metadata, one of whole objects; then metadata only.
    let bytes = listed * (METADATA + WHOLE) + events * METADATA;
    println!(
        "| {what} | {planned} | {met} | {} | {:.1} MB: {listed} Nodes listed, {events} events |",
        api.writes.len(),
        bytes as f64 / 1e6,
    );
}
