//! The configuration: `farspan.toml`, then the environment and the flags, parsed into types whose invalid
//! values cannot exist.
//!
//! Every error is one sentence with the file, the line and what to write instead. [`Config::load`] reads
//! files and nothing else: no socket, no device.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr as _;
use std::time::Duration;

use mesh_types::turn::{TurnSecret, TurnServer};
use mesh_types::{AuthorityKey, ConfigPeer, IpNet, PresharedKey, WgKey, consts};

use crate::cli::{AgentArgs, BackendChoice, Global};

pub mod edit;
mod file;
pub mod kubernetes;
pub mod value;
pub mod wgquick;

use file::{File, Text};
use value::Endpoint;

/// Where the file is, unless told.
pub const DEFAULT_FILE: &str = "/etc/farspan/farspan.toml";
/// Where keys and state are, unless told.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/farspan";
/// A longer file is not a configuration.
const FILE_MAX: u64 = 1 << 20;

/// Why a configuration is refused: one sentence. Exit status 2.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", one_line(.0))]
pub struct ConfigError(pub String);

/// A file may hold any character, and a terminal obeys some: they are shown as TOML writes them.
pub fn one_line(text: &str) -> String {
    let shown = |c: char| {
        if c.is_control() {
            c.escape_default().to_string()
        } else {
            c.to_string()
        }
    };
    text.chars().map(shown).collect()
}

/// What a node is told to be.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file it was read from, where there is one.
    pub file: Option<PathBuf>,
    /// Label of the node.
    pub name: String,
    /// Keys and state.
    pub state_dir: PathBuf,
    /// The WireGuard key.
    pub private_key_file: PathBuf,
    /// The port, where one is asked for.
    pub listen_port: Option<u16>,
    /// Label of the region.
    pub region: Option<String>,
    /// Overlay addresses beside those that follow from identity and membership.
    pub addresses: Vec<IpNet>,
    /// Ranges this node carries for others.
    pub routes: Vec<IpNet>,
    /// Name of the overlay device.
    pub interface: String,
    /// What carries the tunnel.
    pub backend: BackendChoice,
    /// The control socket.
    pub socket: PathBuf,
    /// Whose memberships count.
    pub authorities: Vec<AuthorityKey>,
    /// The authority's own key, where it lies on this machine.
    pub authority_key_file: PathBuf,
    /// STUN servers, `host:port`.
    pub stun: Vec<String>,
    /// Ask the gateway for a port that leads here.
    pub port_mapping: bool,
    /// Search for peers behind random NATs.
    pub birthday_search: bool,
    /// Mark and mask of outer packets.
    pub fwmark: (u32, u32),
    /// Insert an accept rule into the host's own filters.
    pub forward_accept: bool,
    /// Willing to relay.
    pub relay_serve: bool,
    /// Ports lent to members that are relayed.
    pub relay_ports: (u16, u16),
    /// Bits a second of a relayed pair.
    pub relay_pair_rate: u64,
    /// Bits a second of all relayed pairs of one member.
    pub relay_node_rate: u64,
    /// TURN servers that this node may use.
    pub turn: Vec<TurnServer>,
    /// Static peers.
    pub peers: Vec<ConfigPeer>,
    /// Their endpoints that are given by name, `host:port`.
    pub names: BTreeMap<WgKey, Vec<String>>,
    /// Its part in a Kubernetes cluster.
    pub kubernetes: Option<kubernetes::Kubernetes>,
    /// What is odd but not wrong, one sentence each.
    pub warnings: Vec<String>,
}

/// The file to read: as told, else the state folder's own, else the system's.
pub fn file_to_read(global: &Global) -> Option<PathBuf> {
    if let Some(file) = &global.config {
        return Some(file.clone());
    }
    let own = global
        .state_dir
        .as_ref()
        .map(|dir| dir.join("farspan.toml"))
        .filter(|file| file.exists());
    own.or_else(|| Some(PathBuf::from(DEFAULT_FILE)).filter(|file| file.exists()))
}

/// The file to write: as told, else inside the state folder that was told, else the system's.
pub fn file_to_write(global: &Global) -> PathBuf {
    match (&global.config, &global.state_dir) {
        (Some(file), _) => file.clone(),
        (None, Some(dir)) => dir.join("farspan.toml"),
        (None, None) => PathBuf::from(DEFAULT_FILE),
    }
}

