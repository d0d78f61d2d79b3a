//! What of ours is in the kernel, as the kernel says it and not as an agent remembers it.
//!
//! Other nodes may live on this machine as network namespaces, with programs and maps of the same
//! names. So what is attached is looked for in this network namespace, what is pinned below our
//! directory, and whether programs and maps are gone is asked by the ids that these had.

use std::collections::BTreeSet;
use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use aya::maps::{MapInfo, loaded_maps};
use aya::programs::links::{FdLink, LinkType, PinnedLink};
use aya::programs::{ProgramInfo, SchedClassifier, TcAttachType, loaded_programs};
use nix::net::if_::if_nameindex;

use super::attach::{self, Mode};
use super::tc::Tc;
use super::{bpffs, clsact};

/// How often a list that changes while it is read is read again.
const ATTEMPTS: usize = 20;

/// One thing of ours.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// A program that is attached to an interface of this network namespace.
    Attached {
        /// The interface's index.
        ifindex: u32,
        /// Its name.
        interface: String,
        /// `from_pod`, `to_pod`, `exit`, `exit_l3`, `exit_ib` or `from_node`.
        program: &'static str,
        /// The kernel's id of the program.
        id: u32,
        /// How it is attached.
        mode: Mode,
    },
    /// A clsact qdisc that an agent added and that holds no filters but ours.
    Qdisc {
        /// The interface's index.
        ifindex: u32,
        /// Its name.
        interface: String,
    },
    /// A pinned map, link or program.
    Pin(PathBuf),
    /// A directory for pins.
    Directory(PathBuf),
    /// The local socket or the lock.
    File(PathBuf),
    /// A program that the kernel still holds, wherever it is attached.
    Program {
        /// The kernel's id.
        id: u32,
        /// Its name.
        name: String,
    },
    /// A map that the kernel still holds.
    Map {
        /// The kernel's id.
        id: u32,
        /// Its name.
        name: String,
    },
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Attached {
                ifindex,
                interface,
                program,
                id,
                mode,
            } => write!(
                f,
                "{program} (program {id}) at {interface} (ifindex {ifindex}, {})",
                mode.as_str()
            ),
            Self::Qdisc { ifindex, interface } => {
                write!(f, "clsact qdisc at {interface} (ifindex {ifindex})")
            }
            Self::Pin(path) => write!(f, "pin {}", path.display()),
            Self::Directory(path) => write!(f, "directory {}", path.display()),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Program { id, name } => write!(f, "program {name} (id {id})"),
            Self::Map { id, name } => write!(f, "map {name} (id {id})"),
        }
    }
}

/// What is attached and pinned.
#[derive(Clone, Debug)]
pub struct Installed {
    /// Each part, in the order in which they are to go.
    pub parts: Vec<Part>,
    /// The programs that these keep in the kernel, and their maps, by the kernel's ids. It gives an id
    /// again only after two thousand million others.
    objects: Vec<Part>,
    /// Interfaces whose clsact qdisc an agent added.
    qdiscs: BTreeSet<u32>,
}

impl Installed {
    /// Looks at the interfaces of this network namespace and below `bpffs`.
    ///
    /// # Errors
    ///
    /// When the kernel does not say; without `CAP_SYS_ADMIN` it does not.
    pub fn look(bpffs: &Path) -> io::Result<Self> {
        let qdiscs = clsact::noted(bpffs)?;
        let mut parts = attached(&qdiscs)?;
        let mut held = Held::default();
        for part in &parts {
            if let Part::Attached { id, .. } = part {
                held.programs.insert(*id);
            }
        }
        let pins = bpffs::pins(bpffs)?;
        for pin in &pins.files {
            held.look_at(bpffs, pin);
        }
        parts.extend(pins.files.into_iter().map(Part::Pin));
        parts.extend(pins.directories.into_iter().map(Part::Directory));
        Ok(Self {
            parts,
            objects: held.objects()?,
            qdiscs,
        })
    }

