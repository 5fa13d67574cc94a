//! Static files: two machines that list each other.

use std::time::Duration;

use mesh_types::command::{Command, Reload};
use mesh_types::message::Hello;
use mesh_types::record::{Announcement, Signed};
use mesh_types::report::{Answer, HostAddress, MappingProtocol, PortMapping};
use mesh_types::{CandidateKind, HostReport, Message, State};
use overlay::{Config, Event, Reply};

use crate::net::{Net, config, entry, identity, net};

fn listed(n: u8, others: &[u8]) -> Config {
    Config {
        addresses: vec![net(&format!("10.77.0.{n}/32"))],
        peers: others.iter().map(|other| entry(*other)).collect(),
        ..config(n)
    }
}

fn tell(world: &mut Net, n: u8, mapping: PortMapping) {
    let now = world.now;
    let overlay = &mut world.machine(n).overlay;
    overlay.handle_answer(Answer::PortMapping(mapping), now);
}

fn pair() -> Net {
    let mut world = Net::new();
    world.start(1, identity(1), listed(1, &[2]), State::default());
    world.start(2, identity(2), listed(2, &[1]), State::default());
    world.run(Duration::from_secs(3));
    world
}

#[test]
fn two_machines_that_list_each_other_connect_and_pin_identities() {
    let mut world = pair();
    for (n, other) in [(1, "node-2"), (2, "node-1")] {
        let peer = world.peer(n, other).expect("a peer");
        assert!(world.is_direct(n, other), "{peer:?}");
        assert!(peer.identity.is_some(), "{peer:?}");
        assert!(peer.reason.contains("203.0.113"), "{}", peer.reason);
        assert!(
            world
                .machine(n)
                .events
                .iter()
                .any(|e| matches!(e, Event::PeerUp { name } if name == other))
        );
    }
    let pins = world.machine(1).overlay.state().pins;
    assert_eq!(pins.len(), 1);
    assert_eq!(pins[0].identity, identity(2).node.identity());
}

#[test]
fn the_lower_idx_starts_the_handshake_and_the_other_side_follows_after_a_second() {
    let mut world = Net::new();
    world.mute = true;
    world.start(1, identity(1), listed(1, &[2]), State::default());
    world.start(2, identity(2), listed(2, &[1]), State::default());
    let (lower, higher) = if identity(1).key.public().idx() < identity(2).key.public().idx() {
        (1, 2)
    } else {
        (2, 1)
    };
    world.run(Duration::from_millis(900));
    assert_eq!(world.calls, [lower]);
    world.run(Duration::from_secs(1));
    assert_eq!(world.calls, [lower, higher]);
    for machine in world.machines.values() {
        let peer = machine.plan.tunnel.peers.values().next().expect("a peer");
        assert_eq!(peer.keepalive, Some(Duration::from_secs(25)));
    }
    world.run(Duration::from_secs(10));
    assert!(world.findings(1).contains(&"no-handshake".to_owned()));
}

#[test]
fn an_agent_whose_host_is_slow_to_follow_the_plan_sleeps_meanwhile() {
    let mut world = Net::new();
    world.slow = Duration::from_millis(1500);
    world.start(1, identity(1), listed(1, &[2]), State::default());
    world.start(2, identity(2), listed(2, &[1]), State::default());
    world.run(Duration::from_secs(20));
    assert!(world.is_direct(1, "node-2") && world.is_direct(2, "node-1"));
}

#[test]
fn a_ping_inside_the_mesh_tells_round_trip_and_path() {
    let mut world = pair();
    let ping = Command::Ping {
        peer: "node-2".to_owned(),
    };
    let reply = world.command(1, ping).expect("an answer");
    let Reply::Pong { rtt, remote, path } = reply else {
        panic!("not a pong: {reply:?}");
    };
    assert_eq!(rtt, Duration::from_millis(20));
    assert!(path.is_some());
    assert_eq!(remote, Some("203.0.113.2:22002".parse().expect("address")));
}

#[test]
fn a_ping_to_a_machine_that_is_gone_says_so() {
    let mut world = pair();
    world.stop(2);
    let ping = Command::Ping {
        peer: "node-2".to_owned(),
    };
    let error = world.command(1, ping).expect_err("nobody answers");
    assert!(error.contains("no answer from node-2"), "{error}");
}

#[test]
fn a_ping_to_nobody_says_so() {
    let mut world = pair();
    let ping = Command::Ping {
        peer: "nobody".to_owned(),
    };
    let error = world.command(1, ping).expect_err("nobody is called that");
    assert!(error.contains("nobody"), "{error}");
}

