//! Rows of the tables that the programs write, counted and copied in the kernel's batches.
//!
//! Nobody keeps count of them, so they are looked at one by one, which costs some 0.3 µs a row: 0.3 s
//! for a million rows, a quarter of what asking for key after key costs. The walk goes through the hash buckets once, so packets that add and remove rows meanwhile
//! cannot prolong it; it locks one bucket at a time, and does not make rows look recently used.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::sync::Arc;

use aya::Ebpf;
use aya::maps::{HashMap, Map, MapData, MapError};
use policy_common::flow::{Flow, FlowKeyV4, FlowKeyV6, FragmentKey, FragmentPorts};
use policy_common::map::{self, MapSpec};

use super::TableUse;
use super::counted::{BPF_NOEXIST, is};
use super::error::LoadError;
use super::flow_rows::FlowRows;
use super::load::take;
use super::row::Row;

/// Rows copied out of the kernel at a time. The kernel gives no part of a bucket; one with more rows
/// than this means that its hash is broken.
const BATCH: usize = 2048;

/// The tables that the programs write. Cheap to clone; may be used from any thread. By default none.
#[derive(Clone, Debug, Default)]
pub struct FlowTables(Arc<[FlowTable]>);

#[derive(Debug)]
struct FlowTable {
    name: &'static str,
    capacity: u32,
    map: OwnedFd,
    key_size: usize,
    value_size: usize,
}

impl FlowTables {
    pub(super) fn new(
        ebpf: &mut Ebpf,
        capacity: impl Fn(&MapSpec) -> u32,
    ) -> Result<Self, LoadError> {
        let v4 = (size_of::<FlowKeyV4>(), size_of::<Flow>());
        let v6 = (size_of::<FlowKeyV6>(), size_of::<Flow>());
        let fragments = (size_of::<FragmentKey>(), size_of::<FragmentPorts>());
        let tables = [
            (map::FLOWS_V4, v4),
            (map::FLOWS_V6, v6),
            (map::FLOWS_NEW_V4, v4),
            (map::FLOWS_NEW_V6, v6),
            (map::FRAGMENTS, fragments),
        ];
        let open = |(spec, (key_size, value_size)): (MapSpec, _)| {
            Ok(FlowTable {
                name: spec.name,
                capacity: capacity(&spec),
                map: descriptor(ebpf, spec.name, key_size, value_size)?,
                key_size,
                value_size,
            })
        };
        let tables: Result<Vec<_>, LoadError> = tables.into_iter().map(open).collect();
        Ok(Self(tables?.into()))
    }

    /// Use and capacity of each. Takes as long as the module says: not for the agent's loop.
    ///
    /// # Errors
    ///
    /// When the kernel refuses to be asked; with the table's name.
    pub fn count(&self) -> io::Result<Vec<TableUse>> {
        let count = |table: &FlowTable| {
            let used = table.rows().map_err(|error| {
                io::Error::new(error.kind(), format!("table {}: {error}", table.name))
            })?;
            Ok(TableUse {
                name: table.name,
                used,
                capacity: u64::from(table.capacity),
            })
        };
        self.0.iter().map(count).collect()
    }

    /// The tables of flows, for writing.
    ///
    /// # Errors
    ///
    /// When there are no more file descriptors.
    pub fn rows(&self) -> io::Result<FlowRows> {
        let open = |spec: MapSpec| {
            let table = self.0.iter().find(|table| table.name == spec.name);
            let table = table.ok_or_else(|| io::Error::other(format!("no table {}", spec.name)))?;
            MapData::from_fd(table.map.try_clone()?).map_err(io::Error::other)
        };
        let tables = [
            open(map::FLOWS_V4)?,
            open(map::FLOWS_NEW_V4)?,
            open(map::FLOWS_V6)?,
            open(map::FLOWS_NEW_V6)?,
        ];
        FlowRows::new(tables).map_err(io::Error::other)
    }
}

/// The map's own descriptor, which outlives the object's.
fn descriptor(
    ebpf: &mut Ebpf,
    name: &'static str,
    key_size: usize,
    value_size: usize,
) -> Result<OwnedFd, LoadError> {
    let failed = |source| LoadError::Table { name, source };
    let Map::LruHashMap(data) = take(ebpf, name)? else {
        return Err(failed(MapError::InvalidMapType { map_type: 0 }));
    };
    descriptor_of(&data, key_size, value_size).map_err(failed)
}

