//! The MSS clamp: TCP through the tunnel learns the tunnel's MTU in its handshake, both ways, so that it
//! never depends on ICMP that somebody drops.

use mesh_types::consts::NFT_MSS_PRIORITY;
use netlink_packet_netfilter::nftables::{InetHookNumber, MetaKey};

use super::expression::{TCP, clamp_mss, interface, protocol, syn};
use super::{Chain, Kind, Rule};

/// Clamps forwarded TCP that enters or leaves by the device. By name: the device may come and go.
pub(crate) fn mss_chain(device: &str) -> Chain {
    let rule = |key, word: &str| {
        Rule::new(
            format!("farspan: clamp the MSS, {word} {device}"),
            vec![interface(key, device), protocol(TCP), syn(), clamp_mss()],
        )
    };
    Chain {
        name: "mss",
        kind: Kind::Filter,
        hook: InetHookNumber::Forward,
        priority: NFT_MSS_PRIORITY,
        rules: vec![rule(MetaKey::Iifname, "from"), rule(MetaKey::Oifname, "to")],
    }
}
