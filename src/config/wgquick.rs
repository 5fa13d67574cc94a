//! Plain WireGuard configurations, as `wg-quick` reads them: checked, and printed for plain peers.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;

use mesh_types::{IpNet, PresharedKey, WgKey, WgSecret};
use zeroize::Zeroizing;

use super::ConfigError;
use super::value::Endpoint;

const INTERFACE_KEYS: &[&str] = &[
    "PrivateKey",
    "ListenPort",
    "FwMark",
    "Address",
    "DNS",
    "MTU",
    "Table",
    "PreUp",
    "PostUp",
    "PreDown",
    "PostDown",
    "SaveConfig",
];
const PEER_KEYS: &[&str] = &[
    "PublicKey",
    "PresharedKey",
    "AllowedIPs",
    "Endpoint",
    "PersistentKeepalive",
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Section {
    None,
    Interface,
    Peer,
}

/// Is this text a wg-quick file rather than TOML?
pub fn looks_like(path: &Path, text: &str) -> bool {
    path.extension().is_some_and(|end| end == "conf")
        || text.lines().any(|line| {
            line.split('#')
                .next()
                .is_some_and(|line| line.trim().eq_ignore_ascii_case("[interface]"))
        })
}

/// Checks a wg-quick file; gives its number of peers.
pub fn check(text: &str, path: &Path) -> Result<usize, ConfigError> {
    let mut section = Section::None;
    let mut peers: Vec<(usize, bool)> = Vec::new();
    let mut private = false;
    for (line, content) in text.lines().enumerate() {
        let content = content.split('#').next().unwrap_or_default().trim();
        let fail =
            |what: String| ConfigError(format!("{}, line {}: {what}", path.display(), line + 1));
        if content.is_empty() {
            continue;
        }
        if content.starts_with('[') {
            section = match content.to_ascii_lowercase().as_str() {
                "[interface]" => Section::Interface,
                "[peer]" => {
                    peers.push((line + 1, false));
                    Section::Peer
                }
                _ => {
                    return Err(fail(format!(
                        "unknown section {content}; known are [Interface] and [Peer]"
                    )));
                }
            };
            continue;
        }
        let Some((key, value)) = content.split_once('=') else {
            return Err(fail(format!("{content:?} is not of the form Key = value")));
        };
        let (key, value) = (key.trim(), value.trim());
        let known = match section {
            Section::None => {
                return Err(fail(format!("{key} stands before [Interface] or [Peer]")));
            }
            Section::Interface => INTERFACE_KEYS,
            Section::Peer => PEER_KEYS,
        };
        let Some(known_key) = known.iter().find(|known| known.eq_ignore_ascii_case(key)) else {
            let nearest = known.iter().max_by(|a, b| {
                strsim::jaro_winkler(key, a).total_cmp(&strsim::jaro_winkler(key, b))
            });
            return Err(fail(format!(
                "unknown key `{key}`; did you mean `{}`?",
                nearest.unwrap_or(&"PublicKey")
            )));
        };
        check_value(known_key, value).map_err(|what| fail(format!("{known_key}: {what}")))?;
        private |= *known_key == "PrivateKey";
        if let (Some(peer), "PublicKey") = (peers.last_mut(), *known_key) {
            peer.1 = true;
        }
    }
    if !private {
        return Err(ConfigError(format!(
            "{}: there is no PrivateKey in an [Interface] section; make one with `farspan key gen`",
            path.display()
        )));
    }
    if let Some((line, _)) = peers.iter().find(|(_, has_key)| !has_key) {
        return Err(ConfigError(format!(
            "{}, line {line}: this [Peer] has no PublicKey",
            path.display()
        )));
    }
    Ok(peers.len())
}

fn check_value(key: &str, value: &str) -> Result<(), String> {
    let list = || {
        value
            .split(',')
            .map(str::trim)
            .filter(|item| !item.is_empty())
    };
    match key {
        "PrivateKey" => WgSecret::from_base64(value)
            .map(drop)
            .map_err(|e| e.to_string()),
        "PresharedKey" => PresharedKey::from_base64(value)
            .map(drop)
            .map_err(|e| e.to_string()),
        "PublicKey" => value.parse::<WgKey>().map(drop).map_err(|e| e.to_string()),
        "Address" | "AllowedIPs" => list().try_for_each(|item| {
            let ok = item.parse::<IpNet>().is_ok() || item.parse::<std::net::IpAddr>().is_ok();
            ok.then_some(())
                .ok_or_else(|| format!("{item:?} is not a range; write it like 10.77.0.2/32"))
        }),
        "Endpoint" => {
            let named = value.rsplit_once(':').is_some_and(|(host, port)| {
                !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0)
            });
            (value.parse::<SocketAddr>().is_ok() || named)
                .then_some(())
                .ok_or_else(|| format!("{value:?} is not host:port"))
        }
        "ListenPort" | "MTU" => value
            .parse::<u16>()
            .map(drop)
            .map_err(|_| format!("{value:?} is not a number from 0 to 65535")),
        "PersistentKeepalive" if value.eq_ignore_ascii_case("off") => Ok(()),
        "PersistentKeepalive" => value
            .parse::<u16>()
            .map(drop)
            .map_err(|_| format!("{value:?} is not \"off\" or seconds up to 65535")),
        _ => Ok(()),
    }
}

