//! The host's network against the running kernel, in namespaces that each test makes for itself. Needs root.

mod adoption;
mod converge;
mod demux;
mod facts;
mod relay;
mod support;
mod underlay;
