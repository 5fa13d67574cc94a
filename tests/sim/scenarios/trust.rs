//! Who is a node, and what a false word can do.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use mesh_types::command::Command;
use mesh_types::observation::{Fact, Observation, Source};
use mesh_types::report::Backend;
use mesh_types::{Candidate, CandidateKind, WgSecret};
use overlay::{Event, Reply};
use sim_net::{Direction, Families, Filtering, LinkSpec, NatSpec};

use crate::world::{Access, NodeId, Seat, World};

const SECOND: Duration = Duration::from_secs(1);
const STRICT: NatSpec = NatSpec::cone(Filtering::AddressAndPortDependent);

#[test]
fn a_joiner_behind_a_translator_becomes_a_member_through_an_introducer() {
    let mut world = World::new(1);
    let core = world.place(Access::Public, false);
    let home = world.place(Access::Nat(STRICT), false);
    let away = world.place(Access::Nat(STRICT), false);
    let introducer = world.member("introducer", core, Seat::V4, &[]);
    let inviter = world.member("inviter", home, Seat::V4, &[introducer]);
    world.nodes[inviter.0].issues_authority = Some(world.authority.clone());
    let joiner = world.node("joiner", away, Seat::V4);
    world.nodes[joiner.0].config.authorities.clear();
    world.boot_all();
    world.seconds(10);
    let routes = world.nodes[joiner.0].config.routes.clone();
    let invite = Command::Invite {
        random: [7; 24],
        routes,
        lifetime: Duration::from_secs(3_600),
    };
    let Ok(Reply::Token(token)) = ask(&mut world, inviter, invite) else {
        panic!("no token");
    };
    assert!(!token.introducers.is_empty());
    let join = Command::Join {
        token: Box::new(token),
    };
    let joined = ask(&mut world, joiner, join.clone());
    assert!(joined.is_ok(), "{joined:?}\n{}", world.describe());
    for peer in [introducer, inviter] {
        let took = world.meet(joiner, peer, 10 * SECOND);
        assert!(took.is_some(), "{}", world.describe());
    }

    let thief = world.place(Access::Public, false);
    let thief = world.node("thief", thief, Seat::V4);
    world.boot(thief);
    let stolen = ask(&mut world, thief, join);
    assert!(stolen.is_err(), "a token is used once");
}

#[test]
fn a_revoked_node_is_out() {
    let mut world = World::new(2);
    let ids = three(&mut world, Backend::Userspace);
    world.nodes[ids[0].0].issues_authority = Some(world.authority.clone());
    world.boot_all();
    world.meet(ids[1], ids[2], 10 * SECOND).expect("they meet");
    let revoked = ask(
        &mut world,
        ids[0],
        Command::Revoke {
            node: "west".to_owned(),
        },
    );
    assert!(revoked.is_ok(), "{revoked:?}");
    world.seconds(5);
    let since = world.net.now();
    let flows = [(ids[1], ids[2]), (ids[0], ids[2]), (ids[2], ids[1])]
        .map(|(a, b)| world.flow(a, b, Duration::from_millis(100)));
    world.seconds(120);
    for flow in flows {
        assert_eq!(world.flows[flow.0].tally(since).1, 0);
    }
    let key = world.nodes[ids[2].0].disk.key.public();
    for id in &ids[..2] {
        let overlay = world.nodes[id.0].overlay.as_ref().expect("on");
        assert!(!overlay.host_plan().tunnel.peers.contains_key(&key));
    }
}

