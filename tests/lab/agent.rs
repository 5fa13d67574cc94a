//! A farspan node: a machine, its files, its pod, and the real agent as a child process.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::internet::{Host, Lab};
use super::netns::{Namespace, pipe, run, start_logging};
use super::wait::wait_until;

/// The binary under test.
pub const FARSPAN: &str = env!("CARGO_BIN_EXE_farspan");
/// Time for anything that has no figure of its own; generous, for machines that are busy.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A machine with farspan on it. Dropping it ends its agent.
pub struct Node {
    /// The machine.
    pub host: Host,
    /// The pod behind it, where there is one.
    pub pod: Option<Pod>,
    directory: PathBuf,
    environment: Vec<(&'static str, String)>,
    agent: Option<Child>,
    starts: u32,
}

/// A namespace behind a node with a range of its own and a default route through the node.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Where it runs.
    pub namespace: Namespace,
    /// Its IPv4 address.
    pub ipv4: Ipv4Addr,
    /// Its IPv6 address.
    pub ipv6: Ipv6Addr,
    /// The ranges its node carries for it.
    pub ranges: [String; 2],
}

impl Node {
    /// Puts farspan on a machine, with the backend of these tests.
    pub fn new(lab: &Lab, host: Host) -> Self {
        let directory = lab.directory().join(&host.name);
        fs::create_dir_all(&directory).expect("the lab's directory is writable");
        let path = |file: &str| directory.join(file).display().to_string();
        let environment = vec![
            ("FARSPAN_CONFIG", path("farspan.toml")),
            ("FARSPAN_STATE_DIR", path("state")),
            ("FARSPAN_SOCKET", path("control.sock")),
            ("FARSPAN_INTERFACE", "farspan0".to_owned()),
            ("FARSPAN_NAME", host.name.clone()),
            ("FARSPAN_BACKEND", crate::BACKEND.to_owned()),
            (
                "FARSPAN_LOG",
                std::env::var("FARSPAN_LOG").unwrap_or_else(|_| "debug".to_owned()),
            ),
            ("NO_COLOR", "1".to_owned()),
        ];
        let node = Self {
            host,
            pod: None,
            directory,
            environment,
            agent: None,
            starts: 0,
        };
        node.write_config("");
        node
    }

    /// Puts a pod with the ranges `10.244.N.0/24` and `fd10:244:N::/64` behind the node.
    pub fn with_pod(mut self, lab: &Lab, number: u8) -> Self {
        let namespace = lab.namespace(&format!("{}-pod", self.host.name));
        let node = &self.host.namespace;
        node.sysctl("net/ipv4/ip_forward", "1");
        node.sysctl("net/ipv6/conf/all/forwarding", "1");
        node.ip(&format!(
            "link add pod0 type veth peer name eth0 netns {}\nlink set pod0 up\n\
             addr add 10.244.{number}.1/24 dev pod0\naddr add fd10:244:{number}::1/64 dev pod0 nodad",
            namespace.name()
        ));
        namespace.ip(&format!(
            "link set eth0 up\naddr add 10.244.{number}.2/24 dev eth0\naddr add fd10:244:{number}::2/64 dev eth0 nodad\n\
             route add default via 10.244.{number}.1\nroute add default via fd10:244:{number}::1"
        ));
        let group = u16::from_str_radix(&number.to_string(), 16)
            .expect("decimal digits are hexadecimal ones");
        let ranges = [
            format!("10.244.{number}.0/24"),
            format!("fd10:244:{number}::/64"),
        ];
        self.write_config(&format!("[node]\nroutes = {ranges:?}\n"));
        let ipv4 = Ipv4Addr::new(10, 244, number, 2);
        let ipv6 = Ipv6Addr::new(0xfd10, 0x244, group, 0, 0, 0, 0, 2);
        self.pod = Some(Pod {
            namespace,
            ipv4,
            ipv6,
            ranges,
        });
        self
    }

    /// Its pod. Panics when it was made without one.
    pub fn pod(&self) -> &Pod {
        self.pod.as_ref().expect("this node was made with a pod")
    }

    /// The label under which others know it.
    pub fn name(&self) -> &str {
        &self.host.name
    }

    /// A file of this node.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Writes farspan.toml.
    pub fn write_config(&self, text: &str) {
        fs::write(self.file("farspan.toml"), text).expect("the node's directory is writable");
    }

    /// Starts the agent without waiting for anything.
    pub fn start(&mut self) {
        self.start_by(&[]);
    }

    /// Starts the agent by a wrapper such as `faketime +1y`.
    pub fn start_by(&mut self, wrapper: &[&str]) {
        self.start_as(wrapper, &[]);
    }

