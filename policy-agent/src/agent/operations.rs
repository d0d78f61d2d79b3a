//! Counts what was asked of the kernel.

use std::collections::BTreeMap;

use policy_core::op::Op;

/// Attaching the programs to an endpoint's interface.
pub(super) const ATTACH: &str = "attach";
/// Detaching them.
pub(super) const DETACH: &str = "detach";
/// Attaching an exit to another interface.
pub(super) const ATTACH_EXIT: &str = "attach_exit";
/// Detaching it.
pub(super) const DETACH_EXIT: &str = "detach_exit";

/// How often something was done, and how often it failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Done.
    pub succeeded: u64,
    /// Tried in vain; it is tried again.
    pub failed: u64,
}

/// Tallies by kind: those of [`Op::KINDS`], and `attach` and `detach` of endpoints and exits. Every kind is there from the start.
#[derive(Clone, Debug)]
pub struct Operations(BTreeMap<&'static str, Tally>);

impl Default for Operations {
    fn default() -> Self {
        let kinds = Op::KINDS
            .into_iter()
            .chain([ATTACH, DETACH, ATTACH_EXIT, DETACH_EXIT]);
        Self(kinds.map(|kind| (kind, Tally::default())).collect())
    }
}

impl Operations {
    /// Notes the outcome of one attempt.
    pub(super) fn note<T, E>(&mut self, kind: &'static str, outcome: &Result<T, E>) {
        let tally = self.0.entry(kind).or_default();
        match outcome {
            Ok(_) => tally.succeeded += 1,
            Err(_) => tally.failed += 1,
        }
    }

    /// The tallies, sorted by kind.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, Tally)> {
        self.0.iter().map(|(kind, tally)| (*kind, *tally))
    }
}
