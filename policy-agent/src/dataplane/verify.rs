//! Whether what was put into the kernel is still there, and as it was put.
//!
//! Everybody with the rights may remove a pin or write a table: by mistake, or to be rid of what looks like a
//! leftover. What can be put back at once is. Programs at interfaces are watched by themselves (`watch`): one that is
//! not at its place is told to the caller, who attaches it again.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use aya::Ebpf;
use aya::maps::{MapData, MapInfo};
use aya::programs::SchedClassifier;
use aya::programs::links::{FdLink, PinnedLink};

use super::Dataplane;
use super::attach::{self, Attachment, Mode};
use super::error::LoadError;
use super::removal::unless_gone;

/// Something that is not as it was put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drift {
    /// What it is.
    pub part: DriftedPart,
    /// Whose it is, where it is an interface's.
    pub role: Role,
    /// The interface that it belongs to; `None` for what is all endpoints'.
    pub ifindex: Option<u32>,
    /// What was found instead.
    pub found: String,
    /// Why it is not put right, where that was tried.
    pub error: Option<String>,
}

/// What an interface is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// A pod's.
    Endpoint,
    /// One of the node's others.
    Netdev,
}

/// What can drift.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DriftedPart {
    /// A program is not the first at its interface. To be attached again.
    Program,
    /// The pin of an attached program, or that marks a filter as ours.
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
                role: Role::Endpoint,
                ifindex: None,
                found,
                error: outcome.err().map(|error| error.to_string()),
            });
        }
    }
}

impl Dataplane {
    /// Compares tables and pins with what was put there, repairs them, and lists what was found.
    pub fn verify(&mut self) -> Vec<Drift> {
        let mut drifts = self.tables.verify_endpoints();
        let is_staged = self.changeover.as_ref().is_some_and(|c| c.is_staged());
        if let Some(pins) = self.table_pins.as_ref().filter(|_| !is_staged) {
            pins.verify(&self.bpffs, &mut drifts);
        }
        for (role, attachments) in [
            (Role::Endpoint, &mut self.attachments),
            (Role::Netdev, &mut self.netdevs),
        ] {
            for attachment in attachments.values_mut() {
                verify_pins(&mut self.ebpf, attachment, role, &self.bpffs, &mut drifts);
            }
        }
        drifts
    }
}

/// Pins of links that hold programs, and those that mark filters as ours.
fn verify_pins(
    ebpf: &mut Ebpf,
    attachment: &mut Attachment,
    role: Role,
    bpffs: &Path,
    drifts: &mut Vec<Drift>,
) {
    for program in attachment.programs {
        let pin = attach::pin_path(bpffs, attachment.ifindex, program.pin, attachment.mode);
        let outcome = match attachment.mode {
            Mode::Tcx => verify_link(attachment, program.name, &pin),
            Mode::Clsact => verify_mark(ebpf, program.name, &pin),
        };
        if let Some((found, error)) = outcome {
            drifts.push(Drift {
                part: DriftedPart::LinkPin,
                role,
                ifindex: Some(attachment.ifindex),
                found,
                error: error.map(|error| error.to_string()),
            });
        }
    }
}

/// What was wrong, and why it still is.
type Found = Option<(String, Option<io::Error>)>;

fn verify_link(attachment: &mut Attachment, program: &'static str, pin: &Path) -> Found {
    let link = attachment.links.remove(program)?;
    let pinned = PinnedLink::from_pin(pin).map(FdLink::from);
    let pinned = pinned.and_then(|pinned| Ok(pinned.info()?.id()));
    let found = match (&pinned, link.info()) {
        (Ok(pinned), Ok(held)) if *pinned == held.id() => {
            attachment.links.insert(program, link);
            return None;
        }
        (Ok(pinned), _) => format!("{}: link {pinned} instead of ours", pin.display()),
        (Err(error), _) => format!("{}: {error}", pin.display()),
    };
    if let Err(error) = make_room(pin) {
        attachment.links.insert(program, link);
        return Some((found, Some(error)));
    }
    // A link that cannot be pinned is gone with that, which is noticed.
    match link.pin(pin) {
        Ok(pinned) => {
            attachment.links.insert(program, FdLink::from(pinned));
            Some((found, None))
        }
        Err(error) => Some((found, Some(io::Error::other(error)))),
    }
}

fn verify_mark(ebpf: &mut Ebpf, program: &'static str, pin: &Path) -> Found {
    if pin.exists() {
        return None;
    }
    let found = format!("{}: it is not there", pin.display());
    let loaded = ebpf.program_mut(program);
    let loaded: &mut SchedClassifier = loaded.and_then(|program| program.try_into().ok())?;
    let pinned = make_room(pin).and_then(|()| loaded.pin(pin).map_err(io::Error::other));
    Some((found, pinned.err()))
}

/// Nothing where a pin is to be, and a directory around it.
fn make_room(pin: &Path) -> io::Result<()> {
    pin.parent().map_or(Ok(()), fs::create_dir_all)?;
    unless_gone(fs::remove_file(pin))
}
