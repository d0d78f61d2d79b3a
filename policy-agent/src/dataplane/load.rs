//! Loading: kernel check, sizes, constants, programs, pins.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aya::maps::MapData;
use aya::programs::SchedClassifier;
use aya::util::KernelVersion;
use aya::{EbpfError, EbpfLoader};
use policy_common::config::{DatapathConfig, Timeouts};
use policy_common::map;

use super::attach::{AttachMode, Mode};
use super::changeover::Changeover;
use super::error::LoadError;
use super::pinned::Found;
use super::removal::unless_gone;
use super::row::Row;
use super::tables::Tables;
use super::verify::TablePins;
use super::watch::Watched;
use super::{Dataplane, attach, bpffs, changeover, clock, pinned};

/// The eBPF object, empty when the build was told of none.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/portcullis.o"));

/// Programs in the object, by the name of their function.
pub(super) const FROM_POD: &str = "from_pod";
/// See [`FROM_POD`].
pub(super) const TO_POD: &str = "to_pod";
/// See [`FROM_POD`].
pub(super) const EXIT: &str = "exit";
/// See [`FROM_POD`].
pub(super) const EXIT_L3: &str = "exit_l3";
/// See [`FROM_POD`].
pub(super) const EXIT_IB: &str = "exit_ib";
/// See [`FROM_POD`].
pub(super) const FROM_NODE: &str = "from_node";

/// What the dataplane is loaded with.
#[derive(Clone, Debug)]
pub struct DataplaneConfig {
    /// Directory for pins, on a BPF file system.
    pub bpffs: PathBuf,
    /// Whether drops are reported as events.
    pub log_drops: bool,
    /// Whether the programs log their slow-path decisions through aya-log.
    pub log_decisions: bool,
    /// Table sizes that differ from those of `policy_common::map`, by table name.
    pub capacities: BTreeMap<String, u32>,
    /// Flow timeouts in seconds.
    pub timeouts: Timeouts,
    /// Drop events per CPU and second.
    pub events_per_second: u32,
    /// How programs are attached.
    pub attach_mode: AttachMode,
    /// Whether maps are pinned; tests that only run packets do without.
    pub pin: bool,
}

impl Default for DataplaneConfig {
    fn default() -> Self {
        Self {
            bpffs: PathBuf::from("/sys/fs/bpf/portcullis"),
            log_drops: true,
            log_decisions: false,
            capacities: BTreeMap::new(),
            timeouts: Timeouts::SECONDS,
            events_per_second: 100,
            attach_mode: AttachMode::Auto,
            pin: true,
        }
    }
}

pub(super) fn load(config: &DataplaneConfig) -> Result<Dataplane, LoadError> {
    if OBJECT.is_empty() {
        return Err(LoadError::NoObject);
    }
    check_kernel()?;
    if config.attach_mode == AttachMode::Tcx && Mode::of_this_kernel() != Mode::Tcx {
        return Err(LoadError::NoTcx);
    }
    let locked_memory = LockedMemory::claim();
    let capacities = capacities(&config.capacities)?;
    if config.pin {
        bpffs::mount_for(&config.bpffs)?;
    }

    let hz = clock::jiffies_per_second();
    let shift = clock::shift(hz);
    let second = (hz >> shift).max(1);
    let constants = Row(DatapathConfig {
        timeouts: config.timeouts.to_ticks(hz, shift),
        event_window: second,
        event_limit: if config.log_drops {
            config.events_per_second
        } else {
            0
        },
        endpoint_slots: capacities[map::ENDPOINTS.name],
        second,
        clock_shift: shift,
        log_decisions: u32::from(config.log_decisions),
    });
    let mut loader = EbpfLoader::new();
    loader.override_global("CONFIG", &constants, true);
    for (name, capacity) in &capacities {
        loader.map_max_entries(name, *capacity);
    }
    let found = if config.pin {
        changeover::recover(&config.bpffs)?;
        pinned::look(&config.bpffs, &capacities)
    } else {
        Found::Nothing
    };
    let reused = found.reused();
    for name in &reused {
        loader.map_pin_path(name, config.bpffs.join(name));
    }
    let mut ebpf = loader
        .load(OBJECT)
        .map_err(|error| refused(error, locked_memory))?;
    let mut ids = BTreeSet::new();
    for name in [FROM_POD, TO_POD, EXIT, EXIT_L3, EXIT_IB, FROM_NODE] {
        let failed = |source| LoadError::Program { name, source };
        let program: &mut SchedClassifier = ebpf
            .program_mut(name)
            .ok_or(LoadError::Missing(name))?
            .try_into()
            .map_err(failed)?;
        program.load().map_err(failed)?;
        ids.insert(program.info().map_err(failed)?.id());
    }
    if config.pin {
        bpffs::make(&config.bpffs)?;
        let links_dir = attach::links(&config.bpffs);
        match found {
            Found::Nothing => {
                changeover::forget(&config.bpffs)?;
                pin_maps(&ebpf, &config.bpffs)?;
            }
            Found::All => {}
            Found::Some(_) => Changeover::stage(&ebpf, &config.bpffs, &reused)?,
        }
        fs::create_dir_all(&links_dir).map_err(|source| LoadError::Pin {
            path: links_dir.clone(),
            source,
        })?;
    }
    let mut tables = Tables::new(&mut ebpf, &capacities)?;
    let former = match found {
        Found::Nothing => None,
        Found::All => Some(tables.read().map_err(LoadError::Former)?),
        Found::Some(kept) => Some(kept.former),
    };
    let table_pins = match config.pin {
        // What waits is ours, and what it is to replace is not.
        true => Some(TablePins::open([
            &changeover::next(&config.bpffs),
            &config.bpffs,
        ])?),
        false => None,
    };
    Ok(Dataplane {
        table_pins,
        changeover: config.pin.then(|| Changeover::begin(&config.bpffs)),
        ebpf,
        tables,
        former,
        attachments: BTreeMap::new(),
        netdevs: BTreeMap::new(),
        watched: Watched::new(ids),
        tc: None,
        attach_mode: config.attach_mode,
        bpffs: config.bpffs.clone(),
    })
}

