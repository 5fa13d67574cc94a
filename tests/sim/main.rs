//! The whole mesh on a simulated internet: scenarios by name, then random worlds by seed.

mod matrix;
mod property;
mod world;

mod scenarios {
    mod healing;
    mod meeting;
    mod mtu;
    mod quiet;
    mod trust;
}
