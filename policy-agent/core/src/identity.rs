//! Identities: interned sets of atoms, and the addresses and prefixes that have each.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::atom::{AtomId, Atoms};
use crate::prefix::AtomSet;

/// One identity.
#[derive(Debug)]
pub(crate) struct IdentityRecord {
    pub(crate) set: AtomSet,
    pub(crate) addresses: BTreeSet<IpAddr>,
    pub(crate) prefixes: BTreeSet<IpNet>,
}

impl IdentityRecord {
    pub(crate) fn is_unused(&self) -> bool {
        self.addresses.is_empty() && self.prefixes.is_empty()
    }
}

/// Numbers above 0, the lowest free one first.
#[derive(Debug)]
pub(crate) struct Numbers {
    free: BTreeSet<u32>,
    next: u32,
}

impl Numbers {
    pub(crate) const fn starting_at(first: u32) -> Self {
        Self {
            free: BTreeSet::new(),
            next: first,
        }
    }

    /// Takes numbers before any is handed out.
    pub(crate) fn reserve(&mut self, taken: &BTreeSet<u32>) {
        let Some(last) = taken.last() else { return };
        let first = self.next;
        self.next = last + 1;
        self.free = (first..self.next).filter(|n| !taken.contains(n)).collect();
    }

    pub(crate) fn allocate(&mut self) -> u32 {
        self.free.pop_first().unwrap_or_else(|| {
            self.next += 1;
            self.next - 1
        })
    }

    /// The highest of the next `count` numbers; `count` is not 0.
    pub(crate) fn highest_of(&self, count: usize) -> u32 {
        match count.checked_sub(self.free.len() + 1) {
            Some(fresh) => self.next + fresh as u32,
            None => self.free.iter().nth(count - 1).copied().unwrap_or(0),
        }
    }

    pub(crate) fn release(&mut self, number: u32) {
        self.free.insert(number);
    }
}

/// Every identity but 0.
#[derive(Debug)]
pub(crate) struct Identities {
    ids: HashMap<AtomSet, u32>,
    records: BTreeMap<u32, IdentityRecord>,
    pub(crate) numbers: Numbers,
}

impl Default for Identities {
    fn default() -> Self {
        Self {
            ids: HashMap::new(),
            records: BTreeMap::new(),
            numbers: Numbers::starting_at(1),
        }
    }
}

impl Identities {
    /// The number of a set of atoms, 0 for the empty one.
    pub(crate) fn intern(&mut self, set: &AtomSet, atoms: &mut Atoms) -> u32 {
        if set.is_empty() {
            return 0;
        }
        if let Some(id) = self.ids.get(set) {
            return *id;
        }
        let id = self.numbers.allocate();
        self.ids.insert(set.clone(), id);
        for atom in set.iter() {
            if let Some(record) = atoms.get_mut(*atom) {
                record.identities.insert(id);
            }
        }
        self.records.insert(
            id,
            IdentityRecord {
                set: set.clone(),
                addresses: BTreeSet::new(),
                prefixes: BTreeSet::new(),
            },
        );
        id
    }

    /// Forgets an identity; its number is free after `numbers.release`.
    pub(crate) fn forget(&mut self, id: u32, atoms: &mut Atoms) {
        let Some(record) = self.records.remove(&id) else {
            return;
        };
        self.ids.remove(&record.set);
        for atom in record.set.iter() {
            if let Some(record) = atoms.get_mut(*atom) {
                record.identities.remove(&id);
            }
        }
    }

    pub(crate) fn get(&self, id: u32) -> Option<&IdentityRecord> {
        self.records.get(&id)
    }

    pub(crate) fn get_mut(&mut self, id: u32) -> Option<&mut IdentityRecord> {
        self.records.get_mut(&id)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&u32, &IdentityRecord)> {
        self.records.iter()
    }

    /// Atoms of an identity, none for 0.
    pub(crate) fn atoms(&self, id: u32) -> &[AtomId] {
        self.records.get(&id).map_or(&[], |record| &record.set)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_number_is_the_one_that_comes() {
        for count in 1..6 {
            let mut numbers = Numbers::starting_at(2);
            for _ in 0..5 {
                numbers.allocate();
            }
            numbers.release(4);
            numbers.release(2);
            let promised = numbers.highest_of(count);
            let given = (0..count).map(|_| numbers.allocate()).max();
            assert_eq!(Some(promised), given);
        }
    }
}