    /// What is there now, with those of the programs and maps seen before that the kernel still holds.
    ///
    /// # Errors
    ///
    /// As with [`Installed::look`].
    pub fn look_again(&self, bpffs: &Path) -> io::Result<Vec<Part>> {
        let mut left = attached(&self.qdiscs)?;
        let pins = bpffs::pins(bpffs)?;
        left.extend(pins.files.into_iter().map(Part::Pin));
        left.extend(pins.directories.into_iter().map(Part::Directory));
        let programs: BTreeSet<u32> = all_programs()?.iter().map(ProgramInfo::id).collect();
        let maps: BTreeSet<u32> = all_maps()?.iter().map(MapInfo::id).collect();
        let held = self.objects.iter().filter(|object| match object {
            Part::Program { id, .. } => programs.contains(id),
            Part::Map { id, .. } => maps.contains(id),
            _ => false,
        });
        left.extend(held.cloned());
        Ok(left)
    }

    /// How many programs and maps were in the kernel.
    #[must_use]
    pub fn objects(&self) -> (usize, usize) {
        let programs = self.objects.iter();
        let programs = programs
            .filter(|object| matches!(object, Part::Program { .. }))
            .count();
        (programs, self.objects.len() - programs)
    }
}

/// Programs at interfaces, and the qdiscs that go with them.
fn attached(noted: &BTreeSet<u32>) -> io::Result<Vec<Part>> {
    let mut tc = Tc::open()?;
    let mut parts = Vec::new();
    let mut qdiscs = Vec::new();
    let with_clsact = tc.interfaces()?;
    for (ifindex, interface) in interfaces()? {
        let mut found = |program, id, mode| {
            parts.push(Part::Attached {
                ifindex,
                interface: interface.clone(),
                program,
                id,
                mode,
            });
        };
        if Mode::of_this_kernel() == Mode::Tcx {
            for (program, id) in tcx(&interface)? {
                found(program, id, Mode::Tcx);
            }
        }
        if !with_clsact.contains(&ifindex) {
            continue;
        }
        let seen = match tc.look(ifindex) {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => continue,
            other => other?,
        };
        let mut others = false;
        for side in [TcAttachType::Ingress, TcAttachType::Egress] {
            for filter in seen.filters(side) {
                let ours = attach::own(side, filter).zip(filter.program.as_ref());
                match ours {
                    Some((program, (_, id))) => found(program.name, *id, Mode::Clsact),
                    None => others = true,
                }
            }
        }
        if noted.contains(&ifindex) && !others {
            qdiscs.push(Part::Qdisc { ifindex, interface });
        }
    }
    parts.extend(qdiscs);
    Ok(parts)
}

fn interfaces() -> io::Result<Vec<(u32, String)>> {
    let list = if_nameindex()?;
    Ok(list
        .iter()
        .map(|entry| (entry.index(), entry.name().to_string_lossy().into_owned()))
        .collect())
}

/// Our programs among the TCX links of an interface; none when it is gone.
fn tcx(interface: &str) -> io::Result<Vec<(&'static str, u32)>> {
    let mut found = Vec::new();
    for side in [TcAttachType::Ingress, TcAttachType::Egress] {
        let programs = again_while_it_changes(|| {
            SchedClassifier::query_tcx(interface, side).map(|(_, programs)| programs)
        })?;
        let programs = programs.unwrap_or_default();
        let ours = programs.iter().filter_map(|info| {
            let mut every = attach::every().filter(|program| program.side == side);
            let program = every.find(|program| info.name_as_str() == Some(program.name))?;
            Some((program.name, info.id()))
        });
        found.extend(ours);
    }
    Ok(found)
}

fn ours(name: &str) -> Option<&'static str> {
    attach::every().find_map(|program| (program.name == name).then_some(program.name))
}

