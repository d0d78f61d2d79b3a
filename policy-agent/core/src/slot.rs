//! Endpoint ids: a slot that is unique among live endpoints, and the generation of its user.

use std::collections::{BTreeSet, VecDeque};

/// Hands out endpoint ids, `generation << 16 | slot`.
#[derive(Debug)]
pub(crate) struct Slots {
    /// The highest slot that may be handed out.
    highest: u16,
    /// Slots that were used before, the longest unused first.
    free: VecDeque<u32>,
    used_ever: u16,
    /// Of slots that were not used before, in the upper 16 bits.
    generation: u32,
    /// Slots that were taken before the first was handed out.
    taken: BTreeSet<u16>,
}

impl Slots {
    /// Slots up to `highest`, but never past 16 bits.
    pub(crate) fn new(highest: u32) -> Self {
        Self {
            highest: u16::try_from(highest).unwrap_or(u16::MAX),
            free: VecDeque::new(),
            used_ever: 0,
            generation: 0,
            taken: BTreeSet::new(),
        }
    }

    /// A fresh id; `None` when every slot is in use.
    pub(crate) fn allocate(&mut self) -> Option<u32> {
        while self.used_ever < self.highest {
            self.used_ever += 1;
            let slot = self.used_ever;
            if !self.taken.contains(&slot) {
                return Some(self.generation | u32::from(slot));
            }
        }
        self.free
            .pop_front()
            .map(|former| former.wrapping_add(1 << 16))
    }

    /// Begins with a generation, 16 bits of it, and ids that endpoints have already.
    pub(crate) fn begin_generation(&mut self, generation: u32, ids: &[u32]) {
        self.generation = generation << 16;
        self.taken = ids.iter().map(|id| *id as u16).collect();
    }

    /// The generation that this began with.
    pub(crate) const fn generation(&self) -> u32 {
        self.generation >> 16
    }

    /// Takes an id back.
    pub(crate) fn release(&mut self, id: u32) {
        self.free.push_back(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reused_slot_has_a_new_generation() {
        let mut slots = Slots::new(u32::MAX);
        let ids: Vec<_> = std::iter::from_fn(|| slots.allocate()).collect();
        assert_eq!(ids.len(), 65_535);
        assert_eq!((ids[0], ids[65_534]), (1, 65_535));
        slots.release(7);
        assert_eq!(slots.allocate(), Some(1 << 16 | 7));
        assert_eq!(slots.allocate(), None);
        let mut slots = Slots::new(65_535);
        slots.begin_generation(64, &[1, 3 | 5 << 16]);
        let ids = [slots.allocate(), slots.allocate()];
        assert_eq!(ids, [Some(64 << 16 | 2), Some(64 << 16 | 4)]);
    }

    #[test]
    fn no_slot_is_beyond_what_fits_into_a_mark() {
        let mut slots = Slots::new(2);
        let ids: Vec<_> = std::iter::from_fn(|| slots.allocate()).collect();
        assert_eq!(ids, [1, 2]);
        slots.release(2);
        assert_eq!(slots.allocate(), Some(1 << 16 | 2));
    }
}
