//! What a node tells the shell, and how it answers commands.

use std::net::SocketAddr;
use std::time::Duration;

use mesh_types::cluster::Publication;
use mesh_types::command::CommandId;
use mesh_types::token::Token;
use mesh_types::{AuthorityKey, WgSecret};

use crate::snapshot::{NetcheckSnapshot, PathKind};

/// Something for the shell to do or to log. Poll events before transmits: [`Event::Persist`] holds back
/// everything that is polled after it.
#[derive(Debug, Clone)]
pub enum Event {
    /// Write [`crate::Overlay::state`] durably before transmitting anything polled after this.
    Persist,
    /// Look a STUN server's name up and answer with [`mesh_types::report::Answer::Resolved`].
    Resolve {
        /// `host:port`, as configured.
        name: String,
    },
    /// A command is done.
    Reply {
        /// Which.
        id: CommandId,
        /// Its result, or one sentence why there is none.
        reply: Result<Reply, String>,
    },
    /// A rotation begins: keep the next key on disk until [`Event::KeyRotated`].
    NextKey {
        /// The next key.
        key: WgSecret,
    },
    /// The node changed its WireGuard key: write the key file, drop the next key's.
    KeyRotated {
        /// The key in use from now on.
        key: WgSecret,
    },
    /// The node is a member: pin the authority in the configuration.
    Joined {
        /// Whose word counts from now on.
        authority: AuthorityKey,
    },
    /// The authority revoked this node's membership.
    Revoked,
    /// Write this to the own Node object, and say with [`mesh_types::cluster::ClusterEvent::Published`] what became of it.
    Publish(Publication),
    /// A claim in the cluster was refused, said once.
    Refused {
        /// The Node object that makes it.
        node: Option<String>,
        /// Stable word.
        reason: &'static str,
        /// What was refused, and what to do.
        sentence: String,
    },
    /// The last listing of Nodes is doubted: another one is wanted, best after a moment that differs from node to node.
    ListAgain,
    /// A peer is connected. For the log.
    PeerUp {
        /// Its label.
        name: String,
    },
    /// A peer is no longer connected. For the log.
    PeerDown {
        /// Its label.
        name: String,
        /// One sentence.
        reason: String,
    },
}

/// A command's result.
#[derive(Debug, Clone)]
pub enum Reply {
    /// An invitation.
    Token(Token),
    /// One sentence.
    Done(String),
    /// Somebody has to approve it first; the same command is answered then. One sentence.
    Pending(String),
    /// A peer answered.
    Pong {
        /// Round trip inside the tunnel.
        rtt: Duration,
        /// What kind of path it took; `None` for a path the tunnel found by itself.
        path: Option<PathKind>,
        /// The peer's outer address, where known.
        remote: Option<SocketAddr>,
    },
    /// The network around this node.
    Netcheck(Box<NetcheckSnapshot>),
}