fn descriptor_of(data: &MapData, key_size: usize, value_size: usize) -> Result<OwnedFd, MapError> {
    let info = data.info()?;
    // What is copied out of the kernel is as large as the kernel thinks.
    let (key, value) = (info.key_size() as usize, info.value_size() as usize);
    if key != key_size {
        return Err(MapError::InvalidKeySize {
            size: key,
            expected: key_size,
        });
    }
    if value != value_size {
        return Err(MapError::InvalidValueSize {
            size: value,
            expected: value_size,
        });
    }
    data.fd()
        .as_fd()
        .try_clone_to_owned()
        .map_err(MapError::IoError)
}

/// Carries connections over from a table that another one replaces.
pub(super) struct Move<K> {
    from: FlowTable,
    to: HashMap<MapData, Row<K>, Row<Flow>>,
}

impl<K: bytemuck::Pod> Move<K> {
    /// From one table to another; both must have keys of this type.
    pub(super) fn new(name: &'static str, from: MapData, to: MapData) -> Result<Self, MapError> {
        let (key_size, value_size) = (size_of::<K>(), size_of::<Flow>());
        let from = FlowTable {
            name,
            capacity: from.info()?.max_entries(),
            map: descriptor_of(&from, key_size, value_size)?,
            key_size,
            value_size,
        };
        Ok(Self {
            from,
            to: Map::LruHashMap(to).try_into()?,
        })
    }

    /// Copies what the other table lacks of an endpoint's connections.
    pub(super) fn carry_over(&mut self, endpoint: u32) -> io::Result<()> {
        let failed =
            |error: MapError| io::Error::other(format!("table {}: {error}", self.from.name));
        self.from.walk(|keys, values| {
            let keys = keys.chunks_exact(self.from.key_size);
            let rows = keys.zip(values.chunks_exact(self.from.value_size));
            // Every key begins with the endpoint's id.
            for (key, value) in rows.filter(|(key, _)| key.starts_with(&endpoint.to_ne_bytes())) {
                let (key, value) = (
                    bytemuck::pod_read_unaligned(key),
                    bytemuck::pod_read_unaligned(value),
                );
                match self.to.insert(Row(key), Row(value), BPF_NOEXIST) {
                    Err(error) if !is(&error, libc::EEXIST) => return Err(failed(error)),
                    _ => {}
                }
            }
            Ok(())
        })
    }
}

/// `union bpf_attr` for the batch commands (`linux/bpf.h`).
#[repr(C)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

impl FlowTable {
    fn rows(&self) -> io::Result<u64> {
        let mut rows = 0;
        self.walk(|keys, _| {
            rows += (keys.len() / self.key_size) as u64;
            Ok(())
        })?;
        Ok(rows)
    }

    /// Shows `visit` batch after batch of keys and their values.
    fn walk(&self, mut visit: impl FnMut(&[u8], &[u8]) -> io::Result<()>) -> io::Result<()> {
        let mut keys = vec![0_u8; BATCH * self.key_size];
        let mut values = vec![0_u8; BATCH * self.value_size];
        let mut position: Option<u32> = None;
        loop {
            let (found, next) = self.batch(position, &mut keys, &mut values)?;
            let found = found as usize;
            visit(
                &keys[..found * self.key_size],
                &values[..found * self.value_size],
            )?;
            match next {
                Some(next) => position = Some(next),
                None => return Ok(()),
            }
        }
    }

    /// Copies the rows of the next buckets from `position` on, and returns how many they are and
    /// where the rest begins.
    fn batch(
        &self,
        position: Option<u32>,
        keys: &mut [u8],
        values: &mut [u8],
    ) -> io::Result<(u32, Option<u32>)> {
        const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
        let mut next = 0_u32;
        let mut attr = BatchAttr {
            in_batch: position
                .as_ref()
                .map_or(0, |position| std::ptr::from_ref(position) as u64),
            out_batch: std::ptr::from_mut(&mut next) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: BATCH as u32,
            map_fd: self.map.as_raw_fd().cast_unsigned(),
            elem_flags: 0,
            flags: 0,
        };
        // SAFETY: the attributes are this command's; both buffers hold `count` rows of the sizes that
        // the map was asked for when it was opened, and a hash map's positions are 32 bits.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                BPF_MAP_LOOKUP_BATCH,
                std::ptr::from_mut(&mut attr),
                size_of::<BatchAttr>(),
            )
        };
        if result == 0 {
            return Ok((attr.count, Some(next)));
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            // The last buckets.
            Some(libc::ENOENT) => Ok((attr.count, None)),
            _ => Err(error),
        }
    }
}
