//! The command line: verbs, flags and their help.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use mesh_types::IpNet;

mod agent;
mod cluster;

pub use agent::{AgentArgs, BackendChoice, KubernetesArgs, PodNetworkChoice};
pub use cluster::{ClusterArgs, ManifestsArgs, PreflightArgs, UninstallArgs};

/// Nodes in different regions share one flat, encrypted network.
#[derive(Debug, Parser)]
#[command(
    name = "farspan",
    version,
    subcommand_required = true,
    arg_required_else_help = true,
    max_term_width = 100,
    after_help = "\
Examples:
  sudo farspan init && sudo farspan up   make a mesh on this machine and start it
  sudo farspan invite                    print a one-time token for another machine
  sudo farspan join                      on the other machine: paste the token
  sudo farspan status                    this node and its peers
  sudo farspan ping paris-1              round trip inside the mesh, and the path it takes
  sudo farspan doctor paris-1            why it is reached as it is

Exit status: 0 fine, 1 failed, 2 wrong usage or configuration, 3 `doctor` or `status --check` found a fault.
Flags win over the environment (FARSPAN_*), that over the file, that over defaults."
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub verb: Verb,
}

/// Flags of every verb.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Configuration file [default: STATE_DIR/farspan.toml where it exists, else /etc/farspan/farspan.toml]
    #[arg(long, global = true, value_name = "FILE", env = "FARSPAN_CONFIG")]
    pub config: Option<PathBuf>,
    /// Control socket of the agent [default: /run/farspan/INTERFACE.sock]
    #[arg(long, global = true, value_name = "PATH", env = "FARSPAN_SOCKET")]
    pub socket: Option<PathBuf>,
    /// Folder of keys and state [default: /var/lib/farspan]
    #[arg(long, global = true, value_name = "DIR", env = "FARSPAN_STATE_DIR")]
    pub state_dir: Option<PathBuf>,
    /// Name of the overlay device [default: farspan0]
    #[arg(long, global = true, value_name = "NAME", env = "FARSPAN_INTERFACE")]
    pub interface: Option<String>,
    /// Form of log lines on standard error
    #[arg(
        long,
        global = true,
        value_name = "FORMAT",
        env = "FARSPAN_LOG_FORMAT",
        default_value = "text"
    )]
    pub log_format: LogFormat,
}

/// Form of log lines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Run the node agent in the foreground
    #[command(after_help = "\
Examples:
  sudo farspan agent                                   as the systemd unit runs it
  sudo farspan agent --dry-run                         print what it would do to this host
  sudo farspan agent --config b.toml --state-dir /var/lib/farspan-b --interface farspan1
                                                       a second agent on this machine
  sudo farspan agent --kubernetes --kubeconfig /etc/farspan/kubeconfig --pod-network nodes
                                                       on a host of a cluster, below its CNI
The log level is set by FARSPAN_LOG (error, warn, info, debug, trace; default info).
Signals: HUP reads the file again, TERM and INT stop the agent. With the kernel backend the tunnel goes on
without it; `farspan down` removes it. In a pod --kubernetes is the default.")]
    Agent(AgentArgs),
    /// Make a mesh on this machine: its authority key and its range
    #[command(after_help = "\
Examples:
  sudo farspan init && sudo farspan up
  sudo farspan init --range 10.99.0.0/16 --routes 10.244.1.0/24 --name paris-1")]
    Init(InitArgs),
    /// Start the agent, wait for its first plan and print the status
    #[command(after_help = "\
Where systemd runs, the unit farspan.service is enabled and started; else the agent runs detached
and logs to STATE_DIR/agent.log.")]
    Up(UpArgs),
    /// Remove everything farspan put on this host, and stay down
    #[command(after_help = "\
To stop the agent and keep the tunnel (kernel backend): systemctl stop farspan")]
    Down,
    /// Print a one-time token that lets one machine join
    #[command(after_help = "\
Examples:
  sudo farspan invite
  sudo farspan invite --routes 10.244.2.0/24 --lifetime 1h | ssh tokyo sudo farspan join")]
    Invite(InviteArgs),
    /// Join a mesh with a token, from a prompt or standard input
    #[command(after_help = "\
Examples:
  sudo farspan join                 paste the token at the prompt
  sudo farspan join < token.txt
A token given as an argument is visible to other users of this machine while the command runs.")]
    Join(JoinArgs),
    /// Let in what an inviter without the authority key has queued; without a name: list it
    #[command(after_help = "\
Examples:
  sudo farspan approve              who waits, and what each would carry
  sudo farspan approve tokyo-1      on the machine that holds the authority key")]
    Approve(ApproveArgs),
    /// Take a node's membership away
    #[command(after_help = "\
