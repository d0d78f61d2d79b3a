//! Endpoint ids: a slot that is unique among live endpoints, and the generation of its user.

use std::collections::VecDeque;

/// Hands out endpoint ids, `generation << 16 | slot`.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    /// Slots that were used before, the longest unused first.
    free: VecDeque<u32>,
    used_ever: u16,
}

impl Slots {
    /// A fresh id; `None` when every slot is in use.
    pub(crate) fn allocate(&mut self) -> Option<u32> {
        if let Some(slot) = self.used_ever.checked_add(1) {
            self.used_ever = slot;
            return Some(u32::from(slot));
        }
        self.free
            .pop_front()
            .map(|former| former.wrapping_add(1 << 16))
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
        let mut slots = Slots::default();
        let ids: Vec<_> = std::iter::from_fn(|| slots.allocate()).collect();
        assert_eq!(ids.len(), 65_535);
        assert_eq!((ids[0], ids[65_534]), (1, 65_535));
        slots.release(7);
        assert_eq!(slots.allocate(), Some(1 << 16 | 7));
        assert_eq!(slots.allocate(), None);
    }
}
