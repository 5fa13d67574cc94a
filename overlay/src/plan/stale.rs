//! What of the plan does not follow any more from what is known: said by whoever changes something, made good by
//! [`crate::overlay::Overlay::refresh_plan`].

use std::collections::BTreeSet;

use mesh_types::PeerId;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Stale {
    any: bool,
    pub(super) all: bool,
    /// The directory describes somebody otherwise.
    pub(super) described: bool,
    pub(super) peers: BTreeSet<PeerId>,
}

impl Stale {
    /// Perhaps everything.
    pub(crate) fn everything(&mut self) {
        (self.any, self.all) = (true, true);
    }

    /// Only what stands in it once, whoever the peers are, and of those with a path.
    pub(crate) fn frame(&mut self) {
        self.any = true;
    }

    /// What stands in it of one peer.
    pub(crate) fn peer(&mut self, id: PeerId) {
        self.any = true;
        self.peers.insert(id);
    }

    /// The same, and the directory describes it otherwise.
    pub(crate) fn described(&mut self, id: PeerId) {
        self.described = true;
        self.peer(id);
    }

    /// Is the plan another one than it should be?
    pub(crate) fn is_any(&self) -> bool {
        self.any
    }
}
