//! An engine in namespace a of a lab and a WireGuard of somebody else's in b: what is sent comes back, whatever its size.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use data_plane::Offload;

use crate::netns::{Lab, PORT, outer, peer, plan, secret, until};

/// Where set, every size is sent and not a choice: a quarter of an hour a program, hours in the virtual machine.
const EVERY_SIZE: &str = "FARSPAN_EVERY_SIZE";
/// The largest payload, bytes: 48 packets.
const LARGEST: usize = 65_000;
/// How long a datagram may be under way; what does not come back by then is lost.
const LOST: Duration = Duration::from_secs(2);
/// And how long a stream may stand still.
const STALLED: Duration = Duration::from_secs(20);

/// Whose WireGuard is met.
#[derive(Debug, Clone, Copy)]
pub enum Rival<'a> {
    /// A program in the manner of wireguard-go.
    Program(&'a Path),
    /// The running kernel's.
    Kernel,
}

impl Rival<'_> {
    /// Payloads of all sizes, by UDP and TCP, in both families, over both. Where that takes long each family over its own:
    /// the outer one changes no packet inside.
    pub fn meets_us(self) {
        for v6 in [false, true] {
            let lab = Lab::new("rivals");
            let (engine, _control) = lab.start("a", Offload::default()).expect("a starts");
            lab.address("a");
            let mut device = self.device(&lab, v6);
            engine.apply(&plan(1, &[(2, peer(2, Some(outer("b", v6))))]));
            for to in ["10.0.0.2", "fd00::2"] {
                let to: IpAddr = to.parse().expect("an address");
                let long = every_size() || matches!(self, Self::Kernel);
                if long && to.is_ipv6() != v6 {
                    continue;
                }
                device.await_that("answers", || lab.ping("a", &format!("-c 1 {to}")));
                let place = format!("{self:?}, outer IPv6 {v6}, to {to}");
                let start = clock();
                assert_eq!(udp(&lab, to), None, "UDP, {place}");
                let by_udp = start.elapsed();
                assert_eq!(tcp(&lab, to), None, "TCP, {place}");
                let by_tcp = start.elapsed() - by_udp;
                println!("{place}: UDP {by_udp:.1?}, TCP {by_tcp:.1?}");
            }
        }
    }

    /// Its device in namespace b, the peer of an engine in namespace a, which calls it over this family.
    fn device(self, lab: &Lab, v6: bool) -> Device {
        let name = format!("fsr{}", std::process::id());
        let process = match self {
            Self::Program(path) => Some(start(lab, path, &name)),
            Self::Kernel => {
                lab.ip("b", &format!("link add {name} type wireguard"));
                None
            }
        };
        let mut device = Device { name, process };
        device.configure(lab, v6);
        device
    }
}

/// A rival's device; one of the kernel ends with its namespace.
struct Device {
    name: String,
    process: Option<Child>,
}

fn start(lab: &Lab, program: &Path, name: &str) -> Child {
    let mut command = Command::new(program);
    if !program.ends_with("wireguard-go") {
        command.args(["--foreground", "--disable-drop-privileges"]);
    }
    command
        .arg(name)
        .env("WG_PROCESS_FOREGROUND", "1")
        .env("LOG_LEVEL", "error")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    lab.inside("b", || command.spawn().expect("the program starts"))
}

impl Device {
    /// Waits for it, for half a minute of a busy machine.
    fn await_that(&mut self, what: &str, mut condition: impl FnMut() -> bool) {
        if !(0..6).any(|_| until(&mut condition)) {
            let ended = self.process.as_mut().map(Child::try_wait);
            panic!(
                "{} never {what}; its process has ended: {ended:?}",
                self.name
            );
        }
    }

