//! Several nodes on a small network in virtual time, each with a model of WireGuard beneath it.

mod approve;
mod connect;
mod doctor;
mod join;
mod kubernetes;
mod members;
mod net;
mod plan;
mod refused;
mod rotation;
