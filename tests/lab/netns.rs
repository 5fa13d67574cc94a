//! One network namespace, addressed by its name.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

/// Every frame, as `ETH_P_ALL` in network byte order.
const EVERY_FRAME: i32 = 0x0003_u16.to_be() as i32;

/// A named network namespace. It is deleted by the [`Lab`](super::Lab) that made it.
#[derive(Clone, Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes a namespace with its loopback up and without the delays of duplicate address detection.
    pub fn create(name: String) -> Self {
        run(Command::new("ip").args(["netns", "add", &name]));
        let namespace = Self { name };
        namespace.sysctl("net/ipv6/conf/all/accept_dad", "0");
        namespace.sysctl("net/ipv6/conf/default/accept_dad", "0");
        namespace.ip("link set lo up");
        namespace
    }

    /// The name under `/run/netns`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A command that will run inside. `ip netns exec` replaces itself, so the child's id is the program's.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    /// Runs `ip -batch`, one command a line.
    pub fn ip(&self, lines: &str) {
        feed(
            Command::new("ip").args(["-n", &self.name, "-batch", "-"]),
            lines,
        );
    }

    /// Applies an nftables script.
    pub fn nft(&self, script: &str) {
        feed(self.command("nft").args(["-f", "-"]), script);
    }

    /// Runs a program inside and returns what it printed; panics when it fails.
    pub fn output(&self, program: &str, arguments: &[&str]) -> String {
        let output = run(self.command(program).args(arguments));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Writes one sysctl, given by its path below `/proc/sys`.
    pub fn sysctl(&self, path: &str, value: &str) {
        let path = format!("/proc/sys/{path}");
        self.enter(|| {
            fs::write(&path, value)
                .unwrap_or_else(|error| panic!("write {value} to {path}: {error}"))
        });
    }

    /// Runs `work` on a thread of this namespace. Sockets opened there stay in it.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.join_thread();
                work()
            });
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A socket that sees every frame on every interface of the namespace; a read waits 50 ms at most.
    pub fn frames(&self) -> Socket {
        let socket = self.enter(|| {
            Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(EVERY_FRAME)))
                .expect("root may listen")
        });
        setsockopt(&socket, sockopt::RcvBufForce, &(32 << 20)).expect("root may enlarge a buffer");
        socket
            .set_read_timeout(Some(Duration::from_millis(50)))
            .expect("a timeout can be set");
        socket
    }

    /// Moves the calling thread into this namespace, for good.
    pub fn join_thread(&self) {
        let file = File::open(format!("/run/netns/{}", self.name)).expect("the namespace exists");
        setns(file, CloneFlags::CLONE_NEWNET).expect("root may enter a network namespace");
    }
}

/// Starts a program that writes what it says to the new file `log`.
pub fn start_logging(command: &mut Command, log: &Path) -> Child {
    let log = File::create(log).expect("a log can be made");
    let both = log.try_clone().expect("a file can be opened twice");
    command
        .stdin(Stdio::null())
        .stdout(both)
        .stderr(log)
        .spawn()
        .expect("ip is installed")
}

/// Runs a command to its end; panics with what it said when it fails.
pub fn run(command: &mut Command) -> Output {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("start {command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?} failed ({}): {}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Runs a command with `input` on its stdin; panics with what it said when it fails.
pub fn feed(command: &mut Command, input: &str) -> Output {
    let output = pipe(command, input);
    assert!(
        output.status.success(),
        "{command:?} failed ({}) on\n{input}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Runs a command with `input` on its stdin, whatever comes of it.
pub fn pipe(command: &mut Command, input: &str) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("start {command:?}: {error}"));
    // A child that ends before it has read everything is judged by its exit status.
    let _ = child
        .stdin
        .take()
        .expect("stdin is piped")
        .write_all(input.as_bytes());
    child
        .wait_with_output()
        .expect("a started child can be waited for")
}
