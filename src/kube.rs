//! What this machine says to a Kubernetes API server, and what it reads there.

pub mod crd;
