//! Several nodes on a small network in virtual time, each with a model of WireGuard beneath it.

mod connect;
mod join;
mod members;
mod net;
mod plan;
mod refused;
mod rotation;