Example:
  sudo farspan revoke tokyo-1       on the machine that holds the authority key; all members drop it")]
    Revoke {
        /// The node's name or identity
        node: String,
    },
    /// Static peers, without restart
    #[command(subcommand, subcommand_required = true, arg_required_else_help = true)]
    Peer(PeerVerb),
    /// Keys
    #[command(subcommand, subcommand_required = true, arg_required_else_help = true)]
    Key(KeyVerb),
    /// This node and its peers
    #[command(after_help = "\
Examples:
  sudo farspan status
  sudo farspan status -o json | jq '.peers[] | {name, state, reason}'
  sudo farspan status --watch       live, until Ctrl-C
  sudo farspan status --check       exit status 3 when something is wrong")]
    Status(StatusArgs),
    /// What the network around this node is: NAT, STUN, IPv6, MTU, port mapping, relays
    #[command(after_help = "\
Examples:
  sudo farspan netcheck
  sudo farspan netcheck -o json | jq .nat.mapping")]
    Netcheck {
        /// Output format
        #[arg(short, long, value_name = "FORMAT", default_value = "table")]
        output: Output,
    },
    /// What is wrong here, or why a peer is reached as it is; exit status 3 when it found a fault
    #[command(after_help = "\
Examples:
  sudo farspan doctor               what is wrong with this node
  sudo farspan doctor tokyo-1       why it is direct or not, and what would make it so")]
    Doctor(DoctorArgs),
    /// Round trip inside the mesh, and the path it takes, as it changes
    #[command(after_help = "\
Examples:
  sudo farspan ping paris-1
  sudo farspan ping tokyo-1 -c 60   shows the moment at which a relayed path becomes direct
  sudo farspan ping 10.77.0.1 -c 1  exit status 1 when nothing comes back")]
    Ping(PingArgs),
    /// Throughput and latency over the mesh, between this node and a peer
    #[command(after_help = "\
Examples:
  sudo farspan bench paris-1
  sudo farspan bench paris-1 --time 10s --streams 4 -o json
Both agents take part; nothing else has to run. It takes twice the time given, and a little more.")]
    Bench(BenchArgs),
    /// Packets from and to a peer, for tcpdump and Wireshark
    #[command(after_help = "\
Examples:
  sudo farspan capture paris-1 | tcpdump -nr -
  sudo farspan capture paris-1 --outer --time 10s -w paris.pcap
                                    the encrypted packets and probes, at every address of the peer")]
    Capture(CaptureArgs),
    /// The mesh as this node sees it, as a graph
    #[command(after_help = "\
Examples:
  sudo farspan graph | dot -Tpng > mesh.png
  sudo farspan graph -o svg > mesh.svg
  ssh tokyo sudo farspan status -o json | sudo farspan graph -
                                    with the paths that tokyo sees")]
    Graph(GraphArgs),
    /// Everything that helps to find a fault, in one file without a secret in it
    #[command(after_help = "\
Examples:
  sudo farspan bugreport            writes farspan-bugreport-NAME.txt, mode 0600
  sudo farspan bugreport -w - | less
Keys and tokens are left out. Names and addresses of the mesh are in it: read it before you publish it.")]
    Bugreport(BugreportArgs),
    /// Check configuration files, or export a plain WireGuard configuration
    #[command(subcommand, subcommand_required = true, arg_required_else_help = true)]
    Config(ConfigVerb),
    /// Kubernetes: what the cluster's network is like, and what would be done; exit status 3 when something is in the way
    #[command(after_help = "\
Examples:
  farspan preflight                     with kubectl's credentials; changes nothing
  farspan preflight --pod-network existing -o json
  sudo farspan preflight --this-node --kubeconfig ~/.kube/config
                                        on a node: its CNI files, sysctls and MTU, too")]
    Preflight(PreflightArgs),
    /// Kubernetes: print what `kubectl apply -f -` needs
    #[command(after_help = "\
Examples:
  farspan manifests | kubectl apply -f -
  farspan manifests --pod-network own --api-server https://203.0.113.1:6443 \\
      --cluster-cidr 10.244.0.0/16 | kubectl apply -f -
Its last line, a comment, is the command that verifies it. `farspan uninstall` is the way back.")]
    Manifests(ManifestsArgs),
    /// Kubernetes: print the definitions of MeshPolicy and ExternalPeer
    #[command(after_help = "\
Example:
  farspan crds | kubectl apply -f -
`farspan manifests` has them too.")]
    Crds,
    /// Kubernetes: remove the agents, what they left on their nodes, and all objects
    #[command(after_help = "\