/// The file that was named and does not exist; its folder must.
pub fn missing(global: &Global) -> Result<Option<&Path>, ConfigError> {
    let named = global.config.as_deref();
    let Some(path) = named.filter(|path| path.symlink_metadata().is_err()) else {
        return Ok(None);
    };
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        Some(_) | None => Path::new("."),
    };
    if path.file_name().is_some() && folder.is_dir() {
        return Ok(Some(path));
    }
    Err(ConfigError(format!(
        "cannot make {}: there is no folder {}; make it, or give another --config",
        path.display(),
        folder.display()
    )))
}

impl Config {
    /// Flags, then the environment (clap reads it), then the file, then defaults.
    pub fn load(global: &Global, flags: &AgentArgs) -> Result<Self, ConfigError> {
        let path = file_to_read(global);
        let text = match &path {
            Some(path) => read(path)?,
            None => String::new(),
        };
        Self::parse(&text, path.as_deref(), global, flags)
    }

    /// As [`Self::load`], for verbs that write the file: one that was named may still have to be made.
    pub fn load_or_new(global: &Global, flags: &AgentArgs) -> Result<Self, ConfigError> {
        match missing(global)? {
            Some(path) => Self::parse("", Some(path), global, flags),
            None => Self::load(global, flags),
        }
    }

    /// Parses a file's text.
    pub fn parse(
        text: &str,
        path: Option<&Path>,
        global: &Global,
        flags: &AgentArgs,
    ) -> Result<Self, ConfigError> {
        let source = Source { text, path };
        let file: File = toml::from_str(text).map_err(|error| source.toml(&error))?;
        source.build(&file, global, flags)
    }
}

/// Checks the shape of a file that is for other machines: its values may name what is not here.
pub fn shape(text: &str, path: &Path) -> Result<(), ConfigError> {
    let source = Source {
        text,
        path: Some(path),
    };
    let file: Result<File, _> = toml::from_str(text);
    file.map(drop).map_err(|error| source.toml(&error))
}

/// Reads a configuration file's text.
pub fn read(path: &Path) -> Result<String, ConfigError> {
    let fail = |why: String| ConfigError(format!("cannot read {}: {why}", path.display()));
    let found = fs::metadata(path).map_err(|error| fail(sentence(&error)))?;
    if found.is_dir() {
        return Err(fail(
            "it is a folder; give the path of a file with --config".into(),
        ));
    }
    if found.len() > FILE_MAX {
        return Err(fail(
            "it is larger than 1 MiB; is it the right file?".into(),
        ));
    }
    let bytes = fs::read(path).map_err(|error| fail(sentence(&error)))?;
    String::from_utf8(bytes).map_err(|error| {
        let line = error.as_bytes()[..error.utf8_error().valid_up_to()]
            .iter()
            .filter(|byte| **byte == b'\n')
            .count()
            + 1;
        fail(format!("line {line} is not UTF-8 text; save it as UTF-8"))
    })
}

/// An I/O error as a person would say it.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "kinds of I/O errors are an open set"
)]
pub fn sentence(error: &std::io::Error) -> String {
    use std::io::ErrorKind;
    let known = match error.kind() {
        ErrorKind::NotFound => Some("no such file or folder"),
        ErrorKind::PermissionDenied => Some("permission denied; run it as root (sudo)"),
        ErrorKind::StorageFull => Some("no space left on the disk; free some and try again"),
        ErrorKind::ReadOnlyFilesystem => Some("the file system is read-only"),
        _ => None,
    };
    known.map_or_else(|| error.to_string(), str::to_owned)
}

struct Source<'a> {
    text: &'a str,
    path: Option<&'a Path>,
}

