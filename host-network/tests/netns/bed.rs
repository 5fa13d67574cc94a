//! A node between a pod of its own and the far end of its tunnel, each in a namespace: pairs of virtual Ethernet stand for
//! pod network and tunnel. Neighbours are known from the start, so the first packet passes or does not.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use host_network::Host;
use mesh_types::HostPlan;
use mesh_types::consts::INTERFACE;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Pid, gettid};

use crate::support::{carries, run, sh, takes};

/// Long enough for what does come, on whatever machine.
const PATIENCE: Duration = Duration::from_secs(10);
/// Long enough to tell that nothing comes.
const SILENCE: Duration = Duration::from_millis(300);

/// Addresses of the pod, and of the far end: a pod's there, and the node's.
pub const POD: [&str; 2] = ["10.201.1.5", "fd77:1::5"];
pub const FAR: [&str; 2] = ["10.201.2.9", "fd77:2::9"];
pub const FAR_NODE: [&str; 2] = ["10.77.0.2", "fd77::2"];
/// The node's own in the tunnel.
pub const NODE: [&str; 2] = ["10.77.0.1", "fd77::1"];

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace beside the test's own, held by a thread that does there what it is told.
pub struct Beside {
    pub tid: Pid,
    jobs: mpsc::Sender<Job>,
}

impl Beside {
    pub fn new() -> Self {
        let (jobs, told) = mpsc::channel::<Job>();
        let (send, tid) = mpsc::channel();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            run("ip link set lo up");
            send.send(gettid()).unwrap();
            for job in told {
                job();
            }
        });
        let tid = tid.recv().unwrap();
        Self { tid, jobs }
    }

    /// Does it there.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (send, result) = mpsc::channel();
        let job = move || {
            let _ = send.send(job());
        };
        self.jobs.send(Box::new(job)).unwrap();
        result.recv().expect("what was to be done there panicked")
    }

    /// Runs programs there; they must succeed.
    pub fn sh(&self, lines: &str) -> String {
        let lines = lines.to_owned();
        self.run(move || run(&lines))
    }

    /// Is a ping answered?
    pub fn pings(&self, to: &str) -> bool {
        let to = to.to_owned();
        self.run(move || pings(&to))
    }

    pub fn udp(&self, ip: &str, port: u16) -> UdpSocket {
        let ip: IpAddr = ip.parse().unwrap();
        self.run(move || UdpSocket::bind((ip, port)).unwrap())
    }

    pub fn listen(&self, ip: &str, port: u16) -> TcpListener {
        let ip: IpAddr = ip.parse().unwrap();
        self.run(move || TcpListener::bind((ip, port)).unwrap())
    }

    /// Connects, where anybody answers.
    pub fn connect(&self, to: SocketAddr) -> Option<TcpStream> {
        self.run(move || connect(to, PATIENCE))
    }

    /// Does nobody answer?
    pub fn connects_in_vain(&self, to: SocketAddr) -> bool {
        self.run(move || connect(to, SILENCE)).is_none()
    }
}

fn connect(to: SocketAddr, patience: Duration) -> Option<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, patience).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    Some(stream)
}

/// Is a ping from the namespace of the calling thread answered?
pub fn pings(to: &str) -> bool {
    sh(&format!("ping -n -c 1 -W 1 {to}")).status.success()
}

pub fn at(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), port)
}

/// Where a datagram comes from that must come.
#[track_caller]
pub fn hears(socket: &UdpSocket) -> SocketAddr {
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let received = socket.recv_from(&mut [0; 64]);
    received.expect("a datagram comes").1
}

/// Nothing comes.
pub fn is_silent(socket: &UdpSocket) -> bool {
    socket.set_read_timeout(Some(SILENCE)).unwrap();
    socket.recv_from(&mut [0; 64]).is_err()
}

/// A pair between here and there, up, with neighbours that know each other.
pub fn pair(beside: &Beside, here: &str, there: &str, ours: &[&str], theirs: &[&str]) {
    let (our_mac, their_mac) = ("02:00:00:00:00:01", "02:00:00:00:00:02");
    run(&format!(
        "ip link add {here} address {our_mac} type veth \
         peer name {there} address {their_mac} netns {}",
        beside.tid
    ));
    run(&format!("ip link set {here} up"));
    beside.sh(&format!("ip link set {there} up"));
    let there = there.to_owned();
    for ip in theirs {
        run(&format!(
            "ip neigh replace {ip} lladdr {their_mac} dev {here}"
        ));
        let nodad = if ip.contains(':') { "nodad" } else { "" };
        beside.sh(&format!("ip addr add {ip} dev {there} {nodad}"));
    }
    for ip in ours {
        beside.sh(&format!(
            "ip neigh replace {ip} lladdr {our_mac} dev {there}"
        ));
    }
    let theirs: Vec<String> = theirs.iter().map(|&ip| ip.to_owned()).collect();
    beside.run(move || {
        carries(&there);
        theirs.iter().for_each(|ip| takes(ip));
    });
    carries(here);
}

pub struct Bed {
    pub host: Host,
    pub pod: Beside,
    pub far: Beside,
}

impl Bed {
    /// The bed under this plan.
    pub async fn new(plan: &HostPlan) -> Self {
        run("echo 1 >/proc/sys/net/ipv4/ip_forward");
        run("echo 1 >/proc/sys/net/ipv6/conf/all/forwarding");
        let (pod, far) = (Beside::new(), Beside::new());
        pair(&pod, "pod0", "eth0", &["10.201.1.1", "fd77:1::1"], &POD);
        run("ip addr add 10.201.1.1/24 dev pod0; ip addr add fd77:1::1/64 dev pod0 nodad");
        pod.sh("ip route add default via 10.201.1.1 dev eth0 onlink");
        pod.sh("ip route add default via fd77:1::1 dev eth0 onlink");
        let theirs = [FAR[0], FAR_NODE[0], FAR[1], FAR_NODE[1]];
        pair(&far, INTERFACE, "eth0", &NODE, &theirs);
        for (node, source) in NODE.into_iter().zip(FAR) {
            far.sh(&format!(
                "ip route add default via {node} dev eth0 onlink src {source}"
            ));
        }
        let mut host = Host::new(INTERFACE).await.unwrap();
        assert_eq!(host.converge(plan).await.failures, Vec::<String>::new());
        NODE.into_iter().chain(["fd77:1::1"]).for_each(takes);
        Self { host, pod, far }
    }

    /// Makes another plan so.
    pub async fn converge(&mut self, plan: &HostPlan) {
        let applied = self.host.converge(plan).await;
        assert_eq!(applied.failures, Vec::<String>::new());
    }
}