/// What a plain device needs to be a peer of this node.
#[derive(Debug)]
pub struct Export {
    /// The device's private key; a placeholder is printed where only the device has it.
    pub private_key: Option<WgSecret>,
    /// Its overlay addresses.
    pub addresses: Vec<IpNet>,
    /// This node's key.
    pub public_key: WgKey,
    /// Shared with this node.
    pub preshared_key: Option<PresharedKey>,
    /// This node's address from outside.
    pub endpoint: Option<Endpoint>,
    /// What is reached through this node.
    pub allowed_ips: Vec<IpNet>,
    /// MTU of the overlay device.
    pub mtu: u16,
}

impl Export {
    /// The file's text. Holds secrets.
    pub fn render(&self) -> Zeroizing<String> {
        let join = |nets: &[IpNet]| {
            nets.iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(", ")
        };
        let mut out = Zeroizing::new(String::from("[Interface]\n"));
        match &self.private_key {
            Some(key) => _ = writeln!(out, "PrivateKey = {}", *key.to_base64()),
            None => {
                out.push_str("# The private key never left the device: put it here.\n");
                out.push_str("PrivateKey = PRIVATE-KEY-OF-THIS-DEVICE\n");
            }
        }
        _ = writeln!(out, "Address = {}", join(&self.addresses));
        _ = writeln!(out, "MTU = {}\n", self.mtu);
        _ = writeln!(out, "[Peer]\nPublicKey = {}", self.public_key);
        if let Some(key) = &self.preshared_key {
            _ = writeln!(out, "PresharedKey = {}", *key.to_base64());
        }
        _ = writeln!(out, "AllowedIPs = {}", join(&self.allowed_ips));
        match &self.endpoint {
            Some(endpoint) => _ = writeln!(out, "Endpoint = {endpoint}"),
            None => out.push_str("# Endpoint = IP:PORT at which the other side is reached\n"),
        }
        out.push_str("PersistentKeepalive = 25\n");
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_exported_passes_the_check() {
        let export = Export {
            private_key: Some(WgSecret::from_bytes([7; 32])),
            addresses: vec!["10.77.0.9/32".parse().unwrap()],
            public_key: WgKey([1; 32]),
            preshared_key: None,
            endpoint: Some(Endpoint::Name("vpn.example.org:22514".into())),
            allowed_ips: vec!["10.77.0.0/16".parse().unwrap()],
            mtu: 1420,
        };
        assert_eq!(check(&export.render(), Path::new("phone.conf")), Ok(1));
    }

    #[test]
    fn each_fault_of_a_wg_quick_file_is_named_with_its_line() {
        let key = WgKey([1; 32]);
        for (text, expected) in [
            (
                "[Interface]\nPrivateKey = x\n".to_owned(),
                "line 2: PrivateKey: not a key",
            ),
            ("PrivateKey = x\n".to_owned(), "stands before"),
            ("[Interfaces]\n".to_owned(), "unknown section"),
            (
                "[Interface]\nAdress = 10.0.0.1\n".to_owned(),
                "did you mean `Address`",
            ),
            ("[Interface]\nMTU\n".to_owned(), "not of the form"),
            (
                format!("[Peer]\nPublicKey = {key}\nAllowedIPs = 10.0.0/8\n"),
                "line 3: AllowedIPs",
            ),
            (format!("[Peer]\nPublicKey = {key}\n"), "no PrivateKey"),
            (
                format!("[Interface]\nPrivateKey = {key}\n[Peer]\n"),
                "line 3: this [Peer] has no PublicKey",
            ),
        ] {
            let error = check(&text, Path::new("a.conf")).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
