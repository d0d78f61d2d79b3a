//! Tables that only this process writes, with the number of their rows: counted as they are written,
//! because the kernel can only be asked for one row after the other.
//!
//! Invariant: nobody else writes a table once it is wrapped; rows that it has by then are counted.

use std::collections::HashSet;
use std::hash::Hash;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, MapError};

use super::error::ApplyError;
use super::load::Data;
use super::row::Row;

/// Refuses to replace a row.
pub(super) const BPF_NOEXIST: u64 = 1;

/// A hash table.
pub(super) struct HashRows<K, V> {
    table: HashMap<Data, Row<K>, Row<V>>,
    name: &'static str,
    rows: u64,
}

impl<K: bytemuck::Pod, V: bytemuck::Pod> HashRows<K, V> {
    pub(super) fn new(table: HashMap<Data, Row<K>, Row<V>>, name: &'static str) -> Self {
        let rows = table.keys().count() as u64;
        Self { table, name, rows }
    }

    /// Every row.
    pub(super) fn all(&self) -> Result<Vec<(K, V)>, MapError> {
        let rows = self.table.iter();
        rows.map(|row| row.map(|(Row(key), Row(value))| (key, value)))
            .collect()
    }

    pub(super) fn get(&self, key: K) -> Result<Option<V>, ApplyError> {
        match self.table.get(&Row(key), 0) {
            Ok(Row(value)) => Ok(Some(value)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(source) => Err(ApplyError::map(self.name, source)),
        }
    }

    pub(super) fn put(&mut self, key: K, value: V) -> Result<(), ApplyError> {
        let failed = |source| ApplyError::map(self.name, source);
        // Asked this way, the kernel says whether the row is new.
        match self.table.insert(Row(key), Row(value), BPF_NOEXIST) {
            Ok(()) => {
                self.rows += 1;
                Ok(())
            }
            Err(error) if is(&error, libc::EEXIST) => self.replace(key, value),
            Err(error) => Err(failed(error)),
        }
    }

    /// Puts a row in the place of one that is there.
    pub(super) fn replace(&mut self, key: K, value: V) -> Result<(), ApplyError> {
        self.table
            .insert(Row(key), Row(value), 0)
            .map_err(|source| ApplyError::map(self.name, source))
    }

    pub(super) fn delete(&mut self, key: K) -> Result<(), ApplyError> {
        if was_there(self.table.remove(&Row(key)), self.name)? {
            self.rows -= 1;
        }
        Ok(())
    }

    pub(super) fn rows(&self) -> u64 {
        self.rows
    }
}

/// A prefix table. Kernels before 6.13 ignore [`BPF_NOEXIST`] here, and a lookup finds shorter prefixes
/// too, so the keys themselves are kept.
pub(super) struct TrieRows<K, V> {
    table: LpmTrie<Data, Row<K>, Row<V>>,
    name: &'static str,
    keys: HashSet<(u32, K)>,
}

impl<K: bytemuck::Pod + Eq + Hash, V: bytemuck::Pod> TrieRows<K, V> {
    pub(super) fn new(table: LpmTrie<Data, Row<K>, Row<V>>, name: &'static str) -> Self {
        let keys = table.keys().flatten();
        let keys = keys.map(|key| (key.prefix_len(), key.data().0)).collect();
        Self { table, name, keys }
    }

    /// Every row: prefix length, data, value.
    pub(super) fn all(&self) -> Result<Vec<(u32, K, V)>, MapError> {
        let rows = self.table.iter();
        rows.map(|row| row.map(|(key, Row(value))| (key.prefix_len(), key.data().0, value)))
            .collect()
    }

    pub(super) fn put(&mut self, length: u32, data: K, value: V) -> Result<(), ApplyError> {
        self.table
            .insert(&Key::new(length, Row(data)), Row(value), 0)
            .map_err(|source| ApplyError::map(self.name, source))?;
        self.keys.insert((length, data));
        Ok(())
    }

    pub(super) fn delete(&mut self, length: u32, data: K) -> Result<(), ApplyError> {
        was_there(self.table.remove(&Key::new(length, Row(data))), self.name)?;
        self.keys.remove(&(length, data));
        Ok(())
    }

    pub(super) fn rows(&self) -> u64 {
        self.keys.len() as u64
    }
}

/// An array, where some values mean that there is no row.
pub(super) struct ArrayRows<V: bytemuck::Pod> {
    table: Array<Data, Row<V>>,
    name: &'static str,
    capacity: u32,
    is_row: fn(&V) -> bool,
    rows: u64,
}

impl<V: bytemuck::Pod> ArrayRows<V> {
    pub(super) fn new(
        table: Array<Data, Row<V>>,
        name: &'static str,
        capacity: u32,
        is_row: fn(&V) -> bool,
    ) -> Self {
        let filled = table.iter().flatten().filter(|row| is_row(&row.0));
        let rows = filled.count() as u64;
        Self {
            table,
            name,
            capacity,
            is_row,
            rows,
        }
    }

    /// The row at an index, whatever is in it.
    pub(super) fn get(&self, index: u32) -> Result<V, MapError> {
        self.table.get(&index, 0).map(|row| row.0)
    }

    /// Every row that is one, with its index.
    pub(super) fn all(&self) -> Result<Vec<(u32, V)>, MapError> {
        let mut rows = Vec::new();
        for index in 0..self.capacity {
            let Row(value) = self.table.get(&index, 0)?;
            if (self.is_row)(&value) {
                rows.push((index, value));
            }
        }
        Ok(rows)
    }

    pub(super) fn capacity(&self) -> u32 {
        self.capacity
    }

    pub(super) fn put(&mut self, index: u32, value: V) -> Result<(), ApplyError> {
        if index >= self.capacity {
            return Err(ApplyError::OutOfRange {
                table: self.name,
                index,
                capacity: self.capacity,
            });
        }
        let failed = |source| ApplyError::map(self.name, source);
        let before = self.table.get(&index, 0).map_err(failed)?;
        self.table.set(index, Row(value), 0).map_err(failed)?;
        self.rows -= u64::from((self.is_row)(&before.0));
        self.rows += u64::from((self.is_row)(&value));
        Ok(())
    }

    pub(super) fn rows(&self) -> u64 {
        self.rows
    }
}

/// Whether a row that was to be removed was there.
pub(super) fn was_there(
    result: Result<(), MapError>,
    table: &'static str,
) -> Result<bool, ApplyError> {
    match result {
        Ok(()) => Ok(true),
        Err(MapError::KeyNotFound) => Ok(false),
        Err(error) if is(&error, libc::ENOENT) => Ok(false),
        Err(error) => Err(ApplyError::map(table, error)),
    }
}

/// Whether the kernel refused with this error number.
pub(super) fn is(error: &MapError, number: i32) -> bool {
    matches!(error, MapError::SyscallError(error) if error.io_error.raw_os_error() == Some(number))
}
