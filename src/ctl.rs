//! The verbs: each asks the agent through its control socket, or changes files.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, anyhow};
use clap::CommandFactory as _;

use crate::cli::{AgentArgs, Cli, Global, KeyVerb, Output, Verb};
use crate::config::{self, Config, ConfigError};

mod approve;
mod bench;
mod bugreport;
mod capture;
mod client;
mod cluster;
mod config_verb;
mod crds;
mod doctor;
mod down;
mod graph;
mod init;
mod invite;
mod join;
mod key;
mod man;
mod manifests;
mod netcheck;
mod peer;
mod ping;
mod preflight;
mod revoke;
mod service;
mod status;
mod sysctls;
mod table;
mod uninstall;
mod up;
mod watch;
mod yaml;

use client::Client;

/// Runs a verb; the exit status is the contract of the command line.
pub fn run(cli: Cli) -> Result<ExitCode> {
    let Cli { global, verb } = cli;
    match verb {
        Verb::Agent(args) => crate::agent::run(&global, &args).map(|()| ExitCode::SUCCESS),
        Verb::Init(args) => init::run(&global, &args).map(|()| ExitCode::SUCCESS),
        Verb::Up(args) => up::run(&global, &args).map(|()| ExitCode::SUCCESS),
        Verb::Down => down::run(&global).map(|()| ExitCode::SUCCESS),
        Verb::Invite(args) => invite::run(&global, &args).map(|()| ExitCode::SUCCESS),
        Verb::Join(args) => join::run(&global, &args).map(|()| ExitCode::SUCCESS),
        Verb::Approve(args) => approve::run(&global, &args).map(|()| ExitCode::SUCCESS),
        Verb::Revoke { node } => revoke::run(&global, node).map(|()| ExitCode::SUCCESS),
        Verb::Peer(verb) => peer::run(&global, verb).map(|()| ExitCode::SUCCESS),
        Verb::Key(KeyVerb::Gen) => key::generate().map(|()| ExitCode::SUCCESS),
        Verb::Key(KeyVerb::Public) => key::public(&global).map(|()| ExitCode::SUCCESS),
        Verb::Key(KeyVerb::Rotate { force }) => {
            key::rotate(&global, force).map(|()| ExitCode::SUCCESS)
        }
        Verb::Status(args) => status::run(&global, &args),
        Verb::Netcheck { output } => netcheck::run(&global, output).map(|()| ExitCode::SUCCESS),
        Verb::Doctor(args) => doctor::run(&global, &args),
        Verb::Ping(args) => ping::run(&global, &args),
        Verb::Bench(args) => bench::run(&global, &args).map(|()| ExitCode::SUCCESS),
        Verb::Capture(args) => capture::run(&global, &args).map(|()| ExitCode::SUCCESS),
        Verb::Graph(args) => graph::run(&global, &args).map(|()| ExitCode::SUCCESS),
        Verb::Bugreport(args) => bugreport::run(&global, &args).map(|()| ExitCode::SUCCESS),
        Verb::Config(verb) => config_verb::run(&global, verb).map(|()| ExitCode::SUCCESS),
        Verb::Preflight(args) => preflight::run(&args),
        Verb::Manifests(args) => manifests::run(&global, &args).map(|()| ExitCode::SUCCESS),
        Verb::Crds => crds::run().map(|()| ExitCode::SUCCESS),
        Verb::Uninstall(args) => uninstall::run(&global, &args).map(|()| ExitCode::SUCCESS),
        Verb::Sysctls => sysctls::run().map(|()| ExitCode::SUCCESS),
        Verb::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "farspan", &mut script);
            print(&String::from_utf8_lossy(&script)).map(|()| ExitCode::SUCCESS)
        }
        Verb::Man(args) => man::run(&args).map(|()| ExitCode::SUCCESS),
        Verb::Version => {
            print(&format!("farspan {}\n", env!("CARGO_PKG_VERSION"))).map(|()| ExitCode::SUCCESS)
        }
    }
}

/// Writes an answer in the form that was asked for.
fn show(
    output: Output,
    answer: &impl serde::Serialize,
    table: impl FnOnce() -> String,
) -> Result<()> {
    match output {
        Output::Table => print(&table()),
        Output::Json => print(&format!("{}\n", serde_json::to_string_pretty(answer)?)),
        Output::Yaml => print(&yaml::yaml(answer)?),
    }
}

/// Writes to standard output, where names that others chose make no terminal do anything; a reader that went away (`| head`) is no error.
fn print(text: &str) -> Result<()> {
    use std::io::Write as _;
    let obeyed = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if obeyed(c) {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    let mut out = std::io::stdout().lock();
    match out.write_all(shown.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(anyhow!(
            "cannot write to standard output: {}",
            config::sentence(&error)
        )),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// The agent's socket: as told, else the file's, else the interface's.
fn socket(global: &Global) -> Result<PathBuf, ConfigError> {
    if let Some(socket) = &global.socket {
        return Ok(socket.clone());
    }
    if let Some(interface) = &global.interface {
        return Ok(config::socket_of(interface));
    }
    // A file that this user may not read must not hide a socket that he may open.
    match Config::load(global, &AgentArgs::default()) {
        Ok(config) => Ok(config.socket),
        Err(error) if global.config.is_some() => Err(error),
        Err(_) => Ok(config::socket_of(mesh_types::consts::INTERFACE)),
    }
}

/// The agent of these flags.
fn agent(global: &Global) -> Result<Client> {
    Ok(Client::new(socket(global)?))
}

/// For verbs that ask somebody else than the agent.
fn blocking_runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("Failed to start the runtime")
}

fn must_be_root(what: &str) -> Result<()> {
    if nix::unistd::geteuid().is_root() {
        Ok(())
    } else {
        Err(anyhow!("`farspan {what}` must be run as root; use sudo"))
    }
}
