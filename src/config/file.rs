//! The shape of `farspan.toml`, before its values are believed.

use serde::Deserialize;
use toml::Spanned;

pub type Text = Spanned<String>;

/// The whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct File {
    #[serde(default)]
    pub node: Node,
    #[serde(default)]
    pub mesh: Mesh,
    #[serde(default)]
    pub nat: Nat,
    #[serde(default)]
    pub relay: Relay,
    #[serde(default)]
    pub host: Host,
    #[serde(default, rename = "peer")]
    pub peers: Vec<Peer>,
}

/// `[node]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Node {
    pub name: Option<Text>,
    pub state_dir: Option<Text>,
    pub private_key_file: Option<Text>,
    pub listen_port: Option<Spanned<i64>>,
    pub region: Option<Text>,
    #[serde(default)]
    pub addresses: Vec<Text>,
    #[serde(default)]
    pub routes: Vec<Text>,
    pub interface: Option<Text>,
    pub backend: Option<Text>,
    pub socket: Option<Text>,
}

/// `[mesh]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Mesh {
    #[serde(default)]
    pub authorities: Vec<Text>,
    pub authority_key_file: Option<Text>,
}

/// `[nat]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Nat {
    #[serde(default)]
    pub stun: Vec<Text>,
    pub port_mapping: Option<Spanned<bool>>,
    pub birthday_search: Option<bool>,
}

/// `[relay]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Relay {
    pub serve: Option<bool>,
    pub ports: Option<Text>,
    pub pair_rate: Option<Text>,
    pub node_rate: Option<Text>,
    #[serde(default)]
    pub turn: Vec<Turn>,
}

/// One entry of `[relay] turn`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Turn {
    pub url: Text,
    pub secret_file: Option<Text>,
}

/// `[host]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Host {
    pub fwmark: Option<Text>,
    pub forward_accept: Option<bool>,
}

/// `[[peer]]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Peer {
    pub name: Option<Text>,
    pub public_key: Text,
    #[serde(default)]
    pub endpoints: Vec<Text>,
    pub allowed_ips: Vec<Text>,
    #[serde(default)]
    pub plain: bool,
    pub preshared_key_file: Option<Text>,
    pub persistent_keepalive: Option<Spanned<i64>>,
}
