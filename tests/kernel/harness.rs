//! Namespaces and the wires between them, nodes of the mesh in them, pings that are counted.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd as _;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use host_network::{Host, Wireguard};
use mesh_types::consts::{
    BLACKHOLE_METRIC, FWMARK, FWMARK_MASK, INTERFACE, ROUTE_METRIC, ROUTE_TABLE, RULE_PRIORITY,
};
use mesh_types::plan::{DevicePlan, Route, RouteKind, Rule, TunnelPeer, TunnelPlan};
use mesh_types::{HostPlan, IpNet, WgKey, WgSecret};
use nix::sched::{CloneFlags, setns, unshare};

use crate::lab::wait::wait_until;

/// A network namespace; it ends with the last process, device or handle in it.
#[derive(Debug)]
pub struct Namespace(File);

impl Namespace {
    /// Makes one, with `lo` up.
    pub fn new() -> Self {
        let file = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root");
            File::open("/proc/thread-self/ns/net").unwrap()
        })
        .join()
        .unwrap();
        let namespace = Self(file);
        namespace.sh("ip link set lo up");
        namespace
    }

    /// Runs a closure inside. Sockets opened and programs started there stay there.
    pub fn enter<T>(&self, inside: impl FnOnce() -> T) -> T {
        let home = File::open("/proc/thread-self/ns/net").unwrap();
        setns(self.0.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
        let result = inside();
        setns(home.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
        result
    }

    /// Runs a shell line inside; it must succeed.
    pub fn sh(&self, line: &str) -> String {
        let output = self.try_sh(line);
        assert!(
            output.status.success(),
            "{line}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a shell line inside that may fail.
    pub fn try_sh(&self, line: &str) -> Output {
        self.enter(|| Command::new("sh").args(["-c", line]).output().unwrap())
    }

    /// Starts pings to an address, `count` of them, `every` so often.
    pub fn ping(&self, to: &str, count: u32, every: Duration) -> Ping {
        let child = self.enter(|| {
            Command::new("ping")
                .args(["-n", "-q", "-W", "2", "-c", &count.to_string()])
                .args(["-i", &every.as_secs_f64().to_string(), to])
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        });
        Ping(child)
    }

    /// All that farspan could change, in the words of the host's own tools.
    pub fn everything(&self) -> String {
        self.sh("ip -d link; ip -d addr; ip -d rule; ip -d -6 rule; ip -d route show table all; ip -d -6 route show table all; nft list ruleset")
    }
}

/// Pings under way.
#[derive(Debug)]
pub struct Ping(Child);

impl Ping {
    /// Waits for the last answer; (sent, lost).
    pub fn finish(self) -> (u32, u32) {
        let output = self.0.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let number = |before: &str| -> u32 {
            let at = text.find(before).unwrap_or_else(|| panic!("{text}"));
            text[..at]
                .split([' ', '\n'])
                .next_back()
                .unwrap()
                .parse()
                .unwrap()
        };
        let sent = number(" packets transmitted");
        (sent, sent - number(" received"))
    }
}

/// A wire between two namespaces: a veth, with these addresses of both families at its ends.
pub fn wire(a: &Namespace, b: &Namespace, net: u8) {
    let (x, y) = (format!("fs-kern-{net}a"), format!("fs-kern-{net}b"));
    a.sh(&format!("ip link add {x} type veth peer name {y}"));
    // A link is moved to the namespace of a process, and this thread is in `b` only while it is inside.
    let mut holder = b.enter(|| {
        Command::new("sleep")
            .arg("1000")
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    });
    a.sh(&format!("ip link set {y} netns {}", holder.id()));
    holder.kill().unwrap();
    holder.wait().unwrap();
    for (namespace, name, host) in [(a, &x, 1), (b, &y, 2)] {
        // Without link-local addresses, which are tentative for a while and change what is compared.
        namespace.sh(&format!("ip link set {name} addrgenmode none"));
        namespace.sh(&format!("ip addr add 192.0.{net}.{host}/24 dev {name}"));
        namespace.sh(&format!(
            "ip addr add 2001:db8:{net}::{host}/64 dev {name} nodad"
        ));
        namespace.sh(&format!("ip link set {name} up"));
    }
}

/// Waits until it is so, for some seconds of a slow machine.
pub fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    wait_until(what, Duration::from_secs(20), || {
        so().then_some(()).ok_or_else(|| "not so".to_owned())
    });
}

/// A node of the mesh, with kernel WireGuard: number `n` has the key of that number, 10.77.0.n and fd77::n.
pub struct Node {
    pub namespace: Namespace,
    pub number: u8,
    pub plan: HostPlan,
    pub wireguard: Option<Wireguard>,
    runtime: tokio::runtime::Runtime,
    host: Option<Host>,
}

/// The private key of a number.
pub fn secret(number: u8) -> WgSecret {
    WgSecret::from_bytes([number; 32])
}

/// The public key of a number.
pub fn key(number: u8) -> WgKey {
    secret(number).public()
}

pub fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

impl Node {
    /// The plan of a node without peers, which listens on 22000 + `number`.
    pub fn plan_of(number: u8) -> HostPlan {
        let rules = [false, true].map(|ipv6| Rule {
            ipv6,
            priority: RULE_PRIORITY,
            table: ROUTE_TABLE,
            mark: FWMARK,
            mask: FWMARK_MASK,
            from: None,
        });
        HostPlan {
            generation: 1,
            device: DevicePlan {
                name: INTERFACE.to_owned(),
                mtu: 1420,
                addresses: addresses(number).into(),
            },
            tunnel: TunnelPlan {
                key: secret(number),
                previous_key: None,
                listen_port: 22000 + u16::from(number),
                fwmark: FWMARK,
                peers: BTreeMap::new(),
                report_every: Duration::from_secs(10),
            },
            routes: Default::default(),
            rules: rules.into(),
            sockets: Default::default(),
            mss_clamp: true,
            forward_accept: false,
            adoptions: Default::default(),
            relay_pairs: Default::default(),
            aliases: Default::default(),
            narrow: Default::default(),
            turn_links: Default::default(),
            proxies: Default::default(),
            filters: Default::default(),
            keep_source: Default::default(),
            mark_input: false,
        }
    }

    /// A node that is not brought up yet.
    pub fn new(number: u8) -> Self {
        let plan = Self::plan_of(number);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        Self {
            namespace: Namespace::new(),
            number,
            plan,
            wireguard: None,
            runtime,
            host: None,
        }
    }

    /// Plans another node as a peer: its addresses, and routes to them.
    pub fn plan_peer(&mut self, other: u8, endpoint: Option<&str>) {
        let peer = TunnelPeer {
            endpoint: endpoint.map(|text| text.parse::<SocketAddr>().unwrap()),
            allowed_ips: addresses(other).into(),
            ..TunnelPeer::default()
        };
        for range in &peer.allowed_ips {
            let source = self
                .plan
                .device
                .addresses
                .iter()
                .map(IpNet::addr)
                .find(|ip| ip.is_ipv4() == range.addr().is_ipv4());
            self.plan.routes.insert(Route {
                prefix: *range,
                metric: ROUTE_METRIC,
                kind: RouteKind::Unicast { source, mtu: None },
            });
            self.plan.routes.insert(Route {
                prefix: *range,
                metric: BLACKHOLE_METRIC,
                kind: RouteKind::Blackhole,
            });
        }
        self.plan.tunnel.peers.insert(key(other), peer);
    }

    /// The planned peer of a number.
    pub fn peer(&mut self, other: u8) -> &mut TunnelPeer {
        self.plan.tunnel.peers.get_mut(&key(other)).unwrap()
    }

    /// Makes it so: creates or adopts the device, or applies the plan to it, and converges the host.
    /// Returns how many messages WireGuard was sent.
    pub fn apply(&mut self) -> usize {
        let Self {
            namespace,
            plan,
            wireguard,
            runtime,
            host,
            ..
        } = self;
        namespace.enter(|| {
            let sent = match wireguard {
                Some(wireguard) => wireguard.apply(&plan.tunnel).unwrap(),
                None => {
                    *wireguard = Some(Wireguard::open(&plan.device.name, &plan.tunnel).unwrap());
                    0
                }
            };
            runtime.block_on(async {
                if host.is_none() {
                    *host = Some(Host::new(&plan.device.name).await.unwrap());
                }
                let applied = host.as_mut().unwrap().converge(plan).await;
                assert_eq!(applied.failures, Vec::<String>::new());
            });
            sent
        })
    }

    /// The agent dies; the kernel goes on.
    pub fn die(&mut self) {
        self.wireguard = None;
        self.host = None;
    }

    /// `down`.
    pub fn remove(&mut self) -> Vec<String> {
        let host = self.host.as_mut().unwrap();
        let removed = self
            .namespace
            .enter(|| self.runtime.block_on(host.remove()));
        self.die();
        assert!(removed.failures.is_empty(), "{:?}", removed.failures);
        removed.gone
    }

    /// What WireGuard knows of a peer.
    pub fn stats(&mut self, other: &WgKey) -> Option<mesh_types::report::TunnelStats> {
        let wireguard = self.wireguard.as_mut().unwrap();
        let report = self.namespace.enter(|| wireguard.report()).unwrap();
        report.peers.get(other).copied()
    }

    /// Waits for a session with a peer.
    pub fn await_session(&mut self, other: u8) {
        eventually("a handshake", || {
            self.stats(&key(other))
                .is_some_and(|stats| stats.handshake_age.is_some())
        });
    }

    /// When the last handshake with each peer was, as `wg` says it.
    pub fn handshakes(&self) -> String {
        self.namespace.sh("wg show farspan0 latest-handshakes")
    }

    /// Its overlay address.
    pub fn ip(&self, ipv6: bool) -> IpAddr {
        addresses(self.number)[usize::from(ipv6)].addr()
    }
}

fn addresses(number: u8) -> [IpNet; 2] {
    [
        net(&format!("10.77.0.{number}/32")),
        net(&format!("fd77::{number}/128")),
    ]
}

/// Two nodes on a wire with a session: 1 knows where 2 is, over IPv4.
pub fn pair() -> (Node, Node) {
    let (mut a, mut b) = (Node::new(1), Node::new(2));
    wire(&a.namespace, &b.namespace, 2);
    a.plan_peer(2, Some("192.0.2.2:22002"));
    b.plan_peer(1, None);
    a.peer(2).keepalive = Some(Duration::from_secs(25));
    b.apply();
    a.apply();
    a.await_session(2);
    (a, b)
}