Examples:
  farspan uninstall --dry-run           what would be removed
  farspan uninstall                     keys stay on the nodes: a new installation is the same mesh
  farspan uninstall --purge             keys and what people wrote for farspan on Nodes, too
  sudo farspan uninstall --this-node    on one machine; the cluster's objects stay
Nodes are cleaned by pods of the agents' own image. Pods lose the network that farspan gave them.")]
    Uninstall(UninstallArgs),
    /// Set what the agent in a pod may only check: forwarding, and marks in reverse-path checks
    #[command(hide = true)]
    Sysctls,
    /// Print a completion script
    #[command(after_help = "\
Example:
  farspan completions bash > /etc/bash_completion.d/farspan")]
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Print a manual page, or write all of them
    #[command(after_help = "\
Examples:
  farspan man | man -l -
  farspan man status | man -l -
  sudo farspan man --dir /usr/local/share/man/man1")]
    Man(ManArgs),
    /// Print the version
    Version,
}

/// `farspan init`.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// Where overlay IPv4 addresses are taken from
    #[arg(long, value_name = "CIDR", default_value = mesh_types::consts::MESH_RANGE)]
    pub range: mesh_types::Ipv4Net,
    /// Ranges this node carries for others (pods, a LAN)
    #[arg(long, value_name = "CIDR,...", value_delimiter = ',')]
    pub routes: Vec<IpNet>,
    /// Memberships expire after this time unless renewed, e.g. 30d [default: never]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub lifetime: Option<Duration>,
    /// Where the authority key is kept [default: STATE_DIR/authority.key]
    #[arg(long, value_name = "FILE")]
    pub authority_key: Option<PathBuf>,
    /// Label of this node [default: the host's name]
    #[arg(long, env = "FARSPAN_NAME")]
    pub name: Option<String>,
    /// Make a new mesh although this node is in one already
    #[arg(long)]
    pub force: bool,
}

/// `farspan up`.
#[derive(Debug, Clone, Default, Args)]
pub struct UpArgs {
    #[command(flatten)]
    pub agent: AgentArgs,
    /// Run in the foreground, as `agent` does
    #[arg(long)]
    pub foreground: bool,
}

/// `farspan invite`.
#[derive(Debug, Args)]
pub struct InviteArgs {
    /// Ranges the joiner may carry for others [default: none]
    #[arg(long, value_name = "CIDR,...", value_delimiter = ',')]
    pub routes: Vec<IpNet>,
    /// How long the token is valid, e.g. 30m, 24h, 7d
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "24h")]
    pub lifetime: Duration,
}

/// `farspan join`.
#[derive(Debug, Args)]
pub struct JoinArgs {
    /// What `farspan invite` printed [default: prompt, or standard input]
    pub token: Option<String>,
    #[command(flatten)]
    pub agent: AgentArgs,
}

/// `farspan approve`.
#[derive(Debug, Args)]
pub struct ApproveArgs {
    /// The name or identity of who waits [default: list all who do]
    pub node: Option<String>,
    /// Do not let it in: forget the request
    #[arg(long, requires = "node")]
    pub refuse: bool,
    /// Output format of the list
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub output: Output,
}

/// `farspan peer`.
#[derive(Debug, Subcommand)]
pub enum PeerVerb {
    /// Add a peer to the file and to the running agent
    #[command(after_help = "\
Examples:
  sudo farspan peer add tokyo-1 --public-key KEY --allowed-ips 10.77.0.2/32,10.244.2.0/24 --endpoint 203.0.113.9:22514
  sudo farspan peer add phone --public-key KEY --allowed-ips 10.77.0.9/32 --plain")]
    Add(PeerAddArgs),
    /// Remove a peer from the file and from the running agent
    Remove {
        /// Its name or public key
        peer: String,
    },
    /// The peers in the file
    List {
        /// Output format
        #[arg(short, long, value_name = "FORMAT", default_value = "table")]
        output: Output,
    },
}

/// `farspan peer add`.
#[derive(Debug, Args)]
pub struct PeerAddArgs {
    /// Its label
    pub name: String,
    /// Its WireGuard key, as `wg` or `farspan key public` shows it
    #[arg(long, value_name = "KEY")]
    pub public_key: String,
    /// What it may carry: its overlay addresses and the ranges behind it
    #[arg(long, value_name = "CIDR,...", value_delimiter = ',', required = true)]
    pub allowed_ips: Vec<String>,
    /// Where it may be reached; any peer both sides reach introduces it otherwise
    #[arg(long = "endpoint", value_name = "HOST:PORT", value_delimiter = ',')]
    pub endpoints: Vec<String>,
    /// An ordinary WireGuard device: no probes
    #[arg(long)]
    pub plain: bool,
    /// A file with a preshared key
    #[arg(long, value_name = "FILE")]
    pub preshared_key_file: Option<PathBuf>,
    /// WireGuard's keepalive, seconds
    #[arg(long, value_name = "SECONDS")]
    pub persistent_keepalive: Option<u16>,
}

