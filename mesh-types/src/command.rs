//! What a person asks of a running node, through the control socket.

use std::time::Duration;

use ipnet::IpNet;

use crate::key::{IdentitySecret, WgSecret};
use crate::observation::ConfigPeer;
use crate::token::Token;

/// Names a command until its reply.
pub type CommandId = u64;

/// What a person asks.
#[derive(Debug, Clone)]
pub enum Command {
    /// Issue an invitation. Randomness comes from the shell.
    Invite {
        /// 16 bytes of secret, then 8 of ticket id.
        random: [u8; 24],
        /// Ranges the joiner may carry.
        routes: Vec<IpNet>,
        /// How long it is valid.
        lifetime: Duration,
    },
    /// Join a mesh.
    Join {
        /// The invitation.
        token: Box<Token>,
    },
    /// Sign the membership of somebody who waits, or forget the wish. By name or by identity.
    Approve {
        /// Who waits.
        node: String,
        /// Do not sign.
        refuse: bool,
    },
    /// Sign a tombstone. By name or by identity.
    Revoke {
        /// Which node.
        node: String,
    },
    /// Change the WireGuard key.
    Rotate {
        /// The next key.
        next: WgSecret,
        /// Even though plain peers will lose us.
        force: bool,
    },
    /// Measure the round trip inside the mesh, once.
    Ping {
        /// By name, overlay address or key.
        peer: String,
    },
    /// Look at the network around this node afresh.
    Netcheck,
    /// The file was read again.
    Reload(Box<Reload>),
}

/// The part of the configuration that changes without restart.
#[derive(Debug, Clone)]
pub struct Reload {
    /// `[[peer]]` entries.
    pub peers: Vec<ConfigPeer>,
    /// `[node] name`.
    pub name: String,
    /// `[node] region`.
    pub region: Option<String>,
    /// `[node] routes`.
    pub routes: Vec<IpNet>,
    /// `[node] addresses`.
    pub addresses: Vec<IpNet>,
    /// `[nat] stun`.
    pub stun: Vec<String>,
    /// `[relay] turn`.
    pub turn: Vec<crate::turn::TurnServer>,
    /// `[relay] serve`.
    pub may_relay: bool,
    /// `[relay] ports`.
    pub relay_ports: (u16, u16),
    /// `[relay] node-rate`.
    pub node_rate: u64,
    /// `[relay] pair-rate`.
    pub pair_rate: u64,
    /// `[nat] birthday-search`.
    pub birthday_search: bool,
    /// `[mesh] authorities`.
    pub authorities: Vec<crate::key::AuthorityKey>,
    /// `[host] forward-accept`.
    pub forward_accept: bool,
    /// The authority's key, where it is on this machine.
    pub authority: Option<IdentitySecret>,
}
