//! Ranges of rows in a table that is an array.

use std::collections::BTreeMap;

/// Hands out ranges of consecutive rows, the lowest that is long enough.
#[derive(Debug)]
pub(crate) struct Ranges {
    /// First row and length of what is free, never two that touch.
    free: BTreeMap<u32, u32>,
}

impl Ranges {
    /// Every row from `first` up to `end` is free.
    pub(crate) fn new(first: u32, end: u32) -> Self {
        let free = (first < end).then(|| (first, end - first));
        Self {
            free: free.into_iter().collect(),
        }
    }

    /// The first row of a range of `len` rows, which must not be 0; `None` when none is long enough.
    pub(crate) fn allocate(&mut self, len: u32) -> Option<u32> {
        let (first, room) = self
            .free
            .iter()
            .map(|(first, room)| (*first, *room))
            .find(|(_, room)| *room >= len)?;
        self.free.remove(&first);
        if room > len {
            self.free.insert(first + len, room - len);
        }
        Some(first)
    }

    /// Takes a range out of what is free, as far as it is.
    pub(crate) fn take(&mut self, first: u32, len: u32) {
        let end = first + len;
        let touched: Vec<(u32, u32)> = self
            .free
            .range(..end)
            .map(|(start, room)| (*start, start + room))
            .filter(|(_, free_end)| *free_end > first)
            .collect();
        for (start, free_end) in touched {
            self.free.remove(&start);
            if start < first {
                self.free.insert(start, first - start);
            }
            if free_end > end {
                self.free.insert(end, free_end - end);
            }
        }
    }

    /// Takes a range back.
    pub(crate) fn release(&mut self, mut first: u32, mut len: u32) {
        if let Some(room) = self.free.remove(&(first + len)) {
            len += room;
        }
        if let Some((before, room)) = self.free.range(..first).next_back()
            && before + room == first
        {
            first = *before;
            len += room;
        }
        self.free.insert(first, len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_released_can_be_had_again_as_one() {
        let mut ranges = Ranges::new(1, 11);
        let taken: Vec<_> = [4, 3, 3].map(|len| ranges.allocate(len)).into();
        assert_eq!(taken, [Some(1), Some(5), Some(8)]);
        assert_eq!(ranges.allocate(1), None);
        // In an order in which each touches one neighbour, or both.
        ranges.release(1, 4);
        ranges.release(8, 3);
        assert_eq!(ranges.allocate(5), None);
        ranges.release(5, 3);
        assert_eq!(ranges.allocate(10), Some(1));
        ranges.release(1, 10);
        ranges.take(3, 2);
        assert_eq!(ranges.allocate(3), Some(5));
        assert_eq!(ranges.allocate(2), Some(1));
        assert_eq!(ranges.allocate(4), None);
        assert_eq!(Ranges::new(1, 1).allocate(1), None);
    }
}