/// `farspan key`.
#[derive(Debug, Subcommand)]
pub enum KeyVerb {
    /// Print a new private key, as `wg genkey` does
    Gen,
    /// Print the public key of a private one on standard input, or of this node where there is none
    #[command(after_help = "\
Examples:
  farspan key gen | tee private.key | farspan key public
  sudo farspan key public < /dev/null       this node's own")]
    Public,
    /// Change this node's key without losing a packet
    Rotate {
        /// Although plain peers will lose this node until their files are changed
        #[arg(long)]
        force: bool,
    },
}

/// `farspan status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Output format
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub output: StatusOutput,
    /// Show it live on the terminal, until Ctrl-C
    #[arg(short, long, conflicts_with_all = ["check", "output"])]
    pub watch: bool,
    /// Exit with status 3 when a peer is down or a finding is a warning or an error
    #[arg(long)]
    pub check: bool,
}

/// Output format.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Table,
    /// For scripts; stable.
    Json,
    /// The same as YAML.
    Yaml,
}

/// Output format of `status`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum StatusOutput {
    /// For people.
    #[default]
    Table,
    /// All columns, however wide the terminal.
    Wide,
    /// For scripts; stable.
    Json,
    /// The same as YAML.
    Yaml,
}

/// `farspan doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Its name, overlay address or key [default: this node alone]
    pub peer: Option<String>,
    /// Output format
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub output: Output,
}

/// `farspan ping`.
#[derive(Debug, Args)]
pub struct PingArgs {
    /// Its name, overlay address or key
    pub peer: String,
    /// How many times
    #[arg(short, long, value_name = "N", default_value = "3", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub count: u32,
}

/// `farspan bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Its name, overlay address or key
    pub peer: String,
    /// How long each direction is measured, 1s to 30s
    #[arg(long, value_name = "TIME", value_parser = seconds_to_30, default_value = "3s")]
    pub time: Duration,
    /// TCP connections at a time
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u8).range(1..=8))]
    pub streams: u8,
    /// Output format
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub output: Output,
}

/// `farspan capture`.
#[derive(Debug, Args)]
pub struct CaptureArgs {
    /// Its name, overlay address or key
    pub peer: String,
    /// The packets outside the tunnel: encrypted ones and probes
    #[arg(long)]
    pub outer: bool,
    /// Write here instead of to standard output
    #[arg(short, long, value_name = "FILE")]
    pub write: Option<PathBuf>,
    /// Stop after so many packets
    #[arg(short, long, value_name = "N", default_value = "1000000", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: u64,
    /// Stop after this time
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "1h")]
    pub time: Duration,
    /// Stop after so many bytes of output, e.g. 100M, 1G
    #[arg(long, value_name = "BYTES", value_parser = bytes, default_value = "1G")]
    pub size: u64,
}

/// `farspan graph`.
#[derive(Debug, Args)]
pub struct GraphArgs {
    /// What `farspan status -o json` printed on other nodes; `-` is standard input
    #[arg(value_name = "FILE")]
    pub others: Vec<PathBuf>,
    /// Output format
    #[arg(short, long, value_name = "FORMAT", default_value = "dot")]
    pub output: GraphOutput,
}

/// Output format of `graph`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum GraphOutput {
    /// For Graphviz.
    #[default]
    Dot,
    /// A picture.
    Svg,
    /// For Markdown pages.
    Mermaid,
}

/// `farspan bugreport`.
#[derive(Debug, Args)]
pub struct BugreportArgs {
    /// Write here; `-` is standard output [default: farspan-bugreport-NAME.txt]
    #[arg(short, long, value_name = "FILE")]
    pub write: Option<PathBuf>,
}

/// `farspan man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// The page of a verb, e.g. `status` or `peer add` [default: of farspan itself]
    #[arg(conflicts_with = "dir")]
    pub verb: Vec<String>,
    /// Write all pages into this folder
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