    /// Starts the agent with further flags.
    pub fn start_with(&mut self, flags: &[&str]) {
        self.start_as(&[], flags);
    }

    fn start_as(&mut self, wrapper: &[&str], flags: &[&str]) {
        assert!(self.agent.is_none(), "{} runs already", self.name());
        self.starts += 1;
        let log = self.file(&format!("agent-{}.log", self.starts));
        let mut words = wrapper.to_vec();
        words.extend([FARSPAN, "agent"]);
        words.extend(flags);
        let mut command = self.host.namespace.command(words[0]);
        command
            .args(&words[1..])
            .envs(self.environment.iter().map(|(name, value)| (name, value)));
        self.agent = Some(start_logging(&mut command, &log));
    }

    /// Starts the agent and waits until it answers.
    pub fn up(&mut self) {
        self.start();
        self.wait_answering();
    }

    /// Waits until the agent answers on its control socket.
    pub fn wait_answering(&self) {
        wait_until(
            &format!("the agent of {} answers", self.name()),
            PATIENCE,
            || self.status(),
        );
    }

    /// Ends the agent with SIGKILL.
    pub fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.wait_ended();
    }

    /// Ends the agent with SIGTERM and returns whether it ended well.
    pub fn stop(&mut self) -> bool {
        self.signal(Signal::SIGTERM);
        self.wait_ended()
    }

    /// Sends the agent a signal.
    pub fn signal(&self, signal: Signal) {
        if let Some(child) = &self.agent {
            kill(Pid::from_raw(child.id() as i32), signal).expect("an own child can be signalled");
        }
    }

    /// Waits for the agent's end and returns whether its exit status was 0.
    pub fn wait_ended(&mut self) -> bool {
        let name = self.name().to_owned();
        let Some(mut child) = self.agent.take() else {
            return true;
        };
        let ended = || {
            child
                .try_wait()
                .map_err(|error| error.to_string())?
                .ok_or_else(|| "it runs".to_owned())
        };
        let (status, _) = wait_until(&format!("the agent of {name} ends"), PATIENCE, ended);
        status.success()
    }

    /// The processor time its agent has taken, in the kernel's ticks of 10 ms.
    pub fn cpu_time(&self) -> Duration {
        let child = self.agent.as_ref().expect("the agent runs");
        let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).expect("it runs");
        // The name before it may contain anything.
        let (_, rest) = stat.rsplit_once(')').expect("a name in brackets");
        let ticks = rest.split_whitespace().skip(11).take(2);
        let ticks: u64 = ticks.filter_map(|field| field.parse::<u64>().ok()).sum();
        Duration::from_millis(ticks * 10)
    }

    /// Runs a verb of the CLI with `input` on its stdin.
    pub fn verb(&self, arguments: &[&str], input: &str) -> Output {
        pipe(&mut self.command(arguments), input)
    }

    /// Runs a verb that must succeed, and returns what it printed.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = run(self.command(arguments).stdin(Stdio::null()));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// What `status -o json` prints, or why the agent does not tell.
    pub fn status(&self) -> Result<Value, String> {
        self.ask("/status")
    }

    /// What the agent answers to `GET path`. No program is started for it: watching closely costs little.
    pub fn ask(&self, path: &str) -> Result<Value, String> {
        let body = self.get(path)?;
        serde_json::from_str(&body).map_err(|error| format!("no JSON: {error}"))
    }

    /// How often the agent has counted an event since its start.
    pub fn counted(&self, event: &str) -> Result<u64, String> {
        let metrics = self.get("/metrics")?;
        let name = format!("farspan_events_total{{event=\"{event}\"}} ");
        let line = metrics.lines().find_map(|line| line.strip_prefix(&name));
        Ok(line.and_then(|count| count.parse().ok()).unwrap_or(0))
    }

    /// The value of a metric, named with its labels; `None` where there is no such line.
    pub fn metric(&self, name: &str) -> Result<Option<f64>, String> {
        let metrics = self.get("/metrics")?;
        let lines = metrics.lines().filter_map(|line| line.rsplit_once(' '));
        let value = lines
            .filter(|(named, _)| *named == name)
            .find_map(|(_, value)| value.parse().ok());
        Ok(value)
    }

    fn get(&self, path: &str) -> Result<String, String> {
        let mut stream =
            UnixStream::connect(self.file("control.sock")).map_err(|error| error.to_string())?;
        stream
            .set_read_timeout(Some(PATIENCE))
            .map_err(|error| error.to_string())?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: farspan\r\nConnection: close\r\n\r\n");
        stream
            .write_all(request.as_bytes())
            .map_err(|error| error.to_string())?;
        let mut answer = String::new();
        stream
            .read_to_string(&mut answer)
            .map_err(|error| error.to_string())?;
        let (head, body) = answer
            .split_once("\r\n\r\n")
            .ok_or_else(|| format!("no HTTP: {answer}"))?;
        if !head.starts_with("HTTP/1.1 200") {
            return Err(format!("{head}: {body}"));
        }
        Ok(body.to_owned())
    }

    /// The entry of one peer in `status`.
    pub fn peer(&self, name: &str) -> Result<Value, String> {
        let status = self.status()?;
        let peers = status["peers"].as_array().cloned().unwrap_or_default();
        let known: Vec<_> = peers.iter().map(|peer| peer["name"].to_string()).collect();
        let found = peers.into_iter().find(|peer| peer["name"] == name);
        found.ok_or_else(|| format!("no peer {name} among {known:?}"))
    }

    /// Waits until a peer is in `state` and returns its entry.
    pub fn wait_peer(&self, name: &str, state: &str, deadline: Duration) -> (Value, Duration) {
        wait_until(
            &format!("{} sees {name} as {state}", self.name()),
            deadline,
            || {
                let peer = self.peer(name)?;
                if peer["state"] == state {
                    Ok(peer)
                } else {
                    Err(format!("{}: {}", peer["state"], peer["reason"]))
                }
            },
        )
    }

    /// Waits until a peer is reached directly and returns its entry.
    pub fn wait_direct(&self, name: &str, deadline: Duration) -> (Value, Duration) {
        self.wait_peer(name, "direct", deadline)
    }

    /// Waits until `status` shows a finding.
    pub fn wait_finding(&self, code: &str, deadline: Duration) -> Value {
        let check = || {
            let status = self.status()?;
            let findings = status["findings"].as_array().cloned().unwrap_or_default();
            let found = findings
                .iter()
                .find(|finding| finding["code"] == code)
                .cloned();
            found.ok_or_else(|| format!("{findings:?}"))
        };
        wait_until(&format!("{} finds {code}", self.name()), deadline, check).0
    }

    /// The overlay addresses of this node: IPv4 where it has one, IPv6 where it has one.
    pub fn overlay(&self) -> Vec<IpAddr> {
        let status = self
            .status()
            .unwrap_or_else(|error| panic!("status of {}: {error}", self.name()));
        let addresses = status["node"]["addresses"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let text = addresses
            .iter()
            .filter_map(|address| address.as_str()?.split('/').next()?.parse().ok());
        text.collect()
    }

    /// Joins the mesh of `inviter` by a fresh token; the agents of both run.
    pub fn join(&self, inviter: &Self) {
        let routes = self.pod.as_ref().map(|pod| pod.ranges.join(","));
        let mut invite = vec!["invite"];
        invite.extend(routes.iter().flat_map(|routes| ["--routes", routes]));
        let token = inviter.ok(&invite);
        let output = self.verb(&["join"], &token);
        assert!(
            output.status.success(),
            "{} could not join: {}{}",
            self.name(),
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// Everything the kernel holds in this namespace that an agent could have put there.
    pub fn kernel_state(&self) -> String {
        let mut state = String::new();
        for arguments in [
            &["-d", "link"][..],
            &["addr"],
            &["-4", "rule"],
            &["-6", "rule"],
            &["-4", "route", "show", "table", "all"],
            &["-6", "route", "show", "table", "all"],
        ] {
            state.push_str(&self.host.namespace.output("ip", arguments));
        }
        state.push_str(&self.host.namespace.output("nft", &["list", "ruleset"]));
        state
    }

    /// A verb that is not started yet.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.program(FARSPAN);
        command.args(arguments);
        command
    }

    /// Any program on this machine, in the environment of its agent.
    pub fn program(&self, program: &str) -> Command {
        let mut command = self.host.namespace.command(program);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if thread::panicking() {
            if let Ok(status) = self.status() {
                eprintln!("--- status of {} ---\n{status:#}", self.name());
            }
            let log = self.file(&format!("agent-{}.log", self.starts));
            eprintln!(
                "--- end of the log of {} ---\n{}",
                self.name(),
                tail(&log, 40)
            );
        }
        if let Some(mut child) = self.agent.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The last `lines` of a file.
pub fn tail(file: &Path, lines: usize) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    let skip = text.lines().count().saturating_sub(lines);
    text.lines().skip(skip).collect::<Vec<_>>().join("\n")
}

/// The time `work` took.
pub fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let value = work();
    (value, start.elapsed())
}