#[test]
fn a_reload_removes_and_adds_peers_without_touching_the_rest() {
    let mut world = pair();
    world.start(3, identity(3), listed(3, &[1]), State::default());
    let reload = |peers: &[u8]| {
        let Config {
            name,
            region,
            addresses,
            routes,
            authorities,
            stun,
            forward_accept,
            may_relay,
            relay_ports,
            pair_rate,
            node_rate,
            birthday_search,
            ..
        } = listed(1, &[]);
        Command::Reload(Box::new(Reload {
            peers: peers.iter().map(|n| entry(*n)).collect(),
            name,
            region,
            routes,
            addresses,
            stun,
            turn: Vec::new(),
            may_relay,
            relay_ports,
            pair_rate,
            node_rate,
            birthday_search,
            authorities,
            forward_accept,
            authority: None,
        }))
    };
    let before = world.machine(1).plan.tunnel.peers[&identity(2).key.public()].clone();
    world.command(1, reload(&[2, 3])).expect("reloaded");
    world.run(Duration::from_secs(3));
    assert!(world.is_direct(1, "node-3"));
    assert_eq!(
        world.machine(1).plan.tunnel.peers[&identity(2).key.public()],
        before
    );

    world.command(1, reload(&[3])).expect("reloaded");
    assert!(world.peer(1, "node-2").is_none());
    let plan = &world.machine(1).plan;
    assert!(!plan.tunnel.peers.contains_key(&identity(2).key.public()));
    assert!(plan.routes.iter().all(|r| r.prefix != net("10.77.0.2/32")));
    assert!(world.is_direct(1, "node-3"));
}

#[test]
fn a_message_from_behind_a_peer_is_not_the_peers() {
    let mut world = Net::new();
    let mut behind = listed(1, &[2]);
    behind.peers[0].allowed_ips.push(net("10.244.2.0/24"));
    world.start(1, identity(1), behind, State::default());
    world.start(2, identity(2), listed(2, &[1]), State::default());
    world.run(Duration::from_secs(3));
    assert!(world.is_direct(1, "node-2"));

    let to = "10.77.0.1:22511".parse().expect("address");
    let hello = Message::from(Hello { min: 9, max: 9 }).encode();
    let pod = "10.244.2.7:22511".parse().expect("address");
    world.spoof(2, pod, to, hello.clone());
    let port = "10.77.0.2:4000".parse().expect("address");
    world.spoof(2, port, to, hello);
    world.run(Duration::from_secs(1));

    assert_eq!(world.counter(1, "control-foreign-source"), 2);
    assert!(!world.findings(1).contains(&"protocol".to_owned()));
}

#[test]
fn a_peer_with_no_common_protocol_version_is_a_finding_and_gets_no_messages() {
    let mut world = pair();
    let to = "10.77.0.1:22511".parse().expect("address");
    let from = "10.77.0.2:22511".parse().expect("address");
    world.spoof(
        2,
        from,
        to,
        Message::from(Hello { min: 9, max: 9 }).encode(),
    );
    world.run(Duration::from_secs(1));
    assert!(world.findings(1).contains(&"protocol".to_owned()));
    let ping = Command::Ping {
        peer: "node-2".to_owned(),
    };
    let error = world.command(1, ping).expect_err("no messages");
    assert!(error.contains("protocol"), "{error}");
}

#[test]
fn no_bytes_in_the_tunnel_make_a_node_stumble() {
    let mut world = pair();
    let to = "10.77.0.1:22511".parse().expect("address");
    let from = "10.77.0.2:22511".parse().expect("address");
    for code in 0..=255u8 {
        world.spoof(2, from, to, vec![0x82, 0x18, code, 0xa0]);
        world.spoof(2, from, to, vec![code; usize::from(code)]);
    }
    world.run(Duration::from_secs(1));
    assert!(world.is_direct(1, "node-2"));
    assert!(world.counter(1, "control-malformed") > 0);
}

#[test]
fn a_clock_far_off_and_records_from_the_future_are_findings() {
    let mut world = Net::new();
    world.now.unix = Duration::from_secs(1_000);
    world.start(1, identity(1), listed(1, &[]), State::default());
    assert!(world.findings(1).contains(&"clock".to_owned()));

    let mut world = pair();
    assert!(!world.findings(1).contains(&"clock".to_owned()));
    // The other machine was set an hour ahead once.
    let mut disk = world.machine(2).overlay.state();
    disk.seq += 3_600_000;
    world.start(2, identity(2), listed(2, &[1]), disk);
    world.run(Duration::from_secs(3));
    assert!(world.findings(1).contains(&"clock".to_owned()));
}

#[test]
fn an_idle_pair_is_quiet() {
    let mut world = pair();
    world.run(Duration::from_secs(60));
    let before = world.machine(1).plan.generation;
    world.run(Duration::from_secs(120));
    let after = world.machine(1).plan.generation;
    assert!(after - before <= 2, "{} plans", after - before);
}

