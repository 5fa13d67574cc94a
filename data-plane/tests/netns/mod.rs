//! Two network namespaces joined by a veth pair, and engines in them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use data_plane::{ControlDatagram, Engine, EngineError, Offload, Settings};
use mesh_types::key::WgSecret;
use mesh_types::plan::{TunnelPeer, TunnelPlan};
use nix::sched::{CloneFlags, setns};

pub const PORT: u16 = 21000;
pub const DEVICE: &str = "fsdp0";

/// Time after which a transfer counts as stuck.
const TRANSFER_MAX: Duration = Duration::from_secs(20);

/// Removed when dropped.
pub struct Lab {
    tag: &'static str,
}

impl Lab {
    /// Side a is 192.0.2.1 and 2001:db8::1 outside, side b ends in 2.
    pub fn new(tag: &'static str) -> Self {
        let lab = Self { tag };
        for side in ["a", "b"] {
            let _ = Command::new("ip")
                .args(["netns", "del", &lab.name(side)])
                .output();
            ip(&format!("netns add {}", lab.name(side)));
        }
        let (a, b) = (lab.name("a"), lab.name("b"));
        ip(&format!(
            "-n {a} link add v0 type veth peer name v0 netns {b}"
        ));
        for (side, n) in [("a", 1), ("b", 2)] {
            lab.ip(side, "link set lo up");
            lab.ip(side, &format!("addr add 192.0.2.{n}/24 dev v0"));
            lab.ip(side, &format!("addr add 2001:db8::{n}/64 dev v0 nodad"));
            lab.ip(side, "link set v0 up");
        }
        lab
    }

    pub fn name(&self, side: &str) -> String {
        // Of this process: whatever runs beside it has namespaces of its own, and `scripts/clean` knows them.
        format!("fs-{}-dp-{}-{side}", std::process::id(), self.tag)
    }

    pub fn ip(&self, side: &str, arguments: &str) {
        ip(&format!("-n {} {arguments}", self.name(side)));
    }

    /// Runs on a thread inside; threads it starts stay inside.
    pub fn inside<T: Send>(&self, side: &str, run: impl FnOnce() -> T + Send) -> T {
        let path = format!("/run/netns/{}", self.name(side));
        thread::scope(|scope| {
            let thread = scope.spawn(move || {
                let file = File::open(path).expect("the namespace exists");
                setns(file, CloneFlags::CLONE_NEWNET).expect("this needs root");
                run()
            });
            thread.join().expect("the closure does not panic")
        })
    }

    pub fn start(
        &self,
        side: &str,
        offload: Offload,
    ) -> Result<(Engine, Receiver<ControlDatagram>), EngineError> {
        self.start_after(side, offload, || ())
    }

    /// Starts it on a thread that has done something before.
    pub fn start_after(
        &self,
        side: &str,
        offload: Offload,
        before: impl FnOnce() + Send,
    ) -> Result<(Engine, Receiver<ControlDatagram>), EngineError> {
        let settings = Settings {
            interface: DEVICE.into(),
            mtu: 1420,
            listen_port: PORT,
            fwmark: 0x2000,
            offload,
        };
        let (sender, receiver) = channel();
        let up = Box::new(move |datagram| drop(sender.send(datagram)));
        let engine = self.inside(side, move || {
            before();
            Engine::start(settings, up)
        })?;
        Ok((engine, receiver))
    }

    /// Gives the device 10.0.0.n and fd00::n, and routes to the other side.
    pub fn address(&self, side: &str) {
        let (own, other) = if side == "a" { (1, 2) } else { (2, 1) };
        self.ip(side, &format!("addr add 10.0.0.{own}/32 dev {DEVICE}"));
        self.ip(
            side,
            &format!("addr add fd00::{own}/128 dev {DEVICE} nodad"),
        );
        self.ip(side, &format!("link set {DEVICE} up"));
        self.ip(side, &format!("route add 10.0.0.{other}/32 dev {DEVICE}"));
        self.ip(side, &format!("route add fd00::{other}/128 dev {DEVICE}"));
    }

    /// Both engines, connected by a plan over this family.
    pub fn pair(&self, v6: bool, offload: Offload) -> Pair {
        self.pair_after(v6, offload, || ())
    }

    /// The same, each started on a thread that has done something before.
    pub fn pair_after(&self, v6: bool, offload: Offload, before: impl Fn() + Sync) -> Pair {
        let start = |side| self.start_after(side, offload, &before);
        let (a, control_a) = start("a").expect("a starts");
        let (b, control_b) = start("b").expect("b starts");
        self.address("a");
        self.address("b");
        let plan_a = plan(1, &[(2, peer(2, Some(outer("b", v6))))]);
        let plan_b = plan(2, &[(1, peer(1, None))]);
        a.apply(&plan_a);
        b.apply(&plan_b);
        Pair {
            a,
            b,
            plan_a,
            plan_b,
            control_a,
            control_b,
        }
    }

