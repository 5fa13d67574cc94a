//! `farspan config`.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, anyhow, bail};
use mesh_types::{IpNet, PresharedKey, WgKey, WgSecret, consts};
use qrcode::QrCode;
use qrcode::render::unicode::Dense1x2;
use zeroize::Zeroizing;

use super::{agent, peer, print};
use crate::agent::state::{random, read_key};
use crate::api;
use crate::cli::{AgentArgs, ConfigVerb, ExportArgs, Global};
use crate::config::edit::{Edit, NewPeer};
use crate::config::value::Endpoint;
use crate::config::wgquick::{self, Export};
use crate::config::{self, Config, ConfigError};

pub fn run(global: &Global, verb: ConfigVerb) -> Result<()> {
    match verb {
        ConfigVerb::Check { file } => check(global, file),
        ConfigVerb::Export(args) => export(global, &args),
    }
}

fn check(global: &Global, file: Option<std::path::PathBuf>) -> Result<()> {
    let file = file.or_else(|| config::file_to_read(global));
    let Some(file) = file else {
        return print(&format!(
            "There is no {}: every setting has its default.\n",
            config::DEFAULT_FILE
        ));
    };
    let text = config::read(&file)?;
    if wgquick::looks_like(&file, &text) {
        let peers = wgquick::check(&text, &file)?;
        return print(&format!(
            "{}: fine, a wg-quick file with {peers} peers\n",
            file.display()
        ));
    }
    let config = Config::parse(&text, Some(&file), global, &AgentArgs::default())?;
    for warning in &config.warnings {
        eprintln!("farspan: warning: {}: {warning}", file.display());
    }
    print(&format!(
        "{}: fine, {} peers\n",
        file.display(),
        config.peers.len()
    ))
}

fn export(global: &Global, args: &ExportArgs) -> Result<()> {
    let config = Config::load(global, &AgentArgs::default())?;
    let own = read_key(&config.private_key_file, WgSecret::from_base64)?.ok_or_else(|| {
        anyhow!(
            "this node has no key yet ({} does not exist); start it once with `farspan up`",
            config.private_key_file.display()
        )
    })?;
    let status = agent(global)?.get::<api::Status>("/status").ok();
    let known = config
        .peers
        .iter()
        .find(|peer| peer.name.as_deref() == Some(&args.peer) || peer.key.to_string() == args.peer);
    let secret = if args.generate {
        Some(WgSecret::from_bytes(*Zeroizing::new(random()?)))
    } else {
        None
    };
    let (addresses, preshared_key) = match known {
        Some(peer) => {
            let single: Vec<IpNet> = peer
                .allowed_ips
                .iter()
                .filter(|net| net.prefix_len() == net.max_prefix_len())
                .copied()
                .collect();
            (single, peer.preshared_key.clone())
        }
        None => (vec![new_address(args, &config)?], None::<PresharedKey>),
    };
    if addresses.is_empty() {
        bail!(
            "peer {} has no single address among its allowed-ips; add one like 10.77.0.9/32",
            args.peer
        );
    }
    let endpoint = match &args.endpoint {
        Some(text) => Some(
            config::value::endpoint(text)
                .map_err(|why| ConfigError(format!("--endpoint: {why}")))?,
        ),
        None => public_endpoint(status.as_ref()).map(Endpoint::Address),
    };
    let no_endpoint = endpoint.is_none();
    let export = Export {
        private_key: secret.clone(),
        allowed_ips: reachable(&config, status.as_ref(), &addresses)?,
        addresses: addresses.clone(),
        public_key: own.public(),
        preshared_key,
        endpoint,
        mtu: consts::MTU,
    };
    let text = export.render();
    let picture = if args.qr { Some(qr(&text)?) } else { None };

    if let Some(secret) = &secret {
        remember(global, args, known.is_some(), &secret.public(), &addresses)?;
    }
    // Printed before the agent is asked for anything: this is the only copy of the key.
    print(
        picture
            .as_ref()
            .map_or(text.as_str(), |picture| picture.as_str()),
    )?;
    if let Some(secret) = &secret {
        eprintln!(
            "Peer {} has the new key {}; this output is the only copy of its private key.",
            args.peer,
            secret.public()
        );
    }
    if secret.is_some() {
        tell(global, args, &addresses)?;
    }
    if no_endpoint {
        eprintln!(
            "No public address of this node is known: give one with --endpoint HOST:PORT, or fill in Endpoint."
        );
    }
    Ok(())
}

