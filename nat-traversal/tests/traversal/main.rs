//! Whole [`nat_traversal::Traversal`]s in a tiny internet.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod faults;
mod net;
mod paths;
mod relay;
mod safety;
mod searches;