    /// Sends so many bytes from a to b by TCP; says whether they arrived as they were.
    pub fn transfer(&self, to: &str, len: usize) -> bool {
        let any = SocketAddr::new(to.parse::<IpAddr>().expect("an address"), 0);
        let listener = self.inside("b", || TcpListener::bind(any).expect("b listens"));
        let target = listener.local_addr().expect("an address");
        let stream = self.inside("a", || TcpStream::connect(target).expect("a connects"));
        let (received, _) = listener.accept().expect("b accepts");
        let stuck = received.try_clone().expect("another handle");
        let (over, limit) = channel::<()>();
        thread::scope(|scope| {
            // What trickles is stuck as well.
            scope.spawn(move || {
                if limit.recv_timeout(TRANSFER_MAX) == Err(RecvTimeoutError::Timeout) {
                    let _ = stuck.shutdown(Shutdown::Both);
                }
            });
            scope.spawn(move || {
                let mut stream = stream;
                for at in (0..len).step_by(65_536) {
                    let part: Vec<u8> = (at..len.min(at + 65_536)).map(byte).collect();
                    if stream.write_all(&part).is_err() {
                        return;
                    }
                }
            });
            // Both end with this, or the other threads would not.
            let (_over, mut received) = (over, received);
            let mut part = vec![0; 65_536];
            let mut at = 0;
            loop {
                match received.read(&mut part) {
                    Ok(0) => return at == len,
                    Ok(got) if (0..got).all(|n| part[n] == byte(at + n)) => at += got,
                    Ok(_) | Err(_) => return false,
                }
            }
        })
    }

    pub fn ping(&self, side: &str, arguments: &str) -> bool {
        let name = self.name(side);
        let arguments = format!("netns exec {name} ping -q -i 0.01 -W 2 {arguments}");
        let output = Command::new("ip").args(arguments.split(' ')).output();
        output.expect("ip runs").status.success()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for side in ["a", "b"] {
            let _ = Command::new("ip")
                .args(["netns", "del", &self.name(side)])
                .output();
        }
    }
}

pub struct Pair {
    pub a: Engine,
    pub b: Engine,
    pub plan_a: TunnelPlan,
    pub plan_b: TunnelPlan,
    pub control_a: Receiver<ControlDatagram>,
    pub control_b: Receiver<ControlDatagram>,
}

pub fn outer(side: &str, v6: bool) -> SocketAddr {
    let text = match (side, v6) {
        ("a", false) => "192.0.2.1",
        ("a", true) => "2001:db8::1",
        (_, false) => "192.0.2.2",
        (_, true) => "2001:db8::2",
    };
    SocketAddr::new(text.parse::<IpAddr>().expect("an address"), PORT)
}

pub fn secret(n: u8) -> WgSecret {
    WgSecret::from_bytes([n; 32])
}

pub fn peer(n: u8, endpoint: Option<SocketAddr>) -> TunnelPeer {
    TunnelPeer {
        endpoint,
        allowed_ips: [format!("10.0.0.{n}/32"), format!("fd00::{n}/128")]
            .iter()
            .map(|range| range.parse().expect("a prefix"))
            .collect(),
        ..TunnelPeer::default()
    }
}

pub fn plan(key: u8, peers: &[(u8, TunnelPeer)]) -> TunnelPlan {
    TunnelPlan {
        key: secret(key),
        previous_key: None,
        listen_port: PORT,
        fwmark: 0x2000,
        peers: peers
            .iter()
            .map(|(key, peer)| (secret(*key).public(), peer.clone()))
            .collect::<BTreeMap<_, _>>(),
        report_every: Duration::from_secs(5),
    }
}

pub fn counter(engine: &Engine, name: &str) -> u64 {
    let all = engine.counters();
    let found = all.iter().find(|(label, _)| *label == name);
    found.expect("a known counter").1
}

/// Waits for what another thread does, 5 s at most.
pub fn until(mut condition: impl FnMut() -> bool) -> bool {
    (0..500).any(|_| {
        let done = condition();
        if !done {
            thread::park_timeout(Duration::from_millis(10));
        }
        done
    })
}

/// A byte that depends on its place, with no period of a power of two.
fn byte(at: usize) -> u8 {
    (at % 251) as u8 ^ (at / 65_521) as u8
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output();
    let output = output.expect("ip runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {error}");
}
