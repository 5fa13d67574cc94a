//! `farspan join`: the token goes to the agent, which is started for it where none runs.

use std::io::{IsTerminal as _, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use mesh_types::token::Token;
use zeroize::Zeroizing;

use super::client::Client;
use super::{down, must_be_root, peer, print, service, status, up};
use crate::agent::state::write_atomic;
use crate::api;
use crate::cli::{Global, JoinArgs};
use crate::config::edit::Edit;
use crate::config::{self, Config, ConfigError, sentence};

/// A first path takes milliseconds where one is easy.
const FIRST_PATH_WITHIN: Duration = Duration::from_secs(3);
/// A person may have to be found who approves the request,
const APPROVED_WITHIN: Duration = Duration::from_secs(30 * 60);
/// and this often it is looked whether that has happened.
const APPROVED_AGAIN: Duration = Duration::from_secs(2);
const ASK_EVERY: Duration = Duration::from_millis(100);
/// As a shell reports SIGINT.
const STATUS_INTERRUPTED: i32 = 130;
/// Ctrl-C was pressed.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

pub fn run(global: &Global, args: &JoinArgs) -> Result<()> {
    let token = match &args.token {
        Some(token) => Zeroizing::new(token.clone()),
        None => read()?,
    };
    // Told before anything is started, and on any user's machine.
    token
        .parse::<Token>()
        .map_err(|error| ConfigError(error.to_string()))?;
    must_be_root("join")?;
    let config = Config::load_or_new(global, &args.agent)?;
    // The agent reads the file that was named, so it is made before the agent starts.
    let made = config::missing(global)?;
    if let Some(path) = made {
        write_atomic(path, b"", 0o644)
            .map_err(|error| anyhow!("cannot make {}: {error:#}", path.display()))?;
    }
    let joined = ask(global, args, &config, &token, made);
    while INTERRUPTED.load(Ordering::SeqCst) {
        // The other thread cleans up, tells of it and ends the process.
        std::thread::park();
    }
    if let (Err(_), Some(path)) = (&joined, made) {
        _ = std::fs::remove_file(path);
    }
    joined
}

/// Asks the agent, which is started for it where none runs.
fn ask(
    global: &Global,
    args: &JoinArgs,
    config: &Config,
    token: &str,
    made: Option<&Path>,
) -> Result<()> {
    let agent = Client::new(config.socket.clone());
    let started = if agent.alive() {
        None
    } else {
        undo_when_interrupted(config.clone(), made.map(Path::to_path_buf))?;
        Some(up::start(global, &args.agent, config)?)
    };
    let body = api::Token {
        token: token.trim().to_owned(),
        approval: false,
    };
    match approved(&agent, &body) {
        Ok(answer) => {
            for note in answer.notes {
                eprintln!("farspan: {note}");
            }
            print(&format!("{}\n\n", answer.message))?;
            if let Some(name) = &args.agent.name {
                // The next start is without this flag.
                let mut edit = Edit::open(&peer::file(global))?;
                edit.set("node", "name", name)?;
                edit.save()?;
            }
            print(&status::table(&first_path(&agent)?))
        }
        Err(error) => {
            undo(started.as_ref(), config);
            Err(error)
        }
    }
}

/// Asks until the answer is final: somebody may have to approve the request first.
fn approved(agent: &Client, body: &api::Token) -> Result<api::Done> {
    let mut left = APPROVED_WITHIN;
    let mut told = false;
    loop {
        let answer: api::Done = agent.post("/join", body)?;
        if !answer.pending {
            return Ok(answer);
        }
        if !told {
            eprintln!(
                "farspan: {}; waiting for it (Ctrl-C gives up)",
                answer.message
            );
            told = true;
        }
        let Some(rest) = left.checked_sub(APPROVED_AGAIN) else {
            bail!(
                "{}; nobody has approved it within {} minutes, so run `farspan join` with the same token again when somebody has",
                answer.message,
                APPROVED_WITHIN.as_secs() / 60
            );
        };
        left = rest;
        std::thread::sleep(APPROVED_AGAIN);
    }
}

/// The status once somebody is reached, or as it is after a little while.
fn first_path(agent: &Client) -> Result<api::Status> {
    let mut left = FIRST_PATH_WITHIN;
    loop {
        let status: api::Status = agent.get("/status")?;
        let reached = status.peers.iter().any(|peer| peer.state == "direct");
        let Some(rest) = left.checked_sub(ASK_EVERY).filter(|_| !reached) else {
            return Ok(status);
        };
        left = rest;
        std::thread::sleep(ASK_EVERY);
    }
}

/// Ctrl-C takes away an agent that was started only to join.
fn undo_when_interrupted(config: Config, made: Option<PathBuf>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("Failed to watch for signals")?;
    std::thread::spawn(move || {
        if runtime.block_on(tokio::signal::ctrl_c()).is_ok() {
            INTERRUPTED.store(true, Ordering::SeqCst);
            let started = if config.interface == mesh_types::consts::INTERFACE && service::active()
            {
                up::Started::Unit
            } else {
                up::Started::Detached
            };
            undo(Some(&started), &config);
            _ = made.map(std::fs::remove_file);
            eprintln!("farspan: interrupted; nothing was joined and no agent is left running");
            std::process::exit(STATUS_INTERRUPTED);
        }
    });
    Ok(())
}

/// What was started for the join goes with it.
fn undo(started: Option<&up::Started>, config: &Config) {
    let undone = match started {
        None => Ok(()),
        Some(up::Started::Detached) => down::remove(config).map(drop),
        Some(up::Started::Unit) => {
            down::remove(config).and_then(|_| service::systemctl(&["disable", "--now"]))
        }
    };
    if let Err(error) = undone {
        eprintln!("farspan: the agent that was started for this could not be stopped: {error:#}");
    }
}

fn read() -> Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::new());
    let stdin = std::io::stdin();
    let got = if stdin.is_terminal() {
        eprint!("Token: ");
        _ = std::io::stderr().flush();
        stdin.read_line(&mut text).map(drop)
    } else {
        stdin.take(8192).read_to_string(&mut text).map(drop)
    };
    got.map_err(|error| {
        anyhow!(
            "cannot read the token from standard input: {}",
            sentence(&error)
        )
    })?;
    if text.trim().is_empty() {
        return Err(ConfigError(
            "no token was given; paste what `farspan invite` printed on a machine of the mesh"
                .into(),
        )
        .into());
    }
    Ok(text)
}
