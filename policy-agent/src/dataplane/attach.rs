//! Attaching: the only file that knows TC's own directions.
//!
//! From 6.6 on a program is attached by a TCX link, below by a filter of the clsact qdisc. Both stay
//! when this process ends: a TCX link by its pin `links/IFINDEX-PROGRAM`; a clsact filter by itself,
//! with the program pinned under the same name as a mark of what is ours.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::programs::links::{FdLink, LinkOrder, PinnedLink};
use aya::programs::tc::{
    NlOptions, SchedClassifierLink, SchedClassifierLinkId, TcAttachOptions, TcError, TcHandle,
};
use aya::programs::{Link, ProgramError, SchedClassifier, TcAttachType};
use aya::util::KernelVersion;
use nix::net::if_::{if_indextoname, if_nametoindex};

use super::clsact;
use super::error::AttachError;
use super::load::{FROM_POD, TO_POD};
use super::removal::unless_gone;

/// The pod's egress enters the host on the veth, and its ingress leaves the host there.
pub(super) const PROGRAMS: [(&str, TcAttachType); 2] = [
    (FROM_POD, TcAttachType::Ingress),
    (TO_POD, TcAttachType::Egress),
];

/// Our place among clsact filters: before those that tools add without a priority.
pub(super) const PRIORITY: u16 = 50;
const HANDLE: TcHandle = TcHandle::new(0, 1);

/// How programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// By TCX links, kernel 6.6 and later.
    Tcx,
    /// By filters of the clsact qdisc.
    Clsact,
}

impl Mode {
    /// The word shown by `policyctl status`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }

    pub(super) fn of_this_kernel() -> Self {
        match KernelVersion::current() {
            Ok(version) if version < KernelVersion::new(6, 6, 0) => Self::Clsact,
            _ => Self::Tcx,
        }
    }
}

/// An interface that the programs are attached to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// Its index in the host's network namespace.
    pub ifindex: u32,
    /// Its name when the programs were attached.
    pub interface: String,
    /// How.
    pub mode: Mode,
    /// Kernel's id of `from_pod`, 0 when unknown.
    pub from_pod_program_id: u32,
    /// Kernel's id of `to_pod`, 0 when unknown.
    pub to_pod_program_id: u32,
}

/// What holds the programs at an interface.
pub(super) struct Attachment {
    pub(super) ifindex: u32,
    interface: String,
    pub(super) mode: Mode,
    /// Kept open beside their pins, for TCX; in the order of [`PROGRAMS`].
    pub(super) links: Vec<FdLink>,
}

/// What was found of filters that were to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Filter {
    Missing,
    Replaced,
}

impl Attachment {
    pub(super) fn describe(&self, ebpf: &Ebpf) -> Attached {
        let id = |name| {
            ebpf.program(name)
                .and_then(|program| program.info().ok())
                .map_or(0, |info| info.id())
        };
        Attached {
            ifindex: self.ifindex,
            interface: self.interface.clone(),
            mode: self.mode,
            from_pod_program_id: id(FROM_POD),
            to_pod_program_id: id(TO_POD),
        }
    }
}

/// Attaches both programs, replacing those of an earlier agent atomically.
pub(super) fn attach(
    ebpf: &mut Ebpf,
    bpffs: &Path,
    ifindex: u32,
    interface: &str,
) -> Result<Attachment, AttachError> {
    let interface = current_name(ifindex, interface)?;
    let mode = Mode::of_this_kernel();
    let mut links = Vec::new();
    for (name, attach_type) in PROGRAMS {
        let program: &mut SchedClassifier = ebpf
            .program_mut(name)
            .and_then(|program| program.try_into().ok())
            .ok_or(AttachError::NotLoaded(name))?;
        let pin = pin_path(bpffs, ifindex, name);
        let attached = match mode {
            Mode::Tcx => attach_tcx(program, &interface, attach_type, &pin).map(|link| {
                links.push(link);
            }),
            Mode::Clsact => clsact::add(bpffs, ifindex, &interface)
                .map_err(|error| Failure::from(ProgramError::from(error)))
                .and_then(|()| attach_clsact(program, &interface, attach_type, &pin))
                .map(|_| ()),
        };
        if let Err(error) = attached {
            let error = explain(error, name, ifindex, &interface, &pin);
            // Half attached is not attached: nobody would detach the other half.
            let half = Attachment {
                ifindex,
                interface,
                mode,
                links,
            };
            if let Err(left) = detach(bpffs, half) {
                tracing::warn!(ifindex, error = %left, "a half attached interface stays so");
            }
            return Err(error);
        }
    }
    // The name was resolved before: make sure that it still means the same interface.
    if if_nametoindex(interface.as_str()).ok() != Some(ifindex) {
        let attachment = Attachment {
            ifindex,
            interface: interface.clone(),
            mode,
            links,
        };
        detach(bpffs, attachment)?;
        return Err(AttachError::InterfaceGone { ifindex, interface });
    }
    Ok(Attachment {
        ifindex,
        interface,
        mode,
        links,
    })
}

/// An attach step's failure, before it is known what it means.
enum Failure {
    Program(ProgramError),
    Pin(io::Error),
}

