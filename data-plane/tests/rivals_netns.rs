//! The engine and other WireGuard programs understand each other. Needs root and programs: run by `scripts/test root`.
//! The kernel's WireGuard is met in `tests/kernel`.

use interop::Rival;

#[expect(dead_code, reason = "the kernel is met in the virtual machine")]
mod interop;
#[expect(dead_code, reason = "the lab serves other tests too")]
mod netns;

/// Paths of wireguard-go and its like, separated by colons; set by `scripts/test`.
const PROGRAMS: &str = "FARSPAN_PLAIN_WIREGUARDS";

#[test]
fn payloads_of_all_sizes_come_back_from_other_programs_in_both_families() {
    let programs = std::env::var(PROGRAMS).unwrap_or_else(|_| {
        panic!(
            "{PROGRAMS} names no programs: run this test by scripts/test root, which builds them"
        )
    });
    for program in std::env::split_paths(&programs).filter(|path| !path.as_os_str().is_empty()) {
        Rival::Program(&program).meets_us();
    }
}
