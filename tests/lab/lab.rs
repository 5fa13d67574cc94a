//! A lab of network namespaces: an internet, NAT routers, hosts, pods, and real agents in them.
//!
//! One process owns one prefix, `fs-PID-`; every lab of that process adds a number. A lab that is dropped
//! kills what runs in its namespaces and deletes them; what a killed run leaves behind is found by its dead
//! PID (`scripts/clean`). Nothing here touches the namespace the tests are started in.
//!
//! The internet is a router, not a bridge: every attachment is its own subnet, so that a TTL runs down and
//! nobody shares a link with anybody. Addresses are ordinary global ones, which no packet carries outside.

pub mod agent;
pub mod coturn;
pub mod gateway;
pub mod internet;
pub mod nat;
pub mod netns;
pub mod rfc5780;
pub mod tap;
pub mod traffic;
pub mod wait;
pub mod wire;

pub use agent::Node;
pub use internet::{Host, Lab, LinkState, Site};
pub use nat::{Nat, NatKind};
