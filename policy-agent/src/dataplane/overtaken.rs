//! Filters of clsact that a TCX program of somebody else has come before.
//!
//! Such a program may let a packet pass for good, and ours would never see it. So these endpoints move to
//! TCX, in front of it. For the moment in which both are attached, a packet may be judged twice, by the same
//! tables.

use super::attach::{Haste, Mode, current_name, has_tcx_programs};
use super::{AttachError, Dataplane};

impl Dataplane {
    /// Moves each endpoint that is overtaken, and says which, with what came of it. Costs two system calls for each
    /// endpoint that clsact holds.
    pub fn move_overtaken(&mut self) -> Vec<(String, Result<(), AttachError>)> {
        if Mode::of_this_kernel() == Mode::Clsact {
            return Vec::new();
        }
        let by_clsact = self.attachments.iter();
        let by_clsact = by_clsact.filter(|(_, attachment)| attachment.mode == Mode::Clsact);
        // One that is gone is detached elsewhere.
        let overtaken: Vec<_> = by_clsact
            .filter_map(|(ifindex, _)| Some((*ifindex, current_name(*ifindex, "").ok()?)))
            .filter(|(ifindex, _)| has_tcx_programs(*ifindex))
            .collect();
        let moved = overtaken.into_iter().map(|(ifindex, interface)| {
            let outcome = self.attach(ifindex, &interface, Haste::None);
            (interface, outcome)
        });
        moved.collect()
    }
}
