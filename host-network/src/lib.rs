//! What Linux must be told: links, addresses, routes, rules, WireGuard, nftables