fn new_address(args: &ExportArgs, config: &Config) -> Result<IpNet, ConfigError> {
    match (args.generate, args.address) {
        (true, Some(ip)) => config::value::host_address(&ip.to_string())
            .map_err(|why| ConfigError(format!("--address: {why}"))),
        (true, None) => Err(ConfigError(format!(
            "{} is not in the file yet, so its address must be given: --address 10.77.0.9, one that no machine has",
            args.peer
        ))),
        (false, _) => Err(ConfigError(format!(
            "{} has no peer {:?}; add it with `farspan peer add`, or make it here with --generate --address IP",
            config.file.as_ref().map_or_else(
                || "the configuration".to_owned(),
                |file| file.display().to_string()
            ),
            args.peer
        ))),
    }
}

/// The new key goes to the file: into the peer's entry, or as a new plain peer.
fn remember(
    global: &Global,
    args: &ExportArgs,
    known: bool,
    key: &WgKey,
    addresses: &[IpNet],
) -> Result<()> {
    if known {
        let path = peer::file(global);
        let mut edit = Edit::open(&path)?;
        edit.set_peer_key(&args.peer, key)?;
        Config::parse(&edit.text(), Some(&path), global, &AgentArgs::default())?;
        edit.save()?;
    } else {
        peer::insert(
            global,
            &NewPeer {
                name: args.peer.clone(),
                key: Some(*key),
                allowed_ips: addresses.iter().map(ToString::to_string).collect(),
                plain: true,
                ..NewPeer::default()
            },
        )?;
    }
    Ok(())
}

/// The agent reads the file again, and the user hears what is left to do.
fn tell(global: &Global, args: &ExportArgs, addresses: &[IpNet]) -> Result<()> {
    let agent = agent(global)?;
    if agent.alive() {
        agent.post::<api::Done>("/reload", &serde_json::json!({}))?;
    }
    // All nodes reach the device through this one only where this one carries its address.
    let config = Config::load(global, &AgentArgs::default())?;
    for address in addresses {
        if !config.routes.iter().any(|route| route.contains(address)) {
            eprintln!(
                "Other nodes reach {} through this one once [node] routes holds {address}.",
                args.peer
            );
        }
    }
    Ok(())
}

/// What the device reaches through this node: everything this node and its peers carry.
fn reachable(config: &Config, status: Option<&api::Status>, own: &[IpNet]) -> Result<Vec<IpNet>> {
    let mut nets: Vec<IpNet> = config
        .addresses
        .iter()
        .chain(&config.routes)
        .copied()
        .collect();
    nets.extend(
        config
            .peers
            .iter()
            .flat_map(|peer| peer.allowed_ips.iter().copied()),
    );
    if let Some(status) = status {
        let texts = status.node.addresses.iter();
        let texts = texts.chain(status.peers.iter().flat_map(|peer| &peer.allowed_ips));
        nets.extend(texts.filter_map(|text| text.parse::<IpNet>().ok()));
    }
    nets.retain(|net| !own.contains(net));
    let nets = IpNet::aggregate(&nets);
    if nets.is_empty() {
        bail!(
            "nothing is known that the device could reach: give this node an address, or start it first with `farspan up`"
        );
    }
    Ok(nets)
}

/// An address at which strangers may reach this node: a forced one first, then a public one.
fn public_endpoint(status: Option<&api::Status>) -> Option<SocketAddr> {
    let endpoints = &status?.node.endpoints;
    let of = |kind: &str| {
        endpoints
            .iter()
            .filter(move |endpoint| endpoint.kind == kind)
            .filter_map(|endpoint| endpoint.address.parse::<SocketAddr>().ok())
            .filter(|address| !private(address.ip()))
            .max_by_key(|address| address.is_ipv4())
    };
    of("mapped").or_else(|| of("host")).or_else(|| of("srflx"))
}

fn private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_private() || ip.is_link_local() || ip.is_loopback(),
        IpAddr::V6(ip) => ip.is_unique_local() || ip.is_unicast_link_local() || ip.is_loopback(),
    }
}

fn qr(text: &str) -> Result<Zeroizing<String>> {
    let code = QrCode::new(text.as_bytes()).map_err(|_| {
        anyhow!("the configuration is too long for a QR code; copy the file instead")
    })?;
    let mut picture = code.render::<Dense1x2>().quiet_zone(true).build();
    picture.push('\n');
    Ok(Zeroizing::new(picture))
}
