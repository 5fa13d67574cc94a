//! Namespaces, programs, plans.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use mesh_types::consts::{
    BLACKHOLE_METRIC, FWMARK, FWMARK_MASK, INTERFACE, ROUTE_METRIC, ROUTE_TABLE, RULE_PRIORITY,
};
use mesh_types::plan::{DevicePlan, Route, RouteKind, Rule, TunnelPlan};
use mesh_types::{HostPlan, IpNet, WgSecret};
use nix::sched::{CloneFlags, unshare};

/// Runs a test in a network namespace of its own: a thread that left the common one, and a runtime on it.
pub fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let thread = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root");
        run("ip link set lo up");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(test());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs a program in the namespace of the calling thread; it must succeed.
pub fn run(line: &str) -> String {
    let output = sh(line);
    assert!(
        output.status.success(),
        "{line}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a program that may fail.
pub fn sh(line: &str) -> std::process::Output {
    Command::new("sh").args(["-c", line]).output().unwrap()
}

/// All that farspan could change, in the words of the host's own tools.
pub fn everything() -> String {
    [
        "ip -d link",
        "ip -d addr",
        "ip -d rule",
        "ip -d -6 rule",
        "ip -d route show table all",
        "ip -d -6 route show table all",
        "nft list ruleset",
    ]
    .map(run)
    .concat()
}

/// A stand-in for the overlay device, which the engine or WireGuard would make.
pub fn add_device() {
    run(&format!("ip tuntap add {INTERFACE} mode tun"));
}

pub fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

/// A node with addresses of both families, one peer with a range in each, the mesh's ranges, and a range of its own.
pub fn plan() -> HostPlan {
    let mut routes = BTreeSet::new();
    for (prefix, source) in [
        ("10.77.0.2/32", "10.77.0.1"),
        ("10.201.2.0/24", "10.77.0.1"),
        ("fd77::2/128", "fd77::1"),
        ("fd77:2::/64", "fd77::1"),
    ] {
        let kind = RouteKind::Unicast {
            source: Some(source.parse().unwrap()),
            mtu: (prefix == "10.201.2.0/24").then_some(1300),
        };
        routes.insert(route(prefix, ROUTE_METRIC, kind));
        routes.insert(route(prefix, BLACKHOLE_METRIC, RouteKind::Blackhole));
    }
    for prefix in ["10.77.0.0/16", "10.200.0.0/14", "fd77::/16"] {
        routes.insert(route(prefix, BLACKHOLE_METRIC, RouteKind::Blackhole));
    }
    routes.insert(route("10.201.1.0/24", ROUTE_METRIC, RouteKind::Throw));
    routes.insert(route("fd77:1::/64", ROUTE_METRIC, RouteKind::Throw));
    HostPlan {
        generation: 7,
        device: DevicePlan {
            name: INTERFACE.to_owned(),
            mtu: 1420,
            addresses: [net("10.77.0.1/32"), net("fd77::1/128")].into(),
        },
        tunnel: TunnelPlan {
            key: WgSecret::from_bytes([7; 32]),
            previous_key: None,
            listen_port: 22514,
            fwmark: FWMARK,
            peers: BTreeMap::new(),
            report_every: Duration::from_secs(10),
        },
        routes,
        rules: [false, true]
            .map(|ipv6| Rule {
                ipv6,
                priority: RULE_PRIORITY,
                table: ROUTE_TABLE,
                mark: FWMARK,
                mask: FWMARK_MASK,
                from: None,
            })
            .into(),
        sockets: BTreeSet::new(),
        mss_clamp: true,
        forward_accept: false,
        adoptions: BTreeSet::new(),
        relay_pairs: BTreeSet::new(),
        aliases: BTreeSet::new(),
        narrow: BTreeMap::new(),
        turn_links: BTreeSet::new(),
        proxies: BTreeSet::new(),
        filters: BTreeMap::new(),
        keep_source: BTreeSet::new(),
        mark_input: false,
    }
}

pub fn route(prefix: &str, metric: u32, kind: RouteKind) -> Route {
    Route {
        prefix: net(prefix),
        metric,
        kind,
    }
}

/// Waits until the kernel has noticed that the other end is up, too: a second later at worst, and until then the device
/// drops what it is to send.
pub fn carries(device: &str) {
    let patience = Instant::now() + Duration::from_secs(10);
    while !run(&format!("ip link show {device}")).contains("state UP") {
        assert!(Instant::now() < patience, "{device} does not come up");
    }
}

/// Waits until the kernel takes packets to an own address: it makes IPv6 routes to them a moment after the addresses.
pub fn takes(ip: &str) {
    let patience = Instant::now() + Duration::from_secs(10);
    let is_taken = || {
        let way = sh(&format!("ip route get {ip}"));
        String::from_utf8_lossy(&way.stdout).starts_with("local ")
    };
    while !is_taken() {
        assert!(Instant::now() < patience, "{ip} does not become our own");
    }
}
