//! Our engine and the kernel's WireGuard understand each other.

use crate::interop::Rival;

#[test]
fn payloads_of_all_sizes_come_back_from_the_kernel_in_both_families() {
    Rival::Kernel.meets_us();
}