impl From<ProgramError> for Failure {
    fn from(error: ProgramError) -> Self {
        Self::Program(error)
    }
}

fn explain(
    failure: Failure,
    program: &'static str,
    ifindex: u32,
    interface: &str,
    pin: &Path,
) -> AttachError {
    if current_name(ifindex, interface).is_err() {
        return AttachError::InterfaceGone {
            ifindex,
            interface: interface.to_owned(),
        };
    }
    match failure {
        Failure::Program(source) => AttachError::Attach {
            program,
            interface: interface.to_owned(),
            source,
        },
        Failure::Pin(source) => AttachError::Pin {
            path: pin.to_owned(),
            source,
        },
    }
}

fn attach_tcx(
    program: &mut SchedClassifier,
    interface: &str,
    attach_type: TcAttachType,
    pin: &Path,
) -> Result<FdLink, Failure> {
    if let Some(link) = replace_tcx(program, pin)? {
        return Ok(link);
    }
    // First in line, so that another program's "pass" cannot end the walk before ours.
    let order = TcAttachOptions::TcxOrder(LinkOrder::first());
    let id = program.attach_with_options(interface, attach_type, order)?;
    let pinned = take_fd(program, id)?
        .pin(pin)
        .map_err(|error| Failure::Pin(io::Error::other(error)))?;
    Ok(FdLink::from(pinned))
}

/// Puts our program into the link that an earlier agent pinned; `None` when there is none that lives.
fn replace_tcx(program: &mut SchedClassifier, pin: &Path) -> Result<Option<FdLink>, Failure> {
    let Ok(pinned) = PinnedLink::from_pin(pin) else {
        return remove_pin(pin).map(|()| None);
    };
    let link = SchedClassifierLink::try_from(FdLink::from(pinned))
        .map_err(|error| Failure::Pin(io::Error::other(error)))?;
    match program.attach_to_link(link) {
        Ok(id) => Ok(Some(take_fd(program, id)?)),
        // The link's interface is gone, and its index in use again.
        Err(_) => remove_pin(pin).map(|()| None),
    }
}

fn take_fd(program: &mut SchedClassifier, id: SchedClassifierLinkId) -> Result<FdLink, Failure> {
    let link = program.take_link(id)?;
    FdLink::try_from(link).map_err(|error| Failure::Pin(io::Error::other(error)))
}

fn attach_clsact(
    program: &mut SchedClassifier,
    interface: &str,
    attach_type: TcAttachType,
    pin: &Path,
) -> Result<Filter, Failure> {
    let options = NlOptions {
        priority: PRIORITY,
        handle: HANDLE,
        classid: None,
    };
    let attached =
        program.attach_with_options(interface, attach_type, TcAttachOptions::Netlink(options));
    let (id, found) = match attached {
        Err(ProgramError::TcError(TcError::NetlinkError(error)))
            if error.raw_os_error() == Some(libc::EEXIST) =>
        {
            let old = clsact_link(interface, attach_type).map_err(Failure::Pin)?;
            (program.attach_to_link(old)?, Filter::Replaced)
        }
        other => (other?, Filter::Missing),
    };
    // Dropping the link would detach the filter; it is found again by priority and handle.
    std::mem::forget(program.take_link(id)?);
    remove_pin(pin)?;
    program
        .pin(pin)
        .map_err(|error| Failure::Pin(io::Error::other(error)))?;
    Ok(found)
}

/// Puts filters again where they are to be, each at once in the place of the one that is there, and says which
/// were missing. An interface that is gone misses none.
pub(super) fn renew_clsact(
    ebpf: &mut Ebpf,
    bpffs: &Path,
    attachment: &Attachment,
) -> Result<Vec<&'static str>, AttachError> {
    let (ifindex, mut missing) = (attachment.ifindex, Vec::new());
    let Ok(interface) = current_name(ifindex, &attachment.interface) else {
        return Ok(missing);
    };
    for (name, attach_type) in PROGRAMS {
        let program: &mut SchedClassifier = ebpf
            .program_mut(name)
            .and_then(|program| program.try_into().ok())
            .ok_or(AttachError::NotLoaded(name))?;
        let pin = pin_path(bpffs, ifindex, name);
        let found = clsact::add(bpffs, ifindex, &interface)
            .map_err(|error| Failure::from(ProgramError::from(error)))
            .and_then(|()| attach_clsact(program, &interface, attach_type, &pin));
        match found {
            Ok(Filter::Missing) => missing.push(name),
            Ok(Filter::Replaced) => {}
            Err(error) => return Err(explain(error, name, ifindex, &interface, &pin)),
        }
    }
    Ok(missing)
}

/// Lets go of a TCX link, so that the program can be attached anew before all others.
pub(super) fn release(bpffs: &Path, attachment: &mut Attachment, program: &str) -> io::Result<()> {
    let pin = pin_path(bpffs, attachment.ifindex, program);
    unless_gone(fs::remove_file(&pin))?;
    let place = PROGRAMS.iter().position(|(name, _)| *name == program);
    if let Some(place) = place.filter(|place| *place < attachment.links.len()) {
        drop(attachment.links.remove(place));
    }
    Ok(())
}

