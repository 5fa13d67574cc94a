//! Agents and manifests against a real API server: kube-apiserver with etcd, RBAC and admission, in a namespace. Needs
//! root, and `FARSPAN_KUBE_TOOLS`: the folder that `scripts/lib/kube.sh` builds (`scripts/test kube` does both).
#![expect(clippy::disallowed_methods, reason = "these tests measure real time")]

#[expect(dead_code, unused_imports, reason = "the lab serves other tests, too")]
#[path = "../lab/lab.rs"]
mod lab;

/// What carries the tunnels of these tests.
pub const BACKEND: &str = "userspace";

mod agents;
mod cluster;
mod external;
mod host_unit;
mod manifests;
mod products;
mod refusals;
mod replaced;
mod rights;
mod scale;
mod server;
mod user;
mod verbs;
