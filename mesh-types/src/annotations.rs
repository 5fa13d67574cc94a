//! The announcement as annotations of the node's own Node object: one key a field, so that people can read it with
//! `kubectl describe node`, and `farspan.io/proof` with the identity's signature over what the reader rebuilds from them.

/// The keys that the agent may write, and nobody else does.
pub const KEYS: [&str; 10] = [
    "farspan.io/identity",
    "farspan.io/public-key",
    "farspan.io/next-public-key",
    "farspan.io/endpoints",
    "farspan.io/nat",
    "farspan.io/relay",
    "farspan.io/features",
    "farspan.io/protocol",
    "farspan.io/seq",
    "farspan.io/proof",
];

/// What people set begins with this; the agent never writes such a key.
pub const CONFIG_PREFIX: &str = "config.farspan.io/";

/// Keys and values of a whole record together, bytes at most: Node objects are watched by every kubelet's controller.
pub const RECORD_MAX: usize = 1024;