/// `farspan config`.
#[derive(Debug, Subcommand)]
pub enum ConfigVerb {
    /// Check a farspan.toml or a wg-quick file; exit status 2 where it is wrong
    Check {
        /// Which [default: the one the agent reads]
        file: Option<PathBuf>,
    },
    /// Print a plain WireGuard configuration for a peer: a phone, a router
    #[command(after_help = "\
Examples:
  sudo farspan config export phone --generate --address 10.77.0.9 --endpoint 203.0.113.9:22514 --qr
                                     make a key, add the peer here, show the code to scan
  sudo farspan config export phone   a peer that is in the file; its private key stays with it")]
    Export(ExportArgs),
}

/// `farspan config export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Its name, or its public key
    pub peer: String,
    /// Make a key pair for it; a peer that is not in the file is added as a plain one
    #[arg(long)]
    pub generate: bool,
    /// Overlay address of a peer that is added
    #[arg(long, value_name = "IP", requires = "generate")]
    pub address: Option<IpAddr>,
    /// Where this node is reached from outside [default: the running agent's public address]
    #[arg(long, value_name = "HOST:PORT")]
    pub endpoint: Option<String>,
    /// Show it as a QR code for a phone's camera
    #[arg(long)]
    pub qr: bool,
}

/// Reads `30s`, `15m`, `24h`, `7d` or bare seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a time; write it like 30m, 24h or 7d");
    let (digits, unit) = match text.char_indices().next_back() {
        Some((at, 's')) => (&text[..at], 1),
        Some((at, 'm')) => (&text[..at], 60),
        Some((at, 'h')) => (&text[..at], 3600),
        Some((at, 'd')) => (&text[..at], 86_400),
        Some(_) => (text, 1),
        None => return Err(wrong()),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    let seconds = number.checked_mul(unit).ok_or_else(wrong)?;
    if seconds == 0 || seconds > 100 * 365 * 86_400 {
        return Err(wrong());
    }
    Ok(Duration::from_secs(seconds))
}

/// Reads a time from 1 s to 30 s.
fn seconds_to_30(text: &str) -> Result<Duration, String> {
    duration(text).and_then(|time| match time.as_secs() {
        1..=30 => Ok(time),
        _ => Err(format!("{text:?} is not a time from 1s to 30s")),
    })
}

/// Reads `4096`, `64K`, `100M`, `1G` or `1T`, in powers of 1024.
pub fn bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a size; write it like 500M or 1G");
    let (digits, shift) = match text.char_indices().next_back() {
        Some((at, 'K' | 'k')) => (&text[..at], 10),
        Some((at, 'M' | 'm')) => (&text[..at], 20),
        Some((at, 'G' | 'g')) => (&text[..at], 30),
        Some((at, 'T' | 't')) => (&text[..at], 40),
        Some(_) => (text, 0),
        None => return Err(wrong()),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    let size = number.checked_mul(1 << shift).ok_or_else(wrong)?;
    if size < 1024 {
        return Err(wrong());
    }
    Ok(size)
}

/// Clap's report of a wrong command line, given word by word, as one sentence.
pub fn usage_sentence(report: &str, words: impl Iterator<Item = OsString>) -> String {
    let lines = report.lines().map(str::trim);
    let mut sentence = lines
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"))
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join(" ");
    for (from, to) in [("error: ", ""), (" tip: ", "; ")] {
        sentence = sentence.replace(from, to);
    }
    if let Some((before, rest)) = sentence.split_once(" [possible values: ") {
        sentence = format!("{before}; possible values: {}", rest.replacen(']', "", 1));
    }
    let mut command = &Cli::command();
    let mut verb = command.get_name().to_owned();
    for word in words {
        if let Some(found) = command.find_subcommand(word) {
            command = found;
            verb = format!("{verb} {}", found.get_name());
        }
    }
    format!("{sentence}; see `{verb} --help`")
}

/// The first address of an IPv4 range, its network address left out.
pub fn first_address(range: mesh_types::Ipv4Net) -> Option<Ipv4Addr> {
    range.hosts().find(|ip| *ip != range.network())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn times_are_read_with_their_unit() {
        assert_eq!(duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("24h"), Ok(Duration::from_secs(86_400)));
        assert_eq!(duration("7d"), Ok(Duration::from_secs(604_800)));
        for wrong in [
            "",
            "h",
            "0s",
            "-1h",
            "1y",
            "99999999999999999999d",
            "1.5h",
            "é",
        ] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_are_read_with_their_unit() {
        assert_eq!(bytes("4096"), Ok(4096));
        assert_eq!(bytes("100M"), Ok(100 << 20));
        assert_eq!(bytes("1g"), Ok(1 << 30));
        for wrong in ["", "G", "-1K", "1", "99999999999T", "1.5G", "\u{e9}"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }
}
