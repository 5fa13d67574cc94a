//! The whole mesh on a simulated internet: scenarios by name, then random worlds by seed.

mod cost;
mod matrix;
mod memory;
mod property;
mod scale;
mod world;

mod scenarios {
    mod failover;
    mod hard;
    mod healing;
    mod kubernetes;
    mod lazy;
    mod meeting;
    mod mtu;
    mod own_nat;
    mod quiet;
    mod relaying;
    mod trial;
    mod trust;
    mod turning;
}
