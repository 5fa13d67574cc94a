//! TURN servers (RFC 8656): what the operator names, and how they are spoken to.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use zeroize::Zeroizing;

/// What carries the messages between a node and its TURN server, the better the lower.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TurnTransport {
    /// Datagrams: what is lost is WireGuard's and the inner protocols' affair.
    Udp,
    /// A TCP connection, for networks without UDP.
    Tcp,
    /// TLS over TCP, for networks that let nothing else out.
    Tls,
}

impl TurnTransport {
    /// The word in sentences and JSON.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
        }
    }
}

/// Where a TURN server is (RFC 7065).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct TurnAddress {
    /// Name or IP address, IPv6 without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
    /// How it is spoken to.
    pub transport: TurnTransport,
}

/// The scheme's port where none is given: 3478, over TLS 5349 (RFC 7065 3.2).
const PORT: u16 = 3478;
const PORT_TLS: u16 = 5349;

impl TurnAddress {
    /// Reads `turn:HOST[:PORT][?transport=udp|tcp]` and `turns:HOST[:PORT]`. One clause says what is wrong.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let (secure, rest) = match (text.strip_prefix("turns:"), text.strip_prefix("turn:")) {
            (Some(rest), _) => (true, rest),
            (None, Some(rest)) => (false, rest),
            (None, None) => return Err("it begins with neither turn: nor turns:"),
        };
        let (rest, query) = match rest.split_once('?') {
            Some((rest, query)) => (rest, Some(query)),
            None => (rest, None),
        };
        let transport = match (secure, query) {
            (false, None | Some("transport=udp")) => TurnTransport::Udp,
            (false, Some("transport=tcp")) => TurnTransport::Tcp,
            (true, None | Some("transport=tcp")) => TurnTransport::Tls,
            (true, Some("transport=udp")) => {
                return Err("TLS over UDP (DTLS) is not supported, only over TCP");
            }
            (_, Some(_)) => return Err("after ? only transport=udp or transport=tcp may stand"),
        };
        let default = if secure { PORT_TLS } else { PORT };
        let (host, port) = match rest.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']').ok_or("the bracket is not closed")?;
                let ip: Ipv6Addr = host
                    .parse()
                    .map_err(|_| "there is no IPv6 address in [ ]")?;
                (ip.to_string(), port.strip_prefix(':'))
            }
            None => match rest.split_once(':') {
                Some((host, port)) => (host.to_owned(), Some(port)),
                None => (rest.to_owned(), None),
            },
        };
        let port = match port {
            Some(port) => port
                .parse()
                .map_err(|_| "the port is no number of 1 to 65535")?,
            None => default,
        };
        let fit = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | ':');
        if host.is_empty() || host.len() > 253 || !host.chars().all(fit) || port == 0 {
            return Err("its host or port is none");
        }
        Ok(Self {
            host,
            port,
            transport,
        })
    }

    /// `host:port`, as resolvers take it.
    pub fn authority(&self) -> String {
        match self.host.parse() {
            Ok(IpAddr::V6(ip)) => format!("[{ip}]:{}", self.port),
            Ok(IpAddr::V4(_)) | Err(_) => format!("{}:{}", self.host, self.port),
        }
    }
}

impl fmt::Display for TurnAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let authority = self.authority();
        match self.transport {
            TurnTransport::Udp => write!(f, "turn:{authority}"),
            TurnTransport::Tcp => write!(f, "turn:{authority}?transport=tcp"),
            TurnTransport::Tls => write!(f, "turns:{authority}"),
        }
    }
}

/// What a server and its clients share, to make short-lived credentials from. Never printed, wiped on drop.
#[derive(Clone, PartialEq, Eq)]
pub struct TurnSecret(Zeroizing<String>);

impl TurnSecret {
    /// Takes it as the file holds it; spaces and line ends around it do not count.
    pub fn new(text: &str) -> Self {
        Self(Zeroizing::new(text.trim().to_owned()))
    }

    /// The bytes, to make credentials.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Debug for TurnSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TurnSecret(..)")
    }
}

/// A TURN server that this node may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TurnServer {
    /// Where it is.
    pub address: TurnAddress,
    /// From which credentials are made; without one it is used without credentials.
    pub secret: Option<TurnSecret>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_the_documentation_writes_them() {
        for (text, host, port, transport) in [
            (
                "turn:turn.example.org",
                "turn.example.org",
                3478,
                TurnTransport::Udp,
            ),
            (
                "turn:192.0.2.1:443?transport=tcp",
                "192.0.2.1",
                443,
                TurnTransport::Tcp,
            ),
            ("turn:h:1?transport=udp", "h", 1, TurnTransport::Udp),
            (
                "turns:turn.example.org",
                "turn.example.org",
                5349,
                TurnTransport::Tls,
            ),
            (
                "turns:[2001:db8::1]:443?transport=tcp",
                "2001:db8::1",
                443,
                TurnTransport::Tls,
            ),
        ] {
            let address = TurnAddress::parse(text).unwrap();
            assert_eq!(
                (address.host.as_str(), address.port, address.transport),
                (host, port, transport)
            );
            assert_eq!(TurnAddress::parse(&address.to_string()), Ok(address));
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "",
            "turn:",
            "stun:a:1",
            "turn:a:0",
            "turn:a:70000",
            "turn:a?x",
            "turns:a?transport=udp",
            "turn:[::1",
            "turn:[a]:1",
            "turn:a b:1",
            "turn:[2001:db8::1]:x",
            "turn:a:1:2",
        ] {
            assert!(TurnAddress::parse(text).is_err(), "{text}");
        }
    }
}
