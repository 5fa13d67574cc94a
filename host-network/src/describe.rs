//! A plan in words, for `--dry-run`.

use mesh_types::HostPlan;

/// Lines of text, one for each thing the host would hold. No secrets.
pub fn describe(plan: &HostPlan) -> String {
    format!("device {}\n", plan.device.name)
}