fn check_kernel() -> Result<(), LoadError> {
    match KernelVersion::current() {
        Ok(version) if version < KernelVersion::new(5, 10, 0) => {
            let found = nix::sys::utsname::uname()
                .map(|name| name.release().to_string_lossy().into_owned())
                .unwrap_or_default();
            Err(LoadError::KernelTooOld { found })
        }
        // An unreadable version is no reason to refuse: the load itself tells.
        _ => Ok(()),
    }
}

/// Whether maps may take as much memory as they need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LockedMemory {
    Unlimited,
    /// Maps count against RLIMIT_MEMLOCK, as on kernels before 5.11, and it could not be raised.
    Limited,
}

impl LockedMemory {
    /// Raises the limit, which takes CAP_SYS_RESOURCE.
    fn claim() -> Self {
        use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
        let is_counted = KernelVersion::current().is_ok_and(|v| v < KernelVersion::new(5, 11, 0));
        match setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY) {
            Err(_) if is_counted => Self::Limited,
            _ => Self::Unlimited,
        }
    }
}

/// The size of every map, configured or default.
///
/// # Errors
///
/// When there is no such map, or it cannot have that size.
pub fn capacities(
    configured: &BTreeMap<String, u32>,
) -> Result<BTreeMap<&'static str, u32>, LoadError> {
    let mut sizes: BTreeMap<&'static str, u32> = map::ALL
        .iter()
        .map(|spec| (spec.name, spec.capacity))
        .collect();
    for (name, size) in configured {
        let Some(slot) = sizes.get_mut(name.as_str()) else {
            let known: Vec<_> = map::ALL.iter().map(|spec| spec.name).collect();
            return Err(LoadError::UnknownTable {
                name: name.clone(),
                known: known.join(", "),
            });
        };
        let bad = |why| LoadError::BadTableSize {
            name: name.clone(),
            size: *size,
            why,
        };
        if *size == 0 {
            return Err(bad("it must be at least 1"));
        }
        if name == map::EVENTS.name && (!size.is_power_of_two() || *size < 4096) {
            return Err(bad(
                "the ring buffer's size in bytes is a power of two, 4096 or more",
            ));
        }
        if [
            map::COUNTERS.name,
            map::EVENT_BUDGET.name,
            map::SLOTS.name,
            map::PENDING_V4.name,
            map::PENDING_V6.name,
            map::SERVICE_HINTS.name,
        ]
        .contains(&name.as_str())
        {
            return Err(bad("this table's size is fixed"));
        }
        *slot = *size;
    }
    Ok(sizes)
}

fn pin_maps(ebpf: &aya::Ebpf, dir: &Path) -> Result<(), LoadError> {
    for spec in map::ALL {
        let path = dir.join(spec.name);
        let failed = |source| LoadError::Pin {
            path: path.clone(),
            source,
        };
        // An earlier agent's map: its programs hold it as long as they are attached.
        unless_gone(fs::remove_file(&path)).map_err(failed)?;
        let map = ebpf.map(spec.name).ok_or(LoadError::Missing(spec.name))?;
        map.pin(&path)
            .map_err(|error| failed(io::Error::other(error)))?;
    }
    Ok(())
}

/// Names the two common causes of a refused object.
fn refused(error: EbpfError, locked_memory: LockedMemory) -> LoadError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(current) = cause {
        if let Some(io) = current.downcast_ref::<io::Error>() {
            match io.raw_os_error() {
                Some(libc::EPERM) if locked_memory == LockedMemory::Limited => {
                    return LoadError::LockedMemory;
                }
                Some(libc::EPERM) => return LoadError::NotPermitted,
                Some(libc::ENOSYS) => return LoadError::NoBpf,
                _ => {}
            }
        }
        cause = current.source();
    }
    LoadError::Object(error)
}

/// A map of the object, taken out of it.
pub(super) fn take(ebpf: &mut aya::Ebpf, name: &'static str) -> Result<aya::maps::Map, LoadError> {
    ebpf.take_map(name).ok_or(LoadError::Missing(name))
}

/// A typed map of the object.
pub(super) fn take_as<M>(ebpf: &mut aya::Ebpf, name: &'static str) -> Result<M, LoadError>
where
    M: TryFrom<aya::maps::Map, Error = aya::maps::MapError>,
{
    M::try_from(take(ebpf, name)?).map_err(|source| LoadError::Table { name, source })
}

/// The data type of every typed map here.
pub(super) type Data = MapData;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_checked_by_name() {
        let size = |name: &str, size| capacities(&BTreeMap::from([(name.to_owned(), size)]));
        assert_eq!(
            size("flows_v4", 1 << 20).expect("valid")["flows_v4"],
            1 << 20
        );
        let refused = size("flows", 1).expect_err("unknown").to_string();
        assert!(
            refused.starts_with("unknown table \"flows\"; the tables are endpoints, "),
            "{refused}"
        );
        assert!(
            size("peers", 0)
                .expect_err("zero")
                .to_string()
                .contains("at least 1")
        );
        assert!(
            size("events", 5000)
                .expect_err("odd")
                .to_string()
                .contains("power of two")
        );
        assert!(
            size("counters", 5)
                .expect_err("fixed")
                .to_string()
                .contains("fixed")
        );
    }
}
