//! The engine and other WireGuard programs understand each other: what is sent comes back, whatever its size. Needs root
//! and programs: run by `scripts/test root`.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use data_plane::Offload;
use netns::{Lab, PORT, outer, peer, plan, secret, until};

#[expect(dead_code, reason = "the lab serves other tests too")]
mod netns;

/// Paths of wireguard-go and its like, separated by colons; set by `scripts/test`.
const PROGRAMS: &str = "FARSPAN_PLAIN_WIREGUARDS";
/// Where set, every size is sent and not a choice: an hour.
const EVERY_SIZE: &str = "FARSPAN_EVERY_SIZE";
/// The largest payload, bytes: 48 packets.
const LARGEST: usize = 65_000;

/// Another program's device in namespace b of a lab.
struct Device {
    name: String,
    process: Child,
}

impl Device {
    /// The peer of an engine in namespace a, which calls it over this family.
    fn start(lab: &Lab, program: &Path, v6: bool) -> Self {
        let name = format!("fsr{}", std::process::id());
        let mut command = Command::new(program);
        if !program.ends_with("wireguard-go") {
            command.args(["--foreground", "--disable-drop-privileges"]);
        }
        command
            .arg(&name)
            .env("WG_PROCESS_FOREGROUND", "1")
            .env("LOG_LEVEL", "error")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let process = lab.inside("b", || command.spawn().expect("the program starts"));
        let device = Self { name, process };
        let key = std::env::temp_dir().join(format!("fs-{}-key", std::process::id()));
        std::fs::write(&key, secret(2).to_base64().as_bytes())
            .expect("a temporary file can be written");
        let name = &device.name;
        let arguments = format!(
            "set {name} private-key {} listen-port {PORT} peer {} endpoint {} allowed-ips 10.0.0.1/32,fd00::1/128",
            key.display(),
            secret(1).public(),
            outer("a", v6)
        );
        let configured = until(|| {
            let mut wg = Command::new("wg");
            wg.args(arguments.split(' ')).stderr(Stdio::null());
            lab.inside("b", || wg.status().is_ok_and(|status| status.success()))
        });
        let _ = std::fs::remove_file(key);
        assert!(configured, "{program:?} is configured by wg {arguments}");
        lab.ip("b", &format!("addr add 10.0.0.2/32 dev {name}"));
        lab.ip("b", &format!("addr add fd00::2/128 dev {name} nodad"));
        lab.ip("b", &format!("link set {name} mtu 1420 up"));
        lab.ip("b", &format!("route add 10.0.0.1/32 dev {name}"));
        lab.ip("b", &format!("route add fd00::1/128 dev {name}"));
        device
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_file(format!("/var/run/wireguard/{}.sock", self.name));
    }
}

/// Every size about the borders of one packet and of two, then some of all others, at odd distances.
fn sizes() -> Vec<usize> {
    if std::env::var_os(EVERY_SIZE).is_some() {
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
    near.set_read_timeout(Some(Duration::from_secs(1)))
        .expect("a timeout");
    let mut answer = vec![0; 65_536];
    let mut comes_back = |size: usize| {
        let sent = payload(size);
        near.send(&sent).is_ok()
            && near
                .recv(&mut answer)
                .is_ok_and(|length| answer[..length] == sent)
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
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .expect("a timeout");
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
        let _ = near.shutdown(std::net::Shutdown::Both);
        bad
    })
}

#[test]
fn payloads_of_all_sizes_come_back_from_other_programs_in_both_families() {
    let programs = std::env::var(PROGRAMS).unwrap_or_else(|_| {
        panic!(
            "{PROGRAMS} names no programs: run this test by scripts/test root, which builds them"
        )
    });
    let paths = std::env::split_paths(&programs).filter(|path| !path.as_os_str().is_empty());
    for program in paths {
        for v6 in [false, true] {
            let lab = Lab::new("rivals");
            let (engine, _control) = lab.start("a", Offload::default()).expect("a starts");
            lab.address("a");
            let device = Device::start(&lab, &program, v6);
            engine.apply(&plan(1, &[(2, peer(2, Some(outer("b", v6))))]));
            for to in ["10.0.0.2", "fd00::2"] {
                let to: IpAddr = to.parse().expect("an address");
                assert!(
                    until(|| lab.ping("a", &format!("-c 1 {to}"))),
                    "{program:?} answers"
                );
                let place = format!("{program:?}, outer IPv6 {v6}, to {to}");
                assert_eq!(udp(&lab, to), None, "UDP, {place}");
                assert_eq!(tcp(&lab, to), None, "TCP, {place}");
            }
            drop(device);
        }
    }
}