#[test]
fn a_stun_server_by_name_is_looked_up_and_a_private_answer_refused() {
    let mut world = Net::new();
    let name = "stun.example.org:3478";
    let named = Config {
        stun: vec![name.to_owned(), "198.51.100.7:3478".to_owned()],
        ..config(1)
    };
    world.start(1, identity(1), named, State::default());
    let asked = |event: &Event| matches!(event, Event::Resolve { name: asked } if asked == name);
    assert!(world.machine(1).events.iter().any(asked));
    let now = world.now;
    let answer = |addresses: &[&str]| Answer::Resolved {
        name: name.to_owned(),
        addresses: addresses
            .iter()
            .map(|a| a.parse().expect("address"))
            .collect(),
    };
    let overlay = &mut world.machine(1).overlay;
    overlay.handle_answer(answer(&["10.0.0.1:3478", "127.0.0.1:3478"]), now);
    assert!(world.findings(1).contains(&"stun-unresolved".to_owned()));
    world.machine(1).events.clear();
    world.run(Duration::from_secs(61));
    assert!(world.machine(1).events.iter().any(asked), "asked again");
    let now = world.now;
    let overlay = &mut world.machine(1).overlay;
    overlay.handle_answer(answer(&["198.51.100.8:3478"]), now);
    assert!(!world.findings(1).contains(&"stun-unresolved".to_owned()));
    let Reply::Netcheck(netcheck) = world.command(1, Command::Netcheck).expect("netcheck") else {
        panic!("not a netcheck");
    };
    assert_eq!(netcheck.stun.len(), 2);
    assert!(!netcheck.endpoints.is_empty());
}

#[test]
fn first_words_that_are_lost_are_said_again_until_the_peer_has_compared() {
    let mut world = Net::new();
    // Longer than an announcement is repeated, much shorter than the pace of gossip.
    world.deaf_until = Some(world.now.mono + Duration::from_millis(3500));
    world.start(1, identity(1), listed(1, &[2]), State::default());
    world.start(2, identity(2), listed(2, &[1]), State::default());
    world.run(Duration::from_secs(10));
    for (n, other) in [(1, "node-2"), (2, "node-1")] {
        let peer = world.peer(n, other).expect("a peer");
        assert!(peer.identity.is_some(), "{peer:?}");
    }
}

#[test]
fn addresses_of_carried_ranges_are_candidates_only_where_the_host_has_its_way_out() {
    let carrier = Config {
        routes: vec![net("10.244.1.0/24"), net("192.168.7.0/24")],
        ..listed(1, &[2])
    };
    let host = |interface: &str, ip: &str| HostAddress {
        interface: interface.to_owned(),
        ip: ip.parse().expect("an address"),
        prefix_len: 24,
        stable: true,
    };
    let report = |uplinks: &[&str]| HostReport {
        addresses: vec![host("pod0", "10.244.1.1"), host("eth0", "192.168.7.2")],
        uplinks: uplinks.iter().map(|name| (*name).to_owned()).collect(),
        ..HostReport::default()
    };
    let mut world = Net::new();
    world.start(1, identity(1), carrier, State::default());
    let mut candidates = |uplinks: &[&str]| {
        let now = world.now;
        let overlay = &mut world.machine(1).overlay;
        overlay.handle_host(report(uplinks), now);
        let endpoints = overlay.snapshot(now).node.endpoints;
        let addresses = endpoints.iter().map(|c| c.address.ip().to_string());
        addresses.collect::<Vec<_>>()
    };
    assert_eq!(candidates(&["eth0"]), ["192.168.7.2"]);
    assert_eq!(candidates(&[]), ["10.244.1.1", "192.168.7.2"]);
}

#[test]
fn a_port_that_the_gateway_gave_is_announced_to_peers_until_it_is_taken_back() {
    let mut world = pair();
    let external = "198.51.100.9:22514".parse().expect("an address");
    let by = MappingProtocol::Pcp;
    tell(&mut world, 1, PortMapping::Mapped { by, external });
    world.run(Duration::from_secs(5));
    let announced = |world: &mut Net| {
        let state = world.machine(2).overlay.state();
        let of_one = |signed: &&Signed<Announcement>| {
            signed.record().identity == identity(1).node.identity()
        };
        let endpoints = state.announcements.iter().find(of_one).map(|signed| {
            let endpoints = signed.record().endpoints.iter();
            endpoints
                .filter(|candidate| candidate.kind == CandidateKind::Mapped)
                .map(|candidate| candidate.address)
                .collect::<Vec<_>>()
        });
        endpoints.expect("node 2 has node 1's announcement")
    };
    assert_eq!(announced(&mut world), [external]);
    let reason = "the gateway is gone".to_owned();
    tell(&mut world, 1, PortMapping::Unmapped { reason });
    world.run(Duration::from_secs(5));
    assert_eq!(announced(&mut world), []);
}

#[test]
fn a_gateway_behind_another_translator_gives_no_address_that_is_worth_announcing() {
    let mut world = pair();
    let external = "100.64.1.2:22514".parse().expect("an address");
    let by = MappingProtocol::NatPmp;
    tell(&mut world, 1, PortMapping::Mapped { by, external });
    let now = world.now;
    let endpoints = world.machine(1).overlay.snapshot(now).node.endpoints;
    assert!(
        endpoints
            .iter()
            .all(|candidate| candidate.address != external)
    );
    let Reply::Netcheck(netcheck) = world.command(1, Command::Netcheck).expect("netcheck") else {
        panic!("not a netcheck");
    };
    let told = netcheck
        .port_mapping
        .map(|mapping| mapping.to_string())
        .unwrap_or_default();
    assert!(told.contains("another NAT lies before it"), "{told}");
}
