//! A simulated internet: hosts, NATs of every RFC 4787 behaviour, loss, latency, virtual time
