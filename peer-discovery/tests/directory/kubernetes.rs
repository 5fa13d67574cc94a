//! A cluster vouches for its Nodes.

mod claims;
mod guard;
mod records;
mod scale;
mod world;