fn clsact_link(interface: &str, attach_type: TcAttachType) -> io::Result<SchedClassifierLink> {
    SchedClassifierLink::attached(interface, attach_type, PRIORITY, HANDLE, None)
}

/// Detaches both programs; what is gone already is no error.
pub(super) fn detach(bpffs: &Path, attachment: Attachment) -> Result<(), AttachError> {
    let Attachment {
        ifindex,
        interface,
        mode,
        links,
    } = attachment;
    for (name, attach_type) in PROGRAMS {
        if mode == Mode::Clsact {
            detach_clsact(ifindex, &interface, attach_type);
        }
        let pin = pin_path(bpffs, ifindex, name);
        remove_pin(&pin).map_err(|failure| explain(failure, name, ifindex, &interface, &pin))?;
    }
    // The last reference to a TCX link, now that its pin is gone.
    drop(links);
    // An empty qdisc costs nothing, and most interfaces go with their pod; what stays, `uninstall` takes.
    if current_name(ifindex, &interface).is_err() {
        clsact::forget(bpffs, ifindex).map_err(|source| AttachError::Pin {
            path: clsact::notes(bpffs),
            source,
        })?;
    }
    Ok(())
}

/// Best effort: a filter goes with its interface.
pub(super) fn detach_clsact(ifindex: u32, interface: &str, attach_type: TcAttachType) {
    if let Ok(name) = current_name(ifindex, interface)
        && let Ok(link) = clsact_link(&name, attach_type)
        && let Err(error) = link.detach()
    {
        tracing::debug!(interface = name, %error, "clsact filter was already gone");
    }
}

/// Removes what is pinned below `bpffs` for interfaces that are not in `keep`.
pub(super) fn prune(
    bpffs: &Path,
    keep: &BTreeMap<u32, Attachment>,
) -> Result<Vec<u32>, AttachError> {
    let failed = |source| AttachError::Pin {
        path: links(bpffs),
        source,
    };
    let mut pruned = Vec::new();
    for entry in fs::read_dir(links(bpffs)).map_err(failed)? {
        let pin = entry.map_err(failed)?.path();
        let Some((ifindex, attach_type)) = parse_pin(&pin) else {
            continue;
        };
        if keep.contains_key(&ifindex) {
            continue;
        }
        if Mode::of_this_kernel() == Mode::Clsact {
            detach_clsact(ifindex, "", attach_type);
        }
        fs::remove_file(&pin).map_err(|source| AttachError::Pin {
            path: pin.clone(),
            source,
        })?;
        if !pruned.contains(&ifindex) {
            pruned.push(ifindex);
        }
    }
    for ifindex in clsact::noted(bpffs).map_err(failed)? {
        if current_name(ifindex, "").is_err() {
            clsact::forget(bpffs, ifindex).map_err(failed)?;
        }
    }
    Ok(pruned)
}

/// Where links are pinned.
pub(super) fn links(bpffs: &Path) -> PathBuf {
    bpffs.join("links")
}

pub(super) fn pin_path(bpffs: &Path, ifindex: u32, program: &str) -> PathBuf {
    links(bpffs).join(format!("{ifindex}-{program}"))
}

fn parse_pin(pin: &Path) -> Option<(u32, TcAttachType)> {
    let (ifindex, program) = pin.file_name()?.to_str()?.split_once('-')?;
    let (_, attach_type) = PROGRAMS.into_iter().find(|(name, _)| *name == program)?;
    Some((ifindex.parse().ok()?, attach_type))
}

fn remove_pin(pin: &Path) -> Result<(), Failure> {
    unless_gone(fs::remove_file(pin)).map_err(Failure::Pin)
}

/// The name that `ifindex` has now.
pub(super) fn current_name(ifindex: u32, last_known: &str) -> Result<String, AttachError> {
    if_indextoname(ifindex)
        .ok()
        .and_then(|name| name.into_string().ok())
        // nix 0.31 takes the null that means "no such interface" for success, with an empty name.
        .filter(|name| !name.is_empty())
        .ok_or_else(|| AttachError::InterfaceGone {
            ifindex,
            interface: last_known.to_owned(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_that_is_gone_has_no_name() {
        assert_eq!(current_name(1, "").expect("loopback"), "lo");
        let error = current_name(u32::MAX >> 1, "veth7").expect_err("no such index");
        assert!(
            matches!(&error, AttachError::InterfaceGone { interface, .. } if interface == "veth7"),
            "{error}"
        );
    }

    #[test]
    fn pins_are_read_back_as_they_are_named() {
        let dir = Path::new("/sys/fs/bpf/portcullis");
        for (name, attach_type) in PROGRAMS {
            let (ifindex, parsed) = parse_pin(&pin_path(dir, 42, name)).expect("our own name");
            assert_eq!((ifindex, parsed), (42, attach_type));
        }
        for other in ["42", "x-from_pod", "42-other", "README"] {
            assert!(parse_pin(&dir.join(other)).is_none(), "{other}");
        }
    }
}
