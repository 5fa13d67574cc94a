//! The host's network against the running kernel, in namespaces that each test makes for itself. Needs root.

mod adoption;
mod bed;
mod converge;
mod demux;
mod facts;
mod filter;
mod keep_source;
mod mark_input;
mod relay;
mod routes;
mod support;
mod underlay;
