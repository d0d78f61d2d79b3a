//! Filters of clsact that a TCX program of somebody else has come before.
//!
//! Such a program may let a packet pass for good, and ours would never see it. So these endpoints and exits move to
//! TCX, in front of it. For the moment in which both are attached, a packet may be judged twice, by the same
//! tables.

use super::attach::{Haste, Mode, current_name, has_tcx_programs};
use super::{AttachError, Dataplane, LinkLayer};

impl Dataplane {
    /// Moves each interface's programs that are overtaken, and says which interface's, with what came of it. Costs two
    /// system calls for each interface where clsact holds them.
    pub fn move_overtaken(&mut self) -> Vec<(String, Result<(), AttachError>)> {
        if Mode::of_this_kernel() == Mode::Clsact {
            return Vec::new();
        }
        let endpoints = self.attachments.iter();
        let endpoints = endpoints.map(|(ifindex, endpoint)| (*ifindex, endpoint.mode, None));
        let exits = self.exits.iter();
        let exits = exits.map(|(ifindex, exit)| (*ifindex, exit.mode, Some(exit.layer)));
        let by_clsact = endpoints
            .chain(exits)
            .filter(|(_, mode, _)| *mode == Mode::Clsact);
        // One that is gone is detached elsewhere.
        let overtaken: Vec<(u32, String, Option<LinkLayer>)> = by_clsact
            .filter_map(|(ifindex, _, exit)| Some((ifindex, current_name(ifindex, "").ok()?, exit)))
            .filter(|(ifindex, ..)| has_tcx_programs(*ifindex))
            .collect();
        let moved = overtaken.into_iter().map(|(ifindex, interface, exit)| {
            let outcome = match exit {
                None => self.attach(ifindex, &interface, Haste::None),
                Some(layer) => self.attach_exit(ifindex, &interface, layer, Haste::None),
            };
            (interface, outcome)
        });
        moved.collect()
    }
}
