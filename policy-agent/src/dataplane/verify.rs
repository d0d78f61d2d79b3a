//! Whether what was put into the kernel is still there, and as it was put.
//!
//! Everybody with the rights may detach a program, remove a pin or write a table: by mistake, or to be rid
//! of what looks like a leftover. What can be put back at once is; a program that is not at its place is
//! told to the caller, who attaches it again.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use aya::Ebpf;
use aya::maps::{MapData, MapInfo};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::{SchedClassifier, TcAttachType};

use super::attach::{self, Attachment, Mode, PROGRAMS};
use super::error::{AttachError, LoadError};
use super::removal::unless_gone;
use super::{Dataplane, clsact, tcx};

/// Something that is not as it was put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drift {
    /// What it is.
    pub part: DriftedPart,
    /// The interface that it belongs to; `None` for what is all endpoints'.
    pub ifindex: Option<u32>,
    /// What was found instead.
    pub found: String,
    /// Why it is not put right, where that was tried.
    pub error: Option<String>,
}

/// What can drift.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DriftedPart {
    /// A program is not the first at its interface. To be attached again.
    Program,
    /// The pin of an attached program.
    LinkPin,
    /// The pin of a table.
    TablePin,
    /// An endpoint's row.
    EndpointRow,
}

impl DriftedPart {
    /// Every part.
    pub const ALL: [Self; 4] = [
        Self::Program,
        Self::LinkPin,
        Self::TablePin,
        Self::EndpointRow,
    ];

    /// The word in metrics and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Program => "program",
            Self::LinkPin => "link_pin",
            Self::TablePin => "table_pin",
            Self::EndpointRow => "endpoint_row",
        }
    }
}

/// The tables, each as this process holds it, by name.
pub(super) struct TablePins(BTreeMap<&'static str, (u32, MapData)>);

impl TablePins {
    /// Those that are pinned in `dir`, or wait beside it.
    pub(super) fn open(dirs: [&Path; 2]) -> Result<Self, LoadError> {
        let mut tables = BTreeMap::new();
        for spec in policy_common::map::ALL {
            let open = |dir: &Path| MapData::from_pin(dir.join(spec.name));
            let table = open(dirs[0]).or_else(|_| open(dirs[1]));
            let failed = |source| LoadError::Table {
                name: spec.name,
                source,
            };
            let table = table.map_err(failed)?;
            let id = table.info().map_err(failed)?.id();
            tables.insert(spec.name, (id, table));
        }
        Ok(Self(tables))
    }

    fn verify(&self, dir: &Path, drifts: &mut Vec<Drift>) {
        for (name, (id, table)) in &self.0 {
            let pin = dir.join(name);
            let found = match MapInfo::from_pin(&pin) {
                Ok(info) if info.id() == *id => continue,
                Ok(info) => format!("{}: map {} instead of {id}", pin.display(), info.id()),
                Err(error) => format!("{}: {error}", pin.display()),
            };
            let outcome = unless_gone(fs::remove_file(&pin))
                .and_then(|()| table.pin(&pin).map_err(io::Error::other));
            drifts.push(Drift {
                part: DriftedPart::TablePin,
                ifindex: None,
                found,
                error: outcome.err().map(|error| error.to_string()),
            });
        }
    }
}

impl Dataplane {
    /// Compares what is in the kernel with what was put there, repairs pins and rows, and lists what was
    /// found. An interface with [`DriftedPart::Program`] is to be attached again.
    pub fn verify(&mut self) -> Vec<Drift> {
        let mut drifts = self.tables.verify_endpoints();
        let is_staged = self.changeover.as_ref().is_some_and(|c| c.is_staged());
        if let Some(pins) = self.table_pins.as_ref().filter(|_| !is_staged) {
            pins.verify(&self.bpffs, &mut drifts);
        }
        let endpoints = self.attachments.values();
        let endpoints = endpoints.map(|attachment| (attachment.ifindex, attachment.mode));
        let exits = self.exits.iter();
        let exits = exits.map(|(ifindex, exit)| (*ifindex, exit.mode));
        let by_clsact = endpoints
            .chain(exits)
            .filter(|(_, mode)| *mode == Mode::Clsact)
            .map(|(ifindex, _)| ifindex)
            .collect();
        let filters = clsact::look(by_clsact).unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot ask which filters there are; they are put again");
            BTreeMap::new()
        });
        let wanted = PROGRAMS.map(|(name, _)| program_id(&self.ebpf, name));
        for attachment in self.attachments.values_mut() {
            match attachment.mode {
                Mode::Tcx => verify_tcx(&self.ebpf, attachment, &self.bpffs, &mut drifts),
                Mode::Clsact if are_there(filters.get(&attachment.ifindex), wanted) => {}
                Mode::Clsact => verify_clsact(&mut self.ebpf, attachment, &self.bpffs, &mut drifts),
            }
        }
        for (ifindex, exit) in &self.exits {
            let program = exit.layer.program();
            let there = match exit.mode {
                Mode::Tcx => look(&self.ebpf, *ifindex, program, TcAttachType::Egress),
                Mode::Clsact => {
                    match are_there(filters.get(ifindex), [program_id(&self.ebpf, program)]) {
                        true => Place::Ours,
                        false => Place::Lost(format!("no filter for {program}")),
                    }
                }
            };
            // One that comes after others sees what they let through: nothing forbidden leaves by that.
            if let Place::Lost(found) = there {
                drifts.push(Drift {
                    part: DriftedPart::Program,
                    ifindex: Some(*ifindex),
                    found,
                    error: None,
                });
            }
        }
        drifts
    }

    /// Lets go of our programs at an interface where others are before them: the kernel takes a program only
    /// once. What comes between this and the next attachment is not judged, as it need not have been since
    /// the others came.
    pub(super) fn release_displaced(&mut self, ifindex: u32) -> Result<(), AttachError> {
        let Some(attachment) = self.attachments.get_mut(&ifindex) else {
            return Ok(());
        };
        // The last first: links are found by their place.
        for (name, attach_type) in PROGRAMS.into_iter().rev() {
            if let Place::Displaced(_) = look(&self.ebpf, ifindex, name, attach_type) {
                attach::release(&self.bpffs, attachment, name).map_err(|source| {
                    AttachError::Pin {
                        path: attach::pin_path(&self.bpffs, ifindex, name, Mode::Tcx),
                        source,
                    }
                })?;
            }
        }
        Ok(())
    }
}