impl Source<'_> {
    fn at(&self, span: Range<usize>, what: impl AsRef<str>) -> ConfigError {
        let file = self.path.map_or_else(
            || "configuration".to_owned(),
            |path| path.display().to_string(),
        );
        let line = self.line(&span);
        ConfigError(format!("{file}, line {line}: {}", what.as_ref()))
    }

    fn line(&self, span: &Range<usize>) -> usize {
        let end = span.start.min(self.text.len());
        let before = &self.text.as_bytes()[..end];
        before.iter().filter(|byte| **byte == b'\n').count() + 1
    }

    fn toml(&self, error: &toml::de::Error) -> ConfigError {
        let span = error.span().unwrap_or(0..0);
        let message = error
            .message()
            .lines()
            .filter(|line| !line.is_empty())
            .collect::<Vec<_>>()
            .join(", ");
        if let Some(what) = unknown_key(&message) {
            return self.at(span, what);
        }
        let line = self.line(&span);
        let key = self
            .text
            .lines()
            .nth(line - 1)
            .and_then(|line| line.split_once('='))
            .map(|(key, _)| key.trim().trim_matches('"'))
            .filter(|key| !key.is_empty() && !message.contains("duplicate"));
        match key {
            Some(key) if message.starts_with("invalid type") => {
                self.at(span, format!("`{key}`: {message}"))
            }
            Some(_) | None => self.at(span, message),
        }
    }

    fn text<T>(&self, key: &str, text: &Text, parsed: Result<T, String>) -> Result<T, ConfigError> {
        parsed.map_err(|what| self.at(text.span(), format!("`{key}`: {what}")))
    }

    fn build(
        &self,
        file: &File,
        global: &Global,
        flags: &AgentArgs,
    ) -> Result<Config, ConfigError> {
        let mut warnings = Vec::new();
        let node = &file.node;
        let state_dir = global
            .state_dir
            .clone()
            .or_else(|| node.state_dir.as_ref().map(path_of))
            .unwrap_or_else(|| PathBuf::from(DEFAULT_STATE_DIR));
        let interface = match (&global.interface, &node.interface) {
            (Some(flag), _) => value::interface(flag)
                .map_err(|what| ConfigError(format!("--interface: {what}")))?,
            (None, Some(text)) => self.text("interface", text, value::interface(text.get_ref()))?,
            (None, None) => consts::INTERFACE.to_owned(),
        };
        let socket = global
            .socket
            .clone()
            .or_else(|| {
                node.socket
                    .as_ref()
                    .filter(|_| global.interface.is_none())
                    .map(path_of)
            })
            .unwrap_or_else(|| socket_of(&interface));
        let kubernetes = kubernetes::Kubernetes::from_args(&flags.kubernetes)?;
        let name = match (&flags.name, &node.name) {
            (Some(flag), _) => {
                value::name(flag).map_err(|what| ConfigError(format!("--name: {what}")))?
            }
            (None, Some(text)) => self.text("name", text, value::name(text.get_ref()))?,
            (None, None) => kubernetes
                .as_ref()
                .filter(|kubernetes| !kubernetes.external)
                .and_then(|kubernetes| value::name(&kubernetes.node).ok())
                .unwrap_or_else(host_name),
        };
        let region = match (&flags.region, &node.region) {
            (Some(flag), _) => {
                Some(value::name(flag).map_err(|what| ConfigError(format!("--region: {what}")))?)
            }
            (None, Some(text)) => Some(self.text("region", text, value::name(text.get_ref()))?),
            (None, None) => None,
        };
        let backend = match (flags.backend, &node.backend) {
            (Some(flag), _) => flag,
            (None, Some(text)) => self.text("backend", text, value::backend(text.get_ref()))?,
            (None, None) => BackendChoice::Auto,
        };
        let listen_port = match (flags.listen_port, &node.listen_port) {
            (Some(flag), _) => Some(
                value::listen_port(i64::from(flag))
                    .map_err(|what| ConfigError(format!("--listen-port: {what}")))?,
            ),
            (None, Some(port)) => Some(
                value::listen_port(*port.get_ref())
                    .map_err(|what| self.at(port.span(), format!("`listen-port`: {what}")))?,
            ),
            (None, None) => None,
        };
        let private_key_file = match &node.private_key_file {
            Some(text) => {
                let path = path_of(text);
                if path.exists() || path.starts_with(&state_dir) {
                    warnings.extend(value::open_mode(&path));
                } else {
                    return Err(self.at(
                        text.span(),
                        format!(
                            "`private-key-file`: {} does not exist; make it with `farspan key gen`, or leave the key out and one is made in {}",
                            path.display(),
                            state_dir.display()
                        ),
                    ));
                }
                path
            }
            None => state_dir.join("private.key"),
        };
        let relay_pair_rate = match &file.relay.pair_rate {
            Some(text) => self.text("pair-rate", text, value::rate(text.get_ref()))?,
            None => consts::RELAY_PAIR_RATE,
        };
        let mut names = BTreeMap::new();
        Ok(Config {
            file: self.path.map(Path::to_path_buf),
            name,
            region,
            addresses: self.each("addresses", &node.addresses, value::host_address)?,
            routes: self.each("routes", &node.routes, value::range)?,
            backend,
            socket,
            listen_port,
            private_key_file,
            authorities: self.each("authorities", &file.mesh.authorities, |text| {
                AuthorityKey::from_str(text).map_err(|error| error.to_string())
            })?,
            authority_key_file: file
                .mesh
                .authority_key_file
                .as_ref()
                .map_or_else(|| state_dir.join("authority.key"), path_of),
            stun: self.each("stun", &file.nat.stun, value::server)?,
            port_mapping: file
                .nat
                .port_mapping
                .as_ref()
                .is_none_or(|on| *on.get_ref()),
            birthday_search: file.nat.birthday_search.unwrap_or(true),
            fwmark: match &file.host.fwmark {
                Some(text) => self.text("fwmark", text, value::fwmark(text.get_ref()))?,
                None => (consts::FWMARK, consts::FWMARK_MASK),
            },
            forward_accept: file.host.forward_accept.unwrap_or(false),
            relay_serve: file.relay.serve.unwrap_or(false),
            relay_ports: match &file.relay.ports {
                Some(text) => self.text("ports", text, value::port_range(text.get_ref()))?,
                None => consts::RELAY_PORTS,
            },
            turn: self.turn(file, &mut warnings)?,
            relay_pair_rate,
            relay_node_rate: match &file.relay.node_rate {
                Some(text) => self.text("node-rate", text, value::rate(text.get_ref()))?,
                None => relay_pair_rate.saturating_mul(consts::RELAY_NODE_PAIRS),
            },
            peers: self.peers(file, &mut names, &mut warnings)?,
            names,
            state_dir,
            interface,
            kubernetes,
            warnings,
        })
    }

    fn each<T>(
        &self,
        key: &str,
        texts: &[Text],
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Vec<T>, ConfigError> {
        texts
            .iter()
            .map(|text| self.text(key, text, parse(text.get_ref())))
            .collect()
    }

    fn turn(
        &self,
        file: &File,
        warnings: &mut Vec<String>,
    ) -> Result<Vec<TurnServer>, ConfigError> {
        let mut servers = Vec::new();
        for entry in &file.relay.turn {
            let address = self.text("url", &entry.url, value::turn_url(entry.url.get_ref()))?;
            let secret = match &entry.secret_file {
                Some(text) => {
                    let path = path_of(text);
                    let refuse =
                        |why: String| self.at(text.span(), format!("`secret-file`: {why}"));
                    let content = fs::read_to_string(&path).map_err(|error| {
                        let path = path.display();
                        refuse(format!("{path} cannot be read: {}", sentence(&error)))
                    })?;
                    let secret = TurnSecret::new(&content);
                    if secret.as_bytes().is_empty() {
                        return Err(refuse(format!(
                            "{} is empty; write the TURN server's shared secret into it",
                            path.display()
                        )));
                    }
                    warnings.extend(value::open_mode(&path));
                    Some(secret)
                }
                None => None,
            };
            servers.push(TurnServer { address, secret });
        }
        Ok(servers)
    }

    fn peers(
        &self,
        file: &File,
        named: &mut BTreeMap<WgKey, Vec<String>>,
        warnings: &mut Vec<String>,
    ) -> Result<Vec<ConfigPeer>, ConfigError> {
        let mut peers = Vec::new();
        let mut keys = BTreeMap::new();
        let mut names = BTreeSet::new();
        let mut ranges: BTreeMap<IpNet, String> = BTreeMap::new();
        for entry in &file.peers {
            let (peer, endpoints) = self.peer(entry, warnings)?;
            if !endpoints.is_empty() {
                named.insert(peer.key, endpoints);
            }
            let line = self.line(&entry.public_key.span());
            if let Some(other) = keys.insert(peer.key, line) {
                return Err(self.at(
                    entry.public_key.span(),
                    format!("`public-key`: the peer on line {other} has the same key; a key belongs to one peer"),
                ));
            }
            if let (Some(name), Some(text)) = (&peer.name, &entry.name)
                && !names.insert(name.clone())
            {
                return Err(self.at(
                    text.span(),
                    format!("`name`: two peers are called {name:?}; names must differ"),
                ));
            }
            let label = peer.name.clone().unwrap_or_else(|| peer.key.to_string());
            for (range, text) in peer.allowed_ips.iter().zip(&entry.allowed_ips) {
                // One inside another is legal: the longest prefix counts, as in WireGuard.
                if let Some(owner) = ranges.get(range) {
                    return Err(self.at(
                        text.span(),
                        format!("`allowed-ips`: {range} of {label} is a range of {owner} already; a range belongs to one peer"),
                    ));
                }
            }
            ranges.extend(peer.allowed_ips.iter().map(|range| (*range, label.clone())));
            peers.push(peer);
        }
        Ok(peers)
    }

    fn peer(
        &self,
        entry: &file::Peer,
        warnings: &mut Vec<String>,
    ) -> Result<(ConfigPeer, Vec<String>), ConfigError> {
        let key = self.text(
            "public-key",
            &entry.public_key,
            WgKey::from_str(entry.public_key.get_ref()).map_err(|error| error.to_string()),
        )?;
        let name = match &entry.name {
            Some(text) => Some(self.text("name", text, value::name(text.get_ref()))?),
            None => None,
        };
        let (mut endpoints, mut names) = (Vec::new(), Vec::new());
        for endpoint in self.each("endpoints", &entry.endpoints, value::endpoint)? {
            match endpoint {
                Endpoint::Address(address) => endpoints.push(address),
                Endpoint::Name(name) => names.push(name),
            }
        }
        let allowed_ips = self.each("allowed-ips", &entry.allowed_ips, value::range)?;
        let preshared_key = match &entry.preshared_key_file {
            Some(text) => {
                let path = path_of(text);
                warnings.extend(value::open_mode(&path));
                let key = fs::read_to_string(&path)
                    .map_err(|error| sentence(&error))
                    .and_then(|text| {
                        PresharedKey::from_base64(&text).map_err(|error| error.to_string())
                    })
                    .map_err(|why| format!("{}: {why}", path.display()));
                Some(self.text("preshared-key-file", text, key)?)
            }
            None => None,
        };
        let persistent_keepalive = match &entry.persistent_keepalive {
            Some(seconds) => match u16::try_from(*seconds.get_ref()) {
                Ok(0) => None,
                Ok(seconds) => Some(Duration::from_secs(u64::from(seconds))),
                Err(_) => {
                    return Err(self.at(
                        seconds.span(),
                        "`persistent-keepalive`: give seconds from 0 (off) to 65535",
                    ));
                }
            },
            None => None,
        };
        let peer = ConfigPeer {
            name,
            key,
            endpoints,
            allowed_ips,
            plain: entry.plain,
            preshared_key,
            persistent_keepalive,
        };
        Ok((peer, names))
    }
}