    fn configure(&mut self, lab: &Lab, v6: bool) {
        let name = self.name.clone();
        let key = std::env::temp_dir().join(format!("fs-{}-key", std::process::id()));
        std::fs::write(&key, secret(2).to_base64().as_bytes())
            .expect("a temporary file can be written");
        let arguments = format!(
            "set {name} private-key {} listen-port {PORT} peer {} endpoint {} allowed-ips 10.0.0.1/32,fd00::1/128",
            key.display(),
            secret(1).public(),
            outer("a", v6)
        );
        self.await_that("takes its settings", || {
            let mut wg = Command::new("wg");
            wg.args(arguments.split(' ')).stderr(Stdio::null());
            lab.inside("b", || wg.status().is_ok_and(|status| status.success()))
        });
        let _ = std::fs::remove_file(key);
        lab.ip("b", &format!("addr add 10.0.0.2/32 dev {name}"));
        lab.ip("b", &format!("addr add fd00::2/128 dev {name} nodad"));
        lab.ip("b", &format!("link set {name} mtu 1420 up"));
        lab.ip("b", &format!("route add 10.0.0.1/32 dev {name}"));
        lab.ip("b", &format!("route add fd00::1/128 dev {name}"));
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            let _ = process.kill();
            let _ = process.wait();
            let _ = std::fs::remove_file(format!("/var/run/wireguard/{}.sock", self.name));
        }
    }
}

fn every_size() -> bool {
    std::env::var_os(EVERY_SIZE).is_some()
}

/// Every size about the borders of one packet and of two, then some of all others, at odd distances.
fn sizes() -> Vec<usize> {
    if every_size() {
        return (1..=LARGEST).collect();
    }
    let dense = (1..=200).chain(1_300..=1_450).chain(2_700..=2_850);
    let wide = (201..LARGEST).step_by(397);
    dense.chain(wide).chain([LARGEST]).collect()
}

/// A byte that depends on its place and on the size of all.
fn byte(size: usize, at: usize) -> u8 {
    ((size ^ at) % 251) as u8
}

fn payload(size: usize) -> Vec<u8> {
    (0..size).map(|at| byte(size, at)).collect()
}

/// The first size whose datagram does not come back as it went; a datagram may be lost, but not three times.
fn udp(lab: &Lab, to: IpAddr) -> Option<usize> {
    let far = lab.inside("b", || UdpSocket::bind((to, 0)).expect("b binds"));
    let target = far.local_addr().expect("an address");
    let echo = thread::spawn(move || {
        let mut bytes = vec![0; 65_536];
        while let Ok((length, from)) = far.recv_from(&mut bytes) {
            if length == 0 {
                return;
            }
            let _ = far.send_to(&bytes[..length], from);
        }
    });
    let any: SocketAddr = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }
        .parse()
        .expect("an address");
    let near = lab.inside("a", || UdpSocket::bind(any).expect("a binds"));
    near.connect(target).expect("a connects");
    near.set_read_timeout(Some(LOST)).expect("a timeout");
    let mut answer = vec![0; 65_536];
    let mut comes_back = |size: usize| {
        let sent = payload(size);
        if near.send(&sent).is_err() {
            return false;
        }
        loop {
            match near.recv(&mut answer) {
                // What was taken for lost comes late.
                Ok(length) if length < size => {}
                Ok(length) => return answer[..length] == sent,
                Err(_) => return false,
            }
        }
    };
    let bad = sizes()
        .into_iter()
        .find(|size| !(0..3).any(|_| comes_back(*size)));
    near.send(&[]).expect("a sends");
    if bad.is_none() {
        echo.join().expect("the echo does not panic");
    }
    bad
}

/// The first size whose bytes do not come back by TCP as they went.
fn tcp(lab: &Lab, to: IpAddr) -> Option<usize> {
    let listener = lab.inside("b", || TcpListener::bind((to, 0)).expect("b listens"));
    let target = listener.local_addr().expect("an address");
    let mut near = lab.inside("a", || TcpStream::connect(target).expect("a connects"));
    let (mut far, _) = listener.accept().expect("b accepts");
    for stream in [&near, &far] {
        stream.set_nodelay(true).expect("an option");
        stream.set_read_timeout(Some(STALLED)).expect("a timeout");
    }
    thread::scope(|scope| {
        scope.spawn(move || {
            for size in sizes() {
                let mut bytes = vec![0; size];
                if far
                    .read_exact(&mut bytes)
                    .and_then(|()| far.write_all(&bytes))
                    .is_err()
                {
                    return;
                }
            }
        });
        let bad = sizes().into_iter().find(|size| {
            let (sent, mut answer) = (payload(*size), vec![0; *size]);
            let came = near
                .write_all(&sent)
                .and_then(|()| near.read_exact(&mut answer));
            came.is_err() || answer != sent
        });
        // Or the other side would wait for what does not come.
        let _ = near.shutdown(Shutdown::Both);
        bad
    })
}

#[expect(clippy::disallowed_methods, reason = "says how long it took")]
fn clock() -> Instant {
    Instant::now()
}