/// What is where one of our programs should be.
enum Place {
    Ours,
    InterfaceGone,
    /// It is not there.
    Lost(String),
    /// Others are before it.
    Displaced(String),
}

fn look(ebpf: &Ebpf, ifindex: u32, name: &str, attach_type: TcAttachType) -> Place {
    let there = match tcx::programs(ifindex, attach_type) {
        Ok(there) => there,
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Place::InterfaceGone,
        Err(error) => {
            tracing::debug!(ifindex, %error, "cannot ask what is attached");
            return Place::Ours;
        }
    };
    let ours = program_id(ebpf, name);
    match there.iter().position(|id| Some(*id) == ours) {
        Some(0) => Place::Ours,
        Some(_) => Place::Displaced(format!("{name} comes after others: {there:?}")),
        None => Place::Lost(format!("{name} is not among {there:?}")),
    }
}

fn verify_tcx(ebpf: &Ebpf, attachment: &mut Attachment, bpffs: &Path, drifts: &mut Vec<Drift>) {
    let ifindex = attachment.ifindex;
    for (name, attach_type) in PROGRAMS {
        let found = match look(ebpf, ifindex, name, attach_type) {
            Place::Ours => continue,
            Place::InterfaceGone => return,
            Place::Lost(found) | Place::Displaced(found) => found,
        };
        drifts.push(Drift {
            part: DriftedPart::Program,
            ifindex: Some(ifindex),
            found,
            error: None,
        });
        return;
    }
    verify_pins(attachment, bpffs, drifts);
}

/// Whether these programs are among an interface's filters.
fn are_there<const N: usize>(
    filters: Option<&Vec<clsact::Filter>>,
    wanted: [Option<u32>; N],
) -> bool {
    let Some(filters) = filters else {
        return false;
    };
    wanted.into_iter().all(|wanted| {
        let ours = |filter: &&clsact::Filter| {
            filter.priority == attach::PRIORITY
                && filter.program.as_ref().map(|(_, id)| *id) == wanted
        };
        wanted.is_some() && filters.iter().any(|filter| ours(&filter))
    })
}

/// Puts an interface's filters again.
fn verify_clsact(ebpf: &mut Ebpf, attachment: &Attachment, bpffs: &Path, drifts: &mut Vec<Drift>) {
    let drift = |found, error: Option<AttachError>| Drift {
        part: DriftedPart::Program,
        ifindex: Some(attachment.ifindex),
        found,
        error: error.map(|error| error.to_string()),
    };
    match attach::renew_clsact(ebpf, bpffs, attachment) {
        Ok(missing) if missing.is_empty() => {}
        Ok(missing) => drifts.push(drift(format!("no filter for {}", missing.join(", ")), None)),
        Err(AttachError::InterfaceGone { .. }) => {}
        Err(error) => drifts.push(drift(String::new(), Some(error))),
    }
}

fn program_id(ebpf: &Ebpf, name: &str) -> Option<u32> {
    let program: &SchedClassifier = ebpf.program(name)?.try_into().ok()?;
    Some(program.info().ok()?.id())
}

/// Pins of links that hold the programs.
fn verify_pins(attachment: &mut Attachment, bpffs: &Path, drifts: &mut Vec<Drift>) {
    let links = std::mem::take(&mut attachment.links);
    for ((name, _), link) in PROGRAMS.into_iter().zip(links) {
        let pin = attach::pin_path(bpffs, attachment.ifindex, name, Mode::Tcx);
        let pinned = PinnedLink::from_pin(&pin).map(FdLink::from);
        let pinned = pinned.and_then(|pinned| Ok(pinned.info()?.id()));
        let found = match (&pinned, link.info()) {
            (Ok(pinned), Ok(held)) if *pinned == held.id() => {
                attachment.links.push(link);
                continue;
            }
            (Ok(pinned), _) => format!("{}: link {pinned} instead of ours", pin.display()),
            (Err(error), _) => format!("{}: {error}", pin.display()),
        };
        let mut drift = Drift {
            part: DriftedPart::LinkPin,
            ifindex: Some(attachment.ifindex),
            found,
            error: None,
        };
        let there = pin.parent().map_or(Ok(()), fs::create_dir_all);
        match there.and_then(|()| unless_gone(fs::remove_file(&pin))) {
            Err(error) => {
                drift.error = Some(error.to_string());
                attachment.links.push(link);
            }
            // A link that cannot be pinned is gone with that; it is found missing the next time.
            Ok(()) => match link.pin(&pin) {
                Ok(pinned) => attachment.links.push(FdLink::from(pinned)),
                Err(error) => drift.error = Some(error.to_string()),
            },
        }
        drifts.push(drift);
    }
}