/// The control socket of the agent of an interface.
pub fn socket_of(interface: &str) -> PathBuf {
    PathBuf::from(format!("/run/farspan/{interface}.sock"))
}

/// The host's name up to its first dot, made fit for a label.
pub fn host_name() -> String {
    let name = nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok())
        .unwrap_or_default();
    let label = name.split('.').next().unwrap_or_default();
    value::name(label).unwrap_or_else(|_| "node".to_owned())
}

fn path_of(text: &Text) -> PathBuf {
    PathBuf::from(text.get_ref())
}

/// Makes a sentence with the nearest known key of serde's message about an unknown one.
fn unknown_key(message: &str) -> Option<String> {
    let rest = message.strip_prefix("unknown field `")?;
    let (key, rest) = rest.split_once('`')?;
    let known: Vec<&str> = rest
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|word| !word.is_empty())
        .collect();
    let nearest = known
        .iter()
        .map(|known| (strsim::jaro_winkler(key, known), *known))
        .filter(|(likeness, _)| *likeness > 0.7)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    Some(match nearest {
        Some((_, nearest)) => format!("unknown key `{key}`; did you mean `{nearest}`?"),
        None => format!("unknown key `{key}`; known here: {}", known.join(", ")),
    })
}

#[cfg(test)]
mod tests;
