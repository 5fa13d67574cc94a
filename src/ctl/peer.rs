//! `farspan peer`: edits the file, then lets the agent read it again.

use std::path::PathBuf;
use std::str::FromStr as _;

use anyhow::{Result, anyhow, bail};
use mesh_types::{ConfigPeer, WgKey};
use serde_json::json;

use super::{agent, print, show, table::columns};
use crate::api;
use crate::cli::{AgentArgs, Global, Output, PeerAddArgs, PeerVerb};
use crate::config::edit::{Edit, NewPeer};
use crate::config::{self, Config, ConfigError};

pub fn run(global: &Global, verb: PeerVerb) -> Result<()> {
    match verb {
        PeerVerb::Add(args) => add(global, args),
        PeerVerb::Remove { peer } => remove(global, &peer),
        PeerVerb::List { output } => list(global, output),
    }
}

/// The file that the agent reads, or would.
pub fn file(global: &Global) -> PathBuf {
    config::file_to_read(global).unwrap_or_else(|| config::file_to_write(global))
}

fn add(global: &Global, args: PeerAddArgs) -> Result<()> {
    let PeerAddArgs {
        name,
        public_key,
        allowed_ips,
        endpoints,
        plain,
        preshared_key_file,
        persistent_keepalive,
    } = args;
    let key = WgKey::from_str(&public_key)
        .map_err(|error| ConfigError(format!("--public-key: {error}")))?;
    let preshared_key_file = preshared_key_file.map(std::path::absolute).transpose()?;
    let peer = NewPeer {
        name: name.clone(),
        key: Some(key),
        allowed_ips,
        endpoints,
        plain,
        preshared_key_file,
        persistent_keepalive,
    };
    insert(global, &peer)?;
    reload(global, &format!("peer {name} was added"))
}

/// Adds a peer to the file, once the whole file with it is valid.
pub fn insert(global: &Global, peer: &NewPeer) -> Result<()> {
    let path = file(global);
    let mut edit = Edit::open(&path)?;
    edit.add_peer(peer)?;
    Config::parse(&edit.text(), Some(&path), global, &AgentArgs::default())
        .map_err(|error| ConfigError(format!("cannot add peer {}: {error}", peer.name)))?;
    edit.save()
}

fn remove(global: &Global, peer: &str) -> Result<()> {
    let path = file(global);
    let mut edit = Edit::open(&path)?;
    if !edit.remove_peer(peer)? {
        bail!(
            "{} has no peer with the name or key {peer:?}; see `farspan peer list` (a member is taken away with `farspan revoke`)",
            path.display()
        );
    }
    edit.save()?;
    reload(global, &format!("peer {peer} was removed"))
}

/// Tells the agent, where one runs.
pub fn reload(global: &Global, done: &str) -> Result<()> {
    let agent = agent(global)?;
    if !agent.alive() {
        return print(&format!(
            "{done}; no agent runs, so this counts from the next `farspan up`\n"
        ));
    }
    let answer: api::Done = agent
        .post("/reload", &json!({}))
        .map_err(|error| anyhow!("{done} in the file, but the agent did not take it: {error}"))?;
    for note in answer.notes {
        eprintln!("farspan: {note}");
    }
    print(&format!("{done}\n"))
}

fn list(global: &Global, output: Output) -> Result<()> {
    let config = Config::load(global, &AgentArgs::default())?;
    let join = |items: Vec<String>| items.join(", ");
    if output != Output::Table {
        let peers: Vec<_> = config
            .peers
            .iter()
            .map(|peer| {
                json!({
                    "name": peer.name,
                    "public_key": peer.key.to_string(),
                    "endpoints": endpoints(&config, peer),
                    "allowed_ips": peer.allowed_ips,
                    "plain": peer.plain,
                })
            })
            .collect();
        return show(output, &peers, String::new);
    }
    if config.peers.is_empty() {
        return print(
            "There are no static peers; members of the mesh are shown by `farspan status`.\n",
        );
    }
    let rows: Vec<_> = config
        .peers
        .iter()
        .map(|peer| {
            vec![
                peer.name.clone().unwrap_or_else(|| "-".into()),
                peer.key.to_string(),
                if peer.plain {
                    "plain".into()
                } else {
                    "farspan".into()
                },
                join(peer.allowed_ips.iter().map(ToString::to_string).collect()),
                join(endpoints(&config, peer)),
            ]
        })
        .collect();
    print(&columns(
        &["NAME", "PUBLIC KEY", "KIND", "ALLOWED IPS", "ENDPOINTS"],
        &rows,
    ))
}

/// Addresses and names, as the file gives them.
fn endpoints(config: &Config, peer: &ConfigPeer) -> Vec<String> {
    let names = config.names.get(&peer.key).into_iter().flatten().cloned();
    let addresses = peer.endpoints.iter().map(ToString::to_string);
    addresses.chain(names).collect()
}