#[test]
fn a_change_of_key_under_traffic_loses_no_packet_and_leaves_no_reader_with_the_old_key() {
    for backend in [Backend::Kernel, Backend::Userspace] {
        let mut world = World::new(3);
        let ids = three(&mut world, backend);
        world.boot_all();
        world.meet(ids[1], ids[2], 10 * SECOND).expect("they meet");
        world.seconds(10);
        let every = Duration::from_millis(5);
        let flows = [(ids[1], ids[0]), (ids[1], ids[2]), (ids[2], ids[1])]
            .map(|(a, b)| world.flow(a, b, every));
        world.seconds(2);
        let since = world.net.now();
        let old = world.nodes[ids[1].0].disk.key.public();
        let rotate = Command::Rotate {
            next: WgSecret::from_bytes([99; 32]),
            force: false,
        };
        let answer = ask(&mut world, ids[1], rotate);
        assert!(answer.is_ok(), "{answer:?}");
        world.seconds(30);
        for flow in flows {
            let lost = world.flows[flow.0].lost(since, world.net.now());
            assert_eq!(lost, 0, "{backend:?}\n{}", world.describe());
        }
        let fresh = world.nodes[ids[1].0].disk.key.public();
        assert_ne!(old, fresh);
        for id in [ids[0], ids[2]] {
            let overlay = world.nodes[id.0].overlay.as_ref().expect("on");
            let peers = &overlay.host_plan().tunnel.peers;
            assert!(!peers.contains_key(&old) && peers.contains_key(&fresh));
        }
    }
}

#[test]
fn a_record_that_points_the_mesh_at_a_victim_costs_it_little_however_often_it_is_renewed() {
    let mut world = World::new(4);
    let core = world.place(Access::Public, false);
    let victim = world
        .net
        .add_host("victim", core.segment, Families::V4, LinkSpec::LAN);
    let link = world.net.links(victim)[0];
    world.net.tap(link);
    let target = world.net.addresses(victim)[0].ip;
    let ids = three(&mut world, Backend::Userspace);
    let evil = world.node("evil", core, Seat::V4);
    world.boot_all();
    world.power_off(evil);
    world.seconds(20);
    for second in 0..60_u64 {
        let lie = world.announce(evil, aimed_at(target, 24), 10 + second);
        let facts = [
            Fact::Membership(world.membership(evil, 1)),
            Fact::Announcement {
                record: lie,
                spoken_by: None,
            },
        ];
        for id in &ids {
            let clock = world.clock(*id);
            for fact in facts.clone() {
                let observation = Observation {
                    source: Source::Gossip,
                    fact,
                };
                let node = &mut world.nodes[id.0];
                let overlay = node.overlay.as_mut().expect("on");
                overlay.handle_observation(observation, clock);
            }
            world.pump(*id);
        }
        world.seconds(1);
    }
    let heard = world.net.tapped(link);
    assert!(!heard.is_empty(), "the record was believed at first");
    for packet in heard {
        let window = heard.iter().filter(|other| {
            other.direction == Direction::In
                && other.at >= packet.at
                && other.at < packet.at + SECOND
        });
        let most = window.count();
        // 20 a second for each of three nodes, and a burst of as many.
        assert!(most <= 3 * 40, "{most} packets in a second");
    }
    assert!(heard.len() <= 3 * 20 * 62, "{} packets", heard.len());
}

/// As many addresses as asked for, all of one host.
pub(super) fn aimed_at(target: IpAddr, count: u16) -> Vec<Candidate> {
    (0..count)
        .map(|n| Candidate {
            kind: CandidateKind::ServerReflexive,
            address: SocketAddr::new(target, 2_000 + n),
        })
        .collect()
}

fn three(world: &mut World, backend: Backend) -> [NodeId; 3] {
    let seat = Seat {
        backend,
        ..Seat::V4
    };
    let core = world.place(Access::Public, false);
    let introducer = world.member("introducer", core, seat, &[]);
    let [east, west] = [0, 1].map(|_| world.place(Access::Nat(STRICT), false));
    let east = world.member("east", east, seat, &[introducer]);
    let west = world.member("west", west, seat, &[introducer]);
    [introducer, east, west]
}

fn ask(world: &mut World, id: NodeId, command: Command) -> Result<Reply, String> {
    let clock = world.clock(id);
    let number = world.nodes[id.0].command(command, clock);
    world.pump(id);
    world.wait(15 * SECOND, |world| {
        world.nodes[id.0].replies.contains_key(&number)
    });
    assert!(
        !world.nodes[id.0]
            .events
            .iter()
            .any(|e| matches!(e, Event::Revoked)),
        "the asking node stays a member"
    );
    world.nodes[id.0]
        .replies
        .remove(&number)
        .unwrap_or_else(|| Err("no answer".to_owned()))
}