/// What attached programs and pins refer to.
#[derive(Default)]
struct Held {
    programs: BTreeSet<u32>,
    maps: BTreeSet<u32>,
}

impl Held {
    /// The kernel opens every kind of pin for whoever asks for one kind, and its answers look alike; so
    /// the place says what this is. Nothing is learnt from what cannot be opened.
    fn look_at(&mut self, bpffs: &Path, pin: &Path) {
        if !pin.starts_with(attach::links(bpffs)) {
            self.maps.extend(MapInfo::from_pin(pin).map(|map| map.id()));
            return;
        }
        let link = PinnedLink::from_pin(pin).map(FdLink::from);
        if let Ok(info) = link.and_then(|link| link.info())
            && matches!(info.link_type(), Ok(LinkType::Tcx))
        {
            self.programs.insert(info.program_id());
        } else if let Ok(info) = ProgramInfo::from_pin(pin) {
            self.programs.insert(info.id());
        }
    }

    /// These, with the maps of the programs and the programs of the maps: an agent's programs may also
    /// be where neither its pins nor this network namespace show them.
    fn objects(self) -> io::Result<Vec<Part>> {
        let mut objects = Vec::new();
        let mut maps = self.maps;
        for info in all_programs()? {
            let Some(name) = info.name_as_str().filter(|name| ours(name).is_some()) else {
                continue;
            };
            let of_program = info
                .map_ids()
                .map_err(io::Error::other)?
                .unwrap_or_default();
            if self.programs.contains(&info.id()) || of_program.iter().any(|map| maps.contains(map))
            {
                objects.push(Part::Program {
                    id: info.id(),
                    name: name.to_owned(),
                });
                maps.extend(of_program);
            }
        }
        let of_ours = all_maps()?
            .into_iter()
            .filter(|map| maps.contains(&map.id()));
        objects.extend(of_ours.map(|map| Part::Map {
            id: map.id(),
            name: map.name_as_str().unwrap_or_default().to_owned(),
        }));
        Ok(objects)
    }
}

/// Every program in the kernel.
fn all_programs() -> io::Result<Vec<ProgramInfo>> {
    let programs = loaded_programs().filter(|program| !program.as_ref().is_err_and(is_gone));
    programs.collect::<Result<_, _>>().map_err(explain)
}

/// Every map in the kernel.
fn all_maps() -> io::Result<Vec<MapInfo>> {
    let maps = loaded_maps().filter(|map| !map.as_ref().is_err_and(is_gone));
    maps.collect::<Result<_, _>>().map_err(explain)
}

/// A list may name what is gone when it is asked for; `None` when that which has the list is gone.
fn again_while_it_changes<T, E: StdError + Send + Sync + 'static>(
    mut read: impl FnMut() -> Result<T, E>,
) -> io::Result<Option<T>> {
    for _ in 1..ATTEMPTS {
        match read() {
            Ok(value) => return Ok(Some(value)),
            Err(error) if code(&error) == Some(libc::ENODEV) => return Ok(None),
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(explain(error)),
        }
    }
    read().map(Some).map_err(explain)
}

fn is_gone(error: &(impl StdError + 'static)) -> bool {
    code(error) == Some(libc::ENOENT)
}

/// The kernel's error code, however deep it is wrapped.
fn code(error: &(dyn StdError + 'static)) -> Option<i32> {
    let mut cause = Some(error);
    while let Some(current) = cause {
        if let Some(io) = current.downcast_ref::<io::Error>() {
            return io.raw_os_error();
        }
        cause = current.source();
    }
    None
}

fn explain(error: impl StdError + Send + Sync + 'static) -> io::Error {
    if code(&error) == Some(libc::EPERM) {
        io::Error::new(
            io::ErrorKind::PermissionDenied,
            "the kernel shows its programs and maps to nobody without CAP_SYS_ADMIN: run as root, and in a \
             container as a privileged one",
        )
    } else {
        io::Error::other(error)
    }
}
