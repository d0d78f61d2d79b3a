//! Lists in pages: what a first page began is continued over the same objects.

use std::collections::VecDeque;
use std::sync::Arc;

use super::Failure;
use super::object::Object;

/// How many unfinished lists are remembered; the oldest go first, as if they were compacted.
const REMEMBERED: usize = 64;

/// Objects as a list's first page found them.
#[derive(Clone, Debug)]
pub(super) struct Snapshot {
    pub(super) version: u64,
    pub(super) objects: Arc<[Arc<Object>]>,
}

/// Lists that can be continued.
#[derive(Debug, Default)]
pub(super) struct Pages {
    next: u64,
    begun: VecDeque<(u64, Snapshot)>,
}

impl Pages {
    /// Remembers a list, by a number.
    pub(super) fn begin(&mut self, snapshot: Snapshot) -> u64 {
        self.next += 1;
        self.begun.push_back((self.next, snapshot));
        if self.begun.len() > REMEMBERED {
            self.begun.pop_front();
        }
        self.next
    }

    /// The list that a token continues, with its number, and the place where.
    pub(super) fn resume(&self, token: &str) -> Result<(u64, Snapshot, usize), Failure> {
        let (number, start) = token
            .split_once('.')
            .and_then(|(number, start)| Some((number.parse().ok()?, start.parse().ok()?)))
            .ok_or_else(|| Failure::bad_request("continue key is not valid"))?;
        let begun = self.begun.iter().find(|(begun, _)| *begun == number);
        let (_, snapshot) = begun.ok_or_else(Failure::continue_too_old)?;
        Ok((number, snapshot.clone(), start))
    }

    /// Forgets all of them.
    pub(super) fn forget(&mut self) {
        self.begun.clear();
    }
}

/// The token that continues list `number` at its object `start`.
pub(super) fn token(number: u64, start: usize) -> String {
    format!("{number}.{start}")
}
