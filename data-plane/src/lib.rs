//! Userspace WireGuard: TUN and UDP in batches, sessions, allowed-IPs lookup
