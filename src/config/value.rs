//! Single values of the configuration: each parser gives the value or what to write instead.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use mesh_types::turn::TurnAddress;
use mesh_types::{IpNet, consts};

use crate::cli::BackendChoice;

/// A label: 1 to 63 letters, digits, `-`, `_` and `.`.
pub fn name(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if text.is_empty() || text.len() > 63 || !text.chars().all(fits) {
        return Err(format!(
            "{text:?} is not a name; use 1 to 63 letters, digits, '-', '_' and '.'"
        ));
    }
    Ok(text.to_owned())
}

/// An interface's name, as Linux takes it.
pub fn interface(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_graphic() && !matches!(c, '/' | ':' | '%');
    if text.is_empty()
        || text.len() > 15
        || matches!(text, "." | ".." | "all" | "default")
        || !text.chars().all(fits)
    {
        return Err(format!(
            "{text:?} cannot name a network device; use 1 to 15 letters and digits, like \"farspan0\""
        ));
    }
    Ok(text.to_owned())
}

/// `auto`, `kernel` or `userspace`.
pub fn backend(text: &str) -> Result<BackendChoice, String> {
    match text {
        "auto" => Ok(BackendChoice::Auto),
        "kernel" => Ok(BackendChoice::Kernel),
        "userspace" => Ok(BackendChoice::Userspace),
        _ => Err(format!(
            "{text:?} is not a backend; write \"auto\", \"kernel\" or \"userspace\""
        )),
    }
}

/// The tunnel's UDP port.
pub fn listen_port(port: i64) -> Result<u16, String> {
    match u16::try_from(port) {
        Ok(0) | Err(_) => Err(format!("{port} is not a port; give one from 1 to 65535")),
        Ok(consts::CONTROL_PORT) => Err(format!(
            "{port} is used inside the tunnel; choose another port"
        )),
        Ok(port) => Ok(port),
    }
}

/// A single overlay address, with or without its `/32` or `/128`.
pub fn host_address(text: &str) -> Result<IpNet, String> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return usable(IpNet::from(ip));
    }
    let net: IpNet = text
        .parse()
        .map_err(|_| format!("{text:?} is not an address; write it like 10.77.0.1/32"))?;
    if net.prefix_len() != net.max_prefix_len() {
        return Err(format!(
            "{text} is a range; write the single address {}, and what this node carries for others under `routes`",
            IpNet::from(net.addr())
        ));
    }
    usable(net)
}

/// A range of the mesh; bits behind the prefix are cleared, as WireGuard does.
pub fn range(text: &str) -> Result<IpNet, String> {
    let net = text
        .parse::<IpNet>()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        .map_err(|_| format!("{text:?} is not a range; write it like 10.244.1.0/24"))?
        .trunc();
    if net.prefix_len() <= 1 {
        return Err(format!(
            "{net} is the whole internet, and farspan routes ranges of the mesh only; list those ranges, or use a plain wg-quick tunnel as an exit"
        ));
    }
    usable(net)
}

fn usable(net: IpNet) -> Result<IpNet, String> {
    let ip = net.network();
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    if ip.is_loopback() || ip.is_multicast() || ip.is_unspecified() || link_local {
        return Err(format!(
            "{net} is a loopback, link-local, multicast or unspecified range, which no other machine can carry"
        ));
    }
    Ok(net)
}

/// Where a peer is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// An underlay address with its port.
    Address(SocketAddr),
    /// `host:port`, looked up by the agent.
    Name(String),
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

/// An address or a host name, with a port.
pub fn endpoint(text: &str) -> Result<Endpoint, String> {
    let address: SocketAddr = match text.parse() {
        Ok(address) => address,
        Err(_) => return host_and_port(text),
    };
    if address.port() == 0 || address.ip().is_unspecified() || address.ip().is_multicast() {
        return Err(format!(
            "{text} cannot be sent to; give the peer's own address and port"
        ));
    }
    Ok(Endpoint::Address(address))
}

fn host_and_port(text: &str) -> Result<Endpoint, String> {
    let host = text.rsplit_once(':').map_or("", |(host, _)| host);
    // What ends in digits is a mistyped address, not a name.
    let last = host.trim_end_matches('.').rsplit('.').next();
    let digits = last.is_none_or(|last| last.chars().all(|c| c.is_ascii_digit()));
    server(text)
        .ok()
        .filter(|_| !digits && !host.starts_with('['))
        .map(Endpoint::Name)
        .ok_or_else(|| {
            format!(
                "{text:?} is not an address or a name with a port; write it like 203.0.113.9:22514, [2001:db8::9]:22514 or vpn.example.org:22514"
            )
        })
}

/// `host:port` of a server.
pub fn server(text: &str) -> Result<String, String> {
    let wrong = || format!("{text:?} is not a server; write it like stun.example.org:3478");
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let bracketed = host.starts_with('[') && host.ends_with(']');
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if port.parse::<u16>().map_or(0, |port| port) == 0 || host.is_empty() || host.len() > 253 {
        return Err(wrong());
    }
    if !bracketed && !host.chars().all(fits) || bracketed && text.parse::<SocketAddr>().is_err() {
        return Err(wrong());
    }
    Ok(text.to_owned())
}

/// `mark/mask`, hexadecimal with 0x or decimal.
pub fn fwmark(text: &str) -> Result<(u32, u32), String> {
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    };
    let parsed = match text.split_once('/') {
        Some((mark, mask)) => number(mark).zip(number(mask)),
        None => number(text).map(|mark| (mark, mark)),
    };
    match parsed {
        Some((mark, mask)) if mark != 0 && mark & !mask == 0 => Ok((mark, mask)),
        Some(_) => Err(format!(
            "{text}: the mark must not be 0 and must lie inside its mask; the default is 0x2000/0x2000"
        )),
        None => Err(format!(
            "{text:?} is not a mark; write it like 0x2000/0x2000"
        )),
    }
}

/// `low-high`.
pub fn port_range(text: &str) -> Result<(u16, u16), String> {
    text.split_once('-')
        .and_then(|(low, high)| Some((low.parse().ok()?, high.parse().ok()?)))
        .filter(|(low, high): &(u16, u16)| 0 < *low && low <= high)
        .ok_or_else(|| format!("{text:?} is not a range of ports; write it like 28672-29183"))
}

/// A rate in bits a second, such as `50Mbit/s`.
pub fn rate(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a rate; write it like 50Mbit/s");
    let body = text.strip_suffix("bit/s").ok_or_else(wrong)?;
    let (digits, unit) = match body.chars().next_back() {
        Some('k') => (&body[..body.len() - 1], 1_000),
        Some('M') => (&body[..body.len() - 1], 1_000_000),
        Some('G') => (&body[..body.len() - 1], 1_000_000_000),
        Some(_) | None => (body, 1),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number
        .checked_mul(unit)
        .filter(|rate| *rate > 0)
        .ok_or_else(wrong)
}

/// `turn:host:port` or `turns:host:port`, perhaps with `?transport=tcp`.
pub fn turn_url(text: &str) -> Result<TurnAddress, String> {
    TurnAddress::parse(text).map_err(|why| {
        format!("{text:?} is not a TURN server ({why}); write it like turns:turn.example.org:443")
    })
}

/// Warns of a key file that others may read, as `wg` does.
pub fn open_mode(path: &Path) -> Option<String> {
    let mode = fs::metadata(path).ok()?.permissions().mode() & 0o777;
    (mode & 0o077 != 0).then(|| {
        format!(
            "{} may be read by others (mode {mode:03o}); run: chmod 600 {}",
            path.display(),
            path.display()
        )
    })
}
