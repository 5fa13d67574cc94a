//! Verbs that need more than one real agent: what they say has to be true of the network below.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::{Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::lab::agent::{FARSPAN, PATIENCE};
use crate::lab::netns::feed;
use crate::lab::traffic::{MARKER, Pings, ping_once};
use crate::lab::wait::wait_until;
use crate::lab::{Lab, Nat, NatKind, Node};
use crate::scene::{TwoRegions, founder, overlay_ipv4, static_pair};

/// TCP port of `bench` inside the mesh.
const BENCH_PORT: u16 = 22511;

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!(
            "{error}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        )
    })
}

fn strict() -> Nat {
    Nat::new(NatKind::Prc)
}

#[test]
fn doctor_says_why_a_pair_is_direct_and_why_another_is_not() {
    let scene = TwoRegions::connected(strict(), strict());
    let (said, _) = wait_until("doctor knows both networks", PATIENCE, || {
        let output = scene.paris.verb(&["doctor", "tokyo"], "");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        match output.status.code() {
            Some(0) if said.contains("both NATs keep one public port") => Ok(said),
            _ => Err(said),
        }
    });
    for part in [
        "tokyo is reached directly",
        "of tokyo: ",
        "answered",
        "its last handshake is",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let public = format!("{}:", scene.east.public_address());
    assert!(said.contains(&public), "{said}");
    let own = scene.paris.verb(&["doctor", "-o", "json"], "");
    assert!(json(&own)["findings"].is_array());
    drop(scene);

    let hard = Nat::new(NatKind::Symmetric);
    let scene = TwoRegions::joined(hard, hard);
    wait_until("doctor knows that nothing helps", PATIENCE, || {
        let output = scene.paris.verb(&["doctor", "tokyo", "-o", "json"], "");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let helps = said.contains("port forwarding or port mapping") && said.contains("[relay]");
        if said.contains("direct-impossible") && helps {
            Ok(())
        } else {
            Err(said)
        }
    });
}

#[test]
fn bench_measures_both_directions_between_two_agents_and_serves_no_stranger() {
    let scene = TwoRegions::connected(strict(), strict());
    let (paris, tokyo) = (&scene.paris, &scene.tokyo);
    let arguments = [
        "bench",
        "tokyo",
        "--time",
        "1s",
        "--streams",
        "2",
        "-o",
        "json",
    ];
    let output = paris.verb(&arguments, "");
    let bench = json(&output);
    for direction in ["upload", "download"] {
        let measured = &bench[direction];
        assert!(measured["mbit_s"].as_f64() > Some(1.0), "{bench:#}");
        assert!(measured["delay"]["samples"].as_u64() > Some(0), "{bench:#}");
        let took = measured["seconds"].as_f64().unwrap_or_default();
        assert!((0.5..10.0).contains(&took), "{bench:#}");
    }
    assert_eq!(bench["path"]["kind"], "ipv4", "{bench:#}");
    // What is not the peer itself, but a pod behind it, is no peer.
    let target = SocketAddr::new(overlay_ipv4(paris), BENCH_PORT);
    let mut opening = b"farspanB\x01\x02\x01".to_vec();
    let mut answer = Vec::new();
    let heard = tokyo.pod().namespace.enter(|| {
        let mut stream = TcpStream::connect_timeout(&target, PATIENCE).expect("the port is open");
        stream.write_all(&opening).expect("the connection is open");
        stream.read_to_end(&mut answer).map(|_| answer.len())
    });
    assert!(matches!(heard, Ok(0) | Err(_)), "a stranger was answered");
    // A peer that talks nonsense hears so, and nothing more.
    opening[9] = 77;
    let nonsense = tokyo.host.namespace.enter(|| {
        let mut stream = TcpStream::connect_timeout(&target, PATIENCE).expect("the port is open");
        stream.write_all(&opening).expect("the connection is open");
        let mut answer = Vec::new();
        _ = stream.read_to_end(&mut answer);
        answer
    });
    assert_eq!(nonsense, [2]);
    // From outside of the tunnel there is nobody.
    let outside = SocketAddr::new(scene.hub.host.ipv4.into(), BENCH_PORT);
    let refused = paris
        .host
        .namespace
        .enter(|| TcpStream::connect_timeout(&outside, Duration::from_secs(2)).is_err());
    assert!(refused, "the port is open to the internet");
}

/// Packets of a pcap file of raw IP packets.
fn packets(pcap: &[u8]) -> Vec<Vec<u8>> {
    let word = |at: usize| -> usize {
        let bytes = pcap[at..at + 4].try_into().expect("four bytes");
        u32::from_ne_bytes(bytes) as usize
    };
    assert_eq!((word(0), word(20)), (0xa1b2_c3d4, 101), "not raw pcap");
    let (mut at, mut found) = (24, Vec::new());
    while at + 16 <= pcap.len() {
        let end = at + 16 + word(at + 8);
        found.push(pcap[at + 16..end].to_vec());
        at = end;
    }
    assert_eq!(at, pcap.len(), "the last packet is whole");
    found
}

#[test]
fn capture_shows_a_peers_packets_inside_and_outside_of_the_tunnel() {
    let scene = TwoRegions::connected(strict(), strict());
    let (paris, tokyo) = (&scene.paris, &scene.tokyo);
    let namespace = &paris.host.namespace;
    let target = overlay_ipv4(tokyo);
    let hub = overlay_ipv4(&scene.hub);
    let pings =
        [target, hub].map(|ip| Pings::start(namespace, ip, 1000, Duration::from_millis(50)));
    let inner = paris.verb(&["capture", "tokyo", "--count", "8", "--time", "30s"], "");
    let outer_file = paris.file("outer.pcap");
    let outer = paris.verb(
        &[
            "capture",
            "tokyo",
            "--outer",
            "--count",
            "8",
            "--time",
            "30s",
            "-w",
            &outer_file.display().to_string(),
        ],
        "",
    );
    pings.into_iter().for_each(Pings::stop);
    assert!(inner.status.success() && outer.status.success());

    let found = packets(&inner.stdout);
    assert_eq!(found.len(), 8);
    let IpAddr::V4(peer) = target else {
        panic!("an IPv4 address")
    };
    for packet in &found {
        // Messages between the agents are inside too, by IPv6.
        if packet[0] >> 4 == 4 {
            let ends = [&packet[12..16], &packet[16..20]];
            assert!(ends.contains(&&peer.octets()[..]), "{packet:?}");
        }
    }
    assert!(
        found
            .iter()
            .any(|p| p.windows(MARKER.len()).any(|w| w == MARKER)),
        "the pings are seen in clear inside"
    );
    let shown = feed_tcpdump(&inner.stdout);
    assert!(shown.contains("ICMP echo re"), "{shown}");
    assert!(
        !shown.contains(&hub.to_string()),
        "another peer's packets: {shown}"
    );

    let pcap = fs::read(&outer_file).expect("the file is there");
    let found = packets(&pcap);
    assert_eq!(found.len(), 8);
    // Probes go to its host's address too.
    let tokyo = [scene.east.public_address(), scene.tokyo.host.ipv4];
    for packet in &found {
        assert_eq!((packet[0] >> 4, packet[9]), (4, 17), "UDP over IPv4");
        let ends = [&packet[12..16], &packet[16..20]];
        let its = tokyo.iter().any(|ip| ends.contains(&&ip.octets()[..]));
        assert!(its, "{packet:?}");
        assert!(
            !packet.windows(MARKER.len()).any(|w| w == MARKER),
            "in clear"
        );
    }
    assert!(feed_tcpdump(&pcap).contains("UDP"));
    let nobody = paris.verb(&["capture", "nobody", "--time", "1s"], "");
    assert_eq!(nobody.status.code(), Some(1));
}

/// What tcpdump makes of a file.
fn feed_tcpdump(pcap: &[u8]) -> String {
    let mut child = std::process::Command::new("tcpdump")
        .args(["-n", "-r", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("tcpdump is installed");
    let mut stdin = child.stdin.take().expect("stdin is piped");
    stdin.write_all(pcap).expect("tcpdump reads");
    drop(stdin);
    let output = child.wait_with_output().expect("tcpdump ends");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn the_live_view_follows_the_mesh_and_leaves_the_terminal_as_it_was() {
    let lab = Lab::new();
    let (mut a, mut b) = static_pair(&lab);
    a.up();
    b.up();
    a.wait_direct("b", PATIENCE);
    // The shell survives Ctrl-C and then tells what it finds.
    let shell = format!("trap : INT; stty -a; {FARSPAN} status --watch; echo ended=$?; stty -a");
    let mut child = a
        .program("script")
        .args(["-q", "-f", "-c", &shell, "/dev/null"])
        .env("TERM", "xterm")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("script is installed");
    let mut stdout = child.stdout.take().expect("stdout is piped");
    let (sender, pieces) = mpsc::channel();
    let reader = thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = stdout.read(&mut buffer) {
            if sender.send(buffer[..length].to_vec()).is_err() {
                return;
            }
        }
    });
    let mut screen = String::new();
    let mut shows = |part: &str| {
        wait_until(&format!("the terminal shows {part:?}"), PATIENCE, || {
            for piece in pieces.try_iter() {
                screen.push_str(&String::from_utf8_lossy(&piece));
            }
            if screen.contains(part) {
                Ok(screen.clone())
            } else {
                Err(screen.clone())
            }
        })
        .0
    };
    shows("/s in, ");
    b.kill();
    a.kill();
    shows("as it was last; no agent runs here");
    let mut stdin = child.stdin.take().expect("stdin is piped");
    stdin.write_all(b"\x03").expect("the terminal takes a key");
    let all = shows("ended=0");
    wait_until("the terminal is closed", PATIENCE, || {
        let ended = child.try_wait().map_err(|error| error.to_string())?;
        ended.ok_or_else(|| "it runs".to_owned())
    });
    reader.join().expect("the reader ends");
    let all = pieces
        .try_iter()
        .fold(all, |all, piece| all + &String::from_utf8_lossy(&piece));
    let (before, rest) = all
        .split_once("\x1b[?1049h")
        .expect("the other screen is entered");
    let (drawn, after) = rest.rsplit_once("\x1b[?1049l").expect("and left");
    assert!(
        drawn.ends_with("\x1b[?7h\x1b[?25h"),
        "cursor and wrapping are back"
    );
    assert!(
        !after.contains("\x1b["),
        "nothing is drawn afterwards: {after:?}"
    );
    let settings = |text: &str| {
        let from = text
            .find("speed")
            .unwrap_or_else(|| panic!("no stty in {text:?}"));
        text[from..].trim().to_owned()
    };
    assert_eq!(settings(before), settings(after));
}

#[test]
fn who_is_invited_by_a_member_joins_when_the_authoritys_machine_approves() {
    let lab = Lab::new();
    let mut hub = founder(&lab, lab.public_host("hub"));
    hub.up();
    let mut paris = Node::new(&lab, lab.site("west", strict()).host("paris"));
    paris.up();
    paris.join(&hub);
    paris.wait_direct("hub", PATIENCE);
    let mut lima = Node::new(&lab, lab.site("south", strict()).host("lima"));
    lima.up();
    let invited = paris.verb(&["invite"], "");
    assert!(invited.status.success(), "{invited:?}");
    assert!(String::from_utf8_lossy(&invited.stderr).contains("farspan approve"));
    let token = String::from_utf8_lossy(&invited.stdout).into_owned();
    let here = paris.verb(&["approve"], "");
    assert!(String::from_utf8_lossy(&here.stderr).contains("does not hold"));
    let joined = thread::scope(|scope| {
        let joining = scope.spawn(|| lima.verb(&["join"], &token));
        wait_until("the hub shows who waits", PATIENCE, || {
            let output = hub.verb(&["approve", "-o", "json"], "");
            let waiting = json(&output);
            if waiting[0]["name"] == "lima" && waiting[0]["by"] == "paris" {
                Ok(())
            } else {
                Err(waiting.to_string())
            }
        });
        assert!(hub.peer("lima").is_err(), "it is let in already");
        hub.ok(&["approve", "lima"]);
        joining.join().expect("join ends")
    });
    assert!(
        joined.status.success(),
        "{}",
        String::from_utf8_lossy(&joined.stderr)
    );
    assert!(String::from_utf8_lossy(&joined.stderr).contains("waiting for it"));
    for peer in ["hub", "paris"] {
        lima.wait_direct(peer, PATIENCE);
    }
    let address = overlay_ipv4(&hub);
    wait_until("packets pass", PATIENCE, || {
        ping_once(&lima.host.namespace, address)
    });
    assert!(hub.ok(&["approve"]).contains("Nobody waits"));
}

#[test]
fn a_running_nodes_bugreport_holds_no_key_and_its_graph_every_node() {
    let scene = TwoRegions::connected(strict(), strict());
    let hub = &scene.hub;
    let token = hub.ok(&["invite"]);
    let report = hub.ok(&["bugreport", "-w", "-"]);
    for part in [
        "===== netcheck",
        "===== plan",
        "===== doctor paris",
        "# EOF",
        "farspan_peers",
    ] {
        assert!(report.contains(part), "{part}: {report}");
    }
    for name in ["authority.key", "identity.key", "private.key"] {
        let key = fs::read_to_string(hub.file("state").join(name)).expect("a key file");
        assert!(!report.contains(key.trim().trim_end_matches('=')), "{name}");
    }
    assert!(!report.contains(token.trim()));
    let graph = hub.ok(&["graph"]);
    for name in ["hub", "paris", "tokyo"] {
        assert!(graph.contains(&format!("label=\"{name}")), "{graph}");
    }
    assert!(graph.contains("label=\"ipv4 "), "{graph}");
    let seen = scene.tokyo.ok(&["status", "-o", "json"]);
    let both = hub.verb(&["graph", "-"], &seen);
    let both = String::from_utf8_lossy(&both.stdout);
    assert_eq!(both.matches(" -- ").count(), 3, "{both}");
    let yaml = hub.ok(&["status", "-o", "yaml"]);
    assert!(yaml.contains("\npeers:\n  - name: paris\n"), "{yaml}");
    let pinged = scene.paris.ok(&["ping", "tokyo", "-c", "2"]);
    assert!(pinged.contains(" direct ipv4 in "), "{pinged}");
    feed(
        scene
            .paris
            .command(&["graph", "-o", "svg", "-"])
            .stdout(Stdio::piped()),
        &seen,
    );
}
